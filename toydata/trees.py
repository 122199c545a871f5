"""The folders of the data sets: a row of TREES and a writer each.

A writer draws one person's pictures, saves them under the file names of the real data set and
returns what its lists say of them: [(list file, entry), ...].
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from toydata.cameras import HEIGHT, WIDTH, camera, crop, open_jpeg, shoot, template
from toydata.people import Body
from instructions import describe


class Job(NamedTuple):
    """One person of one data set."""
    folder: Path  # of the tree
    seed: int
    data_set: str
    role: str
    pid: int
    label: int  # the person's place among those of the same role, from 0
    body: Body
    outfits: tuple

    def shoot(self, outfit, cam, rng, infrared=False):
        """A Shot of the person in one of their outfits by a camera, both by number."""
        worn = self.outfits[outfit]
        return shoot(self.body, worn, camera(self.seed, cam), rng, infrared)

    def save(self, path, picture):
        """picture: JPEG bytes or an Image. A .png holds what the camera's JPEG showed."""
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(picture, bytes):
            picture.save(file, quality=90, compress_level=2)
        elif file.suffix == ".jpg":
            file.write_bytes(picture)
        else:
            open_jpeg(picture).save(file, compress_level=2)


JUNK_BOXES = ((0, 70, 40, 128), (34, 20, 64, 90), (10, 0, 60, 30))


def market(job, rng):
    """bounding_box_train, query, bounding_box_test; pid 0000 = distractors, -1 = junk boxes."""
    cams = rng.sample(range(1, 7), 4)
    names = {"distractor": "0000", "junk": "-1"}
    name = names.get(job.role, f"{job.pid:04d}")
    if job.role == "train":
        plan = [("bounding_box_train", cam) for cam in cams + cams[:2]]
    elif job.role == "test":
        plan = [("query", cam) for cam in cams[:2]]
        plan += [("bounding_box_test", cam) for cam in cams + cams[:1]]
    else:
        plan = [("bounding_box_test", cams[0])]

    for k, (folder, cam) in enumerate(plan):
        picture = job.shoot(0, cam, rng).jpeg
        if job.role == "junk":  # a box that holds a piece of somebody
            piece = rng.choice(JUNK_BOXES)
            picture = open_jpeg(picture).resize((WIDTH, HEIGHT), box=piece)
        frame = job.pid * 20 + k
        box = rng.randint(0, 5)
        sequence = rng.randint(1, 3)
        job.save(f"{folder}/{name}_c{cam}s{sequence}_{frame:06d}_{box:02d}.jpg", picture)
    return []


def ltcc(job, rng):
    """train, test (the gallery), query; info lists who changes clothes and who does not."""
    for path, _, shot in _ltcc_shots(job, rng):
        job.save(path, shot.jpeg)
    return [_ltcc_change(job)]


def ltcc_clothes(job, rng):
    """LTCC_ReID, and beside it crops, templates and lists for ctcc.

    A list's row is image, instruction, pid, outfit, camera. A training image comes with the crop
    and with the template of its clothes, a gallery image with its crop. A query asks for another
    outfit of the person; who never changes asks for nothing.
    """
    info, person = _ltcc_change(job)
    rows = [(f"LTCC_ReID/{info}", person)]

    templates = []
    for outfit, worn in enumerate(job.outfits, 1):
        templates.append(f"templates/{job.pid:03d}_{outfit}.jpg")
        job.save(templates[-1], template(worn))

    for path, outfit, shot in _ltcc_shots(job, rng):
        image = f"LTCC_ReID/{path}"
        own_crop = f"croped_clothes/{Path(path).name}"
        job.save(image, shot.jpeg)
        job.save(own_crop, crop(shot))

        folder, name = path.split("/")
        cam = name.split("_")[2].removeprefix("c")
        worn = f"{job.pid} {outfit + 1} {cam}"
        if folder == "train":
            rows.append(("datalist/train_ctcc.txt", f"{image} {own_crop} {worn}"))
            rows.append(("datalist/train_ctcc.txt", f"{image} {templates[outfit]} {worn}"))
        elif folder == "test":
            rows.append(("datalist/gallery_ctcc.txt", f"{image} {own_crop} {worn}"))
        elif len(job.outfits) > 1:
            wanted = (outfit + 1) % len(job.outfits)
            asked = f"{templates[wanted]} {job.pid} {wanted + 1} {cam}"
            rows.append(("datalist/query_ctcc.txt", f"{image} {asked}"))
    return rows


def _ltcc_shots(job, rng):
    """Yields (path below LTCC_ReID, outfit, Shot) of every picture of a person."""
    if job.role == "test":
        folders = ["test", "test", "test", "query"]
    elif len(job.outfits) > 1:
        folders = ["train", "train"]
    else:
        folders = ["train", "train", "train", "train"]

    for outfit in range(len(job.outfits)):
        cams = rng.sample(range(1, 13), 4)
        for k, (folder, cam) in enumerate(zip(folders, cams)):
            frame = job.pid * 30 + outfit * 4 + k
            name = f"{job.pid:03d}_{outfit + 1}_c{cam}_{frame:06d}.png"
            yield f"{folder}/{name}", outfit, job.shoot(outfit, cam, rng)


def _ltcc_change(job):
    """The entry of info."""
    kind = "cloth-change" if len(job.outfits) > 1 else "cloth-unchange"
    return f"info/{kind}_id_{job.role}.txt", str(job.pid)


def llcm(job, rng):
    """vis and nir, and test people once more by camera under test_vis and test_nir.

    Camera 3 has no near infrared.
    """
    cameras = {"vis": range(1, 10), "nir": (1, 2, 4, 5, 6, 7, 8, 9)}
    test = job.role == "test"
    rows = []
    if test:
        rows.append(("idx/test_id.txt", str(job.pid)))

    for modality, cams in cameras.items():
        for k, cam in enumerate(rng.sample(cams, 4)):
            jpeg = job.shoot(0, cam, rng, infrared=modality == "nir").jpeg
            session = rng.randint(100000, 200000)
            frame = job.pid * 10 + k
            name = f"{job.pid:04d}/{job.pid:04d}_c{cam:02d}_s{session}_f{frame}_{modality}.jpg"

            listed = f"{modality}/{name}"
            job.save(listed, jpeg)
            if test:
                listed = f"test_{modality}/cam{cam}/{name}"
                job.save(listed, jpeg)
            rows.append((f"idx/{job.role}_{modality}.txt", f"{listed} {job.label}"))
    return rows


def cuhk_pedes(job, rng):
    """imgs and the captions; the seven source folders say nothing about the split."""
    sources = ("cam_a", "cam_b", "CUHK01", "CUHK03", "Market", "test_query", "train_query")
    source = sources[job.pid % 7]
    pictures = 3 if job.role == "test" else 4

    rows = []
    for k, cam in enumerate(rng.sample(range(1, 9), pictures)):
        shot = job.shoot(0, cam, rng)
        path = f"{source}/{job.pid}_{k}.jpg"
        if "query" in source:
            path = f"{source}/p{job.pid}_s{job.pid * 10 + k}.jpg"
        job.save(f"imgs/{path}", shot.jpeg)

        captions = [describe(shot.attributes, rng)]
        while len(captions) < 2:
            caption = describe(shot.attributes, rng)
            if caption not in captions:
                captions.append(caption)
        entry = {"id": job.pid, "file_path": path, "captions": captions}
        rows.append(("reid_raw.json", {"split": job.role} | entry))
        rows.append(("caption_all.json", entry))
    return rows


def cocas(job, rng):
    """COCAS+ Real1 (training) and Real2 (test).

    A list's row is image, instruction, pid, clothes id, camera. A training image comes with the
    crop of its clothes, with their shop picture and with a sentence; a gallery image with its crop
    and its sentence. A query asks for the same person in another outfit, by shop picture or by the
    sentence of a picture that is in no list, so that no query repeats a gallery image's words.
    """
    train = job.role == "train"
    rows = []
    clothes = [job.pid * 3 + outfit for outfit in range(3)]
    templates = [f"templates/{number:05d}.jpg" for number in clothes]
    cams = rng.sample(range(1, 12), 9)  # six for the gallery, three for queries
    shift = rng.choice((1, 2))  # from the outfit that a query wears to the one it asks for

    def path(outfit, cam, number):
        folder = "COCAS" if train else f"real_reid_image_face_blur/images/{outfit + 1}"
        return f"{folder}/{job.pid:04d}_{outfit + 1}_{cam:02d}_{number}.jpg"

    def crop_path(image):
        return f"croped_clothes/{Path(image).name}"

    def photograph(outfit, cam, image, unsaid=None):
        """Saves a picture, the crop of its clothes and its sentence; unsaid: of which attribute."""
        shot = job.shoot(outfit, cam, rng)
        job.save(image, shot.jpeg)
        job.save(crop_path(image), crop(shot))
        said = {key: phrase for key, phrase in shot.attributes.items() if key != unsaid}
        sentence = describe(said, rng)
        rows.append((f"datalist/runner_{job.data_set}_v1_gpt.json", (image, sentence)))

    def add_row(list_name, image, instruction, outfit, cam):
        row = f"{image} {instruction} {job.pid} {clothes[outfit]} {cam}"
        rows.append((f"datalist/{list_name}.txt", row))

    gallery = []  # outfit -> [(camera, image), ...]
    for outfit in range(3):
        seen_by = rng.sample(cams[:6], 3)
        gallery.append([(cam, path(outfit, cam, k)) for k, cam in enumerate(seen_by)])

    for outfit, worn in enumerate(job.outfits):
        job.save(templates[outfit], template(worn))
        for cam, image in gallery[outfit]:
            photograph(outfit, cam, image)
            if train:
                add_row("train_ctcc", image, crop_path(image), outfit, cam)
                add_row("train_ctcc", image, templates[outfit], outfit, cam)
                add_row("train_attr", image, image, outfit, cam)
            else:
                add_row("gallery", image, crop_path(image), outfit, cam)
                add_row("gallery_attr", image, image, outfit, cam)

        if not train:
            cam = cams[6 + outfit]
            query = path(outfit, cam, "query")
            photograph(outfit, cam, query)  # its own crop is in no list: for comparison
            wanted = (outfit + shift) % 3
            example_cam = rng.choice(cams)
            example = path(wanted, example_cam, "wanted")
            # who asks does not know from which side a camera will see the person
            photograph(wanted, example_cam, example, unsaid="person angle")
            add_row("query", query, templates[wanted], wanted, cam)
            add_row("query_attr", query, example, wanted, cam)
    return rows


def cocas_real2(job, rng):
    """COCAS+ Real2 as its authors publish it: neither crops nor sentences.

    A row of query.txt is image, template, pid, clothes id, camera, and asks for another outfit than
    the one worn. A row of gallery.txt has no template.
    """
    clothes = [job.pid * 3 + outfit for outfit in range(3)]
    templates = [f"templates/{number:05d}.jpg" for number in clothes]
    cams = rng.sample(range(1, 12), 9)  # six for the gallery, three for queries
    shift = rng.choice((1, 2))  # from the outfit that a query wears to the one it asks for

    rows = []
    for outfit, worn in enumerate(job.outfits):
        job.save(templates[outfit], template(worn))
        person = f"{job.pid:04d}_{outfit + 1}"

        for k, cam in enumerate(rng.sample(cams[:6], 3)):
            image = f"images/{person}_{cam:02d}_{k}.jpg"
            job.save(image, job.shoot(outfit, cam, rng).jpeg)
            rows.append(("gallery.txt", f"{image} {job.pid} {clothes[outfit]} {cam}"))

        cam = cams[6 + outfit]
        query = f"images/{person}_{cam:02d}_query.jpg"
        job.save(query, job.shoot(outfit, cam, rng).jpeg)
        wanted = (outfit + shift) % 3
        asked = f"{templates[wanted]} {job.pid} {clothes[wanted]} {cam}"
        rows.append(("query.txt", f"{query} {asked}"))
    return rows


def msmt17(job, rng):
    """V1: train and test, a folder per person, numbered from 0 in both, and four lists."""
    lists = {
        "train": ("train", "train", "train", "train", "train", "val"),
        "test": ("query", "query", "gallery", "gallery", "gallery", "gallery"),
    }
    cams = rng.sample(range(1, 16), 4)
    person = f"{job.label:04d}"

    rows = []
    for k, list_name in enumerate(lists[job.role]):
        cam = cams[k % 4]
        time = rng.choice(("0113morning", "0113noon", "0302afternoon"))
        track = rng.randint(0, 9999)
        box = rng.randint(0, 3)
        path = f"{person}/{person}_{k:03d}_{cam:02d}_{time}_{track:04d}_{box}.jpg"
        job.save(f"{job.role}/{path}", job.shoot(0, cam, rng).jpeg)
        rows.append((f"list_{list_name}.txt", f"{path} {job.label}"))
    return rows


def cuhk03(job, rng):
    """detected and labeled, the latter with the box of a careful human.

    Two views of a person, one query from each.
    """
    for k in range(8):
        view = 1 + k // 4
        if job.role == "train":
            folder = "bounding_box_train"
        elif k % 4 == 0:
            folder = "query"
        else:
            folder = "bounding_box_test"
        path = f"{folder}/{job.pid:04d}_c{view}_{job.pid * 8 + k + 1}.png"

        # A detector's box is off by some pixels and stays inside the picture.
        labeled = open_jpeg(job.shoot(0, view, rng).jpeg)
        x = rng.randint(-4, 4)
        y = rng.randint(-6, 6)
        box = (max(0, x), max(0, y), WIDTH + min(0, x), HEIGHT + min(0, y))
        job.save(f"detected/{path}", labeled.resize((WIDTH, HEIGHT), box=box))
        job.save(f"labeled/{path}", labeled)
    return []


def prcc(job, rng):
    """rgb/train, rgb/val by person, rgb/test by camera and person.

    The same clothes under cameras A and B, others under C.
    """
    for cam, letter, outfit in ((1, "A", 0), (2, "B", 0), (3, "C", 1)):
        for k in range(1, 5):
            name = f"cropped_rgb{k:03d}.jpg"
            if job.role == "test":
                path = f"test/{letter}/{job.pid:03d}/{name}"
            elif k < 4:
                path = f"train/{job.pid:03d}/{letter}_{name}"
            else:
                path = f"val/{job.pid:03d}/{letter}_{name}"
            job.save(f"rgb/{path}", job.shoot(outfit, cam, rng).jpeg)
    return []


def vc_clothes(job, rng):
    """train, query, gallery; the clothes are the same under cameras 2 and 3 and others under 4."""
    for cam, outfit in ((1, 0), (2, 1), (3, 1), (4, 2)):
        for k in range(1, 5):
            folder = "gallery"
            if job.role == "train":
                folder = "train"
            elif k == 1:
                folder = "query"
            name = f"{job.pid:04d}-{cam:02d}-{outfit + 1:02d}-{k:02d}.jpg"
            job.save(f"{folder}/{name}", job.shoot(outfit, cam, rng).jpeg)
    return []


def synth_pedes(job, rng):
    """Part1 and Part2 and one JSON of captions; all to train on."""
    named = ("gender code", "hair color", "coat color", "coat style", "trousers color", "bag style")
    part = 1 + job.pid % 2

    rows = []
    for k, cam in enumerate(rng.sample(range(1, 9), 4)):
        shot = job.shoot(0, cam, rng)
        path = f"Part{part}/{job.pid}/{k}.jpg"
        job.save(path, shot.jpeg)

        phrases = [shot.attributes[key] for key in named]
        captions = [describe(shot.attributes, rng) for _ in range(rng.randint(1, 3))]
        entry = {
            "id": job.pid,
            "file_path": path,
            "attributes": [",".join(phrases)],
            "captions": captions,
            "prompt_caption": [describe(shot.attributes, rng)],
        }
        rows.append(("synthpedes-dataset.json", entry))
    return rows


class Tree(NamedTuple):
    """A data set."""
    write: Callable  # one person's pictures: (job, rng) -> list entries
    folder: str
    first_pid: int
    outfits: dict  # role -> outfits of each person; several come from a wardrobe that people share
    unchanging: int = 0  # every n-th person keeps to one of them; 0 = nobody does


TREES = {
    # what train.py draws; real1 and real2 are COCAS+
    "market": Tree(
        market, "Market-1501-v15.09.15", 1, {"train": 1, "test": 1, "distractor": 1, "junk": 1}),
    # six outfits are too many to be learned by heart
    "ltcc": Tree(ltcc, "LTCC_ReID", 0, {"train": 6, "test": 3}, unchanging=15),
    "llcm": Tree(llcm, "LLCM", 1, {"train": 1, "test": 1}),
    "cuhk-pedes": Tree(cuhk_pedes, "CUHK-PEDES", 1, {"train": 1, "val": 1, "test": 1}),
    "real1": Tree(cocas, "COCAS/real1", 1, {"train": 3}),
    "real2": Tree(cocas, "COCAS/real2", 1, {"test": 3}),
    # the other layouts
    "msmt17": Tree(msmt17, "MSMT17_V1", 0, {"train": 1, "test": 1}),
    "cuhk03": Tree(cuhk03, "cuhk03-np", 1, {"train": 1, "test": 1}),
    "prcc": Tree(prcc, "prcc", 1, {"train": 3, "test": 3}),
    "vc-clothes": Tree(vc_clothes, "VC-Clothes", 1, {"train": 3, "test": 3}),
    "synth-pedes": Tree(synth_pedes, "SYNTH-PEDES", 1, {"train": 1}),
    "omnireid": Tree(cocas, "OmniReID", 1, {"train": 3, "test": 3}),
    "ltcc-clothes": Tree(ltcc_clothes, "ltcc", 0, {"train": 6, "test": 3}, unchanging=15),
    "cocas-real2": Tree(cocas_real2, "COCAS-Real2", 1, {"test": 3}),
}
FIVE = ("market", "ltcc", "llcm", "cuhk-pedes", "real1", "real2")  # Real1 and Real2 count as one
