"""Files of a run: damaged, foreign, of other data, on a full disk, without permission. Each is one
line that names the file, exit code 2, and nothing that was there is lost."""

import json
import random
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import evaluate
import train
from reid import checkpoints, cli, features, plots, runs
from reid.records import Dataset, Record
from tests.commands import Payload, call, one_line
from tests.test_model import TINY

LAST = "runs/a/last.pt"


@pytest.fixture(scope="module")
def world(drawn, bert, tmp_path_factory):
    """A folder with `data`, a run of one step on it, and its features."""
    folder = tmp_path_factory.mktemp("world")
    shutil.copytree(drawn / "Market-1501-v15.09.15", folder / "data/market")
    shutil.copy(drawn / "toy.json", folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(train.SIZES, "tiny", TINY)
        patch.chdir(folder)
        step = ("--data", "data", "--text-model", bert, "--steps", 1, "--ids", 4, "--images", 2)
        assert call(train, *step, "--name", "a") == 0
        assert call(evaluate, "--checkpoint", LAST, "--save-features", "f.safetensors") == 0
    return folder


@pytest.fixture
def here(world, tmp_path, monkeypatch):
    """The folder in which commands run, with a copy of `world`."""
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(train.SIZES, "tiny", TINY)
    return tmp_path


@pytest.fixture
def refused(here, command):
    """refused(module, flags, *words): one line with these words, exit code 2, no new file."""
    def check(module, flags, *words):
        before = sorted(here.rglob("*"))
        code, out, err = command(module, *flags)
        lines = [line for line in err.splitlines() if line.strip() and "%|" not in line]
        assert len(lines) == 1, err
        one_line((code, out, lines[0]), *words)
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
    for number in range(200):
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


@pytest.mark.parametrize("content, words", [
    (b"<html>404", "web page"), (b"PK\x03\x04 cut off", "not a checkpoint"),
    (None, "no such file"), (Payload, "refused")])
def test_a_file_that_is_no_checkpoint(content, words, command):
    if content is Payload:
        torch.save({"model": {}, "config": Payload()}, "x.pt")
    elif content is not None:
        Path("x.pt").write_bytes(content)
    for module, flag in ((evaluate, "--checkpoint"), (train, "--resume")):
        one_line(command(module, flag, "x.pt"), "x.pt", words)
    assert not Path("executed").exists()


def test_a_file_that_must_not_be_read_may_be_whole(here, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied", LAST)

    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(PermissionError):
        checkpoints.load(LAST)


# ---- foreign: what is in it was written by no run ----

MISSING = object()


def changed(state, path, value):
    """A checkpoint in which the entry at `path`, such as config/size, is another or missing."""
    part, _, key = path.partition("/")
    if key and isinstance(state[part], str):
        value = json.dumps(changed(json.loads(state[part]), key, value))
    elif key:
        value = changed(state[part], key, value)
    state = {**state, part: value}
    if value is MISSING:
        del state[part]
    return state


@pytest.mark.parametrize("path, value, words", [
    ("config", [], "config is"), ("config/data", 5, "config.data is 5, must be of type str"),
    ("config/amp", "int8", "config.amp is 'int8', must be one of"),
    ("config/feature", MISSING, "config.feature is None"), ("classes", ["a"], "classes is"),
    ("classes", {"market": 10**9}, r"must be \[1000000000, "), ("classes", {"a.b": 2}, ""),
    ("model/classifiers.market.weight", torch.ones(()), r"classifiers.market.weight is \[\], must"),
    ("model", {5: 5}, "model.5 is 5"), ("model/neck.weight", MISSING, "is absent, must be"),
    ("model/more", torch.ones(3), r"more is \[3\], must be absent"),
    ("model/neck.weight", torch.ones(3), r"neck.weight is \[3\], must be \["),
    ("parts", ["x"], ""), ("shape/dim", MISSING, ""), ("shape/depth", "x", ""),
    ("shape/depth", 10**9, "more than 200 layers"), ("shape/dim", 10**6, r"must be \[1000000\]"),
    ("shape/size", (64, 10**6), r"editor.pos is .*, must be \["), ("text", {}, ""),
    ("text/bert/vocab_size", 10**9, r"must be \[1000000000, "),
    ("text/bert/hidden_size", 12 * 10**5, r"must be \[1200000"),
    ("text/bert/num_hidden_layers", 10**9, "more than 200 layers"),
    ("pooling", MISSING, ""), ("cross", "[]", ""),
])
def test_a_checkpoint_that_no_run_wrote(path, value, words, world, tmp_path):
    """What it names is compared before memory is taken for it."""
    odd = tmp_path / "odd.pt"
    torch.save(changed(checkpoints.load(world / LAST), path, value), odd)
    with pytest.raises(cli.UserError, match=f"odd.pt.*{words}"):
        evaluate.load_model(odd)


@pytest.mark.parametrize("path, value", [
    ("step", 1.0), ("step", -1), ("data", {"market trad": 5}), ("optimisers", [{}]),
    ("optimisers", []), ("scaler", MISSING), ("rng", {}),
    ("rng/cpu", torch.ones(5)), ("data", MISSING), ("history", {}), ("config/workers", MISSING),
    ("config/unknown", 5), ("config/lr", None), ("config/val", "yes"), ("config/size", 5),
    ("shape/depth", "x"),
])
def test_a_checkpoint_with_which_no_run_goes_on(path, value, refused):
    torch.save(changed(checkpoints.load(LAST), path, value), "odd.pt")
    refused(train, ("--resume", "odd.pt"), "odd.pt")


@pytest.mark.parametrize("pending", [{"trad": 5}, {"trad": [[1, {"loss": "x"}]]}])
def test_a_log_takes_losses_alone(pending, tmp_path):
    with pytest.raises(cli.UserError, match="last.pt: its latest losses .*; use a last.pt"):
        runs.Log(tmp_path, 1, {"pending": pending, "seconds": 0.0})


def test_an_optimiser_takes_rates_and_moments_of_the_right_size_alone():
    weight = torch.nn.Parameter(torch.ones(3))
    optimiser = torch.optim.AdamW([weight], betas=(0.5, 0.6))
    weight.grad = torch.ones(3)
    optimiser.step()
    state = optimiser.state_dict()
    state["param_groups"] = [{"lr": 7, "betas": 5}]
    checkpoints.restore_optimiser(optimiser, state)
    [group] = optimiser.param_groups
    assert (group["lr"], group["betas"]) == (7, (0.5, 0.6))

    moments = state["state"][0]
    moments["exp_avg"] = torch.as_strided(torch.ones(3), (3,), (0,))  # one number three times
    checkpoints.restore_optimiser(optimiser, state)
    assert optimiser.state[weight]["exp_avg"].stride() == (1,)
    for moment in (torch.ones(2), torch.ones(())):
        wrong = state | {"state": {0: moments | {"exp_avg": moment}}}
        with pytest.raises(ValueError, match=r"exp_avg of \[2?\], must be \[3\]"):
            checkpoints.restore_optimiser(optimiser, wrong)
    del moments["exp_avg_sq"]
    with pytest.raises(KeyError, match="exp_avg_sq"):
        checkpoints.restore_optimiser(optimiser, state)


def test_features_that_nobody_saved(refused):
    with safe_open("f.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        notes = file.metadata()
    cases = [("of shape (2,)", tensors | {"flat": torch.ones(2)}, notes),
             ("'x'", tensors, notes | {"task": "x"})]
    for note in ("data", "task", "parts", "flip"):
        others = {name: notes[name] for name in notes if name != note}
        cases.append((f"no note of {note}", tensors, others))
    for words, *content in cases:
        save_file(content[0], "odd.safetensors", content[1])
        refused(evaluate, ("--checkpoint", "odd.safetensors"), "odd.safetensors", words)
    content = Path("f.safetensors").read_bytes()
    for some in (content[:-1], b"no tensors"):
        Path("odd.safetensors").write_bytes(some)
        refused(evaluate, ("--checkpoint", "odd.safetensors"), "odd.safetensors", "save them again")
    refused(evaluate, ("--checkpoint", "absent.safetensors"), "absent.safetensors: no such file")


# ---- a resume on other data ----

BOTH = {"market": (1, 1, 2), "ltcc": (7,)}  # data set -> whom each image shows


@pytest.mark.parametrize("now, words", [
    ({"market": (1, 1, 1), "ltcc": (7,)}, "market trad had 2 people, has 1"),
    ({"market": (1, 2), "ltcc": (7,)}, "market trad had 3 images, has 2"),
    ({"market": (1, 2, 2), "ltcc": (7,)}, "files and whom they show"),
    ({"market": (1, 1, 2)}, "ltcc trad had 1 people, has none"),
    (BOTH | {"cocas": (5,)}, "cocas trad had no people, has 1"),
])
def test_other_training_data_is_told_apart(now, words):
    def data_of(people):
        datasets = []
        for name, pids in people.items():
            records = [Record(name, "train", f"{n}.jpg", pid) for n, pid in enumerate(pids)]
            datasets.append(Dataset(name, name, "trad", None, records))
        return checkpoints.training_data(datasets)

    checkpoints.refuse_other_data(data_of(BOTH), data_of(BOTH), "last.pt")
    with pytest.raises(cli.UserError, match=f"last.pt .*{words}"):
        checkpoints.refuse_other_data(data_of(BOTH), data_of(now), "last.pt")


def test_a_resume_on_other_data_is_refused(refused):
    before = Path(LAST).read_bytes()
    image = sorted(Path("data/market/bounding_box_train").iterdir())[0]
    image.rename(image.with_name(f"{image.name[:-6]}99.jpg"))
    refused(train, ("--resume", LAST), LAST, "files and whom they show")
    assert Path(LAST).read_bytes() == before


# ---- the model alone ----

def test_the_model_alone_is_evaluated_and_cannot_go_on(refused):
    refused(checkpoints, (LAST, f"./{LAST}"), LAST, "name another file")
    assert call(checkpoints, LAST, "model.pt") == 0
    assert Path("model.pt").stat().st_size < Path(LAST).stat().st_size / 3
    refused(train, ("--resume", "model.pt"), "model.pt")
    whole, _ = evaluate.load_model(LAST)
    alone, _ = evaluate.load_model("model.pt")
    assert not alone.classifiers
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
    "last.pt": lambda path: checkpoints.save(path, {"weight": torch.randn(10_000)}),
    "log.jsonl": lambda path: runs.Log(path.parent).write_rows(1, [{"left": "x" * 9000}]),
    "picture.png": lambda path: plots.save(
        Image.effect_noise((99, 99), 90).convert("RGB"), path),
    "f.safetensors": lambda path: features.save_features(path, {"a": torch.randn(999, 9)}, {}),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_line_and_what_was_there_stays(name, tmp_path):
    path = tmp_path / name
    path.write_text("before")
    with file_limit(3000), pytest.raises(cli.UserError, match=f"{name} .File too large.; make"):
        WRITERS[name](path)
    assert path.read_text() == "before"
    assert {each.name for each in tmp_path.iterdir()} - {".lock"} == {name}
    WRITERS[name](path)
    assert path.stat().st_size > 3000


def test_a_file_in_the_way_when_a_run_begins(train_tiny):
    Path("runs").write_text("no folder")
    one_line(train_tiny("--task", "ctcc", "--name", "a"), "runs/a", "Not a directory")
