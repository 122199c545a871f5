"""Photos without instructions: what is compared, by value, on a tiny model that has been moved."""

import pytest
import torch
import torch.nn.functional as F

from model import InstructReID, TextEncoder
from reid import uninstructed
from reid.images import normalise
from reid.text import embedded_text_model
from reid.uninstructed import CLOTHES, UNINSTRUCTED, as_clothes

SENTENCE = "ignore clothes"


@pytest.fixture(scope="module")
def model():
    """Its gates are open and its BatchNorm statistics moved, each neck's otherwise."""
    torch.manual_seed(0)
    small = dict(size=(32, 16), patch=8, dim=32, depth=1, heads=2, stem="patch",
                 picture_size=(16, 16), picture_depth=1, fusion_depth=1)
    model = InstructReID(small, text=TextEncoder(*embedded_text_model())).eval()
    model.editor.blocks[0].attn.gate.data.fill_(1.0)
    for neck in (model.neck, model.fused_neck, model.plain_neck):
        neck.running_mean.normal_()
        neck.running_var.uniform_(0.5, 2)
    return model


@torch.no_grad()
def test_each_kind_is_embedded_as_its_loss_saw_it(model):
    photos = torch.randint(0, 256, (3, 3, 32, 16), dtype=torch.uint8)
    images, instr = normalise(photos), model.instruct([SENTENCE])
    instructed, alone = model(images, instr), model(images, None)
    clothes = model.encoder.picture(as_clothes(photos, (16, 16)))[:, 1:].mean(1)
    for kind, feature, expected in (
            (SENTENCE, "edit", instructed.neck), (SENTENCE, "fused", instructed.fused_neck),
            (UNINSTRUCTED, "edit", alone.neck), (CLOTHES, "edit", clothes)):
        found = uninstructed.embed_photos(model, kind, photos, feature)
        torch.testing.assert_close(found, F.normalize(expected, dim=1))

    words = model.instruct(["in a red coat", "in blue"])
    read = model.text_head(model.text_block(words.tokens, mask=words.mask)[:, 0])
    for kind, expected in ((UNINSTRUCTED, read), (CLOTHES, words.pooled)):
        found = uninstructed.embed_instruction(model, kind, words)
        torch.testing.assert_close(found, F.normalize(expected, dim=1))


def test_clothes_are_the_photo_without_head_and_margins():
    photo = torch.zeros(1, 3, 20, 10, dtype=torch.uint8)
    photo[:, :, 4:, 1:9] = 200
    clothes = as_clothes(photo, (8, 8))
    assert clothes.shape == (1, 3, 8, 8)
    torch.testing.assert_close(clothes, normalise(torch.full_like(clothes, 200)))


def test_the_score_is_a_weighted_sum_by_hand_and_the_cosine_of_joined_features():
    person = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    instruction = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.6, 0.8]])
    parts = uninstructed.scores(person @ person[1], instruction @ instruction[0], 0.25)
    torch.testing.assert_close(torch.stack(parts), torch.tensor([[0.45, 0.75], [0.25, 0.0]]))
    [query] = uninstructed.joined(person[1:], instruction[:1], 0.25)
    photos = uninstructed.joined(person, instruction, 0.25)
    torch.testing.assert_close(photos @ query, sum(parts))
