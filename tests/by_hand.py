"""Eq. 2-4 with loops, one image and one head at a time, and what the usual mistakes would give.

Letters as in model.py: b batch, n image tokens, t instruction tokens, d width, h heads, c width of
one head.
"""

import copy
import math

import torch
from torch import nn


def head_by_hand(q, k, v, k_instr, v_instr, gate, width, softmax):
    """One head of one image: q, k, v (n c), k_instr, v_instr (t c), gate a number -> (n c)."""
    scores = q @ k.T / math.sqrt(width)
    scores_instr = q @ k_instr.T / math.sqrt(width)
    if softmax == "one":
        weights = torch.cat([scores, scores_instr], 1).softmax(1)
        return weights[:, :len(k)] @ v + gate * weights[:, len(k):] @ v_instr
    if softmax == "gate inside":
        return scores.softmax(1) @ v + (gate * scores_instr).softmax(1) @ v_instr
    return scores.softmax(1) @ v + gate * scores_instr.softmax(1) @ v_instr


def attention_by_hand(attn, x, instr, mask=None, gates=None, width=None, softmax="two",
                      linears=None):
    """Eq. 2-4 with loops. x (b n d), instr (b or 1, t, d), mask (b or 1, t) bool -> (b n d).

    The other arguments are for mistakes.
    """
    c = x.shape[2] // attn.heads
    width = width or c
    gates = attn.gate if gates is None else gates
    linear_k, linear_v = linears or (attn.k_instr, attn.v_instr)

    instr = instr.expand(len(x), -1, -1)
    if mask is None:
        mask = torch.ones(1, instr.shape[1], dtype=torch.bool)
    mask = mask.expand(len(x), -1)

    images = []
    for i in range(len(x)):
        words = instr[i][mask[i]]
        heads = []
        for h in range(attn.heads):
            part = slice(h * c, (h + 1) * c)
            q = attn.q(x[i])[:, part]
            k = attn.k(x[i])[:, part]
            v = attn.v(x[i])[:, part]
            k_instr = linear_k(words)[:, part]
            v_instr = linear_v(words)[:, part]
            heads.append(head_by_hand(q, k, v, k_instr, v_instr, gates[h], width, softmax))
        images.append(torch.cat(heads, 1))
    return attn.out(torch.stack(images))


def attention_mistakes(attn, x, instr, mask):
    """{what is wrong: what EditingAttention would then give}."""
    def wrong(instr=instr, mask=mask, **changed):
        return attention_by_hand(attn, x, instr, mask, **changed)

    gates = attn.gate.detach()
    numbers = ", ".join(f"{gate:.2f}" for gate in gates)
    listed = f"with gates {numbers} the output equals that of"
    without_linear_o = copy.deepcopy(attn)
    without_linear_o.out = nn.Identity()

    mistakes = {
        f"the gate is not applied: {listed} gate 1": wrong(gates=torch.ones_like(gates)),
        f"the instruction is not read: {listed} gate 0": wrong(gates=torch.zeros_like(gates)),
        f"the gate goes through tanh, Eq. 2 takes it as it stands: {listed} their tanh":
            wrong(gates=gates.tanh()),
        f"the gate goes through a sigmoid, Eq. 2 takes it as it stands: {listed} their sigmoid":
            wrong(gates=gates.sigmoid()),
        f"one gate serves all heads: {listed} the first gate alone":
            wrong(gates=gates[:1].expand(attn.heads)),
        f"one gate serves all heads: {listed} their mean":
            wrong(gates=gates.mean().expand(attn.heads)),
        "the scores are divided by the root of the full width d, Eq. 3 has the width c of one head":
            wrong(width=x.shape[2]),
        "the scores are not divided by the root of the width of a head": wrong(width=1),
        "one softmax runs over image and instruction tokens together, Eq. 2 has two":
            wrong(softmax="one"),
        "the gate stands inside the softmax, Eq. 2 multiplies what comes out of it":
            wrong(softmax="gate inside"),
        "K' and V' are exchanged": wrong(linears=(attn.v_instr, attn.k_instr)),
        "Linear_o is missing": attention_by_hand(without_linear_o, x, instr, mask),
    }
    if x.shape[2] == instr.shape[2]:
        mistakes["K' and V' go through the image's Linear_k and Linear_v, they have their own"] = (
            wrong(linears=(attn.k, attn.v)))
    if x.shape[1:] == instr.shape[1:]:
        mistakes["K' and V' are computed from the image tokens, Eq. 3-4 have the instruction's"] = (
            wrong(instr=x))
    if mask is not None:
        mistakes["the mask is ignored: padding is read as if it were words"] = wrong(mask=None)
    return mistakes
