"""Protocols: which queries, which gallery, what is left out of a ranking and what is a hit.

Letters in shapes: q queries, g gallery images.
"""

import random
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

TRIALS = 10


class Columns(NamedTuple):
    """What a protocol may look at, as arrays over records; NaN = unknown, which equals nothing."""

    pid: np.ndarray
    cam: np.ndarray
    clothes: np.ndarray
    target: np.ndarray  # the clothes that the query asks for
    junk: np.ndarray


def columns(queries, gallery):
    """Columns of both sides, (q 1) and (g): a comparison of the two broadcasts to (q g)."""
    codes = {}  # value -> number

    def side(records):
        rows = []
        for record in records:
            known = (record.cam, record.clothes, record.target_clothes)
            row = [np.nan if value is None else codes.setdefault(value, len(codes))
                   for value in known]
            rows.append((record.pid, *row, record.junk))
        return Columns(*np.array(rows, float).reshape(-1, 5).T)

    q = side(queries)
    g = side(gallery)
    return Columns(*(column[:, None] for column in q)), g._replace(junk=g.junk > 0)


# ---- what is left out, what is a hit: (q, g) -> (q g) bool ----

def same_person(q, g):
    return q.pid == g.pid


def same_camera(q, g):
    return same_person(q, g) & (q.cam == g.cam)


def same_camera_or_clothes(q, g):
    return same_person(q, g) & ((q.cam == g.cam) | (q.clothes == g.clothes))


def same_camera_or_other_clothes(q, g):
    return same_person(q, g) & ((q.cam == g.cam) | (q.clothes != g.clothes))


def wanted_clothes(q, g):
    return same_person(q, g) & (g.clothes == q.target)


# ---- who takes part: Record -> bool ----

def anything(record):
    return True


def infrared(record):
    return record.modality == "ir"


def visible(record):
    return record.modality == "rgb"


def seen_by(*cams):
    return lambda record: record.cam in cams


# ---- cells, of which a trial takes one image each: Record -> key ----

def person(record):
    return record.pid


def person_and_camera(record):
    return record.pid, record.cam


# ---- protocols ----

class Protocol(NamedTuple):
    name: str
    removed: Callable  # (q, g) -> (q g) bool: left out of that query's ranking (junk always is)
    positive: Callable  # (q, g) -> (q g) bool: a hit
    is_query: Callable = anything  # Record -> bool
    in_gallery: Callable = anything  # Record -> bool
    cell: Callable | None = None  # Record -> key: a trial's gallery has one image of each cell
    people: bool = False  # the CMC ranks people, not images
    transposed: bool = False  # the queries are sampled instead of the gallery
    named: bool = False  # evaluated only if asked for by name


GENERAL = Protocol("general", removed=same_camera, positive=same_person)
OTHER_CLOTHES = Protocol("cc", removed=same_camera_or_clothes, positive=same_person)
SAME_CLOTHES = Protocol("sc", removed=same_camera_or_other_clothes, positive=same_person)

# The right person in other clothes is a wrong answer, or a right one.
STRICT = Protocol("strict", removed=same_camera, positive=wanted_clothes)
ID_ONLY = GENERAL._replace(name="id-only")

# No cameras are known: nothing is removed.
TEXT = GENERAL._replace(name="text-to-image")

# What the instruction matrix looks for (Task.targets).
TARGETS = {
    "other clothes": OTHER_CLOTHES,
    "same clothes": SAME_CLOTHES,
    "wanted clothes": STRICT,
}


def usual_protocols(task):
    """The protocols of a Task on data without a rule of its own; the first is the default."""
    if task.text_only:
        return (TEXT,)
    if "wanted clothes" in task.targets:
        return (STRICT, ID_ONLY)
    return (GENERAL,)


# ---- applying one ----

def masks(protocol, q, g):
    """positive, removed, both (q g) bool. q, g: `columns`."""
    positive = protocol.positive(q, g)
    removed = protocol.removed(q, g) | g.junk
    return positive, removed


def trials(protocol, queries, gallery):
    """[(indices of the queries, indices of the gallery)] of each trial; one if none is random."""
    query_indices = [i for i, record in enumerate(queries) if protocol.is_query(record)]
    gallery_indices = [i for i, record in enumerate(gallery) if protocol.in_gallery(record)]
    if not protocol.cell:
        return [(query_indices, gallery_indices)]

    records = queries if protocol.transposed else gallery
    indices = query_indices if protocol.transposed else gallery_indices
    pairs = []
    for seed in range(TRIALS):
        sample = trial_gallery([records[i] for i in indices], seed, protocol.cell)
        sample = [indices[i] for i in sample]
        pairs.append((sample, gallery_indices) if protocol.transposed else (query_indices, sample))
    return pairs


def trial_gallery(records, seed, cell=person_and_camera):
    """Indices of one record of every cell, with the seeds and in the order of LLCM's own code."""
    rng = random.Random(seed)
    by_path = sorted(range(len(records)), key=lambda i: records[i].path)
    cells = defaultdict(list)
    for i in by_path:
        cells[cell(records[i])].append(i)
    return [rng.choice(cells[key]) for key in sorted(cells)]
