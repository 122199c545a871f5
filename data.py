"""Data: the P x K sampler, batches and transforms. reid/folders.py finds and opens the data sets.

`python data.py ./data` counts what is there and opens every image.
Batches are a pure function of (seed, step), so a run resumes at any step without history.
Letters: b batch, H W size of person images, h w size of instruction pictures.
"""

import random
import traceback
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, get_worker_info

import cli
import instructions
from cli import UserError
from reid.folders import check, counts_table, open_all
from reid.images import load_image, normalise
from reid.records import Dataset, column

CACHE_BYTES = 2**30  # decoded images kept in memory; enough for the whole toy, not for MSMT17


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
            shown = {path: numbers[r.clothes] for r in (records if instructions.TASKS[dataset.task].pictures else ())
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
        if instructions.TASKS[dataset.task].pictures:
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
