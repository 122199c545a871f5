"""The command line: `python -m toydata --help`."""

from dataclasses import dataclass

from reid import cli, files
from toydata import make_toy
from toydata.sheet import contact_sheet


@dataclass
class Config:
    """Draws the toy data sets. `python -m toydata --out ./toy` draws those that train.py uses,
    `python -m toydata --out ./toy-all --sets all` every layout,
    `python -m toydata --sheet sheet.png` an overview of people, outfits and cameras.
    The same --people and --seed give the same bytes.
    """
    out: str = cli.option("./toy", "folder to write, which must be empty or not exist")
    people: int = cli.option(
        400, "people in each data set, 3/4 to train and 1/4 to test on", least=8, most=999)
    seed: int = cli.option(0, "seed of the people and pictures")
    sets: str = cli.option("five", "which data sets: the five that train.py uses, or all layouts",
                           ("five", "all"))
    sheet: str = cli.option(None, "only write a contact sheet, to this .png")


def main(config):
    if config.sheet:
        cli.check_output("--sheet", config.sheet, ".png")
        with files.replacing(config.sheet) as file:
            contact_sheet(config.seed).save(file, "PNG")
    else:
        make_toy(config.out, config.people, config.seed, sets=config.sets)


if __name__ == "__main__":
    cli.run(main, Config)
