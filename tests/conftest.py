"""Tests run on the CPU, on one thread, from the repository's root."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
torch.set_num_threads(1)  # several threads on busy cores wait for each other


@pytest.fixture
def toy(tmp_path):
    """A folder that counts as drawn data, so that nobody compares it with published counts."""
    (tmp_path / "toy.json").write_text("{}")
    return tmp_path
