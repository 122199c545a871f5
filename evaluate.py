"""Evaluation: exact metrics, features, tables, the instruction matrix, the command line.

`python evaluate.py --checkpoint runs/all/last.pt` prints a row per data set, task and protocol.
Metrics are fractions in the code and percentages when printed.
Letters in shapes: q queries, g gallery images, c queries in a chunk, b batch, d feature width.
"""

import hashlib
import json
import random
import re
import sys
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import reid  # noqa: F401  before torch: sets how its threads wait

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
from reid import checkpoints, cli, plots
from reid import text as texts
from reid.cli import UserError, progress
from reid.compare import comparison
from reid.device import AMP, allow_tf32, full_precision_matmul, inference, pick_device
from reid.features import load_features, save_features
from reid.folders import open_all
from reid.images import batches, load_all, load_image, normalise
from reid.protocols import OTHER_CLOTHES, TARGETS, Columns, answerable, columns, masks, trials
from reid.rerank import k_reciprocal
from reid.tables import format_table
from reid.uninstructed import CLOTHES, SHARES, UNINSTRUCTED, as_clothes, joined

LAST = Path("runs/all/last.pt")  # written by `python train.py`
TRAINED = Path(__file__).parent / "toydata" / "trained.pt"  # the bundled model
DIVERGED = (
    "the features contain NaN or infinity: training has diverged; use an earlier checkpoint or a "
    "lower --lr"
)
NOT_SAVED = (
    "the saved features are of other images, captions or tables; give --checkpoint a last.pt"
)
CHUNK = 256  # queries ranked at a time: no (q g) array is ever needed
OF_ONE_SENTENCE = ("mAP", "R1", "R5", "R10", "mINP", "each")  # columns that depend on it
MATRIX = "Instruction matrix: the same queries and gallery, only the instruction differs"
SENTENCES = "All 20 sentences (Supp. 5.1)"
FEATURES = {"edit": "F", "fused": "F_out"}  # of an image with an instruction
TRAINED_WITH = {  # training flags that evaluation reads from a checkpoint; see runs.misfit
    "task": ("all", *TASKS), "data": str, "feature": (*FEATURES,), "amp": AMP, "train_text": bool,
}
TOP = 128  # images of a t2i ranking that the second stage re-ranks (Supp. 5.2)


# ---- exact metrics ----

class QueryFigures(NamedTuple):
    """The metrics of one query, from which those of a row are averaged; NaN and 0 without a hit."""
    ap: float
    inp: float
    first_rank: float  # of the first hit; inf if there is none inside the window
    hits: int
    ranked: int        # gallery images that are not removed


def ranking_metrics(dist, positive, removed=None, ap_window=None, gallery_ids=None):
    """Full-ranking mAP, mINP and CMC. Ties keep gallery order; queries without a hit are left out.

    dist (q g) float, smaller is nearer; positive (q g) bool: a hit; removed (q g) bool: deleted
    from the ranking. AP is the mean over the hits of (hits so far / rank); INP is the number of
    hits / rank of the last one.

    ap_window=500 is NOT standard but what the released code computes: the ranking is cut to 500
    places before `removed` is applied, and AP is divided by the number of hits found there, so that
    hits further down have no cost; a query without a hit there scores 0.
    gallery_ids (g): the CMC ranks people, not images: only the nearest image of each id counts
    (LLCM).

    Returns mAP, mINP, cmc (g) with cmc[k-1] = rank-k, queries (those with a hit), and the other
    columns of a table. UserError if there is nothing to rank.
    """
    dist = np.asarray(dist)
    positive = np.asarray(positive, bool)
    removed = np.zeros_like(positive) if removed is None else np.asarray(removed, bool)
    if dist.ndim != 2 or not dist.shape == positive.shape == removed.shape:
        shapes = f"dist {dist.shape}, positive {positive.shape}, removed {removed.shape}"
        raise UserError(f"{shapes}: all three must be (queries, gallery)")
    if np.isnan(dist).any():
        raise UserError(DIVERGED)
    figures = []
    for query in zip(dist, positive, removed):
        figures.append(query_figures(*query, ap_window, gallery_ids))
    return means(figures, dist.shape[1])


def means(figures, gallery_size):
    """The result of ranking_metrics, from the QueryFigures of all queries. "each" has {mAP, R1} of
    every query (q), NaN without a hit."""
    each = np.array(figures, float).reshape(-1, 5)
    has_hit = each[:, 3] > 0
    if not has_hit.any():
        raise UserError(
            "no query has a hit in the gallery: query and gallery must have people in common, seen "
            "by different cameras, and the protocol must fit the data set"
        )
    ap, inp, first_rank, hits, ranked = each[has_hit].T
    found = first_rank[np.isfinite(first_rank)].astype(int)
    first_hits = np.bincount(found, minlength=gallery_size + 1)[1:]  # queries by first rank
    cmc = first_hits.cumsum() / len(ap)
    random_mAP, random_R1 = random_ranking(hits.astype(int), ranked.astype(int))
    is_first = np.where(has_hit, each[:, 2] == 1, np.nan)
    return {
        "queries": len(ap),
        "without": len(each) - len(ap),
        "gallery": gallery_size,
        "mAP": float(ap.mean()),
        **{f"R{k}": float(cmc[min(k, gallery_size) - 1]) for k in (1, 5, 10)},
        "mINP": float(inp.mean()),
        "chance mAP": random_mAP,
        "chance R1": random_R1,
        "cmc": cmc,
        "each": {"mAP": each[:, 0], "R1": is_first},
    }


def query_figures(dist, positive, removed, ap_window=None, gallery_ids=None):
    """QueryFigures of one query; dist, positive, removed (g). Options as in ranking_metrics."""
    hits = np.flatnonzero(positive & ~removed)
    ranked = len(dist) - np.count_nonzero(removed)
    if not len(hits):
        return QueryFigures(np.nan, np.nan, np.nan, 0, ranked)

    kept_dist = dist.copy()
    kept_dist[removed] = np.nan
    ranks = hit_ranks(kept_dist, hits)
    if ap_window:
        ranks = ranks[hit_ranks(dist, hits) <= ap_window]
    if not len(ranks):
        return QueryFigures(0.0, 0.0, np.inf, len(hits), ranked)

    hits_so_far = np.arange(1, len(ranks) + 1)
    ap = np.mean(hits_so_far / ranks)
    inp = len(ranks) / ranks[-1]
    first_rank = ranks[0]
    if gallery_ids is not None:
        first_rank = person_rank(kept_dist, hits, gallery_ids)
    return QueryFigures(ap, inp, first_rank, len(hits), ranked)


def hit_ranks(dist, hits):
    """Ranks, ascending from 1, of the gallery images `hits` (indices). dist (g): NaN = not ranked.

    The rank of an image is 1 + the number of images ahead of it: those that are nearer and those at
    the same distance but earlier in the gallery, as in a stable sort. Counting them only needs the
    sorted distances up to that of the farthest hit.
        distances .3 .1 .3 .2 .3: ahead of the third are .3 (earlier), .1 and .2 (nearer), so its
        rank is 4
    """
    hit_dist = dist[hits]
    candidates = np.flatnonzero(dist <= hit_dist.max())  # faster than a mask of booleans
    ordered = np.sort(dist[candidates])
    ahead = np.searchsorted(ordered, hit_dist, "left")
    tied = np.searchsorted(ordered, hit_dist, "right") - ahead
    for i in np.flatnonzero(tied > 1):  # other images are at the same distance as this hit
        ahead[i] += np.count_nonzero(dist[:hits[i]] == hit_dist[i])
    return np.sort(1 + ahead)


def person_rank(dist, hits, gallery_ids):
    """The rank of the first hit if people are ranked: 1 + the number of ids ahead of it."""
    nearest = hits[np.argmin(dist[hits])]
    ahead = dist < dist[nearest]
    ahead[:nearest] |= dist[:nearest] == dist[nearest]  # a tie: the earlier one comes first
    return 1 + len(np.unique(gallery_ids[ahead]))


def random_ranking(m, n):
    """(expected mAP, expected rank-1) of a random order, exact: m (q) hits among n (q) images.

    Rank k is a hit with probability m/n; then (k-1)(m-1)/(n-1) of the k-1 before it are hits on
    average:
        E[AP] = 1/m sum_k m/n (1 + (k-1)(m-1)/(n-1)) / k = [H_n + (n - H_n)(m-1)/(n-1)] / n
    with H_n = 1 + 1/2 + ... + 1/n.
    """
    harmonic_numbers = np.cumsum(1 / np.arange(1, n.max() + 1))
    harmonic = harmonic_numbers[n - 1]  # H_n
    ap = (harmonic + (n - harmonic) * (m - 1) / np.maximum(n - 1, 1)) / n
    return float(ap.mean()), float((m / n).mean())


class Retrieval(NamedTuple):
    """Queries and the gallery that is ranked for them."""
    queries: list  # Records
    gallery: list
    query_feats: torch.Tensor  # (q d), L2-normalised
    gallery_feats: torch.Tensor  # (g d), L2-normalised
    asks: list | None = None  # an Ask or None for each query


@full_precision_matmul()
def distances(query_feats, gallery_feats, rescore, start, end):
    """Distances (c g) of the queries from `start` to `end`: -cosine, or those of a second stage.

    rescore: None, or a function of start and -cosine (c g) that returns new distances (c g).
    """
    dist = (-query_feats[start:end] @ gallery_feats.T).cpu().numpy()
    return rescore(start, dist) if rescore else dist


def rank(protocol, retrieval, ap_window=None, stage=None):
    """The metrics of a row: means over all queries with a hit, in all trials of a protocol.

    stage: a function of query and gallery features that returns the `rescore` of `distances`.
    Returns trials, queries (with a hit), without (a hit), gallery, mAP, R1, R5, R10, mINP, mAP and
    R1 of a random order, and for each trial the "each" of `means`.
    """
    queries, gallery, query_feats, gallery_feats, _ = retrieval
    if not (query_feats.sum().isfinite() and gallery_feats.sum().isfinite()):
        raise UserError(DIVERGED)
    figures = []
    pairs = trials(protocol, queries, gallery)
    for query_indices, gallery_indices in pairs:
        q, g = columns([queries[i] for i in query_indices], [gallery[i] for i in gallery_indices])
        people = g.pid if protocol.people else None
        feats = query_feats[query_indices], gallery_feats[gallery_indices]
        rescore = stage and stage(*feats)
        for start in range(0, len(query_indices), CHUNK):
            end = start + CHUNK
            of_chunk = Columns(*(column[start:end] for column in q))
            positive, removed = masks(protocol, of_chunk, g)
            dist = distances(*feats, rescore, start, end)
            for query in zip(dist, positive, removed):
                figures.append(query_figures(*query, ap_window, people))

    row = {"trials": len(pairs)} | means(figures, len(gallery_indices))
    del row["cmc"]
    for count in ("queries", "without"):  # the same in all trials
        row[count] //= len(pairs)
    by_trial = [np.split(values, len(pairs)) for values in row["each"].values()]
    return row | {"each": [dict(zip(row["each"], trial)) for trial in zip(*by_trial)]}


# ---- features ----

def embed(run, dataset, records, asks, kind):
    """{kind: features (n d)} of records with an Ask or None each, L2-normalised, by run.model.

    run.flip: the sum of the features of an image and its mirror image, with the picture of clothes
    flipped too, as in training.
    """
    starts = range(0, len(records), run.batch)
    photos = [None] * len(starts)
    if kind not in ("text", "instruction"):
        paths = [record.path for record in records]
        photos = batches(dataset.root, paths, run.model.size, run.batch)
    title = f"{dataset.title} {dataset.task} {kind}"
    bar = progress(photos, title, total=len(starts), leave=False)

    parts = defaultdict(list)
    with inference(run.model, run.amp) as device:
        for start, images in zip(starts, bar, strict=True):
            some = asks[start:start + run.batch]
            if images is not None:
                images = normalise(images.to(device, non_blocking=True))
            new = embed_batch(run.model, dataset, images, some, kind)
            if run.flip and images is not None:
                flipped = embed_batch(run.model, dataset, images.flip(3), some, kind, flip=True)
                new = {name: feats + flipped[name] for name, feats in new.items()}
            for name, feats in new.items():
                parts[name].append(F.normalize(feats, dim=1).expand(len(some), -1))
    return {name: torch.cat(feats) for name, feats in parts.items()}


def embed_batch(model, dataset, images, asks, kind, flip=False):
    """{kind: float32 (b d)} of images (b 3 H W), normalised, or None; (1 d) if all features are
    equal.

    kind: "edit" and "fused", F and F_out of an image with its Ask, computed together; "text", a
    sentence without an image (t2i); "instruction", E_i's pooled vector of an Ask; CLOTHES, an image
    used as a picture of clothes. flip: flips pictures of clothes. All Asks have the same parts, or
    all are None. UserError for an untrained part.
    """
    refuse_untrained(model, asks[0], kind)
    words, clothes = None, None
    if kind == CLOTHES:
        clothes = as_clothes(images, model.picture_size)
    if asks[0] and asks[0].words:
        words = [ask.words for ask in asks]
    if asks[0] and asks[0].picture:
        clothes = load_all(dataset.root, [ask.picture for ask in asks], model.picture_size)
        clothes = clothes.flip(3) if flip else clothes
        clothes = normalise(clothes.to(model.neck.weight.device))
    instr = model.instruct(words, clothes)
    if kind in (CLOTHES, "instruction"):
        return {kind: instr.pooled.float()}
    if kind == "text":
        return {kind: model.embed_text(model.read_text(instr)).float()}
    out = model(images, instr)
    feats = {"edit": F.normalize(out.neck, dim=1).float()}
    if out.fused_neck is not None:
        feats["fused"] = F.normalize(out.fused_neck, dim=1).float()
    return feats


def refuse_untrained(model, ask, kind):
    """UserError if the model lacks a part that these features need."""
    needed = {
        "words": ask and ask.words,
        "pictures": kind == CLOTHES or ask and ask.picture,
        "text queries": kind == "text" or ask is None and kind in FEATURES,
        "fused": kind == "fused",
    }
    missing = [part for part in needed if needed[part] and part not in model.parts]
    if missing:
        raise UserError(
            f"the model was not trained for {' and '.join(missing)}: use a checkpoint of tasks "
            "that train it, such as --task all with descriptions and pictures of clothes"
        )


def match(run, dataset, retrieval):
    """The second stage of t2i (Supp. 5.2), {"matching": (2 q TOP)}: indices of the TOP nearest
    images of each query, and their scores.

    A score is similarity / temperature, as in the contrastive loss of Eq. 8, plus the matching
    logit of the pair; both estimate how likely the two belong together.
    """
    model = run.model
    top = min(TOP, len(retrieval.gallery))
    parts = []
    with full_precision_matmul():
        for chunk in retrieval.query_feats.split(CHUNK):
            parts.append((chunk @ retrieval.gallery_feats.T).topk(top))
    similarity = torch.cat([part.values for part in parts])
    nearest = torch.cat([part.indices for part in parts])

    with inference(model, run.amp) as device:
        paths = [record.path for record in retrieval.gallery]
        tokens = []
        for images in batches(dataset.root, paths, model.size, run.batch):
            tokens.append(model.edit(normalise(images.to(device, non_blocking=True))))
        tokens = torch.cat(tokens)

        logits = []
        bar = progress(retrieval.asks, f"{dataset.title} matching", leave=False)
        for ask, indices in zip(bar, nearest, strict=True):
            instr = model.read_text(model.instruct([ask.words]))
            no_and_yes = model.match(tokens[indices], instr)
            logits.append((no_and_yes[:, 1] - no_and_yes[:, 0]).float())
        scores = similarity / model.temperature().item() + torch.stack(logits)
    if not scores.isfinite().all():
        raise UserError(DIVERGED)
    return {"matching": torch.stack([nearest.float(), scores])}


def second_stage(run, dataset, retrieval):
    """A `stage` for `rank` that re-ranks the nearest images by the scores of `match`; the
    other images keep their order, after these."""
    records = [*retrieval.queries, *retrieval.gallery]
    asks = [*retrieval.asks, *[None] * len(retrieval.gallery)]
    matches = run.once("matching", dataset, records, asks, partial(match, run, dataset, retrieval))
    if matches.shape[:2] != (2, len(retrieval.queries)):
        raise UserError(NOT_SAVED)
    nearest, scores = matches.cpu().numpy()
    if not ((0 <= nearest) & (nearest < len(retrieval.gallery))).all():
        raise UserError(NOT_SAVED)

    def rescore(start, dist):
        for row, indices, best in zip(dist, nearest[start:].astype(int), scores[start:]):
            row[indices] = best.min() - best - 2  # at most -2: ahead of every -cosine
        return dist
    return lambda query_feats, gallery_feats: rescore


@dataclass
class Run:
    """A model, or a file of its features, and the settings of an evaluation. Features are computed
    once and kept in `known`, {kind and fingerprint: tensor}."""

    model: torch.nn.Module | None = None
    feature: str = "edit"  # F; "fused" is F_out
    flip: bool = False
    amp: str = "off"
    batch: int = 64
    protocol: str | None = None  # only the protocol of this name
    rerank: bool = False  # adds rows with k-reciprocal re-ranking
    ap_window: int | None = None  # AP of the first ranks only
    known: dict = field(default_factory=dict)
    parts: tuple = ()  # of the model; for a file of features, of the model that computed them

    def __post_init__(self):
        if self.model is not None:
            self.parts = self.model.parts
        if self.feature == "fused" and "fused" not in self.parts:
            raise UserError("--feature fused: this model was trained without E_f; drop the flag")

    def features(self, dataset, records, asks, kind=None):
        """Features (n d) of a kind, by default run.feature. For records without images these are
        text features; images without Asks only have F."""
        kind = kind or self.feature
        if records[0].path is None:
            kind = "text"
        elif asks[0] is None and kind == "fused":
            kind = "edit"
        how = dataset, records, asks
        feats = self.once(kind, *how, partial(embed, self, *how, kind))
        if len(feats) != len(records):
            raise UserError(NOT_SAVED)
        return feats

    def once(self, kind, dataset, records, asks, compute):
        """The tensor of a kind; compute() returns {kind: tensor} if it is not known yet."""
        lines = [dataset.name]
        lines += [f"{record.path} {ask}" for record, ask in zip(records, asks, strict=True)]
        content = "\n".join(lines).encode(errors="surrogateescape")
        fingerprint = hashlib.sha256(content).hexdigest()[:32]
        if f"{kind} {fingerprint}" not in self.known:
            if self.model is None:
                raise UserError(f"{dataset.title} {dataset.task} ({kind}): {NOT_SAVED}")
            for name, tensor in compute().items():
                self.known[f"{name} {fingerprint}"] = tensor
        return self.known[f"{kind} {fingerprint}"]


# ---- the rows of a table ----

@contextmanager
def left_out(name):
    """Turns a UserError inside it into a line on stderr; the program continues."""
    try:
        yield
    except UserError as error:
        print(f"left out: {name}: {error}", file=sys.stderr)


def evaluate_all(run, datasets, rows_of=None):
    """The rows of all protocols of the data sets with a test split, by evaluate_protocol or another
    function. A protocol that cannot be evaluated is left out, with a line that says why."""
    rows_of = rows_of or evaluate_protocol
    rows = []
    for dataset in datasets:
        for protocol in chosen_protocols(dataset, run.protocol):
            with left_out(f"{dataset.title} {dataset.task} {protocol.name}"):
                rows += rows_of(run, dataset, protocol)
    return rows


def evaluate_protocol(run, dataset, protocol, sentence=0, features=FEATURES):
    """A row (dict) for each feature, F and F_out, without and with each second stage.

    sentence: the index of the task's sentence; features: the keys of FEATURES to rank by.
    """
    stages = {"": None}
    if TASKS[dataset.task].text_only:
        features = ["edit"]
        stages[" + matching"] = second_stage(run, dataset, task_retrieval(run, dataset))
    if run.rerank:
        stages[" + re-ranking"] = k_reciprocal
    window = f", AP in the first {run.ap_window}" if run.ap_window else ""

    rows = []
    features = [name for name in features if name == "edit" or name in run.parts]
    for feature in features:
        retrieval = task_retrieval(run, dataset, sentence, feature)
        for name, stage in stages.items():
            row = {"task": dataset.task, "data": dataset.title}
            row |= {"protocol": protocol.name + name + window, "feature": FEATURES[feature]}
            rows.append(row | rank(protocol, retrieval, run.ap_window, stage))
    return rows


def evaluate_sentences(run, dataset, protocol):
    """Rows over all sentences of a task, if it has any: mean, standard deviation, and the best and
    worst sentence by mAP."""
    sentences = TASKS[dataset.task].sentences
    by_sentence = []
    for i in range(len(sentences)):
        by_sentence.append(evaluate_protocol(run, dataset, protocol, i, [run.feature]))
    rows = []
    for group in zip(*by_sentence, strict=True):
        mAP = np.array([row["mAP"] for row in group])
        R1 = np.array([row["R1"] for row in group])
        row = {key: value for key, value in group[0].items() if key not in OF_ONE_SENTENCE}
        row |= {"sentences": len(group)}
        row |= {"mAP": mAP.mean(), "sd": mAP.std(), "R1": R1.mean(), "R1 sd": R1.std()}
        row |= {"best": mAP.max(), "best sentence": sentences[mAP.argmax()]}
        row |= {"worst": mAP.min(), "worst sentence": sentences[mAP.argmin()]}
        rows.append(row)
    return rows


def chosen_protocols(dataset, name=None):
    """The protocols evaluated by default, or the one of that name; none without a test split."""
    if not dataset.tested:
        return []
    return [protocol for protocol in dataset.protocols
            if (protocol.name == name if name else not protocol.named)]


def queries_and_gallery(dataset):
    """Both without junk; the same list twice if the protocol divides it (LLCM)."""
    test = dataset.split("test")
    if test:
        return test, test
    queries = dataset.split("query")
    gallery = [record for record in dataset.split("gallery") if not record.junk]
    if not queries or not gallery:
        raise UserError(
            f"{dataset.root}: {len(queries)} queries, {len(gallery)} gallery images; complete its "
            "test split"
        )
    return queries, gallery


def task_retrieval(run, dataset, sentence=0, feature=None):
    """The Retrieval of a task: queries and gallery with their own instructions."""
    queries, gallery = queries_and_gallery(dataset)
    asks = [query_instruction(dataset.task, record, sentence) for record in queries]
    gallery_asks = [gallery_instruction(dataset.task, record, sentence) for record in gallery]
    return retrieval_of(run, dataset, queries, gallery, asks, gallery_asks, feature)


def retrieval_of(run, dataset, queries, gallery, asks, gallery_asks, kind=None):
    """The Retrieval of records with these Asks, by a kind of feature."""
    query_feats = run.features(dataset, queries, asks, kind)
    gallery_feats = run.features(dataset, gallery, gallery_asks, kind)
    if query_feats.shape[1:] != gallery_feats.shape[1:]:
        raise UserError(NOT_SAVED)
    return Retrieval(queries, gallery, query_feats, gallery_feats, asks)


def show(tables):
    """Prints tables {title: rows}; those without rows are skipped."""
    for title, rows in tables.items():
        if rows:
            print(f"\n{title} (percent)\n\n{format_table(rows)}")


# ---- the instruction matrix: does the model follow the instruction? ----

def matrix_of_all(run, datasets):
    """The rows of the instruction matrices of all data sets; left out as in evaluate_all."""
    rows = []
    for dataset in datasets:
        with left_out(f"{dataset.title} {dataset.task} instruction matrix"):
            rows += instruction_matrix(run, dataset)
    return rows


def instruction_matrix(run, dataset):
    """Rows: the same queries and gallery with right and wrong instructions, if the data set has
    clothes labels and its task has targets.

    cc: the trad and the cc sentence, for targets in the same clothes and in other clothes. Tasks
    with one instruction per image, strict protocol: the wanted, the query's own and a random
    instruction, and `shortcut_controls`.
    """
    targets = TASKS[dataset.task].targets
    if not targets or not dataset.tested:
        return []
    _, gallery = queries_and_gallery(dataset)
    if not any(record.clothes for record in gallery):
        return []
    variants = instruction_variants(run, dataset)
    first = next(iter(variants.values()))
    variants |= shortcut_controls(run, dataset, first)
    rows = []
    for target in targets:
        protocol = TARGETS[target]
        if not any(answerable(protocol, first.queries, gallery)):
            continue  # no query has such a target
        for name, retrieval in variants.items():
            row = {"task": dataset.task, "data": dataset.title, "target": target}
            row |= {"protocol": protocol.name, "instruction": name}
            rows.append(row | rank(protocol, retrieval))
    return rows


def instruction_variants(run, dataset):
    """{name: Retrieval} of the same queries and gallery with right and wrong instructions, the
    right one first.

    With sentences: that of the task and the opposite one, for queries and gallery. Otherwise those
    of `wrong_asks`, while gallery images keep theirs. Only the right one for t2i, if no query's own
    clothes are known, or if all gallery images have the same instruction (ITCPR).
    """
    row = TASKS[dataset.task]
    queries, gallery = queries_and_gallery(dataset)
    variants = {}
    if row.sentences:
        for task in filter(None, (dataset.task, row.opposite)):
            sentence = TASKS[task].sentences[0]
            both = [[Ask(sentence)] * len(records) for records in (queries, gallery)]
            variants[sentence] = retrieval_of(run, dataset, queries, gallery, *both)
    elif not row.text_only:
        gallery_asks = [gallery_instruction(dataset.task, record) for record in gallery]
        asks_by_name = {}
        if len(set(gallery_asks)) > 1:
            queries, asks_by_name = wrong_asks(dataset, queries, gallery)
        for name, asks in asks_by_name.items():
            variants[name] = retrieval_of(run, dataset, queries, gallery, asks, gallery_asks)
    return variants or {"wanted": task_retrieval(run, dataset)}


def wrong_asks(dataset, queries, gallery, seed=0):
    """(queries, {"wanted", "own", "random": an Ask for each of these}).

    own: the clothes in the query image or, if these are unknown, those in a gallery image of the
    person that are not the wanted ones; a query without either is left out.
    random: the instruction of another person's query. For sentence and picture together, "random
    words" and "random picture" replace only one of them.
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
            f"{dataset.root}: all queries show one person; a random instruction needs a second"
        )

    kept = []
    asks = defaultdict(list)
    for query in queries:
        own = own_instruction(dataset.task, query, images_of[query.pid])
        if own:
            stranger = rng.choice([pid for pid in queries_of if pid != query.pid])
            other = query_instruction(dataset.task, rng.choice(queries_of[stranger]))
            wanted = query_instruction(dataset.task, query)
            kept.append(query)
            asks["wanted"].append(wanted)
            asks["own"].append(own)
            asks["random"].append(other)
            if wanted.words and wanted.picture:
                asks["random words"].append(Ask(other.words, wanted.picture))
                asks["random picture"].append(Ask(wanted.words, other.picture))
    return kept, asks


def own_instruction(task, query, images):
    """The Ask for the clothes in the query, else in another of the images; None if unknown."""
    own = gallery_instruction(task, query)
    if own != query_instruction(task, query):
        return own
    for record in images:
        if record.clothes != query.target_clothes:
            return gallery_instruction(task, record)
    return None


def shortcut_controls(run, dataset, wanted, seed=0):
    """Does the model use both photo and instruction, or a shortcut? {name: Retrieval}, for tasks
    with one instruction per image. wanted: the Retrieval with the right instructions.

    - a stranger's photo: the right instruction with the photo of another person;
    - without a photo: cosines of E_i's vectors of the query's and the gallery images' instructions,
      unless the latter are all equal (ITCPR);
    - gallery without instructions: by the rule of reid.uninstructed, if the model has the parts
      that it needs.
    """
    row = TASKS[dataset.task]
    if row.sentences or row.text_only:
        return {}
    queries, gallery, _, _, asks = wanted
    gallery_asks = [gallery_instruction(dataset.task, record) for record in gallery]
    rng = random.Random(seed)
    strangers = []
    for query in queries:
        stranger = rng.choice([record for record in queries if record.pid != query.pid])
        strangers.append(replace(query, path=stranger.path))
    embedded = partial(retrieval_of, run, dataset)
    controls = {"a stranger's photo": embedded(strangers, gallery, asks, gallery_asks)}
    if len(set(gallery_asks)) > 1:
        controls["without a photo"] = embedded(queries, gallery, asks, gallery_asks, "instruction")
    needed = {"words": True, "text queries": row.described, "pictures": row.pictures}
    if all(part in run.parts for part in needed if needed[part]):
        controls["gallery without instructions"] = bare_gallery(run, dataset, wanted)
    return {f"wanted, {name}": control for name, control in controls.items()}


def bare_gallery(run, dataset, wanted):
    """The Retrieval with a gallery without instructions, by the rule of reid.uninstructed."""
    queries, gallery, _, _, asks = wanted
    row = TASKS[dataset.task]
    parts = []  # of an instruction: share of the score, Asks, kind of feature, kind for photos
    if row.described:
        words = [Ask(ask.words) for ask in asks]
        parts.append((SHARES[UNINSTRUCTED], words, "text", "edit"))
    if row.pictures:
        clothes = [Ask(picture=ask.picture) for ask in asks]
        parts.append((SHARES[CLOTHES], clothes, "instruction", CLOTHES))

    no_asks = [None] * len(gallery)
    person = [Ask(PERSON_SENTENCE)]
    query_parts = [(w, run.features(dataset, queries, part, kind)) for w, part, kind, _ in parts]
    gallery_parts = [(w, run.features(dataset, gallery, no_asks, kind)) for w, _, _, kind in parts]
    query_feats = run.features(dataset, queries, person * len(queries))
    gallery_feats = run.features(dataset, gallery, person * len(gallery))
    return Retrieval(
        queries, gallery, joined(query_feats, query_parts), joined(gallery_feats, gallery_parts))


# ---- plots ----

def draw(run, datasets):
    """{name: image}: the gates and, for each data set with a test split, rankings with right and
    wrong instructions and the attention to each word of the first query's instruction."""
    model = run.model
    drawn = {"gates": plots.gates(model)} if model.editing else {}
    for dataset in datasets:
        name = f"{dataset.name}_{dataset.task}".replace(":", "-")
        found = {}
        with left_out(f"{dataset.title} {dataset.task} plots"):
            found = rankings(run, dataset)
        for protocol, rows in found.items():
            if not rows:  # no query has a hit
                continue
            ending = re.sub("[^A-Za-z0-9]+", "-", protocol)
            drawn[f"ranking_{name}_{ending}"] = plots.ranking_list(rows)
            query = rows[0].query
            ask = rows[0].ask
            if model.editing and query.path and not ask.picture:  # a sentence edits a photo
                with inference(model, run.amp) as device:
                    image = load_image(dataset.root / query.path, model.size)[None].to(device)
                    words = plots.word_attention(model, normalise(image), ask.words)
                drawn[f"attention_{name}"] = words
    return drawn


def rankings(run, dataset):
    """{name of a protocol: RankRows}: other clothes if the task has that target, both directions of
    a cross-modality protocol, else the first protocol; t2i: before and after the second stage."""
    if not dataset.tested:
        return {}
    variants = instruction_variants(run, dataset)
    first = next(iter(variants.values()))
    protocols = [each for each in chosen_protocols(dataset) if each.queries]  # directions
    protocols = protocols or dataset.protocols[:1]
    has_target = "other clothes" in TASKS[dataset.task].targets
    if has_target and any(answerable(OTHER_CLOTHES, first.queries, first.gallery)):
        protocols = [OTHER_CLOTHES]

    lists = {}
    for name, (_, _, *feats, asks) in variants.items():
        lists[name] = asks, partial(distances, *feats, None)
    if TASKS[dataset.task].text_only:
        rescore = second_stage(run, dataset, first)(*feats)
        lists["wanted, after matching"] = asks, partial(distances, *feats, rescore)
    return {protocol.name: plots.rank_rows(dataset, protocol, *first[:2], lists)
            for protocol in protocols}


# ---- command line ----

@dataclass
class Config:
    """Evaluate a checkpoint. Flags whose default is None are taken from the checkpoint.

    python evaluate.py --checkpoint runs/all/last.pt --task cc
    python evaluate.py --checkpoint runs/a/last.pt --compare runs/b/last.pt
    """

    checkpoint: str = cli.option(
        None, "a last.pt of train.py, or a file of --save-features; None = runs/all/last.pt or, if "
        "that does not exist, the bundled model of drawn people")
    task: str = cli.option(
        None, "one task, or all = every task for which there is data", ("all", *TASKS))
    data: str = cli.option(None, "a data set, or a folder of data sets")
    instructions: str = cli.option(
        "one", "the first sentence of trad, cc and vi, or all 20 in turn", ("one", "all"))
    protocol: str = cli.option(
        None, "only the protocol of this name; vis-to-ir-deen (LLCM) is evaluated only if named")
    feature: str = cli.option(
        None, "the feature to rank by: F, the edited CLS token (edit), or F_out (fused)",
        tuple(FEATURES))
    flip: bool = cli.option(False, "add the features of each image's mirror image")
    ap_window: int = cli.option(
        None, "AP of the first N ranks, as in the released code (500); None = all, the standard",
        least=1)
    rerank: bool = cli.option(False, "add rows with k-reciprocal re-ranking (Zhong et al. 2017)")
    compare: str = cli.option(
        None, "another checkpoint or features file: print differences with 95 %% intervals")
    save_features: str = cli.option(
        None, "write the features to this .safetensors, which --checkpoint can read")
    device: str = cli.option("auto", "auto = a GPU if there is one, else the CPU")
    batch: int = cli.option(64, "images per batch", least=1, most=2**16)


def main(config):
    cli.check_output("--save-features", config.save_features, ".safetensors")
    device = pick_device(config.device)
    allow_tf32(device)
    checkpoint = chosen_checkpoint(config.checkpoint)
    run, trained = open_run(checkpoint, config, device)
    data = config.data or trained["data"]
    task = config.task or trained["task"]
    if checkpoint == TRAINED:  # its drawn data may be absent; the data of a run is never redrawn
        import toydata

        toydata.provide(data)
    datasets = tested_datasets(data, task, config.protocol)

    tables = {"Results": evaluate_all(run, datasets)}
    if not tables["Results"]:
        raise UserError(f"{data}: nothing could be ranked, for the reasons above")
    if config.instructions == "all":
        tables[SENTENCES] = evaluate_all(run, datasets, evaluate_sentences)
    tables[MATRIX] = matrix_of_all(run, datasets)
    if config.compare:
        title = (
            f"{checkpoint} (first) and {config.compare} (second); low, high: 95 % interval "
            "of the difference"
        )
        other, _ = open_run(config.compare, config, device)
        tables[title] = comparison(tables["Results"], evaluate_all(other, datasets))
    show(tables)
    if config.save_features:
        notes = dict(data=str(data), task=task, flip=str(run.flip), parts=",".join(run.parts))
        save_features(config.save_features, run.known, notes)
        print(f"wrote {config.save_features}")


def chosen_checkpoint(path):
    """The path or, if it is None, LAST or, if that does not exist, TRAINED."""
    if path is not None:
        return path
    if LAST.exists():
        return LAST
    print(f"no {LAST} yet: using the bundled model of drawn people, {TRAINED}", file=sys.stderr)
    return TRAINED


def open_run(path, config, device):
    """(Run, training config) of a checkpoint, or (Run, notes) of a features file."""
    how = {name: getattr(config, name) for name in ("batch", "protocol", "rerank", "ap_window")}
    if Path(path).suffix != ".safetensors":
        model, trained = load_model(path)
        feature = config.feature or trained["feature"]
        return Run(model.to(device), feature, config.flip, trained["amp"], **how), trained

    known, notes = load_features(path, {"data", "task", "flip", "parts"}, device)
    with checkpoints.user_error_on(path):
        asked_tasks(notes["task"])
    flip = notes["flip"] == "True"
    if config.flip and not flip:
        raise UserError(f"--flip: {path} was saved without it; drop the flag or save it again")
    parts = tuple(notes["parts"].split(","))
    return Run(None, config.feature or "edit", flip, known=known, parts=parts, **how), notes


def load_model(path, text=None):
    """(InstructReID in evaluation mode, training config as a dict) of a checkpoint; text: as in
    `rebuild`."""
    state = checkpoints.load(path, checkpoints.MODEL | {"config": TRAINED_WITH})
    return rebuild(state, path, text).eval(), state["config"]


def rebuild(state, path, text=None):
    """The model of a checkpoint with the content `state`, the inverse of `parts_of`. text: a
    TextEncoder to use instead of the packaged one."""
    shape, classes, parts = (state.get(name) for name in ("shape", "classes", "parts"))

    def build():
        kept = state["text"]
        encoder = text
        if text is None:
            tower = texts.from_json(kept) if kept else packaged
            encoder = texts.TextEncoder(*tower, state["pooling"], state["config"]["train_text"])
        cross = None
        if state["cross"]:
            config = texts.bert_config(json.loads(state["cross"]))
            cross = texts.CrossEncoder(config, shape["dim"])
        return InstructReID(shape, classes, parts, text=encoder, cross=cross)

    with checkpoints.user_error_on(path):
        packaged = None if text or state["text"] else texts.embedded_text_model()
        if max(shape[name] for name in shape if name.endswith("depth")) > texts.MOST_LAYERS:
            raise ValueError(f"more than {texts.MOST_LAYERS} layers")
        return checkpoints.restored_model(build, state["model"], path)


def parts_of(model, classes):
    """A model as a dict of tensors and basic Python values, for a checkpoint."""
    text = model.encoder.text
    is_embedded = getattr(text.bert, "embedded", False)
    return {
        "classes": classes,
        "shape": model.shape,
        "parts": list(model.parts),
        "text": None if is_embedded else texts.to_json(text.bert, text.tokenizer),
        "pooling": text.pooling,
        "cross": model.cross and model.cross.layers.config.to_json_string(),
        "model": checkpoints.model_state(model),
    }


def tested_datasets(path, task, protocol=None):
    """The data sets at `path` with a test split and, if `protocol` is given, with that protocol.
    UserError if there are none."""
    datasets = open_all(path, asked_tasks(task))
    first = datasets[0]
    tested = [dataset for dataset in datasets if dataset.tested]
    if not tested:
        raise UserError(f"{first.root}: {first.title} has no test split; give another --data")
    chosen = [dataset for dataset in tested if chosen_protocols(dataset, protocol)]
    if not chosen:
        names = ", ".join(each.name for each in tested[0].protocols)
        raise UserError(
            f"{tested[0].title} has no protocol '{protocol}' for {tested[0].task}; it has {names}")
    return chosen


if __name__ == "__main__":
    cli.run(main, Config)
