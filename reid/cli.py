"""Command lines: flags from a dataclass; errors and signals end a command with one line."""

import argparse
import ctypes
import dataclasses
import difflib
import inspect
import io
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tqdm import tqdm

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Ctrl-C, kill, a closed terminal (Windows has no SIGHUP)
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))
LARGEST = {int: 2**63 - 1, float: sys.float_info.max}  # what torch and JSON can hold
PR_SET_PDEATHSIG = 1  # from Linux's sys/prctl.h
KILLED = "DataLoader worker (pid"  # begins what torch says, at any moment, of a killed worker
QUIET = 30  # seconds between the lines that progress writes into a log file


class UserError(Exception):
    """A user's mistake, in one line that names the flag or file and the fix; see `run`."""


@contextmanager
def user_error(problem, fix, kinds=Exception):
    """A context in which an error of these kinds becomes the UserError `problem (the error); fix`,
    except that a package is not installed."""
    try:
        yield
    except (UserError, ModuleNotFoundError):
        raise
    except kinds as error:
        system = error if isinstance(error, OSError) else error.__context__  # torch hides it
        reason = getattr(system, "strerror", None) or " ".join(str(error).split())[:300]
        raise UserError(f"{problem} ({reason}); {fix}") from error


class Interrupted(KeyboardInterrupt):
    """(number of a signal that ends the program, the line to print then); see `run`."""


class Stopped(KeyboardInterrupt):
    """Ends a wait; see `Stops`."""


# ---- flags ----

def option(default, help, choices=None, least=-math.inf, most=math.inf, group=None, rest=False):
    """A dataclass field that becomes the flag `--its-name` (underscores become dashes).

    least, most: inclusive limits of a number. group: --help begins a group of that name here.
    rest: a tuple that gets all following arguments, even those that begin with a dash.
    """
    metadata = dict(help=help, choices=choices, least=least, most=most, group=group, rest=rest)
    return dataclasses.field(default=default, metadata=metadata)


def argument(help):
    """A dataclass field without a default, for a positional argument."""
    return dataclasses.field(metadata={"help": help})


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{message}; `python {self.prog} --help` lists the flags")


def parse(config_class, argv=None):
    """Builds `config_class` from the command line. A bool becomes `--x/--no-x`; a tuple takes
    several arguments.

    --help begins with the first paragraph of the class's docstring and ends with the others, its
    examples. config_class.presets, if any: {name: {flag: the value that replaces None}}.
    """
    description, _, examples = inspect.getdoc(config_class).partition("\n\n")
    form = argparse.RawDescriptionHelpFormatter
    program = None  # argparse knows the name of a script, but not of a module
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec and config_class.__module__ == "__main__":
        program = f"-m {spec.name.removesuffix('.__main__')}"
    parser = _Parser(program, description=description, epilog=examples, formatter_class=form)
    parser.allow_abbrev = False
    group = parser
    for field in dataclasses.fields(config_class):
        if field.metadata.get("group"):
            group = parser.add_argument_group(field.metadata["group"])
        _add(group, field, getattr(config_class, "presets", {}))

    args, unknown = parser.parse_known_args(argv)
    if unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        [nearest] = difflib.get_close_matches(unknown[0].split("=")[0], flags, n=1, cutoff=0)
        raise UserError(f"unknown flag {unknown[0]}; did you mean {nearest}?")
    for field in dataclasses.fields(config_class):
        value = getattr(args, field.name)
        requirement = _requirement(field, value) if value != "" else "more than an empty text"
        if requirement:
            raise UserError(f"{_flag(field)} {value}: must be {requirement}")
    return config_class(**vars(args))


def restore(config_class, values, path):
    """A `config_class` from the {field: value} in the file `path`, values that are possible on a
    command line; None only if a preset has no value."""
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    for name in sorted(values.keys() ^ fields.keys(), key=str):
        found = "is not known" if name in values else "is missing"
        raise UserError(f"{path}: config.{name} {found}; use a file of this version")

    presets = list(getattr(config_class, "presets", {}).values())
    for name, value in values.items():
        is_filled = presets and all(preset.get(name) is not None for preset in presets)
        requirement = _requirement(fields[name], value, is_filled)
        if requirement:
            raise UserError(f"{path}: config.{name} is {value!r:.60}, must be {requirement}")
    return config_class(**values)


def _requirement(field, value, is_filled=False):
    """What the value of an `option` must be, or None if it is right; is_filled: None is wrong."""
    if value is None and field.default is None and not is_filled:
        return None
    kinds = {float: (int, float), tuple: (tuple, list)}.get(field.type, (field.type,))
    choices = field.metadata.get("choices")
    if type(value) not in kinds:
        return f"of type {field.type.__name__}"
    if choices and value not in choices:
        return f"one of {', '.join(choices)}"
    if field.type in LARGEST:
        least = field.metadata["least"]
        most = min(field.metadata["most"], LARGEST[field.type])
        if isinstance(value, float) and not math.isfinite(value):
            return "a finite number"
        if value < least:
            return f"at least {least}"
        if value > most:
            return f"at most {most}"
    return None


def flags_of(config, base, left_out=()):
    """The command-line flags by which a config differs from another one, or from its class."""
    flags = []
    for field in dataclasses.fields(base):
        value = getattr(config, field.name)
        if value == getattr(base, field.name) or field.name in left_out:
            continue
        if isinstance(value, bool):
            flags.append(_flag(field) if value else _flag(field).replace("--", "--no-", 1))
        else:
            flags.append(f"{_flag(field)}={value}")
    return flags


def folder_name(name):
    """Checks and returns --name, the name of a folder, or of a folder in a folder, `a/b`. UserError
    if it leads elsewhere or is too long."""
    for part in name.split("/"):
        if part in ("", ".", "..") or not part.isprintable() or len(part.encode()) > 200:
            raise UserError(
                f"--name {name!a:.60}: give a name of at most 200 bytes, or two with a / between")
    return name


def check_output(flag, path, suffix):
    """UserError for the path of an output (or None) that could not be written at the end."""
    if path and (Path(path).suffix != suffix or not Path(path).parent.is_dir()):
        raise UserError(f"{flag} {path}: name a {suffix} in a folder that exists")


def _flag(field):
    return "--" + field.name.replace("_", "-")


def _add(parser, field, presets):
    """Adds a field of the dataclass to the parser, as a flag or a positional argument."""
    kind = {"type": field.type, "choices": field.metadata.get("choices")}
    if field.type is bool:
        kind = {"action": argparse.BooleanOptionalAction}
    elif field.type in (list, tuple):
        kind = {"nargs": argparse.REMAINDER if field.metadata.get("rest") else "+"}

    help = field.metadata["help"]
    if field.default is dataclasses.MISSING:
        parser.add_argument(field.name, help=help, **kind)
        return
    help = f"{help} ({_default(field, presets)})"
    parser.add_argument(_flag(field), default=field.default, help=help, **kind)


def _default(field, presets):
    """The default of a flag as text: `default: 0.1`, or `toy: tiny; paper: base`."""
    given = {name: preset[field.name] for name, preset in presets.items() if field.name in preset}
    if field.default is not None or not given:
        return f"default: {field.default}"
    values = [f"{name}: {'none' if value == '' else value}" for name, value in given.items()]
    return "; ".join(values)


# ---- running ----

def run(main, config_class):
    """Calls `main` with the config from the command line; output is UTF-8 in any locale.

    A UserError, a missing package and an error of the system end with one line and exit code 2;
    SIGINT, SIGTERM and SIGHUP with one line and 128 + their number.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not if closed, or in a notebook
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        with on_signals(exit_with("interrupted")):
            main(parse(config_class))
            if sys.stdout is not None:
                sys.stdout.flush()
    except UserError as error:
        _end(f"error: {error}", 2)
    except Interrupted as error:
        number, line = error.args
        _end(line, 128 + number)
    except ModuleNotFoundError as error:
        _end(f"error: {error.name} is not installed: pip install -r requirements.txt", 2)
    except RuntimeError as error:
        if KILLED not in str(error):
            raise
        _end("error: a loader process was killed, perhaps out of memory: use fewer --workers, or a "
             "larger --shm-size of the container; --resume continues from the last checkpoint", 2)
    except OSError as error:  # a closed output, a full disk, no permission
        sys.stdout = open(os.devnull, "w")  # otherwise the exit would try to write again
        _end(f"error: {error.filename or 'output'}: {error.strerror or error}", 2)


def _end(line, code):
    print(printable(line), file=sys.stderr)
    kill_workers()
    sys.exit(code)


def kill_workers():
    """Kills the processes that this one started; it would wait for those that are stopped."""
    for child in multiprocessing.active_children():
        if hasattr(signal, "SIGCHLD"):  # not on Windows
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler reports dead workers
        child.kill()
        child.join()


def printable(text):
    """The text on one line: control characters, which file names may contain, become escapes such
    as \\n."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def on_signals(handler):
    """From now on SIGNALS call handler(number, frame), unless they are ignored, as under nohup. As
    a context, only inside it; the earlier handlers are then restored.

    Has no effect in other threads than the main one, which may not set handlers.
    """
    until = ExitStack()
    is_main = threading.current_thread() is threading.main_thread()
    for number in SIGNALS if is_main else ():
        before = signal.getsignal(number)
        if before not in (signal.SIG_IGN, None):  # None: it belongs to a program around Python
            until.callback(signal.signal, number, before)
            signal.signal(number, handler)
    return until


class Stops(list):
    """A list of the signals received, to be checked in a loop; it is a handler for `on_signals`.

    A signal at least a second after the first one ends the program with the line `message`.
    """

    def __init__(self, message=""):
        super().__init__()
        self.message = message
        self.times = []
        self.is_waiting = False  # then a signal raises Stopped

    def __call__(self, number, frame):
        self.times.append(time.monotonic())
        if self.times[-1] - self.times[0] > 1:
            raise Interrupted(number, self.message)
        self.append(number)
        if self.is_waiting:
            self.is_waiting = False  # another signal must not interrupt what follows
            raise Stopped


def exit_with(message):
    """A handler for `on_signals` that ends the program with this line."""
    def handler(number, frame):
        raise Interrupted(number, message)
    return handler


def leave_signals_to_parent():
    """To be called in a worker process: only its parent ends it, by SIGTERM or by ending itself."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()


def end_with_parent():
    """From now on this process gets SIGTERM when its parent ends, on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def progress(items, title, **options):
    """A tqdm bar or, if stderr is a file, a line every half minute."""
    if sys.stderr is None:  # closed
        options["disable"] = True
    elif not sys.stderr.isatty():
        lines = "{desc}: {n_fmt} of {total_fmt}, {elapsed}, {remaining} to go{postfix}\n"
        options |= {"bar_format": lines, "mininterval": QUIET, "miniters": 1, "delay": QUIET}
    return tqdm(items, title, **options)
