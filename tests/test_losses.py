"""The vectorised losses against their naive twins and against brute-force reference numbers."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import losses
from tests.reference import golden


def batch(seed, n=12, people=4, d=6, k=5):
    g = torch.Generator().manual_seed(seed)
    feats = torch.randn(n, d, generator=g, dtype=torch.float64)
    instr = torch.randn(n, k, generator=g, dtype=torch.float64)[torch.randint(0, n - 3, (n,), generator=g)]  # some repeat
    return feats, torch.arange(n) % people, instr


def naive_terms(feats, ids, instr, margin):
    """Eq. 5-6 word for word: {(a, r1, r2): term} over the ordered triplets with b1 != b2."""
    def beta(a, r):
        return float(F.cosine_similarity(instr[a], instr[r], dim=0)) if ids[a] == ids[r] else 0.0

    def d(a, r):
        return float((feats[a] - feats[r]).square().sum())

    terms = {}
    for a, r1, r2 in itertools.permutations(range(len(ids)), 3):
        gap = beta(a, r1) - beta(a, r2)
        if abs(gap) > 1e-9:
            terms[a, r1, r2] = max(0.0, math.copysign(1, gap) * (d(a, r1) + gap * margin - d(a, r2)))
    return terms


@pytest.mark.parametrize("seed", range(3))
def test_all_triplets_equal_three_nested_loops(seed):
    feats, ids, instr = batch(seed)
    expected = np.mean(list(naive_terms(feats, ids, instr, 0.3).values()))
    assert abs(losses.adaptive_triplet(feats, ids, instr).item() - expected) < 1e-10


@pytest.mark.parametrize("seed", range(3))
def test_hard_triplets_equal_loops(seed):
    feats, ids, instr = batch(seed)
    dist = torch.cdist(feats, feats).square()
    cos = F.cosine_similarity(instr[:, None], instr[None], dim=2)
    groups = [[], []]
    for a in range(len(ids)):
        same = [r for r in range(len(ids)) if r != a and ids[r] == ids[a]]
        other = [r for r in range(len(ids)) if ids[r] != ids[a]]
        most, least = max(cos[a, r] for r in same), min(cos[a, r] for r in same)
        picks = [(max(same, key=lambda r: dist[a, r]), min(other, key=lambda r: dist[a, r])),
                 (max((r for r in same if cos[a, r] > most - 1e-9), key=lambda r: dist[a, r]),
                  min((r for r in same if cos[a, r] < least + 1e-9), key=lambda r: dist[a, r]))]
        for group, (r1, r2) in zip(groups, picks):
            gap = cos[a, r1] - (cos[a, r2] if ids[r2] == ids[a] else 0)
            if abs(gap) > 1e-9:
                group.append(max(0.0, float(gap.sign() * (dist[a, r1] - dist[a, r2] + gap * 0.3))))
    expected = sum(np.mean(group) for group in groups if group)
    assert abs(losses.adaptive_triplet(feats, ids, instr, mining="hard").item() - expected) < 1e-10


@pytest.mark.parametrize("mining", ["all", "hard"])
def test_equal_instructions_make_it_the_plain_triplet_loss(mining):
    feats, ids, _ = batch(0)
    one = torch.ones(len(ids), 3, dtype=torch.float64) * 0.7
    dist, plain = torch.cdist(feats, feats).square(), []
    for a, p, n in itertools.permutations(range(len(ids)), 3):
        if ids[a] == ids[p] and ids[a] != ids[n]:
            plain.append(max(0.0, float(dist[a, p] - dist[a, n] + 0.3)))
    if mining == "hard":
        same = (ids[:, None] == ids[None]) & ~torch.eye(len(ids), dtype=torch.bool)
        far = dist.masked_fill(~same, -1).amax(1)
        near = dist.masked_fill(ids[:, None] == ids[None], torch.inf).amin(1)
        plain = (far - near + 0.3).relu().tolist()
    assert abs(losses.adaptive_triplet(feats, ids, one, mining=mining).item() - np.mean(plain)) < 1e-10
    assert abs(losses.triplet(feats, ids, mining=mining).item() - np.mean(plain)) < 1e-10


def test_identity_gates_beta():
    """Two images of different people are unrelated however alike their instructions: pulling them together must cost."""
    ids, instr = torch.tensor([0, 0, 1]), torch.ones(3, 2)
    near_stranger = torch.tensor([[0.0], [1.0], [0.0]])
    near_self = torch.tensor([[0.0], [0.0], [1.0]])
    assert losses.adaptive_triplet(near_stranger, ids, instr) > 0.5 > losses.adaptive_triplet(near_self, ids, instr) == 0


@pytest.mark.parametrize("mining", ["all", "hard"])
def test_the_wanted_outfit_must_be_nearer(mining):
    """Same person throughout: the loss falls when the reference with the anchor's instruction moves nearer than the other."""
    ids, instr = torch.zeros(3, dtype=torch.long), torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    good, bad = torch.tensor([[0.0], [0.1], [2]]), torch.tensor([[0.0], [2], [0.1]])
    assert losses.adaptive_triplet(good, ids, instr, mining=mining) < losses.adaptive_triplet(bad, ids, instr, mining=mining)


def test_beta_carries_no_gradient_and_no_triplet_is_zero():
    feats, ids, instr = batch(1)
    instr.requires_grad_()
    feats.requires_grad_()
    losses.adaptive_triplet(feats, ids, instr).backward()
    assert instr.grad is None and feats.grad.abs().sum() > 0
    alone = losses.adaptive_triplet(feats[:1], ids[:1], instr[:1], mining="hard")
    assert alone.item() == 0 and alone.requires_grad


@pytest.mark.parametrize("case", ["distinct", "mixed_sign", "repeated", "constant"])
@pytest.mark.parametrize("name,squared", [("sq", True), ("l2", False)])
def test_reference_numbers(case, name, squared):
    ref = golden(f"adaptive_triplet/{case}.npz")
    feats = torch.tensor(ref["embeddings"], dtype=torch.float64, requires_grad=True)
    ids, instr = torch.tensor(ref["labels"]), torch.tensor(ref["instruction_features"], dtype=torch.float64)
    assert np.abs(losses.relatedness(ids, instr).numpy() - ref["beta"]).max() < 1e-9
    loss = losses.adaptive_triplet(feats, ids, instr, ref["margin"].item(), squared)
    loss.backward()
    assert abs(loss.item() - ref[f"paper_{name}_loss_all"]) < 1e-9
    assert np.abs(feats.grad.numpy() - ref[f"paper_{name}_grad_all"]).max() < 1e-9


def test_contrastive_equals_loops_with_several_positives():
    g = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(6, 4, generator=g, dtype=torch.float64), dim=1) for _ in range(2))
    ids, total = torch.tensor([0, 0, 1, 2, 2, 2]), 0.0
    for a, b in ((image, text), (text, image)):
        for i in range(6):
            logits = [float(a[i] @ b[j]) / 0.1 for j in range(6)]
            log_norm = math.log(sum(map(math.exp, logits)))
            positives = [j for j in range(6) if ids[j] == ids[i]]
            total += sum(log_norm - logits[j] for j in positives) / len(positives) / 12
    assert abs(losses.contrastive(image, text, ids, torch.tensor(0.1)).item() - total) < 1e-5


def test_hard_negatives_are_other_people_and_mostly_the_alike():
    similarity = torch.zeros(4, 4)
    similarity[0, 2] = similarity[3, 1] = 20.0
    ids = torch.tensor([0, 0, 1, 2])
    for seed in range(50):  # one draw would show in half of the cases only that a person's other image is excluded too
        text, image = losses.hard_negatives(similarity, ids, torch.Generator().manual_seed(seed))
        assert (ids[text] != ids).all(), "a false text is of the image's own person"
        assert (ids[image] != ids).all(), "a false image is of the text's own person"
        assert text[0] == 2 and text[3] == 1 and image[2] == 0 and image[1] == 3


def test_matching_wants_true_pairs_in_the_second_place():
    yes, no = torch.tensor([[-5.0, 5.0]]), torch.tensor([[5.0, -5.0]])
    assert losses.matching(yes, no) < 0.01 < 5 < losses.matching(no, yes)


def test_identity_is_cross_entropy_and_smoothing_softens_it():
    logits, labels = torch.tensor([[2.0, 0, 0]]), torch.tensor([0])
    assert losses.identity(logits, labels).item() == pytest.approx(math.log(1 + 2 * math.exp(-2)), abs=1e-6)
    assert losses.identity(logits, labels, 0.1) > losses.identity(logits, labels)
