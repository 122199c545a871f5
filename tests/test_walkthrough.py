"""docs/walkthrough.md: every block prints what the page shows, and draws its picture."""

import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image

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

    new, shown = [np.asarray(Image.open(path).convert("RGB"), int)
                  for path in ("walkthrough.png", DOCS / "walkthrough.png")]
    assert new.shape == shown.shape and np.abs(new - shown).mean() < 1, "draw docs/ anew"
