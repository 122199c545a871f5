"""What feeds a training step: `python benchmarks/feed.py`. Images a second of one core by kind of file,
through the loader with 0, 1 and 2 workers, and how long a step of a small model on the CPU waits.

The pictures are noise on soft colours, as large on the disk as photographs of that size.
"""

import sys
import tempfile
import time
import warnings
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
import data
from instructions import asked_tasks
from model import SIZES, InstructReID
from reid.device import cores
from reid.folders import open_all
from reid.images import load_image
from reid.text import EmbeddedTextEncoder
from train import PRESETS, Config, loss_terms

KINDS = (("jpg", 256, 128), ("png", 300, 150), ("jpg", 640, 320))  # as files are published
PEOPLE = 16
IMAGES = 16  # of each person
BATCH = 8, 2  # identities, images of each


def picture(height, width, rng):
    soft = Image.fromarray(rng.integers(0, 256, (8, 4, 3), np.uint8))
    soft = np.array(soft.resize((width, height), Image.Resampling.BICUBIC), float)
    noisy = soft + rng.normal(0, 6, soft.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def draw_market(root, height, width):
    """A data set in the layout of Market-1501."""
    rng = np.random.default_rng(0)
    for folder, people in (("bounding_box_train", PEOPLE), ("query", 1), ("bounding_box_test", 1)):
        (root / folder).mkdir(parents=True)
        for pid in range(1, people + 1):
            for number in range(IMAGES):
                name = f"{pid:04}_c{1 + number % 6}s1_{number:06}_00.jpg"
                picture(height, width, rng).save(root / folder / name, quality=90)


def decoding(kind, height, width, count=100):
    """Images a second that one core decodes and resizes to 256x128: processor time, not the clock."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.{kind}" for number in range(count)]
        for path in paths:
            picture(height, width, rng).save(path, quality=90)
        kilobytes = sum(path.stat().st_size for path in paths) / count / 1000

        load_image(paths[0], SIZES["base"]["size"])
        start = time.process_time()
        for path in paths:
            load_image(path, SIZES["base"]["size"])
        seconds = time.process_time() - start
    print(f"{kind} {height}x{width}, {kilobytes:.0f} kB: {count / seconds:.0f} images/s of one core")


def open_batches(root):
    shape = SIZES["small"]
    return data.Batches(
        open_all(root, asked_tasks("trad")), shape["size"], shape["picture_size"], *BATCH, seed=0
    )


def loading(root, workers, steps=200):
    """Images a second out of the loader, by the clock, without its start and end."""
    batches = open_batches(root)
    loader = data.loader(batches, 0, steps + 20, workers)
    next(loader)
    start = time.perf_counter()
    images = sum(len(batch.images) for batch in islice(loader, steps))
    print(f"{workers} workers: {images / (time.perf_counter() - start):.0f} images/s")


def waiting(root, workers, steps=3):
    """Which share of the time a small model's training steps wait for their batch."""
    batches = open_batches(root)
    config = Config(**{**PRESETS["toy"], "margin": 0.3})
    model = InstructReID("small", batches.classes, text=EmbeddedTextEncoder()).train()
    loader = data.loader(batches, 0, steps, workers)
    precision = torch.autocast("cpu", enabled=False)
    waited = 0
    start = time.perf_counter()
    for _ in range(steps):
        asked = time.perf_counter()
        batch = next(loader)
        waited += time.perf_counter() - asked
        images, _ = data.augment(batch.images, None)
        sum(loss_terms(model, images, batch.instr, batch, config, precision).values()).backward()
        model.zero_grad()
    seconds = time.perf_counter() - start
    print(f"{workers} workers, small model, batches of {len(images)}: {seconds / steps:.1f} s a step, "
          f"{100 * waited / seconds:.1f} % of it waiting for the batch")


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # that this is not all of Market-1501
    data.CACHE_BYTES = 0  # every image is decoded
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {cores()} cores, CPU")
    for each in KINDS:
        decoding(*each)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "Market-1501-v15.09.15"
        draw_market(root, 256, 128)
        for workers in (0, 1, 2):
            loading(root, workers)
        for workers in (0, 1):
            waiting(root, workers)
