"""The device and the precision of a model."""

import os
import shutil
from contextlib import contextmanager

import torch

from reid.cli import UserError, user_error

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}  # None: float32
AMP = ("auto", *DTYPES)  # the choices of --amp
WORKERS = 8  # this many decode 3,000 to 20,000 images a second
SHARED = "/dev/shm"  # shared memory for their batches


def pick_device(name):
    """The torch.device of --device; auto: this process's own CUDA GPU, else Apple's, else the CPU.
    """
    if name == "auto" and torch.cuda.is_available():
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    elif name == "auto":
        name = "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        probe = torch.zeros(1, device=name)
        probe.item()  # meta, for example, cannot hold numbers
        return probe.device
    except (RuntimeError, AssertionError, ImportError) as error:  # without CUDA, torch asserts
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name} cannot be used here; try cpu ({reason})") from error


def amp_dtype(name, device):
    """What --amp means on a device: torch.bfloat16, torch.float16, or None for float32.

    auto is float32 on the CPU; on CUDA bf16 if the GPU supports it (older ones emulate it, slowly),
    else fp16.
    """
    if name != "auto":
        return DTYPES[name]
    if device.type != "cuda":
        return None
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bf16 else torch.float16


def allow_tf32(device):
    """Lets a GPU multiply float32 matrices in TF32, several times faster: 11 bits of each factor,
    sums in float32. For full precision see full_precision_matmul."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        print("float32 on this GPU: TF32 in the model, full precision in distances and rankings")


@contextmanager
def full_precision_matmul():
    """Products of float32 matrices in full precision, even if a GPU may otherwise use TF32.

    With TF32, squared distances between outputs of a LayerNorm, which are differences of terms of
    about 1500, have errors of 0.02 on average and up to 0.1.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def check_compiler(device):
    """UserError if torch.compile does not work here."""
    with user_error("--compile does not work here", "install a C++ compiler, or drop the flag"):
        torch.compile(torch.neg)(torch.zeros(2, device=device))


def loader_workers(wanted, device, batch_bytes):
    """The number of loader processes: `wanted` or, with a note, as many as shared memory has room
    for, with batches of `batch_bytes`.

    wanted None: 0 on the CPU, where the model needs the cores; on a GPU the cores of this process
    less one, at most WORKERS.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if wanted is None and device.type == "cpu":
        wanted = 0
    elif wanted is None:
        wanted = min(max(cores() // processes - 1, 1), WORKERS)
    if not wanted or not os.path.isdir(SHARED):
        return wanted

    free = shutil.disk_usage(SHARED).free / processes
    batches = int(0.9 * free / batch_bytes) - 2  # 2 are in use
    room = max(batches // 2, 0)  # a worker keeps 2 ready
    if room < wanted:
        print(f"note: {SHARED} has {free / 2**20:.0f} MiB, which is room for {room} of {wanted} "
              "loader workers; a container gets more with --shm-size 8g")
    return min(room, wanted)


def cores():
    """The number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def autocast(name, device):
    """The autocast context of --amp; it can be entered repeatedly."""
    dtype = amp_dtype(name, device)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


@contextmanager
def inference(model, amp="off"):
    """A context for inference in evaluation mode, with --amp as in training. Yields the device; the
    model's mode is restored at the end."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), autocast(amp, device):
            yield device
    finally:
        model.train(was_training)


def rng_state():
    """The state of torch's random number generators, on the CPU and on all GPUs."""
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": gpus}


def restore_rng(state, device):
    """Restores a result of rng_state; a GPU gets the state of its own number, if there is one."""
    torch.set_rng_state(state["cpu"])
    number = device.index or 0
    if device.type == "cuda" and number < len(state["cuda"]):
        torch.cuda.set_rng_state(state["cuda"][number], device)
