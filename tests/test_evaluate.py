"""The rows of a table, the instruction matrix and the command, on painted images and a model that
looks at colours. What the real model embeds is in test_embed.py, protocols in test_protocols.py."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import evaluate
from evaluate import FEATURES, Retrieval, Run, evaluate_all, instruction_matrix, rank
from instructions import PERSON_SENTENCE, SENTENCES, TASKS, Ask
from model import PARTS, Instruction, Output
from reid.cli import UserError
from reid.features import load_features, save_features
from reid.images import normalise
from reid.layouts import LAYOUTS
from reid.protocols import GENERAL, usual_protocols
from reid.records import Dataset, Record
from reid.uninstructed import CLOTHES, SHARES, UNINSTRUCTED
from tests.commands import one_line, recipe

PAINT = {
    "red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "grey": (120, 120, 120)
}
UNFUSED = [part for part in PARTS if part != "fused"]
OF_THEIR_OWN = [name for name, row in TASKS.items() if row.targets and not row.sentences]


def colours_of(*names):
    """The colours that sentences name, as a model sees them; black where none is named. (n 3)"""
    rgb = [next((PAINT[key] for key in PAINT if key in name), (0, 0, 0)) for name in names]
    return normalise(torch.tensor(rgb, dtype=torch.uint8).view(-1, 3, 1, 1)).flatten(1)


def is_half_inference():
    return torch.is_autocast_enabled("cpu") and torch.is_inference_mode_enabled()


class ColourModel(torch.nn.Module):
    """Feature = mean colour of the image plus `listen` times the instruction's; that of words and
    a picture is the mean of both. `seen`: what it was shown, and is_half_inference then."""

    size, picture_size = (16, 8), (8, 8)

    def __init__(self, listen=0.0, parts=UNFUSED):
        super().__init__()
        self.neck = torch.nn.Linear(1, 1)  # says on which device the model is
        self.listen = listen
        self.parts = parts
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
        neck = self.embed(images, instr)
        fused = neck[:, :1] if "fused" in self.parts else None  # F_out is the red of F
        return Output(None, neck, fused, fused, None)

    def embed(self, images, instr=None):
        self.seen += [("image", is_half_inference())] * len(images)
        wanted = 0 if instr is None else instr.pooled
        return F.normalize(images.mean((2, 3)) + self.listen * wanted, dim=1)

    def read_text(self, instr):
        return instr

    def embed_text(self, instr):
        return F.normalize(instr.pooled, dim=1)

    def edit(self, images):
        return images.mean((2, 3))[:, None]

    def temperature(self):
        return torch.tensor(0.1)

    def match(self, tokens, instr):
        self.seen.append(("pair", is_half_inference()))
        score = -(tokens[:, 0] - instr.pooled).norm(dim=1)
        return torch.stack([torch.zeros_like(score), score], 1)


@pytest.fixture
def root(tmp_path):
    for name, rgb in PAINT.items():
        Image.new("RGB", (8, 16), rgb).save(tmp_path / f"{name}.png")
    return tmp_path


def dataset_of(root, name, task, records):
    protocols = LAYOUTS[name].protocols.get(task) or usual_protocols(TASKS[task])
    return Dataset(name, LAYOUTS[name].title, task, root, tuple(records), protocols)


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
    return dataset_of(root, "ltcc", "cc", records)


def pedes(root):
    records = []
    for pid, word in enumerate(PAINT):
        records.append(Record("cuhk-pedes", "query", None, pid, modality="text", captions=(word,)))
        records.append(Record("cuhk-pedes", "gallery", f"{word}.png", pid))
    return dataset_of(root, "cuhk-pedes", "t2i", records)


# ---- ranking by features ----

def test_what_cannot_be_ranked_is_a_user_error():
    records = [Record("market", "gallery", None, 1)] * 12
    feats = F.normalize(torch.randn(12, 8))
    retrieval = Retrieval(records, records, feats, feats)
    for value in (torch.nan, torch.inf):
        with pytest.raises(UserError, match="NaN or infinity"):
            rank(GENERAL, retrieval._replace(gallery_feats=feats * value))


def test_second_stage_reorders_only_the_nearest(root):
    dataset = pedes(root)
    run = Run(ColourModel())
    first, second = evaluate_all(run, [dataset])
    assert "matching" in second["protocol"] and second["R1"] == 1 and first["queries"] == 4
    retrieval = evaluate.task_retrieval(run, dataset)._replace(queries=[1, 2])
    run.once = lambda *_: torch.tensor([[[2.0, 3], [0, 1]], [[5, 9], [9, 5]]])  # nearest, scores
    dist = np.array([[0.3, 0.4, 0.2, 0.1], [0.1, 0.2, 0.4, 0.3]]) - 1
    rescore = evaluate.second_stage(run, dataset, retrieval)(None, None)
    assert rescore(0, dist.copy()).argsort(1).tolist() == [[3, 2, 0, 1], [0, 1, 3, 2]]
    assert rescore(1, dist[1:].copy()).argsort(1).tolist() == [[0, 1, 3, 2]]  # the second query
    run.once = lambda *_: torch.tensor([[[2.0, 4]], [[5, 9]]])  # of a damaged file
    with pytest.raises(UserError, match="of other images"):
        evaluate.second_stage(run, dataset, retrieval)


def test_plots_show_the_ranking_after_the_second_stage(root, monkeypatch):
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
    window = evaluate_all(Run(ColourModel(), ap_window=1), [dataset])
    assert window[0]["protocol"] == "general, AP in the first 1"
    assert window[0]["mAP"] == 1 > rows[0]["mAP"]  # the second hit costs nothing
    monkeypatch.setattr(evaluate, "k_reciprocal", lambda *feats: lambda start, dist: -dist)
    first, second = evaluate_all(Run(ColourModel(), protocol="sc", rerank=True), [dataset])
    assert (first["protocol"], second["protocol"]) == ("sc", "sc + re-ranking")
    assert second["R1"] < first["R1"] == 1
    with pytest.raises(UserError, match="0 queries"):
        evaluate.queries_and_gallery(dataset._replace(records=dataset.records[4:]))


def test_junk_is_not_embedded(root):
    images = (("query", "red", 1, 1), ("gallery", "red", 1, 2), ("gallery", "blue", 2, 2),
              ("gallery", "grey", -1, 2))
    records = [Record("market", role, f"{image}.png", pid, cam, junk=pid < 0)
               for role, image, pid, cam in images]
    run = Run(ColourModel())
    dataset = dataset_of(root, "market", "trad", records)
    [row] = evaluate_all(run, [dataset])
    assert row["gallery"] == 2 and len(run.model.seen) == 3
    assert instruction_matrix(run, dataset) == []


def test_each_of_the_sentences_is_ranked_and_their_figures_summarised(root):
    """Each sends the feature elsewhere, from helpful to harmful."""
    run = Run(ColourModel(listen=4.0), protocol="general")
    colours = dict(zip(SENTENCES["cc"], torch.randn(20, 1, 3, generator=torch.manual_seed(0))))
    run.model.instruct = lambda sentences, _: Instruction(None, None, colours[sentences[0]], None)
    general = ltcc(root).protocols[0]
    figures = [evaluate.evaluate_protocol(run, ltcc(root), general, i)[0] for i in range(20)]
    mAP, R1 = ([row[key] for row in figures] for key in ("mAP", "R1"))
    assert len(set(mAP)) > 2 and mAP != R1
    assert len(run.known) == 20  # query and gallery are the same photos here
    [row] = evaluate_all(run, [ltcc(root)], evaluate.evaluate_sentences)
    expected = {
        "sentences": 20, "mAP": np.mean(mAP), "sd": np.std(mAP), "R1": np.mean(R1),
        "R1 sd": np.std(R1), "best": max(mAP), "worst": min(mAP),
        "best sentence": SENTENCES["cc"][np.argmax(mAP)],
        "worst sentence": SENTENCES["cc"][np.argmin(mAP)],
        "chance mAP": figures[0]["chance mAP"],
    }
    assert {key: row[key] for key in expected} == expected and "R5" not in row


def test_precision_reaches_every_pass_and_the_feature_every_table(root):
    """Tables rank by F and by F_out, the matrix and the 20 sentences by the feature of the flag;
    t2i has F alone."""
    run = Run(ColourModel(parts=PARTS), amp="bf16")
    rows = evaluate_all(run, [ltcc(root), pedes(root)])
    assert set(run.model.seen) == {("image", True), ("pair", True)}
    assert [row["feature"] for row in rows] == ["F", "F_out"] * 3 + ["F", "F"]
    for feature, name in FEATURES.items():
        run = Run(ColourModel(parts=PARTS), feature, protocol="cc")
        both = {row["feature"]: row for row in evaluate_all(run, [ltcc(root)])}
        assert both["F"]["mAP"] != both["F_out"]["mAP"]
        assert instruction_matrix(run, ltcc(root))[0]["mAP"] == both[name]["mAP"]
        [row] = evaluate_all(run, [ltcc(root)], evaluate.evaluate_sentences)
        assert (row["feature"], row["mAP"]) == (name, pytest.approx(both[name]["mAP"]))


def test_a_part_that_was_not_trained_is_refused_or_left_out(root, capsys):
    run = Run(ColourModel(parts=("words", "editing")))
    assert {row["feature"] for row in evaluate_all(run, [cocas(root, "li")])} == {"F"}
    said = {row["instruction"] for row in instruction_matrix(run, cocas(root, "li"))}
    assert "wanted, without a photo" in said
    assert "wanted, gallery without instructions" not in said  # it takes text queries
    for dataset, part in ((cocas(root, "ctcc"), "pictures"), (pedes(root), "text queries")):
        assert evaluate_all(run, [dataset]) == []
        words = f"left out: {dataset.title} {dataset.task} {dataset.protocols[0].name}: the model "
        assert f"{words}was not trained for {part}: " in capsys.readouterr().err
    with pytest.raises(UserError, match="E_f"):
        replace(run, feature="fused")


# ---- the instruction matrix ----

def test_matrix_of_sentences(root):
    """The wrong sentence is given to both sides; targets that nobody is seen in have no row."""
    run = Run(ColourModel())
    rows = instruction_matrix(run, ltcc(root))
    right, wrong = SENTENCES["cc"][0], SENTENCES["trad"][0]
    assert [(row["target"], row["instruction"]) for row in rows] == [
        (target, words) for target in TASKS["cc"].targets for words in (right, wrong)]
    assert [row["R1"] for row in rows if row["target"] == "same clothes"] == [1, 1]
    variants = evaluate.instruction_variants(run, ltcc(root))
    for sentence, (queries, gallery, *feats, asks) in variants.items():
        assert set(asks) == {Ask(sentence)}
        for records, found in zip((queries, gallery), feats):
            own = run.features(ltcc(root), records, [Ask(sentence)] * 4)
            assert found is own, f"under '{sentence}' are features of another sentence"

    records = [r for r in ltcc(root).records if (r.role == "query") == ("red" in r.path)]
    rows = instruction_matrix(run, ltcc(root)._replace(records=records))
    assert {row["target"] for row in rows} == {"other clothes"}


@pytest.mark.parametrize("task", OF_THEIR_OWN)
def test_matrix_and_shortcut_controls_by_value(root, task):
    """Queries under the wanted, their own and a random instruction, with a stranger's photo,
    without one; the gallery under its own, or under none."""
    row = TASKS[task]
    dataset = cocas(root, task)
    gallery = dataset.split("gallery")
    queries = [replace(query, path=f"{name}.png")
               for query, name in zip(dataset.split("query"), ("grey", "green"))]
    dataset = dataset._replace(records=(*queries, *gallery))
    run = Run(ColourModel(listen=1.5))

    def colours(words, pictures):
        """Of instructions: (n 3)."""
        parts = [words] * row.described + [pictures] * row.pictures
        return sum(colours_of(*part) for part in parts) / len(parts)

    def alike(*names):
        return colours(names, names)

    photos = colours_of("grey", "green")
    asked = {"wanted": alike("red", "blue"), "own": alike("green", "green"),
             "random": alike("blue", "red")}
    if row.described and row.pictures:
        asked["random words"] = colours(("blue", "red"), ("red", "blue"))
        asked["random picture"] = colours(("red", "blue"), ("blue", "red"))
    carried = alike("red", "green", "blue", "green")
    expected = {name: (photos + 1.5 * each, 2.5 * carried) for name, each in asked.items()}
    expected["wanted, a stranger's photo"] = photos.flip(0) + 1.5 * asked["wanted"], 2.5 * carried
    expected["wanted, without a photo"] = asked["wanted"], carried

    variants = evaluate.instruction_variants(run, dataset)
    variants |= evaluate.shortcut_controls(run, dataset, variants["wanted"])
    bare = variants.pop("wanted, gallery without instructions")
    assert variants.keys() == expected.keys()
    for name, (of_queries, of_gallery, *feats, _) in variants.items():
        assert [query.pid for query in of_queries] == [1, 2] and of_gallery == gallery
        for found, side in zip(feats, expected[name]):
            torch.testing.assert_close(found, F.normalize(side), msg=name)

    if row.described and row.pictures:  # which have the same mean
        asks = [Ask("wears blue", "red.png"), Ask("wears red", "blue.png")]
        assert variants["random words"].asks == asks
    sentence = 1.5 * colours_of(PERSON_SENTENCE)
    person = F.normalize(photos + sentence) @ F.normalize(carried + sentence).T
    instruction = F.normalize(asked["wanted"]) @ F.normalize(carried).T
    w = np.mean([SHARES[UNINSTRUCTED]] * row.described + [SHARES[CLOTHES]] * row.pictures)
    found = bare.query_feats @ bare.gallery_feats.T
    torch.testing.assert_close(found, (1 - w) * person + w * instruction)

    rows = {each["instruction"]: each for each in instruction_matrix(run, cocas(root, task))}
    assert [*rows] == [*expected, "wanted, gallery without instructions"]
    assert rows["wanted"]["mAP"] == 1 and rows["own"]["R1"] == rows["random"]["R1"] == 0
    assert {each["queries"] for each in rows.values()} == {2}


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


# ---- the command line ----

def test_saved_features_serve_other_metrics_and_comparisons(root, command, monkeypatch):
    records = ltcc(root).records
    records = records[:4] + records[:3:-1]  # queries are not the gallery
    dataset = dataset_of(root, "market", "trad", records)
    trained = {"data": "x", "task": "trad", "feature": "edit", "amp": "off"}
    monkeypatch.setattr(evaluate, "load_model", lambda path: (ColourModel(parts=PARTS), trained))
    monkeypatch.setattr(evaluate, "tested_datasets", lambda *_: [dataset])

    def said(checkpoint, *flags):
        """(words of the tables, lines of words of a comparison, stderr)"""
        code, out, err = command(evaluate, "--checkpoint", checkpoint, *flags)
        assert code == 0, err
        tables, _, compared = out.split("wrote")[0].partition(f"{checkpoint} (first)")
        return tables.split(), [line.split() for line in compared.splitlines()], err

    def refused(checkpoint, words, *flags):
        result = command(evaluate, "--checkpoint", checkpoint, *flags)
        one_line(result, "nothing could be ranked")
        assert words in result[-1]

    table, *_ = said("last.pt", "--save-features", "f.safetensors")
    again, lines, _ = said("f.safetensors", "--compare", "last.pt")
    assert table == again and "general" in table
    differences = [line[-3:] for line in lines if "mAP" in line]
    assert differences == [["0.0", "0.0", "0.0"]] * 2  # difference, low, high
    known, notes = load_features("f.safetensors", set())
    for kind in ("fused", "edit"):
        key = min(key for key in known if key.startswith(kind))
        known[key] = known[key].roll(2, 0)  # one side shows other people
    save_features("other.safetensors", known, notes)
    _, lines, _ = said("f.safetensors", "--compare", "other.safetensors", "--ap-window", 2)
    figures = {line[-8]: line[-5:-2] for line in lines if "R1" in line}
    assert sum("general, AP in the first 2" in " ".join(line) for line in lines) == 4
    assert figures["F"] == ["100.0", "0.0", "-100.0"]

    refused("f.safetensors", "go without --rerank", "--rerank")
    *_, err = said("f.safetensors", "--instructions", "all")
    assert "saved features are of other images" in err
    one_line(command(evaluate, "--checkpoint", "f.safetensors", "--flip"), "--flip")
    cuts = (lambda feats: feats[:-1], lambda feats: feats.repeat(2, 1), lambda feats: feats[:, 1:])
    for cut in cuts:
        save_features("other.safetensors", known | {key: cut(known[key])}, notes)
        refused("other.safetensors", "general: the saved features are of other images")


# ---- docs/recipes.md ----

def test_the_recipe_of_a_threshold_equals_loops(root, monkeypatch):
    """It is chosen on people whom its rates leave out; an image of the query's camera is no pair.
    """
    torch.manual_seed(1)
    records = [Record("ltcc", "query" if i % 3 else "gallery", f"{i}.png", i % 10, i // 10 % 2)
               for i in range(120)]
    feats = F.normalize(torch.randn(10, 8).repeat(12, 1) + torch.randn(120, 8), dim=1)
    feat_of = dict(zip(records, feats))
    dataset = dataset_of(root, "ltcc", "cc", records)
    monkeypatch.setattr(
        Run, "features", lambda run, _, some, *asks: torch.stack([feat_of[each] for each in some]))
    monkeypatch.setattr(evaluate, "load_model", lambda path: (ColourModel(), {"feature": "edit"}))
    monkeypatch.setattr(evaluate, "tested_datasets", lambda path, task: [dataset])
    names = {}
    exec(recipe("The same person or not?"), names)

    def cosines(people):
        """Of strangers, and of the same person by another camera."""
        found = {False: [], True: []}
        for query, photo in product(dataset.split("query"), dataset.split("gallery")):
            same = query.pid == photo.pid
            if {query.pid, photo.pid} <= set(people) and not (same and query.cam == photo.cam):
                found[same].append((feat_of[query] @ feat_of[photo]).item())
        return map(np.array, found.values())

    people, half, threshold = (names[key] for key in ("people", "half", "threshold"))
    assert sorted(people) == list(range(10)) and half == 5
    chosen_on, _ = cosines(people[:half])
    strangers, same = cosines(people[half:])
    assert (chosen_on > threshold + 1e-6).sum() == int(0.01 * len(chosen_on)) > 0
    expected = (strangers >= threshold).mean(), (same < threshold).mean()
    assert (names["accepted"], names["rejected"]) == pytest.approx(expected)
    assert 0 < expected[0] < 0.2 and 0.1 < expected[1] < 0.9
