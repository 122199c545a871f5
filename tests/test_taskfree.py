"""One gallery for all tasks, and hits that agree with the instruction, on painted images."""

import shutil

import numpy as np
import pytest

import evaluate
import extras.taskfree as taskfree
from evaluate import Run
from instructions import Ask
from tests.test_evaluate import ColourModel, cocas, ltcc, pedes, root  # noqa: F401


@pytest.mark.parametrize("make", [lambda folder: cocas(folder, "li"), ltcc, pedes])
def test_strangers_join_the_gallery_and_are_never_a_hit(  # noqa: F811
        root, make, tmp_path_factory, monkeypatch):  # noqa: F811
    dataset = make(root)
    elsewhere = shutil.copytree(root, tmp_path_factory.mktemp("elsewhere"), dirs_exist_ok=True)
    others = [cocas(elsewhere, "ctcc"), ltcc(elsewhere)]
    others = [each for each in others if each.name != dataset.name]
    read = []
    batches = evaluate.batches
    monkeypatch.setattr(evaluate, "batches", lambda root, paths, *size: (
        read.extend([root] * len(paths)) or batches(root, paths, *size)))
    run = Run(ColourModel(listen=0.5))
    rows = taskfree.task_free_rows(run, dataset, others)
    count = sum(len(evaluate.queries_and_gallery(other)[1]) for other in others)
    assert read.count(elsewhere) == count
    for own, free in zip(rows[::2], rows[1::2]):
        assert (own["gallery of"], free["gallery of"]) == ("the task", "all tasks")
        assert free["gallery"] == own["gallery"] + count and free["queries"] == own["queries"]
        for one, two in zip(own["each"], free["each"]):
            assert np.all((two["mAP"] <= one["mAP"]) | np.isnan(one["mAP"]))
    nearer = any(free["mAP"] < own["mAP"] for own, free in zip(rows[::2], rows[1::2]))
    assert nearer or dataset.task == "t2i"  # its captions name the colours exactly
    asks = taskfree.gallery_asks(dataset.task, dataset.split("gallery"))
    expected = {"li": Ask("change your clothes"), "cc": Ask("change your clothes"), "t2i": None}
    assert set(asks) == {expected[dataset.task]}


def test_a_hit_agrees_with_the_instruction_by_hand(root):  # noqa: F811
    dataset = cocas(root, "li")
    run = Run(ColourModel(listen=1.0))
    queries, gallery, *feats, asks = evaluate.task_retrieval(run, dataset)
    for row in taskfree.tau_rows(run, dataset, taus=(-1, 0.2, 0.99)):
        aps = []
        for query, ask, feat in zip(queries, asks, feats[0]):
            order = (-(feats[1] @ feat)).argsort(stable=True).tolist()
            hits = []
            for j in order:
                shown = run.model.instruct([gallery[j].captions[-1]]).pooled[0]
                wanted = run.model.instruct([ask.words]).pooled[0]
                cosine = shown @ wanted / shown.norm() / wanted.norm()
                hits.append(gallery[j].pid == query.pid and cosine.item() >= float(row["tau"]))
            places = [k for k, hit in enumerate(hits, 1) if hit]
            if places:
                aps.append(np.mean([(i + 1) / k for i, k in enumerate(places)]))
        assert row["mAP"] == pytest.approx(np.mean(aps)) and row["queries"] == len(aps)
