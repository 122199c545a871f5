"""Ranking metrics against reference figures, a full sort and rankings by hand; re-ranking against its textbook form."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cli import UserError
from evaluate import ranking_metrics
from reid.layouts import LAYOUTS
from reid.protocols import columns, masks
from reid.records import Record
from metrics import chance, k_reciprocal, paired_bootstrap
from tests.golden import golden

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
    for row, ap in zip(np.flatnonzero(z["valid_query"]), z["market_ap"]):
        assert abs(ranking_metrics(*(m[row:row + 1] for m in (z["distmat"], *general)))["mAP"] - ap) < 1e-6


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


# ---- two runs ----

def test_paired_bootstrap_knows_noise_from_difference():
    rng = np.random.default_rng(0)
    hard = rng.random(400)  # how hard a query is: far more spread than the difference of the runs
    better, low, high = paired_bootstrap(hard, hard + 0.02 + 0.05 * rng.standard_normal(400))
    assert low < better < high and low > 0 and high - low < 0.015
    _, low, high = paired_bootstrap(hard, hard + 0.05 * rng.standard_normal(400))
    assert low < 0 < high
    assert paired_bootstrap(hard, hard) == (0, 0, 0)


def test_paired_bootstrap_covers_the_truth_95_times_in_100():
    rng = np.random.default_rng(1)
    intervals = [paired_bootstrap(np.zeros(60), rng.standard_normal(60) + 1, 400, seed)[1:] for seed in range(300)]
    assert 0.90 < np.mean([low < 1 < high for low, high in intervals]) < 0.98


# ---- k-reciprocal re-ranking ----

def textbook_rerank(feats, q, k1, k2, weight):
    """Zhong et al. 2017, Sec. 3, with whole matrices and Python's sets. feats (n d) L2-normalised -> (q, n - q)."""
    n = len(feats)
    dist = ((feats[:, None] - feats[None]) ** 2).sum(-1)
    dist /= dist.max(1, keepdims=True)
    ranked = dist.argsort(1, kind="stable")

    def reciprocal(p, k):
        return {i for i in ranked[p, :k + 1] if p in ranked[i, :k + 1]}

    V = np.zeros((n, n))
    for p in range(n):
        grown = reciprocal(p, k1)
        for i in reciprocal(p, k1):
            half = reciprocal(i, round(k1 / 2))
            if len(half & reciprocal(p, k1)) > 2 / 3 * len(half):
                grown |= half
        members = sorted(grown)
        V[p, members] = np.exp(-dist[p, members])
    V /= V.sum(1, keepdims=True)
    V = np.stack([V[ranked[p, :k2]].mean(0) for p in range(n)])
    jaccard = 1 - np.minimum(V[:q, None], V[None, q:]).sum(-1) / np.maximum(V[:q, None], V[None, q:]).sum(-1)
    return weight * dist[:q, q:] + (1 - weight) * jaccard


@pytest.mark.parametrize("seed, k1, k2, weight", [
    (0, 20, 6, 0.3), (1, 20, 6, 0.3), (2, 7, 3, 0.0), (3, 5, 1, 0.5), (4, 1, 1, 0.3)])
def test_reranking_equals_the_textbook(seed, k1, k2, weight):
    rng = np.random.default_rng(seed)
    ids, q = rng.integers(0, 12, 90), 20
    feats = torch.from_numpy(rng.standard_normal((12, 16))[ids] + 0.7 * rng.standard_normal((90, 16)))
    feats = F.normalize(feats, dim=1)
    rescore = k_reciprocal(feats[:q], feats[q:], k1, k2, weight, chunk=32)
    dist = (-feats[:q] @ feats[q:].T).numpy()
    ours = np.concatenate([rescore(start, dist[start:start + 7]) for start in range(0, q, 7)])
    np.testing.assert_allclose(ours, textbook_rerank(feats.numpy(), q, k1, k2, weight), atol=1e-9)


def test_reranking_helps_where_a_person_has_many_images():
    rng = np.random.default_rng(0)
    ids = np.repeat(np.arange(20), 10)
    feats = F.normalize(torch.from_numpy(rng.standard_normal((20, 16))[ids] + rng.standard_normal((200, 16))), dim=1)
    qf, gf, positive = feats[::10], feats, ids[::10, None] == ids
    dist = (-qf @ gf.T).numpy()
    before, after = (ranking_metrics(d, positive)["mAP"] for d in (dist, k_reciprocal(qf, gf, 9, 4)(0, dist)))
    assert after > before + 0.05


def test_reranking_of_nothing_but_duplicates_stays_finite():
    feats = F.normalize(torch.ones(40, 8), dim=1)
    new = k_reciprocal(feats[:2], feats[2:], 5, 2)(0, (-feats[:2] @ feats[2:].T).numpy())
    assert np.isfinite(new).all()


@pytest.mark.parametrize("k1, k2", [(10, 3), (4, 5), (4, 0)])
def test_more_neighbours_than_gallery_images_is_a_user_error(k1, k2):
    feats = F.normalize(torch.randn(10, 4), dim=1)
    with pytest.raises(UserError, match="go without --rerank") as error:
        k_reciprocal(feats[:2], feats[2:], k1, k2)
    assert "\n" not in str(error.value)
