"""Tests and times training on a GPU: one command, about eight minutes, one table.

    python -m extras.benchmarks.gpu --out gpu.json

It needs torch, einops, transformers, numpy and pillow. If the package of the text encoder cannot be
installed there, write the encoder elsewhere (--write-text FOLDER, 44 MB) and copy the folder.
"""

import json
import tempfile
import time
import warnings
from contextlib import chdir
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

import data
import toydata
import train
from instructions import TASKS, asked_tasks
from model import SIZES
from reid import checkpoints, cli, files
from reid.cli import UserError
from reid.device import allow_tf32, autocast, loader_workers, pick_device
from reid.folders import open_all
from reid.images import normalise
from reid.runs import read_log
from reid.tables import format_table
from reid.text import embedded_text_model

PEAKS = {  # 10^12 operations a second in half precision, without sparsity, by the data sheets
    "B200": 2250, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "A100": 312,
    "A40": 150, "A10": 125, "L40S": 362, "L40": 181, "L4": 121, "V100": 125, "T4": 65,
    "RTX 4090": 165, "RTX 3090": 71,
}


@dataclass
class Config:
    """Tests and times training on a GPU."""

    out: str = cli.option("gpu.json", "write the table to this .json, row by row")
    tiny: bool = cli.option(False, "the smallest sizes, to check that it runs, also on the CPU")
    text_model: str = cli.option(None, "folder with the text encoder; None = the packaged one")
    write_text: str = cli.option(
        None, "only write the packaged text encoder, in half precision, to this folder")


def main(config):
    if config.write_text:
        bert, tokenizer = embedded_text_model()
        with files.creating(config.write_text) as folder:
            bert.half().save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return
    cli.check_output("--out", config.out, ".json")
    device = pick_device("auto")
    on_gpu = device.type == "cuda"
    if not on_gpu and not config.tiny:
        raise UserError("no GPU here: nothing is measured; --tiny checks the code on the CPU")
    allow_tf32(device)
    name = torch.cuda.get_device_name(device) if on_gpu else "CPU"
    table = {"torch": torch.__version__, "tiny": config.tiny, "device": name, "rows": []}
    out = Path(config.out).resolve()
    flags = train.Config(text_model=config.text_model and str(Path(config.text_model).resolve()))
    paper = replace(flags, **train.PAPER)
    if config.tiny:
        flags = replace(flags, task="li", ids=4, steps=2, warmup=1)
        paper = replace(paper, size="tiny", ids=2)

    def add(name, part, *args):
        """Adds the rows of a part; if it fails, the others are still measured."""
        try:
            found = part(*args)
        except Exception as error:
            found = [{"verdict": f"FAILED: {type(error).__name__}: {error}"[:200]}]
        table["rows"] += [{"part": name} | row for row in found]
        files.write_text(out, json.dumps(table, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        toydata.make_toy("toy", people=8 if config.tiny else 400)
        kinds = ("off", "fp16", "bf16", "bf16, --compile")  # on a CPU fp16 is slow
        for kind in kinds if on_gpu else ("off", "bf16"):
            amp, _, compiled = kind.partition(", ")
            run = replace(paper, amp=amp, compile=bool(compiled))
            add(f"{paper.size}, {kind}", step_rows, run, device, name)
        add("feed", feed_rows, paper, device)
        half = "fp16" if on_gpu else "bf16"
        add(f"resume, {half}", resume_rows, replace(flags, task="li", amp=half))
        add("default run", default_rows, flags)
    print(f"\n{name}; also in {config.out}\n\n{format_table(table['rows'])}")
    if "FAILED" in str(table):
        raise UserError("a part failed: the table says why")


# ---- a training step ----

def step_rows(flags, device, name):
    """The cost of a step: time, images/s, operations per second (as counted by torch) as a share of
    the GPU's peak, memory, number of waits for the GPU; and whether the losses equal those in
    float32 on the CPU."""
    torch.manual_seed(0)
    model, _ = train.build_model(flags, {"market": 751}, TASKS["trad"].parts)
    few = random_batch(model, 8)
    batch = random_batch(model, flags.ids * flags.images).to(device)
    cpu = torch.device("cpu")
    expected = losses_of(train.Loss(model.train(), flags, autocast("off", cpu)), few)
    model.to(device, memory_format=torch.channels_last)
    loss_of = train.Loss(model, flags, autocast(flags.amp, device))
    with FlopCounterMode(display=False) as counter:
        sum(loss_of(normalise(batch.images), None, batch, None).values()).backward()
    if flags.compile:
        model.editor.compile()
    losses = losses_of(loss_of, few.to(device))
    error = ((losses - expected).abs() / (1 + expected.abs())).max().item()

    optimisers = train.optimisers_of(model, flags)
    scaler = torch.amp.GradScaler(device.type, enabled=flags.amp == "fp16")
    rng = torch.Generator(device).manual_seed(0)

    def step():
        """A step as in train.main."""
        images, _ = data.augment(batch.images, None, model.size[0] // 16, 0.5, rng)
        scaler.scale(sum(loss_of(images, None, batch, rng).values())).backward()
        for optimiser in optimisers:
            scaler.unscale_(optimiser)
        torch.nn.utils.clip_grad_norm_(model.parameters(), train.CLIP)
        for optimiser in optimisers:
            scaler.step(optimiser)
        scaler.update()
        model.zero_grad(set_to_none=True)

    timer = Timer("step()", globals={"step": step})  # waits for the GPU
    seconds = timer.blocked_autorange(min_run_time=2).median
    speed = counter.get_total_flops() / seconds / 1e12
    row = {"ms": f"{1000 * seconds:.1f}", "images/s": f"{len(batch.images) / seconds:.0f}"}
    row["TFLOP/s"] = f"{speed:.2g}"
    peaks = [peak for key, peak in PEAKS.items() if key in name]  # specific names come first
    if peaks and flags.amp != "off":
        row["of the peak"] = speed / peaks[0]
    if device.type == "cuda":
        row["GiB"] = f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f}"
        torch.cuda.reset_peak_memory_stats(device)
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            step()
            torch.cuda.set_sync_debug_mode("default")
        row["waits"] = len(waits)
    verdict = "ok" if error < 0.1 else "FAILED"
    return [row | {"verdict": f"{verdict}: losses differ from float32 on the CPU by {error:.1e}"}]


def random_batch(model, count):
    return data.Batch(
        images=torch.randint(0, 256, (count, 3, *model.size), dtype=torch.uint8),
        labels=torch.arange(count) // 4, dataset="market", task="trad",
        sentences=[TASKS["trad"].sentences[0]] * count, pictures=None)


@torch.no_grad()
def losses_of(loss_of, batch):
    terms = loss_of(normalise(batch.images), None, batch, None)
    return torch.stack([*terms.values()]).cpu()


# ---- runs ----

def feed_rows(flags, device):
    """Photos (of drawn people, in size base) per second from loader processes to the device."""
    shape = SIZES[flags.size]
    batches = data.Batches(open_all("toy", asked_tasks("trad")), shape["size"],
                           shape["picture_size"], flags.ids, flags.images, seed=0)
    workers = loader_workers(None, device, batches.bytes_of_a_batch) or 1
    loader = data.loader(batches, 0, 40, workers, device.type == "cuda")
    next(loader)  # the processes have started
    start = time.perf_counter()
    images = sum(len(batch.to(device).images) for batch in loader)
    rate = images / (time.perf_counter() - start)
    return [{"images/s": f"{rate:.0f}", "verdict": f"{workers} loader processes"}]


def resume_rows(flags):
    """A run, the same run again, and the same in two parts, all during the warm-up, which does not
    depend on --steps. The first two differ only by the GPU's nondeterminism."""
    whole = replace(flags, steps=6, warmup=50, name="whole")
    for run in (whole, replace(whole, name="again"), replace(whole, steps=3, name="half")):
        train.main(run)
    train.main(train.Config(resume="runs/half/last.pt", steps=6))
    names = ("whole", "again", "half")
    first, *others = [checkpoints.load(f"runs/{name}/last.pt")["model"] for name in names]
    own, difference = [
        max(float((model[key] - first[key]).abs().max()) for key in first) for model in others]
    verdict = "ok" if difference <= 10 * own else "FAILED"
    return [{"verdict": f"{verdict}: weights differ by {difference:.1e}, else by {own:.1e}"}]


def default_rows(flags):
    """The minutes and the results of the default run."""
    train.main(replace(flags, name="default"))
    *_, last_losses, last_rows = read_log("runs/default")
    rows = [{"verdict": f"{last_losses['seconds'] / 60:.1f} minutes of training"}]
    for row in last_rows["rows"]:
        ranking = " ".join(row[name] for name in ("task", "data", "protocol", "feature"))
        rows.append({"mAP": row["mAP"], "R1": row["R1"], "verdict": ranking})
    return rows


if __name__ == "__main__":
    cli.run(main, Config)
