"""Ranking metrics, pure functions of arrays: AP, CMC and mINP from the ranks of the hits alone, re-ranking, bootstrap.

Figures are fractions. Letters in shapes: q queries, g gallery images, n both together, d feature width, k neighbours.
"""

import numpy as np
import torch

from reid.cli import UserError


# ---- exact ranking ----

def ranking_metrics(dist, positive, removed=None, ap_window=None, gallery_ids=None):
    """Full-ranking mAP, mINP and CMC. Ties keep gallery order; a query without any hit left is not counted.

    dist (q g) float, smaller is nearer; positive (q g) bool: a hit; removed (q g) bool: deleted from the ranking.
    AP is the mean over the hits of (hits so far / rank), INP the number of hits / rank of the last one.
    ap_window=500 is NOT the standard but what the released code computes: the ranking is cut to 500 places before
    `removed` is applied and AP is divided by the hits found there, so that hits further down cost nothing; a query with
    none there scores 0.
    gallery_ids (g,): the CMC ranks people, not images: only the nearest image of each id counts (LLCM).
    Returns mAP, mINP, cmc (g,) with cmc[k-1] = rank-k, queries (those with a hit). UserError if nothing can be ranked.
    """
    dist, positive = np.asarray(dist), np.asarray(positive, bool)
    removed = np.zeros_like(positive) if removed is None else np.asarray(removed, bool)
    if dist.ndim != 2 or not dist.shape == positive.shape == removed.shape:
        shapes = f"dist {dist.shape}, positive {positive.shape}, removed {removed.shape}"
        raise UserError(f"{shapes}: all three must be (queries, gallery)")
    if dist.shape[1] == 0:
        raise UserError("the gallery is empty: nothing to rank; check the gallery folder or list")
    if np.isnan(dist).any():
        raise UserError("the distances hold NaN: training has diverged; take an earlier checkpoint or a lower --lr")
    rows = [query_figures(*row, ap_window, gallery_ids) for row in zip(dist, positive, removed)]
    return summary(rows, dist.shape[1])


def query_figures(dist, positive, removed, ap_window=None, gallery_ids=None):
    """AP, INP, rank of the first hit, numbers of hits and of ranked items of one query; dist, positive, removed (g,).

    Options as in ranking_metrics. AP is NaN without a hit; the first rank is inf if no hit is inside the window.
    """
    hits = np.flatnonzero(positive & ~removed)
    counts = len(hits), len(dist) - np.count_nonzero(removed)
    if not len(hits):
        return np.nan, np.nan, np.nan, *counts
    ranks = hit_ranks(dist, hits, removed)
    if ap_window:
        ranks = ranks[hit_ranks(dist, hits, np.zeros_like(removed)) <= ap_window]
    if not len(ranks):
        return 0.0, 0.0, np.inf, *counts
    first = ranks[0]
    if gallery_ids is not None:
        near = hits[np.argmin(dist[hits])]
        ahead = ~removed & ((dist < dist[near]) | ((dist == dist[near]) & (np.arange(len(dist)) < near)))
        first = 1 + len(np.unique(np.asarray(gallery_ids)[ahead]))
    return np.mean(np.arange(1, len(ranks) + 1) / ranks), len(ranks) / ranks[-1], first, *counts


def hit_ranks(dist, hits, removed):
    """Ranks, ascending from 1, of the gallery items `hits` (indices) among those not removed. dist, removed (g,).

    The rank of an item is 1 + the number of items ahead of it: the nearer ones and, where distances tie, those that are
    earlier in the gallery, as in a stable sort. To count them takes the distances up to the farthest hit alone, sorted
    without a trace of whose they are.
        distances .3 .1 .3 .2 .3: ahead of the third are .3 (earlier), .1 and .2 (nearer), so its rank is 4
    """
    far = dist[hits]
    near = np.flatnonzero((dist <= far.max()) & ~removed)
    ordered = np.sort(dist[near])
    ahead, no_farther = (np.searchsorted(ordered, far, side) for side in ("left", "right"))
    for i in np.flatnonzero(no_farther - ahead > 1):  # others are as far as this hit
        ahead[i] += np.count_nonzero(dist[near[near < hits[i]]] == far[i])
    return np.sort(1 + ahead)


def summary(rows, length):
    """Means of the query_figures of all queries; `length` is that of the CMC."""
    ap, inp, first, *_ = np.array(rows, float).reshape(-1, 5).T
    valid = ~np.isnan(ap)
    if not valid.any():
        raise UserError("no query has a hit in the gallery: query and gallery must hold the same people, seen by other "
                        "cameras, and the protocol must fit the data set")
    seen = first[np.isfinite(first)].astype(int)
    cmc = np.bincount(seen, minlength=length + 1)[1:].cumsum() / valid.sum()
    return {"mAP": float(ap[valid].mean()), "mINP": float(inp[valid].mean()), "cmc": cmc, "queries": int(valid.sum())}


def chance(hits, kept):
    """(expected mAP, expected rank-1) of a random order; exact. hits, kept (q,): numbers of hits and of ranked items.

    With m hits among n kept items, rank k holds a hit with probability m/n, and then (k-1)(m-1)/(n-1) of the k-1 before
    it are hits on average: E[AP] = 1/m sum_k m/n (1 + (k-1)(m-1)/(n-1)) / k = [H_n + (n - H_n)(m-1)/(n-1)] / n with
    H_n = 1 + 1/2 + ... + 1/n.
    """
    hits, kept = np.asarray(hits), np.asarray(kept)
    m, n = hits[hits > 0], kept[hits > 0]
    harmonic = np.cumsum(1 / np.arange(1, n.max() + 1))[n - 1]
    ap = (harmonic + (n - harmonic) * (m - 1) / np.maximum(n - 1, 1)) / n
    return float(ap.mean()), float((m / n).mean())


def paired_bootstrap(first, second, resamples=5000, seed=0):
    """Mean of second - first and its 95 % interval: (difference, low, high). first, second (q,), of the same queries.

    The queries are drawn with replacement, each with both of its figures, so what makes a query hard cancels out. The
    interval speaks of other queries of this data set, not of other training runs.
    """
    difference, rng = np.asarray(second) - np.asarray(first), np.random.default_rng(seed)
    means = [rng.choice(difference, len(difference)).mean() for _ in range(resamples)]
    return float(difference.mean()), *map(float, np.quantile(means, (0.025, 0.975)))


# ---- k-reciprocal re-ranking ----

def k_reciprocal(qf, gf, k1=20, k2=6, weight=0.3, chunk=256):
    """Re-ranking by shared neighbours (Zhong et al. 2017, with its k1, k2 and lambda = weight). No label is looked at.

    qf (q d), gf (g d) L2-normalised tensors. Each image becomes a sparse vector: exp(-distance) to the members of its
    expanded k-reciprocal set R*, summing to 1, averaged over its k2 nearest images. Images are near if theirs overlap:
    Jaccard distance = 1 - sum of minima / sum of maxima. The result is weight * distance + (1 - weight) * Jaccard.
    Only neighbour lists and sparse vectors are kept, never an (n n) matrix. As in the authors' code, which published
    figures come from, a list of k neighbours has the image itself ahead of them, squared distances are divided by the
    largest of their row, and half of a neighbour's set must be shared by MORE than 2/3.
    Returns rescore(start, dist) -> (c g): new distances of the queries start, start + 1, ... from their -cosine (c g).
    """
    if not 1 <= k2 <= k1 < len(gf):
        raise UserError(f"re-ranking by {k1} neighbours and {k2} of them: the gallery must hold more images than that, "
                        f"and holds {len(gf)}; go without --rerank")
    feats = torch.cat([qf, gf])
    near, far = neighbours(feats, k1 + 1, chunk)
    half = int(np.around(k1 / 2)) + 1
    mutual, mutual_half = reciprocal(near), reciprocal(near[:, :half])
    feats = feats.cpu().numpy()
    vectors = []
    for i in range(len(near)):
        members = expanded(near, mutual, mutual_half, i)
        closeness = np.exp(-(1 - feats[members] @ feats[i]) / far[i])
        vectors.append((members, closeness / closeness.sum()))
    vectors = [mean_vector([vectors[j] for j in near[i, :k2]]) for i in range(len(near))]
    begin, images, values = inverted(vectors[len(qf):], len(near))  # which gallery images have a member

    def rescore(start, dist):
        new = np.empty_like(dist)
        for i, row in enumerate(dist, start):
            slices = [slice(begin[member], begin[member + 1]) for member in vectors[i][0]]
            own = np.repeat(vectors[i][1], [s.stop - s.start for s in slices])
            theirs = np.concatenate([values[s] for s in slices])
            shared = np.bincount(np.concatenate([images[s] for s in slices]), np.minimum(own, theirs), len(gf))
            jaccard = 1 - shared / (2 - shared)  # both vectors sum to 1, so minima and maxima together sum to 2
            new[i - start] = weight * (1 + row) / far[i] + (1 - weight) * jaccard
        return new

    return rescore


def neighbours(feats, k, chunk=256):
    """The k nearest of each of n images, itself first, (n k) indices, and the largest 1 - cosine of each, (n,)."""
    near, far = [], []
    for start, rows in zip(range(0, len(feats), chunk), feats.split(chunk)):
        dist = 1 - rows @ feats.T
        dist[:, start:start + chunk].fill_diagonal_(-1)  # each image first in its own list, duplicates or not
        near.append(dist.topk(k, largest=False).indices.int().cpu())
        far.append(dist.amax(1).clamp(min=1e-6).cpu())
    return torch.cat(near).numpy(), torch.cat(far).numpy()


def reciprocal(near):
    """(n k) bool: is image i among the k nearest of its own neighbour near[i, j]?"""
    return np.stack([(near[row] == i).any(1) for i, row in enumerate(near)])


def expanded(near, mutual, mutual_half, i):
    """R* of image i: its k-reciprocal neighbours, and the k/2-reciprocal sets of these if more than 2/3 is shared."""
    own = near[i][mutual[i]]
    sets, real = near[own, :mutual_half.shape[1]], mutual_half[own]  # (r h): a row per neighbour
    shared = (sets[:, :, None] == own).any(2) & real
    joins = 3 * shared.sum(1) > 2 * real.sum(1)
    return np.unique(np.concatenate([own, sets[joins][real[joins]]]))


def mean_vector(vectors):
    """Mean of sparse vectors, each (indices, values)."""
    indices, where = np.unique(np.concatenate([indices for indices, _ in vectors]), return_inverse=True)
    return indices, np.bincount(where, np.concatenate([values for _, values in vectors])) / len(vectors)


def inverted(vectors, n):
    """Sparse vectors by column: column c holds images[begin[c]:begin[c + 1]] with `values`; begin (n + 1,)."""
    columns = np.concatenate([indices for indices, _ in vectors])
    images = np.repeat(np.arange(len(vectors)), [len(indices) for indices, _ in vectors])
    order = np.argsort(columns, kind="stable")
    begin = np.concatenate([[0], np.bincount(columns, minlength=n).cumsum()])
    return begin, images[order], np.concatenate([values for _, values in vectors])[order]
