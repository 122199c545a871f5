"""A new task is one row of instructions.TASKS, and is trained, evaluated and drawn like the others."""

import subprocess
import sys

import pytest

import evaluate
import instructions
import train
from instructions import Task
from reid import checkpoints, folders, pictures
from reid.features import Features
from reid.protocols import GENERAL, ID_ONLY, STRICT
from reid.runs import read_log
from tests.test_train import FAST, ROOT, command, drawn  # noqa: F401 (fixtures)
from tests.trees import opened, put, text

COAT = Task(
    sentences=("look past the coat", "the coat may differ"),
    opposite="trad",
    targets=("other clothes", "same clothes"),
    data_of="cc",
)


@pytest.fixture
def coat(monkeypatch):
    monkeypatch.setitem(instructions.TASKS, "coat", COAT)


def test_a_task_with_its_own_sentences_on_known_data(drawn, command, coat):
    ltcc = drawn / "LTCC_ReID"
    train.main(train.Config(task="coat", data=str(ltcc), steps=2, ids=4, images=4, warmup=1, name="coat"))
    report = read_log("runs/coat")[-1]
    assert [(row["task"], row["protocol"]) for row in report["rows"]] == [
        ("coat", "general"), ("coat", "cc"), ("coat", "sc")]
    assert [(row["target"], row["instruction"]) for row in report["matrix"]] == [
        ("other clothes", "look past the coat"), ("other clothes", "do not change clothes"),
        ("same clothes", "look past the coat"), ("same clothes", "do not change clothes")]

    model, config = checkpoints.load_model("runs/coat/last.pt")
    features = Features(model, config["feature"])
    dataset = opened(ltcc, "coat")
    every = evaluate.evaluate_sentences(features, dataset)
    assert [row["sentences"] for row in every] == [2, 2, 2]

    rows = evaluate.rank_rows(features, dataset, people=1)
    assert [row.name for row in rows] == ["look past the coat", "do not change clothes"]
    assert pictures.ranking_list(rows).width == pictures.WIDTH


def test_beside_the_task_whose_data_it_shares(drawn, command, coat):
    code, out, err = command(train, "--data", drawn / "LTCC_ReID", "--steps", 2, "--name", "all", *FAST)
    assert code == 0, err
    rows = read_log("runs/all")[-1]["rows"]
    assert [row["task"] for row in rows] == ["cc"] * 3 + ["coat"] * 3
    assert checkpoints.load_checkpoint("runs/all/last.pt")["classes"] == {"ltcc": 12}  # one classifier


def test_a_task_without_a_wrong_sentence_has_one_row_a_target(drawn, command, monkeypatch):
    monkeypatch.setitem(instructions.TASKS, "coat", COAT._replace(opposite=None))
    train.main(train.Config(task="coat", data=str(drawn / "LTCC_ReID"), steps=1, ids=4, images=4, name="coat"))
    report = read_log("runs/coat")[-1]
    assert [row["instruction"] for row in report["matrix"]] == ["look past the coat"] * 2


def test_the_flag_offers_it():
    program = """
import data, evaluate, train
from reid import cli
for module in (data, evaluate, train):
    try:
        cli.parse(module.Config, ["--help"])
    except SystemExit:
        pass
"""
    row = "import instructions; instructions.TASKS['coat'] = instructions.TASKS['cc']"
    done = subprocess.run([sys.executable, "-c", row + program], cwd=ROOT, text=True, capture_output=True)
    assert done.stdout.count(f"{{all,{','.join(instructions.TASKS)},coat}}") >= 3, done.stderr


def test_lists_with_a_tag_of_their_own(toy, monkeypatch):
    for role in ("train", "query", "gallery"):
        put(toy, f"night/{role}.jpg")
        text(toy, f"night/datalist/{role}_dark.txt", f"{role}.jpg {role}.jpg 4 1 2\n")
    monkeypatch.setitem(instructions.TASKS, "night", Task(sentences=("seen at night",), tag="dark"))
    [dataset] = folders.open_all(toy, instructions.asked_tasks("all"))
    assert dataset.task == "night" and len(dataset.records) == 3
    assert dataset.protocols == (GENERAL,)

    worn = Task(asks=instructions.wanted_picture, carries=instructions.own_picture, pictures=True,
                targets=("wanted clothes",), tag="dark")
    monkeypatch.setitem(instructions.TASKS, "night", worn)
    [dataset] = folders.open_all(toy, instructions.asked_tasks("all"))
    assert dataset.split("gallery")[0].crop_path == "gallery.jpg"
    assert dataset.split("query")[0].target_clothes == "4:1"
    assert dataset.protocols == (STRICT, ID_ONLY)


def test_the_toys_steps_are_shared_by_the_rows():
    assert train.PRESETS["toy"]["ratios"] == "trad:5,cc:12,ctcc:2,vi:2,t2i:5,li:6"
