"""Time of the ranking metrics, compared with only the matrix product of the features, and memory.

Random features of synthetic people; medians of repeats that alternate in one process.
"""

import resource
import statistics
import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from evaluate import CHUNK, Retrieval, rank
from reid import cli
from reid.protocols import GENERAL
from reid.records import Record

SIZES = {  # queries, gallery, people, cameras
    "Market-1501": (3368, 19732, 751, 6),
    "MSMT17": (11659, 82161, 3060, 15),
}
TINY = {"tiny": (64, 500, 20, 6)}


def planted(count, people, cams, seed, dim=768):
    """Records of people in cameras and their features (n d), around a centre for each person."""
    centres = torch.randn(people, dim, generator=torch.Generator().manual_seed(0))
    rng = torch.Generator().manual_seed(seed)
    pids = torch.randint(people, (count,), generator=rng)
    camids = torch.randint(cams, (count,), generator=rng)
    feats = torch.randn(count, dim, generator=rng)
    for chunk, chunk_pids in zip(feats.split(10_000), pids.split(10_000)):
        chunk.mul_(3).add_(centres[chunk_pids])
        F.normalize(chunk, dim=1, out=chunk)
    pairs = zip(pids.tolist(), camids.tolist())
    return [Record("planted", "gallery", "x.jpg", *pair) for pair in pairs], feats


def compare(name, queries, gallery, people, cams, repeats):
    """Prints a line: the metrics of a protocol compared with the product."""
    query_records, query_feats = planted(queries, people, cams, seed=1)
    gallery_records, gallery_feats = planted(gallery, people, cams, seed=2)
    retrieval = Retrieval(query_records, gallery_records, query_feats, gallery_feats)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux
    times = []
    for _ in range(repeats):  # alternating, so that a slow minute affects both
        start = time.perf_counter()
        for chunk in query_feats.split(CHUNK):
            chunk @ gallery_feats.T
        middle = time.perf_counter()
        rank(GENERAL, retrieval)
        times.append((middle - start, time.perf_counter() - middle))
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    product, metrics = map(statistics.median, zip(*times))
    print(f"{name}, {queries} x {gallery}: product {product:.2f} s, all figures {metrics:.2f} s, "
          f"ratio {metrics / product:.2f}; {memory:.2f} GiB more than the features", flush=True)


@dataclass
class Config:
    """Times the ranking of Market-1501's and MSMT17's numbers of images on the CPU."""

    tiny: bool = cli.option(False, "the smallest sizes, only to check that it runs")
    repeats: int = cli.option(3, "number of timings", least=1, most=1000)


def main(config):
    print(f"torch {torch.__version__}, numpy {np.__version__}, {torch.get_num_threads()} threads")
    for name, sizes in (TINY if config.tiny else SIZES).items():
        compare(name, *sizes, config.repeats)


if __name__ == "__main__":
    cli.run(main, Config)
