"""The difference of two runs by hand, its interval against a literal one, and queries.json."""

import json
import math
import random
import statistics

import numpy as np
import pytest

from reid import compare
from reid.cli import UserError
from reid.compare import HEADING, differences, paired_bootstrap, read_queries


def test_a_query_counts_with_its_mean_over_the_trials_and_only_with_a_hit():
    first = [{"mAP": np.array([0.2, np.nan, 0.4]), "R1": np.array([0.0, np.nan, 1.0])},
             {"mAP": np.array([0.4, np.nan, 0.4]), "R1": np.array([1.0, np.nan, 1.0])}]
    second = [{"mAP": np.array([0.5, np.nan, 0.6]), "R1": np.array([1.0, np.nan, 1.0])}]
    mAP, R1 = differences(first, second)

    assert [mAP["figure"], R1["figure"]] == [*compare.FIGURES]
    assert mAP["queries"] == R1["queries"] == 2
    assert mAP["first"] == pytest.approx(0.35) and mAP["second"] == pytest.approx(0.55)
    assert mAP["difference"] == mAP["low"] == mAP["high"] == pytest.approx(0.2)  # of both queries
    assert R1["difference"] == pytest.approx(0.25)
    assert (R1["low"], R1["high"]) == pytest.approx((0, 0.5))
    with pytest.raises(UserError, match="2 queries cannot be compared with 1"):
        differences(first, [{name: values[1:] for name, values in second[0].items()}])


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_interval_equals_a_literal_one(seeds):
    """The queries are sampled with replacement, and seeds, where there are several, by Student's t:
    with replacement, the interval would hold the truth 76 times in 100."""
    rng = np.random.default_rng(3)
    hard = rng.random(40)  # how hard a query is: far more spread than the difference of the runs
    first = hard + 0.1 * rng.standard_normal((seeds, 40))
    second = hard + 0.1 * rng.standard_normal((seeds, 40))
    second += np.array([[0.02], [0.05], [0.11]])[:seeds]
    middle, low, high = paired_bootstrap(first, second)

    own = random.Random(5)
    of_queries = (second - first).mean(0).tolist()
    of_seeds = (second - first).mean(1).tolist()
    spread = statistics.stdev(of_seeds) / math.sqrt(seeds) if seeds > 1 else 0
    samples = []
    for _ in range(6000):
        normal, *others = [own.gauss() for _ in range(3)]
        student = normal / math.sqrt(sum(x * x for x in others) / 2)  # t, 2 degrees of freedom
        sampled = statistics.fmean(own.choices(of_queries, k=40))
        samples.append(sampled + student * spread)
    samples.sort()

    width = samples[5849] - samples[149]
    assert middle == pytest.approx(statistics.mean(of_seeds))
    assert (low, high) == pytest.approx((samples[149], samples[5849]), abs=0.1 * width)
    if seeds == 1:
        assert paired_bootstrap(first[0], second[0]) == (middle, low, high)


def test_rows_that_only_one_run_has_are_not_compared():
    row = dict.fromkeys(HEADING, "x") | {"each": []}
    with pytest.raises(UserError, match="no row"):
        compare.comparison([row], [row | {"feature": "F_out"}])


# ---- queries.json ----

ROW = tuple(f"a {name}" for name in HEADING)
RIGHT = {"mAP": [0.5, None], "R1": [1.0, None]}


def test_what_is_written_is_read_again(tmp_path):
    each = [{"mAP": np.array([1 / 3, np.nan]), "R1": np.array([0.0, np.nan])}] * 2
    row = dict(zip(HEADING, ROW)) | {"each": each, "mAP": 1 / 3}
    compare.move_queries([row], tmp_path / "q.json")
    assert "each" not in row and row["mAP"] == 1 / 3
    [(key, trials)] = read_queries(tmp_path / "q.json").items()
    assert key == ROW and len(trials) == 2
    assert np.array_equal(trials[1]["mAP"], [0.333333, np.nan], equal_nan=True)
    assert np.array_equal(trials[1]["R1"], [0, np.nan], equal_nan=True)


@pytest.mark.parametrize("content", [
    5, [5], [{"row": ROW}], [{"row": ROW[:4], "each": [RIGHT]}], [{"row": 5, "each": [RIGHT]}],
    *([{"row": ROW, "each": each}] for each in (
        5, [], [5], [{}], [{"mAP": [0.5]}], [RIGHT | {"R1": [1.0]}],
        [RIGHT, RIGHT | {"mAP": [0.5, 0.5]}], [RIGHT | {"mAP": [None, None], "R1": [None, None]}],
        [RIGHT | {"mAP": [1.5, None]}], [RIGHT | {"mAP": [-0.5, None]}],
        [RIGHT | {"mAP": [[0.5], [None]], "R1": [[1.0], [None]]}],
        [RIGHT | {"mAP": [float("inf"), None]}], [RIGHT | {"mAP": [10**400, None]}],
        [RIGHT | {"mAP": ["a", None]}], [{"mAP": [], "R1": []}],
    )),
])
def test_what_no_ranking_gave_is_refused(content, tmp_path):
    path = tmp_path / "q.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"q\.json: .*; it is not what train\.py writes"):
        read_queries(path)
