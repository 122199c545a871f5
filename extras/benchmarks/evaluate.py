"""What ranking costs: `python benchmarks/evaluate.py`. Random features with planted identities; medians over
interleaved repeats in one process. Ratios to the bare matrix product of the same features travel, times do not.

`--scale 0.1` shrinks every size, for a first look.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
from timing import medians

from evaluate import evaluate_features
from reid import cli
from reid.protocols import GENERAL, Columns

CHUNK = 256


@dataclass
class Config:
    """Times the ranking metrics, re-ranking and their memory."""
    scale: float = cli.option(1.0, "all numbers of images times this")
    repeats: int = cli.option(3, "of the MSMT17 and Market-1501 sizes")


def planted(queries, gallery, ids, cams, dim=768):
    """Features (q d), (g d) of people drawn around their own centre, and the columns of both sides."""
    torch.manual_seed(0)
    rng, centres, sides = np.random.default_rng(0), torch.randn(ids, dim), []
    for n, as_column in ((queries, True), (gallery, False)):
        pid, cam = rng.integers(0, ids, n).astype(float), rng.integers(0, cams, n).astype(float)
        feats = torch.randn(n, dim)
        for some, person in zip(feats.split(10000), torch.from_numpy(pid).long().split(10000)):
            some.mul_(3).add_(centres[person])
            F.normalize(some, dim=1, out=some)
        unknown = np.full(n, np.nan)
        columns = Columns(pid, cam, unknown, unknown, np.zeros(n, bool))
        sides.append((feats, Columns(*(column[:, None] for column in columns)) if as_column else columns))
    (qf, q), (gf, g) = sides
    return qf, gf, q, g


def product(qf, gf):
    for some in qf.split(CHUNK):
        some @ gf.T


def peak(job):
    """GB of memory that a job takes beyond what the process has before it (Linux counts the peak)."""
    def resident(name):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(name)).split()[1]) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    job()
    return resident("VmHWM") - before


def size(name, queries, gallery, ids, cams, repeats):
    """All metrics of one protocol against the product of the same features."""
    qf, gf, q, g = planted(queries, gallery, ids, cams)
    memory = peak(lambda: evaluate_features(qf, gf, q, g, GENERAL, CHUNK))
    t = medians({"product": lambda: product(qf, gf),
                 "metrics": lambda: evaluate_features(qf, gf, q, g, GENERAL, CHUNK)}, repeats)
    print(f"{name}: {queries} x {gallery}, {qf.shape[1]}-d: product {t['product']:.2f} s, "
          f"all metrics {t['metrics']:.2f} s, ratio {t['metrics'] / t['product']:.2f}; "
          f"peak {memory:.2f} GB above the features", flush=True)
    return qf, gf, q, g, t


def main(config):
    def n(images):
        return max(64, round(images * config.scale))

    print(f"torch {torch.__version__}, numpy {np.__version__}, {torch.get_num_threads()} threads, CPU {processor()}")
    size("MSMT17 size", n(11659), n(82161), n(3060), 15, config.repeats)
    qf, gf, q, g, t = size("Market-1501 size", n(3368), n(15913), n(751), 6, config.repeats)
    dist = (-qf @ gf.T).numpy()
    sort = medians({"argsort": lambda: np.argsort(dist, axis=1)}, config.repeats)["argsort"]
    rest = t["metrics"] - t["product"]
    print(f"Market-1501 size: numpy's argsort of the distances {sort:.2f} s; all after the product {rest:.2f} s, "
          f"{sort / rest:.1f} times faster", flush=True)
    del dist
    start = time.perf_counter()
    memory = peak(lambda: evaluate_features(qf, gf, q, g, GENERAL, CHUNK, rerank=True))
    print(f"Market-1501 size, re-ranked: {time.perf_counter() - start:.1f} s, peak {memory:.2f} GB above the features",
          flush=True)
    for gallery in (1000, 10_000, 100_000, 1_000_000):
        size("growth", n(1000), n(gallery), n(gallery) // 20, 6, 1)


def processor():
    lines = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return f"{lines[0].split(':')[1].strip()}, {len(lines)} cores"


if __name__ == "__main__":
    cli.run(main, Config)
