"""Plots losses and mAP of runs against steps.

    python -m extras.curves runs/a runs/b --out curves.png
"""

from dataclasses import dataclass

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from reid import cli
from reid.cli import UserError
from reid.files import replacing
from reid.runs import read_log

matplotlib.rcParams["text.parse_math"] = False  # names of folders may contain dollar signs

COLOURS = 10  # of matplotlib's cycle
MARKERS = "os^Dv<>PX*"  # one for every ten runs
STYLES = ("-", "--", ":", "-.", (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)))  # of measures


def draw(runs):
    """A Figure of runs {name: lines of its log}: a row for each task, with loss and mAP.

    Runs differ in colour and marker; data sets, protocols and features in line style. A Figure made
    without pyplot is drawn by Agg and needs no screen.
    """
    tasks = list(dict.fromkeys(task for log in runs.values() for task in tasks_of(log)))
    figure = Figure((10, 3 * len(tasks) + 0.25 * len(runs)), layout="constrained")
    axes = figure.subplots(len(tasks), 2, squeeze=False)
    looks = []
    for i in range(len(runs)):
        marker = MARKERS[i // COLOURS % len(MARKERS)]
        looks.append({"color": f"C{i % COLOURS}", "marker": marker, "markersize": 3})

    for (left, right), task in zip(axes, tasks):
        styles = {}  # of measures
        for log, look in zip(runs.values(), looks):
            left.plot(*losses_of(log, task), **look)
            for measure, points in scores_of(log, task).items():
                style = styles.setdefault(measure, STYLES[len(styles) % len(STYLES)])
                right.plot(*points, linestyle=style, **look)
        left.set(title=f"{task}: loss", xlabel="steps", xlim=0, ylim=0)
        right.set(title=f"{task}: mAP in percent", xlabel="steps", xlim=0, ylim=0)
        lines = [Line2D([], [], color="black", linestyle=style) for style in styles.values()]
        right.legend(lines, styles, fontsize="small")

    lines = [Line2D([], [], **look) for look in looks]
    names = [name.encode(errors="replace").decode() for name in runs]  # some may not be UTF-8
    figure.legend(lines, names, loc="outside lower center")
    return figure


def tasks_of(log):
    for line in log:
        for each in line.get("rows", [line]):
            yield each["task"]


def losses_of(log, task):
    """(steps, sums of the loss terms) of a task, without its first step with its large loss."""
    lines = [line for line in log if line.get("task") == task]
    lines = lines[1:] or lines
    steps = [line["step"] for line in lines]
    return steps, [sum(line["losses"].values()) for line in lines]


def scores_of(log, task):
    """{data set, protocol and feature: (steps, mAP in percent)} of a task."""
    scores = {}
    for line in log:
        for row in line.get("rows", ()):
            if row["task"] == task:
                measure = f"{row['data']} {row['protocol']} {row['feature']}"
                steps, values = scores.setdefault(measure, ([], []))
                steps.append(line["step"])
                values.append(100 * row["mAP"])
    return scores


# ---- command line ----

@dataclass
class Config:
    """Plots losses and mAP of runs against steps."""

    runs: list = cli.argument("folders of runs, such as runs/all")
    out: str = cli.option("curves.png", "the .png to write")


def main(config):
    cli.check_output("--out", config.out, ".png")
    logs = {folder: read_log(folder) for folder in config.runs}
    for folder, log in logs.items():
        if not any(tasks_of(log)):
            raise UserError(f"{folder}: no log.jsonl with lines there; name the folder of a run")
    with replacing(config.out) as file:
        draw(logs).savefig(file, format="png", bbox_inches="tight")
    print(f"wrote {config.out}")


if __name__ == "__main__":
    cli.run(main, Config)
