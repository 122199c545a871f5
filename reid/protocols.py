"""Protocols: queries, gallery, removed images and hits of an evaluation.

Letters in shapes: q queries, g gallery images.
"""

import random
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

TRIALS = 10


class Columns(NamedTuple):
    """The fields that a protocol compares, as arrays over records; NaN = unknown, equal to none."""

    pid: np.ndarray
    cam: np.ndarray
    clothes: np.ndarray
    target_clothes: np.ndarray  # the wanted clothes of the query
    junk: np.ndarray  # bool


def columns(queries, gallery):
    """Columns of queries, (q 1), and gallery, (g): comparing the two broadcasts to (q g)."""
    codes = {None: np.nan}  # value -> number
    both = []
    for records in (queries, gallery):
        found = []
        for name in Columns._fields:
            values = [getattr(record, name) for record in records]
            codes_of = [codes.setdefault(value, len(codes)) for value in values]
            found.append(np.array(codes_of, np.float32))
        junk = np.array([record.junk for record in records], bool)
        both.append(Columns(*found[:-1], junk))
    q, g = both
    return Columns(*(column[:, None] for column in q)), g


class Protocol(NamedTuple):
    """removed, positive: functions of `columns` -> (q g) bool, for images of the query's person."""

    name: str
    removed: Callable  # removed from that query's ranking, like junk
    positive: Callable | None = None  # hits; None = all
    queries: dict = {}  # field of a Record -> values that queries must have
    gallery: dict = {}  # the same for gallery images
    cell: tuple[str, ...] = ()  # fields: a trial's gallery has one random image for each value
    people: bool = False  # the CMC ranks people, not images
    transposed: bool = False  # the queries are sampled instead of the gallery
    named: bool = False  # only evaluated with --protocol


GENERAL = Protocol("general", removed=lambda q, g: q.cam == g.cam)
OTHER_CLOTHES = Protocol("cc", removed=lambda q, g: (q.cam == g.cam) | (q.clothes == g.clothes))
SAME_CLOTHES = Protocol("sc", removed=lambda q, g: (q.cam == g.cam) | (q.clothes != g.clothes))

# Is the right person in other than the wanted clothes a wrong answer, or a right one?
STRICT = GENERAL._replace(name="strict", positive=lambda q, g: g.clothes == q.target_clothes)
ID_ONLY = GENERAL._replace(name="id-only")

# Cameras are unknown, so no image is removed.
TEXT = GENERAL._replace(name="text-to-image")

# Targets of the instruction matrix (Task.targets).
TARGETS = {
    "other clothes": OTHER_CLOTHES,
    "same clothes": SAME_CLOTHES,
    "wanted clothes": STRICT,
}


def usual_protocols(task):
    """The protocols of a Task on data without its own protocols; the first is the default."""
    if task.text_only:
        return (TEXT,)
    if "wanted clothes" in task.targets:
        return (STRICT, ID_ONLY)
    return (GENERAL,)


# ---- applying one ----

def masks(protocol, q, g):
    """positive, removed, both (q g) bool. q, g: `columns`."""
    same_person = q.pid == g.pid
    positive = same_person & protocol.positive(q, g) if protocol.positive else same_person
    removed = same_person & protocol.removed(q, g) | g.junk
    return positive, removed


def answerable(protocol, queries, gallery):
    """Yields for each query whether it has a hit."""
    q, g = columns(queries, gallery)
    for i in range(len(queries)):
        query = Columns(*(column[i:i + 1] for column in q))
        positive, removed = masks(protocol, query, g)
        yield bool((positive & ~removed).any())


def indices_of(records, values):
    """Indices of the records whose fields have one of the given values; values: {field: values}."""
    return [i for i, record in enumerate(records)
            if all(getattr(record, field) in values[field] for field in values)]


def trials(protocol, queries, gallery):
    """[(indices of the queries, indices of the gallery)] of each trial; one if none is random."""
    query_indices = indices_of(queries, protocol.queries)
    gallery_indices = indices_of(gallery, protocol.gallery)
    if not protocol.cell:
        return [(query_indices, gallery_indices)]
    if protocol.transposed:
        sample = partial(one_of_each, queries, query_indices, protocol.cell)
        return [(sample(seed), gallery_indices) for seed in range(TRIALS)]
    sample = partial(one_of_each, gallery, gallery_indices, protocol.cell)
    return [(query_indices, sample(seed)) for seed in range(TRIALS)]


def one_of_each(records, indices, cell, seed):
    """One random index for each cell of these records, with the seeds and the order of LLCM's
    code."""
    rng = random.Random(seed)
    cells = defaultdict(list)
    for i in sorted(indices, key=lambda i: records[i].path):
        cells[tuple(getattr(records[i], field) for field in cell)].append(i)
    return [rng.choice(cells[key]) for key in sorted(cells)]
