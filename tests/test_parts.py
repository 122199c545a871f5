"""The parts of a model that its tasks train, what a model without them refuses, and what the preset
for photographs makes of the data."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import evaluate
import model as irm
import train
from extras import search
from instructions import TASKS, asked_tasks
from model import PARTS, SIZES
from reid import checkpoints, runs
from reid.folders import open_all
from tests.commands import one_line


@pytest.mark.parametrize("task,loss", [*((task, "adaptive") for task in TASKS), ("li", "image")])
def test_every_weight_that_a_task_builds_learns(task, loss, train_tiny, monkeypatch):
    """A head or an encoder without a gradient would be dead weight in every checkpoint. Only the
    neck of instructed images is there for t2i too."""
    idle = []

    class Watched(train.Loss):
        def forward(self, *batch):
            terms = super().forward(*batch)
            learning = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
            loss = sum(terms.values())
            grads = torch.autograd.grad(
                loss, [*learning.values()], retain_graph=True, allow_unused=True)
            idle.extend(name for name, grad in zip(learning, grads) if grad is None)
            return terms

    monkeypatch.setattr(train, "finish", lambda *_: None)
    monkeypatch.setattr(train, "Loss", Watched)
    assert train_tiny("--task", task, "--steps", 1, "--loss", loss)[0] == 0
    assert idle == (["neck.weight"] if TASKS[task].text_only else [])
    [last] = Path("runs").glob("*/last.pt")
    saved = checkpoints.load(last)
    assert set(saved["parts"]) == set(TASKS[task].parts) - {"fused" if loss == "image" else ""}
    assert bool(saved["classes"]) != TASKS[task].text_only


def test_a_part_that_was_not_trained_is_refused_or_left_out(train_tiny, drawn, command):
    code, out, err = train_tiny("--task", "li", "--steps", 1, "--name", "li")
    assert code == 0 and "without a photo" in out
    assert "gallery without instructions" not in out  # it takes text queries
    last = ("--checkpoint", "runs/li/last.pt")
    one_line(command(evaluate, *last, "--task", "ctcc"), "nothing could be ranked")
    code, _, err = command(evaluate, *last, "--task", "all")
    assert code == 0
    assert "left out: COCAS+ ctcc strict: the model was not trained for pictures" in err
    photos = ("--photos", drawn / "LTCC_ReID/query", "--index", "i.safetensors", *last)
    one_line(command(search, *photos, "--instruction", "a red coat"), "text queries")

    flags = ("--task", "li", "--steps", 1, "--loss", "image")
    one_line(train_tiny(*flags, "--feature", "fused"), "--feature fused: --loss image")
    assert train_tiny(*flags, "--name", "image")[0] == 0
    rows = runs.read_log("runs/image")[-1]["rows"]
    assert {row["feature"] for row in rows} == {"F"}
    one_line(command(evaluate, "--checkpoint", "runs/image/last.pt", "--feature", "fused"), "E_f")


@pytest.mark.parametrize("preset", train.PRESETS)
def test_a_margin_asks_for_two_hundredths_of_a_cosine(preset):
    """Of outputs of a LayerNorm, in every preset and size: d is about 2 width (1 - cos)."""
    values = train.PRESETS[preset]
    width = SIZES[values["size"]]["dim"]
    a, b = torch.nn.functional.layer_norm(torch.randn(2, 1000, width), (width,))
    cosine = torch.cosine_similarity(a, b, dim=1)
    squared = (a - b).square().sum(1)
    torch.testing.assert_close(squared, 2 * width * (1 - cosine), rtol=1e-3, atol=1e-2)
    share = values["margin"] * width / (2 * width)
    assert 0.019 < share < 0.021


def test_the_paper_preset_takes_its_steps_for_each_stream(drawn):
    """Where neither --steps nor one task was asked for; no more people than there are."""
    datasets = open_all(drawn, asked_tasks("all"))
    streams = sum(bool(dataset.split("train")) for dataset in datasets)
    paper = train.Config(data=str(drawn), preset="paper", vit_weights="none")
    fitted = train.new_config(paper, datasets)
    assert fitted.steps == train.PAPER["steps"] * streams and streams > 5
    assert fitted.ids == min(len({record.pid for record in dataset.split("train")})
                             for dataset in datasets if dataset.split("train"))
    for changed in (dict(task="li"), dict(preset="toy")):
        config = replace(paper, **changed)
        assert train.new_config(config, datasets).steps == train.PRESETS[config.preset]["steps"]
    asked = train.new_config(replace(paper, steps=24000, ids=50), datasets)
    assert (asked.steps, asked.ids) == (24000, 50)


def test_each_part_is_a_part_of_some_task_and_all_of_them_is_the_default():
    trained = {part for row in TASKS.values() for part in row.parts}
    assert trained == set(PARTS) and irm.InstructReID.__init__.__defaults__[-1] == PARTS
