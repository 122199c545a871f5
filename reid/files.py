"""Files: atomic writing, by one process at a time; checked reading of JSON."""

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
    """A context in which errors of the disk, such as a full one, become a UserError."""
    fix = "make room or name another place; earlier content is unchanged"
    return user_error(f"cannot write {path}", fix, (OSError, RuntimeError))


@contextmanager
def replacing(path):
    """A binary file to write into, which replaces `path`, or the target of the link `path`, when it
    is completely on disk."""
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
    """The path, or the target if it is a link; neither need exist. OSError for a link to itself."""
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return target


@contextmanager
def creating(out):
    """An empty folder to write into, which becomes the folder `out` at the end.

    out: absent, an empty folder, or a link to either. After an error no folder remains; that of a
    killed process is removed.
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
    """Writes a text file in UTF-8, atomically as in `replacing`."""
    with replacing(path) as file:
        file.write(text.encode())


def lock(folder):
    """Locks a folder for writing by this process, at most until it ends. Returns the lock, which is
    released when it is no longer referenced."""
    with writing(folder):
        file = open(Path(folder) / ".lock", "a+")  # not "w", which would empty the target of a link
    if fcntl is None:
        return file
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # loader processes do not inherit it
    except BlockingIOError as error:
        fix = "wait until it ends, or stop it"
        raise UserError(f"{folder} is being written by another process: {fix}") from error
    except OSError:  # a file system without locks
        pass
    return file


# ---- reading ----

def check_file(path, fix):
    """UserError, `path: what it is; fix`, unless the path is that of a regular file. It is not
    opened, since a named pipe would block."""
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except (OSError, ValueError) as error:  # absent, a link to itself, an impossible name
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
    """The text of a UTF-8 file. UserError, `path: what is wrong; fix`, if it cannot be read."""
    check_file(path, fix)
    with user_error(f"{path}: cannot be read as UTF-8", fix, (OSError, UnicodeDecodeError)):
        return Path(path).read_text(encoding="utf-8-sig")


def read_json(path, kind, fix):
    """The content of a JSON file; arguments as in parse_json."""
    return parse_json(read_text(path, fix), kind, path, fix)


def parse_json(text, kind, where, fix):
    """The content of JSON text, of type `kind` (list or dict), with finite numbers only. Otherwise
    UserError, `where: what is wrong; fix`."""
    with user_error(f"{where}: not valid JSON", fix, (ValueError, RecursionError)):
        content = json.loads(text, parse_int=_finite, parse_float=_finite, parse_constant=_finite)
    if not isinstance(content, kind):
        found = type(content).__name__
        raise UserError(f"{where}: holds a {found}, expected a {kind.__name__}; {fix}")
    return content


def _finite(text):
    """The int or float; ValueError for NaN, Infinity, 1e999 and integers that large."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text:.20} is not a finite number")
    return int(text) if text.lstrip("-").isdigit() else number
