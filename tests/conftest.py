"""Tests run on the CPU, on one thread, from the repository's root."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
torch.set_num_threads(1)  # several threads on busy cores wait for each other
