"""Evaluation: features, exact ranking metrics, the protocol of each data set, the instruction matrix, ranking pictures.

`python evaluate.py --checkpoint runs/all/last.pt` prints one row per data set, task and protocol. Figures are fractions
in the code and percent on the screen. Letters in shapes: q queries, g gallery images, n records, d feature width.
"""

import random
import textwrap
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

import cli
import data
import instructions
import weights
from cli import UserError


# ---- ranking metrics ----

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
    return _summary(_per_query(dist, positive, removed, ap_window, gallery_ids), np.shape(dist)[1])


def _per_query(dist, positive, removed=None, ap_window=None, gallery_ids=None):
    """(queries with a hit, 3): AP, INP, and the rank of the first hit (inf: no hit inside the window)."""
    dist, positive = np.asarray(dist), np.asarray(positive, bool)
    removed = np.zeros_like(positive) if removed is None else np.asarray(removed, bool)
    if dist.ndim != 2 or not dist.shape == positive.shape == removed.shape:
        shapes = f"dist {dist.shape}, positive {positive.shape}, removed {removed.shape}"
        raise UserError(f"{shapes}: all three must be (queries, gallery)")
    if dist.shape[1] == 0:
        raise UserError("the gallery is empty: nothing to rank; check the gallery folder or list")
    if np.isnan(dist).any():
        raise UserError("the distances hold NaN: training has diverged; take an earlier checkpoint or a lower --lr")
    rows = []
    for d, kept, hits in zip(dist, ~removed, positive & ~removed):
        hits = np.flatnonzero(hits)
        if not len(hits):
            continue
        ranks = _hit_ranks(d, hits, kept)
        if ap_window:
            ranks = ranks[_hit_ranks(d, hits, np.ones_like(kept)) <= ap_window]
        if not len(ranks):
            rows.append((0.0, 0.0, np.inf))
            continue
        first = ranks[0]
        if gallery_ids is not None:
            near = hits[np.argmin(d[hits])]
            ahead = kept & ((d < d[near]) | ((d == d[near]) & (np.arange(len(d)) < near)))
            first = 1 + len(np.unique(np.asarray(gallery_ids)[ahead]))
        rows.append((np.mean(np.arange(1, len(ranks) + 1) / ranks), len(ranks) / ranks[-1], first))
    return np.array(rows).reshape(-1, 3)


def _hit_ranks(dist, hits, kept):
    """Ranks, ascending from 1, of the gallery items `hits` (indices, ascending) among those `kept`. dist, kept (g,).

    A rank only asks how many items come up to and including the hit, so only the few hits have to be sorted. Every kept
    item goes to the slot of the first hit that it does not lie behind (searchsorted); counting the items per slot and
    summing up over the slots gives the rank of each hit.
        distances .1 .2 .3 .4 .5, hits .2 and .4: slots 0 0 1 1 2, so 2, 2 (and 1 behind all) items, so ranks 2 and 4
    Ties go by gallery order: an item as near as some hits steps behind those of them that come earlier in the gallery.
    """
    hits = hits[np.argsort(dist[hits], kind="stable")]
    items = np.flatnonzero(kept)
    slot = np.searchsorted(dist[hits], dist[items])
    tied = np.flatnonzero(dist[hits][np.minimum(slot, len(hits) - 1)] == dist[items])  # at least the hits themselves
    behind = (dist[items[tied], None] == dist[hits]) & (items[tied, None] > hits)
    slot[tied] += behind.sum(1)
    return np.bincount(slot, minlength=len(hits))[:len(hits)].cumsum()


def _summary(per_query, length):
    if not len(per_query):
        raise UserError("no query has a hit in the gallery: query and gallery must hold the same people, seen by other "
                        "cameras, and the protocol must fit the data set")
    ap, inp, first = per_query.T
    cmc = np.bincount(first[np.isfinite(first)].astype(int), minlength=length + 1)[1:].cumsum() / len(first)
    return {"mAP": float(ap.mean()), "mINP": float(inp.mean()), "cmc": cmc, "queries": len(first)}


def chance(positive, removed):
    """(expected mAP, expected rank-1) of a random order; exact. positive, removed (q g) bool.

    With m hits among n kept items, rank k holds a hit with probability m/n, and then (k-1)(m-1)/(n-1) of the k-1 before
    it are hits on average: E[AP] = 1/m sum_k m/n (1 + (k-1)(m-1)/(n-1)) / k = [H_n + (n - H_n)(m-1)/(n-1)] / n with
    H_n = 1 + 1/2 + ... + 1/n.
    """
    m, n = (positive & ~removed).sum(1), (~removed).sum(1)
    m, n = m[m > 0], n[m > 0]
    harmonic = np.cumsum(1 / np.arange(1, positive.shape[1] + 1))[n - 1]
    ap = (harmonic + (n - harmonic) * (m - 1) / np.maximum(n - 1, 1)) / n
    return float(ap.mean()), float((m / n).mean())


# ---- protocols ----

class Columns(NamedTuple):
    """What a protocol may look at, as arrays over records. NaN = unknown, which equals nothing, not even NaN."""
    pid: np.ndarray
    cam: np.ndarray
    clothes: np.ndarray
    target: np.ndarray  # the clothes that the query asks for
    junk: np.ndarray


def columns(queries, gallery):
    """Columns of both sides, (q, 1) and (g,), so that a comparison of the two broadcasts to (q g)."""
    codes = {}

    def code(value):
        return np.nan if value is None else codes.setdefault(value, len(codes))

    def side(records):
        rows = [(r.pid, code(r.cam), code(r.clothes), code(r.target_clothes), r.junk) for r in records]
        return Columns(*np.array(rows, float).reshape(-1, 5).T)

    q, g = side(queries), side(gallery)
    return Columns(*(column[:, None] for column in q)), g._replace(junk=g.junk > 0)


def anything(record):
    return True


class Protocol(NamedTuple):
    name: str
    removed: Callable  # (q, g) -> (q g) bool: left out of that query's ranking (junk always is)
    positive: Callable  # (q, g) -> (q g) bool: a hit
    asks: Callable = anything  # record -> bool: a query of this protocol
    answers: Callable = anything  # record -> bool: in its gallery
    cell: Callable | None = None  # record -> key: each of TRIALS galleries has one image of every cell
    people: bool = False  # the CMC ranks people, not images
    transposed: bool = False  # the queries are drawn instead of the gallery
    named: bool = False  # evaluated only if asked for by name


def same_person(q, g):
    return q.pid == g.pid


def same_camera(q, g):
    return same_person(q, g) & (q.cam == g.cam)


def same_camera_or_clothes(q, g):
    return same_person(q, g) & ((q.cam == g.cam) | (q.clothes == g.clothes))


def same_camera_or_other_clothes(q, g):
    return same_person(q, g) & ((q.cam == g.cam) | (q.clothes != g.clothes))


def wanted_clothes(q, g):
    return same_person(q, g) & (g.clothes == q.target)


def infrared(record):
    return record.modality == "ir"


def visible(record):
    return record.modality == "rgb"


def seen_by(*cams):
    return lambda record: record.cam in cams


def person(record):
    return record.pid


def person_and_camera(record):
    return record.pid, record.cam


TRIALS = 10
GENERAL = Protocol("general", same_camera, same_person)
OTHER_CLOTHES = Protocol("cc", same_camera_or_clothes, same_person)
SAME_CLOTHES = Protocol("sc", same_camera_or_other_clothes, same_person)
STRICT = Protocol("strict", same_camera, wanted_clothes)  # the right person in other clothes is a wrong answer

LLCM = Protocol("ir-to-vis", same_camera, same_person, infrared, visible, person_and_camera, people=True)
PRCC = GENERAL._replace(name="cross multi-shot", asks=seen_by(2))  # camera C: other clothes than in the gallery (A)
TEXT = GENERAL._replace(name="text-to-image")  # no cameras are known: nothing is removed

PROTOCOLS = {  # (layout, task) -> the first is the default
    ("market", "trad"): (GENERAL,),
    ("msmt17", "trad"): (GENERAL,),
    ("cuhk03", "trad"): (GENERAL._replace(name="new (767/700)"),),
    ("ltcc", "cc"): (GENERAL, OTHER_CLOTHES, SAME_CLOTHES),
    ("prcc", "cc"): (PRCC, PRCC._replace(name="cross single-shot", cell=person),
                     PRCC._replace(name="same multi-shot", asks=seen_by(1)),  # B
                     PRCC._replace(name="same single-shot", asks=seen_by(1), cell=person)),
    ("vc-clothes", "cc"): (GENERAL._replace(name="all"),  # clothes are the same under cameras 2 and 3, others under 4
                           GENERAL._replace(name="cc", asks=seen_by(3, 4), answers=seen_by(3, 4)),
                           GENERAL._replace(name="sc", asks=seen_by(2, 3), answers=seen_by(2, 3)),
                           OTHER_CLOTHES._replace(name="all-cc"), SAME_CLOTHES._replace(name="all-sc")),
    ("llcm", "vi"): (LLCM, LLCM._replace(name="vis-to-ir", asks=visible, answers=infrared),
                     # what DEEN's released code calls VIS to IR: the drawn infrared images ask, all visible ones answer
                     LLCM._replace(name="vis-to-ir-deen", transposed=True, named=True)),
    ("cuhk-pedes", "t2i"): (TEXT,),
    ("cocas", "ctcc"): (STRICT, GENERAL._replace(name="id-only")),
    ("cocas", "li"): (STRICT, GENERAL._replace(name="id-only")),
    # Lists have their own queries and gallery; a row without a camera has no image removed.
    ("omnireid", "trad"): (GENERAL,), ("omnireid", "cc"): (GENERAL,), ("omnireid", "vi"): (GENERAL,),
    ("omnireid", "t2i"): (TEXT,),
    ("omnireid", "ctcc"): (STRICT, GENERAL._replace(name="id-only")),
    ("omnireid", "li"): (STRICT, GENERAL._replace(name="id-only")),
}


def trial_gallery(records, seed, cell=person_and_camera):
    """Indices of one of the records of every cell, drawn with the seeds and in the order of LLCM's published code."""
    rng, cells = random.Random(seed), {}
    for i in sorted(range(len(records)), key=lambda i: records[i].path):
        cells.setdefault(cell(records[i]), []).append(i)
    return [rng.choice(cells[key]) for key in sorted(cells)]


def trials(protocol, queries, gallery):
    """[(indices of the queries, indices of the gallery)] of each trial; of a single one where nothing is drawn."""
    ask = [i for i, record in enumerate(queries) if protocol.asks(record)]
    show = [i for i, record in enumerate(gallery) if protocol.answers(record)]
    if not protocol.cell:
        return [(ask, show)]
    all_of, records = (ask, queries) if protocol.transposed else (show, gallery)
    pool = [records[i] for i in all_of]
    drawn = [[all_of[i] for i in trial_gallery(pool, seed, protocol.cell)] for seed in range(TRIALS)]
    return [(draw, show) if protocol.transposed else (ask, draw) for draw in drawn]


def masks(protocol, q, g):
    """positive, removed, both (q g) bool."""
    return protocol.positive(q, g), protocol.removed(q, g) | g.junk


def evaluate_features(qf, gf, q, g, protocol, chunk=256, ap_window=None, rescore=None):
    """Ranks by 1 - cosine, `chunk` queries at a time: the whole (q g) matrix never exists. qf (q d), gf (g d) tensors.

    q, g: `columns`. rescore(start, dist): new distances for the queries start, start + 1, ...
    Returns what ranking_metrics does, and gallery, without (queries without a hit), "chance mAP", "chance R1".
    """
    if not len(qf) or not len(gf):
        raise UserError(f"{len(qf)} queries and {len(gf)} gallery images: nothing to rank; check both lists or folders")
    qf, gf = F.normalize(qf.float(), dim=1), F.normalize(gf.float(), dim=1)
    ranked, luck = [], []
    for start in range(0, len(qf), chunk):
        dist = 1 - qf[start:start + chunk] @ gf.T
        dist = dist if rescore is None else rescore(start, dist)
        positive, removed = masks(protocol, Columns(*(column[start:start + chunk] for column in q)), g)
        ranked.append(_per_query(dist, positive, removed, ap_window, g.pid if protocol.people else None))
        if len(ranked[-1]):
            luck.append(len(ranked[-1]) * np.array(chance(positive, removed)))
    result = _summary(np.concatenate(ranked), len(gf))
    luck = dict(zip(("chance mAP", "chance R1"), sum(luck) / result["queries"]))
    return result | {"gallery": len(gf), "without": len(qf) - result["queries"]} | luck


# ---- features ----

@contextmanager
def evaluating(model):
    """Inference with BN necks in test mode, bfloat16 on CUDA. Gives the device; the model keeps its mode."""
    device, training = next(model.parameters()).device, model.training
    model.eval()
    try:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            yield device
    finally:
        model.train(training)


def load_batch(dataset, paths, size, device):
    """Pictures below dataset.root, decoded by a few threads: (b 3 h w), normalised."""
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(lambda path: data.load_image(dataset.root / path, size), paths))
    return data.normalise(torch.stack(images).to(device))


def encode_instructions(model, dataset, wanted, device):
    """The Instruction of a batch; equal sentences or pictures are encoded once and handed out by index."""
    if wanted[0] is None:
        return None
    unique = list(dict.fromkeys(wanted))
    pictures = dataset.task == "ctcc"
    encoded = model.instruct(load_batch(dataset, unique, model.picture_size, device) if pictures else unique)
    if len(unique) == 1:
        return encoded  # a batch of 1 serves all images
    index = torch.tensor([unique.index(item) for item in wanted], device=device)
    return type(encoded)(*(part[index] for part in encoded))


def extract(model, dataset, records, wanted, feature="edit", batch=64):
    """Retrieval features of records under their instructions: (n d) float32 on the CPU, L2-normalised.

    wanted: one per record: a sentence, for ctcc the path of a picture below dataset.root, or None (t2i gallery).
    Records without a picture (t2i queries) are embedded by their sentence alone.
    """
    feats = []
    with evaluating(model) as device:
        for i in tqdm(range(0, len(records), batch), f"{dataset.title} {dataset.task}", leave=False, disable=None):
            some, instr = records[i:i + batch], wanted[i:i + batch]
            if some[0].path is None:
                feats.append(model.embed_text(instr))
            else:
                images = load_batch(dataset, [r.path for r in some], model.size, device)
                feats.append(model.embed(images, encode_instructions(model, dataset, instr, device), feature=feature))
            feats[-1] = F.normalize(feats[-1].float(), dim=1).cpu()
    return torch.cat(feats)


def matcher(model, dataset, gallery, sentences, batch=64, top=128):
    """The second stage of t2i: a `rescore` that orders the `top` nearest images by the matching logit of Eq. 8.

    The other images keep their order behind them. The tokens of the whole gallery stay in memory.
    """
    tokens, paths = [], [r.path for r in gallery]
    with evaluating(model) as device:
        for i in range(0, len(paths), batch):
            tokens.append(model.edit(load_batch(dataset, paths[i:i + batch], model.size, device)).cpu())
    tokens = torch.cat(tokens)

    def rescore(start, dist):
        with evaluating(model) as device:
            for row, sentence in zip(dist, sentences[start:start + len(dist)]):
                near = row.topk(min(top, len(row)), largest=False).indices
                no, yes = model.match(tokens[near].to(device), model.instruct([sentence])).float().cpu().unbind(1)
                logit = yes - no
                row[near] = logit.min() - logit - 1  # at most -1: ahead of every 1 - cosine
        return dist

    return rescore


# ---- tasks ----

def sides(dataset):
    """(queries, gallery) records; the same list twice where the protocol decides (LLCM)."""
    if test := dataset.split("test"):
        return test, test
    queries, gallery = dataset.split("query"), dataset.split("gallery")
    if not queries or not gallery:
        raise UserError(f"{dataset.root}: {len(queries)} queries, {len(gallery)} gallery images; check its test split")
    return queries, gallery


def score(protocol, queries, gallery, qf, gf, ap_window=None, rescore=None):
    """The figures of one row of a table: the mean over the trials of the protocol."""
    runs = []
    for ask, show in trials(protocol, queries, gallery):
        q, g = columns([queries[i] for i in ask], [gallery[i] for i in show])
        run = evaluate_features(qf[ask], gf[show], q, g, protocol, ap_window=ap_window, rescore=rescore)
        runs.append(run | {f"R{k}": run["cmc"][min(k, len(show)) - 1] for k in (1, 5, 10)})
    counts = {"trials": len(runs)} | {key: runs[0][key] for key in ("queries", "without", "gallery")}
    figures = ("mAP", "R1", "R5", "R10", "mINP", "chance mAP", "chance R1")
    return counts | {key: float(np.mean([run[key] for run in runs])) for key in figures}


def evaluate_task(model, dataset, protocol=None, sentence=0, feature="edit", batch=64, ap_window=None, two_stage=True):
    """Rows (dicts) of one data set under its task: one per protocol, or only that with the name `protocol`.

    sentence: which of the 20 instructions of trad, cc and vi. two_stage: t2i gets a second row, re-scored by matching.
    """
    known = PROTOCOLS[dataset.layout, dataset.task]
    chosen = [p for p in known if p.name == protocol or protocol is None and not p.named]
    if not chosen:
        names = ", ".join(p.name for p in known)
        raise UserError(f"{dataset.title} has no protocol '{protocol}' for {dataset.task}; it has {names}")
    queries, gallery = sides(dataset)
    ask = [instructions.query_instruction(dataset.task, r, sentence) for r in queries]
    hold = [instructions.gallery_instruction(dataset.task, r, sentence) for r in gallery]
    qf = extract(model, dataset, queries, ask, feature, batch)
    gf = qf if gallery is queries else extract(model, dataset, gallery, hold, feature, batch)
    stages = {"": None}
    if dataset.task == "t2i" and two_stage:
        stages[" + matching"] = matcher(model, dataset, gallery, ask, batch)
    window = f", AP in the first {ap_window}" if ap_window else ""
    return [{"task": dataset.task, "data": dataset.title, "protocol": p.name + stage + window}
            | score(p, queries, gallery, qf, gf, ap_window, rescore)
            for p in chosen for stage, rescore in stages.items()]


def evaluate_all(model, datasets, **options):
    """The rows of the data sets that have a test split; options as in evaluate_task."""
    return [row for dataset in datasets if dataset.tested for row in evaluate_task(model, dataset, **options)]


def evaluate_sentences(model, dataset, **options):
    """Rows over the 20 sentences of trad, cc or vi: mean, standard deviation, best and worst sentence by mAP."""
    sentences = instructions.SENTENCES[dataset.task]
    runs = [evaluate_task(model, dataset, sentence=i, **options) for i in range(len(sentences))]
    rows = []
    for same in zip(*runs):
        mAP, R1 = (np.array([row[key] for row in same]) for key in ("mAP", "R1"))
        head = ("task", "data", "protocol", "trials", "queries", "without", "gallery", "chance mAP", "chance R1")
        rows.append({key: same[0][key] for key in head} | {
            "sentences": len(same), "mAP": mAP.mean(), "sd": mAP.std(), "R1": R1.mean(), "R1 sd": R1.std(),
            "best": mAP.max(), "best sentence": sentences[mAP.argmax()],
            "worst": mAP.min(), "worst sentence": sentences[mAP.argmin()]})
    return rows


# ---- does the model listen? ----

def asked(dataset, queries, gallery, seed=0):
    """ctcc and li: (queries, {"wanted", "own", "random": one query instruction per query}); wanted is the right one.

    own: what the query wears itself or, where the data does not tell, what a gallery image of that person in other than
    the wanted clothes wears; a query without either is left out. random: what a query of another person wants.
    """
    rng, people, shown = random.Random(seed), defaultdict(list), defaultdict(list)
    for r in queries:
        people[r.pid].append(r)
    for r in gallery:
        shown[r.pid].append(r)
    if len(people) < 2:
        raise UserError(f"{dataset.root}: one query person only; a random instruction needs a second")
    kept, asks = [], {"wanted": [], "own": [], "random": []}
    for q in queries:
        wanted, own = instructions.query_instruction(dataset.task, q), instructions.gallery_instruction(dataset.task, q)
        if own == wanted:
            own = next((instructions.gallery_instruction(dataset.task, r) for r in shown[q.pid]
                        if r.clothes != q.target_clothes), None)
        if own:
            stranger = rng.choice(people[rng.choice([pid for pid in people if pid != q.pid])])
            kept.append(q)
            asks["wanted"].append(wanted)
            asks["own"].append(own)
            asks["random"].append(instructions.query_instruction(dataset.task, stranger))
    return kept, asks


def instruction_matrix(model, datasets, feature="edit", batch=64, sentence=0):
    """Rows: the same queries and gallery under the right and the wrong instruction.

    LTCC: the trad and the cc sentence against targets in the same and in other clothes. COCAS+ (ctcc, li), strict
    protocol: the wanted, the query's own and a random instruction; gallery images keep their own throughout.
    """
    rows = []
    for dataset in datasets:
        if dataset.name not in ("ltcc", "cocas") or not dataset.tested:  # the others know no clothes
            continue
        queries, gallery = sides(dataset)
        if dataset.name == "ltcc":
            targets = {"same clothes": SAME_CLOTHES, "other clothes": OTHER_CLOTHES}
            said = [instructions.SENTENCES[task][sentence] for task in ("trad", "cc")]
            asks = {words: [words] * len(queries) for words in said}
        else:
            targets = {"wanted clothes": STRICT}
            queries, asks = asked(dataset, queries, gallery)
            hold = [instructions.gallery_instruction(dataset.task, r) for r in gallery]
            gf = extract(model, dataset, gallery, hold, feature, batch)
        for name, ask in asks.items():
            qf = extract(model, dataset, queries, ask, feature, batch)
            if dataset.name == "ltcc":
                gf = extract(model, dataset, gallery, [name] * len(gallery), feature, batch)
            for target, protocol in targets.items():
                row = {"task": dataset.task, "data": dataset.title, "target": target, "protocol": protocol.name}
                rows.append(row | {"instruction": name} | score(protocol, queries, gallery, qf, gf))
    return sorted(rows, key=lambda row: (row["data"], row["task"], row["target"]))


def format_table(rows):
    """Aligned text. Floats are fractions and print as percent with one decimal."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[f"{100 * v:.1f}" if isinstance(v := row.get(key, ""), float) else str(v) for key in keys] for row in rows]
    widths = [max(map(len, column)) for column in zip(keys, *cells)]
    left = [all(isinstance(row.get(key, ""), str) for row in rows) for key in keys]
    lines = [[c.ljust(w) if text else c.rjust(w) for c, w, text in zip(line, widths, left)] for line in [keys, *cells]]
    return "\n".join("  ".join(line).rstrip() for line in lines)


# ---- ranking pictures ----

CELL, GAP, FRAME, NOTE = (192, 96), 12, 5, 190  # pixels: image (height, width), spacing, frame, width of an instruction
HIT, MISS = (0, 140, 60), (215, 30, 30)  # solid and dashed, so that the frames differ without colour too


class RankRow(NamedTuple):
    """One line of a ranking picture: gallery records, nearest first, and which of them are hits."""
    dataset: data.Dataset
    query: data.Record
    instruction: str  # a sentence, or for ctcc the path of a picture
    gallery: list
    hits: list


def rank_rows(model, dataset, people=3, feature="edit", batch=64):
    """RankRows of `people` queries, spread evenly over the list and not picked by result, right and wrong instruction.

    LTCC: a cc and a trad sentence, targets in other clothes. COCAS+: wanted and own clothes. Others: their instruction.
    """
    queries, gallery = sides(dataset)
    p, task = PROTOCOLS[dataset.layout, dataset.task][0], dataset.task
    queries, gallery = [r for r in queries if p.asks(r)], [r for r in gallery if p.answers(r)]
    if dataset.name == "ltcc":
        p, variants = OTHER_CLOTHES, [(t, [instructions.SENTENCES[t][0]] * len(queries)) for t in ("cc", "trad")]
    elif dataset.name == "cocas":
        queries, asks = asked(dataset, queries, gallery)
        variants = [(task, asks[kind]) for kind in ("wanted", "own")]
    else:
        variants = [(task, [instructions.query_instruction(task, r) for r in queries])]
    positive, removed = masks(p, *columns(queries, gallery))
    shown = np.flatnonzero((positive & ~removed).any(1))
    shown = shown[np.linspace(0, len(shown) - 1, min(people, len(shown))).astype(int)]
    rows = []
    for task, asks in variants:
        hold = [instructions.gallery_instruction(task, r) for r in gallery]
        gf = extract(model, dataset, gallery, hold, feature, batch)
        qf = extract(model, dataset, [queries[i] for i in shown], [asks[i] for i in shown], feature, batch)
        for i, dist in zip(shown, (1 - qf @ gf.T).numpy()):
            top = np.argsort(np.where(removed[i], np.inf, dist), kind="stable")[:min(10, (~removed[i]).sum())]
            rows.append(RankRow(dataset, queries[i], asks[i], [gallery[j] for j in top], positive[i, top].tolist()))
    return [row for k in range(len(shown)) for row in rows[k::len(shown)]]  # the same query's rows one below the other


def rank_picture(rows):
    """A picture as in Supp. Fig. 1-2: query, instruction, ranking; hits framed in solid green, misses in dashed red."""
    h, w = CELL
    width = 4 * GAP + w + NOTE + max(len(row.gallery) for row in rows) * (w + GAP)
    picture = Image.new("RGB", (width, GAP + len(rows) * (h + GAP)), "white")
    draw = ImageDraw.Draw(picture)
    for r, (dataset, query, instruction, gallery, hits) in enumerate(rows):
        x, y = 2 * GAP + w, GAP + r * (h + GAP)
        if query.path is not None:
            picture.paste(_open(dataset, query.path, CELL), (GAP, y))
        if dataset.task == "ctcc":
            picture.paste(_open(dataset, instruction, (w, w)), (x + (NOTE - w) // 2, y + (h - w) // 2))
        else:
            _write(draw, instruction, x, y)
        for k, (record, hit) in enumerate(zip(gallery, hits)):
            corner = x + NOTE + 2 * GAP + k * (w + GAP), y
            picture.paste(_open(dataset, record.path, CELL), corner)
            _frame(draw, *corner, hit)
    return picture


def _open(dataset, path, size):
    return Image.fromarray(data.load_image(dataset.root / path, size).permute(1, 2, 0).numpy())


def _write(draw, sentence, x, y):
    """The sentence, in the largest font that fits beside the query."""
    for size in (18, 16, 14, 12, 10):
        font, lines = ImageFont.load_default(size), textwrap.fill(sentence, int(1.8 * NOTE / size))
        _, _, right, bottom = draw.multiline_textbbox((x, y), lines, font)
        if right <= x + NOTE and bottom <= y + CELL[0]:
            break
    draw.multiline_text((x, y + max(0, y + CELL[0] - bottom) // 2), lines, "black", font)


def _frame(draw, x, y, hit, dash=14):
    (h, w), inner = CELL, FRAME - 1
    if hit:
        draw.rectangle((x, y, x + w - 1, y + h - 1), outline=HIT, width=FRAME)
        return
    for a in range(0, w, 2 * dash):
        for edge in (y, y + h - FRAME):
            draw.rectangle((x + a, edge, x + min(a + dash, w) - 1, edge + inner), fill=MISS)
    for a in range(0, h, 2 * dash):
        for edge in (x, x + w - FRAME):
            draw.rectangle((edge, y + a, edge + inner, y + min(a + dash, h) - 1), fill=MISS)


# ---- command line ----

@dataclass
class Config:
    """Evaluate a checkpoint. Flags that default to None follow the checkpoint."""
    checkpoint: str = cli.option("runs/all/last.pt", "a last.pt that train.py wrote")
    task: str = cli.option(None, "which task; all = every task that the data offers", ("all", *instructions.TASKS))
    data: str = cli.option(None, "data set, or folder of data sets")
    instructions: str = cli.option("one", "one sentence, or each of the 20 of trad, cc and vi", ("one", "all"))
    protocol: str = cli.option(None, "only the protocol of this name; vis-to-ir-deen (LLCM) is evaluated only if named")
    feature: str = cli.option(None, "what is ranked: the edited CLS token, or F_out of the attention module",
                              ("edit", "fused"))
    ap_window: int = cli.option(None, "AP in the first N ranks, as the released code (500); None = all, the standard")
    rank_list: str = cli.option(None, "write a ranking picture to this .png")
    device: str = cli.option("auto", "auto takes CUDA if it is there", ("auto", "cpu", "cuda"))
    batch: int = cli.option(64, "images per batch")


def main(config):
    model, trained = weights.load_model(config.checkpoint)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if config.device not in ("auto", device) and device == "cpu":
        raise UserError("--device cuda: PyTorch finds no GPU here; use --device cpu")
    if config.batch < 1:
        raise UserError(f"--batch {config.batch}: at least one image")
    model.to(device if config.device == "auto" else config.device)
    datasets = data.open_all(config.data or trained["data"], config.task or trained["task"])
    if not any(dataset.tested for dataset in datasets):
        raise UserError(f"{datasets[0].root}: {datasets[0].title} has no test split; give another --data")
    datasets = [dataset for dataset in datasets if dataset.tested]
    how = {"feature": config.feature or trained["feature"], "batch": config.batch}
    spread = [d for d in datasets if config.instructions == "all" and d.task in instructions.SENTENCES]
    single = [d for d in datasets if d not in spread]
    rules = {"protocol": config.protocol, "ap_window": config.ap_window}
    tables = {
        "Results": evaluate_all(model, single, **rules, **how),
        "All 20 sentences": sum((evaluate_sentences(model, d, **rules, **how) for d in spread), []),
        "Instruction matrix: same queries, same gallery": instruction_matrix(model, datasets, **how),
    }
    for title, rows in tables.items():
        if rows:
            print(f"{title} (percent)\n\n{format_table(rows)}\n")
    if config.rank_list:
        picture = rank_picture([row for dataset in datasets for row in rank_rows(model, dataset, **how)])
        try:
            picture.save(config.rank_list)
        except (OSError, ValueError) as error:
            raise UserError(f"--rank-list {config.rank_list}: {error}; name a .png in a folder that exists")
        print(f"wrote {config.rank_list}")


if __name__ == "__main__":
    cli.run(main, Config)
