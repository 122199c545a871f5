"""Photographs: where E_e starts from and which preset is taken, without being told."""

import shutil

import pytest

import train
from model import SIZES
from reid import checkpoints, weights
from reid.cli import UserError
from tests.test_train import FAST, command, drawn, one_line  # noqa: F401, two of them are fixtures
from tests.test_weights import BETTER, files  # noqa: F401, the latter is a fixture


@pytest.fixture(autouse=True)
def asked(monkeypatch):
    """Nothing here waits for a network: the names that would have been fetched from the hub."""
    names = []

    def fetch(name):
        names.append(name)
        raise UserError(f"{name} cannot be fetched")
    monkeypatch.setattr(weights, "fetch", fetch)
    return names


@pytest.fixture
def photographs(drawn, tmp_path):
    """A copy of the drawn Market-1501 that does not say that it was drawn: 12 people to train on."""
    folder = tmp_path / "market"
    shutil.copytree(drawn / "Market-1501-v15.09.15", folder)
    return folder


def place(tmp_path, *paths):
    """Copies files into ./weights/ of a test's folder."""
    folder = tmp_path / "weights"
    folder.mkdir(exist_ok=True)
    for path in paths:
        shutil.copy(path, folder)


# ---- the command ----

def test_photographs_with_published_weights(files, photographs, command, tmp_path):
    place(tmp_path, files["DeiT"], files["PASS"])
    flags = ("--data", photographs, "--size", "tiny", "--steps", 1, "--images", 2, "--workers", 0,
             "--name", "all")
    code, out, err = command(train, *flags)
    assert code == 0, err
    chosen = f"weights/{files['PASS'].name}"
    assert f"E_e starts from PASS in {chosen}, rather than DeiT in weights/" in out
    assert "preset paper: no toy.json: photographs" in out
    assert f"E_e: PASS in {chosen}" in out and "missing: none" in out
    assert "1 steps of 12 identities x 2 images, size tiny (64x32)" in out
    config = checkpoints.load("runs/all/last.pt")["config"]
    assert config["vit_weights"] == chosen and config["ids"] == 12 and config["erase"] == 0.5


def test_photographs_without_any(photographs, command, asked):
    code, out, err = command(train, "--data", photographs, "--steps", 1, "--images", 2, "--name", "all")
    assert code == 0, err
    line = f"E_e starts from scratch: no published weights fit --size base{BETTER}"
    assert out.splitlines()[1] == line and asked == [weights.HUB]
    assert "preset scratch: no toy.json: photographs" in out
    assert "size tiny-128 (128x64) from scratch" in out
    config = checkpoints.load("runs/all/last.pt")["config"]
    assert config["vit_weights"] is None and config["preset"] == "scratch"


def test_none_asks_for_scratch_and_a_file_for_paper(files, photographs, command, tmp_path):
    place(tmp_path, files["PASS"])
    flags = ("--data", photographs, "--size", "tiny", "--steps", 1, "--images", 2, "--workers", 0,
             "--name", "all")
    code, out, err = command(train, *flags, "--vit-weights", "none")
    assert code == 0 and "preset scratch" in out and "E_e" not in out, err
    code, out, err = command(train, *flags, "--vit-weights", files["HAP"])
    assert code == 0 and "preset paper" in out and f"E_e: HAP in {files['HAP']}" in out, err


def test_drawn_people_start_from_scratch_in_silence(files, drawn, command, tmp_path, asked):
    place(tmp_path, files["PASS"])
    code, out, err = command(train, "--data", drawn, "--task", "trad", "--steps", 1, *FAST)
    assert code == 0, err
    assert out.startswith("preset toy") and "E_e" not in out and not asked


def test_ids_that_were_asked_for_are_not_lowered(photographs, command):
    one_line(command(train, "--data", photographs, "--ids", 64), "--ids 64", "12 identities")


def test_resume_does_not_choose_again(files, photographs, command, tmp_path, monkeypatch):
    place(tmp_path, files["PASS"])
    flags = ("--data", photographs, "--size", "tiny", "--steps", 2, "--images", 2, "--workers", 0,
             "--name", "all")
    assert command(train, *flags)[0] == 0
    shutil.rmtree(tmp_path / "weights")
    monkeypatch.delattr(weights, "choose")
    path = "runs/all/last.pt"
    state = checkpoints.load(path)
    state["config"]["steps"] = 3
    checkpoints.save(path, state)
    code, out, err = command(train, "--resume", path)
    assert code == 0 and "preset" not in out, err
    after = checkpoints.load(path)
    assert after["step"] == 3 and after["config"] == state["config"]


def test_a_checkpoint_from_before_these_flags_goes_on(drawn, command):
    flags = ("--data", drawn, "--task", "trad", "--name", "trad", "--steps", 2, *FAST)
    assert command(train, *flags)[0] == 0
    path = "runs/trad/last.pt"
    state = checkpoints.load(path)
    del state["config"]["new_lr"]
    assert state["config"]["vit_weights"] is None
    state["config"]["steps"] = 3
    checkpoints.save(path, state)
    code, _, err = command(train, "--resume", path)
    assert code == 0, err


# ---- the rates ----

def test_what_no_file_brought_moves_at_its_own_rate(files):
    flags = dict(size="tiny", vit_weights=str(files["DeiT"]), weight_decay=0.1)
    config = train.Config(**flags, gate_lr=7.0, new_lr=10.0)
    model, _ = train.build_model(config, {"market": 5})
    scales = scales_of(model, config)
    assert scales["editor.pos"] == scales["editor.prefix"] == scales["editor.embed.weight"] == 1
    assert scales["editor.blocks.0.attn.q.weight"] == scales["editor.norm.bias"] == 1
    assert scales["editor.blocks.0.attn.k_instr.weight"] == 10
    assert scales["editor.blocks.1.attn.v_instr.bias"] == 10
    assert scales["editor.blocks.0.attn.gate"] == 7
    rest = {name: scale for name, scale in scales.items() if not name.startswith("editor.")}
    assert set(rest.values()) == {10}
    parts = {name.split(".")[0] for name in rest}
    assert {"encoder", "attention", "classifiers", "neck", "text_head"} <= parts

    config = train.Config(**flags, gate_lr=7.0, new_lr=1.0)
    assert len(train.parameter_groups(model, config)) == 3
    assert set(scales_of(model, config).values()) == {1, 7}


def test_what_albef_brought_moves_at_the_rate_of_what_is_loaded(files):
    config = train.Config(
        size="tiny", vit_weights=None, albef=str(files["ALBEF"]), train_text=True,
        weight_decay=0.1, gate_lr=10.0, new_lr=10.0)
    model, _ = train.build_model(config, {"market": 5})
    for name, scale in scales_of(model, config).items():
        brought = name.startswith(("encoder.text.", "cross."))
        assert scale == (1 if brought else 10), name


def scales_of(model, config):
    """{name of a parameter that learns: its rate in multiples of lr}; every one is there once."""
    names = {p: name for name, p in model.named_parameters() if p.requires_grad}
    scales = {}
    for group in train.parameter_groups(model, config):
        for p in group["params"]:
            scales[names.pop(p)] = group["scale"]
    assert not names
    return scales


# ---- the size, and the time ----

def test_the_preset_of_photographs_has_a_size_and_an_early_figure():
    preset = train.PRESETS["scratch"]
    assert SIZES[preset["size"]]["size"] == (128, 64)
    assert preset["evaluate_every"] * 5 == preset["steps"]
    assert all(preset.keys() == each.keys() for each in train.PRESETS.values())


@pytest.mark.parametrize("seconds,words", [
    (40, "about 40 seconds to go"), (840, "about 14 minutes to go"), (9000, "about 2.5 hours to go")])
def test_the_time_to_go(seconds, words):
    assert train.time_to_go(seconds) == words
