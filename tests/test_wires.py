"""How the parts of the model are put together: Eq. 1-4, E_i and E_f against the slow twins of
tests/reference.py; a test that fails names the mistake."""

import pytest
import torch
from torch import nn

from model import AttentionModule, Block, EditingAttention, InstructionEncoder, ViT
from reid.text import TextEncoder, text_model
from tests.explain import assert_close
from tests.reference import attend_all, attention_mistakes, attention_module, patches_of
from tests.small_bert import write_bert
from tests.test_model import open_gates, tiny_model

HEADS = 4
WIDTH = 24
IMAGES = 3
TOKENS = 6  # of an image and of an instruction: a mix-up of the two gives numbers, not an error


def randomise(module):
    """Random weights, biases, norms and gates: nothing is 0 or 1, and no two heads are alike."""
    for p in module.parameters():
        nn.init.normal_(p, std=0.5)
    return module


def case(lengths=(6, 3, 5)):
    """(images' tokens (b n d), instructions' (b t d), their mask (b t)); one length for all: one
    instruction for all."""
    torch.manual_seed(0)
    x = torch.randn(IMAGES, TOKENS, WIDTH, dtype=torch.float64)
    instr = torch.randn(len(lengths), TOKENS, WIDTH, dtype=torch.float64)
    return x, instr, torch.arange(TOKENS)[None] < torch.tensor(lengths)[:, None]


# ---- Eq. 1-4 ----

@pytest.mark.parametrize("lengths", [(6, 3, 5), (4,)], ids=["a sentence each", "shared sentence"])
@pytest.mark.parametrize("masked", [True, False], ids=["padded", "unpadded"])
def test_editing_attention_equals_eq_2_to_4_by_hand_and_by_its_maps(lengths, masked):
    x, instr, mask = case(lengths)
    mask = mask if masked else None
    attn = randomise(EditingAttention(WIDTH, HEADS, WIDTH).double())
    found = attn(x, instr, mask)
    mistakes = attention_mistakes(attn, x, instr, mask)
    assert_close(found, attend_all(attn, x, instr, mask), mistakes, 1e-10)

    maps = attn.maps(x, instr, mask)  # M of Eq. 2, (b h n n+t)
    values = torch.cat([attn.v(x), attn.v_instr(instr).expand(IMAGES, -1, -1)], 1)  # [V; V']
    heads = [maps[:, h] @ part for h, part in enumerate(values.chunk(HEADS, 2))]
    assert_close(attn.out(torch.cat(heads, 2)), found, {}, 1e-10, "maps(), against forward()")


def test_the_maps_sum_to_one_and_to_the_gate():
    x, instr, mask = case()
    attn = randomise(EditingAttention(WIDTH, HEADS, WIDTH).double())
    image, words = attn.maps(x, instr, mask).split(TOKENS, 3)
    assert_close(image.sum(3), torch.ones_like(image[..., 0]), {}, 1e-10)
    gates = attn.gate[:, None].expand_as(image[..., 0])
    mistakes = {"the gate goes through tanh, Eq. 2 takes it as it stands": gates.tanh(),
                "the gate is not applied to the maps": torch.ones_like(gates)}
    assert_close(words.sum(3), gates, mistakes, 1e-10)
    padding = words.masked_select(~mask[:, None, None])
    assert (padding == 0).all(), "padding of an instruction is read"


def test_a_layer_is_eq_1():
    """Pre-norm, two residuals; the instruction does not pass the norm of the image tokens."""
    x, instr, mask = case()
    block = randomise(Block(WIDTH, HEADS, WIDTH).double())
    read = x + block.attn(block.norm1(x), instr, mask)
    expected = read + block.mlp(block.norm2(read))
    assert_close(block(x, instr, mask), expected, {}, 1e-10)


def edited_vit(depth=3):
    """(a ViT with random weights and open gates, images, their instructions' tokens and mask)."""
    torch.manual_seed(0)
    vit = ViT((32, 16), 8, None, WIDTH, depth, HEADS, instr_dim=WIDTH).double()
    images = torch.randn(IMAGES, 3, 32, 16, dtype=torch.float64)
    return open_gates(vit), images, *case()[1:]


def test_every_layer_is_edited_and_patches_stand_row_by_row():
    vit, images, instr, mask = edited_vit()

    def by_hand(edited):
        x = torch.stack([patches_of(vit, image) for image in images])
        for number, block in enumerate(vit.blocks):
            x = block(x, instr, mask) if number in edited else block(x)
        return vit.norm(x)

    assert_close(vit(images), by_hand(edited=()), {}, 1e-9)
    layers = {number for number, block in enumerate(vit.blocks) if hasattr(block.attn, "gate")}
    assert layers == {0, 1, 2}, f"only the layers {layers} can be edited"
    mistakes = {"no layer is edited": by_hand(edited=()),
                "only the first layer is edited": by_hand(edited=(0,)),
                "only the last layer is edited": by_hand(edited=(2,))}
    assert_close(vit(images, instr, mask), by_hand(edited=(0, 1, 2)), mistakes, 1e-9)


def test_gradient_checkpointing_changes_neither_tokens_nor_gradients():
    vit, images, instr, mask = edited_vit()
    weight = torch.randn(IMAGES, 1 + 4 * 2, WIDTH, dtype=torch.float64)
    vit.train()
    found = []
    for vit.checkpointing in (True, False):
        vit.zero_grad()
        tokens = vit(images, instr, mask)
        (tokens * weight).sum().backward()
        grads = torch.cat([p.grad.flatten() for p in vit.parameters()])
        found.append(torch.cat([tokens.flatten(), grads]))
    assert_close(found[0], found[1], {}, 1e-8)


# ---- E_i ----

SENTENCES = ["ignore clothes", "a man in a red coat and blue trousers", "boots"]
HALF = 5e-3  # a frozen encoder keeps its tokens in half precision


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("bert"))


@torch.no_grad()
def read_alone(encoder, sentence):
    """The tokens (t k) of one sentence, read without any padding and without dropout."""
    encoder.bert.eval()
    ids = encoder.tokenizer(sentence, return_tensors="pt")
    return encoder.bert(**ids).last_hidden_state[0]


@pytest.mark.parametrize("learns", [False, True], ids=["frozen", "learning"])
def test_the_pooled_sentence_is_the_mean_of_its_real_words(bert_folder, learns):
    encoder = TextEncoder(*text_model(bert_folder), trainable=learns)
    encoder.train(not learns)  # a frozen tower reads without dropout while the model trains
    tokens, mask, pooled = encoder(SENTENCES)
    for i, sentence in enumerate(SENTENCES):
        words = read_alone(encoder, sentence)
        assert mask[i].tolist() == [j < len(words) for j in range(tokens.shape[1])]
        assert_close(tokens[i][mask[i]], words, {}, HALF)
        mistakes = {
            "padding is counted in the mean of the words": tokens[i].sum(0) / len(tokens[i]),
            "the CLS token is taken for the mean of the words": words[0],
        }
        assert_close(pooled[i], words.mean(0), mistakes, HALF)


def test_long_captions_that_begin_alike_are_not_taken_for_each_other(bert_folder):
    encoder = TextEncoder(*text_model(bert_folder))
    captions = [f"a man in a red coat with a bag and {end}" for end in "a b c d e f g".split()]
    encoder.remember(captions)
    _, _, pooled = encoder(captions)
    assert len(set(map(tuple, pooled.tolist()))) == 7
    expected = torch.stack([read_alone(encoder, caption).mean(0) for caption in captions])
    assert_close(pooled, expected, {}, HALF)


def test_the_instruction_begins_with_the_whole_and_its_mask_fits(bert_folder):
    torch.manual_seed(0)
    text = TextEncoder(*text_model(bert_folder))
    picture = ViT((16, 16), 8, None, WIDTH, 1, HEADS)
    encoder = InstructionEncoder(WIDTH, text, picture).eval()
    instr = encoder(SENTENCES)
    for i, sentence in enumerate(SENTENCES):
        words = read_alone(text, sentence)
        count = 1 + len(words)  # the whole, then its words
        assert instr.mask[i].tolist() == [j < count for j in range(instr.mask.shape[1])]
        expected = encoder.from_text(torch.cat([words.mean(0, keepdim=True), words]))
        mistakes = {"the whole stands behind its words": expected.roll(-1, 0)}
        assert_close(instr.tokens[i][:count], expected, mistakes, 10 * HALF)


def test_the_instruction_of_a_picture_begins_with_the_mean_of_its_patches():
    """Or with its CLS token, for a pre-trained encoder whose CLS stands for the picture."""
    model = tiny_model()
    pictures = torch.randn(2, 3, 16, 16)
    for pooling in ("mean", "cls"):
        model.encoder.text.pooling = pooling
        instr = model.instruct(pictures=pictures)
        for i, picture in enumerate(pictures):
            tokens = model.encoder.picture(picture[None])[0]
            whole = tokens[1:].mean(0) if pooling == "mean" else tokens[0]
            expected = model.encoder.from_picture(torch.cat([whole[None], tokens]))
            assert_close(instr.pooled[i], whole, {})
            assert_close(instr.tokens[i], expected, {})
        assert instr.mask.all(), "a picture has no padding"


def test_words_and_a_picture_are_joined_and_their_cosines_averaged():
    """Tokens and masks of both, one behind the other; the pooled vectors have the mean of both
    cosines (Eq. 6), however long they are; one sentence serves several pictures."""
    model = tiny_model()
    pictures = torch.randn(2, 3, 16, 16) * torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
    seen = model.instruct(pictures=pictures)
    for sentences in (["in red", "a man in blue boots"], ["in red", "in red"]):
        said = model.instruct(sentences).expand(2)
        both = model.instruct(sentences, pictures)
        assert_close(both.tokens, torch.cat([said.tokens, seen.tokens], 1), {})
        assert both.mask.tolist() == torch.cat([said.mask, seen.mask], 1).tolist()
        cosines = [torch.cosine_similarity(*part.pooled, dim=0) for part in (said, seen, both)]
        assert_close(cosines[2], (cosines[0] + cosines[1]) / 2, {})


# ---- E_f ----

@torch.no_grad()
def test_the_attention_module_by_hand():
    torch.manual_seed(0)
    module = AttentionModule(32, 4, 2).eval()
    instr = tiny_model().instruct(["a man in a red coat", "boots"])
    images = torch.randn(2, 9, 32)

    def by_hand(module, padding=False):
        words = instr.tokens
        if not padding:
            words = [said[is_real] for said, is_real in zip(words, instr.mask)]
        return torch.stack([attention_module(module, *each) for each in zip(images, words)])

    expected = by_hand(module)
    mistakes = {
        "the two branches are swapped": expected.roll(32, 1),
        "padding of the instruction is read": by_hand(module, padding=True),
    }
    assert_close(module(images, instr), expected, mistakes)
