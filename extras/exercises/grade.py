"""Grades hand-outs: an exercise's functions are put into a copy of the code, and the project's
own tests of these functions run there. Each test that passes is a point.
"""

import csv
import os
from dataclasses import dataclass
from pathlib import Path

from extras.exercises import code
from extras.exercises.make import chosen
from extras.exercises.sandbox import remove_leftovers, trouble_with_bwrap, verdicts
from reid import cli
from reid.cli import UserError, printable

LARGEST = 2**18  # bytes of a student's file


@dataclass
class Config:
    """Grade one hand-out with a full report, or several with a line each."""

    handouts: list = cli.argument("folders that students handed in")
    only: tuple = cli.option((), "exercises by name, in place of all")
    csv: str = cli.option(None, "new file for the marks, a row after each hand-out")
    seconds: int = cli.option(20, "CPU seconds for each exercise", least=1, most=3600)


def main(config):
    exercises = chosen(config.only)
    folders = [Path(folder) for folder in config.handouts]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder: give the folders that students handed in")
    if trouble_with_bwrap():
        print(f"bwrap {trouble_with_bwrap()}: hand-outs run with limits, but can read your files; "
              "for people you do not trust see docs/teaching.md")

    remove_leftovers()
    check_tests(exercises, config.seconds)
    with open_marks(config.csv) as file:
        names = [exercise.name for exercise in exercises]
        write_row(file, ["handout", *names, "points", "feedback"])
        for folder in folders:
            marks = grade(folder, exercises, config.seconds)
            write_row(file, as_row(folder, marks))
            print(in_a_line(folder, marks) if len(folders) > 1 else in_full(marks), flush=True)


def check_tests(exercises, seconds):
    """UserError unless the code itself passes all tests and fails each without the functions."""
    texts = {}
    for exercise in exercises:
        texts[exercise] = code.original(exercise)
        without = exercise._replace(name=f"{exercise.name} without its functions")
        texts[without] = code.emptied(texts[exercise], exercise)

    found = verdicts(texts, seconds)
    for name in [exercise.name for exercise in exercises]:
        if sentences(found[name]):
            raise UserError(f"the code itself fails the tests of {name}, which therefore cannot be "
                            f"graded: {sentences(found[name])[0]}")
        for test, message in found[f"{name} without its functions"].items():
            if not message:
                raise UserError(f"{test} passes without the functions of {name}: remove it from "
                                "extras/exercises/table.py")


def grade(folder, exercises, seconds):
    """The verdicts on a hand-out, {name of an exercise: {test: message, "" if it passes}}. Each
    exercise is graded as if all others were solved."""
    texts = {}
    marks = {}
    for exercise in exercises:
        try:
            handed_in = read(folder, exercise.file)
            texts[exercise] = code.exchanged(code.original(exercise), handed_in, exercise)
        except code.Unusable as error:
            marks[exercise.name] = dict.fromkeys(exercise.tests, f"{exercise.file}: {error}")
    if texts:
        marks |= verdicts(texts, seconds)
    return {exercise.name: marks[exercise.name] for exercise in exercises}


def read(folder, name):
    """The bytes of a student's file. Unusable if it is not in the folder: a link could lead to
    another student's file, or to the solutions."""
    try:
        base = folder.resolve()
        file = (base / name).resolve()
        if folder.is_symlink() or not file.is_relative_to(base):
            raise code.Unusable("it leads out of the hand-out: hand in the file itself")
        if not file.is_file():
            raise code.Unusable("the file is missing")
        with open(file, "rb") as opened:
            data = opened.read(LARGEST + 1)
    except (OSError, RuntimeError) as error:  # RuntimeError: links that go round in circles
        raise code.Unusable(f"it cannot be read: {error}") from error
    if len(data) > LARGEST:
        raise code.Unusable(f"the file has more than {LARGEST} bytes")
    return data


# ---- reports ----

def open_marks(path):
    """A new file for the marks; UserError if it exists. Without a path, rows are discarded."""
    if path is None:
        return open(os.devnull, "w")
    try:
        return open(path, "x", newline="", encoding="utf-8")
    except FileExistsError as error:
        raise UserError(
            f"--csv {path} exists already: name another file or remove it first") from error


def write_row(file, cells):
    """Writes a row to the file immediately."""
    if cells[0].startswith(tuple("=+-@")):  # in a spreadsheet this would be a formula
        cells[0] = f"./{cells[0]}"
    csv.writer(file).writerow(cells)
    file.flush()


def points(verdict):
    return sum(not message for message in verdict.values())


def sentences(verdict):
    """The messages of a verdict, each once, in one line of at most 300 characters."""
    messages = [printable(message[:300].strip()) for message in verdict.values() if message]
    return list(dict.fromkeys(messages))


def total(marks):
    return f"points: {sum(map(points, marks.values()))} of {sum(map(len, marks.values()))}"


def as_row(folder, marks):
    of_each = [points(verdict) for verdict in marks.values()]
    feedback = []
    for name, verdict in marks.items():
        feedback += [f"{name}: {sentence}" for sentence in sentences(verdict)]
    return [printable(str(folder)), *of_each, sum(of_each), "; ".join(feedback)]


def in_a_line(folder, marks):
    missed = ", ".join(name for name, verdict in marks.items() if sentences(verdict))
    return f"{printable(str(folder))}  {total(marks)}" + (f"  not {missed}" if missed else "")


def in_full(marks):
    width = max(map(len, marks))
    lines = []
    for name, verdict in marks.items():
        lines.append(f"{name:{width}}  {points(verdict)} of {len(verdict)}")
        lines += [f"    {sentence}" for sentence in sentences(verdict)]
    return "\n".join([*lines, total(marks)])
