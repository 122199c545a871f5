"""Pictures: what is shown, and that nothing of it is cut."""

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
from reid.features import Features
from model import InstructReID
from reid import pictures
from reid.pictures import FRAMES, HIT, MISS, REMOVED, RankRow, top_of
from reid.text import EmbeddedTextEncoder
from tests.test_evaluate import PAINT, ColourModel, cocas, ltcc, root  # noqa: F401  (root is a fixture)


def test_the_top_shows_ten_and_few_of_the_removed():
    verdicts = np.array([REMOVED] * 5 + [MISS] * 4 + [REMOVED] + [HIT] * 9)
    order = np.arange(len(verdicts))
    assert top_of(order, verdicts).tolist() == [0, 1, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15]
    assert top_of(order[::-1], verdicts).tolist() == [18, 17, 16, 15, 14, 13, 12, 11, 10, 9, 8]  # 9 is a removed one
    assert top_of(np.array([1, 0]), np.array([HIT, REMOVED])).tolist() == [1, 0]


def test_rows_of_a_query_follow_each_other_under_right_and_wrong_instructions(root):
    rows = evaluate.rank_rows(Features(ColourModel(listen=1.0)), cocas(root, "ctcc"))
    assert [row.name for row in rows] == ["wanted", "own", "random"] * 2
    assert [row.instruction for row in rows] == ["red.png", "green.png", "blue.png", "blue.png", "green.png", "red.png"]
    assert rows[0].query is rows[1].query is rows[2].query is not rows[3].query
    assert rows[0].ranking[0][1] == HIT and rows[1].ranking[0][1] == MISS  # the wanted colour, its own
    sentences = evaluate.rank_rows(Features(ColourModel()), ltcc(root), people=1)
    assert [row.name for row in sentences] == ["change your clothes", "do not change clothes"]
    shown = sentences[0].ranking  # targets in other clothes; the same clothes rank first, and are left out
    assert [(verdict, record.clothes == sentences[0].query.clothes) for record, verdict in shown[:2]] == [
        (REMOVED, True), (MISS, False)]


def frame_colours(picture, x, y, width):
    return [picture.getpixel((x + i, y)) for i in range(width)]


def test_frames_differ_in_style_and_in_colour(root):
    dataset = ltcc(root)
    record = dataset.records[-1]
    ranking = [(record, verdict) for verdict in (HIT, MISS, REMOVED)]
    picture = pictures.ranking_list([RankRow(dataset, dataset.records[0], "wanted", "change your clothes", ranking)])
    x, y = 3 * pictures.GAP + pictures.QUERY[1], 2 * pictures.LINE + 5 * pictures.GAP + pictures.SMALL.size
    shares = []
    for k, (_, colour, _) in enumerate(FRAMES):
        edge = frame_colours(picture, x + k * (pictures.CELL + pictures.GAP), y, pictures.CELL)
        shares.append(edge.count(colour) / len(edge))
        assert edge[0] == colour
    assert shares[0] == 1 and 0.55 < shares[1] < 0.8 and 0.3 < shares[2] < 0.5  # solid, dashed, dotted
    bright = [sum(picture.getpixel((x + k * (pictures.CELL + pictures.GAP) + 33, y + 60))) for k in range(3)]
    assert bright[0] == bright[1] < bright[2]  # what is left out is pale


@pytest.mark.parametrize("words", (1, 12, 60, 150))
def test_no_sentence_is_cut(root, words):
    dataset, sentence = cocas(root, "li"), " ".join(["sleeveless"] * words)
    row = RankRow(dataset, dataset.records[0], "wanted", sentence, [(dataset.records[-1], HIT)] * 12)
    lines = pictures._wrap(f"wanted: {sentence}", pictures.TEXT, 700)
    assert " ".join(lines) == f"wanted: {sentence}" and all(pictures.TEXT.getlength(line) <= 700 for line in lines)
    picture = pictures.ranking_list([row, row])
    assert picture.width == pictures.WIDTH
    pixels = np.array(picture)
    assert (pixels[:, -pictures.GAP:] == 255).all() and (pixels[-2:] == 255).all()  # nothing runs into the border


def test_the_instruction_picture_is_shown(root):
    rows = evaluate.rank_rows(Features(ColourModel(listen=1.0)), cocas(root, "ctcc"), people=1)
    picture = pictures.ranking_list(rows)
    assert PAINT["red"] in frame_colours(picture, 3 * pictures.GAP + pictures.QUERY[1] + 20, 140, 20)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    small = dict(size=(32, 16), patch=8, dim=32, depth=2, heads=2, stem="patch",
                 picture_size=(16, 16), picture_depth=1, fusion_depth=1)
    return InstructReID(small, {"ltcc": 2}, text=EmbeddedTextEncoder()).eval()


def test_gates_show_every_value(model):
    with torch.no_grad():
        model.editor.blocks[0].attn.gate.copy_(torch.tensor([0.5, -0.5]))
    picture = pictures.gates(model)
    positive, negative, zero = (picture.getpixel((84 + column * 56, y)) for column, y in ((0, 90), (1, 90), (0, 120)))
    assert positive[0] > positive[2] and negative[2] > negative[0] and zero == (255, 255, 255)


@torch.no_grad()
def test_instruction_attention_is_the_second_half_of_the_maps(model):
    for block in model.editor.blocks:
        block.attn.gate.copy_(torch.tensor([0.5, -0.25]))
    image, instr = torch.randn(1, 3, 32, 16), model.instruct(["a red coat"])
    read = pictures.instruction_attention(model, image, instr)
    assert read.shape == (1 + 8, instr.tokens.shape[1])
    # each head's softmax sums to 1 and is scaled by |g|: mean over heads 0.375, two layers
    torch.testing.assert_close(read.sum(1), torch.full((9,), 0.75))
    assert not any(block.attn._forward_hooks for block in model.editor.blocks)


@torch.no_grad()
def test_every_word_has_a_map(model):
    for block in model.editor.blocks:
        block.attn.gate.fill_(1.0)
    image = torch.randn(1, 3, 32, 16)
    few, many = (pictures.word_attention(model, image, " ".join(["red"] * n)) for n in (3, 30))
    across = (pictures.WIDTH - pictures.GAP) // (pictures.WORD[1] + 3 * pictures.GAP)
    assert few.width == many.width == pictures.WIDTH
    row = pictures.WORD[0] + 3 * pictures.SMALL_LINE + 2 * pictures.GAP
    more = -(-(30 + 4) // across) - 1  # rows of cells: the query, the whole, [CLS], the words and [SEP]
    assert many.height - few.height == more * row + pictures.LINE


def test_all_pictures_of_a_checkpoint_by_one_command(model, root, tmp_path):
    evaluate.draw(Features(model), [ltcc(root), cocas(root, "li"), cocas(root, "ctcc")], tmp_path)
    names = ("gates", "ranking_ltcc_cc", "attention_ltcc_cc", "ranking_cocas_li", "attention_cocas_li",
             "ranking_cocas_ctcc")
    assert {path.stem for path in tmp_path.glob("*.png")} >= set(names)
    for name in names:
        assert Image.open(tmp_path / f"{name}.png").width <= pictures.WIDTH
