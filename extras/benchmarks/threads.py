"""How the threads of a training step wait for each other: `python benchmarks/threads.py`.

Steps of the toy model on all cores, alone and beside a program that keeps one core busy, with the
waiting that `import reid` asks for and with that of GCC's OpenMP by itself, and on one thread.
Medians over interleaved repeats; ratios travel, times do not. Some minutes on a quiet machine.
"""

import os
import statistics
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from reid.device import cores

STEPS = 10
REPEATS = 3
SETTINGS = {  # name -> what is set before torch is imported
    "short waiting (default)": {},
    "OpenMP's own waiting": {"GOMP_SPINCOUNT": "300000"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}

STEP = f"""
import sys, time
sys.path.insert(0, {os.path.dirname(os.path.dirname(os.path.abspath(__file__)))!r})
import reid
import torch
from model import InstructReID
from reid.text import EmbeddedTextEncoder
model = InstructReID("tiny", text=EmbeddedTextEncoder()).to(memory_format=torch.channels_last)
images = torch.randn(64, 3, 64, 32)
def step():
    out = model(images, model.instruct(["change your clothes"]))
    (out.neck.square().mean() + out.fused_neck.square().mean()).backward()
    model.zero_grad()
step()
begin = time.perf_counter()
for _ in range({STEPS}):
    step()
print({STEPS} / (time.perf_counter() - begin))
"""


def steps_per_second(setting):
    environment = {**os.environ, **setting}
    result = subprocess.run(
        [sys.executable, "-c", STEP], env=environment, capture_output=True, text=True, check=True
    )
    return float(result.stdout)


def measure(title):
    """Prints the median of each setting, and its ratio to the default."""
    speeds = {name: [] for name in SETTINGS}
    for _ in range(REPEATS):
        for name, setting in SETTINGS.items():
            speeds[name].append(steps_per_second(setting))

    medians = {name: statistics.median(values) for name, values in speeds.items()}
    default = medians["short waiting (default)"]
    for name, speed in medians.items():
        print(f"{title}, {name}: {speed:.2f} steps/s, ratio {speed / default:.2f}", flush=True)


def main():
    begin = time.time()
    for name in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        os.environ.pop(name, None)
    print(f"{cores()} cores, load {os.getloadavg()[0]:.1f} at the beginning")
    measure("alone")
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        measure("beside a busy program")
    finally:
        busy.kill()
    print(f"{time.time() - begin:.0f} s")


if __name__ == "__main__":
    main()
