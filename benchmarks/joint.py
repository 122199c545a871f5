"""One model for seven drawn data sets against one model for each: `python benchmarks/joint.py --data ./toy-all`.

Every data set and task gets the same number of steps in both. `python -m toydata --out ./toy-all --sets all` draws them.
"""

import os
import statistics
import sys
import tempfile
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import train
from reid import cli
from instructions import asked_tasks
from reid.folders import find_datasets, open_all
from reid.runs import read_log

SEVEN = ("market", "ltcc", "prcc", "vc-clothes", "llcm", "cuhk-pedes", "cocas")


@dataclass
class Config:
    """Compares joint with single-task training."""
    data: str = cli.option("./toy-all", "a folder that `python -m toydata --sets all` drew")
    steps: int = cli.option(200, "steps of each data set and task")
    seeds: int = cli.option(3, "seeds 0, 1, ...")
    ids: int = cli.option(16, "identities per batch")


def main(config):
    single, joint = defaultdict(list), defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        seven = Path(folder) / "seven"
        seven.mkdir()
        (seven / "toy.json").write_text("{}")  # drawn data: train.py takes the toy's preset
        for name, root in find_datasets(config.data):
            if name in SEVEN:
                (seven / root.name).symlink_to(root.absolute())
        datasets = open_all(seven, asked_tasks("all"))
        os.chdir(folder)  # runs go there
        shares = Counter(dataset.task for dataset in datasets)
        for seed in range(config.seeds):
            for dataset in datasets:
                collect(single, dict(data=str(dataset.root), task=dataset.task, steps=config.steps), config.ids, seed)
            ratios = ",".join(f"{task}:{count}" for task, count in shares.items())
            collect(joint, dict(data=str(seven), steps=config.steps * len(datasets), ratios=ratios), config.ids, seed)
    for row in single:
        (one, one_sd), (all_, all_sd) = (spread(figures[row]) for figures in (single, joint))
        print(f"{' '.join(row):50} single {one:5.1f} +- {one_sd:.1f}  joint {all_:5.1f} +- {all_sd:.1f}  "
              f"{100 * all_ / one:.0f} %")


def collect(figures, flags, ids, seed):
    """Trains and adds the mAP of every protocol to `figures`."""
    name = f"{len(os.listdir('runs')) if Path('runs').exists() else 0}"
    train.main(train.Config(**flags, warmup=flags["steps"] // 10, ids=ids, seed=seed, name=name))
    for row in read_log(f"runs/{name}")[-1]["rows"]:
        figures[row["task"], row["data"], row["protocol"]].append(100 * row["mAP"])


def spread(values):
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    cli.run(main, Config)
