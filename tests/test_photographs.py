"""Photographs: where E_e starts from and which preset is taken, without being told."""

import shutil

import pytest

import train
from model import SIZES
from reid import checkpoints, weights
from reid.cli import UserError
from tests.commands import one_line
from tests.test_weights import BETTER, files  # noqa: F401, the latter is a fixture

LAST = "runs/all/last.pt"


@pytest.fixture(autouse=True)
def asked(monkeypatch, unfinished):
    """Nothing here waits for a network: the names that would have been fetched from the hub."""
    names = []

    def fetch(name):
        names.append(name)
        raise UserError(f"{name} cannot be fetched")

    monkeypatch.setattr(weights, "fetch", fetch)
    return names


@pytest.fixture
def start(drawn, command, tmp_path):
    """start(*flags, place=files) -> (stdout, config): one step on a copy of the drawn
    Market-1501 that does not say that it was drawn, with published files in ./weights/."""
    photographs = shutil.copytree(drawn / "Market-1501-v15.09.15", tmp_path / "market")

    def call(*flags, place=()):
        (tmp_path / "weights").mkdir()
        for path in place:
            shutil.copy(path, tmp_path / "weights")
        code, out, err = command(train, "--data", photographs, "--steps", 1, "--images", 2,
                                 "--workers", 0, "--name", "all", *flags)
        assert code == 0, err
        return out, checkpoints.load(LAST)["config"]
    return call


def test_photographs_with_published_weights(files, start, command, monkeypatch):  # noqa: F811
    """The best known file is taken, and a resume does not choose again."""
    out, config = start("--size", "tiny", place=(files["DeiT"], files["PASS"]))
    chosen = f"weights/{files['PASS'].name}"
    assert f"E_e starts from PASS in {chosen}, rather than DeiT in weights/" in out
    assert "preset paper: no toy.json: photographs" in out
    assert f"E_e: PASS in {chosen}" in out and "missing: none" in out
    assert config["vit_weights"] == chosen and config["ids"] == 12
    assert config["erase"] == train.PAPER["erase"]

    shutil.rmtree("weights")
    monkeypatch.delattr(weights, "choose")
    code, out, err = command(train, "--resume", LAST, "--steps", 2)
    assert code == 0 and "preset" not in out, err
    assert checkpoints.load(LAST)["config"] == config | {"steps": 2}
    assert "continues to step 2; the cosine is stretched" in out
    one_line(command(train, "--resume", LAST, "--steps", 1), "--steps 1: the run has 2")


def test_photographs_without_any(start, asked):
    out, config = start()
    line = f"E_e starts from scratch: no published weights fit --size base{BETTER}"
    assert out.splitlines()[1] == line and asked == [weights.HUB]
    assert "preset scratch: no toy.json: photographs" in out
    assert config["vit_weights"] is None and config["preset"] == "scratch"
    assert config["size"] == train.SCRATCH["size"]
    assert SIZES[config["size"]]["size"] == (128, 64)


@pytest.mark.parametrize("flag, preset", [("none", "scratch"), ("HAP", "paper")])
def test_none_asks_for_scratch_and_a_file_for_paper(files, start, flag, preset):  # noqa: F811
    path = files.get(flag, flag)
    out, _ = start("--size", "tiny", "--vit-weights", path, place=[files["PASS"]])
    assert f"preset {preset}" in out
    assert (f"E_e: HAP in {path}" in out) if flag == "HAP" else ("E_e" not in out)


def test_drawn_people_start_from_scratch_in_silence(train_tiny, asked):
    code, out, err = train_tiny("--task", "trad", "--steps", 1)
    assert code == 0, err
    assert out.startswith("preset toy") and "E_e" not in out and not asked
