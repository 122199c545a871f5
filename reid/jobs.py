"""Several commands at a time, one for each GPU or core."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from reid import cli, files
from reid.cli import UserError

POLL = 1.0  # seconds between looks at the processes, whose logs are read each time
BAR = "{desc}: {n:.1f} of {total} |{bar}| {elapsed}, {remaining} to go{postfix}"


class Job(NamedTuple):
    name: str
    command: list
    output: Path  # what it would write on a terminal
    share: Callable  # () -> the share of its work that is done


def run_all(jobs, at_a_time, gpus=(), finished=0):
    """Runs all jobs; shows how many have ended, with the `finished` from before, and the time left.

    gpus: their names; job by job the next one is the only one that a process sees.
    UserError with the last line of a job that fails. Whatever ends this sends SIGTERM to the
    processes, and waits for them.
    """
    waiting = list(jobs)
    working = {}  # place -> (Job, its process, when it began)

    total = finished + len(jobs)
    bar = cli.progress(None, "runs", total=total, initial=finished, bar_format=BAR)
    try:
        while waiting or working:
            for place in range(at_a_time):
                if waiting and place not in working:
                    job = waiting.pop(0)
                    gpu = gpus[place % len(gpus)] if gpus else None
                    working[place] = job, start(job, gpu), time.time()

            time.sleep(POLL)
            for place, (job, process, began) in list(working.items()):
                if process.poll() is None:
                    continue
                del working[place]
                check_end(job, process)
                finished += 1
                minutes = (time.time() - began) / 60
                bar.set_postfix_str(f"{job.name} took {minutes:.1f} minutes", refresh=False)

            shares = [job.share() for job, _, _ in working.values()]
            bar.n = round(finished + sum(shares), 2)
            bar.update(0)
    finally:
        for _, process, _ in working.values():
            process.terminate()
        for _, process, _ in working.values():
            process.wait()
        bar.close()


def start(job, gpu):
    """The process of a job, on one thread: where cores are shared, more wait for each other."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu

    with files.writing(job.output), open(job.output, "a") as output:
        return subprocess.Popen(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            process_group=0,  # Ctrl-C reaches this process alone, which then ends the others
        )


def check_end(job, process):
    """UserError unless the process has done its job."""
    if process.returncode == 0:
        return
    lines = [line for line in job.output.read_text().splitlines() if line.strip()]
    said = lines[-1] if lines else f"exit code {process.returncode}"
    raise UserError(f"{job.name}: {said.removeprefix('error: ')} (all of it: {job.output})")


def visible_gpus():
    """Their names, as CUDA_VISIBLE_DEVICES has them."""
    if not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named:
        return named.split(",")
    return [str(number) for number in range(torch.cuda.device_count())]
