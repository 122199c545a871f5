"""What a model runs on, and in which precision."""

import os

import torch

from reid.cli import UserError

WORKERS = 8  # they decode 3,000 to 20,000 images a second, see benchmarks/feed.py


def pick_device(name):
    """The torch.device of --device; auto: this process's own GPU if there is one, else the CPU.

    UserError if it cannot be used.
    """
    if name == "auto":
        own = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        name = own if torch.cuda.is_available() else "cpu"
    try:
        probe = torch.zeros(1, device=name)
        probe.item()  # some only pretend: meta holds no numbers
        return probe.device
    except (RuntimeError, AssertionError, ImportError) as error:  # without CUDA, torch asserts
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name} cannot be used here; try cpu ({reason})") from error


def amp_dtype(name, device):
    """What --amp means on a device: torch.bfloat16, torch.float16, or None for float32.

    auto is float32 on the CPU; on CUDA bf16 where the GPU computes it (older ones only emulate it,
    slowly), else fp16.
    """
    if name != "auto":
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[name]
    if device.type != "cuda":
        return None
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bf16 else torch.float16


def allow_tf32(device, say=True):
    """Lets a GPU multiply float32 matrices in TF32, several times faster: 11 bits of each factor,
    sums in float32. What needs all bits asks for them, see losses.all_bits."""
    if device.type != "cuda":
        return
    torch.set_float32_matmul_precision("high")
    if say:
        print("float32 on this GPU: TF32 in the model, all bits in distances and rankings")


def loader_workers(wanted, device):
    """The number of loader processes: `wanted`, or where that is None what suits the device.

    None on the CPU, whose cores the model needs, and where decoded images stay in memory. On a GPU
    one for every core that its process has for itself, less the one that it runs on, up to WORKERS.
    """
    if wanted is not None:
        return wanted
    if device.type == "cpu":
        return 0
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    own = cores() // processes - 1
    return min(max(own, 1), WORKERS)


def cores():
    """Those that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # not everywhere
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def has_room(size, device):
    """Whether a GPU can keep `size` bytes and use as many again; always where there is no GPU."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return 2 * size < free + unused


def send(tensor, device):
    """The tensor on a device. To a GPU it goes through pinned memory: else the program would wait
    for all that the GPU has yet to do."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def autocast(name, device):
    """The context that --amp asks for; it can be entered again and again."""
    dtype = amp_dtype(name, device)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)
