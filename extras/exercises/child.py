"""The process that runs the tests of one hand-out; sandbox.py starts it, inside the copy of the code.

It gets lines of JSON, first the search path of modules, then {"tests", "seconds"} for each
exercise. It answers each of these with a line: {test: what is wrong, "" if nothing}, or the exit
code of the process that should have answered. The code of the project, and so the student's, is
imported only in the fork that an exercise gets; torch takes seconds, and is imported once before.
"""

import json
import os
import resource
import sys

MEMORY = 4 * 2**30  # bytes that an exercise may take
ANSWER = 2**20  # the longest answer
FILE = 2**24  # the largest file


def main():
    """Answers the lines of stdin until there are no more. What is printed goes nowhere."""
    answers = open(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(nothing, stream)
    sys.path[:] = json.loads(sys.stdin.readline())

    import pytest  # noqa: F401
    import torch
    import einops.layers.torch  # noqa: F401
    import PIL.Image  # noqa: F401
    import safetensors.torch  # noqa: F401
    import tqdm  # noqa: F401
    torch.set_num_threads(1)

    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        print(answer(**json.loads(line)), file=answers, flush=True)


def answer(tests, seconds):
    """The JSON that the fork for an exercise wrote, or its exit code if it wrote nothing."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        set_limits(seconds)
        found = run(tests)
        os.write(write, json.dumps(found).encode())
        os._exit(0)
    os.close(write)
    with open(read, "rb") as file:
        text = file.read(ANSWER)
    _, status = os.waitpid(child, 0)
    text = text.decode(errors="replace").replace("\n", " ")
    return text or json.dumps(os.waitstatus_to_exitcode(status))


def set_limits(seconds):
    """Limits of this process: processor time, memory, the size of a file, no further process."""
    limits = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: FILE,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: 0,
    }
    if os.path.exists("/proc/self/statm"):  # the limit counts what torch has mapped already
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[0])
        limits[resource.RLIMIT_AS] = MEMORY + pages * resource.getpagesize()

    for limit, value in limits.items():
        _, most = resource.getrlimit(limit)
        if most != resource.RLIM_INFINITY:
            value = min(value, most)
        resource.setrlimit(limit, (value, value))


def run(tests):
    """{test: what is wrong, "" if nothing} of the tests, run by pytest in this process."""
    import pytest
    sys.path.insert(0, os.getcwd())
    report = Report()
    options = ["-s", "--tb=short", "-p", "no:cacheprovider"]
    end = pytest.main([*options, *tests], plugins=[report])
    if report.broken or end not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        words = report.broken or "the tests did not run to their end: look for pytest.exit"
        return dict.fromkeys(tests, words)
    return report.found


class Report:
    """A plugin of pytest that keeps, for each test function, the first line of its first failure."""

    def __init__(self):
        self.found = {}
        self.broken = ""  # what no test can be run for

    def pytest_collectreport(self, report):
        if report.failed:
            self.broken = str(report.longrepr).strip().splitlines()[-1].removeprefix("E  ").strip()

    def pytest_runtest_logreport(self, report):
        test = report.nodeid.partition("[")[0]  # all cases of a test count as one
        if report.passed:
            if report.when == "call":
                self.found.setdefault(test, "")
        elif not self.found.get(test):
            self.found[test] = first_line(report)


def first_line(report):
    """Of a test that failed or was skipped: our assertion messages are sentences."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is None:
        return "the test was skipped"
    lines = crash.message.strip().splitlines() or [""]
    return lines[0].removeprefix("AssertionError: ") or "the test fails"


if __name__ == "__main__":
    main()
