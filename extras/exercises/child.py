"""The process that runs the tests of a hand-out; sandbox.py starts it, with the text of this file.

Arguments: JSON of [name, copy of the code, tests] for each exercise, and the CPU seconds for each.
Output, into a file: a line of JSON for each, {name: {test: message, "" if it passes}}, or {name:
exit code} if the process ended early. torch takes seconds to import, so it is imported once; the
project's code, and so the student's, only in the fork for an exercise. A fork can only answer for
its own exercise: it cannot write to stdout, and changes in another copy are noticed.
"""

import ctypes
import gc
import hashlib
import json
import os
import resource
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

MEMORY = 4 * 2**30  # bytes for an exercise
FILE = 2**24  # bytes of the largest file
ANSWER = 2**16  # bytes
PR_SET_DUMPABLE = 4  # from Linux's sys/prctl.h
WALL = 6  # real seconds per CPU second, for busy machines


def main(tasks, seconds):
    answers = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    import einops.layers.torch  # noqa: F401
    import PIL.Image  # noqa: F401
    import pytest  # noqa: F401
    import torch

    torch.set_num_threads(1)
    gc.freeze()  # faster, as pytest collects garbage twice
    for stream in (1, 2):  # from here on, output is discarded
        os.dup2(nothing, stream)

    if sys.platform == "linux":  # other processes of the user cannot open its files
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0)
    grader = os.getppid()
    digests = {name: digest_of(copy) for name, copy, _ in tasks}
    for name, copy, tests in tasks:
        if os.getppid() != grader:  # it was killed
            return
        with tempfile.TemporaryFile() as file:
            child = os.fork()
            if not child:
                os.close(answers)
                set_limits(seconds)
                answer = run(copy, tests) if digest_of(copy) == digests[name] else None
                write(file.fileno(), answer)
                os._exit(0)
            _, status = os.waitpid(child, 0)
            file.seek(0)
            answer = os.waitstatus_to_exitcode(status)
            if not status:
                with suppress(ValueError, RecursionError):
                    answer = json.loads(file.read(ANSWER))
        write(answers, {name: answer})


def digest_of(folder):
    """A digest of the names and contents of all files."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        digest.update(f"{path} {len(content)}".encode() + content)
    return digest.digest()


def write(file, answer):
    os.write(file, f"\n{json.dumps(answer)}\n".encode())


def set_limits(seconds):
    """Limits time, memory and file size of this process; it may not start others."""
    limits = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: FILE,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: 0,
    }
    if os.path.exists("/proc/self/statm"):  # the limit includes what torch has already mapped
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[0])
        limits[resource.RLIMIT_AS] = MEMORY + pages * resource.getpagesize()
    for limit, value in limits.items():
        _, most = resource.getrlimit(limit)
        if most != resource.RLIM_INFINITY:
            value = min(value, most)
        resource.setrlimit(limit, (value, value))
    signal.alarm(WALL * seconds)  # ends processes that sleep


def run(copy, tests):
    """{test: message, "" if it passes}, by pytest in this process."""
    import pytest
    os.chdir(copy)
    sys.path.insert(0, copy)
    report = Report()
    options = ["-s", "--tb=short", "-p", "no:cacheprovider"]
    end = pytest.main([*options, *tests], plugins=[report])
    if report.broken or end not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        message = report.broken or "the tests did not run to the end"
        return dict.fromkeys(tests, message)
    return report.found


class Report:
    """A pytest plugin that keeps the first line of the first failure of each test function."""

    def __init__(self):
        self.found = {}
        self.broken = ""  # why no test can run

    def pytest_collectreport(self, report):
        if report.failed:
            lines = str(report.longrepr).strip().splitlines()
            self.broken = lines[-1].removeprefix("E").strip()

    def pytest_runtest_protocol(self, item):
        """Skips further cases of a test that has failed."""
        return bool(self.found.get(function_of(item))) or None

    def pytest_runtest_logreport(self, report):
        test = function_of(report)
        if report.passed and report.when == "call":
            self.found.setdefault(test, "")
        if not report.passed and not self.found.get(test):
            self.found[test] = first_line(report)


def function_of(item):
    """The test function of a case."""
    return item.nodeid.partition("[")[0]


def first_line(report):
    """The message of a failed or skipped test; our assertion messages are sentences."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is None:
        return "the test was skipped"
    lines = crash.message.removeprefix("AssertionError: ").strip().splitlines()
    return lines[0][:300] if lines else "the test fails"


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), int(sys.argv[2]))
