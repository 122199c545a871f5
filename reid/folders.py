"""Finds the data sets below a folder, opens them, and says what is odd about them."""

import os
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from reid.cli import UserError
from reid.images import load_image
from reid.layouts import LAYOUTS, data_task, recognise, tasks_of
from reid.records import Dataset, Streamed, check_record, column

SEARCH_DEPTH = 3  # levels of folders below --data in which a data set is looked for
IMAGE_FOLDER = 50  # a folder with more files than this holds images, not data sets


# ---- finding ----

def find_datasets(path):
    """[(name, root)] of the known data sets at `path` or at most SEARCH_DEPTH levels below.

    UserError if there are none.
    """
    if not Path(path).is_dir():
        raise UserError(f"{path}: no such folder")

    found = []
    level = [Path(path)]
    for _ in range(SEARCH_DEPTH + 1):
        deeper = []
        for folder in level:
            name = recognise(folder)
            if name:
                found.append((name, folder))
            deeper += _to_search(folder, name)
        level = deeper

    if not found:
        there = ", ".join(sorted(os.listdir(path))[:8]) or "nothing"
        raise UserError(f"{path}: no known data set in it. "
                        f"Looked for {_all_signs()}. Found {there}")
    return found


def _to_search(folder, name):
    """The folders in which other data sets may lie; a data set's own are not looked into."""
    if name is None:
        return _subfolders(folder)
    layout = LAYOUTS[name]
    if not layout.own_folders:
        return []
    own = {(folder / inside).parent for inside in layout.own_folders if (folder / inside).exists()}
    return [other for other in _subfolders(folder) if other not in own]


def _subfolders(folder):
    folders = []
    files = 0
    for entry in os.scandir(folder):
        if entry.is_dir():
            folders.append(folder / entry.name)
            continue
        files += 1
        if files > IMAGE_FOLDER:  # tens of thousands may follow
            return []
    return sorted(each for each in folders if not each.name.startswith((".", "__MACOSX")))


def _all_signs():
    """`LTCC (train, query, test); PRCC (rgb/train, rgb/test or train, test/A); ...`"""
    texts = []
    for layout in LAYOUTS.values():
        signs = " or ".join(", ".join(sign) for sign in layout.signs)
        texts.append(f"{layout.title} ({signs})")
    return "; ".join(texts)


# ---- opening ----

def open_all(path, task="all", val=False):
    """[Dataset] of every data set at or below `path` that serves `task`; all: one per set and task.

    val: validation splits are trained on too.
    """
    if isinstance(task, dict):
        task = "all" if len(task) > 1 else next(iter(task))
    found = find_datasets(path)
    _refuse_twins(path, found)

    chosen = []
    for name, root in found:
        chosen += [(name, root, each) for each in tasks_of(name, root, task)]
    if not chosen:
        have = []
        for name, root in found:
            have.append(f"{LAYOUTS[name].title} ({' '.join(tasks_of(name, root))})")
        raise UserError(f"{path}: nothing there for --task {task}; found {', '.join(have)}")
    return [_open(*each, val) for each in chosen]


def _refuse_twins(path, found):
    """UserError where a data set is there more than once."""
    counts = Counter()
    for name, root in found:
        # Several that may lie side by side have their folders' names.
        counts[name, root.name if LAYOUTS[name].several else None] += 1

    for (name, _), times in counts.items():
        if times > 1:
            twins = ", ".join(str(root) for twin, root in found if twin == name)
            raise UserError(f"{path}: {LAYOUTS[name].title} is there more than once "
                            f"({twins}); name one of them")


def open_dataset(path, task):
    """The one Dataset at or below `path` that serves `task`."""
    datasets = open_all(path, task)
    if len(datasets) > 1:
        roots = ", ".join(str(dataset.root) for dataset in datasets)
        raise UserError(f"{path}: several data sets serve --task {task} ({roots}); "
                        "name one of them")
    return datasets[0]


def _open(name, root, task, val):
    records = LAYOUTS[name].read(root, data_task(task))
    if not isinstance(records, Streamed):
        records = tuple(records)
        for record in records:
            check_record(record, root)
    dataset = Dataset(records[0].dataset, LAYOUTS[name].title, task, root, records)
    dataset = dataset._replace(title=f"{dataset.title} {dataset.variant}".rstrip())

    if not is_drawn(root):
        odd = oddities(dataset)
        if odd:
            warnings.warn(f"{dataset.title} in {root} differs from what was published: "
                          f"{'; '.join(odd)}", stacklevel=3)

    if val and dataset.split("val"):
        trained_on = [replace(record, role="train") for record in dataset.split("val")]
        others = [record for record in records if record.role != "val"]
        dataset = dataset._replace(records=(*trained_on, *others))
    return dataset


def is_drawn(root):
    """Whether the data set, or the folder of data sets, was drawn by this repository.

    Then it is as small as its user wants, and its people are in no other set.
    """
    folder = Path(root).absolute()
    return any((each / "toy.json").exists() for each in (folder, *folder.parents[:2]))


# ---- what is odd ----

def oddities(dataset):
    """[what is not as published: numbers of images and people, or people in both splits]."""
    published = LAYOUTS[dataset.layout].published
    odd = []
    people = {}
    for role in ("train", "val", "query", "gallery", "test"):
        records = dataset.split(role)
        if role == "test" and not records:
            records = _test_images(dataset)
        people[role] = _people(records)
        counted = len(records), len(people[role])
        wanted = published.get(f"{dataset.variant} {role}", published.get(role))
        if not records or not wanted:
            continue
        images, ids = wanted
        if counted != (images, ids or counted[1]):
            odd.append(f"{role} {counted[0]} images of {counted[1]} ids "
                       f"(published {images} of {ids})")

    both = people["train"] & (people["query"] | people["gallery"] | people["test"])
    if both and not LAYOUTS[dataset.layout].numbered_apart:
        odd.append(f"{len(both)} people, such as {min(both)}, are in training and in test")
    return odd


def _test_images(dataset):
    """Query and gallery together, every image once: some sets are published as one number."""
    records = dataset.split("query") + dataset.split("gallery")
    return list({record.path: record for record in records}.values())


def _people(records):
    """The pids that are not junk."""
    pids = column(records, "pid")
    junk = column(records, "junk")
    return {pid for pid, bad in zip(pids, junk) if not bad}


def without_overlap(datasets):
    """The data sets, to be trained on together, without images that one took from another.

    Beside Market-1501 or CUHK03, CUHK-PEDES loses its images from there. Some are of test people:
    "we filtered out duplicate images from the test sets" (Sec. 5.2). Which ones is not published
    (28,566 stay, Supp. Tab. 2), so the whole folder goes.
    """
    beside = dict.fromkeys(each.layout for each in datasets if not is_drawn(each.root))
    kept = []
    for dataset in datasets:
        taken_from = LAYOUTS[dataset.layout].taken_from
        folders = tuple(taken_from[layout] for layout in beside if layout in taken_from)
        if folders:
            dataset = _without(dataset, folders)
        kept.append(dataset)
    return kept


def _without(dataset, folders):
    """A Dataset without its training images in some folders."""
    records = tuple(record for record in dataset.records
                    if record.role != "train" or not record.path.startswith(folders))
    gone = len(dataset.records) - len(records)
    warnings.warn(f"{dataset.title}: {gone} training images in {', '.join(folders)} are left out, "
                  "some are of test people of the sets beside it", stacklevel=3)
    return dataset._replace(records=records)


# ---- looking before training ----

def counts_table(dataset):
    """Ids, images, cameras and outfits of each split as text."""
    line = "{:28}{:>9}{:>9}{:>9}{:>9}{}".format
    title = f"{dataset.title} ({dataset.task})"
    lines = [line(title, "ids", "images", "cameras", "clothes", "")]
    for role in dict.fromkeys(column(dataset.records, "role")):
        records = dataset.split(role)
        junk = column(records, "junk")
        captions = column(records, "modality").count("text")

        ids = _distinct(column(records, "pid"), junk)
        images = len(records) - sum(junk) - captions
        cameras = _distinct(column(records, "cam"), junk)
        clothes = _distinct(column(records, "clothes"), junk)
        counts = [count or "-" for count in (ids, images, cameras, clothes)]

        notes = ""
        if any(junk):
            notes += f"  + {sum(junk)} junk"
        if captions:
            notes += f"  + {captions} captions"
        lines.append(line(f"  {role}", *counts, notes))
    return "\n".join(lines)


def _distinct(values, junk):
    """How many known values there are in records that are not junk."""
    known = {value for value, bad in zip(values, junk) if not bad}
    return len(known - {None})


def check(datasets):
    """Opens every image; returns [what is wrong with one that does not open], without repeats."""
    bad = {}
    total = sum(len(dataset.records) for dataset in datasets)
    with ThreadPoolExecutor() as pool, tqdm(total=total, desc="opening images") as bar:
        for dataset in datasets:
            for start in range(0, len(dataset.records), 1024):
                end = min(start + 1024, len(dataset.records))
                records = [dataset.records[i] for i in range(start, end)]
                complaints = pool.map(_complaint, _files(dataset.root, records))
                bad |= dict.fromkeys(filter(None, complaints))
                bar.update(len(records))
    return list(bad)


def _files(root, records):
    paths = set()
    for record in records:
        paths |= {record.path, record.template_path, record.crop_path}
    return [root / path for path in sorted(paths - {None})]


def _complaint(file):
    try:
        load_image(file, (16, 8))
    except UserError as error:
        return str(error)
