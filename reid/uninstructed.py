"""Photos that carry no instruction, as in any folder, and the rule by which they answer one.

In ctcc and li each gallery image carries an instruction of its own, which the query's is compared
with. Here there is none, and `scores` is a rule that needs none.
Letters in shapes: b batch, n photos, d and k feature widths.
"""

import torch
import torch.nn.functional as F

from reid.images import normalise

# Kinds of features of a photo without an instruction.
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


def joined(person, parts):
    """One feature of a query or of photos, whose cosine is the sum of `scores`.

    person (n d) and parts, [(w, (n k))], are L2-normalised; several parts of an instruction, such
    as words and a picture, share it.
    """
    total = sum(w for w, _ in parts) / len(parts)
    feats = [(1 - total) ** 0.5 * person]
    feats += [(w / len(parts)) ** 0.5 * part for w, part in parts]
    return torch.cat(feats, 1)


def as_clothes(images, size):
    """Photos (b 3 H W) without head and margins, in the size (h, w) of pictures of clothes."""
    height, width = images.shape[2:]
    top, left, bottom, right = BODY
    rows = slice(round(top * height), round(bottom * height))
    columns = slice(round(left * width), round(right * width))
    body = images[:, :, rows, columns].float()
    return normalise(F.interpolate(body, size, mode="bilinear", antialias=True))
