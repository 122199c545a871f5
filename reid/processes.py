"""Several processes of one run, started by torchrun, each with its own GPU and batches.

Without torchrun there is one process, and these functions have no effect.
"""

import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from reid.cli import UserError

TORCHRUN = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT")  # numbers that it sets
PATIENCE = timedelta(days=7)  # how long processes wait while rank 0 evaluates, saves or draws

_patient = None  # a group of all processes, on the CPU, with that timeout


def join(device):
    """(rank, number of processes) from torchrun's variables; (0, 1) without torchrun. Output of
    other ranks than 0 is suppressed."""
    global _patient
    world = os.environ.get("WORLD_SIZE", "1")
    if world == "1":
        return 0, 1
    for name in TORCHRUN:
        value = os.environ.get(name, "not set")
        if not value.isdecimal():
            raise UserError(f"{name} is {value}, WORLD_SIZE {world}: start it as torchrun "
                            "--nproc_per_node=N train.py ..., or unset WORLD_SIZE")

    backend = "gloo"
    if device.type == "cuda":
        own = int(os.environ["LOCAL_RANK"])
        if device.index != own:
            raise UserError(f"--device {device}: process {own} here has a GPU of its own; "
                            "leave --device out")
        torch.cuda.set_device(device)
        backend = "nccl"
    dist.init_process_group(backend)
    _patient = dist.new_group(backend="gloo", timeout=PATIENCE)
    if dist.get_rank() > 0:
        sys.stdout = open(os.devnull, "w")
    return dist.get_rank(), dist.get_world_size()


def from_first(make):
    """Returns the result of `make()` in rank 0, which can be pickled, to all processes; the others
    do not call it."""
    if not dist.is_initialized():
        return make()
    values = [make() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(values, group=_patient)
    return values[0]


def first_alone(make):
    """Returns the result of `make()`. Rank 0 calls it before the others, which then find the files
    that it wrote."""
    is_first = not dist.is_initialized() or dist.get_rank() == 0
    made = make() if is_first else None
    from_first(lambda: None)
    return made if is_first else make()


def parallel(module):
    """The module as torch's DistributedDataParallel: the backward pass averages the gradients of
    all processes; all start with the weights of rank 0. Without torchrun, the module itself.

    No task uses all parameters, so the unused ones are determined in each step.
    """
    if not dist.is_initialized():
        return module
    any_process(False)  # wait for all, as its own timeout is short
    return DistributedDataParallel(
        module, forward_sync_buffers=False, find_unused_parameters=True,
        gradient_as_bucket_view=True)


def average_statistics(model):
    """Averages the running means and variances of batch norms over the processes: in training each
    process normalises by its own batch, in testing all batches count."""
    for name, buffer in model.named_buffers():
        if dist.is_initialized() and name.endswith(("running_mean", "running_var")):
            dist.all_reduce(buffer)
            buffer /= dist.get_world_size()


def any_process(flag):
    """Whether the flag is set in any of the processes; waits until all have called it.

    It can wait for days, unlike an exchange of gradients, which gives up after minutes; it does not
    block GPUs.
    """
    if not dist.is_initialized():
        return bool(flag)
    flags = torch.tensor(int(bool(flag)))
    dist.all_reduce(flags, dist.ReduceOp.MAX, group=_patient)
    return bool(flags)


def leave():
    """Leaves the group of processes; each continues alone."""
    if dist.is_initialized():
        dist.destroy_process_group()
