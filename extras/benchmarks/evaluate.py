"""What ranking costs against the bare matrix product of the same features, and its memory.

Random features with planted people; medians of repeats that take turns in one process.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from evaluate import CHUNK, Retrieval, rank
from extras.benchmarks import medians, peak_memory
from reid import cli
from reid.protocols import GENERAL
from reid.records import Record


def planted(count, people, cams, seed, dim=768):
    """Records of people under cameras and their features (n d), around a centre for each."""
    rng = np.random.default_rng(seed)
    pids = rng.integers(0, people, count)
    camids = rng.integers(0, cams, count)
    centres = torch.randn(people, dim, generator=torch.Generator().manual_seed(0))
    feats = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    for chunk, chunk_pids in zip(feats.split(10_000), torch.from_numpy(pids).split(10_000)):
        chunk.mul_(3).add_(centres[chunk_pids])
        F.normalize(chunk, dim=1, out=chunk)
    records = []
    for pid, cam in zip(pids.tolist(), camids.tolist()):
        records.append(Record("planted", "gallery", "x.jpg", pid, cam))
    return records, feats


def compare(name, queries, gallery, people, cams, repeats):
    """One line: all figures of a protocol against the product."""
    query_records, query_feats = planted(queries, people, cams, seed=1)
    gallery_records, gallery_feats = planted(gallery, people, cams, seed=2)

    def product():
        for chunk in query_feats.split(CHUNK):
            chunk @ gallery_feats.T

    retrieval = Retrieval(query_records, gallery_records, query_feats, gallery_feats)

    def figures():
        rank(GENERAL, retrieval)

    memory = peak_memory(figures)
    times = medians({"product": product, "figures": figures}, repeats)
    ratio = times["figures"] / times["product"]
    print(f"{name}, {queries} x {gallery}: product {times['product']:.2f} s, all figures "
          f"{times['figures']:.2f} s, ratio {ratio:.2f}; peak {memory / 2**30:.2f} GiB above the "
          "features", flush=True)


def processor():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return f"{names[0]}, {len(names)} cores"


@dataclass
class Config:
    """Times the ranking of Market-1501's and MSMT17's numbers of images on the CPU."""

    tiny: bool = cli.option(False, "the smallest sizes: does it run?")
    repeats: int = cli.option(3, "how often each is timed", least=1, most=1000)


def main(config):
    print(f"torch {torch.__version__}, numpy {np.__version__}, {torch.get_num_threads()} threads, "
          f"{processor()}")
    if config.tiny:
        compare("tiny", 64, 500, people=20, cams=6, repeats=1)
        return
    compare("Market-1501", 3368, 19732, people=751, cams=6, repeats=config.repeats)
    compare("MSMT17", 11659, 82161, people=3060, cams=15, repeats=config.repeats)


if __name__ == "__main__":
    cli.run(main, Config)
