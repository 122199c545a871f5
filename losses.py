"""The losses of Sec. 4.3-4.4, pure functions of tensors.

Dimension letters: b batch, d feature width, k instruction width.
Features may be in half precision: every loss is computed in float32. Call them outside autocast,
which would cast the products inside back to half precision.
"""

import torch
import torch.nn.functional as F
from einops import rearrange

from reid.device import full_precision_matmul

TIE = 1e-6  # betas closer than this are equal: the rounding of a float32 cosine


def at_least_float32(x):
    """Half precision becomes float32; float64 stays."""
    if x.dtype in (torch.float16, torch.bfloat16):
        return x.float()
    return x


def equal_pairs(ids):
    """(b) -> (b b) bool: do the identities of a pair agree? An image agrees with itself."""
    return rearrange(ids, "a -> a 1") == rearrange(ids, "r -> 1 r")


# ---- adaptive triplet loss (Sec. 4.3) ----

def distances(feats, squared=True):
    """d of Eq. 5 between all pairs, feats (b d) -> (b b): the squared Euclidean distance, or its
    root with squared=False."""
    feats = at_least_float32(feats)
    norms = feats.square().sum(1)
    sums = rearrange(norms, "a -> a 1") + rearrange(norms, "r -> 1 r")
    dist = sums - 2 * feats @ feats.T  # |a - r|^2 = |a|^2 + |r|^2 - 2 a r
    dist = dist.clamp(min=0)

    if squared:
        return dist
    return dist.clamp(min=1e-12).sqrt()


def relatedness(ids, instr):
    """beta of Eq. 6 between all pairs, ids (b), instr (b k) -> (b b), without gradient: the cosine
    of two instructions where the identities agree, else 0."""
    instr = at_least_float32(instr.detach())
    instr = F.normalize(instr, dim=-1)
    cosine = instr @ instr.T
    return equal_pairs(ids) * cosine  # Eq. 6: beta = 1(y_a = y_r) cos(F_T^a, F_T^r)


def triplet_terms(d1, d2, gap, margin):
    """Eq. 5 for triplets of any shape: an anchor is at distance d1 of its reference r1 and d2 of
    r2; gap is b1 - b2.

    The more related reference must be the nearer one, by |b1 - b2| * margin.
    """
    term = gap.sign() * (d1 - d2 + gap * margin)  # Eq. 5: Sign(b1 - b2) [d1 + (b1 - b2) m - d2]
    return term.relu()  # Eq. 5: {.}_+


@full_precision_matmul()
def adaptive_triplet(feats, ids, instr, margin=0.3, squared=True, mining="all"):
    """Adaptive triplet loss (Eq. 5-6): the more alike the instructions of two images of a person,
    the nearer they are.

    feats (b d), ids (b), instr (b k) pooled instructions -> scalar.
    Equal instructions make it the plain triplet loss.

    mining "all": mean over every ordered triplet (a, r1, r2) of the batch, all different, with
    b1 != b2.
    mining "even": half the mean over those within a person, where the instruction decides, and half
    that over the others (1.5 % of "all" are within, of 16 people x 4 images); if there are none
    within a person, the mean over the others alone.
    mining "hard": two triplets per anchor, see `hard_triplets`.

    A reference of the same identity whose cosine is negative has b below the 0 of a stranger, and
    Eq. 5 then pushes it further away than the stranger: the equation is kept as printed.
    """
    dist = distances(feats, squared)
    beta = relatedness(ids, instr).to(dist.dtype)

    if mining == "hard":
        return hard_triplets(dist, beta, ids, margin)
    terms, valid = ordered_triplets(dist, beta, margin)
    if mining == "all":
        return mean_of_valid(terms, valid)

    equal = equal_pairs(ids)
    one_person = rearrange(equal, "a r1 -> a r1 1") & rearrange(equal, "a r2 -> a 1 r2")
    is_within = valid & one_person
    within = mean_of_valid(terms, is_within)
    across = mean_of_valid(terms, valid & ~one_person)
    # none is within a person where nobody's instructions differ, as with a sentence for all
    return torch.where(is_within.any(), (within + across) / 2, across)


def ordered_triplets(dist, beta, margin):
    """Eq. 5 for all ordered triplets [a, r1, r2], and which of them count, (b r r) each: three
    different images, b1 != b2. dist, beta (b r): the anchors are the first b of the references."""
    d1 = rearrange(dist, "a r1 -> a r1 1")
    d2 = rearrange(dist, "a r2 -> a 1 r2")
    b1 = rearrange(beta, "a r1 -> a r1 1")
    b2 = rearrange(beta, "a r2 -> a 1 r2")
    gap = b1 - b2
    terms = triplet_terms(d1, d2, gap, margin)

    different = ~torch.eye(*dist.shape, dtype=torch.bool, device=dist.device)
    valid = gap.abs() > TIE  # so r1 is not r2
    valid &= rearrange(different, "a r1 -> a r1 1")
    valid &= rearrange(different, "a r2 -> a 1 r2")
    return terms, valid


def hard_triplets(dist, beta, ids, margin):
    """Eq. 5 for two triplets per anchor; dist, beta (b b), ids (b) -> the sum of both means.

    1. r1 the farthest image of the same identity, r2 the nearest of another (Hermans et al. 2017).
    2. Both of the same identity: r1 the one with the most alike instruction, r2 the one with the
       least alike; where several are equally alike, the farthest and the nearest of them.
    """
    equal = equal_pairs(ids)
    same = equal & ~torch.eye(len(ids), dtype=torch.bool, device=ids.device)
    by_identity = hard_pair(dist, beta, same, ~equal, margin)

    highest = beta.masked_fill(~same, -torch.inf).amax(1)
    lowest = beta.masked_fill(~same, torch.inf).amin(1)
    most_alike = same & (beta >= rearrange(highest, "a -> a 1") - TIE)
    least_alike = same & (beta <= rearrange(lowest, "a -> a 1") + TIE)
    by_instruction = hard_pair(dist, beta, most_alike, least_alike, margin)

    return by_identity + by_instruction


def hard_pair(dist, beta, far_ones, near_ones, margin):
    """Mean of Eq. 5 over the anchors: r1 is the farthest of far_ones, r2 the nearest of near_ones,
    both (b b) bool."""
    r1 = dist.masked_fill(~far_ones, -torch.inf).argmax(1)
    r2 = dist.masked_fill(~near_ones, torch.inf).argmin(1)
    anchors = torch.arange(len(dist), device=dist.device)
    d1 = dist[anchors, r1]
    d2 = dist[anchors, r2]
    b1 = beta[anchors, r1]
    b2 = beta[anchors, r2]
    gap = b1 - b2
    terms = triplet_terms(d1, d2, gap, margin)

    valid = gap.abs() > TIE
    valid &= far_ones.any(1)
    valid &= near_ones.any(1)
    return mean_of_valid(terms, valid)


def mean_of_valid(terms, valid):
    """Mean of the terms that are valid; 0 with a gradient path if there are none."""
    count = valid.sum().clamp(min=1)
    return (terms * valid).sum() / count


# ---- identity loss, and the losses of text-to-image retrieval (Sec. 4.4) ----

def identity(logits, labels, smoothing=0.0):
    """L_id of Eq. 7: cross-entropy over the identities of one data set, logits (b classes),
    labels (b) -> scalar."""
    logits = at_least_float32(logits)
    return F.cross_entropy(logits, labels, label_smoothing=smoothing)


@full_precision_matmul()
def contrastive(image_feats, text_feats, ids, temperature):
    """L_cl of Eq. 8: image-text contrast in both directions, every pair of one identity a positive.

    image_feats, text_feats (b d) L2-normalised, ids (b), temperature a number or scalar tensor
    -> scalar.
    """
    similarity = at_least_float32(image_feats) @ at_least_float32(text_feats).T
    logits = similarity / temperature
    positive = equal_pairs(ids).to(logits.dtype)
    target = positive / positive.sum(1, keepdim=True)

    image_to_text = F.cross_entropy(logits, target)
    text_to_image = F.cross_entropy(logits.T, target)
    return (image_to_text + text_to_image) / 2


def hard_negatives(similarity, ids, generator=None):
    """For each image a text, and for each text an image, of another identity, drawn in proportion
    to the softmax of their similarity, as in ALBEF (Li et al. 2021).

    similarity (b b) image x text logits, ids (b) -> index of a text (b), index of an image (b).
    """
    logits = at_least_float32(similarity.detach())
    logits = logits.masked_fill(equal_pairs(ids), -torch.inf)
    of_texts = logits.softmax(1)  # each row: an image's chances of every text
    of_images = logits.T.softmax(1)  # each row: a text's chances of every image

    text = sample(of_texts, generator)
    image = sample(of_images, generator)
    return text, image


def sample(probabilities, generator=None):
    """One column of each row, probabilities (b m) -> (b), distributed as torch.multinomial's, which
    makes a GPU wait to check its argument."""
    waits = torch.empty_like(probabilities).exponential_(generator=generator)
    return (probabilities / waits).argmax(1)  # the first to arrive, each with its own rate


def matching(positive_logits, negative_logits):
    """L_match of Eq. 8: binary cross-entropy with one-hot targets, [0, 1] for a true pair and
    [1, 0] for a false one.

    positive_logits (b 2), negative_logits (m 2) -> scalar.
    """
    logits = at_least_float32(torch.cat([positive_logits, negative_logits]))
    labels = torch.zeros(len(logits), device=logits.device)
    labels[:len(positive_logits)] = 1
    return F.cross_entropy(logits, labels.long())
