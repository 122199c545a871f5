"""Writes a hand-out: a copy of the code without the bodies that students shall write."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from exercises import listen
from exercises.code import ROOT, blanked, reference
from exercises.table import EXERCISES
from reid import cli, files
from reid.cli import UserError

TEMPLATE = Path(__file__).with_name("handout.md")


@dataclass
class Config:
    """Write a hand-out: the code without what students shall write, and a page for them."""

    out: str = cli.option("handout", "folder to write; must not exist yet")
    only: tuple = cli.option((), "exercises by name, in place of all")


def main(config):
    exercises = chosen(config.only) or EXERCISES
    out = Path(config.out)
    if out.exists():
        raise UserError(f"--out {out} is there already: name another folder or remove it first")
    with files.filling(out) as folder:
        write(folder, exercises)
    points = sum(exercise.points for exercise in exercises)
    print(f"wrote {out}/: {len(exercises)} exercises, {points} points; students begin at README.md")


def chosen(names):
    """The exercises of these names, in the order of the table. UserError for an unknown name."""
    known = [exercise.name for exercise in EXERCISES]
    for name in names:
        if name not in known:
            raise UserError(f"--only {name}: no such exercise; there are {', '.join(known)}")
    return [exercise for exercise in EXERCISES if exercise.name in names]


def write(folder, exercises):
    """Fills a folder: the code, the requirements, the licence, README.md."""
    for path, text in blanked(reference(), exercises).items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text)
    for name in ("requirements.txt", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    (folder / "README.md").write_text(page(exercises))


def page(exercises):
    """The student's README."""
    rows = ["| exercise | to write | points | minutes |", "|---|---|---|---|"]
    questions = []
    for exercise in exercises:
        names = ", ".join(f"`{name}`" for name in exercise.functions) or "a trained model"
        rows.append(f"| {exercise.name} | {names} | {exercise.points} | {exercise.minutes} |")
        question = exercise.question.format(mAP=listen.MAP, gap=listen.GAP)
        questions.append(f"**{exercise.name}**, {exercise.title}. {question}")

    text = TEMPLATE.read_text()
    text = text.replace("{points}", str(sum(exercise.points for exercise in exercises)))
    trained = sum(exercise.points for exercise in exercises if exercise.trained)
    apart = f" {trained} of them are for a trained model, which is graded apart from the code."
    text = text.replace("{trained}", apart if trained else "")
    text = text.replace("{table}", "\n".join(rows))
    return text.replace("{questions}", "\n\n".join(questions))
