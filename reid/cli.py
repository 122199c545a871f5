"""Flags are the fields of a dataclass, a user's mistake is one line that says the fix.

Whatever ends a command early ends it in one line: `run`.
"""

import argparse
import dataclasses
import difflib
import inspect
import math
import os
import signal
import sys

from tqdm import tqdm

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, kill, a closed terminal
QUIET = 30  # seconds between the lines that progress writes into a log file


class UserError(Exception):
    """A user's mistake in one line, which names the flag or file and says the fix; see `run`."""


class Interrupted(KeyboardInterrupt):
    """A signal that asks the program to end, and the line that is said of it; see `run`."""

    def __init__(self, number, message):
        super().__init__(message)
        self.number = number


def option(
    default, help, choices=None, least=-math.inf, most=2**63 - 1, group=None, rest=False
):
    """A dataclass field that becomes the flag `--its-name` (underscores become dashes).

    least, most: of a number, both allowed; torch counts no further than the default.
    group: --help begins a group of that name here. rest: of a tuple, it takes all the words that
    follow, those that begin with a dash too.
    """
    metadata = {"help": help, "choices": choices, "least": least, "most": most}
    metadata |= {"group": group, "rest": rest}
    return dataclasses.field(default=default, metadata=metadata)


def argument(help):
    """A dataclass field without a default, which the command line takes by its place."""
    return dataclasses.field(metadata={"help": help})


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{message}; `python {self.prog} --help` lists the flags")


def parse(config_class, argv=None):
    """Builds `config_class` from the command line; a bool becomes `--x/--no-x`, a
    tuple takes several words.

    --help begins with the first paragraph of the class's docstring and ends with the others, its
    examples. config_class.presets, if it has them: {name: {flag: the value that None stands for}}.
    UserError for a wrong value, and for an unknown flag with the nearest known one.
    """
    description, _, examples = inspect.getdoc(config_class).partition("\n\n")
    parser = _Parser(
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    presets = getattr(config_class, "presets", {})
    group = parser
    for field in dataclasses.fields(config_class):
        if field.metadata.get("group"):
            group = parser.add_argument_group(field.metadata["group"])
        _add(group, field, presets)

    args, unknown = parser.parse_known_args(argv)
    if unknown:
        raise _unknown_flag(parser, unknown[0])
    for field in dataclasses.fields(config_class):
        value = getattr(args, field.name)
        wanted = "no empty text" if value == "" else _wanted(field, value)
        if wanted:
            flag = "--" + field.name.replace("_", "-")
            raise UserError(f"{flag} {value}: must be {wanted}")
    return config_class(**vars(args))


def words_of(config, config_class, left_out=()):
    """The command line of a config: the flags of `config_class` that differ from its defaults."""
    words = []
    for field in dataclasses.fields(config_class):
        value = getattr(config, field.name)
        if value == field.default or field.name in left_out:
            continue
        flag = field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words.append(f"--{flag}={value}")
    return words


def restore(config_class, values, path, chosen=()):
    """`config_class` of values that came from a file; chosen: names that None is no value of.

    UserError, which names `path`, for what no command line could have given.
    """
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    odd = sorted(values.keys() ^ fields.keys(), key=str)
    if odd:
        state = "is not known" if odd[0] in values else "is missing"
        raise UserError(f"{path}: config.{odd[0]} {state}; take a file of this version")

    for name, value in values.items():
        wanted = _wanted(fields[name], value, name in chosen)
        if wanted:
            raise UserError(f"{path}: config.{name} is {value!r:.60}, must be {wanted}")
    return config_class(**values)


def _wanted(field, value, chosen=False):
    """What the value of an `option` must be, if it is something else."""
    if value is None and field.default is None and not chosen:
        return None
    kinds = {float: (int, float), tuple: (tuple, list)}.get(field.type, (field.type,))
    choices = field.metadata.get("choices")
    if type(value) not in kinds:
        return f"of type {field.type.__name__}"
    if choices and value not in choices:
        return f"one of {', '.join(choices)}"
    if field.type not in (int, float):
        return None

    least = field.metadata["least"]
    most = field.metadata["most"]
    if not math.isfinite(value):
        return "a finite number"
    if value < least:
        return f"at least {least}"
    if value > most:
        return f"at most {most}"
    return None


def folder_name(name):
    """The name of a folder or of one in it, `a` or `a/b`, as it was given. UserError unless it is
    one: it leads nowhere else, and is not too long."""
    for part in name.split("/"):
        if part in ("", ".", "..") or not part.isprintable() or len(part.encode()) > 200:
            raise UserError(
                f"--name {name!a:.60}: give a name of at most 200 bytes, or two with a / between"
            )
    return name


def _add(parser, field, presets):
    """Adds a field of the dataclass to the parser, as a flag or by its place."""
    if field.default is dataclasses.MISSING:
        kind = {"nargs": "+"} if field.type is list else {"type": field.type}
        parser.add_argument(field.name, **kind, help=field.metadata["help"])
        return

    flag = "--" + field.name.replace("_", "-")
    if isinstance(field.default, bool):
        kind = {"action": argparse.BooleanOptionalAction}
    elif isinstance(field.default, tuple):
        kind = {"nargs": argparse.REMAINDER if field.metadata["rest"] else "+"}
    else:
        kind = {"type": field.type, "choices": field.metadata["choices"]}

    help = f"{field.metadata['help']} ({_default(field, presets)})"
    parser.add_argument(flag, default=field.default, help=help, **kind)


def _default(field, presets):
    """What a flag is if it is not given: `default: 0.1`, or `toy: tiny; paper: base`."""
    given = {name: preset[field.name] for name, preset in presets.items() if field.name in preset}
    if field.default is not None or not given:
        return f"default: {field.default}"
    values = [f"{name}: {'none' if value == '' else value}" for name, value in given.items()]
    return "; ".join(values)


def _unknown_flag(parser, given):
    flags = [flag for action in parser._actions for flag in action.option_strings]
    nearest = difflib.get_close_matches(given.split("=")[0], flags, n=1, cutoff=0)
    return UserError(f"unknown flag {given}; did you mean {nearest[0]}?")


# ---- running ----

def run(main, config_class):
    """Calls `main(config)` of the command line.

    A UserError, and what the system refuses, end in one line and exit code 2; SIGINT, SIGTERM and
    SIGHUP in one line and 128 + their number.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        on_signals(leaving("interrupted"))
        main(parse(config_class))
        sys.stdout.flush()
        return
    except UserError as error:
        line, code = f"error: {error}", 2
    except Interrupted as error:
        line, code = str(error), 128 + error.number
    except OSError as error:  # a closed output, a full disk, no permission
        sys.stdout = open(os.devnull, "w")  # else the exit would try once more to write
        line, code = f"error: {error.filename or 'output'}: {error.strerror or error}", 2
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    print(line, file=sys.stderr)
    sys.exit(code)


def on_signals(handler):
    """Calls handler(number, frame) on those of SIGNALS that are not ignored, as nohup asks for."""
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def leaving(message):
    """A handler for `on_signals` that ends the program with this line."""
    def handler(number, frame):
        raise Interrupted(number, message)
    return handler


def leave_signals_to_parent():
    """What a worker process begins with: it ends when its parent says so."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def progress(items, title, **options):
    """A tqdm bar; where it goes into a file, a line every half minute instead."""
    if not sys.stderr.isatty():
        lines = "{desc}: {n_fmt} of {total_fmt}, {elapsed}, {remaining} to go{postfix}\n"
        options |= {"bar_format": lines, "mininterval": QUIET, "miniters": 1, "delay": QUIET}
    return tqdm(items, title, **options)
