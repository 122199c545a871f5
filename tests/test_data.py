"""data.py: properties of the sampler, the batches and the transforms."""

import multiprocessing
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data
from data import PKSampler
from reid.cli import UserError
from reid.images import normalise
from reid.records import Dataset, Record
from tests.trees import cocas, opened, put


def test_a_test_set_is_not_trained_on(toy):
    dataset = opened(cocas(toy), "ctcc")
    dataset = dataset._replace(records=dataset.records[2:])
    with pytest.raises(UserError, match="COCAS.*no training images.*real1"):
        data.Batches([dataset], (16, 8), (8, 8), 1, 1, seed=0)


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
