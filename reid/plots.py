"""Plots that show whether an instruction was followed: rankings, gates, attention to words.

Drawn with Pillow, at most WIDTH pixels wide, so that README shows them unscaled.
Letters in shapes: n image tokens (CLS first), t instruction tokens, h heads, l layers.
"""

import math
from contextlib import ExitStack
from itertools import compress
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont

from reid.files import replacing
from reid.images import MEAN, STD, load_image
from reid.protocols import answerable, columns, indices_of, masks
from reid.records import Dataset, Record

TEXT = ImageFont.load_default(15)
SMALL = ImageFont.load_default(12)

# pixels
WIDTH = 830
GAP = 6            # between cells
LINE = 20          # a line of TEXT
SMALL_LINE = SMALL.size + 3
QUERY = (144, 72)  # (height, width) of a query
CELL = 66          # width of a ranked image, at most; it is twice as high
FRAME = 4          # thickness of its frame
WORD = (112, 56)   # (height, width) of the map of a word
GATE = (30, 56)    # (height, width) of a gate

TOP = 10      # ranked images of a row
LEFT_OUT = 2  # removed images that are shown among them

HIT, MISS, REMOVED = range(3)
FRAMES = (  # by verdict: meaning, colour, lengths of dashes and gaps (for the colour-blind)
    ("right", (0, 130, 60), WIDTH, 0),  # one dash: a solid line
    ("wrong", (215, 30, 30), 12, 6),
    ("left out by the protocol", (130, 130, 130), 3, 5),
)
GREY = (200, 200, 200)
ORANGE = (230, 120, 0)
BLUE = (40, 110, 220)
YELLOW = (255, 225, 0)


# ---- ranking lists ----

class RankRow(NamedTuple):
    """One row of a ranking list: a query with one instruction."""
    dataset: Dataset
    query: Record
    name: str  # of the instruction: wanted, own, random, or the sentence itself
    ask: object  # None, or with .words and .picture (a path below dataset.root), None if absent
    ranking: list  # [(record, HIT, MISS, REMOVED or None)], nearest first; None: not judged

    @property
    def clothes(self):
        """The path of the instruction's picture of clothes, or None."""
        return self.ask and self.ask.picture

    @property
    def title(self):
        words = self.ask and self.ask.words
        if words and words != self.name:
            return f"{self.name}: {words}"
        return f"{self.name} clothes" if self.clothes else self.name


def rank_rows(dataset, protocol, queries, gallery, variants, people=2):
    """RankRows of `people` queries with each of several instructions. The queries are not chosen by
    result but spread evenly over those with a hit.

    variants: {name: (an Ask for each query, a function (start, end) -> distances (c g) of that
    slice of the queries)}.
    """
    places = indices_of(gallery, protocol.gallery)
    gallery = [gallery[i] for i in places]
    candidates = indices_of(queries, protocol.queries)
    has_hit = answerable(protocol, [queries[i] for i in candidates], gallery)
    candidates = list(compress(candidates, has_hit))

    rows = []
    for place in np.linspace(0, len(candidates) - 1, min(people, len(candidates))).astype(int):
        i = candidates[place]
        [positive], [removed] = masks(protocol, *columns([queries[i]], gallery))
        verdicts = np.where(positive, HIT, MISS)
        verdicts[removed] = REMOVED
        for name, (asks, distances) in variants.items():
            [dist] = distances(i, i + 1)
            order = np.argsort(dist[places], kind="stable")
            ranking = [(gallery[j], verdicts[j]) for j in top_of(order, verdicts)]
            rows.append(RankRow(dataset, queries[i], name, asks[i], ranking))
    return rows


def top_of(order, verdicts):
    """The part of a ranking that is drawn, as indices of the gallery: the first TOP images that are
    not removed, and the first LEFT_OUT removed images among them.

    order (g,): indices of the gallery, nearest first; verdicts (g,): HIT, MISS or REMOVED.
    """
    removed = verdicts[order] == REMOVED
    ranked = np.flatnonzero(~removed)
    end = ranked[:TOP][-1] + 1
    kept = ~removed | (removed.cumsum() <= LEFT_OUT)
    return order[:end][kept[:end]]


def ranking_list(rows):
    """A plot as in Supp. Fig. 1-2: a query and, for each of its instructions, the ranking.
    rows: RankRows of one data set; those of a query follow each other.

    Right answers have a solid green frame, wrong ones a dashed red one. Images that the protocol
    leaves out are pale, with a dotted grey frame and without a rank. Without verdicts there are no
    frames and no legend.
    """
    left = QUERY[1] + 3 * GAP
    room = WIDTH - left - GAP
    longest = max(len(row.ranking) + bool(row.clothes) for row in rows)
    cell = min(CELL, (room - 2 * GAP) // longest - GAP)
    titles = [_wrap(row.title, room) for row in rows]
    judged = any(verdict is not None for row in rows for _, verdict in row.ranking)

    y = LINE + 4 * GAP if judged else 2 * GAP
    height = SMALL.size + 2 * cell + 5 * GAP  # of a ranking
    picture = _blank(WIDTH, y + sum(len(title) * LINE + height for title in titles))
    draw = ImageDraw.Draw(picture)
    for verdict, (meaning, *_) in enumerate(FRAMES if judged else ()):
        x = left + 110 * verdict
        picture.paste(_framed(_blank(24, LINE), verdict), (x, GAP))
        draw.text((x + 32, GAP + 1), meaning, "black", TEXT)

    query = None
    for row, title in zip(rows, titles):
        if row.query is not query:
            query = row.query
            above = y - GAP
            draw.line((GAP, above, WIDTH - GAP - 1, above), GREY)
            if query.path is not None:
                draw.text((GAP, y), "query", "black", TEXT)
                photo = _photo(row, query.path, QUERY)
                picture.paste(photo, (GAP, y + LINE))
        _text(draw, left, y, title)
        y += len(title) * LINE
        _ranking(picture, row, left, y, cell)
        y += height
    return picture


def _ranking(picture, row, x, y, width):
    """The instruction's picture, if any, and the ranked images with their ranks above."""
    draw = ImageDraw.Draw(picture)
    height = 2 * width
    top = y + SMALL.size + GAP
    if row.clothes:
        clothes = _photo(row, row.clothes, (width, width))
        picture.paste(clothes, (x, top + (height - width) // 2))
        x += width + 3 * GAP

    rank = 0
    for record, verdict in row.ranking:
        image = _photo(row, record.path, (height, width))
        if verdict == REMOVED:
            image = Image.blend(image, _blank(width, height), 0.5)
        else:
            rank += 1
            _centred(draw, x + width // 2, y, str(rank))
        if verdict is not None:
            image = _framed(image, verdict)
        picture.paste(image, (x, top))
        x += width + GAP


def _photo(row, path, size):
    """An image file of the row's data set as a Pillow image of `size` (height, width)."""
    return _picture(load_image(row.dataset.root / path, size))


def _framed(picture, verdict):
    """The image with the frame of a verdict inside its edges."""
    _, colour, dash, space = FRAMES[verdict]
    pixels = np.array(picture)
    height, width, _ = pixels.shape
    down = np.arange(height) % (dash + space) < dash
    across = np.arange(width) % (dash + space) < dash
    for edge in (slice(FRAME), slice(-FRAME, None)):
        pixels[edge, across] = colour
        pixels[down, edge] = colour
    return Image.fromarray(pixels)


# ---- gates ----

GATES_TITLE = ("The gate g of every head, 0 before training: how much of what it reads\n"
               "from the instruction is added (orange) or subtracted (blue)")


def gates(model):
    """The gates of Eq. 2: a row per layer, a column per head, and the mean |g| of each layer. Blue
    is negative, orange positive, white 0."""
    edited = edited_layers(model)
    values = torch.stack([attention.gate.detach() for attention in edited.values()])
    values = values.float().cpu().numpy()  # (l h)
    largest = max(np.abs(values).max(), 1e-6)
    headings = [f"head {head + 1}" for head in range(values.shape[1])] + ["mean |g|"]

    height, width = GATE
    left = 80
    top = 4 * LINE
    right = left + len(headings) * width + GAP
    picture = _blank(max(right, 480), top + len(values) * height + GAP)  # 480: as the title
    draw = ImageDraw.Draw(picture)
    draw.multiline_text((GAP, GAP), GATES_TITLE, "black", TEXT)
    for column, heading in enumerate(headings):
        _centred(draw, left + column * width + width // 2, top - LINE, heading)

    for y, layer, row in zip(range(top, picture.height, height), edited, values):
        draw.text((GAP, y + 6), f"layer {layer + 1}", "black", TEXT)
        cells = [(f"{value:+.2f}", _shade(value / largest)) for value in row]
        cells.append((f"{np.abs(row).mean():.2f}", "white"))
        for column, (text, colour) in enumerate(cells):
            x = left + column * width
            draw.rectangle((x, y, x + width - 3, y + height - 3), outline=GREY, fill=colour)
            _centred(draw, x + width // 2 - 1, y + 7, text)
    return picture


def edited_layers(model):
    """{index of a layer: its attention}, for the layers that an instruction edits."""
    attentions = {i: block.attn for i, block in enumerate(model.editor.blocks)}
    return {i: attn for i, attn in attentions.items() if hasattr(attn, "gate")}


def _shade(value):
    """White at 0, orange at 1, blue at -1."""
    hue = ORANGE if value > 0 else BLUE
    return tuple(round(255 + abs(value) * (channel - 255)) for channel in hue)


# ---- attention to the instruction, word by word ----

def word_attention(model, image, sentence):
    """A small map for each word of the sentence: which patches attend to it, and its share of the
    attention of the CLS token and of the average patch. image (1 3 H W), normalised.

    Bright yellow: the patch attends to the word much more than the patch that does so least; all
    words have the same scale.
    """
    attention = instruction_attention(model, image, model.instruct([sentence]))
    rows, columns = model.editor.grid
    patches = attention[-rows * columns:]  # they come last, row by row
    heat = patches - patches.amin(0)
    heat = 255 * heat / heat.max().clamp(min=1e-6)
    heat = rearrange(heat.byte(), "(row column) t -> t row column", row=rows)

    mean = torch.tensor(MEAN).view(3, 1, 1)
    std = torch.tensor(STD).view(3, 1, 1)
    pixels = image[0].float().cpu() * std + mean
    pixels = pixels.clamp(0, 1) * 255
    person = _map_size(_picture(pixels.byte()))
    dark = person.convert("L").point(lambda value: value // 2).convert("RGB")
    yellow = Image.new("RGB", person.size, YELLOW)

    cells = [(person, ["query"])]
    text = model.encoder.text
    tokens = text.tokenizer(sentence, truncation=True, max_length=text.MAX_TOKENS)["input_ids"]
    words = ["(whole)", *text.tokenizer.convert_ids_to_tokens(tokens)]
    cls = attention[0] / attention[0].sum()
    patch = patches.mean(0) / patches.mean(0).sum()
    for j, word in enumerate(words):
        mask = _map_size(Image.fromarray(heat[j].numpy()))
        caption = (word, f"CLS {cls[j]:.0%}", f"patches {patch[j]:.0%}")
        cells.append((Image.composite(yellow, dark, mask), caption))
    return _table(f"Where each word is read: {sentence}", cells)


def instruction_attention(model, image, instr):
    """How much each image token attends to each instruction token, (n t): the second softmax of
    Eq. 2 times |g|, averaged over heads and summed over layers.

    image (1 3 H W), instr an Instruction of one.
    """
    layers = []

    def keep(attention, args, _):
        x, tokens, mask = args[:3]
        maps = attention.maps(x, tokens, mask)   # M of Eq. 2, (b h n n+t)
        to_instr = maps[..., x.shape[1]:].abs()  # |g * softmax|, (b h n t)
        layers.append(to_instr.mean(1).float())

    with ExitStack() as hooks:
        for attention in edited_layers(model).values():
            hooks.enter_context(attention.register_forward_hook(keep))
        model.edit(image, instr)
    return torch.stack(layers).sum(0)[0].cpu()


def _map_size(picture):
    return picture.resize(WORD[::-1], Image.Resampling.BICUBIC)


def _table(title, cells):
    """A title, and cells (image, lines below it) in rows of as many as fit."""
    lines = _wrap(title, WIDTH - 2 * GAP)
    map_height, map_width = WORD
    width = map_width + 3 * GAP
    height = map_height + 3 * SMALL_LINE + 2 * GAP
    across = (WIDTH - GAP) // width

    top = len(lines) * LINE + 3 * GAP
    table = _blank(WIDTH, top + math.ceil(len(cells) / across) * height)
    draw = ImageDraw.Draw(table)
    _text(draw, GAP, GAP, lines)
    for k, (picture, caption) in enumerate(cells):
        x = GAP + k % across * width
        y = top + k // across * height
        table.paste(picture, (x, y))
        for i, line in enumerate(caption):
            _centred(draw, x + map_width // 2, y + map_height + 2 + i * SMALL_LINE, line)
    return table


# ---- images, text, files ----

def save(picture, path):
    """Writes a .png with 256 colours, rare ones among them; UserError if it cannot."""
    few = picture.quantize(method=Image.Quantize.MAXCOVERAGE, kmeans=1)
    with replacing(path) as file:
        few.save(file, "PNG", optimize=True)


def _picture(pixels):
    """uint8 (3 H W) -> Pillow."""
    return Image.fromarray(rearrange(pixels, "c h w -> h w c").numpy())


def _blank(width, height):
    return Image.new("RGB", (width, height), "white")


def _text(draw, x, y, lines):
    text = "\n".join(lines)
    draw.multiline_text((x, y), text, "black", TEXT, spacing=LINE - TEXT.size)


def _centred(draw, middle, y, line):
    """A small line of text below y, centred at x = middle."""
    draw.text((middle, y), line, "black", SMALL, anchor="ma")


def _wrap(text, width):
    """The text in lines of at most `width` pixels, broken between words."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and TEXT.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
