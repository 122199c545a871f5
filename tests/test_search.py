"""search.py: the rule by hand, what is read again, odd names, broken files, mistakes."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import search
import toydata
from instructions import PERSON_SENTENCE
from model import InstructReID
from reid import checkpoints, photos, pictures, uninstructed
from reid.cli import UserError
from reid.text import EmbeddedTextEncoder
from reid.uninstructed import CLOTHES, UNINSTRUCTED, joined, scores
from search import Question
from tests.test_evaluate import PAINT, ColourModel
from tests.test_train import command, one_line  # noqa: F401  (command is a fixture)

NAMES = {  # where each colour of PAINT lies, below the folder
    "red": "Anna Müller 1.JPG",
    "green": "été/日本/photo [1].png",
    "blue": "été/--top 3.jpeg",
    "grey": "a  b/c'd \"e\".bmp",
}


@pytest.fixture
def folder(tmp_path):
    """A photo of each colour, nested and flat; hidden files and others are no photos."""
    folder = tmp_path / "my photos"
    for colour, name in NAMES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 32), PAINT[colour]).save(path)
    (folder / ".hidden.jpg").write_text("no picture")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def ask(folder, command, monkeypatch, tmp_path):  # noqa: F811
    """ask(*flags) -> [hit] of --json, by a model of colours, whose checkpoint is a.pt."""
    load_model = checkpoints.load_model
    colours = ColourModel(), {"feature": "edit"}
    monkeypatch.setattr(
        checkpoints,
        "load_model",
        lambda path: load_model(path) if path == "runs/all/last.pt" else colours,
    )
    (tmp_path / "a.pt").write_text("weights")

    def call(*flags):
        asked = ("--photos", folder, "--checkpoint", "a.pt", "--json", *flags)
        code, out, err = command(search, *asked)
        assert code == 0, err
        return [json.loads(line) for line in out.splitlines()]
    return call


@pytest.fixture
def read(monkeypatch):
    """The names of the photos that are opened."""
    opened = []
    load_image = photos.load_image
    monkeypatch.setattr(
        photos, "load_image", lambda path, size: opened.append(path.name) or load_image(path, size))
    return opened


def found(hits, folder):
    return [Path(hit["photo"]).relative_to(folder) for hit in hits]


# ---- the rule ----

def test_the_two_parts_by_hand():
    person, instruction = scores(torch.tensor([0.8, -0.4]), torch.tensor([0.2, 0.6]), 0.25)
    torch.testing.assert_close(person, torch.tensor([0.6, -0.3]))
    torch.testing.assert_close(instruction, torch.tensor([0.05, 0.15]))


def test_the_joined_features_have_the_sum_of_both_parts_as_their_cosine():
    torch.manual_seed(0)
    query, photo = torch.nn.functional.normalize(torch.randn(2, 5, 8), dim=2)
    wish, shown = torch.nn.functional.normalize(torch.randn(2, 5, 3), dim=2)
    first, second = scores((query * photo).sum(1), (wish * shown).sum(1), 0.3)
    both = torch.nn.functional.cosine_similarity(joined(query, wish, 0.3), joined(photo, shown, 0.3))
    torch.testing.assert_close(both, first + second)


def test_a_question_meets_the_views_it_is_compared_with():
    feats = {
        PERSON_SENTENCE: torch.tensor([[1.0, 0.0], [0.6, 0.8]]),
        UNINSTRUCTED: torch.tensor([[0.0, 1.0], [1.0, 0.0]]),
        CLOTHES: torch.tensor([[0.6, 0.8, 0.0], [0.0, 0.0, 1.0]]),
    }
    anna = torch.tensor([1.0, 0.0])
    red = torch.tensor([0.8, 0.6])
    coat = torch.tensor([0.0, 1.0, 0.0])

    def parts(person, instruction, view):
        question = Question("anna.jpg", person, instruction, PERSON_SENTENCE, view)
        return torch.stack(question.ask(feats, 0.5))

    both = parts(anna, red, UNINSTRUCTED)
    torch.testing.assert_close(both, torch.tensor([[0.5, 0.3], [0.3, 0.4]]))
    torch.testing.assert_close(parts(anna, None, None), torch.tensor([[1.0, 0.6], [0.0, 0.0]]))
    torch.testing.assert_close(parts(None, red, UNINSTRUCTED), torch.tensor([[0.0, 0.0], [0.6, 0.8]]))
    torch.testing.assert_close(parts(anna, coat, CLOTHES), torch.tensor([[0.5, 0.3], [0.4, 0.0]]))


def test_what_an_instruction_is(tmp_path):
    coat = tmp_path / "a coat"
    coat.touch()

    def understood(instruction, query=("anna.jpg",)):
        return search.understand(search.Config(query=query, instruction=instruction))

    assert understood(None) == (PERSON_SENTENCE, None)
    assert understood("in a red coat") == (PERSON_SENTENCE, UNINSTRUCTED)
    assert understood(str(coat)) == (PERSON_SENTENCE, CLOTHES)
    assert understood("do not change clothes") == ("do not change clothes", None)
    assert understood("do not change clothes", query=()) == (PERSON_SENTENCE, UNINSTRUCTED)


def test_clothes_are_the_photo_without_head_and_margins():
    image = torch.zeros(1, 3, 20, 10, dtype=torch.uint8)
    image[:, :, 4:, 1:9] = 200
    clothes = uninstructed.as_clothes(image, (8, 8))
    assert clothes.shape == (1, 3, 8, 8)
    torch.testing.assert_close(clothes, uninstructed.normalise(torch.full_like(clothes, 200)))


# ---- searches ----

def test_words_a_person_and_a_picture_of_clothes(ask, folder):
    by_words = ask("--instruction", "in green")
    assert found(by_words, folder)[0] == Path(NAMES["green"])
    assert by_words[0]["score"] == by_words[0]["from_instruction"] and by_words[0]["query"] is None

    shutil.copy(folder / NAMES["blue"], "blue.jpeg")
    by_person = ask("--query", "blue.jpeg", "--top", 2)
    assert found(by_person, folder)[0] == Path(NAMES["blue"])
    assert [hit["rank"] for hit in by_person] == [1, 2] and by_person[0]["from_instruction"] == 0

    flags = ("--query", "blue.jpeg", "--instruction", folder / NAMES["red"])
    by_clothes = ask(*flags, "--weight", 0.9)
    assert found(by_clothes, folder)[0] == Path(NAMES["red"])
    for hit in by_clothes:
        assert hit["score"] == pytest.approx(hit["from_person"] + hit["from_instruction"])


def test_several_queries_and_a_query_from_the_folder_is_not_its_own_hit(ask, folder):
    queries = [str(folder / NAMES[colour]) for colour in ("red", "grey")]
    hits = ask("--query", *queries)
    assert [hit["query"] for hit in hits] == [queries[0]] * 3 + [queries[1]] * 3
    assert all(hit["photo"] != hit["query"] for hit in hits)


def test_the_second_search_reads_nothing_and_a_later_one_what_is_new(ask, folder, read):
    first = ask("--instruction", "red")
    assert len(read) == 4 and (folder / "index.safetensors").is_file()
    assert not list(folder.glob("*.part"))

    read.clear()
    assert ask("--instruction", "red") == first and not read
    ask("--query", folder / NAMES["red"])
    ask("--instruction", folder / NAMES["red"])
    assert not read

    changed = folder / NAMES["green"]
    Image.new("RGB", (16, 32), PAINT["red"]).save(changed)
    shutil.copy(folder / NAMES["red"], folder / "new.jpg")
    (folder / NAMES["blue"]).unlink()
    hits = ask("--instruction", "red")
    assert sorted(read) == sorted([changed.name, "new.jpg"])
    assert len(hits) == 4 and [hit["score"] > 0.99 for hit in hits] == [True] * 3 + [False]

    read.clear()
    stat = changed.stat()
    os.utime(changed, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    ask("--instruction", "red")
    assert read == [changed.name]


def test_the_index_of_another_checkpoint_is_not_used(ask, read):
    ask("--instruction", "red")
    Path("a.pt").write_text("other weights")
    ask("--instruction", "red")
    assert len(read) == 8


def test_a_new_task_sentence_is_added_to_the_index(ask, folder, read):
    ask("--query", folder / NAMES["red"])
    ask("--query", folder / NAMES["red"], "--instruction", "do not change clothes")
    assert len(read) == 8
    ask("--query", folder / NAMES["red"])
    assert len(read) == 8
    with safe_open(folder / "index.safetensors", "pt") as index:
        assert set(index.keys()) == {PERSON_SENTENCE, UNINSTRUCTED, CLOTHES, "do not change clothes"}


def test_broken_files_are_named_and_skipped(folder, command, ask):  # noqa: F811
    (folder / "web page.jpg").write_text("<html>")
    (folder / "cut off.png").write_bytes((folder / NAMES["green"]).read_bytes()[:40])
    flags = ("--photos", folder, "--checkpoint", "a.pt", "--instruction", "red")
    code, out, err = command(search, *flags)
    assert code == 0 and len(out.strip().splitlines()) == 1 + 4
    skipped = [line for line in err.splitlines() if line.startswith("skipped: ")]
    assert len(skipped) == 2 and "cut off.png" in skipped[0] and "web page.jpg" in skipped[1]


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_names_that_are_no_unicode(folder, command, ask):  # noqa: F811
    raw = os.fsencode(folder) + b"/\xe9t\xe9.jpg"
    try:
        shutil.copy(folder / NAMES["red"], raw)
    except OSError:
        pytest.skip("this file system takes Unicode alone")
    flags = ("--photos", folder, "--checkpoint", "a.pt", "--instruction", "red", "--top", 2)
    code, out, err = command(search, *flags)
    assert code == 0, err
    names = [Path(hit["photo"]).name for hit in ask("--instruction", "red", "--top", 2)]
    assert os.fsdecode(b"\xe9t\xe9.jpg") in names


def test_the_index_can_lie_elsewhere(ask, folder, read):
    ask("--instruction", "red", "--index", "kept.safetensors")
    ask("--instruction", "red", "--index", "kept.safetensors")
    assert len(read) == 4 and not (folder / "index.safetensors").exists()


def test_text_shows_the_parts_of_a_score(folder, command, ask):  # noqa: F811
    flags = ("--photos", folder, "--checkpoint", "a.pt", "--query", folder / NAMES["red"])
    code, out, err = command(search, *flags, "--instruction", "green", "--explain", "--top", 1)
    title, line = out.strip().splitlines()
    assert title == f"{folder / NAMES['red']} + green"
    assert line.startswith("   1  ") and " person + " in line and line.endswith(".png")
    total, person, instruction = (float(line.split()[place]) for place in (1, 3, 6))
    assert total == pytest.approx(person + instruction, abs=0.0011)


@pytest.mark.parametrize("instruction", ("red", "picture", None))
def test_the_picture_has_ranks_and_no_frames(ask, folder, monkeypatch, instruction):
    monkeypatch.setattr(pictures, "_frame", None)  # to draw one would fail
    flags = ["--query", folder / NAMES["red"], folder / NAMES["blue"], "--out", "hits.png"]
    if instruction:
        flags += ["--instruction", folder / NAMES["green"] if instruction == "picture" else "red"]
    ask(*flags)
    picture = np.array(Image.open("hits.png").convert("RGB"), int)
    assert picture.shape[1] == pictures.WIDTH

    def has(colour):
        return (abs(picture - colour).max(2) < 12).sum() > 100

    assert all(has(PAINT[colour]) for colour in ("red", "blue", "grey"))


def test_a_real_checkpoint_on_drawn_people(tmp_path, command):  # noqa: F811
    toydata.make_toy(tmp_path / "toy", people=8, seed=0)
    torch.manual_seed(0)
    model = InstructReID("tiny", {"market": 2}, text=EmbeddedTextEncoder())
    config = {"size": "tiny", "editing": True, "feature": "fused", "task": "all", "data": "toy"}
    state = {"model": checkpoints.model_state(model), "config": config, "classes": {"market": 2}}
    checkpoints.save_checkpoint(tmp_path / "last.pt", state)

    crops = tmp_path / "toy" / "COCAS" / "real2" / "real_reid_image_face_blur"
    query = next(crops.rglob("*query.jpg"))
    flags = ["--photos", crops, "--checkpoint", "last.pt", "--query", query, "--json"]
    parts = []
    for instruction in ("in a red coat", query):
        code, out, err = command(search, *flags, "--instruction", instruction, "--out", "hits.png")
        assert code == 0, err
        hits = [json.loads(line) for line in out.splitlines()]
        assert [hit["rank"] for hit in hits] == list(range(1, len(hits) + 1))
        assert [hit["score"] for hit in hits] == sorted((h["score"] for h in hits), reverse=True)
        parts.append({hit["photo"]: hit["from_person"] for hit in hits})
    shared = parts[0].keys() & parts[1].keys()
    assert shared and all(parts[0][p] / 0.6 == pytest.approx(parts[1][p] / 0.7) for p in shared)


# ---- mistakes ----

@pytest.mark.parametrize("flags, words", (
    ((), ("--query", "--instruction")),
    (("--instruction", "  "), ("--instruction", "empty")),
    (("--instruction", "coat.jpg"), ("coat.jpg", "no such picture")),
    (("--query", "notes.txt"), ("cannot read image", "notes.txt")),
    (("--query", "nobody.jpg"), ("cannot read image", "nobody.jpg")),
    (("--instruction", "red", "--weight", 2), ("--weight 2.0",)),
    (("--instruction", "red", "--top", 0), ("--top 0",)),
    (("--instruction", "red", "--out", "nowhere/a.png"), ("--out", "nowhere")),
    (("--instruction", "red", "--index", "nowhere/a.safetensors"), ("nowhere", "--index")),
    (("--instruction", "red", "--index", "notes.txt"), ("notes.txt", "no index")),
    (("--instruction", "red", "--checkpoint", "runs/all/last.pt"), ("no checkpoint", "last.pt")),
))
def test_mistakes(folder, command, ask, read, flags, words):  # noqa: F811
    Path("notes.txt").write_text("no picture")
    result = command(search, "--photos", folder, "--checkpoint", "a.pt", *flags)
    one_line(result, *words)
    assert not read and not (folder / "index.safetensors").exists()


def test_folders_without_photos(command, tmp_path):  # noqa: F811
    one_line(command(search, "--instruction", "red"), "--photos")
    one_line(command(search, "--photos", "nowhere", "--instruction", "red"), "nowhere")
    (tmp_path / "empty").mkdir()
    one_line(command(search, "--photos", "empty", "--instruction", "red"), "empty", "no photo")


def test_a_folder_of_the_query_alone(ask, command, tmp_path):  # noqa: F811
    (tmp_path / "alone").mkdir()
    query = tmp_path / "alone" / "a.png"
    Image.new("RGB", (8, 16)).save(query)
    flags = ("--photos", "alone", "--checkpoint", "a.pt", "--query", query, "--out", "hits.png")
    one_line(command(search, *flags), "alone", "the query itself")


def test_a_folder_of_broken_files(ask, command, tmp_path):  # noqa: F811
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").write_text("no picture")
    flags = ("--photos", "broken", "--checkpoint", "a.pt", "--instruction", "red")
    one_line(command(search, *flags), "broken", "not one of its 1 photos")


def test_a_model_that_has_diverged_is_named():
    feats = {PERSON_SENTENCE: torch.tensor([[float("nan"), 0.0]])}
    question = Question(None, torch.ones(2), None, PERSON_SENTENCE, None)
    with pytest.raises(UserError, match="NaN"):
        search.hits_of(question, ".", [photos.Photo("a.jpg", 1, 1)], feats, 0.4, 10)
