"""The model that comes with the code: small, the model alone, and taken before the first run.
What is said of the file needs toydata/trained.pt."""

from pathlib import Path

import torch

import evaluate
import toydata
from reid import checkpoints

MEGABYTES = 6


def test_the_shipped_model_is_small_and_nothing_but_a_model():
    assert evaluate.TRAINED.is_file(), (
        "python train.py, then python -m reid.checkpoints runs/all/last.pt toydata/trained.pt")
    assert evaluate.TRAINED.stat().st_size <= MEGABYTES * 1e6
    state = checkpoints.load(evaluate.TRAINED)
    assert not state.keys() & (checkpoints.RUN.keys() - {"step"}) and state["classes"] == {}
    assert state["config"]["data"] == toydata.TOY and state["config"]["task"] == "all"
    for name, value in state["model"].items():
        assert not value.is_floating_point() or value.dtype == torch.float16, name
        assert not name.startswith("encoder.text."), "the text tower comes from a package"


def test_evaluate_takes_it_until_there_is_a_run(command, monkeypatch):
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
