"""The log of a run, written as it goes: reid.runs describes its lines."""

import json
import math
import time
from pathlib import Path

from reid.cli import UserError
from reid.files import write_text
from reid.runs import read_log

LOG_EVERY = 50  # steps between the lines of a task


class History:
    """The log of a run, over all its resumes.

    What is noted of a step may lie on a GPU: it is fetched, which waits for the GPU, only when it
    is written.
    """

    def __init__(self, folder, step=0, state=None):
        """state: what the method gave at that step; without it a run begins."""
        self.folder = Path(folder)
        self.lines = []
        self.pending = []  # steps without a line: [step, task, {name: value}]
        self.latest = {}  # task -> the sum of its terms in its last step
        self.images = 0  # since `since`
        self.since = time.time()
        self.speed = 0.0  # images per second
        self.lr = 0.0
        self.began = self.since
        if state:
            self.lines = [line for line in read_log(self.folder) if line["step"] <= step]
            self.pending = state["pending"]
            self.began -= state["seconds"]

    @property
    def seconds(self):
        """So far, of all processes that worked on the run."""
        return round(time.time() - self.began, 1)

    def note(self, step, task, terms, gradient, images, lr):
        """One step: its loss terms, scalars, and the norm of its gradient or None; writes the lines
        that are due. UserError as `check`."""
        values = {name: term.detach() for name, term in terms.items()}
        self.latest[task] = sum(values.values())
        if gradient is not None:
            values["gradient"] = gradient
        self.pending.append([step, task, values])
        self.lr = lr
        self.images += images
        self.speed = self.images / (time.time() - self.since)

        if step % LOG_EVERY == 0:
            self.write_losses(step)
        elif not any(line.get("task") == task for line in self.lines):
            self.check()
            self._add_line(step, task)
            self._write()

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

    def progress(self):
        """The last loss of every task, for the bar."""
        losses = [f"{task} {float(loss):.2f}" for task, loss in self.latest.items()]
        return f"{' '.join(losses)} {self.speed:.0f} images/s"

    def write_losses(self, step):
        """A line for each task with steps that have none yet. UserError as `check`."""
        self.check()
        for task in dict.fromkeys(task for _, task, _ in self.pending):
            self._add_line(step, task)
        self._write()
        self._begin_speed()

    def write_rows(self, step, rows, matrix=()):
        """The line of an evaluation."""
        line = {"step": step, "rows": list(rows), "matrix": list(matrix), "seconds": self.seconds}
        self.lines = [each for each in self.lines if not _is_evaluation(each, step)]
        self.lines.append(line)
        self._write()
        self._begin_speed()

    def is_evaluated(self, step):
        return any(_is_evaluation(line, step) for line in self.lines)

    def _add_line(self, step, task):
        steps = [values for _, name, values in self.pending if name == task]
        self.pending = [entry for entry in self.pending if entry[1] != task]
        losses = {}
        for name in steps[0]:
            mean = sum(values[name] for values in steps) / len(steps)
            losses[name] = round(mean, 5)

        line = {"step": step, "task": task, "losses": losses}
        if "gradient" in losses:
            line["gradient"] = losses.pop("gradient")
        line["lr"] = float(f"{self.lr:.5g}")
        line["images/s"] = round(self.speed, 1)
        line["seconds"] = self.seconds
        self.lines.append(line)

    def _write(self):
        """All lines anew: a full disk or a crash leaves no half of a line."""
        text = "".join(f"{json.dumps(line)}\n" for line in self.lines)
        write_text(self.folder / "log.jsonl", text)

    def _begin_speed(self):
        self.images = 0
        self.since = time.time()


def _is_evaluation(line, step):
    return "rows" in line and line["step"] == step
