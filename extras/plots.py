"""Plots of a run: rankings, gates, and attention to words.

    python -m extras.plots --checkpoint runs/all/last.pt
"""

from dataclasses import dataclass
from pathlib import Path

import evaluate
import toydata
from instructions import TASKS
from reid import cli, plots
from reid.cli import UserError
from reid.device import pick_device
from reid.images import is_image


@dataclass
class Config:
    """Draws rankings with right and wrong instructions, the gates, and attention to words.

    python -m extras.plots --checkpoint runs/all/last.pt --task cc
    """

    checkpoint: str = cli.option(
        None, "a last.pt of train.py; None = runs/all/last.pt or, if that does not exist, the "
        "bundled model of drawn people")
    task: str = cli.option(None, "only this task; None = those of the run", ("all", *TASKS))
    data: str = cli.option(None, "data set, or folder of data sets; None = that of the run")
    out: str = cli.option(None, "the folder to write into; None = that of the checkpoint")
    device: str = cli.option("auto", "auto = a GPU if there is one, else the CPU")


def main(config):
    if is_image(config.out or ""):
        raise UserError(f"--out {config.out}: there are several plots; name a folder")
    checkpoint = evaluate.chosen_checkpoint(config.checkpoint)
    model, trained = evaluate.load_model(checkpoint)
    model.to(pick_device(config.device))
    data = config.data or trained["data"]
    toydata.provide(data)
    datasets = evaluate.tested_datasets(data, config.task or trained["task"])

    run = evaluate.Run(model, trained["feature"], amp=trained["amp"])
    is_run = checkpoint != evaluate.TRAINED
    folder = Path(config.out or (Path(checkpoint).parent if is_run else "runs"))
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in evaluate.draw(run, datasets).items():
        plots.save(picture, folder / f"{name}.png")
        print(f"wrote {folder / name}.png")


if __name__ == "__main__":
    cli.run(main, Config)
