"""Evaluation: exact metrics, features, the rows of a table, the instruction matrix, the command.

`python evaluate.py --checkpoint runs/all/last.pt` prints a row per data set, task and protocol.
Figures are fractions in the code and percent on the screen.
Letters in shapes: q queries, g gallery images, c queries of a chunk, b batch, d feature width.
"""

import hashlib
import json
import random
import re
import sys
from collections import defaultdict
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import reid  # noqa: F401  before torch: how its threads wait

# isort: split

import numpy as np
import torch
import torch.nn.functional as F

from instructions import (
    PERSON_SENTENCE,
    TASKS,
    Ask,
    asked_tasks,
    gallery_instruction,
    query_instruction,
)
from model import InstructReID
from reid import checkpoints, cli, pictures, uninstructed
from reid.cli import UserError, progress
from reid.compare import differences
from reid.device import AMP, allow_tf32, full_precision_matmul, inference, pick_device
from reid.features import load_features, save_features
from reid.folders import open_all
from reid.images import batches, load_all, load_image, normalise
from reid.protocols import OTHER_CLOTHES, TARGETS, Columns, answerable, columns, masks, trials
from reid.rerank import k_reciprocal
from reid.tables import format_table
from reid.text import (
    CrossEncoder,
    TextEncoder,
    bert_config,
    embedded_text_model,
    from_json,
    to_json,
)
from reid.uninstructed import CLOTHES, SHARES, UNINSTRUCTED

LAST = Path("runs/all/last.pt")  # what `python train.py` ends with
TRAINED = Path(__file__).parent / "toydata" / "trained.pt"  # a model that comes with the code
DIVERGED = (
    "the features hold NaN or infinity: training has diverged; take an earlier checkpoint or a "
    "lower --lr"
)
NOT_SAVED = (
    "the saved features are not of this: other images or captions, or another table; give "
    "--checkpoint the last.pt"
)
CHUNK = 256  # queries that are ranked at a time: nothing of size (q g) ever exists
HEADING = (  # of a row, over all sentences
    "task", "data", "protocol", "feature", "trials", "queries", "without", "gallery", "chance mAP",
    "chance R1",
)
MATRIX = "Instruction matrix: the same queries and gallery, only the instruction differs"
SENTENCES = "All 20 sentences (Supp. 5.1)"
FEATURES = {"edit": "F", "fused": "F_out"}  # of an image under its instruction
TRAINED_WITH = {  # flags of its training that evaluation reads in a checkpoint; see runs.misfit
    "task": ("all", *TASKS), "data": str, "feature": (*FEATURES,), "amp": AMP, "train_text": bool,
}
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
    if np.isnan(dist).any():
        raise UserError(DIVERGED)
    rows = []
    for query in zip(dist, positive, removed):
        rows.append(query_figures(*query, ap_window, gallery_ids))
    return means(rows, dist.shape[1])


def means(rows, gallery_size):
    """What ranking_metrics returns of the QueryFigures of all queries, and these as "each" (q 5).
    """
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
    if query_feats.shape[1] != gallery_feats.shape[1]:
        raise UserError(NOT_SAVED)
    if not (query_feats.sum().isfinite() and gallery_feats.sum().isfinite()):
        raise UserError(DIVERGED)

    results = []
    for query_indices, gallery_indices in trials(protocol, queries, gallery):
        q, g = columns([queries[i] for i in query_indices], [gallery[i] for i in gallery_indices])
        asking = query_feats[query_indices]
        answering = gallery_feats[gallery_indices]
        rescore = stage(asking, answering) if stage else None
        people = g.pid if protocol.people else None

        rows = []
        for start in range(0, len(asking), CHUNK):
            chunk = slice(start, start + CHUNK)
            dist = (-asking[chunk] @ answering.T).cpu().numpy()
            if rescore:
                dist = rescore(start, dist)
            positive, removed = masks(protocol, Columns(*(column[chunk] for column in q)), g)
            for query in zip(dist, positive, removed):
                rows.append(query_figures(*query, ap_window, people))
        results.append(means(rows, len(answering)))
    return mean_of_trials(results)


def mean_of_trials(results):
    """The row of what `means` returns of each trial: counts of the first, means over all."""
    first = results[0]
    size = len(first["cmc"])
    row = {
        "trials": len(results),
        "queries": first["queries"],
        "without": len(first["each"]) - first["queries"],
        "gallery": size,
    }
    figures = []
    for result in results:
        cmc = {f"R{k}": result["cmc"][min(k, size) - 1] for k in (1, 5, 10)}
        mAP, R1 = random_ranking(*result["each"][:, 3:].astype(int).T)
        figures.append({"mAP": result["mAP"], **cmc, "mINP": result["mINP"]})
        figures[-1] |= {"chance mAP": mAP, "chance R1": R1}
    for key in figures[0]:
        row[key] = float(np.mean([each[key] for each in figures]))

    row["each"] = []
    for result in results:
        ap, _, first_rank, _, _ = result["each"].T
        R1 = np.where(np.isnan(first_rank), np.nan, first_rank == 1)
        row["each"].append({"mAP": ap, "R1": R1})
    return row


# ---- features ----

def embed(run, dataset, records, asks, kind):
    """{kind: features (n d) float32} of records under an Ask or None each, L2-normalised, by
    run.model.

    kind: "edit", F of an image under its Ask; "fused", F_out, and F comes with it; "text", a
    sentence without an image (t2i); "instruction", E_i's pooled vector of an Ask; CLOTHES, an image
    taken as a picture of clothes.
    run.flip: the sum of the features of an image and of its mirror image, whose picture of clothes
    turns with it, as in training.
    """
    starts = range(0, len(records), run.batch)
    photos = [None] * len(starts)
    if kind not in ("text", "instruction"):
        paths = [record.path for record in records]
        photos = batches(dataset.root, paths, run.model.size, run.batch)

    parts = defaultdict(list)
    with inference(run.model, run.amp) as device:
        title = f"{dataset.title} {dataset.task} {kind}"
        bar = progress(photos, title, total=len(starts), leave=False)
        for start, images in zip(starts, bar, strict=True):
            some = asks[start:start + run.batch]
            if images is not None:
                images = images.to(device, non_blocking=True)
            if images is not None and kind != CLOTHES:
                images = normalise(images)
            new = embed_batch(run.model, dataset, images, some, kind)
            if run.flip and images is not None:
                turned = embed_batch(run.model, dataset, images.flip(3), some, kind, mirrored=True)
                new = {name: feats + turned[name] for name, feats in new.items()}
            for name, feats in new.items():
                parts[name].append(F.normalize(feats, dim=1).expand(len(some), -1))
    return {name: torch.cat(feats) for name, feats in parts.items()}


def embed_batch(model, dataset, images, asks, kind, mirrored=False):
    """{kind: features (b d)} of images (b 3 H W) or None, or (1 d) where all are alike; images are
    normalised but for CLOTHES, which takes them as they are. UserError for an untrained part."""
    refuse_untrained(model, asks[0], kind)
    if kind == CLOTHES:
        clothes = uninstructed.as_clothes(images, model.picture_size)
        return {kind: model.instruct(pictures=clothes).pooled.float()}
    instr = instruct(model, dataset, asks, mirrored)
    if kind == "text":
        return {kind: model.embed_text(model.read_text(instr)).float()}
    if kind == "instruction":
        return {kind: instr.pooled.float()}
    if kind == "edit":
        return {"edit": model.embed(images, instr).float()}
    out = model(images, instr)
    feats = {"edit": out.neck, "fused": out.fused_neck}
    return {name: F.normalize(neck, dim=1).float() for name, neck in feats.items()}


def refuse_untrained(model, ask, kind):
    """UserError where a part that these features are made by is not among the model's."""
    needed = {
        "words": ask is not None and ask.words,
        "pictures": kind == CLOTHES or ask is not None and ask.picture,
        "text queries": kind == "text" or ask is None and kind in FEATURES,
        "fused": kind == "fused",
    }
    missing = [part for part in needed if needed[part] and part not in model.parts]
    if missing:
        raise UserError(
            f"the model was not trained for {' and '.join(missing)}: take a checkpoint of a task "
            "that trains it, such as --task all"
        )


def instruct(model, dataset, asks, mirrored=False):
    """The Instruction of Asks that all have the same parts; None for None."""
    if asks[0] is None:
        return None
    sentences = [ask.words for ask in asks] if asks[0].words else None
    pictures = None
    if asks[0].picture:
        paths = [ask.picture for ask in asks]
        pictures = load_all(dataset.root, paths, model.picture_size)
        if mirrored:
            pictures = pictures.flip(3)
        pictures = normalise(pictures.to(model.neck.weight.device))
    return model.instruct(sentences, pictures)


def match(run, dataset, gallery, asks, query_feats, gallery_feats):
    """The second stage of t2i (Supp. 5.2): the TOP nearest images of each query and their scores,
    side by side (2 q TOP).

    A score is the similarity as the contrast of Eq. 8 sees it, divided by the temperature, plus
    the logit of the pair: both say how probable it is that the two belong together.
    """
    model = run.model
    parts = []
    for some in query_feats.split(CHUNK):
        parts.append((some @ gallery_feats.T).topk(min(TOP, len(gallery))))
    similarity = torch.cat([part.values for part in parts])
    nearest = torch.cat([part.indices for part in parts])

    with inference(model, run.amp) as device:
        paths = [record.path for record in gallery]
        tokens = []
        for images in batches(dataset.root, paths, model.size, run.batch):
            tokens.append(model.edit(normalise(images.to(device, non_blocking=True))))
        tokens = torch.cat(tokens)

        logits = []
        bar = progress(asks, f"{dataset.title} matching", leave=False)
        for ask, indices in zip(bar, nearest, strict=True):
            instr = model.read_text(model.instruct([ask.words]))
            no_and_yes = model.match(tokens[indices], instr)
            logits.append((no_and_yes[:, 1] - no_and_yes[:, 0]).float())
        scores = similarity / model.temperature().item() + torch.stack(logits)
    if not scores.isfinite().all():
        raise UserError(
            "the matching head gives NaN or infinity: take an earlier checkpoint or a lower --lr"
        )
    return torch.stack([nearest.float(), scores])


def matched_first(matches):
    """A `stage` of `rank` that orders the nearest images by their scores, both as `match` returns
    them; the others keep their order behind them."""
    nearest, scores = matches.cpu().numpy()

    def rescore(start, dist):
        for row, indices, best in zip(dist, nearest[start:].astype(int), scores[start:]):
            row[indices] = best.min() - best - 2  # at most -2: ahead of every -cosine
        return dist

    return lambda query_feats, gallery_feats: rescore


@dataclass
class Run:
    """A model or a file of its features, and how it is evaluated. What was computed once is known:
    {fingerprint: tensor}."""

    model: torch.nn.Module | None = None
    feature: str = "edit"  # F; "fused" is F_out
    flip: bool = False
    amp: str = "off"
    batch: int = 64
    protocol: str | None = None  # only the one of this name
    rerank: bool = False  # a second row by k-reciprocal neighbours
    ap_window: int | None = None  # AP in the first ranks only
    known: dict = field(default_factory=dict)
    parts: tuple = ()  # the model's; of a file of features, those of the model it is of

    def __post_init__(self):
        if self.model is not None:
            self.parts = self.model.parts
        if self.feature not in self.features_of_images:
            raise UserError("--feature fused: this model was trained without E_f; drop the flag")

    @property
    def features_of_images(self):
        """The FEATURES that the model was trained for."""
        return [name for name in FEATURES if name == "edit" or "fused" in self.parts]

    def features(self, dataset, records, asks, kind=None):
        """What `embed` returns of a kind, by default of run.feature; a record without an image is
        embedded by its sentence, and an image without an Ask has F alone."""
        kind = kind or self.feature
        if records[0].path is None:
            kind = "text"
        elif asks[0] is None and kind == "fused":
            kind = "edit"
        key = fingerprint(dataset, records, asks, kind)
        if key not in self.known:
            if self.model is None:
                raise UserError(f"{dataset.title} {dataset.task} ({kind}): {NOT_SAVED}")
            for name, feats in embed(self, dataset, records, asks, kind).items():
                self.known[fingerprint(dataset, records, asks, name)] = feats
        if len(self.known[key]) != len(records):
            raise UserError(f"{dataset.title} {dataset.task} ({kind}): {NOT_SAVED}")
        return self.known[key]

    def matches(self, dataset, queries, gallery, asks, *feats):
        """What `match` returns."""
        of_all = [*asks, *[None] * len(gallery)]
        key = fingerprint(dataset, [*queries, *gallery], of_all, "matching")
        if key not in self.known:
            if self.model is None:
                raise UserError(f"{dataset.title} {dataset.task} (matching): {NOT_SAVED}")
            self.known[key] = match(self, dataset, gallery, asks, *feats)
        nearest = self.known[key][0]
        if len(nearest) != len(queries) or not ((0 <= nearest) & (nearest < len(gallery))).all():
            raise UserError(f"{dataset.title} {dataset.task} (matching): {NOT_SAVED}")
        return self.known[key]


def fingerprint(dataset, records, asks, kind):
    """32 letters that features of other images, instructions, kinds or another order do not have.
    """
    lines = [f"{dataset.name} {kind}"]
    lines += [f"{record.path} {ask}" for record, ask in zip(records, asks, strict=True)]
    text = "\n".join(lines).encode(errors="surrogateescape")
    return hashlib.sha256(text).hexdigest()[:32]


# ---- the rows of a table ----

def evaluate_all(run, datasets, rows_of=None):
    """The rows of the data sets that have a test split, by evaluate_task or another function; what
    cannot be ranked is said and left out."""
    rows = []
    for dataset in datasets:
        for protocol in chosen_protocols(dataset, run.protocol) if dataset.tested else ():
            alone = replace(run, protocol=protocol.name)  # it knows the same features
            name = f"{dataset.title} {dataset.task} {protocol.name}"
            rows += rows_or_reason(name, rows_of or evaluate_task, alone, dataset)
    return rows


def matrix_of_all(run, datasets):
    """The instruction matrix of each data set, one below the other; left out as in evaluate_all."""
    rows = []
    for dataset in datasets:
        name = f"{dataset.title} {dataset.task} instruction matrix"
        rows += rows_or_reason(name, instruction_matrix, run, dataset)
    return rows


def rows_or_reason(name, rows_of, *args):
    """The rows, or dict of them, that a function returns; none, and its reason on the screen, if it
    cannot."""
    try:
        return rows_of(*args)
    except UserError as error:
        print(f"left out: {name}: {error}", file=sys.stderr)
        return []


def evaluate_task(run, dataset, sentence=0, features=None):
    """A row (dict) for each protocol of one data set under its task, ranked by F and by F_out, and
    for each second stage.

    sentence: which of the sentences of the task; features: those of FEATURES that are ranked.
    """
    text_only = TASKS[dataset.task].text_only
    stages = {"": None}
    if text_only:
        stages[" + matching"] = matched_first(run.matches(dataset, *both_sides(run, dataset)))
    if run.rerank:
        stages[" + re-ranking"] = k_reciprocal
    window = f", AP in the first {run.ap_window}" if run.ap_window else ""

    rows = []
    features = features or run.features_of_images
    features = ["edit"] if text_only else features
    embedded = {}
    for feature in reversed(features):  # F_out first: F comes with it
        embedded[feature] = both_sides(replace(run, feature=feature), dataset, sentence)
    for protocol, feature in product(chosen_protocols(dataset, run.protocol), features):
        queries, gallery, _, *feats = embedded[feature]
        for name, stage in stages.items():
            row = {"task": dataset.task, "data": dataset.title}
            row |= {"protocol": protocol.name + name + window, "feature": FEATURES[feature]}
            rows.append(row | rank(protocol, queries, gallery, *feats, run.ap_window, stage))
    return rows


def chosen_protocols(dataset, name=None):
    """Those that are evaluated by default, or the one of that name. UserError if there is none."""
    if name is None:
        return [protocol for protocol in dataset.protocols if not protocol.named]
    chosen = [protocol for protocol in dataset.protocols if protocol.name == name]
    if not chosen:
        names = ", ".join(protocol.name for protocol in dataset.protocols)
        raise UserError(
            f"{dataset.title} has no protocol '{name}' for {dataset.task}; it has {names}"
        )
    return chosen


def sides(dataset):
    """(queries, gallery) without junk; the same list twice where the protocol decides (LLCM)."""
    test = dataset.split("test")
    if test:
        return test, test
    queries = dataset.split("query")
    gallery = [record for record in dataset.split("gallery") if not record.junk]
    if not queries or not gallery:
        raise UserError(
            f"{dataset.root}: {len(queries)} queries, {len(gallery)} gallery images; check its "
            "test split"
        )
    return queries, gallery


def both_sides(run, dataset, sentence=0):
    """(queries, gallery, what the queries ask, query_feats, gallery_feats)."""
    queries, gallery = sides(dataset)
    asks = [query_instruction(dataset.task, record, sentence) for record in queries]
    carried = [gallery_instruction(dataset.task, record, sentence) for record in gallery]
    query_feats = run.features(dataset, queries, asks)
    return queries, gallery, asks, query_feats, run.features(dataset, gallery, carried)


def evaluate_sentences(run, dataset):
    """Rows over all sentences of a task, if it has any: mean, standard deviation, best and worst
    one by mAP."""
    sentences = TASKS[dataset.task].sentences
    features = [run.feature]
    by_sentence = [evaluate_task(run, dataset, i, features) for i in range(len(sentences))]
    rows = []
    for alike in zip(*by_sentence, strict=True):
        mAP = np.array([row["mAP"] for row in alike])
        R1 = np.array([row["R1"] for row in alike])
        row = {key: alike[0][key] for key in HEADING}
        row |= {"sentences": len(alike)}
        row |= {"mAP": mAP.mean(), "sd": mAP.std(), "R1": R1.mean(), "R1 sd": R1.std()}
        row |= {"best": mAP.max(), "best sentence": sentences[mAP.argmax()]}
        row |= {"worst": mAP.min(), "worst sentence": sentences[mAP.argmin()]}
        rows.append(row)
    return rows


def compare(first, second, dataset):
    """Rows: mAP and R1 of two Runs on the same queries, second - first and its 95 % interval."""
    rows = []
    both = zip(evaluate_task(first, dataset), evaluate_task(second, dataset), strict=True)
    for ours, theirs in both:
        heading = {key: ours[key] for key in ("task", "data", "protocol", "feature")}
        rows += [heading | row for row in differences(ours["each"], theirs["each"])]
    return rows


def show(tables):
    """Prints {title: rows}, those that have rows."""
    for title, rows in tables.items():
        if rows:
            print(f"\n{title} (percent)\n\n{format_table(rows)}")


# ---- the instruction matrix: does the model follow the instruction? ----

def instruction_matrix(run, dataset):
    """Rows: the same queries and gallery under right and wrong instructions, if the data set knows
    clothes and its task has targets in them.

    cc: the trad and the cc sentence against targets in the same and in other clothes. The tasks
    with an instruction for each image, strict protocol: the wanted, the query's own and a random
    instruction, and `shortcut_controls`.
    """
    targets = TASKS[dataset.task].targets
    if not targets or not dataset.tested:
        return []
    queries, gallery = sides(dataset)
    if not any(record.clothes for record in gallery):
        return []
    queries, variants = instruction_variants(run, dataset, queries, gallery)
    variants |= shortcut_controls(run, dataset, queries, gallery)
    rows = []
    for target in targets:
        protocol = TARGETS[target]
        if not any(answerable(protocol, queries, gallery)):  # nobody is seen twice in these
            continue
        for name, (_, *feats) in variants.items():
            row = {"task": dataset.task, "data": dataset.title, "target": target}
            row |= {"protocol": protocol.name, "instruction": name}
            rows.append(row | rank(protocol, queries, gallery, *feats))
    return rows


def instruction_variants(run, dataset, queries, gallery):
    """Queries under right and wrong instructions, the right one first:
    (queries, {name: (asks, query_feats, gallery_feats)}).

    With sentences: the task's and the opposite one, on both sides. Else wanted, own and random,
    while gallery images keep their own, and where an Ask has words and a picture each of the two
    alone at random. t2i: the caption alone.
    """
    row = TASKS[dataset.task]
    variants = {}
    if row.sentences:
        for task in filter(None, (dataset.task, row.opposite)):
            sentence = TASKS[task].sentences[0]
            asks = [Ask(sentence)] * len(queries)
            query_feats = run.features(dataset, queries, asks)
            gallery_feats = run.features(dataset, gallery, [Ask(sentence)] * len(gallery))
            variants[sentence] = (asks, query_feats, gallery_feats)
        return queries, variants

    _, _, wanted, query_feats, gallery_feats = both_sides(run, dataset)
    if row.text_only:
        return queries, {"wanted": (wanted, query_feats, gallery_feats)}
    kept, wrong = wrong_instructions(dataset, queries, gallery)
    if not kept:
        return queries, {"wanted": (wanted, query_feats, gallery_feats)}
    queries = [queries[i] for i in kept]
    wanted = [wanted[i] for i in kept]
    if row.described and row.pictures:
        both = list(zip(wanted, wrong["random"], strict=True))
        wrong["random words"] = [Ask(other.words, ask.picture) for ask, other in both]
        wrong["random picture"] = [Ask(ask.words, other.picture) for ask, other in both]
    variants["wanted"] = (wanted, query_feats[kept], gallery_feats)
    for name, asks in wrong.items():
        variants[name] = (asks, run.features(dataset, queries, asks), gallery_feats)
    return queries, variants


def shortcut_controls(run, dataset, queries, gallery):
    """Does the model use both photo and instruction, or a shortcut? As in instruction_variants, of
    tasks with an instruction for each image:

    - a stranger's photo: the right instruction with the photo of another person;
    - without a photo: E_i's feature of what is wanted against that of what the gallery carries;
    - gallery without instructions: by the rule of reid.uninstructed, if the model was trained for
      what it takes: it reads sentences and text queries, or sees pictures.
    """
    row = TASKS[dataset.task]
    if row.sentences or row.text_only:
        return {}
    wanted = [query_instruction(dataset.task, record) for record in queries]
    carried = [gallery_instruction(dataset.task, record) for record in gallery]
    strangers = []
    for query, stranger in zip(queries, other_people(queries), strict=True):
        strangers.append(replace(query, path=stranger.path))
    of_strangers = run.features(dataset, strangers, wanted)
    carrying = run.features(dataset, gallery, carried)
    alone = [
        run.features(dataset, queries, wanted, "instruction"),
        run.features(dataset, gallery, carried, "instruction"),
    ]
    controls = {
        "wanted, a stranger's photo": (wanted, of_strangers, carrying),
        "wanted, without a photo": (wanted, *alone),
    }
    needed = {"words": True, "text queries": row.described, "pictures": row.pictures}
    if all(part in run.parts for part in needed if needed[part]):
        controls["wanted, gallery without instructions"] = (wanted, *uninstructed_feats(
            run, dataset, queries, gallery, wanted))
    return controls


def uninstructed_feats(run, dataset, queries, gallery, wanted):
    """(query_feats, gallery_feats) by the rule of reid.uninstructed."""
    row = TASKS[dataset.task]
    query_parts, gallery_parts = [], []
    if row.described:
        words = run.features(dataset, queries, [Ask(ask.words) for ask in wanted], "text")
        query_parts.append((SHARES[UNINSTRUCTED], words))
        photos = run.features(dataset, gallery, [None] * len(gallery))
        gallery_parts.append((SHARES[UNINSTRUCTED], photos))
    if row.pictures:
        clothes = [Ask(picture=ask.picture) for ask in wanted]
        clothes = run.features(dataset, queries, clothes, "instruction")
        query_parts.append((SHARES[CLOTHES], clothes))
        photos = run.features(dataset, gallery, [None] * len(gallery), CLOTHES)
        gallery_parts.append((SHARES[CLOTHES], photos))
    feats = []
    for records, parts in ((queries, query_parts), (gallery, gallery_parts)):
        person = run.features(dataset, records, [Ask(PERSON_SENTENCE)] * len(records))
        feats.append(uninstructed.joined(person, parts))
    return feats


def other_people(queries, seed=0):
    """For each query one of another person."""
    rng = random.Random(seed)
    chosen = []
    for query in queries:
        chosen.append(rng.choice([record for record in queries if record.pid != query.pid]))
    return chosen


def wrong_instructions(dataset, queries, gallery, seed=0):
    """(indices of queries, {"own", "random": a wrong Ask for each of these}).

    own: what the query wears itself or, where the data does not tell, what a gallery image of that
    person in other than the wanted clothes wears; a query without either is left out.
    random: what a query of another person wants.
    """
    rng = random.Random(seed)
    queries_of = defaultdict(list)
    images_of = defaultdict(list)
    for record in queries:
        queries_of[record.pid].append(record)
    for record in gallery:
        images_of[record.pid].append(record)
    if len(queries_of) < 2:
        raise UserError(
            f"{dataset.root}: one query person only; a random instruction needs a second"
        )

    kept = []
    wrong = {"own": [], "random": []}
    for i, query in enumerate(queries):
        own = own_instruction(dataset.task, query, images_of[query.pid])
        if not own:
            continue
        strangers = [pid for pid in queries_of if pid != query.pid]
        stranger = rng.choice(queries_of[rng.choice(strangers)])
        kept.append(i)
        wrong["own"].append(own)
        wrong["random"].append(query_instruction(dataset.task, stranger))
    return kept, wrong


def own_instruction(task, query, images):
    """What the query wears, or what another of the person's images wears; None if nothing tells."""
    own = gallery_instruction(task, query)
    if own != query_instruction(task, query):
        return own
    for record in images:
        if record.clothes != query.target_clothes:
            return gallery_instruction(task, record)
    return None


# ---- pictures ----

def draw(run, datasets):
    """{name: picture}: the gates; of each data set with a test split rankings under right and wrong
    instructions, and the attention to the words of the first query's instruction."""
    model = run.model
    drawn = {"gates": pictures.gates(model)} if model.editing else {}
    for dataset in datasets:
        name = f"{dataset.name}_{dataset.task}".replace(":", "-")
        found = rows_or_reason(f"{dataset.title} {dataset.task} pictures", rankings, run, dataset)
        for protocol, rows in dict(found).items():
            ending = re.sub("[^A-Za-z0-9]+", "-", protocol)
            drawn[f"ranking_{name}_{ending}"] = pictures.ranking_list(rows)
            query = rows[0].query
            ask = rows[0].ask
            if model.editing and query.path and not ask.picture:  # words edit an image
                with inference(model, run.amp) as device:
                    image = load_image(dataset.root / query.path, model.size)[None].to(device)
                    words = pictures.word_attention(model, normalise(image), ask.words)
                drawn[f"attention_{name}"] = words
    return drawn


def rankings(run, dataset):
    """{name of a protocol: RankRows}: targets in other clothes where the task looks for them, each
    direction of a cross-modality protocol, else the first protocol; t2i: before and after the
    second stage."""
    if not dataset.tested:
        return {}
    queries, gallery = sides(dataset)
    queries, variants = instruction_variants(run, dataset, queries, gallery)
    protocols = [each for each in chosen_protocols(dataset) if each.queries]  # directions
    protocols = protocols or dataset.protocols[:1]
    looks_for_others = "other clothes" in TASKS[dataset.task].targets
    if looks_for_others and any(answerable(OTHER_CLOTHES, queries, gallery)):
        protocols = [OTHER_CLOTHES]

    lists = {name: (asks, distances(*feats)) for name, (asks, *feats) in variants.items()}
    if TASKS[dataset.task].text_only:
        asks, *feats = variants["wanted"]
        stage = matched_first(run.matches(dataset, queries, gallery, asks, *feats))
        lists["wanted, after matching"] = asks, distances(*feats, stage)
    drawn = {}
    for protocol in protocols:
        rows = pictures.rank_rows(dataset, protocol, queries, gallery, lists)
        if rows:  # else no query has a hit
            drawn[protocol.name] = rows
    return drawn


def distances(query_feats, gallery_feats, stage=None):
    """A function: index of a query -> its distances (g) from the gallery, after a `stage` of
    `rank`."""
    rescore = stage and stage(query_feats, gallery_feats)

    def of_query(i):
        dist = (-query_feats[i:i + 1] @ gallery_feats.T).cpu().numpy()
        return (rescore(i, dist) if rescore else dist)[0]
    return of_query


# ---- command line ----

@dataclass
class Config:
    """Evaluate a checkpoint. Flags that default to None follow the checkpoint.

    python evaluate.py --checkpoint runs/all/last.pt --task cc
    python evaluate.py --checkpoint runs/a/last.pt --compare runs/b/last.pt
    """

    checkpoint: str = cli.option(
        None, "a last.pt that train.py wrote, or a file of --save-features; None = "
        "runs/all/last.pt or, before the first run, a model of drawn people")
    task: str = cli.option(
        None, "which task; all = every task that the data offers", ("all", *TASKS))
    data: str = cli.option(None, "data set, or folder of data sets")
    instructions: str = cli.option(
        "one", "one sentence, or each of the 20 of trad, cc and vi", ("one", "all"))
    protocol: str = cli.option(
        None, "only the protocol of this name; vis-to-ir-deen (LLCM) is evaluated only if named")
    feature: str = cli.option(
        None, "what is ranked: the edited CLS token, or F_out of the attention module",
        ("edit", "fused"))
    flip: bool = cli.option(False, "features of an image and of its mirror image, summed")
    ap_window: int = cli.option(
        None, "AP in the first N ranks, as the released code (500); None = all, the standard",
        least=1)
    rerank: bool = cli.option(
        False, "a second row by k-reciprocal re-ranking (Zhong et al. 2017)")
    compare: str = cli.option(
        None, "another checkpoint or features file: differences with their 95 %% intervals")
    save_features: str = cli.option(
        None, "write the features to this .safetensors; --checkpoint reads it")
    device: str = cli.option("auto", "auto takes a GPU if it is there")
    batch: int = cli.option(64, "images per batch", least=1, most=2**16)


def main(config):
    cli.check_output("--save-features", config.save_features, ".safetensors")
    device = pick_device(config.device)
    allow_tf32(device)
    checkpoint = chosen_checkpoint(config.checkpoint)
    run, trained = open_run(checkpoint, config, device)
    data = config.data or trained["data"]
    task = config.task or trained["task"]
    if checkpoint == TRAINED:  # the data of a run is there, or elsewhere, but never drawn anew
        import toydata

        toydata.provide(data)
    datasets = tested_datasets(data, task, config.protocol)

    tables = {"Results": evaluate_all(run, datasets)}
    if not any(tables.values()):
        raise UserError(f"{data}: nothing could be ranked, for the reasons above")
    if config.instructions == "all":
        tables[SENTENCES] = evaluate_all(run, datasets, evaluate_sentences)
    tables[MATRIX] = matrix_of_all(run, datasets)
    if config.compare:
        other, _ = open_run(config.compare, config, device)
        title = (
            f"{checkpoint} (first) and {config.compare} (second); low, high: 95 % interval "
            "of the difference"
        )
        tables[title] = []
        for dataset in datasets:
            tables[title] += compare(run, other, dataset)
    show(tables)
    if config.save_features:
        notes = {"data": str(data), "task": task, "flip": str(run.flip)}
        notes["parts"] = ",".join(run.parts)
        save_features(config.save_features, run.known, notes)
        print(f"wrote {config.save_features}")


def chosen_checkpoint(path):
    """The checkpoint that is asked for; where None is, LAST or, before the first run, TRAINED."""
    if path is not None:
        return path
    if LAST.exists():
        return LAST
    print(f"no {LAST} yet: the model of drawn people, {TRAINED}", file=sys.stderr)
    return TRAINED


def open_run(path, config, device):
    """(Run, the config of its training) of a checkpoint, or of a features file and its notes."""
    how = dict(batch=config.batch, protocol=config.protocol, rerank=config.rerank)
    how |= dict(ap_window=config.ap_window)
    if Path(path).suffix != ".safetensors":
        model, trained = load_model(path)
        feature = config.feature or trained["feature"]
        run = Run(model.to(device), feature, config.flip, trained["amp"], **how)
        return run, trained

    known, notes = load_features(path, {"data", "task", "flip", "parts"}, device)
    flip = notes["flip"] == "True"
    if config.flip and not flip:
        raise UserError(f"--flip: {path} holds features without it; drop it, or save them again")
    parts = tuple(notes["parts"].split(","))
    return Run(None, config.feature or "edit", flip, known=known, parts=parts, **how), notes


def load_model(path, text=None):
    """(InstructReID in evaluation mode, dict): the model of a checkpoint and its config; the rest
    as in `rebuild`."""
    state = checkpoints.load(path, checkpoints.MODEL | {"config": TRAINED_WITH})
    return rebuild(state, path, text).eval(), state["config"]


def rebuild(state, path, text=None):
    """The model of the checkpoint `path`, whose content is `state`: undoes `parts_of`. text: a
    TextEncoder in place of the packaged one."""
    with checkpoints.user_error_on(path):
        if text is None:
            bert, tokenizer = from_json(state["text"]) if state["text"] else embedded_text_model()
            text = TextEncoder(bert, tokenizer, state["pooling"], state["config"]["train_text"])
        cross = None
        if state["cross"]:
            cross = CrossEncoder(bert_config(json.loads(state["cross"])), state["shape"]["dim"])
        model = InstructReID(
            state["shape"], state["classes"], state["parts"], text=text, cross=cross
        )
        checkpoints.restore_model(model, state["model"], path)
    return model


def parts_of(model, classes):
    """What a checkpoint holds of a model, in tensors and plain values."""
    text = model.encoder.text
    is_embedded = getattr(text.bert, "embedded", False)
    return {
        "classes": classes,
        "shape": model.shape,
        "parts": list(model.parts),
        "text": None if is_embedded else to_json(text.bert, text.tokenizer),
        "pooling": text.pooling,
        "cross": model.cross and model.cross.layers.config.to_json_string(),
        "model": checkpoints.model_state(model),
    }


def tested_datasets(path, task, protocol=None):
    """The data sets at `path` that have a test split and, if one is named, the protocol.

    UserError if there is none.
    """
    datasets = open_all(path, asked_tasks(task))
    tested = [dataset for dataset in datasets if dataset.tested]
    if not tested:
        first = datasets[0]
        raise UserError(f"{first.root}: {first.title} has no test split; give another --data")
    named = [each for each in tested if protocol in [known.name for known in each.protocols]]
    if protocol and not named:
        chosen_protocols(tested[0], protocol)  # says which ones it has
    return named if protocol else tested


if __name__ == "__main__":
    cli.run(main, Config)
