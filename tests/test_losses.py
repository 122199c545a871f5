"""The vectorised losses against their naive twins and against brute-force reference numbers."""

import itertools
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import losses
from tests.explain import assert_close, close
from tests.reference import golden

MARGIN = 0.3


def tensor(number):
    return torch.tensor(float(number), dtype=torch.float64)


def a_batch(seed, n=12, people=4, d=6, k=5):
    """(feats (n d), ids (n), instr (n k)); instructions repeat."""
    g = torch.Generator().manual_seed(seed)
    feats = torch.randn(n, d, generator=g, dtype=torch.float64)
    different = torch.randn(n, k, generator=g, dtype=torch.float64)
    instr = different[torch.randint(0, n - 3, (n,), generator=g)]
    return feats, torch.arange(n) % people, instr


# ---- Eq. 5-6 with loops ----

class Rule(NamedTuple):
    """How a term of Eq. 5 is made; the defaults are the paper's, everything else is a mistake."""
    margin: float = MARGIN
    squared: bool = True
    by_identity: bool = True  # beta of two people is 0
    cosine: bool = True  # beta of a person's images is the cosine of their instructions, not 1
    sign: bool = True
    scaled: bool = True  # the margin is multiplied by b1 - b2
    swapped: bool = False  # d1 and d2
    clipped: bool = True


def beta(a, r, ids, instr, rule):
    """Eq. 6 for an anchor and a reference."""
    if rule.by_identity and ids[a] != ids[r]:
        return 0.0
    return F.cosine_similarity(instr[a], instr[r], dim=0).item() if rule.cosine else 1.0


def term(a, r1, r2, batch, rule):
    """Eq. 5 for one triplet; None where b1 = b2, as there is nothing to rank."""
    feats, ids, instr = batch
    gap = beta(a, r1, ids, instr, rule) - beta(a, r2, ids, instr, rule)
    if abs(gap) < 1e-9:
        return None

    d1 = (feats[a] - feats[r1]).square().sum().item()
    d2 = (feats[a] - feats[r2]).square().sum().item()
    if not rule.squared:
        d1 = math.sqrt(d1)
        d2 = math.sqrt(d2)
    if rule.swapped:
        d1, d2 = d2, d1

    margin = rule.margin * (gap if rule.scaled else math.copysign(1, gap))
    value = d1 + margin - d2
    if rule.sign:
        value *= math.copysign(1, gap)
    return max(0.0, value) if rule.clipped else value


def terms_of(triplets, batch, rule):
    """The terms of these (a, r1, r2), without those where b1 = b2."""
    found = [term(*triplet, batch, rule) for triplet in triplets]
    return [value for value in found if value is not None]


def mean(terms):
    return np.mean(terms) if terms else 0.0


def all_by_loops(batch, rule=Rule()):
    """The mean of Eq. 5 over all ordered triplets."""
    triplets = itertools.permutations(range(len(batch[1])), 3)
    return tensor(mean(terms_of(triplets, batch, rule)))


def hard_parts(batch, rule=Rule()):
    """(the mean over the triplets by identity, the mean over those by instruction); 0 without any."""
    feats, ids, instr = batch
    dist = torch.cdist(feats, feats).square()
    cos = F.cosine_similarity(instr[:, None], instr[None], dim=2)
    by_identity = []
    by_instruction = []
    for a in range(len(ids)):
        same = [r for r in range(len(ids)) if r != a and ids[r] == ids[a]]
        other = [r for r in range(len(ids)) if ids[r] != ids[a]]
        farthest = max(same, key=lambda r: dist[a, r])
        nearest = min(other, key=lambda r: dist[a, r])
        by_identity.append((a, farthest, nearest))

        most = max(cos[a, r] for r in same)
        least = min(cos[a, r] for r in same)
        most_alike = [r for r in same if cos[a, r] > most - 1e-9]
        least_alike = [r for r in same if cos[a, r] < least + 1e-9]
        farthest = max(most_alike, key=lambda r: dist[a, r])
        nearest = min(least_alike, key=lambda r: dist[a, r])
        by_instruction.append((a, farthest, nearest))

    return [mean(terms_of(triplets, batch, rule)) for triplets in (by_identity, by_instruction)]


def hard_by_loops(batch, rule=Rule()):
    """The sum of both means."""
    return tensor(sum(hard_parts(batch, rule)))


WRONG = {
    "beta ignores the identities: Eq. 6 is 0 between two people, however alike their instructions":
        dict(by_identity=False),
    "beta ignores the instructions: this is the plain triplet loss, Eq. 6 has their cosine":
        dict(cosine=False),
    "Sign(b1 - b2) of Eq. 5 is left out": dict(sign=False),
    "the margin is not multiplied by b1 - b2, Eq. 5 has (b1 - b2) m": dict(scaled=False),
    "there is no margin": dict(margin=0.0),
    "d1 and d2 of Eq. 5 are exchanged: the more related reference is pushed away":
        dict(swapped=True),
    "negative terms count: Eq. 5 clips them at 0": dict(clipped=False),
}
PLAIN_DISTANCES = "d is the plain Euclidean distance where its square is asked for"
SQUARES = "d is the squared distance where squared=False asks for the plain one"


def mistakes_of(by_loops, batch, squared=True):
    """{what is wrong: what the loss would then be}."""
    mistakes = {}
    for words, changed in WRONG.items():
        mistakes[words] = by_loops(batch, Rule(squared=squared, **changed))
    words = PLAIN_DISTANCES if squared else SQUARES
    mistakes[words] = by_loops(batch, Rule(squared=not squared))
    return mistakes


def hard_mistakes(batch):
    by_identity, by_instruction = hard_parts(batch)
    return mistakes_of(hard_by_loops, batch) | {
        "the triplets by instruction are left out": tensor(by_identity),
        "the triplets by identity are left out": tensor(by_instruction),
        "the mean of both kinds of triplets is taken, it is their sum":
            tensor((by_identity + by_instruction) / 2),
        "all triplets are taken where the hard ones are asked for": all_by_loops(batch),
    }


@pytest.mark.parametrize("seed", range(3))
def test_all_triplets_equal_three_nested_loops(seed):
    batch = a_batch(seed)
    expected = all_by_loops(batch)
    mistakes = mistakes_of(all_by_loops, batch)
    for words, wrong in mistakes.items():
        assert abs(wrong - expected) > 1e-3, f"this batch cannot notice: {words}"
    assert_close(losses.adaptive_triplet(*batch), expected, mistakes, 1e-10, "Eq. 5-6")


@pytest.mark.parametrize("seed", range(3))
def test_even_triplets_equal_loops(seed):
    """Half is the mean over the triplets within a person, half that over the others."""
    feats, ids, instr = a_batch(seed)
    dist = torch.cdist(feats, feats).square()
    beta = F.cosine_similarity(instr[:, None], instr[None], dim=2) * (ids[:, None] == ids[None])
    kinds = {True: [], False: []}
    for a, r1, r2 in itertools.permutations(range(len(ids)), 3):
        gap = beta[a, r1] - beta[a, r2]
        if abs(gap) > 1e-6:
            is_within = bool(ids[a] == ids[r1] == ids[r2])
            term = gap.sign() * (dist[a, r1] - dist[a, r2] + gap * MARGIN)
            kinds[is_within].append(term.clamp(min=0))
    within, across = (sum(terms) / len(terms) for terms in (kinds[True], kinds[False]))
    found = losses.adaptive_triplet(feats, ids, instr, MARGIN, mining="even")
    wrong = {
        "it is the mean over all triplets": all_by_loops((feats, ids, instr)),
        "both halves are summed": within + across,
        "the triplets within a person are left out": across,
    }
    assert_close(found, (within + across) / 2, wrong, 1e-10, "Eq. 5-6, even triplets")


@pytest.mark.parametrize("seed", range(3))
def test_hard_triplets_equal_loops(seed):
    batch = a_batch(seed)
    found = losses.adaptive_triplet(*batch, mining="hard")
    assert_close(found, hard_by_loops(batch), hard_mistakes(batch), 1e-10, "Eq. 5-6, hard triplets")


@pytest.mark.parametrize("mining", ["all", "even", "hard"])
def test_equal_instructions_make_it_the_plain_triplet_loss(mining):
    feats, ids, other = a_batch(0)
    alike = torch.ones(len(ids), 3, dtype=torch.float64) * 0.7
    dist = torch.cdist(feats, feats).square()
    plain = []
    for a, p, n in itertools.permutations(range(len(ids)), 3):
        if ids[a] == ids[p] and ids[a] != ids[n]:
            plain.append(max(0.0, float(dist[a, p] - dist[a, n] + MARGIN)))
    if mining == "hard":
        same = (ids[:, None] == ids[None]) & ~torch.eye(len(ids), dtype=torch.bool)
        far = dist.masked_fill(~same, -1).amax(1)
        near = dist.masked_fill(ids[:, None] == ids[None], torch.inf).amin(1)
        plain = (far - near + MARGIN).relu().tolist()

    expected = tensor(np.mean(plain))
    by_loops = all_by_loops if mining == "all" else hard_by_loops
    mistakes = mistakes_of(by_loops, (feats, ids, alike))
    found = losses.adaptive_triplet(feats, ids, alike, mining=mining)
    assert_close(found, expected, mistakes, 1e-10, "Eq. 5-6 with equal instructions")
    found = losses.triplet(feats, ids, mining=mining)
    assert_close(found, expected, mistakes, 1e-10, "the plain triplet loss")


# ---- what Eq. 5-6 mean ----

def test_identity_gates_beta():
    """Two images of different people are unrelated however alike their instructions: pulling them
    together must cost."""
    ids = torch.tensor([0, 0, 1])
    instr = torch.ones(3, 2)
    near_stranger = torch.tensor([[0.0], [1.0], [0.0]])
    near_self = torch.tensor([[0.0], [0.0], [1.0]])

    cost = losses.adaptive_triplet(near_stranger, ids, instr).item()
    words = f"a stranger beside the anchor costs {cost:.2f}: Eq. 6 does not look at the identities"
    assert cost > 0.5, words
    cost = losses.adaptive_triplet(near_self, ids, instr).item()
    assert cost == 0, f"the own image beside the anchor and the stranger far away cost {cost:.2f}"


@pytest.mark.parametrize("mining", ["all", "hard"])
def test_the_wanted_outfit_must_be_nearer(mining):
    """The person is the same throughout: the loss falls when the reference with the anchor's
    instruction moves nearer than the other."""
    ids = torch.zeros(3, dtype=torch.long)
    instr = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    good = losses.adaptive_triplet(torch.tensor([[0.0], [0.1], [2]]), ids, instr, mining=mining)
    bad = losses.adaptive_triplet(torch.tensor([[0.0], [2], [0.1]]), ids, instr, mining=mining)
    words = (f"the loss is {good:.2f} where the image with the anchor's instruction is the nearer "
             f"one and {bad:.2f} where it is the farther one: Sign(b1 - b2) of Eq. 5")
    assert good < bad, words


def test_beta_carries_no_gradient_and_no_triplet_is_zero():
    feats, ids, instr = a_batch(1)
    instr.requires_grad_()
    feats.requires_grad_()
    losses.adaptive_triplet(feats, ids, instr).backward()
    assert instr.grad is None, "beta of Eq. 6 gets a gradient: the instructions move to suit the loss"
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
    margin = ref["margin"].item()

    beta = losses.relatedness(ids, instr)
    cosine = F.cosine_similarity(instr[:, None], instr[None], dim=2)
    same = (ids[:, None] == ids[None]).double()
    mistakes = {
        "the identities are ignored: beta is 0 between two people": cosine,
        "the instructions are ignored: beta is their cosine where the identities agree": same,
        "negative cosines become 0: Eq. 6 keeps them": (cosine * same).clamp(min=0),
    }
    assert_close(beta, torch.tensor(ref["beta"]).double(), mistakes, 1e-9, "beta of Eq. 6")

    loss = losses.adaptive_triplet(feats, ids, instr, margin, squared)
    loss.backward()
    expected = tensor(ref[f"paper_{name}_loss_all"])
    mistakes = {}
    if not close(loss.detach(), expected, 1e-9):  # the loops are slow
        mistakes = mistakes_of(all_by_loops, (feats.detach(), ids, instr), squared)
    assert_close(loss, expected, mistakes, 1e-9, "Eq. 5-6")
    grad = torch.tensor(ref[f"paper_{name}_grad_all"]).double()
    words = "the gradient of Eq. 5, whose value is right (a detach too many?)"
    assert_close(feats.grad, grad, {}, 1e-9, words)


# ---- Eq. 7-8 ----

def contrast_by_loops(image, text, ids, temperature, directions="both", alone=False):
    """L_cl of Eq. 8; the last two arguments are for mistakes."""
    pairs = {"image to text": [(image, text)], "text to image": [(text, image)]}
    pairs["both"] = pairs["image to text"] + pairs["text to image"]
    values = []
    for a, b in pairs[directions]:
        for i in range(len(a)):
            logits = [float(a[i] @ b[j]) / temperature for j in range(len(b))]
            log_norm = math.log(sum(map(math.exp, logits)))
            positives = [j for j in range(len(b)) if ids[j] == ids[i]]
            if alone:
                positives = [i]
            values.append(np.mean([log_norm - logits[j] for j in positives]))
    return tensor(np.mean(values))


def test_contrastive_equals_loops_with_several_positives():
    g = torch.Generator().manual_seed(0)
    image = F.normalize(torch.randn(6, 4, generator=g, dtype=torch.float64), dim=1)
    text = F.normalize(torch.randn(6, 4, generator=g, dtype=torch.float64), dim=1)
    ids = torch.tensor([0, 0, 1, 2, 2, 2])

    def by_loops(temperature=0.1, **wrong):
        return contrast_by_loops(image, text, ids, temperature, **wrong)

    mistakes = {
        "the image's own text is the only positive: every text of the person is one":
            by_loops(alone=True),
        "images look for texts, but texts not for images": by_loops(directions="image to text"),
        "texts look for images, but images not for texts": by_loops(directions="text to image"),
        "both directions are summed, it is their mean": 2 * by_loops(),
        "the similarity is not divided by the temperature": by_loops(temperature=1.0),
        "the similarity is multiplied by the temperature": by_loops(temperature=10.0),
    }
    found = losses.contrastive(image, text, ids, torch.tensor(0.1))
    assert_close(found, by_loops(), mistakes, 1e-5, "L_cl of Eq. 8")


def test_hard_negatives_are_other_people_and_mostly_the_alike():
    similarity = torch.zeros(4, 4)
    similarity[0, 2] = similarity[3, 1] = 20.0
    ids = torch.tensor([0, 0, 1, 2])
    # one draw would show in half of the cases only that a person's other image is excluded too
    for seed in range(50):
        generator = torch.Generator().manual_seed(seed)
        text, image = losses.hard_negatives(similarity, ids, generator)
        assert (ids[text] != ids).all(), "a false text is of the image's own person"
        assert (ids[image] != ids).all(), "a false image is of the text's own person"

        words = "image {} and text {} are most alike, but image {} gets the false text {}"
        for i, j in ((0, 2), (3, 1)):
            assert text[i] == j, words.format(i, j, i, text[i].item())
        words = "image {} and text {} are most alike, but text {} gets the false image {}"
        for i, j in ((0, 2), (3, 1)):
            assert image[j] == i, words.format(i, j, j, image[j].item())


def test_matching_wants_true_pairs_in_the_second_place():
    yes = torch.tensor([[-5.0, 5.0]])
    no = torch.tensor([[5.0, -5.0]])
    right = losses.matching(yes, no).item()
    wrong = losses.matching(no, yes).item()
    words = (f"L_match is {right:.2f} where true pairs have [0, 1] and false ones [1, 0], and "
             f"{wrong:.2f} the other way round")
    assert right < 0.01 and wrong > 5, words


def test_identity_is_cross_entropy_and_smoothing_softens_it():
    logits = torch.tensor([[2.0, 0, 0]])
    labels = torch.tensor([0])
    log_p = [-math.log(1 + 2 * math.exp(-2)), -math.log(2 + math.exp(2))]  # of the label, of others
    expected = tensor(-log_p[0]).float()
    smoothed = tensor(-0.9 * log_p[0] - 0.1 * (log_p[0] + 2 * log_p[1]) / 3).float()
    assert_close(losses.identity(logits, labels), expected, {}, 1e-6, "L_id without smoothing")
    found = losses.identity(logits, labels, 0.1)
    assert_close(found, smoothed, {"the smoothing is ignored": expected}, 1e-6, "L_id")
