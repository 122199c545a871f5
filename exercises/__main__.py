"""The command line: `python -m exercises make --help`, `python -m exercises grade --help`."""

import sys

from exercises import grade, make
from reid import cli

COMMANDS = {
    "make": (make.main, make.Config),
    "grade": (grade.main, grade.Config),
}

if __name__ == "__main__":
    word = "".join(sys.argv[1:2])
    if word not in COMMANDS:
        print("error: python -m exercises make, or python -m exercises grade; --help lists the "
              "flags of each", file=sys.stderr)
        sys.exit(2)
    sys.argv[:2] = [f"-m exercises {word}"]  # what usage and errors call the program
    cli.run(*COMMANDS[word])
