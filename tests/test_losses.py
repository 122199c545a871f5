"""The vectorised losses against their slow twins and against brute-force reference numbers."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

import losses
from tests.explain import assert_close
from tests.reference import PAPER, Rule, contrast, cross_entropy, eq5, golden

WRONG = {
    "beta ignores the identities: Eq. 6 is 0 between two people": dict(by_identity=False),
    "beta ignores the instructions: this is the plain triplet loss": dict(cosine=False),
    "Sign(b1 - b2) of Eq. 5 is left out": dict(sign=False),
    "the margin is not multiplied by b1 - b2, Eq. 5 has (b1 - b2) m": dict(scaled=False),
    "there is no margin": dict(margin=0.0),
    "d1 and d2 of Eq. 5 are exchanged: the more related reference is pushed away":
        dict(swapped=True),
    "negative terms count: Eq. 5 clips them at 0": dict(clipped=False),
    "d is squared where it must not be, or the reverse": dict(squared=False),
}


def a_batch(seed=0, n=12, people=4):
    """(feats (n d), ids (n), instr (n k)); instructions repeat."""
    g = torch.Generator().manual_seed(seed)
    feats = torch.randn(n, 6, generator=g, dtype=torch.float64)
    different = torch.randn(n, 5, generator=g, dtype=torch.float64)
    instr = different[torch.randint(0, n - 3, (n,), generator=g)]
    return feats, torch.arange(n) % people, instr


# ---- Eq. 5-6 ----

def triplets_of(batch, within=None):
    """All ordered triplets (a, r1, r2), or those within a person, or the others."""
    ids = batch[1]
    for triplet in itertools.permutations(range(len(ids)), 3):
        if within is None or within == (len(set(ids[list(triplet)].tolist())) == 1):
            yield triplet


def by_loops(batch, rule=PAPER):
    return eq5(triplets_of(batch), batch, rule)


def even_by_loops(batch, rule=PAPER):
    within, across = (eq5(triplets_of(batch, kind), batch, rule) for kind in (True, False))
    return (within + across) / 2


def hard_parts(batch, rule=PAPER):
    """(the mean over the triplets by identity, that over those by instruction)."""
    feats, ids, instr = batch
    dist = losses.distances(feats)
    cos = F.cosine_similarity(instr[:, None], instr[None], dim=2)
    by_identity = []
    by_instruction = []
    for a in range(len(ids)):
        same = [r for r in range(len(ids)) if r != a and ids[r] == ids[a]]
        other = [r for r in range(len(ids)) if ids[r] != ids[a]]
        most = max(cos[a, r] for r in same) - 1e-9
        least = min(cos[a, r] for r in same) + 1e-9
        for triplets, far, near in (
            (by_identity, same, other),
            (by_instruction, [r for r in same if cos[a, r] >= most],
             [r for r in same if cos[a, r] <= least]),
        ):
            farthest = max(far, key=lambda r: dist[a, r])
            nearest = min(near, key=lambda r: dist[a, r])
            if farthest != nearest:
                triplets.append((a, farthest, nearest))
    return eq5(by_identity, batch, rule), eq5(by_instruction, batch, rule)


def hard_by_loops(batch, rule=PAPER):
    return sum(hard_parts(batch, rule))


def mistakes_of(loops, batch):
    """{what is wrong: what the loss would then be}."""
    return {words: loops(batch, Rule(**changed)) for words, changed in WRONG.items()}


@pytest.mark.parametrize("seed", range(2))
def test_all_triplets_equal_three_nested_loops(seed):
    batch = a_batch(seed)
    expected = by_loops(batch)
    mistakes = mistakes_of(by_loops, batch)
    for words, wrong in mistakes.items():
        assert abs(wrong - expected) > 1e-3, f"this batch cannot notice: {words}"
    assert_close(losses.adaptive_triplet(*batch), expected, mistakes, 1e-10, "Eq. 5-6")


def test_even_triplets_equal_loops():
    """Half is the mean over the triplets within a person, half that over the others."""
    batch = a_batch()
    found = losses.adaptive_triplet(*batch, mining="even")
    mistakes = {"it is the mean over all triplets": by_loops(batch),
                "both halves are summed": 2 * even_by_loops(batch)}
    assert_close(found, even_by_loops(batch), mistakes, 1e-10, "Eq. 5-6, even triplets")


@pytest.mark.parametrize("seed", range(2))
def test_hard_triplets_equal_loops(seed):
    batch = a_batch(seed)
    by_identity, by_instruction = hard_parts(batch)
    mistakes = mistakes_of(hard_by_loops, batch) | {
        "the triplets by instruction are left out": by_identity,
        "the triplets by identity are left out": by_instruction,
        "all triplets are taken where the hard ones are asked for": by_loops(batch),
    }
    found = losses.adaptive_triplet(*batch, mining="hard")
    assert_close(found, by_identity + by_instruction, mistakes, 1e-10, "Eq. 5-6, hard triplets")


@pytest.mark.parametrize("mining", ["all", "even", "hard"])
def test_equal_instructions_make_it_the_plain_triplet_loss(mining):
    feats, ids, _ = a_batch()
    dist = losses.distances(feats)
    same = (ids[:, None] == ids[None]) & ~torch.eye(len(ids), dtype=torch.bool)
    other = ids[:, None] != ids[None]
    plain = []
    for a in range(len(ids)):
        far, near = dist[a][same[a]], dist[a][other[a]]
        if mining == "hard":
            far, near = far.max(0, keepdim=True)[0], near.min(0, keepdim=True)[0]
        plain.append((far[:, None] - near[None] + 0.3).relu().flatten())
    expected = torch.cat(plain).mean()
    alike = torch.full((len(ids), 3), 0.7, dtype=torch.float64)
    found = losses.adaptive_triplet(feats, ids, alike, mining=mining)
    assert_close(found, expected, {}, 1e-10, "Eq. 5-6 with equal instructions")


def test_beta_carries_no_gradient_and_no_triplet_is_zero():
    feats, ids, instr = a_batch(1)
    instr.requires_grad_()
    feats.requires_grad_()
    losses.adaptive_triplet(feats, ids, instr).backward()
    assert instr.grad is None, "beta of Eq. 6 gets a gradient: the instructions suit the loss"
    assert feats.grad.abs().sum() > 0, "the features get no gradient"
    alone = losses.adaptive_triplet(feats[:1], ids[:1], instr[:1], mining="hard")
    assert alone.item() == 0, f"one image has no triplet, but the loss is {alone.item()}"
    assert alone.requires_grad, "a batch without a triplet breaks backward()"


@pytest.mark.parametrize("case", ["distinct", "mixed_sign", "repeated", "constant"])
@pytest.mark.parametrize("name,squared", [("sq", True), ("l2", False)])
def test_reference_numbers(case, name, squared):
    ref = golden(f"adaptive_triplet/{case}.npz")
    feats = torch.tensor(ref["embeddings"], dtype=torch.float64, requires_grad=True)
    ids = torch.tensor(ref["labels"])
    instr = torch.tensor(ref["instruction_features"], dtype=torch.float64)
    beta = losses.relatedness(ids, instr)
    cosine = F.cosine_similarity(instr[:, None], instr[None], dim=2)
    same = ids[:, None] == ids[None]
    mistakes = {
        "the identities are ignored: beta is 0 between two people": cosine,
        "the instructions are ignored: beta is their cosine": same.double(),
        "negative cosines become 0: Eq. 6 keeps them": (cosine * same).clamp(min=0),
    }
    assert_close(beta, torch.tensor(ref["beta"]).double(), mistakes, 1e-9, "beta of Eq. 6")

    loss = losses.adaptive_triplet(feats, ids, instr, ref["margin"].item(), squared)
    loss.backward()
    expected = torch.tensor(ref[f"paper_{name}_loss_all"].item(), dtype=torch.float64)
    assert_close(loss, expected, {}, 1e-9, "Eq. 5-6")
    grad = torch.tensor(ref[f"paper_{name}_grad_all"]).double()
    assert_close(feats.grad, grad, {}, 1e-9, "the gradient of Eq. 5 (a detach too many?)")


# ---- Eq. 7-8 ----

def test_contrastive_equals_loops_with_several_positives():
    g = torch.Generator().manual_seed(0)
    image, text = F.normalize(torch.randn(2, 6, 4, generator=g, dtype=torch.float64), dim=2)
    batch = image, text, torch.tensor([0, 0, 1, 2, 2, 2])
    mistakes = {
        "the image's own text is the only positive: every text of the person is one":
            contrast(*batch, 0.1, alone=True),
        "images look for texts, but texts not for images": contrast(*batch, 0.1, directions=1),
        "both directions are summed, it is their mean": 2 * contrast(*batch, 0.1),
        "the similarity is not divided by the temperature": contrast(*batch, 1.0),
        "the similarity is multiplied by the temperature": contrast(*batch, 10.0),
    }
    found = losses.contrastive(*batch, torch.tensor(0.1))
    assert_close(found, contrast(*batch, 0.1), mistakes, 1e-5, "L_cl of Eq. 8")


def test_hard_negatives_are_other_people_and_mostly_the_alike():
    similarity = torch.zeros(4, 4)
    similarity[0, 2] = similarity[3, 1] = 20.0
    ids = torch.tensor([0, 0, 1, 2])
    for seed in range(50):  # one sample would show only half of the time that people are excluded
        generator = torch.Generator().manual_seed(seed)
        text, image = losses.hard_negatives(similarity, ids, generator)
        assert (ids[text] != ids).all(), "a false text is of the image's own person"
        assert (ids[image] != ids).all(), "a false image is of the text's own person"
        assert text[[0, 3]].tolist() == [2, 1], "the most alike text is not the false one"
        assert image[[2, 1]].tolist() == [0, 3], "the most alike image is not the false one"


def test_matching_wants_true_pairs_in_the_second_place():
    yes, no = torch.tensor([[[-1.0, 2.0]], [[3.0, -1.0]]])
    expected = (cross_entropy(yes[0], 1) + cross_entropy(no[0], 0)) / 2
    mistakes = {"true pairs have [0, 1] and false ones [1, 0], not the other way round":
                (cross_entropy(yes[0], 0) + cross_entropy(no[0], 1)) / 2}
    assert_close(losses.matching(yes, no), expected, mistakes, 1e-6, "L_match")


def test_identity_is_cross_entropy_and_smoothing_softens_it():
    logits, label = torch.tensor([[2.0, 0, 0]]), torch.tensor([0])
    by_hand = math.log(1 + 2 * math.exp(-2))
    assert losses.identity(logits, label).item() == pytest.approx(by_hand, abs=1e-6)
    expected = cross_entropy(logits[0], 0, 0.1)
    assert_close(losses.identity(logits, label, 0.1), expected, {}, 1e-6, "L_id, smoothed")
