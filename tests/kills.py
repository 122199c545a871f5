"""Kills a run with kill -9 twenty times, ten of them while its checkpoint is partly written, and compares its weights
with those of a run that nobody killed. Takes minutes, so it is started by hand: `python tests/kills.py`."""

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import toydata  # noqa: E402
from reid import checkpoints  # noqa: E402

KILLS = 20
PARTLY = 10  # of them, with more than 1 MB of the checkpoint on the disk
FLAGS = ("--data", "toy", "--task", "ctcc", "--steps", "60", "--save-every", "1", "--ids", "4", "--images", "4")


def start(folder, *flags):
    return subprocess.Popen([sys.executable, ROOT / "train.py", *flags], cwd=folder, stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})


def size(path):
    return path.stat().st_size if path.exists() else 0


def kill_once(process, folder, rng, partly):
    """Kills after one to three saves, at any time or within a save. Returns how much of a file was partly written."""
    last, part = folder / "last.pt", folder / "last.pt.part"
    part.unlink(missing_ok=True)  # an earlier kill's
    for _ in range(rng.randint(1, 3)):
        before = last.stat().st_mtime_ns if last.exists() else 0
        while not last.exists() or last.stat().st_mtime_ns == before:
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.001)
    while partly and not size(part) > 2**20:
        assert process.poll() is None, "it ended before it was killed"
    if not partly:
        time.sleep(rng.random() / 2)
    process.kill()
    process.wait()
    return size(part)


def main():
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        toydata.make_toy(folder / "toy", people=16)
        assert start(folder, *FLAGS, "--name", "whole").wait() == 0
        whole = checkpoints.load_checkpoint(folder / "runs/whole/last.pt")
        run = folder / "runs/killed"
        process = start(folder, *FLAGS, "--name", "killed")
        partly = 0
        for kill in range(KILLS):
            written = kill_once(process, run, rng, partly=kill % 2 == 0 or partly < kill - PARTLY)
            partly += written > 2**20
            step = checkpoints.load_checkpoint(run / "last.pt")["step"]
            print(f"kill {kill + 1}: at step {step}, {written} bytes of a checkpoint partly written", flush=True)
            process = start(folder, "--resume", "runs/killed/last.pt")
        assert process.wait() == 0
        killed = checkpoints.load_checkpoint(run / "last.pt")
        for key, value in whole["model"].items():
            assert torch.equal(value, killed["model"][key]), key
        assert partly >= PARTLY and killed["step"] == whole["step"]
        print(f"{KILLS} kills, {partly} of them in a save: the weights are equal to the bit; a whole checkpoint has "
              f"{size(run / 'last.pt')} bytes")


if __name__ == "__main__":
    main()
