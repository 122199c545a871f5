"""train.py from its command line: it learns, every flag does something, a step is clipping and
AdamW, and a run that was interrupted goes on to the same bits and the same log."""

import dataclasses
import json
import math
import re
import signal
import time
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import data
import evaluate
import model as irm
import train
from instructions import TASKS
from reid import checkpoints, runs, weights
from tests import conftest
from tests.commands import FAST, ROOT, Payload, one_line, start  # noqa: F401
from tests.test_model import TINY

command = conftest.command  # other tests import these two from here
drawn = conftest.drawn
TIMES = ("seconds", "images/s")
SHARED = [name for name, row in TASKS.items() if row.share]


def without_times(lines):
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def last(name):
    return checkpoints.load(f"runs/{name}/last.pt", checkpoints.MODEL | checkpoints.RUN)


def assert_same(first, second, where=""):
    """Two dicts or lists of tensors and plain values are equal to the bit."""
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key, value in first.items():
            assert_same(value, second[key], f"{where} {key}")
    elif isinstance(first, list):
        assert len(first) == len(second), where
        for place, (one, other) in enumerate(zip(first, second)):
            assert_same(one, other, f"{where} {place}")
    else:
        assert first == second, where


# ---- commands ----

def test_it_learns_to_find_people_it_has_not_seen(drawn, command, bert):
    flags = ("--data", drawn, "--text-model", bert, "--task", "trad", "--steps", 60, *FAST)
    code, out, err = command(train, *flags, "--name", "trad")
    assert code == 0, err
    row, fused = runs.read_log("runs/trad")[-1]["rows"]
    assert (row["feature"], fused["feature"]) == ("F", "F_out")
    assert row["protocol"] == "general" and row["queries"] == 8
    assert row["mAP"] > 2 * row["chance mAP"]
    figure = f"{100 * row['mAP']:.1f}"
    assert figure in out and "preset toy: drawn data" in out
    code, out, err = command(evaluate, "--checkpoint", "runs/trad/last.pt")
    assert code == 0 and figure in out, err  # the checkpoint gives the same figure


def test_all_tasks_take_a_step_and_get_a_row_and_a_matrix(train_tiny):
    code, out, err = train_tiny("--steps", len(SHARED), "--name", "all", "--ratios", "trad:1")
    assert code == 0, err
    *first, report = runs.read_log("runs/all")
    assert [line["step"] for line in first] == [*range(1, len(SHARED) + 1)]
    assert {line["task"] for line in first} == set(SHARED)
    assert {row["task"] for row in report["rows"]} == set(SHARED)
    with_targets = {name for name in SHARED if TASKS[name].targets}
    assert {row["task"] for row in report["matrix"]} == with_targets
    assert "Instruction matrix" in out
    assert "each" not in report["rows"][0] and Path("runs/all/queries.json").stat().st_size > 1000


# ---- every flag does what it promises ----

@pytest.fixture(scope="module")
def known():
    return {}


@pytest.fixture
def outcome(train_tiny, monkeypatch, known, request):
    """outcome(*flags) -> what a run of train.py did; equal flags are run once."""
    monkeypatch.setitem(irm.SIZES, "tiny-128", TINY)
    monkeypatch.setitem(irm.SIZES, "small", TINY | {"dim": 48})

    def run(*flags):
        if flags in known:
            return known[flags]
        did = SimpleNamespace(
            batches=[], terms=[], autocast=[], evaluated=[], cycle=(), read=0, saved=0,
            recomputed=0, compiled=[], started=[], state=None,
        )

        class Watched(train.Loss):
            def forward(self, images, pictures, batch, rng):
                hook = self.model.editor.register_forward_pre_hook(
                    lambda *_: did.autocast.append(torch.is_autocast_enabled("cpu")))
                terms = super().forward(images, pictures, batch, rng)
                hook.remove()
                did.batches.append(batch)
                did.terms.append({name: value.item() for name, value in terms.items()})
                return terms

        class Batches(data.Batches):
            def __init__(self, *args, **named):
                super().__init__(*args, **named)
                did.cycle = self.cycle

            def _load(self, *args):
                did.read += 1
                return super()._load(*args)

        save = checkpoints.save
        recompute = irm.checkpoint

        def saved(path, state):
            did.saved += 1
            did.state = state
            did.folder = path.parent
            save(path, state)

        def recomputed(*args, **named):
            did.recomputed += 1
            return recompute(*args, **named)

        def compiled(call, **_):
            did.compiled.append(call.__self__.size)
            return call

        def evaluated(how, datasets, rows_of=None):
            if rows_of is None:  # else the 20 sentences
                did.evaluated.append((how.feature, how.amp))
            return []

        with monkeypatch.context() as patch:
            patch.setattr(train, "Loss", Watched)
            patch.setattr(data, "Batches", Batches)
            patch.setattr(checkpoints, "save", saved)
            patch.setattr(irm, "checkpoint", recomputed)
            patch.setattr(torch, "compile", compiled)
            patch.setattr(evaluate, "evaluate_all", evaluated)
            patch.setattr(evaluate, "matrix_of_all", lambda *_: [])
            patch.setattr(evaluate, "draw", lambda *_: {})
            patch.setattr(weights, "load_vit", lambda vit, path: did.started.append(path) or "")
            did.code, *_ = train_tiny("--task", "ctcc", "--steps", 2, *flags)
        known[flags] = did
        return did
    return run


def weight(part):
    """The sum of the trained weights whose names hold these letters."""
    def of(did):
        model = did.state["model"]
        return sum(model[name].double().sum().item() for name in model if part in name)
    return of


def people(did):
    return [found["people"] for found in did.state["data"].values()]


def first_terms(did):
    return did.terms[0]


ALL = ("--task", "all")
DIFFERENT = {  # flag: flags of both runs, those of the second, what is compared, what it should be
    "task": ((), ("--task", "li"), lambda did: {batch.task for batch in did.batches},
             ({"ctcc"}, {"li"})),
    "data": (ALL, ("--data", "LTCC", "--preset", "toy"),
             lambda did: {name.split()[0] for name in did.state["data"]}, None),
    "val": (("--task", "t2i"), ("--val",), people, None),
    "name": ((), ("--name", "mine"), lambda did: did.folder.name == "mine", (False, True)),
    "preset": ((), ("--preset", "scratch"), lambda did: did.state["config"]["erase"],
               (train.TOY["erase"], train.SCRATCH["erase"])),
    "seed": ((), ("--seed", 1), first_terms, None),
    "size": ((), ("--size", "small"), lambda did: did.state["shape"]["dim"], (TINY["dim"], 48)),
    "editing": ((), ("--no-editing",), weight("gate"), None),
    "feature": ((), ("--feature", "fused"), lambda did: did.evaluated,
                ([("edit", "auto")], [("fused", "auto")])),
    "vit_weights": ((), ("--vit-weights", "x.pth"), lambda did: did.started, ([], ["x.pth"])),
    "text_model": ((), ("--text-model", "BERT"), weight("encoder.text"), None),
    "train_text": (("--task", "li"), ("--train-text",), weight("encoder.text"), None),
    "loss": ((), ("--loss", "image"), lambda did: set(did.terms[0]),
             ({"tri", "id", "tri_out", "id_out", "align"}, {"tri", "id"})),
    "mining": ((), ("--mining", "hard"), lambda did: did.terms[0]["tri"], None),
    "margin": ((), ("--margin", 1), lambda did: did.terms[0]["tri"], None),
    "smoothing": ((), ("--smoothing", 0.5), lambda did: did.terms[0]["id"], None),
    "plain": (ALL, ("--no-plain",), lambda did: "cocas t2i" in did.state["data"], (True, False)),
    "align": ((), ("--no-align",), lambda did: "align" in did.terms[0], (True, False)),
    "steps": ((), ("--steps", 3), lambda did: len(did.terms), (2, 3)),
    "ids": ((), ("--ids", 3), lambda did: len(did.batches[0].labels), (8, 6)),
    "images": ((), ("--images", 3), lambda did: len(did.batches[0].labels), (8, 12)),
    "optimiser": ((), ("--optimiser", "adamw"), weight("blocks.0.mlp"), None),
    "lr": ((), ("--lr", 0.1), weight("editor"), None),
    "warmup": ((), ("--warmup", 1), weight("editor"), None),
    "weight_decay": ((), ("--weight-decay", 9), weight("editor"), None),
    "gate_lr": ((), ("--gate-lr", 1), weight("gate"), None),
    "new_lr": ((), ("--new-lr", 3), weight("neck.weight"), None),
    "erase": ((), ("--erase", 1), first_terms, None),
    "ratios": (ALL, ("--ratios", "trad:3,li:2"), lambda did: Counter(did.cycle),
               ({name: TASKS[name].share for name in SHARED},
                {name: {"trad": 3, "li": 2}.get(name, 1) for name in SHARED})),
    "amp": ((), ("--amp", "bf16"), lambda did: (set(did.autocast), did.evaluated),
            (({False}, [("edit", "auto")]), ({True}, [("edit", "bf16")]))),
    "device": ((), ("--device", "abacus"), lambda did: did.code, (0, 2)),
    "grad_checkpointing": ((), ("--grad-checkpointing",), lambda did: did.recomputed,
                           (0, 2 * (TINY["depth"] + TINY["picture_depth"]))),
    "compile": ((), ("--compile",), lambda did: did.compiled, ([], [TINY["size"]])),
    "workers": ((), ("--workers", 1), lambda did: did.read > 0, (True, False)),
    "evaluate_every": (("--steps", 3), ("--evaluate-every", 1), lambda did: len(did.evaluated),
                       (1, 3)),
    "save_every": ((), ("--save-every", 1), lambda did: did.saved, (1, 3)),
}
ELSEWHERE = {"resume", "albef", "start"}  # below, in test_weights.py and test_own.py
SAME = {"grad_checkpointing", "compile", "workers", "feature", "save_every"}  # what they leave


@pytest.mark.parametrize("flag", [field.name for field in dataclasses.fields(train.Config)])
def test_a_flag_does_what_it_promises(flag, outcome, drawn, tmp_path):
    if flag in ELSEWHERE:
        return
    both, changed, measure, expected = DIFFERENT[flag]
    if flag == "data":
        changed = (changed[0], drawn / "LTCC_ReID", *changed[2:])
    if flag == "text_model":
        changed = (changed[0], another_bert(tmp_path / "other"))
    first = outcome(*both)
    second = outcome(*both, *changed)
    found = measure(first), measure(second)
    assert found == expected if expected else found[0] != found[1]
    if flag in SAME:
        assert first.terms == second.terms


def another_bert(folder):
    from transformers import BertModel

    from tests.small_bert import write_bert

    bert = BertModel.from_pretrained(write_bert(folder), add_pooling_layer=False)
    for p in bert.parameters():
        p.data *= 1.01
    bert.save_pretrained(folder)
    return folder


# ---- a step ----

STEPS = 6
WARMUP = 2
LR = 1.5e-3
SCALES = {"gate": 7.0, "new": 3.0, "loaded": 1.0}
DECAY = 5.0


def test_the_schedule_warms_up_and_falls_to_zero():
    config = train.Config(steps=100, warmup=10)
    assert train.schedule(0, config) == 0.01 and train.schedule(10, config) == 1
    assert train.schedule(5, config) == pytest.approx(0.505)
    assert train.schedule(100, config) == 0 and math.isclose(train.schedule(55, config), 0.5)


@pytest.fixture
def recording(train_tiny, monkeypatch):
    """What every step of a run with an evaluation in its middle began with, augmented, and gave."""
    steps = []
    model = []
    loss_terms = train.loss_terms
    augment = data.augment
    clip = torch.nn.utils.clip_grad_norm_

    def parameters():
        return {name: p.detach().clone() for name, p in model[0].named_parameters()}

    def spy_on_augment(images, pictures, *rest):
        results = augment(images, pictures, *rest)
        steps.append({"given": images, "rest": rest[:2], "rng": rest[2], "augmented": results})
        steps[-1]["seed"] = rest[2].initial_seed()
        return results

    def spy_on_loss(net, images, pictures, batch, config, precision, rng):
        model[:] = [net]
        assert images is steps[-1]["augmented"][0] and pictures is steps[-1]["augmented"][1]
        assert rng is steps[-1]["rng"]
        left = any(p.grad is not None and p.grad.any() for p in net.parameters())
        steps[-1] |= {"batch": batch, "training": net.training, "left": left}
        steps[-1]["weights"] = parameters()
        return loss_terms(net, images, pictures, batch, config, precision, rng)

    def spy_on_clip(given, largest):
        grads = {}
        for name, p in model[0].named_parameters():
            if p.grad is not None:
                grads[name] = p.grad.clone()
        steps[-1]["grads"] = grads
        return clip(given, largest)

    monkeypatch.setattr(train, "loss_terms", spy_on_loss)
    monkeypatch.setattr(data, "augment", spy_on_augment)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spy_on_clip)
    code, _, err = train_tiny(
        "--task", "ctcc", "--name", "a", "--steps", STEPS, "--warmup", WARMUP, "--lr", LR,
        "--gate-lr", SCALES["gate"], "--new-lr", SCALES["new"], "--weight-decay", DECAY,
        "--seed", 3, "--evaluate-every", 3, "--erase", 0.3, "--optimiser", "adamw")
    assert code == 0, err
    return steps, parameters()


def by_hand(weights, grads, moments, step):
    """The weights after a step, counted from 0: the gradient clipped to a norm of 5, then AdamW
    (Loshchilov & Hutter 2019) on a schedule."""
    norm = math.sqrt(sum(grad.double().square().sum().item() for grad in grads.values()))
    passed = (step - WARMUP) / (STEPS - WARMUP)
    share = (1 + math.cos(math.pi * passed)) / 2 if step >= WARMUP else 0.01 + 0.99 * step / WARMUP
    after = dict(weights)
    for name, grad in grads.items():
        grad = grad * min(1.0, train.CLIP / (norm + 1e-6))
        mean, square = moments.get(name, (0, 0))
        mean = 0.9 * mean + 0.1 * grad
        square = 0.999 * square + 0.001 * grad ** 2
        moments[name] = mean, square

        is_text = name.startswith("encoder.text.")
        kind = "gate" if name.endswith("gate") else "loaded" if is_text else "new"
        lr = LR * share * SCALES[kind]
        p = weights[name]
        if p.ndim > 1:  # matrices alone decay
            p = p * (1 - lr * DECAY)
        mean = mean / (1 - 0.9 ** (step + 1))
        square = square / (1 - 0.999 ** (step + 1))
        after[name] = p - lr * mean / (square.sqrt() + 1e-8)
    return after, norm


def test_a_step_is_the_batch_of_its_number_clipping_and_adamw_by_hand(recording, drawn):
    steps, end = recording
    moments = {}
    norms = []
    ends = [step["weights"] for step in steps[1:]] + [end]
    for number, (step, found) in enumerate(zip(steps, ends)):
        expected, norm = by_hand(step["weights"], step["grads"], moments, number)
        norms.append(norm)
        for name, value in expected.items():
            error = (found[name] - value).abs().max()
            assert error < 2e-6, f"{name} is off by {error} after step {number + 1}"
    assert max(norms) > 1.5 * train.CLIP and max(norms) > 1.2 * min(norms), "nothing is clipped"

    assert len(steps) == STEPS
    assert not any(step["left"] for step in steps), "gradients are left from the step before"
    assert all(step["training"] for step in steps), "an evaluation leaves the model in test mode"
    assert {step["rest"] for step in steps} == {(TINY["size"][0] // 16, 0.3)}
    assert len({step["seed"] for step in steps}) == STEPS
    logged = [line["step"] for line in runs.read_log("runs/a") if "rows" in line]
    assert logged == [3, STEPS]

    datasets = train.open_all(drawn, train.asked_tasks("ctcc"))
    batches = data.Batches(datasets, TINY["size"], TINY["picture_size"], 4, 2, seed=3)
    for number, step in enumerate(steps):
        assert torch.equal(step["given"], batches[number].images)
        assert torch.equal(step["batch"].pictures, batches[number].pictures)


def test_scaled_gradients_of_fp16_are_unscaled_before_they_are_clipped(train_tiny, monkeypatch):
    clip = torch.nn.utils.clip_grad_norm_
    norms = []

    def spy(parameters, largest):
        norms.append(clip(parameters, largest))
        return norms[-1]

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spy)
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=16.0))
    for amp in ("off", "fp16"):
        assert train_tiny("--task", "li", "--steps", 1, "--margin", 0.3, "--amp", amp)[0] == 0
    assert norms[1].item() == pytest.approx(norms[0].item(), rel=0.2)


# ---- interrupted, and going on ----

def interrupt(monkeypatch, module, name, number, after=0):
    """Raises the signal when a function is called once more than `after` times."""
    original = getattr(module, name)
    calls = []

    def interrupting(*args, **named):
        calls.append(1)
        if len(calls) == after + 1:
            signal.raise_signal(number)
        return original(*args, **named)
    monkeypatch.setattr(module, name, interrupting)


def test_a_signal_saves_and_the_resumed_run_is_that_without(
        train_tiny, command, monkeypatch, usual_signals):
    """Interrupted within an evaluation of step 5, in step 6, and within the last evaluation."""
    monkeypatch.setattr(runs, "LOG_EVERY", 4)
    flags = ("--task", "ctcc", "--steps", 10, "--evaluate-every", 5)
    assert train_tiny(*flags, "--name", "whole")[0] == 0
    whole = runs.read_log("runs/whole")
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
    parts = runs.read_log("runs/parts")
    assert without_times(parts) == without_times(whole)
    seconds = [line["seconds"] for line in parts]
    assert seconds == sorted(seconds)
    assert_same(last("whole")["model"], last("parts")["model"])


@pytest.mark.parametrize("done, flags", [
    (4, ("--task", "li", "--seed", 1)),  # its sentences, which a frozen text tower reads once
    (4, ("--task", "li", "--train-text")),  # its dropout
    (4, ("--task", "ctcc", "--amp", "fp16")),  # the scale of its loss
    (4, ("--task", "t2i", "--workers", "1")),  # its hard negatives
    (6, ("--task", "all")),  # in the last step
], ids=str)
def test_a_resumed_run_equals_one_without_interruption(
        done, flags, train_tiny, command, monkeypatch, usual_signals):
    monkeypatch.setattr(train, "finish", lambda *_: None)
    flags = (*flags, "--steps", 6)
    assert train_tiny(*flags, "--name", "whole")[0] == 0
    with monkeypatch.context() as patch:
        interrupt(patch, data, "augment", signal.SIGINT, after=done - 1)
        assert train_tiny(*flags, "--name", "parts")[0] == 128 + signal.SIGINT
    assert last("parts")["step"] == done
    code, _, err = command(train, "--resume", "runs/parts/last.pt")
    assert code == 0, err
    whole, parts = last("whole"), last("parts")
    for part in ("model", "optimisers", "scaler", "rng", "step", "data", "classes", "shape"):
        assert_same(whole[part], parts[part], part)
    lines = without_times(runs.read_log("runs/whole"))
    assert without_times(runs.read_log("runs/parts")) == lines
    is_fp16 = "fp16" in flags
    assert bool(whole["scaler"]) == is_fp16
    assert all(("gradient" in line) != is_fp16 for line in lines)


def test_a_signal_before_the_first_step_is_one_line_and_leaves_nothing(
        train_tiny, monkeypatch, usual_signals):
    interrupt(monkeypatch, train, "build_model", signal.SIGINT)
    code, _, err = train_tiny("--task", "ctcc")
    assert code == 130 and err == "interrupted\n" and not Path("runs").exists()
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


KILLED = """
import os, sys, train
from model import SIZES
from tests.test_model import TINY
steps = []
augment = train.data.augment
def counted(*args):
    steps.append(1)
    if len(steps) == 6:
        os.kill(os.getpid(), 9)
    return augment(*args)
train.data.augment = counted
SIZES["tiny"] = TINY
sys.argv[0] = "train.py"
train.cli.run(train.main, train.Config)
"""


def test_after_kill_9_the_run_goes_on_and_its_log_has_no_line_twice(
        train_tiny, drawn, bert, command, tmp_path):
    """Killed in step 6, after it had logged step 5 and saved step 4."""
    flags = ("--steps", len(SHARED) + 2, "--save-every", 4, "--ratios", "trad:1")
    small = ("--data", drawn, "--text-model", bert, "--ids", 4, "--images", 2)
    assert train_tiny(*flags, "--name", "whole")[0] == 0
    killed = start(tmp_path, "-c", KILLED, *small, *flags, "--name", "killed")
    error = killed.stderr.read()
    assert killed.wait() == -signal.SIGKILL, error
    assert last("killed")["step"] == 4
    assert runs.read_log("runs/killed")[-1]["step"] == 5

    code, _, err = command(train, "--resume", "runs/killed/last.pt")
    assert code == 0, err
    found, expected = (without_times(runs.read_log(f"runs/{n}")) for n in ("killed", "whole"))
    assert found == expected
    assert_same(last("killed")["model"], last("whole")["model"])


def test_a_run_that_another_process_writes_is_left_alone(train_tiny, command, tmp_path):
    assert train_tiny("--task", "ctcc", "--steps", 1, "--name", "a")[0] == 0
    before = Path("runs/a/last.pt").read_bytes()
    hold = "from reid import runs; log = runs.Log('runs/a'); print(file=open('held', 'w'))"
    other = start(tmp_path, "-c", f"{hold}; import time; time.sleep(600)")
    while not Path("held").exists():
        assert other.poll() is None, other.stderr.read()
        time.sleep(0.01)
    one_line(command(train, "--resume", "runs/a/last.pt"), "runs/a is being written by another")
    other.kill()
    other.communicate()
    assert Path("runs/a/last.pt").read_bytes() == before


@pytest.mark.parametrize("spoil, message", [
    (lambda term: term * float("nan"), "tri_out is nan"),
    (lambda term: term + (0 * term).sqrt(), "gradient is nan"),
], ids=["loss", "gradient"])
@pytest.mark.parametrize("save_every", [3, 500])
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
    assert save_every != 3 or last("a")["step"] == 6


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
    expected = [
        {"step": 1, "task": "cc", "losses": {"tri": 1.0}, "gradient": 4.0, "lr": 0.1,
         "images/s": 4.0, "seconds": 2.0},
        {"step": 3, "task": "li", "losses": {"tri": 9.0}, "gradient": 7.0, "lr": 0.1,
         "images/s": 4.0, "seconds": 6.0},
        {"step": 4, "task": "cc", "losses": {"tri": 4.0}, "gradient": 1.5, "lr": 0.1,
         "images/s": 4.0, "seconds": 8.0},
        {"step": 5, "rows": [], "matrix": [], "seconds": 10.0},
    ]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[:4] == expected and lines[4]["losses"] == {"tri": 5.0}


@pytest.mark.parametrize("flags, name", [
    ({}, "all"), ({"task": "cc"}, "cc"), ({"task": "cc", "data": "/photos/ltcc/"}, "ltcc-cc"),
    ({"lr": 0.001, "editing": False, "preset": "toy"}, "all-no-editing-lr_0.001"),
    ({"name": "x", "lr": 1.0}, "x"), ({"workers": 9, "amp": "bf16"}, "all"),
    ({"vit_weights": "/my files/PASS (1).pth"}, "all-vit-weights_PASS_1_.pth"),
])
def test_a_run_is_called_by_what_is_special_about_it(flags, name):
    config = train.Config(**train.TOY | flags)
    assert runs.name_of(config, train.Config(**train.TOY), train.UNNAMED) == name


def test_a_run_never_overwrites_another(train_tiny):
    for expected in ("runs/trad", "runs/trad-2"):
        code, out, _ = train_tiny("--task", "trad", "--steps", 1, "--name", "trad")
        assert code == 0 and f"{expected}/" in out
        assert json.loads(Path(f"{expected}/config.json").read_text())["task"] == "trad"


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
    *((("--ratios", ratios), (f"--ratios {ratios}",)) for ratios in
      ("trad:0", "foo:1", "t2i:x", "t2i", "t2i:1:2", "t2i:99999999999")),
], ids=str)
def test_a_mistake_is_one_line_and_leaves_nothing(flags, words, train_tiny, tmp_path):
    (tmp_path / "holidays").mkdir()
    one_line(train_tiny(*flags), *words)
    assert [path.name for path in tmp_path.iterdir()] == ["holidays"]


def test_a_resume_takes_the_flags_of_its_run_and_evaluates_no_step_again(train_tiny, command):
    flags = ("--task", "ctcc", "--steps", 2, "--evaluate-every", 2, "--name", "a")
    assert train_tiny(*flags)[0] == 0
    one_line(command(train, "--resume", "runs/a/last.pt", "--lr", 1), "--resume", "drop --lr")
    machine = ("--device", "cpu", "--workers", 0)
    code, out, _ = command(train, "--resume", "runs/a/last.pt", *machine, "--steps", 3)
    assert code == 0 and "3 steps in" in out
    with_matrix = {line["step"]: bool(line["matrix"]) for line in runs.read_log("runs/a")
                   if "rows" in line}
    assert with_matrix == {2: True, 3: True}


def test_muon_moves_the_matrices_of_transformer_layers_and_nothing_else():
    config = train.Config(**train.TOY)
    model, _ = train.build_model(config, {"market": 5})
    blocks = [module for module in model.modules() if isinstance(module, irm.Block)]
    matrices = {p for block in blocks for p in block.parameters() if p.ndim == 2}
    adamw, muon = train.optimisers_of(model, config)
    moved = [[p for group in optimiser.param_groups for p in group["params"]]
             for optimiser in (adamw, muon)]
    assert isinstance(muon, torch.optim.Muon) and set(moved[1]) == matrices
    learning = [p for p in model.parameters() if p.requires_grad]
    assert sorted(map(id, moved[0] + moved[1])) == sorted(map(id, learning))
    assert len(train.optimisers_of(model, dataclasses.replace(config, optimiser="adamw"))) == 1


@pytest.mark.parametrize("flag, loaded", [
    ("name", "(?!)"), ("start", "(?!.*classifiers)"), ("vit_weights", r"editor\.(?!.*instr)"),
    ("albef", r"(encoder\.picture|cross)\."),
])
def test_what_no_file_of_weights_brought_moves_at_new_lr(flag, loaded):
    config = train.Config(**train.TOY | {"new_lr": 3.0})
    model, _ = train.build_model(config, {"market": 5})
    scales = {}
    for optimiser in train.optimisers_of(model, dataclasses.replace(config, **{flag: "a file"})):
        for group in optimiser.param_groups:
            scales |= dict.fromkeys(group["params"], group["scale"])
    for name, p in model.named_parameters():
        if p.requires_grad and not name.endswith("gate"):
            assert scales[p] == (1.0 if re.match(loaded, name) else 3.0), name
