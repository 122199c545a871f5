"""Writes a hand-out: the code without the bodies that students write, its tests, and a README."""

from dataclasses import dataclass
from pathlib import Path

from extras.exercises import code
from extras.exercises.table import EXERCISES
from reid import cli, files
from reid.cli import UserError

TEMPLATE = Path(__file__).with_name("handout.md")


@dataclass
class Config:
    """Write a hand-out: the code without what students write, its tests, and a README."""

    out: str = cli.option("handout", "folder to write, which must not exist")
    only: tuple = cli.option((), "exercises by name, in place of all")


def main(config):
    exercises = chosen(config.only)
    out = Path(config.out)
    if out.exists():
        raise UserError(f"--out {out} exists already: name another folder or remove it first")
    with files.creating(out) as folder:
        write(folder, exercises)
    names = ", ".join(exercise.name for exercise in exercises)
    print(f"wrote {out}/: {names}; {most(exercises)} points; students begin with README.md")


def chosen(names):
    """The exercises of these names, or all, in the table's order. UserError for an unknown one."""
    known = [exercise.name for exercise in EXERCISES]
    for name in names:
        if name not in known:
            raise UserError(f"--only {name}: no such exercise; there are {', '.join(known)}")
    return [exercise for exercise in EXERCISES if exercise.name in names or not names]


def write(folder, exercises):
    """Fills a folder: the code, the tests, a list of tests for each exercise, README.md."""
    code.copy(folder, exercises)
    (folder / "exercises").mkdir()
    for exercise in exercises:
        file = folder / exercise.file
        text = code.emptied(file.read_text(encoding="utf-8"), exercise)
        file.write_text(text, encoding="utf-8")
        tests = "".join(f"{test}\n" for test in exercise.tests)
        (folder / "exercises" / exercise.name).write_text(tests, encoding="utf-8")
    (folder / "README.md").write_text(page(exercises), encoding="utf-8")


def page(exercises):
    """The student's README: handout.md with a table, without the questions of other exercises."""
    rows = []
    for exercise in exercises:
        functions = ", ".join(f"`{name}`" for name in exercise.functions)
        points = len(exercise.tests)
        rows.append(f"| {exercise.name} | `{exercise.file}` | {functions} | {points} | "
                    f"{exercise.minutes} |")

    text = TEMPLATE.read_text(encoding="utf-8")
    text = text.replace("{rows}", "\n".join(rows)).replace("{points}", str(most(exercises)))
    others = [f"**{other.name}**" for other in EXERCISES if other not in exercises]
    paragraphs = text.split("\n\n")
    return "\n\n".join(each for each in paragraphs if not each.startswith(tuple(others)))


def most(exercises):
    """The maximum of points."""
    return sum(len(exercise.tests) for exercise in exercises)
