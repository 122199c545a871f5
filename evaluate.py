"""Evaluation, from top to bottom: exact metrics, features, the rows of a table, the instruction
matrix, the command.

`python evaluate.py --checkpoint runs/all/last.pt` prints a row per data set, task and protocol.
Figures are fractions in the code and percent on the screen.
Letters in shapes: q queries, g gallery images, c queries of a chunk, d feature width.
"""

import hashlib
import random
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import reid  # noqa: F401  before torch: how its threads wait
import numpy as np
import torch
import torch.nn.functional as F

from instructions import (
    PERSON_SENTENCE, TASKS, Ask, asked_tasks, gallery_instruction, query_instruction
)
from model import CrossEncoder, InstructReID, TextEncoder
from reid import checkpoints, cli, pictures, text, uninstructed
from reid.cli import UserError, progress
from reid.compare import differences
from reid.device import (
    allow_tf32, full_precision_matmul, inference, pick_device, room_for, send
)
from reid.folders import open_all
from reid.images import load_all, load_image, normalise, read_ahead
from reid.protocols import OTHER_CLOTHES, TARGETS, columns, masks, trials
from reid.rerank import k_reciprocal
from reid.tables import format_table, load_features, save_features

TRAINED = Path(__file__).parent / "toydata" / "trained.pt"  # a model that comes with the code
CHUNK = 256  # queries that are ranked at a time: nothing of size (q g) ever exists
TOP = 128  # images of a t2i ranking that the second stage orders anew (Supp. 5.2)


# ---- exact metrics ----

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
    return ranked([(dist, positive, removed)], dist.shape[1], ap_window, gallery_ids)


def ranked(chunks, gallery_size, ap_window=None, gallery_ids=None):
    """ranking_metrics of queries that come in chunks of (dist, positive, removed), (c g) each.

    Returns also "each": QueryFigures of all queries as an array (q 5).
    """
    if gallery_size == 0:
        raise UserError("the gallery is empty: nothing to rank; check the gallery folder or list")
    rows = []
    for dist, positive, removed in chunks:
        if np.isnan(dist).any():
            raise UserError(
                "the distances hold NaN: training has diverged; take an earlier checkpoint or a "
                "lower --lr"
            )
        for query in zip(dist, positive, removed):
            rows.append(query_figures(*query, ap_window, gallery_ids))

    each = np.array(rows, float).reshape(-1, 5)
    has_hit = ~np.isnan(each[:, 0])
    queries = int(has_hit.sum())
    if not queries:
        raise UserError(
            "no query has a hit in the gallery: query and gallery must hold the same people, seen "
            "by other cameras, and the protocol must fit the data set"
        )
    ap, inp, first_rank, _, _ = each[has_hit].T
    found = first_rank[np.isfinite(first_rank)].astype(int)
    first_hits = np.bincount(found, minlength=gallery_size + 1)[1:]  # queries by first rank
    return {
        "mAP": float(ap.mean()),
        "mINP": float(inp.mean()),
        "cmc": first_hits.cumsum() / queries,
        "queries": queries,
        "each": each,
    }


def query_figures(dist, positive, removed, ap_window=None, gallery_ids=None):
    """QueryFigures of one query; dist, positive, removed (g,). Options as in ranking_metrics."""
    hits = np.flatnonzero(positive & ~removed)
    count = len(dist) - np.count_nonzero(removed)
    if not len(hits):
        return QueryFigures(np.nan, np.nan, np.nan, 0, count)

    ranks = hit_ranks(dist, hits, removed)
    if ap_window:
        nothing_removed = np.zeros_like(removed)
        ranks = ranks[hit_ranks(dist, hits, nothing_removed) <= ap_window]
    if not len(ranks):
        return QueryFigures(0.0, 0.0, np.inf, len(hits), count)

    hits_so_far = np.arange(1, len(ranks) + 1)
    ap = np.mean(hits_so_far / ranks)
    inp = len(ranks) / ranks[-1]
    first_rank = ranks[0]
    if gallery_ids is not None:
        first_rank = person_rank(dist, hits, removed, gallery_ids)
    return QueryFigures(ap, inp, first_rank, len(hits), count)


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
    ids_ahead = np.asarray(gallery_ids)[ahead & ~removed]
    return 1 + len(np.unique(ids_ahead))


def random_ranking(hits, ranked):
    """(expected mAP, expected rank-1) of a random order; exact. hits, ranked (q,): QueryFigures.

    With m hits among n ranked items, rank k holds a hit with probability m/n, and then
    (k-1)(m-1)/(n-1) of the k-1 before it are hits on average:
        E[AP] = 1/m sum_k m/n (1 + (k-1)(m-1)/(n-1)) / k = [H_n + (n - H_n)(m-1)/(n-1)] / n
    with H_n = 1 + 1/2 + ... + 1/n.
    """
    m = hits[hits > 0]
    n = ranked[hits > 0]
    harmonic_numbers = np.cumsum(1 / np.arange(1, n.max() + 1))
    harmonic = harmonic_numbers[n - 1]  # H_n
    ap = (harmonic + (n - harmonic) * (m - 1) / np.maximum(n - 1, 1)) / n
    return float(ap.mean()), float((m / n).mean())


@full_precision_matmul()
def rank(protocol, queries, gallery, query_feats, gallery_feats, ap_window=None, stage=None):
    """The figures of a row: means over the trials of a protocol, ranked by cosine.

    queries, gallery: Records; their features (q d), (g d), on the device that multiplies them.
    stage: a second look, None or a function of both sides' normalised features that gives
    rescore(start, dist) -> (c g): new distances of the queries start, start + 1, ... from -cosine.
    Returns trials, queries (with a hit), without (one), gallery, mAP, R1, R5, R10, mINP, those of a
    random order, and "each": {mAP, R1} of every query (q), NaN without a hit, of each trial.
    """
    query_feats = F.normalize(query_feats.float(), dim=1)
    gallery_feats = F.normalize(gallery_feats.float(), dim=1)
    results = []
    for query_indices, gallery_indices in trials(protocol, queries, gallery):
        q, g = columns([queries[i] for i in query_indices], [gallery[i] for i in gallery_indices])
        asking = query_feats[query_indices]
        answering = gallery_feats[gallery_indices]
        rescore = stage(asking, answering) if stage else None

        def chunks():
            for start in range(0, len(asking), CHUNK):
                dist = (-asking[start:start + CHUNK] @ answering.T).cpu().numpy()
                dist = rescore(start, dist) if rescore else dist
                some = type(q)(*(column[start:start + CHUNK] for column in q))
                yield dist, *masks(protocol, some, g)

        people = g.pid if protocol.people else None
        results.append(ranked(chunks(), len(answering), ap_window, people))
    return mean_of_trials(results)


def mean_of_trials(results):
    """The row of what `ranked` returns of each trial: counts of the first, means over all."""
    first = results[0]
    size = len(first["cmc"])
    row = {
        "trials": len(results),
        "queries": first["queries"],
        "without": len(first["each"]) - first["queries"],
        "gallery": size,
        "mAP": mean(result["mAP"] for result in results),
    }
    for k in (1, 5, 10):
        row[f"R{k}"] = mean(result["cmc"][min(k, size) - 1] for result in results)
    row["mINP"] = mean(result["mINP"] for result in results)

    by_luck = [random_ranking(*result["each"][:, 3:].astype(int).T) for result in results]
    row["chance mAP"] = mean(mAP for mAP, _ in by_luck)
    row["chance R1"] = mean(R1 for _, R1 in by_luck)
    row["each"] = []
    for result in results:
        ap, _, first_rank, _, _ = result["each"].T
        R1 = np.where(np.isnan(first_rank), np.nan, first_rank == 1)
        row["each"].append({"mAP": ap, "R1": R1})
    return row


def mean(values):
    return float(np.mean(list(values)))


# ---- features ----

def embed(model, dataset, records, asks, kind="person", feature="edit", batch=64, flip=False,
          amp="off"):
    """Features (n d) float32 of records under an Ask or None each, L2-normalised, on the model's
    device.

    kind: "person", an image under its Ask, ranked by `feature`: F or F_out; "text", a sentence
    without an image (t2i); "instruction", E_i's pooled vector of an Ask; "bare photo" and
    "photo as clothes", of images without an Ask, see reid.bare.
    flip: the sum of the features of an image and of its mirror image, whose pictures of clothes
    turn with it, as in training. amp: the precision of training.
    """
    starts = range(0, len(records), batch)
    images = [None] * len(starts)
    if kind not in ("text", "instruction"):
        images = batches(dataset.root, [record.path for record in records], model.size, batch)

    feats = []
    with inference(model, amp) as device:
        bar = progress(images, f"{dataset.title} {dataset.task} {kind}", total=len(starts))
        for start, photos in zip(starts, bar):
            some = asks[start:start + batch]
            new = 0
            for mirrored in (False, True) if flip else (False,):
                instr = instruct(model, dataset, some, device, mirrored)
                new = new + embed_batch(model, kind, photos, instr, feature, device, mirrored)
            feats.append(F.normalize(new, dim=1).expand(len(some), -1))
    return torch.cat(feats)


def embed_batch(model, kind, photos, instr, feature, device, mirrored):
    """Features (b d) of uint8 photos (b 3 H W) or None and an Instruction or None."""
    if kind == "text":
        return model.embed_text(model.read_text(instr)).float()
    if kind == "instruction":
        return instr.pooled.float()
    photos = send(photos, device)
    if mirrored:
        photos = photos.flip(3)
    if kind == "photo as clothes":
        return model.instruct(pictures=bare.as_clothes(photos, model.picture_size)).pooled.float()
    return model.embed(normalise(photos), instr, feature).float()


def instruct(model, dataset, asks, device, mirrored=False):
    """The Instruction of Asks, of one row where all have the same sentence and no picture."""
    if asks[0] is None:
        return None
    sentences = [ask.words for ask in asks] if asks[0].words else None
    pictures = None
    if asks[0].picture:
        paths = [ask.picture for ask in asks]
        pictures = send(load_all(dataset.root, paths, model.picture_size), device)
        pictures = normalise(pictures.flip(3) if mirrored else pictures)
    return model.instruct(sentences, pictures)


def match(model, dataset, gallery, asks, query_feats, gallery_feats, batch=64, amp="off"):
    """The second stage of t2i (Supp. 5.2): the TOP nearest images of each query, and their scores,
    stacked (2 q TOP).

    A score is the similarity as the contrast of Eq. 8 sees it, divided by the temperature, plus
    the logit of the pair: both say how probable it is that the two belong together.
    """
    chunks = query_feats.split(CHUNK)
    nearest = [(chunk @ gallery_feats.T).topk(min(TOP, len(gallery))) for chunk in chunks]
    similarity = torch.cat([each.values for each in nearest])
    nearest = torch.cat([each.indices for each in nearest])

    with inference(model, amp) as device:
        tokens = []
        for photos in batches(dataset.root, [record.path for record in gallery], model.size, batch):
            tokens.append(model.edit(normalise(send(photos, device))))
        tokens = torch.cat(tokens)

        logits = []
        bar = progress(asks, f"{dataset.title} matching")
        for ask, indices in zip(bar, nearest):
            instr = model.read_text(model.instruct([ask.words]))
            no_and_yes = model.match(tokens[indices], instr)
            logits.append((no_and_yes[:, 1] - no_and_yes[:, 0]).float())
        scores = similarity / model.temperature().item() + torch.stack(logits)
    if not scores.isfinite().all():
        raise UserError(
            "the matching head gives NaN or infinity: take an earlier checkpoint or a lower --lr"
        )
    return torch.stack([nearest.to(scores), scores])


def matched_first(matches):
    """A `stage` of rank that orders the images nearest by their scores, see match; the others keep
    their order behind them."""
    nearest, scores = matches.cpu().numpy()
    nearest = nearest.astype(int)

    def rescore(start, dist):
        for row, indices, best in zip(dist, nearest[start:], scores[start:]):
            row[indices] = best.min() - best - 2  # at most -2: ahead of every -cosine
        return dist

    return lambda query_feats, gallery_feats: rescore


# ---- the rows of a table ----

@dataclass
class Run:
    """What is ranked and how. features: reid.features.Features of a model or of a file."""

    features: Features
    protocol: str | None = None  # only the one of this name
    rerank: bool = False  # a second row by k-reciprocal neighbours
    ap_window: int | None = None  # AP in the first ranks only

    def both_sides(self, dataset, sentence=0):
        """(queries, gallery, query_feats, gallery_feats) under the task's own instructions."""
        task = dataset.task
        queries, gallery = sides(dataset)
        asks = [query_instruction(task, record, sentence) for record in queries]
        carried = [gallery_instruction(task, record, sentence) for record in gallery]
        query_feats = self.features(dataset, queries, asks)
        return queries, gallery, query_feats, self.features(dataset, gallery, carried)
