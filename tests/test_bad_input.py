"""Bad input is one line that names the file or flag, exit code 2, and leaves nothing behind."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import data
import evaluate
import toydata.__main__
import train
from reid import checkpoints, cli
from tests.small_bert import write_bert
from tests.trees import put, text

PATIENCE = 60  # seconds until a command counts as hanging
STEP = ("--task", "t2i", "--text-model", "bert", "--steps", 1, "--ids", 2, "--images", 2)


def pedes(root):
    """CUHK-PEDES of two people to train and two to test on, as drawn data."""
    entries = []
    for pid, split in enumerate(("train", "train", "test", "test"), 1):
        file = f"{split}_query/{pid}.jpg"
        put(root, f"imgs/{file}")
        entry = {"split": split, "id": pid, "file_path": file, "captions": [f"person {pid}"]}
        entries.append(entry)
    text(root, "reid_raw.json", entries)
    text(root, "toy.json", {})
    return root


def call(module, *flags):
    """The exit code of a command in this process."""
    before = sys.argv
    sys.argv = [f"{module.__name__}.py", *map(str, flags)]
    try:
        cli.run(module.main, module.Config)
    except SystemExit as stop:
        return stop.code
    finally:
        sys.argv = before
    return 0


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with data, a small BERT, a run of one step on them, and its features."""
    folder = tmp_path_factory.mktemp("world")
    before = os.getcwd()
    os.chdir(folder)
    try:
        pedes(folder / "pedes")
        write_bert(folder / "bert")
        assert call(train, "--data", "pedes", "--name", "run", *STEP) == 0
        shutil.copy("runs/run/last.pt", "last.pt")
        shutil.rmtree("runs")
        flags = ("--checkpoint", "last.pt", "--save-features", "f.safetensors")
        assert call(evaluate, *flags) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def here(world, tmp_path, monkeypatch):
    """An own copy of `world`, in which commands run."""
    folder = tmp_path / "here"
    shutil.copytree(world, folder, ignore=shutil.ignore_patterns("last.pt"))
    os.link(world / "last.pt", folder / "last.pt")  # large, and no test writes into it
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def refused(here, capsys):
    """refused(module, flags, *words): one line with these words, exit code 2, no new file."""
    def hang(*_):
        pytest.fail("it hangs")

    def check(module, flags, *words):
        before = sorted(here.rglob("*"))
        capsys.readouterr()
        signal.signal(signal.SIGALRM, hang)
        signal.alarm(PATIENCE)
        code = call(module, *flags)
        signal.alarm(0)

        err = capsys.readouterr().err
        lines = [line for line in err.splitlines() if line.strip() and "%|" not in line]
        assert len(lines) == 1 and lines[0].startswith("error: "), err
        assert code == 2
        for word in words:
            assert str(word) in lines[0], lines[0]
        assert sorted(here.rglob("*")) == before
    return check


# ---- flags ----

@pytest.mark.parametrize("module,flag", [
    (evaluate, "--batch=0"), (evaluate, "--ap-window=0"), (evaluate, "--data="),
    (toydata.__main__, "--people=7"), (toydata.__main__, "--people=1000"),
    (toydata.__main__, "--sheet=sheet.txt"),
])
def test_flags_of_the_other_commands(module, flag, refused):
    refused(module, (flag,), flag.partition("=")[0])


@pytest.mark.parametrize("ratios", [
    "trad:0", "trad:-1", "foo:1", "t2i:x", "t2i", "t2i:1:2", "t2i:99999999999"])
def test_ratios(ratios, refused):
    refused(train, ("--data", "pedes", "--ratios", ratios, *STEP), "--ratios")


@pytest.mark.parametrize("flag", ["--data", "--resume"])
def test_a_path_that_is_too_long(flag, refused):
    refused(train, (flag, "n" * 300), "n" * 300)


@pytest.fixture
def beside(here):
    """LTCC and CUHK-PEDES in one folder."""
    put(here, "all/ltcc/query/1_1_c1_1.png", "all/ltcc/train/2_1_c1_1.png")
    put(here, *(f"all/ltcc/test/1_{outfit}_c2_1.png" for outfit in (1, 2)))
    pedes(here / "all/pedes")
    text(here, "all/toy.json", {})
    return here / "all"


def test_a_protocol_without_a_task_is_that_of_the_sets_that_have_it(beside, refused, capsys):
    flags = ("--checkpoint", "last.pt", "--data", beside, "--task", "all")
    assert call(evaluate, *flags, "--protocol", "cc") == 0
    out = capsys.readouterr().out
    assert "LTCC" in out and "PEDES" not in out
    refused(evaluate, (*flags, "--protocol", "no-such"), "no-such", "it has")


def test_a_ranking_that_the_saved_features_lack(beside, refused):
    flags = ("--checkpoint", "f.safetensors", "--data", beside, "--task", "cc")
    refused(evaluate, (*flags, "--rank-list", "r.png"), "give --checkpoint the last.pt")


@pytest.mark.parametrize("target", ["empty", "nothing"])
def test_drawing_into_a_link(target, here, capsys):
    if target == "empty":
        Path("empty").mkdir()
    Path("link").symlink_to(target)
    assert call(toydata.__main__, "--out", "link", "--people", 8) == 0
    assert Path("link").is_symlink() and Path(target, "toy.json").is_file()


def test_the_commands_say_what_a_reader_says(here, refused):
    text(here, "pedes/reid_raw.json", [])
    for module in (data, train):
        flags = ("pedes",) if module is data else ("--data", "pedes", *STEP)
        refused(module, flags, "reid_raw.json: empty split")


# ---- permission ----

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


@pytest.mark.parametrize("path", ["pedes", "pedes/reid_raw.json", "all/other", "own.pt"])
def test_no_permission_to_read(path, here, refused, as_nobody):
    pedes(here / "all/pedes")
    Path("all/other").mkdir()
    shutil.copy("last.pt", "own.pt")
    Path(path).chmod(0)
    as_nobody()
    if path == "own.pt":
        refused(evaluate, ("--checkpoint", path, "--data", "pedes"), path, "ermission")
        refused(train, ("--resume", path), path, "ermission")
    else:
        refused(data, (path.split("/")[0],), path, "ermission")


def test_no_permission_to_write_runs(here, refused, as_nobody):
    Path("runs").mkdir(0o555)
    Path("bert/model.safetensors").chmod(0o644)
    as_nobody()
    refused(train, ("--data", "pedes", *STEP), "runs", "ermission")


def test_runs_is_a_file(here, refused):
    Path("runs").write_text("")
    refused(train, ("--data", "pedes", *STEP), "runs")


# ---- images ----

def test_a_pipe_is_no_image(here, refused):
    image = Path("pedes/imgs/test_query/3.jpg")
    image.unlink()
    os.mkfifo(image)
    refused(evaluate, ("--checkpoint", "last.pt"), image)


# ---- checkpoints ----

MISSING = object()


def changed(state, path, value):
    """A checkpoint in which the entry at `path`, such as config.size, is another or missing."""
    part, _, key = path.partition(".")
    if key:
        value = changed(state[part], key, value)
    state = {**state, part: value}
    if value is MISSING:
        del state[part]
    return state


@pytest.mark.parametrize("path,value", [
    ("config", 5), ("config", []), ("config.size", "huge"), ("config.size", 5),
    ("config.size", MISSING), ("config.size", torch.ones(3)), ("config.feature", MISSING),
    ("config.feature", "other"), ("config.task", "sing"), ("config.editing", "yes"),
    ("config.data", 5), ("config.amp", "int8"), ("classes", MISSING), ("classes", {}),
    ("classes", ["a"]), ("classes", {"cuhk-pedes": "x"}), ("classes", {"cuhk-pedes": -1}),
    ("classes", {"a.b": 2}), ("classes", {"cuhk-pedes": 3}), ("model", []), ("model", {5: 5}),
    ("model.log_temperature", 5), ("model.log_temperature", MISSING), ("published", 5),
    ("published", {"shape": 5}), ("published", {"shape": {"picture_depth": "x"}}),
    ("published.text", 5), ("published.text", {}), ("published.cross", "[]"),
])
def test_a_checkpoint_that_no_run_wrote(path, value, here, refused):
    state = checkpoints.load_checkpoint("last.pt")
    state["optimiser"]["state"] = {}  # large, and not read
    torch.save(changed(state, path, value), "odd.pt")
    refused(evaluate, ("--checkpoint", "odd.pt"), "odd.pt")
    refused(train, ("--resume", "odd.pt"), "odd.pt")


@pytest.mark.parametrize("path,value", [
    ("step", MISSING), ("step", -5), ("step", 2), ("step", 1.0), ("optimiser", MISSING),
    ("optimiser", {}), ("scaler", MISSING), ("rng", MISSING), ("rng", {}),
    ("rng.cpu", torch.ones(5)), ("rng.cpu", torch.ones(5, dtype=torch.uint8)),
    ("config.workers", MISSING), ("config.unknown", 5),
    ("config.steps", "x"), ("config.lr", None), ("config.lr", -1), ("config.ratios", 5),
    ("config.val", "yes"), ("config.mining", "none"), ("config.name", 5),
])
def test_a_checkpoint_with_which_no_run_goes_on(path, value, here, refused):
    state = checkpoints.load_checkpoint("last.pt")
    state["optimiser"]["state"] = {}  # large, and not read
    torch.save(changed(state, path, value), "odd.pt")
    refused(train, ("--resume", "odd.pt"), "odd.pt")


@pytest.mark.parametrize("key,value", [
    ("auto_map", {"AutoModel": "evil--code.Model"}), ("quantization_config", {"bits": 4}),
    ("hidden_size", "x"), ("hidden_act", "none"), ("num_attention_heads", 0),
])
def test_a_text_model_inside_a_checkpoint(key, value, here, refused):
    state = checkpoints.load_checkpoint("last.pt")
    text_part = dict(state["published"]["text"])
    text_part["bert"] = json.dumps({**json.loads(text_part["bert"]), key: value})
    torch.save(changed(state, "published.text", text_part), "odd.pt")
    refused(evaluate, ("--checkpoint", "odd.pt"), "odd.pt")


def test_a_checkpoint_cannot_choose_the_attention(here):
    state = checkpoints.load_checkpoint("last.pt")
    text_part = dict(state["published"]["text"])
    config = json.loads(text_part["bert"])
    for key in ("attn_implementation", "_attn_implementation"):
        config[key] = "evil/kernel"
    text_part["bert"] = json.dumps(config)
    torch.save(changed(state, "published.text", text_part), "odd.pt")
    model, _ = checkpoints.load_model("odd.pt")
    assert model.encoder.text.bert.config._attn_implementation == "sdpa"


# ---- features ----

PAIR = "cuhk-pedes/t2i/"


def saved(path):
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()


def odd_features(how, tensors, notes):
    """Changes what a features file holds."""
    gallery = next(key for key in tensors if key.startswith(f"{PAIR}gallery/"))
    nearest = f"{PAIR}matching/nearest"
    scores = f"{PAIR}matching/scores"
    if how == "too few rows":
        tensors[gallery] = tensors[gallery][1:].clone()
    if how == "too many rows":
        tensors[gallery] = tensors[gallery].repeat(2, 1)
    if how == "one dimension":
        tensors[gallery] = tensors[gallery][:, 0].clone()
    if how == "other width":
        tensors[gallery] = tensors[gallery][:, 1:].clone()
    if how == "index out of range":
        tensors[nearest] = tensors[nearest] + 1
    if how == "index below 0":
        tensors[nearest] = tensors[nearest] - 1
    if how == "index is no number":
        tensors[nearest] = tensors[nearest].float()
    if how == "matching of fewer":
        for key in (nearest, scores):
            tensors[key] = tensors[key][1:].clone()
    if how == "no scores":
        del tensors[scores]
    if how == "fewer scores":
        tensors[scores] = tensors[scores][:, :1].clone()
    if how in notes:
        del notes[how]
    if how == "other task":
        notes["task"] = "sing"


@pytest.mark.parametrize("how", [
    "too few rows", "too many rows", "one dimension", "other width", "index out of range",
    "index below 0", "index is no number", "matching of fewer", "no scores", "fewer scores",
    "data", "task", "feature", "flip", "other task",
])
def test_features_that_nobody_saved(how, here, refused):
    tensors, notes = saved("f.safetensors")
    odd_features(how, tensors, notes)
    save_file(tensors, "odd.safetensors", notes)
    refused(evaluate, ("--checkpoint", "odd.safetensors"), "save them again")
