"""Comparison of runs on the same queries: differences and their confidence intervals.

Metrics are fractions. Letters in shapes: q queries, s seeds.
"""

import json

import numpy as np

from reid.cli import UserError
from reid.files import read_json, write_text

FIGURES = ("mAP", "R1")
HEADING = ("task", "data", "target", "protocol", "feature", "instruction")  # identify a row


def comparison(first, second):
    """`differences` of the rows that two tables have in common."""
    of_second = {row_key(row): row for row in second}
    rows = []
    for row in first:
        if row_key(row) in of_second:
            heading = {name: row[name] for name in HEADING if name in row}
            found = differences(row["each"], of_second[row_key(row)]["each"])
            rows += [heading | figures for figures in found]
    if not rows:
        raise UserError("the two runs have no row in common: evaluate both on the same data")
    return rows


def differences(first, second):
    """A row for each of FIGURES: the means of two runs, second - first and its 95 % interval.

    first, second: for each trial, {"mAP": (q,), "R1": (q,)} of the same queries, NaN for a query
    without a hit. The figure of a query is its mean over the trials.
    """
    rows = []
    for figure in FIGURES:
        first_mean = mean_of_trials(first, figure)
        second_mean = mean_of_trials(second, figure)
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
    """Mean of second - first and its 95 % interval: (difference, low, high).

    first, second (q): two runs. Queries are sampled with replacement, each with both of its
    figures, so that the difficulty of a query cancels out. The interval is about other queries of
    this data set, not about other training runs.

    first, second (s q): two ways of training, each with the same s >= 2 seeds. The interval is then
    about other seeds too. A few seeds cannot be sampled with replacement: with three, 4 % of the
    samples consist of the largest value only, and none is beyond it. Their error is sampled from
    Student's t with s - 1 degrees of freedom, which is wide: 13 standard errors for two seeds.
    """
    if np.shape(first) != np.shape(second):
        raise UserError(f"{np.shape(first)[-1]} queries cannot be compared with "
                        f"{np.shape(second)[-1]}: evaluate both runs on the same data")
    difference = np.atleast_2d(np.asarray(second) - np.asarray(first))
    rng = np.random.default_rng(seed)

    of_queries = difference.mean(0)
    means = []
    for _ in range(resamples):
        sample = rng.choice(of_queries, len(of_queries))
        means.append(sample.mean())

    seeds = len(difference)
    if seeds > 1:
        of_seeds = difference.mean(1)
        error = of_seeds.std(ddof=1) / np.sqrt(seeds)
        means += error * rng.standard_t(seeds - 1, resamples)

    low, high = np.quantile(means, (0.025, 0.975))
    return float(difference.mean()), float(low), float(high)


def mean_of_trials(trials, figure):
    """The mean figure of each query that has a hit, (q)."""
    values = [trial[figure] for trial in trials]
    mean = np.mean(values, 0)
    return mean[~np.isnan(mean)]


# ---- the figures of every query: queries.json in a run's folder ----

def row_key(row):
    """The key of a row, unique in a run."""
    return tuple(str(row.get(name, "")) for name in HEADING)


def move_queries(rows, path):
    """Removes "each", the figures of every query, from the rows and writes them as JSON; null for a
    query without a hit."""
    kept = []
    for row in rows:
        trials = []
        for trial in row.pop("each"):
            trials.append({figure: _as_json(values) for figure, values in trial.items()})
        kept.append({"row": row_key(row), "each": trials})
    write_text(path, json.dumps(kept) + "\n")


def _as_json(values):
    return [None if np.isnan(value) else round(float(value), 6) for value in values]


def read_queries(path):
    """{row_key: "each"} from a file of `move_queries`."""
    fix = "it is not what train.py writes, remove its folder"
    found = {}
    for entry in read_json(path, list, fix):
        try:
            key = row_key(dict(zip(HEADING, entry["row"], strict=True)))
            trials = [[trial[name] for name in FIGURES] for trial in entry["each"]]
            values = np.array(trials, float)  # of trials, figures, queries
            with_hit = values[:, :, ~np.isnan(values[0, 0])]
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise UserError(f"{path}: {error!r:.80}; {fix}") from error
        is_figure = (0 <= with_hit) & (with_hit <= 1)
        others = np.isfinite(values).sum() - with_hit.size
        if values.ndim != 3 or with_hit.size == 0 or others or not is_figure.all():
            raise UserError(f"{path}: {' '.join(key):.80} has figures of no ranking; {fix}")
        found[key] = [dict(zip(FIGURES, trial)) for trial in values]
    return found
