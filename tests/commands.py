"""Commands as a user gives them, in this process or in one of their own."""

import os
import subprocess
import sys
from pathlib import Path

from reid import cli

ROOT = Path(__file__).parents[1]
FAST = ("--ids", "4", "--images", "4", "--warmup", "5")


def call(module, *flags):
    """The exit code of a command in this process."""
    before = sys.argv
    sys.argv = [f"{module.__name__}.py", *map(str, flags)]
    try:
        cli.run(module.main, module.Config)
    except SystemExit as stop:
        return stop.code
    finally:
        sys.argv = before
    return 0


def start(folder, *words):
    """`python WORDS` in a folder, as a process whose stderr can be read."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def output(result):
    """stdout of (exit code, stdout, stderr) of a command that succeeded."""
    code, out, err = result
    assert code == 0, err
    return out


def one_line(result, *words):
    """(exit code, stdout, stderr) of a command that ended in one line with these words."""
    code, _, err = result
    line = err.strip().splitlines()[-1]
    assert code == 2 and line.startswith("error: ") and "Traceback" not in err, err
    for word in words:
        assert str(word) in line, line


class Payload:
    """Pickled, it creates a file named `executed` when it is read."""

    def __reduce__(self):
        return os.system, ("touch executed",)


def recipe(title, language="python"):
    """The block of code in that section of docs/recipes.md."""
    page = (ROOT / "docs/recipes.md").read_text()
    _, _, section = page.partition(f"\n## {title}\n")
    return section.split(f"```{language}\n")[1].split("```")[0]
