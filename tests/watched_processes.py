"""train.py in several processes, watched: `torchrun ... tests/watched_processes.py MODE FLAGS`.

MODE "slow": exchanges between the processes give up after PATIENCE seconds, and the first
evaluation takes longer. "interrupt": the second process gets Ctrl-C in the step INTERRUPTED.
"quiet": neither. What the process saw goes into MODE0.pt or MODE1.pt in the current folder.
"""

import math
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.optim.optimizer import register_optimizer_step_pre_hook

sys.path.insert(0, str(Path(__file__).parents[1]))
import data
import evaluate
import train
from model import SIZES
from reid import cli
from tests.test_model import TINY

PATIENCE = 6
INTERRUPTED = 3  # the first is 1


def copy_of(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def main():
    rank = int(os.environ["RANK"])
    mode = sys.argv.pop(1)
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
        if mode == "interrupt" and rank == 1 and len(seen["steps"]) == INTERRUPTED:
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
    finally:
        seen["last"] = copy_of(nets[0])
        torch.save(seen, f"{mode}{rank}.pt")


if __name__ == "__main__":
    main()
