"""Tests run on the CPU, on one thread, from the repository's root."""

import signal
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


@pytest.fixture
def usual_signals():
    """Signals do what they do on a terminal, also under nohup or in the background, which ignore
    some."""
    usual = {signal.SIGINT: signal.default_int_handler}
    usual |= dict.fromkeys((signal.SIGTERM, signal.SIGHUP), signal.SIG_DFL)
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
