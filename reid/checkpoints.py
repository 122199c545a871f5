"""Checkpoints: a dict of tensors and basic Python values in one file, written atomically, checked
when it is read, and never executed: always torch.load(weights_only=True).

`python -m reid.checkpoints runs/all/last.pt model.pt` writes only the model, to pass it on.
"""

import argparse
import hashlib
import os
import pickle
import zipfile
from dataclasses import dataclass

import torch

from reid import cli
from reid.cli import UserError, user_error
from reid.files import check_file, replacing
from reid.records import column
from reid.runs import misfit

MODEL = {  # entries of a checkpoint that evaluation needs, as a form for runs.misfit
    "config": dict,
    "classes": {str: int},
    "shape": dict,
    "parts": [str],
    "pooling": ("mean", "cls"),
    "model": {str: torch.Tensor},
}
MOMENTS = {  # what an optimiser knows of a parameter
    "AdamW": ("step", "exp_avg", "exp_avg_sq"), "Muon": ("momentum_buffer",),
}
RUN = {  # further entries that resuming needs
    "step": int,
    "data": {str: dict},
    "history": {"pending": dict, "seconds": float},
    "optimisers": [{"state": dict, "param_groups": list}],
    "scaler": dict,
    "rng": {"cpu": torch.Tensor, "cuda": list},
}


# ---- files ----

def save(path, state):
    """Writes a dict of tensors and basic Python values atomically."""
    with replacing(path) as file:
        torch.save(state, file)


def load(path, form=MODEL):
    """A dict that `save` wrote, on the CPU; form: the required entries."""
    check_file(path, "give the path of a last.pt that train.py wrote")
    with user_error_on(path):
        damaged = zipfile.is_zipfile(path) and zipfile.ZipFile(path).testzip()  # checksums
        if damaged:
            raise UserError(f"{path} is damaged ({damaged}): copy it again, or use another one")
    state = read(path)
    wrong = misfit(state, form)
    if wrong:
        raise UserError(f"{path}: {wrong}; use a checkpoint of this version of train.py")
    return state


def read(path, mmap=False):
    """The content of a file of torch.save, tensors and basic Python values only, on the CPU.

    mmap: tensors are read from disk when they are used.
    """
    mmap = mmap and zipfile.is_zipfile(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # flags of a training program
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except PermissionError:  # the file may be intact
        raise
    except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, OSError, KeyError,
            ValueError) as error:
        with open(path, "rb") as file:
            start = file.read(200).lstrip().lower()
        reason = "is not a checkpoint, or is cut off: copy or download it again"
        if start.startswith((b"<!doctype", b"<html")):
            reason = "is a web page, from a failed download: download it again"
        elif "global" in str(error).lower():
            reason = ("contains Python objects that would run code if read: refused; if you trust "
                      "it, save its tensors alone: "
                      "torch.save(torch.load(FILE, weights_only=False)[KEY], NEW)")
        raise UserError(f"{path} {reason}") from error


def user_error_on(path):
    """A context in which an error about the content of a checkpoint becomes a UserError."""
    return user_error(f"{path} was not written by this version of train.py",
                      "use a last.pt of this version")


# ---- models ----

def is_kept(model, name):
    """Whether checkpoints include this entry of the state dict: all but a frozen packaged BERT."""
    text = model.encoder.text
    is_packaged = getattr(text.bert, "embedded", False) and not text.trainable
    return not (is_packaged and name.startswith("encoder.text."))


def model_state(model):
    """The part of the state dict that checkpoints include."""
    return {name: value for name, value in model.state_dict().items() if is_kept(model, name)}


def restored_model(build, state, path):
    """The model of `build()` with the weights `state`, from `model_state`. UserError, which names
    `path`, if the shapes differ; this is checked before memory is allocated for the model."""
    with torch.device("meta"):
        wanted = {name: list(value.shape) for name, value in model_state(build()).items()}
    found = {name: list(value.shape) for name, value in state.items()}
    for name in sorted(wanted.keys() | found.keys()):
        sizes = [each.get(name, "absent") for each in (found, wanted)]
        if sizes[0] != sizes[1]:
            raise UserError(f"{path} holds another model: {name} is {sizes[0]}, must be {sizes[1]}")
    model = build()
    model.load_state_dict(state, strict=False)
    return model


def restore_optimiser(optimiser, state):
    """Loads the moments and learning rates of a state dict; the rest of the groups is set by the
    run's config. KeyError or ValueError for a moment that is absent or of another size than its
    parameter: torch would write beyond its end."""
    groups = optimiser.state_dict()["param_groups"]
    for group, saved in zip(groups, state["param_groups"], strict=True):
        group["lr"] = float(saved["lr"])
    optimiser.load_state_dict({"state": state["state"], "param_groups": groups})
    for param, moments in optimiser.state.items():
        for name in MOMENTS[type(optimiser).__name__]:
            moment = moments[name]
            shape = torch.Size() if name == "step" else param.shape
            if moment.shape != shape:
                raise ValueError(f"{name} of {list(moment.shape)}, must be {list(shape)}")
            moments[name] = moment.clone()  # with memory for each element


def start(model, path):
    """Loads the weights that a checkpoint of another run has in common with the model, without
    classifiers; returns a line about it."""
    own = model_state(model)
    tensors = load(path)["model"]
    backbone = [name for name in tensors if "classifiers." not in name]
    shared = [name for name in backbone if name in own and own[name].shape == tensors[name].shape]
    if not shared:
        raise UserError(f"--start {path}: a model of another size; give its --size")
    model.load_state_dict({name: tensors[name] for name in shared}, strict=False)

    new = [name for name in own if name not in shared]
    others = [name for name in backbone if name not in shared]
    line = f"weights: {len(shared)} tensors of {path}"
    for names, verb in ((new, "start anew"), (others, "are not used here")):
        line += f"; {len(names)} {verb}, such as {names[0]}" if names else ""
    return line


def model_alone(state):
    """The part of a checkpoint that evaluation needs, in half precision; without classifiers."""
    model = {}
    for key, value in state["model"].items():
        if not key.startswith(("classifiers.", "fused_classifiers.")):
            model[key] = value.half() if value.is_floating_point() else value
    kept = {key: value for key, value in state.items() if key not in RUN}
    return {**kept, "step": state["step"], "classes": {}, "model": model}


# ---- data ----

def training_data(datasets):
    """A summary of the training splits, {"ltcc cc": {"people": 77, ...}}, checked on resume."""
    found = {}
    for dataset in datasets:
        records = dataset.split("train")
        pids = column(records, "pid")
        digest = hashlib.sha256()
        for path, pid in zip(column(records, "path"), pids):
            digest.update(f"{path} {pid}\n".encode(errors="surrogateescape"))
        if pids:
            found[f"{dataset.name} {dataset.task}"] = {
                "people": len(set(pids)),
                "images": len(pids),
                "files and whom they show": digest.hexdigest()[:16],
            }
    return found


def refuse_other_data(then, now, path):
    """UserError with the first difference between the training data of the checkpoint `path` and
    the current one, both from `training_data`."""
    for name in sorted(then.keys() | now.keys()):
        before = then.get(name, {})
        today = now.get(name, {})
        for count in before | today:
            if before.get(count) != today.get(count):
                raise UserError(
                    f"{path} was trained on other data than --data holds now: {name} had "
                    f"{before.get(count, 'no')} {count}, has {today.get(count, 'none')}; restore "
                    "that data, or start a new run")


# ---- command line ----

@dataclass
class Config:
    """Writes only the model of a checkpoint, in half precision, to pass it on."""

    checkpoint: str = cli.argument("a last.pt that train.py wrote")
    out: str = cli.argument("the file to write")


def main(config):
    if os.path.realpath(config.out) == os.path.realpath(config.checkpoint):
        raise UserError(f"{config.out}: no run could be resumed from it; name another file")
    save(config.out, model_alone(load(config.checkpoint, MODEL | RUN)))
    print(f"wrote {config.out}, {os.path.getsize(config.out) / 1e6:.1f} MB")


if __name__ == "__main__":
    cli.run(main, Config)
