"""One `Record` per image, and the `Dataset` that they make up."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from reid.cli import UserError

LARGEST_ID = 2**53  # protocols compare ids as floats


@dataclass(frozen=True)
class Record:
    """One image, or one caption that is a query by itself (path None, modality "text")."""

    dataset: str
    role: str  # train, val, query, gallery; test where the protocol decides on the side (LLCM)
    path: str | None  # as all paths below the data set's root
    pid: int  # as the data set numbers it
    cam: int | None = None  # None = unknown, equal to nothing
    clothes: str | None = None  # "pid:outfit", unique over people
    modality: str = "rgb"  # rgb, ir, text
    captions: tuple[str, ...] = ()
    template_path: str | None = None  # shop picture of clothes
    crop_path: str | None = None  # clothes cropped from a photo of the person
    target_clothes: str | None = None  # what a query asks for, if it asks for clothes
    junk: bool = False  # deleted from every ranking; distractors are not junk


def as_captions(value):
    """What a JSON holds as captions, a sentence or a list of them or nothing, as a tuple."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)


def check_record(record, where):
    """UserError, which names `where`, for an id, a path or a caption that no data set can mean."""
    for number in (record.pid, record.cam or 0):
        if type(number) is not int or abs(number) > LARGEST_ID:
            raise UserError(
                f"{where}: {number!r:.60} is no id or camera; correct that of {record.path!a}")
    for path in filter(None, (record.path, record.template_path, record.crop_path)):
        if not _is_text(path):
            raise UserError(f"{where}: {path!a:.200} is no path in UTF-8; rename it")
        if path.startswith("/") or ".." in path.split("/"):
            raise UserError(f"{where}: {path} lies outside of the data set; correct the list")
    for caption in record.captions:
        if not _is_text(caption) or not caption.strip():
            raise UserError(f"{where}: {caption!a:.60} is no caption of {record.path!a}; "
                            "write a sentence, or a list of them")


def _is_text(value):
    """False for a lone surrogate, too: half a sign in JSON, a foreign byte in a file's name."""
    try:
        return isinstance(value, str) and bool(value.encode())
    except UnicodeEncodeError:
        return False


class Streamed(Sequence):
    """Training Records too many to be in memory; `column(name)` gives a field without reading."""


def column(records, name):
    """One field of all records as a list."""
    if isinstance(records, Streamed):
        return records.column(name)
    return [getattr(record, name) for record in records]


class Dataset(NamedTuple):
    name: str  # the layout's and, where it has variants, which one: "ltcc", "msmt17:V2"
    title: str
    task: str
    root: Path
    records: Sequence[Record]
    protocols: tuple = ()  # of reid.protocols.Protocol, the default first
    extra: bool = False  # trained on under this task, but not tested
    notes: tuple[str, ...] = ()  # what is odd about it, a sentence each

    @property
    def layout(self):
        return self.name.partition(":")[0]

    @property
    def variant(self):
        return self.name.partition(":")[2]

    @property
    def streamed(self):
        return isinstance(self.records, Streamed)

    @property
    def tested(self):
        """Whether there is a test split: SYNTH-PEDES and COCAS+ Real1 are for training alone."""
        return any(self.split(role) for role in ("query", "gallery", "test"))

    def split(self, role):
        if isinstance(self.records, Streamed):
            return self.records if role == "train" else []
        return [record for record in self.records if record.role == role]
