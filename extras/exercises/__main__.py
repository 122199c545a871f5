"""The command line: `python -m extras.exercises make --help`, the same for `grade`."""

import os
import sys

from extras.exercises import grade, make
from reid import cli

COMMANDS = {"make": make, "grade": grade}


def open_closed_streams():
    """Where the caller closed stdin, stdout or stderr (`2>&-`), what is written there is dropped.

    Otherwise the next file that is opened takes its number, and receives the messages.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # it takes the lowest free number, this one
            os.set_inheritable(opened, True)
    sys.stdout = sys.stdout or open(os.devnull, "w")
    sys.stderr = sys.stderr or open(os.devnull, "w")


if __name__ == "__main__":
    open_closed_streams()
    name = "".join(sys.argv[1:2])
    if name not in COMMANDS:
        print("error: python -m extras.exercises make, or python -m extras.exercises grade; "
              "--help lists the flags of each", file=sys.stderr)
        sys.exit(2)
    sys.argv[:2] = [f"-m extras.exercises {name}"]  # what usage and errors call the program
    cli.run(COMMANDS[name].main, COMMANDS[name].Config)
