"""Published weights give the features of the published programs, whatever wraps them; a checkpoint needs none of these
files again; a wrong file is one line."""

import argparse
import json
import math
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

import data
import evaluate
import train
from model import SIZES, ViT
from tests.reference import (PASS_LAYOUTS, albef_checkpoint, deit_checkpoint, golden,
                             pass_checkpoint, under)
from reid import checkpoints, weights
from reid.cli import UserError
from reid.folders import open_all
from reid.runs import read_log
from reid.images import normalise
from tests.test_train import FAST, Payload, command, drawn, one_line  # noqa: F401, two of them are fixtures


def near(ours, theirs, limit):
    theirs = torch.as_tensor(theirs)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < limit


# ---- reference files ----

def check_vit(vit, path, io, tower="visual_encoder"):
    """The weights at `path` give the recorded positions and tokens; returns the report of loading."""
    report = weights.load_vit(vit, path, tower)
    positions = io["pos_embed_resized"]
    near(vit.pos[:, -positions.shape[1]:], positions, 1e-6)

    vit.eval()
    image = torch.tensor(io["image"])
    with torch.no_grad():
        near(vit(image), io["out"], 2e-5)
        near(vit.double()(image.double()), io["out"], 1e-6)
    return report


@pytest.mark.parametrize("layout", PASS_LAYOUTS)
@pytest.mark.parametrize("part_tokens", [0, 3])
def test_pass_reference(layout, part_tokens, tmp_path):
    io = golden("vit_pass/io.npz")
    vit = ViT(io["image"].shape[2:], 16, None, 12, 1, int(io["num_heads"]), part_tokens)
    report = check_vit(vit, pass_checkpoint(layout, tmp_path / "pass.pth"), io)
    assert vit.grid == tuple(io["grid_hw"])
    assert "PASS" in report and "16x8 resized" in report and "not known: none" in report
    assert ("head" in report) == layout.startswith("teacher")


@pytest.mark.parametrize("kind,dim,depth", [("plain", 48, 2), ("distilled", 24, 1)])
def test_deit_reference(kind, dim, depth, tmp_path):
    io = golden(f"deit/io_{kind}.npz")
    vit = ViT(io["image"].shape[2:], 16, int(io["stride"]), dim, depth, int(io["num_heads"]))
    report = check_vit(vit, deit_checkpoint(kind, tmp_path / "vit.pth"), io)
    assert vit.grid == tuple(io["grid_hw"])
    assert "DeiT" in report and "14x14 resized" in report and "not known: none" in report


@pytest.mark.parametrize("tower", ["visual_encoder", "visual_encoder_m"])
def test_albef_picture_reference(tower, tmp_path):
    io = golden("vit_albef/io.npz")
    vit = ViT(io["image"].shape[2:], 16, None, 36, 2, int(io["num_heads"]))
    path = albef_checkpoint(tmp_path / "file.pth", recorded_in_momentum=tower.endswith("_m"))
    report = check_vit(vit, path, io, tower)
    assert "ALBEF" in report and "(bicubic)" in report and "not known: none" in report


@pytest.mark.parametrize("file,mode,cls", [("vit_pass", "bilinear", 0), ("deit", "bilinear", 1),
                                           ("vit_albef", "bicubic", 1)])
def test_resized_positions_reference(file, mode, cls):
    tables = {name: torch.tensor(table) for name, table in golden(f"{file}/resize.npz").items()}
    source = tables["source"][:, cls:]
    for name, table in tables.items():
        if name.startswith("resized_"):
            target = [int(side) for side in name.removeprefix("resized_").split("x")]
            near(weights.resize_grid(source, weights._grid(source.shape[1], file), target, mode), table[:, cls:], 1e-6)


@pytest.mark.parametrize("kind,limit", [(torch.float32, 2e-5), (torch.float64, 1e-6)])
def test_albef_text_reference(kind, limit, tmp_path):
    io = golden("bert_albef/io.npz")
    ids, real = torch.tensor(io["input_ids"]), torch.tensor(io["attention_mask"])
    image = torch.tensor(io["encoder_hidden_states"]).to(kind)

    path = albef_checkpoint(tmp_path / "ALBEF.pth")
    heads = {"num_attention_heads": int(io["num_heads"])}
    text = weights.load_albef_text(path, **heads).to(kind)
    cross = weights.load_albef_cross(path, **heads).to(kind)
    with torch.no_grad():
        words = text(ids, attention_mask=real).last_hidden_state
        near(words, io["text_out"], limit)
        near(text(ids).last_hidden_state, io["text_nomask_out"], limit)
        for seen in ("full", "partial"):
            image_mask = torch.tensor(io[f"encoder_mask_{seen}"]).bool()
            out = cross(words, real.bool(), image, image_mask)
            near(out, io[f"fusion_{seen}_out"], limit)
    assert text.pooler is None and len(text.encoder.layer) == int(io["fusion_layer"])
    assert len(cross.layers.layer) == int(io["num_layers"]) - int(io["fusion_layer"])

    path = albef_checkpoint(tmp_path / "swapped.pth", recorded_in_momentum=True)
    momentum = weights.load_albef_text(path, tower="text_encoder_m", **heads).to(kind)
    with torch.no_grad():
        near(momentum(ids, attention_mask=real).last_hidden_state, io["text_out"], limit)


# ---- files made here, in other sizes, against slow twins ----

def random_tensors(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}


def vit_file(dim, depth, patch, positions, seed):
    """A random ViT in timm's names, which PASS, DeiT, HAP and ALBEF share."""
    shapes = {"cls_token": (1, 1, dim), "pos_embed": (1, positions, dim), "norm.weight": (dim,), "norm.bias": (dim,),
              "patch_embed.proj.weight": (dim, 3, patch, patch), "patch_embed.proj.bias": (dim,)}
    for i in range(depth):
        for name, shape in {"norm1": (dim,), "norm2": (dim,), "attn.qkv": (3 * dim, dim), "attn.proj": (dim, dim),
                            "mlp.fc1": (4 * dim, dim), "mlp.fc2": (dim, 4 * dim)}.items():
            shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
    return random_tensors(shapes, seed)


def bert_file(width, layers, fusion, words, image_width, seed, inner=None):
    """A random BERT in ALBEF's names, cross-attention from layer `fusion` on."""
    inner = inner or 4 * width
    norm = "embeddings.LayerNorm"
    shapes = {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for name, rows in (("word", words), ("position", 80), ("token_type", 2)):
        shapes[f"embeddings.{name}_embeddings.weight"] = (rows, width)
    for i in range(layers):
        parts = {"intermediate.dense": (inner, width), "output.dense": (width, inner), "output.LayerNorm": (width,)}
        for block in ("attention", "crossattention")[:1 + (i >= fusion)]:
            source = image_width if block == "crossattention" else width
            parts |= {f"{block}.self.query": (width, width), f"{block}.self.key": (width, source),
                      f"{block}.self.value": (width, source), f"{block}.output.dense": (width, width),
                      f"{block}.output.LayerNorm": (width,)}
        for name, shape in parts.items():
            shapes |= {f"encoder.layer.{i}.{name}.weight": shape, f"encoder.layer.{i}.{name}.bias": shape[:1]}
    return random_tensors(shapes, seed)


def albef_file(dim, depth, patch, grid, width, layers, fusion, words, seed, inner=None):
    """ALBEF's layout with everything that it holds beside the online towers."""
    state = {}
    for twin, offset in (("", 0), ("_m", 1000)):
        vit = vit_file(dim, depth, patch, 1 + grid * grid, seed + offset)
        bert = bert_file(width, layers, fusion, words, dim, seed + offset + 1, inner)
        state |= under(f"visual_encoder{twin}.", vit) | under(f"text_encoder{twin}.bert.", bert)
        state |= random_tensors({f"vision_proj{twin}.weight": (8, dim), f"text_proj{twin}.weight": (8, width),
                                 f"text_encoder{twin}.cls.predictions.bias": (words,)}, seed)
        state[f"text_encoder{twin}.bert.embeddings.position_ids"] = torch.arange(80)[None]
    state |= random_tensors({"itm_head.weight": (2, width), "itm_head.bias": (2,), "temp": (), "image_queue": (8, 4),
                             "text_queue": (8, 4)}, seed + 2)
    return {"model": state | {"queue_ptr": torch.zeros(1, dtype=torch.long)}, "epoch": 29}


def twin_vit(tensors, image, before, positions, heads, stride):
    """The published ViT line by line, in float64. before (1 s d), positions (1 s+n d) -> (b s+n d)."""
    p = {name: tensor.double() for name, tensor in tensors.items()}

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return scaled * p[f"{name}.weight"] + p[f"{name}.bias"]

    def linear(x, name):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    patches = F.conv2d(image.double(), p["patch_embed.proj.weight"], p["patch_embed.proj.bias"], stride)
    patches = rearrange(patches, "b d h w -> b (h w) d")
    x = torch.cat([before.double().expand(len(image), -1, -1), patches], 1) + positions
    depth = sum(name.endswith("qkv.weight") for name in p)
    for block in (f"blocks.{i}." for i in range(depth)):
        qkv = linear(norm(x, block + "norm1"), block + "attn.qkv")
        q, k, v = rearrange(qkv, "b n (three h c) -> three b h n c", three=3, h=heads)
        mixed = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
        x = x + linear(rearrange(mixed, "b h n c -> b n (h c)"), block + "attn.proj")
        y = linear(norm(x, block + "norm2"), block + "mlp.fc1")
        x = x + linear(y * (1 + torch.erf(y / 2 ** 0.5)) / 2, block + "mlp.fc2")
    return norm(x, "norm")


def resampling(old, new, cubic):
    """(new old) float64: half-pixel centres, no antialiasing, borders repeated; the cubic kernel has a = -0.75."""
    matrix, a = torch.zeros(new, old, dtype=torch.float64), -0.75
    for i in range(new):
        centre = (i + 0.5) * old / new - 0.5
        for j in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            t = abs(centre - j)
            inner, outer = (a + 2) * t**3 - (a + 3) * t**2 + 1, a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
            weight = (inner if t <= 1 else outer if t < 2 else 0) if cubic else max(0, 1 - t)
            matrix[i, min(max(j, 0), old - 1)] += weight
    return matrix


def twin_resize(grid, source, target, cubic):
    table = rearrange(grid.double(), "1 (h w) d -> d h w", h=source[0])
    table = resampling(source[0], target[0], cubic) @ table @ resampling(source[1], target[1], cubic).T
    return rearrange(table, "d h w -> 1 (h w) d")


LAYOUTS = ("pass", "pass-teacher", "deit", "deit-distilled", "hap", "albef")
SHAPES = [  # dim, depth, heads, patch, side of the published grid, image, stride
    (24, 2, 3, 8, 4, (64, 32), 8), (16, 3, 2, 16, 3, (64, 48), 12), (32, 1, 4, 4, 6, (32, 16), 4),
    (24, 2, 2, 16, 8, (48, 48), 16)]


@pytest.mark.parametrize("seed,shape", list(enumerate(SHAPES)))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_published_tokens(layout, seed, shape, tmp_path):
    dim, depth, heads, patch, side, size, stride = shape
    source = (side, side) if layout.startswith(("deit", "albef")) else (2 * side, side)
    slots = {"pass": 0, "pass-teacher": 0, "deit-distilled": 2}.get(layout, 1)
    tensors = vit_file(dim, depth, patch, slots + source[0] * source[1], seed)
    before, places = tensors["cls_token"], tensors["pos_embed"][:, :1]
    if layout.startswith("pass"):
        extra = random_tensors({name: (1, 1, dim) for i in (1, 2, 3) for name in (f"part_token{i}", f"part{i}_pos")}
                               | {"cls_pos": (1, 1, dim)}, seed + 50)
        before = torch.cat([before, *(extra[f"part_token{i}"] for i in (1, 2, 3))], 1)
        places = torch.cat([extra["cls_pos"], *(extra[f"part{i}_pos"] for i in (1, 2, 3))], 1)
        tensors |= extra
    other = vit_file(dim, depth, patch, slots + source[0] * source[1], seed + 99)  # weights that must not be taken
    head = {"head.weight": torch.ones(5, dim), "head.bias": torch.ones(5)}
    state = {
        "pass": tensors,
        "pass-teacher": {"teacher": under("module.backbone.", tensors) | under("module.", head), "epoch": 3,
                         "student": under("module.backbone.", other), "args": argparse.Namespace(arch="vit_base")},
        "deit": {"model": tensors | head},
        "deit-distilled": {"model": tensors | head | {"dist_token": torch.ones(1, 1, dim),
                                                      "head_dist.weight": torch.ones(5, dim)}},
        "hap": {"model": {("mae." if i % 2 else "") + name: tensor for i, (name, tensor) in enumerate(tensors.items())}
                | under("decoder_blocks.0.", other) | {"mask_token": torch.ones(1, 1, dim)}},
        "albef": {"model": under("visual_encoder.", tensors) | under("visual_encoder_m.", other)
                  | {"text_encoder.bert.embeddings.LayerNorm.bias": torch.ones(3)}},
    }[layout]
    torch.save(state, tmp_path / "file.pth")
    vit = ViT(size, patch, stride, dim, depth, heads, instr_dim=10)
    report = weights.load_vit(vit, tmp_path / "file.pth")
    patches = twin_resize(tensors["pos_embed"][:, slots:], source, vit.grid, layout == "albef")
    positions = torch.cat([places, patches], 1)
    image = torch.randn(2, 3, *size)
    expected = twin_vit(tensors, image, before, positions, heads, stride)
    with torch.no_grad():  # gates at 0 edit nothing
        near(vit.double().eval()(image.double(), torch.randn(2, 4, 10).double()), expected, 1e-6)
    kind = {"pass": "PASS", "deit": "DeiT", "hap": "HAP", "albe": "ALBEF"}[layout[:4]]
    assert report.startswith(f"{kind} in ") and "not known: none, missing none" in report
    assert (f"{len(tensors)} tensors loaded" in report) and "\n" not in report


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_vit_of_the_hub_gives_the_tokens_of_transformers(file, tmp_path):
    from safetensors.torch import load_file
    from transformers import ViTConfig, ViTForImageClassification
    torch.manual_seed(3)
    theirs = ViTForImageClassification(ViTConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
                                                 image_size=48, intermediate_size=96, layer_norm_eps=1e-6)).eval()
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.2)
    theirs.save_pretrained(tmp_path)
    if file == "pytorch_model.bin":
        torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / file)
    vit, image = ViT((48, 48), 16, None, 24, 2, 3).eval(), torch.randn(2, 3, 48, 48)
    report = weights.load_vit(vit, tmp_path / file)
    with torch.no_grad():
        near(vit(image), theirs.vit(image).last_hidden_state, 2e-5)
    assert "3x3 kept" in report and "classifier 2" in report and "not known: none" in report


def test_the_distilled_deit_of_the_hub_is_known_too(tmp_path):
    from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher
    config = DeiTConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=96, image_size=48)
    DeiTForImageClassificationWithTeacher(config).save_pretrained(tmp_path)
    report = weights.load_vit(ViT((48, 48), 16, None, 24, 1, 3), tmp_path / "model.safetensors")
    assert "DeiT" in report and "3x3 kept" in report and "dist_token 1" in report and "not known: none" in report


def twin_bert(tensors, x, mask, heads, layers, image=None, image_mask=None):
    """BERT's layers line by line, in float64; those with cross-attention read `image` (b m d)."""
    p = {name: tensor.double() for name, tensor in tensors.items()}

    def linear(x, name):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def attend(x, source, seen, name):
        q, k, v = (rearrange(linear(y, f"{name}.self.{part}"), "b n (h c) -> b h n c", h=heads)
                   for part, y in (("query", x), ("key", source), ("value", source)))
        scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~seen[:, None, None], -torch.inf)
        mixed = rearrange(scores.softmax(-1) @ v, "b h n c -> b n (h c)")
        return added(x, linear(mixed, f"{name}.output.dense"), f"{name}.output")

    def added(x, y, name):
        return F.layer_norm(x + y, x.shape[-1:], p[f"{name}.LayerNorm.weight"], p[f"{name}.LayerNorm.bias"], 1e-12)

    for layer in (f"encoder.layer.{i}." for i in layers):
        x = attend(x, x, mask, layer + "attention")
        if image is not None:
            x = attend(x, image, image_mask, layer + "crossattention")
        y = linear(x, layer + "intermediate.dense")
        x = added(x, linear(y * (1 + torch.erf(y / 2 ** 0.5)) / 2, layer + "output.dense"), layer + "output")
    return x


@pytest.mark.parametrize("seed,width,heads,layers,fusion,inner,dim",
                         [(0, 64, None, 5, 3, None, 24), (1, 24, 3, 3, 1, 40, 24), (2, 128, None, 2, 1, None, 16)])
def test_albefs_text_and_multimodal_layers_equal_loops(seed, width, heads, layers, fusion, inner, dim, tmp_path):
    state = albef_file(dim, 1, 8, 2, width, layers, fusion, 50, seed, inner)
    torch.save(state, tmp_path / "ALBEF.pth")
    config = {"num_attention_heads": heads} if heads else {}
    text, cross = (load(tmp_path / "ALBEF.pth", **config).double()
                   for load in (weights.load_albef_text, weights.load_albef_cross))
    tensors = {name.removeprefix("text_encoder.bert."): tensor for name, tensor in state["model"].items()
               if name.startswith("text_encoder.bert.")}
    ids, image = torch.randint(5, 50, (3, 7)), torch.randn(3, 4, dim, dtype=torch.float64)
    mask, image_mask = torch.arange(7) < torch.tensor([[7], [4], [1]]), torch.arange(4) < torch.tensor([[4], [2], [4]])
    place = tensors["embeddings.position_embeddings.weight"][:7] + tensors["embeddings.token_type_embeddings.weight"][0]
    x = F.layer_norm((tensors["embeddings.word_embeddings.weight"][ids] + place).double(), (width,),
                     *(tensors[f"embeddings.LayerNorm.{part}"].double() for part in ("weight", "bias")), 1e-12)
    words = twin_bert(tensors, x, mask, heads or width // 64, range(fusion))
    seen = twin_bert(tensors, words, mask, heads or width // 64, range(fusion, layers), image, image_mask)
    with torch.no_grad():
        near(text(ids, attention_mask=mask.long()).last_hidden_state, words, 1e-6)
        near(cross(words, mask, image, image_mask), seen, 1e-6)
        head = (state["model"][f"itm_head.{part}"].double() for part in ("weight", "bias"))
        near(cross.head(seen[:, 0]), F.linear(seen[:, 0], *head), 1e-9)


# ---- the model and the command line ----

TOY = dict(dim=SIZES["tiny"]["dim"], depth=SIZES["tiny"]["depth"], patch=SIZES["tiny"]["patch"])
HEADS = SIZES["tiny"]["heads"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Published layouts at the size of `tiny`: {name: path}."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    albef = albef_file(**TOY, grid=8, width=64, layers=4, fusion=2, words=30522, seed=5)
    torch.save(lively(albef), folder / "ALBEF.pth")
    torch.save({"model": vit_file(**TOY, positions=1 + 8 * 8, seed=6)}, folder / "deit.pth")
    extra = {"cls_pos": (1, 1, TOY["dim"]), "part_token1": (1, 1, TOY["dim"]), "part1_pos": (1, 1, TOY["dim"])}
    torch.save(vit_file(**TOY, positions=8 * 4, seed=7) | random_tensors(extra, 8), folder / "pass.pth")
    return {path.stem: path for path in folder.iterdir()}


def lively(state):
    """Norms as in a trained network, so that it learns: scale 1, shift 0."""
    for name, tensor in state["model"].items():
        if "norm" in name.lower() and name.endswith(("weight", "bias")):
            tensor.fill_(float(name.endswith("weight")))
        elif "encoder" in name:
            tensor.data = tensor * 0.5 if tensor.is_floating_point() else tensor
    return state


def started(**flags):
    flags.setdefault("vit_weights", None)
    return weights.build(train.Config(size="tiny", **flags), {"market": 5})


def test_with_gates_at_0_an_instruction_changes_nothing_of_the_published_vit(files):
    for name in ("deit", "ALBEF", "pass"):
        model, [report] = started(vit_weights=str(files[name]))
        state = weights.read_published(files[name])
        tensors = {key.removeprefix("visual_encoder."): tensor for key, tensor in state.items()
                   if "encoder_m" not in key and "text" not in key}
        before, slots = tensors["cls_token"], 1
        places = tensors["pos_embed"][:, :1]
        if name == "pass":
            before, slots = torch.cat([before, tensors["part_token1"]], 1), 0
            places = torch.cat([tensors["cls_pos"], tensors["part1_pos"]], 1)
        source = (8, 4) if name == "pass" else (8, 8)
        patches = twin_resize(tensors["pos_embed"][:, slots:], source, (8, 4), name == "ALBEF")
        positions = torch.cat([places, patches], 1)
        images = torch.randn(2, 3, 64, 32)
        with torch.no_grad():
            tokens = model.eval().edit(images, model.instruct(["ignore clothes", "a woman in red boots"]))
        near(tokens.double(), twin_vit(tensors, images, before, positions, HEADS, TOY["patch"]), 1e-4)
        assert report.startswith("E_e: ")


def test_albef_is_text_tower_picture_encoder_and_matching(files):
    model, report = started(albef=str(files["ALBEF"]))
    model.eval()
    text, cross = weights.load_albef_text(files["ALBEF"]), weights.load_albef_cross(files["ALBEF"])
    picture = ViT((32, 32), 8, None, TOY["dim"], TOY["depth"], HEADS).eval()
    weights.load_vit(picture, files["ALBEF"])
    pictures, images, said = torch.randn(2, 3, 32, 32), torch.randn(3, 3, 64, 32), ["a man in a red coat"]
    with torch.no_grad():
        assert torch.equal(model.instruct(pictures).pooled, picture(pictures)[:, 0])
        batch = model.encoder.text.tokenizer(said, return_tensors="pt")
        words = text(**batch).last_hidden_state
        instr = model.instruct(said)
        near(instr.words, words, 2e-3)  # a fixed tower's words are remembered in half precision
        assert torch.equal(instr.pooled, instr.words[:, 0])
        tokens = model.edit(images)
        words, seen = instr.words.expand(3, -1, -1), torch.ones(3, words.shape[1], dtype=torch.bool)
        near(model.match(tokens, instr), cross.head(cross(words, seen, tokens)[:, 0]), 1e-6)
    assert [line.split(":")[0] for line in report] == ["text, and E_f of t2i", "pictures"]
    learning = {name.split(".")[0] for name, p in model.encoder.named_parameters() if p.requires_grad}
    assert learning == {"from_text", "from_picture"} and all(p.requires_grad for p in model.cross.parameters())


def test_checkpointing_gives_the_same_gradients_from_less_memory():
    kept, gradients = {}, {}
    for checkpointing in (False, True):
        torch.manual_seed(0)
        vit = ViT((64, 32), 8, None, 32, 4, 4, instr_dim=8)
        vit.checkpointing, numbers = checkpointing, []
        for block in vit.blocks:
            torch.nn.init.ones_(block.attn.gate)
        with torch.autograd.graph.saved_tensors_hooks(lambda x: numbers.append(x.numel()) or x, lambda x: x):
            out = vit(torch.randn(2, 3, 64, 32), torch.randn(2, 5, 8))
        out.square().sum().backward()
        kept[checkpointing], gradients[checkpointing] = sum(numbers), [p.grad for p in vit.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(*gradients.values()))
    assert kept[True] < kept[False] / 5


def eq8(model, folder):
    """Eq. 8's terms of three fixed training batches, in evaluation mode."""
    datasets = open_all(folder, "t2i")
    batches = data.Batches(datasets, model.size, model.picture_size, 6, 2, seed=9)
    config, total = train.Config(), {}
    torch.manual_seed(0)
    with torch.no_grad():
        for batch in (batches[step] for step in range(3)):
            terms = train.loss_terms(model, normalise(batch.images), batch.instr, batch, config,
                                     torch.autocast("cpu", enabled=False))
            total = {name: total.get(name, 0) + term.item() / 3 for name, term in terms.items()}
    return total


def test_t2i_starts_from_an_albef_file_and_improves_on_it(files, drawn, command):
    flags = ("--data", drawn, "--task", "t2i", "--ids", 6, "--images", 2, "--vit-weights", files["ALBEF"],
             "--albef", files["ALBEF"])
    code, out, err = command(train, *flags, "--steps", 1, "--lr", 0, "--name", "start")
    assert code == 0, err
    assert "E_e: ALBEF in" in out and "8x8 resized to 8x4 (bicubic)" in out and "missing none" in out
    assert command(train, *flags, "--steps", 100, "--lr", 1e-3, "--warmup", 10, "--name", "end")[0] == 0
    (start, _), (end, _) = (checkpoints.load_model(f"runs/{name}/last.pt") for name in ("start", "end"))
    fresh, _ = started(vit_weights=str(files["ALBEF"]), albef=str(files["ALBEF"]))
    for name, tensor in fresh.editor.state_dict().items():
        assert "instr" in name or torch.equal(tensor, start.editor.state_dict()[name])
    for frozen in ("text", "picture"):
        for a, b in zip(getattr(fresh.encoder, frozen).parameters(), getattr(end.encoder, frozen).parameters()):
            assert torch.equal(a, b)
    before, after = eq8(start, drawn), eq8(end, drawn)
    assert after["con"] < 0.9 * before["con"] and after["match"] < before["match"]
    assert after["con"] < math.log(12) < before["con"]  # of 12 sentences: better than a guess, which it was not


def test_a_checkpoint_needs_none_of_the_files_it_started_from(files, drawn, command, tmp_path, monkeypatch):
    for name in ("pass", "ALBEF"):
        (tmp_path / f"{name}.pth").write_bytes(files[name].read_bytes())
    flags = ("--data", drawn, "--task", "ctcc", "--steps", 4, "--vit-weights", "pass.pth", "--albef", "ALBEF.pth",
             "--train-text", *FAST)
    assert command(train, *flags, "--name", "whole")[0] == 0
    calls, augment = [], train.data.augment

    def interrupting(*args, **kwargs):  # Ctrl-C in the second step
        calls.append(len(calls))
        return (len(calls) == 2 and signal.raise_signal(signal.SIGINT)) or augment(*args, **kwargs)
    monkeypatch.setattr(train.data, "augment", interrupting)
    code, _, err = command(train, *flags, "--name", "half")
    assert code == 130 and "stopped at step 2; go on with: python train.py --resume runs/half/last.pt" in err
    for name in ("pass", "ALBEF"):
        (tmp_path / f"{name}.pth").unlink()
    assert command(train, "--resume", "runs/half/last.pt")[0] == 0
    a, b = (checkpoints.load_checkpoint(f"runs/{name}/last.pt") for name in ("whole", "half"))
    assert a["step"] == b["step"] == 4 and a["published"] == b["published"] and a["config"]["vit_weights"] == "pass.pth"
    assert all(torch.equal(a["model"][key], b["model"][key]) for key in a["model"])
    row = read_log("runs/whole")[-1]["rows"][0]
    code, out, err = command(evaluate, "--checkpoint", "runs/whole/last.pt")
    assert code == 0 and f"{100 * row['mAP']:.1f}" in out, err
    model, _ = checkpoints.load_model("runs/whole/last.pt")
    assert model.editor.prefix.shape[1] == 2  # CLS and the file's part token


@pytest.fixture
def bert_folder(tmp_path):
    """A small BERT with a vocabulary of its own, as --text-model takes it."""
    from transformers import BertConfig, BertModel
    torch.manual_seed(1)
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] do not change clothes keep original a man in red".split()
    bert = BertModel(BertConfig(vocab_size=len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
                                intermediate_size=48), add_pooling_layer=False)
    bert.save_pretrained(tmp_path / "bert")
    (tmp_path / "bert/vocab.txt").write_text("\n".join(words))
    return tmp_path / "bert"


@pytest.mark.parametrize("learns", [False, True])
def test_any_bert_folder_reads_the_sentences_and_is_kept(learns, bert_folder, drawn, command):
    before, _ = started(text_model=str(bert_folder))
    code, out, err = command(train, "--data", drawn, "--task", "trad", "--steps", 3, "--text-model", "bert",
                             "--name", "trad", *FAST, "--train-text" if learns else "--no-train-text")
    assert code == 0 and "text: BERT in bert: 21 tensors loaded, missing none" in out, err
    shutil.rmtree(bert_folder)
    after, _ = checkpoints.load_model("runs/trad/last.pt")
    said = ["do not change clothes", "a man in red"]
    assert after.encoder.text.tokenizer(said)["input_ids"] == [[2, 5, 6, 7, 8, 3], [2, 11, 12, 13, 14, 3]]
    same = all(torch.equal(a, b) for a, b in zip(before.encoder.text.parameters(), after.encoder.text.parameters()))
    assert same is not learns
    assert command(evaluate, "--checkpoint", "runs/trad/last.pt")[0] == 0


@pytest.mark.parametrize("learns", [False, True])
def test_the_embedded_tower_is_in_the_checkpoint_only_if_it_learns(learns, drawn, command):
    flag = ["--train-text"] if learns else []
    assert command(train, "--data", drawn, "--task", "trad", "--steps", 1, "--name", "trad", *FAST, *flag)[0] == 0
    state = checkpoints.load_checkpoint("runs/trad/last.pt")
    assert any(key.startswith("encoder.text.") for key in state["model"]) is learns
    model, _ = checkpoints.load_model("runs/trad/last.pt")
    if learns:
        untouched = started()[0].encoder.text
        assert not torch.equal(model.encoder.text.bert.encoder.layer[0].output.dense.weight,
                               untouched.bert.encoder.layer[0].output.dense.weight)
        del state["model"]["encoder.text.bert.embeddings.LayerNorm.bias"]
        with pytest.raises(UserError, match="missing .*LayerNorm.bias"):  # and then has to be there
            checkpoints.restore_model(model, state["model"], "last.pt")


# ---- mistakes ----

def broken(files, tmp_path, how):
    """A file of weights with a fault, at tmp_path/x.pth."""
    path, deit = tmp_path / "x.pth", vit_file(**TOY, positions=65, seed=0)
    if how in ("html", "truncated"):
        cut_off = files["deit"].read_bytes()[:50000]
        path.write_bytes(b"<!DOCTYPE html><html>Quota exceeded</html>" if how == "html" else cut_off)
        return path
    torch.save({
        "payload": {"model": {"cls_token": Payload()}},
        "resnet": {"conv1.weight": torch.ones(64, 3, 7, 7), "layer1.0.bn1.weight": torch.ones(64)},
        "wide": {"model": vit_file(48, TOY["depth"], 8, 65, 0)},
        "deep": {"model": vit_file(TOY["dim"], 4, 8, 65, 0)},
        "patch": {"model": vit_file(TOY["dim"], TOY["depth"], 16, 65, 0)},
        "small": {"model": vit_file(384, 12, 16, 197, 0)},
        "hole": {"model": {name: tensor for name, tensor in deit.items() if name != "blocks.1.mlp.fc1.bias"}},
        "grid": {"model": deit | {"pos_embed": torch.ones(1, 61, TOY["dim"])}},
        "scaled": {"model": deit | {"blocks.1.ls1.gamma": torch.ones(TOY["dim"])}},
        "mlp": {"model": deit | {"blocks.0.mlp.fc1.weight": torch.ones(9, TOY["dim"])}},
        "empty": {"epoch": 3},
    }[how], path)
    return path


@pytest.mark.parametrize("how,words", [
    ("html", "web page"), ("truncated", "cut off"), ("payload", "refused"), ("resnet", "conv1.weight"),
    ("wide", "width 48"), ("deep", "4 layers"), ("patch", "patches of 16"), ("small", "--size small"),
    ("hole", "blocks.1.mlp.0.bias"),
    ("scaled", "blocks.1.ls1.gamma"), ("grid", "60 positions"), ("mlp", "another shape"), ("empty", "no weights")])
def test_a_wrong_file_of_weights_is_one_line(how, words, files, drawn, command, tmp_path):
    broken(files, tmp_path, how)
    flags = ("--data", drawn, "--task", "trad", "--steps", 1, *FAST)
    one_line(command(train, *flags, "--vit-weights", "x.pth"), "x.pth", words)
    assert not (tmp_path / "executed").exists() and not (tmp_path / "runs").exists()


def test_a_wrong_albef_is_one_line(files, drawn, command, tmp_path):
    flags = ("--data", drawn, "--task", "trad", "--steps", 1, *FAST)
    one_line(command(train, *flags, "--albef", files["deit"]), "deit.pth", "text_encoder")
    one_line(command(train, *flags, "--albef", "nowhere.pth"), "nowhere.pth", "no such file")
    one_line(command(train, *flags, "--albef", files["ALBEF"], "--text-model", "bert"), "--albef", "--text-model")
    for change, words in (({"words": 40}, "40 words"), ({"dim": 48}, "width 48"), ({"layers": 2}, "attends to the im")):
        wrong = {**TOY, "grid": 8, "width": 64, "layers": 3, "fusion": 2, "words": 30522, "seed": 5, **change}
        torch.save(albef_file(**wrong), tmp_path / "ALBEF.pth")
        one_line(command(train, *flags, "--albef", "ALBEF.pth"), "ALBEF.pth", words)


def test_a_wrong_text_model_is_one_line(bert_folder, drawn, command, tmp_path):
    flags = ("--data", drawn, "--task", "trad", "--steps", 1, *FAST, "--text-model", "bert")
    torch.save({"payload": Payload()}, bert_folder / "pytorch_model.bin")
    (bert_folder / "model.safetensors").rename(tmp_path / "good")
    one_line(command(train, *flags), "--text-model bert")
    assert not (tmp_path / "executed").exists()
    (bert_folder / "model.safetensors").write_bytes((tmp_path / "good").read_bytes()[:300])
    one_line(command(train, *flags), "--text-model bert", "model.safetensors")
    config = json.loads((bert_folder / "config.json").read_text())
    (bert_folder / "config.json").write_text(json.dumps({**config, "model_type": "roberta"}))
    one_line(command(train, *flags), "a roberta model")
    (bert_folder / "vocab.txt").unlink()
    one_line(command(train, *flags), "no vocabulary")


def test_without_the_hub_the_line_says_which_file_to_place_where(drawn, command, monkeypatch):
    import huggingface_hub
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # as the variable of that name sets it
    flags = ("--data", drawn, "--task", "trad", "--steps", 1, *FAST)
    one_line(command(train, *flags, "--vit-weights", "hub:facebook/deit-base-patch16-224"), "model.safetensors",
             "huggingface.co/facebook/deit-base-patch16-224", "--vit-weights weights/")
    one_line(command(train, *flags, "--text-model", "bert-base-uncased"), "--text-model bert-base-uncased",
             "config.json", "vocab.txt", "model.safetensors")


def test_the_flags_of_a_training_program_are_read_and_nothing_else_is(tmp_path):
    tensors = vit_file(16, 1, 8, 32, 0)
    tensors |= random_tensors({name: (1, 1, 16) for name in ("cls_pos", "part_token1", "part1_pos")}, 1)
    for args, loads in ((argparse.Namespace(lr=0.1, out_dim=65536), True), (argparse.Namespace(lr=Payload()), False)):
        torch.save({"teacher": under("backbone.", tensors), "args": args}, tmp_path / "pass.pth")
        vit = ViT((64, 32), 8, None, 16, 1, 2)
        if loads:
            assert "PASS" in weights.load_vit(vit, tmp_path / "pass.pth")
        else:
            with pytest.raises(UserError, match=r"refused.*torch.save\(torch.load\("):
                weights.load_vit(vit, tmp_path / "pass.pth")
