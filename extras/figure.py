"""The figure of the model in README, after Fig. 3 of the paper."""

import random
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from reid import cli
from reid.files import replacing
from toydata import jobs_of
from toydata.cameras import template

GIVEN, LEARNED, EDITED, LOSS = "#f2f2f2", "#dbe9f8", "#ffe3c2", "#e2f2df"
BOXES = (  # middle, colour (None: no box), text
    ((8.5, 93), None, "“a gray shirt and green\ntrousers”, or a picture"),
    ((24, 80), LEARNED, "$E_i$\ninstruction\nencoder"),
    ((41, 80), GIVEN, "$F_T$\ninstruction tokens"),
    ((78, 80), LEARNED, "$E_f$\nattention\nmodule"),
    ((24, 38), GIVEN, "CLS and\npatches"),
    ((41, 51), EDITED, "reads the instruction\nsoftmax($QK'^T$/√$C$) $V'$"),
    ((41, 26), LEARNED, "self-attention\nsoftmax($QK^T$/√$C$) $V$"),
    ((56.5, 51), EDITED, "× gate $g$\n0 at first"),
    ((56.5, 26), LEARNED, "+"),
    ((64.5, 26), LEARNED, "Linear$_o$\nMLP"),
    ((43.5, 10), None, "$E_e$, editing transformer: $L$ such layers (Eq. 1-4)"),
    ((78, 26), GIVEN, "$F$: CLS token\nranked by cosine"),
    ((93, 80), LOSS, "$L_{atri}$ + $L_{id}$\nof $F_{out}$"),
    ((93, 26), LOSS, "$L_{atri}$ + $L_{id}$\nof $F$"),
    ((91.5, 53), None, "Eq. 5-6: for photos of\none person, the margin\nfollows the instructions"),
)
ARROWS = (  # from x y, to x y
    (14, 80, 20, 80), (28, 80, 34.5, 80), (47, 80, 74.5, 80), (41, 75, 41, 56.5),
    (14, 38, 20.5, 38), (27.5, 42, 33.5, 50), (27.5, 34, 34, 27), (48.5, 51, 53, 51),
    (48, 26, 55, 26), (56.5, 46, 56.5, 29.5), (58, 26, 61.5, 26), (67.5, 26, 71.5, 26),
    (67.5, 31, 76, 73), (82, 80, 89.5, 80), (84.5, 26, 89.5, 26),
)


def draw():
    """A Figure of E_i, E_e with the gate of a layer, E_f, and the losses of Eq. 7."""
    figure = Figure((10, 4.2), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 100), ylim=(0, 100))
    axes.axis("off")
    axes.fill((18, 69.5, 69.5, 18), (4, 4, 64, 64), facecolor="white", edgecolor="dimgray")
    for place, colour, text in BOXES:
        box = colour and {"boxstyle": "round,pad=0.5", "facecolor": colour, "edgecolor": "dimgray"}
        axes.text(*place, text, ha="center", va="center", size=9, bbox=box, parse_math=True)
    for *start, x, y in ARROWS:
        axes.annotate("", (x, y), start, arrowprops={"arrowstyle": "-|>", "color": "dimgray"})
    person = jobs_of("real2", Path(), 16, 0)[3]
    person.rng = random.Random(0)
    axes.imshow(person.shoot(0, 1).picture(), extent=(3.5, 13.5, 8, 58), aspect="auto")
    axes.imshow(template(person.outfits[1]), extent=(5, 12, 68, 85), aspect="auto")
    return figure


@dataclass
class Config:
    """Draws the figure of the model: python -m extras.figure --out docs/model.png"""
    out: str = cli.option("model.png", "the .png to write")


def main(config):
    with replacing(config.out) as file:
        draw().savefig(file, format="png")


if __name__ == "__main__":
    cli.run(main, Config)
