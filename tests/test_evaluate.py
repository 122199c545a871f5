"""The rows of a table, the instruction matrix and the command, on painted images and a model that
looks at colours. What the real model embeds is in test_embed.py, protocols in test_protocols.py."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import evaluate
import train
from evaluate import FEATURES, Retrieval, Run, evaluate_all, instruction_matrix, rank
from instructions import PERSON_SENTENCE, SENTENCES, TASKS, Ask
from model import PARTS, Instruction, InstructReID, Output
from reid import checkpoints, cli
from reid.cli import UserError
from reid.compare import FIGURES, comparison
from reid.features import load_features, save_features
from reid.images import normalise
from reid.layouts import LAYOUTS
from reid.protocols import GENERAL, STRICT, columns, masks, usual_protocols
from reid.records import Dataset, Record
from reid.rerank import k_reciprocal
from reid.text import TextEncoder, embedded_text_model
from reid.uninstructed import CLOTHES, SHARES, UNINSTRUCTED
from tests.test_model import TINY

PAINT = {
    "red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "grey": (120, 120, 120)
}
OF_THEIR_OWN = [name for name, row in TASKS.items() if row.targets and not row.sentences]


def colours_of(*names):
    """The colours that sentences name, as a model sees them; black where none is named. (n 3)"""
    rgb = [next((PAINT[key] for key in PAINT if key in name), (0, 0, 0)) for name in names]
    return normalise(torch.tensor(rgb, dtype=torch.uint8).view(-1, 3, 1, 1)).flatten(1)


class ColourModel(torch.nn.Module):
    """Feature = mean colour of the image plus `listen` times the instruction's; that of words and
    a picture is the mean of both. `seen`: which image met which instruction."""

    size, picture_size = (16, 8), (8, 8)
    parts = [part for part in PARTS if part != "fused"]

    def __init__(self, listen=0.0, editing=True):
        super().__init__()
        self.neck = torch.nn.Linear(1, 1)  # says on which device the model is
        self.listen = listen
        self.editing = editing
        self.seen = []

    def instruct(self, sentences=None, pictures=None):
        parts = [] if sentences is None else [colours_of(*sentences)]
        parts += [] if pictures is None else [pictures.mean((2, 3))]
        if not parts:
            return None
        colour = sum(parts) / len(parts)
        mask = torch.ones(len(colour), 1, dtype=torch.bool)
        return Instruction(colour[:, None], mask, colour, colour[:, None])

    def forward(self, images, instr):
        return Output(None, self.embed(images, instr), None, None, None)

    def embed(self, images, instr=None):
        colour = images.mean((2, 3))
        wanted = torch.zeros(1, 3) if instr is None else instr.pooled
        self.seen += zip(colour, wanted.expand(len(images), 3))
        return F.normalize(colour + self.listen * wanted, dim=1)

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


def dataset_of(root, name, task, records, protocols=None):
    return Dataset(name, LAYOUTS[name].title, task, root, tuple(records),
                   protocols or usual_protocols(TASKS[task]))


def cocas(root, task):
    """Two people; each query is grey and wants one of two outfits that the gallery shows under its
    own instruction. What a gallery image would ask for if it were a query, grey, is ignored."""
    def record(role, image, pid, cam, colour):
        wanted = colour if role == "query" else "grey"
        parts = dict(captions=(f"wears {wanted}", f"wears {colour}"))
        parts |= dict(template_path=f"{wanted}.png", crop_path=f"{colour}.png")
        clothes = "target_clothes" if role == "query" else "clothes"
        parts[clothes] = f"{pid}:{colour}"
        return Record("cocas", role, f"{image}.png", pid, cam, **parts)

    shown = [(1, "red"), (1, "green"), (2, "blue"), (2, "green")]
    gallery = [record("gallery", colour, pid, 2, colour) for pid, colour in shown]
    queries = [record("query", "grey", 1, 1, "red"), record("query", "grey", 2, 1, "blue")]
    return dataset_of(root, "cocas", task, queries + gallery)


def ltcc(root):
    people = ((1, "red"), (1, "green"), (2, "blue"), (2, "grey"))
    records = [Record("ltcc", role, f"{image}.png", pid, cam, clothes=f"{pid}:{image}")
               for role, cam in (("query", 1), ("gallery", 2)) for pid, image in people]
    return dataset_of(root, "ltcc", "cc", records, LAYOUTS["ltcc"].protocols["cc"])


def pedes(root):
    records = []
    for pid, word in enumerate(PAINT):
        records.append(Record("cuhk-pedes", "query", None, pid, modality="text", captions=(word,)))
        records.append(Record("cuhk-pedes", "gallery", f"{word}.png", pid))
    return dataset_of(root, "cuhk-pedes", "t2i", records)


# ---- ranking by features ----

def test_a_row_is_the_metrics_of_all_queries_in_chunks_and_reranked_too(monkeypatch):
    torch.manual_seed(0)
    feats = F.normalize(torch.randn(23, 8)), F.normalize(torch.randn(40, 8))
    queries = [Record("market", "query", None, i % 5, i % 3) for i in range(23)]
    gallery = [Record("market", "gallery", None, i % 6, i % 2) for i in range(40)]
    pair = masks(GENERAL, *columns(queries, gallery))
    first = (-feats[0] @ feats[1].T).numpy()
    reranked = k_reciprocal(*feats)(0, first.copy())
    retrieval = Retrieval(queries, gallery, *feats)
    for chunk, (stage, dist) in product((100, 4), ((None, first), (k_reciprocal, reranked))):
        monkeypatch.setattr(evaluate, "CHUNK", chunk)
        direct = evaluate.ranking_metrics(dist, *pair)
        row = rank(GENERAL, retrieval, stage=stage)
        assert [row[f"R{k}"] for k in (1, 5, 10)] == list(direct["cmc"][[0, 4, 9]])
        assert [row["mAP"], row["mINP"]] == pytest.approx([direct["mAP"], direct["mINP"]])
        for figure, values in row["each"][0].items():
            assert np.nanmean(values) == pytest.approx(row[figure])
    with pytest.raises(UserError, match="20 neighbours.*holds 12"):
        rank(GENERAL, Retrieval(queries, gallery[:12], feats[0], feats[1][:12]), None, k_reciprocal)
    for value in (torch.nan, torch.inf):
        with pytest.raises(UserError, match="NaN or infinity"):
            rank(GENERAL, retrieval._replace(gallery_feats=feats[1] * value))


def test_llcm_averages_trials_in_both_directions_and_ranks_people(root):
    records = [Record("llcm", "test", f"{image}.png", pid, cam, modality=modality)
               for modality in ("rgb", "ir") for pid, image in ((1, "red"), (2, "blue"))
               for cam in (1, 2) for _ in range(3)]
    protocols = LAYOUTS["llcm"].protocols["vi"]
    rows = evaluate_all(Run(ColourModel()), [dataset_of(root, "llcm", "vi", records, protocols)])
    assert [row["protocol"] for row in rows] == ["ir-to-vis", "vis-to-ir"]
    for row in rows:
        assert (row["trials"], row["queries"], row["gallery"], row["R1"]) == (10, 12, 4, 1)

    places = ((2, 1), (2, 2), (1, 1))  # a person's second image before the hit costs no rank
    records = [Record("llcm", "test", "q", 1, 9, modality="ir")]
    records += [Record("llcm", "test", str(i), *place) for i, place in enumerate(places)]
    feats = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [1.0, 0.3]]))
    row = rank(protocols[0], Retrieval(records, records, feats, feats))
    assert (row["R1"], row["mAP"]) == (0, pytest.approx(1 / 3))
    assert [each["mAP"] for each in row["each"]] == [pytest.approx([1 / 3])] * 10


def test_second_stage_reorders_only_the_nearest(root):
    first, second = evaluate_all(Run(ColourModel()), [pedes(root)])
    assert "matching" in second["protocol"] and second["R1"] == 1 and first["queries"] == 4
    dataset = pedes(root)
    run = Run(ColourModel())
    retrieval = evaluate.task_retrieval(run, dataset)._replace(queries=[1, 2])
    run.once = lambda *_: torch.tensor([[[2.0, 3], [0, 1]], [[5, 9], [9, 5]]])  # nearest, scores
    dist = np.array([[0.3, 0.4, 0.2, 0.1], [0.1, 0.2, 0.4, 0.3]]) - 1
    rescore = evaluate.second_stage(run, dataset, retrieval)(None, None)
    assert rescore(0, dist.copy()).argsort(1).tolist() == [[3, 2, 0, 1], [0, 1, 3, 2]]
    assert rescore(1, dist[1:].copy()).argsort(1).tolist() == [[0, 1, 3, 2]]  # the second query
    run.once = lambda *_: torch.tensor([[[2.0, 4]], [[5, 9]]])  # of a damaged file
    with pytest.raises(UserError, match="of other images"):
        evaluate.second_stage(run, dataset, retrieval)


def test_pictures_show_the_ranking_after_the_second_stage(root, monkeypatch):
    reverse = lambda *_: lambda *feats: lambda start, dist: -dist  # noqa: E731
    monkeypatch.setattr(evaluate, "second_stage", reverse)
    [[first, after, *_]] = evaluate.rankings(Run(ColourModel()), pedes(root)).values()
    assert (first.name, after.name) == ("wanted", "wanted, after matching")
    assert after.ranking == first.ranking[::-1] and len(first.ranking) == 4


# ---- tasks ----

def test_tasks_give_every_protocol_with_its_name_and_chance(root, monkeypatch):
    dataset = ltcc(root)
    rows = evaluate_all(Run(ColourModel()), [dataset])
    assert [row["protocol"] for row in rows] == [each.name for each in dataset.protocols]
    assert [row["R1"] for row in rows] == [1, 0.5, 1]  # colours of clothes, where they change
    for row in rows:
        assert row["queries"] == 4 and row["without"] == 0 and 0 < row["chance mAP"] < 1
    assert evaluate_all(Run(ColourModel(), protocol="sc"), [dataset])[0]["protocol"] == "sc"
    window = evaluate_all(Run(ColourModel(), ap_window=1), [dataset])
    assert window[0]["protocol"] == "general, AP in the first 1"
    assert window[0]["mAP"] == 1 > rows[0]["mAP"]  # the second hit costs nothing
    monkeypatch.setattr(evaluate, "k_reciprocal", lambda *feats: lambda start, dist: -dist)
    first, second = evaluate_all(Run(ColourModel(), protocol="sc", rerank=True), [dataset])
    assert second["protocol"] == "sc + re-ranking" and second["R1"] < first["R1"] == 1
    with pytest.raises(UserError, match="0 queries"):
        evaluate.queries_and_gallery(dataset._replace(records=dataset.records[4:]))


def test_junk_is_not_embedded(root):
    records = [
        Record("market", role, f"{image}.png", pid, cam, junk=pid < 0) for role, image, pid, cam in
        (("query", "red", 1, 1), ("gallery", "red", 1, 2), ("gallery", "blue", 2, 2),
         ("gallery", "grey", -1, 2))]
    model = ColourModel()
    [row] = evaluate_all(Run(model), [dataset_of(root, "market", "trad", records)])
    assert row["gallery"] == 2 and len(model.seen) == 3
    assert instruction_matrix(Run(model), dataset_of(root, "market", "trad", records)) == []


class Moody(ColourModel):
    """Each sentence sends the feature elsewhere, from helpful to harmful."""

    def instruct(self, sentences=None, pictures=None):
        instr = super().instruct(sentences, pictures)
        number = SENTENCES["cc"].index(sentences[0])
        weights = torch.randn(3, generator=torch.Generator().manual_seed(number))
        return instr._replace(pooled=(4 * weights).expand(len(sentences), 3))


def test_each_of_the_sentences_is_ranked_and_their_figures_summarised(root):
    run = Run(Moody(listen=1.0), protocol="general")
    general = ltcc(root).protocols[0]
    figures = [evaluate.evaluate_protocol(run, ltcc(root), general, i)[0] for i in range(20)]
    mAP, R1 = ([row[key] for row in figures] for key in ("mAP", "R1"))
    assert len(set(mAP)) > 2 and mAP != R1
    assert len(run.known) == 20  # query and gallery are the same photos here
    [row] = evaluate_all(run, [ltcc(root)], evaluate.evaluate_sentences)
    expected = {"sentences": 20, "mAP": np.mean(mAP), "sd": np.std(mAP), "R1": np.mean(R1)}
    expected |= {"R1 sd": np.std(R1), "best": max(mAP), "worst": min(mAP)}
    expected |= {"best sentence": SENTENCES["cc"][np.argmax(mAP)]}
    expected |= {"worst sentence": SENTENCES["cc"][np.argmin(mAP)]}
    assert {key: row[key] for key in expected} == expected
    assert row["chance mAP"] == figures[0]["chance mAP"] and "R5" not in row


def test_feature_and_precision_reach_every_pass_of_the_model(root):
    """--feature fused and --amp bf16, in both stages of t2i too. Tables rank by F and by F_out, the
    matrix by the feature of the flag; t2i has F alone."""
    seen = set()

    class Spied(ColourModel):
        parts = PARTS

        def forward(self, images, instr):
            seen.add(("F_out", torch.is_autocast_enabled("cpu")))
            neck = self.embed(images, instr)
            return Output(neck, neck, neck, neck[:, :1], None)

        def embed(self, images, instr=None):
            seen.add(("F", torch.is_autocast_enabled("cpu")))
            return super().embed(images, instr)

        def match(self, tokens, instr):
            seen.add(("match", torch.is_autocast_enabled("cpu")))
            return super().match(tokens, instr)

    rows = evaluate.evaluate_all(Run(Spied(), amp="bf16"), [ltcc(root), pedes(root)])
    assert seen == {("F_out", True), ("F", True), ("match", True)}
    assert [row["feature"] for row in rows] == ["F", "F_out"] * 3 + ["F", "F"]
    both = {feature: Run(Spied(), feature) for feature in FEATURES}
    for run in both.values():
        rows = {row["feature"]: row["mAP"] for row in evaluate_all(run, [ltcc(root)])}
        assert rows["F"] != rows["F_out"]
        [first, *_] = [row for row in instruction_matrix(run, ltcc(root))]
        [same] = [row for row in evaluate_all(replace(run, protocol="cc"), [ltcc(root)])
                  if row["feature"] == FEATURES[run.feature]]
        assert first["mAP"] == same["mAP"]
        [row] = evaluate_all(
            replace(run, protocol="cc"), [ltcc(root)], evaluate.evaluate_sentences)
        assert row["feature"] == FEATURES[run.feature]


# ---- the instruction matrix ----

def test_matrix_of_sentences(root):
    """The wrong sentence is given to both sides; targets that nobody is seen in have no row."""
    model = ColourModel()
    rows = instruction_matrix(Run(model), ltcc(root))
    right, wrong = SENTENCES["cc"][0], SENTENCES["trad"][0]
    assert [(row["target"], row["instruction"]) for row in rows] == [
        (target, words) for target in TASKS["cc"].targets for words in (right, wrong)]
    assert [row["R1"] for row in rows if row["target"] == "same clothes"] == [1, 1]
    run = Run(model)
    variants = evaluate.instruction_variants(run, ltcc(root))
    for sentence, (queries, gallery, *feats, asks) in variants.items():
        assert set(asks) == {Ask(sentence)}
        for records, found in zip((queries, gallery), feats):
            own = run.features(ltcc(root), records, [Ask(sentence)] * 4)
            assert found is own, f"under '{sentence}' are features of another sentence"

    records = [r for r in ltcc(root).records if (r.role == "query") == ("red" in r.path)]
    rows = instruction_matrix(Run(model), ltcc(root)._replace(records=records))
    assert {row["target"] for row in rows} == {"other clothes"}


@pytest.mark.parametrize("task", OF_THEIR_OWN)
def test_matrix_of_wanted_own_and_random_instruction(root, task):
    """The gallery keeps its own instruction, and each variant of the queries is by value."""
    model = ColourModel(listen=1.0)
    run = Run(model)
    dataset = cocas(root, task)
    rows = {row["instruction"]: row for row in instruction_matrix(run, dataset)}
    row = TASKS[task]

    def asks(*colours, words=row.described, pictures=row.pictures):
        return [Ask(f"wears {colour}" if words else None, f"{colour}.png" if pictures else None)
                for colour in colours]

    expected = {"wanted": asks("red", "blue")}
    expected |= {"own": asks("green", "green"), "random": asks("blue", "red")}
    if row.described and row.pictures:
        expected["random words"] = [Ask("wears blue", "red.png"), Ask("wears red", "blue.png")]
        expected["random picture"] = [Ask("wears red", "blue.png"), Ask("wears blue", "red.png")]
    variants = evaluate.instruction_variants(run, dataset)
    assert {name: each.asks for name, each in variants.items()} == expected
    carried = asks("red", "green", "blue", "green")
    carrying = run.features(dataset, dataset.split("gallery"), carried)
    for name, each in variants.items():
        feats = run.features(dataset, dataset.split("query"), each.asks)
        assert torch.equal(each.query_feats, feats), name
        assert torch.equal(each.gallery_feats, carrying), name
    colours = colours_of("red", "green", "blue", "green")
    torch.testing.assert_close(carrying, F.normalize(2 * colours))

    assert rows.keys() - expected.keys() == {
        "wanted, a stranger's photo", "wanted, without a photo",
        "wanted, gallery without instructions"}
    assert rows["wanted"]["mAP"] == 1 and rows["own"]["R1"] == rows["random"]["R1"] == 0
    for figures in rows.values():
        assert figures["chance mAP"] > 0 and figures["queries"] == 2


@pytest.mark.parametrize("task", OF_THEIR_OWN)
def test_shortcut_controls_by_value(root, task):
    """A stranger's photo, no photo, a gallery that carries nothing."""
    dataset = cocas(root, task)
    gallery = dataset.split("gallery")
    photos = ("red", "blue")
    queries = [replace(query, path=f"{name}.png")
               for query, name in zip(dataset.split("query"), photos)]
    run = Run(ColourModel(listen=0.5))
    dataset = dataset._replace(records=(*queries, *gallery))
    controls = evaluate.shortcut_controls(run, dataset, evaluate.task_retrieval(run, dataset))
    stranger, alone, bare = (feats for _, _, *feats, _ in controls.values())
    for each in controls.values():
        assert [query.pid for query in each.queries] == [1, 2] and each.gallery == gallery

    wanted = colours_of("red", "blue")
    carried = colours_of("red", "green", "blue", "green")
    torch.testing.assert_close(stranger[0], F.normalize(wanted.flip(0) + 0.5 * wanted))
    torch.testing.assert_close(stranger[1], F.normalize(carried + 0.5 * carried))
    torch.testing.assert_close(alone[0], F.normalize(wanted))
    torch.testing.assert_close(alone[1], F.normalize(carried))

    sentence = colours_of(PERSON_SENTENCE)
    person = F.normalize(wanted + 0.5 * sentence) @ F.normalize(carried + 0.5 * sentence).T
    instruction = F.normalize(wanted) @ F.normalize(carried).T
    row = TASKS[task]
    weights = [SHARES[UNINSTRUCTED]] * row.described + [SHARES[CLOTHES]] * row.pictures
    w = np.mean(weights)
    torch.testing.assert_close(bare[0] @ bare[1].T, (1 - w) * person + w * instruction)


def test_a_random_instruction_is_another_persons_and_own_needs_a_photo_that_tells(root):
    """The first query's own words are unknown, as no image shows it in other clothes."""
    def record(role, pid, clothes):
        words = f"{pid}:{clothes}"
        field = "target_clothes" if role == "query" else "clothes"
        photo = f"{list(PAINT)[pid]}.png"
        return Record("cocas", role, photo, pid, captions=(words,), **{field: words})

    queries = [record("query", pid, "wanted") for pid in (1, 2, 3)]
    gallery = [record("gallery", 1, "wanted"), record("gallery", 2, "wanted"),
               record("gallery", 2, "other"), record("gallery", 3, "other")]
    dataset = dataset_of(root, "cocas", "li", queries + gallery)
    random = set()
    for seed in range(30):
        kept, asks = evaluate.wrong_asks(dataset, queries, gallery, seed)
        assert kept == queries[1:] and asks["wanted"] == [Ask("2:wanted"), Ask("3:wanted")]
        assert asks["own"] == [Ask("2:other"), Ask("3:other")]
        random.add(tuple(ask.words[0] for ask in asks["random"]))
    assert random == {("1", "1"), ("1", "2"), ("3", "1"), ("3", "2")}

    wanted = evaluate.instruction_variants(Run(ColourModel()), dataset)["wanted"]
    assert wanted.queries == queries[1:] and len(wanted.query_feats) == 2
    worn = dataset._replace(records=(*queries, *gallery[:2]))  # in the wanted clothes alone
    [(name, alone)] = evaluate.instruction_variants(Run(ColourModel()), worn).items()
    assert name == "wanted" and alone.queries == queries
    with pytest.raises(UserError, match="all queries show one person"):
        evaluate.wrong_asks(dataset, queries[:1], gallery)


def test_comparison_shows_the_difference_of_the_rows_that_two_runs_share(root):
    runs = [Run(ColourModel(listen), protocol=STRICT.name) for listen in (0.0, 1.0)]
    [one], [two] = (evaluate_all(run, [cocas(root, "ctcc")]) for run in runs)
    fused = one | {"feature": "F_out"}
    rows = comparison([one, fused], [two])
    for row, figure in zip(rows, FIGURES, strict=True):
        assert (row["figure"], row["first"], row["second"]) == (figure, one[figure], two[figure])
        assert row["low"] <= row["difference"] == two[figure] - one[figure] <= row["high"]
    assert rows[0]["difference"] > 0 and rows[0]["protocol"] == "strict"
    with pytest.raises(UserError, match="no row"):
        comparison([fused], [two])


# ---- the command line ----

@pytest.mark.parametrize("flags, what", [
    (["--batch", "0"], "--batch 0"),
    (["--ap-window", "0"], "--ap-window 0"),
    (["--save-features", "nowhere/f.safetensors"], "in a folder that exists"),
    (["--save-features", "features.pt"], "name a .safetensors"),
    (["--device", "abacus"], "--device abacus"),
    (["--checkpoint", "nothing.pt"], "nothing.pt"),
    (["--checkpoint", "nothing.safetensors"], "nothing.safetensors"),
])
def test_mistakes_are_one_line(flags, what):
    with pytest.raises(UserError, match=what) as error:
        evaluate.main(cli.parse(evaluate.Config, flags))
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:Market-1501")
def test_save_features_then_another_metric_and_a_comparison(tmp_path, capsys):
    """A Market-1501 tree of a few painted images, and a small model's checkpoint."""
    torch.manual_seed(0)
    for folder, cam in (("bounding_box_train", 1), ("query", 1), ("bounding_box_test", 2)):
        (tmp_path / "market" / folder).mkdir(parents=True)
        for pid, rgb in enumerate(PAINT.values(), 1):
            name = f"market/{folder}/{pid:04d}_c{cam}s1_000001_01.jpg"
            Image.new("RGB", (16, 32), rgb).save(tmp_path / name)
    config = train.asdict(train.Config(task="trad", data=str(tmp_path / "market"), amp="off"))
    model = InstructReID(TINY, {"market": 4}, text=TextEncoder(*embedded_text_model()))
    checkpoint, saved = (str(tmp_path / name) for name in ("last.pt", "f.safetensors"))
    state = {"config": config, "step": 1} | evaluate.parts_of(model, {"market": 4})
    checkpoints.save(checkpoint, state)

    evaluate.main(evaluate.Config(checkpoint, save_features=saved, device="cpu"))
    table = capsys.readouterr().out.split("wrote")[0]
    assert "general" in table
    evaluate.main(evaluate.Config(saved, compare=checkpoint, device="cpu"))
    again, comparison = capsys.readouterr().out.split(f"{saved} (first)")
    assert table.strip() == again.strip()
    figures = [line.split()[-4:] for line in comparison.splitlines() if " mAP " in line]
    assert [line[1:] for line in figures] == [["0.0", "0.0", "0.0"]] * 2  # difference, low, high
    known, notes = load_features(saved, set())
    for kind in FEATURES:
        key = min(key for key in known if key.startswith(kind))
        known[key] = known[key].roll(1, 0)  # one side shows other people
    save_features(tmp_path / "other.safetensors", known, notes)
    other = str(tmp_path / "other.safetensors")
    evaluate.main(evaluate.Config(saved, compare=other, ap_window=2, device="cpu"))
    _, _, comparison = capsys.readouterr().out.partition("(first)")
    figures = [line.split()[-5:-2] for line in comparison.splitlines() if " R1 " in line]
    assert figures == [["100.0", "0.0", "-100.0"]] * 2
    assert comparison.count("general, AP in the first 2") == 4
    with pytest.raises(UserError, match="nothing could be ranked"):
        evaluate.main(evaluate.Config(saved, rerank=True, device="cpu"))
    assert "go without --rerank" in capsys.readouterr().err
    with pytest.raises(UserError, match="--flip"):
        evaluate.main(evaluate.Config(saved, device="cpu", flip=True))
    evaluate.main(evaluate.Config(saved, device="cpu", instructions="all"))
    assert "saved features are of other images" in capsys.readouterr().err
    cuts = (lambda feats: feats[:-1], lambda feats: feats.repeat(2, 1), lambda feats: feats[:, 1:])
    for cut in cuts:
        save_features(other, known | {key: cut(known[key]).contiguous()}, notes)
        with pytest.raises(UserError, match="nothing could be ranked"):
            evaluate.main(evaluate.Config(other, device="cpu"))
        assert "general: the saved features are of other images" in capsys.readouterr().err


# ---- docs/recipes.md ----

def test_the_recipe_of_a_threshold_equals_loops(root, monkeypatch):
    """It is chosen on people whom its rates leave out; an image of the query's camera is no pair.
    """
    torch.manual_seed(0)
    people = torch.randn(10, 8)
    records = {}  # -> its feature
    for i in range(120):
        place = dict(pid=i % 10, cam=i // 10 % 2, clothes=f"{i % 10}:{i % 4}")
        record = Record("ltcc", "query" if i % 3 else "gallery", f"{i}.png", **place)
        records[record] = F.normalize(people[record.pid] + torch.randn(8), dim=0)
    dataset = dataset_of(root, "ltcc", "cc", records, LAYOUTS["ltcc"].protocols["cc"])
    sides = [dataset.split(role) for role in ("query", "gallery")]
    feats = [torch.stack([records[record] for record in side]) for side in sides]
    monkeypatch.setattr(evaluate, "task_retrieval", lambda run, _: Retrieval(*sides, *feats))
    monkeypatch.setattr(evaluate, "load_model", lambda path: (ColourModel(), {"feature": "edit"}))
    monkeypatch.setattr(evaluate, "tested_datasets", lambda path, task: [dataset])
    page = (Path(__file__).parents[1] / "docs/recipes.md").read_text()
    _, _, section = page.partition("\n## The same person or not?\n")
    names = {}
    exec(section.split("```python\n")[1].split("```")[0], names)

    def cosines(people):
        strangers, same = [], []
        for query, photo in product(dataset.split("query"), dataset.split("gallery")):
            if {query.pid, photo.pid} <= set(people):
                cosine = (records[query] @ records[photo]).item()
                if query.pid != photo.pid:
                    strangers.append(cosine)
                elif query.cam != photo.cam:
                    same.append(cosine)
        return np.array(strangers), np.array(same)

    people, half, threshold = (names[key] for key in ("people", "half", "threshold"))
    assert sorted(people) == list(range(10)) and half == 5
    chosen_on, _ = cosines(people[:half])
    strangers, same = cosines(people[half:])
    accepted = (chosen_on >= threshold).sum()
    assert accepted == int(0.01 * len(chosen_on)) > 0
    expected = (strangers >= threshold).mean(), (same < threshold).mean()
    assert (names["accepted"], names["rejected"]) == pytest.approx(expected)
    assert 0 < expected[0] < 0.2 and 0.1 < expected[1] < 0.9
    spread = np.arange(200, dtype=np.float32) / 200
    at = names["choose"](spread, np.zeros(200, bool))
    assert (spread >= at).sum() == 2
