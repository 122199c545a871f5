"""docs/walkthrough.md: every block prints what the page shows; pictures in docs/ are current."""

import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from extras import figure

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "walkthrough.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$(?:\n\n^```\n(.*?)^```$)?", PAGE, re.M | re.S)


def test_every_block_prints_what_is_shown(drawn, tmp_path, monkeypatch, capsys):
    assert "--people 16" in PAGE, "the fixture `drawn` has that many"
    (tmp_path / "few").symlink_to(drawn)
    monkeypatch.chdir(tmp_path)
    names = {}
    capsys.readouterr()
    with torch.no_grad():  # a block turns gradients off
        for code, shown in BLOCKS:
            exec(compile(code, "walkthrough.md", "exec"), names)
            assert capsys.readouterr().out == shown

    assert_alike("walkthrough_rankings.png")
    assert_alike("walkthrough_words.png")


def test_the_figure_of_the_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    figure.main(figure.Config())
    assert_alike("model.png")


def assert_alike(name):
    """What was drawn here is what docs/ shows, but for the fonts of another version."""
    pictures = [Image.open(path).convert("RGB") for path in (name, DOCS / name)]
    drawn, shown = [np.asarray(picture, int) for picture in pictures]
    assert drawn.shape == shown.shape
    assert np.abs(drawn - shown).mean() < 1, f"docs/{name} is of an earlier state"
