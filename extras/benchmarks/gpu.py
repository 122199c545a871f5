"""What a training step costs on a GPU: time, images a second, share of the GPU's peak and memory of
`base` at 256x128, 128 images, in bf16, fp16 and float32, with and without --compile.

The share of the peak is that of the operations which the model's shapes ask for, forward and
backward: products, convolutions and attention, counted by torch.
"""

import time
import warnings
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

import train
from data import Batch, augment
from instructions import TASKS
from model import InstructReID
from reid import cli
from reid.device import allow_tf32, autocast, pick_device
from reid.text import TextEncoder, embedded_text_model

CLASSES = 751  # of Market-1501
SENTENCE = "do not change clothes"
PEAKS = {  # 10^12 operations a second in half precision, without sparsity, by the data sheets
    "B200": 2250, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "A100": 312,
    "A40": 150, "A10": 125, "L40S": 362, "L40": 181, "L4": 121, "V100": 125, "T4": 65,
    "RTX 4090": 165, "RTX 3090": 71,
}


@dataclass
class Config:
    """Times training steps on a GPU."""

    device: str = cli.option("auto", "auto takes the GPU")
    tiny: bool = cli.option(False, "the smallest sizes, also on the CPU: does it run?")
    steps: int = cli.option(20, "timed steps of each row", least=1, most=10**5)
    grad_checkpointing: bool = cli.option(False, "as of train.py")


def main(config):
    device = pick_device(config.device)
    if device.type != "cuda" and not config.tiny:
        print("no GPU here: nothing is measured (--tiny tries the code on the CPU)")
        return
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    known = [peak for key, peak in PEAKS.items() if key in name]  # the most exact name comes first
    size, count, steps = ("tiny", 16, 1) if config.tiny else ("base", 128, config.steps)
    print(f"torch {torch.__version__}, {name}, {size}, {count} images a step")
    if device.type == "cuda" and not known:
        print(f"the peak of {name} is not known here: add it to PEAKS for the share of it")
    allow_tf32(device)
    for amp in ("bf16", "fp16", "off"):
        for compiled in (False, True) if device.type == "cuda" else (False,):
            flags = train.Config(**train.PAPER | dict(amp=amp, compile=compiled, size=size))
            flags.grad_checkpointing = config.grad_checkpointing
            print(row(flags, device, count, steps, known[:1]), flush=True)


def row(flags, device, count, steps, peak):
    """One line of figures; peak: [of the GPU], or [] where it is not known."""
    torch.manual_seed(0)
    text = TextEncoder(*embedded_text_model())
    model = InstructReID(flags.size, {"market": CLASSES}, TASKS["trad"].parts, text=text).train()
    model.to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=flags.amp == "fp16")
    loss_of = train.Loss(model, flags, autocast(flags.amp, device))
    pixels = torch.randint(0, 256, (count, 3, *model.size), dtype=torch.uint8)
    labels = torch.arange(count) // 4
    batch = Batch(pixels, labels, labels, "market", "trad", [SENTENCE] * count, None).to(device)
    rng = torch.Generator(device).manual_seed(0)

    def step():
        """What train.main does with a batch."""
        images, _ = augment(batch.images, None, model.size[0] // 16, 0.5, rng)
        terms = loss_of(images, None, batch, rng)
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
    model.editor.checkpointing = flags.grad_checkpointing
    if flags.compile:
        model.editor.compile()
    for _ in range(3):
        step()
    seconds, memory = timed(step, steps, device)
    waits = times_waited(step) if device.type == "cuda" else 0

    figures = [
        f"{flags.amp}{', --compile' if flags.compile else ''}: {1000 * seconds:.1f} ms a step",
        f"{count / seconds:.0f} images/s",
        f"{operations / 1e12:.3g} TFLOP a step, {operations / seconds / 1e12:.3g} TFLOP/s",
    ]
    if peak and flags.amp != "off":
        share = operations / seconds / 1e12 / peak[0]
        figures.append(f"{100 * share:.0f} % of the peak")
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
