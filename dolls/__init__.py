"""The embedded benchmark: paper-doll people, written to disk in the layouts of real data sets.

`people.py` says who people are and what they wear, `figure.py` where each part of them is in a pose, `drawing.py` draws it, `cameras.py` takes
their pictures, `trees.py` has the folders and lists of each data set, `benchmark.py` writes them all.
In LTCC and COCAS+ the outfits come from a small wardrobe that people share: neither the body nor the
clothes alone tell which picture is asked for.

    python -m dolls --out ./toy --people 400 --seed 0      # five trees, deterministic to the byte
    python -m dolls --out ./toy-all --sets all             # these five and, with a quarter of the people each, six more
    python -m dolls --sheet sheet.png                      # only a contact sheet
"""

from dolls.benchmark import make_toy

__all__ = ["make_toy"]
