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
from reid import checkpoints
from tests.small_bert import write_bert
from tests.two_processes import GRADIENTS, PARAMETER
from tests.watched_processes import IDENTITY_STEP, INTERRUPTED, identity_terms

HELPER = Path(__file__).with_name("two_processes.py")
WATCHED = Path(__file__).with_name("watched_processes.py")
STEPS = 2
LONGER = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    toydata.make_toy(folder / "toy", people=8, seed=0, workers=1)
    write_bert(folder / "bert")
    return folder


def two_processes(folder, *command):
    """What a script says under torchrun, (exit code, stdout, stderr)."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*torchrun, *map(str, command)],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return done.returncode, done.stdout, done.stderr[-3000:]


def flags(folder, steps):
    return ("--data", folder / "toy", "--task", "trad", "--text-model", folder / "bert",
            "--erase", 0, "--steps", steps, "--warmup", 1, "--ids", 4, "--images", 4)


@pytest.fixture(scope="module")
def ranks(folder):
    """What the two processes of tests/two_processes.py saw."""
    code, _, err = two_processes(folder, HELPER, *flags(folder, STEPS))
    assert code == 0, err
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


def test_every_process_draws_batches_of_its_own(ranks):
    first, second = ranks
    for step in range(STEPS):
        people = first["pids"][step]
        words = f"both processes draw the same people in step {step}: {people}"
        assert people != second["pids"][step], words


def test_every_process_draws_flips_and_crops_of_its_own(ranks):
    """Both were shown the same picture, which grows brighter from left to right."""
    for step in range(STEPS):
        flips = []
        for seen in ranks:
            images = seen["augmented"][step]
            left, right = images.chunk(2, 3)
            flips.append(left.mean((1, 2, 3)) > right.mean((1, 2, 3)))
        assert flips[0].any() and not flips[0].all()
        words = f"both processes flip the same places of their batches in step {step}"
        assert not torch.equal(flips[0], flips[1]), words

        alike = flips[0] == flips[1]
        first, second = (seen["augmented"][step][alike] for seen in ranks)
        words = f"both processes crop their images alike in step {step}"
        assert not torch.equal(first, second), words


def test_a_step_is_taken_with_the_mean_of_the_gradients(ranks):
    for step in range(STEPS):
        own = [GRADIENTS[rank][step] for rank in (0, 1)]
        found = [seen["gradients"][step] for seen in ranks]
        mean = sum(own) / 2
        words = f"step {step}: the gradients {own} became {found}, their mean is {mean}"
        if found == [sum(own)] * 2:
            words += ": they are summed and not averaged"
        if found == own:
            words += ": they are not averaged, each process goes its own way"
        assert found == pytest.approx([mean, mean]), words


def test_both_begin_and_end_with_the_same_weights(ranks):
    first, second = ranks
    for when in ("first", "last"):
        for name, weight in first[when].items():
            words = f"the {when} weights of the two processes differ, in {name} and maybe others"
            assert torch.equal(weight, second[when][name]), words
    assert not torch.equal(first["first"][PARAMETER], first["last"][PARAMETER]), "no step was taken"


# ---- the real losses, watched ----

@pytest.fixture(scope="module")
def slow(folder):
    """A run whose evaluation after two steps outlasts the patience of gradients."""
    run = two_processes(folder, WATCHED, "slow", *flags(folder, LONGER),
                        "--evaluate-every", 2, "--name", "trad-slow")
    code, _, err = run
    assert code == 0, f"an evaluation longer than the timeout ended the run: {err}"
    return [torch.load(folder / f"slow{rank}.pt", weights_only=False) for rank in (0, 1)]


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
    for rank in (0, 1):
        model, arguments = one_process(0, rank)
        precision = torch.autocast("cpu", enabled=False)
        own.append(gradients_of(model, train.loss_terms(model, *arguments, precision)))
        statistics.append(model.state_dict())

    mean = {name: (own[0][name] + own[1][name]) / 2 for name in own[0]}
    for rank in (0, 1):
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


def test_both_end_with_the_same_weights_and_statistics(slow):
    first, second = (seen["last"] for seen in slow)
    assert any("running_var" in name for name in first)
    for name, value in first.items():
        assert torch.equal(value, second[name]), f"{name} differs between the processes"


def test_ctrl_c_in_one_process_saves_and_ends_both_and_the_run_goes_on_from_there(folder, slow):
    code, _, err = two_processes(
        folder, WATCHED, "interrupt", *flags(folder, LONGER), "--name", "interrupted"
    )
    path = folder / "runs/interrupted/last.pt"
    done = INTERRUPTED + 1
    assert code != 0 and f"stopped at step {done}" in err, err
    assert checkpoints.load_checkpoint(path)["step"] == done
    for rank in (0, 1):
        steps = torch.load(folder / f"interrupt{rank}.pt", weights_only=False)["steps"]
        assert len(steps) == done, f"process {rank} took {len(steps)} steps"

    code, _, err = two_processes(folder, WATCHED, "plain", "--resume", path)
    assert code == 0, err
    resumed = checkpoints.load_checkpoint(path)
    whole = checkpoints.load_checkpoint(folder / "runs/trad-slow/last.pt")
    assert resumed["step"] == whole["step"] == LONGER
    for name, value in whole["model"].items():
        assert torch.equal(value, resumed["model"][name]), f"{name} differs after an interruption"
    for number, moments in whole["optimiser"]["state"].items():
        for name, value in moments.items():
            assert torch.equal(value, resumed["optimiser"]["state"][number][name])
    first, second = (torch.load(folder / f"plain{rank}.pt", weights_only=False) for rank in (0, 1))
    for name, value in first["last"].items():
        assert torch.equal(value, second["last"][name]), f"{name} differs between the processes"
