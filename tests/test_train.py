"""train.py from its command line: it learns, every flag does something, a step is clipping and
AdamW, and a run that was interrupted goes on to the same bits and the same log."""

import dataclasses
import json
import math
import os
import random
import re
import signal
import traceback
from collections import Counter
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import data
import evaluate
import model as irm
import train
from instructions import TASKS, asked_tasks
from reid import checkpoints, device, runs
from reid.folders import open_all
from reid.muon import Muon
from tests import conftest
from tests.commands import FAST, ROOT, Payload, one_line  # noqa: F401
from tests.test_model import TINY, tiny_model

command = conftest.command  # other tests import these two from here
drawn = conftest.drawn
TIMES = ("seconds", "images/s")
SHARED = [name for name, row in TASKS.items() if row.share]


def log_of(name):
    """The lines of a run's log without what depends on the clock."""
    lines = runs.read_log(f"runs/{name}")
    return [{key: line[key] for key in line if key not in TIMES} for line in lines]


def last(name):
    return checkpoints.load(f"runs/{name}/last.pt", checkpoints.MODEL | checkpoints.RUN)


def assert_same(first, second, where=""):
    """Two dicts or lists of tensors and plain values are equal to the bit."""
    if isinstance(first, list):
        first, second = (dict(enumerate(each)) for each in (first, second))
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key, value in first.items():
            assert_same(value, second[key], f"{where} {key}")
    else:
        assert first == second, where


# ---- commands ----

def test_it_learns_to_find_people_it_has_not_seen(train_tiny, command, undrawn):
    flags = ("--task", "trad", "--steps", 60, "--images", 4, "--warmup", 5)
    code, out, err = train_tiny(*flags, "--name", "trad")
    assert code == 0, err
    row, fused = runs.read_log("runs/trad")[-1]["rows"]
    assert (row["feature"], fused["feature"]) == ("F", "F_out")
    assert row["protocol"] == "general" and row["queries"] == 8
    assert row["mAP"] > 2 * row["chance mAP"]
    figure = f"{100 * row['mAP']:.1f}"
    assert figure in out and "preset toy: drawn data" in out and evaluate.SENTENCES in out
    code, out, err = command(evaluate, "--checkpoint", "runs/trad/last.pt")
    assert code == 0 and figure in out, err  # the checkpoint gives the same figure


def test_all_tasks_take_a_step_and_get_a_row_and_a_matrix(train_tiny, monkeypatch):
    monkeypatch.setattr(evaluate, "evaluate_sentences", lambda *_: [])
    code, out, err = train_tiny("--steps", len(SHARED), "--name", "all", "--ratios", "trad:1")
    assert code == 0, err
    *first, report = runs.read_log("runs/all")
    assert [line["step"] for line in first] == [*range(1, len(SHARED) + 1)]
    assert {line["task"] for line in first} == set(SHARED)
    assert {row["task"] for row in report["rows"]} == set(SHARED)
    with_targets = {name for name in SHARED if TASKS[name].targets}
    assert {row["task"] for row in report["matrix"]} == with_targets
    assert "Instruction matrix" in out and Path("runs/all/gates.png").exists()
    assert "each" not in report["rows"][0] and Path("runs/all/queries.json").stat().st_size > 1000


# ---- every flag does what it promises ----

@pytest.fixture
def outcome(train_tiny, monkeypatch, undrawn):
    """outcome(*flags) -> what a run of train.py did."""
    monkeypatch.setitem(irm.SIZES, "small", TINY | {"dim": 48})
    batches = data.Batches

    class Watched(train.Loss):
        def forward(self, images, pictures, batch, rng):
            terms = super().forward(images, pictures, batch, rng)
            assert self.model.encoder.text.bert.training  # its dropout, where it learns
            outcomes[-1].model = self.model
            outcomes[-1].terms.append({name: value.item() for name, value in terms.items()})
            return terms

    def made(*args, **named):
        outcomes[-1].batches = batches(*args, **named)
        return outcomes[-1].batches

    def saved(path, state):
        outcomes[-1].state = state

    def compiled(call, **_):
        outcomes[-1].compiled.append(call.__self__.size)
        return call

    def evaluated(how, datasets, rows_of=None):
        outcomes[-1].evaluated.append((how.feature, how.amp))
        return []

    monkeypatch.setattr(train, "Loss", Watched)
    monkeypatch.setattr(data, "Batches", made)
    monkeypatch.setattr(checkpoints, "save", saved)
    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(device, "check_compiler", lambda _: None)
    monkeypatch.setattr(evaluate, "evaluate_all", evaluated)
    monkeypatch.setattr(evaluate, "matrix_of_all", lambda *_: [])
    outcomes = []

    def run(*flags):
        outcomes.append(SimpleNamespace(terms=[], evaluated=[], compiled=[]))
        code, _, err = train_tiny("--task", "ctcc", "--steps", 2, *flags)
        assert code == 0, err
        return outcomes[-1]
    return run


def weight(part):
    """The sum of the trained weights whose names hold these letters."""
    def of(did):
        model = did.state["model"]
        return sum(model[name].double().sum().item() for name in model if part in name)
    return of


def trained_on(did):
    """{data set and task: its number of people}."""
    return {name: found["people"] for name, found in did.state["data"].items()}


def checkpointing(did):
    return {vit.checkpointing for vit in (did.model.editor, did.model.encoder.picture)}


ALL = ("--task", "all")
DIFFERENT = {  # flag: flags of both runs, those of the second, what is compared, what it should be
    "val": (("--task", "t2i"), ("--val",), trained_on, None),
    "size": ((), ("--size", "small"), lambda did: did.state["shape"]["dim"], (TINY["dim"], 48)),
    "editing": ((), ("--no-editing",), lambda did: did.model.parts,
                (("pictures", "editing", "fused"), ("pictures", "fused"))),
    "feature": ((), ("--feature", "fused"), lambda did: did.evaluated[0],
                (("edit", "auto"), ("fused", "auto"))),
    "train_text": (("--task", "li"), ("--train-text",), weight("encoder.text"), None),
    "loss": ((), ("--loss", "image"), lambda did: did.model.parts,
             (("pictures", "editing", "fused"), ("pictures", "editing"))),
    "plain": (ALL, ("--no-plain",), lambda did: "cocas t2i" in trained_on(did), (True, False)),
    "ratios": (ALL, ("--ratios", "trad:3,li:2"), lambda did: Counter(did.batches.cycle),
               ({name: TASKS[name].share for name in SHARED},
                {name: {"trad": 3, "li": 2}.get(name, 1) for name in SHARED})),
    "amp": ((), ("--amp", "bf16"), lambda did: did.evaluated[0],
            (("edit", "auto"), ("edit", "bf16"))),
    "grad_checkpointing": ((), ("--grad-checkpointing",), checkpointing, ({False}, {True})),
    "compile": ((), ("--compile",), lambda did: did.compiled, ([], [TINY["size"]])),
    "workers": ((), ("--workers", 1), lambda did: bool(did.batches.cache), (True, False)),
}
BY_VALUE = {  # in other tests of this file and of test_step.py
    "task", "data", "name", "resume", "preset", "seed", "mining", "margin", "smoothing", "align",
    "steps", "ids", "images", "optimiser", "lr", "warmup", "weight_decay", "gate_lr", "new_lr",
    "erase", "device", "evaluate_every", "save_every",
}
ELSEWHERE = {"vit_weights", "albef", "start", "text_model"}  # test_weights, test_own, test_text
SAME = {"grad_checkpointing", "compile", "workers", "feature"}  # what they leave


def test_each_flag_has_a_test():
    flags = {field.name for field in dataclasses.fields(train.Config)}
    assert flags == DIFFERENT.keys() | BY_VALUE | ELSEWHERE


@pytest.mark.parametrize("flag", DIFFERENT)
def test_a_flag_does_what_it_promises(flag, outcome):
    both, changed, measure, expected = DIFFERENT[flag]
    first = outcome(*both)
    second = outcome(*both, *changed)
    found = measure(first), measure(second)
    assert found == expected if expected else found[0] != found[1]
    if flag in SAME:
        assert first.terms == second.terms


def test_the_paper_preset_takes_its_steps_for_each_stream(drawn):
    """Where neither --steps nor one task was asked for; no more people than there are."""
    datasets = open_all(drawn, asked_tasks("all"))
    trained = [dataset.split("train") for dataset in datasets if dataset.split("train")]
    paper = train.Config(data=str(drawn), preset="paper", vit_weights="none")
    fewest = min(len({record.pid for record in records}) for records in trained)
    cases = (
        ({}, (train.PAPER["steps"] * len(trained), fewest)),
        ({"task": "li"}, (train.PAPER["steps"], fewest)),
        ({"preset": "toy"}, (train.TOY["steps"], fewest)),
        ({"steps": 24000, "ids": 50}, (24000, 50)),
    )
    for changed, expected in cases:
        config = train.new_config(dataclasses.replace(paper, **changed), datasets)
        assert (config.steps, config.ids) == expected


@pytest.mark.parametrize("preset", train.PRESETS.values(), ids=[*train.PRESETS])
def test_a_margin_asks_for_two_hundredths_of_a_cosine(preset):
    """Of outputs of a LayerNorm, in every preset and size: d is about 2 width (1 - cos)."""
    width = irm.SIZES[preset["size"]]["dim"]
    a, b = torch.nn.functional.layer_norm(torch.randn(2, 1000, width), (width,))
    squared = (a - b).square().sum(1)
    of_cosine = 2 * width * (1 - torch.cosine_similarity(a, b, dim=1))
    torch.testing.assert_close(squared, of_cosine, rtol=1e-3, atol=1e-2)
    assert preset["margin"] * width / (2 * width) == pytest.approx(0.02, abs=0.001)


# ---- a step ----

def test_the_schedule_warms_up_and_falls_to_zero():
    config = train.Config(steps=100, warmup=10)
    assert train.schedule(0, config) == 0.01 and train.schedule(10, config) == 1
    assert train.schedule(5, config) == pytest.approx(0.505)
    assert train.schedule(100, config) == 0 and math.isclose(train.schedule(55, config), 0.5)


def test_training_equals_its_slow_twin(train_tiny, drawn, undrawn):
    """Batch by batch, augmented as its step says, clipping, AdamW: matrices alone decay, the gates
    and what no file brought have rates of their own. The run evaluates in its middle."""
    code, _, err = train_tiny(
        "--task", "ctcc", "--name", "a", "--steps", 6, "--warmup", 2, "--lr", 1.5e-3,
        "--gate-lr", 7, "--new-lr", 3, "--weight-decay", 5, "--seed", 3, "--evaluate-every", 3,
        "--erase", 0.3, "--optimiser", "adamw")
    assert code == 0, err
    saved = last("a")
    assert [line["step"] for line in log_of("a") if "rows" in line] == [3, 6]

    config = train.Config(**saved["config"])
    datasets = open_all(drawn, asked_tasks("ctcc"))
    batches = data.Batches(datasets, TINY["size"], TINY["picture_size"], 4, 2, seed=3)
    torch.manual_seed(3)
    model, _ = train.build_model(config, batches.classes, TASKS["ctcc"].parts)
    model.to(memory_format=torch.channels_last).train()
    groups = []
    for name, p in model.named_parameters():
        scale = 7 if name.endswith("gate") else 1 if name.startswith("encoder.text.") else 3
        groups.append(dict(params=[p], scale=scale, weight_decay=5 if p.ndim > 1 else 0))
    adamw = torch.optim.AdamW(groups, fused=True)
    norms = []
    for step in range(6):
        seed = random.Random(f"3:augment {step}").getrandbits(63)
        rng = torch.Generator().manual_seed(seed)
        batch = batches[step]
        images, pictures = data.augment(batch.images, batch.pictures, 2, 0.3, rng)
        terms = train.loss_terms(model, images, pictures, batch, config, nullcontext(), rng)
        model.zero_grad()
        sum(terms.values()).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), train.CLIP).item())
        for group in adamw.param_groups:
            group["lr"] = 1.5e-3 * train.schedule(step, config) * group["scale"]
        adamw.step()
    assert max(norms) > 1.5 * train.CLIP and max(norms) > 1.2 * min(norms), "nothing is clipped"
    for name, value in checkpoints.model_state(model).items():
        torch.testing.assert_close(saved["model"][name], value, rtol=0, atol=1e-6, msg=name)


def test_scaled_gradients_of_fp16_are_unscaled_before_they_are_clipped(
        train_tiny, monkeypatch, unfinished):
    clip = torch.nn.utils.clip_grad_norm_
    norms = []
    monkeypatch.setattr(
        torch.nn.utils, "clip_grad_norm_", lambda *given: norms.append(clip(*given)) or norms[-1])
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=16.0))
    for amp in ("off", "fp16"):
        assert train_tiny("--task", "li", "--steps", 1, "--margin", 0.3, "--amp", amp)[0] == 0
    assert norms[1].item() == pytest.approx(norms[0].item(), rel=0.2)


@pytest.mark.parametrize("flag, loaded", [
    ("name", "(?!)"), ("start", "(?!.*classifiers)"), ("vit_weights", r"editor\.(?!.*instr)"),
    ("albef", r"(encoder\.picture|cross)\."),
])
def test_muon_moves_matrices_of_layers_and_new_lr_what_no_file_of_weights_brought(flag, loaded):
    config = train.Config(**train.TOY | {"new_lr": 3.0, flag: "a file"})
    model = tiny_model()
    adamw, muon = train.optimisers_of(model, config)
    assert isinstance(muon, Muon)
    blocks = [module for module in model.modules() if isinstance(module, irm.Block)]
    matrices = {p for block in blocks for p in block.parameters() if p.ndim == 2}
    matrices |= {conv.weight for conv in model.modules() if isinstance(conv, torch.nn.Conv2d)}
    moved = [(optimiser, p, group["scale"]) for optimiser in (adamw, muon)
             for group in optimiser.param_groups for p in group["params"]]
    names = {p: name for name, p in model.named_parameters() if p.requires_grad}
    assert len(moved) == len(names)
    for optimiser, p, scale in moved:
        assert (optimiser is muon) == (p in matrices), names[p]
        rate = 1.0 if re.match(loaded, names[p]) else 3.0
        assert scale == (config.gate_lr if names[p].endswith("gate") else rate), names[p]
    [_] = train.optimisers_of(model, dataclasses.replace(config, optimiser="adamw"))


def test_muon_equals_torchs_up_to_the_rounding_of_bf16():
    torch.manual_seed(0)
    shapes = (24, 24), (8, 48), (24, 24), (48, 8), (6, 3, 2, 2), (9, 9)  # one kernel
    start = [torch.randn(shape) for shape in shapes]
    moved = []
    for kind in (Muon, partial(torch.optim.Muon, adjust_lr_fn="match_rms_adamw")):
        matrices = start if kind is Muon else [weight.flatten(1) for weight in start]
        params = [torch.nn.Parameter(matrix.clone()) for matrix in matrices]
        optimiser = kind(params, lr=0.1, weight_decay=0.5)
        rng = torch.Generator().manual_seed(1)
        for _ in range(4):
            for p in params[:-1]:  # the last one has no gradient and stays
                p.grad = torch.randn(p.shape, generator=rng)
            optimiser.step()
        moved.append([(p - matrix).detach().flatten(1) for p, matrix in zip(params, matrices)])
    for ours, theirs in zip(*moved):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.02 * theirs.abs().max().item())


# ---- interrupted, and going on ----

def interrupt(patch, module, name, number, call=1):
    """Raises the signal in that call of a function."""
    original = getattr(module, name)
    calls = []

    def interrupting(*args, **named):
        calls.append(1)
        if len(calls) == call:
            signal.raise_signal(number)
        return original(*args, **named)
    patch.setattr(module, name, interrupting)


def end_of_process(call):
    """What call() returns, or the number of the signal that ends the process that it runs in."""
    child = os.fork()
    if not child:
        try:
            call()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status)


def test_a_signal_saves_and_the_resumed_run_is_that_without(
        train_tiny, command, monkeypatch, usual_signals, undrawn):
    """Interrupted within an evaluation of step 5, in step 6, and within the last evaluation."""
    monkeypatch.setattr(runs, "LOG_EVERY", 4)
    flags = ("--task", "ctcc", "--steps", 10, "--evaluate-every", 5)
    assert train_tiny(*flags, "--name", "whole")[0] == 0
    whole = log_of("whole")
    assert [line["step"] for line in whole] == [1, 4, 5, 8, 10, 10]
    assert "rows" in whole[2] and "rows" in whole[5] and whole[5]["matrix"]

    resume = partial(command, train, "--resume", "runs/parts/last.pt")
    for call, number, (module, name), words, step in (
        (partial(train_tiny, *flags, "--name", "parts"), signal.SIGINT,
         (evaluate, "evaluate_all"), "stopped in an evaluation", 5),
        (resume, signal.SIGTERM, (data, "augment"), "stopped at step 6", 6),
        (resume, signal.SIGHUP, (train, "finish"), "stopped in the last evaluation", 10),
    ):
        with monkeypatch.context() as patch:
            interrupt(patch, module, name, number)
            code, _, err = call()
        words += "; resume with: python train.py --resume runs/parts/last.pt"
        assert code == 128 + number and err.splitlines()[-1] == words
        assert last("parts")["step"] == step

    code, out, err = resume()
    assert code == 0 and "10 steps in" in out, err
    assert log_of("parts") == whole
    seconds = [line["seconds"] for line in runs.read_log("runs/parts")]
    assert seconds == sorted(seconds)
    assert_same(last("whole")["model"], last("parts")["model"])

    one_line(resume("--lr", 1), "--resume", "drop --lr")
    code, out, _ = resume("--device", "cpu", "--workers", 0, "--steps", 11)
    assert code == 0 and "11 steps in" in out
    evaluated = [line["step"] for line in log_of("parts") if "rows" in line]
    assert evaluated == [5, 10, 11], "a step is evaluated again"


@pytest.mark.parametrize("number, call, done, flags", [
    # saved in step 4, logged in step 5; sentences of a frozen text tower, hard negatives
    (signal.SIGKILL, 6, 4, ("--save-every", 4, "--ratios", "trad:1")),
    # dropout, the scale of the loss
    (signal.SIGINT, 4, 4, ("--task", "li", "--train-text", "--amp", "fp16", "--workers", 1)),
    # in the last step
    (signal.SIGTERM, 6, 6, ("--task", "li", "--seed", 1)),
], ids=["kill -9", "in the middle", "at the end"])
def test_a_resumed_run_equals_one_without_interruption(
        number, call, done, flags, train_tiny, command, monkeypatch, usual_signals, unfinished):
    flags = (*flags, "--steps", 6)
    assert train_tiny(*flags, "--name", "whole")[0] == 0
    with monkeypatch.context() as patch:
        interrupt(patch, data, "augment", number, call)
        parts = partial(train_tiny, *flags, "--name", "parts")
        if number == signal.SIGKILL:
            assert end_of_process(parts) == number
            assert log_of("parts")[-1]["step"] == 5
        else:
            assert parts()[0] == 128 + number
    assert last("parts")["step"] == done
    code, _, err = command(train, "--resume", "runs/parts/last.pt")
    assert code == 0, err
    whole, parts = last("whole"), last("parts")
    for part in ("model", "optimisers", "scaler", "rng", "step", "data", "classes", "shape"):
        assert_same(whole[part], parts[part], part)
    assert log_of("parts") == log_of("whole")
    is_fp16 = "fp16" in flags
    assert bool(whole["scaler"]) == is_fp16
    assert all(("gradient" in line) != is_fp16 for line in log_of("whole"))


def test_a_signal_before_the_first_step_is_one_line_and_leaves_nothing(
        train_tiny, monkeypatch, usual_signals):
    interrupt(monkeypatch, train, "build_model", signal.SIGINT)
    code, _, err = train_tiny("--task", "ctcc")
    assert code == 130 and err == "interrupted\n" and not Path("runs").exists()
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_a_run_has_a_folder_of_its_own_that_one_process_writes(train_tiny, command, unfinished):
    for expected in ("runs/trad", "runs/trad-2"):
        code, out, err = train_tiny("--task", "trad", "--steps", 1, "--name", "trad")
        assert code == 0, err
        assert json.loads(Path(f"{expected}/config.json").read_text())["task"] == "trad"
    before = Path("runs/trad-2/last.pt").read_bytes()
    held = runs.Log("runs/trad-2")

    def resume():
        one_line(command(train, "--resume", "runs/trad-2/last.pt"), "written by another process")
        os.kill(os.getpid(), signal.SIGTERM)

    assert end_of_process(resume) == signal.SIGTERM and held
    assert Path("runs/trad-2/last.pt").read_bytes() == before


@pytest.mark.parametrize("spoil, message, save_every", [
    (lambda term: term * float("nan"), "tri_out is nan", 7),
    (lambda term: term + (0 * term).sqrt(), "gradient is nan", 3),
], ids=["loss", "gradient"])
def test_nan_at_step_7_stops_before_it_is_saved(
        spoil, message, save_every, train_tiny, monkeypatch):
    loss_terms = train.loss_terms
    calls = []

    def breaking(*args):
        terms = loss_terms(*args)
        calls.append(1)
        return terms | {"tri_out": spoil(terms["tri_out"])} if len(calls) == 7 else terms

    monkeypatch.setattr(train, "loss_terms", breaking)
    flags = ("--task", "ctcc", "--steps", 9, "--save-every", save_every, "--name", "a")
    one_line(train_tiny(*flags), "step 7, ctcc", message, "--lr")
    assert Path("runs/a/last.pt").exists() == (save_every == 3)
    assert save_every == 7 or last("a")["step"] == 6


# ---- the log and the folder ----

def test_a_line_of_the_log_is_a_mean_worked_out_by_hand(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(runs.time, "time", lambda: now[0])
    monkeypatch.setattr(runs, "LOG_EVERY", 4)
    log = runs.Log(tmp_path)
    for step, task, tri, norm in (
        (1, "cc", 1.0, 4.0), (2, "cc", 2.0, 1.0), (3, "li", 9.0, 7.0), (4, "cc", 6.0, 2.0),
        (5, "cc", 5.0, 5.0),
    ):
        now[0] += 2
        log.note(step, task, {"tri": torch.tensor(tri), "gradient": torch.tensor(norm)}, 8, 0.1)
    assert log.latest == {"cc": 5.0, "li": 9.0}
    log.write_rows(5, [], [])
    now[0] += 2
    log.write(5, 0.1)
    *lines, row, last = runs.read_log(tmp_path)
    names = ("step", "task", "losses", "gradient", "seconds")
    assert [tuple(line[name] for name in names) for line in lines] == [
        (1, "cc", {"tri": 1.0}, 4.0, 2.0), (3, "li", {"tri": 9.0}, 7.0, 6.0),
        (4, "cc", {"tri": 4.0}, 1.5, 8.0),
    ]
    assert {(line["lr"], line["images/s"]) for line in lines} == {(0.1, 4.0)}
    assert row == {"step": 5, "rows": [], "matrix": [], "seconds": 10.0}
    assert last["losses"] == {"tri": 5.0} and last["images/s"] == 0  # since the evaluation


@pytest.mark.parametrize("flags, name", [
    ({}, "all"), ({"task": "cc"}, "cc"), ({"task": "cc", "data": "/photos/ltcc/"}, "ltcc-cc"),
    ({"lr": 0.001, "editing": False, "preset": "toy"}, "all-no-editing-lr_0.001"),
    ({"name": "x", "lr": 1.0}, "x"), ({"workers": 9, "amp": "bf16"}, "all"),
    ({"vit_weights": "/my files/PASS (1).pth"}, "all-vit-weights_PASS_1_.pth"),
])
def test_a_run_is_called_by_what_is_special_about_it(flags, name):
    config = train.Config(**train.TOY | flags)
    assert runs.name_of(config, train.Config(**train.TOY), train.UNNAMED) == name


# ---- mistakes ----

@pytest.mark.parametrize("flags, words", [
    (("--data", "./nowhere"), ("nowhere: no such folder",)),
    (("--data", "holidays"), ("holidays: no known data set in it", "docs/data.md")),
    (("--data", "n" * 300), ("n" * 300,)), (("--resume", "n" * 300), ("n" * 300,)),
    (("--ids", 64, "--task", "trad"), ("--ids 64", "12 identities")),
    (("--device", "tpu9"), ("--device tpu9",)), (("--steps", 0), ("--steps 0",)),
    (("--lr", 1e30), ("--lr 1e+30: must be at most 10",)),
    (("--lr", "nan"), ("--lr nan: must be a finite number",)),
    (("--stepps", 1), ("--stepps", "--steps")), (("--name", "../x"), ("--name",)),
    (("--loss", "image", "--feature", "fused"), ("--feature fused: --loss image",)),
    *((("--ratios", ratios), (f"--ratios {ratios}",)) for ratios in
      ("trad:0", "foo:1", "t2i:x", "t2i", "t2i:1:2", "t2i:99999999999")),
], ids=str)
def test_a_mistake_is_one_line_and_leaves_nothing(flags, words, train_tiny, tmp_path):
    (tmp_path / "holidays").mkdir()
    one_line(train_tiny(*flags), *words)
    assert [path.name for path in tmp_path.iterdir()] == ["holidays"]
