"""Pictures that show whether an instruction was followed: ranking lists, gates, word attention.

Drawn with Pillow, at most WIDTH pixels wide, so that README shows them unscaled.
Letters in shapes: n image tokens (CLS first), t instruction tokens, h heads, l layers.
"""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from cli import UserError
from data import MEAN, STD, Dataset, Record, load_image

TEXT = ImageFont.load_default(15)
SMALL = ImageFont.load_default(12)

# pixels
WIDTH = 830
GAP = 6           # between cells
LINE = 20         # a line of TEXT
SMALL_LINE = SMALL.size + 3
QUERY = (144, 72)  # (height, width) of a query
CELL = 66         # width of a ranked image, at most; it is twice as high
FRAME = 4         # thickness of its frame
WORD = 56         # width of the map of a word; it is twice as high
GATE = (56, 30)   # (width, height) of a gate

TOP = 10      # ranked images of a row
LEFT_OUT = 2  # removed ones that are shown among them

HIT = 0
MISS = 1
REMOVED = 2
FRAMES = (  # by verdict: what it means, colour, (dash, space); the styles differ without colour too
    ("right", (0, 130, 60), None),
    ("wrong", (215, 30, 30), (12, 6)),
    ("left out by the protocol", (130, 130, 130), (3, 5)),
)
GREY = (200, 200, 200)
ORANGE = (230, 120, 0)
BLUE = (40, 110, 220)
YELLOW = (255, 225, 0)


# ---- ranking lists ----

class RankRow(NamedTuple):
    """One line of a ranking list: a query under one instruction."""
    dataset: Dataset
    query: Record
    name: str  # of the instruction: wanted, own, random, or the sentence itself
    instruction: str  # a sentence, or the path of a picture
    ranking: list  # [(record, HIT, MISS or REMOVED)], nearest first

    @property
    def by_picture(self):
        """Is the instruction a picture of clothes?"""
        return self.dataset.task == "ctcc"

    @property
    def title(self):
        if self.by_picture:
            return f"{self.name} clothes"
        if self.name == self.instruction:
            return self.instruction
        return f"{self.name}: {self.instruction}"


def top_of(order, verdicts):
    """The part of a ranking that is shown, as indices of the gallery.

    That is its first TOP images and, of the removed ones among them, the first LEFT_OUT.
    order (g,): indices of the gallery, nearest first; verdicts (g,): HIT, MISS or REMOVED.
    """
    removed = verdicts[order] == REMOVED
    ranked = np.flatnonzero(~removed)
    end = ranked[:TOP][-1] + 1
    shown = ~removed | (removed.cumsum() <= LEFT_OUT)
    return order[:end][shown[:end]]


def ranking_list(rows):
    """A picture as in Supp. Fig. 1-2: a query, its instructions one below the other, and under each
    the ranking. rows: RankRows of one data set, those of one query behind each other.

    The right answers have a solid green frame, the wrong ones a dashed red one, those that the
    protocol leaves out a dotted grey one and pale colours; they take no rank.
    """
    left = QUERY[1] + 3 * GAP
    cell = _cell_width(rows, WIDTH - left - 3 * GAP)
    titles = [_wrap(row.title, TEXT, WIDTH - left - GAP) for row in rows]
    heights = [len(lines) * LINE + SMALL.size + 2 * cell + 5 * GAP for lines in titles]
    y = LINE + 4 * GAP  # below the legend

    picture = Image.new("RGB", (WIDTH, y + sum(heights)), "white")
    draw = ImageDraw.Draw(picture)
    _legend(draw, left)

    query = None
    for row, lines, height in zip(rows, titles, heights):
        if row.query is not query:
            query = row.query
            _query(picture, row, y)
        _text(draw, (left, y), lines)
        _ranking(picture, row, left, y + len(lines) * LINE, cell)
        y += height
    return picture


def stack(pictures):
    """Pictures one below the other."""
    heights = [picture.height for picture in pictures]
    whole = Image.new("RGB", (WIDTH, sum(heights)), "white")
    y = 0
    for picture in pictures:
        whole.paste(picture, (0, y))
        y += picture.height
    return whole


def _cell_width(rows, width):
    """Of every ranked image, so that the longest row fits into `width`."""
    cells = max(len(row.ranking) for row in rows)
    if rows[0].by_picture:
        cells += 1
    return min(CELL, width // cells - GAP)


def _legend(draw, x):
    for verdict, (meaning, _, _) in enumerate(FRAMES):
        _frame(draw, (x, GAP, x + 24, GAP + LINE), verdict)
        draw.text((x + 32, GAP + 1), meaning, "black", TEXT)
        x += 110


def _query(picture, row, y):
    """A line above the rows of a query, and its photo, which a query by text alone has not."""
    draw = ImageDraw.Draw(picture)
    draw.line((GAP, y - GAP, WIDTH - GAP - 1, y - GAP), GREY)
    if row.query.path is not None:
        draw.text((GAP, y), "query", "black", TEXT)
        picture.paste(photo(row.dataset, row.query.path, QUERY), (GAP, y + LINE))


def _ranking(picture, row, x, y, width):
    """The instruction if it is a picture, and the ranked images with ranks above them."""
    draw = ImageDraw.Draw(picture)
    height = 2 * width
    top = y + SMALL.size + GAP

    if row.by_picture:
        clothes = photo(row.dataset, row.instruction, (width, width))
        picture.paste(clothes, (x, top + (height - width) // 2))
        x += width + 3 * GAP

    rank = 0
    for record, verdict in row.ranking:
        image = photo(row.dataset, record.path, (height, width))
        if verdict == REMOVED:
            white = Image.new("RGB", image.size, "white")
            image = Image.blend(image, white, 0.5)
        else:
            rank += 1
            _centred(draw, (x + width // 2, y), str(rank))
        picture.paste(image, (x, top))
        _frame(draw, (x, top, x + width, top + height), verdict)
        x += width + GAP


def _frame(draw, box, verdict):
    """The frame of a verdict just inside a box (left, top, right, bottom)."""
    left, top, right, bottom = box
    _, colour, dash = FRAMES[verdict]
    if dash is None:
        draw.rectangle((left, top, right - 1, bottom - 1), outline=colour, width=FRAME)
        return

    on, off = dash
    for x in range(left, right, on + off):
        end = min(x + on, right)
        for y in (top, bottom - FRAME):
            draw.rectangle((x, y, end - 1, y + FRAME - 1), fill=colour)
    for y in range(top, bottom, on + off):
        end = min(y + on, bottom)
        for x in (left, right - FRAME):
            draw.rectangle((x, y, x + FRAME - 1, end - 1), fill=colour)


# ---- gates ----

def gates(model):
    """The gates of Eq. 2, one row per layer and one column per head, and the mean |g| of a layer.

    Blue is negative, orange positive, white 0.
    """
    values = torch.stack([block.attn.gate.detach() for block in model.editor.blocks])
    values = values.float().cpu().numpy()  # (l h)
    layers, heads = values.shape
    left = 80
    top = 4 * LINE
    width = max(left + (heads + 1) * GATE[0] + GAP, 480)  # 480: the text above
    picture = Image.new("RGB", (width, top + layers * GATE[1] + GAP), "white")
    draw = ImageDraw.Draw(picture)

    draw.multiline_text(
        (GAP, GAP),
        "The gate g of every head, 0 before training: how much of what it reads\n"
        "from the instruction is added (orange) or subtracted (blue)", "black", TEXT)
    names = [f"head {head + 1}" for head in range(heads)]
    for column, name in enumerate([*names, "mean |g|"]):
        x = left + column * GATE[0]
        _centred(draw, (x + GATE[0] // 2, top - LINE), name)

    largest = max(np.abs(values).max(), 1e-6)
    for layer, row in enumerate(values):
        y = top + layer * GATE[1]
        draw.text((GAP, y + 6), f"layer {layer + 1}", "black", TEXT)
        for head, value in enumerate(row):
            _gate(draw, left + head * GATE[0], y, f"{value:+.2f}", _shade(value / largest))
        _gate(draw, left + heads * GATE[0], y, f"{np.abs(row).mean():.2f}", _shade(0))
    return picture


def _gate(draw, x, y, text, colour):
    width, height = GATE
    draw.rectangle((x, y, x + width - 3, y + height - 3), outline=GREY, fill=colour)
    _centred(draw, (x + width // 2 - 1, y + 7), text)


def _shade(value):
    """White at 0, orange at 1, blue at -1."""
    hue = ORANGE if value > 0 else BLUE
    return tuple(round(255 + abs(value) * (channel - 255)) for channel in hue)


# ---- attention to the instruction, word by word ----

def word_attention(model, image, sentence):
    """One small map per word of the sentence: where on the body it is read, and its share of all
    that the CLS token and the mean patch read. image (1 3 H W), normalised.

    Bright yellow: this patch reads the word more than the patch that reads it least; one scale for
    all words.
    """
    attention = instruction_attention(model, image, model.instruct([sentence]))
    rows, columns = model.editor.grid
    patches = attention[-rows * columns:]  # they come last
    words = _words(model.encoder.text, sentence)
    captions = _shares(words, attention[0], patches.mean(0))

    person = _person(image)
    heat = (patches - patches.amin(0)).T.view(-1, rows, columns)
    cells = [(person, ["query"])]
    for one_word, caption in zip(_masks(heat, person.size), captions):
        cells.append((_lit(person, one_word), caption))
    return _table(f"Where each word is read: {sentence}", cells)


def instruction_attention(model, image, instr):
    """How much each image token reads from each instruction token, (n t).

    That is the second softmax of Eq. 2 times |g|, mean over the heads and summed over the layers.
    image (1 3 H W), instr an Instruction of one.
    """
    read = []

    def note(attention, args, _):
        x, instr, mask = args[:3]
        maps = attention.maps(x, instr, mask)       # (b h n n+t)
        to_instr = maps[..., x.shape[1]:].abs()     # |g * softmax|, (b h n t)
        read.append(to_instr.mean(1).float())

    hooks = [block.attn.register_forward_hook(note) for block in model.editor.blocks]
    try:
        model.edit(image, instr)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(read).sum(0)[0].cpu()


def _words(text, sentence):
    """The instruction tokens as words: the first stands for the whole sentence."""
    ids = text.tokenizer(sentence, truncation=True, max_length=text.MAX_TOKENS)["input_ids"]
    return ["(whole)", *text.tokenizer.convert_ids_to_tokens(ids)]


def _shares(words, cls, patch):
    """The lines below each map. cls, patch (t,): what they read of each word."""
    cls_shares = (cls / cls.sum()).tolist()
    patch_shares = (patch / patch.sum()).tolist()
    captions = []
    for word, cls_share, patch_share in zip(words, cls_shares, patch_shares):
        captions.append([word, f"CLS {cls_share:.0%}", f"patches {patch_share:.0%}"])
    return captions


def _person(image):
    """The picture of a normalised image (1 3 H W), in the size of a map."""
    mean = torch.tensor(MEAN).view(3, 1, 1)
    std = torch.tensor(STD).view(3, 1, 1)
    pixels = (image[0].float().cpu() * std + mean).clamp(0, 1)
    picture = _picture((pixels * 255).byte())
    return picture.resize((WORD, 2 * WORD), Image.Resampling.BICUBIC)


def _masks(heat, size):
    """Grey pictures of `size` from maps (t rows columns), the largest value of all white."""
    grey = (255 * heat / heat.max().clamp(min=1e-6)).byte().numpy()
    return [Image.fromarray(one_map).resize(size, Image.Resampling.BICUBIC) for one_map in grey]


def _lit(person, mask):
    """The person in the dark, yellow where the mask is white."""
    dark = person.convert("L").point(lambda grey: grey // 2).convert("RGB")
    yellow = Image.new("RGB", person.size, YELLOW)
    return Image.composite(yellow, dark, mask)


def _table(title, cells):
    """Cells (picture, lines below it) side by side, as many in a row as fit, below a title."""
    lines = _wrap(title, TEXT, WIDTH - 2 * GAP)
    top = len(lines) * LINE + 3 * GAP
    width = WORD + 3 * GAP
    height = 2 * WORD + 3 * SMALL_LINE + 2 * GAP
    across = (WIDTH - GAP) // width
    down = -(-len(cells) // across)

    table = Image.new("RGB", (WIDTH, top + down * height), "white")
    draw = ImageDraw.Draw(table)
    _text(draw, (GAP, GAP), lines)
    for k, (picture, caption) in enumerate(cells):
        x = GAP + k % across * width
        y = top + k // across * height
        table.paste(picture, (x, y))
        for i, line in enumerate(caption):
            _centred(draw, (x + WORD // 2, y + 2 * WORD + 2 + i * SMALL_LINE), line)
    return table


# ---- images, text, files ----

def photo(dataset, path, size):
    """An image file of a data set as a picture of `size` (height, width)."""
    return _picture(load_image(dataset.root / path, size))


def save(picture, path, flag):
    """Writes a .png with 256 colours and says so; UserError that names the flag if it cannot."""
    try:
        picture.quantize().save(path, "PNG", optimize=True)
    except OSError as error:
        raise UserError(f"{flag}: cannot write {path} ({error}); "
                        "name a .png in a folder that takes it") from error
    print(f"wrote {path}")


def _picture(pixels):
    """uint8 (3 H W) -> Pillow."""
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def _text(draw, corner, lines):
    draw.multiline_text(corner, "\n".join(lines), "black", TEXT, spacing=LINE - TEXT.size)


def _centred(draw, middle, line):
    """A small line whose top centre is at `middle`."""
    draw.text(middle, line, "black", SMALL, anchor="ma")


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
