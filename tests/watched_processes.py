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
INTERRUPTED = 2  # counted from 0
SEPARATE_STEP = 1  # it learns from `separate_terms` alone
FULL = torch.autocast("cpu", enabled=False)


def separate_terms(net, images, pictures, batch, config):
    """The terms of the loss in which no image meets another: their mean over a batch is that over
    its parts, as long as the norms do not look at the batch."""
    net.eval()
    terms = train.loss_terms(net, images, pictures, batch, config, FULL)
    net.train()
    return {name: terms[name] for name in ("id", "id_out")}


def copy_of(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def main():
    rank = int(os.environ["RANK"])
    mode = sys.argv.pop(1)
    torch.set_num_threads(1)
    nets = []
    seen = {"steps": [], "gradients": [], "probes": []}
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
        """Also what becomes of a probe, which grows brighter from left to right."""
        left_to_right = torch.arange(images.shape[3]).expand_as(images) * 4
        same = torch.Generator().set_state(rng.get_state())
        seen["probes"].append(augment(left_to_right.to(images.dtype), None, pad, erase, same)[0])
        return augment(images, pictures, pad, erase, rng)

    def watched_terms(net, images, pictures, batch, config, *args):
        if not net.training:  # from separate_terms
            return loss_terms(net, images, pictures, batch, config, *args)
        step = len(seen["steps"])
        nets.append(net)
        seen["steps"].append((copy_of(net), images, pictures, batch))
        if mode == "interrupt" and rank == 1 and step == INTERRUPTED:
            os.kill(os.getpid(), signal.SIGINT)
        if mode != "quiet" and step == SEPARATE_STEP:
            return separate_terms(net, images, pictures, batch, config)
        return loss_terms(net, images, pictures, batch, config, *args)

    def note_gradients(optimiser, args, kwargs):
        gradients = {}
        for name, p in nets[0].named_parameters():
            if p.grad is not None:
                gradients[name] = p.grad.clone()
        if isinstance(optimiser, torch.optim.AdamW):  # the first of a step
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
