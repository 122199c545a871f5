"""The drawn people: deterministic, listed as real data sets are, and true to their captions."""

import json
import math
import os
import random
import re
import signal
import time
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import toydata
from instructions import ATTRIBUTES, TASKS, asked_tasks
from reid import checkpoints, cli
from reid.folders import check, open_all
from reid.layouts import LAYOUTS
from reid.protocols import columns, masks, trials
from reid.runs import read_log
from tests.commands import one_line, start
from tests.trees import JOINED
from tests.trees import TREES as BY_HAND
from toydata import cameras, drawing, people, sheet
from toydata.figure import Pose
from toydata.trees import FIVE, TREES, Job


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Every layout, with 12 people to train on and 4 to test on, or 6 and 2."""
    folder = tmp_path_factory.mktemp("toy") / "out"
    toydata.make_toy(folder, 16, seed=0, workers=1, sets="all")
    return folder


def content(folder):
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def names(folder):
    return [path.name for path in sorted(folder.iterdir())]


# ---- writing ----

def test_every_byte_depends_on_people_and_seed_alone(root, drawn):
    """`drawn` was drawn by as many processes as there are cores."""
    five, everything = content(drawn), content(root)
    assert five == {name: everything[name] for name in five}
    others = {TREES[name].folder for name in TREES.keys() - set(FIVE)}
    assert {name.split("/")[0] for name in everything.keys() - five.keys()} == others
    assert json.loads(five["toy.json"])["people"] == 16


def test_only_the_default_folder_is_drawn_unasked_and_only_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(toydata, "make_toy", lambda out: Path(out).mkdir())
    for data in ("elsewhere", "toy", toydata.TOY):
        toydata.provide(data)
    assert names(tmp_path) == ["toy"]


def die(job):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_while_people_are_drawn(tmp_path, monkeypatch):
    """The others end with it, in silence; a worker's end is said. Other files stay."""
    drawing = start(tmp_path, "-m", "toydata", "--people", 400)
    while not list(tmp_path.glob(".toy.part/*/*/*.png")):
        time.sleep(0.1)
    drawing.kill()
    said = drawing.communicate(timeout=60)[1]  # until the last of them closes it
    assert "Traceback" not in said and "Broken" not in said
    monkeypatch.setattr(toydata, "_draw", die)
    with pytest.raises(cli.UserError, match="a process that draws people was killed"):
        toydata.make_toy(tmp_path / "toy", 8)
    assert names(tmp_path) == []  # nor what the first one left
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(cli.UserError, match="not an empty folder"):
        toydata.make_toy(tmp_path, 8)
    assert names(tmp_path) == ["mine"]


def test_contact_sheet():
    image = sheet.contact_sheet(rows=2)
    assert 900 <= image.width <= 1100 and len(image.getcolors(10 ** 6)) > 1000


# ---- the lists, as the readers of the real data sets see them ----

@pytest.mark.parametrize("tasks", ["all", *JOINED])
def test_each_query_has_a_hit_and_where_clothes_are_asked_for_a_trap(root, tasks):
    datasets = open_all(root, asked_tasks(tasks))
    for dataset in datasets:
        train = list(dataset.split("train"))
        if TASKS[dataset.task].pictures:
            assert all(record.crop_path and record.template_path for record in train)
        if TASKS[dataset.task].described:
            assert all(record.captions for record in train)
        if not dataset.tested:
            continue
        queries = dataset.split("query") or dataset.split("test")
        gallery = [each for each in dataset.split("gallery") if not each.junk] or queries
        both = {record.pid for record in train} & {record.pid for record in gallery}
        assert not both or dataset.layout == "cocas", "in training and in test"
        for protocol in dataset.protocols:
            chosen = trials(protocol, queries, gallery)[0]
            q, g = columns([queries[i] for i in chosen[0]], [gallery[i] for i in chosen[1]])
            positive, removed = masks(protocol, q, g)
            same = q.pid == g.pid
            hits = (positive & ~removed).any(1)
            traps = (same & ~positive & ~removed).any(1)
            share = 0.5 if protocol.name == "all-sc" else 0.9  # who never changes has none in cc
            assert hits.mean() >= share, (dataset.title, protocol.name)
            assert traps.all() if protocol.positive else not traps.any()
            assert dataset.task != "trad" or (same & removed).any(), "the same camera"


def test_ltcc_lists_who_changes_clothes(monkeypatch, tmp_path):
    saved = []
    monkeypatch.setattr(Job, "shoot", lambda *_: None)
    monkeypatch.setattr(Job, "save", lambda job, path, image: saved.append(Path(path).name[:5]))
    kinds = Counter()
    for job in toydata.jobs_of("ltcc", tmp_path, 60, seed=0):
        saved.clear()
        [(file, pid)] = toydata._draw(job)
        assert {name.split("_")[0] for name in saved} == {f"{job.pid:03d}"} and pid == str(job.pid)
        kinds[Path(file).stem, len(set(saved))] += 1
    assert kinds == {("cloth-change_id_train", 6): 42, ("cloth-unchange_id_train", 1): 3,
                     ("cloth-change_id_test", 3): 14, ("cloth-unchange_id_test", 1): 1}


def test_infrared_is_grey(root):
    tree = root / "LLCM"
    [dataset] = open_all(tree, asked_tasks("vi"))
    for record in dataset.records:
        colours = np.asarray(Image.open(tree / record.path).convert("RGB"), int)
        assert (record.modality == "ir") == (np.ptp(colours, 2).max() <= 3)
        assert record.modality == "rgb" or record.cam != 3
        again = re.sub(r"test_(vis|nir)/cam\d", r"\1", record.path)  # test people lie there twice
        assert (tree / record.path).read_bytes() == (tree / again).read_bytes()
    ids = {int(pid) for pid in (tree / "idx/test_id.txt").read_text().split(",")}
    assert ids == {record.pid for record in dataset.split("test")}


def test_cocas_describes_and_shows_the_same_wanted_outfits(root):
    pictured, described = [
        open_all(root / "COCAS", asked_tasks(task))[0] for task in ("ctcc", "li")]
    for role in ("query", "gallery"):
        asked, shown = [[(record.path, record.clothes, record.target_clothes)
                         for record in each.split(role)] for each in (pictured, described)]
        assert asked == shown
    for record in pictured.split("query"):
        worn = int(Path(record.path).parent.name) - 1
        assert int(Path(record.template_path).stem) % 3 != worn, "a query for what it shows"
    captions = defaultdict(set)
    for record in described.split("gallery"):
        captions[record.clothes].add(record.captions[0])
    assert min(map(len, captions.values())) > 1, "one caption of an outfit: a search for sentences"
    for record in described.split("query"):
        assert record.captions[0] not in set.union(*captions.values())


def test_all_layouts_train_and_are_tested_under_every_protocol(root, train_tiny, command):
    tasks = asked_tasks("all")
    datasets = open_all(root, tasks)
    assert BY_HAND.keys() == LAYOUTS.keys() - {"own"}
    served = {(name, task) for name in BY_HAND for task in LAYOUTS[name].protocols if task in tasks}
    lists = {("omnireid", task) for task in tasks} | {("cocas", "t2i")}
    assert served <= {(d.layout, d.task) for d in datasets} <= served | lists
    assert check(datasets) == [] and not any(d.notes for d in datasets)
    streams = sum(bool(d.split("train")) for d in datasets)
    code, out, err = train_tiny("--data", root, "--steps", streams, "--name", "all")
    assert code == 0, err
    last = read_log("runs/all")[-1]
    got = {(row["data"], row["task"], row["protocol"].split(" + ")[0]) for row in last["rows"]}
    assert got == {(d.title, d.task, protocol.name) for d in datasets if d.tested
                   for protocol in d.protocols if not protocol.named}
    assert all(row["trials"] in (1, 10) and row["queries"] > 0 for row in last["rows"])
    model = ("--checkpoint", "runs/all/last.pt")
    for folder, protocol in (("LLCM", "vis-to-ir-deen"), ("prcc", "cross single-shot")):
        flags = ("--data", root / folder, "--protocol", protocol)
        code, out, err = command(evaluate, *model, *flags)
        assert code == 0 and protocol in out, err
    one_line(command(evaluate, *model, "--data", root / "SYNTH-PEDES"), "no test split")
    one_line(train_tiny("--data", root / "COCAS-Real2"), "no training images")


# ---- the people ----

def test_nobody_is_drawn_twice():
    """In training and in test, in two data sets, or with another seed."""
    bodies = [job.body for name in TREES for seed in (0, 1)
              for job in toydata.jobs_of(name, Path(), 40, seed)]
    assert len(bodies) == len(set(bodies))


def test_the_wardrobe_is_shared_and_a_persons_outfits_differ():
    """And each attribute has a phrase of the table."""
    jobs = toydata.jobs_of("real1", Path(), 80, seed=0)
    for job in jobs:
        worn = [people.attributes_of(job.body, outfit, job.pid) for outfit in job.outfits]
        for attributes in worn:
            assert attributes.keys() == ATTRIBUTES.keys()
            assert all(phrase in ATTRIBUTES[key] for key, phrase in attributes.items())
            shown = {attributes["trousers length"], attributes["coat style"]}
            assert job.body.gender == "female" or not shown & {"skirt", "dress"}
        for key in ("coat color", "trousers color"):
            assert len({attributes[key] for attributes in worn}) == 3
    wearers = Counter(id(outfit) for job in jobs for outfit in job.outfits)
    assert 35 <= len(wearers) <= 60
    assert sum(count > 1 for count in wearers.values()) >= 0.9 * len(wearers)


# ---- what captions say is drawn ----

SHOES = ("boots", "leather shoes", "sandals", "walking shoes")
VOCABULARY = [  # what is looked for in captions
    *product(people.COLOURS, ("long sleeve", "short sleeve", "bareback"), people.COAT_LENGTHS),
    *product(people.COLOURS, ("trousers", "shorts", "skirt", *SHOES)),
    *product(("black", "white", "yellow"), ["hair"]),
    *product(["the"], ("front", "side", "back")),
    *product(("man", "boy", "woman", "girl", "bald", "pose: stoop", "glasses", "sunglasses")),
    *product(("backpack", "hand bag", "shoulder bag", "waist pack", "trolley")),
    *product(("hat", "gloves", "umbrella")),
]


def said(caption):
    phrases = map(" ".join, VOCABULARY)
    return {phrase for phrase in phrases if re.search(rf"\b{phrase}\b", caption)}


def to_be_said(doll):
    """What `said` must find of clothes, of the person and of the angle: [set] by the figure that
    was drawn and its paints."""
    wears = doll.wears
    coat, trousers, shoes = (
        nearest(people.COLOURS, doll.paint[part]) for part in ("coat", "trousers", "shoes"))
    clothes = {
        f"{coat} {wears['coat length'].removesuffix(' coat')} {wears['coat style']}",
        f"{trousers} {wears['trousers length'].removesuffix(' trousers')}",
        f"{shoes} {wears['shoes style'].replace('sandal', 'sandals')}",
    }
    for key in ("bag style", "cap style", "glove", "umbrella"):
        thing = wears[key].removeprefix("with ").replace("glove", "gloves")
        clothes |= {thing} if "without" not in thing else set()

    body = doll.body
    side = "front" if doll.cos > 0.7 else "back" if doll.cos < -0.7 else "side"
    glasses = "with glasses" if body.glasses else wears["glass style"]
    child, adult = {"male": ("boy", "man"), "female": ("girl", "woman")}[body.gender]
    hairs = {rgb: name for name, rgb in people.HAIRS + people.GREYS}
    hair = hairs[tuple(nearest({rgb: rgb for rgb in hairs}, doll.paint["hair"]))]
    person = {
        child if body.height < 145 and body.stoop < 0.25 else adult: True,
        "bald": body.hair_style == "bald",
        hair: body.hair_style != "bald" and "agnostic" not in hair,
        glasses.removeprefix("with "): "without" not in glasses and side != "back",
        "pose: stoop": body.stoop > 0.35,
    }
    return clothes, {phrase for phrase, is_true in person.items() if is_true}, {f"the {side}"}


def nearest(colours, rgb):
    return min(colours, key=lambda name: math.dist(colours[name], rgb))


@pytest.mark.parametrize("data_set", ["cuhk-pedes", "real2", "itcpr", "syncpr"])
def test_a_caption_is_true_of_the_figure_that_is_drawn(data_set, monkeypatch, tmp_path):
    """A wish is about clothes alone, an example of what is wanted about no angle."""
    dolls = []
    pictures = {}
    draw = drawing.Doll.draw
    monkeypatch.setattr(drawing.Doll, "draw", lambda doll: dolls.append(doll) or draw(doll))
    monkeypatch.setattr(Job, "save", lambda job, path, image: pictures.update({path: dolls[-1]}))
    lists = defaultdict(list)
    worn = {}  # the beginning of a file's name -> attributes
    for job in toydata.jobs_of(data_set, tmp_path, 60, 0):
        for file, entry in toydata._draw(job):
            lists[file].append(entry)
        for number, outfit in enumerate(job.outfits, 1):
            worn[f"{job.pid:04d}_{number}"] = outfit.attributes

    captions = []  # (image, what is said of it, how many sets of `to_be_said`)
    for entry in lists["reid_raw.json"]:
        captions += [(f"imgs/{entry['file_path']}", caption, 3) for caption in entry["captions"]]
    for image, caption in lists["datalist/runner_real2_v1_gpt.json"]:
        captions.append((image, caption, 2 if image.endswith("wanted.jpg") else 3))
        assert pictures[image].wears is worn[Path(image).name[:6]]
    for entry in lists["SynCPR.json"]:
        for side, key in (("reference", "reference"), ("target", "target"), ("target", "edit")):
            image = entry[f"{side}_image_path"]
            captions.append((image, entry[f"{key}_caption"], 1 if key == "edit" else 3))
    for entry in lists["query.json"]:
        hits = [each["file_path"] for each in lists["gallery.json"]
                if each["instance_id"] == entry["instance_id"]]
        assert pictures[entry["file_path"]].wears not in [pictures[hit].wears for hit in hits]
        captions += [(hit, entry["caption"], 1) for hit in hits]

    assert len(captions) > 80
    for image, caption, parts in captions:
        assert said(caption) == set.union(*to_be_said(pictures[image])[:parts]), caption


def area(part, yaw, hair="short", **attributes):
    """The pixels in which a part shows on somebody who wears `attributes` and turns by `yaw`."""
    plain = {key: next(iter(weights)) for key, weights in people.THINGS.items()}
    plain |= {"coat style": "t-shirt", "coat length": "bareback coat"}
    given = {key.replace("_", " "): phrase for key, phrase in attributes.items()}
    outfit = people.draw_outfit(random.Random(0))
    outfit = replace(outfit, attributes=outfit.attributes | plain | given, pattern=0)
    body = people.Body(skin=(1, 1, 1), hair=(1, 1, 1), hair_style=hair, hair_length=3.0, volume=1.2)
    paint = dict.fromkeys(drawing.paints(body, outfit), (1, 1, 1)) | {part: (190, 190, 190)}

    canvas = Image.new("RGB", cameras.CANVAS)
    wide, high = cameras.CANVAS
    drawing.Doll(canvas, body, outfit, paint, Pose(yaw, 0.3, wide / 2, high - 8, 1.1, 0.2)).draw()
    return int((np.asarray(canvas)[..., 0] > 100).sum())


@pytest.mark.parametrize("yaw", [0.3, math.pi / 2, -math.pi / 2, math.pi - 0.3])
def test_what_a_caption_names_shows_in_pixels(yaw):
    bags = [area("bag", yaw, bag_style=style) for style in people.THINGS["bag style"]]
    assert bags[0] == 0 and min(bags[1:]) > 100 and len(set(bags)) == len(bags)
    shoes = {area("shoes", yaw, shoes_style=style) for style in people.THINGS["shoes style"]}
    coats = {area("coat", yaw, coat_style=style) for style in people.COAT_LENGTHS}
    assert len(shoes) == 4 and len(coats) >= 5
    if math.cos(yaw) > 0.25:  # from the front, coats differ by what is on them
        trimmings = ("accent", "dark", "metal", "linen")
        trimmed = {tuple(area(part, yaw, coat_style=style) for part in trimmings)
                   for style in people.COAT_LENGTHS}
        assert len(trimmed) == len(people.COAT_LENGTHS)
    for part, key in (("hat", "cap style"), ("things", "glove"), ("things", "umbrella")):
        without, with_it = people.THINGS[key]
        assert area(part, yaw, **{key: without}) == 0 and area(part, yaw, **{key: with_it}) > 200
    glasses = [area("frame", yaw, glass_style=style) for style in people.THINGS["glass style"]]
    assert (glasses[1] > glasses[0] + 20) == (math.cos(yaw) > -0.25)

    sleeves = [area("sleeve", yaw, coat_length=length) for length in reversed(
        ATTRIBUTES["coat length"][1:])]
    assert sleeves[0] == 0 < 100 + sleeves[1] < sleeves[2] - 100
    legs = [area("skin", yaw, trousers_length=kind) for kind in people.THINGS["trousers length"]]
    assert min(legs[1:]) > legs[0] + 100 and legs[1] != legs[2]
    hair = [area("hair", yaw, style) for style in ("bald", "short", "long")]
    assert hair[0] == 0 < 60 + hair[1] < hair[2]


def test_pictures_of_clothes_show_little_else():
    """A crop has more of the coat than its photo; a shop picture nothing that is carried."""
    shares = []
    rng = random.Random(0)
    for number in range(60):
        body = people.draw_body(rng)
        [outfit] = people.dress([body], rng)[0]
        shot = cameras.shoot(body, outfit, cameras.camera(0, number % 6), rng)
        for picture, size in ((shot.picture(), (64, 128)), (shot.crop(), (64, 64))):
            assert picture.size == size
            off = np.asarray(picture, float) - outfit.colours["coat"]
            shares.append((np.abs(off).max(2) < 50).mean())
        picture = cameras.template(outfit)
        seen = {pixel for _, pixel in picture.getcolors(64 * 64)}
        assert {outfit.colours[part] for part in ("coat", "trousers", "shoes")} <= seen
        carried = {key: ATTRIBUTES[key][0] for key in ("bag style", "umbrella", "glove")}
        loaded = replace(outfit, attributes=outfit.attributes | carried)
        assert cameras.template(loaded) == picture
    assert sum(shares[1::2]) > 1.5 * sum(shares[::2])


def test_nothing_but_the_person_tells_who_it_is(monkeypatch):
    """A picture without its person depends on the camera and on chance alone, and never repeats."""
    monkeypatch.setattr(drawing.Doll, "draw", lambda doll: None)
    jobs = toydata.jobs_of("real2", Path(), 16, seed=0)
    places = set()
    for cam in range(1, 12):
        taken = []
        for job in jobs:
            job.body = replace(job.body, height=170, stoop=0)  # which the shadow shows
            job.rng = random.Random(cam)
            taken.append([job.shoot(outfit, cam).jpeg for outfit in range(3)])
        assert taken == taken[:1] * len(jobs) and len(set(taken[0])) == 3
        places.add(cameras.camera(0, cam).place.tobytes())
    assert len(places) == 11


# ---- the model that comes with them ----

def test_the_bundled_model_is_small_and_nothing_but_a_model():
    assert evaluate.TRAINED.is_file(), (
        "python train.py, then python -m reid.checkpoints runs/all/last.pt toydata/trained.pt")
    assert evaluate.TRAINED.stat().st_size <= 6e6
    state = checkpoints.load(evaluate.TRAINED)
    assert not state.keys() & (checkpoints.RUN.keys() - {"step"}) and state["classes"] == {}
    assert state["config"]["data"] == toydata.TOY and state["config"]["task"] == "all"
    for name, value in state["model"].items():
        assert not value.is_floating_point() or value.dtype == torch.float16, name
        assert not name.startswith("encoder.text."), "the text tower comes from a package"


def test_evaluate_takes_it_until_there_is_a_run(bundled, drawn, command, monkeypatch):
    provided = []
    monkeypatch.setattr(toydata, "provide", provided.append)
    Path("toy").symlink_to(drawn)
    code, out, err = command(evaluate, "--task", "cc")
    assert code == 0 and "no runs/all/last.pt yet" in err and provided == ["./toy"], err
    assert "LTCC" in out
    Path("runs/all").mkdir(parents=True)
    evaluate.LAST.touch()
    assert evaluate.chosen_checkpoint(None) == evaluate.LAST
    assert evaluate.chosen_checkpoint("a.pt") == "a.pt"
