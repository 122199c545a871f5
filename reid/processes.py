"""Several processes of one run, as torchrun starts them: each has a GPU and batches of its own.

Without torchrun there is one process, and nothing here does anything.
"""

import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from reid.cli import UserError

TORCHRUN = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT")  # numbers that it sets
PATIENCE = timedelta(days=7)  # how long processes wait for one that evaluates, saves or draws

_patient = None  # the group of all processes, on the CPU, that waits so long


def join(device):
    """(rank, number of processes), from what torchrun sets; (0, 1) without it. What ranks other
    than 0 print is dropped.

    UserError if only a part of that is set, or if the device is another process's GPU.
    """
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
    """What `make()` returns in rank 0, in every process; the others do not call it. It can be
    anything that pickle knows."""
    if not dist.is_initialized():
        return make()
    values = [make() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(values, group=_patient)
    return values[0]


def first_alone(make):
    """What `make()` returns in every process; rank 0 calls it before the others, which find the
    files that it wrote."""
    is_first = not dist.is_initialized() or dist.get_rank() == 0
    made = make() if is_first else None
    from_first(lambda: None)
    return made if is_first else make()


def parallel(module):
    """The module as torch's DistributedDataParallel: backward leaves the mean of the gradients of
    all processes, exchanged while the rest is still being computed; every process starts with the
    weights of rank 0. One process gets the module itself.

    A task does not use every parameter: which ones is found out in each step.
    """
    if not dist.is_initialized():
        return module
    any_process(False)  # it does not wait long for the slowest one itself
    return DistributedDataParallel(
        module,
        forward_sync_buffers=False,
        find_unused_parameters=True,
        gradient_as_bucket_view=True,
    )


def average_statistics(model):
    """The running means and variances of the batch norms become their mean over the processes: each
    normalises by its own batch, and a test by what all have seen."""
    for name, buffer in model.named_buffers():
        if dist.is_initialized() and name.endswith(("running_mean", "running_var")):
            dist.all_reduce(buffer)
            buffer /= dist.get_world_size()


def any_process(flag):
    """Whether the flag is set in any of the processes; returns when all have asked.

    It waits for days if need be, where an exchange of gradients would give up after minutes, and
    on the CPUs: no GPU waits for it.
    """
    if not dist.is_initialized():
        return bool(flag)
    flags = torch.tensor(int(bool(flag)))
    dist.all_reduce(flags, dist.ReduceOp.MAX, group=_patient)
    return bool(flags)


def leave():
    """Ends the work with the other processes; each continues alone."""
    if dist.is_initialized():
        dist.destroy_process_group()
