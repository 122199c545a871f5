"""The real command line: it learns, it resumes to the bit after kill -9, and every mistake is one line with exit code 2."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import evaluate
import toydata
import train
from model import InstructReID
from reid import checkpoints, cli
from reid.runs import read_log

ROOT = Path(__file__).parents[1]
FAST = ("--ids", "4", "--images", "4", "--warmup", "5")


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """A small drawn world, shared by the tests of this file; they do not write into it."""
    folder = tmp_path_factory.mktemp("world") / "toy"
    toydata.make_toy(folder, people=16, seed=0)
    return folder


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """command(module, *flags) -> (exit code, stdout, stderr), in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(module, *flags):
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, flags)])
        try:
            cli.run(module.main, module.Config)
            code = 0
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()
    return call


def start(folder, *flags):
    return subprocess.Popen([sys.executable, ROOT / "train.py", *map(str, flags)], cwd=folder, stdout=subprocess.DEVNULL,
                            stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_it_learns_to_find_people_it_has_not_seen(drawn, command):
    code, out, err = command(train, "--data", drawn, "--task", "trad", "--steps", 60, "--name", "trad", *FAST)
    assert code == 0, err
    [row] = read_log("runs/trad")[-1]["rows"]
    assert row["protocol"] == "general" and row["queries"] == 8
    assert row["mAP"] > 2 * row["chance mAP"]
    assert f"{100 * row['mAP']:.1f}" in out and "preset toy: drawn data" in out
    code, out, err = command(evaluate, "--checkpoint", "runs/trad/last.pt")
    assert code == 0 and f"{100 * row['mAP']:.1f}" in out, err  # the checkpoint gives the same figure


def test_all_six_tasks_take_a_step_and_get_a_row(drawn, command):
    code, out, err = command(train, "--data", drawn, "--steps", 9, "--name", "all", *FAST)
    assert code == 0, err
    report = read_log("runs/all")[-1]
    assert {row["task"] for row in report["rows"]} == {"trad", "cc", "ctcc", "vi", "t2i", "li"}
    assert {row["instruction"] for row in report["matrix"] if row["task"] == "li"} == {
        "wanted", "own", "random", "wanted, a stranger's photo", "wanted, without a photo", "wanted, plain gallery"}
    assert "Instruction matrix" in out


@pytest.mark.parametrize("flags", [
    ["--no-editing"], ["--loss", "triplet", "--mining", "all"], ["--feature", "fused"], ["--mining", "hard"]])
def test_every_ablation_is_one_flag(drawn, command, flags):
    code, _, err = command(train, "--data", drawn, "--task", "li", "--steps", 2, "--name", "li", *FAST, *flags)
    assert code == 0, err
    _, config = checkpoints.load_model("runs/li/last.pt")
    key, value = flags[0].removeprefix("--").removeprefix("no-"), (flags[1:] or [False])[0]
    assert config[key] == value


def test_a_run_is_evaluated_in_the_precision_that_it_was_trained_in(drawn, command, monkeypatch):
    seen, embed = [], InstructReID.embed

    def spy(*args, **kwargs):
        seen.append(torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"))
        return embed(*args, **kwargs)

    monkeypatch.setattr(InstructReID, "embed", spy)
    flags = ("--data", drawn, "--task", "trad", "--steps", 2, "--evaluate-every", 1, "--amp", "bf16", "--name", "trad",
             *FAST)
    assert command(train, *flags)[0] == 0
    assert command(evaluate, "--checkpoint", "runs/trad/last.pt")[0] == 0
    assert set(seen) == {torch.bfloat16}


def test_kill_9_and_resume_give_the_same_weights_as_no_interruption(drawn, tmp_path):
    flags = ("--data", drawn, "--task", "ctcc", "--steps", 14, "--save-every", 3, *FAST)
    whole = start(tmp_path, *flags, "--name", "whole")
    assert whole.wait() == 0, whole.stderr.read().decode()
    killed, last = start(tmp_path, *flags, "--name", "killed"), tmp_path / "runs/killed/last.pt"
    while not last.exists():
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert 3 <= checkpoints.load_checkpoint(last)["step"] < 14
    resumed = start(tmp_path, "--resume", last)
    assert resumed.wait() == 0, resumed.stderr.read().decode()
    a, b = (checkpoints.load_checkpoint(tmp_path / f"runs/{name}/last.pt") for name in ("whole", "killed"))
    assert a["step"] == b["step"] == 14
    assert all(torch.equal(a["model"][key], b["model"][key]) for key in a["model"])


def test_two_processes_average_their_gradients(drawn, tmp_path):
    """Both end with the weights that rank 0 saves: the run goes through, and its step counts twice the images."""
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2",
                           "--master_port=29611", ROOT / "train.py", "--data", drawn,
                           "--task", "trad", "--steps", "2", "--name", "trad", *FAST], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "runs/trad/last.pt").exists() and "2 steps" in done.stdout


def test_a_run_never_overwrites_another(drawn, command):
    for expected in ("runs/trad", "runs/trad-2"):
        code, out, _ = command(train, "--data", drawn, "--task", "trad", "--steps", 1, "--name", "trad", *FAST)
        assert code == 0 and f"{expected}/" in out


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    checkpoints.save_checkpoint(path, {"model": {}, "config": {}, "step": 1})
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(cli.UserError, match="No space left"):
        checkpoints.save_checkpoint(path, {"model": {}, "config": {}, "step": 2})
    monkeypatch.undo()
    assert checkpoints.load_checkpoint(path)["step"] == 1 and list(tmp_path.iterdir()) == [path]


def test_the_schedule_warms_up_and_falls_to_zero():
    config = train.Config(steps=100, warmup=10)
    assert train.schedule(0, config) == 0.01 and train.schedule(10, config) == 1
    assert train.schedule(100, config) == 0 and math.isclose(train.schedule(55, config), 0.5)


# ---- mistakes ----

def one_line(result, *words):
    code, out, err = result
    line = err.strip().splitlines()[-1]
    assert code == 2 and line.startswith("error: ") and "Traceback" not in err
    assert all(str(word) in line for word in words), line


def test_missing_folder(command):
    one_line(command(train, "--data", "./nowhere"), "nowhere: no such folder")


def test_folder_of_no_known_layout(command, tmp_path):
    (tmp_path / "holidays").mkdir()
    one_line(command(train, "--data", "holidays"), "holidays", "Market-1501", "LTCC")


def test_empty_split(command, drawn, tmp_path):
    for name in ("train", "query", "test"):
        (tmp_path / "LTCC_ReID" / name).mkdir(parents=True)
    one_line(command(train, "--data", "LTCC_ReID"), "train", "empty split")


def test_truncated_image_is_named(command, drawn, tmp_path):
    source = drawn / "Market-1501-v15.09.15"
    for file in source.rglob("*.jpg"):
        copy = tmp_path / "market" / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes()[:700] if copy.parent.name == "bounding_box_train" else file.read_bytes())
    one_line(command(train, "--data", "market", "--preset", "toy", *FAST), "bounding_box_train", ".jpg", "cannot read image")


def test_fewer_identities_than_a_batch_needs(command, drawn):
    one_line(command(train, "--data", drawn, "--task", "trad", "--ids", 64), "--ids 64", "12 identities")


def test_impossible_numbers_and_devices(command, drawn):
    one_line(command(train, "--data", drawn, "--steps", 0), "--steps 0")
    one_line(command(train, "--data", drawn, "--ids", 1), "--ids 1")
    one_line(command(train, "--data", drawn, "--device", "tpu9"), "--device tpu9")


def test_unknown_flag_is_answered_with_the_nearest(command):
    one_line(command(train, "--lerning-rate", "1"), "--lerning-rate", "--")
    one_line(command(train, "--stepps", "1"), "--stepps", "--steps")
    one_line(command(train, "--steps", "many"), "--steps")


def test_resume_takes_no_other_flags(command, drawn):
    assert command(train, "--data", drawn, "--task", "trad", "--steps", 1, "--name", "trad", *FAST)[0] == 0
    one_line(command(train, "--resume", "runs/trad/last.pt", "--lr", 1), "--resume", "--lr")


def test_checkpoint_of_another_size(command, drawn):
    assert command(train, "--data", drawn, "--task", "trad", "--steps", 1, "--name", "trad", *FAST)[0] == 0
    state = checkpoints.load_checkpoint("runs/trad/last.pt")
    checkpoints.save_checkpoint("other.pt", {**state, "config": {**state["config"], "size": "small"}})
    one_line(command(evaluate, "--checkpoint", "other.pt", "--data", drawn), "other.pt", "size")


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04 cut off"])
def test_a_file_that_is_no_checkpoint(command, tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    one_line(command(evaluate, "--checkpoint", "x.pt"), "x.pt", "not a checkpoint")
    one_line(command(train, "--resume", "x.pt"), "x.pt")


class Payload:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_a_checkpoint_that_would_execute_code_is_refused_and_does_not(command, tmp_path):
    torch.save({"model": {}, "config": Payload()}, tmp_path / "evil.pt")
    one_line(command(evaluate, "--checkpoint", "evil.pt"), "evil.pt", "refused")
    assert not (tmp_path / "executed").exists()
