"""Files: written whole or not at all, by one process at a time; JSON that is what it should be."""

import errno
import hashlib
import json
import math
import os
import shutil
import stat
from contextlib import contextmanager
from pathlib import Path

from reid.cli import UserError, user_error

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


# ---- writing ----

def writing(path):
    """Inside, what the disk refuses becomes a UserError that names `path`: full, no permission."""
    fix = "make room or name a place that takes it, what was there is untouched"
    return user_error(f"cannot write {path}", fix, (OSError, RuntimeError))


@contextmanager
def replacing(path):
    """A binary file to write into, which takes the place of `path`, or of what the link `path`
    names, when all of it is on the disk.

    UserError as `writing`; a crash or a full disk leaves the previous file as it was.
    """
    with writing(path):
        target = followed(path)
        part = target.with_name(f"{target.name}.part")
        try:
            with open(part, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)


def followed(path):
    """The Path that a path, or the link that it is, names; nothing need be there. OSError for a
    link to itself."""
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return target


@contextmanager
def creating(out):
    """An empty folder to write into, which becomes the folder `out` when all is in it.

    out: absent, an empty folder, or a link to either. UserError as `writing`, and where another
    process is filling it; what fails leaves nothing, and what a killed process left is removed.
    """
    with writing(out):
        target = followed(out)
        part = target.with_name(f".{target.name}.part")
        if part.exists():
            lock(part)
            shutil.rmtree(part)
        part.mkdir(parents=True)
        held = lock(part)
        try:
            yield part
            held.close()
            os.remove(held.name)
            part.replace(target)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def write_text(path, text):
    """Writes a text file in UTF-8, as `replacing` does."""
    with replacing(path) as file:
        file.write(text.encode())


def lock(folder):
    """Makes this process the only one that writes a folder, until it ends in whatever way.

    UserError if another one does. Returns the lock, which lasts no longer than it is referred to.
    """
    with writing(folder):
        file = open(Path(folder) / ".lock", "a+")  # not "w": it would empty what a link names
    if fcntl is None:
        return file
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # loader processes do not inherit it
    except BlockingIOError as error:
        raise UserError(
            f"{folder} is being written by another process: wait for its end, or stop it"
        ) from error
    except OSError:  # a file system without locks
        pass
    return file


# ---- reading ----

def check_file(path, fix):
    """UserError, `path: what it is; fix`, unless the path is that of a file. Nothing is opened: a
    named pipe would be waited for."""
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except (OSError, ValueError) as error:  # not there, a link to itself, a name that cannot be
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path}: {reason.lower()}; {fix}") from error
    if kind != stat.S_IFREG:
        found = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe"}.get(kind, "a device")
        raise UserError(f"{path}: {found}, not a file; {fix}")


def digest_of(path):
    """The SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_text(path, fix):
    """What a file in UTF-8 holds. UserError, `path: what is wrong; fix`, if it cannot be read."""
    check_file(path, fix)
    with user_error(f"{path}: not UTF-8", fix, UnicodeDecodeError):
        return Path(path).read_text(encoding="utf-8-sig")


def read_json(path, kind, fix):
    """What a JSON file holds; the rest as in parse_json."""
    return parse_json(read_text(path, fix), kind, path, fix)


def parse_json(text, kind, where, fix):
    """What JSON text holds: a list or dict, as `kind` says, in which every number is finite.

    UserError, `where: what is wrong; fix`, for all else.
    """
    with user_error(f"{where}: not valid JSON", fix, (ValueError, RecursionError)):
        content = json.loads(text, parse_int=_finite, parse_float=_finite, parse_constant=_finite)
    if not isinstance(content, kind):
        found = type(content).__name__
        raise UserError(f"{where}: holds a {found}, expected a {kind.__name__}; {fix}")
    return content


def _finite(word):
    """The int or float; ValueError for NaN, Infinity, 1e999 and integers as large."""
    number = float(word)
    if not math.isfinite(number):
        raise ValueError(f"{word:.20} is not a finite number")
    return int(word) if word.lstrip("-").isdigit() else number
