"""SYNTH-PEDES: 4.8 million entries in one JSON list, of which an index knows where each begins."""

import json
import os
from array import array
from warnings import warn

import numpy as np
from tqdm import tqdm

from reid.cli import UserError
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
        return _record(entry, f"{self.path}: the entry at byte {start}")

    def column(self, name):
        """Only `pid` differs between records, of the fields that the index knows."""
        if name == "pid":
            return self.index["pid"][:-1].tolist()
        alike = Record("synth-pedes", "train", "", 0)
        return [getattr(alike, name)] * len(self)


def _record(entry, where):
    """The Record of an entry. UserError, which names `where`, if something is wrong with it."""
    captions = as_captions(entry.get("captions", []), where)
    captions += as_captions(entry.get("prompt_caption", []), where)
    file = entry.get("file_path")
    if not captions or not isinstance(file, str):
        raise UserError(f"{where} has no captions or no file_path; fetch it again")
    record = Record("synth-pedes", "train", file, entry.get("id"), captions=captions)
    check_record(record, where)
    return record


def open_index(path):
    """The index of a JSON list, made in one pass and kept beside the file for the next opening."""
    kept = path.with_suffix(".index.npy")
    size = path.stat().st_size
    if kept.exists() and kept.stat().st_mtime >= path.stat().st_mtime:
        try:
            index = np.load(kept)
            if index["start"][-1] == size:
                return index
        except (ValueError, EOFError, IndexError):  # cut off: made anew
            pass

    index = make_index(path, size)
    try:
        _keep(index, kept)
    except OSError as error:
        warn(f"{kept} cannot be written ({error.strerror}): "
             f"the next opening reads all of {path.name} again")
    return index


def _keep(index, kept):
    part = kept.with_name(f"{kept.name}.{os.getpid()}")  # several processes may be at it
    try:
        with open(part, "wb") as file:
            np.save(file, index)
        os.replace(part, kept)
    finally:
        part.unlink(missing_ok=True)


def make_index(path, size):
    """Reads the list piece by piece.

    UserError if it is cut off or no such list, or if an entry is wrong.
    """
    starts = array("q")
    pids = array("q")
    text = ""  # read, and not yet decoded
    passed = 0  # bytes before `text`
    bar = tqdm(total=size, desc=f"indexing {path.name}", unit="B", unit_scale=True,
               disable=size < PIECE)
    with open(path, "rb") as file, bar:
        while piece := file.read(PIECE):
            text += piece.decode("latin-1")  # one character per byte; JSON's own signs are ASCII
            end = 0
            for brace, end, entry in _whole_entries(text):
                record = _record(entry, f"{path}: the entry at byte {passed + brace}")
                starts.append(passed + brace)
                pids.append(record.pid)

            text = text[end:]
            passed += end
            if len(text) > 2 * PIECE:  # no entry is as long
                break
            bar.update(len(piece))

    if text.strip() != "]" or not starts:
        raise UserError(f"{path}: not a JSON list of entries, or cut off, after byte {passed}; "
                        "fetch it again")

    index = np.empty(len(starts) + 1, [("start", "i8"), ("pid", "i8")])
    index["start"][:-1] = starts
    index["pid"][:-1] = pids
    index[-1] = (size, -1)
    return index


def _whole_entries(text):
    """Yields (place where it begins, where it ends, entry) of those that are whole."""
    decode = json.JSONDecoder().raw_decode
    brace = text.find("{")
    while brace >= 0:
        try:
            entry, end = decode(text, brace)
        except (ValueError, RecursionError):  # it goes on in the next piece, or never ends
            return
        yield brace, end, entry
        brace = text.find("{", end)
