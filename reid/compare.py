"""Two runs on the same queries: their difference, and how sure it is.

Figures are fractions. Letters in shapes: q queries.
"""

import numpy as np

FIGURES = ("mAP", "R1")


def differences(first, second):
    """Rows, one for each of FIGURES: the means of two runs, second - first and its 95 % interval.

    first, second: for each trial, {"mAP": (q,), "R1": (q,)} of the same queries, NaN for one
    without a hit. A query counts with its mean over the trials.
    """
    rows = []
    for figure in FIGURES:
        first_mean = _mean_of_trials(first, figure)
        second_mean = _mean_of_trials(second, figure)
        difference, low, high = paired_bootstrap(first_mean, second_mean)
        rows.append({
            "figure": figure,
            "queries": len(first_mean),
            "first": first_mean.mean(),
            "second": second_mean.mean(),
            "difference": difference,
            "low": low,
            "high": high,
        })
    return rows


def paired_bootstrap(first, second, resamples=5000, seed=0):
    """Mean of second - first and its 95 % interval: (difference, low, high). first, second (q,).

    The queries are drawn with replacement, each with both of its figures, so what makes a query
    hard cancels out. The interval speaks of other queries of this data set, not of other training
    runs.
    """
    difference = np.asarray(second) - np.asarray(first)
    rng = np.random.default_rng(seed)

    means = []
    for _ in range(resamples):
        drawn = rng.choice(difference, len(difference))
        means.append(drawn.mean())

    low, high = np.quantile(means, (0.025, 0.975))
    return float(difference.mean()), float(low), float(high)


def _mean_of_trials(trials, figure):
    """The figure of each query that has a hit."""
    values = [trial[figure] for trial in trials]
    mean = np.mean(values, 0)
    return mean[~np.isnan(mean)]
