"""Interleaved timing, shared by the benchmarks."""

import statistics
import sys
import time


def medians(jobs, repeats):
    """{name: function} -> {name: median seconds}, the jobs in turn, so that a slow minute of the machine meets all of them."""
    times = {name: [] for name in jobs}
    for i in range(repeats):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            times[name].append(time.perf_counter() - start)
            print(f"\r  {name} {i + 1}/{repeats}: {times[name][-1]:.3f} s   ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {name: statistics.median(values) for name, values in times.items()}
