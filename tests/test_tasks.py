"""A new task is one row of instructions.TASKS, and is trained and evaluated like the others."""

import evaluate
from instructions import TASKS, Task, asked_tasks
from reid import checkpoints, folders
from reid.protocols import GENERAL, ID_ONLY, STRICT
from reid.runs import read_log
from tests.commands import output
from tests.trees import opened, put, text

COAT = Task(
    sentences=("look past the coat", "the coat may differ"),
    opposite="trad",
    targets=TASKS["cc"].targets,
    data_of="cc",
)


def test_a_task_with_its_own_sentences_on_known_data(drawn, train_tiny, undrawn, monkeypatch):
    """Beside the task whose data it shares, with one classifier."""
    monkeypatch.setitem(TASKS, "coat", COAT)
    data = drawn / "LTCC_ReID"
    output(train_tiny("--data", data, "--steps", 2, "--name", "all"))
    report = read_log("runs/all")[-1]
    assert [row["task"] for row in report["rows"]] == ["cc"] * 6 + ["coat"] * 6
    wrong = TASKS["trad"].sentences[0]
    said = [row["instruction"] for row in report["matrix"] if row["task"] == "coat"]
    assert said == [COAT.sentences[0], wrong] * 2
    assert checkpoints.load("runs/all/last.pt")["classes"] == {"ltcc": 12}

    model, config = evaluate.load_model("runs/all/last.pt")
    run = evaluate.Run(model, config["feature"])
    every = evaluate.evaluate_all(run, [opened(data, "coat")], evaluate.evaluate_sentences)
    assert [row["sentences"] for row in every] == [2, 2, 2]
    TASKS["coat"] = COAT._replace(opposite=None)
    matrix = evaluate.instruction_matrix(run, opened(data, "coat"))
    assert [row["instruction"] for row in matrix] == [COAT.sentences[0]] * 2


def test_lists_with_a_tag_of_their_own(toy, monkeypatch):
    for role in ("train", "query", "gallery"):
        put(toy, f"night/{role}.jpg")
        text(toy, f"night/datalist/{role}_dark.txt", f"{role}.jpg {role}.jpg 4 1 2\n")
    monkeypatch.setitem(TASKS, "night", Task(("seen at night",), tag="dark"))
    [dataset] = folders.open_all(toy, asked_tasks("all"))
    assert dataset.task == "night" and len(dataset.records) == 3
    assert dataset.protocols == (GENERAL,)

    worn = Task(pictures=True, targets=("wanted clothes",), tag="dark")
    monkeypatch.setitem(TASKS, "night", worn)
    [dataset] = folders.open_all(toy, asked_tasks("all"))
    [query], [photo] = dataset.split("query"), dataset.split("gallery")
    assert (photo.crop_path, query.target_clothes) == ("gallery.jpg", "4:1")
    assert dataset.protocols == (STRICT, ID_ONLY)
