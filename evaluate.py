"""Evaluation, from top to bottom: exact metrics, features under a protocol, the rows of a table,
the instruction matrix, the command.

`python evaluate.py --checkpoint runs/all/last.pt` prints a row per data set, task and protocol.
Figures are fractions in the code and percent on the screen.
Letters in shapes: q queries, g gallery images, d feature width.
"""

import random
import sys
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import reid  # noqa: F401  before torch: how its threads wait
import numpy as np
import torch.nn.functional as F

import dolls
from instructions import PERSON_SENTENCE, TASKS, Ask, gallery_instruction, query_instruction
from losses import all_bits
from reid import checkpoints, cli, pictures
from reid.cli import UserError
from reid.compare import differences
from reid.device import allow_tf32, pick_device
from reid.features import (
    Features, evaluating, load_features, matched_first, save_features
)
from reid.folders import open_all
from reid.images import load_image, normalise
from reid.layouts import protocols_of
from reid.uninstructed import CLOTHES, SHARES, UNINSTRUCTED, joined
from reid.protocols import OTHER_CLOTHES, TARGETS, Columns, columns, masks, trials
from reid.rerank import k_reciprocal


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
    """(expected mAP, expected rank-1) of a random order; exact. hits, ranked (q,): QueryFigures.

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


# ---- features under a protocol ----

@all_bits()
def evaluate_features(
    query_feats, gallery_feats, q, g, protocol, chunk=256, ap_window=None, stage=None, device="cpu"
):
    """Ranks by cosine, `chunk` queries at a time: nothing of size (q g) ever exists.

    query_feats (q d), gallery_feats (g d) tensors; q, g: `columns` of both sides. The product runs
    on `device`, the counting on the CPU.
    stage: a second look, None or a function of both sides' normalised features that gives
    rescore(start, dist) -> (c g): new distances of the queries start, start + 1, ... from -cosine.
    Returns what ranking_metrics does, gallery, without (queries without a hit), "chance mAP",
    "chance R1", and "each": mAP and R1 of each query alone, (q), NaN without a hit.
    UserError for features that are not finite or do not fit together.
    """
    check_features(query_feats, gallery_feats)
    query_feats = F.normalize(query_feats.to(device).float(), dim=1)
    gallery_feats = F.normalize(gallery_feats.to(device).float(), dim=1)
    rescore = stage(query_feats, gallery_feats) if stage else None
    people = g.pid if protocol.people else None

    rows = []
    for start in range(0, len(query_feats), chunk):
        dist = -query_feats[start:start + chunk] @ gallery_feats.T
        dist = dist.cpu().numpy()
        if rescore:
            dist = rescore(start, dist)
        for i, row in enumerate(dist, start):
            positive, removed = masks(protocol, one_query(q, i), g)
            rows.append(query_figures(row, positive, removed, ap_window, people))

    figures = summary(rows, len(gallery_feats))
    ap, _, first_rank, hits, ranked = np.array(rows).T
    figures["gallery"] = len(gallery_feats)
    figures["without"] = len(query_feats) - figures["queries"]
    figures["chance mAP"], figures["chance R1"] = chance(hits, ranked.astype(int))
    figures["each"] = {"mAP": ap, "R1": np.where(np.isnan(first_rank), np.nan, first_rank == 1)}
    return figures


def one_query(q, i):
    """The columns of query i, (1) each."""
    return Columns(*(column[i] for column in q))


def check_features(query_feats, gallery_feats):
    """UserError unless they can be ranked."""
    if not len(query_feats) or not len(gallery_feats):
        raise UserError(
            f"{len(query_feats)} queries and {len(gallery_feats)} gallery images: nothing to rank; "
            "check both lists or folders"
        )
    query_width = query_feats.shape[1]
    gallery_width = gallery_feats.shape[1]
    if query_width != gallery_width:
        raise UserError(
            f"query features are {query_width} wide, gallery features {gallery_width}: they need "
            "one model"
        )
    for side, feats in (("query", query_feats), ("gallery", gallery_feats)):
        broken = len(feats) - int(feats.sum(1).isfinite().sum())
        if broken:
            raise UserError(
                f"{broken} of {len(feats)} {side} features hold NaN or infinity: training has "
                "diverged; take an earlier checkpoint or a lower --lr"
            )


def rank_trials(
    protocol, queries, gallery, query_feats, gallery_feats, ap_window=None, stage=None, device="cpu"
):
    """What evaluate_features returns, of each trial of the protocol. queries, gallery: Records."""
    results = []
    for query_indices, gallery_indices in trials(protocol, queries, gallery):
        trial_queries = [queries[i] for i in query_indices]
        trial_gallery = [gallery[i] for i in gallery_indices]
        q, g = columns(trial_queries, trial_gallery)
        results.append(evaluate_features(
            query_feats[query_indices],
            gallery_feats[gallery_indices],
            q,
            g,
            protocol,
            ap_window=ap_window,
            stage=stage,
            device=device,
        ))
    return results


def average(results, each=False):
    """The figures of a row: the counts of the first trial, the means over all trials.

    each: also "each", what evaluate_features says of every query, of each trial.
    """
    def mean_of(key):
        return float(np.mean([result[key] for result in results]))

    row = {"trials": len(results)}
    for key in ("queries", "without", "gallery"):
        row[key] = results[0][key]
    row["mAP"] = mean_of("mAP")
    for k in (1, 5, 10):
        rank_k = [result["cmc"][min(k, result["gallery"]) - 1] for result in results]
        row[f"R{k}"] = float(np.mean(rank_k))
    for key in ("mINP", "chance mAP", "chance R1"):
        row[key] = mean_of(key)
    if each:
        row["each"] = [result["each"] for result in results]
    return row


# ---- the rows of a table ----

class Ranking(NamedTuple):
    """How a data set is ranked."""

    protocol: str | None = None  # only the one of this name
    sentence: int = 0  # which of the sentences of the task
    two_stage: bool = True  # t2i: a second row, the nearest re-scored by matching
    rerank: bool = False  # a second row by k-reciprocal neighbours
    ap_window: int | None = None  # AP in the first ranks only


def evaluate_all(features, datasets, ranking=Ranking(), each=False):
    """The rows of the data sets that have a test split; what cannot be ranked is said and left
    out. each: as in `average`."""
    rows = []
    for dataset in datasets:
        if not dataset.tested:
            continue
        for protocol in chosen_protocols(dataset, ranking.protocol):
            alone = ranking._replace(protocol=protocol.name)
            name = f"{dataset.title} {dataset.task} {protocol.name}"
            rows += rows_or_reason(name, evaluate_task, features, dataset, alone, each)
    return rows


def rows_or_reason(name, rows_of, *args):
    """The rows that a function returns; none, and its reason on the screen, if it cannot."""
    try:
        return rows_of(*args)
    except UserError as error:
        print(f"left out: {name}: {error}", file=sys.stderr)
        return []


def evaluate_task(features, dataset, ranking=Ranking(), each=False):
    """A row (dict) for each protocol of one data set under its task, and for each second stage.

    each: as in `average`.
    """
    chosen = chosen_protocols(dataset, ranking.protocol)
    queries, gallery = sides(dataset)
    [feats] = side_features(features, dataset, queries, gallery, (ranking.sentence,))
    stages = second_stages(features, dataset, queries, gallery, *feats, ranking)
    window = f", AP in the first {ranking.ap_window}" if ranking.ap_window else ""

    rows = []
    for protocol in chosen:
        for name, stage in stages.items():
            results = rank_trials(
                protocol, queries, gallery, *feats, ranking.ap_window, stage, features.device
            )
            row = {"task": dataset.task, "data": dataset.title}
            row["protocol"] = protocol.name + name + window
            rows.append(row | average(results, each))
    return rows


def chosen_protocols(dataset, name=None):
    """Those that are evaluated by default, or the one of that name. UserError if there is none."""
    known = protocols_of(dataset)
    if name is None:
        return [protocol for protocol in known if not protocol.named]
    chosen = [protocol for protocol in known if protocol.name == name]
    if not chosen:
        names = ", ".join(names_of(known))
        raise UserError(
            f"{dataset.title} has no protocol '{name}' for {dataset.task}; it has {names}"
        )
    return chosen


def names_of(protocols):
    return [protocol.name for protocol in protocols]


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


def side_features(features, dataset, queries, gallery, sentences=(0,)):
    """(query_feats, gallery_feats) under each of the sentences; a task without sentences has but
    one instruction per record."""
    spoken = TASKS[dataset.task].sentences
    wanted = {}
    own = {}
    for i in sentences:
        name = spoken[i] if spoken else "wanted"
        wanted[name] = [query_instruction(dataset.task, record, i) for record in queries]
        name = spoken[i] if spoken else "own"
        own[name] = [gallery_instruction(dataset.task, record, i) for record in gallery]

    if gallery is queries:
        feats = features(dataset, "test", queries, wanted)
        return list(zip(feats, feats))
    query_feats = features(dataset, "query", queries, wanted)
    gallery_feats = features(dataset, "gallery", gallery, own)
    return list(zip(query_feats, gallery_feats))


def second_stages(features, dataset, queries, gallery, query_feats, gallery_feats, ranking):
    """{what is added to the protocol's name: a `stage` of evaluate_features}, first none."""
    stages = {"": None}
    if TASKS[dataset.task].text_only and ranking.two_stage:
        captions = [query_instruction(dataset.task, record) for record in queries]
        nearest, scores = features.matches(dataset, gallery, captions, query_feats, gallery_feats)
        stages[" + matching"] = lambda *_: matched_first(nearest, scores)
    if ranking.rerank:
        stages[" + re-ranking"] = k_reciprocal
    return stages


def evaluate_sentences(features, dataset, ranking=Ranking()):
    """Rows over all sentences of a task: mean, standard deviation, best and worst one by mAP."""
    sentences = TASKS[dataset.task].sentences
    everyone = range(len(sentences))
    side_features(features, dataset, *sides(dataset), everyone)  # every image is read once
    by_sentence = [
        evaluate_task(features, dataset, ranking._replace(sentence=i)) for i in everyone
    ]
    heading = ("task", "data", "protocol", "trials", "queries", "without", "gallery",
               "chance mAP", "chance R1")
    rows = []
    for alike in zip(*by_sentence):
        mAP = np.array([row["mAP"] for row in alike])
        R1 = np.array([row["R1"] for row in alike])
        row = {key: alike[0][key] for key in heading}
        row |= {"sentences": len(alike)}
        row |= {"mAP": mAP.mean(), "sd": mAP.std(), "R1": R1.mean(), "R1 sd": R1.std()}
        row |= {"best": mAP.max(), "best sentence": sentences[mAP.argmax()]}
        row |= {"worst": mAP.min(), "worst sentence": sentences[mAP.argmin()]}
        rows.append(row)
    return rows


def compare(first, second, dataset, ranking=Ranking()):
    """Rows: mAP and R1 of two runs on the same queries, second - first and its 95 % interval."""
    first_rows = evaluate_task(first, dataset, ranking, each=True)
    second_rows = evaluate_task(second, dataset, ranking, each=True)
    rows = []
    for ours, theirs in zip(first_rows, second_rows):
        heading = {key: ours[key] for key in ("task", "data", "protocol")}
        rows += [heading | row for row in differences(ours["each"], theirs["each"])]
    return rows


# ---- the instruction matrix: does the model listen? ----

def instruction_matrix(features, datasets, each=False):
    """Rows: the same queries and gallery under right and wrong instructions, for every data set
    that knows clothes and every task that has targets in them.

    cc: the trad and the cc sentence against targets in the same and in other clothes. ctcc and li,
    strict protocol: the wanted, the query's own and a random instruction, and what a sceptic asks.
    each: as in `average`.
    """
    rows = []
    for dataset in datasets:
        targets = TASKS[dataset.task].targets
        if not targets or not dataset.tested:
            continue
        queries, gallery = sides(dataset)
        if not any(record.clothes for record in gallery):
            continue
        queries, asks = variants(features, dataset, queries, gallery)
        asks |= doubts(features, dataset, queries, gallery)
        for target in targets:
            protocol = TARGETS[target]
            if not any(answerable(protocol, queries, gallery)):  # nobody is seen twice in these
                continue
            for name, (_, query_feats, gallery_feats) in asks.items():
                results = rank_trials(
                    protocol, queries, gallery, query_feats, gallery_feats, device=features.device
                )
                row = {"task": dataset.task, "data": dataset.title, "target": target}
                row |= {"protocol": protocol.name, "instruction": name}
                rows.append(row | average(results, each))
    return rows


def variants(features, dataset, queries, gallery):
    """Queries under right and wrong instructions, the right one first:
    (queries, {name: (instructions, query_feats, gallery_feats)}).

    With sentences: the task's and the opposite one, on both sides. ctcc and li: wanted, own and
    random, while gallery images keep their own. t2i: the caption alone.
    """
    if TASKS[dataset.task].sentences:
        return queries, spoken_variants(features, dataset, queries, gallery)

    [(query_feats, gallery_feats)] = side_features(features, dataset, queries, gallery)
    wanted = [query_instruction(dataset.task, record) for record in queries]
    if TASKS[dataset.task].text_only:
        return queries, {"wanted": (wanted, query_feats, gallery_feats)}
    kept, wrong = wrong_instructions(dataset, queries, gallery)
    if not kept:
        return queries, {"wanted": (wanted, query_feats, gallery_feats)}

    queries = [queries[i] for i in kept]
    asks = {"wanted": ([wanted[i] for i in kept], query_feats[kept], gallery_feats)}
    wrong_feats = features(dataset, "query", queries, wrong)
    for (name, instructions), feats in zip(wrong.items(), wrong_feats):
        asks[name] = (instructions, feats, gallery_feats)
    return queries, asks


def spoken_variants(features, dataset, queries, gallery):
    """{sentence: (instructions, query_feats, gallery_feats)} of the task's and the opposite one."""
    tasks = [dataset.task, TASKS[dataset.task].opposite]
    sentences = [TASKS[task].sentences[0] for task in tasks if task]

    def under_each(side, records):
        asks = {sentence: [sentence] * len(records) for sentence in sentences}
        return features(dataset, side, records, asks)

    same_side = gallery is queries
    query_feats = under_each("test" if same_side else "query", queries)
    gallery_feats = query_feats if same_side else under_each("gallery", gallery)
    asks = {}
    for sentence, *feats in zip(sentences, query_feats, gallery_feats):
        asks[sentence] = ([sentence] * len(queries), *feats)
    return asks


def doubts(features, dataset, queries, gallery):
    """What a sceptic asks of ctcc and li: {name: (instructions, query_feats, gallery_feats)}, as in
    `variants`; nothing for other tasks.

    - Does the person count? The right instruction with the photo of a stranger.
    - Is the photo needed? The instruction alone: E_i's feature of what the query wants against that
      of what the gallery image carries.
    - Does it take a gallery with instructions? One that carries nothing, by the rule of
      reid.uninstructed.
    """
    row = TASKS[dataset.task]
    if row.sentences or row.text_only:
        return {}
    wanted = [query_instruction(dataset.task, record) for record in queries]
    carried = [gallery_instruction(dataset.task, record) for record in gallery]
    [own_feats] = features(dataset, "gallery", gallery, {"own": carried})

    strangers = []
    for query, i in zip(queries, other_people(queries)):
        strangers.append(replace(query, path=queries[i].path))
    asks = {"wanted, a stranger's photo": wanted}
    [stranger_feats] = features(dataset, "query", strangers, asks)
    alone = (
        features.instructions(dataset, "query", queries, wanted),
        features.instructions(dataset, "gallery", gallery, carried),
    )

    view, *parts = plain_parts(features, dataset, queries, gallery)
    plain = [joined(person, instruction, SHARES[view]) for person, instruction in parts]
    return {
        "wanted, a stranger's photo": (wanted, stranger_feats, own_feats),
        "wanted, without a photo": (wanted, *alone),
        "wanted, plain gallery": (wanted, *plain),
    }


def plain_parts(features, dataset, queries, gallery):
    """What the rule of reid.uninstructed compares: the view of the gallery photos, and (person,
    instruction) of the queries and of the gallery, (n d) and (n k)."""
    task = dataset.task
    view = CLOTHES if TASKS[task].pictures else UNINSTRUCTED
    wanted = [query_instruction(task, record) for record in queries]
    [person] = features.views(dataset, "query", queries, (PERSON_SENTENCE,))
    asked = features.instructions(dataset, "query", queries, wanted, view)
    return view, (person, asked), features.views(dataset, "gallery", gallery, (PERSON_SENTENCE, view))


def other_people(queries, seed=0):
    """For each query the index of one of another person."""
    rng = random.Random(seed)
    chosen = []
    for query in queries:
        strangers = [i for i, record in enumerate(queries) if record.pid != query.pid]
        chosen.append(rng.choice(strangers))
    return chosen


def wrong_instructions(dataset, queries, gallery, seed=0):
    """ctcc and li: (indices of queries, {"own", "random": a wrong instruction for each of these}).

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


def answerable(protocol, queries, gallery):
    """Yields for each query whether it has a hit."""
    q, g = columns(queries, gallery)
    for i in range(len(queries)):
        positive, removed = masks(protocol, one_query(q, i), g)
        yield bool((positive & ~removed).any())


# ---- pictures ----

def rank_rows(features, dataset, people=2):
    """RankRows of `people` queries under right and wrong instructions; the queries are spread
    evenly over those with a hit, not picked by result."""
    queries, gallery = sides(dataset)
    queries, asks = variants(features, dataset, queries, gallery)
    protocol = pictured_protocol(dataset, queries, gallery)
    asking = [i for i, record in enumerate(queries) if protocol.is_query(record)]
    shown = [i for i, record in enumerate(gallery) if protocol.in_gallery(record)]
    ranked = [gallery[i] for i in shown]
    has_hit = answerable(protocol, [queries[i] for i in asking], ranked)
    asking = [i for i, hit in zip(asking, has_hit) if hit]

    rows = []
    for place in np.linspace(0, len(asking) - 1, min(people, len(asking))).astype(int):
        i = asking[place]
        positive, removed = masks(protocol, *columns([queries[i]], ranked))
        verdicts = np.where(positive[0], pictures.HIT, pictures.MISS)
        verdicts = np.where(removed[0], pictures.REMOVED, verdicts)
        for name, (instructions, query_feats, gallery_feats) in asks.items():
            similarity = gallery_feats[shown] @ query_feats[i]
            order = np.argsort(-similarity.numpy(), kind="stable")
            order = pictures.top_of(order, verdicts)
            ranking = [(ranked[j], verdicts[j]) for j in order]
            ask = Ask(instructions[i])
            if TASKS[dataset.task].pictures:
                ask = Ask(picture=instructions[i])
            row = pictures.RankRow(dataset, queries[i], name, ask, ranking)
            rows.append(row)
    return rows


def pictured_protocol(dataset, queries, gallery):
    """Other clothes, where a task looks for them and somebody is seen in them, else the default."""
    looks_for_others = "other clothes" in TASKS[dataset.task].targets
    if looks_for_others and any(answerable(OTHER_CLOTHES, queries, gallery)):
        return OTHER_CLOTHES
    return protocols_of(dataset)[0]


def draw(features, datasets, folder):
    """The gates, and for each data set its ranking picture and the instruction attention of the
    first query there."""
    features.need_model("pictures of gates and attention")
    model = features.model
    drawn = {}
    if model.editing:
        drawn["gates"] = pictures.gates(model)
    for dataset in datasets:
        rows = rank_rows(features, dataset)
        if not rows:  # no query has a hit
            continue
        name = f"{dataset.name}_{dataset.task}".replace(":", "-")
        drawn[f"ranking_{name}"] = pictures.ranking_list(rows)
        task = TASKS[dataset.task]
        if model.editing and not task.pictures and not task.text_only:  # words edit an image
            with evaluating(model, features.amp) as device:
                image = load_image(dataset.root / rows[0].query.path, model.size)
                image = normalise(image[None].to(device))
                words = pictures.word_attention(model, image, rows[0].ask.words)
            drawn[f"attention_{name}"] = words
    for name, picture in drawn.items():
        write_picture(picture, folder / f"{name}.png")


def write_picture(picture, path):
    pictures.save(picture, path)
    print(f"wrote {path}")


# ---- command line ----

@dataclass
class Config:
    """Evaluate a checkpoint. Flags that default to None follow the checkpoint.

    python evaluate.py --checkpoint runs/all/last.pt --pictures
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
    rank_list: str = cli.option(None, "draw the rankings of a few queries into this .png")
    pictures: bool = cli.option(
        False, "draw rankings, gates and instruction attention into the checkpoint's folder")
    device: str = cli.option("auto", "auto takes CUDA if it is there")
    batch: int = cli.option(64, "images per batch", least=1)


def main(config):
    check_flags(config)
    device = pick_device(config.device)
    allow_tf32(device)
    checkpoint = checkpoints.chosen(config.checkpoint)
    features, trained = open_run(checkpoint, config, device)
    for flag, wanted in (("feature", config.feature), ("flip", config.flip)):
        if wanted and wanted != getattr(features, flag):
            raise UserError(
                f"--{flag}: {checkpoint} holds other features; drop it, or save them again "
                "with it"
            )
    data = config.data or trained["data"]
    dolls.provide(data)
    task = config.task or trained["task"]
    datasets = tested_datasets(data, task, config.protocol)
    ranking = Ranking(config.protocol, rerank=config.rerank, ap_window=config.ap_window)

    rows = []
    spread = []
    for dataset in datasets:
        if config.instructions == "all" and TASKS[dataset.task].sentences:
            spread += evaluate_sentences(features, dataset, ranking)
        else:
            rows += evaluate_task(features, dataset, ranking)
    tables = {
        "Results": rows,
        "All 20 sentences": spread,
        "Instruction matrix: same queries, same gallery": instruction_matrix(features, datasets),
    }
    if config.compare:
        other, _ = open_run(config.compare, config, device)
        title = (
            f"{checkpoint} (first) and {config.compare} (second); low, high: 95 % interval "
            "of the difference"
        )
        tables[title] = []
        for dataset in datasets:
            tables[title] += compare(features, other, dataset, ranking)
    for title, rows in tables.items():
        if rows:
            print(f"{title} (percent)\n\n{format_table(rows)}\n")

    if config.save_features:
        save_features(config.save_features, features, data=str(data), task=task)
        print(f"wrote {config.save_features}")
    if config.rank_list:
        lists = [rank_rows(features, dataset) for dataset in datasets]
        drawn = [pictures.ranking_list(rows) for rows in lists if rows]  # none: no query has a hit
        write_picture(pictures.stack(drawn), config.rank_list)
    if config.pictures:
        folder = Path(checkpoint).parent
        if checkpoint == str(checkpoints.DRAWN):
            folder = Path("runs")  # and not into the code
            folder.mkdir(exist_ok=True)
        draw(features, datasets, folder)


def check_flags(config):
    """UserError for what would fail only after minutes of work."""
    target = Path(config.save_features or "f.safetensors")
    if target.suffix != ".safetensors" or not target.parent.is_dir():
        raise UserError(
            f"--save-features {target}: name a .safetensors in a folder that exists"
        )
    if not Path(config.rank_list or ".").parent.is_dir():
        raise UserError(f"--rank-list {config.rank_list}: name a .png in a folder that exists")


def open_run(path, config, device):
    """(Features, the config of the run) of a checkpoint, or of a features file and its notes."""
    if path.endswith(".safetensors"):
        return load_features(path, device)
    model, trained = checkpoints.load_model(path)
    feature = config.feature or trained["feature"]
    amp = trained.get("amp", "off")
    return Features(model.to(device), feature, config.batch, config.flip, amp), trained


def tested_datasets(path, task, protocol=None):
    """The data sets at `path` that have a test split and, if one is named, the protocol.

    UserError if there is none.
    """
    datasets = open_all(path, task)
    tested = [dataset for dataset in datasets if dataset.tested]
    if not tested:
        first = datasets[0]
        raise UserError(f"{first.root}: {first.title} has no test split; give another --data")
    named = [dataset for dataset in tested if protocol in names_of(protocols_of(dataset))]
    if protocol and not named:
        chosen_protocols(tested[0], protocol)  # says which ones it has
    return named if protocol else tested


def format_table(rows):
    """Aligned text. Floats are fractions and print as percent with one decimal."""
    def cell(value):
        return f"{100 * value:.1f}" if isinstance(value, float) else str(value)

    keys = list(dict.fromkeys(key for row in rows for key in row))
    lines = [keys]
    for row in rows:
        lines.append([cell(row.get(key, "")) for key in keys])

    columns_of_text = []
    for key, *cells in zip(*lines):
        width = max(map(len, (key, *cells)))
        is_text = all(isinstance(row.get(key, ""), str) for row in rows)
        align = str.ljust if is_text else str.rjust
        columns_of_text.append([align(text, width) for text in (key, *cells)])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns_of_text))


if __name__ == "__main__":
    cli.run(main, Config)
