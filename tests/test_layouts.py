"""Every layout, from tiny trees with real names and from the toy's trees, and what is said of broken ones."""

import json
import os
import shutil
import warnings
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
import torch

import data
import evaluate
import dolls
import train
from instructions import gallery_instruction, query_instruction
from model import TextEncoder
from reid.cli import UserError
from reid.text import EmbeddedTextEncoder
from reid import checkpoints, folders, synth_pedes as synth
from reid.runs import read_log
from reid.layouts import LAYOUTS, Layout, caption_queries, protocols_of, read_images, is_extra
from reid.protocols import GENERAL, ID_ONLY, STRICT, TEXT
from reid.records import Record, column
from tests.test_data import PEDES, TREES as FIVE, by_role, cocas, ltcc, market, pedes, put, text, toy  # noqa: F401,E501 (toy is a fixture)
from tests.test_train import FAST, ROOT, command, one_line  # noqa: F401 (command is a fixture)


def msmt17(root, version="V1"):
    folders = {"V1": ("train", "test"), "V2": ("mask_train_v2", "mask_test_v2")}[version]
    rows = {"train": "0000/0000_000_01_0303morning_0008_0.jpg", "val": "0000/0000_012_06_0303morning_0006_2_ex.jpg",
            "query": "0000/0000_001_07_0303noon_0020_1.jpg", "gallery": "0000/0000_045_12_0302afternoon_0006_2.jpg"}
    for name, row in rows.items():
        put(root, f"{folders[name in ('query', 'gallery')]}/{row}")
        text(root, f"list_{name}.txt", f"{row} 0\n")
    put(root, f"{folders[0]}/0000/._0000_000_01_0303morning_0008_0.jpg", f"{folders[0]}/0000/Thumbs.db")
    return root


def cuhk03_np(root, kinds=("detected", "labeled"), names=("0001_c1_1", "0003_c1_21", "0003_c2_27")):
    for kind in kinds:
        for folder, name in zip(("bounding_box_train", "bounding_box_test", "query"), names):
            put(root, f"{kind}/{folder}/{name}.{'png' if kind == 'detected' else 'jpg'}", f"{kind}/{folder}/Thumbs.db")
    return root


def prcc(root):
    put(root, "rgb/train/092/A_cropped_rgb010.jpg", "rgb/train/092/C_cropped_rgb001.jpg", "rgb/train/092/Thumbs.db",
        "rgb/val/092/B_cropped_rgb001.jpg", "rgb/test/A/001/cropped_rgb001.jpg", "rgb/test/B/001/cropped_rgb002.jpg",
        "rgb/test/C/001/cropped_rgb010.jpg", "rgb/test/C/001/._cropped_rgb010.jpg", "sketch/train/092/A.jpg")
    return root


def vc_clothes(root):
    put(root, "train/0007-01-01-01.jpg", "query/0001-02-03-04.jpg", "gallery/0001-03-03-05.jpg",
        "gallery/._0001-03-03-05.jpg")
    return root


SYNTH = [{"id": 7, "file_path": "Part1/7/1.jpg", "attributes": ["man,black hair"], "captions": ["A man in a café {."],
          "prompt_caption": ["A photo of a man."]},
         {"id": 78923, "file_path": "Part3/78923/4.jpg", "attributes": ["woman"], "captions": ["One.", "Two."],
          "prompt_caption": ["Three."]}]


def synth_pedes(root, spelt="-"):
    put(root, *(entry["file_path"] for entry in SYNTH))
    content = json.dumps(SYNTH, ensure_ascii=False, indent=1)
    (root / f"synthpedes{spelt}dataset.json").write_text(content, encoding="utf-8")
    return root


def omnireid(root):
    put(root, "img/1_rgb.jpg", "img/2_nir.jpg", "img/3_rgb.jpg")
    text(root, "datalist/train_t2i.txt", "img/1_rgb.jpg a 4 1\nimg/1_rgb.jpg b 4 1\nimg/2_nir.jpg a -1 0\n")
    text(root, "datalist/train.txt", "img/1_rgb.jpg x 4 1 2\n")
    text(root, "datalist/query.txt", "img/2_nir.jpg a 9 2 3\n")
    text(root, "datalist/gallery.txt", "img/3_rgb.jpg sentinel.png 9 1\nimg/1_rgb.jpg sentinel.png -1 1\n")
    text(root, "datalist/captions.json", {"a": "In red.", "b": "In blue.", "img/2_nir.jpg": "In grey."})
    return root


def real2(root):
    """COCAS+ Real2 as it is published; the images' names are made up."""
    put(root, "images/1/a.jpg", "images/2/b.jpg", "images/3/c.jpg", "templates/17.jpg")
    text(root, "query.txt", "images/1/a.jpg templates/17.jpg 9 17 3\n")
    text(root, "gallery.txt", "images/2/b.jpg 9 17 4\nimages/3/c.jpg 9 18 4\n\n")
    return root


def ltcc_clothes(root, tested=True):
    """LTCC_ReID beside clothes and lists, whose own numbers of people and clothes differ."""
    ltcc(root / "LTCC_ReID")
    put(root, "croped_clothes/013_2_c12_006327.png", "croped_clothes/001_1_c5_015874.png",
        "croped_clothes/148_1_c3_014811.png", "templates/7.jpg", "white_shirt.jpg")
    text(root, "datalist/train_ctcc.txt",
         "LTCC_ReID/train/013_2_c12_006327.png croped_clothes/013_2_c12_006327.png 0 70\n"
         "LTCC_ReID/train/013_2_c12_006327.png templates/7.jpg 0 70\n")
    if tested:
        text(root, "datalist/query_ctcc.txt",
             "LTCC_ReID/query/148_1_c3_014811.png templates/7.jpg 148 2 3\n")
        text(root, "datalist/gallery_ctcc.txt",
             "LTCC_ReID/test/001_1_c5_015874.png croped_clothes/001_1_c5_015874.png 1 1 5\n")
    return root


TREES = {"msmt17": msmt17, "cuhk03": cuhk03_np, "prcc": prcc, "vc-clothes": vc_clothes, "synth-pedes": synth_pedes,
         "omnireid": omnireid, "cocas-real2": real2, "ltcc-clothes": ltcc_clothes}


# ---- readers ----

@pytest.mark.parametrize("version", ("V1", "V2"))
def test_msmt17_reads_lists_and_says_its_version(toy, version):
    dataset = folders.open_dataset(msmt17(toy / "MSMT17", version), "trad")
    assert (dataset.name, dataset.title) == (f"msmt17:{version}", f"MSMT17 {version}")
    assert [(r.role, r.pid, r.cam) for r in dataset.records] == [
        ("train", 0, 1), ("val", 0, 6), ("query", 1041, 7), ("gallery", 1041, 12)]  # two people, both numbered 0
    assert all((dataset.root / r.path).is_file() for r in dataset.records)


def test_validation_images_are_trained_on_by_option(toy):
    [paper], [more] = (folders.open_all(msmt17(toy / "MSMT17"), "trad", val) for val in (False, True))
    assert by_role(paper) == {"train": 1, "val": 1, "query": 1, "gallery": 1}
    assert by_role(more) == {"train": 2, "query": 1, "gallery": 1}


def test_cuhk03_takes_the_detected_boxes_unless_pointed_at_the_others(toy):
    root = cuhk03_np(toy / "cuhk03-np")
    detected, labeled = folders.open_dataset(root, "trad"), folders.open_dataset(root / "labeled", "trad")
    assert (detected.title, labeled.title) == ("CUHK03 detected", "CUHK03 labeled")
    assert [(r.role, r.path, r.pid, r.cam) for r in detected.records] == [
        ("train", "detected/bounding_box_train/0001_c1_1.png", 1, 1), ("query", "detected/query/0003_c2_27.png", 3, 2),
        ("gallery", "detected/bounding_box_test/0003_c1_21.png", 3, 1)]
    assert labeled.split("query")[0].path == "query/0003_c2_27.jpg"


@pytest.mark.parametrize("start", ("", "rgb"))
def test_prcc_reads_pid_from_the_folder_and_clothes_from_the_camera(toy, start):
    dataset = folders.open_dataset(prcc(toy / "prcc") / start, "cc")
    assert [(r.role, r.pid, r.cam, r.clothes) for r in dataset.records] == [
        ("train", 92, 0, "92:AB"), ("train", 92, 2, "92:C"), ("val", 92, 1, "92:AB"),
        ("gallery", 1, 0, "1:AB"), ("query", 1, 1, "1:AB"), ("query", 1, 2, "1:C")]


def test_vc_clothes(toy):
    dataset = folders.open_dataset(vc_clothes(toy / "VC-Clothes"), "cc")
    assert [(r.role, r.pid, r.cam, r.clothes) for r in dataset.records] == [
        ("train", 7, 1, "7:1"), ("query", 1, 2, "1:3"), ("gallery", 1, 3, "1:3")]


def test_captions_that_reid_raw_lacks_are_joined_by_file(toy):
    root = pedes(toy / "CUHK-PEDES")
    text(root, "caption_all.json", [{**entry, "id": 1} for entry in PEDES[::-1]])  # other order, other ids
    text(root, "reid_raw.json", [{key: entry[key] for key in ("split", "id", "file_path")} for entry in PEDES])
    dataset = folders.open_dataset(root, "t2i")
    assert [(r.pid, r.captions) for r in dataset.split("train")] == [(11003, ("a man", "walks"))]
    text(root, "caption_all.json", PEDES[1:])
    with pytest.raises(UserError, match="train_query/p11600_s14885.jpg has no captions"):
        folders.open_dataset(root, "t2i")


def test_omnireid_lists(toy):
    root = omnireid(toy / "my.lists")
    dataset = folders.open_dataset(root, "t2i")
    assert dataset.name == "omnireid:my_lists" and dataset.layout == "omnireid"
    assert list(dataset.records) == [
        Record(dataset.name, "train", "img/1_rgb.jpg", 4, None, "4:1", captions=("In red.", "In blue.")),
        Record(dataset.name, "query", None, 9, 3, "9:2", "text", ("In red.",)),
        Record(dataset.name, "gallery", "img/3_rgb.jpg", 9, None, "9:1"),
        Record(dataset.name, "gallery", "img/1_rgb.jpg", -1, None, "-1:1", junk=True)]
    (root / "datalist/train_t2i.txt").unlink()  # now the names do not tell the task, and the one asked for is taken
    assert [r.modality for r in folders.open_dataset(root, "vi").records] == ["rgb", "ir", "rgb", "rgb"]
    assert folders.open_dataset(root, "ctcc").split("query")[0].target_clothes == "9:2"
    assert folders.open_dataset(root, "trad").split("train")[0].cam == 2
    with pytest.raises(UserError, match="sc = trad"):
        folders.open_all(toy)


def test_lists_of_the_same_task_side_by_side_are_two_data_sets(toy):
    for name in ("one", "two"):
        omnireid(toy / name)
    assert [d.name for d in folders.open_all(toy, "t2i")] == ["omnireid:one", "omnireid:two"]


# ---- COCAS+ Real2 as it is published, LTCC with clothes ----

def test_a_published_real2_is_tested_and_its_gallery_carries_itself(toy):
    [dataset] = folders.open_all(real2(toy / "real_reid_image_face_blur"))
    name = "cocas-real2"
    assert (dataset.title, dataset.task) == ("COCAS+ Real2", "ctcc")
    assert protocols_of(dataset) == (STRICT, ID_ONLY)
    assert list(dataset.records) == [
        Record(name, "query", "images/1/a.jpg", 9, 3, template_path="templates/17.jpg",
               crop_path="images/1/a.jpg", target_clothes="9:17"),
        Record(name, "gallery", "images/2/b.jpg", 9, 4, "9:17", crop_path="images/2/b.jpg"),
        Record(name, "gallery", "images/3/c.jpg", 9, 4, "9:18", crop_path="images/3/c.jpg")]
    query, hit, _ = dataset.records
    assert query_instruction("ctcc", query) == "templates/17.jpg"
    assert gallery_instruction("ctcc", hit) == "images/2/b.jpg"
    assert gallery_instruction("ctcc", query) == "images/1/a.jpg"  # "own" of the instruction matrix
    assert folders.check([dataset]) == []


@pytest.mark.parametrize("place", ("real2", "real2/real_reid_image_face_blur", "COCAS-Real2"))
def test_a_published_real2_beside_the_lists_of_real1(toy, place):
    cocas(toy)
    shutil.rmtree(toy / "real2")
    real2(toy / place)
    assert folders.find_datasets(toy) == [("cocas", toy), ("cocas-real2", toy / place)]
    trained, tested = folders.open_all(toy, "ctcc")
    assert (trained.tested, tested.tested) == (False, True)
    assert tested.split("train") == [] and len(trained.split("train")) == 2


def test_lists_of_real2_come_before_its_published_form(toy):
    real2(cocas(toy) / "real2/real_reid_image_face_blur")
    [dataset] = folders.open_all(toy, "ctcc")
    assert dataset.layout == "cocas" and by_role(dataset) == {"train": 2, "query": 1, "gallery": 1}


def test_published_numbers_of_real2_are_of_query_and_gallery_together(tmp_path):
    root = real2(tmp_path)
    text(root, "query.txt", "images/1/a.jpg templates/17.jpg 9 17 3\nimages/1/a.jpg templates/17.jpg 9 18 3\n")
    with pytest.warns(UserWarning, match=r"Real2 in .*test 3 images of 1 ids \(published 21319 of 101\)"):
        folders.open_dataset(root, "ctcc")


@pytest.mark.parametrize("file, row, words", (
    ("query.txt", "images/1/a.jpg 9 17 3", "4 columns, expected 5"),
    ("gallery.txt", "images/2/b.jpg templates/17.jpg 9 17 4", "5 columns, expected 4"),
    ("gallery.txt", "images/2/b.jpg nine 17 4", "pid and camera must be integers"),
))
def test_a_bad_row_of_a_published_real2_is_named(toy, file, row, words):
    text(real2(toy / "Real2"), file, f"\n{row}\n")
    with pytest.raises(UserError, match=rf"{file}:2: .*{words}"):
        folders.open_dataset(toy / "Real2", "ctcc")


def test_ltcc_with_clothes_serves_two_tasks_with_one_numbering(toy):
    described = folders.open_all(ltcc_clothes(toy / "ltcc"))
    assert [(d.name, d.task) for d in described] == [("ltcc-clothes", "cc"), ("ltcc-clothes", "ctcc")]
    changed, pictured = described
    plain = folders.open_dataset(toy / "ltcc/LTCC_ReID", "cc")
    assert [(r.role, r.pid, r.cam, r.clothes) for r in changed.records] == [
        (r.role, r.pid, r.cam, r.clothes) for r in plain.records]
    assert protocols_of(changed) == protocols_of(plain)
    assert protocols_of(pictured) == (STRICT, ID_ONLY)
    assert list(pictured.records) == [
        Record("ltcc-clothes", "train", "LTCC_ReID/train/013_2_c12_006327.png", 13, 12, "13:2",
               template_path="templates/7.jpg", crop_path="croped_clothes/013_2_c12_006327.png"),
        Record("ltcc-clothes", "query", "LTCC_ReID/query/148_1_c3_014811.png", 148, 3,
               template_path="templates/7.jpg", crop_path="croped_clothes/148_1_c3_014811.png",
               target_clothes="148:2"),
        Record("ltcc-clothes", "gallery", "LTCC_ReID/test/001_1_c5_015874.png", 1, 5, "1:1",
               crop_path="croped_clothes/001_1_c5_015874.png")]
    assert folders.check(described) == []


def test_ltcc_with_clothes_is_tested_if_there_are_lists(toy):
    dataset = folders.open_dataset(ltcc_clothes(toy / "ltcc", tested=False), "ctcc")
    assert by_role(dataset) == {"train": 1} and not dataset.tested


def test_without_a_list_for_ctcc_its_folder_is_read_as_lists_of_any_task(toy):
    ltcc_clothes(toy / "ltcc")
    for role in ("train", "query", "gallery"):
        (toy / f"ltcc/datalist/{role}_ctcc.txt").unlink()
        text(toy, f"ltcc/datalist/{role}_cc.txt", "LTCC_ReID/train/013_2_c12_006327.png a.jpg 13 2\n")
    assert [(d.name, d.task) for d in folders.open_all(toy)] == [("omnireid:ltcc", "cc")]


# ---- SYNTH-PEDES ----

@pytest.mark.parametrize("piece", (2**24, 200))
@pytest.mark.parametrize("spelt", ("-", "_"))
def test_synth_pedes_reads_its_entries_from_the_file(toy, monkeypatch, spelt, piece):
    monkeypatch.setattr(synth, "PIECE", piece)  # in 200 bytes no entry ends
    dataset = folders.open_dataset(synth_pedes(toy / "SYNTH-PEDES", spelt), "t2i")
    assert [dataset.records[i] for i in range(2)] == [
        Record("synth-pedes", "train", "Part1/7/1.jpg", 7, captions=("A man in a café {.", "A photo of a man.")),
        Record("synth-pedes", "train", "Part3/78923/4.jpg", 78923, captions=("One.", "Two.", "Three."))]
    assert dataset.records[-1] == dataset.records[1] and column(dataset.records, "pid") == [7, 78923]
    assert dataset.split("query") == [] and not dataset.tested
    with pytest.raises(IndexError):
        dataset.records[2]


def test_a_second_opening_reads_the_index_and_a_changed_file_makes_a_new_one(toy, monkeypatch):
    root = synth_pedes(toy / "SYNTH-PEDES")
    first = folders.open_dataset(root, "t2i")
    monkeypatch.setattr(synth, "make_index", lambda *_: pytest.fail("read again"))
    assert list(folders.open_dataset(root, "t2i").records) == list(first.records)
    monkeypatch.undo()
    text(root, "synthpedes-dataset.json", SYNTH[1:])
    os.utime(root / "synthpedes-dataset.json", (0, 0))  # unpacked with an older date
    assert [r.pid for r in folders.open_dataset(root, "t2i").records] == [78923]
    (root / "synthpedes-dataset.index.npy").write_bytes(b"cut off")
    assert [r.pid for r in folders.open_dataset(root, "t2i").records] == [78923]


@pytest.mark.parametrize("content", ('[{"id": 1, "file_path": "a.jpg", "captions": []}, {"id": 2, "fi', "<html>", "[]",
                                     '[{"id": "seven", "file_path": "a.jpg", "captions": []}]'))
def test_a_broken_synth_pedes_is_named(toy, content):
    text(toy / "SYNTH-PEDES", "synthpedes-dataset.json", content)
    with pytest.raises(UserError, match="synthpedes-dataset.json: .*fetch it again"):
        folders.open_dataset(toy / "SYNTH-PEDES", "t2i")
    assert [path.name for path in (toy / "SYNTH-PEDES").iterdir()] == ["synthpedes-dataset.json"]


def test_an_index_that_cannot_be_kept_is_said(toy, monkeypatch):
    root = synth_pedes(toy / "SYNTH-PEDES")

    def full(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(synth.np, "save", full)
    with pytest.warns(UserWarning, match="cannot be written .No space left"):
        assert len(folders.open_dataset(root, "t2i").records) == 2
    assert not list(root.glob("*.npy*"))


def test_not_all_of_its_sentences_are_kept(monkeypatch):
    text_tower = EmbeddedTextEncoder()
    monkeypatch.setattr(TextEncoder, "MAX_KEPT", 2)
    first = text_tower(["one", "two", "three"])
    text_tower(["four"])
    assert list(text_tower.memory) == ["four"]
    torch.testing.assert_close(text_tower(["one", "two", "three"]), first)


# ---- the toy's trees ----

@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layouts") / "toy"
    dolls.make_toy(folder, people=8, sets="all")
    return folder


# Of 8 people 6 are to train on: (images or captions, people) of each split.
COUNTS = {
    "cocas": {"train": (54, 6), "query": (6, 2), "gallery": (18, 2)},
    "cuhk-pedes": {"train": (20, 5), "val": (4, 1), "query": (12, 2), "gallery": (6, 2)},
    "llcm": {"train": (48, 6), "test": (16, 2)},
    "ltcc": {"train": (72, 6), "query": (6, 2), "gallery": (18, 2)},
    "market": {"train": (36, 6), "query": (4, 2), "gallery": (12, 3)},
    "msmt17:V1": {"train": (30, 6), "val": (6, 6), "query": (4, 2), "gallery": (8, 2)},
    "cuhk03:detected": {"train": (48, 6), "query": (4, 2), "gallery": (12, 2)},
    "prcc": {"train": (54, 6), "val": (18, 6), "query": (16, 2), "gallery": (8, 2)},
    "vc-clothes": {"train": (96, 6), "query": (8, 2), "gallery": (24, 2)},
    "synth-pedes": {"train": (24, 6)},
    "omnireid:OmniReID": {"train": (54, 6), "query": (6, 2), "gallery": (18, 2)},
    "cocas-real2": {"query": (6, 2), "gallery": (18, 2)},
    "ltcc-clothes": {"train": (72, 6), "query": (6, 2), "gallery": (18, 2)},
}


def test_every_layout_of_the_toy_is_read_back_with_exact_counts(drawn):
    datasets = folders.open_all(drawn)
    assert Counter(dataset.task for dataset in datasets) == {"trad": 3, "cc": 4, "ctcc": 4, "li": 2, "t2i": 3, "vi": 1}
    assert {dataset.name for dataset in datasets} == set(COUNTS)
    assert {dataset.layout for dataset in datasets} == set(LAYOUTS)
    for dataset in datasets:
        if is_extra(dataset):  # the training images of li once more
            assert [r.role for r in dataset.records] == ["train"] * COUNTS["cocas"]["train"][0]
            continue
        for role in ("train", "val", "query", "gallery", "test"):
            records = [r for r in dataset.split(role) if not r.junk]
            counted = len(records), len({r.pid for r in records})
            assert counted == COUNTS[dataset.name].get(role, (0, 0)), (dataset.name, role)
        if dataset.layout not in ("cocas", "omnireid"):  # which may number them apart
            assert not [odd for odd in folders.oddities(dataset) if "in training and in test" in odd]
    assert folders.check(datasets) == []


def test_nobody_of_a_test_split_has_a_label(drawn):
    datasets = folders.open_all(drawn)
    batches = data.Batches(datasets, (32, 16), (16, 16), 4, 2, seed=0)
    trained = {name: counts["train"][1] for name, counts in COUNTS.items() if "train" in counts}
    assert batches.classes == trained
    for dataset in datasets:
        if dataset.split("train") and dataset.layout != "cocas":
            tested = {r.pid for role in ("query", "gallery", "test") for r in dataset.split(role)}
            assert not tested & set(batches.labels[dataset.name])
    seen = [batches[step] for step in range(26)]
    assert {batch.dataset for batch in seen} == set(trained)  # every set gets its turn, and one classifier
    for batch in seen:
        assert [batches.labels[batch.dataset][pid] for pid in batch.pids.tolist()] == batch.labels.tolist()


def test_all_layouts_train_and_are_tested_under_every_protocol(drawn, command):
    code, out, err = command(train, "--data", drawn, "--steps", 14, "--name", "all", *FAST)
    assert code == 0, err
    rows = read_log("runs/all")[-1]["rows"]
    got = {(row["data"], row["task"], row["protocol"].removesuffix(" + matching")) for row in rows}
    assert got == {(dataset.title, dataset.task, protocol.name) for dataset in folders.open_all(drawn) if dataset.tested
                   for protocol in protocols_of(dataset) if not protocol.named}
    assert all(row["trials"] in (1, 10) and row["queries"] > 0 and row["without"] >= 0 for row in rows)
    for flags in (("--data", drawn / "LLCM", "--task", "vi", "--protocol", "vis-to-ir-deen"),
                  ("--data", drawn / "prcc", "--task", "cc", "--protocol", "cross single-shot")):
        code, out, err = command(evaluate, "--checkpoint", "runs/all/last.pt", *flags)
        assert code == 0 and flags[-1] in out and " 10 " in out, err
    one_line(command(evaluate, "--checkpoint", "runs/all/last.pt", "--data", drawn / "SYNTH-PEDES"), "no test split")


def test_a_model_is_tested_on_another_set_than_its_own(drawn, command):
    assert command(train, "--data", drawn / "VC-Clothes", "--task", "cc", "--steps", 1, "--name", "cc",
                   *FAST)[0] == 0
    model = ("--checkpoint", "runs/cc/last.pt")
    code, out, err = command(evaluate, *model, "--data", drawn / "prcc")
    assert code == 0 and "PRCC  cross multi-shot" in out, err
    one_line(command(evaluate, *model, "--data", drawn / "MSMT17_V1"), "--task cc", "MSMT17")
    code, out, err = command(evaluate, *model, "--data", drawn / "MSMT17_V1", "--task", "trad")
    assert code == 0 and "MSMT17 V1  general" in out, err


def test_a_set_without_training_images_is_only_tested(drawn, command, tmp_path):
    shutil.copytree(drawn / "COCAS/real2", tmp_path / "data/COCAS/real2")
    shutil.copytree(drawn / "VC-Clothes", tmp_path / "data/VC-Clothes")
    text(tmp_path / "data", "toy.json", {})
    code, out, err = command(train, "--data", "data", "--steps", 2, "--ratios", "cc:1,ctcc:2,li:1", *FAST)
    assert code == 0 and "strict" in out and "all-cc" in out, err


@pytest.mark.parametrize("beside, trained", (("COCAS/real1", "cocas"), ("ltcc", "ltcc-clothes")))
def test_pictures_of_clothes_are_learned_from_another_set(drawn, command, tmp_path, beside, trained):
    for folder in ("COCAS-Real2", beside):
        shutil.copytree(drawn / folder, tmp_path / "data" / folder)
    text(tmp_path / "data", "toy.json", {})
    code, out, err = command(train, "--data", "data", "--task", "ctcc", "--name", "ctcc", "--steps", 2, *FAST)
    assert code == 0, err
    report = read_log("runs/ctcc")[-1]
    rows = [row for row in report["rows"] if row["data"] == "COCAS+ Real2"]
    assert [(row["protocol"], row["queries"], row["gallery"]) for row in rows] == [
        ("strict", 6, 18), ("id-only", 6, 18)]
    matrix = [row for row in report["matrix"] if row["data"] == "COCAS+ Real2"]
    assert [row["instruction"] for row in matrix] == [
        "wanted", "own", "random", "wanted, a stranger's photo", "wanted, without a photo", "wanted, plain gallery"]
    assert checkpoints.load_checkpoint("runs/ctcc/last.pt")["classes"] == {trained: 6}

    flags = ("--data", "data/COCAS-Real2", "--rank-list", "list.png")
    code, out, err = command(evaluate, "--checkpoint", "runs/ctcc/last.pt", *flags)
    assert code == 0 and "ctcc  COCAS+ Real2  id-only" in out and Path("list.png").exists(), err


def test_a_published_real2_alone_is_not_trained_on(drawn, command):
    one_line(command(train, "--data", drawn / "COCAS-Real2", "--steps", 1, *FAST), "no training images there")


# ---- overlap ----

def test_beside_market_cuhk_pedes_loses_the_images_from_there(tmp_path):
    root, sources = tmp_path / "CUHK-PEDES", ("Market", "CUHK03", "train_query")
    entries = [{"split": split, "id": i, "file_path": f"{source}/{i}.jpg", "captions": ["a man"]}
               for i, (split, source) in enumerate((s, f) for s in ("train", "test") for f in sources)]
    text(root, "reid_raw.json", entries)
    put(root, "imgs/Market/0.jpg")
    market(tmp_path / "Market")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone, together = folders.open_all(root), folders.open_all(tmp_path)
    assert folders.without_overlap(alone) == alone
    with pytest.warns(UserWarning, match="1 training images in imgs/Market/"):
        [left] = [d for d in folders.without_overlap(together) if d.task == "t2i"]
    assert [r.path for r in left.split("train")] == ["imgs/CUHK03/1.jpg", "imgs/train_query/2.jpg"]
    assert len(left.split("gallery")) == 3  # the test split stays what it is
    text(tmp_path, "toy.json", {})  # drawn people are in one data set each
    assert folders.without_overlap(folders.open_all(tmp_path)) == folders.open_all(tmp_path)


def test_published_counts_of_the_variant(tmp_path):
    root = cuhk03_np(tmp_path / "cuhk03-np")
    with pytest.warns(UserWarning, match=r"CUHK03 labeled.*train 1 images of 1 ids \(published 7368 of 767\)"):
        folders.open_dataset(root / "labeled", "trad")
    market(tmp_path / "Market")
    put(tmp_path / "Market", "query/0002_c1s1_001051_00.jpg")
    with pytest.warns(UserWarning, match="1 people, such as 2, are in training and in test"):
        folders.open_dataset(tmp_path / "Market", "trad")


# ---- finding ----

@pytest.mark.parametrize("name", FIVE | TREES)
def test_a_tree_is_found_from_itself_its_parent_and_nested_zips(toy, name):
    root = (FIVE | TREES)[name](toy / "zip" / "zip" / "tree")
    for start in (root, root.parent, toy / "zip", toy):
        assert folders.find_datasets(start) == [(name, root)]


def test_real1_and_real2_among_other_sets(toy):
    for part, name in (("real1", "train_ctcc"), ("real2", "query"), ("real2", "gallery")):
        text(toy, f"{part}/datalist/{name}.txt", "a.jpg b.jpg 1 1\n")
    market(toy / "market" / "Market-1501")
    assert folders.find_datasets(toy) == [("cocas", toy), ("market", toy / "market" / "Market-1501")]


# ---- mistakes: one line, exit code 2 ----

def test_mistakes_are_one_line(toy, command):
    def tell(root, *words):
        for call in ((data, root), (train, "--data", root, "--steps", 1)):
            one_line(command(*call), *words)

    put(toy / "wrong", "a/1.jpg", "b/2.jpg")
    tell(toy / "wrong", "Looked for", "PRCC (rgb/train, rgb/test or", "SYNTH-PEDES", "Found a, b")
    tell(toy / "nowhere", "nowhere: no such folder")
    (msmt17(toy / "msmt") / "list_gallery.txt").unlink()
    tell(toy / "msmt", "list_gallery.txt: list is missing")
    text(msmt17(toy / "columns"), "list_query.txt", "\n0000/0000_001_07_0303noon_0020_1.jpg 0 1\n")
    tell(toy / "columns", "list_query.txt:2", "3 columns")
    text(omnireid(toy / "lists"), "datalist/query.txt", "img/2_nir.jpg a 9 2 3\nimg/2_nir.jpg a 9\n")
    tell(toy / "lists", "query.txt:2", "3 columns")
    root = pedes(toy / "pedes")
    (root / "reid_raw.json").rename(root / "caption_all.json")
    tell(root, "caption_all.json have no split", "reid_raw.json")
    root = msmt17(toy / "versions", "V2")
    text(root, "list_query.txt", "0000/0000_001_07_0303noon_0077_1.jpg 0\n")  # V1's name of it
    tell(root, "list_query.txt:1", "mask_test_v2", "V1 and V2 differ")
    (root / "train").mkdir()
    tell(root, "V1 (train/) and V2 (mask_train_v2/)")
    shutil.rmtree(prcc(toy / "prcc") / "rgb/test/C")
    tell(toy / "prcc", "rgb/test/C", "empty split")
    put(toy / "cuhk03", "cuhk03_release/cuhk-03.mat")
    tell(toy / "cuhk03", "cuhk-03.mat", "CUHK03-NP", "docs/recipes.md")
    put(cuhk03_np(toy / "np"), "detected/query/0003_c3_27.png")
    tell(toy / "np", "0003_c3_27.png", "0001_c1_1.png")


def test_images_that_do_not_open_are_listed(drawn, command, tmp_path):
    shutil.copytree(drawn / "COCAS", tmp_path / "COCAS")
    text(tmp_path, "toy.json", {})
    code, out, err = command(data, "COCAS")
    assert code == 0 and "every image opens" in out and "opening images" in err
    assert ["train", "6", "54"] in [line.split()[:3] for line in out.splitlines()]
    first, second = sorted((tmp_path / "COCAS/real1/COCAS").iterdir())[:2]
    first.write_bytes(first.read_bytes()[:500])
    second.unlink()
    (tmp_path / "COCAS/real1/templates/00003.jpg").write_bytes(b"")
    code, out, err = command(data, "COCAS")
    bad = [line for line in out.splitlines() if line.startswith("cannot read image")]
    assert len(bad) == 3 and all(any(name in line for line in bad) for name in (first.name, second.name, "00003.jpg"))
    one_line((code, out, err), "3 images do not open")
    one_line(command(data), "path")


# ---- a data set of one's own ----

def read_mine(root, task):
    """`p12_0001.jpg` = person; captions.json has what each image shows."""
    roles = {"my_train": "train", "my_query": "query", "my_gallery": "gallery"}
    if task == "t2i":
        del roles["my_query"]
    records = read_images(root, "mine", roles, "*.jpg", r"p(?P<pid>\d+)_", "p12_0001.jpg", "captions.json")
    return records + caption_queries(records) if task == "t2i" else records


def test_images_and_captions_of_ones_own(toy, command, monkeypatch):
    captions = {}
    for role, people in (("train", (1, 2)), ("query", (3, 4)), ("gallery", (3, 4))):
        for pid in people:
            for number in (1, 2):
                path = f"my_{role}/p{pid}_{number:04d}.jpg"
                put(toy / "mine", path)
                captions[path] = "a man in red" if role == "gallery" else ["a woman", "someone in blue"]
    text(toy, "mine/captions.json", captions)
    row = Layout("My photos", (("my_train", "captions.json"),), read_mine, {"t2i": (TEXT,), "li": (GENERAL,)})
    monkeypatch.setitem(LAYOUTS, "mine", row)

    described, searched = folders.open_dataset(toy / "mine", "li"), folders.open_dataset(toy / "mine", "t2i")
    assert [len(described.split(role)) for role in ("train", "query", "gallery")] == [4, 4, 4]
    assert described.split("query")[0].captions == ("a woman", "someone in blue")
    assert [(r.path, r.pid, r.captions) for r in searched.split("query")] == [
        (None, pid, ("a man in red",)) for pid in (3, 3, 4, 4)]
    code, out, err = command(train, "--data", toy / "mine", "--steps", 2, "--ids", 2, "--images", 2)
    assert code == 0 and "li    My photos  general" in out and "t2i   My photos  text-to-image" in out, err

    del captions["my_gallery/p3_0001.jpg"]
    text(toy, "mine/captions.json", captions)
    with pytest.raises(UserError, match="captions.json: no captions of my_gallery/p3_0001.jpg"):
        folders.open_dataset(toy / "mine", "t2i")
