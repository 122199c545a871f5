"""Curves: the points by hand, every run that is given; and the one reader of a log."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from extras import curves
from reid.cli import UserError
from reid.runs import read_log
from tests.commands import one_line


def losses(step, task="cc", **terms):
    return {"step": step, "task": task, "losses": terms, "seconds": 1.0}


def row(task, protocol, mAP):
    return {"task": task, "data": "LTCC", "protocol": protocol, "mAP": mAP}


def evaluation(step, *rows):
    return {"step": step, "rows": list(rows), "matrix": [], "seconds": 1.0}


LOG = [
    losses(1, tri=90.0, id=5.0), losses(50, tri=1.5, id=2.0), losses(50, "li", tri=7.0),
    losses(100, tri=1.0, id=0.5), evaluation(100, row("cc", "general", 0.25), row("cc", "cc", 0.1)),
    evaluation(200, row("cc", "general", 0.5), row("li", "strict", 1)),
]


def write(folder, lines):
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return str(folder)


def points(axes):
    return [line.get_xydata().tolist() for line in axes.lines]


def texts(legend):
    return [text.get_text() for text in legend.get_texts()]


def test_the_points_of_a_log_by_hand():
    """Sums of the terms, mAP in percent. A task's first step is drawn only where it is alone."""
    figure = curves.draw({"a": LOG, "$b": LOG[:2]})
    cc_loss, cc_score, li_loss, li_score = figure.axes
    assert [axes.get_title().split(":")[0] for axes in figure.axes] == ["cc", "cc", "li", "li"]
    assert points(cc_loss) == [[[50, 3.5], [100, 1.5]], [[50, 3.5]]]
    assert points(cc_score) == [[[100, 25], [200, 50]], [[100, 10]]]
    assert points(li_loss) == [[[50, 7]], []] and points(li_score) == [[[200, 100]]]
    assert texts(cc_score.get_legend()) == ["LTCC general", "LTCC cc"]
    assert len({line.get_linestyle() for line in cc_score.lines}) == 2


def test_28_runs_are_28_curves_that_differ():
    runs = {f"run {k}": [losses(1, tri=1.0), losses(2, tri=float(k))] for k in range(28)}
    figure = curves.draw(runs)
    [legend] = figure.legends
    assert points(figure.axes[0]) == [[[2, k]] for k in range(28)] and texts(legend) == list(runs)
    drawn, named = ([(line.get_color(), line.get_marker()) for line in lines]
                    for lines in (figure.axes[0].lines, legend.get_lines()))
    assert drawn == named and len(set(drawn)) == 28


def test_the_command_draws_and_names_a_folder_without_a_log(command, tmp_path):
    a = write(tmp_path / "runs/_$x^$", LOG)
    code, out, err = command(curves, a, "--out", "both.png")
    assert code == 0 and "both.png" in out, err
    assert Image.open("both.png").format == "PNG"

    nothing = write(tmp_path / "runs/nothing", [])
    for folder in (nothing, tmp_path):
        one_line(command(curves, a, folder, "--out", "c.png"), f"{folder}: no log.jsonl")
    one_line(command(curves, a, "--out", "a.jpg"), "--out a.jpg: name a .png")
    assert not Path("c.png").exists()


LOSSES, ROWS = json.dumps(LOG[0]), json.dumps(LOG[4])


@pytest.mark.parametrize("line", [
    "", "5", "[]", "{}", '{"step": 1', "\udcff", "[" * 100_000, LOSSES.replace("90.0", '"x"'),
    *(LOSSES.replace("90.0", number) for number in ("NaN", "1e999", "1" + "0" * 400)),
    LOSSES.replace("task", "text"),
    ROWS.replace("mAP", "R1"), json.dumps(LOG[4] | LOG[0] | {"rows": 5})])
def test_a_line_that_no_run_wrote_is_one_sentence(line, tmp_path):
    folder = write(tmp_path / "a", LOG[:2])
    assert read_log(folder) == LOG[:2]
    with open(tmp_path / "a/log.jsonl", "a", errors="surrogateescape") as file:
        file.write(f"{line}\n")
    with pytest.raises(UserError) as error:
        read_log(folder)
    where = "log.jsonl: cannot be read as UTF-8" if line == "\udcff" else "log.jsonl, line 3"
    assert f"{folder}/{where}" in str(error.value) and "\n" not in str(error.value)


def test_a_log_that_is_absent_is_empty_and_a_named_pipe_is_refused(tmp_path):
    assert read_log(tmp_path) == []
    os.mkfifo(tmp_path / "log.jsonl")
    with pytest.raises(UserError, match="log.jsonl: a pipe, not a file"):
        read_log(tmp_path)
