"""Two processes: batches and augmentation of their own, averaged gradients, equal weights."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dolls
from tests.small_bert import write_bert
from tests.two_processes import GRADIENTS, PARAMETER

HELPER = Path(__file__).with_name("two_processes.py")
STEPS = 2


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What the two processes of tests/two_processes.py saw."""
    folder = tmp_path_factory.mktemp("processes")
    dolls.make_toy(folder / "toy", people=8, seed=0, workers=1)
    bert = write_bert(folder / "bert")
    flags = ["--data", folder / "toy", "--task", "trad", "--text-model", bert, "--erase", 0,
             "--steps", STEPS, "--warmup", 1, "--ids", 4, "--images", 4]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [str(each) for each in (*torchrun, HELPER, *flags)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
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
