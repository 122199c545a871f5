"""The difference of two runs by hand, and how often its interval holds the truth."""

import numpy as np
import pytest

from reid.compare import differences, paired_bootstrap


def test_a_query_counts_with_its_mean_over_the_trials_and_only_with_a_hit():
    first = [{"mAP": np.array([0.2, np.nan, 0.4]), "R1": np.array([0.0, np.nan, 1.0])},
             {"mAP": np.array([0.4, np.nan, 0.4]), "R1": np.array([1.0, np.nan, 1.0])}]
    second = [{"mAP": np.array([0.5, np.nan, 0.6]), "R1": np.array([1.0, np.nan, 1.0])}]
    mAP, R1 = differences(first, second)

    assert mAP["figure"] == "mAP" and R1["figure"] == "R1"
    assert mAP["queries"] == R1["queries"] == 2
    assert mAP["first"] == pytest.approx(0.35) and mAP["second"] == pytest.approx(0.55)
    assert mAP["difference"] == mAP["low"] == mAP["high"] == pytest.approx(0.2)  # of both queries
    assert R1["difference"] == pytest.approx(0.25)
    assert (R1["low"], R1["high"]) == pytest.approx((0, 0.5))


def test_paired_bootstrap_knows_noise_from_difference():
    rng = np.random.default_rng(0)
    hard = rng.random(400)  # how hard a query is: far more spread than the difference of the runs
    better, low, high = paired_bootstrap(hard, hard + 0.02 + 0.05 * rng.standard_normal(400))
    assert low < better < high and low > 0 and high - low < 0.015
    _, low, high = paired_bootstrap(hard, hard + 0.05 * rng.standard_normal(400))
    assert low < 0 < high
    assert paired_bootstrap(hard, hard) == (0, 0, 0)


def test_paired_bootstrap_covers_the_truth_95_times_in_100():
    rng = np.random.default_rng(1)
    intervals = [paired_bootstrap(np.zeros(60), rng.standard_normal(60) + 1, 400, seed)[1:] for seed in range(300)]
    assert 0.90 < np.mean([low < 1 < high for low, high in intervals]) < 0.98
