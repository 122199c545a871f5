"""SYNTH-PEDES: 4.8 million entries in one JSON list, of which an index knows where each begins."""

import json
import sys

import numpy as np
from tqdm import tqdm

from reid.cli import UserError
from reid.files import replacing
from reid.records import Record, Streamed, as_captions, check_record

PIECE = 2**24  # bytes of the JSON that are in memory at a time


class Entries(Streamed):
    """The Records of the JSON list at `path`, each read when it is asked for.

    index: (n + 1,) with fields `start`, the byte at which an entry begins, and `pid`; the last
    row is the file's end.
    """

    def __init__(self, path):
        self.path = path
        self.index = open_index(path)

    def __len__(self):
        return len(self.index) - 1

    def __getitem__(self, i):
        i = range(len(self))[i]  # IndexError beyond the end, and -1 is the last
        start, end = self.index["start"][i:i + 2].tolist()
        with open(self.path, "rb") as file:
            file.seek(start)
            text = file.read(end - start).decode("utf-8", "surrogateescape")

        entry, _ = json.JSONDecoder().raw_decode(text)
        return _record(entry, self.path, start)

    def column(self, name):
        """Only `pid` differs between records, of the fields that the index knows."""
        if name == "pid":
            return self.index["pid"][:-1].tolist()
        alike = Record("synth-pedes", "train", "", 0)
        return [getattr(alike, name)] * len(self)


def _record(entry, path, start):
    """The Record of an entry. UserError, which names its place, if something is wrong with it."""
    where = f"{path}: the entry at byte {start}"
    captions = as_captions(entry.get("captions")) + as_captions(entry.get("prompt_caption"))
    record = Record("synth-pedes", "train", entry.get("file_path"), entry.get("id"),
                    captions=captions)
    if not record.path or not captions:
        raise UserError(f"{where} has no captions or no file_path; fetch it again")
    check_record(record, where)
    return record


def open_index(path):
    """The index of a JSON list, made in one pass and kept beside the file for the next opening."""
    kept = path.with_suffix(".index.npy")
    if kept.exists() and kept.stat().st_mtime >= path.stat().st_mtime:
        try:
            index = np.load(kept)
            if index["start"][-1] == path.stat().st_size:
                return index
        except (ValueError, EOFError, IndexError):  # cut off: made anew
            pass

    index = np.fromiter(_places(path), [("start", "i8"), ("pid", "i8")])
    try:
        with replacing(kept) as file:
            np.save(file, index)
    except UserError as error:
        print(f"note: {error}; the next opening reads all of {path.name} again", file=sys.stderr)
    return index


def _places(path):
    """Yields (byte at which it begins, pid) of each entry, then the end of the file.

    UserError if the list is cut off or no such list, or if an entry is wrong.
    """
    decode = json.JSONDecoder().raw_decode
    size = path.stat().st_size
    text = ""  # read, and not yet decoded
    passed = 0  # bytes before `text`
    bar = tqdm(total=size, desc=f"indexing {path.name}", unit="B", unit_scale=True,
               disable=size < PIECE)
    with open(path, "rb") as file, bar:
        while (piece := file.read(PIECE)) and len(text) <= 2 * PIECE:  # no entry is as long
            text += piece.decode("latin-1")  # one character per byte; JSON's own signs are ASCII
            end = 0
            while (brace := text.find("{", end)) >= 0:
                try:
                    entry, end = decode(text, brace)
                except (ValueError, RecursionError):  # it goes on in the next piece, or never ends
                    break
                start = passed + brace
                yield start, _record(entry, path, start).pid
            text = text[end:]
            passed += end
            bar.update(len(piece))

    if text.strip() != "]" or not passed:
        raise UserError(f"{path}: not a JSON list of entries, or cut off, after byte {passed}; "
                        "fetch it again")
    yield size, -1
