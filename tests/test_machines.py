"""What is there for a GPU, tried on the CPU: precision, what it is fed; loader processes that have
no room, are stopped, or die."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch

import data
import losses
from reid import device, images
from reid.cli import Interrupted, Stopped, Stops, on_signals, run

GPU = torch.device("cuda")
CPU = torch.device("cpu")


# ---- precision ----

def test_auto_takes_no_emulated_bf16(monkeypatch):
    """A V100 says that it supports bf16 where emulation counts; fp16 is what it computes."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported",
                        lambda including_emulation=True: including_emulation)
    assert device.amp_dtype("auto", GPU) == torch.float16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert device.amp_dtype("auto", GPU) == torch.bfloat16
    assert device.amp_dtype("auto", CPU) is device.amp_dtype("off", GPU) is None


def test_tf32_is_for_a_gpu_and_is_said(monkeypatch, capsys):
    precision = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", precision.append)
    device.allow_tf32(CPU)
    assert precision == [] and capsys.readouterr().out == ""
    device.allow_tf32(GPU)
    assert precision == ["high"] and "TF32" in capsys.readouterr().out


def test_distances_and_contrasts_have_all_bits(monkeypatch):
    inside = []
    at_least_float32 = losses.at_least_float32
    monkeypatch.setattr(losses, "at_least_float32", lambda x: inside.append(
        torch.get_float32_matmul_precision()) or at_least_float32(x))
    torch.set_float32_matmul_precision("high")
    try:
        feats = torch.randn(4, 8)
        people = torch.tensor([0, 0, 1, 1])
        losses.adaptive_triplet(feats, people, feats)
        losses.contrastive(feats, feats, people, torch.tensor(0.1))
        assert set(inside) == {"highest"}
        assert torch.get_float32_matmul_precision() == "high"  # and the model has it again
    finally:
        torch.set_float32_matmul_precision("highest")


# ---- no waiting ----

def test_negatives_are_those_of_multinomial():
    """Sampled without the check of torch.multinomial, for which a GPU would have to wait."""
    for seed in range(20):
        chances = torch.randn(16, 12, generator=torch.Generator().manual_seed(seed)).softmax(1)
        first = torch.Generator().manual_seed(seed)
        second = torch.Generator().manual_seed(seed)
        expected = torch.multinomial(chances, 1, generator=first).squeeze(1)
        assert torch.equal(losses.sample(chances, second), expected)
        assert torch.equal(first.get_state(), second.get_state())


def test_a_step_moves_its_whole_batch_before_all_else(train_tiny, unfinished, monkeypatch):
    """Whatever is augmented and reaches the loss has gone through Batch.to, which does not wait."""
    moved = []
    augment = data.augment
    to = data.Batch.to

    def move(batch, where):
        tensors = [value for value in to(batch, "meta") if isinstance(value, torch.Tensor)]
        assert len(tensors) == 4 and all(tensor.is_meta for tensor in tensors)
        moved.append(batch.images.clone())
        return batch._replace(images=moved[-1])

    def spy(images, *rest):
        assert images is moved[-1]
        return augment(images, *rest)

    monkeypatch.setattr(data.Batch, "to", move)
    monkeypatch.setattr(data, "augment", spy)
    assert train_tiny("--task", "ctcc", "--steps", 2)[0] == 0 and len(moved) == 2


# ---- feeding ----

@pytest.mark.parametrize("cores, processes, workers", [
    (1, 1, 1), (6, 1, 5), (64, 1, 8), (16, 4, 3)])
def test_workers_are_chosen_from_the_cores(monkeypatch, cores, processes, workers):
    monkeypatch.setattr(device, "cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert device.loader_workers(None, GPU, 1) == workers
    assert device.loader_workers(None, CPU, 1) == 0  # images stay in memory
    assert device.loader_workers(3, GPU, 1) == device.loader_workers(3, CPU, 1) == 3


def test_a_batch_is_read_while_the_one_before_is_worked_on(monkeypatch, tmp_path):
    started = [threading.Event() for _ in range(5)]

    def load(path, size):
        number = int(os.path.basename(path))
        started[number].set()
        return torch.tensor(number)

    monkeypatch.setattr(images, "load_image", load)
    results = []
    for batch in images.batches(tmp_path, [str(number) for number in range(5)], (8, 4), 2):
        first_of_next = 2 * len(results) + 2
        if first_of_next < 5:
            assert started[first_of_next].wait(10), "nothing is read while a batch is worked on"
        results.append(batch.tolist())
    assert results == [[0, 1], [2, 3], [4]]


# ---- loader processes, signals ----

def test_workers_are_as_many_as_shared_memory_holds(monkeypatch, capsys):
    usage = SimpleNamespace(free=64 * 2**20)
    monkeypatch.setattr(device.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(device, "SHARED", "/")
    assert device.loader_workers(8, CPU, 10**5) == 8 and not capsys.readouterr().out
    assert device.loader_workers(8, CPU, 10**7) == 2
    assert "room for 2 of 8 loader workers" in capsys.readouterr().out
    usage.free = 10**5
    assert device.loader_workers(3, CPU, 10**6) == 0
    assert "--shm-size" in capsys.readouterr().out


class Zeros:
    def __getitem__(self, step):
        return torch.zeros(3)


def test_a_signal_ends_the_wait_for_a_worker_that_was_stopped(usual_signals):
    """Also in the middle of a batch that it hands over, and if the signal came before the wait."""
    before = set(multiprocessing.active_children())
    stops = Stops()
    with on_signals(stops):
        loaded = data.loader(Zeros(), 0, 5, workers=1, stops=stops)
        next(loaded)
        [worker] = set(multiprocessing.active_children()) - before
        os.kill(worker.pid, signal.SIGSTOP)
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        assert len(list(loaded)) < 4 and stops == [signal.SIGTERM]
    assert list(data.loader(Zeros(), 0, 5, workers=1, stops=stops)) == []
    assert set(multiprocessing.active_children()) <= before
    stops = Stops()
    stops.is_waiting = True
    with pytest.raises(Stopped):
        stops(2, None)
    stops(15, None)  # which a launcher sends next, does not interrupt what follows
    assert stops == [2, 15]


@pytest.mark.parametrize("seconds", [0, 1])  # the wait for a batch meets the end, or torch says it
def test_a_loader_process_that_is_killed_is_one_line(seconds, usual_signals, monkeypatch, capsys):
    before = set(multiprocessing.active_children())

    def main(_):
        loaded = data.loader(Zeros(), 0, 9, workers=1)
        next(loaded)
        [worker] = set(multiprocessing.active_children()) - before
        worker.kill()
        time.sleep(seconds)
        list(loaded)

    monkeypatch.setattr(sys, "argv", ["data.py", "toy"])
    with pytest.raises(SystemExit) as ended:
        run(main, data.Config)
    error = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2 and error.startswith("error: a loader process was killed")


def test_a_second_signal_ends_at_once(monkeypatch):
    stops = Stops("at once")
    for moment in (0, 0.5):  # a launcher may pass the same signal on
        monkeypatch.setattr(time, "monotonic", lambda moment=moment: moment)
        stops(2, None)
    assert stops == [2, 2]
    monkeypatch.setattr(time, "monotonic", lambda: 2)
    with pytest.raises(Interrupted) as ended:
        stops(15, None)
    assert ended.value.args == (15, "at once")


def test_a_resume_where_fewer_gpus_are_visible(monkeypatch):
    """Each process takes back the random numbers of the GPU of its number, where there was one."""
    restored = []
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *arguments: restored.append(arguments))
    for saved in ([], ["first"], ["first", "second"]):
        state = {"cpu": torch.get_rng_state(), "cuda": saved}
        device.restore_rng(state, torch.device("cuda:1"))
        device.restore_rng(state, torch.device("cuda"))
    assert restored == [("first", GPU), ("second", torch.device("cuda:1")), ("first", GPU)]
