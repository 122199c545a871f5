"""Photos that carry nothing: no description, no crop of their clothes, as in any ordinary folder.

In ctcc and li each gallery image carries an instruction of its own, which a query's instruction
meets. Here nothing of the kind is there, and `scores` is a rule that does without (search.py, and
a row of the instruction matrix).
Letters in shapes: b batch, n photos, d feature width.
"""

import torch
import torch.nn.functional as F

from instructions import SENTENCES
from reid.images import normalise

PERSON = SENTENCES["cc"][0]  # the sentence under which people are found in any clothes

# The views of a photo: its features under a sentence, whose name is the sentence, and these.
PLAIN = "without instruction"
CLOTHES = "as a picture of clothes"
SHARES = {PLAIN: 0.4, CLOTHES: 0.3}  # w of words and of a picture of clothes
BODY = (0.2, 0.1, 1.0, 0.9)  # top, left, bottom, right of the clothes in a photo


# ---- the rule ----

def scores(person, instruction, w):
    """How well photos answer, in two parts. Their sum is the score:

        (1 - w) cos(query under s, photo under s)  +  w cos(e(instruction), e'(photo))

    The first asks who it is: s is the task sentence "change your clothes", for both alike.
    The second asks for the instruction, without the query:
        words                 e the text feature, e' the photo without an instruction (t2i)
        a picture of clothes  e and e' are both E_i, the photo taken as a picture of clothes
    Without an instruction w is 0, without a query 1.

    person, instruction (n): the two cosines. Returns both parts, (n) each.
    """
    return (1 - w) * person, w * instruction


def joined(person, instruction, w):
    """One feature for both parts, whose cosine is the sum of `scores`: (n d), (n k) -> (n d + k).

    person and instruction are L2-normalised, of a query or of a photo.
    """
    return torch.cat([(1 - w) ** 0.5 * person, w ** 0.5 * instruction], 1)


# ---- features: all L2-normalised ----

def embed_view(model, view, images, feature):
    """A view of photos, uint8 (b 3 H W) -> (b d)."""
    if view == CLOTHES:
        feats = model.instruct(as_clothes(images, model.picture_size)).pooled
    elif view == PLAIN:
        feats = model.embed(normalise(images), None)
    else:
        feats = model.embed(normalise(images), model.instruct([view]), feature)
    return F.normalize(feats.float(), dim=1)


def as_clothes(images, size):
    """Photos (b 3 H W) without head and margins, in the size (h, w) of pictures of clothes."""
    height, width = images.shape[2:]
    top, left, bottom, right = BODY
    rows = slice(round(top * height), round(bottom * height))
    columns = slice(round(left * width), round(right * width))
    body = images[:, :, rows, columns].float()
    return normalise(F.interpolate(body, size, mode="bilinear", antialias=True))


def embed_instruction(model, view, instr):
    """What is compared with that view of the photos, an Instruction of b -> (b d)."""
    feats = instr.pooled
    if view == PLAIN:
        feats = model.embed_text(model.read_text(instr))
    return F.normalize(feats.float(), dim=1)
