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
    target_clothes: np.ndarray  # what the query asks for
    junk: np.ndarray  # bool


def columns(queries, gallery):
    """Columns of both sides, (q 1) and (g): a comparison of the two broadcasts to (q g)."""
    codes = {None: np.nan}  # value -> number

    def side(records):
        found = []
        for name in Columns._fields:
            values = [getattr(record, name) for record in records]
            codes_of = [codes.setdefault(value, len(codes)) for value in values]
            found.append(np.array(codes_of, np.float32))
        junk = np.array([record.junk for record in records], bool)
        return Columns(*found[:-1], junk)

    q = side(queries)
    return Columns(*(column[:, None] for column in q)), side(gallery)


class Protocol(NamedTuple):
    """removed, positive: (q, g), `columns` -> (q g) bool, asked of images of the query's person."""

    name: str
    removed: Callable  # left out of that query's ranking, as junk always is
    positive: Callable | None = None  # a hit; None: all of them
    queries: dict = {}  # field of a Record -> the values that it has in queries
    gallery: dict = {}  # the same of gallery images
    cell: tuple[str, ...] = ()  # fields: a trial's gallery has one image of each of their values
    people: bool = False  # the CMC ranks people, not images
    transposed: bool = False  # the queries are sampled instead of the gallery
    named: bool = False  # evaluated only if asked for by name


GENERAL = Protocol("general", removed=lambda q, g: q.cam == g.cam)
OTHER_CLOTHES = Protocol("cc", removed=lambda q, g: (q.cam == g.cam) | (q.clothes == g.clothes))
SAME_CLOTHES = Protocol("sc", removed=lambda q, g: (q.cam == g.cam) | (q.clothes != g.clothes))

# The right person in other clothes is a wrong answer, or a right one.
STRICT = GENERAL._replace(name="strict", positive=lambda q, g: g.clothes == q.target_clothes)
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
    """Of those records whose fields have one of the given values: {field: its values}."""
    indices = []
    for i, record in enumerate(records):
        if all(getattr(record, field) in values[field] for field in values):
            indices.append(i)
    return indices


def trials(protocol, queries, gallery):
    """[(indices of the queries, indices of the gallery)] of each trial; one if none is random."""
    query_indices = indices_of(queries, protocol.queries)
    gallery_indices = indices_of(gallery, protocol.gallery)
    if not protocol.cell:
        return [(query_indices, gallery_indices)]
    pairs = []
    for seed in range(TRIALS):
        if protocol.transposed:
            sample = one_of_each(queries, query_indices, protocol.cell, seed)
            pairs.append((sample, gallery_indices))
        else:
            sample = one_of_each(gallery, gallery_indices, protocol.cell, seed)
            pairs.append((query_indices, sample))
    return pairs


def one_of_each(records, indices, cell, seed):
    """Of those indices, that of one record of every cell, with the seeds and in the order of LLCM's
    own code."""
    rng = random.Random(seed)
    cells = defaultdict(list)
    for i in sorted(indices, key=lambda i: records[i].path):
        cells[tuple(getattr(records[i], field) for field in cell)].append(i)
    return [rng.choice(cells[key]) for key in sorted(cells)]
