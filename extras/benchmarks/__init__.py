"""What the code costs: `python -m extras.benchmarks.step`, `.evaluate` and `.gpu`. With `--tiny`
each only tries whether it runs."""
