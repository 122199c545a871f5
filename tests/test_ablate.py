"""Ablations: the table says what the logs say; what is finished is used again for the same flags
and data alone; mistakes are found before anything is trained."""

import json
import os
import re
import shutil
import signal
import statistics
import sys
import time
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest

import toydata
import train
from extras import ablate
from reid import checkpoints, cli, compare
from reid.runs import read_log
from tests.commands import one_line, start

SMALL = ("--steps", "2", "--ids", "4", "--images", "2", "--warmup", "1")
VARY = ("--vary", "", "--loss triplet")
FOUR = ["default-seed_0", "default-seed_1", "loss_triplet-seed_0", "loss_triplet-seed_1"]


class Finished:
    """A process of train.py that ran in this one, which saves the seconds of its imports."""

    def __init__(self, run):
        python, script, *words = ablate.command_of(run)
        assert (python, script) == (sys.executable, train.__file__)
        self.returncode = 0
        try:
            train.main(cli.parse(train.Config, words))
        except cli.UserError as error:
            Path(f"runs/{run.name}.txt").write_text(f"preset toy\nerror: {error}\n")
            self.returncode = 2

    def poll(self):
        return self.returncode

    wait = terminate = poll


@pytest.fixture(autouse=True)
def briefly(monkeypatch):
    """A run in this process ends without what an ablation does not read, which takes longest."""
    monkeypatch.setattr(train.evaluate, "draw", lambda *_: {})
    monkeypatch.setattr(train.evaluate, "evaluate_sentences", lambda *_: [])


@pytest.fixture
def trained(monkeypatch):
    """The runs that were begun, in that order; they run in this process."""
    names = []

    def start(run, gpu):
        names.append(Path(run.name).name)
        return Finished(run)

    monkeypatch.setattr(ablate, "start", start)
    monkeypatch.setattr(ablate, "POLL", 0)
    return names


@pytest.fixture
def cc(drawn, command):
    """cc(*flags) -> (exit code, stdout, stderr) of an ablation of two seeds on LTCC."""
    def call(*flags):
        data = drawn / "LTCC_ReID"
        common = ("--task", "cc", "--data", data, "--seeds", "2", "--name", "cc", *SMALL)
        return command(ablate, *common, *flags)
    return call


def tables_of(name="cc"):
    return json.loads(Path(f"runs/{name}/table.json").read_text())["tables"]


def without_minutes(tables):
    return [table | {"minutes": 0} for table in tables]


# ---- the table ----

def test_the_table_says_what_the_logs_say(cc, trained):
    code, out, err = cc(*VARY)
    assert code == 0, err
    assert trained == FOUR
    logs = [read_log(f"runs/cc/{name}") for name in FOUR]
    [table] = tables_of()
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
        assert "difference" not in first
        difference = statistics.mean(expected[2:]) - statistics.mean(expected[:2])
        assert second["difference"] == pytest.approx(difference, abs=1e-6)
    seconds = [[line["seconds"] for line in log if "losses" in line][-1] for log in logs]
    minutes = [sum(pair) / 120 for pair in (seconds[:2], seconds[2:])]
    assert table["minutes"] == pytest.approx(minutes)

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
    li, _, trad, _ = table["rows"]
    assert li["cells"][0] == {"values": [0.5], "mean": 0.5, "sd": None}
    assert li["cells"][1]["difference"] == pytest.approx(0.2)
    assert "difference" not in li["cells"][2]  # other queries
    assert [cell and cell["mean"] for cell in trad["cells"]] == [None, 0.9, None]
    lines = [re.sub(" +", " ", line) for line in ablate.markdown(table).splitlines()]
    assert "| li | COCAS+ | strict | | | 50.0 | 70.0; +20.0 (+20.0 to +20.0) | 40.0 |" in lines
    assert "| trad | COCAS+ | strict | | | | 90.0 | |" in lines

    other_way, _ = ablate.table_of(["--a", ""], results, variants)["rows"][:2]
    assert "difference" not in other_way["cells"][0]
    assert other_way["cells"][1]["difference"] == pytest.approx(-0.2)


# ---- the runs ----

def test_only_what_is_missing_is_trained(cc, trained):
    assert cc("--vary", "")[0] == 0
    [before] = tables_of()
    trained.clear()
    assert cc("--vary", "")[0] == 0
    assert trained == [] and tables_of() == [before]

    for name in ("last.pt", "log.jsonl"):
        os.remove(f"runs/cc/default-seed_1/{name}")  # ended before its first checkpoint
    log = Path("runs/cc/default-seed_0/log.jsonl")
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:-1]))  # stopped in the last evaluation
    assert cc("--vary", "", "/", "--loss triplet", "")[0] == 0
    assert trained == FOUR
    first, second = tables_of()
    assert without_minutes([first]) == without_minutes([before])
    for row in second["rows"]:
        triplet, default = row["cells"]
        assert "difference" in default and "difference" not in triplet
    trained.clear()
    assert cc("--seed", "1", *VARY)[0] == 0  # seeds 1 and 2
    assert trained == ["default-seed_2", "loss_triplet-seed_2"]


def test_interrupted_five_times_it_gives_the_same_table(drawn, command, monkeypatch, usual_signals):
    """A signal reaches a run within its steps; the run saves and ends, and so does the ablation."""
    flags = ("--task", "trad", "--data", drawn, "--seeds", "1", *SMALL, "--steps", "6", *VARY)
    monkeypatch.setattr(ablate, "POLL", 0)
    monkeypatch.setattr(ablate, "start", lambda run, gpu: Finished(run))
    assert command(ablate, "--name", "whole", *flags)[0] == 0

    steps = []
    augment = train.data.augment

    def interrupting(*args, **kwargs):
        steps.append(1)
        if len(steps) in (1, 3, 4, 7, 9):
            signal.raise_signal(signal.SIGTERM)
        return augment(*args, **kwargs)

    monkeypatch.setattr(train.data, "augment", interrupting)
    codes = [command(ablate, "--name", "parts", *flags)[0] for _ in range(6)]
    assert codes == [128 + signal.SIGTERM] * 5 + [0] and len(steps) == 12
    assert without_minutes(tables_of("parts")) == without_minutes(tables_of("whole"))


def test_a_finished_run_counts_only_for_the_same_flags_and_data(command, trained, tmp_path):
    """Other people in the same place; another flag, also one that was left open."""
    toydata.make_toy(tmp_path / "toy", people=8, seed=0, workers=1)
    flags = ("--task", "trad", "--data", "toy", "--seeds", "1", "--name", "a", *SMALL)
    assert command(ablate, *flags, "--vary", "")[0] == 0
    table = Path("runs/a/table.json").read_text()
    trained.clear()

    folder = "runs/a/default-seed_0"
    one_line(command(ablate, *flags, "--lr", "0.01", *VARY), folder, "lr was 0.0015", "--name")
    one_line(command(ablate, *flags[:-2], *VARY), folder, "warmup was 1", "--name")
    shutil.rmtree("toy")
    toydata.make_toy(tmp_path / "toy", people=8, seed=1, workers=1)
    one_line(command(ablate, *flags, *VARY), f"{folder}/last.pt", "other data", "market trad")
    os.remove(f"{folder}/last.pt")
    one_line(command(ablate, *flags, *VARY), f"{folder}/last.pt")
    assert trained == [] and Path("runs/a/table.json").read_text() == table


@pytest.mark.parametrize("name, content, words", [
    ("config.json", "", "not valid JSON"),
    ("config.json", "{}", "is missing"),
    ("config.json", "5", "expected a dict"),
    ("config.json", {"steps": 0}, "config.steps is 0, must be at least 1"),
    ("config.json", {"lr": None}, "config.lr"),
    ("log.jsonl", '{"step": 2, "rows": [{}], "matrix": []}', "not from the log of a run"),
    ("queries.json", "[]", "its log is odd"),
])
def test_files_of_a_run_that_are_damaged_are_one_line(
    name, content, words, one_run, command, trained,
):
    shutil.copytree(one_run, "runs")
    path = Path("runs/a/default-seed_0") / name
    if isinstance(content, dict):
        content = json.dumps(json.loads(path.read_text()) | content)
    path.write_text(content)
    flags = ("--task", "trad", "--data", one_run.parent / "toy", "--seeds", "1", "--name", "a")
    result = command(ablate, *flags, *SMALL, "--vary", "")
    one_line(result, "runs/a/default-seed_0", words)
    assert trained == []


@pytest.fixture(scope="module")
def one_run(tmp_path_factory):
    """The folder `runs` of an ablation with one variant and one seed."""
    folder = tmp_path_factory.mktemp("one")
    toydata.make_toy(folder / "toy", people=8, workers=1)
    words = ["--task", "trad", "--data", str(folder / "toy"), "--name", "a/default-seed_0", *SMALL]
    with chdir(folder):
        train.main(cli.parse(train.Config, words))
    return folder / "runs"


def test_a_run_that_fails_says_why(cc, trained):
    code, out, err = cc("--jobs", "1", "--vary", "", "--albef nothing.pth")
    assert trained == ["default-seed_0", "default-seed_1", "albef_nothing.pth-seed_0"]
    one_line((code, out, err), "albef_nothing.pth-seed_0: ", "nothing.pth")


# ---- real processes ----

def runs_called(*names):
    Path("runs").mkdir()
    return [train.Config(name=name) for name in names]


def test_a_run_that_a_signal_ended_is_explained_by_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ablate, "POLL", 0.01)
    program = "import os; print('step 5', flush=True); os.kill(os.getpid(), 9)"
    monkeypatch.setattr(ablate, "command_of", lambda run: [sys.executable, "-c", program])
    words = r"^a: ended by signal 9 \(Killed\) \(all of it: runs/a.txt\)"
    with pytest.raises(cli.UserError, match=words):
        ablate.train_all(runs_called("a"), cli.parse(ablate.Config, []))
    assert Path("runs/a.txt").read_text() == "step 5\n"


@pytest.mark.parametrize("jobs, gpus", [(None, ["3", "5"]), (1, ["3", "5"]), (3, [])])
def test_jobs_take_turns_on_the_gpus_and_run_on_one_thread(jobs, gpus, tmp_path, monkeypatch):
    """Each says when it began and ended: at most as many at a time as there are GPUs or --jobs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ablate, "POLL", 0.01)
    monkeypatch.setattr(ablate, "visible_gpus", lambda: gpus)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "all")
    program = (
        "import os, time; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['OMP_NUM_THREADS']);"
        "print(time.time()); time.sleep(0.3); print(time.time())")
    monkeypatch.setattr(ablate, "command_of", lambda run: [sys.executable, "-c", program])
    ablate.train_all(runs_called(*"abcd"), ablate.Config(jobs=jobs))

    said = [Path(f"runs/{name}.txt").read_text().split() for name in "abcd"]
    assert {gpu for gpu, *_ in said} == set(gpus[:jobs] or ["all"])
    assert {threads for _, threads, *_ in said} == {"1"}
    times = [(float(began), float(ended)) for *_, began, ended in said]
    at_once = [sum(began <= moment < ended for began, ended in times) for moment, _ in times]
    assert max(at_once) == (jobs or len(gpus))


def is_running(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, runs outlive kill -9")
def test_runs_end_with_an_ablation_that_is_killed(tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from extras import ablate;"
        "Path('runs').mkdir();"
        "ablate.command_of = lambda run: [sys.executable, '-c', 'import time; time.sleep(60)'];"
        "pid = ablate.start(ablate.Config(name='a'), None).pid;"
        "print(pid, file=sys.stderr, flush=True); time.sleep(60)")
    parent = start(tmp_path, "-c", program)
    pid = int(parent.stderr.readline())
    assert is_running(pid)
    parent.kill()
    parent.wait()
    for _ in range(100):
        time.sleep(0.05 * is_running(pid))
    assert not is_running(pid)


def test_sigterm_ends_the_runs_which_save(drawn, tmp_path, usual_signals):
    process = start(
        tmp_path, "-m", "extras.ablate", "--data", drawn / "LTCC_ReID", "--task", "cc", *SMALL,
        "--steps", "9000", "--save-every", "2", "--seeds", "3", "--jobs", "2", "--name", "a",
        "--vary", "")
    runs = [tmp_path / f"runs/a/default-seed_{seed}" for seed in range(3)]
    while not all((run / "last.pt").exists() for run in runs[:2]):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.terminate()
    error = process.stderr.read()
    assert process.wait() == 143 and error.splitlines()[-1] == "stopped; the same command goes on"
    assert not runs[2].exists()

    for run in runs[:2]:  # its process has ended, and saved
        step = checkpoints.load(run / "last.pt", checkpoints.RUN)["step"]
        last_line = run.with_name(f"{run.name}.txt").read_text().splitlines()[-1]
        assert last_line.startswith(f"stopped at step {step}; ")


def test_a_model_for_each_task_of_each_data_set(drawn):
    config = cli.parse(ablate.Config, ["--task", "each", "--data", str(drawn), "--steps", "5"])
    names = []
    for run in ablate.runs_of(config, "a/task_each", 0):
        given = cli.parse(train.Config, cli.flags_of(run, train.Config))
        assert f"_{given.task}-" in given.name and given.steps == 5
        assert Path(given.data).parent == drawn
        names.append(given.name.removeprefix("a/task_each-").removesuffix("-seed_0"))
    assert sorted(names) == [
        "cocas_ctcc", "cocas_li", "cuhk-pedes_t2i", "llcm_vi", "ltcc_cc", "market_trad"]


# ---- what is said before anything is trained ----

@pytest.mark.parametrize("flags, words", [
    (("--vary", "", "--lost triplet"), ('--vary "--lost triplet"', "unknown flag --lost")),
    (("--vary", "", "--loss tripled"), ('--vary "--loss tripled"', "--loss", "triplet")),
    (("--vary", "--steps 0"), ("--steps 0", "at least 1")),
    (("--vary", "--loss 'triplet"), ("No closing quotation",)),
    (("--vary", "no-editing"), ('--vary "no-editing"', "no-editing")),
    (("--vary", "--data nowhere"), ("nowhere",)),
    (("--vary", "", "--loss adaptive"), ('"--loss adaptive": it is the same as ""',)),
    (("--vary", "--lr 1", "--lr=1.0"), ("--lr=1.0", "the same as")),
    *((("--vary", f"--{name} 7"), (f"--{name} is no flag of a variant",)) for name in ablate.OWN),
    (("--vary", "/"), ("--vary", "name the variants")),
    ((), ("--vary", "name the variants")),
    (("--stepps", "5", "--vary", ""), ("--stepps", "--steps")),
    (("--seeds", "0", "--vary", ""), ("--seeds 0", "at least 1")),
    (("--seeds", "9" * 10, "--vary", ""), ("--seeds 9999999999", "at most 1000")),
    (("--jobs", "9" * 10, "--vary", ""), ("--jobs 9999999999", "at most 1000")),
    (("--resume", "runs/a/last.pt", "--vary", ""), ("--resume", "goes on by itself")),
    (("--name", "../a", "--vary", ""), ("--name",))])
def test_a_mistake_is_one_line_before_anything_is_trained(flags, words, drawn, command, trained):
    one_line(command(ablate, "--task", "cc", "--data", drawn, *flags), *words)
    assert trained == [] and not Path("runs").exists()


def test_names_of_folders():
    assert ablate.folder_of(["--loss=triplet", "--no-align"]) == "loss_triplet-no-align"
    assert ablate.folder_of(["--data=./my data/a--b"]) == "data_a--b"
    assert ablate.folder_of(["--vit-weights=weights/PASS (1).pth"]) == "vit-weights_PASS_1_.pth"


def test_two_commands_in_one_folder(cc, trained):
    os.makedirs("runs/cc")
    program = (
        "import sys, time; from reid import files; lock = files.lock('runs/cc');"
        "print(file=sys.stderr, flush=True); time.sleep(60)")
    other = start(".", "-c", program)
    other.stderr.readline()
    one_line(cc(*VARY), "runs/cc is being written by another process")
    assert trained == []
    other.kill()
    other.wait()
