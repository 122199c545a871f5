"""Published weights give the very features of the published programs, whatever the file is wrapped in; a checkpoint needs
none of these files again; a wrong file is one line."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

import evaluate
import train
import weights
from cli import UserError
from model import SIZES, Block, InstructReID, ViT
from tests.golden import golden
from tests.test_train import FAST, ROOT, Payload, command, drawn, one_line  # noqa: F401, two of them are fixtures


def near(ours, theirs, limit):
    theirs = torch.as_tensor(theirs)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < limit


# ---- reference files ----

def check_vit(vit, path, image, outputs, positions, tower="visual_encoder"):
    """outputs: (float32, float64) tokens; positions: of the patches, after resizing."""
    report = weights.load_vit(vit, path, tower)
    near(vit.pos[:, -positions.shape[1]:], positions, 1e-6)
    vit.eval()
    with torch.no_grad():
        near(vit(torch.tensor(image)), outputs[0], 2e-5)
        near(vit.double()(torch.tensor(image).double()), outputs[1], 1e-6)
    return report


@pytest.mark.parametrize("file", ["checkpoint", "layout_flat", "layout_state_dict", "layout_teacher_module", "layout_teacher_plain"])
@pytest.mark.parametrize("part_tokens", [0, 3])
def test_pass_reference(file, part_tokens):
    io = golden("vit_pass/io.npz" if file == "checkpoint" else "vit_pass/layout_io.npz")
    dim, depth = (60, 3) if file == "checkpoint" else (12, 1)
    stride = int(io.get("stride", 16))
    vit = ViT(io["image"].shape[2:], 16, stride, dim, depth, int(io["num_heads"]), part_tokens)
    outputs = [np.concatenate([*(io[f"out{bits}_{token}"][:, None] for token in ("cls", "part1", "part2", "part3")),
                               io[f"out{bits}_patch"]], 1) for bits in (32, 64)]
    report = check_vit(vit, golden(f"vit_pass/{file}.pth"), io["image"], outputs, io["pos_embed_resized"])
    assert vit.grid == tuple(io["grid_hw"]) and "PASS" in report and "16x8 resized" in report
    assert "not known: none" in report and ("head" in report) == (file != "layout_flat" and file != "layout_state_dict")


@pytest.mark.parametrize("kind,dim,depth", [("plain", 48, 2), ("distilled", 24, 1)])
def test_deit_reference(kind, dim, depth):
    io = golden(f"deit/io_{kind}.npz")
    vit = ViT(io["image"].shape[2:], 16, int(io["stride"]), dim, depth, int(io["num_heads"]))
    report = check_vit(vit, golden(f"deit/checkpoint_{kind}.pth"), io["image"], (io["out32"], io["out64"]), io["pos_embed_resized"])
    assert vit.grid == tuple(io["grid_hw"]) and "DeiT" in report and "14x14 resized" in report and "not known: none" in report


@pytest.mark.parametrize("tower", ["visual_encoder", "visual_encoder_m"])
def test_albef_picture_reference(tower):
    io = golden("vit_albef/io.npz")
    vit = ViT(io["image"].shape[2:], 16, None, 36, 2, int(io["num_heads"]))
    report = check_vit(vit, golden("albef/checkpoint.pth"), io["image"], (io[f"{tower}_out32"], io[f"{tower}_out64"]),
                       io[f"{tower}_pos_embed_resized"], tower)
    assert "ALBEF" in report and "(bicubic)" in report and "not known: none" in report


@pytest.mark.parametrize("file,mode,cls", [("vit_pass", "bilinear", 0), ("deit", "bilinear", 1), ("vit_albef", "bicubic", 1)])
def test_resized_positions_reference(file, mode, cls):
    tables = {name: torch.tensor(table) for name, table in golden(f"{file}/resize.npz").items()}
    source = tables["source"][:, cls:]
    for name, table in tables.items():
        if name.startswith("resized_"):
            target = [int(side) for side in name.removeprefix("resized_").split("x")]
            near(weights.resize_grid(source, weights._grid(source.shape[1], file), target, mode), table[:, cls:], 1e-6)


@pytest.mark.parametrize("bits,limit", [(32, 2e-5), (64, 1e-6)])
def test_albef_text_reference(bits, limit):
    io = golden("bert_albef/io.npz")
    path, heads = golden("albef/checkpoint.pth"), {"num_attention_heads": int(io["num_heads"])}
    ids, real = torch.tensor(io["input_ids"]), torch.tensor(io["attention_mask"])
    kind, image = {32: torch.float32, 64: torch.float64}[bits], torch.tensor(io["encoder_hidden_states"])
    text = weights.load_albef_text(path, **heads).to(kind)
    momentum = weights.load_albef_text(path, tower="text_encoder_m", **heads).to(kind)
    cross = weights.load_albef_cross(path, **heads).to(kind)
    with torch.no_grad():
        words = text(ids, attention_mask=real).last_hidden_state
        near(words, io[f"text_encoder_text_out{bits}"], limit)
        near(text(ids).last_hidden_state, io[f"text_encoder_text_nomask_out{bits}"], limit)
        near(momentum(ids, attention_mask=real).last_hidden_state, io[f"text_encoder_m_text_out{bits}"], limit)
        for seen in ("full", "partial"):
            out = cross(words, real.bool(), image.to(kind), torch.tensor(io[f"encoder_mask_{seen}"]).bool())
            near(out, io[f"text_encoder_fusion_{seen}_out{bits}"], limit)
    assert text.pooler is None and len(text.encoder.layer) == int(io["fusion_layer"])
    assert len(cross.layers.layer) == int(io["num_layers"]) - int(io["fusion_layer"])
