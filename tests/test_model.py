"""Eq. 1-4 against reference numbers and a slow twin; the promises the model makes (zero init, masks, shapes)."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model import SIZES, AttentionModule, EditingAttention, InstructReID, ViT
from tests.by_hand import attention_mistakes
from tests.explain import assert_close
from tests.reference import golden

TINY = dict(size=(32, 16), patch=8, dim=32, depth=2, heads=4, stem="patch",
            picture_size=(16, 16), picture_depth=1, fusion_depth=1)


class Letters(nn.Module):
    """A text tower for tests: a token per word, drawn from the word's letters."""
    width, trainable = 12, False

    def forward(self, sentences):
        words = [sentence.split() for sentence in sentences]
        tokens = torch.zeros(len(words), max(map(len, words)), self.width)
        for i, row in enumerate(words):
            for j, word in enumerate(row):
                tokens[i, j] = torch.randn(self.width, generator=torch.Generator().manual_seed(sum(map(ord, word))))
        mask = torch.arange(tokens.shape[1])[None] < torch.tensor([len(row) for row in words])[:, None]
        return tokens, mask, tokens.sum(1) / mask.sum(1, keepdim=True)


def tiny_model(open_gates=True, **kwargs):
    torch.manual_seed(0)
    model = InstructReID(TINY, {"market": 5}, text=Letters(), **kwargs).eval()
    if open_gates and model.editing:
        for block in model.editor.blocks:
            nn.init.constant_(block.attn.gate, 0.7)
    return model


@pytest.mark.parametrize("gate", ["zero", "scalar", "perhead"])
@pytest.mark.parametrize("mask", ["mask", "nomask"])
def test_editing_attention_reproduces_the_equations(gate, mask):
    arrays = golden("gated_attention/paper_equation.npz")
    ref = {key: torch.tensor(value) for key, value in arrays.items()}
    attn = EditingAttention(24, int(ref["num_heads"]), 18).double()
    for module, name in ((attn.q, "q"), (attn.k, "k"), (attn.v, "v"),
                         (attn.k_instr, "k_ins"), (attn.v_instr, "v_ins"), (attn.out, "o")):
        module.weight.data = ref[f"w_{name}"]
        module.bias.data = ref[f"b_{name}"]
    attn.gate.data = ref[f"gate_{gate}"].expand(attn.heads).clone()

    x = ref["x"]
    instr = ref["instruction"]
    instr_mask = ref["instruction_mask"].bool() if mask == "mask" else None
    mistakes = attention_mistakes(attn, x, instr, instr_mask)
    expected = ref[f"out_separate_{gate}_head_{mask}"]
    assert_close(attn(x, instr, instr_mask), expected, mistakes, 1e-10, "Eq. 2-4")

    if gate == "perhead":
        expected = ref[f"attn_separate_perhead_head_{mask}"]
        image, words = expected.split([x.shape[1], instr.shape[1]], 3)
        gates = attn.gate.view(-1, 1, 1)
        mistakes = {
            "the gate is not applied to its right half": torch.cat([image, words / gates], 3),
            "the gate goes through tanh, Eq. 2 takes it as it stands":
                torch.cat([image, words / gates * gates.tanh()], 3),
            "its halves are exchanged": torch.cat([words, image], 3),
        }
        assert_close(attn.maps(x, instr, instr_mask), expected, mistakes, 1e-10, "M of Eq. 2")


def released_block(ref, gate):
    """The attention of the released code in ours: one packed projection serves image and instruction."""
    attn = EditingAttention(24, int(ref["num_heads"]), 24).double()
    weights, biases = ref["qkv_weight"].chunk(3), ref["qkv_bias"].chunk(3)
    for modules, weight, bias in (
        ([attn.q], weights[0], biases[0]),
        ([attn.k, attn.k_instr], weights[1], biases[1]),
        ([attn.v, attn.v_instr], weights[2], biases[2]),
        ([attn.out], ref["proj_weight"], ref["proj_bias"]),
    ):
        for module in modules:
            module.weight.data, module.bias.data = weight.double(), bias.double()
    attn.gate.data = gate.double()
    return attn


def test_editing_attention_reproduces_the_released_block():
    ref = {key: torch.tensor(value)
           for key, value in golden("gated_attention/released_block.npz").items()}
    x = ref["x"].double()
    instr = ref["instruction"].double()
    exact = ref["gate_raw"].flatten().double().tanh()  # the released code squashes its gate, the paper does not

    open_gates = released_block(ref, exact)
    mistakes = attention_mistakes(open_gates, x, instr, None)
    assert_close(open_gates(x, instr), ref["out_exact_tanh_nonzero"].double(), mistakes, 1e-10)
    rounded = released_block(ref, exact.half())  # and then rounds it
    assert_close(rounded(x, instr), ref["out_released_nonzero"].double(), mistakes, 2e-5)

    closed = released_block(ref, torch.zeros_like(exact))
    mistakes = attention_mistakes(closed, x, instr, None)
    expected = ref["out_released_zero"].double()
    assert_close(closed(x, instr), expected, mistakes, 2e-5, "all gates 0")
    expected = ref["out_no_instruction"].double()
    assert_close(closed(x), expected, {}, 2e-5, "without an instruction")


def test_gate_zero_is_the_plain_vit_exactly():
    torch.manual_seed(0)
    edited, plain = (ViT((32, 16), 8, None, 32, 3, 4, instr_dim=instr_dim) for instr_dim in (20, None))
    plain.load_state_dict(edited.state_dict(), strict=False)
    images = torch.randn(2, 3, 32, 16)
    for number, block in enumerate(edited.blocks):
        words = f"the gates of layer {number} start at {block.attn.gate.tolist()}, not at 0"
        assert (block.attn.gate == 0).all(), words
    difference = (edited(images, torch.randn(2, 5, 20)) - plain(images)).abs().max().item()
    words = f"with all gates 0 the edited ViT is off the plain one by {difference:.2g}, not by 0"
    assert difference == 0, words


def test_every_layer_is_edited_and_every_editing_weight_learns():
    model = tiny_model()
    images = torch.randn(2, 3, 32, 16)
    instr = model.instruct(["ignore clothes", "wear boots"])
    model(images, instr).feat[:, 0].sum().backward()
    for number, block in enumerate(model.editor.blocks):
        weights = {"gate": block.attn.gate, "Linear_k'": block.attn.k_instr.weight,
                   "Linear_v'": block.attn.v_instr.weight}
        for name, p in weights.items():
            learns = p.grad is not None and p.grad.abs().sum() > 0
            assert learns, f"the {name} of layer {number} gets no gradient: is the layer edited?"


def test_padding_of_an_instruction_changes_nothing():
    model = tiny_model()
    images = torch.randn(2, 3, 32, 16)
    alone = model(images[:1], model.instruct(["ignore clothes"]))
    padded = model(images, model.instruct(["ignore clothes", "a man in a red coat and blue trousers"]))
    words = "{} of an image changes by the padding of its instruction: the mask does not reach it"
    for name, a, b in (("F", alone.feat, padded.feat), ("F_out", alone.fused, padded.fused)):
        assert (a[0] - b[0]).abs().max() < 1e-5, words.format(name)


def test_one_shared_sentence_equals_the_same_sentence_repeated():
    model = tiny_model()
    images = torch.randn(3, 3, 32, 16)
    instr = model.instruct(["ignore clothes"] * 3)
    assert len(instr.tokens) == 1, "three equal sentences are encoded three times"
    repeated = type(instr)(*(x.repeat(3, *[1] * (x.ndim - 1)) for x in instr))
    what = "one sentence for all, against the same sentence for each"
    assert_close(model(images, instr).fused, model(images, repeated).fused, {}, 1e-5, what)


def test_the_instruction_matters_only_through_open_gates():
    images = torch.randn(2, 3, 32, 16)
    cases = (
        (tiny_model(), True, "open gates, but the instruction does not change the feature"),
        (tiny_model(open_gates=False), False, "all gates 0, but the instruction is heard"),
        (tiny_model(editing=False), False, "editing=False, but the instruction is heard"),
    )
    for model, listens, words in cases:
        a = model.embed(images, model.instruct(["ignore clothes"] * 2))
        b = model.embed(images, model.instruct(["keep the clothes"] * 2))
        assert ((a - b).abs().max() > 1e-3) == listens, words


def test_shapes_and_one_return_type_in_every_mode():
    model, images = tiny_model(), torch.randn(2, 3, 32, 16)
    for what in (None, ["a b", "c"], torch.randn(2, 3, 16, 16)):
        out = model(images, model.instruct(what))
        assert out.feat.shape == out.neck.shape == (2, 32) and out.tokens.shape == (2, 1 + 4 * 2, 32)
        assert (out.fused is None) == (what is None) and (what is None or out.fused_neck.shape == (2, 64))
    assert model.embed_text(model.instruct(["a b", "c"])).shape == (2, 32)
    assert model.match(model.edit(images), model.instruct(["a b", "c"])).shape == (2, 2)


def test_retrieval_features_pass_the_bn_neck():
    model = tiny_model()
    images = torch.randn(4, 3, 32, 16)
    model.neck.running_mean += 1.0
    instr = model.instruct(["a"] * 4)
    feat = model(images, instr).feat
    expected = F.normalize(model.neck(feat), dim=1)
    before = F.normalize(feat, dim=1)
    assert (expected - before).abs().max() > 1e-2, "the neck has to matter in this test"
    mistakes = {"what is ranked is F before the neck": before,
                "what is ranked is not normalised": model.neck(feat)}
    assert_close(model.embed(images, instr), expected, mistakes)


@pytest.mark.parametrize("size,patch,stride,grid", [
    ((32, 16), 8, None, (4, 2)), ((48, 16), 16, 8, (5, 1)), ((16, 32), 16, None, (1, 2))])
def test_patch_grids_that_are_not_square(size, patch, stride, grid):
    vit = ViT(size, patch, stride, 16, 1, 2, part_tokens=3)
    assert vit.grid == grid and vit(torch.randn(1, 3, *size)).shape == (1, 4 + grid[0] * grid[1], 16)


def test_patches_are_ordered_row_by_row():
    vit = ViT((32, 16), 8, None, 16, 0, 2)
    nn.init.zeros_(vit.pos)
    vit.norm = nn.Identity()
    images = torch.zeros(1, 3, 32, 16)
    images[:, :, 8:16, 8:] = 1  # second row, second column
    tokens = vit(images)[0, 1:]
    assert (tokens - tokens[0]).abs().sum(1).nonzero().flatten().tolist() == [3]


def test_swapped_height_and_width_are_refused():
    with pytest.raises(ValueError, match="swapped"):
        ViT((32, 16), 8, None, 16, 1, 2)(torch.randn(1, 3, 16, 32))


def test_attention_module_sees_both_sides():
    torch.manual_seed(0)
    module, model = AttentionModule(32, 4, 2), tiny_model()
    tokens, instr = torch.randn(2, 9, 32), model.instruct(["a man", "a woman in red"])
    out = module(tokens, instr)
    other_words = module(tokens, model.instruct(["a dog", "a woman in red"]))
    other_image = module(torch.cat([tokens[:1] + torch.randn(1, 9, 32), tokens[1:]]), instr)
    for changed, what in ((other_words, "instruction"), (other_image, "image")):
        own = (changed - out)[0].abs().sum()
        others = (changed - out)[1].abs().max()
        assert own > 1e-3, f"E_f does not see the {what}: F_out stays when it changes"
        assert others < 1e-5, f"F_out of one person depends on the {what} of another"


def test_sizes_have_the_same_fields_and_base_is_the_papers_vit():
    assert all(shape.keys() == TINY.keys() for shape in SIZES.values())
    base = SIZES["base"]
    assert (base["size"], base["patch"], base["dim"], base["depth"], base["heads"]) == ((256, 128), 16, 768, 12, 12)
