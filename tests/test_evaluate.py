"""Protocols, features, tables and tasks, on painted images and a model that looks at colours."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import evaluate
import instructions
import reid.features as features_module
from evaluate import (
    Ranking,
    average,
    evaluate_features,
    evaluate_task,
    rank_trials,
    ranking_metrics,
)
from model import Instruction, InstructReID
from reid import checkpoints, cli
from reid.cli import UserError
from reid.features import Features, extract, load_features, matched_first, save_features
from reid.images import normalise
from reid.layouts import LAYOUTS
from reid.protocols import columns, masks, trial_gallery
from reid.records import Dataset, Record
from reid.rerank import k_reciprocal
from reid.text import EmbeddedTextEncoder

# ---- ranking by features ----

def test_chunks_change_nothing():
    torch.manual_seed(0)
    qf, gf = torch.randn(23, 8), torch.randn(40, 8)
    queries = [Record("market", "query", None, i % 5, i % 3) for i in range(23)]
    gallery = [Record("market", "gallery", None, i % 6, i % 2) for i in range(40)]
    q, g = columns(queries, gallery)
    protocol = LAYOUTS["market"].protocols["trad"][0]
    whole, parts = (evaluate_features(qf, gf, q, g, protocol, chunk=chunk) for chunk in (100, 4))
    dist = 1 - F.normalize(qf) @ F.normalize(gf).T
    direct = ranking_metrics(dist, *masks(protocol, q, g))
    each, parts_of_each = whole.pop("each"), parts.pop("each")
    for ours, theirs in ((whole, parts), (each, parts_of_each)):
        for key in ours:
            np.testing.assert_allclose(ours[key], theirs[key], atol=1e-12)
    assert each["mAP"].shape == (23,) and np.nanmean(each["mAP"]) == pytest.approx(whole["mAP"])
    assert all(np.allclose(whole[key], direct[key]) for key in direct)
    told = []

    def rescore(start, dist):
        told.extend(range(start, start + len(dist)))
        return dist

    evaluate_features(qf, gf, q, g, protocol, chunk=4, stage=lambda *_: rescore)
    assert told == list(range(23))  # which queries a chunk holds


def test_reranking_by_features_is_that_of_the_metrics():
    torch.manual_seed(0)
    qf, gf = torch.randn(9, 4), torch.randn(40, 4)
    q, g = columns([Record("market", "query", None, i % 5) for i in range(9)],
                   [Record("market", "gallery", None, i % 5) for i in range(40)])
    units = F.normalize(qf), F.normalize(gf)
    dist = k_reciprocal(*units)(0, (-units[0] @ units[1].T).numpy())
    expected = ranking_metrics(dist, *masks(LAYOUTS["market"].protocols["trad"][0], q, g))
    for chunk in (4, 100):
        ours = evaluate_features(qf, gf, q, g, LAYOUTS["market"].protocols["trad"][0], chunk=chunk, stage=k_reciprocal)
        assert ours["mAP"] == pytest.approx(expected["mAP"])
    with pytest.raises(UserError, match="20 neighbours.*holds 12"):
        evaluate_features(qf, gf[:12], q, g, LAYOUTS["market"].protocols["trad"][0], stage=k_reciprocal)


@pytest.mark.parametrize("qf, gf, what", [
    (torch.full((2, 3), torch.nan), torch.ones(4, 3), "2 of 2 query features hold NaN"),
    (torch.ones(2, 3), torch.ones(4, 3).index_fill(0, torch.tensor([1]), torch.inf), "1 of 4 gallery features"),
    (torch.ones(2, 3), torch.ones(4, 5), "3 wide, gallery features 5"),
    (torch.ones(2, 3), torch.ones(0, 3), "2 queries and 0 gallery images"),
])
def test_broken_features_are_a_user_error(qf, gf, what):
    with pytest.raises(UserError, match=what) as error:
        evaluate_features(qf, gf, None, None, None)
    assert "\n" not in str(error.value)


# ---- protocols ----

def rank(protocol, query, gallery):
    """AP, R1 and kept gallery indices of one query over a gallery that is listed nearest first."""
    positive, removed = masks(protocol, *columns([query], gallery))
    figures = ranking_metrics(np.arange(float(len(gallery)))[None], positive, removed)
    return figures["mAP"], figures["cmc"][0], np.flatnonzero(~removed[0]).tolist()


def test_ltcc_modes_by_hand():
    query = Record("ltcc", "query", "q", 1, 1, clothes="1:a")
    gallery = [Record("ltcc", "gallery", str(i), pid, cam, clothes=clothes) for i, (pid, cam, clothes) in enumerate((
        (1, 1, "1:a"),   # same camera: never ranked
        (2, 2, "2:a"),
        (1, 2, "1:b"),   # other clothes
        (1, 3, "1:a"),   # same clothes
        (2, 1, "2:b"),
        (1, 1, "1:b")))]  # same camera
    general, cc, sc = LAYOUTS["ltcc"].protocols["cc"]
    assert rank(general, query, gallery) == (pytest.approx((1 / 2 + 2 / 3) / 2), 0, [1, 2, 3, 4])
    assert rank(cc, query, gallery) == (pytest.approx(1 / 2), 0, [1, 2, 4])
    assert rank(sc, query, gallery) == (pytest.approx(1 / 2), 0, [1, 3, 4])


def test_cocas_strict_by_hand():
    query = Record("cocas", "query", "q", 1, 1, target_clothes="1:b")
    gallery = [Record("cocas", "gallery", str(i), pid, cam, clothes=clothes) for i, (pid, cam, clothes) in enumerate((
        (1, 2, "1:a"),      # the right person in other clothes is a wrong answer and stays
        (1, 1, "1:b"),      # same camera: never ranked
        (1, 3, "1:b"),
        (2, None, "2:a"),
        (1, None, "1:b"),   # an unknown camera equals none
        (2, 1, "2:b")))]
    strict, by_id = LAYOUTS["cocas"].protocols["ctcc"]
    assert rank(strict, query, gallery) == (pytest.approx((1 / 2 + 2 / 4) / 2), 0, [0, 2, 3, 4, 5])
    assert rank(by_id, query, gallery)[0] == pytest.approx((1 + 2 / 2 + 3 / 4) / 3)
    assert LAYOUTS["cocas"].protocols["li"] == LAYOUTS["cocas"].protocols["ctcc"]


def test_junk_and_same_camera_images_are_not_ranked_and_distractors_are():
    query = Record("market", "query", "q", 5, 1)
    gallery = [Record("market", "gallery", "a", 5, 1), Record("market", "gallery", "b", -1, 2, junk=True),
               Record("market", "gallery", "c", 0, 3), Record("market", "gallery", "d", 5, 2)]
    assert rank(LAYOUTS["market"].protocols["trad"][0], query, gallery) == (1 / 2, 0, [2, 3])


def test_unknown_is_equal_to_nothing():
    query, other = Record("cocas", "query", "q", 1), Record("cocas", "gallery", "g", 1)
    q, g = columns([query], [other])
    strict, by_id = LAYOUTS["cocas"].protocols["li"]
    assert not strict.positive(q, g).any() and by_id.positive(q, g).all() and not by_id.removed(q, g).any()


def test_llcm_trials_draw_one_image_per_person_and_camera_and_repeat():
    records = [Record("llcm", "test", f"test_vis/cam{cam}/{pid:04d}/{k}.jpg", pid, cam)
               for k in range(4) for cam in (2, 1) for pid in (9, 3)]
    draw = trial_gallery(records, 0)
    assert [(records[i].pid, records[i].cam) for i in draw] == [(3, 1), (3, 2), (9, 1), (9, 2)]
    shuffled = records[::-1]
    assert [shuffled[i] for i in trial_gallery(shuffled, 0)] == [records[i] for i in draw]
    assert len({tuple(trial_gallery(records, seed)) for seed in range(10)}) > 5


# ---- tasks, on painted images and a model that looks at colours ----

PAINT = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "grey": (120, 120, 120)}


def colour_of(sentence):
    """The colour that a sentence names, as a model sees it; black if it names none. (3,)"""
    rgb = next((rgb for name, rgb in PAINT.items() if name in sentence), (0, 0, 0))
    return normalise(torch.tensor(rgb, dtype=torch.uint8).view(1, 3, 1, 1)).flatten()


class ColourModel(torch.nn.Module):
    """Feature = mean colour of the image plus `listen` times the instruction's. `seen`: which image met which one."""
    size, picture_size = (16, 8), (8, 8)

    def __init__(self, listen=0.0, editing=True):
        super().__init__()
        self.weight, self.listen, self.editing, self.seen = torch.nn.Parameter(torch.zeros(1)), listen, editing, []

    def instruct(self, sentences=None, pictures=None):
        what = sentences if pictures is None else pictures
        colour = torch.stack([colour_of(s) for s in what]) if isinstance(what, list) else what.mean((2, 3))
        return Instruction(colour[:, None], torch.ones(len(colour), 1, dtype=torch.bool), colour, colour[:, None])

    def embed(self, images, instr, feature="edit"):
        colour = images.mean((2, 3))
        asked = torch.zeros(1, 3) if instr is None else instr.pooled
        self.seen += zip(colour, asked.expand(len(images), 3))
        return F.normalize(colour + self.listen * asked, dim=1)

    def read_text(self, instr):
        return instr

    def embed_text(self, instr):
        return F.normalize(instr.pooled, dim=1)

    def edit(self, images):
        return images.mean((2, 3))[:, None]

    def temperature(self):
        return torch.tensor(0.1)

    def match(self, tokens, instr):
        score = -(tokens[:, 0] - instr.pooled).norm(dim=1)
        return torch.stack([torch.zeros_like(score), score], 1)


@pytest.fixture
def root(tmp_path):
    for name, rgb in PAINT.items():
        Image.new("RGB", (8, 16), rgb).save(tmp_path / f"{name}.png")
    return tmp_path


def cocas(root, task):
    """Two people; each query is grey and wants one of two outfits that the gallery shows under its own instruction. What a
    gallery image would ask for if it were a query, grey, must not be looked at."""
    def record(role, image, pid, cam, clothes, instr):
        asks = instr if role == "query" else "grey"
        what = ({"captions": (f"wears {asks}", f"wears {instr}")} if task == "li" else
                {"template_path": f"{asks}.png", "crop_path": f"{instr}.png"})
        return Record("cocas", role, f"{image}.png", pid, cam, **what,
                      **({"target_clothes": clothes} if role == "query" else {"clothes": clothes}))
    return Dataset("cocas", "COCAS+", task, root, (
        record("query", "grey", 1, 1, "1:red", "red"), record("query", "grey", 2, 1, "2:blue", "blue"),
        record("gallery", "red", 1, 2, "1:red", "red"), record("gallery", "green", 1, 2, "1:green", "green"),
        record("gallery", "blue", 2, 2, "2:blue", "blue"), record("gallery", "green", 2, 2, "2:green", "green")))


@pytest.mark.parametrize("task", ("ctcc", "li"))
def test_gallery_keeps_its_own_instruction(root, task):
    model = ColourModel()
    evaluate_task(Features(model), cocas(root, task))
    expected = [("grey", "red"), ("grey", "blue")] + [(own, own) for own in ("red", "green", "blue", "green")]
    assert len(model.seen) == len(expected)
    for (image, instr), names in zip(model.seen, expected):
        torch.testing.assert_close(torch.stack([image, instr]), torch.stack([colour_of(name) for name in names]))


@pytest.mark.parametrize("task", ("ctcc", "li"))
def test_matrix_of_wanted_own_and_random_instruction(root, task):
    model = ColourModel(listen=1.0)
    rows = evaluate.instruction_matrix(Features(model), [cocas(root, task)])
    by_name = {row["instruction"]: row for row in rows}
    assert by_name["wanted"]["mAP"] == by_name["wanted"]["R1"] == 1
    assert by_name["own"]["R1"] == by_name["random"]["R1"] == 0
    seen = 4 + 3 * 2  # the gallery once, the queries three times
    assert len(model.seen) >= seen and len({tuple(image.tolist()) for image, _ in model.seen[seen:]}) == 4
    gallery = model.seen[2:6]
    torch.testing.assert_close([image for image, _ in gallery], [instr for _, instr in gallery])  # its own
    assert all(row["chance mAP"] > 0 and row["queries"] == 2 for row in rows)


@pytest.mark.parametrize("task", ("ctcc", "li"))
def test_what_a_sceptic_asks_of_a_task_with_instructions_of_its_own(root, task):
    """A stranger's photo, no photo, a gallery that carries nothing: every feature by hand."""
    dataset = cocas(root, task)
    gallery = dataset.split("gallery")
    photos = ("red", "blue")
    queries = [replace(query, path=f"{name}.png") for query, name in zip(dataset.split("query"), photos)]
    wanted = colours_of("red", "blue")
    carried = colours_of("red", "green", "blue", "green")
    sentence = colours_of(instructions.SENTENCES["cc"][0])
    listen = 0.5

    asks = evaluate.doubts(Features(ColourModel(listen)), dataset, queries, gallery)
    assert list(asks) == ["wanted, a stranger's photo", "wanted, without a photo", "wanted, plain gallery"]
    _, query_feats, gallery_feats = asks["wanted, a stranger's photo"]
    strangers = colours_of("blue", "red")
    torch.testing.assert_close(query_feats, F.normalize(strangers + listen * wanted))
    torch.testing.assert_close(gallery_feats, F.normalize(carried + listen * carried))

    _, query_feats, gallery_feats = asks["wanted, without a photo"]
    torch.testing.assert_close(query_feats, F.normalize(wanted))
    torch.testing.assert_close(gallery_feats, F.normalize(carried))

    _, query_feats, gallery_feats = asks["wanted, plain gallery"]
    person = F.normalize(wanted + listen * sentence) @ F.normalize(carried + listen * sentence).T
    instruction = F.normalize(wanted) @ F.normalize(carried).T
    w = {"li": 0.4, "ctcc": 0.3}[task]
    torch.testing.assert_close(query_feats @ gallery_feats.T, (1 - w) * person + w * instruction)


def colours_of(*names):
    return torch.stack([colour_of(name) for name in names])


def ltcc(root):
    side = (("query", 1), ("gallery", 2))
    return Dataset("ltcc", "LTCC", "cc", root, tuple(
        Record("ltcc", role, f"{image}.png", pid, cam, clothes=f"{pid}:{image}")
        for role, cam in side for pid, image in ((1, "red"), (1, "green"), (2, "blue"), (2, "grey"))))


def test_tasks_give_every_protocol_with_its_name_and_chance(root):
    rows = evaluate_task(Features(ColourModel()), ltcc(root))
    assert [row["protocol"] for row in rows] == ["general", "cc", "sc"]
    assert [row["R1"] for row in rows] == [1, 0.5, 1]  # a model of clothes' colours guesses where the clothes change
    assert all(row["queries"] == 4 and row["without"] == 0 and 0 < row["chance mAP"] < 1 for row in rows)
    assert [row["protocol"] for row in evaluate_task(Features(ColourModel()), ltcc(root), Ranking("sc"))] == ["sc"]
    with pytest.raises(UserError, match="general, cc, sc"):
        evaluate_task(Features(ColourModel()), ltcc(root), Ranking("strict"))


def test_matrix_of_sentences(root):
    model = ColourModel()
    rows = evaluate.instruction_matrix(Features(model), [ltcc(root)])
    said = [instructions.SENTENCES[task][0] for task in ("cc", "trad")]
    assert [(row["target"], row["instruction"]) for row in rows] == [
        (target, words) for target in ("other clothes", "same clothes") for words in said]
    assert [row["R1"] for row in rows if row["target"] == "same clothes"] == [1, 1]


def test_all_sentences_report_mean_and_spread(root):
    rows = evaluate.evaluate_sentences(Features(ColourModel()), ltcc(root))
    assert [row["sentences"] for row in rows] == [20] * 3 and rows[0]["sd"] == 0 and rows[0]["best"] == rows[0]["worst"]


def test_second_stage_reorders_only_the_nearest(root):
    images = ("red", "green", "blue", "grey")
    gallery = [Record("cuhk-pedes", "gallery", f"{image}.png", pid) for pid, image in enumerate(images)]
    queries = [Record("cuhk-pedes", "query", None, pid, None, None, "text", (word,)) for pid, word in enumerate(images)]
    dataset = Dataset("cuhk-pedes", "CUHK-PEDES", "t2i", root, tuple(queries + gallery))
    first, second = evaluate_task(Features(ColourModel()), dataset)
    assert "matching" in second["protocol"] and second["R1"] == 1 and first["queries"] == 4
    gf = torch.eye(4)
    qf = torch.tensor([[0, 0, 2.0, 1], [2, 1, 0, 0]])
    near, scores = Features(ColourModel()).matches(dataset, gallery, ["blue", "red"], qf, gf, top=2)
    assert near.tolist() == [[2, 3], [0, 1]]
    apart = (colours_of("blue", "red")[:, None] - colours_of(*images)[near]).norm(dim=2)  # -logit
    torch.testing.assert_close(scores, torch.tensor([[2.0, 1], [2, 1]]) / 0.1 - apart)
    rescore = matched_first(near, scores)
    dist = np.array([[0.3, 0.4, 0.2, 0.1], [0.1, 0.2, 0.4, 0.3]]) - 1
    assert rescore(0, dist.copy()).argsort(1).tolist() == [[2, 3, 0, 1], [0, 1, 3, 2]]
    assert rescore(1, dist[1:].copy()).argsort(1).tolist() == [[0, 1, 3, 2]]  # the second sentence


def test_llcm_averages_trials_in_both_directions(root):
    records = tuple(Record("llcm", "test", f"{image}.png", pid, cam, modality=modality) for modality in ("rgb", "ir")
                    for pid, image in ((1, "red"), (2, "blue")) for cam in (1, 2) for _ in range(3))
    dataset = Dataset("llcm", "LLCM", "vi", root, records)
    rows = evaluate_task(Features(ColourModel()), dataset)
    assert [row["protocol"] for row in rows] == ["ir-to-vis", "vis-to-ir"]
    assert all((row["trials"], row["queries"], row["gallery"]) == (10, 12, 4) for row in rows)
    assert rows == evaluate_task(Features(ColourModel()), dataset) and rows[0]["R1"] == 1


def test_llcm_cmc_ranks_people(root):
    """A person's second image before the hit does not cost a rank."""
    records = [Record("llcm", "test", "q", 1, 9, modality="ir")]
    records += [Record("llcm", "test", str(i), pid, cam) for i, (pid, cam) in enumerate(((2, 1), (2, 2), (1, 1)))]
    feats = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [1.0, 0.3]])
    row = average(rank_trials(LAYOUTS["llcm"].protocols["vi"][0], records, records, feats, feats))
    assert (row["R1"], row["mAP"]) == (0, pytest.approx(1 / 3))
    figures = evaluate_features(feats[:1], feats[1:], *columns(records[:1], records[1:]), LAYOUTS["llcm"].protocols["vi"][0])
    assert figures["cmc"].tolist() == [0, 1, 1]


def test_model_keeps_its_mode_and_empty_splits_are_named(root):
    model = ColourModel().train()
    evaluate_task(Features(model), ltcc(root))
    assert model.training
    with pytest.raises(UserError, match="0 queries"):
        evaluate_task(Features(model), ltcc(root)._replace(records=tuple(ltcc(root).split("gallery"))))


# ---- which instruction meets which image ----

class Notebook:
    """In place of Features: it notes what was asked of it, and the features are the numbers of the
    records. `asked`: {(side, name): instructions}, `given`: {(side, name): features}."""
    device = "cpu"

    def __init__(self):
        self.asked = {}
        self.given = {}

    def __call__(self, dataset, side, records, asks):
        for name, instructions in asks.items():
            self.asked[side, name] = instructions
            self.given[side, name] = torch.arange(len(records))[:, None]
        return [self.given[side, name] for name in asks]


def test_query_and_gallery_hear_the_same_one_of_the_sentences(root):
    dataset = ltcc(root)
    spoken = instructions.SENTENCES["cc"]
    notes = Notebook()
    pairs = evaluate.side_features(notes, dataset, *evaluate.sides(dataset), sentences=(3, 0, 19))
    for number, (query_feats, gallery_feats) in zip((3, 0, 19), pairs):
        sentence = spoken[number]
        for side, feats in (("query", query_feats), ("gallery", gallery_feats)):
            heard = set(notes.asked[side, sentence])
            words = f"sentence {number} is '{sentence}', but images of the {side} hear {heard}"
            assert heard == {sentence}, words
            words = f"the {side} features of '{sentence}' come at another sentence's place"
            assert feats is notes.given[side, sentence], words


def test_each_of_the_20_sentences_is_ranked(root):
    """A model that one sentence strikes blind is worst with that sentence, on both sides."""
    blinding = instructions.SENTENCES["cc"][7]

    class Blinded(ColourModel):
        def instruct(self, what):
            instr = super().instruct(what)
            is_blinding = torch.tensor([sentence == blinding for sentence in what])
            return instr._replace(pooled=1e9 * is_blinding[:, None].expand(-1, 3))

    features = Features(Blinded(listen=1.0))
    [row] = evaluate.evaluate_sentences(features, ltcc(root), Ranking("sc"))
    words = f"'{blinding}' blinds the model, but the worst sentence is '{row['worst sentence']}'"
    assert row["worst sentence"] == blinding, words
    assert row["worst"] < row["best"] == 1


def test_the_matrix_gives_a_wrong_sentence_to_both_sides(root):
    dataset = ltcc(root)
    notes = Notebook()
    _, asks = evaluate.variants(notes, dataset, *evaluate.sides(dataset))
    right = instructions.SENTENCES["cc"][0]
    wrong = instructions.SENTENCES["trad"][0]
    assert list(asks) == [right, wrong]
    for sentence, (said, query_feats, gallery_feats) in asks.items():
        words = f"under '{sentence}' the matrix takes {{}} features of another sentence"
        assert query_feats is notes.given["query", sentence], words.format("query")
        assert gallery_feats is notes.given["gallery", sentence], words.format("gallery")
        for side in ("query", "gallery"):
            assert set(notes.asked[side, sentence]) == {sentence}
        assert set(said) == {sentence}


def test_a_random_instruction_is_another_persons(root):
    records = []
    for pid in range(3):
        for role, words in (("query", f"wanted {pid}"), ("gallery", f"own {pid}")):
            captions = (words, f"own {pid}")
            records.append(Record("cocas", role, f"{role}{pid}.png", pid, captions=captions))
    dataset = Dataset("cocas", "COCAS+", "li", root, tuple(records))
    queries, gallery = evaluate.sides(dataset)
    drawn = set()
    for seed in range(30):
        kept, wrong = evaluate.wrong_instructions(dataset, queries, gallery, seed)
        assert kept == [0, 1, 2] and wrong["own"] == ["own 0", "own 1", "own 2"]
        for i, words in zip(kept, wrong["random"]):
            drawn.add(words)
            assert words != f"wanted {i}", f"the random instruction of person {i} is what it wants"
    assert drawn == {"wanted 0", "wanted 1", "wanted 2"}, f"random instructions are only {drawn}"


def test_a_query_without_a_wrong_instruction_is_left_out_with_its_features(root):
    """The first query's own words are unknown, as no image shows it in other clothes."""
    def query(pid):
        wanted = f"{pid}:wanted"
        return Record("cocas", "query", "grey.png", pid, captions=(wanted,), target_clothes=wanted)

    def image(pid, clothes):
        clothes = f"{pid}:{clothes}"
        return Record("cocas", "gallery", "red.png", pid, clothes=clothes, captions=(clothes,))

    records = [query(1), query(2), query(3), image(1, "wanted")]
    records += [image(2, "wanted"), image(2, "other"), image(3, "other")]
    dataset = Dataset("cocas", "COCAS+", "li", root, tuple(records))
    notes = Notebook()
    queries, asks = evaluate.variants(notes, dataset, *evaluate.sides(dataset))
    assert [record.pid for record in queries] == [2, 3]

    said, query_feats, _ = asks["wanted"]
    assert said == ["2:wanted", "3:wanted"]
    words = "the features under 'wanted' are not those of the queries that are kept"
    assert query_feats.flatten().tolist() == [1, 2], words
    assert notes.asked["query", "own"] == ["2:other", "3:other"]


@pytest.mark.parametrize("task", ("ctcc", "li"))
def test_small_batches_give_the_same_features(root, task):
    """Images of the second batch meet their own instructions, not those of the first."""
    dataset = cocas(root, task)
    gallery = dataset.split("gallery")
    own = [instructions.gallery_instruction(task, record) for record in gallery]
    [whole] = extract(ColourModel(listen=1.0), dataset, gallery, [own])
    for batch in (1, 3):
        [parts] = extract(ColourModel(listen=1.0), dataset, gallery, [own], batch=batch)
        wrong = (parts - whole).abs().amax(1) > 1e-5
        words = f"in batches of {batch} images {wrong.nonzero().flatten().tolist()} get other features"
        assert not wrong.any(), words


def test_feature_and_precision_reach_every_pass_of_the_model(root):
    """--feature fused and --amp bf16, in both stages of t2i too."""
    seen = set()

    class Spied(ColourModel):
        def embed(self, images, instr, feature="edit"):
            seen.add(("embed", feature, torch.is_autocast_enabled("cpu")))
            return super().embed(images, instr)

        def match(self, tokens, instr):
            seen.add(("match", "fused", torch.is_autocast_enabled("cpu")))
            return super().match(tokens, instr)

    records = []
    for pid, word in enumerate(PAINT):
        records.append(Record("cuhk-pedes", "query", None, pid, modality="text", captions=(word,)))
        records.append(Record("cuhk-pedes", "gallery", f"{word}.png", pid))
    t2i = Dataset("cuhk-pedes", "CUHK-PEDES", "t2i", root, tuple(records))
    features = Features(Spied(), "fused", amp="bf16")
    evaluate.evaluate_all(features, [ltcc(root), t2i])
    expected = {("embed", "fused", True), ("match", "fused", True)}
    assert seen == expected, f"(pass, feature, under autocast) are {seen}, expected {expected}"


# ---- the figures of a row ----

def test_chance_is_that_of_the_ranking_without_what_is_removed():
    """One hit and one stranger are left, the image of the same camera is not: a random order puts
    the hit first in half of the cases."""
    queries = [Record("market", "query", "q", 1, 1)]
    gallery = [Record("market", "gallery", str(i), pid, cam)
               for i, (pid, cam) in enumerate(((1, 1), (1, 2), (2, 3)))]
    q, g = columns(queries, gallery)
    protocol = LAYOUTS["market"].protocols["trad"][0]
    figures = evaluate_features(torch.ones(1, 2), torch.ones(3, 2), q, g, protocol)
    words = "chance R1 is {:.3f}, expected 1/2: are removed images counted as ranked?"
    assert figures["chance R1"] == pytest.approx(1 / 2), words.format(figures["chance R1"])
    assert figures["chance mAP"] == pytest.approx((1 + 1 / 2) / 2)


def test_table_shows_percent_and_aligns():
    lines = evaluate.format_table([{"task": "cc", "mAP": 0.5, "queries": 7}, {"task": "trad", "mAP": 1.0}]).splitlines()
    assert [line.split() for line in lines] == [["task", "mAP", "queries"], ["cc", "50.0", "7"], ["trad", "100.0"]]
    assert lines[1].index("50.0") == lines[2].index("100.0") + 1


# ---- features: computed once, saved, of two runs ----

def test_images_are_read_once_for_all_sentences(root, monkeypatch):
    reads, load = [], features_module.load_image
    monkeypatch.setattr(features_module, "load_image", lambda path, size: reads.append(path) or load(path, size))
    model = ColourModel()
    evaluate.evaluate_sentences(Features(model), ltcc(root))
    assert len(reads) == 8 and len(model.seen) == 20 * 8


def test_a_model_without_editing_embeds_an_image_once(root):
    model = ColourModel(editing=False)
    rows = evaluate.evaluate_sentences(Features(model), ltcc(root))
    assert len(model.seen) == 8 and rows[0]["sentences"] == 20
    model.seen.clear()
    evaluate.evaluate_sentences(Features(model, feature="fused"), ltcc(root))
    assert len(model.seen) == 20 * 8  # F_out does meet the sentence


def test_flip_sums_both_views_and_turns_the_instruction_along(root):
    image = Image.open(root / "red.png")
    image.paste((0, 0, 0), (0, 0, 2, 16))  # black at the left
    image.save(root / "red.png")

    class LeftHalf(ColourModel):
        def instruct(self, what):
            return super().instruct(what[..., :4])

        def embed(self, images, instr, feature="edit"):
            return super().embed(images[..., :4], instr)

    model, dataset = LeftHalf(listen=1.0), cocas(root, "ctcc")
    records = dataset.split("gallery")[:1]
    one, = extract(model, dataset, records, [["red.png"]])
    both, = extract(model, dataset, records, [["red.png"]], flip=True)
    (left, _), (as_is, instr), (turned, instr_turned) = model.seen
    torch.testing.assert_close(left, as_is)
    torch.testing.assert_close(turned, colour_of("red"))
    torch.testing.assert_close(instr_turned, colour_of("red"))
    expected = F.normalize(F.normalize(as_is + instr, dim=0) + F.normalize(turned + instr_turned, dim=0), dim=0)
    torch.testing.assert_close(both[0], expected)
    assert not torch.allclose(one, both)


def test_saved_features_give_every_figure_without_a_forward_pass(root, tmp_path):
    t2i = Dataset("cuhk-pedes", "CUHK-PEDES", "t2i", root, tuple(
        Record("cuhk-pedes", role, path, pid, None, None, "text" if path is None else "rgb", (word,))
        for pid, word in enumerate(PAINT) for role, path in (("query", None), ("gallery", f"{word}.png"))))
    datasets, model = [cocas(root, "ctcc"), ltcc(root), t2i], ColourModel(listen=1.0)
    computed = Features(model, flip=True)
    rows, matrix = evaluate.evaluate_all(computed, datasets), evaluate.instruction_matrix(computed, datasets)
    save_features(tmp_path / "f.safetensors", computed, task="all", data=str(root))
    assert not list(tmp_path.glob("*.part"))
    read, told = load_features(tmp_path / "f.safetensors")
    assert (read.feature, read.flip, told["task"], told["data"]) == ("edit", True, "all", str(root))
    assert evaluate.evaluate_all(read, datasets) == rows and evaluate.instruction_matrix(read, datasets) == matrix
    windowed = evaluate.evaluate_all(read, datasets, Ranking(ap_window=1))  # a second metric
    figures = [[row["mAP"] for row in each] for each in (rows, windowed)]
    assert figures[0] != figures[1], "ap_window does not change the mAP of any row"
    with pytest.raises(UserError, match="lack 'ltcc/cc/query/swap outfits'"):
        evaluate.evaluate_task(read, ltcc(root), Ranking(sentence=1))
    fewer = ltcc(root)._replace(records=ltcc(root).records[1:])
    with pytest.raises(UserError, match="other images or instructions"):
        evaluate.evaluate_task(read, fewer)


def test_a_file_without_features_is_a_user_error(tmp_path):
    (tmp_path / "f.safetensors").write_bytes(b"not a file of tensors")
    for name in ("f.safetensors", "absent.safetensors"):
        with pytest.raises(UserError, match=f"{name} holds no features") as error:
            load_features(tmp_path / name)
        assert "\n" not in str(error.value)


def test_compare_shows_the_difference_of_two_runs(root):
    deaf, hears = Features(ColourModel()), Features(ColourModel(listen=1.0))
    rows = evaluate.compare(deaf, hears, cocas(root, "ctcc"), Ranking("strict"))
    one, two = (evaluate_task(features, cocas(root, "ctcc"), Ranking("strict"))[0] for features in (deaf, hears))
    for row, figure in zip(rows, ("mAP", "R1")):
        assert (row["figure"], row["first"], row["second"]) == (figure, one[figure], two[figure])
        assert row["difference"] == pytest.approx(two[figure] - one[figure])
        assert row["low"] <= row["difference"] <= row["high"]
    assert rows[0]["second"] == 1 and rows[0]["difference"] > 0


def test_matrix_needs_clothes_but_not_one_data_set(root):
    records = tuple(Record("market", role, f"{image}.png", pid, cam) for role, cam in (("query", 1), ("gallery", 2))
                    for pid, image in ((1, "red"), (2, "blue")))
    features = Features(ColourModel())
    assert evaluate.instruction_matrix(features, [Dataset("market", "Market", "trad", root, records)]) == []
    other = ltcc(root)._replace(name="prcc", title="PRCC")
    assert [row["target"] for row in evaluate.instruction_matrix(features, [other])] == [
        "other clothes", "other clothes", "same clothes", "same clothes"]
    never_twice = other._replace(records=tuple(r for r in other.records if (r.role == "query") == ("red" in r.path)))
    rows = evaluate.instruction_matrix(Features(ColourModel()), [never_twice])
    assert {row["target"] for row in rows} == {"other clothes"}


def test_junk_is_not_embedded(root):
    records = tuple(Record("market", role, f"{image}.png", pid, cam, junk=pid < 0) for role, image, pid, cam in (
        ("query", "red", 1, 1), ("gallery", "red", 1, 2), ("gallery", "blue", 2, 2), ("gallery", "grey", -1, 2)))
    model = ColourModel()
    row, = evaluate_task(Features(model), Dataset("market", "Market", "trad", root, records))
    assert row["gallery"] == 2 and len(model.seen) == 3


# ---- the command line ----

@pytest.mark.parametrize("flags, what", [
    (["--batch", "0"], "--batch 0"),
    (["--ap-window", "0"], "--ap-window 0"),
    (["--save-features", "nowhere/f.safetensors"], "in a folder that exists"),
    (["--save-features", "features.pt"], "name a .safetensors"),
    (["--rank-list", "nowhere/ranks.png"], "in a folder that exists"),
    (["--device", "abacus"], "--device abacus"),
    (["--checkpoint", "nothing.pt"], "nothing.pt"),
    (["--checkpoint", "nothing.safetensors"], "nothing.safetensors"),
])
def test_mistakes_are_one_line(flags, what):
    with pytest.raises(UserError, match=what) as error:
        evaluate.main(cli.parse(evaluate.Config, flags))
    assert "\n" not in str(error.value)


@pytest.fixture
def run_folder(tmp_path):
    """A Market-1501 tree of a few painted images, and a small model's checkpoint."""
    torch.manual_seed(0)
    for folder, cam in (("bounding_box_train", 1), ("query", 1), ("bounding_box_test", 2)):
        (tmp_path / "market" / folder).mkdir(parents=True)
        for pid, rgb in enumerate(PAINT.values(), 1):
            Image.new("RGB", (16, 32), rgb).save(tmp_path / "market" / folder / f"{pid:04d}_c{cam}s1_000001_01.jpg")
    size = dict(size=(32, 16), patch=8, dim=32, depth=1, heads=2, stem="patch",
                picture_size=(16, 16), picture_depth=1, fusion_depth=1)
    config = {"size": "tiny", "editing": True, "data": str(tmp_path / "market"), "task": "trad", "feature": "edit"}
    model = InstructReID(size, {"market": 4}, text=EmbeddedTextEncoder())
    checkpoints.save_checkpoint(tmp_path / "last.pt", {"model": checkpoints.model_state(model), "config": config,
                                                   "classes": {"market": 4}, "published": {"shape": size}})
    return tmp_path


@pytest.mark.filterwarnings("ignore:Market-1501")
def test_save_features_then_another_metric_and_a_comparison(run_folder, capsys):
    checkpoint, saved = (str(run_folder / name) for name in ("last.pt", "f.safetensors"))
    drawn = {"rank_list": str(run_folder / "chosen.png"), "pictures": True}
    evaluate.main(evaluate.Config(checkpoint, save_features=saved, device="cpu", **drawn))
    table = capsys.readouterr().out.split("wrote")[0]
    assert "general" in table and {path.stem for path in run_folder.glob("*.png")} == {
        "chosen", "gates", "ranking_market_trad", "attention_market_trad"}
    assert (run_folder / "chosen.png").read_bytes() == (run_folder / "ranking_market_trad.png").read_bytes()
    evaluate.main(evaluate.Config(saved, compare=checkpoint, device="cpu"))
    again, comparison = capsys.readouterr().out.split(saved)
    assert table.strip() == again.strip()
    figures = [line.split()[-4:] for line in comparison.splitlines() if " mAP " in line or " R1 " in line]
    assert [line[1:] for line in figures] == [["0.0", "0.0", "0.0"]] * 2  # difference, low, high of a run with itself
    for mistake, what in (({"flip": True}, "--flip"), ({"rerank": True}, "holds 4; go without --rerank"),
                          ({"pictures": True}, "lack 'pictures"), ({"instructions": "all"}, "lack 'market/trad/")):
        with pytest.raises(UserError, match=what):
            evaluate.main(evaluate.Config(saved, device="cpu", **mistake))
