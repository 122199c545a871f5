"""Photos, weights and machines of one's own: a folder for each person, --start, --resume --steps,
loader processes that have no room, are stopped, or die."""

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

import data
from instructions import asked_tasks
from reid import checkpoints, device, runs
from reid.cli import Interrupted, Stopped, Stops, UserError, on_signals, run
from reid.folders import open_all
from reid.own_photos import SPLIT
from tests.commands import one_line
from tests.trees import ltcc, market, put

NAMES = ("anna", "Bob Müller", "c.3", "李", "user_007", "x y")


@pytest.fixture
def mine(tmp_path):
    """Six people with two photos in each of two outfits, and one with a single photo."""
    root = tmp_path / "mine"
    for person in NAMES:
        for outfit in ("coat", "dress"):
            put(root, f"{person}/{outfit}/a_c1_x.JPG", f"{person}/{outfit}/c2s1.png")
    put(root, "alone/1.jpeg")
    return root


def test_a_folder_for_each_person_with_outfits(mine, capsys):
    trad, cc = open_all(mine, asked_tasks("all"))
    assert (trad.task, cc.task) == ("trad", "cc") and trad.title == "Own photos random-split"
    split = json.loads((mine / SPLIT).read_text())
    assert len(split["train"]) == 4 and len(split["test"]) == 3 and "alone" in split["train"]
    assert capsys.readouterr().out.count(SPLIT) == 1
    for record in cc.records:
        person, *_ = record.path.split("/")
        assert (record.role == "train") == (person in split["train"])
        assert record.cam == (None if person == "alone" else 1 if "c1" in record.path else 2)
    queries = Counter(record.clothes for record in cc.split("query"))
    assert len(queries) == 6 and set(queries.values()) == {1}  # one of each outfit
    assert len(cc.split("gallery")) == 6

    split["train"], split["test"] = split["test"], split["train"]
    (mine / SPLIT).write_text(json.dumps(split))
    again, _ = open_all(mine, asked_tasks("all"))
    assert {record.pid for record in again.split("train")} == {
        record.pid for record in trad.split("query")}
    put(mine, "zoe/1.jpg")
    with pytest.raises(UserError, match=r"split\.json: zoe is in neither list"):
        open_all(mine, asked_tasks("all"))


def test_a_split_by_hand_without_outfits(tmp_path):
    for role in ("train", "query", "gallery"):
        for person in NAMES[:3]:
            put(tmp_path, f"{role}/{person}/{role}.png")
    [dataset] = open_all(tmp_path, asked_tasks("all"))
    assert (dataset.task, dataset.title) == ("trad", "Own photos given-split")
    for role in ("train", "query", "gallery"):
        assert [(record.pid, record.path) for record in dataset.split(role)] == [
            (pid, f"{role}/{person}/{role}.png") for pid, person in enumerate(sorted(NAMES[:3]))]
    with pytest.raises(UserError, match="no data for --task cc"):
        open_all(tmp_path, asked_tasks("cc"))


MARKET = ("bounding_box_train", "bounding_box_test", "query")


@pytest.mark.parametrize("folder, names, words", [
    ("SYSU-MM01", ("cam1/0001/0001.jpg", "cam2/0001/0001.jpg"), "SYSU-MM01 cannot be read"),
    ("DukeMTMC-reID", [f"{folder}/0001_c1_f0046182.jpg" for folder in MARKET], "withdrawn by its"),
    ("mine", ("anna/1.jpg", "anna/2.jpg", "bob/1.jpg"), "1 people with two photos or more"),
])
def test_what_is_no_folder_of_people(folder, names, words, tmp_path):
    put(tmp_path / folder, *names)
    with pytest.raises(UserError, match=words):
        open_all(tmp_path / folder, asked_tasks("trad"))


def test_own_photos_are_trained_on_and_tested(mine, train_tiny):
    code, out, err = train_tiny("--data", mine, "--steps", 2, "--preset", "toy", "--name", "mine")
    assert code == 0 and "Own photos random-split" in out, err
    rows = runs.read_log("runs/mine")[-1]["rows"]
    assert {row["task"] for row in rows} == {"trad", "cc"}


# ---- weights of one's own ----

def test_a_start_takes_all_but_the_classifiers(train_tiny, unfinished):
    assert train_tiny("--task", "li", "--steps", 2, "--name", "a")[0] == 0
    old = checkpoints.load("runs/a/last.pt")["model"]
    flags = ("--task", "cc", "--steps", 1, "--lr", 0, "--name", "b", "--start", "runs/a/last.pt")
    code, out, err = train_tiny(*flags)
    assert code == 0 and "tensors of runs/a/last.pt; 2 start anew" in out, err
    new = checkpoints.load("runs/b/last.pt")["model"]
    for name in new.keys() & old.keys():
        moves = "running" in name or "num_batches" in name
        assert moves or torch.equal(new[name], old[name]), name
    assert {name for name in new if name not in old} == {
        "classifiers.ltcc.weight", "fused_classifiers.ltcc.weight"}
    one_line(train_tiny("--task", "cc", "--steps", 1, "--start", "nowhere.pt"), "nowhere.pt")


# ---- machines ----

def test_workers_are_as_many_as_shared_memory_holds(monkeypatch, capsys):
    usage = SimpleNamespace(free=64 * 2**20)
    monkeypatch.setattr(device.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(device, "SHARED", "/")
    cpu = torch.device("cpu")
    assert device.loader_workers(8, cpu, 10**5) == 8 and not capsys.readouterr().out
    assert device.loader_workers(8, cpu, 10**7) == 2
    assert "room for 2 of 8 loader workers" in capsys.readouterr().out
    usage.free = 10**5
    assert device.loader_workers(3, cpu, 10**6) == 0
    assert "--shm-size" in capsys.readouterr().out


class Zeros:
    def __getitem__(self, step):
        return torch.zeros(3)


def test_a_signal_ends_the_wait_for_a_worker_that_was_stopped(usual_signals):
    """Also in the middle of a batch that it hands over, and if the signal came before the wait."""
    before = set(multiprocessing.active_children())
    stops = Stops()
    with on_signals(stops):
        loaded = data.loader(Zeros(), 0, 5, workers=1, stops=stops)
        next(loaded)
        [worker] = set(multiprocessing.active_children()) - before
        os.kill(worker.pid, signal.SIGSTOP)
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        assert len(list(loaded)) < 4 and stops == [signal.SIGTERM]
    assert list(data.loader(Zeros(), 0, 5, workers=1, stops=stops)) == []
    assert set(multiprocessing.active_children()) <= before
    stops = Stops()
    stops.is_waiting = True
    with pytest.raises(Stopped):
        stops(2, None)
    stops(15, None)  # which a launcher sends next, does not interrupt what follows
    assert stops == [2, 15]


@pytest.mark.parametrize("seconds", [0, 1])  # the wait for a batch meets the end, or torch says it
def test_a_loader_process_that_is_killed_is_one_line(seconds, usual_signals, monkeypatch, capsys):
    before = set(multiprocessing.active_children())

    def main(_):
        loaded = data.loader(Zeros(), 0, 9, workers=1)
        next(loaded)
        [worker] = set(multiprocessing.active_children()) - before
        worker.kill()
        time.sleep(seconds)
        list(loaded)

    monkeypatch.setattr(sys, "argv", ["data.py", "toy"])
    with pytest.raises(SystemExit) as ended:
        run(main, data.Config)
    error = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2 and error.startswith("error: a loader process was killed")


def test_a_second_signal_ends_at_once(monkeypatch):
    stops = Stops("at once")
    for moment in (0, 0.5):  # a launcher may pass the same signal on
        monkeypatch.setattr(time, "monotonic", lambda moment=moment: moment)
        stops(2, None)
    assert stops == [2, 2]
    monkeypatch.setattr(time, "monotonic", lambda: 2)
    with pytest.raises(Interrupted) as ended:
        stops(15, None)
    assert ended.value.args == (15, "at once")


def test_a_resume_where_fewer_gpus_are_visible(monkeypatch):
    """Each process takes back the random numbers of the GPU of its number, where there was one."""
    restored = []
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *arguments: restored.append(arguments))
    for saved in ([], ["first"], ["first", "second"]):
        state = {"cpu": torch.get_rng_state(), "cuda": saved}
        device.restore_rng(state, torch.device("cuda:1"))
        device.restore_rng(state, torch.device("cuda"))
    zero, one = torch.device("cuda"), torch.device("cuda:1")
    assert restored == [("first", zero), ("second", one), ("first", zero)]


def test_a_data_set_that_cannot_be_read_is_passed_over_beside_others(tmp_path):
    """And refused alone, in a line that says what it was taken for."""
    both = tmp_path / "both"
    for folder in MARKET:
        put(both, f"market/{folder}/anna.jpg")
    words = r"read as Market-1501 \(trad\): .*cannot read 'anna.jpg'"
    with pytest.raises(UserError, match=words):
        open_all(both, asked_tasks("trad"))
    ltcc(both / "ltcc")
    [dataset] = open_all(both, asked_tasks("all"))
    assert dataset.task == "cc"
    assert any("skipped, read as Market-1501" in note for note in dataset.notes)
    market(both / "again")  # no second copy of what cannot be read
    [dataset] = open_all(both, asked_tasks("trad"))
    assert dataset.root == both / "again" and "skipped, read as Market" in dataset.notes[-1]
