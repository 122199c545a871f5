"""Grades hand-outs: an exercise's functions are put into a copy of the code that has everything
else, and the project's own tests of these functions run there. A test that passes is a point.
"""

import csv
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from extras.exercises import code
from extras.exercises.make import chosen
from extras.exercises.sandbox import Sandbox, trouble_with_bwrap
from reid import cli
from reid.cli import UserError

LARGEST = 2**18  # bytes of a student's file


@dataclass
class Config:
    """Grade one hand-out in full, or many in a line each."""

    handouts: list = cli.argument("folders that students handed in")
    only: tuple = cli.option((), "exercises by name, in place of all")
    csv: str = cli.option(None, "new file for the marks, a row as each hand-out is graded")
    seconds: int = cli.option(20, "for the tests of each exercise", least=1, most=3600)


def main(config):
    exercises = chosen(config.only)
    folders = [Path(folder) for folder in config.handouts]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder: give the folders that students handed in")
    if trouble_with_bwrap():
        print(f"bwrap {trouble_with_bwrap()}: hand-outs run with limits, but can read your files; "
              "for people you do not trust see docs/teaching.md")

    check_tests(exercises, config.seconds)
    with open_marks(config.csv) as file:
        names = [exercise.name for exercise in exercises]
        write_row(file, ["handout", *names, "points", "feedback"])
        for folder in folders:
            marks = grade(folder, exercises, config.seconds)
            write_row(file, as_row(folder, marks))
            print(in_a_line(folder, marks) if len(folders) > 1 else in_full(marks), flush=True)


def check_tests(exercises, seconds):
    """UserError unless the code itself passes all tests, and fails each without its functions."""
    with Sandbox(exercises, seconds) as sandbox:
        for exercise in exercises:
            text = code.original(exercise)
            for test, words in sandbox.run(exercise, text).items():
                if words:
                    raise UserError(f"{test} fails on the code itself, so that it cannot grade: "
                                    f"{printable(words)}")
            empty = code.emptied(text, exercise)
            for test, words in sandbox.run(exercise, empty).items():
                if not words:
                    raise UserError(f"{test} passes without the functions of {exercise.name}: "
                                    "take it out of extras/exercises/table.py")


class Mark(NamedTuple):
    """What a student got for one exercise."""

    exercise: str
    verdict: dict  # test -> what is wrong, empty if it passed

    @property
    def points(self):
        return sum(not words for words in self.verdict.values())

    @property
    def most(self):
        return len(self.verdict)

    @property
    def sentences(self):
        """What is wrong, each sentence once."""
        sentences = [printable(words) for words in self.verdict.values() if words]
        return list(dict.fromkeys(sentences))


def grade(folder, exercises, seconds):
    """The Marks of a hand-out, each exercise graded as if all others were right."""
    marks = []
    with Sandbox(exercises, seconds) as sandbox:
        for exercise in exercises:
            try:
                handed_in = read(folder, exercise.file)
                text = code.exchanged(code.original(exercise), handed_in, exercise)
                verdict = sandbox.run(exercise, text)
            except code.Unusable as error:
                verdict = dict.fromkeys(exercise.tests, f"{exercise.file}: {error}")
            marks.append(Mark(exercise.name, verdict))
    return marks


def read(folder, name):
    """The bytes of a student's file. Unusable unless it is one below the folder:
    a link could lead to a classmate's, or to the answers."""
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


# ---- what is said of it ----

def open_marks(path):
    """A new file for the marks; UserError if there is one already. Without a path it takes all."""
    if path is None:
        return open(os.devnull, "w")
    try:
        return open(path, "x", newline="", encoding="utf-8")
    except FileExistsError as error:
        raise UserError(
            f"--csv {path} is there already: name another file or remove it first") from error


def write_row(file, cells):
    """Writes a row, which is in the file before the next hand-out is graded."""
    if cells[0].startswith(tuple("=+-@")):  # a spreadsheet would take it for a formula
        cells[0] = f"./{cells[0]}"
    csv.writer(file).writerow(cells)
    file.flush()


def as_row(folder, marks):
    points = [mark.points for mark in marks]
    feedback = [f"{mark.exercise}: {words}" for mark in marks for words in mark.sentences]
    return [printable(str(folder)), *points, sum(points), "; ".join(feedback)]


def in_full(marks):
    width = max(len(mark.exercise) for mark in marks)
    lines = []
    for mark in marks:
        lines.append(f"{mark.exercise:{width}}  {mark.points} of {mark.most}")
        lines += [f"    {words}" for words in mark.sentences]
    return "\n".join([*lines, f"points: {total(marks)}"])


def in_a_line(folder, marks):
    missed = ", ".join(mark.exercise for mark in marks if mark.sentences)
    return f"{printable(str(folder))}  points: {total(marks)}" + (f"  not {missed}" if missed else "")


def total(marks):
    return f"{sum(mark.points for mark in marks)} of {sum(mark.most for mark in marks)}"


def printable(text):
    """At most 300 characters in a line, without what a terminal would act on."""
    return "".join(sign if sign.isprintable() else " " for sign in text[:300]).strip()
