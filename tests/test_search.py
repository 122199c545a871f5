"""Search: hits against a slow twin on a random model, the index, what is left out, mistakes."""

import json
import os
import shutil
import sys
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
from reid import cli, pictures
from reid.images import load_image, normalise
from reid.text import TextEncoder, embedded_text_model
from reid.uninstructed import CLOTHES, SHARES, UNINSTRUCTED

NAMES = ("Anna Müller 1.JPG", "été/日本/p [1].png", "--top 3.jpeg", "a'b/\"c\".bmp", "a'b/anna.png")
TASK_SENTENCE = TASKS["trad"].sentences[0]
WORDS = "in a red coat"


@pytest.fixture(scope="module")
def model():
    """Its gates are open and the BatchNorm statistics of each neck have moved."""
    torch.manual_seed(0)
    small = dict(size=(32, 16), patch=8, dim=32, depth=1, heads=2, stem="patch",
                 picture_size=(16, 16), picture_depth=1, fusion_depth=1)
    model = InstructReID(small, text=TextEncoder(*embedded_text_model())).eval()
    model.editor.blocks[0].attn.gate.data.fill_(1.0)
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
def run(tmp_path, monkeypatch, capsys, model):
    """run(*flags) -> (exit code, stdout, stderr), where there are photos, two queries, a picture of
    clothes and a.pt, which gives the model."""
    monkeypatch.chdir(tmp_path)
    photos = [f"photos/{name}" for name in NAMES]
    for seed, name in enumerate([*photos, "anna.png", "ben.png", "coat.png"]):
        paint(Path(name), seed)
    Path("a.pt").write_text("weights")
    loaded = model, {"feature": "fused", "amp": "off"}
    monkeypatch.setattr(evaluate, "load_model", lambda path, text: loaded)
    monkeypatch.setattr(evaluate, "Run", partial(evaluate.Run, batch=2))

    def call(*flags):
        words = ["search", "--photos", "photos", "--checkpoint", "a.pt", *map(str, flags)]
        monkeypatch.setattr(sys, "argv", words)
        code = 0
        try:
            cli.run(search.main, search.Config)
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()
    return call


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


def refused(result, *words):
    code, _, err = result
    line = err.strip().splitlines()[-1]
    assert code == 2 and line.startswith("error: "), err
    assert all(word in line for word in words), line


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
            body = photo[:, :, 6:, 2:14].float()  # of 32 x 16, without head and margins
            worn = normalise(F.interpolate(body, (16, 16), mode="bilinear", antialias=True))
            of_both = model.encoder.picture(torch.cat([coat, worn]))[:, 1:].mean(1)
            wanted = F.cosine_similarity(of_both[:1], of_both[1:])
        cosines[str(path)] = person.item(), wanted.item()
    return cosines


@pytest.mark.parametrize("query, words, clothes, weight, w", (
    ("anna.png", None, None, None, 0),
    (None, WORDS, None, 0.2, 1),
    (None, TASK_SENTENCE, None, None, 1),
    (None, None, "coat.png", None, 1),
    ("anna.png", WORDS, None, None, SHARES[UNINSTRUCTED]),
    ("anna.png", None, "coat.png", None, SHARES[CLOTHES]),
    ("anna.png", TASK_SENTENCE, None, 0.7, 0),
    ("anna.png", WORDS, None, 0, 0),
    ("anna.png", None, "coat.png", 1, 1),
))
def test_the_hits_are_those_of_the_rule(query, words, clothes, weight, w, hits, model):
    flags = {"--query": query, "--instruction": words or clothes, "--weight": weight}
    flags = [word for pair in flags.items() if pair[1] is not None for word in pair]
    found = hits(*flags)
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


def test_what_is_not_understood_is_said_each_time(run):
    for _ in range(2):
        assert "note: sentences with words" in run("--instruction", "in 赤 red")[2]
    assert "note" not in run("--instruction", WORDS)[2]


def test_two_queries_are_two_searches_in_hits_and_picture(hits, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "save", lambda picture, _: drawn.append(np.array(picture)))
    flags = ("--instruction", WORDS, "--out", "hits.png")
    both = hits("--query", "anna.png", "ben.png", *flags)
    assert both == hits("--query", "anna.png", *flags) + hits("--query", "ben.png", *flags)
    whole, anna, ben = drawn
    end = len(anna) - pictures.GAP  # a line divides the two there
    assert (whole[:end] == anna[:end]).all() and (whole[end:] == ben[pictures.GAP:]).all()


def test_the_picture_shows_query_instruction_and_hits(hits, monkeypatch):
    rows = []
    draw = pictures.ranking_list
    monkeypatch.setattr(pictures, "ranking_list", lambda some: rows.extend(some) or draw(some))
    query = ("--query", "anna.png")
    for flags, title in (
            (query, PERSON_SENTENCE), ((*query, "--instruction", TASK_SENTENCE), TASK_SENTENCE),
            (("--instruction", WORDS), WORDS),
            ((*query, "--instruction", "coat.png"), "wanted clothes")):
        found = hits(*flags, "--out", "hits.png")
        assert rows[-1].title == title
        assert rows[-1].query.path == ("anna.png" if "--query" in flags else None)
        assert rows[-1].clothes == ("coat.png" if "coat.png" in flags else None)
        shown = [(record.path, verdict) for record, verdict in rows[-1].ranking]
        assert shown == [(hit["photo"], None) for hit in found]
    assert Image.open("hits.png").width == pictures.WIDTH and len(rows) == 4


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
    flags = ("--query", "anna.png", "--instruction", WORDS)
    brief = long = f"anna.png + {WORDS}\n"
    for hit in hits(*flags):
        hit["photo"] = hit["photo"].replace("\n", "\\n")
        brief += "{rank:4}  {score:.3f}  {photo}\n".format(**hit)
        long += "{rank:4}  {score:.3f} = {from_person:.3f} person + ".format(**hit)
        long += "{from_instruction:.3f} instruction  {photo}\n".format(**hit)
    assert run(*flags)[1] == f"{brief}\n" and run(*flags, "--explain")[1] == f"{long}\n"


# ---- the index ----

def test_only_what_is_new_or_changed_is_read_again(hits, read):
    flags = ("--query", "anna.png", "--instruction", WORDS)
    first = hits(*flags)
    assert len(read) == len(NAMES) and not list(Path("photos").glob("*.part"))
    read.clear()
    assert hits(*flags) == first
    hits("--instruction", "coat.png")
    assert not read

    changed, removed, touched = (Path("photos", name) for name in NAMES[:3])
    time = changed.stat().st_mtime_ns
    paint(changed, 30)
    os.utime(changed, ns=(time, time))  # of another size alone
    os.utime(touched, ns=(time, time + 1))
    removed.unlink()
    paint(Path("photos/added.png"), 31)
    again = hits(*flags)
    assert sorted(read) == sorted([changed.name, touched.name, "added.png"])
    assert again == hits(*flags, "--index", "fresh.safetensors") and again != first
    assert str(removed) not in [hit["photo"] for hit in again]


def test_another_sentence_index_or_checkpoint(hits, read):
    words = ("--instruction", WORDS)
    task = ("--query", "anna.png", "--instruction", TASK_SENTENCE)
    elsewhere = (*words, "--index", "kept.safetensors")
    for flags, count in (
            (words, 1), (task, 1), (words, 0), (task, 0), (elsewhere, 1), (elsewhere, 0)):
        read.clear()
        hits(*flags)
        assert len(read) == count * len(NAMES), flags
    Path("a.pt").write_text("other weights")
    hits(*words)
    assert len(read) == len(NAMES)


def test_a_sentence_that_is_known_needs_no_bert(hits, model, monkeypatch):
    """One that was not read whole is read again, and said again."""
    whole = model.encoder.text
    monkeypatch.setitem(model.encoder._modules, "text", whole)  # it is again after the test
    readers = []

    def load(path, text):
        readers.append(text)
        model.encoder.text = text or whole
        return model, {"feature": "fused", "amp": "off"}

    monkeypatch.setattr(evaluate, "load_model", load)
    words = ("--query", "anna.png", "--instruction", WORDS)
    first = hits(*words)
    assert hits(*words) == first
    hits("--query", "ben.png", "--instruction", "coat.png")
    for sentence in ("in blue", "in blue", "in 赤 red", "in 赤 red", WORDS):
        hits("--instruction", sentence)
    is_new = [reader is None for reader in readers]
    assert is_new == [True, False, False, True, False, True, True, False]


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
    assert code == 0 and "not kept" in warning and out == run("--instruction", WORDS)[1]


@pytest.mark.parametrize("photos, change", (
    ("5", None), ("[NaN]", None), ("[5]", None), ("[[[], 1, 1]]", None), ("[]", None),
    (None, lambda feats: feats[:, 1:].contiguous()), (None, lambda feats: feats.half()),
    (None, lambda feats: feats[None]),
))
@pytest.mark.parametrize("kind", (CLOTHES, search.TOKENS))
def test_an_index_of_other_content_is_one_line(photos, change, kind, run, read):
    path = Path("photos/index.safetensors")
    run("--instruction", WORDS)
    with safe_open(path, "pt") as file:
        notes = file.metadata()
        feats = {kind: file.get_tensor(kind) for kind in file.keys()}
    notes["photos"] = photos or notes["photos"]
    key = min(key for key in feats if key.startswith(kind))
    feats[key] = change(feats[key]) if change else feats[key]
    save_file(feats, path, notes)
    read.clear()
    refused(run("--instruction", WORDS), str(path), "--index")
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
    refused(run(*words), "--photos photos", "no photo")
    Path("photos/a.jpg").write_text("no picture")
    refused(run(*words), "--photos photos", "1 cannot be read")
    shutil.copy("anna.png", "photos")
    refused(run("--query", "photos/anna.png"), "--photos photos", "the query itself")


@pytest.mark.parametrize("flags, words", (
    ((), ("--query", "--instruction")),
    (("--photos", "nowhere", "--query", "anna.png"), ("--photos nowhere",)),
    (("--instruction", "  "), ("--instruction", "empty")),
    (("--instruction", "coat.jpg"), ("coat.jpg", "no such picture")),
    (("--query", "a.pt"), ("cannot read image a.pt",)),
    (("--instruction", WORDS, "--index", "a.pt"), ("a.pt", "--index")),
    (("--instruction", WORDS, "--out", "hits.jpg"), ("--out hits.jpg", ".png")),
    (("--query", "ben.png", "anna.png", "--out", "./anna.png"), ("--out", "input")),
    (("--instruction", "coat.png", "--out", "coat.png"), ("--out", "input")),
    (("--instruction", WORDS, "--out", "photos/a'b/hits.png"), ("--out", "--photos")),
))
def test_mistakes_are_one_line_before_work(flags, words, run, read):
    refused(run(*flags), *words)
    assert not read and not Path("photos/index.safetensors").exists()


def test_a_model_that_has_diverged_is_named(run, model, monkeypatch):
    nan = torch.nn.Parameter(torch.full((32,), torch.nan))
    monkeypatch.setattr(model.plain_neck, "weight", nan)
    refused(run("--instruction", WORDS), "NaN", "--checkpoint")
