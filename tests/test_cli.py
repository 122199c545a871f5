"""Flags, --help, what ends a command, files and devices: reid/cli.py, files.py, device.py."""

import dataclasses
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

import data
import evaluate
import toydata.__main__
import train
from extras import ablate, curves, plots, search
from reid import checkpoints, cli, device, features, files, weights
from reid.cli import UserError
from tests.commands import ROOT, one_line, start

COMMANDS = {
    "train.py": train, "evaluate.py": evaluate, "data.py": data, "-m extras.ablate": ablate,
    "-m extras.search": search,
}


@dataclasses.dataclass
class Config:
    """Does nothing.

    python nothing.py a b --words x y --no-on
    """

    paths: list = cli.argument("some paths")
    on: bool = cli.option(True, "a switch")
    words: tuple = cli.option((), "several", group="others")
    rate: float = cli.option(None, "a rate", least=0)
    count: int = cli.option(None, "a number", least=1, most=9)
    kind: str = cli.option("one", "one of two", ("one", "two"))
    rest: tuple = cli.option((), "all that follow", rest=True)


Config.presets = {"small": {"rate": 0.5, "count": ""}, "large": {"rate": 2.0, "count": None}}


# ---- flags ----

def test_flags_become_a_config():
    words = "a b --words x y --rate 1e30 --count=9 --no-on --rest --on z".split()
    expected = Config(["a", "b"], False, ["x", "y"], 1e30, 9, "one", ["--on", "z"])
    assert cli.parse(Config, words) == expected
    assert cli.parse(Config, ["a"]) == Config(["a"])


@pytest.mark.parametrize("config_class, words, sentence", [
    (Config, "a --rate -1", "--rate -1.0: must be at least 0"),
    (Config, "a --rate 1e999", "--rate inf: must be a finite number"),
    (Config, "a --count 10", "--count 10: must be at most 9"),
    (Config, "a --kind three", "invalid choice: 'three'"),
    (Config, "a --rat 1", "unknown flag --rat; did you mean --rate?"),
    (Config, "--rate 1", "arguments are required: paths"),
    (train.Config, f"--seed {2**63}", f"--seed {2**63}: must be at most {2**63 - 1}"),
    (train.Config, "--name=", "--name : must be more than an empty text"),
])
def test_a_wrong_flag_is_one_sentence(config_class, words, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        cli.parse(config_class, words.split())


def test_flags_of_a_config_give_it_again():
    given = train.Config(task="li", editing=False, val=True, lr=0.1, vit_weights="my own/a=b.pth")
    words = cli.flags_of(given, train.Config)
    expected = ["--task=li", "--val", "--no-editing", "--vit-weights=my own/a=b.pth", "--lr=0.1"]
    assert words == expected and cli.parse(train.Config, words) == given
    base = train.Config(val=True, lr=0.1)
    assert cli.flags_of(given, base, ("task", "vit_weights")) == ["--no-editing"]


FROM_A_FILE = dataclasses.asdict(Config(["a"], rate=1.0, kind="two"))


@pytest.mark.parametrize("change, sentence", [
    ({"rate": None}, "config.rate is None, must be of type float"),
    ({"rate": "1"}, "of type float"), ({"rate": float("nan")}, "a finite number"),
    ({"rate": -1}, "config.rate is -1, must be at least 0"),
    ({"count": 10}, "config.count is 10, must be at most 9"), ({"count": True}, "of type int"),
    ({"kind": "three"}, "config.kind is 'three', must be one of one, two"),
    ({"on": None}, "of type bool"), ({"rest": "x"}, "of type tuple"),
    ({"more": 5}, "config.more is not known"),
])
def test_a_config_from_a_file_obeys_the_same_limits(change, sentence):
    lists = FROM_A_FILE | {"words": ["x"], "rate": 1}  # JSON has no tuples, and 1 is a float
    assert cli.restore(Config, lists, "c.json") == Config(**lists)
    with pytest.raises(UserError, match=f"^c.json: .*{sentence}"):
        cli.restore(Config, FROM_A_FILE | change, "c.json")
    less = {name: value for name, value in FROM_A_FILE.items() if name != "on"}
    with pytest.raises(UserError, match="^c.json: config.on is missing"):
        cli.restore(Config, less, "c.json")


def test_a_name_that_is_no_folder_name():
    for name in ("..", ".", "../../x", "a/../b", "a//b", "a/", "/absolute", "n" * 300, "a\nb"):
        with pytest.raises(UserError, match="--name "):
            cli.folder_name(name)


@pytest.mark.parametrize("out", ["x.jpg", "nowhere/x.png"])
def test_no_command_begins_with_an_output_that_would_fail_at_its_end(out, command, tmp_path):
    (tmp_path / "photos").mkdir()
    for module, flag, *flags in (
            (curves, "--out", "runs/a"), (toydata.__main__, "--sheet"),
            (search, "--out", "--photos", "photos", "--instruction", "red")):
        result = command(module, *flags, flag, out)
        one_line(result, f"{flag} {out}: name a .png in a folder that exists")
    result = command(evaluate, "--checkpoint", "x.pt", "--save-features", out)
    one_line(result, "name a .safetensors in a folder that")
    one_line(command(plots, "--out", out), f"--out {out}: there are several plots")
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


# ---- help ----

def help_of(config_class, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.parse(config_class, ["--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_help_shows_groups_presets_and_defaults(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = help_of(Config, capsys)
    order = [
        "Does nothing.", "  paths ", "  --on, --no-on ", "\nothers:\n", "  --words ",
        "python nothing.py a b",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    for default in ("(small: 0.5; large: 2.0)", "(small: none; large: None)", "(default: one)"):
        assert default in text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_there_without_the_imports_that_take_seconds(command, capsys, monkeypatch):
    """And it ends with examples that are understood."""
    monkeypatch.setenv("COLUMNS", "100")
    words = [sys.executable, "-X", "importtime", *command.split(), "--help"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    monkeypatch.setattr(sys, "argv", [command])
    assert done.stdout == help_of(COMMANDS[command].Config, capsys)
    assert not re.search(r"torch\._C|numpy\._core|transformers|safetensors_rust", done.stderr)

    *_, last = done.stdout.strip().split("\n\n")
    for example in last.replace("\\\n", " ").splitlines():
        line = example.strip().removeprefix(f"python {command}")
        assert line != example.strip()
        cli.parse(COMMANDS[command].Config, shlex.split(re.split(r" {3,}(?=[a-z])", line)[0]))


def test_help_without_imports_gives_way_where_a_module_needs_more(tmp_path):
    (tmp_path / "own.py").write_text(
        f"import sys; sys.argv[0] = {str(ROOT / 'own.py')!r}\nimport reid, torch\n"
        "print('torch._C' in sys.modules, flush=True)\nprint(2 * torch.pi)")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, tmp_path / "own.py", "--help"], env=environment,
                          capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True", "6.283185307179586"], done.stderr


# ---- what ends a command ----

@dataclasses.dataclass
class Nothing:
    """A command without flags."""


def module_of(main):
    return SimpleNamespace(__name__="command", main=main, Config=Nothing)


@pytest.mark.parametrize("error, code, line", [
    (UserError("a\nb: \x1b[1m\udcff"), 2, r"error: a\nb: \x1b[1m\udcff"),
    (BrokenPipeError(32, "Broken pipe"), 2, "error: output: Broken pipe"),
    (PermissionError(13, "Permission denied", "x.png"), 2, "error: x.png: Permission denied"),
    (ModuleNotFoundError("No module named 'fast'", name="fast"), 2,
     "error: fast is not installed: pip install -r requirements.txt")])
def test_whatever_ends_a_command_is_one_line(error, code, line, command, monkeypatch):
    def main(config):
        raise error
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # which a closed one is exchanged for
    assert command(module_of(main)) == (code, "", f"{line}\n")


@pytest.mark.parametrize("number", cli.SIGNALS)
def test_a_signal_ends_a_command_and_the_handlers_are_back(number, command, usual_signals):
    def main(config):
        with cli.on_signals(cli.exit_with("inside")):
            pass
        signal.raise_signal(number)
    before = signal.getsignal(number)
    assert command(module_of(main)) == (128 + number, "", "interrupted\n")
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("command", ["train.py", "-m toydata", "-m extras.search"])
@pytest.mark.parametrize("package, code, line", [
    ("import signal; signal.raise_signal(2)", -signal.SIGINT, "interrupted"),
    ("import absent", 2, "error: absent is not installed: pip install -r requirements.txt"),
])
def test_an_end_while_packages_are_imported_is_one_line(command, package, code, line, tmp_path):
    for name in ("torch", "numpy"):  # the first that is imported
        (tmp_path / f"{name}.py").write_text(package)
    done = subprocess.run(
        [sys.executable, *command.split()], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    assert (done.returncode, done.stderr) == (code, f"{line}\n")


def test_ignored_signals_stay_ignored_and_threads_set_none(usual_signals):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with cli.on_signals(cli.exit_with("stopped")):
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    with ThreadPoolExecutor() as pool:
        pool.submit(cli.on_signals, cli.exit_with("stopped")).result()
        with pytest.raises(SystemExit):  # without a worker to kill, an error sets none either
            pool.submit(cli._end, "error", 2).result()


REAL = (
    "import dataclasses, os; from reid import cli;"
    "Config = dataclasses.make_dataclass('Config', []); signs = os.environ.get('SIGNS', 50_000);"
    "cli.run(lambda config: print(chr(177) * int(signs)), Config)"
)


@pytest.mark.parametrize("shell, code, words", [
    ("SIGNS=5 $RUN > /dev/full", 2, "No space left"), ("$RUN 2>&- >&-", 0, ""),
    ("$RUN | true; exit ${PIPESTATUS[0]}", 2, "Broken pipe"),
    ("LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 $RUN", 0, "")])
def test_an_output_that_is_closed_full_or_ascii(shell, code, words):
    shell = shell.replace("$RUN", f"'{sys.executable}' -c \"{REAL}\"")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
    done = subprocess.run(["bash", "-c", shell], env=environment, capture_output=True)
    assert done.returncode == code and words in done.stderr.decode()
    assert done.stderr.count(b"\n") == bool(words)
    assert done.stdout.decode() in ("", "±" * 50_000 + "\n")


def test_progress_is_lines_where_it_goes_into_a_file(capsys, monkeypatch):
    assert list(cli.progress([1, 2, 3], "short")) == [1, 2, 3]
    assert capsys.readouterr().err.strip() == ""
    monkeypatch.setattr(cli, "QUIET", 0)
    assert list(cli.progress([1, 2, 3], "long")) == [1, 2, 3]
    assert any(line.startswith("long: 2 of 3") for line in capsys.readouterr().err.splitlines())
    monkeypatch.setattr(sys, "stderr", None)
    assert list(cli.progress([1, 2, 3], "closed")) == [1, 2, 3]


def test_a_system_without_sighup_and_file_locks(tmp_path):
    program = (
        "import signal, sys; del signal.SIGHUP; sys.modules['fcntl'] = None;"
        "from reid import cli, files; assert files.lock('.') and len(cli.SIGNALS) == 2;"
        "cli.on_signals(print); cli.leave_signals_to_parent()"
    )
    done = start(tmp_path, "-c", program)
    _, error = done.communicate()
    assert done.returncode == 0, error


# ---- files ----

def test_a_link_stays_and_what_it_names_is_replaced(tmp_path):
    (tmp_path / "link").symlink_to("real")
    files.write_text(tmp_path / "link", "before")
    with files.replacing(tmp_path / "link") as file:
        file.write("ä".encode())
        file.flush()
        assert (tmp_path / "real").read_text() == "before"
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_bytes() == "ä".encode()
    (tmp_path / "loop").symlink_to("loop")
    for write in (files.replacing, files.creating):
        with pytest.raises(UserError, match="loop .Too many levels"), write(tmp_path / "loop"):
            pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "loop", "real"]


def test_a_folder_appears_when_it_is_complete(tmp_path):
    out = tmp_path / "deep/out"
    before = os.umask(0o027)
    try:
        with files.creating(out) as folder:
            (folder / "a").write_text("1")
            assert not out.exists()
            left = tmp_path / "deep/.out.part"
            assert list(left.parent.iterdir()) == [left]
            program = "from reid import files\nwith files.creating('deep/out'): pass"
            _, error = start(tmp_path, "-c", program).communicate()
            assert "being written by another process" in error
    finally:
        os.umask(before)
    assert [path.name for path in out.iterdir()] == ["a"] and out.stat().st_mode & 0o777 == 0o750

    left.mkdir()
    (left / "of a killed process").write_text("")
    with pytest.raises(KeyError), files.creating(tmp_path / "deep/out") as folder:
        assert [path.name for path in folder.iterdir()] == [".lock"]
        raise KeyError
    assert list(left.parent.iterdir()) == [out]


@pytest.mark.parametrize("read", [
    checkpoints.load, weights.read_published, lambda path: features.load_features(path, set())])
def test_a_named_pipe_is_not_waited_for(read, tmp_path):
    path = tmp_path / "pipe.safetensors"
    os.mkfifo(path)
    held = os.open(path, os.O_RDWR)
    threading.Timer(1, os.close, [held]).start()  # ends the wait of a reader that waits
    with pytest.raises(UserError, match="pipe.safetensors: a pipe, not a file"):
        read(path)


@pytest.mark.parametrize("content", [
    b"", b"5", b'{"a": NaN}', b'{"a": 1e999}', b'{"a": "\xff"}',
    b'{"a": 1' + b"0" * 400 + b"}", b'{"a": ' + b"[" * 10**5, None,
])
def test_json_that_is_none(content, tmp_path):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json: .*; fix it") as error:
        files.read_json(path, dict, "fix it")
    assert len(str(error.value)) < len(str(path)) + 150
    files.write_text(tmp_path / "b.json", '\ufeff{"a": [0, 7, -0.5, null, true]}')
    assert repr(files.read_json(tmp_path / "b.json", dict, "")) == "{'a': [0, 7, -0.5, None, True]}"


# ---- devices ----

def test_a_machine_without_a_compiler(monkeypatch):
    def fail(function):
        raise RuntimeError("No working C++ compiler found")
    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(UserError, match="--compile does not work here .No working C.* drop the"):
        device.check_compiler("cpu")


@pytest.mark.parametrize("cuda, mps, chosen", [
    (True, True, "cuda:1"), (False, True, "mps"), (False, False, "cpu")])
def test_auto_takes_the_gpu_that_is_there(cuda, mps, chosen, monkeypatch):
    tried = []
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch, "zeros", lambda size, device: tried.append(device) or torch.ones(1))
    device.pick_device("auto")
    assert tried == [chosen]
    assert device.amp_dtype("auto", torch.device("mps")) is None
