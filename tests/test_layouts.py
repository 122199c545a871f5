"""Every reader on a tiny tree with real names: its records, and what is said of bad ones."""

import json
import os
import re
from dataclasses import fields
from pathlib import Path

import pytest

from instructions import asked_tasks
from reid import streamed as synth
from reid.cli import UserError
from reid.folders import open_all
from reid.layouts import LAYOUTS
from reid.protocols import columns, masks
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


# ---- captions and lists ----

CAPTIONED = """text-to-image
train imgs/train_query/p1.jpg 11003 - - captions=('a', 'b')
val imgs/CUHK03/299_4.jpg 11004 - - captions=('a woman',)
gallery imgs/test_query/p6.jpg 12004 - - captions=('red', 'old')
query - 12004 - - modality=text captions=('red',)
query - 12004 - - modality=text captions=('old',)"""
RECORDS = {  # (tree, task) -> protocols; of each record role, path, pid, camera, clothes, and more
    ("cuhk-pedes", "t2i"): CAPTIONED,
    ("icfg-pedes", "t2i"): re.sub("val .*\n", "", CAPTIONED),
    ("rstpreid", "t2i"): CAPTIONED,
    ("itcpr", "li"): """composed
query Celeb-reID/001/1_1_0.jpg 0 - - captions=('Wearing 7.',) target=0:7
query PRCC/train/001/A.jpg 1 - - captions=('Wearing 8.',) target=1:8
gallery Celeb-reID/001/1_2_0.jpg 0 - 0:7 captions=('a person',)
gallery Celeb-reID/001/1_3_0.jpg 0 - - captions=('a person',)
gallery PRCC/test/A/001/1.jpg 1 - 1:8 captions=('a person',)""",
    ("synth-pedes", "t2i"): """
train Part1/7/1.jpg 7 - - captions=('A man in a café {.', 'A photo of a man.')
train Part3/78923/4.jpg 78923 - - captions=('One.', 'Two.', 'Three.')""",
    ("syncpr", "li"): """
train test2/sub_img/img_left/3-1_left.png 3 - - captions=('Left 3.',)
train test2/sub_img/img_right/3-1_right.png 3 - - captions=('Edit 3.', 'Right 3.')
train test2/sub_img/img_left/5-1_left.png 5 - - captions=('Left 5.',)
train test2/sub_img/img_right/5-1_right.png 5 - - captions=('Edit 5.', 'Right 5.')""",
    ("cocas", "ctcc"): """strict id-only
train real1/COCAS/a.jpg 7 - 7:1 template=real1/COCAS/templates/t.jpg crop=real1/COCAS/crops/a.jpg
train real1/COCAS/b.jpg 8 5 8:2 crop=real1/COCAS/crops/b.jpg
query real2/images/1/q.jpg 9 3 - template=real2/templates/9_2.jpg target=9:2
gallery real2/images/1/g.jpg 9 4 9:2 crop=real2/crops/g.jpg""",
    ("cocas", "li"): """strict id-only
train real1/COCAS/a.jpg 7 - 7:1 captions=('A man.', 'A tall man.')
train real1/COCAS/b.jpg 8 - 8:2 captions=('A man.',)
query real2/images/1/q.jpg 9 3 - captions=('In red.',) target=9:2
query real2/images/1/q.jpg 9 3 - captions=('In blue.',) target=9:1
gallery real2/images/1/g.jpg 9 4 9:2 captions=('In red.',)""",
    ("cocas", "both"): """strict id-only
train real1/COCAS/a.jpg 7 - 7:1
    captions=('A man.', 'A tall man.')
    template=real1/COCAS/templates/t.jpg crop=real1/COCAS/crops/a.jpg
train real1/COCAS/b.jpg 8 5 8:2 captions=('A man.',) crop=real1/COCAS/crops/b.jpg
query real2/images/1/q.jpg 9 3 -
    captions=('In red.',) template=real2/templates/9_2.jpg target=9:2
gallery real2/images/1/g.jpg 9 4 9:2 captions=('In red.',) crop=real2/crops/g.jpg""",
    ("cocas-real2", "ctcc"): """strict id-only
query images/1/a.jpg 9 3 - template=templates/17.jpg crop=images/1/a.jpg target=9:17
gallery images/2/b.jpg 9 4 9:17 crop=images/2/b.jpg
gallery images/3/c.jpg 9 4 9:18 crop=images/3/c.jpg""",
    ("ltcc-clothes", "cc"): """general cc sc
train LTCC_ReID/train/013_2_c12_006327.png 13 12 13:2
train LTCC_ReID/train/094_1_c9_015923.png 94 9 94:1
query LTCC_ReID/query/148_1_c3_014811.png 148 3 148:1
gallery LTCC_ReID/test/001_1_c5_015874.png 1 5 1:1""",
    ("ltcc-clothes", "ctcc"): """strict id-only
train LTCC_ReID/train/013_2_c12_006327.png 13 12 13:2
    template=templates/7.jpg crop=croped_clothes/013_2_c12_006327.png
query LTCC_ReID/query/148_1_c3_014811.png 148 3 -
    template=templates/7.jpg crop=croped_clothes/148_1_c3_014811.png target=148:2
gallery LTCC_ReID/test/001_1_c5_015874.png 1 5 1:1 crop=croped_clothes/001_1_c5_015874.png""",
    ("omnireid", "t2i"): """text-to-image
train img/1_rgb.jpg 4 - 4:1 captions=('In red.', 'In blue.')
query - 9 3 9:2 modality=text captions=('In red.',)
gallery img/3_rgb.jpg 9 - 9:1
gallery img/1_rgb.jpg -1 - -1:1 junk=True""",
}


def told(dataset):
    """The words of RECORDS about a data set."""
    words = [protocol.name for protocol in dataset.protocols]
    for record in dataset.records:
        words += [record.role, record.path, record.pid, record.cam, record.clothes]
        for field in fields(Record)[6:]:
            value = getattr(record, field.name)
            if value != field.default:
                words.append(f"{re.sub('_path|_clothes', '', field.name)}={value}")
    return " ".join(map(str, words)).replace("None", "-").split()


@pytest.mark.parametrize("name, task", RECORDS)
def test_records_of_captions_and_lists(name, task, toy):
    dataset = opened(TREES[name](toy / "my.lists"), task)
    assert told(dataset) == RECORDS[name, task].split()
    assert dataset.layout == name and not dataset.extra
    assert dataset.streamed != dataset.tested == bool(dataset.protocols)
    records = list(dataset.records)
    assert len(dataset.records) == len(records) and dataset.records[-1] == records[-1]
    for field in ("pid", "modality"):
        assert column(dataset.records, field) == [getattr(record, field) for record in records]
    assert not dataset.streamed or dataset.split("train") is dataset.records


def test_a_query_of_itcpr_has_its_hits_where_the_instance_is_the_same(toy):
    dataset = opened(trees.itcpr(toy / "ITCPR"), "li")
    q, g = columns(dataset.split("query"), dataset.split("gallery"))
    hits, removed = masks(dataset.protocols[0], q, g)
    assert hits.tolist() == [[True, False, False], [False, False, True]] and not removed.any()


def test_the_index_is_kept_and_made_anew_for_another_file(toy, monkeypatch, capsys):
    monkeypatch.setattr(synth, "PIECE", 120)  # no entry ends there
    root = trees.synth_pedes(toy / "SYNTH", "synthpedes_dataset.json")
    file = root / "synthpedes_dataset.json"
    def pids():
        return [record.pid for record in opened(root, "t2i").records]
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
    (root / "synthpedes_dataset.index.npy").write_bytes(b"cut off")
    assert pids() == [78923]
    text(root, file.name, file.read_text().replace("78923,", "78924,"))  # of the same size
    assert pids() == [78924]


# ---- lists ----

def test_what_a_query_of_cocas_shows_where_it_is_known(toy):
    """The crop of what it wears; after the description that it asks for its own."""
    root = trees.cocas(toy / "COCAS")
    put(root, "real2/croped_clothes/q.jpg")
    assert opened(root, "ctcc").split("query")[0].crop_path == "real2/croped_clothes/q.jpg"
    text(root, "real2/datalist/gpt.json",
         {"k1": "In red.", "k2": "In blue.", "images/1/q.jpg": "In red."})
    assert [r.captions for r in opened(root, "li").split("query")] == [
        ("In red.",), ("In blue.", "In red.")]


def test_training_images_of_li_serve_t2i_in_joint_training(toy):
    root = trees.cocas(toy / "COCAS")
    both_tasks = {"li": asked_tasks("li")["li"], "t2i": asked_tasks("t2i")["t2i"]}
    described, extra = open_all(root, both_tasks)
    assert (extra.task, extra.extra, extra.protocols) == ("t2i", True, ())
    assert list(extra.records) == described.split("train")
    assert open_all(root, asked_tasks("all"))[-1].extra
    with pytest.raises(UserError, match=r"--task t2i; found COCAS\+ \(ctcc li both\)"):
        opened(root, "t2i")


@pytest.mark.parametrize("task", trees.JOINED)
def test_both_of_cocas_are_the_rows_in_the_lists_of_ctcc_and_of_li(toy, task):
    root = trees.cocas(toy / "COCAS")
    text(root, "real2/datalist/query.txt", "images/1/q.jpg templates/9_2.jpg 9 2 3\n"
         "images/1/q.jpg templates/9_3.jpg 9 3 3\nimages/1/p.jpg templates/9_1.jpg 9 1 3\n")
    text(root, "real2/datalist/query_attr.txt", "images/1/q.jpg k1 9 2 3\n"
         "images/1/q.jpg k2 9 2 3\nimages/1/q.jpg k2 9 1 3\n")
    assert told(opened(root, task)) == RECORDS["cocas", "both"].split()
    assert task not in [d.task for d in open_all(root, asked_tasks("all"))]
    text(root, "real2/datalist/query_attr.txt", "images/1/q.jpg k1 9 7 3\n")
    with pytest.raises(UserError, match="no query image is both in"):
        opened(root, task)


def test_ltcc_with_clothes_has_two_tasks(toy):
    root = trees.ltcc_clothes(toy / "ltcc")
    assert [dataset.task for dataset in open_all(root, asked_tasks("all"))] == ["cc", "ctcc"]
    (root / "datalist/query_ctcc.txt").unlink()
    assert not opened(root, "ctcc").tested


def test_lists_of_any_task(toy):
    root = trees.omnireid(toy / "my.lists")
    name = "omnireid:my_lists"
    assert opened(root, "t2i").name == name
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
