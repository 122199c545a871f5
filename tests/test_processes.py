"""Two processes: batches and augmentation of their own, averaged gradients and statistics, equal
weights; an evaluation that outlasts their patience, Ctrl-C in one of them, and going on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import evaluate
import train
from reid import checkpoints, processes
from reid.cli import UserError
from reid.runs import read_log
from tests.test_model import TINY
from tests.test_train import assert_same
from tests.watched_processes import INTERRUPTED, RANKS

WATCHED = Path(__file__).with_name("watched_processes.py")
STEPS = 4
FULL = torch.autocast("cpu", enabled=False)


@pytest.fixture(scope="module")
def watched(drawn, bert, tmp_path_factory):
    """watched(mode) -> (what each process of a run saw, what they said); the runs are in the folder
    watched.folder."""
    folder = tmp_path_factory.mktemp("processes")
    flags = ("--data", drawn, "--task", "trad", "--text-model", bert, "--erase", 0, "--steps",
             STEPS, "--warmup", 1, "--ids", 4, "--images", 4)
    subprocess.run([sys.executable, WATCHED, *map(str, flags)], cwd=folder, check=True,
                   env={**os.environ, "OMP_NUM_THREADS": "1"})

    def read(mode):
        said = (folder / f"{mode}.txt").read_text()
        paths = [folder / f"{mode}{rank}.pt" for rank in RANKS]
        assert all(path.exists() for path in paths), said
        return [torch.load(path, weights_only=False) for path in paths], said

    read.folder = folder
    return read


@pytest.fixture(scope="module")
def slow(watched):
    """A run whose evaluation after two steps outlasts the patience of gradients."""
    seen, said = watched("slow")
    assert "code" not in seen[0], f"an evaluation longer than the timeout ended the run: {said}"
    return seen


def test_every_process_has_a_batch_and_an_augmentation_of_its_own(slow):
    for (*_, first), (*_, second) in zip(slow[0]["steps"], slow[1]["steps"]):
        assert first.labels.tolist() != second.labels.tolist(), "both have the same people"
    seeds = slow[0]["seeds"] + slow[1]["seeds"]
    assert len(set(seeds)) == 2 * STEPS, "two batches are flipped and cropped alike"


# ---- the losses of two processes against those of one ----

def test_a_step_learns_from_both_batches_as_one_process_would_from_each(
        watched, slow, monkeypatch):
    monkeypatch.setitem(train.SIZES, "tiny", TINY)
    path = watched.folder / "runs/slow/last.pt"
    checkpoint = checkpoints.load(path)
    config = train.Config(**checkpoint["config"])
    own = []
    statistics = []
    for seen in slow:
        before, *arguments = seen["steps"][0]
        model = evaluate.rebuild(checkpoint, path).train().to(memory_format=torch.channels_last)
        model.load_state_dict(before)
        terms = train.loss_terms(model, *arguments, config, FULL)
        sum(terms.values()).backward()
        own.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        statistics.append(model.state_dict())

    for seen in slow:
        found = seen["gradients"][0]
        assert found.keys() == own[0].keys(), "other parameters learn"
        for name in found:
            mean = (own[0][name] + own[1][name]) / 2
            error = (found[name] - mean).norm()
            assert error <= 1e-5 * mean.norm() + 1e-6, f"{name} is off the mean by {error}"
        after, *_ = seen["steps"][1]
        for name in after:
            if "running" in name:
                both = (statistics[0][name] + statistics[1][name]) / 2
                torch.testing.assert_close(after[name], both, msg=f"{name} is not the mean")


def test_both_begin_and_end_with_the_same_weights_and_statistics(slow, watched):
    begin = [seen["steps"][0][0] for seen in slow]
    end = slow[0]["last"]
    assert_same(*begin, "the processes begin with different weights:")
    assert_same(end, slow[1]["last"], "the processes end with different weights:")
    changed = [name for name, value in begin[0].items() if not torch.equal(value, end[name])]
    assert any("running_var" in name for name in changed) and any("gate" in n for n in changed)
    lines = read_log(watched.folder / "runs/slow")
    assert [line["step"] for line in lines] == [1, 2, STEPS, STEPS]


def test_ctrl_c_in_one_process_saves_and_ends_both_and_the_run_goes_on(watched, slow):
    seen, said = watched("interrupted")
    assert seen[0]["code"] == 130 and f"stopped at step {INTERRUPTED}" in said
    assert [len(each["steps"]) for each in seen] == [INTERRUPTED, INTERRUPTED]

    seen, said = watched("resumed")
    assert "code" not in seen[0] and len(seen[0]["steps"]) == STEPS - INTERRUPTED, said
    assert_same(seen[0]["last"], seen[1]["last"], "the resumed processes differ:")
    path = watched.folder / "runs/interrupted/last.pt"
    whole = checkpoints.MODEL | checkpoints.RUN
    resumed = checkpoints.load(path, whole)
    expected = checkpoints.load(watched.folder / "runs/slow/last.pt", whole)
    assert resumed["step"] == expected["step"] == STEPS
    for part in ("model", "optimisers"):
        assert_same(expected[part], resumed[part], f"other after an interruption: {part}")


@pytest.mark.parametrize("environment, words", [
    ({"WORLD_SIZE": "2"}, "RANK is not set, WORLD_SIZE 2: .*torchrun"),
    ({"WORLD_SIZE": "two"}, "WORLD_SIZE is two"),
    ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, "MASTER_PORT is not set"),
])
def test_an_environment_that_torchrun_did_not_set(environment, words, monkeypatch):
    for name in processes.TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    assert processes.join(torch.device("cpu")) == (0, 1)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=words):
        processes.join(torch.device("cpu"))
