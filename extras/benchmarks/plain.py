"""Galleries that carry nothing, by the weight w of the instruction (reid.plain.scores), and t2i's
second stage by the weight of the matching logit.

    python benchmarks/plain.py runs/all/last.pt ./toy

mAP and R1 in percent: COCAS+ strict, CUHK-PEDES. A weight is to be chosen on other people than
those that are reported: `python -m toydata --seed 1 --out ./others`.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from reid.plain import joined

import evaluate
from instructions import asked_tasks, query_instruction
from reid.checkpoints import load_model
from reid.features import Features, matched_first
from reid.folders import open_all
from reid.protocols import STRICT, TEXT

WEIGHTS = (0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 1)
LOGIT_WEIGHTS = (0, 0.5, 1, 1.5, 2)


def plain_galleries(features, data, task):
    """Prints a row for each weight, with the query's photo and with a stranger's."""
    [dataset] = open_all(f"{data}/COCAS", asked_tasks(task))
    queries, gallery = evaluate.sides(dataset)
    _, (query_person, asked), (person, shown) = evaluate.plain_parts(
        features, dataset, queries, gallery
    )
    strangers = evaluate.other_people(queries)

    for w in WEIGHTS:
        gallery_feats = joined(person, shown, w)
        texts = []
        for photo in (query_person, query_person[strangers]):
            query_feats = joined(photo, asked, w)
            [figures] = evaluate.rank_trials(STRICT, queries, gallery, query_feats, gallery_feats)
            texts.append(f"{100 * figures['mAP']:.1f} / {100 * figures['cmc'][0]:.1f}")
        print(f"{task} w {w}: {texts[0]}, a stranger's photo {texts[1]}", flush=True)


def second_stage(features, data):
    """Prints a row for each weight of the logit in similarity / temperature + weight * logit."""
    [dataset] = open_all(f"{data}/CUHK-PEDES", asked_tasks("t2i"))
    queries, gallery = evaluate.sides(dataset)
    captions = [query_instruction("t2i", record) for record in queries]
    [feats] = evaluate.side_features(features, dataset, queries, gallery)
    nearest, scores = features.matches(dataset, gallery, captions, *feats)

    similarity = (feats[0] @ feats[1].T).gather(1, nearest)
    similarity = similarity / features.model.temperature().item()
    logits = scores - similarity
    rules = {f"+ {weight} * logit": similarity + weight * logits for weight in LOGIT_WEIGHTS}
    rules["logit alone"] = logits
    for name, score in rules.items():
        [figures] = evaluate.rank_trials(
            TEXT, queries, gallery, *feats, stage=lambda *_: matched_first(nearest, score)
        )
        print(f"t2i {name}: {100 * figures['mAP']:.1f} / {100 * figures['cmc'][0]:.1f}", flush=True)


def main():
    checkpoint, data = sys.argv[1:]
    model, _ = load_model(checkpoint)
    features = Features(model)
    for task in ("li", "ctcc"):
        plain_galleries(features, data, task)
    second_stage(features, data)


if __name__ == "__main__":
    main()
