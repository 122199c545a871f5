"""Search: hits against a slow twin on a random model, the index, what is left out, mistakes."""

import json
import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import evaluate
from extras import search
from instructions import PERSON_SENTENCE, TASKS
from model import InstructReID
from reid import cli, plots
from reid.images import load_image, normalise
from reid.text import TextEncoder, embedded_text_model
from reid.uninstructed import CLOTHES, SHARES, UNINSTRUCTED
from tests.commands import one_line
from tests.test_model import TINY, stirred

NAMES = ("Anna Müller 1.JPG", "été/日本/p [1].png", "--top 3.jpeg", "a'b/\"c\".bmp", "a'b/anna.png")
TASK_SENTENCE = TASKS["trad"].sentences[0]
WORDS = "in a red coat"
QUERY = ("--query", "anna.png")
ASKED = (*QUERY, "--instruction", WORDS)


@pytest.fixture(scope="module")
def model():
    """Its gates are open and the BatchNorm statistics of each neck have moved."""
    torch.manual_seed(0)
    model = InstructReID(TINY, text=TextEncoder(*embedded_text_model())).eval()
    stirred(model)
    for neck in (model.neck, model.fused_neck, model.plain_neck):
        neck.running_mean.normal_()
        neck.running_var.uniform_(0.5, 2)
    return model


def paint(path, seed):
    """A picture of random coarse blocks, which no two parts or mirror images have alike."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 4, 3), np.uint8)
    Image.fromarray(blocks).resize((16, 32), Image.Resampling.NEAREST).save(path)


@pytest.fixture
def run(command, monkeypatch, model):
    """run(*flags) -> (exit code, stdout, stderr), where there are photos, two queries, a picture of
    clothes and a.pt, which gives the model."""
    photos = [f"photos/{name}" for name in NAMES]
    for seed, name in enumerate([*photos, "anna.png", "ben.png", "coat.png"]):
        paint(Path(name), seed)
    Path("a.pt").write_text("weights")
    loaded = model, {"feature": "fused", "amp": "off"}
    monkeypatch.setattr(evaluate, "load_model", lambda path, text: loaded)
    monkeypatch.setattr(evaluate, "Run", partial(evaluate.Run, batch=2))
    return partial(command, search, "--photos", "photos", "--checkpoint", "a.pt")


@pytest.fixture
def hits(run):
    """hits(*flags) -> [hit] of --json."""
    def call(*flags):
        code, out, err = run("--json", *flags)
        assert code == 0, err
        return [json.loads(line) for line in out.splitlines()]
    return call


@pytest.fixture
def read(monkeypatch):
    """The photos that are opened, in whatever order, and no query."""
    opened = []

    def load(path, size):
        opened.extend([path.name] if isinstance(path, Path) else [])
        return load_image(path, size)

    monkeypatch.setattr(search, "load_image", load)
    return opened


# ---- hits ----

@torch.no_grad()
def by_hand(model, sentence, query, words, clothes):
    """{photo: (cosine of the person, of the instruction)}, one photo at a time; 0 for None."""
    def of_person(path):
        image = normalise(load_image(path, model.size)[None])
        return model(image, model.instruct([sentence])).fused_neck

    cosines = {}
    for path in [Path("photos", name) for name in NAMES]:
        photo = load_image(path, model.size)[None]
        person = wanted = torch.zeros(1)
        if query:
            person = F.cosine_similarity(of_person(query), of_person(path))
        if words:
            instr = model.instruct([words])
            text = model.text_head(model.text_block(instr.tokens, mask=instr.mask)[:, 0])
            wanted = F.cosine_similarity(text, model(normalise(photo), None).neck)
        if clothes:
            coat = normalise(load_image(clothes, model.picture_size)[None])
            body = normalise(photo)[:, :, 6:, 2:14]  # of 32 x 16, without head and margins
            worn = F.interpolate(body, (16, 16), mode="bilinear", antialias=True)
            of_both = model.encoder.picture(torch.cat([coat, worn]))[:, 1:].mean(1)
            wanted = F.cosine_similarity(of_both[:1], of_both[1:])
        cosines[str(path)] = person.item(), wanted.item()
    return cosines


@pytest.mark.parametrize("query, words, clothes, weight, w", (
    ("anna.png", None, None, None, 0),
    (None, WORDS, None, 0.2, 1),
    (None, TASK_SENTENCE, None, None, 1),
    ("anna.png", WORDS, None, None, SHARES[UNINSTRUCTED]),
    ("anna.png", None, "coat.png", None, SHARES[CLOTHES]),
    ("anna.png", TASK_SENTENCE, None, 0.7, 0),
    ("anna.png", WORDS, None, 0, 0),
    ("anna.png", None, "coat.png", 1, 1),
))
def test_the_hits_are_those_of_the_rule(
    query, words, clothes, weight, w, hits, model, monkeypatch,
):
    rows = []
    draw = plots.ranking_list
    monkeypatch.setattr(plots, "ranking_list", lambda some: rows.extend(some) or draw(some))
    flags = {"--query": query, "--instruction": words or clothes, "--weight": weight}
    flags = [word for pair in flags.items() if pair[1] is not None for word in pair]
    found = hits(*flags, "--out", "hits.png")
    title = "wanted clothes" if clothes else words or PERSON_SENTENCE
    given = PERSON_SENTENCE
    if query and words == TASK_SENTENCE:
        given, words = words, None
    cosines = by_hand(model, given, query, words, clothes)
    expected = {photo: ((1 - w) * p, w * i) for photo, (p, i) in cosines.items()}
    order = sorted(expected, key=lambda photo: -sum(expected[photo]))
    assert [(hit["rank"], hit["photo"]) for hit in found] == list(enumerate(order, 1))
    for hit in found:
        parts = hit["from_person"], hit["from_instruction"]
        assert parts == pytest.approx(expected[hit["photo"]], abs=1e-5)
        assert hit["score"] == pytest.approx(sum(parts), abs=1e-6)
    assert hits(*flags, "--top", 2) == found[:2]

    [row] = rows
    assert (row.query.path, row.title, row.clothes) == (query, title, clothes)
    shown = [(record.path, verdict) for record, verdict in row.ranking]
    assert shown == [(photo, None) for photo in order]


def test_two_queries_are_two_searches_in_hits_and_picture(hits, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "save", lambda picture, _: drawn.append(np.array(picture)))
    flags = ("--instruction", WORDS, "--out", "hits.png")
    both = hits("--query", "anna.png", "ben.png", *flags)
    assert both == hits(*QUERY, *flags) + hits("--query", "ben.png", *flags)
    whole, anna, ben = drawn
    end = len(anna) - plots.GAP  # a line divides the two there
    assert (whole[:end] == anna[:end]).all() and (whole[end:] == ben[plots.GAP:]).all()


def test_the_query_is_not_its_own_hit_and_its_namesake_is(hits):
    os.link("photos/a'b/anna.png", "linked.png")
    for query in ("photos/a'b/anna.png", "./photos/été/../a'b/anna.png", "linked.png"):
        found = [hit["photo"] for hit in hits("--query", query)]
        assert len(found) == len(NAMES) - 1 and "photos/a'b/anna.png" not in found
    paint(Path("photos/anna.png"), 20)
    found = [hit["photo"] for hit in hits("--query", "photos/a'b/anna.png")]
    assert len(found) == len(NAMES) and "photos/anna.png" in found


def test_text_shows_scores_their_parts_and_names_on_one_line(run, hits):
    Path("photos", NAMES[0]).rename("photos/two\nlines.JPG")
    brief = long = f"anna.png + {WORDS}\n"
    for hit in hits(*ASKED):
        hit["photo"] = hit["photo"].replace("\n", "\\n")
        brief += "{rank:4}  {score:.3f}  {photo}\n".format(**hit)
        long += "{rank:4}  {score:.3f} = {from_person:.3f} person + ".format(**hit)
        long += "{from_instruction:.3f} instruction  {photo}\n".format(**hit)
    assert run(*ASKED)[1] == f"{brief}\n" and run(*ASKED, "--explain")[1] == f"{long}\n"


# ---- the index ----

def test_only_what_is_new_or_changed_is_read_again(hits, read):
    """A task's sentence needs other features, which are kept beside the first; and so does another
    checkpoint."""
    task = (*QUERY, "--instruction", TASK_SENTENCE)
    elsewhere = (*ASKED, "--index", "fresh.safetensors")
    first = hits(*ASKED)
    assert len(read) == len(NAMES) and not list(Path("photos").glob("*.part"))
    hits(*task)
    assert len(read) == 2 * len(NAMES)
    assert hits(*ASKED) == first
    hits(*task)
    hits("--instruction", "coat.png")
    assert len(read) == 2 * len(NAMES)

    changed, removed, touched = (Path("photos", name) for name in NAMES[:3])
    time = changed.stat().st_mtime_ns
    paint(changed, 30)
    os.utime(changed, ns=(time, time))  # of another size alone
    os.utime(touched, ns=(time, time + 1))
    removed.unlink()
    paint(Path("photos/added.png"), 31)
    read.clear()
    again = hits(*ASKED)
    assert sorted(read) == sorted([changed.name, touched.name, "added.png"])
    read.clear()
    assert again == hits(*elsewhere) == hits(*elsewhere) and again != first
    assert str(removed) not in [hit["photo"] for hit in again]
    Path("a.pt").write_text("other weights")
    hits(*ASKED)
    assert len(read) == 2 * len(NAMES)


def test_a_sentence_that_is_known_needs_no_bert(run, model, monkeypatch):
    """One that was not read whole is read again, and said again."""
    whole = model.encoder.text
    monkeypatch.setitem(model.encoder._modules, "text", whole)  # it is again after the test
    readers = []

    def load(path, text):
        readers.append(text)
        model.encoder.text = text or whole
        return model, {"feature": "fused", "amp": "off"}

    monkeypatch.setattr(evaluate, "load_model", load)
    odd = "in 赤 red"
    sentences = (WORDS, WORDS, "coat.png", "in blue", "in blue", odd, odd, WORDS)
    said = [run(*QUERY, "--instruction", sentence) for sentence in sentences]
    is_new = [reader is None for reader in readers]
    assert is_new == [True, False, False, True, False, True, True, False]
    assert said[0][1] == said[1][1] == said[-1][1]
    noted = ["note: sentences with words" in err for _, _, err in said]
    assert noted == [sentence == odd for sentence in sentences]


def test_what_an_interrupted_search_has_read_is_kept(run, hits, read, monkeypatch):
    def interrupted(path, size):
        if len(read) == 3:
            raise cli.Interrupted(2, "interrupted")
        return load(path, size)

    load = search.load_image
    monkeypatch.setattr(search, "load_image", interrupted)
    assert run("--instruction", WORDS)[0] == 130
    monkeypatch.setattr(search, "load_image", load)
    read.clear()
    found = hits("--instruction", WORDS)
    assert len(read) == len(NAMES) - 2  # of batches of two, one was ready
    assert found == hits("--instruction", WORDS, "--index", "fresh.safetensors")


def test_an_index_that_cannot_be_written_costs_no_answer(run):
    code, out, err = run("--instruction", WORDS, "--index", "nowhere/a.safetensors")
    [warning] = [line for line in err.splitlines() if "nowhere" in line]
    assert code == 0 and "not saved" in warning and out == run("--instruction", WORDS)[1]


@pytest.mark.parametrize("kind, change, photos", (
    *((CLOTHES, None, photos) for photos in ("5", "[5]", "[NaN]", "[[[], 1, 1]]", "[]")),
    *((kind, change, None) for kind in (CLOTHES, search.TOKENS) for change in (
        lambda feats: feats[:, 1:].contiguous(), lambda feats: feats[None])),
))
def test_an_index_of_other_content_is_one_line(kind, change, photos, run, read):
    path = Path("photos/index.safetensors")
    run("--instruction", WORDS)
    with safe_open(path, "pt") as file:
        notes = file.metadata()
        feats = {key: file.get_tensor(key) for key in file.keys()}
    notes["photos"] = photos or notes["photos"]
    key = min(key for key in feats if key.startswith(kind))
    feats[key] = change(feats[key]) if change else feats[key]
    save_file(feats, path, notes)
    read.clear()
    one_line(run("--instruction", WORDS), path, "--index")
    assert not read


# ---- what is left out, mistakes ----

def test_what_is_left_out_is_counted_by_reason(run):
    words = ("--instruction", WORDS)
    Path("photos/web page.jpg").write_text("<html>")
    os.mkfifo("photos/pipe.jpg")
    os.symlink("nowhere", "photos/dangling.png")
    os.symlink(os.getcwd(), "photos/all")
    paint(Path("photos/.thumbnails/a.png"), 40)
    for name in (".hidden.jpg", "notes.txt", "photo.raw"):
        Path("photos", name).write_text("no picture")
    for new, more in ((len(NAMES), ()), (0, ()), (len(NAMES), ("--index", "new.safetensors"))):
        [line] = [line for line in run(*words, *more)[2].splitlines() if "photos, " in line]
        assert line.startswith(f"{len(NAMES)} photos, {new} of them new; 3 cannot be read, such as")
        assert line.partition("; 2 hidden")[2].startswith(
            ", such as photos/.thumbnails; 1 linked folders, such as photos/all; 2 not named as "
            "images, such as photos/")
    shutil.rmtree("photos")
    os.mkdir("photos")
    one_line(run(*words), "--photos photos", "no photo")
    Path("photos/a.jpg").write_text("no picture")
    one_line(run(*words), "--photos photos", "1 cannot be read")
    shutil.copy("anna.png", "photos")
    one_line(run("--query", "photos/anna.png"), "--photos photos", "the query itself")


@pytest.mark.parametrize("flags, words", (
    ((), ("--query", "--instruction")),
    (("--photos", "nowhere", *QUERY), ("--photos nowhere",)),
    (("--instruction", "  "), ("--instruction", "empty")),
    (("--instruction", "coat.jpg"), ("coat.jpg", "no such picture")),
    (("--query", "a.pt"), ("cannot read image a.pt",)),
    (("--instruction", WORDS, "--index", "a.pt"), ("a.pt", "--index")),
    ((*QUERY, "--out", "hits.jpg"), ("--out hits.jpg", ".png")),
    (("--query", "ben.png", "anna.png", "--out", "./anna.png"), ("--out", "input")),
    (("--instruction", "coat.png", "--out", "coat.png"), ("--out", "input")),
    ((*QUERY, "--out", "photos/a'b/hits.png"), ("--out", "--photos")),
))
def test_mistakes_are_one_line_before_work(flags, words, run, read):
    one_line(run(*flags), *words)
    assert not read and not Path("photos/index.safetensors").exists()


def test_a_model_that_has_diverged_is_named(run, model, monkeypatch):
    nan = torch.nn.Parameter(torch.full((32,), torch.nan))
    monkeypatch.setattr(model.plain_neck, "weight", nan)
    one_line(run("--instruction", WORDS), "NaN", "--checkpoint")
