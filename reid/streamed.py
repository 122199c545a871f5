"""JSON lists that are too long for memory: an index has the byte at which each entry begins."""

import json
import sys

import numpy as np

from reid.cli import UserError, progress
from reid.files import replacing
from reid.records import Record, Streamed, check_record

PIECE = 2**24  # bytes of the JSON in memory at a time


class Entries(Streamed):
    """The training Records of the JSON list at `path`, each read when it is needed.
    records_of(entry): the `each` Records of an entry, of one person."""

    def __init__(self, path, records_of, each=1):
        self.path = path
        self.records_of = records_of
        self.each = each
        self.index = self._open_index()

    def __len__(self):
        return self.each * (len(self.index) - 1)

    def __getitem__(self, i):
        i, which = divmod(range(len(self))[i], self.each)  # IndexError beyond the end
        start, end = self.index["start"][i:i + 2].tolist()
        with open(self.path, "rb") as file:
            file.seek(start)
            text = file.read(end - start).decode("utf-8", "surrogateescape")

        entry, _ = json.JSONDecoder().raw_decode(text)
        return self._records(entry, start)[which]

    def column(self, name):
        """A field of all records: `pid` from the index; the others have their default values."""
        if name == "pid":
            return self.index["pid"][:-1].repeat(self.each).tolist()
        return [getattr(Record("", "train", "", 0), name)] * len(self)

    def _records(self, entry, start):
        """The Records of an entry. UserError, which names its place, if they are not valid."""
        where = f"{self.path}: the entry at byte {start}"
        records = self.records_of(entry)
        for record in records:
            if not record.path or not record.captions:
                raise UserError(f"{where} has no captions or no path; fetch it again")
            check_record(record, where)
        return records

    def _open_index(self):
        """(entries + 1,) with fields `start`, the byte at which an entry begins, and `pid`; the
        last is the file's end. Made in one pass, and saved next to the file for later openings."""
        kept = self.path.with_suffix(".index.npy")
        if kept.exists() and kept.stat().st_mtime >= self.path.stat().st_mtime:
            try:
                index = np.load(kept)
                if index["start"][-1] == self.path.stat().st_size:
                    return index
            except (ValueError, EOFError, IndexError):  # it is cut off, so make it again
                pass

        index = np.fromiter(self._places(), [("start", "i8"), ("pid", "i8")])
        try:
            with replacing(kept) as file:
                np.save(file, index)
        except UserError as error:
            print(f"note: {error}; {self.path.name} will be indexed again next time",
                  file=sys.stderr)
        return index

    def _places(self):
        """Yields (byte at which it begins, pid) of each entry, then the end of the file."""
        decode = json.JSONDecoder().raw_decode
        size = self.path.stat().st_size
        text = ""  # read but not yet decoded
        passed = 0  # bytes before `text`
        bar = progress(None, f"indexing {self.path.name}", total=size, unit="B", unit_scale=True,
                   disable=size < PIECE)
        with open(self.path, "rb") as file, bar:
            while (piece := file.read(PIECE)) and len(text) <= 2 * PIECE:  # entries are shorter
                text += piece.decode("latin-1")  # one character per byte
                end = 0
                while (brace := text.find("{", end)) >= 0:
                    try:
                        entry, end = decode(text, brace)
                    except (ValueError, RecursionError):  # it continues in the next piece
                        break
                    start = passed + brace
                    yield start, self._records(entry, start)[0].pid
                text = text[end:]
                passed += end
                bar.update(len(piece))

        if text.strip() != "]" or not passed:
            raise UserError(f"{self.path}: not a JSON list of entries, or cut off, after byte "
                            f"{passed}; fetch it again")
        yield size, -1
