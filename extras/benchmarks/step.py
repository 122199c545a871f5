"""What a training step costs: editing against none, the data path against the step, and memory."""

import tempfile
from dataclasses import dataclass
from itertools import count

import torch

import data
import toydata
import train
from extras.benchmarks import medians
from instructions import TASKS
from model import SIZES, InstructReID, ViT
from reid import cli
from reid.device import autocast
from reid.text import TextEncoder, embedded_text_model

SENTENCE = "do not change clothes"
GIB = 2**30


def editing(size, images, repeats):
    """A step of E_e with and without an instruction of 10 tokens for each image."""
    torch.manual_seed(0)
    shape = {key: SIZES[size][key] for key in ("size", "patch", "dim", "depth", "heads", "stem")}
    photos = torch.randn(images, 3, *shape["size"])
    instr = torch.randn(images, 10, shape["dim"])

    def step_of(vit, *instruction):
        optimiser = torch.optim.AdamW(vit.parameters(), lr=1e-5, fused=True)

        def step():
            vit(photos, *instruction)[:, 0].square().mean().backward()
            optimiser.step()
            optimiser.zero_grad()
        return step

    times = medians({
        "edited": step_of(ViT(**shape, instr_dim=shape["dim"]), instr),
        "not edited": step_of(ViT(**shape)),
    }, repeats)
    ratio = times["edited"] / times["not edited"]
    print(f"editing, {size}, {images} images: {times['edited']:.2f} s against "
          f"{times['not edited']:.2f} s a step, ratio {ratio:.3f}")


def data_path(people, repeats):
    """Decoding, batches and augmentation against the toy model's step, in images a second."""
    with tempfile.TemporaryDirectory() as folder:
        toydata.make_toy(f"{folder}/toy", people=people, seed=0)
        config = train.Config(task="cc", data=f"{folder}/toy")
        datasets = train.open_datasets(config)
        config = train.new_config(config, datasets)
        shape = SIZES[config.size]
        sizes = shape["size"], shape["picture_size"]
        batches = data.Batches(datasets, *sizes, ids_per_batch=6, images_per_id=4, seed=0)
        model, _ = train.build_model(config, batches.classes)
        precision = autocast("off", torch.device("cpu"))
        steps = count()

        def feed():
            batch = batches[next(steps)]
            return batch, *data.augment(batch.images, batch.pictures, pad=4)

        def decode():
            batches.cache.clear()
            feed()

        def step():
            batch, images, pictures = feed()
            terms = train.loss_terms(model, images, pictures, batch, config, precision)
            sum(terms.values()).backward()
            model.zero_grad()

        times = medians({"feed": feed, "decode": decode, "step": step}, repeats)
    training = times["step"] - times["feed"]
    print(f"data path: {24 / times['feed']:.0f} images/s from memory, {24 / times['decode']:.0f} "
          f"from files; the toy model trains on {24 / training:.0f}; ratios "
          f"{training / times['feed']:.1f} and {training / times['decode']:.1f}")


def memory(size, images=128):
    """What a step keeps for its backward pass, in bf16, computed from what 2 and 3 images keep."""
    text = TextEncoder(*embedded_text_model())
    model = InstructReID(size, {"market": 751}, text=text).train()
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(f"{size}: {learning / 1e6:.1f} million parameters learn, {16 * learning / GIB:.2f} GiB "
          "with gradients and AdamW")
    for task, row in TASKS.items():
        with torch.device("meta"):
            alone = InstructReID(size, parts=row.parts, text=text)
        learning = sum(p.numel() for p in alone.parameters() if p.requires_grad)
        print(f"  {task} alone: {learning / 1e6:.1f} million")
    kept = {}
    for checkpointing in (False, True):
        model.editor.checkpointing = checkpointing
        two, three = (kept_bytes(model, number) for number in (2, 3))
        kept[checkpointing] = (two + (three - two) * (images - 2)) / GIB
    print(f"  activations of {images} images, bf16: {kept[False]:.1f} GiB; with "
          f"--grad-checkpointing {kept[True]:.1f} GiB, and one layer's while backward is in it")


def kept_bytes(model, images):
    """Bytes, less the parameters, that autograd keeps for the backward pass of some images."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage  # held, so that no other takes its address
        return tensor

    photos = torch.randn(images, 3, *model.size)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        model(photos, model.instruct([SENTENCE]))
    return sum(storage.nbytes() for place, storage in storages.items() if place not in parameters)


@dataclass
class Config:
    """Times a training step on the CPU and computes the memory of the paper's sizes."""

    tiny: bool = cli.option(False, "the smallest sizes: does it run?")


def main(config):
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, CPU")
    if config.tiny:
        editing("tiny", 2, repeats=1)
        data_path(people=12, repeats=1)
        memory("tiny")
        return
    editing("base", 8, repeats=5)
    data_path(people=64, repeats=30)
    memory("base")
    memory("base-384")


if __name__ == "__main__":
    cli.run(main, Config)
