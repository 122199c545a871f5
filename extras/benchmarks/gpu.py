"""What a training step costs on a GPU: `python benchmarks/gpu.py`. Step time, images a second, share of
the GPU's peak and memory of `base` at 256x128, 128 images, in bf16 and fp16, with and without --compile.

The share of the peak is that of the operations which the model's shapes ask for, forward and backward: products,
convolutions and attention, counted by torch. `--device cpu --tiny` tries the same on the CPU.
"""

import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))
import train
from data import Batch, augment
from model import InstructReID
from reid import cli
from reid.device import allow_tf32, autocast, pick_device
from reid.text import EmbeddedTextEncoder

CLASSES = 751  # of Market-1501
SENTENCE = "do not change clothes"
PEAKS = {  # 10^12 operations a second in half precision, without sparsity, by the makers' data sheets
    "B200": 2250, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "A100": 312, "A40": 150,
    "A10": 125, "L40S": 362, "L40": 181, "L4": 121, "V100": 125, "T4": 65, "RTX 4090": 165, "RTX 3090": 71,
}


@dataclass
class Config:
    """Times training steps on a GPU."""
    device: str = cli.option("auto", "auto takes the GPU")
    tiny: bool = cli.option(False, "the tiny model and 16 images: whether it runs at all")
    steps: int = cli.option(20, "timed steps of each row; three go before them")
    grad_checkpointing: bool = cli.option(False, "as of train.py")


def main(config):
    device = pick_device(config.device)
    if device.type == "cpu" and config.device == "auto":
        print("no GPU here: nothing is measured (--device cpu --tiny tries the code on the CPU)")
        return
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else "CPU"
    known = [peak for key, peak in PEAKS.items() if key in name]
    peak = known[0] if known else None  # the most exact name comes first
    size, count = ("tiny", 16) if config.tiny else ("base", 128)
    print(f"torch {torch.__version__}, {name}, {size}, {count} images a step")
    if on_gpu and not peak:
        print(f"the peak of {name} is not known here: add it to PEAKS for the share of it")
    allow_tf32(device)

    for amp in ("bf16", "fp16"):
        print(row(config, device, size, count, amp, False, peak), flush=True)
        if on_gpu:
            print(row(config, device, size, count, amp, True, peak), flush=True)


def row(config, device, size, count, amp, compiled, peak):
    """One line of figures."""
    flags = train.Config(
        size=size, amp=amp, mining="all", margin=0.3, lr=1e-5, weight_decay=5e-4, gate_lr=1.0,
        erase=0.5, compile=False, grad_checkpointing=False,
    )
    torch.manual_seed(0)
    model = InstructReID(size, {"market": CLASSES}, text=EmbeddedTextEncoder())
    optimiser, scaler = train.prepare(model, flags, device)
    model.train()
    loss_of = train.Loss(model, flags, autocast(amp, device))
    pixels = torch.randint(0, 256, (count, 3, *model.size), dtype=torch.uint8)
    labels = torch.arange(count) // 4
    batch = Batch(pixels, labels, labels, "market", "trad", [SENTENCE] * count).to(device)

    def step():
        """What train.main does with a batch."""
        chance = train.generator(0, 0, device)
        images, _ = augment(batch.images, None, model.size[0] // 16, flags.erase, chance)
        terms = loss_of(images, batch.instr, batch, chance)
        scaler.scale(sum(terms.values())).backward()
        scaler.unscale_(optimiser)
        torch.nn.utils.clip_grad_norm_(model.parameters(), train.CLIP)
        scaler.step(optimiser)
        scaler.update()
        optimiser.zero_grad(set_to_none=True)

    # the operations first, without what --grad-checkpointing computes twice
    with FlopCounterMode(display=False) as counter:
        step()
    operations = counter.get_total_flops()
    model.editor.checkpointing = config.grad_checkpointing
    if compiled:
        model.editor.compile()
    for _ in range(3):
        step()
    seconds, memory = timed(step, config.steps, device)
    waits = times_waited(step) if device.type == "cuda" else 0

    figures = [
        f"{amp}{', --compile' if compiled else ''}: {1000 * seconds:.1f} ms a step",
        f"{count / seconds:.0f} images/s",
        f"{operations / 1e12:.3g} TFLOP a step, {operations / seconds / 1e12:.3g} TFLOP/s",
    ]
    if peak:
        figures.append(f"{100 * operations / seconds / 1e12 / peak:.0f} % of the peak")
    if memory:
        figures.append(f"{memory / 2**30:.1f} GiB")
    if waits:
        figures.append(f"the program waits {waits} times for the GPU in a step")
    return ", ".join(figures)


def times_waited(step):
    """How often the program waits for the GPU in a step; it should not."""
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        step()
        torch.cuda.set_sync_debug_mode("default")
    return len(noted)


def timed(step, steps, device):
    """(seconds a step, bytes at the most or None on the CPU)."""
    if device.type == "cpu":
        start = time.perf_counter()
        for _ in range(steps):
            step()
        return (time.perf_counter() - start) / steps, None

    torch.cuda.reset_peak_memory_stats(device)
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    torch.cuda.synchronize(device)
    seconds = (time.perf_counter() - start) / steps
    return seconds, torch.cuda.max_memory_allocated(device)


if __name__ == "__main__":
    cli.run(main, Config)
