"""A run is never lost: signals, other data, flipped bits, NaN, a full disk, two processes; its log is that of one run."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from reid.history import History

import evaluate
import toydata
import train
from reid import checkpoints, cli, files, history, pictures
from reid.features import Features, save_features
from reid.runs import read_log
from tests.test_train import FAST, ROOT, command, drawn, one_line, start  # noqa: F401, two of them are fixtures

TIMES = ("seconds", "images/s")


def without_times(lines):
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


# ---- signals ----

@pytest.mark.parametrize("number", cli.SIGNALS)
def test_a_signal_saves_and_the_resumed_log_is_that_of_one_run(number, drawn, command, monkeypatch):
    """Interrupted in step 6, within an evaluation of step 5, and within the last one."""
    monkeypatch.setattr(history, "LOG_EVERY", 4)
    flags = ("--data", drawn, "--task", "ctcc", "--steps", 10, "--evaluate-every", 5, *FAST)
    assert command(train, *flags, "--name", "whole")[0] == 0
    whole = read_log("runs/whole")
    assert [line["step"] for line in whole] == [1, 4, 5, 8, 10, 10] and "rows" in whole[2] and "rows" in whole[5]
    assert whole[1]["losses"].keys() == {"tri", "id", "tri_out", "id_out", "align"} and whole[1]["gradient"] > 0
    assert whole[1]["lr"] == pytest.approx(1.5e-3 * (0.01 + 0.99 * 3 / 5))

    def interrupted_in(module, name, *flags):
        """Raises the signal when a function is first called."""
        original = getattr(module, name)

        def interrupting(*args, **kwargs):
            signal.raise_signal(number)
            return original(*args, **kwargs)
        with monkeypatch.context() as patch:
            patch.setattr(module, name, interrupting)
            return command(train, *flags)

    code, _, err = interrupted_in(evaluate, "evaluate_all", *flags, "--name", "parts")
    go_on = "go on with: python train.py --resume runs/parts/last.pt"
    assert code == 128 + number and err.splitlines()[-1] == f"stopped in an evaluation; {go_on}"
    assert checkpoints.load_checkpoint("runs/parts/last.pt")["step"] == 5
    code, _, err = interrupted_in(train.data, "augment", "--resume", "runs/parts/last.pt")
    assert code == 128 + number and err.splitlines()[-1] == f"stopped at step 6; {go_on}"
    code, _, err = interrupted_in(train, "finish", "--resume", "runs/parts/last.pt")
    assert code == 128 + number and err.splitlines()[-1] == f"stopped in the last evaluation; {go_on}"

    code, out, err = command(train, "--resume", "runs/parts/last.pt")
    assert code == 0 and "10 steps in" in out, err
    parts = read_log("runs/parts")
    assert without_times(parts) == without_times(whole)
    seconds = [line["seconds"] for line in parts]
    assert seconds == sorted(seconds)
    a, b = (checkpoints.load_checkpoint(f"runs/{name}/last.pt")["model"] for name in ("whole", "parts"))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_signal_before_the_first_step_is_one_line_and_leaves_nothing(drawn, command, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(train.weights, "build", lambda *_: signal.raise_signal(signal.SIGINT))
    code, _, err = command(train, "--data", drawn, "--task", "ctcc", *FAST)
    assert code == 130 and err == "interrupted\n" and not Path("runs").exists()
    assert signal.getsignal(signal.SIGINT) == before


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.01)


def test_sigterm_to_a_real_process_and_a_second_one_on_the_same_run(drawn, tmp_path):
    flags = ("--data", drawn, "--task", "ctcc", "--steps", 2000, "--save-every", 2, "--name", "a", *FAST)
    first = start(tmp_path, *flags)
    last = tmp_path / "runs/a/last.pt"
    wait_for(last, first)
    second = start(tmp_path, "--resume", last)
    error = second.stderr.read().decode()
    assert second.wait() == 2 and error.splitlines()[-1].startswith(f"error: {last.parent} is being written by another")
    first.terminate()
    error = first.stderr.read().decode()
    assert first.wait() == 143 and "Traceback" not in error
    step = checkpoints.load_checkpoint(last)["step"]
    assert error.splitlines()[-1] == f"stopped at step {step}; go on with: python train.py --resume runs/a/last.pt"


# ---- other data ----

@pytest.fixture(scope="module")
def trained(drawn, tmp_path_factory):
    """A folder with `data`, Market-1501 and LTCC, and a run of one step on it."""
    folder = tmp_path_factory.mktemp("trained")
    for name in ("Market-1501-v15.09.15", "LTCC_ReID", "toy.json"):
        copy = shutil.copytree if (drawn / name).is_dir() else shutil.copy
        (folder / "data").mkdir(exist_ok=True)
        copy(drawn / name, folder / "data" / name)
    process = start(folder, "--data", "data", "--steps", 1, "--name", "a", *FAST)
    assert process.wait() == 0, process.stderr.read().decode()
    return folder


def of_one_person(data):
    train_folder = data / "Market-1501-v15.09.15/bounding_box_train"
    pid = sorted(train_folder.iterdir())[0].name[:4]
    return sorted(train_folder.glob(f"{pid}_*"))


def fewer(data, drawn):
    for file in of_one_person(data):
        file.unlink()


def more(data, drawn):
    for file in of_one_person(data):
        shutil.copy(file, file.with_name(f"1400{file.name[4:]}"))


def renumbered(data, drawn):
    for file in of_one_person(data):
        file.rename(file.with_name(f"1400{file.name[4:]}"))


def one_image_less(data, drawn):
    of_one_person(data)[0].unlink()


def other_file(data, drawn):
    file = of_one_person(data)[0]
    file.rename(file.with_name(file.name.replace("_c", "_c", 1).replace(".jpg", "x.jpg")[:-8] + "99.jpg"))


def removed(data, drawn):
    shutil.rmtree(data / "LTCC_ReID")


def added(data, drawn):
    shutil.copytree(drawn / "COCAS", data / "COCAS")


@pytest.mark.parametrize("change, words", [
    (fewer, ("market trad", "had 12 people, has 11")), (more, ("market trad", "had 12 people, has 13")),
    (renumbered, ("market trad", "numbers of the people")), (one_image_less, ("market trad", "had 72 images, has 71")),
    (other_file, ("market trad", "files")), (removed, ("ltcc cc", "is gone")), (added, ("cocas", "was not there"))])
def test_a_resume_on_other_data_is_refused(change, words, trained, drawn, command, tmp_path):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    before = Path("runs/a/last.pt").read_bytes()
    change(Path("data"), drawn)
    one_line(command(train, "--resume", "runs/a/last.pt"), "runs/a/last.pt", *words)
    assert Path("runs/a/last.pt").read_bytes() == before


def test_a_checkpoint_of_an_earlier_version_goes_on(trained, command, tmp_path):
    """Without checksum, digest and history."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    state = checkpoints.load_checkpoint("runs/a/last.pt")
    old = {key: value for key, value in state.items() if key not in ("data", "history")}
    torch.save({**old, "classes": {**old["classes"], "market": 11}}, "other.pt")
    one_line(command(train, "--resume", "other.pt"), "other.pt", "had 11 market, has 12")
    torch.save(old, "runs/a/last.pt")
    code, out, err = command(train, "--resume", "runs/a/last.pt")
    assert code == 0 and "1 steps in" in out, err


@pytest.mark.parametrize("change, words", [
    ({"step": -5}, "its step"), ({"step": 99}, "its config.steps"), ({"step": "x"}, "its step"),
    ({"optimiser": {}}, "its optimiser"), ({"rng": None}, "its rng"), ({"classes": None}, "its classes"),
    ({"published": 7}, "AttributeError"), ({"config": {"size": "huge"}}, "its config.size"), ({"unknown": 1}, "unknown")])
def test_a_checkpoint_that_lacks_something_is_one_line(change, words, trained, command, tmp_path):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    state = checkpoints.load_checkpoint("runs/a/last.pt")
    if "config" in change or "unknown" in change:
        change = {"config": {**state["config"], **change.get("config", change)}}
    checkpoints.save_checkpoint("runs/a/last.pt", {**state, **change})
    one_line(command(train, "--resume", "runs/a/last.pt"), "runs/a/last.pt", words)
    if not {"step", "optimiser", "rng"} & change.keys() and words != "unknown":
        one_line(command(evaluate, "--checkpoint", "runs/a/last.pt"), "runs/a/last.pt", words)


# ---- bits ----

def test_every_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "last.pt"
    checkpoints.save_checkpoint(path, {"model": {"weight": torch.randn(300)}, "config": {"size": "tiny"}, "step": 1})
    content = path.read_bytes()
    rng = random.Random(0)
    for _ in range(1000):
        flipped = bytearray(content)
        flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(cli.UserError, match="last.pt"):
            checkpoints.load_checkpoint(path)
    for cut in (0, 1, 100, len(content) - 71, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(cli.UserError, match="last.pt"):
            checkpoints.load_checkpoint(path)
    path.write_bytes(content)
    assert checkpoints.load_checkpoint(path)["step"] == 1


# ---- NaN ----

def in_the_loss(term):
    return term * float("nan")


def in_the_gradient(term):
    return term + (0 * term).sqrt()


@pytest.mark.parametrize("break_term, what", [(in_the_loss, "tri_out is nan"), (in_the_gradient, "gradient is nan")])
@pytest.mark.parametrize("save_every", [3, 500])
def test_nan_at_step_7_stops_before_it_is_saved(break_term, what, save_every, drawn, command, monkeypatch):
    calls, loss_terms = [], train.loss_terms

    def breaking(*args):
        calls.append(1)
        terms = loss_terms(*args)
        return {**terms, "tri_out": break_term(terms["tri_out"])} if len(calls) == 7 else terms
    monkeypatch.setattr(train, "loss_terms", breaking)
    flags = ("--data", drawn, "--task", "ctcc", "--steps", 14, "--save-every", save_every, "--name", "a", *FAST)
    one_line(command(train, *flags), "step 7, ctcc", what, "--lr")
    if save_every == 3:
        assert checkpoints.load_checkpoint("runs/a/last.pt")["step"] == 6
    else:
        assert not Path("runs/a/last.pt").exists()


def test_an_infinite_gradient_under_a_scaler_is_no_mistake(tmp_path):
    log = History(tmp_path)
    log.note(1, "cc", {"tri": torch.tensor(1.0)}, None, 4, 0.1)
    log.note(2, "cc", {"tri": torch.tensor(3.0)}, None, 4, 0.1)
    log.write_losses(2)
    assert [line["losses"] for line in read_log(tmp_path)] == [{"tri": 1.0}, {"tri": 3.0}]


# ---- a full disk ----

@contextmanager
def file_limit(size):
    """No file can grow beyond `size` bytes: what a full disk says, without filling one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def long_log(folder):
    log = History(folder)
    log.lines = [{"step": 1, "rows": [], "left": "x" * 1000}]
    return log


WRITERS = {
    "last.pt": lambda path: checkpoints.save_checkpoint(path, {"weight": torch.randn(1000)}),
    "log.jsonl": lambda path: long_log(path.parent).write_losses(2),
    "config.json": lambda path: files.write_text(path, "x" * 1000),
    "picture.png": lambda path: pictures.save(Image.effect_noise((64, 64), 90).convert("RGB"), path),
    "f.safetensors": lambda path: save_features(path, Features(device="cpu", known={"a": (torch.randn(99, 9), "")})),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_line_and_what_was_there_stays(name, tmp_path):
    path = tmp_path / name
    path.write_text("before")
    with file_limit(500), pytest.raises(cli.UserError, match=f"{name}: File too large; make room"):
        WRITERS[name](path)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    WRITERS[name](path)
    assert path.stat().st_size > 500 and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_while_drawing_leaves_nothing(tmp_path):
    with file_limit(500), pytest.raises(cli.UserError, match="toy: File too large"):
        toydata.make_toy(tmp_path / "toy", people=8, workers=1)
    assert not list(tmp_path.iterdir())


def test_drawn_through_a_link(tmp_path):
    (tmp_path / "link").symlink_to("real")
    toydata.make_toy(tmp_path / "link", people=8, workers=1)
    assert (tmp_path / "real/toy.json").exists() and (tmp_path / "link").is_symlink()


def test_a_full_disk_or_a_file_in_the_way_when_a_run_begins(drawn, command):
    flags = ("--data", drawn, "--task", "ctcc", "--steps", 2, *FAST)
    with file_limit(500):
        one_line(command(train, *flags, "--name", "a"), "config.json", "File too large")
    shutil.rmtree("runs")
    Path("runs").write_text("no folder")
    one_line(command(train, *flags, "--name", "a"), "runs/a", "Not a directory")


# ---- what ends a command ----

@dataclass
class Nothing:
    """A command without flags."""


@pytest.mark.parametrize("error, words", [
    (BrokenPipeError(32, "Broken pipe"), "output: Broken pipe"),
    (OSError(28, "No space left on device"), "output: No space left on device"),
    (PermissionError(13, "Permission denied", "x.png"), "x.png: Permission denied")])
def test_what_the_system_refuses_is_one_line(error, words, monkeypatch, capsys):
    def main(config):
        raise error
    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(SystemExit) as stop:
        cli.run(main, Nothing)
    assert stop.value.code == 2 and capsys.readouterr().err == f"error: {words}\n"


def test_a_closed_or_full_output_of_a_real_process():
    script = ("from reid import cli; import dataclasses; Config = dataclasses.make_dataclass('Config', []);"
              "cli.run(lambda config: print('x' * 100_000), Config)")
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open("/dev/full", "w") as full, open(write_end, "w") as closed:
        for output, words in ((full, "No space left"), (closed, "Broken pipe")):
            done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, stdout=output, stderr=subprocess.PIPE,
                                  text=True)
            assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and words in done.stderr


def test_progress_is_lines_where_it_goes_into_a_file(capsys, monkeypatch):
    assert list(cli.progress([1, 2, 3], "short")) == [1, 2, 3]
    assert capsys.readouterr().err.strip() == ""
    monkeypatch.setattr(cli, "QUIET", 0)
    assert list(cli.progress([1, 2, 3], "long")) == [1, 2, 3]
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("long: 2 of 3") for line in lines)


# ---- evaluation, names ----

def test_a_row_that_cannot_be_ranked_is_left_out(drawn, command, monkeypatch):
    rank_trials = evaluate.rank_trials

    def failing(protocol, *args, **kwargs):
        if protocol.name == "strict":
            raise cli.UserError("nothing to rank")
        return rank_trials(protocol, *args, **kwargs)
    monkeypatch.setattr(evaluate, "rank_trials", failing)
    flags = ("--data", drawn, "--task", "ctcc", "--steps", 2, "--evaluate-every", 1, "--name", "a", *FAST)
    code, out, err = command(train, *flags)
    assert code == 0 and "id-only" in out and "strict" not in out
    assert "left out: COCAS+ ctcc strict: nothing to rank" in err
    rows = [line["rows"] for line in read_log("runs/a") if "rows" in line]
    assert [[row["protocol"] for row in each] for each in rows] == [["id-only"], ["id-only"]]


@pytest.mark.parametrize("flags, name", [
    ({}, "all"), ({"task": "cc"}, "cc"), ({"task": "cc", "data": "/photos/ltcc/"}, "ltcc-cc"),
    ({"lr": 0.001, "editing": False, "preset": "toy"}, "all-no-editing-lr_0.001"), ({"name": "x", "lr": 1.0}, "x"),
    ({"vit_weights": "/my files/PASS (1).pth"}, "all-vit-weights_PASS_1_.pth"), ({"workers": 9, "amp": "bf16"}, "all")])
def test_a_run_is_called_by_what_is_special_about_it(flags, name):
    given = train.Config(**flags)
    preset = train.PRESETS["toy"].items()
    filled = {flag: value for flag, value in preset if getattr(given, flag) is None}
    assert train.run_name(train.dataclasses.replace(given, **filled, preset="toy")) == name
