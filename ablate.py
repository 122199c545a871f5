"""Trains variants with several seeds and compares them: one command, one table.

    python ablate.py --task li --steps 100 --seeds 3 --vary "" "--no-editing" "--loss triplet"

Every run is train.py's own, in a folder named by its flags; what is finished is not trained again.
Read `main`; the differences and their intervals are reid/compare.py's.
"""

import dataclasses
import json
import re
import shlex
import shutil
import statistics
import sys
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import dolls
import train
from instructions import TASKS
from extras import curves
from reid import cli, compare, files, jobs
from reid.cli import UserError, option
from reid.device import cores
from reid.folders import open_all
from reid.runs import read_log


@dataclasses.dataclass
class Config(train.Config):
    """Train variants with several seeds and compare them in one table. Other flags are train.py's.

    python ablate.py --task li --steps 100 --vary "" "--no-editing" "--loss triplet"
    python ablate.py --steps 100 --vary "--task each" "--task each --no-editing" \\
        / "--task all --steps 600" "--task all --steps 600 --no-editing"
    """

    task: str = option(
        "all", "which task to train; all = one model for every task that the data offers; each = "
        "a model of its own for each data set and task", ("all", "each", *TASKS))
    name: str = option(
        None, "the ablation's folder under ./runs; None = `ablate` and the flags of all variants")
    resume: str = option(None, "of train.py alone: here the same command goes on by itself")
    seed: int = option(0, "the first of the seeds", least=0)

    seeds: int = option(3, "how many seeds each variant is trained with", least=1, group="ablation")
    jobs: int = option(
        None, "runs at a time; None = one for each GPU or, without one, for each core", least=1)
    vary: tuple = option(
        (), "last on the line, the variants: the flags of each as one word, \"\" for none; each is "
        "compared with the first, and after a / with the first behind it", rest=True)


OF_A_RUN = ("name", "resume", "seed")
OWN = (*OF_A_RUN, "seeds", "jobs", "vary")  # no variant may set them
MACHINE = ("device", "workers")  # may be others when the command goes on
NO_FLAG = "(no flag)"  # what the variant "" is called


class Run(NamedTuple):
    """One call of train.py."""

    config: Config
    folder: Path


class Result(NamedTuple):
    """What a variant reached with one seed."""

    rows: dict  # compare.row_key -> row of the last evaluation, the instruction matrix among them
    queries: dict  # compare.row_key -> the figures of every query, of each trial
    minutes: float  # of training
    log: list


def main(config):
    if config.resume:
        raise UserError("--resume: the same command goes on by itself; drop it")

    groups = groups_of(config.vary)
    variants = {}  # its flags -> its Config
    for text in chain.from_iterable(groups):
        variants[text] = variant_of(config, text)
    refuse_twins(variants)

    shared = cli.words_of(config, train.Config, OF_A_RUN + MACHINE)
    name = cli.folder_name(config.name or folder_of(["--ablate", *shared]))
    folder = Path("runs") / name
    seeds = range(config.seed, config.seed + config.seeds)

    runs = {}  # (variant, seed) -> its Runs
    for text, variant in variants.items():
        models = models_of(variant, text)
        for seed in seeds:
            runs[text, seed] = runs_of(models, seed, folder)

    lock = begin(folder, shared)
    train_all([*chain.from_iterable(runs.values())], config)

    results = {}  # variant -> the Result of each seed
    for text in variants:
        results[text] = [read_result(runs[text, seed]) for seed in seeds]

    tables = [table_of(group, results, variants) for group in groups]
    print("\n" + write(folder, shared, list(seeds), tables))
    draw(folder / "curves.png", results)
    del lock


# ---- the variants ----

def groups_of(words):
    """("", "--a", "/", "", "--b") -> [["", "--a"], ["", "--b"]]. UserError for an empty one."""
    groups = [[]]
    for word in words:
        if word == "/":
            groups.append([])
        else:
            groups[-1].append(word)
    if not all(groups):
        raise UserError('--vary: name the variants, such as --vary "" "--no-editing"')
    return groups


def variant_of(config, text):
    """The Config of a variant. UserError for what its flags, or train.py, cannot mean."""
    try:
        words = shlex.split(text)
        alone = cli.parse(Config, words)
        for name in OWN:
            if getattr(alone, name) != getattr(Config, name):
                raise UserError(f"--{name} is no flag of a variant: give it before --vary")

        shared = cli.words_of(config, train.Config, OF_A_RUN)
        variant = cli.parse(Config, shared + words)
        check_data(variant)
    except (UserError, ValueError) as error:  # ValueError: a quotation without an end
        raise UserError(f'--vary "{text}": {error}') from error
    return variant


def check_data(config):
    """UserError unless the data is there; ./toy is drawn, once and not in every run."""
    dolls.provide(config.data)
    task = "all" if config.task == "each" else config.task
    open_all(config.data, task, config.val)


def refuse_twins(variants):
    """UserError for two variants that are the same, or whose folders would be."""
    known = {}
    for text, variant in variants.items():
        for key in (str(variant), folder_of(shlex.split(text))):
            if known.setdefault(key, text) != text:
                raise UserError(f'--vary "{text}": it is the same as "{known[key]}": drop one')


def folder_of(words):
    """`--loss triplet --no-align`, with a space or = between, -> "loss_triplet-no-align"."""
    ends = [re.sub(r"[^=]*/", "", word) for word in words]  # of paths
    flags = re.split(r"(?:^| )--", " ".join(ends))
    parts = [re.sub(r"[^A-Za-z0-9.-]+", "_", flag) for flag in flags if flag]
    return "-".join(parts)[:150]


def models_of(variant, text):
    """{name: Config} of the models of a variant: one or, with --task each, one for every task of
    every data set. Named by the variant's flags, the data set and its task: default,
    loss_triplet, task_each-loss_triplet-cocas_li."""
    name = folder_of(shlex.split(text)) or "default"
    if variant.task != "each":
        return {name: variant}

    models = {}
    for dataset in open_all(variant.data, "all", variant.val):
        if dataset.tested and dataset.split("train"):
            part = f"{name}-{dataset.name}_{dataset.task}".replace(":", "_")
            models[part] = dataclasses.replace(
                variant, task=dataset.task, data=str(dataset.root)
            )
    return models


def runs_of(models, seed, folder):
    """The Runs of a variant's models with one seed, in folders such as loss_triplet-seed_0."""
    runs = []
    for part, config in models.items():
        path = folder / f"{part}-seed_{seed}"
        config = dataclasses.replace(config, seed=seed, name=str(path.relative_to("runs")))
        runs.append(Run(config, path))
    return runs


# ---- training ----

def begin(folder, shared):
    """Makes the folder and notes the flags that its runs share; returns its lock.

    UserError if it holds runs with other flags, or another command works there.
    """
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = files.lock(folder)

    path = folder / "table.json"
    if not path.exists():
        write(folder, shared, [], [])
    try:
        noted = " ".join(json.loads(path.read_text())["flags"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not what this command writes: give another --name") from error
    if noted != " ".join(shared):
        raise UserError(
            f"{folder} holds runs with other flags ({noted or 'none'}): give another --name"
        )
    return lock


def train_all(runs, config):
    """Trains what is not finished. UserError with the last line of a run that fails.

    Whatever ends this ends its runs: they save, and are gone on with the next time.
    """
    waiting = []
    for run in runs:
        if not is_finished(run.folder):
            output = run.folder.with_name(f"{run.folder.name}.txt")
            share = partial(share_done, run.folder)
            waiting.append(jobs.Job(run.folder.name, command_of(run), output, share))

    gpus = jobs.visible_gpus() if config.device == "auto" else []
    at_a_time = config.jobs or len(gpus) or cores()

    finished = len(runs) - len(waiting)
    print(f"{len(runs)} runs in {runs[0].folder.parent}/, {finished} of them finished before")
    cli.on_signals(cli.leaving("stopped; the same command goes on"))
    jobs.run_all(waiting, at_a_time, gpus, finished)


def command_of(run):
    """The command that begins a run or, where there is a checkpoint, goes on."""
    config = run.config
    last = run.folder / "last.pt"
    if last.exists():
        config = train.Config(resume=str(last), device=config.device, workers=config.workers)
    elif run.folder.exists():  # ended before its first checkpoint
        lock = files.lock(run.folder)
        shutil.rmtree(run.folder)
        del lock

    return [sys.executable, train.__file__, *cli.words_of(config, train.Config)]


def share_done(folder):
    """The share of a run's steps that its log tells of."""
    log = read_log(folder)
    if not log:
        return 0.0
    steps = json.loads((folder / "config.json").read_text())["steps"]
    return log[-1]["step"] / steps


def is_finished(folder):
    """Whether the log ends in the evaluation of the last step."""
    log = read_log(folder)
    return bool(log) and "rows" in log[-1] and share_done(folder) == 1


def minutes_of(folder):
    losses = [line for line in read_log(folder) if "losses" in line]
    return losses[-1]["seconds"] / 60


# ---- the table ----

def read_result(runs):
    """The Result of the runs of a variant with one seed."""
    result = Result({}, {}, sum(minutes_of(run.folder) for run in runs), [])
    for run in runs:
        log = read_log(run.folder)
        for row in log[-1]["rows"] + log[-1]["matrix"]:
            result.rows[compare.row_key(row)] = row
        result.queries.update(compare.read_queries(run.folder / "queries.json"))
        result.log.extend(log)
    return result


def table_of(group, results, variants):
    """What the variants of a group reached, in plain values, each beside the first of them."""
    keys = {}
    for text in group:
        for result in results[text]:
            keys |= dict.fromkeys(result.rows)

    first = group[0]
    rows = []
    for key in keys:
        for figure in compare.FIGURES:
            cells = []
            for text in group:
                cell = cell_of(results[text], key, figure)
                asked_alike = variants[text].data == variants[first].data
                if cell and text != first and asked_alike and key in results[first][0].rows:
                    cell |= difference(results[first], results[text], key, figure)
                cells.append(cell)

            rows.append(dict(zip(compare.HEADING, key)) | {"figure": figure, "cells": cells})

    minutes = []
    for text in group:
        minutes.append(statistics.mean(result.minutes for result in results[text]))
    return {"variants": group, "minutes": minutes, "rows": rows}


def cell_of(results, key, figure):
    """The figure of a row with each seed, their mean and standard deviation; None where the variant
    has no such row."""
    if key not in results[0].rows:
        return None
    values = [result.rows[key][figure] for result in results]
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"values": values, "mean": statistics.mean(values), "sd": spread}


def difference(first, second, key, figure):
    """How much better the second variant is, with the 95 % interval over queries and seeds."""
    sides = []
    for results in (first, second):
        sides.append([compare.mean_of_trials(each.queries[key], figure) for each in results])
    middle, low, high = compare.paired_bootstrap(*sides)
    return {"difference": middle, "low": low, "high": high}


def write(folder, shared, seeds, tables):
    """Writes table.json and table.md; returns the latter."""
    content = {"flags": shared, "seeds": seeds, "tables": tables}
    files.write_text(folder / "table.json", json.dumps(content, indent=1) + "\n")

    text = (
        f"Flags of every run: `{' '.join(shared) or 'none'}`; seeds {', '.join(map(str, seeds))}. "
        "mAP in percent, mean ± standard deviation over the seeds; then the difference to the "
        "first column with its 95 % interval, paired over queries and seeds. Minutes are of "
        "training, for a seed. R1 is in table.json."
    )
    text = "\n\n".join([text, *map(markdown, tables)]) + "\n"
    files.write_text(folder / "table.md", text)
    return text


def markdown(table):
    names = [f"`{text}`" if text else NO_FLAG for text in table["variants"]]
    lines = [["task", "data", "protocol", "instruction", *names]]
    lines.append(["---"] * len(lines[0]))
    for row in table["rows"]:
        if row["figure"] == "mAP":
            heading = [row[name] for name in ("task", "data", "protocol", "instruction")]
            lines.append(heading + [cell_text(cell) for cell in row["cells"]])
    minutes = [f"{number:.1f}" for number in table["minutes"]]
    lines.append(["minutes", "", "", "", *minutes])

    widths = [max(map(len, column)) for column in zip(*lines)]
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


# ---- the picture ----

def draw(path, results):
    """Loss and mAP of the variants against steps, means over the seeds."""
    logs = {}
    for text, each in results.items():
        logs[text or NO_FLAG] = curves.mean_log([result.log for result in each])
    curves.save(curves.draw(logs), path)
    print(f"wrote {path}, and table.md and table.json beside it")


if __name__ == "__main__":
    cli.run(main, Config)
