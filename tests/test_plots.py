"""Pictures: what is drawn where, read from the pixels, and that nothing of it is cut; the points of
curves, and the one reader of a log."""

import json
import os
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import evaluate
import extras.plots
import train
from evaluate import Run
from extras import curves
from instructions import TASKS, Ask, query_instruction
from model import SIZES, InstructReID
from reid import checkpoints, plots
from reid.cli import UserError
from reid.plots import CELL, GAP, HIT, LINE, MISS, QUERY, REMOVED, SMALL, RankRow, top_of
from reid.protocols import GENERAL
from reid.records import Dataset, Record
from reid.runs import read_log
from reid.text import TextEncoder, text_model
from tests.commands import one_line
from tests.test_evaluate import OF_THEIR_OWN, PAINT, ColourModel, cocas, ltcc, root  # noqa: F401  (root is a fixture)
from tests.test_model import TINY
from tests.test_search import model  # noqa: F401  (a fixture)
from tests.trees import JOINED

WHITE = (255, 255, 255)
LEFT = QUERY[1] + 3 * GAP  # of the titles and rankings


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A photo of each colour."""
    folder = tmp_path_factory.mktemp("photos")
    for name, rgb in PAINT.items():
        Image.new("RGB", (8, 16), rgb).save(folder / f"{name}.png")
    return Dataset("ltcc", "LTCC", "cc", folder, ())


def photo(name):
    return Record("ltcc", "gallery", name and f"{name}.png", 1)


def row_of(dataset, ask, verdicts, query="grey"):
    ranking = [(photo("blue"), verdict) for verdict in verdicts]
    return RankRow(dataset, photo(query), "wanted", ask, ranking)


def says(picture, text, middle, y, ground="white", half_width=28):
    """Is exactly that small text, or none, centred below y?"""
    box = (middle - half_width, y, middle + half_width, y + SMALL.size)
    expected = Image.new("RGB", picture.size, ground)
    ImageDraw.Draw(expected).text((middle, y), text, "black", SMALL, anchor="ma")
    return picture.crop(box).tobytes() == expected.crop(box).tobytes()


# ---- ranking lists ----

def test_rows_are_of_queries_with_a_hit_under_their_own_ask_and_distances(dataset):
    def record(pid, cam, modality="visible"):
        return Record("ltcc", "query", "red.png", pid, cam=cam, modality=modality)
    protocol = GENERAL._replace(queries={"cam": (1, 2)}, gallery={"modality": ("visible",)})
    queries = [record(1, 3), record(9, 1), record(1, 1), record(2, 2)]  # no query, no hit, two
    gallery = [record(7, 3, "infrared"), record(2, 3), record(1, 1), record(1, 3)]
    dist = np.array([[0, 3, 2, 1]] * 2 + [[0, 3, 1, 2], [0, 2, 1, 3]])
    variants = {name: ([f"{name} {i}" for i in range(4)], lambda start, end: dist[start:end])
                for name in ("wanted", "own")}
    rows = plots.rank_rows(dataset, protocol, queries, gallery, variants)
    assert [(row.query, row.name, row.ask) for row in rows] == [
        (queries[i], name, f"{name} {i}") for i in (2, 3) for name in variants]
    first = [(gallery[2], REMOVED), (gallery[3], HIT), (gallery[1], MISS)]
    second = [(gallery[2], MISS), (gallery[1], HIT), (gallery[3], MISS)]
    assert [row.ranking for row in rows] == [first, first, second, second]


def test_the_top_is_ten_images_and_few_of_the_removed():
    verdicts = np.array([REMOVED] * 5 + [MISS] * 4 + [REMOVED] + [HIT] * 9)
    order = np.arange(len(verdicts))
    assert top_of(order, verdicts).tolist() == [0, 1, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15]
    backwards = top_of(order[::-1], verdicts)  # 9 is a removed one
    assert backwards.tolist() == [18, 17, 16, 15, 14, 13, 12, 11, 10, 9, 8]
    assert top_of(np.array([1, 0]), np.array([HIT, REMOVED])).tolist() == [1, 0]


def test_ranks_skip_the_removed_image_and_frames_tell_the_verdicts(dataset):
    expected = [("1", HIT), ("", REMOVED), ("2", MISS), ("3", HIT)]
    row = row_of(dataset, Ask("in blue"), [verdict for _, verdict in expected])
    picture = plots.ranking_list([row])
    for k, (_, colour, *_) in enumerate(plots.FRAMES):
        assert picture.getpixel((LEFT + 110 * k, GAP)) == colour  # the legend
    y = 2 * LINE + 4 * GAP  # below the legend and the title
    top = y + SMALL.size + GAP
    for k, (rank, verdict) in enumerate(expected):
        x = LEFT + k * (CELL + GAP)
        assert says(picture, rank, x + CELL // 2, y), f"image {k + 1} is not of rank '{rank}'"
        cell = np.array(picture)[top:top + 2 * CELL, x:x + CELL]
        for edge in (cell[0], cell[-1], cell[:, 0], cell[:, -1]):
            share = (edge == plots.FRAMES[verdict][1]).all(1).mean()
            least, most = {HIT: (1, 1), MISS: (0.55, 0.8), REMOVED: (0.3, 0.5)}[verdict]
            assert least <= share <= most  # solid, dashed, dotted
        inside = (142, 142, 237) if verdict == REMOVED else PAINT["blue"]  # pale
        assert tuple(cell[60, 33]) == inside


@pytest.mark.parametrize("ask, title, first", [
    (Ask("in red"), "wanted: in red", "blue"), (Ask("wanted"), "wanted", "blue"),
    (Ask(picture="red.png"), "wanted clothes", "red"), (None, "wanted", "blue"),
    (Ask("in red", "green.png"), "wanted: in red", "green")])
def test_words_are_the_title_and_clothes_stand_before_the_ranking(ask, title, first, dataset):
    row = row_of(dataset, ask, [None])
    assert row.title == title
    text = row_of(dataset, Ask("of no query photo"), [None], query=None)
    other = row_of(dataset, Ask("of another query"), [None], query="red")
    picture = plots.ranking_list([row, text, other])

    def shows(colour, x, y, width=CELL):
        return all(picture.getpixel((x + i, y)) == colour for i in range(width))

    middle = 2 * GAP + LINE + SMALL.size + GAP + CELL  # unjudged rows have no legend
    assert shows(PAINT[first], LEFT, middle)
    x = LEFT if first == "blue" else LEFT + CELL + 3 * GAP
    assert shows(PAINT["blue"], x, middle)  # without a frame
    assert shows(WHITE, x + CELL, middle, GAP)
    down = LINE + SMALL.size + 2 * CELL + 5 * GAP  # from row to row
    assert shows(PAINT["blue"], LEFT, middle + down)
    for k, query in enumerate((PAINT["grey"], WHITE, PAINT["red"])):
        assert shows(query, GAP, middle + k * down, QUERY[1])


def test_no_sentence_is_cut(dataset):
    for words in (1, 12, 150):
        sentence = " ".join(["sleeveless"] * words)
        lines = plots._wrap(f"wanted: {sentence}", 700)
        assert " ".join(lines) == f"wanted: {sentence}"
        assert all(plots.TEXT.getlength(line) <= 700 for line in lines)
        rows = [row_of(dataset, Ask(sentence, "red.png"), [HIT] * 12)] * 2
        pixels = np.array(plots.ranking_list(rows))
        assert pixels.shape[1] == plots.WIDTH
        assert (pixels[:, -GAP:] == 255).all() and (pixels[-2:] == 255).all()  # the border


def test_a_rare_colour_is_saved_as_it_is(tmp_path):
    pixels = np.random.default_rng(0).integers(60, 140, (300, 300, 3), np.uint8)  # all colours vary
    pixels[:6, :6] = PAINT["red"]
    plots.save(Image.fromarray(pixels), tmp_path / "a.png")
    saved = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"), int)
    assert np.abs(saved - pixels)[:6, :6].max() < 30


# ---- gates and words ----

def test_gates_show_every_value():
    gates = torch.tensor([[0.5, -0.5], [0.0, 0.25]])
    blocks = [SimpleNamespace(attn=SimpleNamespace(gate=gate)) for gate in gates]
    picture = plots.gates(SimpleNamespace(editor=SimpleNamespace(blocks=blocks)))
    half = (242, 188, 128)
    expected = [("+0.50", plots.ORANGE), ("-0.50", plots.BLUE), ("0.50", WHITE),
                ("+0.00", WHITE), ("+0.25", half), ("0.12", WHITE)]
    for k, (value, colour) in enumerate(expected):
        x, y = 80 + k % 3 * 56, 80 + k // 3 * 30
        assert says(picture, value, x + 27, y + 7, colour, half_width=23)
        assert picture.getpixel((x + 4, y + 4)) == colour


@torch.no_grad()
def test_instruction_attention_is_the_gated_second_softmax(model):  # noqa: F811
    """Of Eq. 2, as `maps` forms it, mean over the heads and sum over the layers."""
    image = torch.randn(1, 3, 32, 16)
    instr = model.instruct(["a red coat"])
    inputs = []
    with ExitStack() as hooks:
        for block in filter(lambda block: hasattr(block.attn, "gate"), model.editor.blocks):
            block.attn.gate.data[0] = -0.25
            hook = block.attn.register_forward_pre_hook(lambda *args: inputs.append(args))
            hooks.enter_context(hook)
        model.edit(image, instr)
    expected = 0
    for attn, args in inputs:
        right = attn.maps(*args[:3])[0, :, :, 1 + 8:]
        expected = expected + right.abs().mean(0)
    torch.testing.assert_close(plots.instruction_attention(model, image, instr), expected)


@torch.no_grad()
def test_a_caption_stands_below_the_map_of_its_own_token(model, monkeypatch):  # noqa: F811
    """`(whole) [CLS] red red ... [SEP]`: token j is read by patch j % 8 alone, and by the CLS token
    the more the later it comes."""
    attention = torch.cat([torch.arange(1.0, 17)[None], torch.eye(8).repeat(1, 2)])
    attention[1:, 1::2] += 1  # what all patches read alike is in the caption alone
    monkeypatch.setattr(plots, "instruction_attention", lambda *_: attention)
    picture = plots.word_attention(model, torch.zeros(1, 3, 32, 16), "red coat " * 6 + "hat")
    height, width = plots.WORD
    for j, word in enumerate(["(whole)", "[CLS]", *["red", "coat"] * 6, "hat", "[SEP]"]):
        row, column = divmod(j + 1, 11)  # the first cell is the query
        x = GAP + column * (width + 3 * GAP)
        y = LINE + 3 * GAP + row * (height + 3 * plots.SMALL_LINE + 2 * GAP)
        caption = (word, f"CLS {(j + 1) / 136:.0%}", f"patches {(1 + j % 2 * 8) / 80:.0%}")
        for line, text in enumerate(caption):
            assert says(picture, text, x + width // 2, y + height + 2 + line * plots.SMALL_LINE)
        cell = np.array(picture.crop((x, y, x + width, y + height)))[..., 0].astype(int)
        brightness = [cell[14 + 28 * k, m] for k in range(4) for m in (14, 42)]
        assert np.argmax(brightness) == j % 8 and sorted(brightness)[-2] < 100


# ---- of a run ----

@pytest.mark.parametrize("task", OF_THEIR_OWN)
def test_rows_of_a_query_follow_each_other_under_right_and_wrong_instructions(root, task):  # noqa: F811
    dataset = cocas(root, task)
    [rows] = evaluate.rankings(Run(ColourModel(listen=1.0)), dataset).values()
    names = ["wanted", "own", "random"]
    if task in JOINED:
        names += ["random words", "random picture"]
    assert [row.name for row in rows] == 2 * names
    for query, three in zip(dataset.split("query"), (rows[:3], rows[len(names):])):
        assert {row.query for row in three[:3]} == {query}
        wanted, own, random = (row.ask for row in three[:3])
        assert wanted == query_instruction(task, query) and wanted not in (own, random)
        assert "green" in (own.words or own.picture)
        assert [row.ranking[0][1] for row in three[:3]] == [HIT, MISS, MISS]
        assert len(three[0].ranking) == 4


def test_a_search_for_other_clothes_leaves_the_same_ones_out(root):  # noqa: F811
    [[row, other, *_]] = evaluate.rankings(Run(ColourModel()), ltcc(root)).values()
    said = [TASKS[task].sentences[0] for task in ("cc", TASKS["cc"].opposite)]
    assert [each.name for each in (row, other)] == said
    assert [each.ask.words for each in (row, other)] == said
    verdicts = [(verdict, record.clothes == row.query.clothes) for record, verdict in row.ranking]
    assert verdicts[:2] == [(REMOVED, True), (MISS, False)]


@pytest.mark.parametrize("task", ["all", *JOINED])
def test_all_pictures_of_a_checkpoint_by_one_command(task, drawn, bert, command, monkeypatch):
    monkeypatch.setitem(SIZES, "tiny", TINY)
    small = InstructReID("tiny", {"ltcc": 2}, text=TextEncoder(*text_model(bert)))
    config = asdict(train.Config(task="all", data=str(drawn), amp="off", text_model=str(bert)))
    state = {"config": config, "step": 1} | evaluate.parts_of(small, {"ltcc": 2})
    checkpoints.save(Path("last.pt"), state)
    code, out, err = command(extras.plots, "--checkpoint", "last.pt", "--task", task)
    assert code == 0, err
    found = {path.stem: Image.open(path) for path in Path().glob("*.png")}
    for dataset in evaluate.tested_datasets(drawn, task):
        row = TASKS[dataset.task]
        name = f"{dataset.name}_{dataset.task}"
        assert any(stem.startswith(f"ranking_{name}_") for stem in found)
        has_words = not (row.pictures or row.text_only)  # that edit an image
        assert (f"attention_{name}" in found) == has_words
    assert "gates" in found and out.count("wrote") == len(found)
    assert all(picture.width <= plots.WIDTH for picture in found.values())


# ---- curves ----

def losses(step, task="cc", **terms):
    return {"step": step, "task": task, "losses": terms, "seconds": 1.0}


def result(task, protocol, mAP, feature="F"):
    return {"task": task, "data": "LTCC", "protocol": protocol, "feature": feature, "mAP": mAP}


def evaluation(step, *rows):
    return {"step": step, "rows": list(rows), "matrix": [], "seconds": 1.0}


LOG = [
    losses(1, tri=90.0, id=5.0), losses(50, tri=1.5, id=2.0), losses(50, "li", tri=7.0),
    losses(100, tri=1.0, id=0.5),
    evaluation(100, result("cc", "general", 0.25), result("cc", "general", 0.2, "F_out"),
               result("cc", "cc", 0.1)),
    evaluation(200, result("cc", "general", 0.5), result("li", "strict", 1)),
]


def write(folder, lines):
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return str(folder)


def points(axes):
    return [line.get_xydata().tolist() for line in axes.lines]


def texts(legend):
    return [text.get_text() for text in legend.get_texts()]


def test_the_points_of_a_log_by_hand():
    """Sums of the terms, mAP in percent. A task's first step is drawn only where it is alone."""
    figure = curves.draw({"a": LOG, "$b": LOG[:2]})
    cc_loss, cc_score, li_loss, li_score = figure.axes
    assert [axes.get_title().split(":")[0] for axes in figure.axes] == ["cc", "cc", "li", "li"]
    assert points(cc_loss) == [[[50, 3.5], [100, 1.5]], [[50, 3.5]]]
    assert points(cc_score) == [[[100, 25], [200, 50]], [[100, 20]], [[100, 10]]]
    assert points(li_loss) == [[[50, 7]], []] and points(li_score) == [[[200, 100]]]
    assert texts(cc_score.get_legend()) == ["LTCC general F", "LTCC general F_out", "LTCC cc F"]
    assert len({line.get_linestyle() for line in cc_score.lines}) == 3


def test_28_runs_are_28_curves_that_differ():
    runs = {f"run {k}": [losses(1, tri=1.0), losses(2, tri=float(k))] for k in range(28)}
    figure = curves.draw(runs)
    [legend] = figure.legends
    assert points(figure.axes[0]) == [[[2, k]] for k in range(28)] and texts(legend) == list(runs)
    drawn, named = ([(line.get_color(), line.get_marker()) for line in lines]
                    for lines in (figure.axes[0].lines, legend.get_lines()))
    assert drawn == named and len(set(drawn)) == 28


def test_the_command_draws_and_names_a_folder_without_a_log(command, tmp_path):
    a = write(tmp_path / "runs/_$x^$", LOG)
    code, out, err = command(curves, a, "--out", "both.png")
    assert code == 0 and "both.png" in out, err
    assert Image.open("both.png").format == "PNG"

    nothing = write(tmp_path / "runs/nothing", [])
    for folder in (nothing, tmp_path):
        one_line(command(curves, a, folder, "--out", "c.png"), f"{folder}: no log.jsonl")
    one_line(command(curves, a, "--out", "a.jpg"), "--out a.jpg: name a .png")
    assert not Path("c.png").exists()


LOSSES, ROWS = json.dumps(LOG[0]), json.dumps(LOG[4])


@pytest.mark.parametrize("line", [
    '{"step": 1', "5", "{}", "\udcff", LOSSES.replace("90.0", '"x"'), LOSSES.replace("90.0", "NaN"),
    LOSSES.replace("task", "text"), ROWS.replace("mAP", "R1"),
    json.dumps(LOG[4] | LOG[0] | {"rows": 5})])
def test_a_line_that_no_run_wrote_is_one_sentence(line, tmp_path):
    folder = write(tmp_path / "a", LOG[:2])
    assert read_log(folder) == LOG[:2]
    with open(tmp_path / "a/log.jsonl", "a", errors="surrogateescape") as file:
        file.write(f"{line}\n")
    with pytest.raises(UserError) as error:
        read_log(folder)
    where = "log.jsonl: cannot be read as UTF-8" if line == "\udcff" else "log.jsonl, line 3"
    assert f"{folder}/{where}" in str(error.value) and "\n" not in str(error.value)


def test_a_log_that_is_absent_is_empty_and_a_named_pipe_is_refused(tmp_path):
    assert read_log(tmp_path) == []
    os.mkfifo(tmp_path / "log.jsonl")
    with pytest.raises(UserError, match="log.jsonl: a pipe, not a file"):
        read_log(tmp_path)
