"""Re-ranking against its textbook form."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from reid.cli import UserError
from reid.rerank import k_reciprocal


def textbook_rerank(feats, q, k1, k2, weight):
    """Zhong et al. 2017, Sec. 3, with whole matrices and Python's sets. feats (n d), L2-normalised
    -> (q, n - q)."""
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
    queries, gallery = V[:q, None], V[None, q:]
    jaccard = 1 - np.minimum(queries, gallery).sum(-1) / np.maximum(queries, gallery).sum(-1)
    return weight * dist[:q, q:] + (1 - weight) * jaccard


@pytest.mark.parametrize("seed, k1, k2, weight", [
    (0, 20, 6, 0.3), (2, 7, 3, 0.0), (4, 1, 1, 0.5)])
def test_reranking_equals_the_textbook(seed, k1, k2, weight):
    rng = np.random.default_rng(seed)
    ids, q = rng.integers(0, 12, 90), 20
    feats = rng.standard_normal((12, 16))[ids] + 0.7 * rng.standard_normal((90, 16))
    feats = F.normalize(torch.from_numpy(feats), dim=1)
    rescore = k_reciprocal(feats[:q], feats[q:], k1, k2, weight, chunk=32)
    dist = (-feats[:q] @ feats[q:].T).numpy()
    ours = np.concatenate([rescore(start, dist[start:start + 7]) for start in range(0, q, 7)])
    np.testing.assert_allclose(ours, textbook_rerank(feats.numpy(), q, k1, k2, weight), atol=1e-9)


def test_reranking_of_nothing_but_duplicates_stays_finite():
    feats = torch.eye(8)[:1].expand(40, 8)
    new = k_reciprocal(feats[:2], feats[2:], 5, 2)(0, (-feats[:2] @ feats[2:].T).numpy())
    assert np.isfinite(new).all()


@pytest.mark.parametrize("k1, k2", [(10, 3), (4, 5), (4, 0)])
def test_more_neighbours_than_gallery_images_is_a_user_error(k1, k2):
    feats = F.normalize(torch.randn(10, 4), dim=1)
    with pytest.raises(UserError, match="go without --rerank") as error:
        k_reciprocal(feats[:2], feats[2:], k1, k2)
    assert "\n" not in str(error.value)
