"""The command line: `python -m extras.exercises make --help`, the same for `grade`."""

import sys

from extras.exercises import grade, make
from reid import cli

COMMANDS = {"make": make, "grade": grade}

if __name__ == "__main__":
    name = "".join(sys.argv[1:2])
    if name not in COMMANDS:
        print("error: python -m extras.exercises make, or python -m extras.exercises grade; "
              "--help lists the flags of each", file=sys.stderr)
        sys.exit(2)
    sys.argv[:2] = [f"-m extras.exercises {name}"]  # what usage and errors call the program
    cli.run(COMMANDS[name].main, COMMANDS[name].Config)
