"""The protocol of each data set: reference figures, and short rankings worked by hand."""

import random

import numpy as np
import pytest
import torch

import evaluate
from evaluate import Retrieval, rank
from reid.cli import UserError
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
def test_reference_figures(name, which, monkeypatch):
    """Of all images, not of samples; ranked in chunks, by distances that another stage makes."""
    z = golden(f"rank_metrics/{name}.npz")
    *p, key = which
    p = protocol(*p)._replace(queries={}, gallery={}, cell=())
    monkeypatch.setattr(evaluate, "CHUNK", 7)

    def side(q_or_g):
        columns = (z[f"{q_or_g}_{key}"] for key in ("pids", "camids", "clothids"))
        return [Record("x", "test", "", int(pid), int(cam), clothes=str(clothes))
                for pid, cam, clothes in zip(*columns, strict=True)]

    sides = side("q"), side("g")
    feats = [torch.zeros(len(records), 1) for records in sides]
    recorded = lambda *_: lambda start, dist: z["distmat"][start:start + len(dist)]  # noqa: E731
    arguments = p, Retrieval(*sides, *feats), 500 if key == "instructreid_top500" else None
    if (name, key) == ("one_outfit", "cc"):  # the reference answers 0 where no query has a hit
        with pytest.raises(UserError, match="no query has a hit"):
            rank(*arguments, recorded)
        return
    row = rank(*arguments, recorded)
    cmc = z[f"{key}_cmc"]
    expected = {f"R{k}": cmc[k - 1].item() for k in (1, 5, 10) if k <= len(cmc)}
    expected["mAP"] = z[f"{key}_map"].item()
    expected["mINP"] = z[f"{key}_minp"].item() if f"{key}_minp" in z else row["mINP"]
    assert {figure: row[figure] for figure in expected} == pytest.approx(expected, abs=1e-6)
    assert f"{key}_valid_query" not in z or row["queries"] == z[f"{key}_valid_query"].sum()
    assert row["queries"] + row["without"] == len(sides[0])
    each = {figure: np.nanmean(values) for figure, values in row["each"][0].items()}
    assert each == pytest.approx({figure: row[figure] for figure in each})


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


AB = [image(pid, 0, "AB") for pid in (2, 1, 2, 1)]
CLOTHES = [image(1, 3, "1"), image(1, 4, "2"), image(1, 1, "0")]
IN_CLOTHES = [image(1, 3, "1"), image(2, 2, "1"), image(1, 2, "1"), image(2, 4, "1"),
              image(1, 4, "2"), image(1, 1, "0")]
DESCRIBED = [Record("x", "gallery", "", pid) for pid in (2, 1, 1)]
WORN = [image(1, 2, "a"), image(1, 1, "b"), image(2, 2, "b"), image(1, 2, "b")]


@pytest.mark.parametrize("layout, task, name, queries, gallery, counted, left, mAP", [
    # one with a hit, and one without; sees 2 [1] 2 [1]
    ("prcc", "cc", "cross multi-shot", [image(1, 2, "C"), image(1, 1, "AB"), image(3, 2, "C")], AB,
     (1, 1), 4, (1 / 2 + 2 / 4) / 2),
    ("prcc", "cc", "same multi-shot", [image(1, 2, "C"), image(1, 1, "AB")], AB,
     (1, 0), 4, (1 / 2 + 2 / 4) / 2),
    # cameras 3 and 4 on both sides: camera 3 sees 2 [1], camera 4 sees [1] 2
    ("vc-clothes", "cc", "cc", CLOTHES, IN_CLOTHES, (2, 0), 3, (1 / 2 + 1) / 2),
    # cameras 2 and 3: the query of camera 3 sees 2 [1]
    ("vc-clothes", "cc", "sc", CLOTHES, IN_CLOTHES, (1, 0), 3, 1 / 2),
    # no camera is known, so nothing is removed: 2 [1] [1]
    ("cuhk-pedes", "t2i", "text-to-image", [Record("x", "query", None, 1, modality="text")],
     DESCRIBED, (1, 0), 3, (1 / 2 + 2 / 3) / 2),
    # without its own camera: 1 2 [1], or [1] 2 [1] whatever they wear
    *((layout, task, name, [Record("x", "query", "", 1, 1, target_clothes="1:b")], WORN,
       (1, 0), 4, mAP)
      for layout, task in (("cocas", "ctcc"), ("cocas", "li"))
      for name, mAP in (("strict", 1 / 3), ("id-only", (1 + 2 / 3) / 2))),
])
def test_a_short_ranking_by_hand(layout, task, name, queries, gallery, counted, left, mAP):
    row = figures(protocol(layout, task, name), [(query, 0) for query in queries], at(*gallery))
    assert (row["queries"], row["without"]) == counted
    assert (row["trials"], row["gallery"]) == (1, left)
    assert row["mAP"] == pytest.approx(mAP)


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


def test_junk_is_removed_whoever_it_is_and_distractors_stay():
    gallery = [Record("x", "gallery", "", -1, 2, junk=True), Record("x", "gallery", "", 0, 2),
               Record("x", "gallery", "", 1, None)]
    positive, removed = masks(GENERAL, *columns([Record("x", "query", "", 1, None)], gallery))
    assert removed.tolist() == [[True, False, False]]  # an unknown camera equals none
    assert positive.tolist() == [[False, False, True]]
