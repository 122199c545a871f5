"""train.py from its command line: it learns, its flags change the run, a step is clipping and
AdamW, and a run that was interrupted goes on to the same bits and the same log."""

import dataclasses
import json
import math
import multiprocessing
import random
import re
import signal
from collections import Counter
from contextlib import nullcontext
from functools import partial
from pathlib import Path

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
from tests.commands import one_line, output
from tests.test_model import TINY, tiny_model

TIMES = ("seconds", "images/s")
SHARED = [name for name, row in TASKS.items() if row.share]


def log_of(name):
    """The lines of a run's log without what depends on the clock."""
    lines = runs.read_log(f"runs/{name}")
    return [{key: line[key] for key in line if key not in TIMES} for line in lines]


def last(name):
    return checkpoints.load(f"runs/{name}/last.pt", checkpoints.MODEL | checkpoints.RUN)


def assert_same(first, second, where):
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
    out = output(train_tiny(*flags, "--name", "trad"))
    row, fused = runs.read_log("runs/trad")[-1]["rows"]
    assert (row["feature"], fused["feature"]) == ("F", "F_out")
    assert row["protocol"] == "general" and row["queries"] == 8
    assert row["mAP"] > 2 * row["chance mAP"]
    figure = f"{100 * row['mAP']:.1f}"
    assert figure in out and out.startswith("preset toy: drawn data") and "E_e" not in out
    assert evaluate.SENTENCES in out
    again = output(command(evaluate, "--checkpoint", "runs/trad/last.pt"))
    assert figure in again, "the checkpoint gives another figure"


def test_all_tasks_take_a_step_and_get_a_row_and_a_matrix(train_tiny, monkeypatch):
    monkeypatch.setattr(evaluate, "evaluate_sentences", lambda *_: [])
    out = output(train_tiny("--steps", len(SHARED), "--name", "all", "--ratios", "trad:1"))
    *first, report = runs.read_log("runs/all")
    assert [line["step"] for line in first] == [*range(1, len(SHARED) + 1)]
    assert {line["task"] for line in first} == set(SHARED)
    assert {row["task"] for row in report["rows"]} == set(SHARED)
    of_vi = [row for row in report["rows"] if row["task"] == "vi"]
    assert {row["protocol"] for row in of_vi} == {"ir-to-vis", "vis-to-ir"}
    assert {row["trials"] for row in of_vi} == {10}
    with_targets = {name for name in SHARED if TASKS[name].targets}
    assert {row["task"] for row in report["matrix"]} == with_targets
    assert "Instruction matrix" in out and Path("runs/all/gates.png").exists()
    assert "each" not in report["rows"][0] and Path("runs/all/queries.json").stat().st_size > 1000


# ---- flags ----

def test_every_flag_is_read():
    code = "".join(Path(module.__file__).read_text() for module in (train, runs))
    read = re.findall(r"config\.(\w+)", code)
    assert {field.name for field in dataclasses.fields(train.Config)} <= set(read)


def test_flags_change_the_run_that_they_name(train_tiny, monkeypatch):
    """Of one run with the defaults, and one in which everything is another."""
    monkeypatch.setitem(irm.SIZES, "small", TINY | {"dim": 48, "size": (48, 24)})
    all_batches = []
    compiled = []
    finished = []

    class Watched(data.Batches):
        def __init__(self, *args, **named):
            super().__init__(*args, **named)
            all_batches.append(self)

    monkeypatch.setattr(data, "Batches", Watched)
    monkeypatch.setattr(device, "check_compiler", lambda _: None)
    monkeypatch.setattr(irm.ViT, "compile", lambda vit: compiled.append(vit))
    monkeypatch.setattr(train, "finish", lambda run, datasets, *_: finished.append((run, datasets)))
    changed = "--val --size small --no-editing --feature fused --train-text --no-plain --amp bf16"
    changed += " --grad-checkpointing --compile --workers 1 --ratios trad:3,li:2"
    for flags in ((), changed.split()):
        output(train_tiny("--steps", 2, *flags))

    usual, other = [run for run, _ in finished]
    assert (usual.feature, usual.amp) == ("edit", "auto")
    assert (other.feature, other.amp) == ("fused", "bf16")
    assert usual.model.parts == irm.PARTS
    assert other.model.parts == tuple(part for part in irm.PARTS if part != "editing")
    assert [run.model.shape["dim"] for run in (usual, other)] == [TINY["dim"], 48]
    for run, is_changed in ((usual, False), (other, True)):
        bert = run.model.encoder.text.bert
        assert {p.requires_grad for p in bert.parameters()} == {is_changed}
        vits = run.model.editor, run.model.encoder.picture
        assert {vit.checkpointing for vit in vits} == {is_changed}
    assert other.model.encoder.text.bert.training  # its dropout, where it learns
    assert compiled == [other.model.editor]
    usual_data, other_data = [checkpoints.training_data(datasets) for _, datasets in finished]
    assert usual_data.keys() - other_data.keys() == {"cocas t2i"}
    people = [each["cuhk-pedes t2i"]["people"] for each in (usual_data, other_data)]
    assert people[0] < people[1]
    shares = {name: TASKS[name].share for name in SHARED}
    ratios = dict.fromkeys(SHARED, 1) | {"trad": 3, "li": 2}
    assert [Counter(batches.cycle) for batches in all_batches] == [shares, ratios]
    assert [bool(batches.cache) for batches in all_batches] == [True, False]


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
        assert config.margin / 2 == pytest.approx(0.02, abs=0.001)  # of a cosine; see loss_terms


# ---- a step ----

def test_the_schedule_warms_up_and_falls_to_zero():
    config = train.Config(steps=100, warmup=10)
    assert train.schedule(0, config) == 0.01 and train.schedule(10, config) == 1
    assert train.schedule(5, config) == pytest.approx(0.505)
    assert train.schedule(100, config) == 0 and math.isclose(train.schedule(55, config), 0.5)


def test_training_equals_its_slow_twin(train_tiny, drawn, undrawn):
    """Batch by batch, augmented as its step says, clipping, AdamW: matrices alone decay, the gates
    and what no file brought have rates of their own. The run evaluates in its middle."""
    output(train_tiny(
        "--task", "ctcc", "--name", "a", "--steps", 6, "--warmup", 2, "--lr", 1.5e-3,
        "--gate-lr", 7, "--new-lr", 3, "--weight-decay", 5, "--seed", 3, "--evaluate-every", 3,
        "--erase", 0.3, "--optimiser", "adamw"))
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
        output(train_tiny("--task", "li", "--steps", 1, "--margin", 0.3, "--amp", amp))
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

def interrupt(patch, number, module, name, call=1):
    """Raises the signal of that number in that call of a function."""
    original = getattr(module, name)
    calls = []

    def interrupting(*args, **named):
        calls.append(1)
        if len(calls) == call:
            signal.raise_signal(number)
        return original(*args, **named)
    patch.setattr(module, name, interrupting)


def exit_code(call):
    """Of a process in which call() runs; negative for the signal that ended it."""
    process = multiprocessing.get_context("fork").Process(target=call)
    process.start()
    process.join()
    return process.exitcode


def test_a_signal_saves_and_the_resumed_run_is_that_without(
        train_tiny, command, monkeypatch, usual_signals, undrawn):
    """Interrupted within an evaluation of step 5, in step 6, in the last step, and within the last
    evaluation."""
    monkeypatch.setattr(runs, "LOG_EVERY", 4)
    flags = ("--task", "ctcc", "--steps", 10, "--evaluate-every", 5)
    output(train_tiny(*flags, "--name", "whole"))
    whole = log_of("whole")
    assert [line["step"] for line in whole] == [1, 4, 5, 8, 10, 10]
    assert "rows" in whole[2] and "rows" in whole[5] and whole[5]["matrix"]

    resume = partial(command, train, "--resume", "runs/parts/last.pt")
    for run, number, place, words, step in (
        (partial(train_tiny, *flags, "--name", "parts"), signal.SIGINT,
         (evaluate, "evaluate_all"), "stopped in an evaluation", 5),
        (resume, signal.SIGTERM, (data, "augment"), "stopped at step 6", 6),
        (resume, signal.SIGINT, (data, "augment", 4), "stopped at step 10", 10),
        (resume, signal.SIGHUP, (train, "finish"), "stopped in the last evaluation", 10),
    ):
        with monkeypatch.context() as patch:
            interrupt(patch, number, *place)
            code, _, err = run()
        words += "; resume with: python train.py --resume runs/parts/last.pt"
        assert code == 128 + number and err.splitlines()[-1] == words
        assert last("parts")["step"] == step

    assert "10 steps in" in output(resume())
    assert log_of("parts") == whole
    seconds = [line["seconds"] for line in runs.read_log("runs/parts")]
    assert seconds == sorted(seconds)
    assert_same(last("whole")["model"], last("parts")["model"], "model")

    one_line(resume("--lr", 1), "--resume", "drop --lr")
    one_line(resume("--steps", 9), "--steps 9: the run has 10")
    out = output(resume("--device", "cpu", "--workers", 0, "--steps", 11))
    assert "11 steps in" in out and "the cosine is stretched" in out and "preset" not in out
    evaluated = [line["step"] for line in log_of("parts") if "rows" in line]
    assert evaluated == [5, 10, 11], "a step is evaluated again"


@pytest.mark.parametrize("number, call, flags", [
    # saved in step 4, logged in step 5; sentences of a frozen text tower, hard negatives
    (signal.SIGKILL, 6, ("--save-every", 4, "--ratios", "trad:1")),
    # dropout, the scale of the loss
    (signal.SIGINT, 4, ("--task", "li", "--train-text", "--amp", "fp16", "--workers", 1)),
], ids=["kill -9", "Ctrl-C"])
def test_a_resumed_run_equals_one_without_interruption(
        number, call, flags, train_tiny, command, monkeypatch, usual_signals, unfinished):
    flags = (*flags, "--steps", 6)
    output(train_tiny(*flags, "--name", "whole"))
    with monkeypatch.context() as patch:
        interrupt(patch, number, data, "augment", call)
        parts = partial(train_tiny, *flags, "--name", "parts")
        if number == signal.SIGKILL:
            assert exit_code(parts) == -number
            assert log_of("parts")[-1]["step"] == 5
        else:
            assert parts()[0] == 128 + number
    assert last("parts")["step"] == 4
    output(command(train, "--resume", "runs/parts/last.pt"))
    whole, parts = last("whole"), last("parts")
    for part in ("model", "optimisers", "scaler", "rng", "step", "data", "classes", "shape"):
        assert_same(whole[part], parts[part], part)
    assert log_of("parts") == log_of("whole")
    is_fp16 = "fp16" in flags
    assert bool(whole["scaler"]) == is_fp16
    assert all(("gradient" in line) != is_fp16 for line in log_of("whole"))


def test_a_run_has_a_folder_of_its_own_that_one_process_writes(train_tiny, command, unfinished):
    for expected in ("runs/trad", "runs/trad-2"):
        output(train_tiny("--task", "trad", "--steps", 1, "--name", "trad"))
        assert json.loads(Path(f"{expected}/config.json").read_text())["task"] == "trad"
    before = Path("runs/trad-2/last.pt").read_bytes()
    held = runs.Log("runs/trad-2")

    def resume():
        one_line(command(train, "--resume", "runs/trad-2/last.pt"), "written by another process")

    assert exit_code(resume) == 0 and held
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
    assert log.status() == "cc 5.00 li 9.00 4 images/s"  # before it


@pytest.mark.parametrize("flags, name", [
    ({}, "all"), ({"task": "cc"}, "cc"), ({"task": "cc", "data": "/photos/ltcc/"}, "ltcc-cc"),
    ({"lr": 0.001, "editing": False, "preset": "toy"}, "all-no-editing-lr_0.001"),
    ({"name": "x/y z", "lr": 1.0}, "x/y z"), ({"workers": 9, "amp": "bf16"}, "all"),
    ({"vit_weights": "/my files/PASS (1).pth"}, "all-vit-weights_PASS_1_.pth"),
])
def test_a_run_is_called_by_what_is_special_about_it(flags, name):
    config = train.Config(**train.TOY | flags)
    assert runs.name_of(config, train.Config(**train.TOY), train.UNNAMED) == name


# ---- mistakes ----

@pytest.mark.parametrize("flags, words", [
    (("--data", "./nowhere"), ("nowhere: no such folder",)),
    (("--data", "holidays"), ("holidays: no known data set in it", "docs/data.md")),
    *(((flag, "n" * 300), ("n" * 50,)) for flag in ("--data", "--resume")),
    (("--ids", 64, "--task", "trad"), ("--ids 64", "12 identities")),
    *((("--device", name), (f"--device {name} cannot be used here; try cpu",))
      for name in ("abacus", "meta", "cuda:99")),
    (("--steps", 0), ("--steps 0",)),
    (("--lr", 1e30), ("--lr 1e+30: must be at most 10",)),
    (("--lr", "nan"), ("--lr nan: must be a finite number",)),
    (("--stepps", 1), ("--stepps", "--steps")), (("--name", "../x"), ("--name",)),
    (("--loss", "image", "--feature", "fused"), ("--feature fused: --loss image",)),
    *((("--ratios", ratios), (f"--ratios {ratios}",)) for ratios in
      ("trad:0", "foo:1", "t2i:x", "t2i", "t2i:1:2", "t2i:99999999999", ",")),
], ids=str)
def test_a_mistake_is_one_line_and_leaves_nothing(flags, words, train_tiny, tmp_path):
    (tmp_path / "holidays").mkdir()
    one_line(train_tiny(*flags), *words)
    assert [path.name for path in tmp_path.iterdir()] == ["holidays"]
