"""Reading and writing checkpoints, and the published ones that training starts from: PASS, DeiT, HAP, ALBEF.

Nothing in a file is ever executed: torch.load(weights_only=True) throughout.
"""

import argparse
import json
import os
import pickle
import re
import zipfile
from collections import Counter
from math import isqrt
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from cli import UserError
from model import SIZES, CrossEncoder, InstructReID, TextEncoder, embedded_text_model, text_model


# ---- our own checkpoints ----

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
    state = read(path)
    if not isinstance(state, dict) or "model" not in state or "config" not in state:
        raise UserError(f"{path} is not a checkpoint of train.py: it has no `model` and `config`")
    return state


def read(path, mmap=False):
    """What torch.save wrote, tensors and plain values only, on the CPU. UserError if broken or if it would run code."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # holds the flags of a training program; inert
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if "global" in str(error).lower():
            raise UserError(f"{path} holds Python objects that would run code if read: refused; keep only its tensors: "
                            "where you trust it, torch.save(torch.load(FILE, weights_only=False)[KEY], NEW)") from error
        raise UserError(f"{path} is not a checkpoint: {_what_it_is(path)}") from error
    except (RuntimeError, EOFError, OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise UserError(f"{path} is not a checkpoint, or is cut off: copy or download it again") from error


def _what_it_is(path):
    with open(path, "rb") as file:
        start = file.read(200).lstrip().lower()
    is_page = start.startswith((b"<!doctype", b"<html"))
    return "a web page, which a failed download leaves; download it again" if is_page else "it cannot be read as one"


def is_kept(model, key):
    """Whether a checkpoint holds this entry of the state dict: all but a frozen text tower from its pinned package."""
    embedded = "text" not in model.published and not model.encoder.text.trainable
    return not (embedded and key.startswith("encoder.text."))


def model_state(model):
    """The state dict, less what comes from a pinned package again."""
    return {key: value for key, value in model.state_dict().items() if is_kept(model, key)}


def restore_model(model, state, path):
    """Loads what `model_state` kept; UserError if the model has another size."""
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise UserError(f"{path} holds a model of another size: {str(error).splitlines()[1].strip()}") from error
    missing = [key for key in missing if is_kept(model, key)]
    if missing or unexpected:
        raise UserError(f"{path} holds another model: missing {missing[:1]}, not known {unexpected[:1]}")


def load_model(path):
    """The model of a checkpoint in evaluation mode and the config it was trained with: (InstructReID, dict)."""
    state = load_checkpoint(path)
    model = rebuild(state)
    restore_model(model, state["model"], path)
    return model.eval(), state["config"]


# ---- a model that starts from the files that the flags name ----

def build(config, classes):
    """(InstructReID, report lines): the model that train.Config asks for, with the published weights that it names."""
    if config.albef and config.text_model:
        raise UserError("--albef brings its own text tower: drop --text-model")
    text, cross, shape, report = None, None, {}, []
    if config.albef:
        bert, cross = load_albef_text(config.albef), load_albef_cross(config.albef)
        text = TextEncoder(bert, text_model(embedded_text_model())[1], "cls", config.train_text)  # the same vocabulary
        report.append(f"text, and E_f of t2i: ALBEF in {config.albef}: {_count(bert)}, {_count(cross)}, missing none")
    elif config.text_model or config.train_text:
        text = TextEncoder(*_open_text_model(config.text_model), trainable=config.train_text)
        report += [f"text: BERT in {config.text_model}: {_count(text.bert)}, missing none"] if config.text_model else []
    if text and len(text.tokenizer) > (words := text.bert.config.vocab_size):
        raise UserError(f"{config.albef or config.text_model}: its text tower knows {words} words, the tokenizer "
                        f"{len(text.tokenizer)}: they do not belong together")
    if config.vit_weights or config.albef:  # published ViTs cut an image into patches; ALBEF's is as deep for pictures
        shape = {"stem": "patch", "picture_depth": SIZES[config.size]["depth" if config.albef else "picture_depth"]}
    model = InstructReID({**SIZES[config.size], **shape}, classes, config.editing, text, cross)
    if config.albef:
        report.append("pictures: " + load_vit(model.encoder.picture, config.albef))
    if config.vit_weights:
        report.append("E_e: " + load_vit(model.editor, config.vit_weights))
    model.published = _note(model, shape, config)
    return model, report


def _note(model, shape, config):
    """What `rebuild` has to know of the files, in plain values: what differs from SIZES, and the text tower."""
    text, note = model.encoder.text, {}
    if shape:
        note["shape"] = {**shape, "part_tokens": model.editor.prefix.shape[1] - 1}
    if config.albef or config.text_model:
        note["text"] = {"bert": text.bert.config.to_json_string(), "pooling": text.pooling,
                        "tokenizer": text.tokenizer.backend_tokenizer.to_str()}
    if config.albef:
        note["cross"] = model.cross.layers.config.to_json_string()
    return note


def rebuild(state):
    """The model of a checkpoint, its weights yet to be restored; none of the files that it started from is read."""
    config, published = state["config"], state.get("published", {})
    shape, text, cross = {**SIZES[config["size"]], **published.get("shape", {})}, None, None
    trainable = config.get("train_text", False)
    if "text" in published:
        from tokenizers import Tokenizer
        from transformers import BertConfig, BertModel, BertTokenizer
        bert = BertModel(BertConfig(**json.loads(published["text"]["bert"])), add_pooling_layer=False)
        tokenizer = BertTokenizer(tokenizer_object=Tokenizer.from_str(published["text"]["tokenizer"]))
        text = TextEncoder(bert, tokenizer, published["text"]["pooling"], trainable)
    elif trainable:
        text = TextEncoder(*text_model(embedded_text_model()), trainable=True)
    if "cross" in published:
        from transformers import BertConfig
        cross = CrossEncoder(BertConfig(**json.loads(published["cross"]), attn_implementation="sdpa"), shape["dim"])
    model = InstructReID(shape, state["classes"], config["editing"], text, cross)
    model.published = published
    return model


def _open_text_model(name):
    """The BERT and the tokenizer of --text-model, a folder or a name on the hub; None is the embedded one."""
    if name is None:
        return text_model(embedded_text_model())
    from huggingface_hub.utils import logging
    from safetensors import SafetensorError
    from transformers import PretrainedConfig
    logging.set_verbosity_error()  # it reports every attempt to reach the hub
    needed = "config.json, tokenizer.json or vocab.txt, and model.safetensors"
    folder = Path(name)
    if folder.is_dir() and not any((folder / file).is_file() for file in ("tokenizer.json", "vocab.txt")):
        raise UserError(f"--text-model {name}: no vocabulary in it; the folder must hold {needed}")
    try:
        kind = PretrainedConfig.get_config_dict(name)[0].get("model_type", "bert")
        if kind != "bert":
            raise ValueError(f"a {kind} model, and only BERTs are known here")
        return text_model(name)
    except (OSError, ValueError, RuntimeError, KeyError, pickle.UnpicklingError, SafetensorError) as error:
        reason = str(error).splitlines()[0].rstrip(". ")
        where = "the folder" if folder.is_dir() else "there is no such folder, and no hub at hand that has it: a folder"
        raise UserError(f"--text-model {name}: {where} must hold a BERT's {needed} ({reason})") from error


# ---- published files ----

def published(path):
    """{name: tensor} of hub:OWNER/NAME, a .safetensors file or one of torch.save, out of the dict it is wrapped in."""
    path = _fetch(path) if str(path).startswith("hub:") else Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file of weights; README, Published weights, says where to get it")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file
        try:
            state = load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path} is not a .safetensors file ({error}), or is cut off: download it again") from error
    else:
        state = read(path, mmap=True)
    for key in ("teacher", "model", "state_dict"):  # PASS in training; DeiT, HAP and ALBEF; released Instruct-ReID
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not any(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path} holds no weights: no dict of tensors, nor one under teacher, model or state_dict")
    return {str(key).removeprefix("module."): value for key, value in state.items() if isinstance(value, torch.Tensor)}


def _fetch(name):
    """The path of hub:OWNER/NAME's weights in the local cache."""
    from huggingface_hub import errors, hf_hub_download
    from huggingface_hub.utils import logging
    logging.set_verbosity_error()
    repo = name.removeprefix("hub:")
    for file in ("model.safetensors", "pytorch_model.bin"):
        try:
            return Path(hf_hub_download(repo, file))
        except errors.RemoteEntryNotFoundError:
            continue
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{name} cannot be fetched ({reason}): place https://huggingface.co/{repo}/resolve/main/"
                            f"{file} in weights/ by other means and give --vit-weights weights/{file}") from error
    raise UserError(f"{name}: that repository has neither model.safetensors nor pytorch_model.bin; give a file instead")


NAMES = (  # of the same weights: as timm has them (PASS, DeiT, HAP, ALBEF) and as transformers does (the hub) -> here
    ("patch_embed.proj.", "embed."), ("attn.proj.", "attn.out."), ("mlp.fc1.", "mlp.0."), ("mlp.fc2.", "mlp.2."),
    ("embeddings.cls_token", "cls_token"), ("embeddings.distillation_token", "dist_token"),
    ("embeddings.position_embeddings", "pos_embed"), ("embeddings.patch_embeddings.projection.", "embed."),
    ("encoder.layer.", "blocks."), ("attention.attention.query.", "attn.q."), ("attention.attention.key.", "attn.k."),
    ("attention.attention.value.", "attn.v."), ("attention.output.dense.", "attn.out."),
    ("intermediate.dense.", "mlp.0."), ("output.dense.", "mlp.2."),
    ("layernorm_before.", "norm1."), ("layernorm_after.", "norm2."), ("layernorm.", "norm."))
OTHERS = re.compile(  # what published files hold beside a ViT: heads, decoders, text towers, queues, momentum twins
    r"head|fc\b|pooler|\w*classifier|dist_token|mask_token|decoder"
    r"|visual_encoder|vision_proj|text_|itm_head|\w*queue|temp$")


def load_vit(vit, path, tower="visual_encoder"):
    """Puts a published ViT into `vit`: PASS, DeiT, HAP, ALBEF's `tower`, a ViT of the hub. Returns a report line.

    The file says which tokens stand before the patches (CLS, and three parts for PASS), whatever vit.prefix was. Its
    grid of position embeddings, square or twice as high as wide, is resized to vit.grid. Editing weights stay as they
    are: with gates at 0 the tokens are the published ones. UserError if vit has another size or a weight is missing.
    """
    state = published(path)
    inside = {key.removeprefix(tower + "."): key for key in state if key.startswith(tower + ".")}  # ALBEF
    names = inside or {re.sub(r"^(backbone|mae|vit|deit)\.", "", key): key for key in state}
    tensors, whole = {}, {}  # by the name here: a tensor, and the name of what it is a part of (q, k and v of qkv)
    for name, key in names.items():
        for theirs, ours in NAMES:
            name = name.replace(theirs, ours)
        for part, tensor in zip("qkv", state[key].chunk(3)) if ".qkv." in name else [("", state[key])]:
            tensors[name.replace("qkv", part)], whole[name.replace("qkv", part)] = tensor, name
    _check_vit(vit, tensors, path)
    try:  # what is taken out of `tensors` is loaded, the rest is reported
        kind = "PASS" if "part_token1" in tensors else "ALBEF" if inside else "ViT"
        before, places, positions = _take_tokens(tensors)
        weights = {key: tensors.pop(key) for key in vit.state_dict() if not re.search("instr|gate|prefix|pos", key)}
        vit.load_state_dict(weights, strict=False)
        if strange := [name for name in tensors if name.startswith("blocks.")]:
            raise UserError(f"{path} is another kind of ViT: none of PASS, DeiT, HAP, ALBEF has its {strange[0]}")
    except KeyError as error:
        raise UserError(f"{path}: the encoder's {error.args[0]} is missing; fetch the file again") from error
    except RuntimeError as error:
        raise UserError(f"{path} is a ViT of another shape: {str(error).splitlines()[1].strip()}") from error
    source = _grid(positions.shape[1], path)
    mode = "bicubic" if kind == "ALBEF" else "bilinear"  # as their authors do it
    if kind == "ViT":
        kind = "DeiT" if source[0] == source[1] else "HAP"
    places = torch.cat([places, resize_grid(positions.float(), source, vit.grid, mode)], 1)
    vit.prefix, vit.pos = (nn.Parameter(new.to(old), old.requires_grad)
                           for new, old in ((before, vit.prefix), (places, vit.pos)))
    rest = list(dict.fromkeys([whole[name] for name in tensors] + [key for key in state if key not in names.values()]))
    moved = "kept" if source == vit.grid else "resized to {}x{} ({})".format(*vit.grid, mode)
    return (f"{kind} in {path}: {len(state) - len(rest)} tensors loaded, positions {source[0]}x{source[1]} {moved}, "
            f"{_leftovers(rest)}, missing none")


def _check_vit(vit, tensors, path):
    """UserError unless the tensors are a ViT of vit's width, depth and patches."""
    if not {"cls_token", "pos_embed", "embed.weight"} <= tensors.keys():
        raise UserError(f"{path} is not a ViT as PASS, DeiT, HAP or ALBEF publish one: it begins with {[*tensors][0]}")
    depth = 1 + max((int(key.split(".")[1]) for key in tensors if key.startswith("blocks.")), default=-1)
    found = tensors["cls_token"].shape[-1], depth, tensors["embed.weight"].shape[-1]
    wanted = vit.norm.weight.numel(), len(vit.blocks), vit.patch
    if found != wanted:
        said = ("width {}, {} layers, patches of {}".format(*numbers) for numbers in (found, wanted))
        raise UserError(f"{path} is a ViT of {next(said)}; the model has {next(said)}: {_fitting(*found)}")


def _fitting(*shape):
    """The advice which --size has that width, depth and patch."""
    names = [name for name, size in SIZES.items() if (size["dim"], size["depth"], size["patch"]) == shape]
    return f"give --size {' or '.join(names)}" if names else "no --size has that shape"


def _take_tokens(tensors):
    """Takes what stands before the patches (1 s d), its positions (1 s d) and the patches' (1 n d) out of `tensors`."""
    cls, pos = tensors.pop("cls_token"), tensors.pop("pos_embed")
    if "part_token1" in tensors:  # PASS: every token before the patches has a position of its own name
        count = sum(key.startswith("part_token") for key in tensors)
        parts = [tensors.pop(f"part_token{i + 1}") for i in range(count)]
        places = [tensors.pop("cls_pos"), *(tensors.pop(f"part{i + 1}_pos") for i in range(count))]
        return torch.cat([cls, *parts], 1), torch.cat(places, 1), pos
    skipped = 2 if "dist_token" in tensors else 1  # a distilled DeiT has a second token, which goes with its position
    return cls, pos[:, :1], pos[:, skipped:]


def _grid(count, path):
    """(rows, columns) of `count` positions: no number is a square and twice a square."""
    for rows, columns in ((isqrt(count), isqrt(count)), (isqrt(2 * count), isqrt(2 * count) // 2)):
        if rows * columns == count:
            return rows, columns
    raise UserError(f"{path}: {count} positions of patches are neither a square grid nor one twice as high as wide")


def resize_grid(positions, source, target, mode):
    """Position embeddings (1 n d) of a grid `source` (rows, columns) for a grid `target`, "bilinear" or "bicubic"."""
    if tuple(source) == tuple(target):
        return positions
    table = rearrange(positions, "1 (h w) d -> 1 d h w", h=source[0])
    return rearrange(F.interpolate(table, tuple(target), mode=mode, align_corners=False), "1 d h w -> 1 (h w) d")


def _leftovers(names):
    """What a file holds beside the encoder: the parts that are known by their number, unknown entries by name."""
    known = Counter(name.split(".")[0] for name in names if OTHERS.match(name))
    unknown = [name for name in names if not OTHERS.match(name)]
    dropped = " ".join(f"{name} {count}" for name, count in known.items()) or "none"
    more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
    return f"dropped: {dropped}, not known: {' '.join(unknown[:3]) or 'none'}{more}"


# ---- ALBEF's BERT: text tower below, multimodal layers above ----

def load_albef_text(path, tower="text_encoder", **config):
    """ALBEF's text tower, a transformers.BertModel without pooler: the layers below the first with cross-attention.

    Sizes are read off the tensors, the number of heads is width / 64; `config`: other values of a BertConfig.
    """
    from transformers import BertConfig, BertModel
    tensors, sizes, text_layers, _ = _albef_bert(path, tower)
    bert = BertModel(BertConfig(**{**sizes, "num_hidden_layers": text_layers, **config}), add_pooling_layer=False)
    kept = {key: value for key, value in tensors.items() if _layer(key) < text_layers}
    return _load_strictly(bert, kept, path).eval()


def load_albef_cross(path, tower="text_encoder", **config):
    """ALBEF's multimodal layers and matching head, a CrossEncoder; `config` as in load_albef_text."""
    from transformers import BertConfig
    tensors, sizes, text_layers, layers = _albef_bert(path, tower)
    config = BertConfig(**{**sizes, "num_hidden_layers": layers - text_layers, **config}, is_decoder=True,
                        add_cross_attention=True, attn_implementation="sdpa")
    kept = {re.sub(r"encoder\.layer\.\d+", f"layers.layer.{_layer(key) - text_layers}", key): value
            for key, value in tensors.items() if _layer(key) >= text_layers}
    if not kept:
        raise UserError(f"{path}: no layer of its text encoder attends to the image; ALBEF.pth is needed")
    kept |= {key.removeprefix("itm_"): value for key, value in published(path).items() if key.startswith("itm_head.")}
    image_width = kept["layers.layer.0.crossattention.self.key.weight"].shape[1]
    return _load_strictly(CrossEncoder(config, image_width), kept, path).eval()


def _albef_bert(path, tower):
    """(tensors, sizes of BertConfig, number of text layers, number of all layers) of the BERT in an ALBEF file."""
    inside = f"{tower}.bert."
    tensors = {key.removeprefix(inside): value for key, value in published(path).items()
               if key.startswith(inside) and not key.endswith("position_ids")}
    try:
        words, width = tensors["embeddings.word_embeddings.weight"].shape
        sizes = dict(vocab_size=words, hidden_size=width, num_attention_heads=max(1, width // 64),
                     intermediate_size=len(tensors["encoder.layer.0.intermediate.dense.bias"]),
                     max_position_embeddings=len(tensors["embeddings.position_embeddings.weight"]),
                     type_vocab_size=len(tensors["embeddings.token_type_embeddings.weight"]))
    except KeyError as error:
        raise UserError(f"{path} is not ALBEF's: it has no {inside}{error.args[0]}; ALBEF.pth is needed") from error
    layers = 1 + max(_layer(key) for key in tensors)
    text_layers = min((_layer(key) for key in tensors if "crossattention" in key), default=layers)
    return tensors, sizes, text_layers, layers


def _layer(key):
    """The number of a BERT's layer in the name of a tensor; -1 for the embeddings."""
    match = re.match(r"encoder\.layer\.(\d+)\.", key)
    return int(match[1]) if match else -1


def _load_strictly(module, tensors, path):
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{path}: its text encoder is not ALBEF's: {str(error).splitlines()[1].strip()}") from error
    return module


def _count(module):
    return f"{len(module.state_dict())} tensors loaded"
