"""README and docs: what they name exists, what they show runs, and their diffs apply."""

import ast
import dataclasses
import importlib
import random
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import ablate
import pytest

import data
import evaluate
import search
import toydata
import train
from extras.exercises import grade, make
from reid import checkpoints, cli
from tests.trees import put, text
from toydata import __main__ as toydata_command

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text()
SCRIPTS = ("model", "losses", "instructions", "data", "train", "evaluate")
COMMANDS = {  # what a command line begins with -> whose flags it takes
    "data.py": data,
    "train.py": train,
    "evaluate.py": evaluate,
    "toydata": toydata_command,
    "search.py": search,
    "ablate.py": ablate,
    "extras.exercises make": make,
    "extras.exercises grade": grade,
}
OF_OTHERS = {"--help", "--index-url", "--nproc_per_node"}
OF_OTHERS |= {"--rm", "--network", "--read-only", "--tmpfs", "--memory", "--pids-limit", "--user"}  # docker

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

def test_readme_is_a_front_door():
    assert len(README.splitlines()) < 220


@pages
def test_links_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def test_readme_links_every_page_of_docs_once():
    for page in PAGES[1:]:
        assert len(re.findall(rf"\]\(docs/{page.name}", README)) == 1, page.name


@pages
def test_tests_resolve(page):
    for file, name in re.findall(r"`(tests/\w+\.py)::(\w+)`", page.read_text()):
        assert f"def {name}(" in (ROOT / file).read_text(), f"{file}::{name}"


@pages
def test_files_resolve(page):
    for code in inline(page):
        for name in re.findall(r"(?:^|\s)([\w/]+\.py)(?=$|\s)", code):
            assert (ROOT / name).is_file(), name
    for name in re.findall(r"`((?:reid|toydata|tests|docs|benchmarks)/)`", page.read_text()):
        assert (ROOT / name).is_dir(), name


@pages
def test_names_resolve(page):
    """`file.name` and `package.module.name`, as deep as they go."""
    modules = {*SCRIPTS, "reid", "toydata"}
    for code in inline(page):
        first, *names = code.split(".")
        if first not in modules or not all(name.isidentifier() for name in names):
            continue
        if (ROOT / code).is_file():
            continue
        found = importlib.import_module(first)
        where = first
        for name in names:
            where = f"{where}.{name}"
            if not hasattr(found, name):
                found = importlib.import_module(where)
            else:
                found = getattr(found, name)


def test_reading_order_names_what_is_in_the_file():
    rows = re.findall(r"^\| (\d+) \| `(\w+)\.py` \| (.+) \|$", README, re.M)
    assert tuple(file for _, file, _ in rows) == SCRIPTS
    assert f"{sum(int(minutes) for minutes, _, _ in rows)} minutes" == "50 minutes"
    for _, file, words in rows:
        for code in re.findall(r"`([\w.]+)`", words):
            found = importlib.import_module(file)
            for name in code.split("."):
                found = getattr(found, name)


def test_every_equation_has_a_row_and_one_search_finds_it():
    source = "".join((ROOT / f"{script}.py").read_text() for script in SCRIPTS)
    for number in range(1, 9):
        assert re.search(rf"^\| Eq\. {number}, .+ \| `[\w.]+` \| `tests/\w+\.py::\w+` \|$", README, re.M), number
        assert re.search(rf"Eq\. {number}\b", source), number


def flags_of(module):
    flags = set()
    for field in dataclasses.fields(module.Config):
        name = field.name.replace("_", "-")
        flags |= {f"--{name}", f"--no-{name}"}
    return flags


@pages
def test_flags_exist(page):
    known = set(OF_OTHERS)
    for module in COMMANDS.values():
        known |= flags_of(module)
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z_-]*", page.read_text()))
    assert named - known == set()


# ---- what is shown runs ----

def commands(line):
    """[(module, its arguments)] of a line of shell."""
    found = []
    for part in line.split("&&"):
        words = shlex.split(part, comments=True)
        words = [word for word in words if "=" not in word or word.startswith("-")]  # OMP_NUM_THREADS=1
        if words[:2] == ["python", "-m"]:
            script, arguments = words[2], words[3:]
            if script == "extras.exercises":
                script += f" {arguments.pop(0)}"
        elif words[:1] == ["python"]:
            script, arguments = words[1], words[2:]
        elif words[:1] == ["torchrun"]:
            script, arguments = words[2], words[3:]
        else:
            continue
        if script in COMMANDS:
            found.append((COMMANDS[script], arguments))
    return found


@pages
def test_command_lines_are_understood(page):
    weights = "--vit-weights weights/pass_vit_base_full.pth --albef weights/ALBEF.pth"
    lines = "\n".join(blocks(page)).replace("\\\n", " ").splitlines() + inline(page)
    lines = [line.strip() for line in lines if re.match(r"\s*(OMP|pip|python|torchrun)", line)]
    if page.stem in ("README", "results", "data", "weights", "recipes", "ablations"):
        assert lines
    for line in lines:
        line = line.replace("$W", weights).replace("--steps N", "--steps 1").replace("--seed S", "--seed 1")
        line = line.replace("--task X", "--task cc").replace("--task coat", "--task cc")
        if " ... " in line or line.endswith("..."):
            continue
        for module, arguments in commands(line):
            config = cli.parse(module.Config, arguments)
            for variant in getattr(config, "vary", ()):
                cli.parse(module.Config, [] if variant == "/" else shlex.split(variant))


@pages
def test_python_is_python(page):
    for block in blocks(page, "python"):
        ast.parse(block)


@pytest.fixture
def tiny_run(tmp_path, monkeypatch):
    """A folder with ./toy and runs/all/last.pt, after two steps on few people."""
    monkeypatch.chdir(tmp_path)
    toydata.make_toy(tmp_path / "toy", people=16, seed=0)
    train.main(train.Config(
        task="cc", data="./toy/LTCC_ReID", name="all", steps=2, ids=4, images=2, warmup=1))


def test_readmes_python_runs(tiny_run, capsys):
    """It prints lines of the form that README shows; which photos, a longer training decides."""
    [block] = blocks(PAGES[0], "python")
    [shown] = [block for block in blocks(PAGES[0]) if block.startswith("query query/")]
    capsys.readouterr()
    exec(compile(block, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()

    path = re.compile(r"(query|test)/\d+_\d+_c\d+_\d+\.png")
    assert [path.sub("PHOTO", line) for line in printed] == [path.sub("PHOTO", line) for line in shown.splitlines()]
    query, *answers = shown.splitlines()
    person, outfit = re.search(r"/(\d+)_(\d+)_", query).groups()
    right, wrong = [re.findall(r"/(\d+)_(\d+)_", line) for line in answers]
    assert all(pid == person and worn != outfit for pid, worn in right)  # what the text says of it
    assert all(pid != person for pid, _ in wrong)


# ---- the diffs of docs/recipes.md apply, and run ----

def recipe(heading):
    page = (ROOT / "docs/recipes.md").read_text()
    section = page.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    [diff] = re.findall(r"^```diff\n(.*?)^```$", section, re.M | re.S)
    return diff


@pytest.fixture
def patched(tmp_path):
    """patched(heading, *command) -> what a command prints in a copy of the code with that diff."""
    for file in ROOT.glob("*.py"):
        shutil.copy(file, tmp_path)
    for room in ("reid", "toydata"):
        shutil.copytree(ROOT / room, tmp_path / room)

    def run(heading, *words):
        diff = recipe(heading)
        done = subprocess.run(
            ["git", "apply", "-"], cwd=tmp_path, input=diff, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        return done.stdout
    return run


FEW = "--preset toy --steps 2 --ids 2 --images 2".split()


def test_every_diff_is_tried():
    tried = re.findall(r"patched\(\s*\"(.+?)\"", Path(__file__).read_text())
    with_diff = []
    for section in (ROOT / "docs/recipes.md").read_text().split("\n## ")[1:]:
        if "```diff" in section:
            with_diff.append(section.splitlines()[0])
    assert sorted(tried) == sorted(with_diff)
    for page in PAGES:
        assert page.stem == "recipes" or "```diff" not in page.read_text()


def test_photos_of_ones_own(patched, tmp_path):
    added = [line for line in recipe("A data set of your own").splitlines() if re.match(r"\+(?!\+\+)", line)]
    assert len(added) < 15
    rng = random.Random(0)
    for role, people in (("train", (1, 2)), ("query", (3,)), ("gallery", (3, 4))):
        for pid in people:
            names = [f"my_{role}/p{pid}_cam{cam}_{rng.randrange(10000):04d}.jpg" for cam in (1, 2)]
            put(tmp_path / "mine", *names)
    printed = patched("A data set of your own", "train.py", "--data", "mine", *FEW)
    assert "trad  My photos  general" in printed


def test_photos_with_captions(patched, tmp_path):
    captions = {}
    for role, people in (("train", (1, 2)), ("gallery", (3, 4))):
        for pid in people:
            for number in (1, 2):
                path = f"my_{role}/p{pid}_{number:04d}.jpg"
                put(tmp_path / "mine", path)
                captions[path] = "a woman in blue" if pid == 3 else ["a man in red", "he carries a bag"]
    text(tmp_path, "mine/captions.json", captions)
    printed = patched("Photos with captions", "train.py", "--data", "mine", *FEW)
    assert "t2i   My photos  text-to-image" in printed


def test_a_task_of_ones_own(patched, tmp_path):
    toydata.make_toy(tmp_path / "toy", people=16, seed=0)
    printed = patched("A task of your own", "train.py", "--task", "coat", "--data", "toy/LTCC_ReID", *FEW)
    assert "look past the coat" in printed and "do not change clothes" in printed


def test_a_loss_of_ones_own(patched):
    program = """
import torch, losses
instr = torch.tensor([[1.0, 0.0], [-1.0, 0.1], [1.0, 0.2]])
print(losses.relatedness(torch.tensor([0, 0, 0]), instr).min().item() >= 0)
"""
    assert patched("A loss of your own", "-c", program) == "True\n"


TRAIN_AND_EVALUATE = """
import evaluate, train
flags = dict(data="toy/COCAS", task="li", preset="toy", steps=2, ids=4, images=2, warmup=1, name="a")
train.main(train.Config(**flags))
evaluate.main(evaluate.Config(checkpoint="runs/a/last.pt", pictures=True))
"""


def test_a_size_of_ones_own(patched, tmp_path):
    toydata.make_toy(tmp_path / "toy", people=16, seed=0)
    printed = patched("A size of your own", "train.py", "--size", "square", "--data", "toy/LTCC_ReID", *FEW)
    assert "size square (64x64)" in printed and "cc    LTCC  general" in printed


def test_a_backbone_of_ones_own(patched, tmp_path):
    toydata.make_toy(tmp_path / "toy", people=16, seed=0)
    printed = patched("A backbone of your own", "-c", TRAIN_AND_EVALUATE)
    figures = re.findall(r"^li    COCAS\+ +strict .*", printed, re.M)
    assert len(figures) == 2 and figures[0] == figures[1]  # the checkpoint is the trained model
    assert (tmp_path / "runs/a/attention_cocas_li.png").exists()
    weights = checkpoints.load_checkpoint(tmp_path / "runs/a/last.pt")["model"]
    assert "editor.pos" not in weights and weights["editor.blocks.0.attn.gate"].abs().sum() > 0


def test_an_instruction_encoder_of_ones_own(patched, tmp_path):
    toydata.make_toy(tmp_path / "toy", people=16, seed=0)
    program = TRAIN_AND_EVALUATE.replace("name=", "train_text=True, name=")
    printed = patched("An instruction encoder of your own", "-c", program)
    figures = re.findall(r"^li    COCAS\+ +strict .*", printed, re.M)
    assert len(figures) == 2 and figures[0] == figures[1]
    weights = checkpoints.load_checkpoint(tmp_path / "runs/a/last.pt")["model"]
    text = {name: tensor for name, tensor in weights.items() if name.startswith("encoder.text.")}
    assert text["encoder.text.bert.gru.weight_ih_l0"].shape == (192, 128)
    gate = weights["editor.blocks.0.attn.gate"]
    assert len(text) == 9 and gate.abs().sum() > 0


def test_a_gate_for_a_layer(patched):
    program = """
import torch
from model import ViT
vit = ViT(size=(16, 8), patch=4, dim=8, depth=2, heads=2, instr_dim=8)
images, instr = torch.randn(2, 3, 16, 8), torch.randn(2, 3, 8)
vit(images, instr).sum().backward()
print([block.attn.gate.shape[0] for block in vit.blocks], vit.blocks[0].attn.maps(torch.randn(2, 9, 8), instr).shape[-1])
"""
    assert patched("A gate per layer", "-c", program) == "[1, 1] 12\n"
