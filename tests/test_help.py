"""--help: what each preset gives, the groups of the Config, and examples that are understood."""

import re
import shlex

import pytest

import ablate
import data
import evaluate
import search
import train
from reid import cli

COMMANDS = {"train.py": train, "ablate.py": ablate, "evaluate.py": evaluate, "search.py": search, "data.py": data}


def help_of(module, capsys):
    """What --help prints: broken lines joined, {flag: its line}, examples."""
    with pytest.raises(SystemExit) as stop:
        cli.parse(module.Config, ["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    flags = {}
    for part in re.split(r"\n  (?=-)", text)[1:]:
        flag = re.match(r"--[a-z0-9-]+", part)
        if flag:
            flags[flag.group()] = re.sub(r"\s+", " ", part)
    return text, flags


def test_train_shows_what_each_preset_gives(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")  # no value is broken in two
    _, flags = help_of(train, capsys)
    for name, preset in train.PRESETS.items():
        for flag, value in preset.items():
            line = flags["--" + flag.replace("_", "-")]
            shown = "none" if value == "" else value
            assert re.search(rf"[(;] ?{name}: {re.escape(str(shown))}[;)]", line), line
            assert "default:" not in line
    assert "(default: 0.1)" in flags["--smoothing"] and "(default: True)" in flags["--editing"]


def test_flags_stand_in_the_groups_of_the_config(capsys):
    text, _ = help_of(train, capsys)
    places = [text.index(f"\n{group}:\n") for group in ("options", "model", "loss", "schedule", "machine")]
    places += [text.index("\n  --size"), text.index("\n  --loss"), text.index("\n  --steps"), text.index("\n  --amp")]
    options, model, loss, schedule, machine, *firsts = places
    assert options < model < firsts[0] < loss < firsts[1] < schedule < firsts[2] < machine < firsts[3]
    text, _ = help_of(ablate, capsys)
    assert text.index("\nmachine:\n") < text.index("\nablation:\n") < text.index("\n  --seeds")


@pytest.mark.parametrize("module", COMMANDS.values(), ids=COMMANDS)
def test_it_ends_with_examples_that_are_understood(module, capsys):
    text, _ = help_of(module, capsys)
    *_, last = text.strip().split("\n\n")
    examples = last.replace("\\\n", " ").splitlines()
    assert examples
    for example in examples:
        python, script, *words = shlex.split(re.split(r" {3,}(?=[a-z])", example)[0])
        assert python == "python" and COMMANDS[script] is module
        cli.parse(module.Config, words)
