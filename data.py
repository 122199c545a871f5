"""Batches: the P x K sampler, one batch of one task per step, augmentation.

A batch is a pure function of (seed, step), so a run can resume at any step without saved state.
`python data.py ./data` counts the people and images of data sets and opens every image.
Letters: b batch, H W size of person images, h w size of pictures of clothes.
"""

import math
import random
import traceback
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cache
from itertools import cycle, islice
from typing import NamedTuple

import reid  # noqa: F401  before torch: sets how its threads wait, and --help without it

# isort: split

import torch
import torch.nn.functional as F
from einops import rearrange
from torch.utils.data import DataLoader, get_worker_info

from instructions import TASKS, asked_tasks, training_instructions
from reid import cli
from reid.cli import UserError
from reid.files import digest_of
from reid.folders import check, counts_table, open_all, print_notes
from reid.images import load_image, normalise
from reid.records import Dataset, column

CACHE_BYTES = 2**30  # of decoded images kept in memory: fits all drawn people, but not MSMT17


# ---- sampling ----

class PKSampler:
    """P identities x K images (Sec. 5.1: 32 x 4). `batch(step)` only depends on seed and step.

    records: training Records. batch(step) -> P*K indices of records, the K of a person in a row.
    An epoch is a permutation of the identities; the remainder after division by P is not used in
    it. UserError if there are fewer than P identities.
    """

    def __init__(self, records, ids_per_batch, images_per_id, seed):
        groups = defaultdict(list)  # (pid, modality) -> indices
        for index, key in enumerate(zip(column(records, "pid"), column(records, "modality"))):
            groups[key].append(index)
        self.people = {}  # pid -> one list of indices for each modality
        for (pid, _), group in groups.items():
            self.people.setdefault(pid, []).append(group)

        if len(self.people) < ids_per_batch:
            raise UserError(
                f"--ids {ids_per_batch}: the training split has {len(self.people)} identities; "
                f"lower it ({records[0].dataset})"
            )
        self.records = records
        self.clothes = column(records, "clothes")
        self.ids_per_batch = ids_per_batch
        self.images_per_id = images_per_id
        self.seed = seed
        self.epoch = None
        self.order = None  # of the identities in this epoch, kept for its other steps

    def batch(self, step):
        epoch, position = divmod(step, len(self.people) // self.ids_per_batch)
        if epoch != self.epoch:
            self.epoch = epoch
            self.order = list(self.people)
            random.Random(f"{self.seed}:epoch {epoch}").shuffle(self.order)

        first = position * self.ids_per_batch
        rng = random.Random(f"{self.seed}:step {step}")
        batch = []
        for pid in self.order[first:first + self.ids_per_batch]:
            batch += self._images_of(pid, rng)
        return batch

    def records_of(self, pid):
        """The Records of all images of a person."""
        return [self.records[index] for group in self.people[pid] for index in group]

    def _images_of(self, pid, rng):
        """K images, divided evenly among the modalities of the person."""
        groups = self.people[pid]
        first = rng.randrange(len(groups))  # decides which groups get the remainder
        images = []
        for i, group in enumerate(groups):
            place = (i - first) % len(groups)
            count = (self.images_per_id + place) // len(groups)
            images += self._pick(group, count, rng)
        return images

    def _pick(self, group, count, rng):
        """Random images; no outfit and no image repeats before all others were used as often."""
        seen = Counter()
        turns = []
        for index in rng.sample(group, len(group)):
            clothes = self.clothes[index]
            turns.append((seen[clothes], index))
            seen[clothes] += 1

        turns.sort(key=lambda turn: turn[0])
        dealt = [index for _, index in turns]
        return list(islice(cycle(dealt), count))


def task_cycle(ratios):
    """A round of tasks, each evenly spread: {"trad": 2, "cc": 1} -> ("trad", "cc", "trad")."""
    turns = []
    for task, count in ratios.items():
        turns += [((i + 0.5) / count, task) for i in range(count)]
    turns.sort(key=lambda turn: turn[0])
    return tuple(task for _, task in turns)


# ---- batches ----

class Batch(NamedTuple):
    images: torch.Tensor  # (b 3 H W) uint8
    labels: torch.Tensor  # (b) long, from 0 within the data set
    dataset: str  # which decides on the classifier
    task: str
    sentences: list[str] | None  # instructions, one per image
    pictures: torch.Tensor | None  # (b 3 h w) uint8, pictures of clothes, one per image
    clothes: torch.Tensor | None = None  # (b) long, labels of the clothes in pictures or captions

    def to(self, device):
        """The batch on a device; from pinned memory, a GPU copies it in the background."""
        moved = {}
        for name, value in self._asdict().items():
            if isinstance(value, torch.Tensor):
                moved[name] = value.to(device, non_blocking=True)
        return self._replace(**moved)


class Stream(NamedTuple):
    """The training images of one data set for one task."""

    dataset: Dataset
    sampler: PKSampler
    clothes: dict  # path of a picture -> label of the clothes in it


class Batches(torch.utils.data.Dataset):
    """`batches[step]` is the Batch of that step, of one task. Tasks alternate in the cycle of
    `task_cycle`, and so do the data sets of a task.

    datasets: list of Dataset. size, picture_size: (H, W), (h, w). ratios: {task: share of the
    steps}, default 1 each. classes: {data set: number of training identities}.
    UserError for an unreadable image or too few identities.
    """

    def __init__(self, datasets, size, picture_size, ids_per_batch, images_per_id, seed,
                 ratios=None):
        self.size = size
        self.picture_size = picture_size
        self.seed = seed
        self.streams = defaultdict(list)  # task -> its Streams
        people = defaultdict(set)  # data set -> pids
        classified = set()  # data sets with an identity loss
        for dataset in with_training_images(datasets):
            records = dataset.split("train")
            stream_seed = f"{seed}:{dataset.name}:{dataset.task}"
            sampler = PKSampler(records, ids_per_batch, images_per_id, stream_seed)
            stream = Stream(dataset, sampler, clothes_on(dataset, records))
            self.streams[dataset.task].append(stream)
            people[dataset.name].update(sampler.people)
            if not TASKS[dataset.task].text_only:
                classified.add(dataset.name)

        self.labels = {}
        for name, pids in people.items():
            self.labels[name] = {pid: label for label, pid in enumerate(sorted(pids))}
        self.classes = {name: len(people[name]) for name in people if name in classified}
        ratios = ratios or {}
        self.cycle = task_cycle({task: ratios.get(task, 1) for task in self.streams})
        images = ids_per_batch * images_per_id
        self.bytes_of_a_batch = 3 * images * (math.prod(size) + math.prod(picture_size))
        self.cache = {}
        self.cached_bytes = 0

    def where(self, step):
        """step -> (Stream, step within that stream)."""
        rounds, place = divmod(step, len(self.cycle))
        task = self.cycle[place]
        step_of_task = rounds * self.cycle.count(task) + self.cycle[:place].count(task)
        streams = self.streams[task]
        step_of_stream, turn = divmod(step_of_task, len(streams))
        return streams[turn], step_of_stream

    def __getitem__(self, step):
        (dataset, sampler, clothes_of), step_of_stream = self.where(step)
        records = [sampler.records[index] for index in sampler.batch(step_of_stream)]
        rng = random.Random(f"{self.seed}:{step}")
        asks = training_instructions(dataset.task, records, sampler.records_of, rng)

        images = self._load(dataset.root, [record.path for record in records], self.size)
        sentences = [ask.words for ask in asks] if asks[0].words else None
        pictures = None
        if asks[0].picture:
            paths = [ask.picture for ask in asks]
            pictures = self._load(dataset.root, paths, self.picture_size)
        clothes = None
        if clothes_of:
            paths = [ask.picture or record.path for ask, record in zip(asks, records)]
            clothes = torch.tensor([clothes_of[path] for path in paths])
        labels = torch.tensor([self.labels[dataset.name][record.pid] for record in records])
        return Batch(images, labels, dataset.name, dataset.task, sentences, pictures, clothes)

    def _load(self, root, paths, size):
        images = []
        # no cache in worker processes: each would need its own, and see few images twice
        in_worker = get_worker_info() is not None
        for path in paths:
            key = root / path, size
            image = self.cache.get(key)
            if image is None:
                image = load_image(*key)
                if not in_worker and self.cached_bytes + image.nbytes <= CACHE_BYTES:
                    self.cache[key] = image
                    self.cached_bytes += image.nbytes
            images.append(image)
        return torch.stack(images)


def with_training_images(datasets):
    """The data sets with a training split; the others are only tested on. UserError if none has."""
    trained = [dataset for dataset in datasets if dataset.split("train")]
    if not trained:
        first = datasets[0]
        raise UserError(
            f"{first.root}: {first.title} has no training images here (COCAS+: in real1/)")
    return trained


def clothes_on(dataset, records):
    """{path of an image: label of the clothes in it}, for pictures that are instructions and, for
    t2i on data with clothes labels, for the images that captions describe; otherwise empty.

    Template files with the same bytes show the same clothes, also for different people.
    """
    row = TASKS[dataset.task]
    if dataset.streamed or not (row.pictures or row.text_only):
        return {}
    digest = cache(lambda template: digest_of(dataset.root / template))
    clothes_of = {}
    for record in records:
        clothes = record.clothes
        paths = [record.template_path, record.crop_path]
        if row.text_only:
            paths = [record.path] if clothes else []
        elif record.template_path:
            clothes = digest(record.template_path)
        clothes_of |= dict.fromkeys(filter(None, paths), clothes)
    numbers = {clothes: number for number, clothes in enumerate(dict.fromkeys(clothes_of.values()))}
    return {path: numbers[clothes] for path, clothes in clothes_of.items()}


def loader(batches, first, last, workers=0, pin=False, stops=None):
    """Yields batches[first] to batches[last - 1], loaded by `workers` processes; 0 = by this one,
    with the cache. pin: into pinned memory. stops: a cli.Stops; a signal ends the loader if it
    comes while it waits for a worker. UserError as in Batches."""
    stops = cli.Stops() if stops is None else stops
    loaded = iter(DataLoader(
        batches,
        batch_size=None,
        sampler=range(first, last),
        num_workers=workers,
        generator=torch.Generator(),  # with torch's default generator a resumed run would differ
        pin_memory=pin,
    ))
    while first < last:
        try:
            stops.is_waiting = True
            if stops:  # before it waits
                raise cli.Stopped
            batch = next(loaded)
        except cli.Stopped:
            cli.kill_workers()
            loaded._shutdown = True  # torch's own would wait for a lock that one of them may hold
            return
        except UserError as error:  # a worker's comes with a traceback, and the error as last line
            stops.is_waiting = False
            traceback.clear_frames(error.__traceback__)  # otherwise the workers take seconds to end
            del loaded
            message = str(error).strip().splitlines()[-1]
            message = message.removeprefix(f"{UserError.__module__}.UserError: ")
            raise UserError(message) from None
        except (ConnectionError, EOFError) as error:  # it was killed while it handed a batch over
            raise RuntimeError(f"{cli.KILLED} unknown)") from error
        finally:
            stops.is_waiting = False
        first += 1
        yield batch


# ---- augmentation: of a whole uint8 batch at once, on its device ----

def augment(images, pictures, pad=10, erase_prob=0.5, generator=None):
    """Flip, pad-and-crop and random erasing, with random numbers of `generator` or the device.

    images: uint8 (b 3 H W), people. pictures: uint8 (b 3 h w), pictures of clothes, or None.
    Returns both as normalised floats.
    A person and the picture of clothes flip together, since a logo changes sides too. Only the
    person is shifted, by up to `pad` pixels, and erased; padding and erased pixels are 0, the mean
    colour.
    """
    b, device = len(images), images.device
    height, width = images.shape[2:]
    flip = torch.rand(b, generator=generator, device=device) < 0.5
    top, left = torch.randint(2 * pad + 1, (2, b), generator=generator, device=device)
    erased = erasing(b, (height, width), erase_prob, device, generator)
    padded = F.pad(normalise(mirror(images, flip)), [pad] * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (b 3 tops lefts H W), a view
    images = windows[torch.arange(b, device=device), :, top, left]
    images = images.masked_fill_(erased, 0)

    if pictures is not None:
        pictures = normalise(mirror(pictures, flip))
    return images, pictures


def mirror(images, flip):
    """images (b 3 h w), flipped left-right where flip (b) is True."""
    flip = rearrange(flip, "b -> b 1 1 1")
    return torch.where(flip, images.flip(3), images)


def erasing(b, size, prob, device=None, generator=None):
    """Random erasing (Zhong et al. 2017): bool (b 1 H W), True in a rectangle of 2-33 % of the
    area, aspect 0.3-3.3.

    The aspect is sampled from the part of its range that fits into the image; the original samples
    again until it fits.
    """
    h, w = size
    uniform = torch.rand(5, b, 1, 1, generator=generator, device=device)
    selected = uniform[0] < prob
    area, aspect, top, left = uniform[1:]
    area = h * w * (0.02 + 0.31 * area)
    lowest = (area / w**2).clamp(min=0.3)
    highest = (h**2 / area).clamp(max=3.3)
    aspect = lowest + (highest - lowest) * aspect

    height = (area * aspect).sqrt().round()
    width = (area / aspect).sqrt().round()
    top = (top * (h - height + 1)).floor()
    left = (left * (w - width + 1)).floor()

    rows = rearrange(torch.arange(h, device=device), "h -> h 1") - top
    columns = torch.arange(w, device=device) - left
    in_rows = (rows >= 0) & (rows < height)
    in_columns = (columns >= 0) & (columns < width)
    return rearrange(in_rows & in_columns & selected, "b h w -> b 1 h w")


# ---- command line ----

@dataclass
class Config:
    """Counts the people and images of data sets and opens every image.

    python data.py ./data
    """

    path: str = cli.argument("a data set, or a folder of data sets")
    task: str = cli.option("all", "only the data sets of this task", ("all", *TASKS))


def main(config):
    datasets = open_all(config.path, asked_tasks(config.task))
    print_notes(datasets)
    for dataset in datasets:
        print(counts_table(dataset))
    bad = check(datasets)
    if bad:
        print("\n".join(bad))
        raise UserError(
            f"{config.path}: {len(bad)} images do not open, listed above; fetch them again")
    print("every image opens")


if __name__ == "__main__":
    cli.run(main, Config)
