"""Trains variants with several seeds and compares them: one command, one table.

    python -m extras.ablate --task li --steps 100 --vary "" "--no-editing" "--loss triplet"

Every run is a run of train.py, in a folder named after its flags; finished runs are not repeated.
Read `main`; reid/compare.py computes the intervals.
"""

import dataclasses
import json
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from contextlib import redirect_stdout
from functools import cache
from itertools import chain, groupby
from pathlib import Path

import torch

import toydata
import train
from instructions import TASKS, asked_tasks
from reid import checkpoints, cli, compare, files
from reid.cli import UserError, option
from reid.device import cores
from reid.folders import open_all, without_overlap
from reid.runs import folder_of, read_log


@dataclasses.dataclass
class Config(train.Config):
    """Train variants with several seeds and compare them in one table. Other flags are train.py's.

    python -m extras.ablate --task li --steps 100 --vary "" "--no-editing" "--loss triplet"
    python -m extras.ablate --steps 100 --vary "--task each" "--task each --no-editing" \\
        / "--task all --steps 600" "--task all --steps 600 --no-editing"
    """

    task: str = option(
        "all", "the task to train; all = one model for all tasks for which there is data; each = "
        "a separate model for each data set and task", ("all", "each", *TASKS))
    name: str = option(
        None, "the ablation's folder under ./runs; None = `ablate` and the flags of all variants")
    resume: str = option(None, "only for train.py; here, run the same command again")
    seed: int = option(0, "the first of the seeds", least=0, most=2**32)
    seeds: int = option(3, "seeds of each variant", least=1, most=1000, group="ablation")
    jobs: int = option(
        None, "runs at a time; None = one for each GPU or, without one, for each core", least=1,
        most=1000)
    vary: tuple = option(
        (), "the variants, last on the line: a string of flags for each, \"\" for none; each is "
        "compared with the first one; / starts a new table", rest=True)


OWN = ("name", "resume", "seed", "seeds", "jobs", "vary")  # no variant may set them
MACHINE = ("name", "device", "workers")  # may differ when the command is repeated
REMOVE = "remove that run's folder to train it again"

POLL = 1.0  # seconds between looks at the processes and their logs
BAR = "{desc}: {n:.1f} of {total} |{bar}| {elapsed}, {remaining} to go{postfix}"


def main(config):
    if config.resume:
        raise UserError("--resume: drop it; the same command continues by itself")
    opened.cache_clear()  # the data may have changed since an earlier call
    groups = [[*texts] for is_end, texts in groupby(config.vary, "/".__eq__) if not is_end]
    if not groups:
        raise UserError('--vary: name the variants, such as --vary "" "--no-editing"')
    shared = cli.flags_of(config, train.Config, OWN + MACHINE)
    folder = Path("runs", cli.folder_name(config.name or folder_of(["--ablate", *shared])))
    seeds = range(config.seed, config.seed + config.seeds)

    variants = {}  # its flags -> its Config
    runs = {}  # (variant, seed) -> the Configs of its runs
    names = {}  # the name of a variant's folders -> its flags
    for text in chain(*groups):
        variants[text] = variant_of(config, text)
        name = folder_of(cli.flags_of(variants[text], config, OWN)) or "default"
        if names.setdefault(name, text) != text:
            raise UserError(f'--vary "{text}": it is the same as "{names[name]}": drop one')
        for seed in seeds:
            runs[text, seed] = runs_of(variants[text], f"{folder.relative_to('runs')}/{name}", seed)

    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = files.lock(folder)
    with cli.on_signals(cli.exit_with("stopped; the same command continues")):
        train_all([*chain(*runs.values())], config)
    results = {}  # variant -> (rows, minutes) of each seed
    for text in variants:
        results[text] = [read_result(runs[text, seed]) for seed in seeds]
    tables = [table_of(group, results, variants) for group in groups]
    print("\n" + write(folder, shared, seeds, tables))
    lock.close()


# ---- the variants ----

def variant_of(config, text):
    """The Config of a variant. UserError for invalid flags and missing data."""
    try:
        shared = cli.flags_of(config, train.Config, OWN)
        variant = cli.parse(Config, shared + shlex.split(text))
        for name in OWN:
            if getattr(variant, name) != getattr(Config, name):
                raise UserError(f"--{name} is no flag of a variant: give it before --vary")
        toydata.provide(variant.data)  # draws ./toy here, not in every run
        opened(variant.data, variant.task, variant.val)
    except (UserError, ValueError) as error:  # ValueError: a missing quotation mark
        raise UserError(f'--vary "{text}": {error}') from error
    return variant


@cache
def opened(data, task, val):
    """The data sets of a run."""
    tasks = asked_tasks("all" if task == "each" else task)
    return without_overlap(open_all(data, tasks, val))


def runs_of(variant, name, seed):
    """The train.Configs of a variant's runs with one seed: one or, with --task each, one for every
    task of every data set. In folders NAME-seed_0, or NAME-cocas_li-seed_0."""
    flags = {field.name: getattr(variant, field.name) for field in dataclasses.fields(train.Config)}
    run = train.Config(**flags | {"seed": seed, "name": f"{name}-seed_{seed}"})
    if variant.task != "each":
        return [run]
    runs = []
    for each in opened(variant.data, "all", variant.val):
        if each.tested and each.split("train"):
            part = f"{each.name}_{each.task}".replace(":", "_")
            own = {"task": each.task, "data": str(each.root), "name": f"{name}-{part}-seed_{seed}"}
            runs.append(dataclasses.replace(run, **own))
    return runs


# ---- finished runs ----

def is_finished(run):
    """Whether the log ends with the evaluation of the last step. UserError if the run had other
    flags or other data than now."""
    folder = Path("runs", run.name)
    log = read_log(folder)
    if not log:
        return False
    noted = noted_config(run)
    if run.vit_weights in (None, "auto"):  # weights that have come since then change no run
        run = dataclasses.replace(run, vit_weights=noted.vit_weights or "none")
    datasets = [each for each in opened(run.data, run.task, run.val) if run.plain or not each.extra]
    with redirect_stdout(None):
        wanted = train.new_config(run, datasets)
    for name, then in vars(noted).items():
        if name not in MACHINE and then != getattr(wanted, name):
            raise UserError(f"{folder} was trained with other flags ({name} was {then}): give "
                            "another --name, or remove that folder")

    is_done = "rows" in log[-1] and log[-1].get("step") == noted.steps
    last = folder / "last.pt"
    if is_done or last.exists():
        state = checkpoints.load(last, checkpoints.MODEL | checkpoints.RUN)
        now = checkpoints.training_data(datasets)
        checkpoints.refuse_other_data(state["data"], now, last)
    return is_done


def noted_config(run):
    """The train.Config in a run's folder, in which the preset is filled in."""
    path = Path("runs", run.name, "config.json")
    return cli.restore(train.Config, files.read_json(path, dict, REMOVE), path)


def share_done(run):
    """The share of a run's steps that are in its log."""
    log = read_log(Path("runs", run.name))
    return log[-1].get("step", 0) / noted_config(run).steps if log else 0.0


# ---- training ----

def train_all(runs, config):
    """Trains the runs that are not finished, several at a time. UserError with the last line of a
    run that fails. When this ends, its runs end too; they save a checkpoint and can continue."""
    waiting = [run for run in runs if not is_finished(run)]
    finished = len(runs) - len(waiting)
    print(f"{len(runs)} runs in runs/{Path(runs[0].name).parent}/, {finished} finished before")

    gpus = visible_gpus() if config.device == "auto" else []
    at_a_time = config.jobs or len(gpus) or cores()
    free = [gpus[place % len(gpus)] if gpus else None for place in range(at_a_time)]
    working = []  # (Config, its GPU, its process)
    bar = cli.progress(None, "runs", total=len(runs), initial=finished, bar_format=BAR)
    try:
        while waiting or working:
            while waiting and free:
                run, gpu = waiting.pop(0), free.pop(0)
                working.append((run, gpu, start(run, gpu)))
            time.sleep(POLL)
            for job in [job for job in working if job[2].poll() is not None]:
                run, gpu, process = job
                working.remove(job)
                check_end(run, process.returncode)
                free.append(gpu)
                finished += 1
            bar.n = round(finished + sum(share_done(run) for run, _, _ in working), 2)
            bar.update(0)
    finally:
        for _, _, process in working:
            process.terminate()
        for _, _, process in working:
            process.wait()
        bar.close()


def visible_gpus():
    """Names of the GPUs, as in CUDA_VISIBLE_DEVICES."""
    numbers = ",".join(map(str, range(torch.cuda.device_count())))
    named = os.environ.get("CUDA_VISIBLE_DEVICES") or numbers
    return named.split(",") if torch.cuda.is_available() else []


def command_of(run):
    """The command that starts a run or, if there is a checkpoint, resumes it."""
    folder = Path("runs", run.name)
    last = folder / "last.pt"
    if last.exists():
        run = train.Config(resume=str(last), device=run.device, workers=run.workers)
    elif folder.exists():  # ended before its first checkpoint
        lock = files.lock(folder)
        shutil.rmtree(folder)
        lock.close()
    return [sys.executable, train.__file__, *cli.flags_of(run, train.Config)]


def start(run, gpu):
    """The process of a run, on one thread, as more would wait for each other on shared cores. Its
    output goes into the file NAME.txt next to its folder."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu

    command = command_of(run)
    path = f"runs/{run.name}.txt"
    with files.writing(path), open(path, "a") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            process_group=0,  # Ctrl-C only reaches this process, which then ends the others
            preexec_fn=cli.end_with_parent if sys.platform == "linux" else None,
        )


def check_end(run, code):
    """UserError with the reason, unless the exit code of a run is 0."""
    if code == 0:
        return
    path = Path(f"runs/{run.name}.txt")
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    reason = lines[-1].removeprefix("error: ") if lines else f"exit code {code}"
    if code < 0:
        reason = f"ended by signal {-code} ({signal.strsignal(-code)})"
    raise UserError(f"{Path(run.name).name}: {reason} (full output: {path})")


# ---- the table ----

def read_result(runs):
    """(rows, minutes of training) of a variant with one seed.

    rows: compare.row_key -> {"mAP", "R1", "each": the figures of every query in each trial}; those
    of the instruction matrix too.
    """
    rows = {}
    minutes = 0.0
    for run in runs:
        folder = Path("runs", run.name)
        log = read_log(folder)
        queries = compare.read_queries(folder / "queries.json")
        try:
            minutes += [line["seconds"] for line in log if "losses" in line][-1] / 60
            for row in log[-1]["rows"] + log[-1]["matrix"]:
                key = compare.row_key(row)
                rows[key] = {figure: float(row[figure]) for figure in compare.FIGURES}
                rows[key]["each"] = queries[key]
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{folder}: its log is not valid ({error!r:.80}); {REMOVE}") from error
    return rows, minutes


def table_of(group, results, variants):
    """A table for a group of variants, as basic Python values; each is compared with the first."""
    first = group[0]
    keys = [key for text in group for rows, _ in results[text] for key in rows]
    lines = []
    for key in dict.fromkeys(keys):
        for figure in compare.FIGURES:
            cells = []
            for text in group:
                same_data = variants[text].data == variants[first].data
                baseline = results[first] if text != first and same_data else []
                cells.append(cell_of(results[text], baseline, key, figure))
            lines.append(dict(zip(compare.HEADING, key)) | {"figure": figure, "cells": cells})

    minutes = [statistics.mean(part for _, part in results[text]) for text in group]
    return {"variants": group, "minutes": minutes, "rows": lines}


def cell_of(results, baseline, key, figure):
    """The figures of a row for all seeds, their mean and standard deviation and, if the baseline
    has that row, the difference with its 95 % interval over queries and seeds. None if the variant
    has no such row."""
    rows = [rows[key] for rows, _ in results if key in rows]
    first = [rows[key] for rows, _ in baseline if key in rows]
    if not rows:
        return None
    values = [row[figure] for row in rows]
    spread = statistics.stdev(values) if len(values) > 1 else None
    cell = {"values": values, "mean": statistics.mean(values), "sd": spread}
    if first:
        before, after = ([compare.mean_of_trials(row["each"], figure) for row in side]
                         for side in (first, rows))
        cell |= zip(("difference", "low", "high"), compare.paired_bootstrap(before, after))
    return cell


def write(folder, shared, seeds, tables):
    """Writes table.json and table.md; returns the latter."""
    content = {"flags": shared, "seeds": [*seeds], "tables": tables}
    files.write_text(folder / "table.json", json.dumps(content, indent=1) + "\n")

    text = (
        f"Flags of every run: `{' '.join(shared) or 'none'}`; seeds {', '.join(map(str, seeds))}. "
        "mAP in percent, mean ± standard deviation over the seeds; then the difference from the "
        "first column with its 95 % interval, paired over queries and seeds. Minutes are of "
        "training, per seed. R1 is in table.json."
    )
    text = "\n\n".join([text, *map(markdown, tables)]) + "\n"
    files.write_text(folder / "table.md", text)
    return text


def markdown(table):
    heading = ("task", "data", "protocol", "feature", "instruction")
    names = [f"`{text}`" if text else "(no flag)" for text in table["variants"]]
    lines = [[*heading, *names]]
    lines.append(["---"] * len(lines[0]))
    for row in table["rows"]:
        if row["figure"] == "mAP":
            lines.append([row[name] for name in heading] + [*map(cell_text, row["cells"])])
    minutes = [f"{number:.1f}" for number in table["minutes"]]
    lines.append(["minutes", *[""] * (len(heading) - 1), *minutes])

    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = []
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths)]
        text.append(f"| {' | '.join(cells)} |")
    return "\n".join(text)


def cell_text(cell):
    """`14.7 ± 3.4; -15.2 (-21.0 to -9.1)`"""
    if cell is None:
        return ""
    text = f"{100 * cell['mean']:.1f}"
    if cell["sd"] is not None:
        text += f" ± {100 * cell['sd']:.1f}"
    if "difference" in cell:
        numbers = [100 * cell[name] for name in ("difference", "low", "high")]
        text += "; {:+.1f} ({:+.1f} to {:+.1f})".format(*numbers)
    return text


if __name__ == "__main__":
    cli.run(main, Config)
