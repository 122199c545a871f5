"""Ranking metrics, pure functions of arrays: AP, CMC and mINP from the ranks of the hits alone.

Figures are fractions. Letters in shapes: q queries, g gallery images.
"""

from typing import NamedTuple

import numpy as np

from reid.cli import UserError


class QueryFigures(NamedTuple):
    """What one query adds to the means of a table."""
    ap: float          # NaN without a hit
    inp: float         # NaN without a hit
    first_rank: float  # of the first hit; NaN without a hit, inf if none is inside the window
    hits: int
    ranked: int        # gallery images that are not removed


def ranking_metrics(dist, positive, removed=None, ap_window=None, gallery_ids=None):
    """Full-ranking mAP, mINP and CMC. Ties keep gallery order; a query without a hit counts not.

    dist (q g) float, smaller is nearer; positive (q g) bool: a hit; removed (q g) bool: deleted
    from the ranking. AP is the mean over the hits of (hits so far / rank), INP the number of hits
    / rank of the last one.

    ap_window=500 is NOT the standard but what the released code computes: the ranking is cut to
    500 places before `removed` is applied and AP is divided by the hits found there, so that hits
    further down cost nothing; a query with none there scores 0.
    gallery_ids (g,): the CMC ranks people, not images: only the nearest image of each id counts
    (LLCM).

    Returns mAP, mINP, cmc (g,) with cmc[k-1] = rank-k, queries (those with a hit).
    UserError if nothing can be ranked.
    """
    dist = np.asarray(dist)
    positive = np.asarray(positive, bool)
    if removed is None:
        removed = np.zeros_like(positive)
    removed = np.asarray(removed, bool)

    if dist.ndim != 2 or not dist.shape == positive.shape == removed.shape:
        shapes = f"dist {dist.shape}, positive {positive.shape}, removed {removed.shape}"
        raise UserError(f"{shapes}: all three must be (queries, gallery)")
    if dist.shape[1] == 0:
        raise UserError("the gallery is empty: nothing to rank; check the gallery folder or list")
    if np.isnan(dist).any():
        raise UserError("the distances hold NaN: training has diverged; take an earlier checkpoint "
                        "or a lower --lr")

    rows = []
    for query in zip(dist, positive, removed):
        rows.append(query_figures(*query, ap_window, gallery_ids))
    return summary(rows, dist.shape[1])


def query_figures(dist, positive, removed, ap_window=None, gallery_ids=None):
    """QueryFigures of one query; dist, positive, removed (g,). Options as in ranking_metrics."""
    hits = np.flatnonzero(positive & ~removed)
    ranked = len(dist) - np.count_nonzero(removed)
    if not len(hits):
        return QueryFigures(np.nan, np.nan, np.nan, 0, ranked)

    ranks = hit_ranks(dist, hits, removed)
    if ap_window:
        nothing_removed = np.zeros_like(removed)
        ranks = ranks[hit_ranks(dist, hits, nothing_removed) <= ap_window]
    if not len(ranks):
        return QueryFigures(0.0, 0.0, np.inf, len(hits), ranked)

    hits_so_far = np.arange(1, len(ranks) + 1)
    ap = np.mean(hits_so_far / ranks)
    inp = len(ranks) / ranks[-1]

    first_rank = ranks[0]
    if gallery_ids is not None:
        first_rank = person_rank(dist, hits, removed, gallery_ids)
    return QueryFigures(ap, inp, first_rank, len(hits), ranked)


def hit_ranks(dist, hits, removed):
    """Ranks, ascending from 1, of the gallery items `hits` (indices) among those not removed.

    dist, removed (g,). The rank of an item is 1 + the number of items ahead of it: the nearer ones
    and, where distances tie, those that are earlier in the gallery, as in a stable sort. To count
    them takes the distances up to the farthest hit alone, sorted without a trace of whose they are.
        distances .3 .1 .3 .2 .3: ahead of the third are .3 (earlier), .1 and .2 (nearer), so its
        rank is 4
    """
    hit_dist = dist[hits]
    candidates = np.flatnonzero((dist <= hit_dist.max()) & ~removed)
    ordered = np.sort(dist[candidates])
    ahead = np.searchsorted(ordered, hit_dist, "left")
    no_farther = np.searchsorted(ordered, hit_dist, "right")

    tied = np.flatnonzero(no_farther - ahead > 1)  # others are as far as this hit
    for i in tied:
        earlier = candidates[candidates < hits[i]]
        ahead[i] += np.count_nonzero(dist[earlier] == hit_dist[i])
    return np.sort(1 + ahead)


def person_rank(dist, hits, removed, gallery_ids):
    """The first rank of a hit where people are ranked: 1 + the ids ahead of the nearest hit."""
    nearest = hits[np.argmin(dist[hits])]
    ahead = dist < dist[nearest]
    ahead[:nearest] |= dist[:nearest] == dist[nearest]  # a tie: the earlier one comes first
    ahead &= ~removed

    ids_ahead = np.asarray(gallery_ids)[ahead]
    return 1 + len(np.unique(ids_ahead))


def summary(rows, gallery_size):
    """Means over the QueryFigures of all queries, as ranking_metrics returns them."""
    figures = np.array(rows, float).reshape(-1, 5)
    has_hit = ~np.isnan(figures[:, 0])
    queries = int(has_hit.sum())
    if not queries:
        raise UserError("no query has a hit in the gallery: query and gallery must hold the same "
                        "people, seen by other cameras, and the protocol must fit the data set")

    ap, inp, first_rank, _, _ = figures[has_hit].T
    found = first_rank[np.isfinite(first_rank)].astype(int)
    first_hits = np.bincount(found, minlength=gallery_size + 1)[1:]  # queries by first rank
    return {
        "mAP": float(ap.mean()),
        "mINP": float(inp.mean()),
        "cmc": first_hits.cumsum() / queries,
        "queries": queries,
    }


def chance(hits, ranked):
    """(expected mAP, expected rank-1) of a random order; exact.

    hits, ranked (q,): as in QueryFigures.
    With m hits among n ranked items, rank k holds a hit with probability m/n, and then
    (k-1)(m-1)/(n-1) of the k-1 before it are hits on average:
        E[AP] = 1/m sum_k m/n (1 + (k-1)(m-1)/(n-1)) / k = [H_n + (n - H_n)(m-1)/(n-1)] / n
    with H_n = 1 + 1/2 + ... + 1/n.
    """
    hits = np.asarray(hits)
    ranked = np.asarray(ranked)
    m = hits[hits > 0]
    n = ranked[hits > 0]

    harmonic_numbers = np.cumsum(1 / np.arange(1, n.max() + 1))
    harmonic = harmonic_numbers[n - 1]  # H_n
    ap = (harmonic + (n - harmonic) * (m - 1) / np.maximum(n - 1, 1)) / n
    return float(ap.mean()), float((m / n).mean())
