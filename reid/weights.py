"""A model that starts from published weights: PASS, DeiT, HAP, ALBEF, ViTs of the hub."""

import re
from collections import Counter
from http.client import HTTPException
from math import isqrt
from pathlib import Path
from urllib.request import Request, urlopen

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from model import SIZES, CrossEncoder, InstructReID, TextEncoder
from reid.checkpoints import read
from reid.cli import UserError
from reid.text import EmbeddedTextEncoder, embedded_text_model, named_text_model


def build(config, classes):
    """(InstructReID, report lines): the model of a train.Config with the weights that it names.

    classes: {data set: number of identities}. UserError, in one line, for a file that does not fit.
    """
    if config.albef and config.text_model:
        raise UserError("--albef brings its own text tower: drop --text-model")

    cross = None
    report = []
    if config.albef:
        bert = load_albef_text(config.albef)
        cross = load_albef_cross(config.albef)
        _, tokenizer = embedded_text_model()  # ALBEF's vocabulary is the same
        text = TextEncoder(bert, tokenizer, "cls", config.train_text)
        counts = f"{_count(bert)}, {_count(cross)}"
        report.append(f"text, and E_f of t2i: ALBEF in {config.albef}: {counts}, missing none")
    elif config.text_model:
        bert, tokenizer = named_text_model(config.text_model)
        text = TextEncoder(bert, tokenizer, trainable=config.train_text)
        report.append(f"text: BERT in {config.text_model}: {_count(bert)}, missing none")
    else:
        text = EmbeddedTextEncoder(config.train_text)
    _check_vocabulary(text, config.albef or config.text_model)

    shape = dict(SIZES[config.size])
    if config.vit_weights or config.albef:  # published ViTs cut an image into patches
        shape["stem"] = "patch"
    if config.albef:  # its picture encoder is as deep as E_e
        shape["picture_depth"] = shape["depth"]
    model = InstructReID(shape, classes, config.editing, text=text, cross=cross)

    if config.albef:
        report.append("pictures: " + load_vit(model.encoder.picture, config.albef))
    if config.vit_weights:
        report.append("E_e: " + load_vit(model.editor, config.vit_weights))
    return model, report


def _check_vocabulary(text, path):
    """UserError if the tokenizer knows words that the BERT of `path` does not."""
    known = text.bert.config.vocab_size
    wanted = len(text.tokenizer)
    if wanted > known:
        raise UserError(
            f"{path}: its text tower knows {known} words, the tokenizer {wanted}: "
            "they do not belong together"
        )


def _count(module):
    return f"{len(module.state_dict())} tensors loaded"


def is_loaded(name, config):
    """Whether a file of weights that `config` names brought the parameter of that name.

    A checkpoint holds the same config, so a resumed run answers alike without the files.
    """
    if name.startswith("encoder.text."):
        return True
    if name.startswith(("encoder.picture.", "cross.")):
        return bool(config.albef)
    if name.startswith("editor."):
        return bool(config.vit_weights) and not EDITING.search(name)
    return False


# ---- choosing ----

FOLDER = Path("weights")  # where published files are looked for
SUFFIXES = (".pth", ".pt", ".bin", ".safetensors", ".tar")
KINDS = ("PASS", "HAP", "DeiT", "ALBEF")  # best first; the former two were trained on people
HUB = "hub:facebook/deit-base-distilled-patch16-224"
HUB_FORM = (768, 12, 16)  # its width, layers and patches
HUB_SECONDS = 3  # to wait for the hub's answer


def choose(size, albef=None):
    """(path, hub:OWNER/NAME or None, report lines): the best published ViT for E_e of that --size.

    Known are the files in ./weights/, by their keys, and that of --albef; then the hub is asked.
    """
    fitting, report = _known_files(size, albef)
    kind = None
    path = None
    why = f"no published weights in ./{FOLDER}/"
    if report:
        why = f"no file of weights in ./{FOLDER}/ fits --size {size}"

    if fitting:
        kind, path = fitting[0]
        others = ", ".join(f"{other} in {there}" for other, there in fitting[1:])
        why = f"{kind}, before {others}" if others else f"{kind}, no other file fits"
    elif HUB_FORM != _form_of(size):
        why += f", and the hub's DeiT is not of --size {size}"
    elif _is_on_hub(HUB):
        kind, path = "DeiT", HUB
    else:
        why += ", hub not reachable"

    line = f"E_e starts from {path or 'scratch'}: {why}"
    if kind != KINDS[0]:
        line += f"; {KINDS[0]} in ./{FOLDER}/ would be better, see docs/weights.md"
    return path, [*report, line]


def _known_files(size, albef):
    """([(kind, path)] that fit the size, best first; report lines about the other files)."""
    paths = []
    if FOLDER.is_dir():
        paths = sorted(path for path in FOLDER.iterdir() if path.suffix in SUFFIXES)
    if albef and Path(albef) not in paths:
        paths.append(Path(albef))

    fitting = []
    report = []
    for path in paths:
        try:
            kind, form = recognise_vit(path)
            _check_form(form, _form_of(size), path)
            fitting.append((kind, str(path)))
        except UserError as error:
            report.append(f"not used: {error}")
    fitting.sort(key=lambda found: KINDS.index(found[0]))
    return fitting, report


def recognise_vit(path, tower="visual_encoder"):
    """(kind, (width, layers, patch)) of a published ViT. UserError if it is none."""
    state = read_published(path)
    keys = _encoder_keys(state, tower)
    tensors = _renamed(state, keys)
    form = _form(tensors, path)
    _, _, patch_pos = _take_tokens(tensors, path)
    grid = _grid(patch_pos.shape[1], path)
    return _kind(keys, tower, grid), form


def _is_on_hub(name):
    """Whether `name` is in the local cache, or the hub answers within HUB_SECONDS."""
    from huggingface_hub import constants, hf_hub_url

    repo = name.removeprefix("hub:")
    if _cached(repo, "model.safetensors"):
        return True
    if constants.HF_HUB_OFFLINE:
        return False

    request = Request(hf_hub_url(repo, "model.safetensors"), method="HEAD")
    try:
        with urlopen(request, timeout=HUB_SECONDS):
            return True
    except (OSError, HTTPException):
        return False


def _cached(repo, file):
    """The path of a file of the hub in the local cache, or None."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repo, file)
    return Path(path) if isinstance(path, str) else None


# ---- files ----

def read_published(path):
    """{name: tensor} of hub:OWNER/NAME, a .safetensors file, or a file of torch.save.

    The dict that the tensors are wrapped in and a `module.` before their names are taken off.
    UserError if there is no such file, or if it holds no weights.
    """
    path = _fetch(path) if str(path).startswith("hub:") else Path(path)
    if not path.is_file():
        raise UserError(
            f"{path}: no such file of weights; docs/weights.md says where to get it"
        )

    if path.suffix == ".safetensors":
        state = _read_safetensors(path)
    else:
        state = read(path, mmap=True)

    # PASS in training has a teacher; DeiT, HAP, ALBEF a model; released Instruct-ReID a state_dict
    for key in ("teacher", "model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]

    tensors = {}
    if isinstance(state, dict):
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.layout == torch.strided:
                tensors[str(key).removeprefix("module.")] = value
    if not tensors:
        raise UserError(
            f"{path} holds no weights: no dict of tensors, "
            "nor one under teacher, model or state_dict"
        )
    return tensors


def _read_safetensors(path):
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(
            f"{path} is not a .safetensors file ({error}), or is cut off: download it again"
        ) from error


def _fetch(name):
    """The path of hub:OWNER/NAME's weights in the local cache, downloaded if they are not there."""
    from huggingface_hub import errors, hf_hub_download
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()
    repo = name.removeprefix("hub:")
    for file in ("model.safetensors", "pytorch_model.bin"):
        cached = _cached(repo, file)
        if cached:  # asking whether it is the newest takes half a minute where there is no network
            return cached
        try:
            return Path(hf_hub_download(repo, file))
        except errors.RemoteEntryNotFoundError:
            continue
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{name} cannot be fetched ({reason}): "
                f"place https://huggingface.co/{repo}/resolve/main/{file} "
                f"in weights/ by other means and give --vit-weights weights/{file}"
            ) from error
    raise UserError(
        f"{name}: that repository has neither model.safetensors nor pytorch_model.bin; "
        "give a file instead"
    )


# ---- ViTs ----

NAMES = (  # the same weights: their names in published files, their names here
    # timm's: PASS, DeiT, HAP, ALBEF
    ("patch_embed.proj.", "embed."),
    ("attn.proj.", "attn.out."),
    ("mlp.fc1.", "mlp.0."),
    ("mlp.fc2.", "mlp.2."),
    # transformers': the hub
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.distillation_token", "dist_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection.", "embed."),
    ("encoder.layer.", "blocks."),
    ("attention.attention.query.", "attn.q."),
    ("attention.attention.key.", "attn.k."),
    ("attention.attention.value.", "attn.v."),
    ("attention.output.dense.", "attn.out."),
    ("intermediate.dense.", "mlp.0."),
    ("output.dense.", "mlp.2."),
    ("layernorm_before.", "norm1."),
    ("layernorm_after.", "norm2."),
    ("layernorm.", "norm."),
)
OTHERS = re.compile(  # beside a ViT: heads, decoders, text towers, queues, momentum twins
    r"head|fc\b|pooler|\w*classifier|dist_token|mask_token|decoder"
    r"|visual_encoder|vision_proj|text_|itm_head|\w*queue|temp$"
)


EDITING = re.compile(r"instr|gate")  # what no published ViT has


def load_vit(vit, path, tower="visual_encoder"):
    """Puts a published ViT into `vit`: PASS, DeiT, HAP, ALBEF's `tower`, a ViT of the hub.

    The file says which tokens stand before the patches (CLS, and three parts for PASS), whatever
    vit.prefix was. Its grid of position embeddings, square or twice as high as wide, is resized to
    vit.grid. Editing weights stay as they are: with gates at 0 the tokens are the published ones.
    Returns a report line. UserError if vit has another size or a weight is missing.
    """
    state = read_published(path)
    keys = _encoder_keys(state, tower)
    tensors = _renamed(state, keys)
    wanted = (vit.norm.weight.numel(), len(vit.blocks), vit.patch)
    _check_form(_form(tensors, path), wanted, path)

    # what is taken out of `tensors` is loaded, the rest is reported
    prefix, prefix_pos, patch_pos = _take_tokens(tensors, path)
    _load_layers(vit, tensors, path)

    grid = _grid(patch_pos.shape[1], path)
    kind = _kind(keys, tower, grid)
    mode = "bicubic" if kind == "ALBEF" else "bilinear"  # as their authors do it
    patch_pos = resize_grid(patch_pos.float(), grid, vit.grid, mode)
    vit.prefix = _replaced(vit.prefix, prefix)
    vit.pos = _replaced(vit.pos, torch.cat([prefix_pos, patch_pos], 1))

    outside = [key for key in state if key not in keys.values()]
    rest = list(dict.fromkeys([*tensors, *outside]))
    moved = "kept"
    if grid != vit.grid:
        moved = "resized to {}x{} ({})".format(*vit.grid, mode)
    return (
        f"{kind} in {path}: {len(state) - len(rest)} tensors loaded, "
        f"positions {grid[0]}x{grid[1]} {moved}, {_leftovers(rest)}, missing none"
    )


def _encoder_keys(state, tower):
    """{name: key} of a file's encoder: ALBEF has it in a tower, others may have it in a wrapper."""
    inside = [key for key in state if key.startswith(f"{tower}.")]
    if inside:
        return {key.removeprefix(f"{tower}."): key for key in inside}
    return {re.sub(r"^(backbone|mae|vit|deit)\.", "", key): key for key in state}


def _renamed(state, keys):
    """{name here: tensor} of the encoder; a layer's qkv becomes its q, k and v."""
    tensors = {}
    for name, key in keys.items():
        for theirs, ours in NAMES:
            name = name.replace(theirs, ours)

        if name.startswith("blocks.") and ".qkv." in name and state[key].ndim:
            for part, tensor in zip("qkv", state[key].chunk(3)):
                tensors[name.replace("qkv", part)] = tensor
        else:
            tensors[name] = state[key]
    return tensors


def _form(tensors, path):
    """(width, layers, patch) of a ViT's tensors. UserError if they are none."""
    if not {"cls_token", "pos_embed", "embed.weight"} <= tensors.keys():
        raise UserError(
            f"{path} is not a ViT as PASS, DeiT, HAP or ALBEF publish one: "
            f"it begins with {next(iter(tensors))}"
        )

    width = tensors["cls_token"].shape[-1:]
    for name, tensor in tensors.items():
        shape = tensor.shape
        is_odd = name == "embed.weight" and len(shape) != 4
        if re.fullmatch(r"(cls|part)_token\d*|pos_embed|(cls|part\d+)_pos", name):
            is_odd = len(shape) != 3 or shape[:1] + shape[2:] != (1, *width)
        if is_odd:
            raise UserError(
                f"{path}: the encoder's {name} has the shape {tuple(shape)}; fetch the file again"
            )

    layers = {int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")}
    return (
        tensors["cls_token"].shape[-1],
        1 + max(layers, default=-1),
        tensors["embed.weight"].shape[-1],
    )


def _form_of(size):
    """(width, layers, patch) of a --size."""
    shape = SIZES[size]
    return shape["dim"], shape["depth"], shape["patch"]


def _check_form(found, wanted, path):
    """UserError unless the ViT of `path` has the wanted (width, layers, patch)."""
    if found != wanted:
        form = "width {}, {} layers, patches of {}"
        raise UserError(
            f"{path} is a ViT of {form.format(*found)}; "
            f"the model has {form.format(*wanted)}: {_fitting(found)}"
        )


def _fitting(wanted):
    """The advice which --size has that (width, depth, patch)."""
    names = []
    for name in SIZES:
        if _form_of(name) == wanted:
            names.append(name)
    return f"give --size {' or '.join(names)}" if names else "no --size has that shape"


def _take(tensors, name, path):
    """A tensor, taken out of `tensors`. UserError if it is not there."""
    if name not in tensors:
        raise UserError(f"{path}: the encoder's {name} is missing; fetch the file again")
    return tensors.pop(name)


def _take_tokens(tensors, path):
    """Takes tokens and positions out of `tensors`.

    Returns the tokens before the patches (1 s d), their positions (1 s d), the patches' (1 n d).
    """
    cls = _take(tensors, "cls_token", path)
    pos = _take(tensors, "pos_embed", path)
    if "part_token1" not in tensors:
        skipped = 1
        if "dist_token" in tensors:  # a distilled DeiT's second token goes with its position
            skipped = 2
        return cls, pos[:, :1], pos[:, skipped:]

    # PASS: every token before the patches has a position of its own name
    numbers = range(1, 1 + sum(name.startswith("part_token") for name in tensors))
    parts = [_take(tensors, f"part_token{i}", path) for i in numbers]
    cls_pos = _take(tensors, "cls_pos", path)
    parts_pos = [_take(tensors, f"part{i}_pos", path) for i in numbers]
    return torch.cat([cls, *parts], 1), torch.cat([cls_pos, *parts_pos], 1), pos


def _load_layers(vit, tensors, path):
    """Takes everything but tokens, positions and editing weights out of `tensors` into `vit`."""
    wanted = [name for name in vit.state_dict() if not re.search("instr|gate|prefix|pos", name)]
    weights = {name: _take(tensors, name, path) for name in wanted}
    try:
        vit.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise UserError(f"{path} is a ViT of another shape: {reason}") from error

    for name in tensors:
        if name.startswith("blocks."):
            raise UserError(
                f"{path} is another kind of ViT: none of PASS, DeiT, HAP, ALBEF has its {name}"
            )


def _grid(count, path):
    """(rows, columns) of `count` positions: no number is a square and twice a square."""
    side = isqrt(count)
    if side * side == count:
        return side, side

    rows = isqrt(2 * count)
    columns = rows // 2
    if rows * columns == count:
        return rows, columns
    raise UserError(
        f"{path}: {count} positions of patches are neither a square grid "
        "nor one twice as high as wide"
    )


def _kind(keys, tower, grid):
    """Whose ViT it is, told by its part tokens, its tower, or the form of its grid."""
    if "part_token1" in keys:
        return "PASS"
    if all(key.startswith(f"{tower}.") for key in keys.values()):
        return "ALBEF"
    rows, columns = grid
    return "DeiT" if rows == columns else "HAP"


def resize_grid(positions, source, target, mode):
    """Position embeddings (1 n d) of a grid `source` (rows, columns) for a grid `target`.

    mode: "bilinear" or "bicubic".
    """
    if tuple(source) == tuple(target):
        return positions
    table = rearrange(positions, "1 (h w) d -> 1 d h w", h=source[0])
    table = F.interpolate(table, tuple(target), mode=mode, align_corners=False)
    return rearrange(table, "1 d h w -> 1 (h w) d")


def _replaced(parameter, tensor):
    """`tensor` as a parameter, on the device and in the precision of the one that it replaces."""
    return nn.Parameter(tensor.to(parameter), parameter.requires_grad)


def _leftovers(names):
    """What a file holds beside the encoder: known parts by number, unknown entries by name."""
    parts = Counter()
    unknown = []
    for name in names:
        if OTHERS.match(name):
            parts[name.split(".")[0]] += 1
        else:
            unknown.append(name)

    dropped = " ".join(f"{part} {count}" for part, count in parts.items()) or "none"
    shown = " ".join(unknown[:3]) or "none"
    if len(unknown) > 3:
        shown += f" and {len(unknown) - 3} more"
    return f"dropped: {dropped}, not known: {shown}"


# ---- ALBEF's BERT: text tower below, multimodal layers above ----

def load_albef_text(path, tower="text_encoder", **config):
    """ALBEF's text tower, a transformers.BertModel without pooler.

    It is the layers below the first with cross-attention. Sizes are read off the tensors, the
    number of heads is width / 64; `config`: other values of a BertConfig.
    """
    from transformers import BertConfig, BertModel

    tensors = _albef_tensors(path, tower)
    sizes = _bert_sizes(tensors, path, tower)
    text_layers, _ = _layer_counts(tensors)
    sizes["num_hidden_layers"] = text_layers
    bert = BertModel(BertConfig(**{**sizes, **config}), add_pooling_layer=False)

    kept = {key: value for key, value in tensors.items() if _layer(key) < text_layers}
    return _load_strictly(bert, kept, path).eval()


def load_albef_cross(path, tower="text_encoder", **config):
    """ALBEF's multimodal layers and matching head, a CrossEncoder; config: see load_albef_text."""
    from transformers import BertConfig

    tensors = _albef_tensors(path, tower)
    sizes = _bert_sizes(tensors, path, tower)
    text_layers, cross_layers = _layer_counts(tensors)
    sizes["num_hidden_layers"] = cross_layers
    if not cross_layers:
        raise UserError(
            f"{path}: no layer of its text encoder attends to the image; ALBEF.pth is needed"
        )

    kept = {}
    for key, value in tensors.items():
        layer = _layer(key) - text_layers
        if layer >= 0:
            kept[re.sub(r"encoder\.layer\.\d+", f"layers.layer.{layer}", key)] = value
    image_width = kept["layers.layer.0.crossattention.self.key.weight"].shape[1]

    for key, value in read_published(path).items():
        if key.startswith("itm_head."):
            kept[key.removeprefix("itm_")] = value

    config = BertConfig(
        **{**sizes, **config},
        is_decoder=True,
        add_cross_attention=True,
        attn_implementation="sdpa",
    )
    return _load_strictly(CrossEncoder(config, image_width), kept, path).eval()


def _albef_tensors(path, tower):
    """{name: tensor} of the BERT in an ALBEF file, with the names of a transformers.BertModel."""
    inside = f"{tower}.bert."
    tensors = {}
    for key, value in read_published(path).items():
        if key.startswith(inside) and not key.endswith("position_ids"):
            tensors[key.removeprefix(inside)] = value
    return tensors


def _bert_sizes(tensors, path, tower):
    """The values of a BertConfig that the tensors tell. UserError if they are no BERT."""
    try:
        words, width = tensors["embeddings.word_embeddings.weight"].shape
        return {
            "vocab_size": words,
            "hidden_size": width,
            "num_attention_heads": max(1, width // 64),
            "intermediate_size": len(tensors["encoder.layer.0.intermediate.dense.bias"]),
            "max_position_embeddings": len(tensors["embeddings.position_embeddings.weight"]),
            "type_vocab_size": len(tensors["embeddings.token_type_embeddings.weight"]),
        }
    except KeyError as error:
        raise UserError(
            f"{path} is not ALBEF's: it has no {tower}.bert.{error.args[0]}; ALBEF.pth is needed"
        ) from error
    except (ValueError, TypeError) as error:  # of a tensor without dimensions
        raise UserError(
            f"{path}: its {tower}.bert has other shapes than ALBEF's ({error}); fetch it again"
        ) from error


def _layer_counts(tensors):
    """(number of text layers, number of multimodal layers); the latter attend to the image."""
    count = 1 + max((_layer(key) for key in tensors), default=-1)
    multimodal = [_layer(key) for key in tensors if "crossattention" in key]
    text_layers = min(multimodal, default=count)
    return text_layers, count - text_layers


def _layer(key):
    """The number of a BERT's layer in the name of a tensor; -1 for the embeddings."""
    match = re.match(r"encoder\.layer\.(\d+)\.", key)
    return int(match[1]) if match else -1


def _load_strictly(module, tensors, path):
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise UserError(f"{path}: its text encoder is not ALBEF's: {reason}") from error
    return module
