"""What a training step costs: `python benchmarks/step.py`. Medians over interleaved repeats in one process; ratios
travel, times do not."""

import dataclasses
import itertools
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from timing import medians

import data
import toydata
from instructions import asked_tasks
from model import SIZES, InstructReID, ViT
from reid.folders import open_all
from reid.text import EmbeddedTextEncoder
from train import PRESETS, Config, loss_terms


def training_step(model, *inputs):
    """Forward, backward and AdamW of one batch."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step():
        model(*inputs)[:, 0].square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    return step


def editing(repeats=5):
    """The base ViT at 256x128, batch 8, with and without an 8-word instruction per image (10 tokens with [CLS] and [SEP])."""
    torch.manual_seed(0)
    images, instr, mask = torch.randn(8, 3, 256, 128), torch.randn(8, 10, 768), torch.ones(8, 10, dtype=torch.bool)
    t = medians({"edited": training_step(ViT(instr_dim=768), images, instr, mask),
                 "plain": training_step(ViT(), images)}, repeats)
    print(f"editing, base 256x128, batch 8: {t['edited']:.2f} s against {t['plain']:.2f} s a step, "
          f"ratio {t['edited'] / t['plain']:.3f}")


def sentences(repeats=20):
    """A frozen text tower reads a sentence once: a batch of 96 sentences the first time and every time after."""
    text = EmbeddedTextEncoder()
    batch = [f"a person with short hair wears a red coat and blue trousers, number {i}" for i in range(96)]

    def first():
        text.memory.clear()
        text(batch)
    new = medians({"first": first}, 3)["first"]
    known = medians({"known": lambda: text(batch)}, repeats)["known"]
    print(f"96 sentences: {new * 1000:.0f} ms read, {known * 1000:.1f} ms remembered, ratio {known / new:.4f}")


def feeding(people=64, steps=30):
    """The data path (decode, batch, augment) against the toy model's training step, images a second."""
    config = dataclasses.replace(Config(), **{**PRESETS["toy"], "task": "cc"})
    with tempfile.TemporaryDirectory() as folder:
        toydata.make_toy(f"{folder}/toy", people=people, seed=0)
        datasets = open_all(f"{folder}/toy", asked_tasks("cc"))
        shape = SIZES["tiny"]
        batches = data.Batches(datasets, shape["size"], shape["picture_size"], config.ids, config.images, 0)
        model = InstructReID("tiny", batches.classes, text=EmbeddedTextEncoder()).train()
        turn = itertools.count()

        def feed(clear):
            if clear:
                batches.cache.clear()
            batch = batches[next(turn)]
            return batch, data.augment(batch.images, None, pad=4)[0]

        def step():
            batch, images = feed(False)
            sum(loss_terms(model, images, batch.instr, batch, config, torch.autocast("cpu", enabled=False)).values()).backward()
            model.zero_grad()
        t = medians({"feed": lambda: feed(False), "decode": lambda: feed(True), "step": step}, steps)
    train, n = t["step"] - t["feed"], config.ids * config.images
    print(f"data path: {n / t['feed']:.0f} images/s from memory, {n / t['decode']:.0f} from files; the toy model trains on "
          f"{n / train:.0f}; ratios {train / t['feed']:.1f} and {train / t['decode']:.1f}")


if __name__ == "__main__":
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, CPU")
    editing()
    sentences()
    feeding()
