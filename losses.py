"""The losses of Sec. 4.3-4.4, pure functions of tensors. b batch, d feature width, k instruction width."""

import torch
import torch.nn.functional as F

TIE = 1e-6  # betas closer than this are equal: the rounding of a float32 cosine


def full(x):
    """Half precision becomes float32, in which losses are computed: outside autocast, which would undo it. float64 stays."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def distances(feats, squared=True):
    """Pairwise Euclidean distances (b d) -> (b b). Eq. 5 has the squared one."""
    feats = full(feats)
    square = feats.square().sum(1)
    squares = (square[:, None] + square[None] - 2 * feats @ feats.T).clamp(min=0)
    return squares if squared else squares.clamp(min=1e-12).sqrt()


def relatedness(ids, instr):
    """beta of Eq. 6, (b b): the cosine of two instructions where the identities agree, else 0. No gradient."""
    instr = F.normalize(full(instr.detach()), dim=-1)
    return (ids[:, None] == ids[None]) * (instr @ instr.T)  # Eq. 6: b = 1(y_a = y_r) cos(F_T^a, F_T^r)


def adaptive_triplet(feats, ids, instr, margin=0.3, squared=True, mining="all"):
    """Adaptive triplet loss (Eq. 5-6): the more alike the instructions of two images of a person, the nearer their features.

    feats (b d), ids (b), instr (b k) pooled instructions -> scalar. For a triplet of an anchor a and references r1, r2 with
    relatednesses b1 != b2 the term is [sign(b1 - b2) (d(a,r1) - d(a,r2) + (b1 - b2) margin)]_+ : the more related reference
    must be the nearer one by |b1 - b2| margin. Equal instructions make it the plain triplet loss.

    mining "all": mean over every ordered triplet of the batch (a, r1, r2 all different, b1 != b2).
    mining "hard": two triplets per anchor, {farthest same-identity, nearest other-identity} and {same-identity with the most
    alike instruction, same-identity with the least alike one; the farthest and the nearest where several tie}.
    A same-identity reference whose cosine is negative has b below the 0 of another identity, and Eq. 5 then pushes it further
    away than the other identity: the equation is kept as printed.
    """
    dist = distances(feats, squared)
    beta = relatedness(ids, instr).to(dist.dtype)
    if mining == "hard":
        return _hard_triplets(dist, beta, ids, margin)
    gap = beta[:, :, None] - beta[:, None, :]                                                  # (a r1 r2): b1 - b2
    term = gap.sign() * (dist[:, :, None] - dist[:, None, :] + gap * margin)                   # Eq. 5
    other = ~torch.eye(len(ids), dtype=torch.bool, device=ids.device)
    valid = other[:, :, None] & other[:, None, :] & other[None] & (gap.abs() > TIE)
    return _mean(term.relu(), valid)


def _hard_triplets(dist, beta, ids, margin):
    same = (ids[:, None] == ids[None]) & ~torch.eye(len(ids), dtype=torch.bool, device=ids.device)
    other = ids[:, None] != ids[None]
    far, near = dist.detach(), -dist.detach()
    most = beta >= beta.masked_fill(~same, -torch.inf).amax(1, keepdim=True) - TIE   # ties of the most alike instruction
    least = beta <= beta.masked_fill(~same, torch.inf).amin(1, keepdim=True) + TIE
    pairs = [(_argmax(far, same), _argmax(near, other)), (_argmax(far, same & most), _argmax(near, same & least))]
    terms, valid = [], []
    for r1, r2 in pairs:
        gap = (beta.gather(1, r1) - beta.gather(1, r2)).squeeze(1)
        terms.append((gap.sign() * ((dist.gather(1, r1) - dist.gather(1, r2)).squeeze(1) + gap * margin)).relu())
        valid.append((gap.abs() > TIE) & same.any(1))
    valid[0] = valid[0] & other.any(1)
    return sum(_mean(term, ok) for term, ok in zip(terms, valid))


def _argmax(score, allowed):
    return score.masked_fill(~allowed, -torch.inf).argmax(1, keepdim=True)


def _mean(term, valid):
    """Mean of the valid terms; 0 with a gradient path if there are none."""
    return (term * valid).sum() / valid.sum().clamp(min=1)


def triplet(feats, ids, margin=0.3, squared=True, mining="all"):
    """The plain triplet loss (Schroff et al. 2015; "hard": Hermans et al. 2017), the "w/o L_atri" row of Tab. 5.

    feats (b d), ids (b) -> scalar: adaptive_triplet with one instruction for all.
    """
    return adaptive_triplet(feats, ids, feats.new_ones(len(ids), 1), margin, squared, mining)


def identity(logits, labels, smoothing=0.0):
    """L_id: cross-entropy over the identities of one data set. logits (b classes), labels (b) -> scalar."""
    return F.cross_entropy(full(logits), labels, label_smoothing=smoothing)


def contrastive(image_feats, text_feats, ids, temperature):
    """L_cl of Eq. 8: image-text contrast in both directions, every pair of one identity a positive.

    image_feats, text_feats (b d) L2-normalised, ids (b), temperature a scalar tensor -> scalar.
    """
    logits = full(image_feats) @ full(text_feats).T / temperature
    same = (ids[:, None] == ids[None]).to(logits.dtype)
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def hard_negatives(similarity, ids, generator=None):
    """For each image a text, and for each text an image, of another identity, drawn in proportion to the softmax of their
    similarity, as in ALBEF (Li et al. 2021). similarity (b b) image x text logits, ids (b) -> text index (b), image index (b)."""
    logits = full(similarity.detach()).masked_fill(ids[:, None] == ids[None], -torch.inf)
    text = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    image = torch.multinomial(logits.T.softmax(1), 1, generator=generator).squeeze(1)
    return text, image


def matching(positive_logits, negative_logits):
    """L_match of Eq. 8: binary cross-entropy with one-hot targets, [0, 1] for a true pair and [1, 0] for a false one.

    positive_logits (b 2), negative_logits (m 2) -> scalar.
    """
    logits = full(torch.cat([positive_logits, negative_logits]))
    labels = torch.cat([torch.ones(len(positive_logits)), torch.zeros(len(negative_logits))]).long().to(logits.device)
    return F.cross_entropy(logits, labels)
