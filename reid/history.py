"""What happened in a run: the lines of its log.jsonl, and curve.png, which draws them.

A line every LOG_EVERY steps and at the first step of a task, for each task:
    {"step": 50, "task": "cc", "losses": {"tri": 0.91, ...}, "gradient": 2.1, "lr": 0.00075,
     "images/s": 212.0, "seconds": 14.2}
losses and gradient (its norm before clipping) are means since the task's line before. An evaluation
is a line too:
    {"step": 500, "rows": [...], "matrix": [...], "seconds": 160.4}

    python -m reid.history runs/a runs/b --out curves.png  # several runs in one picture
"""

import json
import math
import statistics
import string
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from reid import cli, pictures
from reid.cli import UserError
from reid.files import write_text
from reid.pictures import SMALL, SMALL_LINE

LOG_EVERY = 50  # steps between the lines of a task

# pixels
PLOT = (130, 335)  # (height, width) inside the axes
LEFT = 50  # of the axes, for numbers
TOP = 22  # above them, for the title
BOTTOM = 22  # below them, for numbers
RIGHT = 30  # of them

COLOURS = (
    (40, 110, 220), (230, 120, 0), (0, 130, 60), (215, 30, 30), (130, 60, 170), (0, 150, 160),
    (120, 120, 120), (150, 90, 20),
)
GRID = (220, 220, 220)


# ---- a run as it goes ----

class History:
    """The log of a run, over all its resumes.

    What is noted of a step may lie on a GPU: it is fetched, which waits for the GPU, only when it
    is written.
    """

    def __init__(self, folder, step=0, state=None):
        """state: what the method gave at that step; without it a run begins."""
        self.folder = Path(folder)
        self.lines = []
        self.pending = []  # steps without a line: [step, task, {name: value}]
        self.latest = {}  # task -> the sum of its terms in its last step
        self.images = 0  # since `since`
        self.since = time.time()
        self.speed = 0.0  # images per second
        self.lr = 0.0
        self.began = self.since
        if state:
            self.lines = [line for line in read_log(self.folder) if line["step"] <= step]
            self.pending = state["pending"]
            self.began -= state["seconds"]

    @property
    def seconds(self):
        """So far, of all processes that worked on the run."""
        return round(time.time() - self.began, 1)

    def note(self, step, task, terms, gradient, images, lr):
        """One step: its loss terms, scalars, and the norm of its gradient or None; writes the lines
        that are due. UserError as `check`."""
        values = {name: term.detach() for name, term in terms.items()}
        self.latest[task] = sum(values.values())
        if gradient is not None:
            values["gradient"] = gradient
        self.pending.append([step, task, values])
        self.lr = lr
        self.images += images
        self.speed = self.images / (time.time() - self.since)

        if step % LOG_EVERY == 0:
            self.write_losses(step)
        elif not any(line.get("task") == task for line in self.lines):
            self.check()
            self._add_line(step, task)
            self._write()

    def check(self):
        """Fetches what was noted. UserError that names the first value which is not finite."""
        for entry in self.pending:
            step, task, values = entry
            entry[2] = {name: float(value) for name, value in values.items()}
            for name, value in entry[2].items():
                if not math.isfinite(value):
                    raise UserError(
                        f"step {step}, {task}: {name} is {value}, training has diverged; nothing "
                        f"was saved since, begin again with a lower --lr ({self.folder})"
                    )

    def state(self):
        """What a checkpoint keeps of it. UserError as `check`."""
        self.check()
        return {"pending": self.pending, "seconds": self.seconds}

    def progress(self):
        """The last loss of every task, for the bar."""
        losses = [f"{task} {float(loss):.2f}" for task, loss in self.latest.items()]
        return f"{' '.join(losses)} {self.speed:.0f} images/s"

    def write_losses(self, step):
        """A line for each task with steps that have none yet. UserError as `check`."""
        self.check()
        for task in dict.fromkeys(task for _, task, _ in self.pending):
            self._add_line(step, task)
        self._write()
        self._begin_speed()

    def write_rows(self, step, rows, matrix=()):
        """The line of an evaluation, and the curve."""
        line = {"step": step, "rows": list(rows), "matrix": list(matrix), "seconds": self.seconds}
        self.lines = [each for each in self.lines if not _is_evaluation(each, step)]
        self.lines.append(line)
        self._write()
        pictures.save(curve({self.folder.name: self.lines}), self.folder / "curve.png")
        self._begin_speed()

    def is_evaluated(self, step):
        return any(_is_evaluation(line, step) for line in self.lines)

    def _add_line(self, step, task):
        steps = [values for _, name, values in self.pending if name == task]
        self.pending = [entry for entry in self.pending if entry[1] != task]
        losses = {}
        for name in steps[0]:
            mean = sum(values[name] for values in steps) / len(steps)
            losses[name] = round(mean, 5)

        line = {"step": step, "task": task, "losses": losses}
        if "gradient" in losses:
            line["gradient"] = losses.pop("gradient")
        line["lr"] = float(f"{self.lr:.5g}")
        line["images/s"] = round(self.speed, 1)
        line["seconds"] = self.seconds
        self.lines.append(line)

    def _write(self):
        """All lines anew: a full disk or a crash leaves no half of a line."""
        text = "".join(f"{json.dumps(line)}\n" for line in self.lines)
        write_text(self.folder / "log.jsonl", text)

    def _begin_speed(self):
        self.images = 0
        self.since = time.time()


def _is_evaluation(line, step):
    return "rows" in line and line["step"] == step


def read_log(folder):
    """The lines of a run's log.jsonl, [] without one. UserError if it is no log."""
    path = Path(folder) / "log.jsonl"
    if not path.exists():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    except ValueError as error:
        raise UserError(f"{path} is no log of a run ({error}); remove it") from error
    return lines


def mean_log(logs):
    """One log of several: the means of their losses and mAP, line by line. Runs that differ in
    nothing but the seed have the same lines."""
    lines = []
    for alike in zip(*logs):
        line = dict(alike[0])
        if "losses" in line:
            line["losses"] = {}
            for name in alike[0]["losses"]:
                line["losses"][name] = statistics.mean(each["losses"][name] for each in alike)
        else:
            line["rows"] = []
            for rows in zip(*(each["rows"] for each in alike)):
                mAP = statistics.mean(row["mAP"] for row in rows)
                line["rows"].append(rows[0] | {"mAP": mAP})
        lines.append(line)
    return lines


# ---- curves ----

def curve(runs):
    """A picture of runs {name: lines of the log}: a row for each task, its loss and its mAP against
    steps. Of several runs, the curves are called A, B ..."""
    letters = [f"{letter} " for letter in string.ascii_uppercase]
    if len(runs) == 1:
        letters = [""]
    lettered = dict(zip(letters, runs.values()))
    last_step = max(line["step"] for lines in runs.values() for line in lines)

    rows = [_heading(letters, runs)]
    for task in dict.fromkeys(task for lines in runs.values() for task in _tasks(lines)):
        losses, scores = {}, {}
        for letter, lines in lettered.items():
            losses[f"{letter}loss"] = _losses(lines, task)
            for label, points in _scores(lines, task).items():
                scores[letter + label] = points
        left = _panel(f"{task}: loss", losses, last_step)
        right = _panel(f"{task}: mAP", scores, last_step)
        rows.append(_side_by_side(left, right))
    return pictures.stack(rows)


def _heading(letters, runs):
    """The names of the runs, a line each."""
    heading = Image.new("RGB", (pictures.WIDTH, 8 + len(runs) * SMALL_LINE), "white")
    text = "\n".join(letter + name for letter, name in zip(letters, runs))
    ImageDraw.Draw(heading).multiline_text((LEFT, 4), text, "black", SMALL, spacing=3)
    return heading


def _tasks(lines):
    for line in lines:
        if "task" in line:
            yield line["task"]
        for row in line.get("rows", ()):
            yield row["task"]


def _losses(lines, task):
    """[(step, sum of the loss terms)] of a task, without its first step, which would dwarf the
    others."""
    points = []
    for line in lines:
        if line.get("task") == task:
            points.append((line["step"], sum(line["losses"].values())))
    return points[1:] or points


def _scores(lines, task):
    """{data set and protocol: [(step, mAP in percent)]} of a task."""
    points = {}
    for line in lines:
        for row in line.get("rows", ()):
            if row["task"] == task:
                label = f"{row['data']} {row['protocol']}"
                points.setdefault(label, []).append((line["step"], 100 * row["mAP"]))
    return points


def _panel(title, curves, last_step):
    """A plot of curves {label: [(step, value)]} up to a step; below it their labels and last
    values."""
    curves = {label: points for label, points in curves.items() if points}
    height, width = PLOT
    below = TOP + height + BOTTOM
    size = (LEFT + width + RIGHT, below + len(curves) * SMALL_LINE + 8)
    panel = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(panel)
    draw.text((LEFT, 4), title, "black", SMALL)
    if not curves:
        draw.text((LEFT, TOP), "nothing yet", "black", SMALL)
        return panel

    highest = _round_up(max(value for points in curves.values() for _, value in points))
    _axes(draw, last_step, highest)
    for i, (label, points) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        places = []
        for step, value in points:
            x = LEFT + step / last_step * width
            y = TOP + height - value / highest * height
            places.append((x, y))
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), colour)
        draw.line(places, colour, 2, joint="curve")

        line = below + i * SMALL_LINE
        draw.rectangle((LEFT, line + 5, LEFT + 12, line + 8), colour)
        draw.text((LEFT + 18, line), f"{label}: {points[-1][1]:.3g}", "black", SMALL)
    return panel


def _axes(draw, last_step, highest):
    height, width = PLOT
    for share in (0, 0.5, 1):
        y = TOP + height - share * height
        draw.line((LEFT, y, LEFT + width, y), GRID)
        draw.text((LEFT - 5, y), f"{share * highest:g}", "black", SMALL, anchor="rm")
        x = LEFT + share * width
        draw.text((x, TOP + height + 4), f"{share * last_step:g}", "black", SMALL, anchor="ma")


def _round_up(value):
    """The least of 1, 2, 5, 10, 20, 50 ... and tenths, hundredths of them, that is not below."""
    if value <= 0:
        return 1
    power = 10 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= value)


def _side_by_side(left, right):
    both = Image.new("RGB", (left.width + right.width, max(left.height, right.height)), "white")
    both.paste(left, (0, 0))
    both.paste(right, (left.width, 0))
    return both


# ---- command line ----

@dataclass
class Config:
    """Draws the losses and the mAP of runs against their steps."""

    runs: list = cli.argument("folders of runs, such as runs/all")
    out: str = cli.option("curves.png", "the .png to write")


def main(config):
    runs = {folder: read_log(folder) for folder in config.runs}
    for folder, lines in runs.items():
        if not lines:
            raise UserError(f"{folder}: no log.jsonl with lines there; name the folder of a run")
    pictures.save(curve(runs), config.out)
    print(f"wrote {config.out}")


if __name__ == "__main__":
    sys.argv[0] = "-m reid.history"  # what usage and errors call the program
    cli.run(main, Config)
