"""Writing files: whole or not at all, by one process at a time, and a full disk in one line."""

import fcntl
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

from reid.cli import UserError


@contextmanager
def writing(path):
    """Inside, what the disk refuses becomes a UserError that names `path`: full, no permission."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch hides what the disk said behind its own error
        cause = error if isinstance(error, OSError) else error.__context__
        reason = getattr(cause, "strerror", None) or error
        raise UserError(
            f"cannot write {path}: {reason}; make room or name a place that takes it, "
            "what was there is untouched"
        ) from error


@contextmanager
def replacing(path):
    """A binary file to write into, which takes the place of `path` when all of it is on the disk.

    UserError as `writing`; a crash or a full disk leaves the previous file as it was.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    with writing(path):
        try:
            with open(part, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def filling(out):
    """An empty folder to write into, which becomes the folder `out` when all is in it.

    out: a Path, absent or an empty folder. UserError as `writing`; what fails leaves nothing.
    """
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        try:
            yield partial
            partial.chmod(0o755)  # mkdtemp's folders are private
            partial.replace(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def write_text(path, text):
    """Writes a text file, as `replacing` does."""
    with replacing(path) as file:
        file.write(text.encode())


def lock(folder):
    """Makes this process the only one that writes a run, until it ends in whatever way.

    UserError if another one does. Returns the lock, which lasts no longer than it is referred to.
    """
    with writing(folder):
        file = open(Path(folder) / ".lock", "w")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # loader processes do not inherit it
    except BlockingIOError as error:
        raise UserError(
            f"{folder} is being written by another process: wait for its end, or stop it"
        ) from error
    except OSError:  # a file system without locks
        pass
    return file
