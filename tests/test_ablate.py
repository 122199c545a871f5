"""ablate.py: its table says what the runs' logs say, its intervals are those of a slow twin, it goes on where it was
stopped, and mistakes are told before anything is trained."""

import json
import math
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ablate
import train
from reid import checkpoints, cli, compare, jobs
from reid.runs import read_log
from tests.test_run import wait_for
from tests.test_train import ROOT, command, drawn, one_line  # noqa: F401, two of them are fixtures

SMALL = ("--steps", "2", "--ids", "4", "--images", "2", "--warmup", "1")
VARY = ("--vary", "", "--loss triplet")


class Finished:
    """A process of train.py that ran in this one, which saves the seconds of its imports."""

    def __init__(self, job):
        self.returncode = 0
        python, script, *words = job.command
        assert (python, script) == (sys.executable, train.__file__)
        try:
            train.main(cli.parse(train.Config, words))
        except cli.UserError as error:
            job.output.write_text(f"preset toy\nerror: {error}\n")
            self.returncode = 2

    def poll(self):
        return self.returncode

    wait = terminate = poll


@pytest.fixture
def trained(monkeypatch):
    """The folders whose runs were begun, in that order; they run in this process."""
    folders = []

    def start(job, gpu):
        folders.append(job.name)
        return Finished(job)

    monkeypatch.setattr(jobs, "start", start)
    monkeypatch.setattr(jobs, "POLL", 0)
    return folders


@pytest.fixture
def cc(drawn, command):  # noqa: F811
    """cc(*flags) -> (exit code, stdout, stderr) of an ablation of two seeds on LTCC."""
    def call(*flags):
        flags = ("--task", "cc", "--data", drawn / "LTCC_ReID", "--seeds", "2", "--name", "cc", *SMALL, *flags)
        return command(ablate, *flags)
    return call


# ---- the table ----

def test_the_table_says_what_the_logs_say(cc, trained):
    code, out, err = cc(*VARY)
    assert code == 0, err
    names = ["default-seed_0", "default-seed_1", "loss_triplet-seed_0", "loss_triplet-seed_1"]
    assert trained == names
    logs = [read_log(f"runs/cc/{name}") for name in names]
    table = json.loads(Path("runs/cc/table.json").read_text())["tables"][0]
    assert table["variants"] == ["", "--loss triplet"]

    said = []
    for log in logs:
        said.append({compare.row_key(row): row for row in log[-1]["rows"] + log[-1]["matrix"]})
    assert [row["figure"] for row in table["rows"]] == ["mAP", "R1"] * len(said[0])
    assert len(said[0]) == 3 + 4  # general, cc, sc; two targets under two sentences
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
    assert table["minutes"] == pytest.approx([(seconds[0] + seconds[1]) / 120, (seconds[2] + seconds[3]) / 120])

    text = Path("runs/cc/table.md").read_text()
    assert text in out and "seeds 0, 1" in text
    first, second = table["rows"][0]["cells"]
    shown = [f"{100 * number:.1f}" for number in (first["mean"], first["sd"], second["mean"], second["sd"])]
    shown += [f"{100 * second[name]:+.1f}" for name in ("difference", "low", "high")]
    assert "| cc | LTCC | general | | {} ± {} | {} ± {}; {} ({} to {}) |".format(*shown) in re.sub(" +", " ", text)
    assert Image.open("runs/cc/curves.png").width > 0


def test_the_interval_equals_a_slow_twin():
    rng = np.random.default_rng(3)
    hard = rng.random(40)
    first = hard + 0.1 * rng.standard_normal((3, 40))
    second = hard + 0.1 * rng.standard_normal((3, 40)) + [[0.02], [0.05], [0.11]]
    middle, low, high = compare.paired_bootstrap(first, second)

    own = random.Random(5)
    differences = [[second[s][q] - first[s][q] for q in range(40)] for s in range(3)]
    of_queries = [statistics.mean(column) for column in zip(*differences)]
    of_seeds = [statistics.mean(row) for row in differences]
    draws = []
    for _ in range(6000):
        queries = statistics.mean(own.choices(of_queries, k=40))
        normal, *others = [own.gauss() for _ in range(3)]
        student = normal / math.sqrt(sum(x * x for x in others) / 2)  # t with 2 degrees of freedom
        draws.append(queries + student * statistics.stdev(of_seeds) / math.sqrt(3))
    draws.sort()

    assert middle == pytest.approx(statistics.mean(of_seeds))
    width = draws[5849] - draws[149]
    assert low == pytest.approx(draws[149], abs=0.1 * width) and high == pytest.approx(draws[5849], abs=0.1 * width)
    assert compare.paired_bootstrap(first[0], second[0]) == compare.paired_bootstrap(first[:1], second[:1])


@pytest.mark.parametrize("spread_of_seeds", [0.0, 0.3])
def test_the_interval_of_three_seeds_holds_the_truth_95_times_in_100(spread_of_seeds):
    """Where both were drawn with replacement, it would be 76 times at a spread of 0.3."""
    rng = np.random.default_rng(1)
    held = 0
    for seed in range(200):
        noise = rng.standard_normal((1, 60)) + rng.standard_normal((3, 60))
        difference = 0.1 + spread_of_seeds * rng.standard_normal((3, 1)) + 0.2 * noise
        _, low, high = compare.paired_bootstrap(0 * difference, difference, 200, seed)
        held += low < 0.1 < high
    assert 0.90 <= held / 200 <= 0.99


def test_rows_of_one_variant_alone_are_blank_in_the_others():
    row = {"task": "li", "data": "COCAS+", "protocol": "strict", "mAP": 0.5, "R1": 1.0}
    queries = [{"mAP": np.array([0.25, np.nan, 0.75]), "R1": np.ones(3)}]
    both = ablate.Result({compare.row_key(row): row}, {compare.row_key(row): queries}, 1.0, [])
    trad = row | {"task": "trad", "mAP": 0.7}
    more = both._replace(rows=both.rows | {compare.row_key(trad): trad})
    variants = {"--task li": train.Config(), "--task all": train.Config(), "--data b": train.Config(data="b")}
    results = {"--task li": [both], "--task all": [more], "--data b": [both]}

    table = ablate.table_of([*variants], results, variants)
    li, _, only, _ = table["rows"]
    assert li["cells"][1] == {"values": [0.5], "mean": 0.5, "sd": None, "difference": 0, "low": 0, "high": 0}
    assert "difference" not in li["cells"][2]  # other queries
    assert [cell and cell["mean"] for cell in only["cells"]] == [None, 0.7, None]
    lines = [re.sub(" +", " ", line) for line in ablate.markdown(table).splitlines()]
    assert "| trad | COCAS+ | strict | | | 70.0 | |" in lines
    assert "| li | COCAS+ | strict | | 50.0 | 50.0; +0.0 (+0.0 to +0.0) | 50.0 |" in lines


# ---- the runs ----

def test_only_what_is_missing_is_trained(cc, trained):
    assert cc("--vary", "")[0] == 0
    before = Path("runs/cc/table.json").read_text()
    trained.clear()
    assert cc("--vary", "")[0] == 0
    assert trained == [] and Path("runs/cc/table.json").read_text() == before

    shutil.rmtree("runs/cc/default-seed_1")  # lost
    log = Path("runs/cc/default-seed_0/log.jsonl")
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:-1]))  # stopped in the last evaluation
    assert cc(*VARY)[0] == 0
    assert trained == ["default-seed_0", "default-seed_1", "loss_triplet-seed_0", "loss_triplet-seed_1"]
    table = json.loads(Path("runs/cc/table.json").read_text())["tables"][0]
    values = [row["cells"][0]["values"] for row in table["rows"]]
    assert values == [row["cells"][0]["values"] for row in json.loads(before)["tables"][0]["rows"]]

    one_line(cc("--lr", "0.01", *VARY), "runs/cc holds runs with other flags", "--name")
    Path("runs/cc/table.json").write_text("[1")
    one_line(cc(*VARY), "runs/cc/table.json", "--name")


def test_a_run_that_fails_says_why(cc, trained):
    code, out, err = cc("--jobs", "1", "--vary", "", "--albef nothing.pth")
    assert code == 2 and trained == ["default-seed_0", "default-seed_1", "albef_nothing.pth-seed_0"]
    assert "albef_nothing.pth-seed_0: " in err and "nothing.pth" in err.splitlines()[-1] and "Traceback" not in err


def test_sigterm_ends_the_runs_and_the_same_command_goes_on(drawn, tmp_path):  # noqa: F811
    flags = ("--data", str(drawn / "LTCC_ReID"), "--task", "cc", "--steps", "9000", "--save-every", "2", "--ids", "4",
             "--images", "2", "--seeds", "3", "--jobs", "2", "--name", "a", "--vary", "")
    process = subprocess.Popen(
        [sys.executable, ROOT / "ablate.py", *flags], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    runs = [tmp_path / f"runs/a/default-seed_{seed}" for seed in range(3)]
    for run in runs[:2]:
        wait_for(run / "last.pt", process)
    process.terminate()
    error = process.stderr.read().decode()
    assert process.wait() == 143 and error.splitlines()[-1] == "stopped; the same command goes on"
    assert not runs[2].exists()

    for run in runs[:2]:  # its process has ended, and saved
        step = checkpoints.load_checkpoint(run / "last.pt")["step"]
        last_line = run.with_name(f"{run.name}.txt").read_text().splitlines()[-1]
        assert last_line.startswith(f"stopped at step {step}; ")
        assert not ablate.is_finished(run) and 0 <= ablate.share_done(run) < 1


def test_it_goes_on_from_the_checkpoint(tmp_path, monkeypatch):
    """The command of a run: begun, gone on with, begun anew where it ended before its first checkpoint."""
    monkeypatch.chdir(tmp_path)
    config = cli.parse(ablate.Config, ["--task=li", "--no-editing", "--lr=0.1", "--device=cpu", "--jobs=3"])
    [run] = ablate.runs_of(ablate.models_of(config, "--no-editing"), 7, Path("runs/a"))
    run.folder.mkdir(parents=True)
    (run.folder / "config.json").write_text("{}")

    words = ablate.command_of(run)[2:]
    assert words == ["--task=li", "--name=a/no-editing-seed_7", "--seed=7", "--no-editing", "--lr=0.1", "--device=cpu"]
    assert cli.parse(train.Config, words).name == "a/no-editing-seed_7"
    assert not run.folder.exists()

    run.folder.mkdir()
    (run.folder / "last.pt").write_text("weights")
    words = ablate.command_of(run)[2:]
    assert words == ["--resume=runs/a/no-editing-seed_7/last.pt", "--device=cpu"]


def test_jobs_take_turns_on_the_gpus_and_run_on_one_thread(tmp_path):
    program = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['OMP_NUM_THREADS'])"
    todo = []
    for name in "abc":
        todo.append(jobs.Job(name, [sys.executable, "-c", program], tmp_path / name, lambda: 0.5))
    jobs.run_all(todo, 2, ["3", "5"])
    said = [(tmp_path / name).read_text() for name in "abc"]
    assert said[:2] == ["3 1\n", "5 1\n"] and said[2] in said[:2]


def test_words_of_a_config_give_it_again():
    given = train.Config(task="li", editing=False, val=True, lr=0.1, vit_weights="my weights/a=b.pth")
    words = cli.words_of(given, train.Config)
    assert words == ["--task=li", "--val", "--no-editing", "--vit-weights=my weights/a=b.pth", "--lr=0.1"]
    assert cli.parse(train.Config, words) == given
    assert cli.words_of(given, train.Config, ("task", "val", "lr", "vit_weights")) == ["--no-editing"]


def test_a_model_for_each_task_of_each_data_set(drawn):  # noqa: F811
    config = cli.parse(ablate.Config, ["--task", "each", "--data", str(drawn), "--steps", "5"])
    runs = ablate.runs_of(ablate.models_of(config, "--task each"), 0, Path("runs/a"))
    assert sorted(run.folder.name for run in runs) == [
        "task_each-cocas_ctcc-seed_0", "task_each-cocas_li-seed_0", "task_each-cuhk-pedes_t2i-seed_0",
        "task_each-llcm_vi-seed_0", "task_each-ltcc_cc-seed_0", "task_each-market_trad-seed_0"]
    for run in runs:
        words = cli.words_of(run.config, train.Config)
        given = cli.parse(train.Config, words)
        assert f"_{given.task}-" in run.folder.name and Path(given.data).parent == drawn and given.steps == 5


# ---- what is said before anything is trained ----

@pytest.mark.parametrize("flags, words", [
    (("--vary", "", "--lost triplet"), ('--vary "--lost triplet"', "unknown flag --lost", "--loss")),
    (("--vary", "", "--loss tripled"), ('--vary "--loss tripled"', "--loss", "triplet")),
    (("--vary", "--steps 0"), ("--steps 0", "at least 1")),
    (("--vary", "--loss 'triplet"), ("No closing quotation",)),
    (("--vary", "no-editing"), ('--vary "no-editing"', "no-editing")),
    (("--vary", "--data nowhere"), ("nowhere",)),
    (("--vary", "", "--loss adaptive"), ('"--loss adaptive": it is the same as ""',)),
    (("--vary", "--lr 1", "--lr=1.0"), ("--lr=1.0", "the same as")),
    (("--vary", "--seed 3"), ("--seed is no flag of a variant",)),
    (("--vary", "--name b"), ("--name is no flag of a variant",)),
    (("--vary", "--vary"), ("--vary",)),
    (("--vary", "", "/"), ("--vary", "name the variants")),
    ((), ("--vary", "name the variants")),
    (("--stepps", "5", "--vary", ""), ("--stepps", "--steps")),
    (("--seeds", "0", "--vary", ""), ("--seeds 0",)),
    (("--resume", "runs/a/last.pt", "--vary", ""), ("--resume", "goes on by itself")),
    (("--name", "../a", "--vary", ""), ("--name",)),
])
def test_a_mistake_is_one_line_before_anything_is_trained(flags, words, drawn, command, trained):  # noqa: F811
    one_line(command(ablate, "--task", "cc", "--data", drawn, *flags), *words)
    assert trained == [] and not Path("runs").exists()


def test_groups_and_names():
    assert ablate.groups_of(("", "--a", "/", "--b")) == [["", "--a"], ["--b"]]
    assert ablate.folder_of(["--loss", "triplet", "--no-align"]) == "loss_triplet-no-align"
    assert ablate.folder_of(["--loss=triplet", "--data=./my data/a--b"]) == "loss_triplet-data_a--b"
    assert ablate.folder_of(["--vit-weights", "weights/PASS (1).pth"]) == "vit-weights_PASS_1_.pth"


def test_two_commands_in_one_folder(cc, trained):
    with_lock = subprocess.Popen(
        [sys.executable, "-c", "import sys, time; sys.path.insert(0, sys.argv[1]); from reid import files; "
         "files.os.makedirs('runs/cc'); lock = files.lock('runs/cc'); print('held', flush=True); time.sleep(60)", ROOT],
        stdout=subprocess.PIPE)
    with_lock.stdout.readline()
    one_line(cc(*VARY), "runs/cc is being written by another process")
    assert trained == []
    with_lock.kill()
    with_lock.wait()
