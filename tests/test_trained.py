"""The model that comes with the code: small, the model alone, and taken before the first run.
What is said of the file needs toydata/trained.pt."""

from pathlib import Path

import pytest
import torch

import evaluate
import toydata
import train
from model import InstructReID
from reid import checkpoints, device
from reid.images import normalise
from reid.text import TextEncoder, embedded_text_model
from tests.test_train import command, one_line  # noqa: F401  (command is a fixture)

LACKS_IT = (
    "toydata/trained.pt is missing, which this test is about; `python train.py`, then "
    "`python -m reid.checkpoints runs/all/last.pt toydata/trained.pt`"
)
MEGABYTES = 6


@pytest.fixture
def trained():
    assert evaluate.TRAINED.is_file(), LACKS_IT
    return evaluate.TRAINED


def test_the_shipped_model_is_small_and_nothing_but_a_model(trained):
    assert trained.stat().st_size <= MEGABYTES * 1e6
    state = checkpoints.load(trained)
    assert not state.keys() & (checkpoints.RUN.keys() - {"step"}) and state["classes"] == {}
    assert state["config"]["data"] == toydata.TOY and state["config"]["task"] == "all"
    for name, value in state["model"].items():
        assert not value.is_floating_point() or value.dtype == torch.float16, name
        assert not name.startswith("encoder.text."), "the text tower comes from a package"


def a_checkpoint(path):
    """A model whose norms have seen something, and its checkpoint with what training needs."""
    torch.manual_seed(0)
    text = TextEncoder(*embedded_text_model())
    model = InstructReID("tiny", {"market": 5}, text=text).train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, 3, *model.size), model.instruct(["change your clothes"]))
    config = train.asdict(train.Config(data="./toy"))
    state = evaluate.parts_of(model, {"market": 5}) | {"config": config, "step": 3}
    state |= {"data": {}, "history": {"pending": {}, "seconds": 0.0}, "scaler": {}}
    state |= {"optimisers": [], "rng": device.rng_state()}
    checkpoints.save(path, state)
    return model.eval()


def test_the_model_alone_ranks_as_the_checkpoint_does(command, tmp_path):  # noqa: F811
    model = a_checkpoint(tmp_path / "last.pt")
    code, out, err = command(checkpoints, "last.pt", "small.pt")
    assert code == 0 and "wrote small.pt" in out, err
    small, config = evaluate.load_model("small.pt")
    assert config["data"] == "./toy" and not small.classifiers
    images = normalise(torch.randint(0, 256, (6, 3, *model.size), dtype=torch.uint8))
    with torch.inference_mode():
        for words in (None, ["change your clothes"]):
            feats = [each.embed(images, each.instruct(words)) for each in (model, small)]
            assert (feats[0] * feats[1]).sum(1).min() > 0.9999, "half precision moves features"
    one_line(command(checkpoints, "nowhere.pt", "small.pt"), "nowhere.pt")


def test_evaluate_takes_it_until_there_is_a_run(trained, command, monkeypatch):  # noqa: F811
    provided = []

    def few(data):
        provided.append(data)
        toydata.make_toy(data, people=8)

    monkeypatch.setattr(toydata, "provide", few)
    code, out, err = command(evaluate, "--task", "cc")
    assert code == 0 and "no runs/all/last.pt yet" in err and provided == ["./toy"], err
    assert "LTCC" in out
    Path("runs/all").mkdir(parents=True)
    evaluate.LAST.touch()
    assert evaluate.chosen_checkpoint(None) == evaluate.LAST
    assert evaluate.chosen_checkpoint("a.pt") == "a.pt"
