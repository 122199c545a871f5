"""Flags are the fields of a dataclass, a user's mistake is one line that says the fix."""

import argparse
import dataclasses
import difflib
import sys


class UserError(Exception):
    """A user's mistake in one line, which names the flag or file and says the fix; see `run`."""


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
    """Builds `config_class` from the command line; a bool becomes `--x/--no-x`, a
    tuple takes several words.

    UserError for a wrong value, and for an unknown flag with the nearest known one.
    """
    parser = _Parser(description=config_class.__doc__, allow_abbrev=False)
    for field in dataclasses.fields(config_class):
        _add(parser, field)

    args, unknown = parser.parse_known_args(argv)
    if unknown:
        raise _unknown_flag(parser, unknown[0])
    return config_class(**vars(args))


def _add(parser, field):
    """Adds a field of the dataclass to the parser, as a flag or by its place."""
    if field.default is dataclasses.MISSING:
        parser.add_argument(field.name, type=field.type, help=field.metadata["help"])
        return

    flag = "--" + field.name.replace("_", "-")
    if isinstance(field.default, bool):
        kind = {"action": argparse.BooleanOptionalAction}
    elif isinstance(field.default, tuple):
        kind = {"nargs": "+"}
    else:
        kind = {"type": field.type, "choices": field.metadata["choices"]}

    help = f"{field.metadata['help']} (default: {field.default})"
    parser.add_argument(flag, default=field.default, help=help, **kind)


def _unknown_flag(parser, given):
    flags = [flag for action in parser._actions for flag in action.option_strings]
    nearest = difflib.get_close_matches(given.split("=")[0], flags, n=1, cutoff=0)
    return UserError(f"unknown flag {given}; did you mean {nearest[0]}?")


def run(main, config_class):
    """Calls `main(config)` of the command line; a UserError ends in one line and exit code 2."""
    try:
        main(parse(config_class))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
