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
    role: str  # train, val, query, gallery; test if the protocol decides between the two (LLCM)
    path: str | None  # like all paths relative to the data set's root
    pid: int  # as in the data set
    cam: int | None = None  # None = unknown, different from all others
    clothes: str | None = None  # "pid:outfit", unique over people
    modality: str = "rgb"  # rgb, ir, text
    captions: tuple[str, ...] = ()
    template_path: str | None = None  # shop picture of the clothes
    crop_path: str | None = None  # clothes cropped from a photo of the person
    target_clothes: str | None = None  # the wanted clothes of a query, if any
    junk: bool = False  # deleted from every ranking; distractors are not junk


def as_captions(value):
    """The captions in a JSON file, a sentence, a list of sentences or None, as a tuple."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)


def check_record(record, where):
    """UserError, which names `where`, for an impossible id, path or caption."""
    for number in (record.pid, record.cam or 0):
        if type(number) is not int or abs(number) > LARGEST_ID:
            raise UserError(
                f"{where}: {number!r:.60} is no id or camera; correct that of {record.path!a}")
    for path in filter(None, (record.path, record.template_path, record.crop_path)):
        if not _is_text(path):
            raise UserError(f"{where}: the path {path!a:.200} is not UTF-8; rename it")
        if path.startswith("/") or ".." in path.split("/"):
            raise UserError(f"{where}: {path} is outside the data set; correct the list")
    for caption in record.captions:
        if not _is_text(caption) or not caption.strip():
            raise UserError(f"{where}: {caption!a:.60} is no caption of {record.path!a}; "
                            "write a sentence, or a list of them")


def _is_text(value):
    """Whether it is a non-empty str that UTF-8 can encode, which it cannot with lone surrogates."""
    try:
        return isinstance(value, str) and bool(value.encode())
    except UnicodeEncodeError:
        return False


class Streamed(Sequence):
    """Training Records that do not fit in memory; `column(name)` returns a field from an index."""


def column(records, name):
    """One field of all records as a list."""
    if isinstance(records, Streamed):
        return records.column(name)
    return [getattr(record, name) for record in records]


class Dataset(NamedTuple):
    name: str  # the layout and, if there are variants, the variant: "ltcc", "msmt17:V2"
    title: str
    task: str
    root: Path
    records: Sequence[Record]
    protocols: tuple = ()  # of reid.protocols.Protocol, the default first
    extra: bool = False  # only for training in this task
    notes: tuple[str, ...] = ()  # sentences about oddities

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
        """Whether there is a test split; SYNTH-PEDES and COCAS+ Real1 are only for training."""
        return any(self.split(role) for role in ("query", "gallery", "test"))

    def split(self, role):
        if isinstance(self.records, Streamed):
            return self.records if role == "train" else []
        return [record for record in self.records if record.role == role]
