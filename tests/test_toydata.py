"""The toy trees: deterministic, named and listed as the real data sets are, and answerable under every protocol."""

import json
import random
import re
from collections import defaultdict
from pathlib import Path

import pytest
from PIL import Image

from reid import cli
from toydata import benchmark, cameras, make_toy, people, sheet
from instructions import ATTRIBUTES

PEOPLE = 12


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy") / "out"
    make_toy(folder, PEOPLE, seed=0, workers=2)
    return folder


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def names(folder):
    return [path.name for path in sorted(folder.iterdir())]


def rows(file):
    return [line.split() for line in file.read_text().splitlines()]


def test_every_byte_depends_on_people_and_seed_alone(tmp_path):
    for name, workers in (("a", 1), ("b", 2)):
        make_toy(tmp_path / name, 8, 0, workers)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert benchmark.jobs_of("ltcc", tmp_path, 8, seed=0) != benchmark.jobs_of("ltcc", tmp_path, 8, seed=1)
    assert json.loads((tmp_path / "a/toy.json").read_text())["people"] == 8


def test_more_layouts_leave_the_five_as_they_are(tmp_path):
    for sets in ("five", "all"):
        make_toy(tmp_path / sets, 8, 0, sets=sets)
    five, everything = content(tmp_path / "five"), content(tmp_path / "all")
    assert {name: everything[name] for name in five} == five
    assert {name.split("/")[0] for name in everything.keys() - five.keys()} == {
        "MSMT17_V1", "cuhk03-np", "prcc", "VC-Clothes", "SYNTH-PEDES", "OmniReID", "ltcc", "COCAS-Real2"}


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    folder = tmp_path_factory.mktemp("all") / "out"
    make_toy(folder, 40, seed=0, sets="all")
    return folder


def test_a_published_real2_has_a_hit_and_a_trap_for_every_query(everything):
    tree = everything / "COCAS-Real2"
    assert names(tree) == ["gallery.txt", "images", "query.txt", "templates"]
    gallery = rows(tree / "gallery.txt")
    assert len(gallery) == 27 and len({image for image, *_ in gallery}) == 27
    queries = rows(tree / "query.txt")
    assert len(queries) == 9
    for image, template, pid, clothes, cam in queries:
        assert (tree / image).is_file() and (tree / template).is_file()
        worn = int(pid) * 3 + int(Path(image).name.split("_")[1]) - 1
        assert int(clothes) != worn, "the query does not wear what it asks for"
        of_person = [row for row in gallery if row[1] == pid and row[3] != cam]
        assert any(row[2] == clothes for row in of_person), "a hit from another camera"
        assert any(row[2] != clothes for row in of_person), "the same person in other clothes"
    assert len(names(tree / "images")) == 36


def test_ltcc_with_clothes(everything):
    tree = everything / "ltcc"
    assert names(tree) == ["LTCC_ReID", "croped_clothes", "datalist", "templates"]
    lists = {name: rows(tree / f"datalist/{name}_ctcc.txt") for name in ("train", "query", "gallery")}
    for name, entries in lists.items():
        folder = "test" if name == "gallery" else name
        listed = {Path(image).name for image, *_ in entries}
        assert listed == set(names(tree / "LTCC_ReID" / folder)), name
        for image, picture, pid, outfit, cam in entries:
            assert (tree / picture).is_file()
            fields = Path(image).name.split("_")
            assert int(fields[0]) == int(pid) and fields[2] == f"c{cam}"
            assert (fields[1] == outfit) == (name != "query"), "a query asks for another outfit"
    assert len(lists["train"]) == 2 * len(names(tree / "LTCC_ReID/train"))
    for image, template, pid, outfit, cam in lists["query"]:
        hits = [row for row in lists["gallery"] if row[2:4] == [pid, outfit] and row[4] != cam]
        assert template == f"templates/{int(pid):03d}_{outfit}.jpg" and hits


def test_picture_sizes(root):
    sizes = {"LTCC_ReID/train": (64, 128), "Market-1501-v15.09.15/bounding_box_test": (64, 128),
             "COCAS/real1/COCAS": (64, 128), "COCAS/real1/templates": (64, 64), "COCAS/real2/croped_clothes": (64, 64)}
    for folder, size in sizes.items():
        assert {Image.open(path).size for path in (root / folder).iterdir()} == {size}


def test_an_existing_folder_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(cli.UserError, match="not an empty folder"):
        make_toy(tmp_path, 8)
    assert names(tmp_path) == ["mine"]


@pytest.mark.parametrize("count", (7, 1000))
def test_too_few_or_too_many_people(tmp_path, count):
    with pytest.raises(cli.UserError, match="8 to 999"):
        make_toy(tmp_path / "toy", count)


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def stop(folder, *_):
        (folder / "LTCC_ReID").mkdir()
        raise KeyboardInterrupt
    monkeypatch.setattr(benchmark, "_write", stop)
    with pytest.raises(KeyboardInterrupt):
        make_toy(tmp_path / "toy", 8)
    assert names(tmp_path) == []


def test_market(root):
    tree = root / "Market-1501-v15.09.15"
    pattern = re.compile(r"^(-1|\d{4})_c([1-6])s(\d)_(\d{6})_(\d{2})\.jpg$")
    train, query, gallery = ([pattern.match(name).groups()[:2] for name in names(tree / folder)]
                             for folder in ("bounding_box_train", "query", "bounding_box_test"))
    assert len({pid for pid, _ in train}) == PEOPLE * 3 // 4
    assert not {pid for pid, _ in train} & {pid for pid, _ in query + gallery}
    assert {"0000", "-1"} == {pid for pid, _ in gallery} - {pid for pid, _ in query}
    for pid, cam in query:
        assert (pid, cam) in gallery, "same-camera pictures, which the protocol must remove"
        assert any(other == pid and seen != cam for other, seen in gallery)


def test_ltcc(root):
    tree = root / "LTCC_ReID"
    pattern = re.compile(r"^(\d{3})_(\d+)_c(\d{1,2})_(\d{6})\.png$")
    train, query, gallery = ([pattern.match(name).groups()[:3] for name in names(tree / folder)]
                             for folder in ("train", "query", "test"))
    numbers = [pattern.match(name).group(4) for folder in ("train", "query", "test") for name in names(tree / folder)]
    assert len(numbers) == len(set(numbers))
    assert all(1 <= int(cam) <= 12 for _, _, cam in train + query + gallery)
    assert min(train)[0] == "000" and not {pid for pid, _, _ in train} & {pid for pid, _, _ in query + gallery}
    for role, images in (("train", train), ("test", gallery)):
        outfits = defaultdict(set)
        for pid, clothes, _ in images:
            outfits[str(int(pid))].add(clothes)
        for kind, count in (("change", 6 if role == "train" else 3), ("unchange", 1)):
            listed = (tree / f"info/cloth-{kind}_id_{role}.txt").read_text().split()
            assert set(listed) == {pid for pid in outfits if len(outfits[pid]) == count}
    for pid, clothes, cam in query:
        hits = [(worn, seen) for other, worn, seen in gallery if other == pid and seen != cam]
        assert any(worn == clothes for worn, _ in hits) and any(worn != clothes for worn, _ in hits)


def test_llcm(root):
    tree = root / "LLCM"
    pattern = re.compile(r"^(\d{4})_c(\d{2})_s(\d+)_f(\d+)_(vis|nir)\.jpg$")
    lists = {name: rows(tree / f"idx/{name}.txt") for name in ("train_vis", "train_nir", "test_vis", "test_nir")}
    seen = defaultdict(set)
    for name, entries in lists.items():
        for path, label in entries:
            pid, cam, _, _, modality = pattern.match(Path(path).name).groups()
            assert (tree / path).is_file() and modality == name[-3:] and path.split("/")[-2] == pid
            assert not (modality == "nir" and cam == "03")
            seen[name].add((int(pid), int(cam)))
            if name.startswith("test"):
                assert path.startswith(f"test_{modality}/cam{int(cam)}/")
                assert (tree / path).read_bytes() == (tree / modality / pid / Path(path).name).read_bytes()
    assert sorted({int(label) for _, label in lists["train_vis"]}) == list(range(PEOPLE * 3 // 4))
    ids = [int(pid) for pid in (tree / "idx/test_id.txt").read_text().split(",")]
    assert set(ids) == {pid for pid, _ in seen["test_vis"]} == {pid for pid, _ in seen["test_nir"]}
    assert not set(ids) & {pid for pid, _ in seen["train_vis"]}
    for query, gallery in (("test_vis", "test_nir"), ("test_nir", "test_vis")):
        for pid, cam in seen[query]:
            assert any(other == pid and at != cam for other, at in seen[gallery])
    near_infrared = Image.open(tree / lists["train_nir"][0][0]).convert("RGB").getpixel((32, 20))
    assert max(near_infrared) - min(near_infrared) <= 3, "infrared is grey"


def test_cuhk_pedes(root):
    tree = root / "CUHK-PEDES"
    entries = json.loads((tree / "reid_raw.json").read_text())
    ids = {split: {e["id"] for e in entries if e["split"] == split} for split in ("train", "val", "test")}
    assert sorted(set.union(*ids.values())) == list(range(1, PEOPLE + 1)) and sum(map(len, ids.values())) == PEOPLE
    assert [e["split"] for e in entries] == sorted((e["split"] for e in entries), key=("train", "val", "test").index)
    for entry in entries:
        assert (tree / "imgs" / entry["file_path"]).is_file() and len(set(entry["captions"])) == 2
    bare = [{key: e[key] for key in ("id", "file_path", "captions")} for e in entries]
    assert json.loads((tree / "caption_all.json").read_text()) == bare


def test_cocas_training_lists(root):
    tree = root / "COCAS/real1"
    sentences = json.loads((tree / "datalist/runner_real1_v1_gpt.json").read_text())
    assert {image for image, key, *_ in rows(tree / "datalist/train_attr.txt") if sentences[key]} == set(sentences)
    instructions = defaultdict(list)
    for image, instruction, pid, clothes, cam in rows(tree / "datalist/train_ctcc.txt"):
        assert (tree / image).is_file() and (tree / instruction).is_file()
        instructions[image].append((instruction.split("/")[0], clothes))
    for entries in instructions.values():
        assert sorted(folder for folder, _ in entries) == ["croped_clothes", "templates"]
        assert len({clothes for _, clothes in entries}) == 1
    assert len({pid for _, _, pid, _, _ in rows(tree / "datalist/train_ctcc.txt")}) == PEOPLE * 3 // 4


def test_cocas_test_lists(root):
    tree = root / "COCAS/real2"
    lists = {name: rows(tree / f"datalist/{name}.txt") for name in ("query", "gallery", "query_attr", "gallery_attr")}
    sentences = json.loads((tree / "datalist/runner_real2_v1_gpt.json").read_text())
    worn = {image: (pid, clothes) for image, _, pid, clothes, _ in lists["gallery"]}
    for image, instruction, *_ in lists["query"] + lists["gallery"]:
        assert (tree / image).is_file() and (tree / instruction).is_file()
    for _, key, pid, clothes, _ in lists["query_attr"]:
        outfit = int(Path(key).name.split("_")[1]) - 1
        assert sentences[key] and int(clothes) == int(pid) * 3 + outfit
        assert (tree / key).is_file() and key not in worn, "described from a picture of its own"
    asked = {sentences[key] for _, key, *_ in lists["query_attr"]}
    carried = {sentences[key] for _, key, *_ in lists["gallery_attr"]}
    assert not asked & carried, "no query repeats the words of a gallery image"
    assert all(image == key in sentences for image, key, *_ in lists["gallery_attr"])
    for image, _, pid, clothes, cam in lists["query"] + lists["query_attr"]:
        mine = [(c, k) for _, _, p, c, k in lists["gallery"] if p == pid]
        assert any(c == clothes and k != cam for c, k in mine), "a hit from another camera"
        assert any(c != clothes and k != cam for c, k in mine), "the same person in the wrong clothes"
        own = int(Path(image).name.split("_")[1]) - 1
        assert int(clothes) != int(pid) * 3 + own, "the query does not wear what it asks for"


def test_each_attribute_has_a_phrase_of_the_table():
    rng = random.Random(0)
    for _ in range(200):
        body = people.draw_body(rng)
        attributes = people.attributes_of(body, people.dress([body], rng)[0][0], rng.uniform(0, 7))
        assert set(attributes) == set(ATTRIBUTES)
        assert all(phrase in ATTRIBUTES[key] for key, phrase in attributes.items())
        worn = {attributes["trousers length"], attributes["coat style"]}
        assert body.gender == "female" or not worn & {"skirt", "dress"}
        assert attributes["person angle"] != "back" or attributes["glass style"] == "without glasses"


def test_sentences_are_true_of_their_pictures(root):
    """The coat is called by the colour it was drawn in and by no other."""
    jobs = benchmark.jobs_of("cuhk-pedes", root, PEOPLE, 0)
    entries = defaultdict(list)
    for entry in json.loads((root / "CUHK-PEDES/reid_raw.json").read_text()):
        entries[entry["id"]] += entry["captions"]
    for job in jobs:
        colour = job.outfits[0].attributes["coat color"].removesuffix(" coat")
        others = "|".join(set(people.COLOURS) - {colour})
        for caption in entries[job.pid]:
            assert re.search(rf"\b{colour}\b", caption)
            style = job.outfits[0].attributes["coat style"]
            assert not re.search(rf"\b({others})( long sleeve| short sleeve| bareback)* {style}", caption)


def test_shop_pictures_show_the_colours_of_the_clothes():
    rng = random.Random(0)
    for _ in range(40):
        outfit = people.draw_outfit(rng)
        picture = cameras.template(outfit)
        seen = {pixel for _, pixel in picture.getcolors(64 * 64)}
        for part in ("coat", "trousers", "shoes"):
            assert outfit.colours[part] in seen, part


def test_the_wardrobe_is_shared_and_a_persons_outfits_differ():
    rng = random.Random(0)
    wardrobe = people.dress([people.draw_body(rng) for _ in range(60)], rng, 3, wearers=4)
    wearers = defaultdict(int)
    for a, b, c in wardrobe:
        assert not (a.clashes(b) or b.clashes(c) or a.clashes(c))
        for outfit in (a, b, c):
            wearers[id(outfit)] += 1
    assert sum(count > 1 for count in wearers.values()) >= 0.9 * len(wearers)
    assert 35 <= len(wearers) <= 60


def test_ltcc_has_people_who_never_change():
    kinds = [len(job.outfits) for job in benchmark.jobs_of("ltcc", Path(), 60, 0)]
    assert set(kinds[:45]) == {1, 6} and set(kinds[45:]) == {1, 3} and kinds[45:].count(1) == 1 and kinds.count(1) == 4


def test_contact_sheet():
    image = sheet.contact_sheet(rows=2)
    assert 900 <= image.width <= 1100 and len(image.getcolors(10 ** 6)) > 1000
