"""The folder layouts of data sets: one row of LAYOUTS each, and a reader for each kind of files.

A reader gets the folder and the task's row of instructions.TASKS. A row of LAYOUTS says how the
data set is recognised, which protocols its tasks have, and which sizes were published. Details that
no source confirms are marked UNVERIFIED.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from glob import glob
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from reid.cli import UserError, user_error
from reid.files import read_json, read_text
from reid.images import is_image
from reid.own_photos import read_own
from reid.protocols import GENERAL, ID_ONLY, OTHER_CLOTHES, SAME_CLOTHES, STRICT, TEXT
from reid.records import Record, as_captions
from reid.streamed import Entries

AGAIN = "fetch it again"


class Layout(NamedTuple):
    title: str
    signs: tuple[tuple[str, ...], ...]  # any of these: names that such a folder contains
    read: Callable  # (root, the task's row) -> Records
    protocols: dict  # the set's tasks -> protocols, the default first
    published: dict = {}  # role, or "variant role" -> (images or captions, identities)
    extra: dict = {}  # task that it also trains in joint training -> folder needed for this
    lists: bool = False  # lists of any task, named after it; there may be several such sets
    parts: tuple[str, ...] = ()  # its subfolders, if other data sets may lie next to them
    taken_from: dict = {}  # other data set -> folder of training images taken from it


LAYOUTS = {}  # the first that fits is used, so special layouts come before general ones


def recognise(folder):
    """The name of the layout that a folder has, or None."""
    for name, layout in LAYOUTS.items():
        if any(all(glob(entry, root_dir=folder) for entry in sign) for sign in layout.signs):
            return name
    return None


def tasks_of(name, root, tasks):
    """The tasks, of {name: row}, that a data set has; `extra` ones only if several are given."""
    layout = LAYOUTS[name]
    if layout.lists:
        return _listed_tasks(root, tasks)
    data_of = {task: row.data_of or task for task, row in tasks.items()}
    served = [task for task in tasks if data_of[task] in layout.protocols]
    if name == "own" and not any(record.clothes for record in read_own(root, None)):
        served = [task for task in served if data_of[task] != "cc"]
    if len(tasks) > 1:
        served += [task for task, folder in layout.extra.items() if (root / folder).exists()]
    return served


# ---- identities in file names ----

def read_images(root, row, name, folders, rule, example, inside="", captions=None):
    """Records of images with identities in their file names, sorted by path within a folder.

    folders: {folder below root / inside, or a pattern: role}; rule, example: see `named_record`.
    captions: a JSON file {path of an image: sentence or list of sentences}; a query of li has the
    wanted description first, then its own.
    """
    texts = read_json(root / captions, dict, AGAIN) if captions else {}
    records = []
    for folder, role in folders.items():
        paths = sorted(filter(is_image, glob(f"{inside}{folder}/*", root_dir=root)))
        if not paths and role != "val":
            raise UserError(f"{root}/{inside}{folder}: empty split, no image in it; "
                            "unpack the data set again or correct --data")
        for path in paths:
            record = named_record(name, role, path, rule, example, root / path)
            if captions and not texts.get(path):
                raise UserError(f"{root / captions}: no captions of {path}; "
                                "add them or take the image away")
            if role != "train" or not record.junk:
                records.append(replace(record, captions=as_captions(texts.get(path))))
    return records


def named_record(name, role, path, rule, example, where):
    """The Record of an image with the identity in its file name.

    rule: a regular expression for the start of the name, or of folders above it, with the group
    `pid` and optionally `cam`, `outfit`, `modality`.
    example: a name that matches. pid -1 is junk, a bad detection.
    """
    match = re.search(rf"(?:^|/)(?:{rule})[^/]*$", path)
    if not match:
        name = Path(path).name
        raise UserError(f"{where}: cannot read '{name}'; expected something like {example}")
    known = match.groupdict()
    pid = int(known["pid"])
    return Record(
        name, role, path, pid,
        cam=int(known["cam"]) if "cam" in known else None,
        clothes=f"{pid}:{int(known['outfit'])}" if "outfit" in known else None,
        modality="ir" if known.get("modality") == "nir" else "rgb",
        junk=pid == -1,
    )


def caption_queries(records):
    """Queries of t2i: one for each caption of a gallery image."""
    return [
        replace(record, role="query", path=None, modality="text", captions=(caption,))
        for record in records if record.role == "gallery" for caption in record.captions
    ]


# ---- JSON ----

def read_entries(path, kinds):
    """The list of dicts in a JSON file. kinds: {required key: type of its value}."""
    entries = read_json(path, list, AGAIN)
    for entry in entries:
        for key, kind in kinds.items():
            if not isinstance(entry, dict) or type(entry.get(key)) is not kind:
                raise UserError(f"{path}: no {key} in {entry!a:.60}; {AGAIN}")
    if not entries:
        raise UserError(f"{path}: empty split, the list holds no entry; {AGAIN}")
    return entries


def read_captioned(root, row, name, file, image="file_path"):
    """Records of a JSON list `[{split, id, file_path, captions}]`; test captions become queries.

    file: its name, or a pattern; image: its key for file_path, a path below imgs/.
    """
    path = min(root.glob(file), default=root / file)
    roles = {"train": "train", "val": "val", "test": "gallery"}
    records = []
    for entry in read_entries(path, {image: str}):
        photo = entry[image]
        role = roles.get(str(entry.get("split")))
        if role is None:
            raise UserError(f"{path}: {photo!a} has no split train, val or test; {AGAIN}")
        captions = as_captions(entry.get("captions"))
        if not captions:
            raise UserError(f"{path}: no captions of {photo!a}; {AGAIN}")
        records.append(Record(name, role, f"imgs/{photo}", entry.get("id"), captions=captions))

    if not {"train", "gallery"} <= {record.role for record in records}:
        raise UserError(f"{path}: empty split, train and test are both needed; {AGAIN}")
    return records + caption_queries(records)


# ---- lists ----

def read_rows(path, *widths):
    """[("file:line", fields)] of a list file, split at blanks. widths: allowed numbers of them."""
    fix = "unpack the data set's lists and captions again, in UTF-8"
    lines = read_text(path, fix).splitlines()
    rows = [(f"{path}:{number}", line.split()) for number, line in enumerate(lines, 1)]
    rows = [(where, fields) for where, fields in rows if fields]
    wanted = " or ".join(map(str, widths))
    for where, fields in rows:
        if len(fields) not in widths:
            raise UserError(
                f"{where}: {len(fields)} columns, expected {wanted} without blanks in a path")
    if not rows:
        raise UserError(f"{path}: empty split, the list holds no row")
    return rows


def whole_number(text, where):
    with user_error(f"{where}: pid and camera must be integers", "correct that row", ValueError):
        return int(text)


def read_list(root, name, row, part, role):
    """Records of a list `image instruction pid outfit [camera]` in the folder `part`/datalist. The
    instruction is a picture (ctcc), a key of the caption JSON (t2i, li) or unused. Training rows of
    the same image become one Record."""
    folder = root / part / "datalist"
    tagged = sorted(folder.glob(f"{role}_{row.tag}*.txt"))
    untagged = [folder / f"{role}.txt", folder / f"{role}_v2.txt"]
    path = next(filter(Path.exists, tagged + untagged), untagged[0])
    texts = {}
    for file in sorted(folder.glob("*.json")) if row.described else ():
        texts |= read_json(file, dict, AGAIN)

    records = []
    for where, (image, instr, *numbers) in read_rows(path, 4, 5):
        record = _listed_record(name, row, role, part, image, numbers, where)
        if row.pictures:
            record = _with_picture(record, root, part, instr)
        if row.described and not (row.text_only and role == "gallery"):  # with dummy key
            record = _with_captions(record, texts, image, instr, where)
        records.append(record)
    return _merged(records) if role == "train" else records


def _listed_record(name, row, role, part, image, numbers, where):
    """The Record of a row without its instruction; numbers: pid, outfit and, if known, camera."""
    pid, outfit, *cam = numbers
    pid = whole_number(pid, where)
    cam = whole_number(cam[0], where) if cam else None  # unknown: removes no image
    path = str(PurePosixPath(part, image))
    modality = "ir" if "_nir" in Path(image).name else "rgb"
    record = Record(name, role, path, pid, cam, f"{pid}:{outfit}", modality, junk=pid == -1)
    if role == "query" and "wanted clothes" in row.targets:
        # UNVERIFIED (the lists are not public): a query's row has the wanted outfit, not the one
        # that is worn.
        record = replace(record, clothes=None, target_clothes=record.clothes)
    if role == "query" and row.text_only:
        record = replace(record, path=None, modality="text")
    return record


def _with_picture(record, root, part, instr):
    kind = "template_path" if "templates" in Path(instr).parts else "crop_path"
    record = replace(record, **{kind: str(PurePosixPath(part, instr))})
    own_crop = str(PurePosixPath(part, "croped_clothes", Path(record.path).name))
    if record.role == "query" and (root / own_crop).exists():
        record = replace(record, crop_path=own_crop)
    return record


def _with_captions(record, texts, image, instr, where):
    """The Record with its row's description and, for a query, then its own, if known."""
    captions = as_captions(texts.get(instr))
    if not captions:
        raise UserError(f"{where}: no JSON in the list's folder has captions of the key '{instr}'")
    own = as_captions(texts.get(image))
    if record.role == "query" and record.path and own != captions:
        captions += own
    return replace(record, captions=captions)


def _merged(rows):
    """One Record per training image, merged from all its rows; junk is left out."""
    records = {}
    for record in rows:
        known = records.get(record.path, record)
        records[record.path] = replace(
            record,
            captions=tuple(dict.fromkeys(known.captions + record.captions)),
            template_path=known.template_path or record.template_path,
            crop_path=known.crop_path or record.crop_path,
        )
    return [record for record in records.values() if not record.junk]


# ---- data sets ----

LAYOUTS["own"] = Layout(
    title="Own photos",
    signs=(("gallery/*/*", "query/*/*", "train/*/*"),),  # otherwise see find_datasets
    read=read_own,
    protocols={"trad": (GENERAL,), "cc": (GENERAL, OTHER_CLOTHES, SAME_CLOTHES)},
)


def read_msmt17(root, row):
    """Rows `0000/0000_000_01_0303morning_0008_0.jpg 0` of four lists = path, label; the third field
    of the name is the camera. V2 has masked faces. Labels start at 0 both in training and in test;
    here test people are numbered after the 1,041 training people."""
    rule = r"(?P<pid>\d{4})_\d+_(?P<cam>\d{2})_"
    example = "0000_000_01_0303morning_0008_0.jpg"
    is_v2 = (root / "mask_train_v2").is_dir()
    if is_v2 and (root / "train").is_dir():
        raise UserError(f"{root}: V1 (train/) and V2 (mask_train_v2/) in one folder; "
                        "keep each with its own lists")
    name = "msmt17:V2" if is_v2 else "msmt17:V1"
    records = []
    for role in ("train", "val", "query", "gallery"):
        part = "train" if role in ("train", "val") else "test"
        first_pid = 1041 if part == "test" else 0
        folder = f"mask_{part}_v2" if is_v2 else part
        existing = set(glob("*/*", root_dir=root / folder))
        for where, (path, label) in read_rows(root / f"list_{role}.txt", 2):
            if path not in existing:
                raise UserError(f"{where}: {path} is not in {root / folder}; use the lists that "
                                "came with these folders (V1 and V2 differ)")
            record = named_record(name, role, f"{folder}/{path}", rule, example, where)
            records.append(replace(record, pid=first_pid + whole_number(label, where)))
    return records


LAYOUTS["msmt17"] = Layout(
    title="MSMT17",
    signs=(("mask_train_v2",), ("train", "list_train.txt"), ("list_query.txt", "list_gallery.txt")),
    read=read_msmt17,
    protocols={"trad": (GENERAL,)},
    published={"train": (30248, 1041), "query": (11659, 3060), "gallery": (82161, 3060)},
)

MARKET_FOLDERS = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}


def read_cuhk03(root, row):
    """CUHK03-NP, the new protocol of 767/700 people. `0001_c1_1.png` = pid, and 1 or 2 for the
    camera of a pair, of which there are five. Uses detected boxes, as in the paper, unless --data
    is the folder of the labeled ones."""
    kinds = ("detected/", "labeled/")
    inside = next((kind for kind in kinds if (root / kind).is_dir()), "")
    kind = "labeled" if "label" in (root / inside).absolute().name else "detected"
    return read_images(root, row, f"cuhk03:{kind}", MARKET_FOLDERS,
                       r"(?P<pid>\d{4})_c(?P<cam>[12])_\d+\.", "0001_c1_1.png", inside)


LAYOUTS["cuhk03"] = Layout(
    title="CUHK03",
    signs=(
        ("detected/bounding_box_train",), ("labeled/bounding_box_train",),
        ("bounding_box_train", "query/*_c[12]_[0-9]*"),
    ),
    read=read_cuhk03,
    protocols={"trad": (GENERAL._replace(name="new (767/700)"),)},
    published={"train": (7365, 767), "query": (1400, 700), "gallery": (5332, 700),
               "labeled train": (7368, 767), "labeled gallery": (5328, 700)},
)

LAYOUTS["market"] = Layout(
    title="Market-1501",
    signs=(("bounding_box_train", "bounding_box_test", "query"),),
    # `0002_c1s1_000451_03.jpg` = pid, camera. 0000 are distractors, which stay in the gallery.
    read=partial(
        read_images, name="market", folders=MARKET_FOLDERS,
        rule=r"(?P<pid>-1|\d+)_c(?P<cam>\d+)s\d", example="0002_c1s1_000451_03.jpg"),
    protocols={"trad": (GENERAL,)},
    # The gallery includes 3,819 junk files and id 0000.
    published={"train": (12936, 751), "query": (3368, 750), "gallery": (19732, 751)},
)

LTCC = {
    "folders": {"train": "train", "query": "query", "test": "gallery"},
    "rule": r"(?P<pid>\d+)_(?P<outfit>\d+)_c(?P<cam>\d+)_", "example": "094_1_c9_015923.png",
}
LAYOUTS["ltcc"] = Layout(
    title="LTCC",
    signs=(("train", "query", "test"),),
    read=partial(read_images, name="ltcc", **LTCC),
    protocols={"cc": (GENERAL, OTHER_CLOTHES, SAME_CLOTHES)},
    published={"train": (9576, 77), "query": (493, 75), "gallery": (7050, 75)},
)


def read_ltcc_clothes(root, row):
    """LTCC_ReID together with pictures of clothes and lists of ctcc (Supp. Tab. 2, the ‡). Their
    names are UNVERIFIED, and so are their ids: training images get those of their file names, as in
    cc, with which ctcc shares a classifier."""
    name = "ltcc-clothes"
    if not row.pictures:
        return read_images(root, row, name, **LTCC, inside="LTCC_ReID/")
    records = []
    for record in read_list(root, name, row, "", "train"):
        path = record.path
        named = named_record(name, "train", path, LTCC["rule"], LTCC["example"], where=path)
        records.append(replace(record, pid=named.pid, cam=named.cam, clothes=named.clothes))
    if (root / f"datalist/query_{row.tag}.txt").exists():
        records += read_list(root, name, row, "", "query")
        records += read_list(root, name, row, "", "gallery")
    return records


LAYOUTS["ltcc-clothes"] = LAYOUTS["ltcc"]._replace(
    title="LTCC with clothes",
    signs=(("LTCC_ReID", "datalist/train_ctcc.txt"),),
    read=read_ltcc_clothes,
    protocols={**LAYOUTS["ltcc"].protocols, "ctcc": (STRICT, ID_ONLY)},
)


def read_prcc(root, row):
    """`train/092/A_cropped_rgb010.jpg`, `test/C/001/cropped_rgb010.jpg`: the folder is the pid; A,
    B, C is the camera. People wear the same clothes in A and B, and others in C. The gallery is A;
    val has the people of train."""
    rgb = "rgb/" if (root / "rgb").is_dir() else ""
    found = read_images(
        root, row, "prcc", {"train/*": "train", "val/*": "val"},
        r"(?P<pid>\d+)/[ABC]_cropped_rgb\d", "092/A_cropped_rgb010.jpg", rgb)
    found += read_images(
        root, row, "prcc", {"test/A/*": "gallery", "test/B/*": "query", "test/C/*": "query"},
        r"[ABC]/(?P<pid>\d+)/cropped_rgb\d", "A/001/cropped_rgb010.jpg", rgb)
    records = []
    for record in found:
        [letter] = re.findall("/([ABC])[/_]", record.path)
        clothes = f"{record.pid}:{'C' if letter == 'C' else 'AB'}"
        records.append(replace(record, cam="ABC".index(letter), clothes=clothes))
    return records


# Camera 2 (C) has other clothes than the gallery, camera 1 (B) the same.
PRCC = GENERAL._replace(name="cross multi-shot", queries={"cam": (2,)})

LAYOUTS["prcc"] = Layout(
    title="PRCC",
    signs=(("rgb/train", "rgb/test"), ("train", "test/A")),
    read=read_prcc,
    protocols={"cc": (
        PRCC,
        PRCC._replace(name="cross single-shot", cell=("pid",)),
        PRCC._replace(name="same multi-shot", queries={"cam": (1,)}),
        PRCC._replace(name="same single-shot", queries={"cam": (1,)}, cell=("pid",)),
    )},
    # Only the sum of the last two is published; A 3,384, B 3,543 and C 3,873 are UNVERIFIED.
    published={"train": (17896, 150), "val": (5002, 150), "gallery": (3384, 71),
               "query": (7416, 71)},
)

LAYOUTS["vc-clothes"] = Layout(
    title="VC-Clothes",
    signs=(("train", "query", "gallery"),),
    # `0001-02-03-04.jpg` = pid, camera, outfit, frame; the numbers of digits are UNVERIFIED.
    read=partial(
        read_images, name="vc-clothes",
        folders={"train": "train", "query": "query", "gallery": "gallery"},
        rule=r"(?P<pid>\d+)-(?P<cam>\d+)-(?P<outfit>\d+)-\d+\.", example="0001-02-03-04.jpg"),
    # Clothes are the same in cameras 2 and 3, and others in 4.
    protocols={"cc": (
        GENERAL._replace(name="all"),
        GENERAL._replace(name="cc", queries={"cam": (3, 4)}, gallery={"cam": (3, 4)}),
        GENERAL._replace(name="sc", queries={"cam": (2, 3)}, gallery={"cam": (2, 3)}),
        OTHER_CLOTHES._replace(name="all-cc"),
        SAME_CLOTHES._replace(name="all-sc"),
    )},
    published={"train": (9449, 256), "query": (1020, 256), "gallery": (8591, 256)},
)


def read_llcm(root, row):
    """`0001_c01_s185535_f7010_nir.jpg` = pid, camera, session, modality. vis/ and nir/ also contain
    test people; idx/ lists the training images."""
    rule = r"(?P<pid>\d{4})_c(?P<cam>\d{2})_s\d+_f\d+_(?P<modality>vis|nir)"
    example = "0001_c01_s185535_f7010_nir.jpg"
    records = []
    for folder in ("vis", "nir"):
        for where, (path, *_) in read_rows(root / f"idx/train_{folder}.txt", 1, 2):
            records.append(named_record("llcm", "train", path, rule, example, where))
        tested = {f"test_{folder}/cam*/*": "test"}
        records += read_images(root, row, "llcm", tested, rule, example)
    return records


VISIBLE = {"modality": ("rgb",)}
INFRARED = {"modality": ("ir",)}
LLCM = GENERAL._replace(
    name="ir-to-vis", queries=INFRARED, gallery=VISIBLE, cell=("pid", "cam"), people=True)

LAYOUTS["llcm"] = Layout(
    title="LLCM",
    signs=(("idx", "test_vis", "test_nir"),),
    read=read_llcm,
    protocols={"vi": (
        LLCM,
        LLCM._replace(name="vis-to-ir", queries=VISIBLE, gallery=INFRARED),
        # VIS to IR in DEEN's code: sampled infrared queries, all visible images as gallery.
        LLCM._replace(name="vis-to-ir-deen", transposed=True, named=True),
    )},
    published={"train": (30921, 713), "test": (15846, 351)},  # not 13,909: the total is 46,767
)

LAYOUTS["cuhk-pedes"] = Layout(
    title="CUHK-PEDES",
    signs=(("imgs", "reid_raw.json"), ("imgs", "caption_all.json")),  # the latter has no splits
    read=partial(read_captioned, name="cuhk-pedes", file="reid_raw.json"),
    protocols={"t2i": (TEXT,)},
    published={"train": (34054, 11003), "val": (3078, 1000), "query": (6156, 1000),
               "gallery": (3074, 1000)},
    taken_from={"market": "imgs/Market/", "cuhk03": "imgs/CUHK03/"},
)

LAYOUTS["icfg-pedes"] = Layout(
    title="ICFG-PEDES",
    signs=(("imgs", "ICFG[-_]PEDES.json"),),
    read=partial(read_captioned, name="icfg-pedes", file="ICFG[-_]PEDES.json"),
    protocols={"t2i": (TEXT,)},
    published={"train": (34674, 3102), "query": (19848, 1000), "gallery": (19848, 1000)},
    taken_from={"msmt17": "imgs/"},
)

LAYOUTS["rstpreid"] = Layout(
    title="RSTPReid",
    signs=(("imgs", "data_captions.json"),),
    read=partial(read_captioned, name="rstpreid", file="data_captions.json", image="img_path"),
    protocols={"t2i": (TEXT,)},
    published={"train": (18505, 3701), "val": (1000, 200), "query": (2000, 200),
               "gallery": (1000, 200)},
    taken_from={"msmt17": "imgs/"},
)


def synth_pedes(entry):
    captions = as_captions(entry.get("captions")) + as_captions(entry.get("prompt_caption"))
    path = entry.get("file_path")
    return [Record("synth-pedes", "train", path, entry.get("id"), captions=captions)]


LAYOUTS["synth-pedes"] = Layout(
    title="SYNTH-PEDES",
    signs=(("synthpedes[-_]dataset.json",),),
    read=lambda root, row: Entries(min(root.glob("synthpedes[-_]dataset.json")), synth_pedes),
    protocols={"t2i": ()},  # training only
    published={"train": (4791711, 312321)},
)


def syncpr(entry):
    """The two images of a triplet: reference, and target, which is wanted by the edit caption."""
    records = []
    for part, captions in (("reference", ()), ("target", (entry.get("edit_caption"),))):
        captions += (entry.get(f"{part}_caption"),)  # the last one describes the image
        path = entry.get(f"{part}_image_path")
        records.append(Record("syncpr", "train", path, entry.get("cpr_id"), captions=captions))
    return records


LAYOUTS["syncpr"] = Layout(
    title="SynCPR",
    signs=(("SynCPR.json",),),
    read=lambda root, row: Entries(root / "SynCPR.json", syncpr, each=2),
    protocols={"li": ()},  # training only: 1,153,230 triplets
)


def read_itcpr(root, row):
    """`query.json` has captions of the wanted clothes; hits are the images of `gallery.json` with
    the same instance_id, but not -1. A person_id is unique within one of the source data sets."""
    kinds = {"file_path": str, "datasets": str, "person_id": int, "instance_id": int}
    people = {}  # (data set, person_id) -> pid
    records = []
    for role, more in (("query", {"caption": str}), ("gallery", {})):
        for entry in read_entries(root / f"{role}.json", kinds | more):
            pid = people.setdefault((entry["datasets"], entry["person_id"]), len(people))
            instance = entry["instance_id"]
            clothes = None if instance == -1 else f"{pid}:{instance}"
            known = {"target_clothes" if more else "clothes": clothes}
            captions = (entry.get("caption", NO_CAPTION),)
            path = entry["file_path"]
            records.append(Record("itcpr", role, path, pid, captions=captions, **known))
    return records


NO_CAPTION = "a person"  # li needs captions, which the gallery of ITCPR does not have

LAYOUTS["itcpr"] = Layout(
    title="ITCPR",
    signs=(("query.json", "gallery.json"),),
    read=read_itcpr,
    protocols={"li": (STRICT._replace(name="composed"),)},
    published={"query": (2202, 1199)},  # and 20,510 gallery images, of unknown people
)


def read_cocas(root, row):
    """OmniReID lists in real1 for training and in real2 for testing; either may be absent."""
    if row.text_only:  # the descriptions of li as captions, for t2i
        return read_list(root, "cocas", row._replace(text_only=False, tag="attr"), "real1", "train")
    if row.pictures and row.described:
        pictured = read_cocas(root, row._replace(described=False, tag="ctcc"))
        described = read_cocas(root, row._replace(pictures=False, tag="attr"))
        return _in_both(root, pictured, described)

    records = []
    for part, role in (("real1", "train"), ("real2", "query"), ("real2", "gallery")):
        if (root / part / "datalist").exists():
            records += read_list(root, "cocas", row, part, role)
    return records


def _in_both(root, pictured, described):
    """The pictured Records that are also described, with captions; UserError if a role has none."""
    def key(record):
        return record.role, record.path, record.target_clothes

    captions = {key(record): record.captions for record in reversed(described)}
    records = [replace(record, captions=captions[key(record)])
               for record in pictured if key(record) in captions]
    lost = {record.role for record in pictured} - {record.role for record in records}
    if lost:
        raise UserError(f"{root}: no {min(lost)} image is both in the lists of ctcc and in those "
                        "of li, such as train_ctcc.txt and train_attr.txt; compare their rows")
    return records


LAYOUTS["cocas"] = Layout(
    title="COCAS+",
    signs=(("real1/datalist",), ("real2/datalist",)),
    read=read_cocas,
    protocols=dict.fromkeys(("ctcc", "li", "both"), (STRICT, ID_ONLY)),
    extra={"t2i": "real1/datalist"},
    # Tab. 1; how query and gallery divide the 14,449 test images is not published.
    published={"train": (34469, 2800)},
    parts=("real1", "real2"),  # in the released code's data folder, next to the other sets
)


def read_cocas_real2(root, row):
    """COCAS+ Real2 as its authors publish it: test people, without crops or sentences.
    `query.txt`: image, template of the wanted clothes, pid, clothes, camera; `gallery.txt`: image,
    pid, clothes, camera. That blanks separate them is UNVERIFIED. A gallery image is its own
    picture of clothes, since a template would be the same file as its query's."""
    records = []
    for role, width in (("query", 5), ("gallery", 4)):
        for where, (image, *template, pid, clothes, cam) in read_rows(root / f"{role}.txt", width):
            numbers = (pid, clothes, cam)
            record = _listed_record("cocas-real2", row, role, "", image, numbers, where)
            wanted = str(PurePosixPath(*template)) if template else None
            records.append(replace(record, template_path=wanted, crop_path=record.path))
    return records


LAYOUTS["cocas-real2"] = Layout(
    title="COCAS+ Real2",
    signs=(("images", "templates", "query.txt", "gallery.txt"),),
    read=read_cocas_real2,
    protocols={"ctcc": (STRICT, ID_ONLY)},  # the gallery has no crops
)


TAGS = {"sc", "cc", "ctcc", "cross", "t2i", "attr"}  # names of tasks in the released code


def read_omnireid(root, row):
    """Lists in datalist/, or with a task's tag: `train.txt`, or `train_attr.txt` for li."""
    name = f"omnireid:{root.absolute().name.replace('.', '_')}"  # there may be several
    roles = [role for role in ("train", "query", "gallery")
             if glob(f"{role}*.txt", root_dir=root / "datalist")]
    roles = roles or ["train"]  # then read_list says that the list is missing
    return [record for role in roles for record in read_list(root, name, row, "", role)]


RELEASED = {  # start of a folder's name in the released code's data -> layout of its images
    "market": "market", "msmt": "msmt17", "cuhk_pedes": "cuhk-pedes", "cuhk-pedes": "cuhk-pedes",
    "cuhk": "cuhk03", "ltcc": "ltcc", "prcc": "prcc", "vc": "vc-clothes", "llcm": "llcm",
    "synth": "synth-pedes",
}


def listed_layout(root):
    """The layout of the images in such a folder's lists, by its name; None for other names."""
    name = root.absolute().name.lower()
    return next((layout for start, layout in RELEASED.items() if name.startswith(start)), None)


def _listed_tasks(root, tasks):
    """The tasks by the folder's name or else by the tags in the lists' names; without either, the
    single task that is given."""
    layout = listed_layout(root)
    if layout:  # there tags can mean protocols, as for LTCC
        served = LAYOUTS[layout].protocols
        return [task for task, row in tasks.items() if (row.data_of or task) in served]
    tags = {task: row.tag for task, row in tasks.items() if row.tag}
    lists = root / "datalist"
    found = {tag for tag in TAGS.union(tags.values()) if glob(f"*_{tag}*.txt", root_dir=lists)}
    if not found and len(tasks) > 1:
        known = ", ".join(f"{tag} = {task}" for task, tag in tags.items())
        raise UserError(
            f"{lists}: give --task, or name the lists by its tag, as train_attr.txt ({known})")
    return [task for task, tag in tags.items() if tag in found or not found]


LAYOUTS["omnireid"] = Layout(
    title="OmniReID",
    signs=(("datalist",),),
    read=read_omnireid,
    protocols={},
    lists=True,
)
