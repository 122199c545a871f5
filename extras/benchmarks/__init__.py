"""What the code costs: a training step, ranking, a step on a GPU.

    python -m extras.benchmarks.step
    python -m extras.benchmarks.evaluate
    python -m extras.benchmarks.gpu

Ratios measured in one run should carry over to other machines; times belong to the machine.
`--tiny` tries each in seconds.
"""

import statistics
import time
from pathlib import Path


def medians(jobs, repeats):
    """{name: function} -> {name: median seconds}. The jobs take turns, so that a slow minute of the
    machine meets all of them."""
    times = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_memory(job):
    """Bytes that a job takes beyond what the process has before it (Linux counts the peak)."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    job()
    return resident("VmHWM") - before


def resident(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(name)]
    return int(line.split()[1]) * 2**10
