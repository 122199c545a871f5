"""Data sets, and photos and weights of one's own, are found, opened, counted and checked."""

import json
import os
import shutil
import sys
from collections import Counter

import pytest
import torch

import data
from instructions import TASKS, asked_tasks
from reid import checkpoints, folders
from reid.cli import UserError
from reid.layouts import LAYOUTS, read_images
from reid.own_photos import SPLIT
from reid.runs import read_log
from tests import trees
from tests.commands import one_line
from tests.trees import PEDES, TREES, opened, put, text

ALL = asked_tasks("all")


# ---- finding ----

@pytest.mark.parametrize("name", TREES)
def test_a_tree_is_found_from_itself_its_parent_and_nested_zips(name, toy):
    root = TREES[name](toy / "too deep/zip/zip/tree")
    for start in (root, *root.parents[:3]):
        assert folders.find_datasets(start) == [(name, root)]
    with pytest.raises(UserError, match="no known data set in it"):
        folders.find_datasets(toy)


@pytest.mark.parametrize("place", ["real2", "real2/real_reid_image_face_blur", "COCAS-Real2"])
def test_a_published_real2_beside_the_lists_of_real1(place, toy):
    shutil.rmtree(trees.cocas(toy) / "real2")
    trees.real2(toy / place)
    market = trees.market(toy / "market/Market-1501")
    found = folders.find_datasets(toy)
    assert set(found) == {("cocas", toy), ("cocas-real2", toy / place), ("market", market)}
    trained, tested = folders.open_all(toy, asked_tasks("ctcc"))
    assert (trained.tested, tested.tested, tested.split("train")) == (False, True, [])
    trees.cocas(toy / "b")
    trees.real2(toy / "b/real2/deeper")  # lists of real2 come before its published form
    assert [name for name, _ in folders.find_datasets(toy / "b")] == ["cocas"]


RELEASED = [  # folder, ending of its lists' names, task
    ("market", "", "trad"), ("ltcc", "", "cc"), ("ltcc", "_cc", "cc"),
    ("vc_clothes", "_cc_clo", "cc"), ("llcm", "_v2", "vi"), ("CUHK-Pedes", "_t2i_v2", "t2i")]


@pytest.mark.parametrize("folder, ending, task", RELEASED)
def test_lists_of_the_released_code_serve_the_task_of_their_data_set_alone(
        folder, ending, task, toy):
    """Whatever they are called: query_sc.txt of LTCC is a protocol, not a task."""
    for role in ("train", "query", "gallery"):
        put(toy, f"{folder}/{role}.jpg")
        for pid, name in ((4, ending), (5, "_general")):
            text(toy, f"{folder}/datalist/{role}{name}.txt", f"{role}.jpg k {pid} 1 2\n")
    text(toy, f"{folder}/datalist/gpt.json", {"k": "A man."})
    for asked, row in TASKS.items():
        if asked == task:
            [dataset] = folders.open_all(toy, {asked: row})
            assert dataset.task == task and [r.pid for r in dataset.records] == [4, 4, 4]
        else:
            with pytest.raises(UserError, match=f"no data for --task {asked}"):
                folders.open_all(toy, {asked: row})


MARKET = ("bounding_box_train", "bounding_box_test", "query")


@pytest.mark.parametrize("folder, names, words", [
    ("holiday", ("query/1.jpg", "train/1.jpg"),
     "no known data set .*docs/data.md.* It contains query"),
    ("SYSU-MM01", ("cam1/0001/0001.jpg", "cam2/0001/0001.jpg"), "SYSU-MM01 cannot be read"),
    ("DukeMTMC-reID", [f"{folder}/0001_c1_f0046182.jpg" for folder in MARKET], "withdrawn by its"),
    ("mine", ("anna/1.jpg", "anna/2.jpg", "bob/1.jpg"), "1 people with two photos or more"),
])
def test_what_is_no_known_data_set(folder, names, words, tmp_path):
    put(tmp_path / folder, *names)
    with pytest.raises(UserError, match=words):
        folders.open_all(tmp_path / folder, asked_tasks("trad"))


def test_what_cannot_be_found_is_said(toy):
    trees.market(toy / "a")
    for path, words in ((toy / "nowhere", "nowhere: no such folder"),
                        (toy / "a", r"--task vi; found Market-1501 \(trad\)")):
        with pytest.raises(UserError, match=words):
            folders.open_all(path, asked_tasks("vi"))
    os.symlink(toy / "loop", toy / "loop")
    with pytest.raises(UserError, match="loop: no such folder .Too many levels of symbolic links"):
        folders.find_datasets(toy / "loop")
    trees.market(toy / "again")
    trees.llcm(toy / "llcm")
    assert opened(toy, "vi").layout == "llcm"  # only what serves the task is wanted once
    with pytest.raises(UserError, match=f"several copies of .* .{toy}/a, {toy}/again"):
        folders.open_all(toy, ALL)


# ---- photos and weights of one's own ----

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
    trad, cc = folders.open_all(mine, ALL)
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
    again, _ = folders.open_all(mine, ALL)
    assert {record.pid for record in again.split("train")} == {
        record.pid for record in trad.split("query")}
    put(mine, "zoe/1.jpg")
    with pytest.raises(UserError, match=r"split\.json: zoe is in neither list"):
        folders.open_all(mine, ALL)


def test_a_split_by_hand_without_outfits(tmp_path):
    for role in ("train", "query", "gallery"):
        for person in NAMES[:3]:
            put(tmp_path, f"{role}/{person}/{role}.png")
    [dataset] = folders.open_all(tmp_path, ALL)
    assert (dataset.task, dataset.title) == ("trad", "Own photos given-split")
    for role in ("train", "query", "gallery"):
        assert [(record.pid, record.path) for record in dataset.split(role)] == [
            (pid, f"{role}/{person}/{role}.png") for pid, person in enumerate(sorted(NAMES[:3]))]
    with pytest.raises(UserError, match="no data for --task cc"):
        folders.open_all(tmp_path, asked_tasks("cc"))


def test_own_photos_are_trained_on_and_tested(mine, train_tiny):
    code, out, err = train_tiny("--data", mine, "--steps", 2, "--preset", "toy", "--name", "mine")
    assert code == 0 and "Own photos random-split" in out, err
    rows = read_log("runs/mine")[-1]["rows"]
    assert {row["task"] for row in rows} == {"trad", "cc"}


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


# ---- what is odd ----

def notes(root, task="trad"):
    return opened(root, task).notes


def test_published_counts(tmp_path, monkeypatch):
    root = trees.cuhk03(tmp_path / "np")
    assert notes(root) == ()  # no split is as published: one's own
    row = LAYOUTS["cuhk03"]
    close = {"train": (1, 1), "query": (5, 5), "labeled query": (1, 1), "labeled train": (9, 1)}
    monkeypatch.setitem(LAYOUTS, "cuhk03", row._replace(published=close))
    assert notes(root) == (f"CUHK03 detected in {root}: query has 1 images or captions of 1 ids, "
                           "published are 5 of 5",)
    assert "train has 1 images or captions of 1 ids" in notes(root / "labeled")[0]
    text(tmp_path, "toy.json", {})
    assert notes(root) == ()


def test_people_in_both_splits_and_images_without_a_record(tmp_path, command):
    root = trees.market(tmp_path / "m")
    (root / "bounding_box_train/-1_c1s1_000301_03.jpg").unlink()
    assert notes(root) == ()
    put(root, "query/0002_c2s1_000001_00.jpg", "query/new/0003_c1s1_000001_00.JPG",
        "query/new/notes.txt", "query/._a.jpg")
    both, unread = notes(root)
    assert "1 people, such as 2, are in training and in test" in both
    assert unread.endswith("1 image files, such as query/new/0003_c1s1_000001_00.JPG, "
                           "belong to no record")
    code, out, err = command(data, root)
    assert code == 0 and [f"note: {both}", f"note: {unread}"] == err.splitlines()[:2]
    assert [line.split() for line in out.splitlines()[:4]] == [
        ["Market-1501", "(trad)", "ids", "images", "cameras", "clothes"],
        ["train", "2", "2", "2", "-"], ["query", "2", "2", "2", "-"],
        ["gallery", "2", "2", "2", "-", "+", "1", "junk"]]


def trained_on(root, task):
    """The training images of the data set of a task, beside the others."""
    [dataset] = [d for d in folders.without_overlap(folders.open_all(root, ALL)) if d.task == task]
    return [record.path for record in dataset.split("train")]


def test_beside_market_cuhk_pedes_loses_the_images_from_there(tmp_path, capsys):
    entries = [{**PEDES[0], "split": split, "file_path": f"{source}/{split}.jpg"}
               for split in ("train", "test") for source in ("Market", "CUHK03", "train_query")]
    text(tmp_path, "pedes/reid_raw.json", entries)
    put(tmp_path, "pedes/imgs/Market/0.jpg")
    market, cuhk03, own = (f"imgs/{entry['file_path']}" for entry in entries[:3])
    assert trained_on(tmp_path, "t2i") == [market, cuhk03, own]
    trees.market(tmp_path / "m")
    assert trained_on(tmp_path, "t2i") == [cuhk03, own]
    kept = folders.without_overlap(folders.open_all(tmp_path, ALL))
    folders.print_notes([*kept, *kept])
    assert capsys.readouterr().err.count("1 training images in imgs/Market/ are left out") == 1
    assert [len(d.split("gallery")) for d in kept if d.task == "t2i"] == [3]  # also from there
    shutil.rmtree(tmp_path / "m")
    trees.omnireid(tmp_path / "cuhk")  # lists of the released code
    (tmp_path / "cuhk/datalist/train_t2i.txt").unlink()
    assert trained_on(tmp_path, "t2i") == [market, own]
    text(tmp_path, "toy.json", {})  # drawn people are in one data set each
    assert trained_on(tmp_path, "t2i") == [market, cuhk03, own]


def test_captioned_photos_of_msmt17_are_only_tested_beside_it(tmp_path):
    for name in ("msmt17", "icfg-pedes", "rstpreid"):
        TREES[name](tmp_path / name)
    for dataset in folders.without_overlap(folders.open_all(tmp_path, ALL)):
        assert bool(dataset.split("train")) == (dataset.layout == "msmt17") and dataset.tested


def test_images_that_do_not_open_are_listed(toy, command, monkeypatch):
    root = trees.real2(toy / "Real2")
    code, out, err = command(data, root)
    assert code == 0 and "every image opens" in out, err
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", None)  # closed
        assert command(data, root)[0] == 0
    for name in ("images/1/a.jpg", "templates/17.jpg"):
        (root / name).write_bytes((root / name).read_bytes()[:300])
    (root / "images/3/c.jpg").unlink()
    code, out, err = command(data, root)
    bad = [line for line in out.splitlines() if "replace the file" in line]
    names = ("images/1/a.jpg", "images/3/c.jpg (No such file", "templates/17.jpg")
    assert all(str(root / name) in line for name, line in zip(names, bad, strict=True))
    one_line((code, out, err), "3 images do not open")


def test_a_data_set_that_cannot_be_read_is_passed_over_beside_others(tmp_path):
    """And refused alone, in a line that says what it was taken for."""
    both = tmp_path / "both"
    for folder in MARKET:
        put(both, f"market/{folder}/anna.jpg")
    words = r"read as Market-1501 \(trad\): .*cannot read 'anna.jpg'"
    with pytest.raises(UserError, match=words):
        folders.open_all(both, asked_tasks("trad"))
    trees.ltcc(both / "ltcc")
    [dataset] = folders.open_all(both, ALL)
    assert dataset.task == "cc"
    assert any("skipped, read as Market-1501" in note for note in dataset.notes)
    trees.market(both / "again")  # no second copy of what cannot be read
    [dataset] = folders.open_all(both, asked_tasks("trad"))
    assert dataset.root == both / "again" and "skipped, read as Market" in dataset.notes[-1]


def test_a_photo_of_ones_own_without_a_caption(toy):
    put(toy, "my_gallery/p2_0001.jpg")
    text(toy, "captions.json", {"my_gallery/p3_0001.jpg": "a man in red"})
    with pytest.raises(UserError, match="captions.json: no captions of my_gallery/p2_0001.jpg"):
        read_images(toy, None, "mine", {"my_gallery": "gallery"}, r"p(?P<pid>\d+)_", "p12_0001.jpg",
                    captions="captions.json")
