"""Scores of photos without instructions, as in an ordinary folder.

In ctcc and li each gallery image has its own instruction, with which the query's is compared.
`scores` is a rule for galleries without them.
Letters in shapes: b batch, n photos, d and k feature widths.
"""

import torch
import torch.nn.functional as F

# Kinds of features of a photo without an instruction.
UNINSTRUCTED = "without instruction"
CLOTHES = "as a picture of clothes"
SHARES = {UNINSTRUCTED: 0.4, CLOTHES: 0.3}  # w for a sentence, for a picture of clothes
BODY = (0.2, 0.1, 1.0, 0.9)  # top, left, bottom, right of the clothes in a photo


def scores(person, instruction, w):
    """The two parts of the score of photos, (n) each. The score is their sum:

        (1 - w) cos(query with s, photo with s)  +  w cos(e(instruction), e'(photo))

    The first part compares people: s is a sentence such as "change your clothes", the same for
    query and photos. The second compares photos with the instruction, without the query:
        a sentence            e is the text feature, e' that of a photo without instruction (t2i)
        a picture of clothes  e and e' are both E_i; the photo is used as a picture of clothes
    Without an instruction w is 0, without a query 1. person, instruction (n): the two cosines.
    """
    return (1 - w) * person, w * instruction


def joined(person, parts):
    """Features of queries or photos whose cosine is the sum of the two `scores`.

    person (n d) and parts, [(w, (n k))], are L2-normalised. If an instruction has several parts, a
    sentence and a picture, w is their mean, divided among them.
    """
    total = sum(w for w, _ in parts) / len(parts)
    feats = [(1 - total) ** 0.5 * person]
    feats += [(w / len(parts)) ** 0.5 * part for w, part in parts]
    return torch.cat(feats, 1)


def as_clothes(images, size):
    """Normalised photos (b 3 H W), cropped to the clothes, in the size (h, w) of pictures of
    clothes."""
    height, width = images.shape[2:]
    top, left, bottom, right = BODY
    rows = slice(round(top * height), round(bottom * height))
    columns = slice(round(left * width), round(right * width))
    body = images[:, :, rows, columns]
    return F.interpolate(body, size, mode="bilinear", antialias=True)
