"""Every reader on a tiny tree with real names: its records, and what is said of bad ones."""

import json
import os
from pathlib import Path

import pytest

from instructions import asked_tasks, gallery_instruction, query_instruction
from reid import streamed as synth
from reid.cli import UserError
from reid.folders import open_all
from reid.layouts import LAYOUTS, NO_CAPTION
from reid.protocols import ID_ONLY, STRICT, TEXT, columns, masks
from reid.records import Record, column
from tests import trees
from tests.trees import NAMED, PEDES, SYNTH, TREES, TRIPLETS, opened, put, text

# ---- names that say who is on the image ----

@pytest.mark.parametrize("name", NAMED)
def test_records_of_names(name, toy):
    [task] = LAYOUTS[name].protocols
    root = TREES[name](toy / "campus/cam7")
    dataset = opened(root, task)
    rows = [(r.path, (r.role, r.pid, r.cam, r.clothes)) for r in dataset.records]
    assert rows == [(path, row) for path, row in NAMED[name].items() if row]
    for record in dataset.records:
        assert record.junk == (record.pid == -1)
        assert record.modality == ("ir" if "_nir." in record.path else "rgb")
    [all_trained] = open_all(root, asked_tasks(task), val=True)
    both = [*dataset.split("val"), *dataset.split("train")]
    assert [r.path for r in all_trained.split("train")] == [r.path for r in both]
    assert not all_trained.split("val") and len(all_trained.records) == len(rows)


def test_variants(toy):
    root = trees.msmt17(toy / "msmt")
    for part in ("train", "test"):
        (root / part).rename(root / f"mask_{part}_v2")
    masked = opened(root, "trad")
    assert (masked.name, masked.title) == ("msmt17:V2", "MSMT17 V2")
    assert masked.records[0].path.startswith("mask_train_v2/0000/0000_000_01")
    labeled = opened(trees.cuhk03(toy / "cuhk03-np") / "labeled", "trad")
    assert (labeled.name, labeled.title) == ("cuhk03:labeled", "CUHK03 labeled")
    assert labeled.split("query")[0].path == "query/0003_c2_27.jpg"
    inner = opened(trees.prcc(toy / "prcc") / "rgb", "cc").records
    assert [r.path for r in inner] == [r.path[4:] for r in opened(toy / "prcc", "cc").records]


# ---- captions ----

@pytest.mark.parametrize("name", ["cuhk-pedes", "icfg-pedes", "rstpreid"])
def test_each_test_caption_is_a_query(name, toy):
    def record(role, file, pid, *captions):
        return Record(name, role, file and f"imgs/{file}", pid, captions=captions,
                      modality="rgb" if file else "text")
    wanted = [
        record("train", "train_query/p1.jpg", 11003, "a", "b"),
        record("val", "CUHK03/299_4.jpg", 11004, "a woman"),
        record("gallery", "test_query/p6.jpg", 12004, "red", "old"),
        record("query", None, 12004, "red"),
        record("query", None, 12004, "old")]
    if name == "icfg-pedes":
        del wanted[1]
    assert opened(TREES[name](toy / "x"), "t2i").records == tuple(wanted)


def test_a_query_of_itcpr_has_its_hits_where_the_instance_is_the_same(toy):
    dataset = opened(trees.itcpr(toy / "ITCPR"), "li")
    assert [protocol.name for protocol in dataset.protocols] == ["composed"]
    assert [(r.role, r.pid, r.clothes, r.target_clothes, r.captions) for r in dataset.records] == [
        ("query", 0, None, "0:7", ("Wearing 7.",)), ("query", 1, None, "1:8", ("Wearing 8.",)),
        ("gallery", 0, "0:7", None, (NO_CAPTION,)), ("gallery", 0, None, None, (NO_CAPTION,)),
        ("gallery", 1, "1:8", None, (NO_CAPTION,))]
    q, g = columns(dataset.split("query"), dataset.split("gallery"))
    hits, removed = masks(dataset.protocols[0], q, g)
    assert hits.tolist() == [[True, False, False], [False, False, True]] and not removed.any()


def test_a_triplet_of_syncpr_is_asked_by_its_edit(toy):
    dataset = opened(trees.syncpr(toy / "SynCPR"), "li")
    assert dataset.streamed and not dataset.tested and list(dataset.records) == [
        Record("syncpr", "train", path, pid, captions=captions) for pid in (3, 5)
        for path, captions in (
            (f"test2/sub_img/img_left/{pid}-1_left.png", (f"Left {pid}.",)),
            (f"test2/sub_img/img_right/{pid}-1_right.png", (f"Edit {pid}.", f"Right {pid}.")))]
    assert column(dataset.records, "pid") == [3, 3, 5, 5] and len(dataset.records) == 4
    target = dataset.records[3]
    assert query_instruction("li", target).words == "Edit 5."
    assert gallery_instruction("li", target).words == "Right 5."


@pytest.mark.parametrize("name,piece", [
    ("synthpedes-dataset.json", 2**24), ("synthpedes_dataset.json", 120)])  # no entry ends in 120
def test_synth_pedes_reads_entries_from_the_file(name, piece, toy, monkeypatch):
    monkeypatch.setattr(synth, "PIECE", piece)
    dataset = opened(trees.synth_pedes(toy / "SYNTH", name), "t2i")
    records = list(dataset.records)
    assert records == [
        Record("synth-pedes", "train", "Part1/7/1.jpg", 7,
               captions=("A man in a café {.", "A photo of a man.")),
        Record("synth-pedes", "train", "Part3/78923/4.jpg", 78923,
               captions=("One.", "Two.", "Three."))]
    assert column(dataset.records, "pid") == [7, 78923]
    assert column(dataset.records, "modality") == ["rgb", "rgb"]
    assert dataset.records[-1] == records[1] and dataset.split("train") is dataset.records
    assert dataset.streamed and not dataset.tested and dataset.split("query") == []


def test_the_index_is_kept_and_made_anew_for_another_file(toy, monkeypatch, capsys):
    root = trees.synth_pedes(toy / "SYNTH")
    file = root / "synthpedes-dataset.json"
    def pids():
        return column(opened(root, "t2i").records, "pid")
    with monkeypatch.context() as patch:
        patch.setattr(synth.np, "save", lambda *_: Path("nowhere/x").write_text(""))
        assert pids() == [7, 78923] and capsys.readouterr().err.startswith("note: cannot write")
        assert not list(toy.rglob("*.npy*")) and pids() == [7, 78923]
    assert pids() == [7, 78923]
    with monkeypatch.context() as patch:
        patch.setattr(synth.Entries, "_places", lambda entries: pytest.fail("read again"))
        assert pids() == [7, 78923]
    text(root, file.name, SYNTH[1:])
    os.utime(file, (0, 0))  # unpacked with an older date
    assert pids() == [78923]
    (root / "synthpedes-dataset.index.npy").write_bytes(b"cut off")
    assert pids() == [78923]
    text(root, file.name, file.read_text().replace("78923,", "78924,"))  # of the same size
    assert pids() == [78924]


# ---- lists ----

def cocas_record(role, path, pid, cam, clothes, **rest):
    part = "real1/COCAS" if role == "train" else "real2/images/1"
    key = "target_clothes" if role == "query" else "clothes"
    return Record("cocas", role, f"{part}/{path}", pid, cam, **{key: clothes}, **rest)


def test_ctcc_of_cocas(toy):
    dataset = opened(trees.cocas(toy / "COCAS"), "ctcc")
    assert dataset.protocols == (STRICT, ID_ONLY) and dataset.records == (
        cocas_record("train", "a.jpg", 7, None, "7:1", crop_path="real1/COCAS/crops/a.jpg",
                     template_path="real1/COCAS/templates/t.jpg"),
        cocas_record("train", "b.jpg", 8, 5, "8:2", crop_path="real1/COCAS/crops/b.jpg"),
        cocas_record("query", "q.jpg", 9, 3, "9:2", template_path="real2/templates/9_2.jpg"),
        cocas_record("gallery", "g.jpg", 9, 4, "9:2", crop_path="real2/crops/g.jpg"))
    put(toy, "COCAS/real2/croped_clothes/q.jpg")  # what the query wears
    worn = opened(toy / "COCAS", "ctcc").split("query")[0].crop_path
    assert worn == "real2/croped_clothes/q.jpg"


def test_li_of_cocas(toy):
    """A query's captions are what it asks for and, if it is known, what it shows."""
    root = trees.cocas(toy / "COCAS")
    both = ("A man.", "A tall man.")
    trained = (cocas_record("train", "a.jpg", 7, None, "7:1", captions=both),
               cocas_record("train", "b.jpg", 8, None, "8:2", captions=both[:1]))
    shown = cocas_record("gallery", "g.jpg", 9, 4, "9:2", captions=("In red.",))
    assert opened(root, "li").records == (
        *trained,
        cocas_record("query", "q.jpg", 9, 3, "9:2", captions=("In red.",)),
        cocas_record("query", "q.jpg", 9, 3, "9:1", captions=("In blue.",)), shown)

    text(root, "real2/datalist/gpt.json",
         {"k1": "In red.", "k2": "In blue.", "images/1/q.jpg": "In red."})
    assert [r.captions for r in opened(root, "li").split("query")] == [
        ("In red.",), ("In blue.", "In red.")]

    both_tasks = {"li": asked_tasks("li")["li"], "t2i": asked_tasks("t2i")["t2i"]}
    _, extra = open_all(root, both_tasks)  # the same training images for another task
    assert (extra.task, extra.extra, extra.protocols) == ("t2i", True, ())
    assert extra.records == trained
    assert open_all(root, asked_tasks("all"))[-1].extra
    with pytest.raises(UserError, match=r"--task t2i; found COCAS\+ \(ctcc li both\)"):
        opened(root, "t2i")


@pytest.mark.parametrize("task", trees.JOINED)
def test_both_of_cocas_are_the_rows_in_the_lists_of_ctcc_and_of_li(toy, task):
    root = trees.cocas(toy / "COCAS")
    text(root, "real2/datalist/query.txt", "images/1/q.jpg templates/9_2.jpg 9 2 3\n"
         "images/1/q.jpg templates/9_3.jpg 9 3 3\nimages/1/p.jpg templates/9_1.jpg 9 1 3\n")
    dataset = opened(root, task)
    assert dataset.protocols == (STRICT, ID_ONLY) and not dataset.extra
    found = [(r.role, r.path, r.template_path, r.crop_path, r.captions) for r in dataset.records]
    assert found == [
        ("train", "real1/COCAS/a.jpg", "real1/COCAS/templates/t.jpg", "real1/COCAS/crops/a.jpg",
         ("A man.", "A tall man.")),
        ("train", "real1/COCAS/b.jpg", None, "real1/COCAS/crops/b.jpg", ("A man.",)),
        ("query", "real2/images/1/q.jpg", "real2/templates/9_2.jpg", None, ("In red.",)),
        ("gallery", "real2/images/1/g.jpg", None, "real2/crops/g.jpg", ("In red.",))]
    assert task not in [d.task for d in open_all(root, asked_tasks("all"))]
    text(root, "real2/datalist/query_attr.txt", "images/1/q.jpg k1 9 7 3\n")
    with pytest.raises(UserError, match="no query image is both in"):
        opened(root, task)


def test_real2_as_it_is_published(toy):
    dataset = opened(trees.real2(toy / "Real2"), "ctcc")
    name = "cocas-real2"
    assert dataset.protocols == (STRICT, ID_ONLY) and dataset.records == (
        Record(name, "query", "images/1/a.jpg", 9, 3, template_path="templates/17.jpg",
               crop_path="images/1/a.jpg", target_clothes="9:17"),
        Record(name, "gallery", "images/2/b.jpg", 9, 4, "9:17", crop_path="images/2/b.jpg"),
        Record(name, "gallery", "images/3/c.jpg", 9, 4, "9:18", crop_path="images/3/c.jpg"))


def test_ltcc_with_clothes_has_one_numbering_for_two_tasks(toy):
    root = trees.ltcc_clothes(toy / "ltcc")
    changed, pictured = open_all(root, asked_tasks("all"))
    def who(dataset):
        return [(r.role, r.pid, r.cam, r.clothes) for r in dataset.records]
    assert who(changed) == who(opened(root / "LTCC_ReID", "cc"))
    assert changed.protocols == LAYOUTS["ltcc"].protocols["cc"]
    name = "ltcc-clothes"
    assert pictured.protocols == (STRICT, ID_ONLY) and pictured.records == (
        Record(name, "train", "LTCC_ReID/train/013_2_c12_006327.png", 13, 12, "13:2",
               template_path="templates/7.jpg", crop_path="croped_clothes/013_2_c12_006327.png"),
        Record(name, "query", "LTCC_ReID/query/148_1_c3_014811.png", 148, 3,
               template_path="templates/7.jpg", crop_path="croped_clothes/148_1_c3_014811.png",
               target_clothes="148:2"),
        Record(name, "gallery", "LTCC_ReID/test/001_1_c5_015874.png", 1, 5, "1:1",
               crop_path="croped_clothes/001_1_c5_015874.png"))
    (root / "datalist/query_ctcc.txt").unlink()
    assert not opened(root, "ctcc").tested


def test_lists_of_any_task(toy):
    root = trees.omnireid(toy / "my.lists")
    dataset = opened(root, "t2i")
    name = "omnireid:my_lists"
    assert (dataset.name, dataset.layout, dataset.protocols) == (name, "omnireid", (TEXT,))
    assert dataset.records == (
        Record(name, "train", "img/1_rgb.jpg", 4, None, "4:1", captions=("In red.", "In blue.")),
        Record(name, "query", None, 9, 3, "9:2", "text", ("In red.",)),
        Record(name, "gallery", "img/3_rgb.jpg", 9, None, "9:1"),
        Record(name, "gallery", "img/1_rgb.jpg", -1, None, "-1:1", junk=True))
    with pytest.raises(UserError, match="no data for --task vi"):
        opened(root, "vi")  # the names tell another task

    (root / "datalist/train_t2i.txt").unlink()  # now they tell none, and any one is taken
    assert [r.modality for r in opened(root, "vi").records] == ["rgb", "ir", "rgb", "rgb"]
    assert opened(root, "ctcc").split("query")[0].target_clothes == "9:2"
    assert opened(root, "trad").split("train")[0].cam == 2
    for task in trees.JOINED:
        with pytest.raises(UserError, match=f"no data for --task {task}"):
            opened(root, task)
    with pytest.raises(UserError, match="attr = li"):
        open_all(toy, asked_tasks("all"))
    trees.omnireid(toy / "other")
    assert [d.name for d in open_all(toy, asked_tasks("vi"))] == [name]


# ---- bad input: one line that names the file ----

ODD_ENTRIES = (
    *({"captions": each} for each in (5, {"a": "b"}, [["a"]], [None], ["\ud800"], ["fine", " "])),
    *({"id": each} for each in (None, 1.5, 10**30, "1", True)),
    {"file_path": "../../x.jpg"}, {"file_path": "\ud800.jpg"})
JSON = "real2/datalist/gpt.json"
GALLERY = "real2/datalist/gallery_attr.txt"
PHOTO = "0000/0000_001_07_0303noon_00"
BAD = (  # (tree, task, a piece, what it holds, what is said)
    (trees.market, "trad", "query/0003_cam2.jpg", "", "0003_cam2.jpg'.* 0002_c1s1"),
    (trees.cuhk03, "trad", "detected/query/0003_c3_27.png", "", "0003_c3_27.* 0001_c1_1.png"),
    (trees.prcc, "cc", "rgb/test/C/001/C_cropped_rgb011.jpg", "", "C_cropped.* A/001/cropped"),
    (trees.llcm, "vi", "test_nir", None, "test_nir/.*: empty split"),
    (trees.llcm, "vi", "idx/train_nir.txt", "\n", "train_nir.txt: empty split"),
    (trees.msmt17, "trad", "list_gallery.txt", None, "list_gallery.txt: no such file"),
    (trees.msmt17, "trad", "list_query.txt", f"{PHOTO}20_1.jpg x", "list_query.txt:1: .*integers"),
    (trees.msmt17, "trad", "list_query.txt", f"{PHOTO}77_1.jpg 0", "list_query.txt:1: .*V1 and V2"),
    (trees.msmt17, "trad", "mask_train_v2/readme.txt", "", "V1 .train/. and V2"),
    (trees.real2, "ctcc", "gallery.txt", "\na.jpg t.jpg 9 17 4", "gallery.txt:2: 5 columns"),
    *((trees.cocas, "li", GALLERY, f"a.jpg k1 9 2\n\n{row}", f"gallery_attr.txt:3: .*{words}")
      for row, words in (
          ("my a.jpg k1 9 1 3", "6 columns"), ("a.jpg k1 nine 1", "integers"),
          ("a.jpg k1 9 1 x", "integers"), ("a.jpg k9 9 1", "key 'k9'"))),
    *((trees.cocas, "li", GALLERY, row, "x: .*(outside|no id)") for row in (
        "/etc/passwd k1 9 2 3", "../../../x.jpg k1 9 2 3", f"a.jpg k1 9 2 {10**30}")),
    (trees.cocas, "li", JSON, [], "gpt.json: "), (trees.cocas, "li", JSON, {}, "key 'k1'"),
    *((trees.pedes, "t2i", "reid_raw.json", content, "reid_raw.json: ") for content in (
        {}, [5], [{"id": 1}], "[", PEDES[:2], [PEDES[0] | {"split": ["train"]}])),
    *((trees.pedes, "t2i", "reid_raw.json", [PEDES[0] | change, *PEDES[1:]], "x.*; ")
      for change in (*ODD_ENTRIES, {"captions": None}, {"captions": []}, {"file_path": None})),
    (trees.rstpreid, "t2i", "data_captions.json", PEDES, "data_captions.json: no img_path in"),
    *((trees.itcpr, "li", "gallery.json", [{
        "file_path": "a.jpg", "datasets": "PRCC", "person_id": 1, "instance_id": -1} | change],
       "gallery.json: no ") for change in ({"person_id": "1"}, {"instance_id": None})),
    (trees.itcpr, "li", "query.json", [], "query.json: empty split"),
    *((trees.syncpr, "li", "SynCPR.json", [TRIPLETS[0] | change], "SynCPR.json: the entry at byte")
      for change in ({"edit_caption": None}, {"target_image_path": None})),
    *((trees.synth_pedes, "t2i", "synthpedes-dataset.json", content, "dataset.json: not a JSON")
      for content in ("<html>", "[]", '[{"captions": ' + "[" * 10_000, json.dumps(SYNTH)[:150])),
    *((trees.synth_pedes, "t2i", "synthpedes-dataset.json", [SYNTH[0], SYNTH[1] | change],
       "dataset.json: the entry at byte") for change in (
           {"id": 1.5}, {"file_path": None}, {"captions": [], "prompt_caption": []})),
)


@pytest.mark.parametrize("tree,task,piece,content,words", BAD, ids=range(len(BAD)))
def test_bad_input(tree, task, piece, content, words, toy):
    root = tree(toy / "x")
    for path in [*(root / piece).rglob("*"), root / piece] if content is None else ():
        if path.is_file():
            path.unlink()
    if content is not None:
        text(root, piece, content)
    with pytest.raises(UserError, match=words) as error:
        opened(root, task)
    assert "\n" not in str(error.value) and not list(root.glob("*.npy*"))


def test_a_name_that_is_not_utf_8(toy):
    os.rename(trees.market(toy / "m") / "query/0001_c1s1_001051_00.jpg",
              os.fsencode(toy / "m/query/0001_c1s1_001051_") + b"\xff.jpg")
    with pytest.raises(UserError, match="not UTF-8"):
        opened(toy / "m", "trad")
