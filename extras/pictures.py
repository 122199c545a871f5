"""Pictures of a run: rankings, gates, and which words are read where.

    python -m extras.pictures --checkpoint runs/all/last.pt
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

import evaluate
import toydata
from instructions import TASKS
from reid import cli, pictures
from reid.device import inference, pick_device
from reid.images import load_image, normalise
from reid.protocols import OTHER_CLOTHES, columns, masks


def rank_rows(run, dataset, people=2):
    """RankRows of `people` queries under right and wrong instructions; the queries are spread
    evenly over those with a hit, not picked by result."""
    queries, gallery = evaluate.sides(dataset)
    queries, variants = evaluate.instruction_variants(run, dataset, queries, gallery)
    protocol = dataset.protocols[0]
    looks_for_others = "other clothes" in TASKS[dataset.task].targets
    if looks_for_others and any(evaluate.answerable(OTHER_CLOTHES, queries, gallery)):
        protocol = OTHER_CLOTHES
    places = [i for i, record in enumerate(gallery) if protocol.in_gallery(record)]
    gallery = [gallery[i] for i in places]
    asking = [i for i, record in enumerate(queries) if protocol.is_query(record)]
    has_hit = evaluate.answerable(protocol, [queries[i] for i in asking], gallery)
    asking = [i for i, hit in zip(asking, has_hit, strict=True) if hit]

    rows = []
    for place in np.linspace(0, len(asking) - 1, min(people, len(asking))).astype(int):
        i = asking[place]
        [positive], [removed] = masks(protocol, *columns([queries[i]], gallery))
        verdicts = np.where(positive, pictures.HIT, pictures.MISS)
        verdicts = np.where(removed, pictures.REMOVED, verdicts)
        for name, (asks, query_feats, gallery_feats) in variants.items():
            similarity = (gallery_feats[places] @ query_feats[i]).cpu().numpy()
            order = np.argsort(-similarity, kind="stable")
            order = pictures.top_of(order, verdicts)
            ranking = [(gallery[j], verdicts[j]) for j in order]
            rows.append(pictures.RankRow(dataset, queries[i], name, asks[i], ranking))
    return rows


def draw(run, datasets):
    """{name: picture}: the gates, and for each data set its rankings and the attention to the words
    of the first query's instruction."""
    editing = run.model.editing
    drawn = {"gates": pictures.gates(run.model)} if editing else {}
    for dataset in datasets:
        rows = rank_rows(run, dataset)
        if not rows:  # no query has a hit
            continue
        name = f"{dataset.name}_{dataset.task}".replace(":", "-")
        drawn[f"ranking_{name}"] = pictures.ranking_list(rows)
        query = rows[0].query
        ask = rows[0].ask
        if editing and query.path and not ask.picture:  # words edit an image
            with inference(run.model, run.amp) as device:
                image = load_image(dataset.root / query.path, run.model.size)[None].to(device)
                words = pictures.word_attention(run.model, normalise(image), ask.words)
            drawn[f"attention_{name}"] = words
    return drawn


@dataclass
class Config:
    """Draws rankings under right and wrong instructions, the gates, and which words are read where.

    python -m extras.pictures --checkpoint runs/all/last.pt --task cc
    """

    checkpoint: str = cli.option(
        None, "a last.pt that train.py wrote; None = runs/all/last.pt or, before the first run, a "
        "model of drawn people")
    task: str = cli.option(None, "only this task; None = those of the run", ("all", *TASKS))
    data: str = cli.option(None, "data set, or folder of data sets; None = that of the run")
    out: str = cli.option(None, "the folder to write into; None = that of the checkpoint")
    device: str = cli.option("auto", "auto takes a GPU if it is there")


def main(config):
    checkpoint = evaluate.chosen_checkpoint(config.checkpoint)
    model, trained = evaluate.load_model(checkpoint)
    model.to(pick_device(config.device))
    data = config.data or trained["data"]
    toydata.provide(data)
    datasets = evaluate.tested_datasets(data, config.task or trained["task"])

    run = evaluate.Run(model, trained["feature"], amp=trained["amp"])
    is_run = checkpoint != evaluate.TRAINED
    folder = Path(config.out or (Path(checkpoint).parent if is_run else "runs"))
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in draw(run, datasets).items():
        pictures.save(picture, folder / f"{name}.png")
        print(f"wrote {folder / name}.png")


if __name__ == "__main__":
    cli.run(main, Config)
