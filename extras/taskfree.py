"""One gallery for all tasks, and hits consistent with the instruction (Instruct-ReID++, He et al.
2024, arXiv 2405.17790).

    python -m extras.taskfree --checkpoint runs/all/last.pt

Task-free: the test images of all other data sets in the folder, which show other people, are added
to the gallery of a task. Their instruction is the task's sentence, none for t2i and, for tasks with
one instruction per image, "change your clothes". Their instructions in the source are not known.

mAP at tau: a hit must also have an instruction whose cosine with the query's, of E_i's pooled
vectors, is at least tau. The source's definition of mAP_tau was not available; this follows its
idea that an answer must be consistent with the instruction.
"""

from dataclasses import dataclass, replace

import torch

import evaluate
import toydata
from instructions import PERSON_SENTENCE, TASKS, Ask, gallery_instruction
from reid import cli
from reid.device import full_precision_matmul, pick_device
from reid.protocols import columns, masks

TAUS = (0.5, 0.7, 0.9)


def task_free_rows(run, dataset, others):
    """Rows of each protocol, for the task's own gallery and for one with the images of `others`,
    Datasets with other people."""
    own = evaluate.task_retrieval(run, dataset)
    strangers = []
    feats = [own.gallery_feats]
    for other in others:
        _, records = evaluate.queries_and_gallery(other)
        records = [record for record in records if record.path]
        feats.append(run.features(other, records, gallery_asks(dataset.task, records)))
        strangers += records
    first = 1 + max(record.pid for record in own.gallery + own.queries)
    strangers = [replace(record, pid=first + i, cam=-1) for i, record in enumerate(strangers)]
    free = own._replace(gallery=own.gallery + strangers, gallery_feats=torch.cat(feats))

    rows = []
    for protocol in evaluate.chosen_protocols(dataset):
        heading = {"task": dataset.task, "data": dataset.title, "protocol": protocol.name}
        rows += [heading | {"gallery of": "the task"} | evaluate.rank(protocol, own)]
        rows += [heading | {"gallery of": "all tasks"} | evaluate.rank(protocol, free)]
    return rows


def gallery_asks(task, records):
    """The Asks of images of another data set in the gallery of a task."""
    if TASKS[task].text_only:
        return [None] * len(records)
    if TASKS[task].sentences:
        return [gallery_instruction(task, record) for record in records]
    return [Ask(PERSON_SENTENCE)] * len(records)


@full_precision_matmul()
def tau_rows(run, dataset, taus=TAUS):
    """Rows of a task with one instruction per image: mAP and R1 at each tau."""
    queries, gallery, *feats, asks = evaluate.task_retrieval(run, dataset)
    worn = [gallery_instruction(dataset.task, record) for record in gallery]
    wanted = run.features(dataset, queries, asks, "instruction")
    cosine = (wanted @ run.features(dataset, gallery, worn, "instruction").T).cpu().numpy()
    dist = -(feats[0] @ feats[1].T).cpu().numpy()
    protocol = dataset.protocols[-1]  # the person, in any clothes
    same, removed = masks(protocol, *columns(queries, gallery))
    rows = []
    for tau in taus:
        result = evaluate.ranking_metrics(dist, same & (cosine >= tau), removed)
        row = {"task": dataset.task, "data": dataset.title, "tau": str(tau)}
        row |= {"queries": result["queries"], "mAP": result["mAP"], "R1": float(result["cmc"][0])}
        rows.append(row)
    return rows


@dataclass
class Config:
    """Evaluates with one gallery for all tasks, and with hits consistent with the instruction.

    python -m extras.taskfree --checkpoint runs/all/last.pt
    """

    checkpoint: str = cli.option(
        None, "a last.pt of train.py; None = runs/all/last.pt or, if that does not exist, the "
        "bundled model of drawn people")
    data: str = cli.option(None, "folder of data sets; None = that of the run")
    device: str = cli.option("auto", "auto = a GPU if there is one, else the CPU")


def main(config):
    checkpoint = evaluate.chosen_checkpoint(config.checkpoint)
    model, trained = evaluate.load_model(checkpoint)
    run = evaluate.Run(model.to(pick_device(config.device)), trained["feature"], amp=trained["amp"])
    data = config.data or trained["data"]
    toydata.provide(data)
    datasets = evaluate.tested_datasets(data, trained["task"])

    tables = {"One gallery for all tasks": [], "Hits that agree with the instruction": []}
    free, agreeing = tables.values()
    for dataset in datasets:
        roots = {dataset.root: None}  # each data set once, even if it has several tasks
        others = [other for other in datasets if roots.setdefault(other.root, other) is other]
        name = f"{dataset.title} {dataset.task}"
        row = TASKS[dataset.task]
        with evaluate.left_out(name):
            free += task_free_rows(run, dataset, others)
        with evaluate.left_out(name):
            if not row.sentences and not row.text_only:
                agreeing += tau_rows(run, dataset)
    evaluate.show(tables)


if __name__ == "__main__":
    cli.run(main, Config)
