"""Eq. 1-4 against reference numbers; what the model promises: zero init, masks, shapes."""

import pytest
import torch
from torch import nn

from model import PARTS, SIZES, EditingAttention, InstructReID, ViT
from tests.explain import assert_close
from tests.reference import attention_mistakes, golden

TINY = dict(size=(32, 16), patch=8, dim=32, depth=2, heads=4, stem="patch",
            picture_size=(16, 16), picture_depth=1, fusion_depth=1)


UNEDITED = [part for part in PARTS if part != "editing"]


class Letters(nn.Module):
    """A text tower for tests: a token per word, drawn from the word's letters."""

    width, trainable, pooling = 12, False, "mean"

    def forward(self, sentences):
        words = [sentence.split() for sentence in sentences]
        tokens = torch.zeros(len(words), max(map(len, words)), self.width)
        for i, row in enumerate(words):
            for j, word in enumerate(row):
                generator = torch.Generator().manual_seed(sum(map(ord, word)))
                tokens[i, j] = torch.randn(self.width, generator=generator)
        lengths = torch.tensor([[len(row)] for row in words])
        mask = torch.arange(tokens.shape[1])[None] < lengths
        return tokens, mask, tokens.sum(1) / lengths


def open_gates(module):
    """Gates of another value each, wherever there are any."""
    for name, p in module.named_parameters():
        if name.endswith("gate"):
            p.data = torch.linspace(0.5, 0.9, p.numel()).view_as(p)
    return module


def tiny_model(gates=True, **kwargs):
    torch.manual_seed(0)
    model = InstructReID(TINY, {"market": 5}, text=Letters(), **kwargs).eval()
    return open_gates(model) if gates else model


# ---- Eq. 1-4 ----

@pytest.mark.parametrize("gate", ["zero", "scalar", "perhead"])
@pytest.mark.parametrize("mask", ["mask", "nomask"])
def test_editing_attention_reproduces_the_equations(gate, mask):
    arrays = golden("gated_attention/paper_equation.npz")
    ref = {key: torch.tensor(value) for key, value in arrays.items()}
    attn = EditingAttention(24, int(ref["num_heads"]), 18).double()
    names = {"q": "q", "k": "k", "v": "v", "k_instr": "k_ins", "v_instr": "v_ins", "out": "o"}
    for ours, theirs in names.items():
        linear = getattr(attn, ours)
        linear.weight.data = ref[f"w_{theirs}"]
        linear.bias.data = ref[f"b_{theirs}"]
    attn.gate.data = ref[f"gate_{gate}"].expand(attn.heads).clone()

    x = ref["x"]
    instr = ref["instruction"]
    instr_mask = ref["instruction_mask"].bool() if mask == "mask" else None
    mistakes = attention_mistakes(attn, x, instr, instr_mask)
    expected = ref[f"out_separate_{gate}_head_{mask}"]
    assert_close(attn(x, instr, instr_mask), expected, mistakes, 1e-10, "Eq. 2-4")
    if gate == "perhead":
        expected = ref[f"attn_separate_perhead_head_{mask}"]
        assert_close(attn.maps(x, instr, instr_mask), expected, {}, 1e-10, "M of Eq. 2")


def test_editing_attention_reproduces_the_released_block():
    """In the released code one packed projection serves image and instruction, and the gate is
    squashed, which the paper's is not."""
    arrays = golden("gated_attention/released_block.npz")
    ref = {key: torch.tensor(value).double() for key, value in arrays.items()}
    attn = EditingAttention(24, int(ref["num_heads"]), 24).double()
    packed = zip(ref["qkv_weight"].chunk(3), ref["qkv_bias"].chunk(3))
    packed = [*packed, (ref["proj_weight"], ref["proj_bias"])]
    for names, (weight, bias) in zip(("q", "k k_instr", "v v_instr", "out"), packed):
        for name in names.split():
            getattr(attn, name).load_state_dict({"weight": weight, "bias": bias})
    x = ref["x"]
    instr = ref["instruction"]

    attn.gate.data = ref["gate_raw"].flatten().tanh()
    mistakes = attention_mistakes(attn, x, instr, None)
    assert_close(attn(x, instr), ref["out_exact_tanh_nonzero"], mistakes, 1e-10)
    attn.gate.data.zero_()
    assert_close(attn(x, instr), ref["out_released_zero"], {}, 2e-5, "all gates 0")
    assert_close(attn(x), ref["out_no_instruction"], {}, 2e-5, "without an instruction")


def test_gate_zero_is_the_plain_vit_exactly():
    torch.manual_seed(0)
    edited = ViT((32, 16), 8, None, 32, 3, 4, instr_dim=20)
    plain = ViT((32, 16), 8, None, 32, 3, 4)
    plain.load_state_dict(edited.state_dict(), strict=False)
    for number, block in enumerate(edited.blocks):
        gate = getattr(block.attn, "gate", torch.zeros(1))
        words = f"the gates of layer {number} start at {gate.tolist()}, not at 0"
        assert (gate == 0).all(), words
    images = torch.randn(2, 3, 32, 16)
    difference = (edited(images, torch.randn(2, 5, 20)) - plain(images)).abs().max().item()
    words = f"with all gates 0 the edited ViT is off the plain one by {difference:.2g}, not by 0"
    assert difference == 0, words


def test_every_layer_is_edited_and_every_editing_weight_learns():
    model = tiny_model()
    instr = model.instruct(["ignore clothes", "wear boots"])
    model(torch.randn(2, 3, 32, 16), instr).feat[:, 0].sum().backward()
    for number, block in enumerate(model.editor.blocks):
        for name in ("gate", "k_instr.weight", "v_instr.weight"):
            p = dict(block.attn.named_parameters()).get(name)
            learns = p is not None and p.grad is not None and p.grad.abs().sum() > 0
            assert learns, f"the {name} of layer {number} gets no gradient: is the layer edited?"


# ---- instructions and images ----

def test_padding_of_an_instruction_changes_nothing():
    model = tiny_model()
    images = torch.randn(2, 3, 32, 16)
    alone = model(images[:1], model.instruct(["ignore clothes"]))
    padded = model(images, model.instruct(["ignore clothes", "a man in a red coat and boots"]))
    words = "{} of an image changes by the padding of its instruction: the mask does not reach it"
    for name, a, b in (("F", alone.feat, padded.feat), ("F_out", alone.fused, padded.fused)):
        assert (a[0] - b[0]).abs().max() < 1e-5, words.format(name)


def test_one_shared_sentence_equals_the_same_sentence_repeated():
    model = tiny_model()
    images = torch.randn(3, 3, 32, 16)
    instr = model.instruct(["ignore clothes"] * 3)
    assert len(instr.tokens) == 1, "three equal sentences are encoded three times"
    repeated = instr.expand(3)
    what = "one sentence for all, against the same sentence for each"
    assert_close(model(images, instr).fused, model(images, repeated).fused, {}, 1e-5, what)


def test_the_instruction_matters_only_through_open_gates():
    images = torch.randn(2, 3, 32, 16)
    cases = (
        (tiny_model(), True, "open gates, but the instruction does not change the feature"),
        (tiny_model(gates=False), False, "all gates 0, but the instruction is read"),
        (tiny_model(parts=UNEDITED), False, "a model without editing, but the instruction is read"),
    )
    for model, matters, words in cases:
        a = model.embed(images, model.instruct(["ignore clothes"] * 2))
        b = model.embed(images, model.instruct(["keep the clothes"] * 2))
        assert ((a - b).abs().max() > 1e-3) == matters, words


def test_shapes_and_one_return_type_in_every_mode():
    model = tiny_model()
    images = torch.randn(2, 3, 32, 16)
    words, pictures = ["a b", "c"], torch.randn(2, 3, 16, 16)
    assert model.instruct() is None
    for parts in ((), (words,), (None, pictures), (words, pictures)):
        out = model(images, model.instruct(*parts))
        assert out.feat.shape == out.neck.shape == (2, 32)
        assert out.tokens.shape == (2, 1 + 4 * 2, 32)
        fused = [None if each is None else each.shape for each in (out.fused, out.fused_neck)]
        assert fused == ([(2, 64)] * 2 if parts else [None] * 2)
    assert model.match(model.edit(images), model.instruct(words)).shape == (2, 2)


# ---- patches and sizes ----

@pytest.mark.parametrize("size,patch,stride,grid", [
    ((32, 16), 8, None, (4, 2)), ((48, 16), 16, 8, (5, 1)), ((16, 32), 16, None, (1, 2))])
def test_patch_grids_that_are_not_square(size, patch, stride, grid):
    vit = ViT(size, patch, stride, 16, 1, 2, part_tokens=3)
    assert vit.grid == grid
    assert vit(torch.randn(1, 3, *size)).shape == (1, 4 + grid[0] * grid[1], 16)


def test_swapped_height_and_width_are_refused():
    with pytest.raises(ValueError, match="16x32.*32x16.*swapped"):
        ViT((32, 16), 8, None, 16, 1, 2)(torch.randn(1, 3, 16, 32))


def test_sizes_have_the_same_fields_and_base_is_the_papers_vit():
    assert all(shape.keys() == TINY.keys() for shape in SIZES.values())
    paper = dict(size=(256, 128), patch=16, dim=768, depth=12, heads=12)
    assert paper.items() <= SIZES["base"].items()
