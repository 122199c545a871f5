"""Runs what a student wrote: fresh copies of the code, a process with limits, and its end.

What the process says is read as JSON and judged on this side; docs/teaching.md says what this
protects against, and what not.
"""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from extras.exercises import code
from extras.exercises.child import WALL

CHILD = Path(__file__).with_name("child.py")
START = 120  # seconds that importing torch may take
LARGEST = 2**20  # bytes of all answers
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of Linux
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/sys/devices/system/cpu")


def verdicts(texts, seconds):
    """{name of an exercise: {test: what is wrong, "" if nothing}}.

    texts: {Exercise: the text of its file}, each put into a copy of the code that is otherwise the
    project's. seconds: of a processor, for the tests of each.
    """
    with tempfile.TemporaryDirectory(prefix="grading-", ignore_cleanup_errors=True) as folder:
        tasks = []
        for exercise, text in texts.items():
            copy = Path(folder, exercise.name)
            code.copy(copy, [exercise])
            (copy / exercise.file).write_text(text, encoding="utf-8")
            tasks.append([exercise.name, str(copy), exercise.tests])
        answers = run(folder, tasks, seconds)
    return {each.name: verdict(answers.get(each.name), each.tests) for each in texts}


def run(folder, tasks, seconds):
    """What the process of a hand-out answers to [name, copy, tests] of each exercise: {name: any
    JSON}. Ends all that it started."""
    scratch = Path(folder, "tmp")
    scratch.mkdir()
    environment = {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment |= {"TMPDIR": str(scratch), "HOME": str(Path.home())}  # of this user's packages
    python = [sys.executable, "-P", "-B", "-c", CHILD.read_text(encoding="utf-8")]
    command = [*fence(folder, scratch), *python, json.dumps(tasks), str(seconds)]

    strangers = children()
    adopt_orphans(True)
    with tempfile.TemporaryFile() as answers:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=answers,
            start_new_session=True,
        )
        try:
            with suppress(subprocess.TimeoutExpired):
                process.wait(START + WALL * seconds * len(tasks))
        finally:
            end(process, strangers)
            adopt_orphans(False)
        answers.seek(0)
        return read(answers)


def read(file):
    """The answers in a file, {name: any JSON}; a student may have written anything between them."""
    answers = {}
    for line in file.read(LARGEST).splitlines():
        with suppress(ValueError, TypeError, RecursionError):
            answers.update(json.loads(line))
    return answers


def verdict(answer, tests):
    """{test: what is wrong, "" if nothing} of an answer, which may have any form."""
    if isinstance(answer, dict):
        words = {test: answer.get(test, "the test was not run") for test in tests}
        if all(isinstance(each, str) for each in words.values()):
            return words
    words = "the process that ran the tests ended without a result"
    if answer in (-signal.SIGALRM, -signal.SIGXCPU, -signal.SIGKILL):
        words = "the tests did not end in time, or took too much memory: look for an endless loop"
    elif type(answer) is int and -signal.NSIG < answer < 0:
        words = f"the process that ran the tests was ended by: {signal.strsignal(-answer)}"
    return dict.fromkeys(tests, words)


# ---- the end of all processes ----

def adopt_orphans(yes):
    """Makes those of our descendants that lose their parent children of ours, or no longer."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SUBREAPER, int(yes), 0, 0, 0)


def children():
    """The numbers of this process's children; on Linux, else none."""
    file = Path(f"/proc/self/task/{os.getpid()}/children")
    return set(map(int, file.read_text().split())) if file.exists() else set()


def end(process, strangers):
    """Ends the process with its group, and all children of ours but the strangers."""
    with suppress(ProcessLookupError, PermissionError):  # the whole group has ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    while left := children() - strangers:
        for pid in left:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


# ---- bubblewrap ----

@cache
def trouble_with_bwrap():
    """Why bwrap cannot be used here, or an empty text."""
    if not shutil.which("bwrap"):
        return "is not installed"
    command = ["bwrap", "--unshare-all", "--ro-bind", "/", "/", sys.executable, "-c", ""]
    done = subprocess.run(command, capture_output=True, text=True)
    return f"does not start here ({done.stderr.strip()})" if done.returncode else ""


def fence(folder, scratch):
    """The words before a command that make bwrap run it: it sees Python and the copies, both to
    read, a folder for temporary files, no network and no other processes. [] without bwrap."""
    if trouble_with_bwrap():
        return []
    words = [shutil.which("bwrap"), "--unshare-all", "--die-with-parent"]
    words += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
    libraries = [path for path in sys.path if path and Path(path).resolve() != code.ROOT]
    for path in (*SYSTEM, sys.prefix, sys.base_prefix, *libraries, folder):
        words += ["--ro-bind-try", path, path]
    return [*words, "--tmpfs", str(scratch), "--chdir", folder]
