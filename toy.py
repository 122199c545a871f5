"""The embedded benchmark: paper-doll people, written to disk in the layouts of real data sets.

doll.py draws who somebody is and what they wear; here are the cameras that see them and the folders they are saved in. In
LTCC and COCAS+ the outfits come from a small wardrobe that people share: neither the body nor the clothes alone tell which
picture is asked for.

    python toy.py --out ./toy --people 400 --seed 0      # five trees, deterministic to the byte
    python toy.py --out ./toy-all --sets all             # these five and, with a quarter of the people each, six more
    python toy.py --sheet sheet.png                      # only a contact sheet
"""

import io
import json
import math
import multiprocessing
import os
import random
import shutil
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from tqdm import tqdm

from doll import Body, Doll, Pose, attributes_of, draw_body, dress, paints, shade
from instructions import describe
from reid import cli

VERSION = 2
WIDTH, HEIGHT, PICTURE = 64, 128, 64  # person pictures are 128x64 (HxW), templates and crops 64x64
ZOOM = 2  # drawn this much larger, then averaged down
WEARERS = 4  # people who share an outfit where people change clothes
OUTFITS, LTCC_OUTFITS = 3, 6  # of somebody who changes; LTCC's training people have too many to be learned by heart
PIXELS_PER_CM = 0.585  # one scale for everybody: tall people fill more of the frame


# Cameras

class Camera(NamedTuple):
    gain: tuple  # per channel: the colour cast
    contrast: float
    offset: float
    blur: float
    quality: int  # of the JPEG
    noise: np.ndarray  # (2 HEIGHT, 2 WIDTH, 3), of which each picture takes a piece
    place: Image.Image  # what it looks at, of which each picture shows a piece


@lru_cache(maxsize=None)
def camera(seed, number):
    """The camera `number`. All data sets are seen by the same ones, so that only the instruction tells the task."""
    rng = random.Random(f"{seed}:camera {number}")
    noise = np.random.default_rng(rng.getrandbits(64)).standard_normal((2 * HEIGHT, 2 * WIDTH, 3), np.float32)
    return Camera(tuple(rng.uniform(0.93, 1.07) for _ in range(3)), rng.uniform(0.84, 1.08), rng.uniform(-14, 14),
                  rng.uniform(0, 0.5), rng.randint(70, 92), noise * np.float32(rng.uniform(2, 7)), _place(rng))


def _place(rng):
    wide, high = WIDTH * ZOOM * 2, HEIGHT * ZOOM + 40
    tones = rng.randint(80, 205), rng.randint(70, 190)
    wall, floor = (tuple(tone + rng.randint(-14, 14) for _ in range(3)) for tone in tones)
    image, horizon = Image.new("RGB", (wide, high), wall), int(high * rng.uniform(0.5, 0.78))
    pen = ImageDraw.Draw(image)
    for _ in range(rng.randint(3, 7)):  # doors, windows, pillars
        x, y, other = rng.randint(-20, wide), rng.randint(0, horizon), rng.randint(-40, 40)
        colour = tuple(min(255, max(0, c + other + rng.randint(-18, 18))) for c in wall)
        pen.rectangle((x, y, x + rng.randint(12, 60), y + rng.randint(30, 150)), fill=colour)
    pen.rectangle((0, horizon, wide, high), fill=floor)
    for _ in range(rng.randint(0, 3)):  # lines on the floor
        x = rng.randint(0, wide)
        pen.line((x, horizon, x + rng.randint(-120, 120), high), fill=shade(floor, 0.85), width=rng.randint(1, 4))
    light = np.linspace(rng.uniform(0.85, 1.1), rng.uniform(0.85, 1.1), high)[:, None, None]
    image = Image.fromarray((np.asarray(image) * light).clip(0, 255).astype(np.uint8))
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(1, 2.5)))


class Shot(NamedTuple):
    jpeg: bytes
    attributes: dict
    box: tuple  # of the worn clothes


def shoot(body, outfit, cam, rng, infrared=False):
    """One picture of a person by a Camera, in a random pose and angle."""
    yaw = rng.choices((0, math.pi / 2, -math.pi / 2, math.pi), (5, 2, 2, 3))[0] + rng.uniform(-0.5, 0.5)
    wide, high = WIDTH * ZOOM, HEIGHT * ZOOM
    left, top = rng.randint(0, cam.place.width - wide), rng.randint(0, cam.place.height - high)
    canvas = cam.place.crop((left, top, left + wide, top + high))
    if infrared:
        canvas = canvas.convert("L").convert("RGB")
    scale = ZOOM * PIXELS_PER_CM * rng.uniform(0.96, 1.04)
    stoop = math.sin(yaw) * body.stoop * 0.2 * body.height * scale  # kept inside the frame
    x = wide / 2 + rng.uniform(-9, 9) - stoop
    pose = Pose(yaw, rng.uniform(-0.42, 0.42), x, high - rng.uniform(3, 12), scale, rng.uniform(0.06, 0.24))
    shadow = (x - 0.16 * body.height * scale, pose.ground - 6, x + 0.16 * body.height * scale, pose.ground + 4)
    ImageDraw.Draw(canvas).ellipse(shadow, fill=shade(canvas.getpixel((4, high - 4)), 0.72))
    doll = Doll(canvas, body, outfit, paints(body, outfit, infrared), pose)
    doll.draw()
    if rng.random() < 0.1:
        _occlude(canvas, rng)
    box = tuple(min(limit, max(0, round(v / ZOOM))) for v, limit in zip(doll.clothes_box(), (WIDTH, HEIGHT) * 2))
    return Shot(_photograph(canvas.reduce(ZOOM), cam, rng, infrared), attributes_of(body, outfit, yaw), box)


def _occlude(canvas, rng):
    """A pillar at one side or something low in front."""
    (wide, high), x = canvas.size, rng.choice((0.12, 0.88)) * canvas.width
    low = (rng.randint(-60, 20), high - rng.randint(16, 46), rng.randint(wide - 50, wide + 40), high)
    box = rng.choice(((x - 12, 0, x + 12, high), low))
    ImageDraw.Draw(canvas).rectangle(box, fill=(rng.randint(60, 190),) * 3)


def _photograph(image, cam, rng, infrared):
    """Lens, sensor and JPEG of a camera. Returns the file's bytes."""
    top, left = rng.randrange(HEIGHT), rng.randrange(WIDTH)
    noise = cam.noise[top:top + HEIGHT, left:left + WIDTH]
    gain = np.float32([sum(cam.gain) / 3] if infrared else cam.gain)
    noise = noise[..., :1] * np.float32(1.3) if infrared else noise
    pixels = np.asarray(image.filter(ImageFilter.BoxBlur(cam.blur)), np.float32)
    light = np.float32(128 * (1 - cam.contrast) + cam.offset + rng.uniform(-7, 7))
    pixels = (pixels * np.float32(cam.contrast) + light) * gain + noise
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=cam.quality)
    return file.getvalue()


def _open(jpeg):
    return Image.open(io.BytesIO(jpeg))


def crop(shot):
    """The worn clothes, cut from the very picture, (64, 64)."""
    return _open(shot.jpeg).resize((PICTURE, PICTURE), Image.Resampling.BILINEAR, shot.box)


MANNEQUIN = Body(
    gender="female", age="adult", height=170, shoulders=0.125, waist=0.088, hips=0.1, belly=0.08, legs=0.47, arms=0.38,
    limb=0.028, head=0.14, face=0.8, neck=0.02, stance=0.06, stoop=0, skin=None, hair=None, hair_name="",
    hair_style="bald", hair_length=0, volume=1, fringe=0, beard="", glasses=False, brow=1)


def template(outfit):
    """A shop's picture of the clothes alone: front, flat, on white, (64, 64)."""
    canvas = Image.new("RGB", (WIDTH * ZOOM, HEIGHT * ZOOM), (255, 255, 255))
    paint = paints(MANNEQUIN, outfit) | {"bag": None, "linen": (226, 226, 226)}
    pose = Pose(yaw=0, stride=0, x=WIDTH * ZOOM / 2, ground=HEIGHT * ZOOM - 8, scale=ZOOM * PIXELS_PER_CM, spread=0.3)
    doll = Doll(canvas, MANNEQUIN, outfit, paint, pose)
    doll.draw()
    return canvas.resize((PICTURE, PICTURE), Image.Resampling.BOX, doll.clothes_box())


# The trees. A writer draws one person's pictures and returns the list entries: [(list file, entry), ...].

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
        return shoot(self.body, self.outfits[outfit], camera(self.seed, cam), rng, infrared)

    def save(self, path, picture):
        """picture: JPEG bytes or an Image. A .png holds what the camera's JPEG showed."""
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(picture, bytes) and file.suffix == ".jpg":
            file.write_bytes(picture)
        else:
            (_open(picture) if isinstance(picture, bytes) else picture).save(file, quality=90, compress_level=2)


def market(job, rng):
    """bounding_box_train, query, bounding_box_test; pid 0000 = distractors, -1 = junk boxes."""
    cams = rng.sample(range(1, 7), 4)
    plan = {"train": [("bounding_box_train", cam) for cam in cams + cams[:2]],
            "test": [("query", cam) for cam in cams[:2]] + [("bounding_box_test", cam) for cam in cams + cams[:1]]}
    name = {"distractor": "0000", "junk": "-1"}.get(job.role, f"{job.pid:04d}")
    for k, (folder, cam) in enumerate(plan.get(job.role, [("bounding_box_test", cams[0])])):
        picture = job.shoot(0, cam, rng).jpeg
        if job.role == "junk":  # a box that holds a piece of somebody
            piece = rng.choice(((0, 70, 40, 128), (34, 20, 64, 90), (10, 0, 60, 30)))
            picture = _open(picture).resize((WIDTH, HEIGHT), box=piece)
        frame, box = job.pid * 20 + k, rng.randint(0, 5)
        job.save(f"{folder}/{name}_c{cam}s{rng.randint(1, 3)}_{frame:06d}_{box:02d}.jpg", picture)
    return []


def ltcc(job, rng):
    """train, test (the gallery), query; info lists the people with and without a change of clothes."""
    for outfit in range(len(job.outfits)):
        shots = 4 if len(job.outfits) == 1 else 2
        folders = ["train"] * shots if job.role == "train" else ["test"] * 3 + ["query"]
        for k, (folder, cam) in enumerate(zip(folders, rng.sample(range(1, 13), 4))):
            name = f"{job.pid:03d}_{outfit + 1}_c{cam}_{job.pid * 30 + outfit * 4 + k:06d}.png"
            job.save(f"{folder}/{name}", job.shoot(outfit, cam, rng).jpeg)
    kind = "cloth-change" if len(job.outfits) > 1 else "cloth-unchange"
    return [(f"info/{kind}_id_{job.role}.txt", str(job.pid))]


def llcm(job, rng):
    """vis and nir, and test people once more by camera under test_vis and test_nir. Camera 3 has no near infrared."""
    rows = [("idx/test_id.txt", str(job.pid))] if job.role == "test" else []
    for modality, cams in (("vis", range(1, 10)), ("nir", (1, 2, 4, 5, 6, 7, 8, 9))):
        for k, cam in enumerate(rng.sample(cams, 4)):
            jpeg = job.shoot(0, cam, rng, infrared=modality == "nir").jpeg
            session, frame = rng.randint(100000, 200000), job.pid * 10 + k
            name = f"{job.pid:04d}/{job.pid:04d}_c{cam:02d}_s{session}_f{frame}_{modality}.jpg"
            paths = [f"{modality}/{name}"] + [f"test_{modality}/cam{cam}/{name}"] * (job.role == "test")
            for path in paths:
                job.save(path, jpeg)
            rows.append((f"idx/{job.role}_{modality}.txt", f"{paths[-1]} {job.label}"))
    return rows


def cuhk_pedes(job, rng):
    """imgs and the captions; the seven source folders say nothing about the split."""
    rows = []
    source = ("cam_a", "cam_b", "CUHK01", "CUHK03", "Market", "test_query", "train_query")[job.pid % 7]
    for k, cam in enumerate(rng.sample(range(1, 9), 3 if job.role == "test" else 4)):
        shot = job.shoot(0, cam, rng)
        path = f"{source}/p{job.pid}_s{job.pid * 10 + k}.jpg" if "query" in source else f"{source}/{job.pid}_{k}.jpg"
        job.save(f"imgs/{path}", shot.jpeg)
        captions = [describe(shot.attributes, rng)]
        while len(captions) < 2:
            captions += {describe(shot.attributes, rng)} - set(captions)
        entry = {"id": job.pid, "file_path": path, "captions": captions}
        rows += [("reid_raw.json", {"split": job.role} | entry), ("caption_all.json", entry)]
    return rows


def cocas(job, rng):
    """COCAS+ Real1 (training) and Real2 (test); list rows are image, instruction, pid, clothes id, camera.

    A training image comes with the crop of its clothes, with their shop picture and with a sentence; a gallery image
    with its crop and its sentence. A query asks for the same person in another outfit, by shop picture or by sentence.
    """
    train, rows = job.role == "train", []
    folder = "COCAS" if train else "real_reid_image_face_blur/images/{0}"
    file_name = (folder + "/{1:04d}_{0}_{2:02d}_{3}.jpg").format
    cams, shift = rng.sample(range(1, 12), 9), rng.choice((1, 2))  # six cameras for the gallery, three for queries
    gallery = [[(cam, file_name(outfit + 1, job.pid, cam, k)) for k, cam in enumerate(rng.sample(cams[:6], 3))]
               for outfit in range(3)]
    clothes = [job.pid * 3 + outfit for outfit in range(3)]
    templates = [f"templates/{number:05d}.jpg" for number in clothes]

    def row(list_name, image, instruction, outfit, cam):
        rows.append((f"datalist/{list_name}.txt", f"{image} {instruction} {job.pid} {clothes[outfit]} {cam}"))

    for outfit, worn in enumerate(job.outfits):
        job.save(templates[outfit], template(worn))
        for cam, image in gallery[outfit]:
            shot, cut = job.shoot(outfit, cam, rng), f"croped_clothes/{Path(image).name}"
            job.save(image, shot.jpeg)
            job.save(cut, crop(shot))
            row("train_ctcc" if train else "gallery", image, cut, outfit, cam)
            row("train_attr" if train else "gallery_attr", image, image, outfit, cam)
            if train:
                row("train_ctcc", image, templates[outfit], outfit, cam)
            rows.append((f"datalist/runner_{job.data_set}_v1_gpt.json", (image, describe(shot.attributes, rng))))
        if not train:
            cam, wanted = cams[6 + outfit], (outfit + shift) % 3
            image, shot = file_name(outfit + 1, job.pid, cam, "query"), job.shoot(outfit, cam, rng)
            job.save(image, shot.jpeg)
            job.save(f"croped_clothes/{Path(image).name}", crop(shot))  # its own clothes are in no list: for comparison
            rows.append((f"datalist/runner_{job.data_set}_v1_gpt.json", (image, describe(shot.attributes, rng))))
            row("query", image, templates[wanted], wanted, cam)
            row("query_attr", image, rng.choice(gallery[wanted])[1], wanted, cam)
    return rows


def msmt17(job, rng):
    """V1: train and test, a folder per person, numbered from 0 in both, and four lists."""
    plan = {"train": ["train"] * 5 + ["val"], "test": ["query"] * 2 + ["gallery"] * 4}[job.role]
    rows, cams, person = [], rng.sample(range(1, 16), 4), f"{job.label:04d}"
    for k, name in enumerate(plan):
        cam, time = cams[k % 4], rng.choice(("0113morning", "0113noon", "0302afternoon"))
        path = f"{person}/{person}_{k:03d}_{cam:02d}_{time}_{rng.randint(0, 9999):04d}_{rng.randint(0, 3)}.jpg"
        job.save(f"{job.role}/{path}", job.shoot(0, cam, rng).jpeg)
        rows.append((f"list_{name}.txt", f"{path} {job.label}"))
    return rows


def cuhk03(job, rng):
    """detected and labeled, the latter with the box of a careful human; two views of a person, one query from each."""
    for k in range(8):
        view = 1 + k // 4
        folder = "bounding_box_train" if job.role == "train" else "bounding_box_test" if k % 4 else "query"
        labeled = _open(job.shoot(0, view, rng).jpeg)
        x, y = rng.randint(-4, 4), rng.randint(-6, 6)
        detected = labeled.resize((WIDTH, HEIGHT), box=(max(0, x), max(0, y), WIDTH + min(0, x), HEIGHT + min(0, y)))
        for kind, picture in (("detected", detected), ("labeled", labeled)):
            job.save(f"{kind}/{folder}/{job.pid:04d}_c{view}_{job.pid * 8 + k + 1}.png", picture)
    return []


def prcc(job, rng):
    """rgb/train, rgb/val by person, rgb/test by camera and person: the same clothes under A and B, others under C."""
    for cam, (letter, outfit) in enumerate(zip("ABC", (0, 0, 1)), 1):
        for k in range(1, 5):
            name = f"cropped_rgb{k:03d}.jpg"
            path = f"test/{letter}/{job.pid:03d}/{name}"
            if job.role == "train":
                path = f"{'val' if k == 4 else 'train'}/{job.pid:03d}/{letter}_{name}"
            job.save(f"rgb/{path}", job.shoot(outfit, cam, rng).jpeg)
    return []


def vc_clothes(job, rng):
    """train, query, gallery; the clothes are the same under cameras 2 and 3 and others under 4."""
    for cam, outfit in zip((1, 2, 3, 4), (0, 1, 1, 2)):
        for k in range(1, 5):
            folder = "train" if job.role == "train" else "query" if k == 1 else "gallery"
            job.save(f"{folder}/{job.pid:04d}-{cam:02d}-{outfit + 1:02d}-{k:02d}.jpg", job.shoot(outfit, cam, rng).jpeg)
    return []


def synth_pedes(job, rng):
    """Part1 and Part2 and one JSON of captions; all to train on."""
    rows = []
    for k, cam in enumerate(rng.sample(range(1, 9), 4)):
        shot, path = job.shoot(0, cam, rng), f"Part{1 + job.pid % 2}/{job.pid}/{k}.jpg"
        job.save(path, shot.jpeg)
        said = [shot.attributes[key] for key in ("gender code", "hair color", "coat color", "coat style",
                                                 "trousers color", "bag style")]
        captions = [describe(shot.attributes, rng) for _ in range(rng.randint(1, 3))]
        rows.append(("synthpedes-dataset.json", {
            "id": job.pid, "file_path": path, "attributes": [",".join(said)], "captions": captions,
            "prompt_caption": [describe(shot.attributes, rng)]}))
    return rows


FIVE = ("market", "ltcc", "llcm", "cuhk-pedes", "real1", "real2")  # what train.py draws: real1 and real2 are COCAS+
TREES = {  # data set -> writer, folder, first pid, roles
    "market": (market, "Market-1501-v15.09.15", 1, ("train", "test", "distractor", "junk")),
    "ltcc": (ltcc, "LTCC_ReID", 0, ("train", "test")),
    "llcm": (llcm, "LLCM", 1, ("train", "test")),
    "cuhk-pedes": (cuhk_pedes, "CUHK-PEDES", 1, ("train", "val", "test")),
    "real1": (cocas, "COCAS/real1", 1, ("train",)),
    "real2": (cocas, "COCAS/real2", 1, ("test",)),
    "msmt17": (msmt17, "MSMT17_V1", 0, ("train", "test")),
    "cuhk03": (cuhk03, "cuhk03-np", 1, ("train", "test")),
    "prcc": (prcc, "prcc", 1, ("train", "test")),
    "vc-clothes": (vc_clothes, "VC-Clothes", 1, ("train", "test")),
    "synth-pedes": (synth_pedes, "SYNTH-PEDES", 1, ("train",)),
    "omnireid": (cocas, "OmniReID", 1, ("train", "test"))}


def jobs_of(data_set, root, people, seed):
    """One Job per person of a data set."""
    _, folder, first, roles = TREES[data_set]
    train, val = people * 3 // 4, max(1, people // 40)
    changing = data_set in ("ltcc", "real1", "real2", "prcc", "vc-clothes", "omnireid")
    sizes = {"train": train - val if "val" in roles else train, "val": val, "test": people - train,
             "distractor": max(2, people // 10), "junk": max(1, people // 20)}
    jobs = []
    for role in roles:
        bodies = [draw_body(random.Random(f"{seed}:{data_set}:{role} {i}")) for i in range(sizes[role])]
        rng = random.Random(f"{seed}:{data_set}:{role} clothes")
        count = LTCC_OUTFITS if (data_set, role) == ("ltcc", "train") else OUTFITS
        wardrobes = dress(bodies, rng, count, WEARERS) if changing else dress(bodies, rng)
        for label, (body, outfits) in enumerate(zip(bodies, wardrobes)):
            if data_set == "ltcc" and label % 15 == 14:  # some never change
                outfits = outfits[:1]
            jobs.append(Job(root / folder, seed, data_set, role, first + len(jobs), label, body, outfits))
    return jobs


def make_toy(out, people=400, seed=0, workers=None, sets="five"):
    """Writes the trees into the folder `out`, which appears only when complete.

    people: in each of the five, 3/4 to train and 1/4 to test on; workers: processes, which do not change a byte. sets:
    "all" adds the other layouts, with a quarter of the people, and leaves every byte of the five as it is.
    Raises UserError when `out` holds something already.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise cli.UserError(f"--out {out} is not an empty folder; name another one or remove it first")
    if not 8 <= people <= 999:
        raise cli.UserError(f"--people {people}: needs 8 to 999, the ids that LTCC's file names can hold")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        _write(partial, people, seed, workers, sets)
        partial.chmod(0o755)  # mkdtemp's folders are private
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(root, people, seed, workers, sets):
    sizes = dict.fromkeys(FIVE if sets == "five" else TREES, max(8, people // 4)) | dict.fromkeys(FIVE, people)
    jobs = [job for data_set, size in sizes.items() for job in jobs_of(data_set, root, size, seed)]
    lists = {root / f"LTCC_ReID/info/cloth-unchange_id_{role}.txt": [] for role in ("train", "test")}  # maybe empty
    with multiprocessing.Pool(workers or os.cpu_count()) as pool:
        bar = tqdm(pool.imap(_draw, jobs, chunksize=4), "drawing people", len(jobs), unit="person")
        for rows, job in zip(bar, jobs):
            for name, entry in rows:
                lists.setdefault(job.folder / name, []).append(entry)
    for file, entries in lists.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".json":
            file.write_text(json.dumps(dict(entries) if file.name.startswith("runner") else entries, indent=1))
        else:
            file.write_text(",".join(entries) if file.name == "test_id.txt" else "".join(f"{row}\n" for row in entries))
    (root / "CUHK-PEDES/readme.txt").write_text("Drawn people in the layout of CUHK-PEDES.\n")
    (root / "toy.json").write_text(json.dumps({"people": people, "seed": seed, "version": VERSION}) + "\n")


def _draw(job):
    return TREES[job.data_set][0](job, random.Random(f"{job.seed}:{job.data_set}:{job.pid} pictures"))


# Contact sheet

def contact_sheet(seed=0, rows=6):
    """An Image: a person per row, in three outfits, each three times beside its shop picture and a crop, and infrared.

    Under each row stands the description of its first picture.
    """
    cell, high, gap, label = WIDTH + 4, HEIGHT + 4, 14, 20
    sheet = Image.new("RGB", (14 * cell + 3 * gap + 4, rows * (high + label) + label + 4), (255, 255, 255))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for group, title in enumerate(("one outfit: shop picture, crop, three cameras", "another", "a third", "infrared")):
        pen.text((4 + group * (4 * cell + gap), 4), title, (40, 40, 40), font)
    for row, job in enumerate(jobs_of("real2", Path(), 4 * rows, seed)):
        rng, top = random.Random(f"{seed}:sheet {row}"), label + row * (high + label)
        for outfit, worn in enumerate(job.outfits):
            left = 4 + outfit * (4 * cell + gap)
            shots = [job.shoot(outfit, cam, rng) for cam in rng.sample(range(1, 12), 3)]
            sheet.paste(template(worn), (left, top))
            sheet.paste(crop(shots[0]), (left, top + PICTURE + 4))
            for k, shot in enumerate(shots):
                sheet.paste(_open(shot.jpeg), (left + (k + 1) * cell, top))
            if outfit == 0:
                pen.text((left, top + high - 1), describe(shots[0].attributes, rng), (90, 90, 90), font)
        for k in range(2):
            shot = job.shoot(k, rng.randint(1, 11), rng, infrared=True)
            sheet.paste(_open(shot.jpeg), (4 + 12 * cell + 3 * gap + k * cell, top))
    return sheet


@dataclass
class Config:
    """Draws the toy data sets."""
    out: str = cli.option("./toy", "folder to write; must be empty or not exist yet")
    people: int = cli.option(400, "people in each data set, 3/4 to train and 1/4 to test on")
    seed: int = cli.option(0, "other seeds draw other people")
    sets: str = cli.option("five", "which trees: the five that train.py asks for, or all layouts", ("five", "all"))
    sheet: str = cli.option("", "write only a contact sheet, to this .png")


def main(config):
    if config.sheet:
        contact_sheet(config.seed).save(config.sheet)
    else:
        make_toy(config.out, config.people, config.seed, sets=config.sets)


if __name__ == "__main__":
    cli.run(main, Config)
