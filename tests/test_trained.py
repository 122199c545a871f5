"""The model that comes with the code: small, the model alone, and taken before the first run."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import evaluate
import search
import toydata
from model import InstructReID
from reid import checkpoints
from reid.images import normalise
from reid.text import EmbeddedTextEncoder
from tests.test_train import command, one_line  # noqa: F401  (command is a fixture)

MEGABYTES = 6


def test_the_shipped_model_is_small_and_nothing_but_a_model():
    assert checkpoints.DRAWN.stat().st_size <= MEGABYTES * 1e6
    state = checkpoints.load_checkpoint(checkpoints.DRAWN)
    assert state.keys() <= {"config", "published", "step", "classes", "model"} and state["classes"] == {}
    assert state["config"]["data"] == toydata.TOY and state["config"]["task"] == "all"
    for name, value in state["model"].items():
        assert not value.is_floating_point() or value.dtype == torch.float16, name
        assert not name.startswith("encoder.text."), "the text tower comes from a package"


def a_checkpoint(path):
    """A model whose norms have seen something, and its checkpoint with what training needs."""
    torch.manual_seed(0)
    model = InstructReID("tiny", {"market": 5}, text=EmbeddedTextEncoder()).train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, 3, 64, 32), model.instruct(["change your clothes"]))
    config = {"size": "tiny", "editing": True, "feature": "edit", "task": "all", "data": "./toy"}
    checkpoints.save_checkpoint(path, {
        "config": config,
        "classes": {"market": 5},
        "model": checkpoints.model_state(model),
        "optimiser": {"state": torch.zeros(1000)},
    })
    return model.eval()


def test_the_model_alone_ranks_as_the_checkpoint_does(command, tmp_path):  # noqa: F811
    model = a_checkpoint(tmp_path / "last.pt")
    code, out, err = command(checkpoints, "last.pt", "small.pt")
    assert code == 0 and "wrote small.pt" in out, err
    small, config = checkpoints.load_model("small.pt")
    assert config["data"] == "./toy" and not small.classifiers

    images = normalise(torch.randint(0, 256, (6, 3, 64, 32), dtype=torch.uint8))
    with torch.inference_mode():
        for sentence in (None, "change your clothes"):
            instr = model.instruct(sentence and [sentence])
            similarity = (model.embed(images, instr) * small.embed(images, instr)).sum(1)
            assert similarity.min() > 0.9999, "half precision moves the features"
    one_line(command(checkpoints, "nowhere.pt", "small.pt"), "no checkpoint at nowhere.pt")


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for place, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (32, 64), colour).save(tmp_path / "photos" / f"{place}.png")
    return "photos"


def test_search_takes_it_until_there_is_a_run(command, photos):  # noqa: F811
    flags = ("--photos", photos, "--instruction", "in a red coat", "--json")
    code, out, err = command(search, *flags)
    assert code == 0 and "no runs/all/last.pt yet" in err, err
    before = [json.loads(line)["score"] for line in out.splitlines()]
    assert len(before) == 3

    Path("runs/all").mkdir(parents=True)
    a_checkpoint(Path("runs/all/last.pt"))
    code, out, err = command(search, *flags)
    assert code == 0 and "no runs/all" not in err, err
    assert [json.loads(line)["score"] for line in out.splitlines()] != before


def test_evaluate_takes_it_until_there_is_a_run(command, monkeypatch):  # noqa: F811
    drawn = []

    def few(data):
        drawn.append(data)
        toydata.make_toy(data, people=8)

    monkeypatch.setattr(toydata, "provide", few)
    code, out, err = command(evaluate, "--task", "cc", "--pictures")
    assert code == 0 and "no runs/all/last.pt yet" in err and drawn == ["./toy"], err
    assert "LTCC" in out and Path("runs/gates.png").exists()
    assert not list(checkpoints.DRAWN.parent.glob("*.png")), "pictures do not go into the code"
