"""How the pieces are put together: Eq. 1-4, E_i, E_f, the sampler.

What is expected is computed by hand, one image and one head at a time; a test that fails names the
mistake. Letters as in model.py: b batch, n image tokens, t instruction tokens, d width, h heads, c
width of one head, k width of the pooled instruction.
"""

import copy
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from data import PKSampler
from model import AttentionModule, Block, EditingAttention, InstructionEncoder, TextEncoder, ViT
from reid.records import Record
from reid.text import text_model
from tests.by_hand import attention_by_hand, attention_mistakes
from tests.explain import assert_close
from tests.small_bert import write_bert
from tests.test_model import tiny_model

HEADS = 4
WIDTH = 24
IMAGES = 3
TOKENS = 6  # of an image and of an instruction: a mix-up of the two gives numbers, not an error


def randomise(module):
    """Random weights, biases, norms and gates: nothing is 0 or 1, and no two heads are alike."""
    for p in module.parameters():
        nn.init.normal_(p, std=0.5)
    return module


def instruction_tokens(shared, width=WIDTH, dtype=torch.float64):
    """(tokens (b t d), mask (b t)) of instructions of different lengths, or of one for all."""
    lengths = [4] if shared else [6, 3, 5]
    tokens = torch.randn(len(lengths), TOKENS, width, dtype=dtype)
    mask = torch.arange(TOKENS)[None] < torch.tensor(lengths)[:, None]
    return tokens, mask


# ---- Eq. 2-4 ----

@pytest.mark.parametrize("masked", [True, False], ids=["padded", "unpadded"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared sentence", "a sentence each"])
@pytest.mark.parametrize("seed", [0, 1])
def test_editing_attention_equals_eq_2_to_4_by_hand_and_by_its_maps(seed, shared, masked):
    torch.manual_seed(seed)
    attn = randomise(EditingAttention(WIDTH, HEADS, WIDTH).double())
    x = torch.randn(IMAGES, TOKENS, WIDTH, dtype=torch.float64)
    instr, mask = instruction_tokens(shared)
    mask = mask if masked else None

    found = attn(x, instr, mask)
    mistakes = attention_mistakes(attn, x, instr, mask)
    assert_close(found, attention_by_hand(attn, x, instr, mask), mistakes, 1e-10)

    maps = attn.maps(x, instr, mask)  # M of Eq. 2, (b h n n+t)
    values = torch.cat([attn.v(x), attn.v_instr(instr).expand(IMAGES, -1, -1)], 1)  # [V; V']
    heads = [maps[:, h] @ part for h, part in enumerate(values.chunk(HEADS, 2))]
    literal = attn.out(torch.cat(heads, 2))
    of_maps = {f"in maps(), not in forward(): {words}": wrong for words, wrong in mistakes.items()}
    assert_close(literal, found, of_maps, 1e-10)


def test_the_maps_sum_to_one_and_to_the_gate():
    torch.manual_seed(0)
    attn = randomise(EditingAttention(WIDTH, HEADS, WIDTH).double())
    x = torch.randn(IMAGES, TOKENS, WIDTH, dtype=torch.float64)
    instr, mask = instruction_tokens(shared=False)
    maps = attn.maps(x, instr, mask)

    image_sum = maps[..., :TOKENS].sum(3)
    assert_close(image_sum, torch.ones_like(image_sum), {}, 1e-10)
    gates = attn.gate.view(1, HEADS, 1).expand_as(image_sum)
    mistakes = {"the gate goes through tanh, Eq. 2 takes it as it stands": gates.tanh(),
                "the gate is not applied to the maps": torch.ones_like(gates)}
    assert_close(maps[..., TOKENS:].sum(3), gates, mistakes, 1e-10)

    padding = maps[..., TOKENS:].masked_select(~mask[:, None, None])
    assert (padding == 0).all(), "padding of an instruction is read"


# ---- Eq. 1 ----

def block_by_hand(block, x, instr, mask):
    read = block.attn(block.norm1(x), instr, mask)
    x = x + read
    return x + block.mlp(block.norm2(x))


def test_a_layer_is_eq_1():
    torch.manual_seed(0)
    block = randomise(Block(WIDTH, HEADS, WIDTH).double())
    x = torch.randn(IMAGES, TOKENS, WIDTH, dtype=torch.float64)
    instr, mask = instruction_tokens(shared=False)

    read = block.attn(block.norm1(x), instr, mask)
    read_from_raw = block.attn(x, instr, mask)
    mistakes = {
        "the instruction goes through the layer's norm1 before K' and V': only image tokens do":
            block_by_hand(block, x, block.norm1(instr), mask),
        "the instruction's mask does not reach the attention": block_by_hand(block, x, instr, None),
        "the image tokens are not normalised before the attention":
            x + read_from_raw + block.mlp(block.norm2(x + read_from_raw)),
        "nothing is added to the attention's output, the residual is missing":
            read + block.mlp(block.norm2(read)),
        "nothing is added to the MLP's output, the residual is missing":
            block.mlp(block.norm2(x + read)),
    }
    assert_close(block(x, instr, mask), block_by_hand(block, x, instr, mask), mistakes, 1e-10)


def edited_vit():
    """(a ViT of three layers with random weights, images, their instructions' tokens and mask)."""
    torch.manual_seed(0)
    vit = ViT((32, 16), 8, None, WIDTH, 3, HEADS, instr_dim=WIDTH).double()
    for block in vit.blocks:
        randomise(block.attn)
    images = torch.randn(IMAGES, 3, 32, 16, dtype=torch.float64)
    instr, mask = instruction_tokens(shared=False)
    return vit, images, instr, mask


def vit_by_hand(vit, images, instr, mask, edited=(0, 1, 2)):
    tokens = []
    for image in images:
        patches = vit.embed(image[None])[0].flatten(1).T
        tokens.append(torch.cat([vit.prefix[0], patches]) + vit.pos[0])
    x = torch.stack(tokens)
    for number, block in enumerate(vit.blocks):
        x = block_by_hand(block, x, instr if number in edited else None, mask)
    return vit.norm(x)


def test_every_layer_is_edited_through_a_gate_of_its_own():
    vit, images, instr, mask = edited_vit()
    wanted = [0.3, 0.6, 0.9]
    for block, value in zip(vit.blocks, wanted):
        nn.init.constant_(block.attn.gate, value)
    found = [round(block.attn.gate[0].item(), 6) for block in vit.blocks]
    assert found == wanted, f"layers share a gate: set to {wanted} in turn they are {found}"

    mistakes = {
        "no layer is edited": vit_by_hand(vit, images, instr, mask, edited=()),
        "only the first layer is edited": vit_by_hand(vit, images, instr, mask, edited=(0,)),
        "only the last layer is edited": vit_by_hand(vit, images, instr, mask, edited=(2,)),
        "the instruction's mask does not reach the layers": vit_by_hand(vit, images, instr, None),
    }
    assert_close(vit(images, instr, mask), vit_by_hand(vit, images, instr, mask), mistakes, 1e-9)


def test_gradient_checkpointing_changes_neither_tokens_nor_gradients():
    vit, images, instr, mask = edited_vit()
    weight = torch.randn(IMAGES, 1 + 4 * 2, WIDTH, dtype=torch.float64)
    vit.train()

    def tokens_and_gradients(checkpointing, mask):
        vit.checkpointing = checkpointing
        vit.zero_grad()
        tokens = vit(images, instr, mask)
        (tokens * weight).sum().backward()
        return tokens, torch.cat([p.grad.flatten() for p in vit.parameters()])

    found = tokens_and_gradients(True, mask)
    expected = tokens_and_gradients(False, mask)
    unmasked = tokens_and_gradients(False, None)
    words = "gradient checkpointing drops the mask of the instruction: padding is read"
    for found_part, expected_part, unmasked_part in zip(found, expected, unmasked):
        assert_close(found_part, expected_part, {words: unmasked_part}, 1e-8)


# ---- E_i ----

SENTENCES = ["ignore clothes", "a man in a red coat and blue trousers", "boots"]


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("bert"))


def read_alone(encoder, sentence):
    """The tokens (t k) of one sentence, read without any padding and without dropout."""
    encoder.bert.eval()
    ids = encoder.tokenizer(sentence, return_tensors="pt")
    with torch.no_grad():
        return encoder.bert(**ids).last_hidden_state[0]


HALF = 5e-3  # a frozen encoder keeps its tokens in half precision


@pytest.mark.parametrize("learns", [False, True], ids=["frozen", "learning"])
def test_the_pooled_sentence_is_the_mean_of_its_real_words(bert_folder, learns):
    encoder = TextEncoder(*text_model(bert_folder), trainable=learns).eval()
    tokens, mask, pooled = encoder(SENTENCES)
    for i, sentence in enumerate(SENTENCES):
        words = read_alone(encoder, sentence)
        real = mask[i].sum().item()
        assert mask[i].tolist() == [True] * real + [False] * (tokens.shape[1] - real)
        assert real == len(words), f"the mask shows {real} tokens of a sentence of {len(words)}"
        assert_close(tokens[i, :real], words, {}, HALF)

        mistakes = {
            "padding is counted in the mean of the words": tokens[i].sum(0) / len(tokens[i]),
            "the sum of the words is taken for their mean": words.sum(0),
            "the CLS token is taken for the mean of the words": words[0],
        }
        assert_close(pooled[i], words.mean(0), mistakes, HALF)


def test_the_instruction_begins_with_the_whole_and_its_mask_fits(bert_folder):
    torch.manual_seed(0)
    text = TextEncoder(*text_model(bert_folder))
    picture = ViT((16, 16), 8, None, WIDTH, 1, HEADS)
    encoder = InstructionEncoder(WIDTH, text, picture).eval()
    instr = encoder(SENTENCES)
    for i, sentence in enumerate(SENTENCES):
        words = read_alone(text, sentence)
        real = instr.mask[i].tolist()
        count = 1 + len(words)  # the whole, then its words
        assert real[0], "the first token, which stands for the whole instruction, is masked out"
        assert sum(real) == count, f"the mask shows {sum(real)} tokens of an instruction of {count}"
        assert real == [True] * count + [False] * (len(real) - count)

        whole = words.mean(0, keepdim=True)
        expected = encoder.from_text(torch.cat([whole, words]))
        behind = encoder.from_text(torch.cat([words, whole]))
        mistakes = {"the whole stands behind its words": behind}
        assert_close(instr.tokens[i][:count], expected, mistakes, 10 * HALF)


def test_the_instruction_of_a_picture_begins_with_the_mean_of_its_patches():
    model = tiny_model()
    pictures = torch.randn(2, 3, 16, 16)
    instr = model.instruct(pictures)
    for i, picture in enumerate(pictures):
        tokens = model.encoder.picture(picture[None])[0]
        whole = tokens[1:].mean(0)
        expected = model.encoder.from_picture(torch.cat([whole[None], tokens]))
        mistakes = {"the CLS token is taken for the mean of the patches": tokens[0],
                    "the CLS token is counted in the mean of the patches": tokens.mean(0)}
        assert_close(instr.pooled[i], whole, mistakes)
        assert_close(instr.tokens[i], expected, {})
    assert instr.mask.all(), "a picture has no padding"


def test_a_frozen_text_tower_reads_without_dropout_while_the_model_trains(bert_folder):
    encoder = TextEncoder(*text_model(bert_folder))
    encoder.train()
    tokens, mask, _ = encoder(SENTENCES)
    for i, sentence in enumerate(SENTENCES):
        words = read_alone(encoder, sentence)
        difference = (tokens[i, :len(words)] - words).abs().max()
        assert difference < HALF, "dropout is on in the frozen text tower while the model trains"


# ---- E_f ----

def branch_by_hand(module, cls, tokens, own_key=True):
    """One branch of E_f for one image: cls (d), tokens (n d), none of them padding -> (d)."""
    x = torch.cat([cls[None], tokens])[None]
    mask = None if own_key else torch.arange(x.shape[1])[None] > 0
    for block in module.blocks:
        x = block(x, mask=mask)
    return module.norm(x)[0, 0]


def fused_by_hand(module, image_tokens, instr, own_key=True, padding=False, whole=False):
    """F_out (b 2d), image by image, of instructions without padding. The rest is for mistakes."""
    rows = []
    for i, image in enumerate(image_tokens):
        words = instr.tokens[i] if padding else instr.tokens[i][instr.mask[i]]
        of_image = branch_by_hand(module, image[0], words if whole else words[1:], own_key)
        of_instr = branch_by_hand(module, words[0], image if whole else image[1:])
        rows.append(torch.cat([of_image, of_instr]))
    return torch.stack(rows)


def halves_swapped(fused):
    first, second = fused.chunk(2, -1)
    return torch.cat([second, first], -1)


def test_the_attention_module_by_hand():
    torch.manual_seed(0)
    module = AttentionModule(32, 4, 2).eval()
    instr = tiny_model().instruct(["a man in a red coat", "boots"])
    image_tokens = torch.randn(2, 9, 32)
    expected = fused_by_hand(module, image_tokens, instr)
    without_norm = copy.deepcopy(module)
    without_norm.norm = nn.Identity()
    mistakes = {
        "the two branches are swapped": halves_swapped(expected),
        "a branch's own CLS is masked out as a key":
            fused_by_hand(module, image_tokens, instr, own_key=False),
        "the final norm is missing":
            fused_by_hand(without_norm, image_tokens, instr),
        "padding of the instruction is read":
            fused_by_hand(module, image_tokens, instr, padding=True),
        "the other side's CLS is among the tokens":
            fused_by_hand(module, image_tokens, instr, whole=True),
    }
    assert_close(module(image_tokens, instr), expected, mistakes)


def lively_model():
    """A model whose necks are no identities, images and padded instructions for it."""
    model = tiny_model()
    for norm in (model.neck, model.fused_neck):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.uniform_(norm.weight, 0.5, 2)
    images = torch.randn(2, 3, 32, 16)
    instr = model.instruct(["ignore clothes", "a man in a red coat and blue trousers"])
    return model, images, instr


@torch.no_grad()
def test_the_forward_pass_fuses_the_edited_tokens():
    model, images, instr = lively_model()
    edited = model.editor(images, instr.tokens, instr.mask)
    plain = model.editor(images)
    out = model(images, instr)
    unmasked = model.editor(images, instr.tokens)
    mistakes = {"the tokens are not edited": plain, "E_e reads the padding": unmasked}
    assert_close(out.tokens, edited, mistakes)
    mistakes = {"F is the un-edited CLS": plain[:, 0],
                "F is the mean of the tokens": edited.mean(1)}
    assert_close(out.feat, edited[:, 0], mistakes)

    expected = fused_by_hand(model.attention, edited, instr)
    plain_cls = torch.cat([plain[:, :1], edited[:, 1:]], 1)
    plain_patches = torch.cat([edited[:, :1], plain[:, 1:]], 1)
    mistakes = {
        "E_f gets the un-edited CLS": fused_by_hand(model.attention, plain_cls, instr),
        "E_f gets the un-edited patches": fused_by_hand(model.attention, plain_patches, instr),
        "E_f gets un-edited tokens": fused_by_hand(model.attention, plain, instr),
        "the two branches of F_out are swapped": halves_swapped(expected),
    }
    assert_close(out.fused, expected, mistakes)
    assert_close(out.neck, model.neck(out.feat), {"F does not pass its neck": out.feat})
    after_neck = model.fused_neck(out.fused)
    assert_close(out.fused_neck, after_neck, {"F_out does not pass its neck": out.fused})


@pytest.mark.parametrize("feature", ["edit", "fused"])
@torch.no_grad()
def test_what_is_ranked_is_what_was_trained(feature):
    model, images, instr = lively_model()
    edited = model.editor(images, instr.tokens, instr.mask)
    plain = model.editor(images)
    if feature == "fused":
        feat = fused_by_hand(model.attention, edited, instr)
        plain_cls = torch.cat([plain[:, :1], edited[:, 1:]], 1)
        with_plain_cls = fused_by_hand(model.attention, plain_cls, instr)
        neck = model.fused_neck
    else:
        feat = edited[:, 0]
        with_plain_cls = plain[:, 0]
        neck = model.neck

    expected = F.normalize(neck(feat), dim=1)
    mistakes = {
        "the two branches of F_out are swapped in embed":
            F.normalize(neck(halves_swapped(feat)), dim=1),
        "the feature is ranked without its neck": F.normalize(feat, dim=1),
        "the feature is not normalised": neck(feat),
        "the un-edited CLS is ranked": F.normalize(neck(with_plain_cls), dim=1),
    }
    assert_close(model.embed(images, instr, feature), expected, mistakes)


# ---- sampler ----

def test_people_left_over_by_p_come_in_other_epochs():
    people, ids_per_batch, epochs = 13, 4, 60
    records = []
    for pid in range(people):
        records += [Record("x", "train", f"{pid}_{i}.png", pid) for i in range(3)]
    sampler = PKSampler(records, ids_per_batch, 2, seed=0)
    steps = people // ids_per_batch  # of an epoch, which leaves one person over
    drawn = Counter()
    for step in range(epochs * steps):
        drawn.update({records[index].pid for index in sampler.batch(step)})

    never = sorted(set(range(people)) - drawn.keys())
    assert not never, f"people {never} are left over by P = {ids_per_batch} in all {epochs} epochs"
    due = epochs * steps * ids_per_batch / people
    rarest = min(drawn.values())
    assert rarest > 0.8 * due, f"somebody comes in {rarest} batches, {due:.0f} are due to each"
