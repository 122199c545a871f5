"""Finds the data sets below a folder, opens and checks them."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from glob import glob
from pathlib import Path

from reid.cli import UserError, progress, user_error
from reid.images import is_image, load_image
from reid.layouts import LAYOUTS, listed_layout, recognise, tasks_of
from reid.own_photos import is_own
from reid.protocols import usual_protocols
from reid.records import Dataset, Streamed, check_record, column

SEARCH_DEPTH = 3  # levels of folders below --data that are searched for data sets
NOT_READ = ("DukeMTMC", "SYSU-MM01", "RegDB", "Celeb-reID", "DeepChange")  # parts of names


# ---- finding ----

def find_datasets(path):
    """[(name, root)] of the known data sets at `path` or below; UserError if there are none."""
    with user_error(f"{path}: no such folder", "give that of a data set", OSError):
        inside = sorted(os.listdir(path))
    found = list(_below(Path(path), SEARCH_DEPTH))
    if found:
        return found
    refuse_unknown(path, [Path(path).resolve().name, *inside])
    if is_own(Path(path), reserved_names()):
        return [("own", Path(path))]
    raise UserError(
        f"{path}: no known data set in it, and no folders of people; docs/data.md shows the known "
        f"layouts. It contains {', '.join(inside[:8]) or 'no files'}")


def refuse_unknown(path, folders):
    """UserError if one of the folders has the name of a data set of NOT_READ."""
    names = " ".join(folders).lower()
    for name in NOT_READ:
        why = "was withdrawn by its authors" if name == "DukeMTMC" else "cannot be read"
        if name.lower() in names:
            raise UserError(f"{path}: {name} {why}; docs/data.md lists the known data sets")


def _below(folder, depth):
    """Yields (name, root) of the data set in this folder, or of those in its subfolders."""
    name = recognise(folder)
    if name:
        yield name, folder
    parts = LAYOUTS[name].parts if name else ()
    own = [part for part in parts if (folder / part / "datalist").exists()]
    if depth and (parts or not name):  # otherwise all its subfolders belong to the data set
        for each in sorted(folder.iterdir()):
            is_skipped = each.name in own or each.name.startswith((".", "__MACOSX"))
            if each.is_dir() and not is_skipped:
                yield from _below(each, depth - 1)


def reserved_names():
    """Names of folders by which data sets are recognised, so they cannot be names of people."""
    entries = {entry for layout in LAYOUTS.values() for sign in layout.signs for entry in sign}
    return {part for entry in entries for part in entry.split("/")}


# ---- opening ----

def open_all(path, tasks, val=False):
    """[Dataset] of every data set at or below `path`, one for each of its tasks.

    tasks: {name: row} from instructions.asked_tasks. val: also train on validation splits. A data
    set that cannot be read is skipped with a note if there are others; UserError if there are none.
    """
    found = find_datasets(path)
    chosen = {(name, root): tasks_of(name, root, tasks) for name, root in found}
    serving = [each for each in found if chosen[each]]
    if not serving:
        have = [f"{LAYOUTS[name].title} ({' '.join(LAYOUTS[name].protocols) or 'of other tasks'})"
                for name, _ in found]
        raise UserError(f"{path}: no data for --task {' '.join(tasks)}; found {', '.join(have)}")

    datasets, refused = [], []
    for name, root in serving:
        for task in chosen[name, root]:
            try:
                datasets.append(_open(name, root, task, tasks[task], val))
            except UserError as error:
                refused.append(f"read as {LAYOUTS[name].title} ({task}): {error}")
    if not datasets:
        refuse_unknown(path, [root.resolve().name for _, root in serving])
        raise UserError(refused[0])
    for name, task, root in [(each.layout, each.task, each.root) for each in datasets]:
        twins = [str(each.root) for each in datasets if (each.layout, each.task) == (name, task)
                 and (not LAYOUTS[name].lists or each.root.name == root.name)]
        if len(twins) > 1:
            raise UserError(f"{path}: several copies of {LAYOUTS[name].title} "
                            f"({', '.join(twins)}); name one of them")
    notes = [f"skipped, {line}" for line in refused]
    datasets[0] = datasets[0]._replace(notes=(*datasets[0].notes, *notes))
    return datasets


def _open(name, root, task, row, val):
    """The Dataset of one row of LAYOUTS for one task."""
    layout = LAYOUTS[name]
    records = layout.read(root, row)
    if not isinstance(records, Streamed):
        records = tuple(records)
        for record in records:
            check_record(record, root)

    usual = usual_protocols(row) if layout.lists else ()
    protocols = layout.protocols.get(row.data_of or task, usual)
    is_extra = task in layout.extra  # only for training
    name = records[0].dataset
    title = f"{layout.title} {name.partition(':')[2]}".rstrip()
    dataset = Dataset(name, title, task, root, records, protocols, is_extra)
    notes = tuple(f"{title} in {root}: {odd}" for odd in oddities(dataset) + _unread(dataset))

    if val and dataset.split("val"):
        trained_on = [replace(record, role="train") for record in dataset.split("val")]
        others = [record for record in records if record.role != "val"]
        records = (*trained_on, *others)
    return dataset._replace(records=records, notes=notes)


def is_drawn(root):
    """Whether this repository drew the data set, or folder of data sets: it may then have any size,
    and shares no people with other sets."""
    folder = Path(root).absolute()
    return any((each / "toy.json").exists() for each in (folder, *folder.parents[:2]))


def without_overlap(datasets):
    """The data sets for joint training, without images that one took from another, as some show
    test people. "We filtered out duplicate images from the test sets" (Sec. 5.2); which ones is not
    published (28,566 of CUHK-PEDES remain, Supp. Tab. 2), so the whole folder is left out."""
    layouts = {}  # a set that keeps the order
    for each in datasets:
        if not is_drawn(each.root):
            listed = LAYOUTS[each.layout].lists and listed_layout(each.root)
            layouts[listed or each.layout] = True
    kept = []
    for dataset in datasets:
        taken_from = LAYOUTS[dataset.layout].taken_from
        folders = tuple(taken_from[layout] for layout in layouts if layout in taken_from)
        if folders:
            records = tuple(record for record in dataset.records
                            if record.role != "train" or not record.path.startswith(folders))
            note = (f"{dataset.title}: {len(dataset.records) - len(records)} training images in "
                    f"{', '.join(folders)} are left out, as some show test people of these sets")
            dataset = dataset._replace(records=records, notes=(*dataset.notes, note))
        kept.append(dataset)
    return kept


# ---- checks and counts ----

def print_notes(datasets):
    """Prints the notes of the data sets on stderr, one line each."""
    for note in dict.fromkeys(note for dataset in datasets for note in dataset.notes):
        print(f"note: {note}", file=sys.stderr)


def oddities(dataset):
    """[a sentence for each difference from the published counts, and for people in both splits].
    Empty for drawn people, and if all splits differ, as with own photos in this layout."""
    if is_drawn(dataset.root):
        return []
    layout = LAYOUTS[dataset.layout]
    people = {}
    compared = 0
    odd = []
    for role in ("train", "val", "query", "gallery", "test"):
        records = dataset.split(role)
        people[role] = _values(records, "pid")
        counted = len(records), len(people[role])
        wanted = layout.published.get(f"{dataset.variant} {role}", layout.published.get(role))
        compared += bool(records and wanted)
        if records and wanted and counted != wanted:
            odd.append(f"{role} has {counted[0]} images or captions of {counted[1]} ids, "
                       f"published are {wanted[0]} of {wanted[1]}")
    if len(odd) == compared > 1:
        odd = []
    both = people["train"] & (people["query"] | people["gallery"] | people["test"])
    if both and not layout.lists and not layout.parts:  # lists may number them separately
        odd.append(f"{len(both)} people, such as {min(both)}, are in training and in test")
    return odd


def _unread(dataset):
    """[a sentence with the number of image files, in folders of the records, without a record]."""
    layout = LAYOUTS[dataset.layout]
    if dataset.streamed or layout.lists or layout.parts:  # lists may leave images out
        return []
    known = _files(dataset.records)
    folders = {os.path.dirname(record.path or "") for record in dataset.records}
    unread = set()
    for folder in folders - {""}:
        files = glob(f"{folder}/**", root_dir=dataset.root, recursive=True)
        unread |= {file for file in files if is_image(file) and file not in known}
    if not unread:
        return []
    return [f"{len(unread)} image files, such as {min(unread)}, belong to no record"]


def _files(records):
    """The paths of all images of the records."""
    paths = set()
    for record in records:
        paths |= {record.path, record.template_path, record.crop_path}
    return paths - {None}


def _values(records, name):
    """The known values of a field in records that are not junk."""
    values = zip(column(records, name), column(records, "junk"), strict=True)
    return {value for value, junk in values if not junk} - {None}


def counts_table(dataset):
    """Ids, images, cameras and outfits of each split as text."""
    line = "{:28}{:>9}{:>9}{:>9}{:>9}{}".format
    lines = [line(f"{dataset.title} ({dataset.task})", "ids", "images", "cameras", "clothes", "")]
    for role in dict.fromkeys(column(dataset.records, "role")):
        records = dataset.split(role)
        junk = sum(column(records, "junk"))
        captions = column(records, "modality").count("text")
        ids, cameras, clothes = (len(_values(records, name)) for name in ("pid", "cam", "clothes"))
        counts = [count or "-" for count in (ids, len(records) - junk - captions, cameras, clothes)]
        notes = f"  + {junk} junk" if junk else ""
        notes += f"  + {captions} captions" if captions else ""
        lines.append(line(f"  {role}", *counts, notes))
    return "\n".join(lines)


def check(datasets):
    """Opens every image; returns the error messages of those that do not open, without repeats."""
    bad = {}
    total = sum(len(dataset.records) for dataset in datasets)
    with ThreadPoolExecutor() as pool, progress(None, "opening images", total=total) as bar:
        for dataset in datasets:
            for start in range(0, len(dataset.records), 1024):
                places = range(start, min(start + 1024, len(dataset.records)))
                paths = sorted(_files(dataset.records[i] for i in places))
                complaints = pool.map(_complaint, [dataset.root / path for path in paths])
                bad |= dict.fromkeys(filter(None, complaints))
                bar.update(len(places))
    return list(bad)


def _complaint(file):
    try:
        load_image(file, (16, 8))
    except UserError as error:
        return str(error)
