"""Data: one `Record` per image, readers of the real data sets' folders, the P x K sampler, batches and transforms.

A reader is a file-name rule, a split rule and a row of published counts. toy.py writes its people into the same trees.
Batches are a pure function of (seed, step), so a run resumes at any step without history.
Letters: b batch, H W size of person images, h w size of instruction pictures.
"""

import json
import os
import random
import re
import traceback
import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from glob import glob
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, get_worker_info

import instructions
from cli import UserError

MEAN = (0.485, 0.456, 0.406)  # ImageNet's, for person images and instruction pictures, in training and test alike
STD = (0.229, 0.224, 0.225)
CACHE_BYTES = 2**30  # decoded images kept in memory; enough for the whole toy, not for MSMT17
SEARCH_DEPTH = 3  # levels of folders below --data in which a data set is looked for
IMAGE_FOLDER = 50  # a folder with more files than this holds images, not data sets


# ---- records ----

@dataclass(frozen=True)
class Record:
    """One image, or one caption that is a query by itself (path None, modality "text"). Paths start at the root."""

    dataset: str
    role: str  # train, val, query, gallery; test where the protocol decides which side an image is on (LLCM)
    path: str | None
    pid: int  # as the data set numbers it
    cam: int | None = None  # None = unknown, equal to nothing
    clothes: str | None = None  # "pid:outfit", unique over people
    modality: str = "rgb"  # rgb, ir, text
    captions: tuple[str, ...] = ()
    template_path: str | None = None  # shop picture of clothes
    crop_path: str | None = None  # clothes cropped from a photo of the person
    target_clothes: str | None = None  # what a ctcc or li query asks for
    view: str | None = None
    junk: bool = False  # deleted from every ranking; distractors are not junk


class Dataset(NamedTuple):
    name: str
    title: str
    task: str
    root: Path
    records: tuple[Record, ...]

    def split(self, role):
        return [record for record in self.records if record.role == role]


# ---- readers: read(root, task) -> list of Records ----

def read_market(root, task):
    """`0002_c1s1_000451_03.jpg` = pid, camera. pid -1 is junk (a bad detection), 0000 a distractor that stays."""
    records = []
    for folder, role in (("bounding_box_train", "train"), ("query", "query"), ("bounding_box_test", "gallery")):
        for path, (pid, cam) in _images(root, f"{folder}/*.jpg", r"(-1|\d{4})_c([1-6])s\d", "0002_c1s1_000451_03.jpg"):
            records.append(Record("market", role, path, int(pid), int(cam), junk=pid == "-1"))
    return [record for record in records if not (record.junk and record.role == "train")]


def read_ltcc(root, task):
    """`094_1_c9_015923.png` = pid, outfit of that person, camera. `test` is the gallery; every mode ranks the same."""
    records = []
    for folder, role in (("train", "train"), ("query", "query"), ("test", "gallery")):
        for path, (pid, outfit, cam) in _images(root, f"{folder}/*.png", r"(\d+)_(\d+)_c(\d+)_", "094_1_c9_015923.png"):
            records.append(Record("ltcc", role, path, int(pid), int(cam), clothes=f"{int(pid)}:{outfit}"))
    return records


def read_llcm(root, task):
    """`0001_c01_s185535_f7010_nir.jpg` = pid, camera, session, modality. vis/, nir/ hold test people; train is idx/."""
    rule, example = r"(\d{4})_c(\d{2})_s(\d+)_f\d+_(vis|nir)", "0001_c01_s185535_f7010_nir.jpg"
    found = []
    for kind in ("vis", "nir"):
        for where, (path, *_) in _rows(root / "idx" / f"train_{kind}.txt", (1, 2)):
            found.append(("train", path, _fields(rule, Path(path).name, example, where)))
        found += [("test", *image) for image in _images(root, f"test_{kind}/cam*/*/*.jpg", rule, example)]
    return [Record("llcm", role, path, int(pid), int(cam), modality={"vis": "rgb", "nir": "ir"}[kind], view=session)
            for role, path, (pid, cam, session, kind) in found]


def read_cuhk_pedes(root, task):
    """`reid_raw.json` holds split, id, file and captions. A test image is gallery, each of its captions a query."""
    if not (root / "reid_raw.json").exists():
        raise UserError(f"{root}: captions in caption_all.json have no split; put reid_raw.json, which has, beside it")
    records = []
    for entry in _json(root / "reid_raw.json"):
        role = {"train": "train", "val": "val", "test": "gallery"}.get(entry.get("split"))
        if role is None:  # caption_all.json under another name
            raise UserError(f"{root}/reid_raw.json: {entry.get('file_path')} has no split train, val or test")
        path, pid, captions = "imgs/" + entry["file_path"], entry["id"], tuple(entry["captions"])
        records.append(Record("cuhk-pedes", role, path, pid, captions=captions))
        if role == "gallery":
            records += [Record("cuhk-pedes", "query", None, pid, modality="text", captions=(one,)) for one in captions]
    if not {"train", "gallery"} <= {record.role for record in records}:
        raise UserError(f"{root}/reid_raw.json: empty split, train and test are both needed; fetch the whole file")
    return records


def read_cocas(root, task):
    """Lists of `image instruction pid outfit [camera]`: real1 to train on, real2 to test on; either may be absent.

    An instruction is a picture (ctcc) or a key of the caption JSON (li). Training rows of one image become one Record.
    """
    train, suffix = {"ctcc": ("train_ctcc.txt", ""), "li": ("train_attr.txt", "_attr")}[task]
    records = {}
    for part, role, name in (("real1", "train", train), ("real2", "query", f"query{suffix}.txt"),
                             ("real2", "gallery", f"gallery{suffix}.txt")):
        if not (root / part).exists():  # real1 is not public: real2 alone can still be evaluated
            continue
        texts = _json(root / part / "datalist" / f"runner_{part}_v1_gpt.json") if task == "li" else None
        for where, row in _rows(root / part / "datalist" / name, (4, 5)):
            record = _cocas_record(root, part, role, where, row, texts)
            key = (role, record.path) if role == "train" else (role, where)
            same = records.get(key, record)
            records[key] = replace(record, captions=tuple(dict.fromkeys(same.captions + record.captions)),
                                   template_path=same.template_path or record.template_path,
                                   crop_path=same.crop_path or record.crop_path)
    return list(records.values())


def _cocas_record(root, part, role, where, row, texts):
    image, instr, pid, outfit, *cam = row
    try:
        pid, cam = int(pid), int(cam[0]) if cam else None
    except ValueError:
        raise UserError(f"{where}: pid and camera must be integers, not '{' '.join(row[2:])}'")
    clothes = f"{pid}:{outfit}"
    # UNVERIFIED reading (the lists are not public): a query row names the outfit asked for; the one worn stays unknown.
    known = {"target_clothes": clothes} if role == "query" else {"clothes": clothes}
    if texts is None:
        known["template_path" if "templates" in Path(instr).parts else "crop_path"] = f"{part}/{instr}"
        if role == "query" and (root / (own := f"{part}/croped_clothes/{Path(image).name}")).exists():
            known["crop_path"] = own
    elif instr in texts:  # a query's second caption, where the JSON has one, is what it wears itself
        known["captions"] = (texts[instr],) + ((texts[image],) if role == "query" and image in texts else ())
    else:
        raise UserError(f"{where}: the caption JSON beside it has no key '{instr}'")
    return Record("cocas", role, f"{part}/{image}", pid, cam, **known)


def _images(root, pattern, rule, example):
    """[(path relative to root, fields of its name)] of the files that match a pattern, sorted."""
    paths = sorted(glob(pattern, root_dir=root))  # a pattern never matches the `._name.jpg` that macOS adds
    if not paths:
        raise UserError(f"{root / pattern}: empty split, no such image; unpack the data set again or mend --data")
    return [(path, _fields(rule, Path(path).name, example, root / path)) for path in paths]


def _fields(rule, name, example, where):
    match = re.match(rule, name)
    if not match:
        raise UserError(f"{where}: cannot read pid and camera from that name; expected one like {example}")
    return match.groups()


def _rows(path, widths):
    """[("file:line", fields)] of a list file, split at blanks; `widths` are the numbers of fields allowed."""
    if not path.is_file():
        raise UserError(f"{path}: list is missing; it comes with the data set's split files")
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    rows = [(f"{path}:{number}", line.split()) for number, line in lines if line.strip()]
    for where, fields in rows:
        if len(fields) not in widths:
            wanted = " or ".join(map(str, widths))
            raise UserError(f"{where}: {len(fields)} columns, expected {wanted} without blanks in a path")
    if not rows:
        raise UserError(f"{path}: empty split, the list holds no row")
    return rows


def _json(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: file is missing; it comes with the data set's captions")
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); fetch it again")


class Layout(NamedTuple):
    title: str
    tasks: tuple[str, ...]
    signs: tuple[tuple[str, ...], ...]  # a folder is this data set if it holds everything of one of these
    read: object
    published: dict  # role -> (images or captions, identities)


LAYOUTS = {
    "market": Layout(
        "Market-1501", ("trad",), (("bounding_box_train", "bounding_box_test", "query"),), read_market,
        {"train": (12936, 751), "query": (3368, 750), "gallery": (19732, 751)}),  # with 3,819 junk files and id 0000
    "ltcc": Layout(
        "LTCC", ("cc",), (("train", "query", "test"),), read_ltcc,
        {"train": (9576, 77), "query": (493, 75), "gallery": (7050, 75)}),
    "llcm": Layout(
        "LLCM", ("vi",), (("idx", "test_vis", "test_nir"),), read_llcm,
        {"train": (30921, 713), "test": (15846, 351)}),  # not 13,909: the published total is 46,767
    "cuhk-pedes": Layout(
        "CUHK-PEDES", ("t2i",), (("imgs", "reid_raw.json"), ("imgs", "caption_all.json")), read_cuhk_pedes,
        {"train": (34054, 11003), "val": (3078, 1000), "query": (6156, 1000), "gallery": (3074, 1000)}),
    "cocas": Layout(
        "COCAS+", ("ctcc", "li"), (("real1/datalist",), ("real2/datalist",)), read_cocas,
        {"train": (34469, 2800)}),  # Tab. 1; how query and gallery divide the 14,449 test images is not published
}


# ---- finding data sets ----

def find_datasets(path):
    """[(name, root)] of the known data sets at `path` or at most SEARCH_DEPTH levels below; UserError if none."""
    if not Path(path).is_dir():
        raise UserError(f"--data {path}: no such folder")
    found, level = [], [Path(path)]
    for _ in range(SEARCH_DEPTH + 1):
        deeper = []
        for folder in level:
            name = _recognise(folder)
            if name:
                found.append((name, folder))
            else:
                deeper += _subfolders(folder)
        level = deeper
    if not found:
        looked = "; ".join(f"{layout.title} ({' or '.join(', '.join(sign) for sign in layout.signs)})"
                           for layout in LAYOUTS.values())
        there = ", ".join(sorted(os.listdir(path))[:8]) or "nothing"
        raise UserError(f"--data {path}: no known data set in it. Looked for {looked}. Found {there}")
    return found


def _recognise(folder):
    for name, layout in LAYOUTS.items():
        if any(all((folder / entry).exists() for entry in sign) for sign in layout.signs):
            return name
    return None


def _subfolders(folder):
    folders, files = [], 0
    for entry in os.scandir(folder):
        if entry.is_dir():
            folders.append(folder / entry.name)
        elif (files := files + 1) > IMAGE_FOLDER:  # tens of thousands may follow
            return []
    return sorted(f for f in folders if not f.name.startswith((".", "__MACOSX")))


def open_all(path, task="all"):
    """[Dataset] of every data set at or below `path` that serves `task`; with "all", one per set and task."""
    found = find_datasets(path)
    for name, times in Counter(name for name, _ in found).items():
        if times > 1:
            twins = ", ".join(str(root) for twin, root in found if twin == name)
            raise UserError(f"--data {path}: {LAYOUTS[name].title} is there more than once ({twins}); name one of them")
    chosen = [(name, root, each) for name, root in found for each in LAYOUTS[name].tasks if task in ("all", each)]
    if not chosen:
        have = ", ".join(f"{LAYOUTS[name].title} ({' '.join(LAYOUTS[name].tasks)})" for name, _ in found)
        raise UserError(f"--data {path}: nothing there for --task {task}; found {have}")
    return [_open(*each) for each in chosen]


def open_dataset(path, task):
    """The one Dataset at or below `path` that serves `task`."""
    datasets = open_all(path, task)
    if len(datasets) > 1:
        roots = ", ".join(str(dataset.root) for dataset in datasets)
        raise UserError(f"--data {path}: several data sets serve --task {task} ({roots}); name one of them")
    return datasets[0]


def _open(name, root, task):
    layout = LAYOUTS[name]
    dataset = Dataset(name, layout.title, task, root, tuple(layout.read(root, task)))
    odd = []
    for role, published in layout.published.items():
        records = dataset.split(role)
        counted = len(records), len({record.pid for record in records if not record.junk})
        if records and counted != published:
            odd.append(f"{role} {counted[0]} images of {counted[1]} ids (published {published[0]} of {published[1]})")
    if odd and not (root.parent / "toy.json").exists():  # drawn data is as small as its user wants
        warnings.warn(f"{layout.title} in {root} differs from what was published: {'; '.join(odd)}", stacklevel=3)
    return dataset


def counts_table(dataset):
    """Ids, images, cameras and outfits of each split as text."""
    row = "{:22}{:>9}{:>9}{:>9}{:>9}{}".format
    lines = [row(f"{dataset.title} ({dataset.task})", "ids", "images", "cameras", "clothes", "")]
    for role in dict.fromkeys(record.role for record in dataset.records):
        records = [record for record in dataset.split(role) if not record.junk]
        junk, captions = len(dataset.split(role)) - len(records), sum(record.path is None for record in records)
        counts = [len({record.pid for record in records}), len(records) - captions,
                  *(len({getattr(record, what) for record in records} - {None}) for what in ("cam", "clothes"))]
        note = (f"  + {junk} junk" if junk else "") + (f"  + {captions} captions" if captions else "")
        lines.append(row("  " + role, *(count or "-" for count in counts), note))
    return "\n".join(lines)


# ---- sampling ----

class PKSampler:
    """P identities x K images (Sec. 5.1: 32 x 4). `batch(step)` depends on seed and step alone.

    records: training Records; batch(step) -> list of P*K indices into them, the K of a person side by side.
    An epoch is a permutation of the identities; those left over by P wait for the next one.
    """

    def __init__(self, records, ids_per_batch, images_per_id, seed):
        people = defaultdict(lambda: defaultdict(list))
        for index, record in enumerate(records):
            people[record.pid][record.modality].append(index)
        if len(people) < ids_per_batch:
            raise UserError(f"--ids {ids_per_batch}: the training split has {len(people)} identities; lower it")
        self.people = {pid: list(groups.values()) for pid, groups in people.items()}
        self.clothes = [record.clothes for record in records]
        self.p, self.k, self.seed = ids_per_batch, images_per_id, seed
        self.epoch, self.order = None, None  # the permutation in use, kept only because it is the same for many steps

    def batch(self, step):
        epoch, position = divmod(step, len(self.people) // self.p)
        if epoch != self.epoch:
            self.epoch, self.order = epoch, list(self.people)
            random.Random(f"{self.seed}:epoch {epoch}").shuffle(self.order)
        rng = random.Random(f"{self.seed}:step {step}")
        return [index for pid in self.order[position * self.p:][:self.p] for index in self._images_of(pid, rng)]

    def _images_of(self, pid, rng):
        groups = self.people[pid]  # one per modality: half of K is rgb and half infrared where a person has both
        first = rng.randrange(len(groups))  # which gets the odd one out
        counts = [(self.k + i) // len(groups) for i in range(len(groups))]
        return [index for i, group in enumerate(groups) for index in self._pick(group, counts[i - first], rng)]

    def _pick(self, group, count, rng):
        """`count` images, no outfit twice before each was seen once, and no image twice before each was."""
        seen, turns = Counter(), []
        for index in rng.sample(group, len(group)):
            turns.append((seen[self.clothes[index]], index))
            seen[self.clothes[index]] += 1
        dealt = [index for _, index in sorted(turns, key=lambda turn: turn[0])]
        return list(islice(cycle(dealt), count))


def schedule(ratios):
    """The cycle of tasks, each evenly spread: {"trad": 2, "cc": 1} -> ("trad", "cc", "trad")."""
    places = [((i + 0.5) / count, task) for task, count in ratios.items() for i in range(count)]
    return tuple(task for _, task in sorted(places, key=lambda place: place[0]))


class Batch(NamedTuple):
    images: torch.Tensor  # (b 3 H W) uint8
    labels: torch.Tensor  # (b,) long, 0.. within the data set
    pids: torch.Tensor  # (b,) long, as the data set numbers them
    dataset: str  # whose classifier
    task: str
    instr: list[str] | torch.Tensor  # sentences, or pictures (b 3 h w) uint8
    clothes: torch.Tensor | None = None  # (b,) long, which clothes the pictures show


class Stream(NamedTuple):
    dataset: Dataset
    records: list
    pool: dict  # pid -> its records
    shown: dict  # path of an instruction picture -> number of the clothes on it
    sampler: PKSampler


class Batches(torch.utils.data.Dataset):
    """`batches[step]` is the whole `Batch` of that step: one task of the schedule, data sets of a task taking turns.

    datasets: list of Dataset; size, picture_size: (H, W), (h, w); ratios: {task: share of the steps}, default 1 each.
    classes: {data set: number of training identities}. UserError for an unreadable image or too few identities.
    """

    def __init__(self, datasets, size, picture_size, ids_per_batch, images_per_id, seed, ratios=None):
        self.size, self.picture_size, self.seed = size, picture_size, seed
        self.streams, people = defaultdict(list), defaultdict(set)
        for dataset in datasets:
            records, pool = dataset.split("train"), defaultdict(list)
            if not records:
                raise UserError(f"{dataset.root}: {dataset.title} has no training images there (COCAS+: in real1/)")
            for record in records:
                pool[record.pid].append(record)
            sampler = PKSampler(records, ids_per_batch, images_per_id, f"{seed}:{dataset.name}:{dataset.task}")
            numbers = {clothes: i for i, clothes in enumerate(dict.fromkeys(r.clothes for r in records))}
            shown = {path: numbers[r.clothes] for r in records for path in (r.template_path, r.crop_path) if path}
            self.streams[dataset.task].append(Stream(dataset, records, dict(pool), shown, sampler))
            people[dataset.name] |= set(pool)
        self.streams = dict(self.streams)
        self.labels = {name: {pid: label for label, pid in enumerate(sorted(pids))} for name, pids in people.items()}
        self.classes = {name: len(pids) for name, pids in people.items()}
        self.schedule = schedule(ratios or dict.fromkeys(self.streams, 1))
        self.cache, self.cached_bytes = {}, 0

    def where(self, step):
        """step -> (Stream, step within that stream)."""
        cycles, place = divmod(step, len(self.schedule))
        task = self.schedule[place]
        turn = cycles * self.schedule.count(task) + self.schedule[:place].count(task)
        inner, which = divmod(turn, len(self.streams[task]))
        return self.streams[task][which], inner

    def __getitem__(self, step):
        (dataset, records, pool, shown, sampler), inner = self.where(step)
        chosen = [records[index] for index in sampler.batch(inner)]
        images = torch.stack([self._load(dataset.root / record.path, self.size) for record in chosen])
        rng = random.Random(f"{self.seed}:{step}")  # the instructions, too, depend on seed and step alone
        instr = instructions.training_instructions(dataset.task, chosen, pool, rng)
        clothes = None
        if dataset.task == "ctcc":
            clothes = torch.tensor([shown[path] for path in instr])
            instr = torch.stack([self._load(dataset.root / path, self.picture_size) for path in instr])
        pids = [record.pid for record in chosen]
        labels = [self.labels[dataset.name][pid] for pid in pids]
        return Batch(images, torch.tensor(labels), torch.tensor(pids), dataset.name, dataset.task, instr, clothes)

    def _load(self, path, size):
        image = self.cache.get((path, size))
        if image is None:
            image = load_image(path, size)
            # One cache per worker process would multiply the memory, and each would see few images twice.
            if get_worker_info() is None and self.cached_bytes + image.nbytes <= CACHE_BYTES:
                self.cache[path, size] = image
                self.cached_bytes += image.nbytes
        return image


def loader(batches, first, last, workers=0):
    """Yields `batches[first]` to `batches[last - 1]`, made by `workers` processes (0 = in this one, with the cache)."""
    own = torch.Generator()  # else starting a loader draws from torch's default one, and a resumed run would differ
    try:
        yield from DataLoader(batches, batch_size=None, sampler=range(first, last), num_workers=workers, generator=own)
    except UserError as error:  # from a worker it arrives inside a traceback, whose last line is the message
        traceback.clear_frames(error.__traceback__)  # they hold the loader, and its workers would take seconds to end
        raise UserError(str(error).strip().splitlines()[-1].removeprefix("cli.UserError: ")) from None


# ---- transforms: uint8 until the device, so that a whole batch is augmented there at once ----

def load_image(path, size):
    """An image file as a uint8 tensor (3, H, W) of `size` (H, W); UserError that names a file which cannot be read."""
    height, width = size
    try:
        with Image.open(path) as image:
            image.draft("RGB", (2 * width, 2 * height))  # lets a JPEG decode at 1/2, 1/4, 1/8, never below twice `size`
            pixels = np.array(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read image {path} ({error}); replace the file or take it off its list")
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def normalise(images):
    """uint8 (b 3 h w) -> float with ImageNet's mean at 0 and its deviation at 1; the only way pixels reach a model."""
    mean, std = (torch.tensor(values, device=images.device).mul(255).view(3, 1, 1) for values in (MEAN, STD))
    return images.float().sub_(mean).div_(std)


def augment(images, pictures, pad=10, erase_prob=0.5, generator=None):
    """Flip, pad-and-crop and random erasing of a batch, on its device, drawn from `generator` or the device's default.

    images: uint8 (b 3 H W) persons; pictures: uint8 (b 3 h w) instructions or None. Returns both as normalised floats.
    A person and its instruction picture flip together, as a logo changes sides with its wearer. Only the person moves,
    by up to `pad` pixels, and is erased. What is padded or erased becomes 0, the mean colour.
    """
    b, device = len(images), images.device
    flip = torch.rand(b, generator=generator, device=device) < 0.5
    offset = torch.randint(-pad, pad + 1, (2, b), generator=generator, device=device)
    moved, outside = shift(mirror(images, flip), offset)
    blank = outside | erasing(b, images.shape[2:], erase_prob, device, generator)
    return normalise(moved).masked_fill_(blank, 0), None if pictures is None else normalise(mirror(pictures, flip))


def mirror(images, flip):
    """images (b 3 h w), turned left-right where flip (b,) is True."""
    return torch.where(flip.view(-1, 1, 1, 1), images.flip(3), images)


def shift(images, offset):
    """Pad-and-crop: windows of images (b 3 h w) that begin at row offset[0] and column offset[1], each (b,).

    Returns the windows (b 3 h w) and where they lie outside the image, bool (b 1 h w).
    """
    h, w = images.shape[2:]
    rows = offset[0].view(-1, 1, 1) + torch.arange(h, device=images.device).view(-1, 1)
    cols = offset[1].view(-1, 1, 1) + torch.arange(w, device=images.device)
    outside = (rows < 0) | (rows >= h) | (cols < 0) | (cols >= w)  # (b h w)
    pixel = rows.clamp(0, h - 1) * w + cols.clamp(0, w - 1)
    windows = images.flatten(2).gather(2, pixel.flatten(1).unsqueeze(1).expand(-1, 3, -1))
    return windows.view_as(images), outside.unsqueeze(1)


def erasing(b, size, prob, device=None, generator=None):
    """Random erasing (Zhong et al. 2017): bool (b 1 H W), True in a rectangle of 2-33 % of the area, aspect 0.3-3.3.

    The aspect is drawn from the part of its range that fits into the image; the original draws again until it fits.
    """
    h, w = size
    chance, area, aspect, top, left = torch.rand(5, b, 1, 1, generator=generator, device=device)
    area = h * w * (0.02 + 0.31 * area)
    low, high = (area / w**2).clamp(min=0.3), (h**2 / area).clamp(max=3.3)
    aspect = low + (high - low) * aspect
    height, width = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    row = torch.arange(h, device=device).view(-1, 1) - (top * (h - height + 1)).floor()  # from the rectangle's top
    col = torch.arange(w, device=device) - (left * (w - width + 1)).floor()
    erased = (row >= 0) & (row < height) & (col >= 0) & (col < width) & (chance < prob)
    return erased.unsqueeze(1)
