"""The folders of the data sets: one row of TREES and one writer each.

A writer saves one person's pictures under the file names of the real data set and enters them into
its lists.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from instructions import describe
from toydata.cameras import HEIGHT, WIDTH, Shot, camera, shoot, template
from toydata.people import Body


@dataclass
class Job:
    """One person of one data set, and the pictures to draw."""
    folder: Path  # of the tree
    seed: int
    data_set: str
    role: str
    pid: int
    label: int  # the person's place among those of the same role, from 0
    body: Body
    outfits: tuple
    rng: random.Random = None  # of the pictures; set when they are drawn
    entries: list = field(default_factory=list)  # [(list file, entry)]

    def shoot(self, outfit, cam, infrared=False):
        """A Shot of the person in one of their outfits by a camera, both by number."""
        worn = self.outfits[outfit]
        return shoot(self.body, worn, camera(self.seed, cam), self.rng, infrared)

    def save(self, path, picture):
        """picture: an Image or a Shot, whose file is kept; as a .png, what that file shows."""
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(picture, Shot):
            picture.save(file, quality=90, compress_level=2)
        elif file.suffix == ".jpg":
            file.write_bytes(picture.jpeg)
        else:
            picture.picture().save(file, compress_level=2)

    def photograph(self, path, outfit, cam):
        """Saves a picture of the person; returns its Shot."""
        shot = self.shoot(outfit, cam)
        self.save(path, shot)
        return shot

    def enter(self, list_file, entry):
        self.entries.append((list_file, entry))


JUNK_BOXES = ((0, 70, 40, 128), (34, 20, 64, 90), (10, 0, 60, 30))


def market(job):
    """bounding_box_train, query, bounding_box_test; pid 0000 = distractors, -1 = junk boxes."""
    rng = job.rng
    cams = rng.sample(range(1, 7), 4)
    names = {"distractor": "0000", "junk": "-1"}
    name = names.get(job.role, f"{job.pid:04d}")
    folders = ["bounding_box_test"]
    if job.role == "train":
        folders = ["bounding_box_train"] * 6
    elif job.role == "test":
        folders = ["query"] * 2 + ["bounding_box_test"] * 5
        cams = cams[:2] + cams

    for k, (folder, cam) in enumerate(zip(folders, cams * 2)):
        picture = job.shoot(0, cam)
        if job.role == "junk":  # a box with a part of a person
            piece = rng.choice(JUNK_BOXES)
            picture = picture.picture().resize((WIDTH, HEIGHT), box=piece)
        frame = job.pid * 20 + k
        box = rng.randint(0, 5)
        sequence = rng.randint(1, 3)
        job.save(f"{folder}/{name}_c{cam}s{sequence}_{frame:06d}_{box:02d}.jpg", picture)


def ltcc(job):
    """train, test (the gallery), query; info lists who changes clothes and who does not."""
    clothes = job.data_set == "ltcc-clothes"
    tree = "LTCC_ReID/" if clothes else ""
    changes = len(job.outfits) > 1
    kind = "cloth-change" if changes else "cloth-unchange"
    job.enter(f"{tree}info/{kind}_id_{job.role}.txt", str(job.pid))

    folders = ["train"] * (2 if changes else 4)
    if job.role == "test":
        folders = ["test", "test", "test", "query"]
    for outfit, worn in enumerate(job.outfits):
        if clothes:
            job.save(f"templates/{job.pid:03d}_{outfit + 1}.jpg", template(worn))
        cams = job.rng.sample(range(1, 13), 4)
        for k, (folder, cam) in enumerate(zip(folders, cams)):
            frame = job.pid * 30 + outfit * 4 + k
            name = f"{job.pid:03d}_{outfit + 1}_c{cam}_{frame:06d}.png"
            shot = job.photograph(f"{tree}{folder}/{name}", outfit, cam)
            if clothes:
                _enter_clothes(job, folder, name, outfit, cam, shot)


def _enter_clothes(job, folder, name, outfit, cam, shot):
    """What ctcc needs of an LTCC image, beside LTCC_ReID: its crop and the rows of lists.

    A row is image, instruction, pid, outfit, camera. A training image comes with the crop and with
    the template of its clothes, a gallery image with its crop. A query is about another outfit of
    the person; people who never change have none.
    """
    crop = f"croped_clothes/{name}"
    job.save(crop, shot.crop())
    if folder == "query":
        if len(job.outfits) == 1:
            return
        outfit = (outfit + 1) % len(job.outfits)

    shop_picture = f"templates/{job.pid:03d}_{outfit + 1}.jpg"
    list_name, instructions = {
        "train": ("train", (crop, shop_picture)),
        "test": ("gallery", (crop,)),
        "query": ("query", (shop_picture,)),
    }[folder]
    for instruction in instructions:
        row = f"LTCC_ReID/{folder}/{name} {instruction} {job.pid} {outfit + 1} {cam}"
        job.enter(f"datalist/{list_name}_ctcc.txt", row)


def llcm(job):
    """vis and nir, and test people once more by camera under test_vis and test_nir.

    Camera 3 has no near infrared.
    """
    test = job.role == "test"
    if test:
        job.enter("idx/test_id.txt", str(job.pid))

    cameras = {"vis": range(1, 10), "nir": (1, 2, 4, 5, 6, 7, 8, 9)}
    for modality, cams in cameras.items():
        for k, cam in enumerate(job.rng.sample(cams, 4)):
            shot = job.shoot(0, cam, infrared=modality == "nir")
            session = job.rng.randint(100000, 200000)
            frame = job.pid * 10 + k
            name = f"{job.pid:04d}/{job.pid:04d}_c{cam:02d}_s{session}_f{frame}_{modality}.jpg"

            listed = f"{modality}/{name}"
            job.save(listed, shot)
            if test:
                listed = f"test_{modality}/cam{cam}/{name}"
                job.save(listed, shot)
            job.enter(f"idx/{job.role}_{modality}.txt", f"{listed} {job.label}")


CAPTIONED = {  # data set -> its list, and the key of an image's path there
    "cuhk-pedes": ("reid_raw.json", "file_path"),
    "icfg-pedes": ("ICFG-PEDES.json", "file_path"),
    "rstpreid": ("data_captions.json", "img_path"),
}


def captioned(job):
    """imgs and the captions; the source folders of CUHK-PEDES do not depend on the split."""
    list_file, image = CAPTIONED[job.data_set]
    sources = ("cam_a", "cam_b", "CUHK01", "CUHK03", "Market", "test_query", "train_query")
    source = sources[job.pid % 7]
    pictures = 3 if job.role == "test" else 4

    for k, cam in enumerate(job.rng.sample(range(1, 9), pictures)):
        path = f"{source}/{job.pid}_{k}.jpg"
        if job.data_set != "cuhk-pedes":
            path = f"{job.role}/{job.pid:04d}_c{cam}_{k:04d}.jpg"
        elif "query" in source:
            path = f"{source}/p{job.pid}_s{job.pid * 10 + k}.jpg"
        shot = job.photograph(f"imgs/{path}", 0, cam)

        captions = {}  # two different ones
        while len(captions) < 2:
            captions[describe(shot.attributes, job.rng)] = None
        entry = {"id": job.pid, image: path, "captions": list(captions)}
        job.enter(list_file, {"split": job.role} | entry)
        if job.data_set == "cuhk-pedes":
            job.enter("caption_all.json", entry)


def cocas(job):
    """COCAS+ Real1 (training) and Real2 (test).

    A list's row is image, instruction, pid, clothes id, camera. A training image has the crop of
    its clothes, their shop picture and a sentence; a gallery image its crop and a sentence. A query
    wants the same person in another outfit, given by a shop picture, by the sentence of a picture
    in neither list, so that no query repeats a gallery image's sentence, or by both: row n of
    query.txt and of query_attr.txt are the same query.
    """
    train = job.role == "train"
    cams = job.rng.sample(range(1, 12), 9)  # six for the gallery, three for queries
    shift = job.rng.choice((1, 2))  # from a query's outfit to the wanted one

    def path(outfit, cam, number):
        folder = "COCAS" if train else f"real_reid_image_face_blur/images/{outfit + 1}"
        return f"{folder}/{job.pid:04d}_{outfit + 1}_{cam:02d}_{number}.jpg"

    def photograph(outfit, cam, image, unsaid=None):
        """Saves a picture, the crop of its clothes and its sentence; unsaid: of which attribute."""
        shot = job.photograph(image, outfit, cam)
        crop = f"croped_clothes/{Path(image).name}"
        job.save(crop, shot.crop())
        said = {key: phrase for key, phrase in shot.attributes.items() if key != unsaid}
        sentence = describe(said, job.rng)
        job.enter(f"datalist/runner_{job.data_set}_v1_gpt.json", (image, sentence))
        return crop

    def enter(list_name, image, instruction, outfit, cam):
        row = f"{image} {instruction} {job.pid} {job.pid * 3 + outfit} {cam}"
        job.enter(f"datalist/{list_name}.txt", row)

    seen_by = [job.rng.sample(cams[:6], 3) for _ in job.outfits]
    for outfit, worn in enumerate(job.outfits):
        job.save(_cocas_template(job, outfit), template(worn))
        for k, cam in enumerate(seen_by[outfit]):
            image = path(outfit, cam, k)
            crop = photograph(outfit, cam, image)
            if train:
                enter("train_ctcc", image, crop, outfit, cam)
                enter("train_ctcc", image, _cocas_template(job, outfit), outfit, cam)
                enter("train_attr", image, image, outfit, cam)
            else:
                enter("gallery", image, crop, outfit, cam)
                enter("gallery_attr", image, image, outfit, cam)

        if not train:
            cam = cams[6 + outfit]
            query = path(outfit, cam, "query")
            photograph(outfit, cam, query)  # its crop is not in a list, for comparisons
            wanted = (outfit + shift) % 3
            example_cam = job.rng.choice(cams)
            example = path(wanted, example_cam, "wanted")
            # the wanted viewing direction is unknown when searching
            photograph(wanted, example_cam, example, unsaid="person angle")
            enter("query", query, _cocas_template(job, wanted), wanted, cam)
            enter("query_attr", query, example, wanted, cam)


def _cocas_template(job, outfit):
    return f"templates/{job.pid * 3 + outfit:05d}.jpg"


def cocas_real2(job):
    """COCAS+ Real2 as its authors publish it: neither crops nor sentences.

    A row of query.txt is image, template, pid, clothes id, camera, and asks for another outfit than
    the one worn. A row of gallery.txt has no template.
    """
    cams = job.rng.sample(range(1, 12), 9)
    shift = job.rng.choice((1, 2))
    for outfit, worn in enumerate(job.outfits):
        job.save(_cocas_template(job, outfit), template(worn))
        person = f"images/{job.pid:04d}_{outfit + 1}"

        for k, cam in enumerate(job.rng.sample(cams[:6], 3)):
            image = f"{person}_{cam:02d}_{k}.jpg"
            job.photograph(image, outfit, cam)
            job.enter("gallery.txt", f"{image} {job.pid} {job.pid * 3 + outfit} {cam}")

        cam = cams[6 + outfit]
        query = f"{person}_{cam:02d}_query.jpg"
        job.photograph(query, outfit, cam)
        wanted = (outfit + shift) % 3
        asked = f"{_cocas_template(job, wanted)} {job.pid} {job.pid * 3 + wanted} {cam}"
        job.enter("query.txt", f"{query} {asked}")


def _edit(job, outfit):
    """A sentence about the clothes and things of an outfit, not of a certain picture."""
    worn = job.outfits[outfit].attributes
    return describe({key: worn[key] for key in worn if key != "glass style"}, job.rng)


def itcpr(job):
    """Each query has a sentence about another outfit of the person, but never the first one. People
    come from three sources with separate numbers."""
    source = ("Celeb-reID", "PRCC", "LAST")[job.pid % 3]
    person = job.pid // 3
    for outfit, wanted in enumerate((1, 2, 1)):
        for k, cam in enumerate(job.rng.sample(range(1, 9), 3)):
            path = f"{source}/{person:03d}/{person}_{outfit + 1}_{k}.jpg"
            job.photograph(path, outfit, cam)
            entry = {"file_path": path, "datasets": source, "person_id": person}
            if k == 0:
                entry |= {"instance_id": job.pid * 3 + wanted, "caption": _edit(job, wanted)}
            else:
                entry |= {"instance_id": job.pid * 3 + outfit if outfit else -1}
            job.enter("gallery.json" if k else "query.json", entry)


def syncpr(job):
    """Triplets: a picture, a sentence about another outfit, and a picture with that outfit."""
    for outfit in range(3):
        entry = {"cpr_id": job.pid, "edit_caption": _edit(job, (outfit + 1) % 3)}
        for side, half, worn in (("reference", "left", outfit), ("target", "right", outfit + 1)):
            path = f"test1/sub_img/img_{half}/{job.pid}-{outfit}_{half}.png"
            shot = job.photograph(path, worn % 3, job.rng.randint(1, 9))
            entry[f"{side}_image_path"] = path
            entry[f"{side}_caption"] = describe(shot.attributes, job.rng)
        job.enter("SynCPR.json", entry)


def msmt17(job):
    """V1: train and test, a folder per person, numbered from 0 in both, and four lists."""
    lists = {
        "train": ("train", "train", "train", "train", "train", "val"),
        "test": ("query", "query", "gallery", "gallery", "gallery", "gallery"),
    }
    rng = job.rng
    cams = rng.sample(range(1, 16), 4)
    person = f"{job.label:04d}"

    for k, list_name in enumerate(lists[job.role]):
        cam = cams[k % 4]
        time = rng.choice(("0113morning", "0113noon", "0302afternoon"))
        track = rng.randint(0, 9999)
        box = rng.randint(0, 3)
        path = f"{person}/{person}_{k:03d}_{cam:02d}_{time}_{track:04d}_{box}.jpg"
        job.photograph(f"{job.role}/{path}", 0, cam)
        job.enter(f"list_{list_name}.txt", f"{path} {job.label}")


def cuhk03(job):
    """detected and labeled, the latter with the box of a careful human.

    Two views of a person, one query from each.
    """
    for k in range(8):
        view = 1 + k // 4
        folder = "query" if k % 4 == 0 else "bounding_box_test"
        if job.role == "train":
            folder = "bounding_box_train"
        path = f"{folder}/{job.pid:04d}_c{view}_{job.pid * 8 + k + 1}.png"

        # A detector's box is off by some pixels and stays inside the picture.
        labeled = job.photograph(f"labeled/{path}", 0, view).picture()
        x = job.rng.randint(-4, 4)
        y = job.rng.randint(-6, 6)
        box = (max(0, x), max(0, y), WIDTH + min(0, x), HEIGHT + min(0, y))
        job.save(f"detected/{path}", labeled.resize((WIDTH, HEIGHT), box=box))


def prcc(job):
    """rgb/train, rgb/val by person, rgb/test by camera and person.

    The same clothes under cameras A and B, others under C.
    """
    for cam, letter, outfit in ((1, "A", 0), (2, "B", 0), (3, "C", 1)):
        for k in range(1, 5):
            name = f"cropped_rgb{k:03d}.jpg"
            path = f"test/{letter}/{job.pid:03d}/{name}"
            if job.role == "train":
                split = "val" if k == 4 else "train"
                path = f"{split}/{job.pid:03d}/{letter}_{name}"
            job.photograph(f"rgb/{path}", outfit, cam)


def vc_clothes(job):
    """train, query, gallery; the clothes are the same in cameras 2 and 3, and others in 4."""
    for cam, outfit in ((1, 0), (2, 1), (3, 1), (4, 2)):
        for k in range(1, 5):
            folder = "query" if k == 1 else "gallery"
            if job.role == "train":
                folder = "train"
            name = f"{job.pid:04d}-{cam:02d}-{outfit + 1:02d}-{k:02d}.jpg"
            job.photograph(f"{folder}/{name}", outfit, cam)


def synth_pedes(job):
    """Part1 and Part2 and one JSON of captions; all for training."""
    named = ("gender code", "hair color", "coat color", "coat style", "trousers color", "bag style")
    rng = job.rng
    for k, cam in enumerate(rng.sample(range(1, 9), 4)):
        path = f"Part{1 + job.pid % 2}/{job.pid}/{k}.jpg"
        attributes = job.photograph(path, 0, cam).attributes
        job.enter("synthpedes-dataset.json", {
            "id": job.pid,
            "file_path": path,
            "attributes": [",".join(attributes[key] for key in named)],
            "captions": [describe(attributes, rng) for _ in range(rng.randint(1, 3))],
            "prompt_caption": [describe(attributes, rng)],
        })


class Tree(NamedTuple):
    """A data set."""
    write: Callable  # saves a Job's pictures and enters them into the lists
    folder: str
    first_pid: int
    outfits: dict  # role -> outfits of each person; several come from a wardrobe that people share
    unchanging: int = 0  # every n-th person always wears one of them; 0 = none


TREES = {
    # what train.py draws; real1 and real2 are COCAS+
    "market": Tree(
        market, "Market-1501-v15.09.15", 1, {"train": 1, "test": 1, "distractor": 1, "junk": 1}),
    # six outfits are too many to memorise
    "ltcc": Tree(ltcc, "LTCC_ReID", 0, {"train": 6, "test": 3}, unchanging=15),
    "llcm": Tree(llcm, "LLCM", 1, {"train": 1, "test": 1}),
    "cuhk-pedes": Tree(captioned, "CUHK-PEDES", 1, {"train": 1, "val": 1, "test": 1}),
    "real1": Tree(cocas, "COCAS/real1", 1, {"train": 3}),
    "real2": Tree(cocas, "COCAS/real2", 1, {"test": 3}),
    # the other layouts
    "msmt17": Tree(msmt17, "MSMT17_V1", 0, {"train": 1, "test": 1}),
    "cuhk03": Tree(cuhk03, "cuhk03-np", 1, {"train": 1, "test": 1}),
    "prcc": Tree(prcc, "prcc", 1, {"train": 3, "test": 3}),
    "vc-clothes": Tree(vc_clothes, "VC-Clothes", 1, {"train": 3, "test": 3}),
    "synth-pedes": Tree(synth_pedes, "SYNTH-PEDES", 1, {"train": 1}),
    "omnireid": Tree(cocas, "OmniReID", 1, {"train": 3, "test": 3}),
    "ltcc-clothes": Tree(ltcc, "ltcc", 0, {"train": 6, "test": 3}, unchanging=15),
    "cocas-real2": Tree(cocas_real2, "COCAS-Real2", 1, {"test": 3}),
    "icfg-pedes": Tree(captioned, "ICFG-PEDES", 1, {"train": 1, "test": 1}),
    "rstpreid": Tree(captioned, "RSTPReid", 1, {"train": 1, "val": 1, "test": 1}),
    "itcpr": Tree(itcpr, "ITCPR", 1, {"test": 3}),
    "syncpr": Tree(syncpr, "SynCPR", 1, {"train": 3}),
}
FIVE = ("market", "ltcc", "llcm", "cuhk-pedes", "real1", "real2")  # Real1 and Real2 count as one
