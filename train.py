"""Trains IRM on one task or on all of them: `python train.py`, `python train.py --task cc --data ./ltcc`.

Several GPUs: `torchrun --nproc_per_node=N train.py ...`; every process takes its own batches and the gradients are averaged.
"""

import dataclasses
import json
import math
import os
import signal
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from tqdm import tqdm

import data
import dolls
import evaluate
import losses
from cli import UserError, option, run
from features import Features
from instructions import SENTENCES, TASKS
from model import SIZES
from weights import build, load_checkpoint, model_state, rebuild, restore_model, save_checkpoint


@dataclasses.dataclass
class Config:
    """Train Instruct-ReID. Flags that default to None take the value of the preset."""
    task: str = option("all", "which task to train; all = every task that the data offers", ("all", *TASKS))
    data: str = option("./toy", "data set, or folder of data sets; ./toy is drawn if it is absent")
    val: bool = option(False, "train on validation splits too (MSMT17, PRCC, CUHK-PEDES); the paper does not")
    name: str = option(None, "the run's folder under ./runs (default: the task)")
    resume: str = option(None, "go on from this last.pt, with the flags of that run")
    preset: str = option("auto", "toy for the drawn data, paper for photographs; auto looks at the data",
                         ("auto", "toy", "paper"))
    seed: int = option(0, "seed of the weights, the batches and the augmentation")
    # model
    size: str = option(None, "tiny, small, or the paper's ViT-B/16 for 256x128 (base) or 384x192 (base-384)", (*SIZES,))
    editing: bool = option(True, "let the instruction edit the image features (Eq. 1-4); --no-editing is Tab. 5 `w/o editing`")
    feature: str = option("edit", "what is ranked: the edited CLS token, or F_out of the attention module", ("edit", "fused"))
    vit_weights: str = option(None, "published ViT that E_e starts from: PASS, DeiT, HAP or ALBEF file, or hub:OWNER/NAME")
    albef: str = option(None, "ALBEF.pth: its text tower and picture encoder as E_i, its multimodal layers as E_f of t2i")
    text_model: str = option(None, "BERT of the sentences in place of the embedded one: a folder, or a name on the hub")
    train_text: bool = option(False, "let the text tower learn too")
    # loss
    loss: str = option("adaptive", "adaptive triplet (Eq. 5-6) or the plain triplet of Tab. 5", ("adaptive", "triplet"))
    mining: str = option(None, "triplets: all of the batch, or the hard ones", ("all", "hard"))
    margin: float = option(None, "m of Eq. 5")
    smoothing: float = option(0.1, "label smoothing of the identity loss")
    align: bool = option(True, "contrast that gives a picture encoder without pre-trained weights an eye for clothes")
    # schedule
    steps: int = option(None, "training steps, each a batch of one task")
    ids: int = option(None, "identities per batch")
    images: int = option(None, "images per identity")
    lr: float = option(None, "learning rate after the warm-up; falls to 0 along a cosine")
    warmup: int = option(None, "steps of linear warm-up, from lr / 100")
    weight_decay: float = option(None, "of AdamW, on weight matrices only")
    gate_lr: float = option(None, "learning rate of the gates, in multiples of lr")
    erase: float = option(None, "probability of random erasing")
    ratios: str = option(None, "steps per task in a round, such as trad:1,cc:2")
    # machine
    amp: str = option("auto", "mixed precision: auto is bf16 or fp16 on CUDA and off on CPU", ("auto", "bf16", "fp16", "off"))
    device: str = option("auto", "auto takes CUDA if it is there")
    grad_checkpointing: bool = option(False, "compute each ViT layer again in backward: less memory, a third more time")
    workers: int = option(None, "loader processes; 0 keeps the decoded images in memory")
    evaluate_every: int = option(None, "steps between evaluations; 0 = only after the last step")
    save_every: int = option(500, "steps between checkpoints")


# toy: trad and cc ask opposite things of the same kind of picture, and only much of both teaches to hear which; the margin
# is in the scale of squared distances between LayerNorm's outputs.
PRESETS = {
    "toy": dict(size="tiny", mining="all", margin=5.0, steps=2750, ids=16, images=4, lr=1.5e-3, warmup=100, weight_decay=0.05,
                gate_lr=10.0, erase=0.0, ratios="trad:6,cc:10,ctcc:2,vi:2,t2i:2,li:6", workers=0, evaluate_every=0),
    "paper": dict(size="base", mining="all", margin=0.3, steps=24000, ids=32, images=4, lr=1e-5, warmup=1000, weight_decay=5e-4,
                  gate_lr=1.0, erase=0.5, ratios="", workers=4, evaluate_every=4000),
}


def main(config):
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = evaluate.pick_device(config.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    checkpoint = load_checkpoint(config.resume) if config.resume else None
    config = resumed_config(config, checkpoint) if checkpoint else preset_config(config, rank, world)
    torch.manual_seed(config.seed)

    datasets, shape = data.without_overlap(data.open_all(config.data, config.task, config.val)), SIZES[config.size]
    batches = data.Batches(datasets, shape["size"], shape["picture_size"], config.ids, config.images,
                           seed=config.seed * world + rank, ratios=task_ratios(config, datasets))
    model, report = (rebuild(checkpoint), []) if checkpoint else build(config, batches.classes)
    model.to(device, memory_format=torch.channels_last)  # convolutions are faster so
    model.editor.checkpointing = model.encoder.picture.checkpointing = config.grad_checkpointing
    optimiser = torch.optim.AdamW(parameter_groups(model, config), lr=config.lr, fused=True)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(amp_mode(config.amp, device))
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
    folder, step = run_folder(config, rank), 0
    if checkpoint:
        step = restore(checkpoint, model, optimiser, scaler, device, config.resume)
    if rank == 0:
        print("\n".join([*report, *map(data.counts_table, datasets)]))
    model.encoder.text.remember(sentences_of(datasets), lambda chunks: tqdm(chunks, "sentences", disable=rank > 0))

    interrupted = []  # Ctrl-C: finish the step, save, leave
    signal.signal(signal.SIGINT, lambda *_: interrupted.append(True))
    loader = data.loader(batches, step, config.steps, config.workers)
    bar = tqdm(loader, "training", config.steps, initial=step, disable=rank > 0)
    first, started = step, time.time()
    model.train()
    for batch in bar:
        for group in optimiser.param_groups:
            group["lr"] = config.lr * group["scale"] * schedule(step, config)
        pictures = batch.instr.to(device) if isinstance(batch.instr, torch.Tensor) else None
        images, pictures = data.augment(batch.images.to(device), pictures, pad=batches.size[0] // 16, erase_prob=config.erase)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            terms = loss_terms(model, images, batch.instr if pictures is None else pictures, batch, config)
        scaler.scale(sum(terms.values())).backward()
        average_gradients(model, world)
        scaler.unscale_(optimiser)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        scaler.step(optimiser)
        scaler.update()
        optimiser.zero_grad(set_to_none=True)
        step += 1
        if step % 10 == 0:
            speed = (step - first) * len(images) * world / (time.time() - started)
            shown = " ".join(f"{name} {term.item():.2f}" for name, term in terms.items())
            bar.set_postfix_str(f"{batch.task} {shown} {speed:.0f} images/s")
        if interrupted:
            break
        if rank == 0 and step < config.steps and step % config.save_every == 0:
            save(folder, config, batches.classes, model, optimiser, scaler, step)
        if rank == 0 and step < config.steps and config.evaluate_every and step % config.evaluate_every == 0:
            log(folder, step, evaluate.evaluate_all(Features(model.eval(), config.feature), datasets))
            model.train()
    bar.close()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if rank == 0:
        save(folder, config, batches.classes, model, optimiser, scaler, step)
        if interrupted:
            print(f"stopped at step {step}; go on with: python train.py --resume {folder}/last.pt")
        else:
            finish(model.eval(), datasets, config, folder, step, time.time() - started)


def loss_terms(model, images, what, batch, config):
    """The loss of one batch of one task, as named terms: Eq. 8 for t2i, Eq. 7 for the others."""
    labels, instr = batch.labels.to(images.device), model.instruct(what)
    if batch.task == "t2i":
        return text_to_image_terms(model, images, instr, labels)
    out = model(images, instr)

    def metric(feat):
        if config.loss == "triplet":
            return losses.triplet(feat.float(), labels, config.margin, mining=config.mining)
        pooled = instr.pooled.float().expand(len(images), -1)
        return losses.adaptive_triplet(feat.float(), labels, pooled, config.margin, mining=config.mining)

    terms = {}
    for name, feat, neck, heads in (("", out.feat, out.neck, model.classifiers),                    # Eq. 7: on F
                                    ("_out", out.fused, out.fused_neck, model.fused_classifiers)):  # and on F_out
        terms["tri" + name] = metric(feat)
        terms["id" + name] = losses.identity(heads[batch.dataset](neck), labels, config.smoothing)
    if batch.clothes is not None and config.align:  # pictures of the same clothes agree, as a pre-trained encoder's would
        looks = F.normalize(instr.pooled.float(), dim=1)
        terms["align"] = losses.contrastive(looks, looks, batch.clothes.to(images.device), torch.tensor(0.1))
    return terms


def text_to_image_terms(model, images, instr, labels):
    """Eq. 8: contrast of image and sentence, and matching of true pairs against hard false ones through E_f."""
    out, instr = model(images, None), type(instr)(*(x.expand(len(images), *x.shape[1:]) for x in instr))
    image_feats, text_feats = F.normalize(out.neck.float(), dim=1), model.embed_text(instr).float()
    temperature = model.log_temperature.exp().clamp(0.01, 0.5)
    text, image = losses.hard_negatives(image_feats @ text_feats.T / temperature, labels)
    pairs = torch.cat([out.tokens, out.tokens, out.tokens[image]])
    instr = type(instr)(*(torch.cat([x, x[text], x]) for x in instr))
    logits = model.match(pairs, instr)
    return {"con": losses.contrastive(image_feats, text_feats, labels, temperature),
            "match": losses.matching(logits[:len(images)], logits[len(images):])}


def amp_mode(name, device):
    """off on the CPU; on CUDA bf16 where the GPU has it, else fp16 with a loss scaler."""
    if name == "auto":
        return "off" if device.type != "cuda" else "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return name


def schedule(step, config):
    """Linear warm-up from 1/100 of the learning rate, then a cosine down to 0 (Sec. 5.1; Loshchilov & Hutter 2017)."""
    if step < config.warmup:
        return 0.01 + 0.99 * step / config.warmup
    return 0.5 * (1 + math.cos(math.pi * (step - config.warmup) / max(1, config.steps - config.warmup)))


def parameter_groups(model, config):
    """Weight decay on matrices only; the gates, which start at 0, move faster and are not pulled back to it."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    gates = [p for name, p in named if name.endswith("gate")]
    matrices = [p for name, p in named if p.ndim > 1 and not name.endswith("gate")]
    vectors = [p for name, p in named if p.ndim <= 1 and not name.endswith("gate")]
    return [dict(params=matrices, weight_decay=config.weight_decay, scale=1.0), dict(params=vectors, weight_decay=0.0, scale=1.0),
            dict(params=gates, weight_decay=0.0, scale=config.gate_lr)]


def average_gradients(model, world):
    """Data parallelism in full: every process has its own batch of the same task, and steps with the mean gradient."""
    if world > 1:
        for p in model.parameters():
            if p.grad is not None:
                dist.all_reduce(p.grad)
                p.grad /= world


def preset_config(config, rank=0, world=1):
    """Fills what the user left open from the preset that fits the data, drawing ./toy first if that is what is asked for."""
    if rank == 0 and config.data == Config.data and not Path(config.data).exists():
        dolls.make_toy(config.data)
    if world > 1:
        dist.barrier()
    is_toy = data.is_drawn(config.data)
    name = ("toy" if is_toy else "paper") if config.preset == "auto" else config.preset
    why = ("drawn data (toy.json is there)" if is_toy else "no toy.json: photographs") if config.preset == "auto" else "--preset"
    if rank == 0:
        print(f"preset {name}: {why}")
    open_fields = {key: value for key, value in PRESETS[name].items() if getattr(config, key) is None}
    config = dataclasses.replace(config, preset=name, **open_fields)
    config = dataclasses.replace(config, align=config.align and not config.albef)  # ALBEF's picture encoder is fixed
    for flag, least in (("steps", 1), ("ids", 2), ("images", 2), ("save_every", 1)):
        if getattr(config, flag) < least:
            raise UserError(f"--{flag.replace('_', '-')} {getattr(config, flag)}: must be at least {least}")
    return config


def resumed_config(config, checkpoint):
    """The config of the checkpoint; only the machine's flags may differ."""
    free = {"resume", "device", "workers"}
    given = [f.name for f in dataclasses.fields(config) if getattr(config, f.name) != f.default and f.name not in free]
    if given:
        raise UserError(f"--resume goes on with the flags of that run: drop --{given[0].replace('_', '-')}")
    workers = checkpoint["config"]["workers"] if config.workers is None else config.workers
    return Config(**{**checkpoint["config"], "resume": config.resume, "device": config.device, "workers": workers})


def task_ratios(config, datasets):
    """Steps per round of each task that the data offers: 'trad:1,cc:2' -> {'trad': 1, 'cc': 2}; 1 where nothing is said."""
    try:
        said = {task: int(n) for task, n in (part.split(":") for part in config.ratios.split(",") if part)}
    except ValueError as error:
        raise UserError(f"--ratios {config.ratios}: expected task:number pairs such as trad:1,cc:2") from error
    return {dataset.task: said.get(dataset.task, 1) for dataset in datasets}


def sentences_of(datasets):
    """Every sentence that training can show, for the text tower to read once; SYNTH-PEDES has too many to be kept."""
    captions = {caption for dataset in datasets if dataset.layout != "synth-pedes"
                for record in dataset.split("train") for caption in record.captions}
    return captions.union(*(SENTENCES.get(dataset.task, ()) for dataset in datasets))


def run_folder(config, rank):
    """runs/NAME, or NAME-2, NAME-3 ... so that no earlier run is overwritten; a resumed run stays in its folder."""
    if config.resume:
        return Path(config.resume).parent
    base, n = Path("runs") / (config.name or config.task), 1
    while (folder := base if n == 1 else base.with_name(f"{base.name}-{n}")).exists():
        n += 1
    if rank == 0:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config), indent=1) + "\n")
    return folder


def save(folder, config, classes, model, optimiser, scaler, step):
    """Everything a resume needs. Batches and their instructions are functions of (seed, step), so step is their state."""
    rng = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}
    save_checkpoint(folder / "last.pt", {
        "config": {**dataclasses.asdict(config), "resume": None}, "classes": classes, "step": step, "model": model_state(model),
        "published": model.published, "optimiser": optimiser.state_dict(), "scaler": scaler.state_dict(), "rng": rng})


def restore(checkpoint, model, optimiser, scaler, device, path):
    """Undoes `save`; returns the step to go on from."""
    restore_model(model, checkpoint["model"], path)
    optimiser.load_state_dict(checkpoint["optimiser"])
    scaler.load_state_dict(checkpoint["scaler"])
    torch.set_rng_state(checkpoint["rng"]["cpu"])
    if device.type == "cuda" and checkpoint["rng"]["cuda"]:
        torch.cuda.set_rng_state_all(checkpoint["rng"]["cuda"])
    return checkpoint["step"]


def finish(model, datasets, config, folder, step, seconds):
    """Evaluates the last step, writes the metrics line, prints the tables."""
    features = Features(model, config.feature)
    rows, matrix = evaluate.evaluate_all(features, datasets), evaluate.instruction_matrix(features, datasets)
    log(folder, step, rows, matrix)
    print(f"\n{step} steps in {seconds / 60:.1f} minutes; checkpoint, log and config in {folder}/\n")
    if rows:  # else there is no test split
        print(evaluate.format_table(rows))
    if matrix:
        print("\nInstruction matrix: the same queries and the same gallery, only the query's instruction differs\n")
        print(evaluate.format_table(matrix))


def log(folder, step, rows, matrix=()):
    with open(folder / "log.jsonl", "a") as file:
        file.write(json.dumps({"step": step, "rows": list(rows), "matrix": list(matrix)}) + "\n")


if __name__ == "__main__":
    run(main, Config)
