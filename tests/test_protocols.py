"""The protocol of each data set: reference figures, and rankings of at most 8 images worked by hand."""

import random

import numpy as np
import pytest
import torch

from tests.reference import golden
from evaluate import average, rank_trials, ranking_metrics
from reid.layouts import protocols_of
from reid.protocols import columns, masks, trials
from reid.records import Dataset, Record

CASES = ("basic", "invalid", "one_gallery_cam", "small_gallery", "random", "large", "one_outfit")
GOLDEN = {
    ("market", "trad", "general"): "market", ("msmt17", "trad", "general"): "market",
    ("cuhk03", "trad", "new (767/700)"): "market", ("ltcc", "cc", "general"): "general",
    ("ltcc", "cc", "cc"): "cc", ("ltcc", "cc", "sc"): "sc", ("vc-clothes", "cc", "all"): "general",
    ("vc-clothes", "cc", "all-cc"): "cc", ("vc-clothes", "cc", "all-sc"): "sc", ("llcm", "vi", "ir-to-vis"): "llcm",
    ("llcm", "vi", "vis-to-ir"): "llcm", ("llcm", "vi", "vis-to-ir-deen"): "llcm",
    ("cocas", "ctcc", "id-only"): "instructreid_full", ("cocas", "li", "id-only"): "instructreid_full",
    ("omnireid", "cc", "general"): "instructreid_full"}


def protocol(layout, task, name):
    [found] = [p for p in protocols_of(Dataset(layout, "", task, None, ())) if p.name == name]
    return found


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("which", GOLDEN, ids=" ".join)
def test_reference_figures(name, which):
    z, key, p = golden(f"rank_metrics/{name}.npz"), GOLDEN[which], protocol(*which)
    queries, gallery = ([Record(which[0], role, "", int(pid), int(cam), clothes=str(clothes)) for pid, cam, clothes in
                         zip(z[f"{side}_pids"], z[f"{side}_camids"], z[f"{side}_clothids"])]
                        for role, side in (("query", "q"), ("gallery", "g")))
    positive, removed = masks(p, *columns(queries, gallery))
    if (name, key) == ("one_outfit", "cc"):  # the reference answers 0 where no query has a hit; here that is an error
        assert not (positive & ~removed).any()
        return
    ours = ranking_metrics(z["distmat"], positive, removed, gallery_ids=z["g_pids"] if p.people else None)
    assert abs(ours["mAP"] - z[f"{key}_map"]) < 1e-6
    assert np.abs(ours["cmc"][:len(z[f"{key}_cmc"])] - z[f"{key}_cmc"]).max() < 1e-6
    if key == "market":
        assert abs(ours["mAP"] - z["cuhk03_map"]) < 1e-6  # CUHK03's old evaluation differs only in CMC


def image(dataset, pid, cam, clothes=None, name="", modality="rgb"):
    return Record(dataset, "", name or f"{pid}_{cam}_{clothes}", pid, cam, f"{pid}:{clothes}", modality)


def figures(p, query_places, gallery_places):
    """The figures where an image lies at a place on a quarter circle: (record, degrees); smaller angles are nearer to 0."""
    def feats(places):
        angle = torch.tensor([degrees for _, degrees in places], dtype=torch.float64).deg2rad()
        return torch.stack([angle.cos(), angle.sin()], 1).float()
    sides = [[record for record, _ in places] for places in (query_places, gallery_places)]
    return average(rank_trials(p, *sides, feats(query_places), feats(gallery_places)))


def test_prcc_multi_shot():
    queries = [(image("prcc", 1, 2, "C"), 0), (image("prcc", 1, 1, "AB"), 0), (image("prcc", 3, 2, "C"), 0)]
    gallery = [(image("prcc", 2, 0, "AB"), 10), (image("prcc", 1, 0, "AB"), 20), (image("prcc", 2, 0, "AB"), 30),
               (image("prcc", 1, 0, "AB"), 40)]
    for name, without in (("cross multi-shot", 1), ("same multi-shot", 0)):  # person 3 is only under camera C
        row = figures(protocol("prcc", "cc", name), queries, gallery)
        assert (row["trials"], row["queries"], row["without"], row["gallery"]) == (1, 1, without, 4)
        assert row["mAP"] == pytest.approx((1 / 2 + 2 / 4) / 2) and row["R1"] == 0 and row["R5"] == 1


def test_prcc_single_shot_draws_one_image_of_a_person_in_ten_seeded_trials():
    queries = [(image("prcc", 1, 2, "C"), 0)]
    gallery = [(image("prcc", pid, 0, "AB", f"test/A/{pid:03d}/cropped_rgb{k:03d}.jpg"), degrees)
               for pid, k, degrees in ((2, 2, 40), (1, 2, 30), (2, 1, 20), (1, 1, 10))]
    p = protocol("prcc", "cc", "cross single-shot")
    firsts = []
    for seed in range(10):  # people in order, names in order, one choice each
        rng = random.Random(seed)
        of_1, of_2 = rng.choice((10, 30)), rng.choice((20, 40))
        firsts.append(1 if of_1 < of_2 else 2)
    assert 0 < firsts.count(2) < 10
    row = figures(p, queries, gallery)
    assert (row["trials"], row["queries"], row["gallery"]) == (10, 1, 2)
    assert row["R1"] == pytest.approx(firsts.count(1) / 10)
    assert row["mAP"] == pytest.approx(sum(1 / rank for rank in firsts) / 10)
    assert row == figures(p, queries, gallery[::-1])  # the order of the folder does not matter


def test_vc_clothes_subsets_of_cameras():
    queries = [(image("vc-clothes", 1, cam, clothes), 0) for cam, clothes in ((3, "1"), (4, "2"), (1, "0"))]
    gallery = [(image("vc-clothes", *who), 10 * k) for k, who in enumerate((
        (1, 3, "1"), (2, 2, "1"), (1, 2, "1"), (2, 4, "1"), (1, 4, "2"), (1, 1, "0")), 1)]
    # all: without its own image camera 3 sees 2 [1] 2 [1] [1], camera 4 sees [1] 2 [1] 2 [1], camera 1 the same
    row = figures(protocol("vc-clothes", "cc", "all"), queries, gallery)
    own, others = (1 / 2 + 2 / 4 + 3 / 5) / 3, (1 + 2 / 3 + 3 / 5) / 3
    assert row["queries"] == 3 and row["mAP"] == pytest.approx((own + 2 * others) / 3)
    # cc: cameras 3 and 4 on both sides. Camera 3 sees 2 [1], camera 4 sees [1] 2
    row = figures(protocol("vc-clothes", "cc", "cc"), queries, gallery)
    assert (row["queries"], row["gallery"]) == (2, 3) and row["mAP"] == pytest.approx((1 / 2 + 1) / 2)
    # sc: cameras 2 and 3. The query of camera 3 sees 2 [1]
    row = figures(protocol("vc-clothes", "cc", "sc"), queries, gallery)
    assert (row["queries"], row["gallery"]) == (1, 3) and row["mAP"] == pytest.approx(1 / 2)
    # all-cc: nothing of the query's own clothes or camera. all-sc: only these clothes, by another camera
    row = figures(protocol("vc-clothes", "cc", "all-cc"), queries[:1], gallery)
    assert row["mAP"] == pytest.approx((1 / 3 + 2 / 4) / 2)
    row = figures(protocol("vc-clothes", "cc", "all-sc"), queries, gallery)
    assert (row["queries"], row["without"]) == (1, 2) and row["mAP"] == pytest.approx(1 / 2)


def test_llcm_directions_and_the_transposed_one():
    images = [image("llcm", pid, cam, name=f"{kind}{pid}{cam}{k}", modality=kind)
              for kind in ("rgb", "ir") for pid, cam, k in ((1, 1, 0), (1, 1, 1), (1, 2, 0), (2, 1, 0))]
    rgb, ir = {0, 1, 2, 3}, {4, 5, 6, 7}
    for name, asked, shown, drawn in (("ir-to-vis", ir, rgb, 1), ("vis-to-ir", rgb, ir, 1),
                                      ("vis-to-ir-deen", ir, rgb, 0)):
        runs = trials(protocol("llcm", "vi", name), images, images)
        assert len(runs) == 10
        for run in runs:
            assert set(run[0]) <= asked and set(run[1]) <= shown
            assert len(run[drawn]) == 3 and len(run[1 - drawn]) == 4  # one per person and camera; all of them
        assert {min(run[drawn]) for run in runs} == {min((asked, shown)[drawn]), min((asked, shown)[drawn]) + 1}
    assert [run[1] for run in trials(protocol("llcm", "vi", "vis-to-ir"), images, images)] == [
        run[0] for run in trials(protocol("llcm", "vi", "vis-to-ir-deen"), images, images)]  # drawn alike, as queries
    assert protocol("llcm", "vi", "vis-to-ir-deen").named


def test_llcm_transposed_by_hand():
    """Two infrared images ask; three visible ones answer. CMC counts people, AP images."""
    queries = [(image("llcm", 1, 1, modality="ir"), 0), (image("llcm", 2, 1, modality="ir"), 90)]
    gallery = [(image("llcm", pid, cam, k), degrees) for k, (pid, cam, degrees) in enumerate(
        ((1, 1, 5), (2, 2, 10), (2, 3, 20), (1, 2, 30), (2, 1, 80)))]
    both = queries + gallery
    row = figures(protocol("llcm", "vi", "vis-to-ir-deen"), both, both)
    # person 1: (own camera removed) 2 2 [1] 2; person 2: (own camera removed) 1 [2] [2] 1
    assert (row["queries"], row["gallery"], row["trials"]) == (2, 5, 10)
    assert row["mAP"] == pytest.approx((1 / 3 + (1 / 2 + 2 / 3) / 2) / 2)
    assert row["R1"] == 0 and row["R5"] == 1


def test_text_to_image_removes_nothing():
    queries = [(Record("cuhk-pedes", "query", None, 1, modality="text"), 0)]
    gallery = [(Record("cuhk-pedes", "gallery", "", pid), degrees) for pid, degrees in ((2, 10), (1, 20), (1, 30))]
    row = figures(protocol("cuhk-pedes", "t2i", "text-to-image"), queries, gallery)
    assert row["gallery"] == 3 and row["mAP"] == pytest.approx((1 / 2 + 2 / 3) / 2) and row["R1"] == 0


@pytest.mark.parametrize("which", (("msmt17", "trad", "general"), ("cuhk03", "trad", "new (767/700)")))
def test_same_camera_is_removed(which):
    queries = [(image(which[0], 1, 1), 0)]
    gallery = [(image(which[0], *who), 10 * k) for k, who in enumerate(((1, 1), (2, 1), (1, 2), (1, 3)), 1)]
    assert figures(protocol(*which), queries, gallery)["mAP"] == pytest.approx((1 / 2 + 2 / 3) / 2)
