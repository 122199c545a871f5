"""data.py: the sampler, the batches, the transforms."""

import multiprocessing
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from PIL import Image

import data
from data import PKSampler
from instructions import TASKS
from reid.cli import UserError
from reid.images import normalise
from reid.records import Dataset, Record
from tests.trees import cocas, opened

# ---- sampling ----

def people(count, images=6, outfits=1, modalities=("rgb",)):
    return [
        Record("x", "train", f"{pid}_{i}.png", pid, clothes=f"{pid}:{i % outfits}",
               modality=modalities[i % len(modalities)])
        for pid in range(count) for i in range(images)]


def test_batches_depend_on_seed_and_step_alone():
    records = people(13)
    sampler = PKSampler(records, 4, 3, seed=1)
    first = sampler.batch(17)
    for step in (0, 99, 16, 3):
        sampler.batch(step)
    assert sampler.batch(17) == first == PKSampler(records, 4, 3, seed=1).batch(17)
    assert first != PKSampler(records, 4, 3, seed=2).batch(17) and first != sampler.batch(18)


def test_an_epoch_shows_each_identity_once_and_images_without_replacement():
    """Those left over by P come in other epochs."""
    records = people(13, images=3)
    sampler = PKSampler(records, 4, 2, seed=0)
    seen, orders = Counter(), []
    for epoch in range(60):
        indices = sum((sampler.batch(step) for step in range(3 * epoch, 3 * epoch + 3)), [])
        assert len(set(indices)) == 24
        orders.append(tuple(records[index].pid for index in indices[::2]))
        assert sorted(orders[-1]) == sorted({records[index].pid for index in indices})
        seen.update(orders[-1])
    assert len(seen) == 13 and min(seen.values()) > 0.8 * 60 * 12 / 13
    assert len(set(orders)) > 50
    chosen = {tuple(index % 3 for index in sampler.batch(step)) for step in range(180)}
    assert len(chosen) > 100, "every step takes the same images of a person"


def test_a_person_with_fewer_than_k_images_repeats_evenly():
    records = people(4, images=3)
    batch = PKSampler(records, 4, 4, seed=0).batch(0)
    assert Counter(records[i].pid for i in batch) == Counter({p: 4 for p in range(4)})
    assert sorted(Counter(batch).values()) == [1] * 8 + [2] * 4  # all three, one of them twice


def test_outfits_come_before_repeats_and_modalities_half_and_half():
    of_outfits = people(4, images=12, outfits=3)
    of_modalities = people(4, images=8, modalities=("rgb",) * 7 + ("ir",))  # 7 photos, 1 infrared
    outfits = PKSampler(of_outfits, 2, 3, seed=0)
    halves = PKSampler(of_modalities, 2, 4, seed=0)
    alone = PKSampler(of_modalities, 2, 1, seed=0)
    modalities = []
    for step in range(40):
        assert len({of_outfits[i].clothes for i in outfits.batch(step)}) == 6
        chosen = [of_modalities[i] for i in halves.batch(step)]
        counts = Counter((record.pid, record.modality) for record in chosen)
        assert sorted(counts.values()) == [2, 2, 2, 2]
        modalities += [of_modalities[i].modality for i in alone.batch(step)]
    assert 20 < modalities.count("ir") < 60  # K = 1 samples either


def test_too_few_identities_or_none_are_refused(toy):
    with pytest.raises(UserError, match="--ids 32.*5"):
        PKSampler(people(5), 32, 4, seed=0)
    dataset = opened(cocas(toy), "ctcc")
    dataset = dataset._replace(records=dataset.records[2:])
    with pytest.raises(UserError, match="COCAS.*no training images.*real1"):
        data.Batches([dataset], (16, 8), (8, 8), 1, 1, seed=0)


def test_schedule_keeps_ratios_and_spreads_them():
    assert data.task_cycle({"trad": 2, "cc": 1}) == ("trad", "cc", "trad")
    turns = data.task_cycle({"trad": 4, "li": 2, "vi": 1})
    assert Counter(turns) == {"trad": 4, "li": 2, "vi": 1}
    assert "trad trad trad" not in " ".join(turns)


# ---- batches ----

PICTURED = max(  # with words too, if any task has both
    (name for name, row in TASKS.items() if row.pictures), key=lambda name: len(TASKS[name].parts))


@pytest.fixture
def world(toy):
    """world() -> Batches of two sets of sentences, one of which serves a task with pictures too.
    The colour of an image tells of which person and which image of theirs it is."""
    def colour(name, pid, k):
        path = f"{name}/{pid}_{k}.png"
        (toy / name).mkdir(exist_ok=True)
        Image.new("RGB", (8, 16), (pid, 40 * k, 0)).save(toy / path)
        return Record(name, "train", path, pid, clothes=f"{pid}:{k}",
                      captions=(f"{pid} {k}",), crop_path=path)

    sets = []
    for name, task, pids in (("market", "trad", range(100, 135, 7)),
                             ("other", "trad", range(121, 163, 7)),
                             ("market", PICTURED, range(100, 128, 7))):
        records = tuple(colour(name, pid, k) for pid in pids for k in range(3))
        sets.append(Dataset(name, name, task, toy, records))
    return lambda: data.Batches(sets, (16, 8), (8, 8), ids_per_batch=4, images_per_id=2, seed=3,
                                ratios={"trad": 2, PICTURED: 1})


@pytest.mark.parametrize("task", TASKS)
def test_people_have_a_classifier_if_the_loss_of_their_task_needs_one(task):
    dataset = Dataset("x", "x", task, Path(), tuple(people(4)))
    batches = data.Batches([dataset], (16, 8), (8, 8), ids_per_batch=4, images_per_id=2, seed=0)
    assert batches.classes == ({} if TASKS[task].text_only else {"x": 4})


def painted(images):
    """["pid k"] of the images of `world`."""
    return [f"{image[0, 0, 0]} {image[1, 0, 0] // 40}" for image in images]


def test_batch_holds_what_its_step_says(world):
    batches = world()
    six = [batches[step] for step in range(6)]
    turns = [("market", "trad"), ("market", PICTURED), ("other", "trad")]
    assert [(batch.dataset, batch.task) for batch in six] == turns * 2
    assert batches.classes == {"market": 5, "other": 6}
    seeds = {stream.sampler.seed for streams in batches.streams.values() for stream in streams}
    assert len(seeds) == 3, "every data set and task samples with one seed"
    for step, batch in enumerate(six):
        stream, inner_step = batches.where(step)
        assert inner_step == step // 3 and stream is batches.where(step % 3)[0]
        records = [stream.sampler.records[i] for i in stream.sampler.batch(inner_step)]
        assert painted(batch.images) == [record.captions[0] for record in records]
        first = {"market": 100, "other": 121}[batch.dataset]
        assert [first + 7 * label for label in batch.labels] == [r.pid for r in records]
        assert batch.images.shape == (8, 3, 16, 8) and batch.images.dtype == torch.uint8
        if batch.task == PICTURED:
            assert batch.pictures.shape == (8, 3, 8, 8)
            clothes = painted(batch.pictures)  # of the same person
            assert [name.split()[0] for name in clothes] == [str(r.pid) for r in records]
            assert batch.sentences == (clothes if TASKS[PICTURED].described else None)
            numbers = set(zip(clothes, batch.clothes.tolist()))
            assert len(numbers) == len(set(clothes)) == len({number for _, number in numbers})
        else:
            assert batch.pictures is None and batch.clothes is None and len(batch.sentences) == 8
    assert len({batch.sentences[0] for batch in six if batch.task == "trad"}) > 1


@pytest.mark.parametrize("task", TASKS)
def test_the_clothes_on_pictures_are_numbered_by_outfit(task, toy):
    """A shop picture and a crop of the same clothes share a number, two outfits of a person do
    not, and two people who wear what the same shop picture shows do; captions that nobody knows
    the clothes of tell of people."""
    records = []
    for clothes, shop in (("0:0", "a"), ("0:1", "b"), ("1:0", "c"), ("1:1", "b")):
        (toy / f"shop {clothes}").write_text(shop)
        records += [Record("cocas", "train", f"{clothes} {k}.jpg", 0, clothes=clothes,
                           template_path=f"shop {clothes}", crop_path=f"crop {clothes} {k}")
                    for k in range(2)]
    expected = {}
    for number, record in zip((0, 0, 1, 1, 2, 2, 1, 1), records):
        if TASKS[task].pictures:
            expected |= {record.template_path: number, record.crop_path: number}
    if TASKS[task].text_only:
        expected = {record.path: i // 2 for i, record in enumerate(records)}
    dataset = Dataset("cocas", "COCAS+", task, toy, tuple(records))
    assert data.clothes_on(dataset, records) == expected
    if TASKS[task].text_only:
        unknown = [replace(record, clothes=None) for record in records]
        assert data.clothes_on(dataset, unknown) == {}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_loader_continues_the_same_run(world, workers):
    whole = list(data.loader(world(), 0, 8))
    state = torch.get_rng_state()
    tail = list(data.loader(world(), 5, 8, workers))
    assert torch.equal(torch.get_rng_state(), state)  # the augmentation's numbers go on
    for ours, theirs in zip(tail, whole[5:], strict=True):
        for one, other in zip(ours, theirs):
            assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named_in_one_line_also_from_a_worker(world, toy, workers):
    batches = world()
    for path in (toy / "market").iterdir():
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match=r"^cannot read image .*market/\d+_\d\.png") as error:
        list(data.loader(batches, 0, 3, workers))
    assert "\n" not in str(error.value) and not multiprocessing.active_children()


# ---- transforms ----

def noise(b, h, w):
    return torch.randint(0, 256, (b, 3, h, w), dtype=torch.uint8)


def test_a_crop_is_a_window_of_the_padded_image_and_its_picture_flips_with_it():
    """The mean colour lies outside."""
    torch.manual_seed(0)
    images, pictures = noise(128, 16, 8), noise(128, 8, 8)
    cropped, turned = data.augment(images, pictures, pad=3, erase_prob=0.0)
    seen = []
    for image, picture, crop, turn in zip(images, pictures, cropped, turned):
        places = {}
        for flip in (False, True):
            padded = normalise(image.flip(2) if flip else image)
            padded = torch.nn.functional.pad(padded, (3, 3, 3, 3))
            for y, x in product(range(7), repeat=2):
                places[padded[:, y:y + 16, x:x + 8].numpy().tobytes()] = flip, y, x
        seen.append(places[crop.numpy().tobytes()])
        assert torch.equal(turn, normalise(picture.flip(2) if seen[-1][0] else picture))
    flips, rows, columns = zip(*seen)
    assert 32 < sum(flips) < 96 and set(rows) == set(columns) == set(range(7))
    assert len(set(seen)) > 50 and data.augment(images, None)[1] is None


@pytest.mark.parametrize("size", [(64, 32), (40, 40)])
def test_erasing_is_a_rectangle_of_the_published_area_and_aspect(size):
    mask = data.erasing(1000, size, 1.0, generator=torch.Generator().manual_seed(0))
    assert mask.shape == (1000, 1, *size)
    heights = mask.any(3).sum((1, 2))
    widths = mask.any(2).sum((1, 2))
    areas = mask.sum((1, 2, 3))
    assert torch.equal(heights * widths, areas)  # one full rectangle each
    shares = areas / (size[0] * size[1])
    assert 0.01 < shares.min() < 0.05 and 0.3 < shares.max() < 0.36  # rounded to pixels
    aspects = heights / widths
    assert aspects.min() > 0.25 and aspects.max() < 4.0
    edges = mask[:, 0, 0], mask[:, 0, -1], mask[:, 0, :, 0], mask[:, 0, :, -1]
    assert all(edge.any() for edge in edges)
    assert 400 < data.erasing(1000, size, 0.5).flatten(1).any(1).sum() < 600

    images = torch.full((32, 3, *size), 250, dtype=torch.uint8)
    out, pictures = data.augment(images, images, pad=0, erase_prob=1.0)
    erased = out == 0  # the mean colour
    assert erased.flatten(1).any(1).all() and torch.equal(pictures, normalise(images))
    assert torch.equal(out[~erased], normalise(images)[~erased])
