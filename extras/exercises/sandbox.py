"""Runs student code: fresh copies of the project, and a process with limits.

The output of the process is read as JSON and checked; docs/teaching.md says what this protects
against, and what not.
"""

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
from reid import files
from reid.cli import UserError

CHILD = Path(__file__).with_name("child.py")
START = 120  # seconds for importing torch
LARGEST = 2**20  # bytes of all answers
PREFIX = "reid-grading-"  # of temporary folders
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/sys/devices/system/cpu")


def verdicts(texts, seconds):
    """{name of an exercise: {test: message, "" if it passes}}.

    texts: {Exercise: text of its file}, each tested in its own copy of the project. seconds: of CPU
    time, for the tests of each.
    """
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as folder:
        held = files.lock(folder)  # noqa: F841  until the end
        tasks = []
        for exercise, text in texts.items():
            copy = Path(folder, exercise.name)
            code.copy(copy, [exercise])
            (copy / exercise.file).write_text(text, encoding="utf-8")
            tasks.append([exercise.name, str(copy), exercise.tests])
        answers = run(folder, tasks, seconds)
    return {each.name: verdict(answers.get(each.name), each.tests) for each in texts}


def remove_leftovers():
    """Removes the folders of graders that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            continue
        with suppress(UserError):  # still in use
            files.lock(folder)
            shutil.rmtree(folder, ignore_errors=True)


def run(folder, tasks, seconds):
    """The answers {name: any JSON} of the process of a hand-out to [name, copy, tests] of each
    exercise. Kills its process group at the end."""
    scratch = Path(folder, "tmp")
    scratch.mkdir()
    environment = {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment |= {"TMPDIR": str(scratch), "HOME": str(Path.home())}  # for the user's packages
    python = [sys.executable, "-P", "-B", "-c", CHILD.read_text(encoding="utf-8")]
    command = [*fence(folder, scratch), *python, json.dumps(tasks), str(seconds)]

    with tempfile.TemporaryFile() as answers:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=answers,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            with suppress(subprocess.TimeoutExpired):
                process.wait(START + WALL * seconds * len(tasks))
        finally:
            with suppress(ProcessLookupError, PermissionError):  # the whole group has ended
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        answers.seek(0)
        return read(answers)


def read(file):
    """The answers in a file, {name: any JSON}; a student may have written anything else into it."""
    answers = {}
    for line in file.read(LARGEST).splitlines():
        with suppress(ValueError, TypeError, RecursionError):
            answers.update(json.loads(line))
    return answers


def verdict(answer, tests):
    """{test: message, "" if it passes} of an answer, which may have any form."""
    if isinstance(answer, dict):
        messages = {test: answer.get(test, "the test was not run") for test in tests}
        if all(isinstance(each, str) for each in messages.values()):
            return messages
    message = "the process that ran the tests ended without a result"
    if answer in (-signal.SIGALRM, -signal.SIGXCPU, -signal.SIGKILL):
        message = "the tests took too long or too much memory: look for an endless loop"
    elif type(answer) is int and -signal.NSIG < answer < 0:
        message = f"the process that ran the tests was ended by: {signal.strsignal(-answer)}"
    return dict.fromkeys(tests, message)


# ---- bubblewrap ----

@cache
def trouble_with_bwrap():
    """Why bwrap cannot be used, or "" if it can."""
    if not shutil.which("bwrap"):
        return "is not installed"
    command = ["bwrap", "--unshare-all", "--ro-bind", "/", "/", sys.executable, "-c", ""]
    done = subprocess.run(command, capture_output=True, text=True)
    return f"does not start here ({done.stderr.strip()})" if done.returncode else ""


def fence(folder, scratch):
    """The start of a command line that runs a command in bwrap: it can read Python and the copies,
    has a folder for temporary files, no network and no other processes. [] without bwrap."""
    if trouble_with_bwrap():
        return []
    command = [shutil.which("bwrap"), "--unshare-all", "--die-with-parent"]
    command += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
    libraries = [path for path in sys.path if path and Path(path).resolve() != code.ROOT]
    for path in (*SYSTEM, sys.prefix, sys.base_prefix, *libraries, folder):
        command += ["--ro-bind-try", path, path]
    return [*command, "--tmpfs", str(scratch), "--chdir", folder]
