"""Three runs of train.py in two processes each, with what torchrun sets, watched:
`python tests/watched_processes.py FLAGS`.

"slow": exchanges between the processes give up after PATIENCE seconds, and the first evaluation
takes longer. "interrupted": the second process gets Ctrl-C in the step INTERRUPTED. "resumed": that
run goes on. What the processes of a run saw goes into slow0.pt and slow1.pt, and so on, in the
current folder; what they said goes into slow.txt.
"""

import math
import multiprocessing
import os
import signal
import socket
import sys
import time
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path

import torch
import torch.distributed as dist
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import BertModel, BertTokenizer  # noqa: F401  once, before there are processes

sys.path.insert(0, str(Path(__file__).parents[1]))
import data
import evaluate
import train
from model import SIZES
from reid import cli
from tests.test_model import TINY

RANKS = (0, 1)
PATIENCE = 4
INTERRUPTED = 3  # the first is 1
FLAGS = {
    "slow": ("--evaluate-every", "2", "--name", "slow"),
    "interrupted": ("--name", "interrupted"),
    "resumed": ("--resume", "runs/interrupted/last.pt"),
}


def copy_of(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def watch(mode, rank, port, flags):
    """A process of a run."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(len(RANKS)),
                   "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    sys.argv = ["train.py", *flags]
    sys.stderr = open(f"{mode}.txt", "a")
    torch.set_num_threads(1)
    nets = []
    seen = {"steps": [], "gradients": [], "seeds": []}
    init_process_group = dist.init_process_group
    loss_terms = train.loss_terms
    augment = data.augment

    def impatient(*args, **kwargs):
        init_process_group(*args, **kwargs)
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=PATIENCE))

    def slow_evaluation(*args, **flags):
        if mode == "slow" and not seen.get("evaluated"):
            time.sleep(1.5 * PATIENCE)
        seen["evaluated"] = True
        return []

    def watched_augment(images, pictures, pad, erase, rng):
        seen["seeds"].append(rng.initial_seed())
        return augment(images, pictures, pad, erase, rng)

    def watched_terms(net, images, pictures, batch, *args):
        nets.append(net)
        seen["steps"].append((copy_of(net), images, pictures, batch))
        if mode == "interrupted" and rank == 1 and len(seen["steps"]) == INTERRUPTED:
            os.kill(os.getpid(), signal.SIGINT)
        return loss_terms(net, images, pictures, batch, *args)

    def note_gradients(optimiser, args, kwargs):
        if isinstance(optimiser, torch.optim.AdamW):  # the first of a step
            gradients = {name: p.grad.clone() for name, p in nets[0].named_parameters()
                         if p.grad is not None}
            seen["gradients"].append(gradients)

    train.loss_terms = watched_terms
    train.CLIP = math.inf  # the gradients as they are
    data.augment = watched_augment
    evaluate.evaluate_all = slow_evaluation
    evaluate.matrix_of_all = lambda *args, **flags: []
    SIZES["tiny"] = TINY
    if mode == "slow":
        dist.init_process_group = impatient
    register_optimizer_step_pre_hook(note_gradients)
    try:
        cli.run(train.main, train.Config)
    except SystemExit as end:
        seen["code"] = end.code
    seen["last"] = copy_of(nets[0])
    torch.save(seen, f"{mode}{rank}.pt")


def main():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    fork = multiprocessing.get_context("fork")  # what is imported need not be once more
    for mode, own in FLAGS.items():
        with socket.create_server(("localhost", 0)) as free:
            port = free.getsockname()[1]
        flags = own if mode == "resumed" else (*sys.argv[1:], *own)
        both = [fork.Process(target=watch, args=(mode, rank, port, flags)) for rank in RANKS]
        for process in both:
            process.start()
        while running := [process for process in both if process.is_alive()]:
            wait([process.sentinel for process in running])
            for process in running if any(process.exitcode for process in both) else ():
                process.kill()  # it would wait for one that failed


if __name__ == "__main__":
    main()
