"""data.py on tiny fake trees with the names of the real data sets, and properties of sampler and transforms."""

import json
import multiprocessing
import sys
import warnings
from collections import Counter
from pathlib import Path

from dataclasses import replace

import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data
from reid.cli import UserError
from data import PKSampler
from reid import folders
from reid.images import load_image, normalise
from reid.records import Dataset, Record

PLAIN = Image.effect_noise((8, 16), 60).convert("RGB")


def put(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".jpg", ".png"):
            PLAIN.save(path)
        else:
            path.write_bytes(b"not an image")


def text(root, name, content):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(content if isinstance(content, str) else json.dumps(content))


def market(root):
    put(root, "bounding_box_train/0002_c1s1_000451_03.jpg", "bounding_box_train/0007_c3s3_077419_03.jpg",
        "bounding_box_train/-1_c1s1_000301_03.jpg", "bounding_box_train/Thumbs.db", "query/0001_c1s1_001051_00.jpg",
        "bounding_box_test/0071_c6s2_072893_01.jpg", "bounding_box_test/-1_c1s1_000401_03.jpg",
        "bounding_box_test/0000_c4s1_000051_02.jpg", "bounding_box_test/._0071_c6s2_072893_01.jpg")
    return root


def ltcc(root):
    put(root, "train/013_2_c12_006327.png", "train/094_1_c9_015923.png", "query/148_1_c3_014811.png",
        "test/001_1_c5_015874.png", "test/._001_1_c5_015874.png", "info/cloth-change_id_train.txt")
    return root


def llcm(root):
    put(root, "nir/0001/0001_c01_s185535_f7010_nir.jpg", "vis/0001/0001_c02_s185535_f7010_vis.jpg",
        "nir/0003/0003_c01_s185734_f3195_nir.jpg",  # a test person's file, also below test_nir: not for training
        "test_nir/cam1/0003/0003_c01_s185734_f3195_nir.jpg", "test_vis/cam1/0003/0003_c01_s185734_f3199_vis.jpg",
        "test_vis/cam3/0003/0003_c03_s185734_f3203_vis.jpg", "test_vis/cam3/0003/._0003_c03_s185734_f3203_vis.jpg")
    text(root, "idx/train_vis.txt", "vis/0001/0001_c02_s185535_f7010_vis.jpg 0\n")
    text(root, "idx/train_nir.txt", "nir/0001/0001_c01_s185535_f7010_nir.jpg 0\n\n")
    return root


PEDES = [{"split": "train", "id": 11003, "file_path": "train_query/p11600_s14885.jpg", "captions": ["a man", "walks"]},
         {"split": "val", "id": 11004, "file_path": "CUHK03/299_4.jpg", "captions": ["a woman"]},
         {"split": "test", "id": 12004, "file_path": "test_query/p6955_s9221.jpg", "captions": ["red", "a bag", "old"]}]


def pedes(root):
    put(root, *("imgs/" + entry["file_path"] for entry in PEDES))
    text(root, "reid_raw.json", PEDES)
    return root


def cocas(root):
    put(root, "real1/COCAS/a.jpg", "real1/COCAS/b.jpg", "real1/COCAS/templates/t.jpg", "real1/COCAS/crops/a.jpg",
        "real2/real_reid_image_face_blur/images/1/q.jpg", "real2/real_reid_image_face_blur/images/1/g.jpg")
    text(root, "real1/datalist/train_ctcc.txt", "COCAS/a.jpg COCAS/templates/t.jpg 7 1\n"
         "COCAS/a.jpg COCAS/crops/a.jpg 7 1\nCOCAS/b.jpg COCAS/crops/b.jpg 8 2 5\n")
    text(root, "real1/datalist/train_attr.txt", "COCAS/a.jpg one 7 1\nCOCAS/a.jpg two 7 1\nCOCAS/b.jpg one 8 2\n")
    text(root, "real1/datalist/runner_real1_v1_gpt.json", {"one": "A man.", "two": "A tall man."})
    text(root, "real2/datalist/query.txt", "images/1/q.jpg templates/9_2.jpg 9 2 3\n")
    text(root, "real2/datalist/gallery.txt", "images/1/g.jpg crops/g.jpg 9 2 4\n")
    text(root, "real2/datalist/query_attr.txt", "images/1/q.jpg k1 9 2 3\nimages/1/q.jpg k2 9 1 3\n")
    text(root, "real2/datalist/gallery_attr.txt", "images/1/g.jpg k1 9 2 4\n")
    text(root, "real2/datalist/runner_real2_v1_gpt.json", {"k1": "In red.", "k2": "In blue."})
    return root


TREES = {"market": market, "ltcc": ltcc, "llcm": llcm, "cuhk-pedes": pedes, "cocas": cocas}


@pytest.fixture
def toy(tmp_path):
    """A folder that counts as drawn data, so that nobody compares it with published counts."""
    text(tmp_path, "toy.json", {})
    return tmp_path


def by_role(dataset):
    return Counter(record.role for record in dataset.records)


# ---- readers ----

def test_market_drops_junk_from_training_and_flags_it_in_the_gallery(toy):
    dataset = folders.open_dataset(market(toy / "Market-1501-v15.09.15"), "trad")
    assert by_role(dataset) == {"train": 2, "query": 1, "gallery": 3}
    assert dataset.split("query") == [Record("market", "query", "query/0001_c1s1_001051_00.jpg", 1, 1)]
    assert [(r.pid, r.cam, r.junk) for r in dataset.split("gallery")] == [(-1, 1, True), (0, 4, False), (71, 6, False)]
    assert [(r.pid, r.cam, r.junk) for r in dataset.split("train")] == [(2, 1, False), (7, 3, False)]


def test_ltcc_reads_person_outfit_and_two_digit_camera(toy):
    dataset = folders.open_dataset(ltcc(toy / "LTCC_ReID"), "cc")
    assert by_role(dataset) == {"train": 2, "query": 1, "gallery": 1}
    assert [(r.pid, r.cam, r.clothes) for r in dataset.split("train")] == [(13, 12, "13:2"), (94, 9, "94:1")]
    assert dataset.split("gallery")[0].path == "test/001_1_c5_015874.png"


def test_llcm_trains_on_the_lists_and_takes_cameras_from_file_names(toy):
    text(toy, "campus/cam7/toy.json", {})
    dataset = folders.open_dataset(llcm(toy / "campus" / "cam7" / "LLCM"), "vi")  # "cam" in the root must not matter
    assert by_role(dataset) == {"train": 2, "test": 3}
    assert {(r.pid, r.cam, r.modality) for r in dataset.split("train")} == {(1, 2, "rgb"), (1, 1, "ir")}
    assert [(r.pid, r.cam, r.modality) for r in dataset.split("test")] == [(3, 1, "rgb"), (3, 3, "rgb"), (3, 1, "ir")]
    assert all((dataset.root / r.path).exists() for r in dataset.records)


def test_cuhk_pedes_has_one_text_query_per_test_caption(toy):
    dataset = folders.open_dataset(pedes(toy / "CUHK-PEDES"), "t2i")
    assert by_role(dataset) == {"train": 1, "val": 1, "gallery": 1, "query": 3}
    assert dataset.split("train")[0].captions == ("a man", "walks") and dataset.split("train")[0].pid == 11003
    assert [(r.path, r.modality, r.pid, r.captions) for r in dataset.split("query")] == [
        (None, "text", 12004, ("red",)), (None, "text", 12004, ("a bag",)), (None, "text", 12004, ("old",))]
    assert dataset.split("gallery")[0].path == "imgs/test_query/p6955_s9221.jpg"


def test_cuhk_pedes_captions_without_split_are_refused(toy):
    root = pedes(toy / "CUHK-PEDES")
    no_split = [{k: v for k, v in entry.items() if k != "split"} for entry in PEDES]
    text(root, "reid_raw.json", no_split)
    with pytest.raises(UserError, match="reid_raw.json.*split"):
        folders.open_dataset(root, "t2i")
    (root / "reid_raw.json").rename(root / "caption_all.json")
    with pytest.raises(UserError, match="no split.*reid_raw.json"):
        folders.open_dataset(root, "t2i")


def test_cocas_ctcc_merges_training_rows_and_reads_the_wanted_clothes(toy):
    dataset = folders.open_dataset(cocas(toy / "COCAS"), "ctcc")
    assert dataset.records == (
        Record("cocas", "train", "real1/COCAS/a.jpg", 7, None, "7:1", template_path="real1/COCAS/templates/t.jpg",
               crop_path="real1/COCAS/crops/a.jpg"),
        Record("cocas", "train", "real1/COCAS/b.jpg", 8, 5, "8:2", crop_path="real1/COCAS/crops/b.jpg"),
        Record("cocas", "query", "real2/images/1/q.jpg", 9, 3, template_path="real2/templates/9_2.jpg",
               target_clothes="9:2"),
        Record("cocas", "gallery", "real2/images/1/g.jpg", 9, 4, "9:2", crop_path="real2/crops/g.jpg"))


def test_cocas_li_takes_descriptions_from_the_json(toy):
    dataset = folders.open_dataset(cocas(toy / "COCAS"), "li")
    assert [r.captions for r in dataset.split("train")] == [("A man.", "A tall man."), ("A man.",)]
    asked = [(r.captions, r.target_clothes) for r in dataset.split("query")]
    assert asked == [(("In red.",), "9:2"), (("In blue.",), "9:1")]
    assert [(r.captions, r.clothes) for r in dataset.split("gallery")] == [(("In red.",), "9:2")]


def test_cocas_real2_alone_opens(toy):
    root = cocas(toy / "COCAS")
    (root / "real1").rename(toy / "elsewhere")
    dataset = folders.open_dataset(root, "ctcc")
    assert by_role(dataset) == {"query": 1, "gallery": 1}
    with pytest.raises(UserError, match="COCAS.*no training images.*real1"):
        data.Batches([dataset], (16, 8), (8, 8), 1, 1, seed=0)


@pytest.mark.parametrize("row, complaint", [
    ("images/1/q.jpg k1 9", "3 columns"), ("my images/1/q.jpg k1 9 1 3", "6 columns"), ("q.jpg k1 nine 1", "integers"),
    ("q.jpg k9 9 1", "no key 'k9'")])
def test_a_bad_list_row_is_named_by_file_and_line(toy, row, complaint):
    root = cocas(toy / "COCAS")
    text(root, "real2/datalist/query_attr.txt", f"images/1/q.jpg k1 9 2 3\n\n{row}\n")
    with pytest.raises(UserError, match=rf"query_attr\.txt:3.*{complaint}"):
        folders.open_dataset(root, "li")


def test_missing_and_empty_pieces_are_named(toy):
    cases = [(market, "trad", "query", None), (ltcc, "cc", "test", None), (llcm, "vi", "test_nir", None),
             (llcm, "vi", "idx/train_nir.txt", ""), (cocas, "ctcc", "real2/datalist/gallery.txt", ""),
             (cocas, "li", "real1/datalist/runner_real1_v1_gpt.json", "{"), (pedes, "t2i", "reid_raw.json", PEDES[:2])]
    for number, (build, task, piece, content) in enumerate(cases):
        root = build(toy / str(number))
        if content is None:
            for path in sorted((root / piece).rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
        else:
            text(root, piece, content)
        with pytest.raises(UserError, match=Path(piece).name) as error:
            folders.open_dataset(root, task)
        assert "\n" not in str(error.value)


def test_a_foreign_name_is_an_error_not_a_guess(toy):
    root = market(toy / "Market")
    put(root, "query/0003_cam2.jpg")
    with pytest.raises(UserError, match="0003_cam2.jpg.*0002_c1s1"):
        folders.open_dataset(root, "trad")


def test_counts_are_compared_with_the_published_ones_except_for_drawn_data(tmp_path):
    root = market(tmp_path / "Market")
    with pytest.warns(UserWarning, match=r"train 2 images of 2 ids \(published 12936 of 751\); query"):
        folders.open_dataset(root, "trad")
    text(tmp_path, "toy.json", {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = folders.counts_table(folders.open_dataset(root, "trad"))
    assert [line.split() for line in table.splitlines()[1:]] == [
        ["train", "2", "2", "2", "-"], ["query", "1", "1", "1", "-"], ["gallery", "2", "2", "2", "-", "+", "1", "junk"]]


# ---- finding ----

def test_a_folder_of_several_sets_serves_every_task(toy):
    for name, build in TREES.items():
        build(toy / name)
    assert sorted(d.task for d in folders.open_all(toy)) == ["cc", "ctcc", "li", "t2i", "t2i", "trad", "vi"]
    assert [d.root.name for d in folders.open_all(toy, "t2i")] == ["cuhk-pedes"], "alone, t2i is the paper's"
    assert folders.open_dataset(toy, "vi").root == toy / "llcm"


def test_search_does_not_walk_image_folders(toy, monkeypatch):
    put(toy, *(f"photos/{i}.txt" for i in range(200)))
    market(toy / "photos" / "deep")
    market(toy / "a" / "Market")
    listed = []
    scandir = folders.os.scandir
    monkeypatch.setattr(folders.os, "scandir", lambda path: listed.append(Path(path)) or scandir(path))
    assert folders.find_datasets(toy) == [("market", toy / "a" / "Market")]
    assert not any("bounding_box" in str(path) for path in listed)


def test_what_cannot_be_found_is_said(toy):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        folders.open_all(toy / "nowhere")
    put(toy / "holiday", "beach/1.jpg")
    with pytest.raises(UserError, match=r"LTCC \(train, query, test\).*[Ff]ound beach"):
        folders.open_all(toy / "holiday")
    market(toy / "m")
    with pytest.raises(UserError, match=r"--task vi; found Market-1501 \(trad\)"):
        folders.open_dataset(toy, "vi")
    market(toy / "again")
    with pytest.raises(UserError, match="more than once.*again"):
        folders.open_all(toy)


# ---- sampling ----

def people(count, images=6, outfits=1, modalities=("rgb",)):
    return [Record("x", "train", f"{p}_{i}.png", p, clothes=f"{p}:{i % outfits}",
                   modality=modalities[i % len(modalities)]) for p in range(count) for i in range(images)]


def test_batches_depend_on_seed_and_step_alone():
    records = people(13)
    sampler = PKSampler(records, 4, 3, seed=1)
    first = sampler.batch(17)
    for step in (0, 99, 16, 3):
        sampler.batch(step)
    assert sampler.batch(17) == first == PKSampler(records, 4, 3, seed=1).batch(17)
    assert first != PKSampler(records, 4, 3, seed=2).batch(17) and first != sampler.batch(18)


def test_an_epoch_shows_each_identity_once_and_images_without_replacement():
    records = people(12)
    sampler = PKSampler(records, 4, 3, seed=0)
    batches = [sampler.batch(step) for step in range(3)]
    assert Counter(records[i].pid for batch in batches for i in batch) == Counter({p: 3 for p in range(12)})
    assert all(len(set(batch)) == 12 for batch in batches)
    orders = [[records[i].pid for step in range(e * 3, e * 3 + 3) for i in sampler.batch(step)] for e in (0, 1)]
    assert orders[0] != orders[1]


def test_a_person_with_fewer_than_k_images_repeats_evenly():
    records = people(4, images=3)
    batch = PKSampler(records, 4, 4, seed=0).batch(0)
    assert Counter(records[i].pid for i in batch) == Counter({p: 4 for p in range(4)})
    assert sorted(Counter(batch).values()) == [1] * 8 + [2] * 4  # all three, one of them twice


def test_outfits_come_before_repeats_and_modalities_half_and_half():
    records = people(4, images=12, outfits=3)
    for step in range(20):
        chosen = PKSampler(records, 2, 3, seed=0).batch(step)
        assert len({records[i].clothes for i in chosen}) == 6
    records = people(4, images=8, modalities=("rgb",) * 7 + ("ir",))  # seven photos and one infrared image each
    for step in range(20):
        chosen = PKSampler(records, 2, 4, seed=0).batch(step)
        assert sorted(Counter((records[i].pid, records[i].modality) for i in chosen).values()) == [2, 2, 2, 2]
    one_each = [records[i].modality for step in range(40) for i in PKSampler(records, 2, 1, seed=0).batch(step)]
    assert 20 < one_each.count("ir") < 60  # K = 1 draws either


def test_too_few_identities_are_refused_with_both_numbers():
    with pytest.raises(UserError, match="--ids 32.*5"):
        PKSampler(people(5), 32, 4, seed=0)


def test_schedule_keeps_ratios_and_spreads_them():
    assert data.task_cycle({"trad": 2, "cc": 1}) == ("trad", "cc", "trad")
    cycle = data.task_cycle({"trad": 4, "li": 2, "vi": 1})
    assert Counter(cycle) == {"trad": 4, "li": 2, "vi": 1}
    assert "trad trad trad" not in " ".join(cycle)


@pytest.fixture
def world(toy, monkeypatch):
    """Two Market-like sets and one ctcc set with images on disk, and instructions that show their arguments."""
    def instruct(task, records, pool, rng):
        assert all(record in pool[record.pid] for record in records)
        for pid, images in pool.items():
            assert {image.pid for image in images} == {pid}, "another person's images are in a pool"
        return [r.path for r in records] if task == "ctcc" else [f"{task} {rng.random()}"] * len(records)

    monkeypatch.setattr(data, "training_instructions", instruct)
    sets = []
    for name, task, ids, first_pid in (("market", "trad", 5, 100), ("other", "trad", 6, 121), ("cocas", "ctcc", 4, 100)):
        records = [Record(name, "train", f"{name}/{p}_{i}.png", first_pid + 7 * p, clothes=f"{p}", crop_path=f"{name}/{p}_{i}.png")
                   for p in range(ids) for i in range(3)]
        for record in records:
            path = toy / record.path
            path.parent.mkdir(exist_ok=True)
            Image.effect_noise((8, 16), 60).convert("RGB").save(path)
        sets.append(Dataset(name, name, task, toy, tuple(records)))
    return lambda: data.Batches(sets, size=(16, 8), picture_size=(8, 8), ids_per_batch=4, images_per_id=2, seed=3,
                                ratios={"trad": 2, "ctcc": 1})


def same(a, b):
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(a, b, strict=True))


def test_batch_holds_what_its_step_says(world):
    batches = world()
    assert [batches[s].dataset for s in range(6)] == ["market", "cocas", "other", "market", "cocas", "other"]
    assert batches.classes == {"market": 5, "other": 6, "cocas": 4}
    batch = batches[0]
    assert batch.images.shape == (8, 3, 16, 8) and batch.images.dtype == torch.uint8 and batch.task == "trad"
    assert torch.equal(batch.pids, 100 + 7 * batch.labels) and len(batch.instr) == 8
    words = "the labels of a batch are those of another data set"
    assert torch.equal(batches[2].pids, 121 + 7 * batches[2].labels), words
    assert batch.instr != batches[3].instr, "every step draws the same sentence"
    assert batches[1].instr.shape == (8, 3, 8, 8) and batches[1].instr.dtype == torch.uint8
    assert batch.clothes is None and torch.equal(batches[1].clothes, batches[1].labels)  # here everybody has one outfit
    first, again = batches.where(0), batches.where(6)
    assert first[0] is batches.where(3)[0] and (first[1], again[1]) == (0, 2)  # each stream counts its own steps


def test_the_clothes_on_pictures_are_numbered_by_outfit():
    """A shop picture and a crop of the same clothes share a number, two outfits of a person do not."""
    records = []
    for pid in range(2):
        for outfit in range(2):
            clothes = f"{pid}:{outfit}"
            for k in range(2):
                crop = f"crop {clothes} {k}"
                records.append(Record("cocas", "train", f"{clothes} {k}.jpg", pid, clothes=clothes,
                                      template_path=f"shop {clothes}", crop_path=crop))
    shown = data.clothes_shown("ctcc", records)
    outfit_of = {number: set() for number in shown.values()}
    for path, number in shown.items():
        outfit_of[number].add(path.split()[1])
    words = f"clothes are numbered {shown}: each number has to be one outfit"
    assert sorted(outfit_of) == [0, 1, 2, 3], words
    assert all(len(outfits) == 1 for outfits in outfit_of.values()), words
    assert data.clothes_shown("li", records) == {}

    described = data.clothes_shown("t2i", records)
    assert [described[record.path] for record in records] == [0, 0, 1, 1, 2, 2, 3, 3]
    unknown = [replace(record, clothes=None) for record in records]
    assert data.clothes_shown("t2i", unknown) == {}, "where clothes are not known, captions tell of people"


def test_two_tasks_on_one_data_set_show_people_in_another_order(toy):
    records = people(12)
    for record in records:
        put(toy, record.path)
    sets = [Dataset("ltcc", "LTCC", task, toy, tuple(records)) for task in ("trad", "cc")]
    batches = data.Batches(sets, (16, 8), (8, 8), ids_per_batch=4, images_per_id=2, seed=0)
    orders = {"trad": [], "cc": []}
    for step in range(6):
        batch = batches[step]
        orders[batch.task].append(batch.pids.tolist())
    assert orders["trad"] != orders["cc"], "every data set and task draws with one and the same seed"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_loader_continues_the_same_run(world, workers):
    full = list(data.loader(world(), 0, 8))
    state = torch.get_rng_state()
    tail = list(data.loader(world(), 5, 8, workers))
    assert torch.equal(torch.get_rng_state(), state)  # the augmentation's draws go on undisturbed
    assert len(tail) == 3 and all(same(a, b) for a, b in zip(full[5:], tail))
    assert not same(full[0], full[3])


def test_cached_images_are_the_same_and_bounded(world, monkeypatch):
    batches = world()
    assert same(batches[1], batches[1]) and batches.cached_bytes == sum(i.nbytes for i in batches.cache.values()) > 0
    monkeypatch.setattr(data, "CACHE_BYTES", 1000)
    small = world()
    assert same(small[0], batches[0]) and small.cached_bytes <= 1000


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named_in_one_line_also_from_a_worker(world, toy, workers):
    path = toy / "market" / "0_0.png"
    for each in path.parent.iterdir():
        each.write_bytes(each.read_bytes()[:100])
    with pytest.raises(UserError, match=r"^cannot read image .*market/\d_\d\.png") as error:
        list(data.loader(world(), 0, 3, workers))
    assert "\n" not in str(error.value) and not multiprocessing.active_children()  # workers ended, too


# ---- transforms ----

def test_truncated_jpeg_is_named(tmp_path):
    path = tmp_path / "0002_c1s1_000451_03.jpg"
    Image.effect_noise((64, 128), 60).convert("RGB").save(path)
    assert load_image(path, (32, 16)).shape == (3, 32, 16)
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(UserError, match="0002_c1s1_000451_03.jpg"):
        load_image(path, (32, 16))


def test_load_image_keeps_orientation_channels_and_detail(tmp_path):
    image = Image.new("RGB", (64, 128), (255, 0, 0))
    image.paste((0, 0, 255), (0, 64, 64, 128))  # red above blue
    image.save(tmp_path / "a.png")
    red, green, blue = load_image(tmp_path / "a.png", (16, 8)).float().mean(2)
    assert red[:7].min() > 250 and blue[9:].min() > 250 and green.max() < 5
    stripes = Image.fromarray((torch.arange(512) // 8 % 2 * 255).to(torch.uint8).expand(1024, 512).numpy())
    stripes.save(tmp_path / "grey.jpg")  # not RGB, and decoded at half its size, which must keep stripes of two pixels
    assert load_image(tmp_path / "grey.jpg", (256, 128)).float().std() > 90


def test_normalise_has_zero_mean_and_unit_deviation_on_imagenet_pixels():
    pixel = torch.tensor([[0.485, 0.456, 0.406], [0.485 + 0.229, 0.456 + 0.224, 0.406 + 0.225]]) * 255
    out = normalise(pixel.round().to(torch.uint8).view(2, 3, 1, 1)).view(2, 3)
    assert out.dtype == torch.float32 and torch.allclose(out, torch.tensor([[0.0], [1.0]]).expand(2, 3), atol=0.01)


def noise(b, h, w, seed=0):
    return torch.randint(0, 256, (b, 3, h, w), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_image_and_picture_are_flipped_together():
    images, pictures = noise(64, 16, 8), noise(64, 8, 8, seed=1)
    out, out_pictures = data.augment(images, pictures, pad=0, erase_prob=0.0)
    flipped = [torch.equal(a, b) for a, b in zip(out, normalise(images.flip(3)))]
    assert flipped == [torch.equal(a, b) for a, b in zip(out_pictures, normalise(pictures.flip(3)))]
    kept = [torch.equal(a, b) for a, b in zip(out, normalise(images))]
    assert [not f for f in flipped] == kept and 16 < sum(flipped) < 48  # test pixels pass through the same normalise


def test_crop_is_a_shift_that_differs_between_images():
    images = noise(1, 16, 8).expand(64, -1, -1, -1)
    out, none = data.augment(images, None, pad=3, erase_prob=0.0)
    padded = torch.nn.functional.pad(normalise(images[0]), [3] * 4)
    windows = {(y, x, flip): (padded.flip(2) if flip else padded)[:, y:y + 16, x:x + 8]
               for y in range(7) for x in range(7) for flip in (False, True)}
    seen = {next(key for key, window in windows.items() if torch.equal(window, image)) for image in out}
    assert none is None and out.is_contiguous() and len(seen) > 20
    assert {0, 6} <= {y for y, _, _ in seen} and {0, 6} <= {x for _, x, _ in seen}


@pytest.mark.parametrize("size", [(64, 32), (40, 40), (256, 128)])
def test_erasing_is_a_rectangle_of_the_published_area_and_aspect(size):
    mask = data.erasing(1000, size, 1.0, generator=torch.Generator().manual_seed(0))
    assert mask.shape == (1000, 1, *size)
    heights, widths = mask.any(3).sum((1, 2)), mask.any(2).sum((1, 2))
    areas = mask.sum((1, 2, 3))
    assert torch.equal(heights * widths, areas)  # one full rectangle each
    share = areas / (size[0] * size[1])
    assert share.min() > 0.01 and share.max() < 0.36 and share.max() > 0.3 and share.min() < 0.05  # rounding to pixels
    aspect = heights / widths
    assert aspect.min() > 0.25 and aspect.max() < 4.0
    assert mask[:, 0, 0].any() and mask[:, 0, -1].any() and mask[:, 0, :, 0].any() and mask[:, 0, :, -1].any()
    assert 400 < data.erasing(1000, size, 0.5).flatten(1).any(1).sum() < 600


def test_erasing_touches_person_images_only_and_leaves_the_mean():
    images = torch.full((32, 3, 64, 32), 250, dtype=torch.uint8)
    out, pictures = data.augment(images, images, pad=0, erase_prob=1.0)
    assert torch.equal(pictures, normalise(images))
    erased = out == 0
    assert erased.any(1).flatten(1).any(1).all() and torch.equal(out[~erased], normalise(images)[~erased])


def test_augmentation_repeats_with_the_generator_state():
    images = noise(8, 16, 8)
    one, two = (data.augment(images, images, 2, 0.5, torch.Generator().manual_seed(5)) for _ in range(2))
    assert same(one, two)
    torch.manual_seed(1)
    first, _ = data.augment(images, None, 2, 0.5)
    state = torch.get_rng_state()
    second, _ = data.augment(images, None, 2, 0.5)
    torch.set_rng_state(state)
    assert torch.equal(second, data.augment(images, None, 2, 0.5)[0]) and not torch.equal(first, second)
