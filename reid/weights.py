"""Published weights, recognised by the names of their tensors: ViTs, and the BERT of ALBEF."""

import re
from collections import Counter
from math import isqrt
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file

from reid.checkpoints import read
from reid.cli import UserError, user_error
from reid.files import check_file
from reid.text import CrossEncoder

# ---- choosing ----

FOLDER = Path("weights")  # searched for published files
SUFFIXES = (".pth", ".pt", ".bin", ".safetensors", ".tar")
KINDS = ("PASS", "HAP", "TransReID", "DeiT", "ALBEF")  # best first: three were trained on people
HUB = "hub:facebook/deit-base-distilled-patch16-224"
HUB_FORM = (768, 12, 16)  # its width, layers and patches


def choose(form, albef=None, name="the model"):
    """(path, hub:OWNER/NAME or None, report lines): the best published ViT for E_e among the files
    in ./weights/ and that of --albef, else DeiT from the hub.

    form: (width, layers, patch) of E_e; name: of the model, in the report.
    """
    paths = {path for path in FOLDER.glob("*") if path.suffix in SUFFIXES}
    paths |= {Path(albef)} if albef else set()
    kinds = {}  # path -> its kind
    report = []
    for path in [*sorted(paths), HUB]:
        if path == HUB and (kinds or form != HUB_FORM):
            continue
        try:
            kinds[str(path)] = read_vit(path, form)[0]
        except UserError as error:
            report.append(f"not used: {error}")

    best = sorted(kinds, key=lambda path: KINDS.index(kinds[path]))
    starts = ", rather than ".join(f"{kinds[path]} in {path}" for path in best)
    line = f"E_e starts from {starts or f'scratch: no published weights fit {name}'}"
    if not starts.startswith(KINDS[0]):
        line += f"; {KINDS[0]} in ./{FOLDER}/ would be better, see docs/weights.md"
    return best[0] if best else None, [*report, line]


# ---- files ----

def read_published(path):
    """{name: tensor} of hub:OWNER/NAME, a .safetensors file, or a file of torch.save; wrappers and
    the prefix `module.` are removed."""
    path = fetch(path) if str(path).startswith("hub:") else Path(path)
    check_file(path, "docs/weights.md says where to get it")
    problem = f"{path} is not a .safetensors file, or is cut off"
    with user_error(problem, "download it again", SafetensorError):
        state = load_file(path) if path.suffix == ".safetensors" else read(path, mmap=True)

    # PASS in training has a teacher; DeiT, HAP, ALBEF a model; released Instruct-ReID a state_dict
    state = state if isinstance(state, dict) else {}
    for key in ("teacher", "model", "state_dict"):
        if isinstance(state.get(key), dict):
            state = state[key]
    tensors = {}
    for key, value in state.items():
        if isinstance(value, torch.Tensor) and value.layout == torch.strided:
            tensors[str(key).removeprefix("module.")] = value
    if not tensors:
        raise UserError(f"{path} holds no weights: no dict of tensors, nor one under teacher, "
                        "model or state_dict; use another file")
    return tensors


def fetch(name):
    """The path of hub:OWNER/NAME's weights in the hub's cache, downloaded if necessary."""
    import huggingface_hub as hub

    repo = name.removeprefix("hub:")
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repo):
        raise UserError(f"{name}: expected hub:OWNER/NAME, such as {HUB}")

    file = "model.safetensors"
    fix = (f"save https://huggingface.co/{repo}/resolve/main/{file} in weights/ by other means "
           f"and give --vit-weights weights/{file}")
    with user_error(f"{name} cannot be fetched", fix):
        path = hub.try_to_load_from_cache(repo, file)
        if not isinstance(path, str):
            # without a network, hf_hub_download alone would retry for half a minute
            hub.get_hf_file_metadata(hub.hf_hub_url(repo, file), timeout=3)
            path = hub.hf_hub_download(repo, file)
        return Path(path)


# ---- ViTs ----

NAMES = (  # parts of names in published files, and in model.ViT
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
ENCODER = ("cls_token", "cls_pos", "part", "pos_embed", "embed.", "blocks.", "norm.")


def load_vit(vit, path):
    """Loads a published ViT into `vit`: one of KINDS (for ALBEF its image encoder) or from the hub.

    The file decides which tokens precede the patches (CLS, and for PASS three part tokens). Its
    grid of position embeddings, square or twice as high as wide, is resized to vit.grid. Editing
    weights do not change: with gates at 0 the tokens are those of the published ViT.
    Returns a report line.
    """
    form = (vit.norm.weight.numel(), len(vit.blocks), vit.patch)
    kind, grid, prefix, pos, tensors, report = read_vit(path, form)

    mode = "bicubic" if kind == "ALBEF" else "bilinear"  # as in the authors' code
    prefix_pos, patch_pos = pos.tensor_split([prefix.shape[1]], 1)
    patch_pos = resize_grid(patch_pos.float(), grid, vit.grid, mode)
    vit.prefix.data = prefix.to(vit.prefix)
    vit.pos.data = torch.cat([prefix_pos, patch_pos], 1).to(vit.pos)
    weights = vit.state_dict()
    own = {name: weights[name] for name in weights if re.search("instr|gate|prefix|pos", name)}
    load_exactly(vit, tensors | own, path)

    positions = "{}x{}".format(*grid)
    if grid != vit.grid:
        positions += " resized to {}x{} ({})".format(*vit.grid, mode)
    return f"{kind} in {path}: {report}, missing: none, positions: {positions}"


def read_vit(path, form):
    """A published ViT of the form (width, layers, patch).

    Returns its kind, one of KINDS; the grid (rows, columns) of its patches; the tokens before them
    (1 s d); the positions of both (1 s+n d); {name in model.ViT: tensor} of all other weights; and
    a report of the numbers of tensors.
    """
    state = read_published(path)
    tensors, dropped = _renamed(state)
    problem = (f"{path} is not a ViT of PASS, HAP, DeiT or ALBEF, or is damaged: it begins with "
               f"{next(iter(state))}; absent, or of another shape")
    with user_error(problem, "use another file", (KeyError, ValueError, RuntimeError)):
        width, _, _, patch = tensors["embed.weight"].shape
        prefix, pos = _take_tokens(tensors, width)
        if "dist_token" in dropped:  # of a distilled DeiT; its position is removed too
            pos = torch.cat([pos[:, :1], pos[:, 2:]], 1)
        grid = _grid(pos.shape[1] - prefix.shape[1])

    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    if (width, depth, patch) != form:
        text = "width {}, {} layers, patches of {}"
        raise UserError(f"{path} is a ViT of {text.format(width, depth, patch)}; the model has "
                        f"{text.format(*form)}: give another file, or the --size of that form")

    parents = {key.partition(".")[0] for key in state}
    kind = "DeiT" if grid[0] == grid[1] else "HAP"
    if prefix.shape[1] > 1:
        kind = "PASS"
    elif "visual_encoder" in parents:
        kind = "ALBEF"
    elif "base" in parents:
        kind = "TransReID"
    others = " ".join(f"{part} {count}" for part, count in dropped.items()) or "none"
    report = f"{len(state) - dropped.total()} tensors loaded, dropped: {others}"
    return kind, grid, prefix, pos, tensors, report


def _renamed(state):
    """({name in model.ViT: tensor} of a file's image encoder, {part: number of other tensors}). The
    qkv of a layer is divided into q, k and v."""
    tensors = {}
    dropped = Counter()
    for key, tensor in state.items():
        name = re.sub(r"^(visual_encoder|backbone|base|mae|vit|deit)\.", "", key)
        for theirs, ours in NAMES:
            name = name.replace(theirs, ours)

        if not name.startswith(ENCODER):
            dropped[name.split(".")[0]] += 1
        elif ".qkv." in name and tensor.ndim:
            for part, third in zip("qkv", tensor.chunk(3)):
                tensors[name.replace("qkv", part)] = third
        else:
            tensors[name] = tensor
    return tensors, dropped


def _take_tokens(tensors, width):
    """Takes the tokens before the patches (1 s d) and all positions (1 s+n d) from `tensors`."""
    def take(name):
        return rearrange(tensors.pop(name), "1 n d -> 1 n d", d=width)

    parts = range(1, 1 + sum(name.startswith("part_token") for name in tensors))
    prefix = [take("cls_token"), *(take(f"part_token{i}") for i in parts)]
    pos = [take("pos_embed")]
    if parts:  # PASS: the positions of these tokens are separate tensors
        pos = [take("cls_pos"), *(take(f"part{i}_pos") for i in parts), *pos]
    return torch.cat(prefix, 1), torch.cat(pos, 1)


def _grid(count):
    """(rows, columns) of a grid with `count` cells, square or twice as high as wide."""
    for ratio in (1, 2):  # no number is a square and twice a square
        columns = isqrt(max(0, count) // ratio)
        if 0 < count == ratio * columns * columns:
            return ratio * columns, columns
    raise ValueError(f"{count} positions are neither a square nor twice as high as wide")


def resize_grid(positions, source, target, mode):
    """Position embeddings (1 n d) of one grid (rows, columns) for another, bilinear or bicubic."""
    if tuple(source) == tuple(target):
        return positions
    table = rearrange(positions, "1 (h w) d -> 1 d h w", h=source[0])
    table = F.interpolate(table, tuple(target), mode=mode, align_corners=False)
    return rearrange(table, "1 d h w -> 1 (h w) d")


def load_exactly(module, tensors, path):
    """Loads exactly these weights."""
    problem = f"{path} holds other weights than PASS, HAP, DeiT or ALBEF"
    with user_error(problem, "download it again, or use another file", RuntimeError):
        module.load_state_dict(tensors)


# ---- ALBEF's BERT: a text encoder and, after it, multimodal layers ----

def load_albef_text(path, **config):
    """ALBEF's text encoder, a transformers.BertModel without pooler.

    Sizes are inferred from the tensors, with width / 64 heads; `config`: other BertConfig values.
    """
    from transformers import BertModel

    config, tensors, _, _ = _albef_bert(path, config)
    bert = BertModel(config, add_pooling_layer=False)
    load_exactly(bert, tensors, path)
    return bert.eval()


def load_albef_cross(path, dim, **config):
    """ALBEF's multimodal layers and matching head, a CrossEncoder for image tokens of width dim;
    `config`: as above."""
    _, _, config, tensors = _albef_bert(path, config)
    image_width = tensors["layers.layer.0.crossattention.self.key.weight"].shape[1]
    if image_width != dim:
        raise UserError(f"{path} attends to images of width {image_width}; the model has width "
                        f"{dim}: choose another --size")
    cross = CrossEncoder(config, image_width)
    load_exactly(cross, tensors, path)
    return cross.eval()


def _albef_bert(path, config):
    """The two parts of ALBEF's BERT, each as a BertConfig and {name: tensor}: the layers before the
    first one that attends to the image, for a BertModel, and the others, for a CrossEncoder."""
    from transformers import BertConfig

    state = read_published(path)
    bert = "text_encoder.bert."
    layer = rf"{re.escape(bert)}encoder\.layer\.(\d+)\."
    multimodal = {int(n) for n in re.findall(layer + "crossattention", " ".join(state))}
    first = min(multimodal, default=0)

    text = {}
    cross = {}
    for key, tensor in state.items():
        found = re.match(layer, key)
        if found and int(found[1]) >= first:
            cross[f"layers.layer.{int(found[1]) - first}.{key[found.end():]}"] = tensor
        elif key.startswith("itm_head."):
            cross[key.removeprefix("itm_")] = tensor
        elif key.startswith(bert) and not key.endswith("position_ids"):
            text[key.removeprefix(bert)] = tensor

    problem = (f"{path}: ALBEF.pth is needed, whose text_encoder has text layers and, after them, "
               "layers that attend to the image")
    with user_error(problem, "see docs/weights.md"):  # a tensor is absent or has no dimensions
        vocabulary, width = text["embeddings.word_embeddings.weight"].shape
        sizes = {
            "vocab_size": vocabulary,
            "hidden_size": width,
            "num_attention_heads": max(1, width // 64),
            "intermediate_size": len(text["encoder.layer.0.intermediate.dense.bias"]),
            "max_position_embeddings": len(text["embeddings.position_embeddings.weight"]),
            "type_vocab_size": len(text["embeddings.token_type_embeddings.weight"]),
        } | config

    text_config = BertConfig(**sizes, num_hidden_layers=first)
    crossing = dict(is_decoder=True, add_cross_attention=True, attn_implementation="sdpa")
    cross_config = BertConfig(**sizes, **crossing, num_hidden_layers=len(multimodal))
    return text_config, text, cross_config, cross
