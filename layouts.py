"""The data sets as they lie on disk: one `Record` per image and, for each layout, a reader.

A reader is a file-name pattern, a split rule and a row of published counts. `dolls` writes its people into the same
trees. What no source confirms is marked UNVERIFIED.
"""

import json
import os
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from warnings import warn

import numpy as np
from tqdm import tqdm

from cli import UserError


# ---- records ----

@dataclass(frozen=True)
class Record:
    """One image, or one caption that is a query by itself (path None, modality "text"). Paths start at the root."""

    dataset: str
    role: str  # train, val, query, gallery; test where the protocol decides which side an image is on (LLCM)
    path: str | None
    pid: int  # as the data set numbers it
    cam: int | None = None  # None = unknown, equal to nothing
    clothes: str | None = None  # "pid:outfit", unique over people
    modality: str = "rgb"  # rgb, ir, text
    captions: tuple[str, ...] = ()
    template_path: str | None = None  # shop picture of clothes
    crop_path: str | None = None  # clothes cropped from a photo of the person
    target_clothes: str | None = None  # what a ctcc or li query asks for
    view: str | None = None  # the data set's own tag: PRCC's camera letter, LLCM's session
    junk: bool = False  # deleted from every ranking; distractors are not junk


class Dataset(NamedTuple):
    name: str  # the layout's and, where it has variants, which one: "ltcc", "msmt17:V2"
    title: str
    task: str
    root: Path
    records: Sequence[Record]

    @property
    def layout(self):
        return self.name.partition(":")[0]

    @property
    def tested(self):
        """Whether there is a test split: SYNTH-PEDES and COCAS+ Real1 are for training alone."""
        return any(self.split(role) for role in ("query", "gallery", "test"))

    def split(self, role):
        if isinstance(self.records, Entries):
            return self.records if role == "train" else []
        return [record for record in self.records if record.role == role]


def column(records, name):
    """One field of all records as a list."""
    return records.column(name) if isinstance(records, Entries) else [getattr(record, name) for record in records]


# ---- readers: read(root, task) -> Records ----

BOXES = (("bounding_box_train", "train"), ("query", "query"), ("bounding_box_test", "gallery"))


def read_market(root, task):
    """`0002_c1s1_000451_03.jpg` = pid, camera. pid -1 is junk (a bad detection), 0000 a distractor that stays."""
    records = []
    for folder, role in BOXES:
        for path, (pid, cam) in _images(root, f"{folder}/*.jpg", r"(-1|\d{4})_c([1-6])s\d", "0002_c1s1_000451_03.jpg"):
            records.append(Record("market", role, path, int(pid), int(cam), junk=pid == "-1"))
    return [record for record in records if not (record.junk and record.role == "train")]


def read_msmt17(root, task):
    """Rows `0000/0000_000_01_0303morning_0008_0.jpg 0` of four lists = path, label; the third field is the camera.

    V2 has other folders and masked faces; its numbers are not V1's. Labels begin at 0 in training and in test: here
    the test people follow the 1,041 training people.
    """
    v1, v2 = (root / "train").is_dir(), (root / "mask_train_v2").is_dir()
    if v1 and v2:
        raise UserError(f"{root}: V1 (train/) and V2 (mask_train_v2/) in one folder; keep each with its own lists")
    version, folders = ("V2", ("mask_train_v2", "mask_test_v2")) if v2 else ("V1", ("train", "test"))
    records = []
    for folder, roles in zip(folders, (("train", "val"), ("query", "gallery"))):
        there = set(glob("*/*.jpg", root_dir=root / folder))
        for role in roles:
            rows = _rows(root / f"list_{role}.txt", (2,))
            gone = [(where, path) for where, (path, _) in rows if path not in there]
            if gone:
                raise UserError(f"{gone[0][0]}: {gone[0][1]} and {len(gone) - 1} more of {len(rows)} images are not in "
                                f"{root / folder}; take the lists that came with these folders (V1 and V2 differ)")
            for where, (path, label) in rows:
                _, cam = _fields(r"(\d{4})_\d+_(\d{2})_", Path(path).name, "0000_000_01_0303morning_0008_0.jpg", where)
                pid = int(*_fields(r"(\d+)$", label, "17", where)) + (1041 if role in ("query", "gallery") else 0)
                records.append(Record(f"msmt17:{version}", role, f"{folder}/{path}", pid, int(cam)))
    return records


def read_cuhk03(root, task):
    """New protocol, 767/700 people. `0001_c1_1.png` = label, view; or `1_001_1_01.png` and a MATLAB list of the split.

    The view, 1 or 2, counts as camera, though there are five pairs of them. Where detected and labeled boxes lie side
    by side, the detected ones are read, as in the paper: point --data at the other folder to have those.
    """
    sides = [root / kind for kind in ("detected", "images_detected", "labeled", "images_labeled")]
    folder = next((side for side in sides if side.is_dir()), root)
    kind = "labeled" if "label" in folder.absolute().name else "detected"
    if not (folder / "query").is_dir():
        return _cuhk03_listed(root, folder, kind)
    records = []
    for boxes, role in BOXES:
        for path, (pid, view) in _images(root, f"{folder.relative_to(root) / boxes}/*.[pj][np]g",
                                         r"(\d{4})_c([12])_\d+\.", "0001_c1_1.png"):
            records.append(Record(f"cuhk03:{kind}", role, path, int(pid), int(view)))
    return records


def _cuhk03_listed(root, folder, kind):
    there = set(glob("*.png", root_dir=folder))
    if not there:
        raise UserError(f"{root}: cuhk-03.mat holds the images in MATLAB's format; take the CUHK03-NP folders instead, "
                        "or extract images_detected/ with the lines under 'CUHK03 from its .mat' in README")
    mat = _mat(folder.absolute().parent / f"cuhk03_new_protocol_config_{kind}.mat")
    files, labels, views = (np.ravel(mat[key]) for key in ("filelist", "labels", "camId"))
    records = []
    for role in ("train", "query", "gallery"):
        for i in np.ravel(mat[f"{role}_idx"]).astype(int) - 1:  # MATLAB counts from 1
            name = str(np.ravel(files[i])[0])
            if name not in there:
                raise UserError(f"{folder / name}: the split lists it, but it is not there; extract all images again")
            path = str((folder / name).relative_to(root))
            records.append(Record(f"cuhk03:{kind}", role, path, int(labels[i]), int(views[i])))
    return records


def _mat(path):
    """The arrays of a MATLAB 5 file."""
    if not path.is_file():
        raise UserError(f"{path}: list is missing; it comes with the CUHK03 new protocol")
    try:
        from scipy.io import loadmat
    except ImportError:
        raise UserError(f"{path}: MATLAB files need SciPy; pip install scipy, or take the CUHK03-NP folders")
    try:
        return loadmat(path)
    except (ValueError, NotImplementedError, OSError) as error:
        raise UserError(f"{path}: not a MATLAB 5 file ({error}); a web page saved in its place? Fetch it again")


def read_ltcc(root, task):
    """`094_1_c9_015923.png` = pid, outfit of that person, camera. `test` is the gallery; every mode ranks the same."""
    records = []
    for folder, role in (("train", "train"), ("query", "query"), ("test", "gallery")):
        for path, (pid, outfit, cam) in _images(root, f"{folder}/*.png", r"(\d+)_(\d+)_c(\d+)_", "094_1_c9_015923.png"):
            records.append(Record("ltcc", role, path, int(pid), int(cam), clothes=f"{int(pid)}:{outfit}"))
    return records


def read_prcc(root, task):
    """`train/092/A_cropped_rgb010.jpg`, `test/C/001/cropped_rgb010.jpg`: pid is the folder, A, B, C the camera.

    People wear the same clothes under A and B, others under C. The gallery is A; val shows the people of train.
    """
    rgb, found = "rgb/" if (root / "rgb").is_dir() else "", []
    for role in ("train", "val") if (root / rgb / "val").is_dir() else ("train",):
        images = _images(root, f"{rgb}{role}/[0-9]*/*.jpg", r"([ABC])_cropped_rgb\d", "A_cropped_rgb010.jpg")
        found += [(role, path, letter) for path, (letter,) in images]
    for letter, role in (("A", "gallery"), ("B", "query"), ("C", "query")):
        images = _images(root, f"{rgb}test/{letter}/[0-9]*/*.jpg", r"cropped_rgb\d", "cropped_rgb010.jpg")
        found += [(role, path, letter) for path, _ in images]
    records = []
    for role, path, letter in found:
        pid, clothes = int(Path(path).parent.name), "C" if letter == "C" else "AB"
        records.append(Record("prcc", role, path, pid, "ABC".index(letter), f"{pid}:{clothes}", view=letter))
    return records


def read_vc_clothes(root, task):
    """`0001-02-03-04.jpg` = pid, camera, outfit, frame (the fields are certain, the number of digits is UNVERIFIED)."""
    records = []
    for role in ("train", "query", "gallery"):
        for path, (pid, cam, outfit) in _images(root, f"{role}/*.jpg", r"(\d+)-(\d+)-(\d+)-\d+\.", "0001-02-03-04.jpg"):
            records.append(Record("vc-clothes", role, path, int(pid), int(cam), clothes=f"{int(pid)}:{int(outfit)}"))
    return records


def read_llcm(root, task):
    """`0001_c01_s185535_f7010_nir.jpg` = pid, camera, session, modality. vis/, nir/ hold test people; train is idx/."""
    rule, example = r"(\d{4})_c(\d{2})_s(\d+)_f\d+_(vis|nir)", "0001_c01_s185535_f7010_nir.jpg"
    found = []
    for kind in ("vis", "nir"):
        for where, (path, *_) in _rows(root / "idx" / f"train_{kind}.txt", (1, 2)):
            found.append(("train", path, _fields(rule, Path(path).name, example, where)))
        found += [("test", *image) for image in _images(root, f"test_{kind}/cam*/*/*.jpg", rule, example)]
    return [Record("llcm", role, path, int(pid), int(cam), modality={"vis": "rgb", "nir": "ir"}[kind], view=session)
            for role, path, (pid, cam, session, kind) in found]


def read_cuhk_pedes(root, task):
    """`reid_raw.json` holds split, id, file and captions. A test image is gallery, each of its captions a query.

    Captions that it lacks come from `caption_all.json`, by file; the ids there follow another numbering.
    """
    if not (root / "reid_raw.json").exists():
        raise UserError(f"{root}: captions in caption_all.json have no split; put reid_raw.json, which has, beside it")
    entries, elsewhere, records = _json(root / "reid_raw.json"), None, []
    for entry in entries:
        role = {"train": "train", "val": "val", "test": "gallery"}.get(entry.get("split"))
        if role is None:  # caption_all.json under another name
            raise UserError(f"{root}/reid_raw.json: {entry.get('file_path')} has no split train, val or test")
        if not entry.get("captions") and elsewhere is None:
            elsewhere = {other["file_path"]: other["captions"] for other in _json(root / "caption_all.json")}
        captions = tuple(entry.get("captions") or elsewhere.get(entry["file_path"], ()))
        if not captions:
            raise UserError(f"{root}: {entry['file_path']} has no captions in reid_raw.json or caption_all.json")
        path, pid = "imgs/" + entry["file_path"], entry["id"]
        records.append(Record("cuhk-pedes", role, path, pid, captions=captions))
        if role == "gallery":
            records += [Record("cuhk-pedes", "query", None, pid, modality="text", captions=(one,)) for one in captions]
    if not {"train", "gallery"} <= {record.role for record in records}:
        raise UserError(f"{root}/reid_raw.json: empty split, train and test are both needed; fetch the whole file")
    return records


def read_synth_pedes(root, task):
    """A JSON list of 4.8 million `{id, file_path, captions, prompt_caption}`, all to train on."""
    path = next(path for spelt in ("-", "_") if (path := root / f"synthpedes{spelt}dataset.json").exists())
    return Entries(path, _index(path))


class Entries(Sequence):
    """The Records of SYNTH-PEDES, each read when it is asked for: all at once would take several GB.

    index: (n + 1,) with fields `start`, the byte at which an entry begins, and `pid`; the last row is the file's end.
    """

    def __init__(self, path, index):
        self.path, self.index = path, index

    def __len__(self):
        return len(self.index) - 1

    def __getitem__(self, i):
        start, end = self.index["start"][range(len(self))[i]:][:2].tolist()
        with open(self.path, "rb") as file:
            file.seek(start)
            entry, _ = json.JSONDecoder().raw_decode(file.read(end - start).decode("utf-8"))
        captions = (*entry["captions"], *entry.get("prompt_caption", ()))
        return Record("synth-pedes", "train", entry["file_path"], entry["id"], captions=captions)

    def column(self, name):
        """A field of all records; only `pid` differs between them, of those that the index knows."""
        alike = Record("synth-pedes", "train", "", 0)
        return self.index["pid"][:-1].tolist() if name == "pid" else [getattr(alike, name)] * len(self)


PIECE = 2**24  # bytes of the JSON that are in memory at a time


def _index(path):
    """The index of a JSON list: made in one pass and kept beside the file, where the next opening finds it."""
    kept, size = path.with_suffix(".index.npy"), path.stat().st_size
    if kept.exists() and kept.stat().st_mtime >= path.stat().st_mtime:
        try:
            index = np.load(kept)
            if index["start"][-1] == size:
                return index
        except (ValueError, EOFError, IndexError):  # cut off: made anew
            pass
    index = _scan(path, size)
    part = kept.with_name(f"{kept.name}.{os.getpid()}")  # several processes may be at it
    try:
        with open(part, "wb") as file:
            np.save(file, index)
        os.replace(part, kept)
    except OSError as error:
        part.unlink(missing_ok=True)
        warn(f"{kept} cannot be written ({error.strerror}): the next opening reads all of {path.name} again")
    return index


def _scan(path, size):
    starts, pids, text, passed, decode = array("q"), array("q"), "", 0, json.JSONDecoder().raw_decode
    bar = tqdm(total=size, desc=f"indexing {path.name}", unit="B", unit_scale=True, disable=size < PIECE)
    with open(path, "rb") as file, bar:
        while piece := file.read(PIECE):
            text, end = text + piece.decode("latin-1"), 0  # one character per byte; JSON's own signs are ASCII
            while (brace := text.find("{", end)) >= 0:
                try:
                    entry, end = decode(text, brace)
                except ValueError:  # it goes on in the next piece
                    break
                if not isinstance(entry.get("id"), int):
                    raise UserError(f"{path}: the entry at byte {passed + brace} has no number as id; fetch it again")
                starts.append(passed + brace)
                pids.append(entry["id"])
            text, passed = text[end:], passed + end
            if len(text) > 2 * PIECE:  # no entry is as long
                break
            bar.update(len(piece))
    if text.strip() != "]" or not starts:
        raise UserError(f"{path}: not a JSON list of entries, or cut off, after byte {passed}; fetch it again")
    index = np.empty(len(starts) + 1, [("start", "i8"), ("pid", "i8")])
    index["start"][:-1], index["pid"][:-1], index[-1] = starts, pids, (size, -1)
    return index


def read_cocas(root, task):
    """OmniReID lists in real1 to train on and in real2 to test on; either may be absent, as real1 is not public."""
    parts = (("real1", "train"), ("real2", "query"), ("real2", "gallery"))
    return _listed(root, "cocas", task, [(part, role) for part, role in parts if (root / part).exists()])


def read_omnireid(root, task):
    """Lists `train.txt`, `query.txt`, `gallery.txt` in datalist/, or `train_attr.txt` and so on, with a task's tag."""
    there = {role for role in ("train", "query", "gallery") if glob(f"{role}*.txt", root_dir=root / "datalist")}
    roles = ["train"] * ("train" in there) + ["query", "gallery"] * bool(there - {"train"})
    name = f"omnireid:{root.absolute().name.replace('.', '_')}"  # several may lie side by side
    return _listed(root, name, task, [("", role) for role in roles or ["train"]])


# The released code's names of the tasks.
TAGS = {"trad": "sc", "cc": "cc", "ctcc": "ctcc", "vi": "cross", "t2i": "t2i", "li": "attr"}


def _listed(root, name, task, parts):
    """Records of lists `image instruction pid outfit [camera]`; parts: (folder below the root, role).

    An instruction is a picture (ctcc), a key of the caption JSON (t2i, li) or says nothing. Training rows of one image
    become one Record.
    """
    records = {}
    for part, role in parts:
        folder = root / part / "datalist"
        lists = [folder / f"{role}_{TAGS[task]}.txt", folder / f"{role}.txt"]
        texts = _captions(folder) if task in ("t2i", "li") else {}
        for where, row in _rows(lists[0] if lists[0].exists() else lists[1], (4, 5)):
            record = _listed_record(root, part, name, role, task, where, row, texts)
            if role == "train" and record.junk:
                continue
            key = (role, record.path) if role == "train" else (role, where)
            same = records.get(key, record)
            records[key] = replace(record, captions=tuple(dict.fromkeys(same.captions + record.captions)),
                                   template_path=same.template_path or record.template_path,
                                   crop_path=same.crop_path or record.crop_path)
    return list(records.values())


def _captions(folder):
    files = sorted(glob("*.json", root_dir=folder))
    if not files:
        raise UserError(f"{folder}: no caption JSON; it comes with the lists")
    return {key: text for file in files for key, text in _json(folder / file).items()}


def _listed_record(root, part, name, role, task, where, row, texts):
    image, instr, pid, outfit, *cam = row
    try:
        pid, cam = int(pid), int(cam[0]) if cam else None  # without a camera no image is left out for having the same
    except ValueError:
        raise UserError(f"{where}: pid and camera must be integers, not '{' '.join(row[2:])}'")
    path, clothes = str(PurePosixPath(part, image)), f"{pid}:{outfit}"
    known = {"clothes": clothes, "junk": pid == -1}
    if role == "query" and task in ("ctcc", "li"):
        # UNVERIFIED reading (the lists are not public): a query row names the outfit asked for, not the one worn.
        known |= {"clothes": None, "target_clothes": clothes}
    if task == "ctcc":
        known["template_path" if "templates" in Path(instr).parts else "crop_path"] = str(PurePosixPath(part, instr))
        own = str(PurePosixPath(part, "croped_clothes", Path(image).name))
        if role == "query" and (root / own).exists():
            known["crop_path"] = own
    elif task == "vi":
        known["modality"] = "ir" if "_nir" in Path(image).name else "rgb"
    elif task == "li" or task == "t2i" and role != "gallery":  # a t2i gallery row carries a sentinel instead of a key
        if instr not in texts:
            raise UserError(f"{where}: the caption JSON beside it has no key '{instr}'")
        known["captions"] = (texts[instr],)
        if (role, task) == ("query", "li") and image in texts:  # what it wears itself
            known["captions"] += (texts[image],)
    if task == "t2i" and role == "query":
        path, known["modality"] = None, "text"
    return Record(name, role, path, pid, cam, **known)


# ---- pieces of readers ----

def _images(root, pattern, rule, example):
    """[(path relative to root, fields of its name)] of the files that match a pattern, sorted."""
    paths = sorted(glob(pattern, root_dir=root))  # a pattern never matches the `._name.jpg` that macOS adds
    if not paths:
        raise UserError(f"{root / pattern}: empty split, no such image; unpack the data set again or mend --data")
    return [(path, _fields(rule, Path(path).name, example, root / path)) for path in paths]


def _fields(rule, name, example, where):
    match = re.match(rule, name)
    if not match:
        raise UserError(f"{where}: cannot read '{name}'; expected something like {example}")
    return match.groups()


def _rows(path, widths):
    """[("file:line", fields)] of a list file, split at blanks; `widths` are the numbers of fields allowed."""
    if not path.is_file():
        raise UserError(f"{path}: list is missing; it comes with the data set's split files")
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    rows = [(f"{path}:{number}", line.split()) for number, line in lines if line.strip()]
    for where, fields in rows:
        if len(fields) not in widths:
            wanted = " or ".join(map(str, widths))
            raise UserError(f"{where}: {len(fields)} columns, expected {wanted} without blanks in a path")
    if not rows:
        raise UserError(f"{path}: empty split, the list holds no row")
    return rows


def _json(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: file is missing; it comes with the data set's captions")
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); fetch it again")


class Layout(NamedTuple):
    title: str
    tasks: tuple[str, ...]
    signs: tuple[tuple[str, ...], ...]  # a folder is this data set if it holds everything of one of these
    read: object
    published: dict  # role, or variant and role -> (images or captions, identities); None = not published


LAYOUTS = {  # where signs are alike, the more particular comes first
    "msmt17": Layout(
        "MSMT17", ("trad",), (("mask_train_v2",), ("train", "list_train.txt"), ("list_query.txt", "list_gallery.txt")),
        read_msmt17,
        {"train": (30248, 1041), "val": (2373, None), "query": (11659, 3060), "gallery": (82161, 3060)}),
    "cuhk03": Layout(
        "CUHK03", ("trad",), (
            ("detected/bounding_box_train",), ("labeled/bounding_box_train",),
            ("bounding_box_train", "query/*_c[12]_*"), ("images_detected",), ("images_labeled",), ("1_001_1_01.png",),
            ("cuhk-03.mat",), ("cuhk03_release",)),
        read_cuhk03,
        {"train": (7365, 767), "query": (1400, 700), "gallery": (5332, 700), "labeled train": (7368, 767),
         "labeled gallery": (5328, 700)}),
    "market": Layout(
        "Market-1501", ("trad",), (("bounding_box_train", "bounding_box_test", "query"),), read_market,
        {"train": (12936, 751), "query": (3368, 750), "gallery": (19732, 751)}),  # with 3,819 junk files and id 0000
    "ltcc": Layout(
        "LTCC", ("cc",), (("train", "query", "test"),), read_ltcc,
        {"train": (9576, 77), "query": (493, 75), "gallery": (7050, 75)}),
    "prcc": Layout(
        "PRCC", ("cc",), (("rgb/train", "rgb/test"), ("train", "test/A")), read_prcc,
        # The sum of gallery and query is published, its parts (A 3,384, B 3,543, C 3,873) are UNVERIFIED.
        {"train": (17896, 150), "val": (5002, 150), "gallery": (3384, 71), "query": (7416, 71)}),
    "vc-clothes": Layout(
        "VC-Clothes", ("cc",), (("train", "query", "gallery"),), read_vc_clothes,
        {"train": (9449, 256), "query": (1020, 256), "gallery": (8591, 256)}),
    "llcm": Layout(
        "LLCM", ("vi",), (("idx", "test_vis", "test_nir"),), read_llcm,
        {"train": (30921, 713), "test": (15846, 351)}),  # not 13,909: the published total is 46,767
    "cuhk-pedes": Layout(
        "CUHK-PEDES", ("t2i",), (("imgs", "reid_raw.json"), ("imgs", "caption_all.json")), read_cuhk_pedes,
        {"train": (34054, 11003), "val": (3078, 1000), "query": (6156, 1000), "gallery": (3074, 1000)}),
    "synth-pedes": Layout(
        "SYNTH-PEDES", ("t2i",), (("synthpedes-dataset.json",), ("synthpedes_dataset.json",)), read_synth_pedes,
        {"train": (4791711, 312321)}),
    "cocas": Layout(
        "COCAS+", ("ctcc", "li"), (("real1/datalist",), ("real2/datalist",)), read_cocas,
        {"train": (34469, 2800)}),  # Tab. 1; how query and gallery divide the 14,449 test images is not published
    "omnireid": Layout(
        "OmniReID lists", tuple(TAGS), (("datalist",),), read_omnireid, {}),
}


def recognise(folder):
    """The name of the layout that a folder has, or None."""
    for name, layout in LAYOUTS.items():
        if any(all(glob(entry, root_dir=folder) for entry in sign) for sign in layout.signs):
            return name
    return None


def tasks_of(name, root, asked="all"):
    """The tasks that a data set serves, of all or of the one asked for. OmniReID lists tell theirs by their names."""
    tasks = LAYOUTS[name].tasks
    if name == "omnireid":
        tagged = tuple(task for task in tasks if glob(f"*_{TAGS[task]}.txt", root_dir=root / "datalist"))
        if not tagged and asked == "all":
            tags = ", ".join(f"{tag} = {task}" for task, tag in TAGS.items())
            raise UserError(f"{root}/datalist: the lists do not say their task; give --task, or name them with its tag "
                            f"as in train_attr.txt ({tags})")
        tasks = tagged or tasks
    return tuple(task for task in tasks if asked in ("all", task))
