"""What a model runs on, and in which precision."""

import os

import torch

from reid.cli import UserError


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


def autocast(name, device):
    """The context that --amp asks for; it can be entered again and again."""
    dtype = amp_dtype(name, device)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)
