"""One `Record` per image, and the `Dataset` that they make up."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from reid.cli import UserError

LARGEST_ID = 2**53  # protocols compare ids as floats


@dataclass(frozen=True)
class Record:
    """One image, or one caption that is a query by itself (path None, modality "text").

    Paths start at the data set's root.
    """

    dataset: str
    role: str  # train, val, query, gallery; test where the protocol decides on the side (LLCM)
    path: str | None
    pid: int  # as the data set numbers it
    cam: int | None = None  # None = unknown, equal to nothing
    clothes: str | None = None  # "pid:outfit", unique over people
    modality: str = "rgb"  # rgb, ir, text
    captions: tuple[str, ...] = ()
    template_path: str | None = None  # shop picture of clothes
    crop_path: str | None = None  # clothes cropped from a photo of the person
    target_clothes: str | None = None  # what a ctcc or li query asks for
    view: str | None = None  # the data set's own tag: PRCC's camera letter, LLCM's session
    junk: bool = False  # deleted from every ranking; distractors are not junk


def as_captions(value, where):
    """What a JSON holds as captions, a sentence or a list of them, as a tuple.

    UserError, which names `where`, if it is anything else.
    """
    captions = tuple(value) if isinstance(value, list) else (value,)
    for caption in captions:
        if not isinstance(caption, str) or not caption.strip() or not _is_utf8(caption):
            raise UserError(
                f"{where}: {caption!a:.60} is no caption; write a sentence, or a list of them")
    return captions


def check_record(record, where):
    """UserError, which names `where`, for an id or a path that no data set can mean."""
    for number in (record.pid, record.cam or 0):
        if type(number) is not int or abs(number) > LARGEST_ID:
            raise UserError(f"{where}: {number!r:.60} is no id or camera; mend {record.path}")
    for path in filter(None, (record.path, record.template_path, record.crop_path)):
        if not _is_utf8(path):
            raise UserError(f"{where}: {path!a} is not UTF-8; rename it")
        if path.startswith("/") or ".." in path.split("/"):
            raise UserError(f"{where}: {path} lies outside of the data set; mend the list")


def _is_utf8(text):
    """False for a lone surrogate: half a sign in JSON, a foreign byte in a file or its name."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Streamed(Sequence):
    """Training Records that are read from a file one by one: too many to be in memory at once."""

    def column(self, name):
        """One field of all records as a list, without reading them."""
        raise NotImplementedError


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

    @property
    def layout(self):
        return self.name.partition(":")[0]

    @property
    def variant(self):
        return self.name.partition(":")[2]

    @property
    def extra(self):
        from reid.layouts import is_extra
        return is_extra(self)

    @property
    def streamed(self):
        return isinstance(self.records, Streamed)

    @property
    def tested(self):
        """Whether there is a test split: SYNTH-PEDES and COCAS+ Real1 are for training alone."""
        return any(self.split(role) for role in ("query", "gallery", "test"))

    def split(self, role):
        if self.streamed:
            return self.records if role == "train" else []
        return [record for record in self.records if record.role == role]
