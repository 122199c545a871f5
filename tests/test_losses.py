"""The vectorised losses against their slow twins."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

import losses
from tests.commands import recipe
from tests.explain import assert_close
from tests.reference import PAPER, Rule, beta, contrast, cross_entropy, distance, eq5

WRONG = {
    "beta ignores the identities: Eq. 6 is 0 between two people": dict(by_identity=False),
    "beta ignores the instructions: this is the plain triplet loss": dict(cosine=False),
    "Sign(b1 - b2) of Eq. 5 is left out": dict(sign=False),
    "the margin is not multiplied by b1 - b2, Eq. 5 has (b1 - b2) m": dict(scaled=False),
    "there is no margin": dict(margin=0.0),
    "d1 and d2 of Eq. 5 are exchanged: the more related reference is pushed away":
        dict(swapped=True),
    "negative terms count: Eq. 5 clips them at 0": dict(clipped=False),
    "d is not squared": dict(squared=False),
}


def a_batch(seed=0, n=12, people=4):
    """(feats (n d), ids (n), instr (n k)); instructions repeat."""
    g = torch.Generator().manual_seed(seed)
    feats = torch.randn(n, 6, generator=g, dtype=torch.float64, requires_grad=True)
    different = torch.randn(n, 5, generator=g, dtype=torch.float64)
    instr = different[torch.randint(0, n - 3, (n,), generator=g)]
    return feats, torch.arange(n) % people, instr


# ---- Eq. 5-6: {mining: the triplets of a batch, each list with a mean of its own} ----

def all_triplets(batch):
    return [itertools.permutations(range(len(batch[1])), 3)]


def even_triplets(batch):
    """Those within a person, and the others."""
    within = {True: [], False: []}
    for triplet in itertools.permutations(range(len(batch[1])), 3):
        within[len(set(batch[1][list(triplet)].tolist())) == 1].append(triplet)
    return list(within.values())


def hard_triplets(batch):
    """Those by identity and those by instruction, one of each per anchor."""
    feats, ids, instr = batch
    by_identity, by_instruction = [], []
    for a in range(len(ids)):
        d = [distance(feats[a], each) for each in feats]
        b = [beta(a, r, ids, instr) for r in range(len(ids))]
        same = [r for r in range(len(ids)) if r != a and ids[r] == ids[a]]
        other = [r for r in range(len(ids)) if ids[r] != ids[a]]
        most = [r for r in same if b[r] > max(b[i] for i in same) - 1e-9]
        least = [r for r in same if b[r] < min(b[i] for i in same) + 1e-9]
        by_identity.append((a, max(same, key=d.__getitem__), min(other, key=d.__getitem__)))
        by_instruction.append((a, max(most, key=d.__getitem__), min(least, key=d.__getitem__)))
    return [by_identity, by_instruction]


TRIPLETS = {"all": all_triplets, "even": even_triplets, "hard": hard_triplets}


def by_loops(mining, batch, rule=PAPER):
    """What the loss is by the slow twin: the sum over the lists of triplets, of "even" their mean.
    """
    means = [eq5(triplets, batch, rule) for triplets in TRIPLETS[mining](batch)]
    return sum(means) / (2 if mining == "even" else 1)


def test_relatedness_is_eq_6():
    _, ids, instr = a_batch()

    def by_hand(rule=PAPER):
        pairs = itertools.product(range(len(ids)), repeat=2)
        values = [beta(a, r, ids, instr, rule) for a, r in pairs]
        return torch.tensor(values, dtype=torch.float64).view(len(ids), -1)

    expected = by_hand()
    mistakes = {
        "the identities are ignored: beta is 0 between two people":
            by_hand(Rule(by_identity=False)),
        "the instructions are ignored: beta is their cosine": by_hand(Rule(cosine=False)),
        "negative cosines become 0: Eq. 6 keeps them": expected.clamp(min=0),
    }
    assert_close(losses.relatedness(ids, instr), expected, mistakes, 1e-9, "beta of Eq. 6")


@pytest.mark.parametrize("mining, squared", [*((each, True) for each in TRIPLETS), ("all", False)])
def test_triplets_equal_loops(mining, squared):
    batch = a_batch(1)
    rule = PAPER._replace(squared=squared)
    expected = by_loops(mining, batch, rule)
    mistakes = {words: by_loops(mining, batch, rule._replace(**wrong))
                for words, wrong in WRONG.items() if squared or "squared" not in wrong}
    mistakes |= {f"these are the triplets of mining={other!r}": by_loops(other, batch, rule)
                 for other in TRIPLETS if other != mining}
    for words, wrong in mistakes.items():
        assert abs(wrong - expected) > 1e-3, f"this batch cannot notice: {words}"
    found = losses.adaptive_triplet(*batch, squared=squared, mining=mining)
    assert_close(found, expected, mistakes, 1e-10, "Eq. 5-6")
    found, expected = (torch.autograd.grad(loss, batch[0])[0] for loss in (found, expected))
    assert_close(found, expected, {}, 1e-9, "the gradient of Eq. 5 (a detach too many?)")


@pytest.mark.parametrize("mining", TRIPLETS)
def test_equal_instructions_make_it_the_plain_triplet_loss(mining):
    feats, ids, _ = a_batch()
    alike = torch.full((len(ids), 3), 0.7, dtype=torch.float64)
    found = losses.adaptive_triplet(feats, ids, alike, mining=mining)
    plain = by_loops(mining, (feats, ids, alike), Rule(cosine=False))
    if mining == "even":  # nobody's instructions differ: all triplets are across people
        plain = 2 * plain
    assert_close(found, plain, {}, 1e-10, "Eq. 5-6 with equal instructions")


def test_beta_carries_no_gradient_and_no_triplet_is_zero():
    feats, ids, instr = a_batch(1)
    instr.requires_grad_()
    losses.adaptive_triplet(feats, ids, instr).backward()
    assert instr.grad is None, "beta of Eq. 6 gets a gradient: the instructions suit the loss"
    for mining in TRIPLETS:  # of two strangers
        none = losses.adaptive_triplet(feats[:2], ids[:2], instr[:2], margin=100, mining=mining)
        assert none.item() == 0, f"two images have no triplet, but the loss is {none.item()}"
        assert none.requires_grad, "a batch without a triplet breaks backward()"


def test_the_recipe_of_a_memory_bank_equals_loops():
    """Earlier images are references, never anchors, and the oldest are forgotten."""
    names = {}
    exec(recipe("A memory bank for Eq. 5"), names)
    bank = names["Bank"](size=8)
    steps = [a_batch(seed, 6, 3) for seed in range(4)]
    wider = torch.randn(6, 9, dtype=torch.float64)
    for number, batch in enumerate(steps):
        feats = batch[0]
        found = bank(*batch, margin=0.3, mining="all")
        bank(wider, *batch[1:], margin=0.3, mining="all")  # F_out has a memory of its own
        older = steps[:number][::-1]
        everything = [torch.cat(parts) for parts in zip(batch, *older)]
        known = [part.detach()[:6 + 8] for part in everything]
        triplets = [each for each in itertools.permutations(range(len(known[0])), 3)
                    if each[0] < len(feats)]
        expected = eq5(triplets, known)
        mistakes = {"there is no memory": eq5(itertools.permutations(range(6), 3), batch)}
        assert_close(found, expected, mistakes if number else {}, 1e-10, f"step {number}")
        found.backward()
        assert feats.grad.abs().sum() > 0


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
        (text, image), again = [
            losses.hard_negatives(similarity, ids, torch.Generator().manual_seed(seed))
            for _ in range(2)]
        assert torch.equal(torch.stack(again), torch.stack([text, image])), "other random numbers"
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
    by_hand = torch.tensor(math.log(1 + 2 * math.exp(-2)))
    assert_close(losses.identity(logits, label), by_hand, {}, 1e-6, "L_id")
    expected = cross_entropy(logits[0], 0, 0.1)
    assert_close(losses.identity(logits, label, 0.1), expected, {}, 1e-6, "L_id, smoothed")
