"""The file of --save-features: tensors with fingerprints of their inputs as keys."""

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from reid.cli import user_error
from reid.files import check_file, replacing


def save_features(path, known, notes):
    """Writes {fingerprint: tensor} and notes {name: string} as .safetensors, atomically. UserError
    if this fails."""
    tensors = {key: tensor.cpu().contiguous() for key, tensor in known.items()}
    with replacing(path) as file:
        file.write(save(tensors, notes))


def load_features(path, notes, device="cpu", fix="save them again"):
    """({fingerprint: tensor}, {name: string}) of a file of save_features; notes: required names.
    UserError, which ends with `fix`, for other files."""
    check_file(path, "give a file that --save-features wrote")
    problem = f"{path} holds no features that --save-features wrote"
    with user_error(problem, fix, (OSError, SafetensorError, ValueError)):
        with safe_open(path, "pt") as file:
            found = file.metadata() or {}
            known = {key: file.get_tensor(key) for key in file.keys()}
        missing = notes - found.keys()
        if missing:
            raise ValueError(f"no note of {min(missing)}")
        for key, tensor in known.items():
            if tensor.dtype != torch.float32 or tensor.ndim < 2 or not tensor.shape[-1]:
                raise ValueError(f"{key:.40} is {tensor.dtype} of shape {tuple(tensor.shape)}")
    return {key: tensor.to(device) for key, tensor in known.items()}, found
