"""Time and memory of the code: `python -m extras.benchmarks.step`, `.evaluate` and `.gpu`. `--tiny`
only checks that it runs."""
