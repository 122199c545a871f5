"""Data: finding and checking data sets, the P x K sampler, batches and transforms. layouts.py reads the folders.

`python data.py ./data` counts what is there and opens every image.
Batches are a pure function of (seed, step), so a run resumes at any step without history.
Letters: b batch, H W size of person images, h w size of instruction pictures.
"""

import os
import random
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, get_worker_info
from tqdm import tqdm

import cli
import instructions
from cli import UserError
from layouts import LAYOUTS, Dataset, Entries, Record, column, recognise, tasks_of

MEAN = (0.485, 0.456, 0.406)  # ImageNet's, for person images and instruction pictures, in training and test alike
STD = (0.229, 0.224, 0.225)
CACHE_BYTES = 2**30  # decoded images kept in memory; enough for the whole toy, not for MSMT17
SEARCH_DEPTH = 3  # levels of folders below --data in which a data set is looked for
IMAGE_FOLDER = 50  # a folder with more files than this holds images, not data sets


# ---- finding data sets ----

def find_datasets(path):
    """[(name, root)] of the known data sets at `path` or at most SEARCH_DEPTH levels below; UserError if none."""
    if not Path(path).is_dir():
        raise UserError(f"--data {path}: no such folder")
    found, level = [], [Path(path)]
    for _ in range(SEARCH_DEPTH + 1):
        deeper = []
        for folder in level:
            name = recognise(folder)
            if name:
                found.append((name, folder))
            if name == "cocas":  # in the released code's data folder real1 and real2 lie among the other sets
                deeper += [each for each in _subfolders(folder) if each.name not in ("real1", "real2")]
            elif not name:
                deeper += _subfolders(folder)
        level = deeper
    if not found:
        looked = "; ".join(f"{layout.title} ({' or '.join(', '.join(sign) for sign in layout.signs)})"
                           for layout in LAYOUTS.values())
        there = ", ".join(sorted(os.listdir(path))[:8]) or "nothing"
        raise UserError(f"--data {path}: no known data set in it. Looked for {looked}. Found {there}")
    return found


def _subfolders(folder):
    folders, files = [], 0
    for entry in os.scandir(folder):
        if entry.is_dir():
            folders.append(folder / entry.name)
        elif (files := files + 1) > IMAGE_FOLDER:  # tens of thousands may follow
            return []
    return sorted(f for f in folders if not f.name.startswith((".", "__MACOSX")))


def open_all(path, task="all", val=False):
    """[Dataset] of every data set at or below `path` that serves `task`; with "all", one per set and task.

    val: validation splits are trained on too.
    """
    found = find_datasets(path)
    for (name, _), times in Counter((name, name == "omnireid" and root.name) for name, root in found).items():
        if times > 1:
            twins = ", ".join(str(root) for twin, root in found if twin == name)
            raise UserError(f"--data {path}: {LAYOUTS[name].title} is there more than once ({twins}); name one of them")
    chosen = [(name, root, each) for name, root in found for each in tasks_of(name, root, task)]
    if not chosen:
        have = ", ".join(f"{LAYOUTS[name].title} ({' '.join(tasks_of(name, root))})" for name, root in found)
        raise UserError(f"--data {path}: nothing there for --task {task}; found {have}")
    return [_open(*each, val) for each in chosen]


def open_dataset(path, task):
    """The one Dataset at or below `path` that serves `task`."""
    datasets = open_all(path, task)
    if len(datasets) > 1:
        roots = ", ".join(str(dataset.root) for dataset in datasets)
        raise UserError(f"--data {path}: several data sets serve --task {task} ({roots}); name one of them")
    return datasets[0]


def _open(name, root, task, val):
    records = LAYOUTS[name].read(root, task)
    full = records[0].dataset  # the name with its variant
    title = f"{LAYOUTS[name].title} {full.partition(':')[2]}".rstrip()
    dataset = Dataset(full, title, task, root, records if isinstance(records, Entries) else tuple(records))
    if not is_drawn(root) and (odd := oddities(dataset)):
        warnings.warn(f"{title} in {root} differs from what was published: {'; '.join(odd)}", stacklevel=3)
    if val:
        merged = tuple(replace(record, role="train") for record in dataset.split("val"))
        dataset = dataset._replace(records=merged + tuple(r for r in records if r.role != "val")) if merged else dataset
    return dataset


def is_drawn(root):
    """Whether `dolls` drew the data set, or the folder of data sets: then it is as small as its user wants, and its people are
    in no other set."""
    folder = Path(root).absolute()
    return any((each / "toy.json").exists() for each in (folder, *folder.parents[:2]))


def oddities(dataset):
    """[what is not as published: numbers of images and people, or people in training and test alike]."""
    layout, variant, odd, people = LAYOUTS[dataset.layout], dataset.name.partition(":")[2], [], {}
    for role in ("train", "val", "query", "gallery", "test"):
        records = dataset.split(role)
        people[role] = {pid for pid, junk in zip(column(records, "pid"), column(records, "junk")) if not junk}
        counted = len(records), len(people[role])
        published = layout.published.get(f"{variant} {role}", layout.published.get(role))
        if records and published and counted != (published[0], published[1] or counted[1]):
            odd.append(f"{role} {counted[0]} images of {counted[1]} ids (published {published[0]} of {published[1]})")
    both = people["train"] & (people["query"] | people["gallery"] | people["test"])
    if both and dataset.layout not in ("cocas", "omnireid"):  # whose training and test lists are numbered apart
        odd.append(f"{len(both)} people, such as {min(both)}, are in training and in test")
    return odd


OVERLAP = {"market": "imgs/Market/", "cuhk03": "imgs/CUHK03/"}  # where CUHK-PEDES keeps what it took from them


def without_overlap(datasets):
    """The data sets, to be trained on together: beside Market-1501 or CUHK03, CUHK-PEDES loses its images from there.

    Some are of test people: "we filtered out duplicate images from the test sets" (Sec. 5.2). Which ones is not
    published (28,566 stay, Supp. Tab. 2), so the whole folder goes.
    """
    folders, kept = tuple(OVERLAP[d.layout] for d in datasets if d.layout in OVERLAP and not is_drawn(d.root)), []
    for dataset in datasets:
        if dataset.layout == "cuhk-pedes" and folders:
            records = tuple(r for r in dataset.records if r.role != "train" or not r.path.startswith(folders))
            gone = len(dataset.records) - len(records)
            warnings.warn(f"{dataset.title}: {gone} training images in {', '.join(folders)} are left out, some are of "
                          "test people of the sets beside it", stacklevel=2)
            dataset = dataset._replace(records=records)
        kept.append(dataset)
    return kept


def counts_table(dataset):
    """Ids, images, cameras and outfits of each split as text."""
    row = "{:28}{:>9}{:>9}{:>9}{:>9}{}".format
    lines = [row(f"{dataset.title} ({dataset.task})", "ids", "images", "cameras", "clothes", "")]
    for role in dict.fromkeys(column(dataset.records, "role")):
        pid, cam, clothes, modality, junk = (column(dataset.split(role), what)
                                             for what in ("pid", "cam", "clothes", "modality", "junk"))
        captions = modality.count("text")
        counts = [len({value for value, bad in zip(values, junk) if not bad and value is not None})
                  for values in (pid, cam, clothes)]
        counts.insert(1, len(pid) - sum(junk) - captions)
        note = (f"  + {sum(junk)} junk" if any(junk) else "") + (f"  + {captions} captions" if captions else "")
        lines.append(row("  " + role, *(count or "-" for count in counts), note))
    return "\n".join(lines)


def check(datasets):
    """Opens every image; returns [what is wrong with one that does not open], without repeats."""
    bad = {}
    with ThreadPoolExecutor() as pool, tqdm(total=sum(len(d.records) for d in datasets), desc="opening images") as bar:
        for dataset in datasets:
            for start in range(0, len(dataset.records), 1024):
                some = [dataset.records[i] for i in range(start, min(start + 1024, len(dataset.records)))]
                paths = {path for r in some for path in (r.path, r.template_path, r.crop_path) if path}
                complaints = pool.map(_complaint, [dataset.root / path for path in sorted(paths)])
                bad |= dict.fromkeys(filter(None, complaints))
                bar.update(len(some))
    return list(bad)


def _complaint(path):
    try:
        load_image(path, (16, 8))
    except UserError as error:
        return str(error)


# ---- sampling ----

class PKSampler:
    """P identities x K images (Sec. 5.1: 32 x 4). `batch(step)` depends on seed and step alone.

    records: training Records; batch(step) -> list of P*K indices into them, the K of a person side by side.
    An epoch is a permutation of the identities; those left over by P wait for the next one.
    """

    def __init__(self, records, ids_per_batch, images_per_id, seed):
        people = defaultdict(lambda: defaultdict(list))
        for index, (pid, modality) in enumerate(zip(column(records, "pid"), column(records, "modality"))):
            people[pid][modality].append(index)
        if len(people) < ids_per_batch:
            raise UserError(f"--ids {ids_per_batch}: the training split has {len(people)} identities; lower it "
                            f"({records[0].dataset})")
        self.people = {pid: list(groups.values()) for pid, groups in people.items()}
        self.clothes = column(records, "clothes")
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
    records: Sequence
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
            records = dataset.split("train")
            if not records:
                if any(other.split("train") for other in datasets):  # it is there to be tested on
                    continue
                raise UserError(f"{dataset.root}: {dataset.title} has no training images there (COCAS+: in real1/)")
            sampler = PKSampler(records, ids_per_batch, images_per_id, f"{seed}:{dataset.name}:{dataset.task}")
            numbers = {clothes: i for i, clothes in enumerate(dict.fromkeys(sampler.clothes))}
            shown = {path: numbers[r.clothes] for r in (records if dataset.task == "ctcc" else ())
                     for path in (r.template_path, r.crop_path) if path}
            self.streams[dataset.task].append(Stream(dataset, records, shown, sampler))
            people[dataset.name] |= set(sampler.people)
        self.streams = dict(self.streams)
        self.labels = {name: {pid: label for label, pid in enumerate(sorted(pids))} for name, pids in people.items()}
        self.classes = {name: len(pids) for name, pids in people.items()}
        self.schedule = schedule({task: (ratios or {}).get(task, 1) for task in self.streams})
        self.cache, self.cached_bytes = {}, 0

    def where(self, step):
        """step -> (Stream, step within that stream)."""
        cycles, place = divmod(step, len(self.schedule))
        task = self.schedule[place]
        turn = cycles * self.schedule.count(task) + self.schedule[:place].count(task)
        inner, which = divmod(turn, len(self.streams[task]))
        return self.streams[task][which], inner

    def __getitem__(self, step):
        (dataset, records, shown, sampler), inner = self.where(step)
        chosen = [records[index] for index in sampler.batch(inner)]
        pool = {r.pid: [records[index] for group in sampler.people[r.pid] for index in group] for r in chosen}
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


# ---- command line ----

@dataclass
class Config:
    """Counts the data sets of a folder and opens every image."""
    path: str = cli.argument("data set, or folder of data sets")
    task: str = cli.option("all", "only the data sets of this task", ("all", *instructions.TASKS))


def main(config):
    datasets = open_all(config.path, config.task)
    for dataset in datasets:
        print(counts_table(dataset))
    bad = check(datasets)
    if bad:
        print("\n".join(bad))
        raise UserError(f"{config.path}: {len(bad)} images do not open, listed above; fetch them again")
    print("every image opens")


if __name__ == "__main__":
    cli.run(main, Config)
