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

    for name in ("walkthrough_rankings.png", "walkthrough_words.png"):
        assert_alike(name, DOCS / name)


def test_the_figure_of_the_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    figure.main(figure.Config("drawn.png"))
    assert_alike("drawn.png", DOCS / "model.png")


def assert_alike(*paths):
    """Two pictures are the same, but for the letters of another version of the fonts."""
    drawn, shown = [np.asarray(Image.open(path).convert("RGB"), int) for path in paths]
    assert drawn.shape == shown.shape
    assert np.abs(drawn - shown).mean() < 0.5, f"{paths[1]} is of an earlier state"
