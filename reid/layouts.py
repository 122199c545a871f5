"""The data sets as they lie on disk: each is a reader and a row of LAYOUTS, side by side.

A reader is a file-name pattern and a split rule; the row says how the data set is recognised,
under which protocols its tasks are tested, and what was published of it. What no source confirms
is marked UNVERIFIED. A data set of one's own is one more such pair, above the others.
"""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from glob import glob
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from reid.cli import UserError
from instructions import TASKS
from reid.protocols import (
    GENERAL, ID_ONLY, OTHER_CLOTHES, SAME_CLOTHES, STRICT, TEXT, infrared, person,
    person_and_camera, seen_by, usual_protocols, visible)
from reid.records import Record, as_captions
from reid.synth_pedes import Entries


class Layout(NamedTuple):
    title: str
    signs: tuple[tuple[str, ...], ...]  # a folder that holds all names of one of these is this set
    read: Callable  # (root, task) -> Records
    protocols: dict  # task -> its protocols, the default first; these are the set's tasks
    published: dict = {}  # role, or "variant role" -> (images or captions, identities or None)
    extra: dict = {}  # task that it trains where all are trained -> the folder that this takes
    any_task: bool = False  # lists for every task; their names and the task's row say the rest
    # "folder/what it holds": the folders of this set; others beside them may be other sets
    own_folders: tuple[str, ...] = ()
    several: bool = False  # more than one may lie side by side
    numbered_apart: bool = False  # the same number in training and in test is not one person
    taken_from: dict = {}  # other data set -> the folder of training images taken from there


LAYOUTS = {}  # where signs are alike, the more particular comes first


def recognise(folder):
    """The name of the layout that a folder has, or None."""
    for name, layout in LAYOUTS.items():
        for sign in layout.signs:
            if all(glob(entry, root_dir=folder) for entry in sign):
                return name
    return None


def data_task(task):
    """The task whose data sets it is trained and tested on: as a rule, itself."""
    return TASKS[task].data_of or task


def tasks_of(name, root, asked="all"):
    """The tasks that a data set serves, of all or of the one asked for."""
    layout = LAYOUTS[name]
    if layout.any_task:
        served = _tagged_tasks(root, asked)
    else:
        served = [task for task in TASKS if data_task(task) in layout.protocols]
    if asked == "all":
        served += [task for task, folder in layout.extra.items() if (root / folder).exists()]
    return tuple(task for task in served if asked in ("all", task))


def is_extra(dataset):
    """Whether a Dataset's task is one that it is not tested under."""
    return dataset.task in LAYOUTS[dataset.layout].extra


def protocols_of(dataset):
    """The protocols that a Dataset's task is tested under; the first is the default."""
    layout = LAYOUTS[dataset.layout]
    task = data_task(dataset.task)
    if layout.any_task:
        return usual_protocols(TASKS[task])
    return layout.protocols.get(task, ())  # none: it is there to be trained on


# ---- MSMT17 ----

def read_msmt17(root, task):
    """Rows `0000/0000_000_01_0303morning_0008_0.jpg 0` of four lists = path, label.

    The third field of the name is the camera. V2 has other folders and masked faces; its numbers
    are not V1's. Labels begin at 0 in training and in test: here the test people follow the 1,041
    training people.
    """
    is_v1 = (root / "train").is_dir()
    is_v2 = (root / "mask_train_v2").is_dir()
    if is_v1 and is_v2:
        raise UserError(f"{root}: V1 (train/) and V2 (mask_train_v2/) in one folder; "
                        "keep each with its own lists")

    version = "V2" if is_v2 else "V1"
    train, test = {"V1": ("train", "test"), "V2": ("mask_train_v2", "mask_test_v2")}[version]
    records = _listed_msmt17(root, version, train, ("train", "val"), first_pid=0)
    records += _listed_msmt17(root, version, test, ("query", "gallery"), first_pid=1041)
    return records


def _listed_msmt17(root, version, folder, roles, first_pid):
    there = set(glob("*/*.jpg", root_dir=root / folder))
    records = []
    for role in roles:
        rows = read_rows(root / f"list_{role}.txt", (2,))
        gone = [(where, path) for where, (path, _) in rows if path not in there]
        if gone:
            where, path = gone[0]
            raise UserError(
                f"{where}: {path} and {len(gone) - 1} more of {len(rows)} images are not in "
                f"{root / folder}; take the lists that came with these folders (V1 and V2 differ)")

        for where, (path, label) in rows:
            name = match_name(path, r"\d{4}_\d+_(?P<cam>\d{2})_",
                              "0000_000_01_0303morning_0008_0.jpg", where)
            if not re.fullmatch(r"\d{1,15}", label):
                raise UserError(f"{where}: cannot read '{label}'; expected something like 17")
            pid = first_pid + int(label)
            cam = int(name["cam"])
            records.append(Record(f"msmt17:{version}", role, f"{folder}/{path}", pid, cam))
    return records


LAYOUTS["msmt17"] = Layout(
    title="MSMT17",
    signs=(
        ("mask_train_v2",),
        ("train", "list_train.txt"),
        ("list_query.txt", "list_gallery.txt"),
    ),
    read=read_msmt17,
    protocols={"trad": (GENERAL,)},
    published={
        "train": (30248, 1041),
        "val": (2373, None),
        "query": (11659, 3060),
        "gallery": (82161, 3060),
    },
)


# ---- CUHK03 ----

def read_cuhk03(root, task):
    """CUHK03-NP, the new protocol of 767/700 people. `0001_c1_1.png` = pid, view.

    The view, 1 or 2, counts as camera, though there are five pairs of them. Where detected and
    labeled boxes lie side by side, the detected ones are read, as in the paper: point --data at
    the other folder to have those.
    """
    folder = root
    for kind in ("labeled", "detected"):
        if (root / kind).is_dir():
            folder = root / kind
    if not (folder / "bounding_box_train").is_dir():
        raise UserError(f"{root}: cuhk-03.mat and images extracted from it are not read; take the "
                        "CUHK03-NP folders detected/ or labeled/, or make them as 'CUHK03 from its "
                        ".mat' in docs/recipes.md says")

    kind = "labeled" if "label" in folder.absolute().name else "detected"
    inside = folder.relative_to(root)
    folders = {
        str(inside / "bounding_box_train"): "train",
        str(inside / "query"): "query",
        str(inside / "bounding_box_test"): "gallery",
    }
    return read_images(root, f"cuhk03:{kind}", folders, "*.[pj][np]g",
                       r"(?P<pid>\d{4})_c(?P<cam>[12])_\d+\.", "0001_c1_1.png")


LAYOUTS["cuhk03"] = Layout(
    title="CUHK03",
    signs=(
        ("detected/bounding_box_train",),
        ("labeled/bounding_box_train",),
        ("bounding_box_train", "query/*_c[12]_*"),
        # In these forms it is known, and refused.
        ("images_detected",),
        ("images_labeled",),
        ("1_001_1_01.png",),
        ("cuhk-03.mat",),
        ("cuhk03_release",),
    ),
    read=read_cuhk03,
    protocols={"trad": (GENERAL._replace(name="new (767/700)"),)},
    published={
        "train": (7365, 767),
        "query": (1400, 700),
        "gallery": (5332, 700),
        "labeled train": (7368, 767),
        "labeled gallery": (5328, 700),
    },
)


# ---- Market-1501 ----

def read_market(root, task):
    """`0002_c1s1_000451_03.jpg` = pid, camera. 0000 is a distractor that stays."""
    folders = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
    return read_images(root, "market", folders, "*.jpg",
                       r"(?P<pid>-1|\d{4})_c(?P<cam>[1-6])s\d", "0002_c1s1_000451_03.jpg")


LAYOUTS["market"] = Layout(
    title="Market-1501",
    signs=(("bounding_box_train", "bounding_box_test", "query"),),
    read=read_market,
    protocols={"trad": (GENERAL,)},
    published={
        "train": (12936, 751),
        "query": (3368, 750),
        "gallery": (19732, 751),  # with 3,819 junk files and id 0000
    },
)


# ---- LTCC ----

LTCC_NAME = r"(?P<pid>\d+)_(?P<outfit>\d+)_c(?P<cam>\d+)_"
LTCC_EXAMPLE = "094_1_c9_015923.png"


def read_ltcc(root, task):
    """`094_1_c9_015923.png` = pid, outfit of that person, camera. `test` is the gallery."""
    folders = {"train": "train", "query": "query", "test": "gallery"}
    return read_images(root, "ltcc", folders, "*.png", LTCC_NAME, LTCC_EXAMPLE)


LAYOUTS["ltcc"] = Layout(
    title="LTCC",
    signs=(("train", "query", "test"),),
    read=read_ltcc,
    protocols={"cc": (GENERAL, OTHER_CLOTHES, SAME_CLOTHES)},
    published={
        "train": (9576, 77),
        "query": (493, 75),
        "gallery": (7050, 75),
    },
)


def read_ltcc_clothes(root, task):
    """LTCC_ReID with pictures of clothes and OmniReID lists beside it (Supp. Tab. 2, the ‡).

    ctcc: `datalist/train_ctcc.txt` and, if they are there, `query_ctcc.txt` and `gallery_ctcc.txt`.
    The released code has no such task: the names of the lists are UNVERIFIED. cc: the images, as
    without lists.
    """
    name = "ltcc-clothes"
    if not TASKS[task].pictures:
        folders = {
            "LTCC_ReID/train": "train",
            "LTCC_ReID/query": "query",
            "LTCC_ReID/test": "gallery",
        }
        return read_images(root, name, folders, "*.png", LTCC_NAME, LTCC_EXAMPLE)

    records = []
    for record in read_list(root, name, task, "", "train"):
        records.append(_with_numbers_of_its_name(record))
    if (root / "datalist" / f"query_{TASKS[task].tag}.txt").exists():
        records += read_list(root, name, task, "", "query")
        records += read_list(root, name, task, "", "gallery")
    return records


def _with_numbers_of_its_name(record):
    """A listed LTCC image with the person, outfit and camera that its file name tells.

    How the lists number people is UNVERIFIED, and both tasks share a classifier.
    """
    name = match_name(record.path, LTCC_NAME, LTCC_EXAMPLE, record.path)
    pid = int(name["pid"])
    clothes = f"{pid}:{int(name['outfit'])}"
    return replace(record, pid=pid, cam=int(name["cam"]), clothes=clothes)


LAYOUTS["ltcc-clothes"] = LAYOUTS["ltcc"]._replace(
    title="LTCC with clothes",
    signs=(("LTCC_ReID", "datalist/train_ctcc.txt"),),
    read=read_ltcc_clothes,
    protocols={
        "cc": LAYOUTS["ltcc"].protocols["cc"],
        "ctcc": (STRICT, ID_ONLY),
    },
)


# ---- PRCC ----

def read_prcc(root, task):
    """`train/092/A_cropped_rgb010.jpg`, `test/C/001/cropped_rgb010.jpg`: the folder is the pid.

    A, B, C is the camera. People wear the same clothes under A and B, others under C. The gallery
    is A; val shows the people of train.
    """
    rgb = "rgb/" if (root / "rgb").is_dir() else ""
    found = []
    for role in ("train", "val"):
        if role == "val" and not (root / rgb / "val").is_dir():
            continue
        pattern = f"{rgb}{role}/[0-9]*/*.jpg"
        rule = r"(?P<letter>[ABC])_cropped_rgb\d"
        for path, match in find_images(root, pattern, rule, "A_cropped_rgb010.jpg"):
            found.append((role, path, match["letter"]))

    for letter, role in (("A", "gallery"), ("B", "query"), ("C", "query")):
        pattern = f"{rgb}test/{letter}/[0-9]*/*.jpg"
        for path, _ in find_images(root, pattern, r"cropped_rgb\d", "cropped_rgb010.jpg"):
            found.append((role, path, letter))

    records = []
    for role, path, letter in found:
        pid = int(match_name(Path(path).parent, r"\d+$", "092", root / path)[0])
        cam = "ABC".index(letter)
        outfit = "C" if letter == "C" else "AB"
        records.append(Record("prcc", role, path, pid, cam, f"{pid}:{outfit}", view=letter))
    return records


# Camera 2 (C) sees other clothes than the gallery shows, camera 1 (B) the same.
PRCC = GENERAL._replace(name="cross multi-shot", is_query=seen_by(2))

LAYOUTS["prcc"] = Layout(
    title="PRCC",
    signs=(
        ("rgb/train", "rgb/test"),
        ("train", "test/A"),
    ),
    read=read_prcc,
    protocols={"cc": (
        PRCC,
        PRCC._replace(name="cross single-shot", cell=person),
        PRCC._replace(name="same multi-shot", is_query=seen_by(1)),
        PRCC._replace(name="same single-shot", is_query=seen_by(1), cell=person),
    )},
    published={
        "train": (17896, 150),
        "val": (5002, 150),
        # Their sum is published, its parts (A 3,384, B 3,543, C 3,873) are UNVERIFIED.
        "gallery": (3384, 71),
        "query": (7416, 71),
    },
)


# ---- VC-Clothes ----

def read_vc_clothes(root, task):
    """`0001-02-03-04.jpg` = pid, camera, outfit, frame.

    The fields are certain, the number of digits is UNVERIFIED.
    """
    folders = {"train": "train", "query": "query", "gallery": "gallery"}
    return read_images(root, "vc-clothes", folders, "*.jpg",
                       r"(?P<pid>\d+)-(?P<cam>\d+)-(?P<outfit>\d+)-\d+\.", "0001-02-03-04.jpg")


LAYOUTS["vc-clothes"] = Layout(
    title="VC-Clothes",
    signs=(("train", "query", "gallery"),),
    read=read_vc_clothes,
    # Clothes are the same under cameras 2 and 3, others under 4.
    protocols={"cc": (
        GENERAL._replace(name="all"),
        GENERAL._replace(name="cc", is_query=seen_by(3, 4), in_gallery=seen_by(3, 4)),
        GENERAL._replace(name="sc", is_query=seen_by(2, 3), in_gallery=seen_by(2, 3)),
        OTHER_CLOTHES._replace(name="all-cc"),
        SAME_CLOTHES._replace(name="all-sc"),
    )},
    published={
        "train": (9449, 256),
        "query": (1020, 256),
        "gallery": (8591, 256),
    },
)


# ---- LLCM ----

def read_llcm(root, task):
    """`0001_c01_s185535_f7010_nir.jpg` = pid, camera, session, modality.

    vis/ and nir/ hold test people, too; who is trained on is in idx/.
    """
    rule = r"(?P<pid>\d{4})_c(?P<cam>\d{2})_s(?P<session>\d+)_f\d+_(?P<modality>vis|nir)"
    example = "0001_c01_s185535_f7010_nir.jpg"
    records = []
    for folder in ("vis", "nir"):
        for where, (path, *_) in read_rows(root / "idx" / f"train_{folder}.txt", (1, 2)):
            match = match_name(path, rule, example, where)
            records.append(_llcm_record("train", path, match))

        for path, match in find_images(root, f"test_{folder}/cam*/*/*.jpg", rule, example):
            records.append(_llcm_record("test", path, match))
    return records


def _llcm_record(role, path, match):
    modality = "ir" if match["modality"] == "nir" else "rgb"
    return Record("llcm", role, path, int(match["pid"]), int(match["cam"]), modality=modality,
                  view=match["session"])


LLCM = GENERAL._replace(
    name="ir-to-vis",
    is_query=infrared,
    in_gallery=visible,
    cell=person_and_camera,
    people=True,
)

LAYOUTS["llcm"] = Layout(
    title="LLCM",
    signs=(("idx", "test_vis", "test_nir"),),
    read=read_llcm,
    protocols={"vi": (
        LLCM,
        LLCM._replace(name="vis-to-ir", is_query=visible, in_gallery=infrared),
        # What DEEN's code calls VIS to IR: drawn infrared images ask, all visible ones answer.
        LLCM._replace(name="vis-to-ir-deen", transposed=True, named=True),
    )},
    published={
        "train": (30921, 713),
        "test": (15846, 351),  # not 13,909: the published total is 46,767
    },
)


# ---- CUHK-PEDES ----

def read_cuhk_pedes(root, task):
    """`reid_raw.json` holds split, id, file and captions.

    A test image is gallery, each of its captions a query. Captions that it lacks come from
    `caption_all.json`, by file; the ids there follow another numbering.
    """
    if not (root / "reid_raw.json").exists():
        raise UserError(f"{root}: captions in caption_all.json have no split; "
                        "put reid_raw.json, which has, beside it")
    roles = {"train": "train", "val": "val", "test": "gallery"}
    elsewhere = None
    records = []
    for entry in read_entries(root / "reid_raw.json", file_path=str, id=int):
        file = entry["file_path"]
        role = roles.get(str(entry.get("split")))
        if role is None:  # caption_all.json under another name
            raise UserError(f"{root}/reid_raw.json: {file} has no split train, val or test")

        captions = entry.get("captions")
        if not captions:
            if elsewhere is None:
                entries = read_entries(root / "caption_all.json", file_path=str)
                elsewhere = {other["file_path"]: other.get("captions") for other in entries}
            captions = elsewhere.get(file)
        if not captions:
            raise UserError(
                f"{root}: {file} has no captions in reid_raw.json or caption_all.json")

        captions = as_captions(captions, f"{root}: {file}")
        records.append(
            Record("cuhk-pedes", role, f"imgs/{file}", entry["id"], captions=captions))

    if not {"train", "gallery"} <= {record.role for record in records}:
        raise UserError(f"{root}/reid_raw.json: empty split, train and test are both needed; "
                        "fetch the whole file")
    return records + caption_queries(records)


LAYOUTS["cuhk-pedes"] = Layout(
    title="CUHK-PEDES",
    signs=(
        ("imgs", "reid_raw.json"),
        ("imgs", "caption_all.json"),
    ),
    read=read_cuhk_pedes,
    protocols={"t2i": (TEXT,)},
    published={
        "train": (34054, 11003),
        "val": (3078, 1000),
        "query": (6156, 1000),
        "gallery": (3074, 1000),
    },
    taken_from={"market": "imgs/Market/", "cuhk03": "imgs/CUHK03/"},
)


# ---- SYNTH-PEDES ----

def read_synth_pedes(root, task):
    """A JSON list of 4.8 million `{id, file_path, captions, prompt_caption}`, all to train on."""
    path = root / "synthpedes-dataset.json"
    if not path.exists():
        path = root / "synthpedes_dataset.json"
    return Entries(path)


LAYOUTS["synth-pedes"] = Layout(
    title="SYNTH-PEDES",
    signs=(
        ("synthpedes-dataset.json",),
        ("synthpedes_dataset.json",),
    ),
    read=read_synth_pedes,
    protocols={"t2i": ()},  # training only
    published={"train": (4791711, 312321)},
)


# ---- COCAS+ ----

def read_cocas(root, task):
    """OmniReID lists in real1 to train on and in real2 to test on.

    Either may be absent, as real1 is not public. A real2 without lists is no part of it: as
    its authors publish it, it is one by itself.
    """
    if TASKS[task].text_only:  # the descriptions of li, for words and plain photos to agree on
        return read_list(root, "cocas", "li", "real1", "train")
    records = []
    for part, role in (("real1", "train"), ("real2", "query"), ("real2", "gallery")):
        if (root / part / "datalist").exists():
            records += read_list(root, "cocas", task, part, role)
    return records


LAYOUTS["cocas"] = Layout(
    title="COCAS+",
    signs=(
        ("real1/datalist",),
        ("real2/datalist",),
    ),
    read=read_cocas,
    protocols={
        "ctcc": (STRICT, ID_ONLY),
        "li": (STRICT, ID_ONLY),
    },
    extra={"t2i": "real1/datalist"},
    # Tab. 1; how query and gallery divide the 14,449 test images is not published.
    published={"train": (34469, 2800)},
    # In the released code's data folder they lie among the other sets.
    own_folders=("real1/datalist", "real2/datalist"),
    numbered_apart=True,
)


def read_cocas_real2(root, task):
    """COCAS+ Real2 as its authors publish it: people to be tested on, no crops, no sentences.

    `query.txt`: image, template of the wanted clothes, pid, clothes, camera; `gallery.txt`: image,
    pid, clothes, camera. That blanks separate them is UNVERIFIED.

    A gallery image carries itself as its picture of clothes, where the paper gives the crop of its
    own clothes, cut from it: the crops are not published. The template of its clothes would be a
    better picture, but the clothes id that leads to it is what `strict` asks for, and query and hit
    would carry the same file. A query's own picture, in the instruction matrix, is itself too.
    """
    records = []
    for where, fields in read_rows(root / "query.txt", (5,)):
        record = _listed_record("cocas-real2", "query", "", where, fields)
        query = _as_query(record, TASKS[task])
        template = str(PurePosixPath(fields[1]))
        records.append(replace(query, template_path=template, crop_path=query.path))

    for where, (image, *numbers) in read_rows(root / "gallery.txt", (4,)):
        record = _listed_record("cocas-real2", "gallery", "", where, (image, image, *numbers))
        records.append(replace(record, crop_path=record.path))
    return records


LAYOUTS["cocas-real2"] = Layout(
    title="COCAS+ Real2",
    signs=(("images", "templates", "query.txt", "gallery.txt"),),
    read=read_cocas_real2,
    protocols={"ctcc": (STRICT, ID_ONLY)},  # a gallery image carries itself, not a crop
    # Of the whole set; that the lists name all of it is UNVERIFIED.
    published={"test": (21319, 101)},
)


# ---- OmniReID lists ----

def read_omnireid(root, task):
    """Lists `train.txt`, `query.txt`, `gallery.txt` in datalist/, or with a task's tag.

    `train_attr.txt` is the training list of li, and so on.
    """
    there = set()
    for role in ("train", "query", "gallery"):
        if glob(f"{role}*.txt", root_dir=root / "datalist"):
            there.add(role)

    roles = []
    if "train" in there or not there:  # that nothing is there is said by the reader of the list
        roles.append("train")
    if there - {"train"}:
        roles += ["query", "gallery"]

    folder = root.absolute().name.replace(".", "_")  # tells those side by side apart
    records = []
    for role in roles:
        records += read_list(root, f"omnireid:{folder}", task, "", role)
    return records


def _tagged_tasks(root, asked):
    """The tasks that the names of the lists tell, or all where they tell none."""
    tags = {task: TASKS[data_task(task)].tag for task in TASKS}
    tagged = []
    for task, tag in tags.items():
        if tag and glob(f"*_{tag}.txt", root_dir=root / "datalist"):
            tagged.append(task)

    if not tagged and asked == "all":
        known = ", ".join(f"{tag} = {task}" for task, tag in tags.items() if tag)
        raise UserError(f"{root}/datalist: the lists do not say their task; give --task, or name "
                        f"them with its tag as in train_attr.txt ({known})")
    return tagged or list(TASKS)


LAYOUTS["omnireid"] = Layout(
    title="OmniReID lists",
    signs=(("datalist",),),
    read=read_omnireid,
    protocols={},
    any_task=True,
    several=True,
    numbered_apart=True,
)


def read_list(root, name, task, part, role):
    """Records of a list `image instruction pid outfit [camera]` in the folder `part`/datalist.

    An instruction is a picture (ctcc), a key of the caption JSON (t2i, li) or says nothing.
    Training rows of one image become one Record.
    """
    folder = root / part / "datalist"
    path = folder / f"{role}_{TASKS[task].tag}.txt"
    if not path.exists():
        path = folder / f"{role}.txt"
    texts = _caption_texts(folder) if TASKS[task].described else {}

    records = {}
    for where, fields in read_rows(path, (4, 5)):
        record = _listed_record(name, role, part, where, fields)
        if role == "query":
            record = _as_query(record, TASKS[task])
        if TASKS[task].pictures:
            record = _with_picture(record, root, part, fields)
        if TASKS[task].described:
            record = _with_captions(record, TASKS[task], where, fields, texts)

        if role != "train":
            records[where] = record
        elif not record.junk:
            known = records.get(record.path, record)
            records[record.path] = _merged(known, record)
    return list(records.values())


def _caption_texts(folder):
    files = sorted(glob("*.json", root_dir=folder))
    if not files:
        raise UserError(f"{folder}: no caption JSON; it comes with the lists")
    texts = {}
    for file in files:
        texts |= read_json(folder / file, dict)
    return texts


def _listed_record(name, role, part, where, fields):
    """The Record of a row, without its instruction."""
    image, _, pid, outfit, *cam = fields
    try:
        pid = int(pid)
        cam = int(cam[0]) if cam else None  # None: no image is left out for having the same
    except ValueError:
        raise UserError(f"{where}: pid and camera must be integers, not '{' '.join(fields[2:])}'")

    path = str(PurePosixPath(part, image))
    modality = "ir" if "_nir" in Path(image).name else "rgb"
    return Record(name, role, path, pid, cam, f"{pid}:{outfit}", modality, junk=pid == -1)


def _as_query(record, task):
    if "wanted clothes" in task.targets:
        # UNVERIFIED reading (the lists are not public): a query row names the outfit asked for,
        # not the one worn.
        record = replace(record, clothes=None, target_clothes=record.clothes)
    if task.text_only:
        record = replace(record, path=None, modality="text")
    return record


def _with_picture(record, root, part, fields):
    image, instr = fields[:2]
    path = str(PurePosixPath(part, instr))
    if "templates" in Path(instr).parts:
        record = replace(record, template_path=path)
    else:
        record = replace(record, crop_path=path)

    own_crop = str(PurePosixPath(part, "croped_clothes", Path(image).name))
    if record.role == "query" and (root / own_crop).exists():
        record = replace(record, crop_path=own_crop)
    return record


def _with_captions(record, task, where, fields, texts):
    image, instr = fields[:2]
    if task.text_only and record.role == "gallery":  # it carries a sentinel instead of a key
        return record
    if instr not in texts:
        raise UserError(f"{where}: the caption JSON beside it has no key '{instr}'")

    captions = as_captions(texts[instr], where)
    own = as_captions(texts.get(image, texts[instr]), where)
    if record.role == "query" and not task.text_only and own != captions:
        captions += own
    return replace(record, captions=captions)


def _merged(known, record):
    """Two training rows of one image."""
    captions = dict.fromkeys(known.captions + record.captions)
    return replace(
        record,
        captions=tuple(captions),
        template_path=known.template_path or record.template_path,
        crop_path=known.crop_path or record.crop_path,
    )


# ---- pieces of readers ----

def read_images(root, name, folders, files, rule, example, captions=None):
    """Records of images whose file names say who is on them.

    folders: {folder below root: role}; files: a pattern such as *.jpg; rule: a regular expression
    with the groups `pid` and, as far as they are known, `cam` and `outfit`; example: a name that
    it reads. captions: a JSON of {image's path: its sentence, or list of sentences}; those of a
    query (li) are what it asks for and then what it shows. pid -1 is junk, a bad detection.
    """
    texts = read_json(root / captions, dict) if captions else {}
    records = []
    for folder, role in folders.items():
        for path, match in find_images(root, f"{folder}/{files}", rule, example):
            fields = match.groupdict()
            pid = int(fields["pid"])
            if role == "train" and pid == -1:
                continue
            record = Record(name, role, path, pid, junk=pid == -1)
            if "cam" in fields:
                record = replace(record, cam=int(fields["cam"]))
            if "outfit" in fields:
                record = replace(record, clothes=f"{pid}:{int(fields['outfit'])}")
            if captions:
                record = replace(record, captions=_captions_of(path, texts, root / captions))
            records.append(record)
    return records


def _captions_of(path, texts, file):
    sentences = texts.get(path)
    if not sentences:
        raise UserError(f"{file}: no captions of {path}; add them or take the image away")
    return as_captions(sentences, f"{file}: {path}")


def caption_queries(records):
    """Each caption of a gallery image as a query by itself (t2i)."""
    queries = []
    for record in records:
        if record.role != "gallery":
            continue
        for caption in record.captions:
            queries.append(replace(
                record, role="query", path=None, modality="text", captions=(caption,)))
    return queries


def find_images(root, pattern, rule, example):
    """[(path relative to root, match of its name)] of the files of a pattern, sorted."""
    paths = sorted(glob(pattern, root_dir=root))  # none matches the `._name.jpg` that macOS adds
    if not paths:
        raise UserError(f"{root / pattern}: empty split, no such image; "
                        "unpack the data set again or mend --data")
    return [(path, match_name(path, rule, example, root / path)) for path in paths]


def match_name(path, rule, example, where):
    """The match of a file's name and a regular expression; UserError where it does not fit."""
    name = Path(path).name
    match = re.match(rule, name)
    if not match:
        raise UserError(f"{where}: cannot read '{name}'; expected something like {example}")
    return match


def read_rows(path, widths):
    """[("file:line", fields)] of a list file, split at blanks.

    widths: the numbers of fields allowed.
    """
    if not path.is_file():
        raise UserError(f"{path}: list is missing; it comes with the data set's split files")
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip():
            rows.append((f"{path}:{number}", line.split()))
    if not rows:
        raise UserError(f"{path}: empty split, the list holds no row")

    for where, fields in rows:
        if len(fields) not in widths:
            wanted = " or ".join(map(str, widths))
            raise UserError(f"{where}: {len(fields)} columns, expected {wanted} "
                            "without blanks in a path")
    return rows


def read_entries(path, **kinds):
    """The entries of a JSON list, each a dict; kinds: the types of what it must hold."""
    entries = read_json(path, list)
    for number, entry in enumerate(entries, 1):
        for key, kind in kinds.items():
            value = entry.get(key) if isinstance(entry, dict) else None
            if not isinstance(value, kind):
                raise UserError(f"{path}: entry {number} has {value!a:.60} as {key}, "
                                f"expected a {kind.__name__}; fetch the file again")
    return entries


def read_json(path, kind):
    """What a JSON file holds, a list or dict as `kind` says."""
    if not path.is_file():
        raise UserError(f"{path}: file is missing; it comes with the data set's captions")
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); fetch it again")
    if not isinstance(content, kind):
        found = type(content).__name__
        raise UserError(f"{path}: holds a {found}, expected a {kind.__name__}; fetch it again")
    return content


def read_text(path):
    """The text of a file in UTF-8, with or without a byte order mark."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error}); save it in that encoding")
