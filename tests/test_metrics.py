"""Ranking metrics against reference figures, a full sort and rankings by hand."""

import numpy as np
import pytest
import torch

from evaluate import chance, ranking_metrics
from reid.cli import UserError
from reid.layouts import LAYOUTS
from reid.protocols import columns, masks
from reid.records import Record
from tests.reference import golden

CASES = ("basic", "invalid", "one_gallery_cam", "small_gallery", "random", "large", "one_outfit")


def same_cmc(ours, theirs):
    return np.abs(ours[:len(theirs)] - theirs).max() < 1e-6


@pytest.mark.parametrize("name", CASES)
def test_reference_figures(name):
    z = golden(f"rank_metrics/{name}.npz")
    queries, gallery = ([Record("ltcc", role, "", int(p), int(c), clothes=str(o))
                         for p, c, o in zip(z[f"{side}_pids"], z[f"{side}_camids"], z[f"{side}_clothids"])]
                        for role, side in (("query", "q"), ("gallery", "g")))
    q, g = columns(queries, gallery)
    general, cc, sc = (masks(p, q, g) for p in LAYOUTS["ltcc"].protocols["cc"])
    for key, pair, options in (("market", general, {}), ("market_torchreid", general, {}), ("general", general, {}),
                               ("cc", cc, {}), ("sc", sc, {}), ("instructreid_full", general, {}),
                               ("instructreid_top500", general, {"ap_window": 500}),
                               ("llcm", general, {"gallery_ids": z["g_pids"]})):
        if name == "one_outfit" and key == "cc":  # the reference answers 0 where no query has a hit
            with pytest.raises(UserError):
                ranking_metrics(z["distmat"], *pair)
            continue
        ours = ranking_metrics(z["distmat"], *pair, **options)
        assert same_cmc(ours["cmc"], z[f"{key}_cmc"]), key
        assert abs(ours["mAP"] - z[f"{key}_map"]) < 1e-6, key
        if f"{key}_minp" in z:
            assert abs(ours["mINP"] - z[f"{key}_minp"]) < 1e-6, key
        if f"{key}_valid_query" in z:
            assert ours["queries"] == z[f"{key}_valid_query"].sum()
    assert ranking_metrics(z["distmat"], *general)["queries"] == z["valid_query"].sum()
    for row, ap, inp in zip(np.flatnonzero(z["valid_query"]), z["market_ap"], z["market_inp"]):
        alone = ranking_metrics(*(matrix[row:row + 1] for matrix in (z["distmat"], *general)))
        assert abs(alone["mAP"] - ap) < 1e-6
        assert abs(alone["mINP"] - inp) < 1e-6


@pytest.mark.parametrize("name", ("t2i_0", "t2i_1"))
def test_reference_figures_of_text_search(name):
    z = golden(f"rank_metrics/{name}.npz")
    dist, positive, seen = -z["similarity"], z["q_pids"][:, None] == z["g_pids"], z["i2t_gallery_subset"]
    for key, d, hits in (("t2i", dist, positive), ("i2t", dist.T[seen], positive.T[seen])):
        ours = ranking_metrics(d, hits)
        assert np.abs(100 * ours["cmc"][:len(z[f"{key}_cmc_percent"])] - z[f"{key}_cmc_percent"]).max() < 1e-3
        assert abs(100 * ours["mAP"] - z[f"{key}_map_percent"]) < 1e-3
        assert abs(100 * ours["mINP"] - z[f"{key}_minp_percent"]) < 1e-3
    ours = ranking_metrics(dist, positive)
    ranks = {k: ours["cmc"][k - 1] for k in (1, 5, 10, 50)}
    assert all(abs(rank - z[f"instructreid_t2i_r{k}"]) < 1e-6 for k, rank in ranks.items())
    assert abs((ranks[1] + ranks[5] + ranks[10]) / 3 - z["instructreid_t2i_r_mean"]) < 1e-6
    assert abs(ours["mAP"] - z["instructreid_t2i_mAP"]) < 1e-6


def naive_metrics(dist, positive, removed, ap_window=None):
    """The textbook way: sort the gallery, walk down."""
    aps, inps, firsts = [], [], []
    for d, hits, gone in zip(dist, positive, removed):
        if not (hits & ~gone).any():
            continue
        order = np.argsort(d, kind="stable")[:ap_window]
        order = [i for i in order if not gone[i]]
        places = [rank for rank, i in enumerate(order, 1) if hits[i]]
        aps.append(np.mean([n / rank for n, rank in enumerate(places, 1)]) if places else 0)
        inps.append(len(places) / places[-1] if places else 0)
        firsts.append(places[0] if places else np.inf)
    return {"mAP": np.mean(aps), "mINP": np.mean(inps), "queries": len(aps),
            "cmc": [np.mean(np.array(firsts) <= k) for k in range(1, dist.shape[1] + 1)]}


@pytest.mark.parametrize("seed", range(200))
def test_equals_a_full_sort(seed):
    rng = np.random.default_rng(seed)
    q, g = rng.integers(1, 8), rng.integers(1, 40) if seed % 10 else 1
    values = rng.integers(1, 30)  # few values: many ties, one value: nothing but ties
    dist = rng.integers(0, values, (q, g)).astype(rng.choice(["float32", "float64"])) / 7
    positive, removed = rng.random((q, g)) < rng.random(), rng.random((q, g)) < rng.random() / 2
    positive[-1] = seed % 3 == 0  # a query without any hit, or with nothing else
    positive[0, 0], removed[0, 0] = True, False  # one query with a hit at least
    for window in (None, 5):
        ours, naive = ranking_metrics(dist, positive, removed, window), naive_metrics(dist, positive, removed, window)
        for key in ("mAP", "mINP", "cmc", "queries"):
            np.testing.assert_allclose(ours[key], naive[key], atol=1e-12, err_msg=key)


def test_hand_worked_ranking():
    # order: b(hit) a c(hit) d(hit, removed) e
    dist = torch.tensor([[0.2, 0.1, 0.3, 0.4, 0.5]])
    positive = torch.tensor([[False, True, True, True, False]])
    removed = torch.tensor([[False, False, False, True, False]])
    figures = ranking_metrics(dist, positive, removed)
    assert figures["mAP"] == pytest.approx((1 / 1 + 2 / 3) / 2) and figures["mINP"] == pytest.approx(2 / 3)
    assert figures["cmc"].tolist() == [1] * 5 and figures["queries"] == 1


def test_removed_items_are_not_ranked_even_at_an_infinite_distance():
    dist, positive = np.array([[np.inf, np.inf, 1.0]]), np.array([[False, True, False]])
    assert ranking_metrics(dist, positive, np.array([[True, False, False]]))["mAP"] == 1 / 2


def test_ties_keep_gallery_order():
    assert ranking_metrics(np.zeros((1, 3)), np.array([[False, True, False]]))["mAP"] == 1 / 2
    assert ranking_metrics(np.zeros((1, 3)), np.array([[True, False, False]]))["mAP"] == 1


def test_default_divides_ap_by_all_hits_and_the_window_does_not():
    dist, positive = np.arange(600.0)[None], np.zeros((1, 600), bool)
    positive[0, [0, 549]] = True
    assert ranking_metrics(dist, positive)["mAP"] == pytest.approx((1 + 2 / 550) / 2)
    assert ranking_metrics(dist, positive, ap_window=500)["mAP"] == 1
    removed = np.arange(600)[None] % 2 == 1  # the cut comes before the removal: rank 275 of the kept is still outside
    positive[0, [0, 548]] = True
    assert ranking_metrics(dist, positive, removed, ap_window=500)["mAP"] == 1
    positive[0, 0] = False
    figures = ranking_metrics(dist, positive, removed, ap_window=500)
    assert (figures["mAP"], figures["queries"], figures["cmc"].max()) == (0, 1, 0)


def test_distinct_people_cmc():
    dist, ids = np.arange(5.0)[None], np.array([7, 7, 8, 3, 3])
    figures = ranking_metrics(dist, ids[None] == 3, gallery_ids=ids)
    assert figures["cmc"].tolist() == [0, 0, 1, 1, 1]  # 7, 8, 3
    assert figures["mAP"] == pytest.approx((1 / 4 + 2 / 5) / 2)


@pytest.mark.parametrize("dist, positive, what", [
    (np.full((1, 2), np.nan), np.ones((1, 2), bool), "NaN"),
    (np.zeros((1, 0)), np.zeros((1, 0), bool), "gallery is empty"),
    (np.zeros((2, 3)), np.zeros((2, 3), bool), "no query has a hit"),
    (np.zeros((0, 3)), np.zeros((0, 3), bool), "no query has a hit"),
    (np.zeros((2, 3)), np.zeros((3, 2), bool), "queries, gallery"),
])
def test_nothing_to_rank_is_a_user_error(dist, positive, what):
    with pytest.raises(UserError, match=what) as error:
        ranking_metrics(dist, positive)
    assert "\n" not in str(error.value)


def test_chance_equals_the_mean_over_random_orders():
    rng = np.random.default_rng(0)
    positive, removed = rng.random((3, 12)) < 0.4, rng.random((3, 12)) < 0.2
    figures = [ranking_metrics(rng.random((3, 12)), positive, removed) for _ in range(2000)]
    expected_map, expected_r1 = chance((positive & ~removed).sum(1), (~removed).sum(1))
    assert expected_map == pytest.approx(np.mean([f["mAP"] for f in figures]), abs=0.01)
    assert expected_r1 == pytest.approx(np.mean([f["cmc"][0] for f in figures]), abs=0.02)
    assert chance([1], [1]) == (1, 1)
    assert chance([1, 0], [2, 5]) == (0.75, 0.5)  # the second query has no hit
