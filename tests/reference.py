"""What the code is compared with: a slow twin of each equation, and the reference numbers of
tests/golden, recorded from public programs; its README says which."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

FOLDER = Path(__file__).parent / "golden"


def golden(name):
    """The arrays of one recorded file, {name: array}."""
    with np.load(FOLDER / name) as file:
        return dict(file)


# ---- Eq. 2-4 with loops, one image and one head at a time ----
# Letters as in model.py: n image tokens, t instruction tokens, d width, c width of one head.

def attend(x, attn, instr, gates=None, width=None, softmax="two", linears=None):
    """Eq. 2-4 of one image: x (n d), instr (t k) without padding -> (n d).

    The other arguments are for mistakes.
    """
    c = x.shape[1] // attn.heads
    scale = math.sqrt(width or c)
    gates = attn.gate if gates is None else gates
    linear_k, linear_v = linears or (attn.k_instr, attn.v_instr)
    heads = []
    for h in range(attn.heads):
        part = slice(h * c, (h + 1) * c)
        q = attn.q(x)[:, part]
        scores = q @ attn.k(x)[:, part].T / scale
        scores_instr = q @ linear_k(instr)[:, part].T / scale
        weights = scores.softmax(1)
        weights_instr = gates[h] * scores_instr.softmax(1)
        if softmax == "one":
            both = torch.cat([scores, scores_instr], 1).softmax(1)
            weights, weights_instr = both[:, :len(x)], gates[h] * both[:, len(x):]
        if softmax == "gate inside":
            weights_instr = (gates[h] * scores_instr).softmax(1)
        heads.append(weights @ attn.v(x)[:, part] + weights_instr @ linear_v(instr)[:, part])
    return attn.out(torch.cat(heads, 1))


def attend_all(attn, x, instr, mask=None, **wrong):
    """Eq. 2-4 of a batch: x (b n d), instr (b t k), mask (b t) bool or None -> (b n d)."""
    if mask is None:
        mask = torch.ones(instr.shape[:2], dtype=torch.bool)
    read = [tokens[is_real] for tokens, is_real in zip(instr, mask)]
    return torch.stack([attend(image, attn, each, **wrong) for image, each in zip(x, read)])


def attention_mistakes(attn, x, instr, mask):
    """{what is wrong: what EditingAttention would then give}; arguments as in attend_all, with
    instructions as wide as images."""
    gates = attn.gate.detach()
    changes = {
        "the gate is not applied": dict(gates=torch.ones(attn.heads)),
        "the instruction is not read": dict(gates=torch.zeros(attn.heads)),
        "the gate goes through tanh, Eq. 2 takes it as it stands": dict(gates=gates.tanh()),
        "one gate serves all heads": dict(gates=gates[:1].expand(attn.heads)),
        "the scores are divided by the root of the full width d, Eq. 3 has the width c of a head":
            dict(width=x.shape[2]),
        "the scores are not divided by the root of the width of a head": dict(width=1),
        "one softmax runs over image and instruction tokens together, Eq. 2 has two":
            dict(softmax="one"),
        "the gate stands inside the softmax, Eq. 2 multiplies what comes out of it":
            dict(softmax="gate inside"),
        "K' and V' go through the image's own Linear_k and Linear_v":
            dict(linears=(attn.k, attn.v)),
    }
    mistakes = {words: attend_all(attn, x, instr, mask, **wrong)
                for words, wrong in changes.items()}
    mistakes["padding is read as if it were words"] = attend_all(attn, x, instr)
    return mistakes


# ---- Eq. 5-8 with loops ----

class Rule(NamedTuple):
    """How a term of Eq. 5 is made; the defaults are the paper's, everything else is a mistake."""

    margin: float = 0.3
    squared: bool = True
    by_identity: bool = True  # beta of two people is 0
    cosine: bool = True  # beta of a person's images is the cosine of their instructions, not 1
    sign: bool = True
    scaled: bool = True  # the margin is multiplied by b1 - b2
    swapped: bool = False  # d1 and d2
    clipped: bool = True


PAPER = Rule()


def distance(a, r, rule=PAPER):
    """d of Eq. 5 between two features (d)."""
    squared = (a - r).square().sum()
    return squared if rule.squared else squared.sqrt()


def beta(a, r, ids, instr, rule=PAPER):
    """Eq. 6 for an anchor and a reference, whose numbers are a and r."""
    if rule.by_identity and ids[a] != ids[r]:
        return 0.0
    return F.cosine_similarity(instr[a], instr[r], dim=0).item() if rule.cosine else 1.0


def eq5(triplets, batch, rule=PAPER):
    """The mean of Eq. 5 over triplets (a, r1, r2) of a batch (feats, ids, instr), without those
    whose b1 = b2, as there is nothing to rank; 0 without any."""
    feats, ids, instr = batch
    pairs = [(a, r) for a in range(len(ids)) for r in range(len(ids))]
    d = {(a, r): distance(feats[a], feats[r], rule) for a, r in pairs}
    b = {(a, r): beta(a, r, ids, instr, rule) for a, r in pairs}
    terms = []
    for a, r1, r2 in triplets:
        gap = b[a, r1] - b[a, r2]
        if abs(gap) < 1e-6:
            continue
        d1, d2 = d[a, r1], d[a, r2]
        if rule.swapped:
            d1, d2 = d2, d1
        term = d1 - d2 + rule.margin * (gap if rule.scaled else math.copysign(1, gap))
        if rule.sign:
            term = math.copysign(1, gap) * term
        terms.append(term.clamp(min=0) if rule.clipped else term)
    return torch.stack(terms).mean() if terms else feats.new_zeros(())


def cross_entropy(logits, label, smoothing=0.0):
    """Of one row of logits: the target is 1 - smoothing, and smoothing is spread over all."""
    log_p = logits - logits.logsumexp(0)
    return -(1 - smoothing) * log_p[label] - smoothing * log_p.mean()


def contrast(rows, columns, ids, temperature, directions=2, alone=False):
    """L_cl of Eq. 8: each row against all columns and back, every pair of one identity a positive.

    The last two arguments are for mistakes.
    """
    values = []
    for a, b in ((rows, columns), (columns, rows))[:directions]:
        for i in range(len(a)):
            logits = b @ a[i] / temperature
            hits = [j for j in range(len(b)) if ids[j] == ids[i]]
            hits = [i] if alone else hits
            values.append(sum(cross_entropy(logits, j) for j in hits) / len(hits))
    return sum(values) / len(values)
