"""Reading and writing checkpoints. Nothing in a file is ever executed: torch.load(weights_only=True) throughout."""

import os
import pickle
import zipfile
from pathlib import Path

import torch

from cli import UserError
from model import InstructReID


def save_checkpoint(path, state):
    """Writes a dict of tensors and plain values atomically: a crash or a full disk leaves the previous file as it was."""
    path = Path(path)
    part = path.with_suffix(".part")
    try:
        with open(part, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch reports a failed write as a RuntimeError
        part.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error}; the previous checkpoint is untouched") from error
    os.replace(part, path)


def load_checkpoint(path):
    """A dict saved by `save_checkpoint`, on the CPU. UserError if the file is missing, broken, or would execute code."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}: give the path of a last.pt that train.py wrote")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "global" in str(error).lower():
            raise UserError(f"{path} holds Python objects that would run code when read: refused; keep only its tensors") from error
        raise UserError(f"{path} is not a checkpoint: it cannot be read as one") from error
    except (RuntimeError, EOFError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise UserError(f"{path} is not a checkpoint, or is cut off: copy or download it again") from error
    if not isinstance(state, dict) or "model" not in state or "config" not in state:
        raise UserError(f"{path} is not a checkpoint of train.py: it has no `model` and `config`")
    return state


def model_state(model):
    """The state dict without the frozen text tower, which comes from its pinned package again."""
    return {key: value for key, value in model.state_dict().items()
            if model.encoder.text.trainable or not key.startswith("encoder.text.")}


def restore_model(model, state, path):
    """Loads what `model_state` kept; UserError if the model has another size."""
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise UserError(f"{path} holds a model of another size: {str(error).splitlines()[1].strip()}") from error
    missing = [key for key in missing if not key.startswith("encoder.text.") or model.encoder.text.trainable]
    if missing or unexpected:
        raise UserError(f"{path} holds another model: missing {missing[:1]}, not known {unexpected[:1]}")


def load_model(path):
    """The model of a checkpoint in evaluation mode and the config it was trained with: (InstructReID, dict)."""
    state = load_checkpoint(path)
    config = state["config"]
    model = InstructReID(config["size"], state["classes"], config["editing"])
    restore_model(model, state["model"], path)
    return model.eval(), config
