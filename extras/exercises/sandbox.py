"""Runs what a student wrote: a copy of the code, a process with limits, and its end.

Everything that the process says is read as JSON and judged on this side; see docs/teaching.md for
what this protects against, and what not.
"""

import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

from extras.exercises import code
from reid.cli import UserError

CHILD = Path(__file__).with_name("child.py")
START = 120  # seconds that importing torch may take
LARGEST = 2**20  # bytes of an answer
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of Linux: who lost its parent becomes a child of ours
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/sys/devices/system/cpu")


class NoAnswer(Exception):
    """The process ended or was ended, and why, in a sentence for the student."""


class Sandbox:
    """One hand-out's copy of the code, and its process; `with` ends both."""

    def __init__(self, exercises, seconds):
        self.exercises = exercises
        self.seconds = seconds
        self.process = None

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="grading-", ignore_cleanup_errors=True)
        self.code = Path(self.folder.name, "code")
        self.scratch = Path(self.folder.name, "tmp")
        self.scratch.mkdir()
        code.copy(self.code, self.exercises)
        return self

    def __exit__(self, *_):
        self.end()
        self.folder.cleanup()

    def run(self, exercise, text):
        """{test: what is wrong, "" if nothing} of an exercise's tests, with `text` in place of its
        file; the other functions are the project's."""
        file = self.code / exercise.file
        try:
            file.write_text(text, encoding="utf-8")
            found = self.ask({"tests": exercise.tests, "seconds": self.seconds})
        except (NoAnswer, OSError) as error:
            self.end()
            return dict.fromkeys(exercise.tests, f"{error}")
        finally:
            file.write_text(code.original(exercise), encoding="utf-8")
        return judged(found, exercise.tests)

    def ask(self, task):
        """What the process answers to a task; NoAnswer or OSError without one in time."""
        if self.process is None:
            self.start()
        self.say(task)
        return self.hear(self.seconds)

    def start(self):
        """Starts the process in a session of its own, with nothing that names this repository."""
        environment = {
            "OMP_NUM_THREADS": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "TMPDIR": str(self.scratch),
        }
        python = [sys.executable, "-I", "-B", "-c", CHILD.read_text(encoding="utf-8")]
        become_subreaper()
        self.process = subprocess.Popen(
            [*fence(self.code, self.scratch), *python],
            cwd=self.code,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
        )
        self.say(libraries())
        try:
            self.hear(START)
        except NoAnswer as error:
            raise UserError(f"the process that runs hand-outs does not start: {error}") from error

    def say(self, message):
        self.process.stdin.write(json.dumps(message).encode() + b"\n")

    def hear(self, seconds):
        """The next line of JSON of the process; NoAnswer if none comes within `seconds`."""
        output = self.process.stdout.fileno()
        deadline = time.monotonic() + seconds
        line = b""
        while not line.endswith(b"\n"):
            left = max(0, deadline - time.monotonic())
            ready, _, _ = select.select([output], [], [], left)
            if not ready:
                raise NoAnswer(
                    f"it did not end within {seconds} seconds: look for an endless loop")
            chunk = os.read(output, LARGEST)
            line += chunk
            if not chunk or len(line) > LARGEST:
                raise NoAnswer("the process that ran the tests was ended, or said too much")
        try:
            return json.loads(line)
        except (ValueError, RecursionError) as error:
            raise NoAnswer("the process that ran the tests answered no JSON") from error

    def end(self):
        """Ends the process, its group, and whatever has left the group."""
        if self.process is None:
            return
        with suppress(ProcessLookupError, PermissionError):  # as all of them have ended
            os.killpg(self.process.pid, signal.SIGKILL)
        with self.process:
            self.process.kill()
        self.process = None
        end_children()


def judged(found, tests):
    """{test: what is wrong, "" if nothing} of an answer that may have any form."""
    if type(found) is int:
        words = f"the process ended with exit code {found} and without a result"
        if found < 0:
            words = f"the process was ended by {signal.strsignal(-found)}"
        if -found in (signal.SIGXCPU, signal.SIGKILL):
            words += ": look for an endless loop, or for too much memory"
        return dict.fromkeys(tests, words)

    verdict = {}
    for test in tests:
        words = found.get(test) if isinstance(found, dict) else None
        verdict[test] = words if isinstance(words, str) else "the test was not run"
    return verdict


# ---- the processes of a hand-out ----

def become_subreaper():
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)


def end_children():
    """Ends all children of this process, theirs too, until there are none (Linux)."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    while children.exists() and children.read_text():
        for pid in map(int, children.read_text().split()):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


# ---- bubblewrap ----

def libraries():
    """Where Python finds modules, without this repository."""
    return [path for path in sys.path if path and Path(path).resolve() != code.ROOT]


def fence(copy, scratch):
    """The words before a command that make bwrap run it: it sees Python and the copy, both to read,
    a folder for temporary files, no network and no other process. [] without bwrap."""
    if trouble_with_bwrap():
        return []
    words = ["bwrap", "--unshare-all", "--die-with-parent", "--proc", "/proc", "--dev", "/dev"]
    words += ["--tmpfs", "/tmp"]
    for path in (*SYSTEM, sys.prefix, sys.base_prefix, *libraries(), str(copy)):
        words += ["--ro-bind-try", path, path]
    return [*words, "--tmpfs", str(scratch), "--chdir", str(copy)]


@cache
def trouble_with_bwrap():
    """Why bwrap cannot be used here, or an empty text."""
    if not shutil.which("bwrap"):
        return "is not installed"
    command = ["bwrap", "--unshare-all", "--ro-bind", "/", "/", sys.executable, "-c", ""]
    done = subprocess.run(command, capture_output=True, text=True)
    return f"does not start here ({done.stderr.strip()})" if done.returncode else ""
