"""Eq. 1-4 against loops and the released code, E_i and E_f by hand, and what the model promises:
zero init, masks, shapes, an export."""

import pytest
import torch
from einops import rearrange
from torch import nn

import evaluate
import model as irm
from instructions import TASKS
from model import PARTS, SIZES, AttentionModule, Block, EditingAttention, InstructReID, ViT
from reid.text import TextEncoder, text_model
from tests.commands import recipe
from tests.explain import assert_close
from tests.reference import attend_all, attention_mistakes, golden

TINY = dict(size=(32, 16), patch=8, dim=32, depth=2, heads=4, stem="patch",
            picture_size=(16, 16), picture_depth=1, fusion_depth=1)
SENTENCES = ["ignore clothes", "a man in a red coat and boots", "a man in a red coat and a bag"]
UNEDITED = [part for part in PARTS if part != "editing"]


class Letters(nn.Module):
    """A text tower for tests: a token per word, drawn from the word's letters."""

    width, trainable, pooling = 12, False, "mean"

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.dtype = dtype

    def forward(self, sentences):
        words = [sentence.split() for sentence in sentences]
        longest = max(map(len, words))
        tokens = torch.zeros(len(words), longest, self.width, dtype=self.dtype)
        for i, row in enumerate(words):
            for j, word in enumerate(row):
                generator = torch.Generator().manual_seed(sum(map(ord, word)))
                tokens[i, j] = torch.randn(self.width, generator=generator)
        lengths = torch.tensor([[len(row)] for row in words])
        mask = torch.arange(longest)[None] < lengths
        return tokens, mask, tokens.sum(1) / lengths


def stirred(module):
    """The module with nothing at its neutral value: gates open, norms and statistics moved."""
    for p in module.parameters():
        if p.requires_grad and p.ndim <= 1:
            p.data += 0.3 * torch.randn_like(p)
    for part in module.modules():
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
    return module


def tiny_model(gates=True, shape=TINY, classes=("market",), text=None, **kwargs):
    torch.manual_seed(0)
    classes = dict.fromkeys(classes, 5)
    model = InstructReID(shape, classes, text=text or Letters(), **kwargs).eval()
    return stirred(model) if gates else model


# ---- Eq. 1-4 ----

def with_noise(module):
    """The module in float64, all of its parameters random."""
    torch.manual_seed(0)
    for p in module.parameters():
        nn.init.normal_(p, std=0.5)
    return module.double()


@pytest.mark.parametrize("mask", [torch.arange(5) < torch.tensor([[5], [3], [4]]), None])
def test_editing_attention_reproduces_the_equations(mask):
    attn = with_noise(EditingAttention(24, 4, 24))
    x, instr = torch.randn(3, 6, 24).double(), torch.randn(3, 5, 24).double()
    expected = attend_all(attn, x, instr, mask)
    mistakes = attention_mistakes(attn, x, instr, mask)
    assert_close(attn(x, instr, mask), expected, mistakes, 1e-10, "Eq. 2-4")
    values = torch.cat([attn.v(x), attn.v_instr(instr)], 1)  # [V; V']
    read = attn.maps(x, instr, mask) @ rearrange(values, irm.SPLIT, h=4)
    read = rearrange(read, "b h n c -> b n (h c)")
    assert_close(attn.out(read), expected, mistakes, 1e-10, "M of Eq. 2, times [V; V']")


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


def edited_vit(depth=3):
    """(a ViT with open gates, images, tokens of their instructions, the mask of these)."""
    torch.manual_seed(0)
    vit = ViT((32, 16), 8, None, 24, depth, 4, instr_dim=20).double()
    images, instr = torch.randn(3, 3, 32, 16).double(), torch.randn(3, 6, 20).double()
    return stirred(vit), images, instr, torch.arange(6) < torch.tensor([[6], [3], [5]])


def test_every_layer_is_edited_and_every_editing_weight_learns():
    vit, images, instr, mask = edited_vit()
    read = []
    hook = vit.blocks[0].register_forward_pre_hook(lambda _, given: read.append(given[0]))
    unedited = vit(images)
    hook.remove()

    def by_hand(edited):
        x = read[0]
        for number, block in enumerate(vit.blocks):
            x = block(x, instr, mask) if number in edited else block(x)
        return vit.norm(x)

    assert_close(unedited, by_hand(()), {}, 1e-9, "without an instruction")
    mistakes = {f"only the layers {edited} are edited": by_hand(edited)
                for edited in ((), (0,), (1,), (2,), (0, 1), (1, 2))}
    found = vit(images, instr, mask)
    assert_close(found, by_hand((0, 1, 2)), mistakes, 1e-9)
    found[:, 0, 0].sum().backward()
    for number, block in enumerate(vit.blocks):
        for name in ("gate", "k_instr.weight", "v_instr.weight"):
            grad = block.attn.get_parameter(name).grad
            learns = grad is not None and grad.abs().sum() > 0
            assert learns, f"the {name} of layer {number} gets no gradient"


def test_a_layer_is_eq_1():
    """Pre-norm, two residuals; the instruction does not pass the norm of the image tokens."""
    block = with_noise(Block(24, 4, 20))
    x, instr = torch.randn(3, 6, 24).double(), torch.randn(3, 5, 20).double()
    read = x + block.attn(block.norm1(x), instr)
    assert_close(block(x, instr), read + block.mlp(block.norm2(read)), {}, 1e-9)


def test_gradient_checkpointing_changes_neither_tokens_nor_gradients(monkeypatch):
    vit, images, instr, mask = edited_vit()
    vit.train()
    again = []
    compute = irm.checkpoint
    monkeypatch.setattr(
        irm, "checkpoint", lambda *args, **how: again.append(args) or compute(*args, **how))
    found = []
    for vit.checkpointing in (True, False):
        vit.zero_grad()
        tokens = vit(images, instr, mask)
        tokens.pow(3).sum().backward()
        grads = [p.grad.flatten() for p in vit.parameters()]
        found.append(torch.cat([tokens.flatten(), *grads]))
    assert len(again) == len(vit.blocks)
    assert_close(*found, {}, 1e-8)


# ---- E_i and E_f ----

@pytest.mark.parametrize("learns", [False, True], ids=["frozen", "learning"])
def test_the_pooled_sentence_is_the_mean_of_its_real_words(bert, learns):
    """Of each sentence alone, however long the others are and however alike they begin; a frozen
    tower reads without dropout while the model trains, and keeps its tokens in half precision."""
    encoder = TextEncoder(*text_model(bert), trainable=learns).train(not learns)
    tokens, mask, pooled = encoder(SENTENCES)
    encoder.bert.eval()
    for i, sentence in enumerate(SENTENCES):
        with torch.no_grad():
            ids = encoder.tokenizer(sentence, return_tensors="pt")
            words = encoder.bert(**ids).last_hidden_state[0]
        assert mask[i].tolist() == [j < len(words) for j in range(tokens.shape[1])]
        assert_close(tokens[i][mask[i]], words, {}, 5e-3)
        mistakes = {
            "padding is counted in the mean of the words": tokens[i].sum(0) / len(tokens[i]),
            "the CLS token is taken for the mean of the words": words[0],
        }
        assert_close(pooled[i], words.mean(0), mistakes, 5e-3)


@torch.no_grad()
def test_the_attention_module_by_hand():
    torch.manual_seed(0)
    module = AttentionModule(32, 4, 2).eval()
    images = torch.randn(3, 9, 32)
    instr = tiny_model().instruct(SENTENCES)

    def by_hand(masks):
        rows = []
        for image, words, mask in zip(images, instr.tokens, masks):
            ends = []
            for first, second in ((image, words[mask]), (words[mask], image)):
                x = torch.cat([first[:1], second[1:]])[None]
                for block in module.blocks:
                    x = block(x)
                ends.append(module.norm(x)[0, 0])
            rows.append(torch.cat(ends))
        return torch.stack(rows)

    expected = by_hand(instr.mask)
    mistakes = {
        "the two branches are swapped": expected.roll(32, 1),
        "padding of the instruction is read": by_hand(torch.ones_like(instr.mask)),
    }
    assert_close(module(images, instr), expected, mistakes)


# ---- instructions and images ----

def test_padding_of_an_instruction_changes_nothing():
    model = tiny_model()
    images = torch.randn(2, 3, 32, 16)
    alone = model(images[:1], model.instruct(["ignore clothes"]))
    padded = model(images, model.instruct(["ignore clothes", "a man in a red coat and boots"]))
    words = "{} of an image changes by the padding of its instruction: the mask does not reach it"
    for name, a, b in (("F", alone.feat, padded.feat), ("F_out", alone.fused, padded.fused)):
        assert (a[0] - b[0]).abs().max() < 1e-5, words.format(name)


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


def test_what_is_shared_is_encoded_once_and_a_picture_is_its_mean_or_its_cls():
    """The CLS token of a pre-trained encoder, else the mean of the patches."""
    model = tiny_model()
    assert model.instruct() is None and len(model.instruct(["a b"] * 3).tokens) == 1
    pictures = torch.randn(2, 3, 16, 16)
    seen = model.encoder.picture(pictures)
    for pooling, whole in (("mean", seen[:, 1:].mean(1)), ("cls", seen[:, 0])):
        model.encoder.text.pooling = pooling
        assert_close(model.instruct(pictures=pictures).pooled, whole, {})


# ---- patches and sizes ----

def test_the_recipe_of_an_export_takes_any_batch(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate, "load_model", lambda path: (tiny_model(), {}))
    exec(recipe("Export with a free batch size"), {})
    exported = torch.export.load("embed.pt2").module()
    model = tiny_model()
    for batch in (1, 2, 5):
        images = torch.randn(batch, 3, 32, 16)
        expected = model.embed(images, model.instruct(["ignore clothes"]))
        assert_close(exported(images), expected, {}, 1e-6)


def test_swapped_height_and_width_are_refused():
    with pytest.raises(ValueError, match="16x32.*32x16.*swapped"):
        ViT((32, 16), 8, None, 16, 1, 2)(torch.randn(1, 3, 16, 32))


def test_sizes_have_the_same_fields_and_each_part_is_some_tasks():
    assert all(shape.keys() == TINY.keys() for shape in SIZES.values())
    paper = dict(size=(256, 128), patch=16, dim=768, depth=12, heads=12)
    assert paper.items() <= SIZES["base"].items()
    assert {part for row in TASKS.values() for part in row.parts} == set(PARTS)
    assert InstructReID.__init__.__defaults__[-1] == PARTS
