"""Pictures that show whether an instruction was followed: ranking lists, gates, instruction attention word by word.

Drawn with Pillow, at most WIDTH pixels wide, so that README shows them unscaled.
Letters in shapes: n image tokens (CLS first), t instruction tokens, h heads, l layers.
"""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from instructions import TASKS
from reid.images import MEAN, STD, load_image
from reid.records import Dataset, Record

WIDTH, GAP, LINE = 830, 6, 20  # pixels: the picture, between cells, a line of text
TEXT, SMALL = ImageFont.load_default(15), ImageFont.load_default(12)
QUERY, CELL, WORD = (144, 72), 66, 56  # (height, width) of a query; width of a ranked image, at most, and of a map
TOP, LEFT_OUT = 10, 2  # ranked images of a row, and removed ones that are shown among them
HIT, MISS, REMOVED = 0, 1, 2
FRAMES = (  # what it means, colour, (dash, space): the styles differ without colour too
    ("right", (0, 130, 60), None),
    ("wrong", (215, 30, 30), (12, 6)),
    ("left out by the protocol", (130, 130, 130), (3, 5)))
FRAME = 4  # thickness


class RankRow(NamedTuple):
    """One line of a ranking picture: a query under one instruction."""
    dataset: Dataset
    query: Record
    name: str  # of the instruction: wanted, own, random, or the sentence itself
    instruction: str  # a sentence, or for ctcc the path of a picture
    ranking: list  # [(record, HIT, MISS or REMOVED)], nearest first


# ---- ranking lists ----

def top_of(order, verdicts):
    """The part of a ranking that is shown: its first TOP images and, of the removed among them, the first LEFT_OUT."""
    removed = verdicts[order] == REMOVED
    last = np.flatnonzero(~removed)[:TOP][-1]
    shown = ~removed | (removed.cumsum() <= LEFT_OUT)
    return order[:last + 1][shown[:last + 1]]


def rankings(rows):
    """A picture as in Supp. Fig. 1-2: a query, its instructions one below the other, and under each the ranking.

    The right answers have a solid green frame, the wrong ones a dashed red one, those that the protocol leaves out a
    dotted grey one and pale colours; they take no rank.
    """
    left, pictured = 3 * GAP + QUERY[1], TASKS[rows[0].dataset.task].pictures
    cells = max(len(row.ranking) for row in rows) + pictured
    width = min(CELL, (WIDTH - left - 3 * GAP) // cells - GAP)
    heads = [_wrap(_head(row), TEXT, WIDTH - left - GAP) for row in rows]
    heights = [len(lines) * LINE + SMALL.size + 2 * width + 5 * GAP for lines in heads]
    picture = Image.new("RGB", (WIDTH, LINE + 4 * GAP + sum(heights)), "white")
    draw, x, y = ImageDraw.Draw(picture), left, LINE + 4 * GAP
    for style, (word, *_) in enumerate(FRAMES):
        _frame(draw, (x, GAP, x + 24, GAP + LINE), style)
        draw.text((x + 32, GAP + 1), word, "black", TEXT)
        x += 110
    before = None
    for row, lines, height in zip(rows, heads, heights):
        if row.query is not before:
            draw.line((GAP, y - GAP, WIDTH - GAP - 1, y - GAP), (200, 200, 200))
            if row.query.path is not None:
                draw.text((GAP, y), "query", "black", TEXT)
                picture.paste(_open(row.dataset, row.query.path, QUERY), (GAP, y + LINE))
        draw.multiline_text((left, y), "\n".join(lines), "black", TEXT, spacing=LINE - TEXT.size)
        _rank_row(picture, draw, row, left, y + len(lines) * LINE, width)
        before, y = row.query, y + height
    return picture


def stack(pictures):
    """Pictures one below the other."""
    whole = Image.new("RGB", (WIDTH, sum(picture.height for picture in pictures)), "white")
    top = 0
    for picture in pictures:
        whole.paste(picture, (0, top))
        top += picture.height
    return whole


def _head(row):
    if TASKS[row.dataset.task].pictures:
        return f"{row.name} clothes"
    return row.instruction if row.name == row.instruction else f"{row.name}: {row.instruction}"


def _rank_row(picture, draw, row, x, y, w):
    h, rank, top = 2 * w, 0, y + SMALL.size + GAP
    if TASKS[row.dataset.task].pictures:
        picture.paste(_open(row.dataset, row.instruction, (w, w)), (x, top + (h - w) // 2))
        x += w + 3 * GAP
    for record, verdict in row.ranking:
        image = _open(row.dataset, record.path, (h, w))
        if verdict == REMOVED:
            image = Image.blend(image, Image.new("RGB", image.size, "white"), 0.5)
        else:
            rank += 1
            draw.text((x + w // 2, y), str(rank), "black", SMALL, anchor="ma")
        picture.paste(image, (x, top))
        _frame(draw, (x, top, x + w, top + h), verdict)
        x += w + GAP


def _frame(draw, box, style):
    (left, top, right, bottom), (_, colour, dash) = box, FRAMES[style]
    if dash is None:
        draw.rectangle((left, top, right - 1, bottom - 1), outline=colour, width=FRAME)
        return
    on, off = dash
    for a in range(left, right, on + off):
        for edge in (top, bottom - FRAME):
            draw.rectangle((a, edge, min(a + on, right) - 1, edge + FRAME - 1), fill=colour)
    for a in range(top, bottom, on + off):
        for edge in (left, right - FRAME):
            draw.rectangle((edge, a, edge + FRAME - 1, min(a + on, bottom) - 1), fill=colour)


def _open(dataset, path, size):
    return Image.fromarray(load_image(dataset.root / path, size).permute(1, 2, 0).numpy())


def _wrap(text, font, width):
    """Lines of whole words, none wider than `width` pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


# ---- what the model does with the instruction ----

def gates(model):
    """The gates of Eq. 2, one row per layer and one column per head: blue is negative, orange positive, white 0."""
    values = torch.stack([block.attn.gate.detach().float().cpu() for block in model.editor.blocks]).numpy()
    (layers, heads), side, left, top = values.shape, (56, 30), 80, 4 * LINE
    picture = Image.new("RGB", (max(left + (heads + 1) * side[0] + GAP, 480), top + layers * side[1] + GAP), "white")
    draw, largest = ImageDraw.Draw(picture), max(np.abs(values).max(), 1e-6)
    draw.multiline_text((GAP, GAP), "The gate g of every head, 0 before training: how much of what it reads\n"
                        "from the instruction is added (orange) or subtracted (blue)", "black", TEXT)
    for column in range(heads + 1):
        name = f"head {column + 1}" if column < heads else "mean |g|"
        draw.text((left + column * side[0] + side[0] // 2, top - LINE), name, "black", SMALL, anchor="ma")
    for layer, row in enumerate(values):
        y = top + layer * side[1]
        draw.text((GAP, y + 6), f"layer {layer + 1}", "black", TEXT)
        for column, value in enumerate([*row, np.abs(row).mean()]):
            x, hue = left + column * side[0], (230, 120, 0) if value > 0 else (40, 110, 220)
            shade = abs(value) / largest if column < heads else 0
            draw.rectangle((x, y, x + side[0] - 3, y + side[1] - 3), outline=(200, 200, 200),
                           fill=tuple(round(255 + shade * (c - 255)) for c in hue))
            text = f"{value:+.2f}" if column < heads else f"{value:.2f}"
            draw.text((x + side[0] // 2 - 1, y + 7), text, "black", SMALL, anchor="ma")
    return picture


def instruction_attention(model, image, instr):
    """How much each image token reads from each instruction token, (n t): the second softmax of Eq. 2 times |g|, mean
    over the heads and summed over the layers. image (1 3 H W), instr an Instruction of one."""
    read = []

    def note(attention, args, _):
        x, instr, mask = args[:3]
        maps = attention.maps(x, instr, mask)                       # (b h n n+t)
        read.append(maps[..., x.shape[1]:].abs().mean(1).float())   # |g * softmax|, (b n t)

    hooks = [block.attn.register_forward_hook(note) for block in model.editor.blocks]
    try:
        model.edit(image, instr)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(read).sum(0)[0].cpu()


def attention(model, image, sentence):
    """One small map per word of the sentence: where on the body it is read, and its share of all that the CLS token and
    the mean patch read.

    Bright yellow: this patch reads the word more than the patch that reads it least; one scale for all words.
    image (1 3 H W), normalised.
    """
    read = instruction_attention(model, image, model.instruct([sentence]))
    tokenizer, longest = model.encoder.text.tokenizer, model.encoder.text.MAX_TOKENS
    ids = tokenizer(sentence, truncation=True, max_length=longest)["input_ids"]
    words = ["(whole)"] + tokenizer.convert_ids_to_tokens(ids)
    patches = read[-model.editor.grid[0] * model.editor.grid[1]:]  # they come last
    shares = [(row / row.sum()).tolist() for row in (read[0], patches.mean(0))]
    heat = (patches - patches.amin(0)).T.view(-1, *model.editor.grid)
    heat = (255 * heat / heat.max().clamp(min=1e-6)).byte().numpy()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    person = ((image[0].float().cpu() * std + mean).clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
    person = Image.fromarray(person).resize((WORD, 2 * WORD), Image.Resampling.BICUBIC)
    dark = person.convert("L").point(lambda grey: grey // 2).convert("RGB")
    yellow = Image.new("RGB", person.size, (255, 225, 0))
    lines = _wrap(f"Where each word is read: {sentence}", TEXT, WIDTH - 2 * GAP)
    step, top, notes = WORD + 3 * GAP, len(lines) * LINE + 3 * GAP, ("CLS {:.0%}", "patches {:.0%}")
    across, height = (WIDTH - GAP) // step, 2 * WORD + 3 * (SMALL.size + 3) + 2 * GAP
    picture = Image.new("RGB", (WIDTH, top + -(-(len(words) + 1) // across) * height), "white")
    draw = ImageDraw.Draw(picture)
    draw.multiline_text((GAP, GAP), "\n".join(lines), "black", TEXT, spacing=LINE - TEXT.size)
    masks = [Image.fromarray(word).resize(person.size, Image.Resampling.BICUBIC) for word in heat]
    cells = [(person, ["query"])] + [
        (Image.composite(yellow, dark, mask), [word, *(note.format(share) for note, share in zip(notes, both))])
        for word, mask, *both in zip(words, masks, *shares)]
    for k, (shown, text) in enumerate(cells):
        x, y = GAP + k % across * step, top + k // across * height
        picture.paste(shown, (x, y))
        for i, line in enumerate(text):
            draw.text((x + WORD // 2, y + 2 * WORD + 2 + i * (SMALL.size + 3)), line, "black", SMALL, anchor="ma")
    return picture
