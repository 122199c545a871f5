"""README and docs: what they name exists, what they show runs, their diffs apply, and their
pictures are current."""

import ast
import dataclasses
import re
import shlex
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
import pytest
import torch
from PIL import Image

from extras import figure
from reid import checkpoints, cli
from tests.commands import recipe
from tests.trees import put, text

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text()
RECIPES = (ROOT / "docs/recipes.md").read_text()
SCRIPTS = ("model", "losses", "instructions", "data", "train", "evaluate")
CONFIGS = {f"{name}.py": resolve_name(f"{name}.Config") for name in ("data", "train", "evaluate")}
CONFIGS |= {f"extras.{name}": resolve_name(f"extras.{name}.Config") for name in (
    "search", "ablate", "curves", "plots", "figure", "taskfree", "benchmarks.step",
    "benchmarks.evaluate", "benchmarks.gpu")}
CONFIGS |= {f"extras.exercises {name}": resolve_name(f"extras.exercises.{name}.Config")
            for name in ("make", "grade")}
CONFIGS["toydata"] = resolve_name("toydata.__main__.Config")  # a command -> its flags
OF_OTHERS = set("--help --index-url --nproc_per_node --shm-size".split())
OF_OTHERS |= set("--rm --network --read-only --tmpfs --memory --pids-limit --user".split())

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def blocks(page, language=""):
    """The code blocks of a page in that language; "" for those without one."""
    fenced = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", page.read_text(), re.M | re.S)
    return [block for name, block in fenced if name == language]


def prose(page):
    """The page without its code blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.M | re.S)


def inline(page):
    """What stands between backticks, broken lines joined."""
    return [re.sub(r"\s+", " ", code) for code in re.findall(r"`([^`]+)`", prose(page))]


def anchors(page):
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# ---- what is named exists ----

def test_readme_is_short_and_links_every_page_once():
    """And its torch is the one that the tests ran with."""
    assert len(README.splitlines()) <= 185
    rows = re.findall(r"^\|", README, re.M)
    tables = re.findall(r"^\|---", README, re.M)
    assert len(rows) - 2 * len(tables) <= 30
    for page in PAGES[1:]:
        assert README.count(f"](docs/{page.name}") == 1, page.name
    for page in PAGES:  # a line directly below a table would be read as one of its rows
        assert not re.search(r"^\|.*\n[^|\n]", page.read_text(), re.M), page.name
    [torch] = re.findall(r"pip install (torch==\S+)", README)
    assert torch in (ROOT / "requirements.txt").read_text().split()


@pages
def test_what_a_page_names_exists(page):
    """Links; `folder/file.py`, `folder/` and `package.module.name`, as deep as they go; flags."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert target.startswith("http") or linked.exists(), target
        assert not anchor or anchor in anchors(linked), target
    for code in inline(page):
        for name in re.findall(r"(?:^|\s)([\w/]+\.py)(?=$|\s)", code):
            assert (ROOT / name).is_file(), name
        if re.fullmatch(r"(reid|toydata|extras|tests|docs)/(\w+/)*", code):
            assert (ROOT / code).is_dir(), code
        is_ours = code.split(".")[0] in (*SCRIPTS, "reid", "toydata", "extras")
        if is_ours and re.fullmatch(r"\w+(\.\w+)*", code) and not (ROOT / code).is_file():
            resolve_name(code)
    known = set(OF_OTHERS)
    for config in CONFIGS.values():
        for field in dataclasses.fields(config):
            name = field.name.replace("_", "-")
            known |= {f"--{name}", f"--no-{name}"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z_-]*", page.read_text())) <= known


def test_reading_order_names_what_is_in_the_file():
    steps = re.findall(r"^\d\. `(\w+)\.py`, (\d+) minutes: (.+)$", README, re.M)
    assert tuple(file for file, _, _ in steps) == SCRIPTS
    assert f"in about {sum(int(minutes) for _, minutes, _ in steps)} minutes" in README
    for file, minutes, words in steps:
        lines = len((ROOT / f"{file}.py").read_text().splitlines())
        assert 15 < lines / int(minutes) < 35, f"{file}.py has {lines} lines"
        for code in re.findall(r"`([\w.]+)`", words):
            resolve_name(f"{file}.{code}")


def test_every_equation_has_a_row_and_one_search_finds_it():
    source = "".join((ROOT / f"{script}.py").read_text() for script in SCRIPTS)
    rows = re.findall(r"^\| Eq\. (\d), .+ \| `[\w.]+` \| `tests/\w+\.py` \|$", README, re.M)
    assert rows == list("12345678")
    assert all(f"Eq. {number}" in source for number in rows)


# ---- what is shown runs ----

def commands(line):
    """[(Config, arguments)] of a line of shell. Other programs are left out; KeyError for a command
    of python that is none of ours."""
    found = []
    for part in line.split("&&"):
        words = shlex.split(part, comments=True)
        words = [word for word in words if "=" not in word or word.startswith("-")]  # variables
        if words[:1] not in (["python"], ["torchrun"]) or {"pytest", "-c"} & set(words):
            continue
        words = words[1 if words[0] == "python" and words[1] != "-m" else 2:]
        if words[0] == "extras.exercises":
            words[:2] = [" ".join(words[:2])]
        found.append((CONFIGS[words[0]], words[1:]))
    return found


@pages
def test_commands_and_python_are_understood(page):
    weights = "--vit-weights weights/pass_vit_base_full.pth --albef weights/ALBEF.pth"
    lines = "\n".join(blocks(page)).replace("\\\n", " ").splitlines() + inline(page)
    lines = [line.strip() for line in lines if re.match(r"\s*(pip|python|torchrun)", line)]
    assert lines or page.stem == "differences"
    for line in lines:
        line = line.replace("$W", weights).replace("--task coat", "--task cc")
        if " " not in line or line.endswith(" ..."):
            continue
        for config, arguments in commands(line):
            for variant in getattr(cli.parse(config, arguments), "vary", ()):
                cli.parse(config, [] if variant == "/" else shlex.split(variant))
    for block in blocks(page, "python"):
        ast.parse(block)


def test_the_walkthrough_prints_and_draws_what_it_shows(
        bundled, drawn, tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs/walkthrough.md").read_text()
    shown = re.findall(r"^```python\n(.*?)^```$(?:\n\n^```\n(.*?)^```$)?", page, re.M | re.S)
    assert "--people 16" in page, "the fixture `drawn` has that many"
    (tmp_path / "few").symlink_to(drawn)
    monkeypatch.chdir(tmp_path)
    names = {}
    capsys.readouterr()
    with torch.no_grad():  # a block turns gradients off
        for code, printed in shown:
            exec(compile(code, "walkthrough.md", "exec"), names)
            assert capsys.readouterr().out == printed

    figure.main(figure.Config("model.png"))
    for name in ("walkthrough_rankings.png", "walkthrough_words.png", "model.png"):
        now, before = (np.asarray(Image.open(path).convert("RGB"), int)
                       for path in (name, ROOT / "docs" / name))
        assert now.shape == before.shape
        difference = np.abs(now - before).mean()  # other versions of the fonts may differ
        assert difference < 0.5, f"docs/{name} is of an earlier state"


# ---- the diffs of docs/recipes.md apply, and run ----

def forget_modules():
    """Takes this code's modules out of sys.modules, and returns them."""
    ours = (*SCRIPTS, "reid", "toydata", "extras")
    names = [name for name in sys.modules if name.split(".")[0] in ours]
    return {name: sys.modules.pop(name) for name in names}


@pytest.fixture
def patched(tmp_path, monkeypatch, capsys, drawn, bert):
    """patched(heading, program) -> what a program prints that imports a copy of the code with that
    diff, beside toy/, own photos in mine/ and a small BERT."""
    for file in ROOT.glob("*.py"):
        shutil.copy(file, tmp_path)
    for package in ("reid", "toydata", "extras"):
        shutil.copytree(ROOT / package, tmp_path / package)
    (tmp_path / "toy").symlink_to(drawn)
    (tmp_path / "bert").symlink_to(bert)
    captions = {}
    for role, people in (("train", (1, 2)), ("query", (3,)), ("gallery", (3, 4))):
        for pid, cam in product(people, (1, 2)):
            captions[f"my_{role}/p{pid}_cam{cam}_0001.jpg"] = ["a man in red", "with a bag"]
    put(tmp_path / "mine", *captions)
    captions["my_gallery/p3_cam1_0001.jpg"] = "a woman in blue"
    text(tmp_path, "mine/captions.json", captions)

    def run(heading, program):
        diff = recipe(heading, "diff")
        done = subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=diff, text=True,
                              capture_output=True)
        assert done.returncode == 0, done.stderr
        capsys.readouterr()
        exec(program, {})
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = forget_modules()
    yield run
    forget_modules()
    sys.modules.update(before)


def test_every_diff_is_tried():
    source = Path(__file__).read_text()
    for section in RECIPES.split("\n## ")[1:]:
        heading = section.splitlines()[0]
        assert ("```diff" in section) == (f'"{heading}"' in source), heading
    for page in PAGES:
        assert page.stem == "recipes" or "```diff" not in page.read_text()


def training(flags):
    flags = f"{flags} --preset toy --name a --steps 2 --warmup 1 --images 2"
    return f"""
import train
from reid import cli
train.main(cli.parse(train.Config, {flags.split()}))
"""


OPPOSITE = """
import torch, losses
instr = torch.tensor([[1.0, 0.0], [-1.0, 0.1]])
print("least beta:", losses.relatedness(torch.tensor([0, 0]), instr).min().item())
"""
GATES = """
from model import ViT
vit = ViT(size=(16, 8), patch=4, dim=8, depth=2, heads=2, instr_dim=8)
print("gates:", *[block.attn.gate.shape[0] for block in vit.blocks])
"""
COCAS = "--data toy/COCAS --task li --ids 4"
MINE = "--data mine --text-model bert --ids 2"


@pytest.mark.parametrize("heading, program, said", [
    ("A data set of your own", training(MINE), ["trad  My photos  general"]),
    ("Photos with captions", training(MINE), ["t2i   My photos  text-to-image"]),
    ("A task of your own", training("--data toy/LTCC_ReID --task coat --text-model bert --ids 2"),
     ["look past the coat", "do not change clothes"]),
    ("A size of your own", training(f"{COCAS} --text-model bert --size square"),
     ["size square from scratch", "li    COCAS+  strict"]),
    ("A loss of your own", OPPOSITE, ["least beta: 0.0\n"]),
    ("A gate per layer", GATES, ["gates: 1 1\n"]),
])
def test_a_recipe_does_what_it_says(heading, program, said, patched):
    printed = patched(heading, program)
    for words in said:
        assert words in printed


@pytest.mark.parametrize("heading, flags, name, is_there", [
    ("A backbone of your own", "--text-model bert", "editor.pos", False),
    ("An instruction encoder of your own", "--train-text", "encoder.text.bert.embed.weight", True),
])
def test_an_encoder_of_ones_own(heading, flags, name, is_there, patched):
    """It learns, and evaluation of the checkpoint prints what training did."""
    program = training(f"{COCAS} {flags}")
    program += "import evaluate; evaluate.main(evaluate.Config(checkpoint='runs/a/last.pt'))"
    printed = patched(heading, program)
    figures = re.findall(r"^li    COCAS\+ +strict .*", printed, re.M)
    assert len(figures) == 4 and figures[:2] == figures[2:]  # by F and by F_out
    assert Path("runs/a/attention_cocas_li.png").exists()
    weights = checkpoints.load("runs/a/last.pt", checkpoints.MODEL)["model"]
    assert (name in weights) == is_there
    gates = [weights[key] for key in weights if key.startswith("editor.") and "gate" in key]
    assert gates and all(gate.abs().sum() > 0 for gate in gates)
