"""Reference numbers that lie beside the repository; tests that need them skip where they are absent."""

from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "shared" / "golden"


def golden(name):
    """The arrays of one .npz file, or the path of another file."""
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"reference file {path} is not here")
    return dict(np.load(path)) if path.suffix == ".npz" else path
