"""The losses of Sec. 4.3-4.4, pure functions of tensors.

Dimension letters: b batch, d feature width, k instruction width.
Features may be in half precision; every loss is computed in float32. Call the losses outside
autocast, which would compute their matrix products in half precision.
"""

import torch
import torch.nn.functional as F
from einops import rearrange

from reid.device import full_precision_matmul

TIE = 1e-6  # betas that differ by less count as equal: rounding of float32 cosines


def at_least_float32(x):
    """Half precision becomes float32; float64 stays float64."""
    if x.dtype in (torch.float16, torch.bfloat16):
        return x.float()
    return x


def equal_pairs(ids):
    """(b) -> (b b) bool: whether two images have the same identity, as an image and itself do."""
    return rearrange(ids, "a -> a 1") == rearrange(ids, "r -> 1 r")


# ---- adaptive triplet loss (Sec. 4.3) ----

def distances(feats, squared=True):
    """d of Eq. 5 between all pairs, feats (b d) -> (b b): squared Euclidean distances or, with
    squared=False, their square roots."""
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
    of two instructions if the identities are equal, else 0."""
    instr = at_least_float32(instr.detach())
    instr = F.normalize(instr, dim=-1)
    cosine = instr @ instr.T
    return equal_pairs(ids) * cosine  # Eq. 6: beta = 1(y_a = y_r) cos(F_T^a, F_T^r)


def triplet_terms(d1, d2, gap, margin):
    """Eq. 5 for triplets of any shape: d1, d2 are the distances of an anchor to its references r1
    and r2; gap is b1 - b2.

    The more related reference must be nearer, by |b1 - b2| * margin.
    """
    term = gap.sign() * (d1 - d2 + gap * margin)  # Eq. 5: Sign(b1 - b2) [d1 + (b1 - b2) m - d2]
    return term.relu()  # Eq. 5: {.}_+


@full_precision_matmul()
def adaptive_triplet(feats, ids, instr, margin=0.3, squared=True, mining="all"):
    """Adaptive triplet loss (Eq. 5-6): the more similar the instructions of two images of a person,
    the nearer their features must be.

    feats (b d), ids (b), instr (b k) pooled instructions -> scalar.
    With equal instructions this is the ordinary triplet loss.

    mining "all": mean over all ordered triplets (a, r1, r2) of different images with b1 != b2.
    mining "even": the average of two means, over the triplets within one person, where the
    instruction decides, and over the others; the latter alone if there are none within a person.
    (With 16 people x 4 images, 1.5 % of "all" are within a person.)
    mining "hard": two triplets per anchor, see `hard_triplets`.

    If the cosine of two images of a person is negative, their b is below the 0 of a stranger, and
    Eq. 5 pushes them further apart than the stranger: the equation is kept as printed.
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
    # there are none within a person if all instructions are equal
    return torch.where(is_within.any(), (within + across) / 2, across)


def ordered_triplets(dist, beta, margin):
    """Eq. 5 for all ordered triplets [a, r1, r2], and a bool for those that count: three different
    images with b1 != b2; both (b r r). dist, beta (b r): the first b references are the anchors."""
    d1 = rearrange(dist, "a r1 -> a r1 1")
    d2 = rearrange(dist, "a r2 -> a 1 r2")
    b1 = rearrange(beta, "a r1 -> a r1 1")
    b2 = rearrange(beta, "a r2 -> a 1 r2")
    gap = b1 - b2
    terms = triplet_terms(d1, d2, gap, margin)

    different = ~torch.eye(*dist.shape, dtype=torch.bool, device=dist.device)
    valid = gap.abs() > TIE  # which implies that r1 is not r2
    valid &= rearrange(different, "a r1 -> a r1 1")
    valid &= rearrange(different, "a r2 -> a 1 r2")
    return terms, valid


def hard_triplets(dist, beta, ids, margin):
    """Eq. 5 for two triplets per anchor; dist, beta (b b), ids (b) -> the sum of both means.

    1. r1 the farthest image of the same identity, r2 the nearest of another (Hermans et al. 2017).
    2. Both of the same identity: r1 has the most similar instruction, r2 the least similar one; if
       several are equally similar, r1 is the farthest and r2 the nearest of them.
    """
    equal = equal_pairs(ids)
    same = equal & ~torch.eye(len(ids), dtype=torch.bool, device=ids.device)
    by_identity = hard_pair(dist, beta, same, ~equal, margin)

    highest = beta.masked_fill(~same, -torch.inf).amax(1)
    lowest = beta.masked_fill(~same, torch.inf).amin(1)
    most_similar = same & (beta >= rearrange(highest, "a -> a 1") - TIE)
    least_similar = same & (beta <= rearrange(lowest, "a -> a 1") + TIE)
    by_instruction = hard_pair(dist, beta, most_similar, least_similar, margin)

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
    """Mean of the valid terms; if there are none, a 0 through which gradients can flow."""
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
    """L_cl of Eq. 8: image-text contrast in both directions; pairs of one identity are positive.

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
    """For each image a text and for each text an image of another identity, sampled with the
    softmax of their similarities as probabilities, as in ALBEF (Li et al. 2021).

    similarity (b b) image x text logits, ids (b) -> indices of texts (b), indices of images (b).
    """
    logits = at_least_float32(similarity.detach())
    logits = logits.masked_fill(equal_pairs(ids), -torch.inf)
    of_texts = logits.softmax(1)  # each row: an image's probabilities of all texts
    of_images = logits.T.softmax(1)  # each row: a text's probabilities of all images

    text = sample(of_texts, generator)
    image = sample(of_images, generator)
    return text, image


def sample(probabilities, generator=None):
    """Samples a column of each row, probabilities (b m) -> (b). The same distribution as that of
    torch.multinomial, which makes a GPU wait while it checks its argument."""
    waits = torch.empty_like(probabilities).exponential_(generator=generator)
    return (probabilities / waits).argmax(1)  # exponential clocks: the first to ring


def matching(positive_logits, negative_logits):
    """L_match of Eq. 8: binary cross-entropy with one-hot targets, [0, 1] for a true pair and
    [1, 0] for a false one.

    positive_logits (b 2), negative_logits (m 2) -> scalar.
    """
    logits = at_least_float32(torch.cat([positive_logits, negative_logits]))
    labels = torch.zeros(len(logits), device=logits.device)
    labels[:len(positive_logits)] = 1
    return F.cross_entropy(logits, labels.long())
