"""The folder of a run of train.py, with config.json and log.jsonl.

log.jsonl has a JSON object per line. For each task, after its first step and every LOG_EVERY steps:
    {"step": 50, "task": "cc", "losses": {"tri": 0.91, ...}, "gradient": 2.1, "lr": 0.00075,
     "images/s": 212.0, "seconds": 14.2}
losses and gradient (its norm before clipping) are means since the previous line of the task. For
each evaluation:
    {"step": 500, "rows": [{"task": "cc", ...}, ...], "matrix": [...], "seconds": 160.4}
"""

import json
import math
import re
import time
from contextlib import suppress
from dataclasses import asdict
from numbers import Real
from pathlib import Path

from reid.cli import UserError, flags_of, folder_name, user_error
from reid.files import lock, parse_json, read_text, write_text, writing

LOG_EVERY = 50  # steps between the lines of a task

# What readers of a log need, as a form for `misfit`; a line may contain more.
ROW = {"task": str, "data": str, "protocol": str, "mAP": Real}
LOSSES = {"step": Real, "task": str, "losses": {str: Real}, "seconds": Real}
EVALUATION = {
    "step": Real, "rows": [ROW | {"feature": str}], "matrix": [ROW], "seconds": Real,
}


# ---- the folder ----

def name_of(config, preset, unnamed):
    """--name, or a name such as `all`, `ltcc-cc`, `ltcc-cc-lr_0.001-no-editing`: data (unless it is
    the default), task, and flags that differ from the config `preset` and are not in `unnamed`."""
    if config.name:
        return folder_name(config.name)
    parts = [config.task, *flags_of(config, preset, unnamed)]
    if Path(config.data) != Path(preset.data):
        parts.insert(0, Path(config.data).resolve().name)
    return folder_of(parts)


def folder_of(parts):
    """["--loss=triplet", "--data=my/a b", "--no-align"] -> "loss_triplet-data_a_b-no-align"."""
    ends = [re.sub(r"=.*/", "=", part).removeprefix("--") for part in parts]
    return "-".join(re.sub(r"[^A-Za-z0-9.-]+", "_", end) for end in ends)[:150]


def new_folder(name, config):
    """A new folder runs/NAME, or NAME-2, NAME-3 ... if that exists, with config.json in it."""
    folder = base = Path("runs") / name
    number = 1
    with writing(folder):
        while True:
            with suppress(FileExistsError):  # maybe of a run that started at the same time
                folder.mkdir(parents=True)
                break
            number += 1
            folder = base.with_name(f"{base.name}-{number}")
    write_text(folder / "config.json", json.dumps(asdict(config), indent=1) + "\n")
    return folder


# ---- the log ----

class Log:
    """Writes the log of a run and of its resumed parts; locks the folder for other processes.

    Values that are noted may be on a GPU. They are fetched, which waits for the GPU, only when they
    are written.
    """

    def __init__(self, folder, step=0, state=None):
        """state: the result of state() at that step; None for a new run."""
        self.folder = Path(folder)
        self.lock = lock(folder)
        self.lines = []
        self.pending = {}  # task -> its steps since the last line: [step, {name: value}]
        self.latest = {}  # task -> its latest loss
        self.began = time.time()
        self.images = 0  # since the last lines
        self.recent = 0.0  # the speed before them
        self.restart_clock()
        if state:
            self.lines = [line for line in read_log(folder) if line["step"] <= step]
            self.pending = state["pending"]
            self.began -= state["seconds"]
            with user_error(f"{folder}/last.pt: its latest losses", "use a last.pt of train.py",
                            (AttributeError, TypeError, ValueError)):
                self.state()

    def restart_clock(self):
        if self.images:
            self.recent = self.speed
        self.images = 0
        self.since = time.time()

    @property
    def speed(self):
        """Images per second since the last lines."""
        return self.images / (time.time() - self.since)

    @property
    def seconds(self):
        """Duration so far, without the time between an interruption and the resume."""
        return round(time.time() - self.began, 1)

    def status(self):
        """The latest loss of each task and the speed, for the progress bar."""
        latest = [f"{task} {float(loss):.2f}" for task, loss in self.latest.items()]
        speed = self.speed if self.images else self.recent
        return f"{' '.join(latest)} {speed:.0f} images/s"

    def note(self, step, task, values, images, lr):
        """Notes a step: values {name: scalar}, its loss terms and perhaps "gradient". Writes the
        lines that are due."""
        values = {name: value.detach() for name, value in values.items()}
        self.latest[task] = sum(value for name, value in values.items() if name != "gradient")
        self.pending.setdefault(task, []).append([step, values])
        self.images += images
        if step % LOG_EVERY == 0:
            self.write(step, lr)
        elif not any(line.get("task") == task for line in self.lines):
            self._write_task(step, lr, task)

    def state(self):
        """The state for a checkpoint; all noted values must be finite."""
        for task, steps in self.pending.items():
            for entry in steps:
                entry[1] = {name: float(value) for name, value in entry[1].items()}
                for name, value in entry[1].items():
                    if not math.isfinite(value):
                        raise UserError(
                            f"step {entry[0]}, {task}: {name} is {value}, training has diverged; "
                            f"lower --lr (the last checkpoint in {self.folder} is older)")
        return {"pending": self.pending, "seconds": self.seconds}

    def write(self, step, lr):
        """A line for each task with pending steps."""
        for task in list(self.pending):
            self._write_task(step, lr, task)
        self.restart_clock()

    def write_rows(self, step, rows, matrix=()):
        """The line of an evaluation."""
        self.lines = [line for line in self.lines if "rows" not in line or line["step"] != step]
        self._add({"step": step, "rows": list(rows), "matrix": list(matrix)})
        self.restart_clock()

    def is_evaluated(self, step):
        return any("rows" in line and line["step"] == step for line in self.lines)

    def _write_task(self, step, lr, task):
        steps = [values for _, values in self.state()["pending"].pop(task)]
        means = {}
        for name in steps[0]:
            means[name] = round(sum(values[name] for values in steps) / len(steps), 5)
        line = {"step": step, "task": task, "losses": means}
        if "gradient" in means:
            line["gradient"] = means.pop("gradient")
        self._add(line | {"lr": float(f"{lr:.5g}"), "images/s": round(self.speed, 1)})

    def _add(self, line):
        """Rewrites the whole file, so that a full disk or a crash does not leave half a line."""
        self.lines.append(line | {"seconds": self.seconds})
        text = "".join(f"{json.dumps(each)}\n" for each in self.lines)
        write_text(self.folder / "log.jsonl", text)


def read_log(folder):
    """The lines of a run's log.jsonl as dicts, [] without one."""
    path = Path(folder) / "log.jsonl"
    if not path.exists():
        return []
    fix = "it is not the log of a run, remove the file"
    lines = []
    for number, text in enumerate(read_text(path, fix).splitlines(), 1):
        where = f"{path}, line {number}"
        line = parse_json(text, dict, where, fix)
        wrong = misfit(line, EVALUATION if "rows" in line else LOSSES)
        if wrong:
            raise UserError(f"{where} is not from the log of a run: {wrong}; remove the file")
        lines.append(line)
    return lines


def misfit(value, form, name=""):
    """The first part of a value that does not have the right form, as `NAME is VALUE, must be ...`,
    or None.

    form: a type, (the allowed values), [the form of every item], {key: the form of its value} or
    {str: the form of every value}.
    """
    if isinstance(form, tuple):
        is_fitting = value in form
        wanted = f"one of {', '.join(form)}"
    else:
        kind = form if isinstance(form, type) else type(form)
        is_fitting = isinstance(value, kind)
        wanted = f"of type {kind.__name__}"
    if not is_fitting:
        return f"{name or 'it'} is {value!r:.60}, must be {wanted}"

    parts = {}  # key -> its form
    if isinstance(form, list):
        value = dict(enumerate(value))
        parts = dict.fromkeys(value, form[0])
    elif isinstance(form, dict):
        parts = dict.fromkeys(value, form[str]) if str in form else form
    for key, part in parts.items():
        wrong = misfit(value.get(key), part, f"{name}.{key}".lstrip("."))
        if wrong:
            return wrong
    return None
