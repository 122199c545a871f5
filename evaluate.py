"""Evaluation: tables, the instruction matrix, the comparison of two runs.

`python evaluate.py --checkpoint runs/all/last.pt` prints one row per data set, task and protocol. Figures are fractions
in the code and percent on the screen. Letters in shapes: q queries, g gallery images, n records, d feature width.
The features come from features.py, the metrics from metrics.py, the drawing is in pictures.py.
"""

import os
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import cli
import instructions
import pictures
import weights
from cli import UserError
from features import Features, evaluating, load_batch, load_features, matched_first, save_features
from metrics import ranking_metrics  # noqa: F401  (users find it here)
from metrics import chance, k_reciprocal, paired_bootstrap, query_figures, summary
from reid.folders import open_all
from reid.layouts import protocols_of
from reid.protocols import TARGETS, Columns, columns, masks, trials


# ---- ranking ----

def evaluate_features(qf, gf, q, g, protocol, chunk=256, ap_window=None, rescore=None, rerank=False, device="cpu"):
    """Ranks by cosine, `chunk` queries at a time: nothing of size (q g) ever exists. qf (q d), gf (g d) tensors.

    q, g: `columns`. rescore(start, dist): new distances (c g) for the queries start, start + 1, ... from -cosine (c g);
    rerank: that of k_reciprocal. The product runs on `device`, the counting on the CPU.
    Returns what ranking_metrics does, gallery, without (queries without a hit), "chance mAP", "chance R1", and "each":
    mAP and R1 of each query alone, (q,), NaN without a hit.
    """
    check_features(qf, gf)
    qf, gf = (F.normalize(feats.to(device, torch.float32), dim=1) for feats in (qf, gf))
    rescore = k_reciprocal(qf, gf) if rerank else rescore

    def figures(i, dist):
        positive, removed = masks(protocol, Columns(*(column[i] for column in q)), g)
        return query_figures(dist, positive, removed, ap_window, g.pid if protocol.people else None)

    rows = []
    for start in range(0, len(qf), chunk):
        dist = (-qf[start:start + chunk] @ gf.T).cpu().numpy()
        dist = dist if rescore is None else rescore(start, dist)
        rows += map(figures, range(start, start + len(dist)), dist)
    result = summary(rows, len(gf))
    ap, _, first, hits, kept = np.array(rows).T
    luck = dict(zip(("chance mAP", "chance R1"), chance(hits, kept.astype(int))))
    each = {"mAP": ap, "R1": np.where(np.isnan(first), np.nan, first == 1)}
    return result | luck | {"gallery": len(gf), "without": len(qf) - result["queries"], "each": each}


def check_features(qf, gf):
    if not len(qf) or not len(gf):
        raise UserError(f"{len(qf)} queries and {len(gf)} gallery images: nothing to rank; check both lists or folders")
    if qf.shape[1] != gf.shape[1]:
        raise UserError(f"query features are {qf.shape[1]} wide, gallery features {gf.shape[1]}: they need one model")
    for side, feats in (("query", qf), ("gallery", gf)):
        broken = len(feats) - int(feats.sum(1).isfinite().sum())
        if broken:
            raise UserError(f"{broken} of {len(feats)} {side} features hold NaN or infinity: training has diverged; "
                            "take an earlier checkpoint or a lower --lr")


# ---- tasks ----

def sides(dataset):
    """(queries, gallery) records without junk; the same list twice where the protocol decides (LLCM)."""
    if test := dataset.split("test"):
        return test, test
    queries, gallery = dataset.split("query"), [record for record in dataset.split("gallery") if not record.junk]
    if not queries or not gallery:
        raise UserError(f"{dataset.root}: {len(queries)} queries, {len(gallery)} gallery images; check its test split")
    return queries, gallery


def side_features(features, dataset, queries, gallery, sentences=(0,)):
    """(qf, gf) under each of the sentences of trad, cc and vi; the other tasks have but one instruction per record."""
    spoken = instructions.TASKS[dataset.task].sentences
    ask, hold = ({spoken[i] if spoken else name: [instruction(dataset.task, r, i) for r in records] for i in sentences}
                 for name, records, instruction in (("wanted", queries, instructions.query_instruction),
                                                    ("own", gallery, instructions.gallery_instruction)))
    if gallery is queries:
        both = features(dataset, "test", queries, ask)
        return list(zip(both, both))
    return list(zip(features(dataset, "query", queries, ask), features(dataset, "gallery", gallery, hold)))


def ranked_trials(protocol, queries, gallery, qf, gf, **options):
    """What evaluate_features returns, of each of the `trials`."""
    runs = []
    for ask, show in trials(protocol, queries, gallery):
        q, g = columns([queries[i] for i in ask], [gallery[i] for i in show])
        runs.append(evaluate_features(qf[ask], gf[show], q, g, protocol, **options))
    return runs


def score(protocol, queries, gallery, qf, gf, **options):
    """The figures of one row of a table; options as in evaluate_features."""
    return average(ranked_trials(protocol, queries, gallery, qf, gf, **options))


def average(runs):
    """Over the trials."""
    figures = [run | {f"R{k}": run["cmc"][min(k, run["gallery"]) - 1] for k in (1, 5, 10)} for run in runs]
    counts = {"trials": len(runs)} | {key: runs[0][key] for key in ("queries", "without", "gallery")}
    names = ("mAP", "R1", "R5", "R10", "mINP", "chance mAP", "chance R1")
    return counts | {key: float(np.mean([run[key] for run in figures])) for key in names}


def rankings(features, dataset, protocol=None, sentence=0, two_stage=True, rerank=False, ap_window=None):
    """Yields (what a row is headed by, its `ranked_trials`) for each protocol, or only that with the name `protocol`.

    sentence: which of the 20 instructions of trad, cc and vi. A second row follows where there is a second stage: t2i
    re-scored by matching (two_stage), and everything by k-reciprocal neighbours (rerank).
    """
    known = protocols_of(dataset)
    chosen = [p for p in known if p.name == protocol or protocol is None and not p.named]
    if not chosen:
        names = ", ".join(p.name for p in known)
        raise UserError(f"{dataset.title} has no protocol '{protocol}' for {dataset.task}; it has {names}")
    queries, gallery = sides(dataset)
    (qf, gf), = side_features(features, dataset, queries, gallery, (sentence,))
    stages = {"": {}}
    if instructions.TASKS[dataset.task].text_only and two_stage:
        captions = [instructions.query_instruction(dataset.task, r) for r in queries]
        stages[" + matching"] = {"rescore": matched_first(*features.matches(dataset, gallery, captions, qf, gf))}
    if rerank:
        stages[" + re-ranking"] = {"rerank": True}
    window = f", AP in the first {ap_window}" if ap_window else ""
    for p in chosen:
        for stage, options in stages.items():
            head = {"task": dataset.task, "data": dataset.title, "protocol": p.name + stage + window}
            yield head, ranked_trials(p, queries, gallery, qf, gf, ap_window=ap_window, device=features.device, **options)


def evaluate_task(features, dataset, **options):
    """Rows (dicts) of one data set under its task; options as in rankings."""
    return [head | average(runs) for head, runs in rankings(features, dataset, **options)]


def evaluate_all(features, datasets, **options):
    """The rows of the data sets that have a test split; options as in rankings."""
    return [row for dataset in datasets if dataset.tested for row in evaluate_task(features, dataset, **options)]


def evaluate_sentences(features, dataset, **options):
    """Rows over the 20 sentences of trad, cc or vi: mean, standard deviation, best and worst sentence by mAP."""
    sentences = instructions.TASKS[dataset.task].sentences
    side_features(features, dataset, *sides(dataset), range(len(sentences)))  # all at once: every image is read once
    runs = [evaluate_task(features, dataset, sentence=i, **options) for i in range(len(sentences))]
    rows = []
    for same in zip(*runs):
        mAP, R1 = (np.array([row[key] for row in same]) for key in ("mAP", "R1"))
        head = ("task", "data", "protocol", "trials", "queries", "without", "gallery", "chance mAP", "chance R1")
        rows.append({key: same[0][key] for key in head} | {
            "sentences": len(same), "mAP": mAP.mean(), "sd": mAP.std(), "R1": R1.mean(), "R1 sd": R1.std(),
            "best": mAP.max(), "best sentence": sentences[mAP.argmax()],
            "worst": mAP.min(), "worst sentence": sentences[mAP.argmin()]})
    return rows


def compare(first, second, dataset, **options):
    """Rows: mAP and R1 of two runs on the same queries, second - first and its 95 % interval (paired_bootstrap)."""
    rows = []
    for (head, one), (_, two) in zip(rankings(first, dataset, **options), rankings(second, dataset, **options)):
        for figure in ("mAP", "R1"):
            a, b = (np.mean([run["each"][figure] for run in runs], 0) for runs in (one, two))  # over the trials, (q,)
            a, b = a[~np.isnan(a)], b[~np.isnan(b)]
            difference, low, high = paired_bootstrap(a, b)
            rows.append(head | {"figure": figure, "queries": len(a), "first": a.mean(), "second": b.mean(),
                                "difference": difference, "low": low, "high": high})
    return rows


# ---- does the model listen? ----

def asked(dataset, queries, gallery, seed=0):
    """ctcc and li: (indices of queries, {"own", "random": a wrong instruction for each of these}).

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
    kept, asks = [], {"own": [], "random": []}
    for i, q in enumerate(queries):
        wanted, own = instructions.query_instruction(dataset.task, q), instructions.gallery_instruction(dataset.task, q)
        if own == wanted:
            own = next((instructions.gallery_instruction(dataset.task, r) for r in shown[q.pid]
                        if r.clothes != q.target_clothes), None)
        if own:
            stranger = rng.choice(people[rng.choice([pid for pid in people if pid != q.pid])])
            kept.append(i)
            asks["own"].append(own)
            asks["random"].append(instructions.query_instruction(dataset.task, stranger))
    return kept, asks


def variants(features, dataset, queries, gallery):
    """Queries under right and wrong instructions: (queries, {name: (instructions, qf, gf)}), the right one first.

    trad, cc and vi: their sentence and the opposite one, on both sides. ctcc and li: wanted, own, random, while gallery
    images keep their own. t2i: the caption alone.
    """
    row = instructions.TASKS[dataset.task]
    if row.sentences:
        said = [instructions.TASKS[task].sentences[0] for task in (dataset.task, row.opposite) if task]
        names = ("test", "test") if gallery is queries else ("query", "gallery")
        qf, gf = (features(dataset, side, records, {words: [words] * len(records) for words in said})
                  for side, records in zip(names, (queries, gallery)))
        return queries, {words: ([words] * len(queries), *both) for words, *both in zip(said, qf, gf)}
    (qf, gf), = side_features(features, dataset, queries, gallery)
    ask = [instructions.query_instruction(dataset.task, r) for r in queries]
    kept, wrong = ([], {}) if row.text_only else asked(dataset, queries, gallery)
    if not kept:
        return queries, {"wanted": (ask, qf, gf)}
    queries = [queries[i] for i in kept]
    feats = features(dataset, "query", queries, wrong)
    return queries, {"wanted": ([ask[i] for i in kept], qf[kept], gf)} | {
        name: (wrong[name], qf, gf) for name, qf in zip(wrong, feats)}


def instruction_matrix(features, datasets):
    """Rows: the same queries and gallery under right and wrong instructions, for every data set that knows clothes.

    cc: the trad and the cc sentence against targets in the same and in other clothes. ctcc and li, strict protocol: the
    wanted, the query's own and a random instruction.
    """
    rows = []
    for dataset in datasets:
        targets = instructions.TASKS[dataset.task].targets
        if not targets or not dataset.tested:
            continue
        queries, gallery = sides(dataset)
        if not any(record.clothes for record in gallery):
            continue
        queries, asks = variants(features, dataset, queries, gallery)
        for target in targets:
            protocol = TARGETS[target]
            if next(answerable(protocol, queries, gallery), None) is None:  # nobody is seen twice in the same clothes
                continue
            for name, (_, qf, gf) in asks.items():
                row = {"task": dataset.task, "data": dataset.title, "target": target, "protocol": protocol.name,
                       "instruction": name}
                rows.append(row | score(protocol, queries, gallery, qf, gf, device=features.device))
    return rows


def answerable(protocol, queries, gallery):
    """Yields the indices of the queries that have a hit; looks at one query after the other."""
    q, g = columns(queries, gallery)
    for i in range(len(queries)):
        positive, removed = masks(protocol, Columns(*(column[i] for column in q)), g)
        if (positive & ~removed).any():
            yield i


def rank_rows(features, dataset, people=2):
    """RankRows of `people` queries under right and wrong instructions; the queries are spread evenly over those with a
    hit, not picked by result."""
    queries, gallery = sides(dataset)
    queries, asks = variants(features, dataset, queries, gallery)
    protocol = protocols_of(dataset)[0]
    for target in instructions.TASKS[dataset.task].targets[:1]:
        if any(answerable(TARGETS[target], queries, gallery)):
            protocol = TARGETS[target]
    ask = [i for i, record in enumerate(queries) if protocol.is_query(record)]
    hold = [i for i, record in enumerate(gallery) if protocol.in_gallery(record)]
    ranked = [gallery[i] for i in hold]
    shown = [ask[i] for i in answerable(protocol, [queries[i] for i in ask], ranked)]
    rows = []
    for i in np.linspace(0, len(shown) - 1, min(people, len(shown))).astype(int):
        query = queries[shown[i]]
        positive, removed = (mask[0] for mask in masks(protocol, *columns([query], ranked)))
        verdicts = np.where(removed, pictures.REMOVED, np.where(positive, pictures.HIT, pictures.MISS))
        for name, (instr, qf, gf) in asks.items():
            order = pictures.top_of(np.argsort(-(gf[hold] @ qf[shown[i]]).numpy(), kind="stable"), verdicts)
            ranking = [(ranked[j], verdicts[j]) for j in order]
            rows.append(pictures.RankRow(dataset, query, name, instr[shown[i]], ranking))
    return rows


def format_table(rows):
    """Aligned text. Floats are fractions and print as percent with one decimal."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[f"{100 * v:.1f}" if isinstance(v := row.get(key, ""), float) else str(v) for key in keys] for row in rows]
    widths = [max(map(len, column)) for column in zip(keys, *cells)]
    left = [all(isinstance(row.get(key, ""), str) for row in rows) for key in keys]
    lines = [[c.ljust(w) if text else c.rjust(w) for c, w, text in zip(line, widths, left)] for line in [keys, *cells]]
    return "\n".join("  ".join(line).rstrip() for line in lines)


# ---- command line ----

@dataclass
class Config:
    """Evaluate a checkpoint. Flags that default to None follow the checkpoint."""
    checkpoint: str = cli.option("runs/all/last.pt", "a last.pt that train.py wrote, or a file of --save-features")
    task: str = cli.option(None, "which task; all = every task that the data offers", ("all", *instructions.TASKS))
    data: str = cli.option(None, "data set, or folder of data sets")
    instructions: str = cli.option("one", "one sentence, or each of the 20 of trad, cc and vi", ("one", "all"))
    protocol: str = cli.option(None, "only the protocol of this name; vis-to-ir-deen (LLCM) is evaluated only if named")
    feature: str = cli.option(None, "what is ranked: the edited CLS token, or F_out of the attention module",
                              ("edit", "fused"))
    flip: bool = cli.option(False, "features of an image and of its mirror image, summed")
    ap_window: int = cli.option(None, "AP in the first N ranks, as the released code (500); None = all, the standard")
    rerank: bool = cli.option(False, "a second row by k-reciprocal re-ranking (Zhong et al. 2017)")
    compare: str = cli.option(None, "another checkpoint or features file: differences with their 95 %% intervals")
    save_features: str = cli.option(None, "write the features to this .safetensors; --checkpoint reads it")
    rank_list: str = cli.option(None, "draw the rankings of a few queries into this .png")
    pictures: bool = cli.option(False, "draw rankings, gates and instruction attention into the checkpoint's folder")
    device: str = cli.option("auto", "auto takes CUDA if it is there")
    batch: int = cli.option(64, "images per batch")


def main(config):
    for flag in ("batch", "ap_window"):
        if getattr(config, flag) is not None and getattr(config, flag) < 1:
            raise UserError(f"--{flag.replace('_', '-')} {getattr(config, flag)}: must be at least 1")
    target = Path(config.save_features or "f.safetensors")
    if target.suffix != ".safetensors" or not target.parent.is_dir():
        raise UserError(f"--save-features {target}: name a .safetensors in a folder that exists")
    if not Path(config.rank_list or ".").parent.is_dir():
        raise UserError(f"--rank-list {config.rank_list}: name a .png in a folder that exists")
    device = pick_device(config.device)
    features, trained = open_run(config.checkpoint, config, device)
    for flag, wanted in (("feature", config.feature), ("flip", config.flip)):
        if wanted and wanted != getattr(features, flag):
            raise UserError(f"--{flag}: {config.checkpoint} holds other features; drop it, or save them again with it")
    datasets = open_all(config.data or trained["data"], config.task or trained["task"])
    if not any(dataset.tested for dataset in datasets):
        raise UserError(f"{datasets[0].root}: {datasets[0].title} has no test split; give another --data")
    datasets = [dataset for dataset in datasets if dataset.tested]
    how = {"protocol": config.protocol, "ap_window": config.ap_window, "rerank": config.rerank}
    spread = [d for d in datasets if config.instructions == "all" and instructions.TASKS[d.task].sentences]
    tables = {
        "Results": evaluate_all(features, [d for d in datasets if d not in spread], **how),
        "All 20 sentences": sum((evaluate_sentences(features, d, **how) for d in spread), []),
        "Instruction matrix: same queries, same gallery": instruction_matrix(features, datasets),
    }
    if config.compare:
        other, _ = open_run(config.compare, config, device)
        title = f"{config.checkpoint} (first) and {config.compare} (second); low, high: 95 % interval of the difference"
        tables[title] = sum((compare(features, other, d, **how) for d in datasets), [])
    for title, rows in tables.items():
        if rows:
            print(f"{title} (percent)\n\n{format_table(rows)}\n")
    if config.save_features:
        told = {"data": str(config.data or trained["data"]), "task": config.task or trained["task"]}
        save_features(target, features, **told)
        print(f"wrote {target}")
    if config.rank_list:
        rows = [rank_rows(features, dataset) for dataset in datasets]
        write(pictures.stack([pictures.rankings(some) for some in rows if some]), config.rank_list, "--rank-list")
    if config.pictures:
        draw(features, datasets, Path(config.checkpoint).parent)


def open_run(path, config, device):
    """(Features, the config it was trained with or what its features file tells) of a checkpoint or a features file."""
    if not path.endswith(".safetensors"):
        model, trained = weights.load_model(path)
        return Features(model.to(device), config.feature or trained["feature"], config.batch, config.flip), trained
    return load_features(path, device)


def draw(features, datasets, folder):
    """The gates, and for each data set its ranking picture and the instruction attention of the first query there."""
    features.need_model("pictures of gates and attention")
    done = {"gates": pictures.gates(features.model)} if features.model.editing else {}
    for dataset in datasets:
        rows = rank_rows(features, dataset)
        if not rows:  # no query has a hit
            continue
        name = f"{dataset.name}_{dataset.task}".replace(":", "-")
        done[f"ranking_{name}"] = pictures.rankings(rows)
        if features.model.editing and not (instructions.TASKS[dataset.task].pictures or instructions.TASKS[dataset.task].text_only):  # where words edit an image
            with evaluating(features.model) as device:
                image = load_batch(dataset, [rows[0].query.path], features.model.size, device)
                words = pictures.attention(features.model, image, rows[0].instruction)
            done[f"attention_{name}"] = words
    for name, picture in done.items():
        write(picture, folder / f"{name}.png", "--pictures")


def write(picture, path, flag):
    try:
        picture.quantize().save(path, "PNG", optimize=True)
    except OSError as error:
        raise UserError(f"{flag}: cannot write {path} ({error}); name a .png in a folder that takes it") from error
    print(f"wrote {path}")


def pick_device(name):
    """auto: this process's own GPU if there is one, else the CPU."""
    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise UserError(f"--device {name} cannot be used here; try cpu ({str(error).splitlines()[0]})") from error


if __name__ == "__main__":
    cli.run(main, Config)
