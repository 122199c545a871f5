"""README's map from paper to code to test resolves, and its flags exist."""

import dataclasses
import importlib
import re
from pathlib import Path

import evaluate
import train
from dolls import __main__ as dolls_command

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_map_from_paper_to_code_to_test_resolves():
    rows = re.findall(r"^\|[^|\n]+\| `([\w.]+)\.(\w+)` \| `(tests/\w+\.py)::(\w+)` \|$", README, re.M)
    assert len(rows) >= 12
    for module, name, file, test in rows:
        assert hasattr(importlib.import_module(module), name), f"{module}.{name}"
        assert f"def {test}(" in (ROOT / file).read_text(), f"{file}::{test}"


def test_every_flag_that_readme_names_exists():
    known = {"--help"}
    for module in (train, evaluate, dolls_command):
        for field in dataclasses.fields(module.Config):
            known |= {"--" + field.name.replace("_", "-"), "--no-" + field.name.replace("_", "-")}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", README)) - {"--nproc"}
    assert named - known == set()


def test_every_file_that_readme_names_exists():
    for name in re.findall(r"`((?:\w+/)?\w+\.py)`", README) + re.findall(r"\]\((docs/[\w.]+)\)", README):
        assert (ROOT / name).exists(), name
