"""Files of a run: damaged, foreign, of other data, on a full disk, without permission. Each is one
line that names the file, exit code 2, and nothing that was there is lost."""

import json
import os
import random
import re
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import data
import evaluate
import toydata
import train
from reid import checkpoints, cli, features, files, pictures, runs
from reid.records import Dataset, Record
from tests.commands import Payload, call, one_line
from tests.test_model import TINY

STEP = ("--data", "data", "--text-model", "bert", "--steps", 1, "--ids", 4, "--images", 2)
LAST = "runs/a/last.pt"


@pytest.fixture(scope="module")
def world(drawn, bert, tmp_path_factory):
    """A folder with `data` (Market-1501, LTCC), a small BERT, a run of one step, its features."""
    folder = tmp_path_factory.mktemp("world")
    for name in ("Market-1501-v15.09.15", "LTCC_ReID"):
        shutil.copytree(drawn / name, folder / "data" / name)
    shutil.copy(drawn / "toy.json", folder / "data")
    shutil.copytree(bert, folder / "bert")
    for path in (folder / "bert", *(folder / "bert").iterdir()):
        path.chmod(path.stat().st_mode | 0o055)  # for `as_nobody`
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(train.SIZES, "tiny", TINY)
        patch.chdir(folder)
        assert call(train, *STEP, "--name", "a") == 0
        flags = ("--checkpoint", LAST, "--task", "trad", "--save-features", "f.safetensors")
        assert call(evaluate, *flags) == 0
    return folder


@pytest.fixture
def here(world, tmp_path, monkeypatch):
    """An own copy of `world`, in which commands run."""
    folder = tmp_path / "here"
    shutil.copytree(world, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setitem(train.SIZES, "tiny", TINY)
    return folder


@pytest.fixture
def refused(here, capsys):
    """refused(module, flags, *words): one line with these words, exit code 2, no new file."""
    def check(module, flags, *words):
        before = sorted(here.rglob("*"))
        capsys.readouterr()
        code = call(module, *flags)
        err = capsys.readouterr().err
        lines = [line for line in err.splitlines() if line.strip() and "%|" not in line]
        assert len(lines) == 1, err
        one_line((code, "", lines[0]), *words)
        assert sorted(here.rglob("*")) == before
    return check


# ---- damaged ----

def test_every_flipped_bit_and_every_cut_is_noticed(tmp_path):
    path = tmp_path / "last.pt"
    state = {"model": {"weight": torch.randn(300)}}
    state |= {"config": {}, "classes": {}, "shape": {}, "parts": []}
    checkpoints.save(path, state)
    content = path.read_bytes()
    rng = random.Random(0)
    for number in range(400):
        flipped = bytearray(content)
        flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        try:
            found = checkpoints.load(path)
        except cli.UserError as error:
            assert "last.pt" in str(error)
        else:  # in what a zip file says of times and padding
            assert torch.equal(found["model"]["weight"], state["model"]["weight"]), number
    for cut in (0, 1, 100, len(content) - 71, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(cli.UserError, match="last.pt"):
            checkpoints.load(path)


@pytest.mark.parametrize("content", [b"", b"<html>404", b"PK\x03\x04 cut off", None, Payload])
def test_a_file_that_is_no_checkpoint(content, here, refused):
    if content is Payload:
        torch.save({"model": {}, "config": Payload()}, "x.pt")
    elif content is not None:
        Path("x.pt").write_bytes(content)
    words = {Payload: "refused", None: "no such file", b"<html>404": "web page"}
    word = words.get(content, "not a checkpoint")
    refused(evaluate, ("--checkpoint", "x.pt"), "x.pt", word)
    refused(train, ("--resume", "x.pt"), "x.pt", word)
    assert not Path("executed").exists()


# ---- foreign: what is in it was written by no run ----

MISSING = object()


def changed(state, path, value):
    """A checkpoint in which the entry at `path`, such as config/size, is another or missing."""
    part, _, key = path.partition("/")
    if key:
        value = changed(state[part], key, value)
    state = {**state, part: value}
    if value is MISSING:
        del state[part]
    return state


@pytest.mark.parametrize("path, value", [
    ("config", []), ("config/amp", "int8"), ("config/feature", "both"),
    ("config/feature", MISSING), ("config/task", "sing"), ("config/data", 5),
    ("classes", MISSING), ("classes", ["a"]), ("classes", {"market": 10**9}),
    ("classes", {"a.b": 2}), ("classes", {"market": 3, "ltcc": 12}), ("model", {5: 5}),
    ("model/neck.weight", 5), ("model/neck.weight", MISSING),
    ("model/classifiers.market.weight", torch.ones(())), ("parts", MISSING), ("parts", ["x"]),
    ("model/neck.weight", torch.ones(3)), ("model/more", torch.ones(3)), ("shape", MISSING),
    ("shape/dim", MISSING), ("shape/depth", "x"), ("text", 5), ("text", MISSING), ("text", {}),
    ("pooling", MISSING), ("cross", "[]"),
])
def test_a_checkpoint_that_no_run_wrote(path, value, here, refused):
    state = checkpoints.load(LAST)
    torch.save(changed(state, path, value), "odd.pt")
    words = ["odd.pt"]
    if path.startswith("config/") and value is not MISSING:
        words.append(f"{path.replace('/', '.')} is {value!r}, must be o")
    refused(evaluate, ("--checkpoint", "odd.pt"), *words)
    refused(train, ("--resume", "odd.pt"), *words)


@pytest.mark.parametrize("path, value", [
    ("shape/depth", 10**4), ("shape/dim", 10**6), ("shape/size", (64, 10**6))])
def test_numbers_are_compared_before_a_model_allocates_them(path, value, here):
    torch.save(changed(checkpoints.load(LAST), path, value), "odd.pt")
    with pytest.raises(cli.UserError, match=f"no {path[6:]} of {re.escape(str(value))}"):
        checkpoints.load("odd.pt")


@pytest.mark.parametrize("path, value", [
    ("step", MISSING), ("step", 1.0), ("optimisers", {}), ("optimisers", [{}]), ("optimisers", []),
    ("scaler", MISSING), ("rng", {}), ("rng/cpu", torch.ones(5)), ("data", MISSING),
    ("history", {}), ("config/workers", MISSING), ("config/unknown", 5), ("config/steps", "x"),
    ("config/lr", None), ("config/lr", -1), ("config/val", "yes"), ("config/mining", "none"),
    ("config/amp", "int8"), ("config/editing", "yes"),
    ("config/size", 5),
])
def test_a_checkpoint_with_which_no_run_goes_on(path, value, here, refused):
    state = checkpoints.load(LAST)
    torch.save(changed(state, path, value), "odd.pt")
    refused(train, ("--resume", "odd.pt"), "odd.pt")


@pytest.mark.parametrize("key, value", [
    ("auto_map", {"AutoModel": "evil--code.Model"}), ("quantization_config", {"bits": 4}),
    ("hidden_size", "x"), ("hidden_act", "none"), ("attn_implementation", "evil/kernel"),
])
def test_a_text_model_inside_a_checkpoint_chooses_no_code(key, value, here, refused):
    state = checkpoints.load(LAST)
    bert = json.dumps({**json.loads(state["text"]["bert"]), key: value})
    torch.save(changed(state, "text/bert", bert), "odd.pt")
    if key == "attn_implementation":
        model, _ = evaluate.load_model("odd.pt")
        assert model.encoder.text.bert.config._attn_implementation == "sdpa"
    else:
        refused(evaluate, ("--checkpoint", "odd.pt"), "odd.pt")


@pytest.mark.parametrize("note", ["data", "task", "parts", "flip", None])
def test_features_that_nobody_saved(note, here, refused):
    if note is None:
        content = Path("f.safetensors").read_bytes()
        Path("odd.safetensors").write_bytes(content[:-1])
    else:
        with safe_open("f.safetensors", "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}
            notes = file.metadata()
        save_file(tensors, "odd.safetensors", notes | {"task": "x"})
        refused(evaluate, ("--checkpoint", "odd.safetensors"), "odd.safetensors", "'x'")
        del notes[note]
        save_file(tensors, "odd.safetensors", notes)
    refused(evaluate, ("--checkpoint", "odd.safetensors"), "odd.safetensors", "save them again")


# ---- a resume on other data ----

def of_a_person():
    """The files of the first person of Market-1501."""
    folder = Path("data/Market-1501-v15.09.15/bounding_box_train")
    pid = sorted(folder.iterdir())[0].name[:4]
    return sorted(folder.glob(f"{pid}_*"))


def one_person_less(drawn):
    for file in of_a_person():
        file.unlink()


def one_image_less(drawn):
    of_a_person()[0].unlink()


def another_number(drawn):
    for file in of_a_person():
        file.rename(file.with_name(f"1400{file.name[4:]}"))


def another_name(drawn):
    file = of_a_person()[0]
    file.rename(file.with_name(f"{file.name[:-6]}99.jpg"))


def one_set_less(drawn):
    shutil.rmtree("data/LTCC_ReID")


def one_set_more(drawn):
    shutil.copytree(drawn / "COCAS", "data/COCAS")


@pytest.mark.parametrize("change, words", [
    (one_person_less, "market trad had 12 people, has 11"),
    (one_image_less, "market trad had 72 images, has 71"),
    (another_number, "files and whom they show"), (another_name, "files and whom they show"),
    (one_set_less, "ltcc cc had 12 people, has none"),
    (one_set_more, "cocas ctcc had no people, has 12"),
])
def test_a_resume_on_other_data_is_refused(change, words, drawn, here, refused):
    before = Path(LAST).read_bytes()
    change(drawn)
    refused(train, ("--resume", LAST), LAST, words)
    assert Path(LAST).read_bytes() == before


def test_the_same_files_of_other_people_are_other_data():
    def data_of(*pids):
        records = [Record("mine", "train", f"{n}.jpg", pid) for n, pid in enumerate(pids)]
        return checkpoints.training_data([Dataset("mine", "Mine", "trad", None, records)])

    assert data_of(1, 1, 2) == data_of(1, 1, 2) != data_of(1, 2, 2)


# ---- the model alone ----

def test_the_model_alone_is_evaluated_and_cannot_go_on(here, refused, capsys):
    refused(checkpoints, (LAST, f"./{LAST}"), LAST, "name another file")
    assert call(checkpoints, LAST, "model.pt") == 0
    assert Path("model.pt").stat().st_size < Path(LAST).stat().st_size / 3
    refused(train, ("--resume", "model.pt"), "model.pt")
    whole, _ = evaluate.load_model(LAST)
    alone, config = evaluate.load_model("model.pt")
    assert config["task"] == "all" and not alone.classifiers
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(value, whole.state_dict()[name], rtol=1e-3, atol=1e-3)


# ---- a full disk, and what is in the way ----

@contextmanager
def file_limit(size):
    """No file can grow beyond `size` bytes: what a full disk says, without filling one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


WRITERS = {
    "last.pt": lambda path: checkpoints.save(path, {"weight": torch.randn(1000)}),
    "log.jsonl": lambda path: runs.Log(path.parent).write_rows(1, [{"left": "x" * 1000}]),
    "config.json": lambda path: files.write_text(path, "x" * 1000),
    "picture.png": lambda path: pictures.save(
        Image.effect_noise((64, 64), 90).convert("RGB"), path),
    "f.safetensors": lambda path: features.save_features(path, {"a": torch.randn(99, 9)}, {}),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_line_and_what_was_there_stays(name, tmp_path):
    path = tmp_path / name
    path.write_text("before")
    with file_limit(500), pytest.raises(cli.UserError, match=f"{name}: File too large; make room"):
        WRITERS[name](path)
    assert path.read_text() == "before"
    WRITERS[name](path)
    assert path.stat().st_size > 500
    assert {each.name for each in tmp_path.iterdir()} - {".lock"} == {name}


def test_a_full_disk_while_drawing_leaves_nothing(tmp_path):
    with file_limit(500), pytest.raises(cli.UserError, match="toy: File too large"):
        toydata.make_toy(tmp_path / "toy", people=8, workers=1)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_or_a_file_in_the_way_when_a_run_begins(train_tiny):
    flags = ("--task", "ctcc", "--steps", 2, "--name", "a")
    with file_limit(500):
        one_line(train_tiny(*flags), "config.json", "File too large")
    shutil.rmtree("runs")
    Path("runs").write_text("no folder")
    one_line(train_tiny(*flags), "runs/a", "Not a directory")


@pytest.fixture
def as_nobody(here):
    """as_nobody(): from here on as a user whom permissions bind, which they do not root."""
    def change():
        if os.geteuid() == 0:
            for folder in (here, *list(here.parents)[:4]):
                folder.chmod(folder.stat().st_mode | 0o055)
            os.seteuid(65534)

    me = os.geteuid()
    yield change
    os.seteuid(me)


@pytest.mark.parametrize("path", ["data", "runs/a", "runs"])
def test_no_permission(path, here, refused, as_nobody):
    Path(path).chmod(0o555 if path == "runs" else 0)
    as_nobody()
    if path == "runs/a":
        refused(evaluate, ("--checkpoint", LAST), LAST, "ermission")
        refused(train, ("--resume", LAST), LAST, "ermission")
    elif path == "runs":
        refused(train, STEP, "runs", "ermission")
    else:
        refused(data, ("data",), path, "ermission")
