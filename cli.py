"""The command line: flags are the fields of a dataclass, and a user's mistake is one line that says the fix."""

import argparse
import dataclasses
import difflib
import sys


class UserError(Exception):
    """A mistake of the user, in one line that names the flag or file and says the fix. `run` turns it into exit code 2."""


def option(default, help, choices=None):
    """A dataclass field that becomes the flag `--its-name` (underscores become dashes)."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


def argument(help):
    """A dataclass field without a default, which the command line takes by its place."""
    return dataclasses.field(metadata={"help": help})


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{message}; `python {self.prog} --help` lists the flags")


def parse(config_class, argv=None):
    """Builds `config_class` from the command line; a bool becomes `--x/--no-x`. Unknown flags are answered with the nearest."""
    parser = _Parser(description=config_class.__doc__, allow_abbrev=False)
    for field in dataclasses.fields(config_class):
        flag, default = "--" + field.name.replace("_", "-"), field.default
        if default is dataclasses.MISSING:
            parser.add_argument(field.name, type=field.type, help=field.metadata["help"])
            continue
        help = f"{field.metadata['help']} (default: {default})"
        if isinstance(default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=help)
        else:
            parser.add_argument(flag, type=field.type, default=default, choices=field.metadata["choices"], help=help)
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        near = difflib.get_close_matches(unknown[0].split("=")[0], flags, n=1, cutoff=0)
        raise UserError(f"unknown flag {unknown[0]}; did you mean {near[0]}?")
    return config_class(**vars(args))


def run(main, config_class):
    """Parses the command line and calls `main(config)`; a UserError ends in one line on stderr and exit code 2."""
    try:
        main(parse(config_class))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
