"""Photos that carry no instruction, as in any folder, and the rule by which they answer one.

In ctcc and li each gallery image carries an instruction of its own, which the query's is compared
with. Here there is none, and `scores` is a rule that needs none.
Letters in shapes: b batch, n photos, d and k feature widths.
"""

import torch
import torch.nn.functional as F

from reid.images import normalise

# The kinds of features of a photo: under a sentence, whose name is the sentence, and these two.
UNINSTRUCTED = "without instruction"
CLOTHES = "as a picture of clothes"
SHARES = {UNINSTRUCTED: 0.4, CLOTHES: 0.3}  # w of words and of a picture of clothes
BODY = (0.2, 0.1, 1.0, 0.9)  # top, left, bottom, right of the clothes in a photo


def scores(person, instruction, w):
    """How well photos answer, in two parts, (n) each. Their sum is the score:

        (1 - w) cos(query under s, photo under s)  +  w cos(e(instruction), e'(photo))

    The first part compares people: s is a sentence such as "change your clothes", for query and
    photos alike. The second compares the photos with the instruction, without the query:
        words                 e the text feature, e' the photo without an instruction (t2i)
        a picture of clothes  e and e' are both E_i, the photo taken as a picture of clothes
    Without an instruction w is 0, without a query 1. person, instruction (n): the two cosines.
    """
    return (1 - w) * person, w * instruction


def joined(person, instruction, w):
    """One feature for both parts, whose cosine is the sum of `scores`, of a query or of photos:
    L2-normalised (n d), (n k) -> (n d + k)."""
    return torch.cat([(1 - w) ** 0.5 * person, w ** 0.5 * instruction], 1)


def embed_photos(model, kind, images, feature):
    """Features of one kind of photos, uint8 (b 3 H W) -> (b d), L2-normalised."""
    if kind == CLOTHES:
        feats = model.instruct(pictures=as_clothes(images, model.picture_size)).pooled
    elif kind == UNINSTRUCTED:
        feats = model.embed(normalise(images), None)
    else:
        feats = model.embed(normalise(images), model.instruct(sentences=[kind]), feature)
    return F.normalize(feats.float(), dim=1)


def as_clothes(images, size):
    """Photos (b 3 H W) without head and margins, in the size (h, w) of pictures of clothes."""
    height, width = images.shape[2:]
    top, left, bottom, right = BODY
    rows = slice(round(top * height), round(bottom * height))
    columns = slice(round(left * width), round(right * width))
    body = images[:, :, rows, columns].float()
    return normalise(F.interpolate(body, size, mode="bilinear", antialias=True))


def embed_instruction(model, kind, instr):
    """What that kind of photo features is compared with: an Instruction of b -> (b d),
    L2-normalised."""
    feats = instr.pooled
    if kind == UNINSTRUCTED:
        feats = model.embed_text(model.read_text(instr))
    return F.normalize(feats.float(), dim=1)
