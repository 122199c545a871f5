"""Operations and memory of a training step in the paper's sizes; time of an update by Muon."""

import statistics
from dataclasses import dataclass

import torch
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from instructions import TASKS
from model import SIZES, InstructReID, ViT
from reid import cli
from reid.muon import Muon
from reid.text import TextEncoder, embedded_text_model

GIB = 2**30
TRUNK = ("size", "patch", "dim", "depth", "heads", "stem")  # of SIZES, for E_e


def editing(size):
    """Prints the operations that editing with 10 instruction tokens adds to E_e."""
    shape = {key: SIZES[size][key] for key in TRUNK}
    unedited, edited = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with torch.device("meta"):
        photo = torch.randn(1, 3, *shape["size"])
        with unedited:
            ViT(**shape)(photo)
        with edited:
            ViT(**shape, instr_dim=shape["dim"])(photo, torch.randn(1, 10, shape["dim"]))
    before, after = (counter.get_total_flops() / 1e9 for counter in (unedited, edited))
    print(f"{size}: {before:.2f} GFLOP for a photo, {after:.2f} with editing, ratio "
          f"{after / before:.3f}")


def memory(size, images=128):
    """Prints the memory of parameters and of activations kept for the backward pass in bf16, which
    are extrapolated from 2 and 3 images."""
    text = TextEncoder(*embedded_text_model())
    model = InstructReID(size, {"market": 751}, text=text).train()
    count = learning(model)
    print(f"{size}: {count / 1e6:.1f} million parameters learn, {16 * count / GIB:.2f} GiB "
          "with gradients and AdamW")
    for task, row in TASKS.items():
        with torch.device("meta"):
            alone = InstructReID(size, parts=row.parts, text=text)
        print(f"  {task} alone: {learning(alone) / 1e6:.1f} million")
    kept = {}
    for checkpointing in (False, True):
        model.editor.checkpointing = checkpointing
        two, three = (kept_bytes(model, number) for number in (2, 3))
        kept[checkpointing] = (two + (three - two) * (images - 2)) / GIB
    print(f"  activations of {images} images, bf16: {kept[False]:.1f} GiB; with "
          f"--grad-checkpointing {kept[True]:.1f} GiB, and one layer's while backward is in it")


def learning(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def kept_bytes(model, images):
    """Bytes that autograd keeps for the backward pass of some images, without parameters."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage  # kept alive, so that its address stays unique
        return tensor

    photos = torch.randn(images, 3, *model.size)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        model(photos, model.instruct([TASKS["trad"].sentences[0]]))
    return sum(storage.nbytes() for place, storage in storages.items() if place not in parameters)


def muon(repeats=5):
    """Prints the time of updates by torch's Muon and ours, of the layers of the small E_e."""
    layers = ViT(**{key: SIZES["tiny"][key] for key in TRUNK}).blocks
    matrices = [p for p in layers.parameters() if p.ndim == 2]
    for p in matrices:
        p.grad = torch.randn_like(p)
    theirs, ours = (kind(matrices, lr=1e-3) for kind in (torch.optim.Muon, Muon))
    times = {theirs: [], ours: []}
    for _ in range(repeats):  # alternating, so that a slow minute affects both
        for optimiser, measured in times.items():
            measured.append(Timer("step()", globals={"step": optimiser.step}).timeit(10).mean)
    bf16, float32 = (1000 * statistics.median(measured) for measured in times.values())
    print(f"Muon: {bf16:.1f} ms an update in bf16 (torch), {float32:.1f} ms in float32, ratio "
          f"{bf16 / float32:.1f}")


@dataclass
class Config:
    """Counts operations, computes the memory of the paper's sizes, and times Muon."""

    tiny: bool = cli.option(False, "the smallest size, only to check that it runs")


def main(config):
    for size in ("tiny",) if config.tiny else ("base", "base-384"):
        editing(size)
        memory(size)
    muon()


if __name__ == "__main__":
    cli.run(main, Config)
