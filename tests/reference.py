"""Reference numbers of tests/golden, recorded from public programs; its README says which."""

from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parent / "golden"


def golden(name):
    """The arrays of one recorded file, {name: array}."""
    with np.load(FOLDER / name) as file:
        return dict(file)


# ---- published checkpoints: recorded weights, wrapped as their authors wrap them ----

PASS_LAYOUTS = ("flat", "state_dict", "teacher_module", "teacher_plain")


def pass_checkpoint(layout, path):
    """Writes the PASS weights to `path` in one of PASS_LAYOUTS."""
    tensors = recorded("vit_pass/weights.npz")
    head = {name: tensor for name, tensor in tensors.items() if name.startswith("head.")}
    vit = {name: tensor for name, tensor in tensors.items() if name not in head}

    teacher = under("backbone.", vit) | head  # as the pre-training program names it
    student = under("module.", decoys(teacher))
    state = {
        "flat": vit,
        "state_dict": {"state_dict": vit},
        "teacher_module": {"teacher": under("module.", teacher), "epoch": 7},
        "teacher_plain": {"student": student, "teacher": teacher, "epoch": 7},
    }[layout]
    torch.save(state, path)
    return path


def deit_checkpoint(kind, path):
    """Writes the weights of the DeiT `kind`, "plain" or "distilled", to `path`."""
    torch.save({"model": recorded(f"deit/weights_{kind}.npz")}, path)
    return path


def albef_checkpoint(path, recorded_in_momentum=False):
    """Writes the ALBEF weights to `path`: every tensor of ALBEF.pth, momentum twins included.

    The recorded weights are those of the online towers and the momentum twins are decoys;
    with recorded_in_momentum they change places.
    """
    online = recorded("albef/weights.npz")
    words = online["text_encoder.bert.embeddings.word_embeddings.weight"]
    online["text_encoder.cls.predictions.decoder.weight"] = words  # tied in ALBEF

    modules = ("visual_encoder.", "text_encoder.", "vision_proj.", "text_proj.")
    twins = {name: tensor for name, tensor in online.items() if name.startswith(modules)}
    momentum = decoys(twins)
    if recorded_in_momentum:
        online, momentum = online | momentum, twins

    renamed = {name.replace(".", "_m.", 1): tensor for name, tensor in momentum.items()}
    torch.save({"model": online | renamed, "epoch": 29}, path)
    return path


def recorded(name):
    """The tensors of a recorded file of weights, {published name: tensor}."""
    return {key: torch.as_tensor(array) for key, array in golden(name).items()}


def decoys(tensors):
    """Tensors of the same names and shapes with other values, which a loader must not take."""
    generator = torch.Generator().manual_seed(0)
    others = {}
    for name, tensor in tensors.items():
        others[name] = tensor  # the numbers of the positions are the same in every model
        if tensor.is_floating_point():
            others[name] = torch.randn(tensor.shape, generator=generator)
    return others


def under(prefix, tensors):
    """The same tensors with `prefix` before each name."""
    return {prefix + name: tensor for name, tensor in tensors.items()}
