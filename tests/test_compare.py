"""The interval of a difference: how often it holds the truth. (Whole runs are compared in test_evaluate.py.)"""

import numpy as np

from reid.compare import paired_bootstrap


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
