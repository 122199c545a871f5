"""The protocol of each data set: reference figures, and short rankings worked by hand."""

import random

import numpy as np
import pytest
import torch

from evaluate import Retrieval, rank, ranking_metrics
from reid.layouts import LAYOUTS
from reid.protocols import GENERAL, columns, masks, trials
from reid.records import Record
from tests.reference import golden

CASES = ("basic", "invalid", "one_gallery_cam", "small_gallery", "random", "large", "one_outfit")
GOLDEN = [  # of whom, whose figures
    ("market", "trad", "general", "market"), ("msmt17", "trad", "general", "market"),
    ("market", "trad", "general", "market_torchreid"), ("ltcc", "cc", "general", "general"),
    ("market", "trad", "general", "instructreid_top500"),
    ("cuhk03", "trad", "new (767/700)", "market"),
    ("ltcc", "cc", "cc", "cc"), ("ltcc", "cc", "sc", "sc"), ("vc-clothes", "cc", "all", "general"),
    ("vc-clothes", "cc", "all-cc", "cc"), ("vc-clothes", "cc", "all-sc", "sc"),
    ("llcm", "vi", "ir-to-vis", "llcm"), ("llcm", "vi", "vis-to-ir", "llcm"),
    ("llcm", "vi", "vis-to-ir-deen", "llcm"), ("cocas", "ctcc", "id-only", "instructreid_full"),
    ("cocas", "li", "id-only", "instructreid_full"),
]


def protocol(layout, task, name):
    [found] = [each for each in LAYOUTS[layout].protocols[task] if each.name == name]
    return found


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("which", GOLDEN, ids=" ".join)
def test_reference_figures(name, which):
    z = golden(f"rank_metrics/{name}.npz")
    *p, key = which
    p = protocol(*p)

    def side(q_or_g):
        columns = (z[f"{q_or_g}_{key}"] for key in ("pids", "camids", "clothids"))
        return [Record("x", "test", "", int(pid), int(cam), clothes=str(clothes))
                for pid, cam, clothes in zip(*columns, strict=True)]

    positive, removed = masks(p, *columns(side("q"), side("g")))
    if (name, key) == ("one_outfit", "cc"):  # the reference answers 0 where no query has a hit
        assert not (positive & ~removed).any()
        return
    window = 500 if key == "instructreid_top500" else None
    people = z["g_pids"] if p.people else None
    ours = ranking_metrics(z["distmat"], positive, removed, window, people)
    assert abs(ours["mAP"] - z[f"{key}_map"]) < 1e-6
    assert np.abs(ours["cmc"][:len(z[f"{key}_cmc"])] - z[f"{key}_cmc"]).max() < 1e-6
    assert f"{key}_minp" not in z or abs(ours["mINP"] - z[f"{key}_minp"]) < 1e-6
    assert f"{key}_valid_query" not in z or ours["queries"] == z[f"{key}_valid_query"].sum()


def image(pid, cam, clothes=None, name="", modality="rgb"):
    path = name or f"{pid}_{cam}_{clothes}"
    return Record("x", "test", path, pid, cam, f"{pid}:{clothes}", modality)


def figures(p, query_places, gallery_places):
    """The figures where an image lies at a place on a quarter circle.

    Places: (record, degrees); smaller angles are nearer to 0.
    """
    def feats(places):
        angle = torch.tensor([degrees for _, degrees in places], dtype=torch.float64).deg2rad()
        return torch.stack([angle.cos(), angle.sin()], 1).float()
    sides = [[record for record, _ in places] for places in (query_places, gallery_places)]
    return rank(p, Retrieval(*sides, feats(query_places), feats(gallery_places)))


def at(*records):
    """The records every 10 degrees."""
    return [(record, 10 * k) for k, record in enumerate(records, 1)]


def test_prcc_multi_shot():
    queries = [(image(1, 2, "C"), 0), (image(1, 1, "AB"), 0), (image(3, 2, "C"), 0)]
    gallery = at(*(image(pid, 0, "AB") for pid in (2, 1, 2, 1)))
    for name, without in (("cross multi-shot", 1), ("same multi-shot", 0)):  # 3 is only under C
        row = figures(protocol("prcc", "cc", name), queries, gallery)
        assert (row["trials"], row["queries"], row["without"], row["gallery"]) == (1, 1, without, 4)
        assert row["mAP"] == pytest.approx((1 / 2 + 2 / 4) / 2)
        assert (row["R1"], row["R5"]) == (0, 1)


def test_prcc_single_shot_takes_one_image_of_a_person_in_ten_seeded_trials():
    """People in the order of their numbers, 1, 2, 10, whatever the order of the folder."""
    gallery = at(*(image(pid, 0, "AB", f"{pid}_{k}.jpg") for pid in (10, 1, 2) for k in range(3)))
    places = {record.path: degrees for record, degrees in gallery}
    p = protocol("prcc", "cc", "cross single-shot")
    ranks = []
    for seed, (_, indices) in enumerate(trials(p, [], [record for record, _ in gallery])):
        rng = random.Random(seed)
        chosen = [f"{pid}_{rng.choice(range(3))}.jpg" for pid in (1, 2, 10)]
        assert [gallery[i][0].path for i in indices] == chosen
        nearest = sorted(chosen, key=places.get)
        ranks.append(nearest.index(chosen[0]) + 1)
    row = figures(p, [(image(1, 2, "C"), 0)], gallery[::-1])
    assert (row["trials"], row["queries"], row["gallery"]) == (10, 1, 3)
    assert row["mAP"] == pytest.approx(sum(1 / rank for rank in ranks) / 10)


def test_vc_clothes_subsets_of_cameras():
    queries = [(image(1, cam, clothes), 0) for cam, clothes in ((3, "1"), (4, "2"), (1, "0"))]
    gallery = at(image(1, 3, "1"), image(2, 2, "1"), image(1, 2, "1"), image(2, 4, "1"),
                 image(1, 4, "2"), image(1, 1, "0"))
    # all: without its own image camera 3 sees 2 [1] 2 [1] [1], camera 4 sees [1] 2 [1] 2 [1],
    # camera 1 the same
    row = figures(protocol("vc-clothes", "cc", "all"), queries, gallery)
    own = (1 / 2 + 2 / 4 + 3 / 5) / 3
    others = (1 + 2 / 3 + 3 / 5) / 3
    assert row["queries"] == 3 and row["mAP"] == pytest.approx((own + 2 * others) / 3)
    # cc: cameras 3 and 4 on both sides. Camera 3 sees 2 [1], camera 4 sees [1] 2
    row = figures(protocol("vc-clothes", "cc", "cc"), queries, gallery)
    assert (row["queries"], row["gallery"]) == (2, 3)
    assert row["mAP"] == pytest.approx((1 / 2 + 1) / 2)
    # sc: cameras 2 and 3. The query of camera 3 sees 2 [1]
    row = figures(protocol("vc-clothes", "cc", "sc"), queries, gallery)
    assert (row["queries"], row["gallery"]) == (1, 3) and row["mAP"] == pytest.approx(1 / 2)
    # all-cc: nothing of the query's own clothes or camera. all-sc: only these, by another camera
    row = figures(protocol("vc-clothes", "cc", "all-cc"), queries[:1], gallery)
    assert row["mAP"] == pytest.approx((1 / 3 + 2 / 4) / 2)
    row = figures(protocol("vc-clothes", "cc", "all-sc"), queries, gallery)
    assert (row["queries"], row["without"]) == (1, 2) and row["mAP"] == pytest.approx(1 / 2)


def test_llcm_directions_and_the_transposed_one():
    who = ((1, 1, 0), (1, 1, 1), (1, 2, 0), (2, 1, 0))
    images = [image(pid, cam, name=f"{kind}{pid}{cam}{k}", modality=kind)
              for kind in ("rgb", "ir") for pid, cam, k in who]
    rgb = {0, 1, 2, 3}
    ir = {4, 5, 6, 7}
    sampled = {}
    for name, queries, gallery, side in (
            ("ir-to-vis", ir, rgb, 1), ("vis-to-ir", rgb, ir, 1), ("vis-to-ir-deen", ir, rgb, 0)):
        runs = trials(protocol("llcm", "vi", name), images, images)
        assert len(runs) == 10
        for run in runs:
            assert set(run[0]) <= queries and set(run[1]) <= gallery
            assert len(run[side]) == 3 and len(run[1 - side]) == 4  # one per person and camera
        sampled[name] = [run[side] for run in runs]
        assert len({tuple(each) for each in sampled[name]}) == 2
    assert sampled["vis-to-ir"] == sampled["vis-to-ir-deen"]
    assert [p.named for p in LAYOUTS["llcm"].protocols["vi"]] == [False, False, True]


def test_llcm_transposed_by_hand():
    """Two infrared queries, five visible images. CMC counts people, AP images."""
    queries = [(image(1, 1, modality="ir"), 0), (image(2, 1, modality="ir"), 90)]
    gallery = [(image(pid, cam, k), degrees) for k, (pid, cam, degrees) in enumerate(
        ((1, 1, 5), (2, 2, 10), (2, 3, 20), (1, 2, 30), (2, 1, 80)))]
    both = queries + gallery
    row = figures(protocol("llcm", "vi", "vis-to-ir-deen"), both, both)
    # person 1: (own camera removed) 2 2 [1] 2; person 2: (own camera removed) 1 [2] [2] 1
    assert (row["queries"], row["gallery"], row["trials"]) == (2, 5, 10)
    assert row["mAP"] == pytest.approx((1 / 3 + (1 / 2 + 2 / 3) / 2) / 2)
    assert (row["R1"], row["R5"]) == (0, 1)


def test_text_to_image_and_the_wanted_clothes():
    query = Record("x", "query", None, 1, modality="text")
    row = figures(protocol("cuhk-pedes", "t2i", "text-to-image"), [(query, 0)],
                  at(Record("x", "gallery", "", 2), *[Record("x", "gallery", "", 1)] * 2))
    assert row["gallery"] == 3 and row["R1"] == 0  # no camera is known: nothing is removed
    assert row["mAP"] == pytest.approx((1 / 2 + 2 / 3) / 2)

    asked = Record("x", "query", "", 1, 1, target_clothes="1:b")
    gallery = at(image(1, 2, "a"), image(1, 1, "b"), image(2, 2, "b"), image(1, 2, "b"))
    for name, wanted in (("strict", 1 / 3), ("id-only", (1 + 2 / 3) / 2)):
        for task in LAYOUTS["cocas"].protocols:
            row = figures(protocol("cocas", task, name), [(asked, 0)], gallery)
            assert row["mAP"] == pytest.approx(wanted)


def test_junk_is_removed_whoever_it_is_and_distractors_stay():
    gallery = [Record("x", "gallery", "", -1, 2, junk=True), Record("x", "gallery", "", 0, 2),
               Record("x", "gallery", "", 1, None)]
    positive, removed = masks(GENERAL, *columns([Record("x", "query", "", 1, None)], gallery))
    assert removed.tolist() == [[True, False, False]]  # an unknown camera equals none
    assert positive.tolist() == [[False, False, True]]
