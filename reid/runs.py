"""What a run of train.py leaves in its folder: config.json and log.jsonl.

log.jsonl has a JSON object a line. For each task at its first step and every LOG_EVERY steps:
    {"step": 50, "task": "cc", "losses": {"tri": 0.91, ...}, "gradient": 2.1, "lr": 0.00075,
     "images/s": 212.0, "seconds": 14.2}
losses and gradient (its norm before clipping) are means since the task's line before. And for each
evaluation:
    {"step": 500, "rows": [{"task": "cc", ...}, ...], "matrix": [...], "seconds": 160.4}
"""

import itertools
import json
import math
import re
import time
from dataclasses import asdict, fields
from pathlib import Path

from reid.cli import UserError, folder_name
from reid.files import check_file, parse_json, write_text, writing

LOG_EVERY = 50  # steps between the lines of a task

# What readers of a log rely on, as `fits` takes it; a line may hold more.
NUMBER = (int, float)
ROWS = [{"task": str, "data": str, "protocol": str, "mAP": NUMBER}]
LOSSES = {"step": NUMBER, "task": str, "losses": {str: NUMBER}, "seconds": NUMBER}
EVALUATION = {"step": NUMBER, "rows": ROWS, "matrix": ROWS, "seconds": NUMBER}


# ---- the folder ----

def name_of(config, usual, unnamed):
    """--name, or what is special about a run: `all`, `ltcc-cc`, `ltcc-cc-lr_0.001-no-editing`.

    The data's name unless it is the default, the task, and the flags that differ from `usual`, the
    values of its preset; those in `unnamed` do not show.
    """
    if config.name:
        return folder_name(config.name)
    parts = [config.task]
    if Path(config.data) != Path(type(config).data):
        parts.insert(0, Path(config.data).resolve().name)
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in unnamed or value == usual.get(field.name, field.default):
            continue
        flag = field.name.replace("_", "-")
        if isinstance(value, bool):
            parts.append(flag if value else f"no-{flag}")
        else:
            parts.append(f"{flag}_{Path(str(value)).name}")
    return re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(parts))[:100]


def new_folder(name, config):
    """runs/NAME, or NAME-2, NAME-3 ...: no earlier run is overwritten. Holds config.json."""
    base = Path("runs") / name
    with writing(base):
        for n in itertools.count(1):
            folder = base if n == 1 else base.with_name(f"{base.name}-{n}")
            try:
                folder.mkdir(parents=True)
                break
            except FileExistsError:
                continue
    write_text(folder / "config.json", json.dumps(asdict(config), indent=1) + "\n")
    return folder


# ---- the log ----

class Log:
    """Writes the log of a run, over all its resumes.

    What is noted of a step may lie on a GPU: it is fetched, which waits for the GPU, only when it
    is written.
    """

    def __init__(self, folder, step=0, state=None):
        """state: what the method gave at that step; without it a run begins."""
        self.folder = Path(folder)
        self.lines = []
        self.pending = []  # steps without a line: [step, task, {name: value}]
        self.latest = {}  # task -> its last loss
        self.images = 0  # since `since`
        self.since = time.time()
        self.began = self.since
        if state:
            self.lines = [line for line in read_log(self.folder) if line["step"] <= step]
            self.pending = state["pending"]
            self.began -= state["seconds"]

    @property
    def seconds(self):
        """So far, of all processes that worked on the run."""
        return round(time.time() - self.began, 1)

    @property
    def speed(self):
        """Images per second since the last lines."""
        return self.images / (time.time() - self.since)

    def note(self, step, task, values, images, lr):
        """One step: values {name: scalar}, its loss terms and perhaps "gradient". Writes the lines
        that are due. UserError as `check`."""
        values = {name: value.detach() for name, value in values.items()}
        self.latest[task] = sum(value for name, value in values.items() if name != "gradient")
        self.pending.append([step, task, values])
        self.images += images
        if step % LOG_EVERY == 0:
            self.write(step, lr)
        elif not any(line.get("task") == task for line in self.lines):
            self.write(step, lr, [task])

    def check(self):
        """Fetches what was noted. UserError that names the first value which is not finite."""
        for entry in self.pending:
            step, task, values = entry
            entry[2] = {name: float(value) for name, value in values.items()}
            for name, value in entry[2].items():
                if not math.isfinite(value):
                    raise UserError(
                        f"step {step}, {task}: {name} is {value}, training has diverged; nothing "
                        f"was saved since, begin again with a lower --lr ({self.folder})"
                    )

    def state(self):
        """What a checkpoint keeps of it. UserError as `check`."""
        self.check()
        return {"pending": self.pending, "seconds": self.seconds}

    def write(self, step, lr, tasks=None):
        """A line for each of the tasks, by default all, with steps that have none yet."""
        self.check()
        for task in tasks or dict.fromkeys(task for _, task, _ in self.pending):
            steps = [values for _, name, values in self.pending if name == task]
            means = {}
            for name in steps[0]:
                means[name] = round(sum(values[name] for values in steps) / len(steps), 5)
            line = {"step": step, "task": task, "losses": means}
            if "gradient" in means:
                line["gradient"] = means.pop("gradient")
            line |= {"lr": float(f"{lr:.5g}"), "images/s": round(self.speed, 1)}
            self._add(line)
            self.pending = [entry for entry in self.pending if entry[1] != task]
        if tasks is None:
            self.restart_clock()

    def write_rows(self, step, rows, matrix=()):
        """The line of an evaluation."""
        self.lines = [line for line in self.lines if not is_evaluation(line, step)]
        self._add({"step": step, "rows": list(rows), "matrix": list(matrix)})
        self.restart_clock()

    def restart_clock(self):
        self.images = 0
        self.since = time.time()

    def _add(self, line):
        """All lines are written anew: a full disk or a crash leaves no half of a line."""
        self.lines.append(line | {"seconds": self.seconds})
        text = "".join(f"{json.dumps(each)}\n" for each in self.lines)
        write_text(self.folder / "log.jsonl", text)


def is_evaluation(line, step):
    return "rows" in line and line["step"] == step


def read_log(folder):
    """The lines of a run's log.jsonl as dicts, [] without one. UserError that names the file, and
    the line, if it is no log."""
    path = Path(folder) / "log.jsonl"
    if not path.exists():
        return []
    check_file(path, "name the folder of a run")
    try:
        texts = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); remove it") from error

    lines = []
    for number, text in enumerate(texts, 1):
        where = f"{path}, line {number}"
        line = parse_json(text, dict, where, "it is no log of a run, remove the file")
        if not fits(line, EVALUATION if "rows" in line else LOSSES):
            raise UserError(f"{where} is not from the log of a run; remove the file")
        lines.append(line)
    return lines


def fits(value, form):
    """Whether a value has a form: a type, [the form of every item], {key: the form of its value}
    or {str: the form of every value}."""
    if isinstance(form, list):
        return isinstance(value, list) and all(fits(item, form[0]) for item in value)
    if not isinstance(form, dict):
        return isinstance(value, form)
    if not isinstance(value, dict):
        return False
    if str in form:
        return all(isinstance(key, str) and fits(each, form[str]) for key, each in value.items())
    return all(fits(value.get(key), part) for key, part in form.items())
