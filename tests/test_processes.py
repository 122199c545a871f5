"""Two processes: batches and augmentation of their own, averaged gradients and statistics, equal
weights; an evaluation that outlasts their patience, Ctrl-C in one of them, and going on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import toydata
import train
from reid import checkpoints, processes
from reid.cli import UserError
from tests.small_bert import write_bert
from tests.watched_processes import IDENTITY_STEP, INTERRUPTED, identity_terms

WATCHED = Path(__file__).with_name("watched_processes.py")
STEPS = 4
RANKS = (0, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    toydata.make_toy(folder / "toy", people=8, seed=0, workers=1)
    write_bert(folder / "bert")
    return folder


def two_processes(folder, mode, *words):
    """(exit code, stderr, what each saw) of tests/watched_processes.py under torchrun, whose own
    temporary folder is `folder` too."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*torchrun, *map(str, (WATCHED, mode, *words))],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)},
    )
    error = done.stderr[-3000:]
    assert (folder / f"{mode}1.pt").exists(), error
    seen = [torch.load(folder / f"{mode}{rank}.pt", weights_only=False) for rank in RANKS]
    return done.returncode, error, seen


def flags(folder):
    return ("--data", folder / "toy", "--task", "trad", "--text-model", folder / "bert",
            "--erase", 0, "--steps", STEPS, "--warmup", 1, "--ids", 4, "--images", 4)


@pytest.fixture(scope="module")
def slow(folder):
    """A run whose evaluation after two steps outlasts the patience of gradients."""
    words = ("--evaluate-every", 2, "--name", "trad-slow")
    code, error, seen = two_processes(folder, "slow", *flags(folder), *words)
    assert code == 0, f"an evaluation longer than the timeout ended the run: {error}"
    return seen


def test_every_process_has_batches_of_its_own(slow):
    for (*_, first), (*_, second) in zip(slow[0]["steps"], slow[1]["steps"]):
        assert first.pids.tolist() != second.pids.tolist(), "both have the same people"


def test_every_process_flips_and_crops_in_its_own_way(slow):
    """The probe that both augmented grows brighter from left to right."""
    for probes in zip(slow[0]["probes"], slow[1]["probes"]):
        flips = []
        for images in probes:
            left, right = images.float().chunk(2, 3)
            flips.append(left.mean((1, 2, 3)) > right.mean((1, 2, 3)))
        assert flips[0].any() and not flips[0].all()
        assert not torch.equal(flips[0], flips[1]), "both flip the same places of their batches"
        first, second = (images[flips[0] == flips[1]] for images in probes)
        assert not torch.equal(first, second), "both crop alike"


# ---- the losses of two processes against those of one ----

@pytest.fixture
def one_process(folder, slow):
    """one_process(step, rank) -> the model as that step began, and the arguments of its loss."""
    checkpoint = checkpoints.load_checkpoint(folder / "runs/trad-slow/last.pt")
    config = train.Config(**checkpoint["config"])

    def begin(step, rank):
        before, images, what, batch = slow[rank]["steps"][step]
        model = checkpoints.rebuild(checkpoint, "last.pt").to(memory_format=torch.channels_last).train()
        model.load_state_dict(before)
        return model, (images, what, batch, config)

    return begin


def gradients_of(model, terms):
    sum(terms.values()).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_gradients(found, expected, words):
    assert found.keys() == expected.keys(), f"{words}: other parameters learn"
    for name, gradient in expected.items():
        error = (found[name] - gradient).norm()
        assert error <= 1e-5 * gradient.norm() + 1e-7, f"{words}: {name} is off by {error}"


def test_a_step_learns_from_both_batches_as_one_process_would_from_each(slow, one_process):
    own = []
    statistics = []
    for rank in RANKS:
        model, arguments = one_process(0, rank)
        precision = torch.autocast("cpu", enabled=False)
        own.append(gradients_of(model, train.loss_terms(model, *arguments, precision)))
        statistics.append(model.state_dict())

    mean = {name: (own[0][name] + own[1][name]) / 2 for name in own[0]}
    for rank in RANKS:
        words = f"process {rank} learns from another gradient than the mean of both batches"
        assert_gradients(slow[rank]["gradients"][0], mean, words)

        after, *_ = slow[rank]["steps"][1]
        for name in after:
            if "running" in name:
                both = (statistics[0][name] + statistics[1][name]) / 2
                torch.testing.assert_close(after[name], both, msg=f"{name} is not the mean")


def test_the_identity_loss_has_the_gradient_of_the_joined_batch(slow, one_process):
    model, (images, what, batch, config) = one_process(IDENTITY_STEP, 0)
    _, other_images, other_what, other = slow[1]["steps"][IDENTITY_STEP]
    images = torch.cat([images, other_images])
    what = what + other_what  # a sentence for each image
    joined = batch._replace(labels=torch.cat([batch.labels, other.labels]))
    expected = gradients_of(model, identity_terms(model, images, what, joined, config))
    for seen in slow:
        words = "two batches do not add up to the joined one"
        assert_gradients(seen["gradients"][IDENTITY_STEP], expected, words)


def assert_same_weights(first, second, words):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), f"{words}: {name}"


def test_both_begin_and_end_with_the_same_weights_and_statistics(slow):
    begin = [seen["steps"][0][0] for seen in slow]
    assert_same_weights(*begin, "the processes begin with different weights")
    assert_same_weights(slow[0]["last"], slow[1]["last"], "the processes end with different weights")
    changed = [name for name, value in begin[0].items() if not torch.equal(value, slow[0]["last"][name])]
    assert any("running_var" in name for name in changed) and any("gate" in name for name in changed)


def test_ctrl_c_in_one_process_saves_and_ends_both_and_the_run_goes_on(
        folder, slow, usual_signals):
    code, error, seen = two_processes(folder, "interrupt", *flags(folder), "--name", "interrupted")
    path = folder / "runs/interrupted/last.pt"
    done = INTERRUPTED + 1
    assert code != 0 and f"stopped at step {done}" in error, error
    assert checkpoints.load_checkpoint(path)["step"] == done
    assert [len(each["steps"]) for each in seen] == [done, done]

    code, error, seen = two_processes(folder, "quiet", "--resume", path)
    assert code == 0, error
    assert_same_weights(seen[0]["last"], seen[1]["last"], "the resumed processes differ")
    resumed = checkpoints.load_checkpoint(path)
    whole = checkpoints.load_checkpoint(folder / "runs/trad-slow/last.pt")
    assert resumed["step"] == whole["step"] == STEPS
    assert_same_weights(whole["model"], resumed["model"], "other weights after an interruption")
    for number, moments in whole["optimiser"]["state"].items():
        assert_same_weights(moments, resumed["optimiser"]["state"][number], "other moments")


@pytest.mark.parametrize("environment, words", [
    ({"WORLD_SIZE": "2"}, "RANK is not set, WORLD_SIZE 2: .*torchrun"),
    ({"WORLD_SIZE": "two"}, "WORLD_SIZE is two"),
    ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, "MASTER_PORT is not set")])
def test_an_environment_that_torchrun_did_not_set(environment, words, monkeypatch):
    for name in processes.TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    assert processes.join(torch.device("cpu")) == (0, 1)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=words):
        processes.join(torch.device("cpu"))
