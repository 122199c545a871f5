"""Ablations: the table says what the logs say; what is finished is used again for the same flags
and data alone; mistakes are found before anything is trained."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

import train
from extras import ablate
from model import SIZES
from reid import cli, compare
from reid.runs import read_log
from tests.commands import one_line
from tests.test_model import TINY

SMALL = ("--steps", "2", "--ids", "4", "--images", "2", "--warmup", "1")
FOUR = ["default-seed_0", "default-seed_1", "loss_triplet-seed_0", "loss_triplet-seed_1"]


@pytest.fixture(scope="module", autouse=True)
def briefly():
    """A run in this process has a tiny model, and ends without what an ablation does not read; an
    interval has few resamples."""
    bootstrap = compare.paired_bootstrap
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "tiny", TINY)
        patch.setattr(train.evaluate, "draw", lambda *_: {})
        patch.setattr(train.evaluate, "evaluate_sentences", lambda *_: [])
        patch.setattr(compare, "paired_bootstrap", partial(bootstrap, resamples=50))
        patch.setattr(ablate, "POLL", 0.01)
        yield


@pytest.fixture
def trained(monkeypatch):
    """The runs that were begun, in that order; they run in this process, which saves imports."""
    names = []

    def start(run, gpu):
        names.append(Path(run.name).name)
        python, script, *words = ablate.command_of(run)
        assert (python, script) == (sys.executable, train.__file__)
        train.main(cli.parse(train.Config, words))
        return Mock(returncode=0, poll=lambda: 0)

    monkeypatch.setattr(ablate, "start", start)
    return names


@pytest.fixture
def cc(drawn, bert, command):
    """cc(*flags) -> (exit code, stdout, stderr) of an ablation of two seeds on LTCC."""
    common = ("--task", "cc", "--data", drawn / "LTCC_ReID", "--text-model", bert, *SMALL)
    return lambda *flags: command(ablate, *common, "--seeds", 2, "--name", "cc", *flags)


def tables_of(name):
    return json.loads(Path(f"runs/{name}/table.json").read_text())["tables"]


# ---- the table ----

def test_the_table_says_what_the_logs_say(cc, trained):
    code, out, err = cc("--vary", "", "--loss triplet")
    assert code == 0, err
    assert trained == FOUR
    logs = [read_log(f"runs/cc/{name}") for name in FOUR]
    [table] = tables_of("cc")
    assert table["variants"] == ["", "--loss triplet"]

    said = []
    for log in logs:
        said.append({compare.row_key(row): row for row in log[-1]["rows"] + log[-1]["matrix"]})
    assert [row["figure"] for row in table["rows"]] == [*compare.FIGURES] * len(said[0])
    # general, cc, sc by F and F_out; two targets under two sentences
    assert len(said[0]) == 2 * 3 + 4
    for row in table["rows"]:
        first, second = row["cells"]
        expected = [rows[compare.row_key(row)][row["figure"]] for rows in said]
        assert first["values"] == expected[:2] and second["values"] == expected[2:]
        assert first["mean"] == pytest.approx(statistics.mean(expected[:2]))
        assert second["sd"] == pytest.approx(statistics.stdev(expected[2:]))
        difference = statistics.mean(expected[2:]) - statistics.mean(expected[:2])
        assert second["difference"] == pytest.approx(difference, abs=1e-6)
    seconds = [[line["seconds"] for line in log if "losses" in line][-1] for log in logs]
    assert table["minutes"] == pytest.approx([sum(seconds[:2]) / 120, sum(seconds[2:]) / 120])

    text = Path("runs/cc/table.md").read_text(encoding="utf-8")
    assert text in out and "seeds 0, 1" in text
    first, second = table["rows"][0]["cells"]
    shown = [f"{100 * cell[name]:.1f}" for cell in (first, second) for name in ("mean", "sd")]
    shown += [f"{100 * second[name]:+.1f}" for name in ("difference", "low", "high")]
    line = "| cc | LTCC | general | F | | {} ± {} | {} ± {}; {} ({} to {}) |".format(*shown)
    assert line in re.sub(" +", " ", text)


def one_seed(mAP, task="li"):
    """What read_result gives: the rows of one seed with a task's mAP of two queries."""
    key = compare.row_key({"task": task, "data": "COCAS+", "protocol": "strict"})
    each = [{"mAP": np.array([mAP - 0.1, np.nan, mAP + 0.1]), "R1": np.ones(3)}]
    return {key: {"mAP": mAP, "R1": 1.0, "each": each}}, 1.0


def test_each_group_is_compared_with_its_own_first_where_the_queries_are_the_same():
    variants = {"": train.Config(), "--a": train.Config(), "--data b": train.Config(data="b")}
    results = {"": [one_seed(0.5)], "--a": [one_seed(0.7)], "--data b": [one_seed(0.4)]}
    results["--a"][0][0].update(one_seed(0.9, "trad")[0])

    table = ablate.table_of(["", "--a", "--data b"], results, variants)
    lines = [re.sub(" +", " ", line) for line in ablate.markdown(table).splitlines()]
    assert "| li | COCAS+ | strict | | | 50.0 | 70.0; +20.0 (+20.0 to +20.0) | 40.0 |" in lines
    assert "| trad | COCAS+ | strict | | | | 90.0 | |" in lines


# ---- the runs ----

def test_only_what_is_missing_is_trained(cc, trained):
    assert cc("--vary", "")[0] == 0
    [before] = tables_of("cc")
    for name in ("last.pt", "log.jsonl"):
        os.remove(f"runs/cc/default-seed_1/{name}")  # ended before its first checkpoint
    log = Path("runs/cc/default-seed_0/log.jsonl")
    lines = log.read_text().splitlines(keepends=True)
    lines[0] = lines[0].replace("{", '{"kept": 1, ', 1)
    log.write_text("".join(lines[:-1]))  # stopped in the last evaluation
    trained.clear()
    assert cc("--vary", "", "/", "--loss triplet", "")[0] == 0
    assert trained == FOUR and "kept" in log.read_text()  # that run was resumed
    first, second = tables_of("cc")
    assert first["rows"] == before["rows"]
    for row in second["rows"]:
        triplet, default = row["cells"]
        assert "difference" in default and "difference" not in triplet

    trained.clear()
    assert cc("--seed", 1, "--vary", "")[0] == 0  # seeds 1 and 2
    assert trained == ["default-seed_2"]


DAMAGED = [  # (file of a run, {key: other value} or the text, words)
    ("config.json", "", "not valid JSON"),
    ("config.json", {"steps": 0}, "config.steps is 0, must be at least 1"),
    ("log.jsonl", '{"step": 2, "rows": [{}], "matrix": []}', "not from the log of a run"),
    ("queries.json", "[]", "its log is not valid"),
]


def test_a_finished_run_counts_only_for_the_same_flags_and_data(drawn, cc, trained):
    """Another photo, another flag, also one that was left open; or damaged files."""
    toy = shutil.copytree(drawn / "LTCC_ReID", "toy")

    def again(*flags):
        return cc("--data", toy, "--seeds", 1, *flags, "--vary", "")

    assert again()[0] == 0
    trained.clear()
    folder = Path("runs/cc/default-seed_0")
    one_line(again("--lr", 0.01), folder, "lr was 0.0015", "--name")
    one_line(again("--warmup", 2), folder, "warmup was 1", "--name")
    for name, content, words in DAMAGED:
        before = (folder / name).read_text()
        if isinstance(content, dict):
            content = json.dumps(json.loads(before) | content)
        (folder / name).write_text(content)
        one_line(again(), folder, words)
        (folder / name).write_text(before)
    assert again()[0] == 0
    min(Path("toy/train").iterdir()).unlink()
    one_line(again(), folder / "last.pt", "other data", "ltcc cc")
    os.remove(folder / "last.pt")
    one_line(again(), folder / "last.pt")
    assert trained == []


# ---- real processes ----

@pytest.mark.parametrize("gpus, said, end, reason", [
    (["3"], "3 1\n", "os.kill(os.getpid(), 9)", r"ended by signal 9 \(Killed\)"),
    ([], "all 1\n", "sys.exit('error: no such file')", "no such file"),
])
def test_a_run_has_one_thread_and_its_gpu_and_says_why_it_fails(
    gpus, said, end, reason, command, monkeypatch,
):
    names = "'CUDA_VISIBLE_DEVICES', 'OMP_NUM_THREADS'"
    program = f"import os, sys; print(*map(os.environ.get, [{names}]), flush=True); {end}"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "all")
    monkeypatch.setattr(ablate, "visible_gpus", lambda: gpus)
    monkeypatch.setattr(ablate, "command_of", lambda run: [sys.executable, "-c", program])
    Path("runs").mkdir()
    with pytest.raises(cli.UserError, match=rf"^a: {reason} \(full output: runs/a.txt\)"):
        ablate.train_all([train.Config(name="a")], ablate.Config())
    assert Path("runs/a.txt").read_text().startswith(said)


@pytest.mark.parametrize("jobs, gpus, working", [
    (None, ["3", "5"], ["3", "5"]), (1, ["3", "5"], ["3"]), (3, [], [None, None, None])])
def test_jobs_take_turns_on_the_gpus(jobs, gpus, working, command, monkeypatch):
    """As many at a time as there are GPUs or --jobs; a run ends when it is looked at twice."""
    begun = []
    at_once = []

    def begin(run, gpu):
        process = Mock(returncode=0, poll=Mock(side_effect=[None, 0]))
        begun.append((gpu, process))
        at_once.append([gpu for gpu, process in begun if process.poll.call_count < 2])
        return process

    monkeypatch.setattr(ablate, "visible_gpus", lambda: gpus)
    monkeypatch.setattr(ablate, "start", begin)
    ablate.train_all([train.Config(name=name) for name in "abcde"], ablate.Config(jobs=jobs))
    assert len(begun) == 5 and max(at_once, key=len) == working
    assert all(len(set(gpus)) == len(gpus) for gpus in at_once if None not in gpus)


LINGERING = """
import signal, sys, time
def leave(*_):
    time.sleep(0.3)
    sys.exit("saved")
signal.signal(signal.SIGTERM, leave)
print("ready", flush=True)
time.sleep(60)
"""


def ablation(cc):
    ablate.command_of = lambda run: [sys.executable, "-c", LINGERING]
    code, _, err = cc("--seeds", 3, "--jobs", 2, "--vary", "")
    assert err.splitlines()[-1] == "stopped; the same command continues"
    sys.exit(code)


@pytest.mark.parametrize("number, code", [
    (signal.SIGTERM, 143), pytest.param(signal.SIGKILL, -9, marks=pytest.mark.skipif(
        sys.platform != "linux", reason="elsewhere, runs outlive kill -9"))])
def test_runs_save_and_end_with_an_ablation(number, code, cc, usual_signals):
    texts = [Path(f"runs/cc/default-seed_{seed}.txt") for seed in range(3)]
    process = multiprocessing.get_context("fork").Process(target=ablation, args=[cc])
    process.start()
    for text in ("ready\n", "ready\nsaved\n"):
        deadline = time.monotonic() + 120
        while [path.exists() and path.read_text() for path in texts] != [text, text, False]:
            assert time.monotonic() < deadline, process.kill()
            time.sleep(0.05)
        if process.is_alive():
            os.kill(process.pid, number)
        process.join()
    assert process.exitcode == code


def test_a_model_for_each_task_of_each_data_set(drawn):
    config = cli.parse(ablate.Config, ["--task", "each", "--data", str(drawn), "--steps", "5"])
    names = []
    for run in ablate.runs_of(config, "a", 0):
        given = cli.parse(train.Config, cli.flags_of(run, train.Config))
        assert given.steps == 5 and Path(given.data).parent == drawn
        names.append((given.task, given.name))
    assert sorted(names) == [(name.rpartition("_")[2], f"a-{name}-seed_0") for name in (
        "ltcc_cc", "cocas_ctcc", "cocas_li", "cuhk-pedes_t2i", "market_trad", "llcm_vi")]


# ---- what is said before anything is trained ----

@pytest.mark.parametrize("flags, words", [
    (("--vary", "", "--lost triplet"), ('--vary "--lost triplet"', "unknown flag --lost")),
    (("--vary", "--steps 0"), ("--steps 0", "at least 1")),
    (("--vary", "--loss 'triplet"), ("No closing quotation",)),
    (("--vary", "no-editing"), ('--vary "no-editing"', "no-editing")),
    (("--vary", "--data nowhere"), ("nowhere",)),
    (("--vary", "--lr 1", "--lr=1.0"), ("--lr=1.0", "the same as")),
    (("--vary", "", "--loss adaptive"), ('"--loss adaptive": it is the same as ""',)),
    *((("--vary", f"--{name} 7"), (f"--{name} is no flag of a variant",)) for name in ablate.OWN),
    (("--vary", "/"), ("--vary", "name the variants")),
    (("--resume", "runs/a/last.pt", "--vary", ""), ("--resume", "continues by itself")),
    (("--name", "../a", "--vary", ""), ("--name",))])
def test_a_mistake_is_one_line_before_anything_is_trained(flags, words, drawn, command, trained):
    one_line(command(ablate, "--task", "cc", "--data", drawn, *flags), *words)
    assert trained == [] and not Path("runs").exists()


def test_two_commands_in_one_folder(cc, trained, monkeypatch):
    def lock(folder):
        raise cli.UserError(f"{folder} is being written")

    monkeypatch.setattr(ablate.files, "lock", lock)
    one_line(cc("--vary", ""), "runs/cc is being written")
    assert trained == []
