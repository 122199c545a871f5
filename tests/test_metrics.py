"""Ranking metrics against a full sort and rankings by hand; those against reference figures are in
test_protocols.py."""

import numpy as np
import pytest

from evaluate import random_ranking, ranking_metrics
from reid.cli import UserError


def naive_metrics(dist, positive, removed, ap_window=None, gallery_ids=None):
    """The textbook way: sort the gallery, walk down."""
    aps, inps, firsts = [], [], []
    for d, hits, is_removed in zip(dist, positive, removed):
        if not (hits & ~is_removed).any():
            continue
        order = np.argsort(d, kind="stable")[:ap_window]
        order = [i for i in order if not is_removed[i]]
        places = [rank for rank, i in enumerate(order, 1) if hits[i]]
        aps.append(np.mean([n / rank for n, rank in enumerate(places, 1)]) if places else 0)
        inps.append(len(places) / places[-1] if places else 0)
        if gallery_ids is not None:
            ids = [*dict.fromkeys(gallery_ids[i] for i in order)]
            places = [1 + ids.index(gallery_ids[order[rank - 1]]) for rank in places]
        firsts.append(places[0] if places else np.inf)
    cmc = [np.mean(np.array(firsts) <= k) for k in range(1, dist.shape[1] + 1)]
    return {"mAP": np.mean(aps), "mINP": np.mean(inps), "queries": len(aps), "cmc": cmc}


@pytest.mark.parametrize("seed", range(30))
def test_equals_a_full_sort(seed):
    """With ties, at infinite distances too, removed images and queries without a hit; in a window,
    and of people."""
    rng = np.random.default_rng(seed)
    q = rng.integers(1, 8)
    g = rng.integers(1, 40) if seed % 10 else 1
    values = rng.integers(1, 30)  # few values: many ties, one value: nothing but ties
    dist = rng.integers(0, values, (q, g)).astype(rng.choice(["float32", "float64"])) / 7
    positive = rng.random((q, g)) < rng.random()
    removed = rng.random((q, g)) < rng.random() / 2
    dist[rng.random((q, g)) < 0.3] = np.inf
    positive[-1] = seed % 3 == 0  # a query without any hit, or with nothing else
    positive[0, 0], removed[0, 0] = True, False  # one query with a hit at least
    people = positive[:1] + 2 * rng.integers(0, 4, g)  # the same for all queries: hits are people
    for options in ((), (5,), (None, people[0])):
        asked = positive if len(options) < 2 else np.repeat(positive[:1], q, 0)
        ours = ranking_metrics(dist, asked, removed, *options)
        for key, expected in naive_metrics(dist, asked, removed, *options).items():
            np.testing.assert_allclose(ours[key], expected, atol=1e-12, err_msg=key)


def test_hand_worked_ranking():
    # order: b(hit) a c(hit) d(hit, removed) e
    dist = np.array([[0.2, 0.1, 0.3, 0.4, 0.5]])
    positive = np.array([[False, True, True, True, False]])
    removed = np.array([[False, False, False, True, False]])
    figures = ranking_metrics(dist, positive, removed)
    assert figures["mAP"] == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert figures["mINP"] == pytest.approx(2 / 3)
    assert figures["cmc"].tolist() == [1] * 5 and figures["queries"] == 1


@pytest.mark.parametrize("dist, positive, what", [
    (np.full((1, 2), np.nan), np.ones((1, 2)), "NaN"),
    (np.zeros((1, 0)), np.zeros((1, 0)), "no query has a hit"),
    (np.zeros((2, 3)), np.zeros((2, 3)), "no query has a hit"),
    (np.zeros((2, 3)), np.zeros((3, 2)), "queries, gallery"),
])
def test_nothing_to_rank_is_a_user_error(dist, positive, what):
    with pytest.raises(UserError, match=what) as error:
        ranking_metrics(dist, positive)
    assert "\n" not in str(error.value)


def test_chance_equals_the_mean_over_random_orders():
    rng = np.random.default_rng(0)
    positive, removed = rng.random((3, 12)) < 0.4, rng.random((3, 12)) < 0.2
    figures = [ranking_metrics(rng.random((3, 12)), positive, removed) for _ in range(2000)]
    hits, ranked = (positive & ~removed).sum(1), (~removed).sum(1)
    mAP, R1 = random_ranking(hits, ranked)
    assert (figures[0]["chance mAP"], figures[0]["chance R1"]) == (mAP, R1)
    assert mAP == pytest.approx(np.mean([each["mAP"] for each in figures]), abs=0.01)
    assert R1 == pytest.approx(np.mean([each["cmc"][0] for each in figures]), abs=0.02)
    both = np.array([[True, False], [False, False]])  # one query without a hit
    figures = ranking_metrics(np.zeros((2, 2)), both)
    assert (figures["chance mAP"], figures["chance R1"], figures["without"]) == (0.75, 0.5, 1)
