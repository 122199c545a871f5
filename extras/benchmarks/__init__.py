"""What the code costs: `python -m extras.benchmarks.step`, `.evaluate` and `.gpu`.

Timings are for the machine named; ratios should carry over. `--tiny` tries whether each runs.
"""
