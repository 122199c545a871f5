"""Reading and writing what train.py keeps of a run.

Nothing in a file is ever executed: torch.load(weights_only=True) throughout.
`python -m reid.checkpoints runs/all/last.pt model.pt` writes the model alone, to hand on.
"""

import argparse
import hashlib
import json
import mmap
import os
import pickle
import sys
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from instructions import TASKS
from model import SIZES, CrossEncoder, InstructReID, TextEncoder
from reid import cli
from reid.cli import UserError
from reid.files import replacing
from reid.records import column
from reid.text import bert_config, embedded_text_model, from_plain, to_plain


LAST = "runs/all/last.pt"  # what `python train.py` ends with
DRAWN = Path(__file__).parents[1] / "toydata" / "trained.pt"  # the same, from where this code is

MARK = b"sha256:"
SEAL = len(MARK) + 64  # bytes at the end of a file: the mark, and the SHA-256 of all before
ZIP_END = b"PK\5\6"  # begins the last 22 bytes of a zip file without a comment, which end in two 0


# ---- files ----

def save_checkpoint(path, state):
    """Writes a dict of tensors and plain values atomically, with a checksum.

    UserError if that fails; a crash or a full disk leaves the previous file as it was.
    """
    with replacing(path) as file:
        torch.save(state, file)
        seal(file)


def seal(file):
    """Adds the SHA-256 of a zip file as its comment, which torch.load passes over."""
    file.seek(-2, os.SEEK_END)
    file.write(SEAL.to_bytes(2, "little"))  # the length of the comment
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    file.write(MARK + digest.encode())


def is_intact(path):
    """Whether a zip file is what `seal` left. True without a seal, as earlier versions wrote it,
    and for what is no zip file."""
    with open(path, "rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        is_bare = content[-22:-18] == ZIP_END and content[-2:] == bytes(2)
        if content[:2] != b"PK" or is_bare:
            return True
        digest = hashlib.sha256(memoryview(content)[:-SEAL]).hexdigest()
        return content[-SEAL:] == MARK + digest.encode()


def load_checkpoint(path):
    """A dict saved by `save_checkpoint`, on the CPU.

    UserError if the file is missing, broken, of another program, or would execute code.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}: give the path of a last.pt that train.py wrote")

    if path.stat().st_size and not is_intact(path):
        raise UserError(
            f"{path} is not a checkpoint, or is cut off or damaged: its checksum is that of other "
            "bytes; copy it again, or take another checkpoint"
        )
    state = read(path)
    if not isinstance(state, dict) or "model" not in state or "config" not in state:
        raise UserError(
            f"{path} is not a checkpoint of train.py: it has no `model` and `config`"
        )
    return state


def read(path, mmap=False):
    """What torch.save wrote, tensors and plain values only, on the CPU.

    mmap: tensors are read from the disk when they are used. UserError if the file is broken or
    would run code.
    """
    inert = [argparse.Namespace]  # holds the flags of a training program
    mmap = mmap and zipfile.is_zipfile(path)
    try:
        with torch.serialization.safe_globals(inert):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        if "global" in str(error).lower():
            raise UserError(
                f"{path} holds Python objects that would run code if read: refused; "
                "keep only its tensors: where you trust it, "
                "torch.save(torch.load(FILE, weights_only=False)[KEY], NEW)"
            ) from error
        raise UserError(f"{path} is not a checkpoint: {_what_it_is(path)}") from error
    except PermissionError:  # it may be whole
        raise
    except (
        RuntimeError,
        EOFError,
        OSError,
        zipfile.BadZipFile,
        KeyError,
        ValueError,
    ) as error:
        raise UserError(
            f"{path} is not a checkpoint, or is cut off: copy or download it again"
        ) from error


def _what_it_is(path):
    with open(path, "rb") as file:
        start = file.read(200).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html")):
        return "a web page, which a failed download leaves; download it again"
    return "it cannot be read as one"


# ---- data ----

def training_data(datasets):
    """What a resume must find again: {"ltcc cc": {what: number or digest}} of training splits."""
    found = {}
    for dataset in datasets:
        records = dataset.split("train")
        pids = column(records, "pid")
        people = sorted(set(pids))
        if people:
            found[f"{dataset.name} {dataset.task}"] = {
                "people": len(people),
                "images": len(pids),
                "numbers of the people": _digest(people),
                "files and whom they show": _digest(zip(column(records, "path"), pids)),
            }
    return found


def _digest(items):
    """16 letters that other items, or another order of them, would not have."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(f"{item}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def refuse_other_data(checkpoint, now, classes, path):
    """UserError with the first difference between the data of a checkpoint and `now`, both as
    `training_data` returns it. Earlier versions noted the classes alone."""
    then = checkpoint.get("data")
    if then is None:
        then = {"classes": checkpoint["classes"]}
        now = {"classes": classes}
    for name in sorted(then.keys() | now.keys()):
        difference = _difference(then.get(name), now.get(name))
        if difference:
            raise UserError(
                f"{path} was trained on other data than --data holds now: {name} {difference}; "
                "bring that data back, or begin a new run"
            )


def _difference(then, now):
    """What differs, as the end of a sentence; None if nothing does."""
    if then is None:
        return "was not there"
    if now is None:
        return "is gone"
    for what in then | now:
        if then.get(what) != now.get(what):
            return f"had {then.get(what)} {what}, has {now.get(what)}"
    return None


# ---- models ----

def is_kept(model, key):
    """Whether a checkpoint holds this entry of the state dict: all but a frozen embedded BERT."""
    text = model.encoder.text
    if getattr(text.bert, "embedded", False) and not text.trainable:
        return not key.startswith("encoder.text.")
    return True


def model_state(model):
    """The state dict, less what comes from a pinned package again."""
    return {key: value for key, value in model.state_dict().items() if is_kept(model, key)}


def restore_model(model, state, path):
    """Loads what `model_state` kept; UserError, which names `path`, if the model is another one."""
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise UserError(f"{path} holds a model of another size: {reason}") from error

    missing = [key for key in missing if is_kept(model, key)]
    if missing or unexpected:
        raise UserError(
            f"{path} holds another model: missing {missing[:1]}, not known {unexpected[:1]}"
        )


def load_model(path):
    """(InstructReID in evaluation mode, dict): the model of a checkpoint and its config."""
    state = load_checkpoint(path)
    with understood(path):
        model = rebuild(state, path)
        restore_model(model, state["model"], path)
    return model.eval(), state["config"]


def chosen(path):
    """The checkpoint that is asked for; where None is, LAST or, before the first run, DRAWN."""
    if path is not None:
        return path
    if Path(LAST).exists():
        return LAST
    print(f"no {LAST} yet: the model of drawn people, {DRAWN}", file=sys.stderr)
    return str(DRAWN)


def model_alone(state):
    """What `load_model` needs of a checkpoint: no optimiser, no classifiers, half precision."""
    model = {}
    for key, value in state["model"].items():
        if key.startswith(("classifiers.", "fused_classifiers.")):
            continue
        model[key] = value.half() if value.is_floating_point() else value
    kept = {key: state[key] for key in ("config", "published", "step") if key in state}
    return {**kept, "classes": {}, "model": model}


@contextmanager
def understood(path):
    """Inside, what a checkpoint lacks or says in another way becomes a UserError that names it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # as many kinds as there are libraries that make the parts
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{path} does not hold what this version of train.py writes "
            f"({type(error).__name__}: {reason}); take a last.pt of this version"
        ) from error


def architecture(model, size):
    """What published weights change about a model of that size, in plain values.

    It is the "published" of a checkpoint: `rebuild` reads it in place of the files that training
    started from. {} where they are not used.
    """
    parts = {}
    usual = {**SIZES[size], "part_tokens": 0}
    shape = {
        "stem": "patch" if isinstance(model.editor.embed, nn.Conv2d) else "conv",
        "picture_depth": len(model.encoder.picture.blocks),
        "part_tokens": model.editor.prefix.shape[1] - 1,
    }
    changed = {key: value for key, value in shape.items() if value != usual[key]}
    if changed:
        parts["shape"] = changed

    text = model.encoder.text
    if not getattr(text.bert, "embedded", False):
        parts["text"] = {**to_plain(text.bert, text.tokenizer), "pooling": text.pooling}

    if model.cross is not None:
        parts["cross"] = model.cross.layers.config.to_json_string()
    return parts


def rebuild(state, path):
    """The model of a checkpoint, its weights yet to be restored by `restore_model`.

    UserError, which names `path`, if it lacks what `check_contents` asks for.
    """
    check_contents(state, path)
    config = state["config"]
    parts = state.get("published", {})
    text = _rebuild_text(parts.get("text"), trainable=config.get("train_text", False))

    shape = {**SIZES[config["size"]], **parts.get("shape", {})}
    cross = None
    if "cross" in parts:
        cross = CrossEncoder(bert_config(json.loads(parts["cross"])), shape["dim"])

    return InstructReID(shape, state["classes"], config["editing"], text=text, cross=cross)


def _rebuild_text(parts, trainable):
    """The TextEncoder of `architecture`'s "text"; None is the embedded one."""
    if parts is None:
        return TextEncoder(*embedded_text_model(), trainable=trainable)
    return TextEncoder(*from_plain(parts), parts["pooling"], trainable)


# ---- what a checkpoint must hold ----

CHOICES = {  # of its config, as far as a model and its evaluation go by it
    "size": (*SIZES,),
    "feature": ("edit", "fused"),
    "editing": (True, False),
    "train_text": (True, False, None),  # None: before there was that flag
    "amp": ("auto", "bf16", "fp16", "off", None),
}


def check_contents(state, path):
    """UserError, which names `path`, unless a checkpoint holds a model and says how it is used."""
    config = state["config"]
    _check(isinstance(config, dict), path, "config")
    choices_of = {"task": ("all", *TASKS), **CHOICES}
    for key, choices in choices_of.items():
        value = config.get(key)
        _check(isinstance(value, (str, bool, type(None))), path, f"config.{key}")
        _check(value in choices, path, f"config.{key}")
    _check(isinstance(config.get("data"), str), path, "config.data")

    classes = state.get("classes")
    _check(isinstance(classes, dict), path, "classes")
    tensors = state["model"]
    _check(isinstance(tensors, dict), path, "model")
    for name, tensor in tensors.items():
        _check(isinstance(name, str) and isinstance(tensor, torch.Tensor), path, f"model.{name}")


def check_run(state, path):
    """UserError, which names `path`, unless a checkpoint holds what `resume` of train.py needs."""
    check_contents(state, path)
    step = state.get("step")
    steps = state["config"].get("steps")
    _check(type(step) is int and step >= 0, path, "step")
    _check(type(steps) is int and step <= steps, path, "config.steps")

    needed = {"optimiser": {"state", "param_groups"}, "scaler": set(), "rng": {"cpu", "cuda"}}
    for key, parts in needed.items():
        value = state.get(key)
        _check(isinstance(value, dict) and value.keys() >= parts, path, key)
    cpu = state["rng"]["cpu"]
    is_right = isinstance(cpu, torch.ByteTensor) and cpu.shape == torch.get_rng_state().shape
    _check(is_right, path, "rng.cpu")


def _check(right, path, part):
    if not right:
        raise UserError(
            f"{path}: its {part} is missing or not what train.py writes; take another checkpoint"
        )


# ---- command line ----

@dataclass
class Config:
    """Writes the model of a checkpoint alone, in half precision, to be handed on."""

    checkpoint: str = cli.argument("a last.pt that train.py wrote")
    out: str = cli.argument("the file to write")


def main(config):
    state = load_checkpoint(config.checkpoint)
    save_checkpoint(config.out, model_alone(state))
    size = os.path.getsize(config.out) / 1e6
    print(f"wrote {config.out}, {size:.1f} MB")


if __name__ == "__main__":
    sys.argv[0] = "-m reid.checkpoints"
    cli.run(main, Config)
