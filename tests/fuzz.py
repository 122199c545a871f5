"""Damaged files of the program's own, one after the other: each command ends with a result or with
one line, never with a traceback, a hang or a great deal of memory.

    python -m tests.fuzz --rounds 200 --seed 0
"""

import argparse
import contextlib
import io
import os
import random
import re
import resource
import shutil
import signal
import tempfile
import traceback
from pathlib import Path

import evaluate
import toydata
import train
from extras import ablate, curves, search
from tests.commands import call

SECONDS = 30  # a command that takes longer hangs
WORDS = [b"NaN", b"1e999", b"-1", b"[]", b"{}", b"null", b'"x"', b"1" * 400, b"true", b"0.5"]
FLAGS = ("--data", "toy", "--task", "li", "--steps", 1, "--ids", 4, "--warmup", 1)
ABLATE = (ablate, "--name", "a", *FLAGS, "--seeds", 1, "--vary", "")
COMMANDS = {  # a file -> the command that reads it
    "runs/a/default-seed_0/log.jsonl": (curves, "runs/a/default-seed_0", "--out", "c.png"),
    "runs/a/default-seed_0/config.json": ABLATE,
    "runs/a/default-seed_0/queries.json": ABLATE,
    "index.safetensors": (search, "--photos", "toy/LTCC_ReID/query", "--instruction", "a red coat",
                          "--index", "index.safetensors", "--checkpoint", "trained.pt"),
    "f.safetensors": (evaluate, "--checkpoint", "f.safetensors"),
    "small.pt": (evaluate, "--checkpoint", "small.pt", "--task", "li"),
}


def prepare():
    """The files, by the commands that write them."""
    toydata.make_toy("toy", people=8, seed=0)
    assert call(train, *FLAGS, "--name", "a/default-seed_0") == 0
    shutil.copy(Path("runs/a/default-seed_0/last.pt"), "small.pt")
    assert call(evaluate, "--checkpoint", "small.pt", "--save-features", "f.safetensors") == 0
    shutil.copy(evaluate.TRAINED, "trained.pt")
    assert call(*ABLATE) == 0
    assert call(*COMMANDS["index.safetensors"]) == 0


def damaged(content, rng):
    """The bytes of a file with one thing wrong: cut off, a part lost, doubled or exchanged, another
    number, a bit flipped."""
    start = rng.randrange(len(content))
    end = min(len(content), start + rng.randrange(1, 40))
    numbers = [match.span() for match in re.finditer(rb"-?\d+\.?\d*", content[:10**5])]
    first, last = rng.choice(numbers or [(start, end)])
    flipped = bytes([content[start] ^ 1 << rng.randrange(8)])
    return rng.choice((
        content[:start],
        content[:start] + content[end:],
        content[:end] + content[start:],
        content[:start] + rng.randbytes(end - start) + content[end:],
        content[:first] + rng.choice(WORDS) + content[last:],
        content[:start] + flipped + content[start + 1:],
    ))


def hang(*_):
    raise TimeoutError("a hang")


def complaint(module, *flags):
    """What is wrong with the end of a command; None if nothing is."""
    printed = io.StringIO()
    signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            code = call(module, *flags)
    except BaseException as error:  # whatever a user would see as a traceback
        return f"{error!r:.120} {traceback.format_exc().splitlines()[-3].strip():.120}"
    finally:
        signal.alarm(0)
    return None if code in (0, 2) else f"exit code {code}: {printed.getvalue()[-100:]}"


def fuzz(rounds, seed):
    """[(file, round, complaint)] of every file damaged `rounds` times."""
    rng = random.Random(seed)
    found = []
    for path, command in COMMANDS.items():
        whole = Path(path).read_bytes()
        for number in range(rounds):
            Path(path).write_bytes(damaged(whole, rng))
            found.append((path, number, complaint(*command)))
        Path(path).write_bytes(whole)
    return [each for each in found if each[2]]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        prepare()
        found = fuzz(options.rounds, options.seed)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(*found, f"{len(found)} complaints, at most {peak:.1f} GiB of memory", sep="\n")


if __name__ == "__main__":
    main()
