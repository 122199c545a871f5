"""Tiny trees with the names of the real data sets."""

import json
from functools import partial

from PIL import Image

from instructions import TASKS, asked_tasks
from reid.folders import open_all

JOINED = [name for name, row in TASKS.items() if row.described and row.pictures]  # words, pictures
PHOTO = Image.effect_noise((8, 16), 60).convert("RGB")


def put(root, *names):
    """Writes files: photos, and what is no photo where the suffix says so."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"):
            PHOTO.save(path)
        else:
            path.write_bytes(b"not an image")


def text(root, name, content):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(content if isinstance(content, str) else json.dumps(content))


def opened(root, task):
    """The one Dataset that serves a task."""
    [dataset] = open_all(root, asked_tasks(task))
    return dataset


# ---- data sets whose file names say who is shown ----

NAMED = {  # data set -> {file: (role, pid, camera, clothes) in the records' order, or None}
    "market": {
        "bounding_box_train/0002_c1s1_000451_03.jpg": ("train", 2, 1, None),
        "bounding_box_train/12345_c12s1_000001_00.JPG": ("train", 12345, 12, None),
        "bounding_box_train/-1_c1s1_000301_03.jpg": None,  # junk
        "bounding_box_train/Thumbs.db": None,
        "query/0001_c1s1_001051_00.jpg": ("query", 1, 1, None),
        "bounding_box_test/-1_c1s1_000401_03.jpg": ("gallery", -1, 1, None),
        "bounding_box_test/0000_c4s1_000051_02.jpg": ("gallery", 0, 4, None),
        "bounding_box_test/0071_c6s2_072893_01.WebP": ("gallery", 71, 6, None),
        "bounding_box_test/._0071_c6s2_072893_01.jpg": None,
    },
    "msmt17": {  # two people are numbered 0
        "train/0000/0000_000_01_0303morning_0008_0.jpg": ("train", 0, 1, None),
        "train/0000/0000_012_06_0303morning_0006_2_ex.jpg": ("val", 0, 6, None),
        "test/0000/0000_001_07_0303noon_0020_1.jpg": ("query", 1041, 7, None),
        "test/0000/0000_045_12_0302afternoon_0006_2.jpg": ("gallery", 1041, 12, None),
        "train/0000/._0000_000_01_0303morning_0008_0.jpg": None,
    },
    "cuhk03": {
        "detected/bounding_box_train/0001_c1_1.png": ("train", 1, 1, None),
        "detected/query/0003_c2_27.png": ("query", 3, 2, None),
        "detected/bounding_box_test/0003_c1_21.png": ("gallery", 3, 1, None),
        "labeled/bounding_box_train/0001_c1_1.jpg": None,
        "labeled/query/0003_c2_27.jpg": None,
        "labeled/bounding_box_test/0003_c1_21.jpg": None,
    },
    "ltcc": {
        "train/013_2_c12_006327.png": ("train", 13, 12, "13:2"),
        "train/094_1_c9_015923.png": ("train", 94, 9, "94:1"),
        "query/148_1_c3_014811.png": ("query", 148, 3, "148:1"),
        "test/001_1_c5_015874.png": ("gallery", 1, 5, "1:1"),
        "info/cloth-change_id_train.txt": None,
    },
    "prcc": {
        "rgb/train/092/A_cropped_rgb010.jpg": ("train", 92, 0, "92:AB"),
        "rgb/train/092/C_cropped_rgb001.jpg": ("train", 92, 2, "92:C"),
        "rgb/val/092/B_cropped_rgb001.jpg": ("val", 92, 1, "92:AB"),
        "rgb/test/A/001/cropped_rgb001.jpg": ("gallery", 1, 0, "1:AB"),
        "rgb/test/B/001/cropped_rgb002.jpg": ("query", 1, 1, "1:AB"),
        "rgb/test/C/001/cropped_rgb010.jpg": ("query", 1, 2, "1:C"),
        "sketch/train/092/A.jpg": None,
    },
    "vc-clothes": {
        "train/0007-01-01-01.jpg": ("train", 7, 1, "7:1"),
        "query/0001-02-03-04.jpg": ("query", 1, 2, "1:3"),
        "gallery/0001-03-03-05.jpg": ("gallery", 1, 3, "1:3"),
    },
    "llcm": {
        "vis/0001/0001_c02_s185535_f7010_vis.jpg": ("train", 1, 2, None),
        "test_vis/cam1/0003/0003_c01_s185734_f3199_vis.jpg": ("test", 3, 1, None),
        "test_vis/cam3/0003/0003_c03_s185734_f3203_vis.jpg": ("test", 3, 3, None),
        "nir/0001/0001_c01_s185535_f7010_nir.jpg": ("train", 1, 1, None),
        "test_nir/cam1/0003/0003_c01_s185734_f3195_nir.jpg": ("test", 3, 1, None),
        "nir/0003/0003_c01_s185734_f3195_nir.jpg": None,  # a test person's
    },
}


def named(name, root):
    put(root, *NAMED[name])
    return root


market, cuhk03, ltcc, prcc, vc_clothes = (
    partial(named, name) for name in ("market", "cuhk03", "ltcc", "prcc", "vc-clothes"))


def msmt17(root):
    named("msmt17", root)
    for path, record in NAMED["msmt17"].items():
        if record:
            text(root, f"list_{record[0]}.txt", f"{path.partition('/')[2]} 0\n")
    return root


def llcm(root):
    for path in named("llcm", root).glob("*/0001/*"):
        folder = path.parts[-3]
        text(root, f"idx/train_{folder}.txt", f"{path.relative_to(root)} 0\n\n")
    return root


# ---- data sets with lists or captions ----

def ltcc_clothes(root):
    """LTCC_ReID beside clothes and lists, whose own numbers of people and clothes differ."""
    ltcc(root / "LTCC_ReID")
    put(root, "croped_clothes/013_2_c12_006327.png", "croped_clothes/001_1_c5_015874.png",
        "croped_clothes/148_1_c3_014811.png", "templates/7.jpg", "white_shirt.jpg")
    photo = "LTCC_ReID/train/013_2_c12_006327.png"
    text(root, "datalist/train_ctcc.txt",
         f"{photo} croped_clothes/013_2_c12_006327.png 0 70\n{photo} templates/7.jpg 0 70\n")
    text(root, "datalist/query_ctcc.txt",
         "LTCC_ReID/query/148_1_c3_014811.png templates/7.jpg 148 2 3\n")
    text(root, "datalist/gallery_ctcc.txt", "LTCC_ReID/test/001_1_c5_015874.png "
         "croped_clothes/001_1_c5_015874.png 1 1 5\n")
    return root


PEDES = [
    {"split": "train", "id": 11003, "file_path": "train_query/p1.jpg", "captions": ["a", "b"]},
    {"split": "val", "id": 11004, "file_path": "CUHK03/299_4.jpg", "captions": ["a woman"]},
    {"split": "test", "id": 12004, "file_path": "test_query/p6.jpg", "captions": ["red", "old"]},
]


def pedes(root, file="reid_raw.json", image="file_path", entries=PEDES):
    put(root, *("imgs/" + entry["file_path"] for entry in entries))
    text(root, file, [entry | {image: entry["file_path"]} for entry in entries])
    return root


rstpreid = partial(pedes, file="data_captions.json", image="img_path")
icfg_pedes = partial(pedes, file="ICFG_PEDES.json", entries=PEDES[::2])  # none for validation


def itcpr(root):
    """Two people with the number 1, from two sources."""
    images = {"query": {"Celeb-reID/001/1_1_0.jpg": 7, "PRCC/train/001/A.jpg": 8},
              "gallery": {"Celeb-reID/001/1_2_0.jpg": 7, "Celeb-reID/001/1_3_0.jpg": -1,
                          "PRCC/test/A/001/1.jpg": 8}}
    for role in images:
        entries = []
        for image, instance in images[role].items():
            put(root, image)
            entry = {"file_path": image, "datasets": image.split("/")[0], "person_id": 1}
            entry |= {"caption": f"Wearing {instance}."} if role == "query" else {}
            entries.append(entry | {"instance_id": instance})
        text(root, f"{role}.json", entries)
    return root


TRIPLETS = [
    {"cpr_id": pid, "edit_caption": f"Edit {pid}.",
     "reference_image_path": f"test2/sub_img/img_left/{pid}-1_left.png",
     "target_image_path": f"test2/sub_img/img_right/{pid}-1_right.png",
     "reference_caption": f"Left {pid}.", "target_caption": f"Right {pid}."}
    for pid in (3, 5)]


def syncpr(root):
    for entry in TRIPLETS:
        put(root, entry["reference_image_path"], entry["target_image_path"])
    text(root, "SynCPR.json", TRIPLETS)
    return root


SYNTH = [
    {"id": 7, "file_path": "Part1/7/1.jpg", "attributes": ["man,black hair"],
     "captions": ["A man in a café {."], "prompt_caption": ["A photo of a man."]},
    {"id": 78923, "file_path": "Part3/78923/4.jpg", "attributes": ["woman"],
     "captions": ["One.", "Two."], "prompt_caption": ["Three."]},
]


def synth_pedes(root, name="synthpedes-dataset.json"):
    put(root, *(entry["file_path"] for entry in SYNTH))
    content = json.dumps(SYNTH, ensure_ascii=False, indent=1)
    (root / name).write_text(content, encoding="utf-8")
    return root


def cocas(root):
    put(root, "real1/COCAS/a.jpg", "real1/COCAS/b.jpg", "real1/COCAS/templates/t.jpg",
        "real1/COCAS/crops/a.jpg", "real2/images/1/q.jpg", "real2/images/1/g.jpg")
    text(root, "real1/datalist/train_ctcc.txt", "COCAS/a.jpg COCAS/templates/t.jpg 7 1\n"
         "COCAS/a.jpg COCAS/crops/a.jpg 7 1\nCOCAS/b.jpg COCAS/crops/b.jpg 8 2 5\n")
    text(root, "real1/datalist/train_attr.txt",
         "COCAS/a.jpg one 7 1\nCOCAS/a.jpg two 7 1\nCOCAS/b.jpg one 8 2\n")
    text(root, "real1/datalist/gpt.json", {"one": "A man.", "two": "A tall man."})
    text(root, "real2/datalist/query.txt", "images/1/q.jpg templates/9_2.jpg 9 2 3\n")
    text(root, "real2/datalist/gallery.txt", "images/1/g.jpg crops/g.jpg 9 2 4\n")
    text(root, "real2/datalist/query_attr.txt",
         "images/1/q.jpg k1 9 2 3\nimages/1/q.jpg k2 9 1 3\n")
    text(root, "real2/datalist/gallery_attr.txt", "images/1/g.jpg k1 9 2 4\n")
    text(root, "real2/datalist/gpt.json", {"k1": "In red.", "k2": "In blue."})
    return root


def real2(root):
    """COCAS+ Real2 as it is published; the images' names are made up."""
    put(root, "images/1/a.jpg", "images/2/b.jpg", "images/3/c.jpg", "templates/17.jpg")
    text(root, "query.txt", "images/1/a.jpg templates/17.jpg 9 17 3\n")
    text(root, "gallery.txt", "images/2/b.jpg 9 17 4\nimages/3/c.jpg 9 18 4\n\n")
    return root


def omnireid(root):
    put(root, "img/1_rgb.jpg", "img/2_nir.jpg", "img/3_rgb.jpg")
    text(root, "datalist/train_t2i.txt",
         "img/1_rgb.jpg a 4 1\nimg/1_rgb.jpg b 4 1\nimg/2_nir.jpg a -1 0\n")
    text(root, "datalist/train.txt", "img/1_rgb.jpg x 4 1 2\n")
    text(root, "datalist/query.txt", "img/2_nir.jpg a 9 2 3\n")
    text(root, "datalist/gallery.txt",
         "img/3_rgb.jpg sentinel.png 9 1\nimg/1_rgb.jpg sentinel.png -1 1\n")
    text(root, "datalist/gpt.json", {"a": "In red.", "b": "In blue.", "img/2_nir.jpg": "In grey."})
    return root


TREES = {
    "market": market, "msmt17": msmt17, "cuhk03": cuhk03, "ltcc": ltcc,
    "ltcc-clothes": ltcc_clothes, "prcc": prcc, "vc-clothes": vc_clothes, "llcm": llcm,
    "cuhk-pedes": pedes, "icfg-pedes": icfg_pedes, "rstpreid": rstpreid,
    "synth-pedes": synth_pedes, "syncpr": syncpr, "itcpr": itcpr, "cocas": cocas,
    "cocas-real2": real2, "omnireid": omnireid,
}
