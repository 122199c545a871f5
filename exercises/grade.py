"""Grades hand-outs: each exercise by itself, the student's functions in a copy of the code that has
all but these, run by a process that holds no answers.
"""

import ast
import csv
import io
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import toydata
from exercises import checks, listen
from exercises.answers import Answers, Wrong, demand
from exercises.code import (
    ROOT, blanked, find, function_names, grafted, is_blank, module_of, reference
)
from exercises.make import chosen
from exercises.table import EXERCISES
from reid import cli, files
from reid.cli import UserError

HERE = Path(__file__).parent
LARGEST = 2**20  # bytes of a module


@dataclass
class Config:
    """Grade one hand-out in full, or many in a line each."""

    handouts: list = cli.argument("folders that students handed in")
    only: tuple = cli.option((), "exercises by name, in place of all but the trained one")
    json: str = cli.option(None, "write points and sentences to this file")
    csv: str = cli.option(None, "write a row of points for each hand-out to this file")
    seconds: int = cli.option(10, "of a processor, for each exercise", least=1, most=3600)


def main(config):
    exercises = chosen(config.only) or [each for each in EXERCISES if not each.trained]
    folders = [Path(folder) for folder in config.handouts]
    for folder in folders:
        check_is_handout(folder)

    many = len(folders) > 1
    graded = {}
    with Runner(config.seconds) as runner:
        for folder in folders:
            marks = grade(folder, exercises, runner)
            graded[str(folder)] = marks
            print(in_a_line(folder, marks) if many else in_full(marks), flush=True)
    if config.json:
        files.write_text(config.json, as_json(graded))
    if config.csv:
        files.write_text(config.csv, as_csv(graded))


def check_is_handout(folder):
    """UserError unless it is a folder with one of the modules."""
    modules = {module_of(name)[0] for exercise in EXERCISES for name in exercise.functions}
    if not any((folder / module).is_file() for module in modules):
        raise UserError(
            f"{folder} is no hand-out: give the folder that holds model.py, losses.py and reid/")


class Mark(NamedTuple):
    """What a student got for one exercise."""

    exercise: str
    points: int
    most: int
    sentence: str = ""  # what to check; empty if all is right


def grade(folder, exercises, runner):
    """The Marks of a hand-out."""
    marks = []
    for exercise in exercises:
        judge = judge_model if exercise.trained else judge_code
        try:
            judge(folder, exercise, runner)
            marks.append(Mark(exercise.name, exercise.points, exercise.points))
        except Wrong as wrong:
            sentence = "".join(sign if sign.isprintable() else " " for sign in str(wrong))
            marks.append(Mark(exercise.name, 0, exercise.points, sentence[:400]))
    return marks


# ---- one exercise ----

def judge_code(folder, exercise, runner):
    """Wrong, with the sentence, unless the functions of the exercise are right."""
    sources = blanked(runner.sources, [exercise])  # the answer is not there, even unread
    handed_in = {}
    for name in exercise.functions:
        path, inner = module_of(name)
        handed_in.setdefault(path, []).append(inner)

    for path, names in handed_in.items():
        text = read(folder / path, path)
        try:
            check_is_written(text, names, path)
            sources[path] = grafted(sources[path], text, names)
        except SyntaxError as error:
            raise Wrong(
                f"{path}, line {error.lineno}, is no Python: {error.msg}") from error
        except (ValueError, RecursionError, MemoryError) as error:
            raise Wrong(f"{path} is no Python: {error}") from error
    answers = runner.answers(exercise, sources)
    try:
        getattr(checks, exercise.function)(answers)
    except Wrong:
        raise
    except Exception as error:  # answers are a student's, and may have any form
        raise Wrong("what it returns cannot be read: the docstring says its form") from error


def read(file, path):
    """The text of a module. Wrong if it is none; a link could point at the solution."""
    if file.is_symlink() or not file.is_file() or file.stat().st_size > LARGEST:
        raise Wrong(f"{path} is missing, is a link or is huge: hand in the file itself")
    try:
        return file.read_text()
    except UnicodeDecodeError as error:
        raise Wrong(f"{path} is no UTF-8 text") from error


def check_is_written(text, names, path):
    """Wrong unless the functions are there and hold more than what was handed out."""
    tree = ast.parse(text)
    for name in names:
        node = find(tree, name)
        if node is None:
            raise Wrong(f"{path} has no {name}: functions keep their names")
        if is_blank(node):
            raise Wrong(f"{name} in {path} is not written yet")


class Runner:
    """The process that runs code of students, and the folder that it knows."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.sources = reference()
        self.functions = function_names(self.sources)
        self.process = None
        self.data = None

    def __enter__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="grading-"))
        for name in ("runner.py", "probes.py"):
            shutil.copy(HERE / name, self.folder)
        return self

    def __exit__(self, *_):
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.data:
            shutil.rmtree(self.data, ignore_errors=True)

    def people(self):
        """A folder of people on whom nobody has trained; drawn once."""
        if not self.data:
            self.data = tempfile.mkdtemp(prefix="people-")
            toydata.make_toy(self.data, listen.PEOPLE, listen.SEED)
        return self.data

    def start(self):
        """Starts it with nothing that names this repository: no arguments, environment, path."""
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-B", "runner.py"],
            cwd=self.folder,
            env={"OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        libraries = [path for path in sys.path if path and Path(path).resolve() != ROOT]
        self.say([str(self.folder), *libraries])

    def say(self, message):
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def stop(self):
        if self.process:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def answers(self, exercise, sources):
        """The Answers of the probe of an exercise on that code; Wrong if it gives none."""
        code = self.folder / "code"
        result = self.folder / "result.json"
        result.unlink(missing_ok=True)
        for path, text in sources.items():
            (code / path).parent.mkdir(parents=True, exist_ok=True)
            (code / path).write_text(text)
        if self.process is None or self.process.poll() is not None:
            self.start()
        self.say({
            "folder": str(code),
            "probe": exercise.function,
            "result": str(result),
            "seconds": self.seconds,
            "ours": sorted(self.functions - set(exercise.functions)),
        })
        end = self.process.stdout.readline().strip()
        shutil.rmtree(code)

        if end == "late":
            raise Wrong(
                f"it did not end within {self.seconds} seconds: look for an endless loop")
        if not end:
            self.stop()  # the next exercise starts another one
        return Answers(read_result(result))


def read_result(file):
    """The JSON object that a probe wrote; Wrong if there is none."""
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise Wrong(
            "the process ended without an answer: look for a crash or os._exit") from error


def judge_model(folder, exercise, runner):
    """Wrong unless the last.pt in the hand-out listens; runs the teacher's code on it."""
    checkpoint = folder / "last.pt"
    if checkpoint.is_symlink() or not checkpoint.is_file():
        raise Wrong("there is no last.pt in the hand-out: copy it from the run's folder")
    program = [sys.executable, "-m", "exercises.listen"]
    command = [*program, str(checkpoint.resolve()), runner.people()]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=60 * runner.seconds)
        found = json.loads(done.stdout)
    except subprocess.TimeoutExpired as error:
        raise Wrong(
            "last.pt takes too long to evaluate: train the size that is asked for") from error
    except ValueError as error:
        raise Wrong(
            "last.pt cannot be evaluated: train it by train.py of the hand-out") from error
    check_listens(found)


def check_listens(found):
    """Wrong unless the figures of listen.figures are those of a model that listens."""
    demand("error" not in found, str(found.get("error")))
    wanted, own = found["wanted"], found["own"]
    demand(wanted - own >= listen.GAP, (
        f"the right description finds {wanted:.1%} mAP, a wrong one {own:.1%}: the difference "
        f"must be {listen.GAP:.0%} or more, which takes a model that listens"))
    demand(wanted >= listen.MAP, (
        f"the right description finds {wanted:.1%} mAP, {listen.MAP:.0%} are asked for: train on"))


# ---- what is said of it ----

def in_full(marks):
    width = max(len(mark.exercise) for mark in marks)
    lines = []
    for mark in marks:
        line = f"{mark.exercise:{width}}  {mark.points:2} of {mark.most:2}  {mark.sentence}"
        lines.append(line.rstrip())
    return "\n".join([*lines, f"points: {total(marks)}"])


def in_a_line(folder, marks):
    missed = ", ".join(mark.exercise for mark in marks if mark.sentence)
    return f"{folder}  points: {total(marks)}" + (f"  not {missed}" if missed else "")


def total(marks):
    return f"{sum(mark.points for mark in marks)} of {sum(mark.most for mark in marks)}"


def as_json(graded):
    rows = {}
    for folder, marks in graded.items():
        rows[folder] = {
            "points": sum(mark.points for mark in marks),
            "most": sum(mark.most for mark in marks),
            "exercises": [mark._asdict() for mark in marks],
        }
    return json.dumps(rows, indent=1) + "\n"


def as_csv(graded):
    text = io.StringIO()
    rows = csv.writer(text)
    for folder, marks in graded.items():
        if not text.tell():
            rows.writerow(["handout", *(mark.exercise for mark in marks), "points"])
        points = [mark.points for mark in marks]
        rows.writerow([folder, *points, sum(points)])
    return text.getvalue()
