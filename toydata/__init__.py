"""The embedded benchmark: paper-doll people, written to disk in the layouts of real data sets.

people.py     who people are and what they wear
figure.py     where the parts of a person in a pose are
drawing.py    how they are drawn
cameras.py    the cameras, and the pictures they take
trees.py      the folders and lists of each data set
make.py       who is in which data set; writes them all
sheet.py      a contact sheet
trained.pt    what `python train.py` made of them: `python -m reid.checkpoints` wrote it

In LTCC and COCAS+ the outfits come from a small wardrobe that people share: neither the body nor
the clothes alone tell which picture is asked for.

    python -m toydata --out ./toy --people 400 --seed 0  # five trees, deterministic to the byte
    python -m toydata --out ./toy-all --sets all  # eight more, with a quarter of the people each
    python -m toydata --sheet sheet.png  # only a contact sheet
"""

from toydata.make import make_toy, provide

__all__ = ["make_toy", "provide"]
