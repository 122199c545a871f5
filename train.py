"""Trains IRM on one task or on all: `python train.py`, `python train.py --task cc --data ./ltcc`.

Read `main` for the loop and `loss_terms` for the loss of a batch.
Several GPUs: `torchrun --nproc_per_node=N train.py ...`; each process has its own batches of the
same task, and gradients are averaged (reid/processes.py).
"""

import math
import random
import re
import signal
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import reid  # noqa: F401  before torch: sets how its threads wait

# isort: split

import torch
import torch.nn.functional as F
from torch import nn

import data
import evaluate
import losses
from instructions import TASKS, asked_tasks
from model import PARTS, SIZES, Instruction, InstructReID
from reid import checkpoints, cli, plots, processes, runs, text, weights
from reid import device as machine
from reid.cli import UserError, option
from reid.compare import move_queries
from reid.folders import counts_table, is_drawn, open_all, print_notes, without_overlap
from reid.muon import Muon
from reid.records import column


@dataclass
class Config:
    """Train Instruct-ReID. Where several defaults are listed, the preset decides.

    python train.py                                 draws ./toy and trains all six tasks on it
    python train.py --task li --steps 100 --no-editing
    python train.py --task cc --data ./data/ltcc    photographs
    python train.py --resume runs/all/last.pt       continues an interrupted run
    """

    task: str = option(
        "all", "the task to train; all = every task for which there is data", ("all", *TASKS))
    data: str = option("./toy", "a data set, or a folder of data sets; ./toy is drawn if absent")
    val: bool = option(False, "also train on validation splits (MSMT17, PRCC, CUHK-PEDES)")
    name: str = option(None, "folder under ./runs; None = data, task and flags unlike the preset's")
    resume: str = option(None, "a last.pt whose run is continued; only --steps may be raised")
    start: str = option(None, "a last.pt with initial weights; classifiers start anew")
    preset: str = option(
        "auto", "toy for drawn data; for photographs paper with published weights, else scratch",
        ("auto", "toy", "scratch", "paper"))
    seed: int = option(0, "seed of the weights, the batches and the augmentation", least=0)

    size: str = option(
        None, "tiny, tiny-128, small, or the paper's ViT-B/16 for 256x128 (base) or 384x192 "
        "(base-384)", (*SIZES,), group="model")
    editing: bool = option(
        True, "edit image features by the instruction (Eq. 1-4); without: Tab. 5, `w/o editing`")
    feature: str = option(
        "edit", "the feature to rank by: F, the edited CLS token (edit), or F_out (fused)",
        (*evaluate.FEATURES,))
    vit_weights: str = option(
        None, "published ViT from which E_e starts: a PASS, DeiT, HAP or ALBEF file, or "
        "hub:OWNER/NAME; none = from scratch; auto (for photographs) = the best in ./weights/, "
        "else DeiT from the hub, else none")
    albef: str = option(
        None, "ALBEF.pth: its text and picture encoders as E_i, its multimodal layers as t2i's E_f")
    text_model: str = option(
        None, "another BERT than the packaged one: a folder, or a name on the hub")
    train_text: bool = option(False, "also train the text encoder")

    loss: str = option(
        "adaptive", "adaptive triplet loss (Eq. 5-6); ordinary triplet loss (Tab. 5); or image, "
        "the ordinary losses of F alone, without E_f (with --no-editing Tab. 4's baseline)",
        ("adaptive", "triplet", "image"), group="loss")
    mining: str = option(
        None, "triplets of Eq. 5: all, with equal weight; even, half of the weight on those within "
        "a person; hard, two per anchor", ("all", "even", "hard"))
    margin: float = option(None, "m of Eq. 5, per dimension of F", least=0, most=100)
    smoothing: float = option(0.1, "label smoothing of the identity loss", least=0, most=1)
    plain: bool = option(
        True, "with --task all, train t2i on COCAS+'s descriptions too, for galleries without "
        "instructions; --no-plain: on t2i's data sets alone, as in the paper")
    align: bool = option(
        True, "contrastive loss by which a new picture encoder learns to tell clothes apart")

    steps: int = option(
        None, "training steps; each is a batch of one task", least=1, most=10**9, group="schedule")
    ids: int = option(None, "identities per batch", least=2, most=10**5)
    images: int = option(None, "images per identity", least=2, most=10**4)
    optimiser: str = option(
        None, "muon = Muon for kernels of convolutions and matrices of transformer layers, AdamW "
        "for the rest",
        ("adamw", "muon"))
    lr: float = option(None, "learning rate after the warm-up; a cosine to 0", least=0, most=10)
    warmup: int = option(None, "steps of linear warm-up from lr / 100", least=0, most=10**9)
    weight_decay: float = option(None, "weight decay, on matrices only", least=0, most=100)
    gate_lr: float = option(None, "rate of the gates, as a multiple of lr", least=0, most=1000)
    new_lr: float = option(
        None, "rate of layers without published weights, as a multiple of lr", least=0, most=1000)
    erase: float = option(None, "probability of random erasing", least=0, most=1)
    ratios: str = option(None, "each task's share of the steps, such as trad:1,cc:2")

    amp: str = option(
        "auto", "mixed precision; auto = bf16 or fp16 on CUDA, off on the CPU", machine.AMP,
        group="machine")
    device: str = option("auto", "auto = a GPU if there is one, else the CPU")
    grad_checkpointing: bool = option(
        False, "recompute each ViT layer in the backward pass: less memory, a third more time")
    compile: bool = option(
        False, "torch.compile the editing transformer: takes minutes once, then faster on a GPU")
    workers: int = option(
        None, "loader processes; with 0, decoded images are kept in memory; None = 0 on the CPU, "
        "as many as the cores allow on a GPU", least=0, most=256)
    evaluate_every: int = option(None, "steps between evaluations; 0 = only the last", least=0)
    save_every: int = option(500, "steps between checkpoints", least=1)


TOY = dict(
    size="tiny", mining="even", margin=5 / 128, steps=1400, ids=16, images=4, optimiser="muon",
    lr=1.5e-3, warmup=100, weight_decay=0.2, gate_lr=10.0, new_lr=1.0, erase=0.0,
    ratios=",".join(f"{name}:{task.share}" for name, task in TASKS.items() if task.share),
    workers=0, evaluate_every=0,
)
SCRATCH = TOY | dict(
    size="tiny-128", steps=1000, warmup=60, erase=0.2, workers=None, evaluate_every=250,
)
PAPER = SCRATCH | dict(  # Sec. 5.1, but for margin (see loss_terms), gate_lr and new_lr
    size="base", mining="all", steps=24000, ids=32, optimiser="adamw", lr=1e-5, warmup=1000,
    weight_decay=5e-4, new_lr=10.0, erase=0.5, ratios="", evaluate_every=4000,
)
Config.presets = PRESETS = {"toy": TOY, "scratch": SCRATCH, "paper": PAPER}
UNNAMED = (  # flags that are not part of a run's name
    "task", "data", "name", "resume", "preset", "amp", "device", "compile", "grad_checkpointing",
    "workers", "evaluate_every", "save_every",
)
CLIP = 5.0  # gradients are clipped to this norm
ALIGN_TEMPERATURE = 0.1  # of the contrastive loss between pictures of clothes


# ---- the loop ----

def main(config):
    device = machine.pick_device(config.device)
    rank, world = processes.join(device)
    machine.allow_tf32(device)

    # config and data
    saved = None
    if config.resume:
        saved = checkpoints.load(config.resume, checkpoints.MODEL | checkpoints.RUN)
        config = resumed_config(config, saved)
    datasets = open_datasets(config)
    if not saved:
        config = processes.from_first(partial(new_config, config, datasets))
    torch.manual_seed(config.seed)
    shape = SIZES[config.size]
    batches = data.Batches(
        datasets, shape["size"], shape["picture_size"], config.ids, config.images,
        seed=config.seed * world + rank, ratios=task_ratios(config, datasets),
    )
    trained_on = checkpoints.training_data(datasets)

    # model and optimisers
    if saved:
        checkpoints.refuse_other_data(saved["data"], trained_on, config.resume)
        model, report = evaluate.rebuild(saved, config.resume), []
    else:
        model, report = build_model(config, batches.classes, trained_parts(config, datasets))
    model.to(device, memory_format=torch.channels_last)  # for faster convolutions
    for vit in filter(None, (model.editor, model.encoder.picture)):
        vit.checkpointing = config.grad_checkpointing
    if config.compile:
        machine.check_compiler(device)
        torch.compiler.config.recompile_limit = 32  # two for each kind of instruction
        model.editor.compile()
    optimisers = optimisers_of(model, config)
    is_fp16 = machine.amp_dtype(config.amp, device) == torch.float16
    scaler = torch.amp.GradScaler(device.type, enabled=is_fp16)
    step = 0
    if saved:
        step = saved["step"]
        with checkpoints.user_error_on(config.resume):
            for optimiser, state in zip(optimisers, saved["optimisers"], strict=True):
                checkpoints.restore_optimiser(optimiser, state)
            scaler.load_state_dict(saved["scaler"])
            machine.restore_rng(saved["rng"], device)

    # report, and encode every sentence once
    if step:
        print(f"resumes after step {step}")
    print(
        f"{config.steps} steps of {config.ids} identities x {config.images} images, lr "
        f"{config.lr:g}, size {config.size} from {config.vit_weights or 'scratch'}"
    )
    print("\n".join([*report, *map(counts_table, datasets)]))
    if rank == 0:
        print_notes(datasets)
    sentences = sentences_of(datasets)
    for line in model.encoder.text.unread(sentences):
        print(f"note: {line}")
    progress = partial(cli.progress, disable=rank > 0)
    title = f"encoding {len(sentences)} sentences"
    model.encoder.text.remember(sentences, partial(progress, title=title))

    # the run's folder
    if saved:
        folder = Path(config.resume).parent
    else:
        name = runs.name_of(config, Config(**PRESETS[config.preset]), UNNAMED)
        folder = processes.from_first(partial(runs.new_folder, name, config))
    log = runs.Log(folder, step, saved and saved["history"]) if rank == 0 else None
    resume = f"resume with: python train.py --resume {folder}/last.pt"

    def save():
        checkpoints.save(folder / "last.pt", {
            "config": asdict(config) | {"resume": None},
            "data": trained_on,
            "step": step,
            "history": log.state(),
            "optimisers": [optimiser.state_dict() for optimiser in optimisers],
            "scaler": scaler.state_dict(),
            "rng": machine.rng_state(),
            **evaluate.parts_of(model, batches.classes),
        })

    # signals: finish the step, save and end
    stops = cli.Stops(f"stopped at once; steps since the last checkpoint are lost; {resume}")
    handlers = cli.on_signals(stops)
    loss_of = processes.parallel(Loss(model, config, machine.autocast(config.amp, device)))
    workers = machine.loader_workers(config.workers, device, batches.bytes_of_a_batch)
    loader = data.loader(batches, step, config.steps, workers, device.type == "cuda", stops)
    bar = progress(loader, "training", total=config.steps, initial=step)
    model.train()
    for batch in bar:
        # at the start of a step, so that a resumed run catches up on an evaluation that was missed
        is_due = step and config.evaluate_every and step % config.evaluate_every == 0
        if rank == 0 and is_due and not stops and not log.is_evaluated(step):
            save()
            with cli.on_signals(cli.exit_with(f"stopped in an evaluation; {resume}")):
                run = evaluate.Run(model, config.feature, amp=config.amp)
                rows = evaluate.evaluate_all(run, datasets)
            for row in rows:  # the figures of every query are kept for the last step only
                del row["each"]
            log.write_rows(step, rows)
        if processes.any_process(stops):  # the others wait here for rank 0
            stops.append(signal.SIGINT)  # in case another process got the signal
            break

        # augmentation on the device; an image and its picture of clothes flip together
        batch = batch.to(device)
        seed = random.Random(f"{batches.seed}:augment {step}").getrandbits(63)
        rng = torch.Generator(device).manual_seed(seed)
        images, pictures = data.augment(
            batch.images, batch.pictures, model.size[0] // 16, config.erase, rng)
        if world > 1:  # dropout in a trained text encoder is a function of (seed, step) too
            torch.manual_seed(seed)

        # forward, backward, step
        terms = loss_of(images, pictures, batch, rng)
        with machine.full_precision_matmul():  # for distances, in the backward pass too
            scaler.scale(sum(terms.values())).backward()
        processes.average_statistics(model)
        lr = config.lr * schedule(step, config)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = lr * group["scale"]
            scaler.unscale_(optimiser)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for optimiser in optimisers:
            scaler.step(optimiser)
        scaler.update()
        model.zero_grad(set_to_none=True)
        step += 1

        # log and save
        if rank == 0:
            if not is_fp16:  # fp16 norms are sometimes infinite, and the scaler skips the step
                terms = {**terms, "gradient": norm}
            log.note(step, batch.task, terms, len(images) * world, lr)
            if step % 10 == 0:
                bar.set_postfix_str(log.status(), refresh=False)
            if step % config.save_every == 0:
                save()
    else:  # a signal may have ended the loader of this process while the others wait above
        processes.any_process(stops)

    bar.close()
    handlers.close()
    processes.leave()
    if rank > 0:
        return
    if not stops:
        log.write(step, config.lr * schedule(step - 1, config))
    save()
    if stops:
        raise cli.Interrupted(stops[0], f"stopped at step {step}; {resume}")
    with cli.on_signals(cli.exit_with(f"stopped in the last evaluation; {resume}")):
        finish(evaluate.Run(model, config.feature, amp=config.amp), datasets, step, log)


def finish(run, datasets, step, log):
    """Evaluates the last step; writes log, figures of every query and images; prints the tables."""
    minutes = log.seconds / 60
    rows = evaluate.evaluate_all(run, datasets)
    matrix = evaluate.matrix_of_all(run, datasets)
    move_queries(rows + matrix, log.folder / "queries.json")
    log.write_rows(step, rows, matrix)
    print(f"\n{step} steps in {minutes:.1f} minutes; checkpoint, log and config in {log.folder}/")
    evaluate.show({"Results": rows, evaluate.MATRIX: matrix})

    for name, picture in evaluate.draw(run, datasets).items():
        plots.save(picture, log.folder / f"{name}.png")
    print(f"images of rankings, gates and attention to words are in {log.folder}/")
    evaluate.show({evaluate.SENTENCES: evaluate.evaluate_all(
        run, datasets, evaluate.evaluate_sentences)})


# ---- the loss of a batch ----

class Loss(nn.Module):
    """`loss_terms` as the forward pass of a module, as DistributedDataParallel needs it."""

    def __init__(self, model, config, precision):
        super().__init__()
        self.model = model
        self.config = config
        self.precision = precision

    def forward(self, images, pictures, batch, rng):
        return loss_terms(self.model, images, pictures, batch, self.config, self.precision, rng)


def loss_terms(model, images, pictures, batch, config, precision, rng=None):
    """The loss of one batch of one task, as named terms: Eq. 8 for t2i, Eq. 7 for the others.

    images (b 3 H W) and pictures (b 3 h w) or None, augmented and normalised. rng: the generator
    for sampling hard negatives.
    The model runs under autocast (`precision`), the losses do not: a squared distance is the
    difference of terms of about 1500, where bf16 has steps of 8, larger than the margins.
    F is the output of a LayerNorm, so |F|^2 is about its width and d about 2 width (1 - cos): the
    margin must grow with the width, and config.margin is twice the difference of cosines required.
    """
    labels, clothes = batch.labels, batch.clothes
    with precision:
        instr = model.instruct(batch.sentences, pictures)
    if TASKS[batch.task].text_only:
        # a caption describes clothes too: the same person in other clothes is no positive
        described = labels if clothes is None else clothes
        return text_to_image_terms(model, images, instr, described, precision, rng)
    with precision:
        out = model(images, instr)

    pooled = instr.expand(len(images)).pooled
    if config.loss != "adaptive":  # equal instructions: the ordinary one, Tab. 5 "w/o L_atri"
        pooled = torch.ones_like(pooled)
    triplet = partial(
        losses.adaptive_triplet, ids=labels, instr=pooled,
        margin=config.margin * out.feat.shape[1], mining=config.mining,
    )
    identity = partial(losses.identity, labels=labels, smoothing=config.smoothing)

    # Eq. 7: L = L_atri(F) + L_id(F) + L_atri(F_out) + L_id(F_out)
    head = model.classifiers[batch.dataset]
    terms = {"tri": triplet(out.feat)}
    terms["id"] = identity(head(losses.at_least_float32(out.neck)))
    if config.loss == "image":  # there is no E_f
        return terms
    fused_head = model.fused_classifiers[batch.dataset]
    terms["tri_out"] = triplet(out.fused)
    terms["id_out"] = identity(fused_head(losses.at_least_float32(out.fused_neck)))
    if clothes is not None and config.align:
        # pictures of the same clothes get similar features, as a pre-trained encoder would give
        looks = F.normalize(losses.at_least_float32(instr.pooled), dim=1)
        terms["align"] = losses.contrastive(looks, looks, clothes, ALIGN_TEMPERATURE)
    return terms


def text_to_image_terms(model, images, instr, labels, precision, rng=None):
    """Eq. 8: L_cl of images and sentences, and L_match of true pairs against hard false ones."""
    with precision:
        out = model(images, None)
        instr = model.read_text(instr.expand(len(images)))
        text_feats = losses.at_least_float32(model.embed_text(instr))
    image_feats = F.normalize(losses.at_least_float32(out.neck), dim=1)
    temperature = model.temperature()

    similarity = image_feats @ text_feats.T / temperature
    text, image = losses.hard_negatives(similarity, labels, rng)
    # true pairs, each image with a false text, each text with a false image
    image_tokens = torch.cat([out.tokens, out.tokens, out.tokens[image]])
    texts = Instruction.cat([instr, instr.take(text), instr])
    with precision:
        logits = model.match(image_tokens, texts)
    true_logits, false_logits = logits[:len(images)], logits[len(images):]
    return {
        "con": losses.contrastive(image_feats, text_feats, labels, temperature),
        "match": losses.matching(true_logits, false_logits),
    }


# ---- the optimiser ----

def schedule(step, config):
    """Linear warm-up from 1/100 of the learning rate, then a cosine down to 0 (Sec. 5.1; Loshchilov
    & Hutter 2017)."""
    if step < config.warmup:
        return 0.01 + 0.99 * step / config.warmup
    share = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.5 * (1 + math.cos(math.pi * share))


def optimisers_of(model, config):
    """[AdamW] or, with --optimiser muon, [AdamW, Muon]: Muon (Jordan et al. 2024) for kernels of
    convolutions and matrices of transformer layers, its updates scaled to the size of AdamW's.

    Only matrices have weight decay. The gates start at 0; they have a higher learning rate and no
    decay back to 0. Weights that were not loaded from a file have the rate new_lr.
    """
    groups = {False: {}, True: {}}  # Muon's? -> (weight decay, scale of the lr) -> parameters
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        decay = config.weight_decay if p.ndim > 1 else 0.0
        scale = 1.0 if is_loaded(name, config) else config.new_lr
        if name.endswith("gate"):
            decay = 0.0
            scale = config.gate_lr
        is_matrix = p.ndim == 2 and (".blocks." in name or "text_block." in name)
        is_muons = config.optimiser == "muon" and (is_matrix or p.ndim == 4)
        groups[is_muons].setdefault((decay, scale), []).append(p)
    of_adamw, of_muon = (
        [dict(params=params, weight_decay=decay, scale=scale)
         for (decay, scale), params in groups[is_muons].items()]
        for is_muons in (False, True)
    )

    chosen = [torch.optim.AdamW(of_adamw, lr=config.lr, fused=True)]
    if of_muon:
        chosen.append(Muon(of_muon, lr=config.lr))
    return chosen


def is_loaded(name, config):
    """Whether the parameter of that name was loaded from a file of weights named in the config.

    A checkpoint holds the config, so the answer is the same in a resumed run, without the files.
    """
    if config.start:
        return "classifiers." not in name
    if name.startswith("editor."):
        return bool(config.vit_weights) and "instr" not in name and "gate" not in name
    if name.startswith(("encoder.picture.", "cross.")):
        return bool(config.albef)
    return name.startswith("encoder.text.")


# ---- the model ----

def trained_parts(config, datasets):
    """The subset of model.PARTS that the tasks of these data sets train."""
    parts = set()
    for dataset in data.with_training_images(datasets):
        parts.update(TASKS[dataset.task].parts)
    if not config.editing:
        parts.discard("editing")
    if config.loss == "image":
        parts.discard("fused")
    return [part for part in PARTS if part in parts]


def build_model(config, classes, parts=PARTS):
    """(InstructReID, report lines): a new model with the weights that the config names.

    classes: {data set: number of identities}; parts: a subset of model.PARTS. UserError for a file
    that does not fit.
    """
    albef = config.albef
    if albef and config.text_model:
        raise UserError("--albef has its own text encoder: drop --text-model")
    shape = dict(SIZES[config.size])
    if config.vit_weights or albef:
        shape["stem"] = "patch"  # published ViTs cut an image into patches
    cross = None
    report = []
    if config.text_model:
        bert, tokenizer = text.named_text_model(config.text_model)
        report.append(f"text: BERT in {config.text_model}")
    else:
        bert, tokenizer = text.embedded_text_model()  # ALBEF has the same vocabulary
    if albef:
        bert = weights.load_albef_text(albef)
        report.append(f"text: ALBEF in {albef}")
        shape["picture_depth"] = shape["depth"]  # its picture encoder is as deep as E_e
    if albef and "text queries" in parts:
        cross = weights.load_albef_cross(albef, shape["dim"])
        report.append(f"E_f of t2i: ALBEF in {albef}")
    text.check_vocabulary(bert, tokenizer, albef or config.text_model)
    encoder = text.TextEncoder(bert, tokenizer, "cls" if albef else "mean", config.train_text)

    model = InstructReID(shape, classes, parts, text=encoder, cross=cross)
    if albef and "pictures" in parts:
        report.append("pictures: " + weights.load_vit(model.encoder.picture, albef))
    if config.vit_weights:
        report.append("E_e: " + weights.load_vit(model.editor, config.vit_weights))
        model.shape["part_tokens"] = model.editor.prefix.shape[1] - 1  # as many as the file has
    if config.start:
        report.append(checkpoints.start(model, config.start))
    return model, report


def sentences_of(datasets):
    """Every sentence that training can use, except of streamed data sets, which have too many."""
    sentences = set()
    for dataset in datasets:
        sentences.update(TASKS[dataset.task].sentences)
        if TASKS[dataset.task].described and not dataset.streamed:
            for record in dataset.split("train"):
                sentences.update(record.captions)
    return sentences


# ---- config and data ----

def open_datasets(config):
    """The data sets of --data and --task; a new run first draws ./toy if it is absent."""
    def opened():
        if not config.resume and Path(config.data) == Path(Config.data):
            import toydata  # here, so that everything else works without it

            toydata.provide(config.data)
        return open_all(config.data, asked_tasks(config.task), config.val)

    datasets = without_overlap(processes.first_alone(opened))
    return [dataset for dataset in datasets if config.plain or not dataset.extra]


def new_config(config, datasets):
    """The config with open values filled in: the best published weights, the preset that fits them
    and the data, its values, and no more identities than the data has."""
    trained = data.with_training_images(datasets)
    if config.loss == "image" and config.feature == "fused":
        raise UserError("--feature fused: --loss image does not train E_f; drop one of the two")

    preset, why = config.preset, "--preset"
    if preset == "auto" and is_drawn(config.data):
        preset, why = "toy", "drawn data (it has a toy.json)"
    vit_weights = config.vit_weights
    if vit_weights in (None, "auto") and preset in ("auto", "paper"):
        size = config.size or PAPER["size"]
        form = tuple(SIZES[size][key] for key in ("dim", "depth", "patch"))
        vit_weights, report = weights.choose(form, config.albef, f"--size {size}")
        print("\n".join(report))
    elif vit_weights in ("auto", "none"):
        vit_weights = None
    if preset == "auto":
        preset, why = "scratch", "no toy.json: photographs; no published weights"
        if vit_weights or config.albef:
            preset, why = "paper", "no toy.json: photographs; published weights"
    print(f"preset {preset}: {why}")

    values = asdict(config) | {"preset": preset, "vit_weights": vit_weights}
    for flag, value in PRESETS[preset].items():
        if values[flag] is None:
            values[flag] = value
    if config.ids is None:  # at most as many as in the smallest training split, at least 2
        people = [len(set(column(dataset.split("train"), "pid"))) for dataset in trained]
        values["ids"] = max(2, min(values["ids"], *people))
    if config.steps is None and preset == "paper" and config.task == "all":
        values["steps"] *= len(trained)  # as many for each stream, as in the released code
    if config.albef:
        values["align"] = False  # ALBEF's picture encoder is fixed
    return Config(**values)


def resumed_config(config, saved):
    """The config of a checkpoint, with the device, workers and number of steps given now. UserError
    for any other flag, or if the run has more steps already."""
    own = ("resume", "device", "workers", "steps")
    others = cli.flags_of(config, Config, own)
    if others:
        flag = others[0].partition("=")[0]
        raise UserError(f"--resume continues with the flags of its run: drop {flag}")
    given = {name: getattr(config, name) for name in own if getattr(config, name) is not None}
    resumed = cli.restore(Config, saved["config"] | given, config.resume)
    if saved["step"] < 0:
        raise UserError(f"{config.resume}: of step {saved['step']}; use a last.pt of train.py")
    if resumed.steps < saved["step"]:
        raise UserError(f"--steps {resumed.steps}: the run has {saved['step']} already; give more")
    if config.steps:
        lr = resumed.lr * schedule(saved["step"], resumed)
        print(f"continues to step {config.steps}; the cosine is stretched, lr is {lr:.3g} now")
    return resumed


def task_ratios(config, datasets):
    """Steps per round for each task of the data sets: 'trad:1,cc:2' -> {'trad': 1, 'cc': 2}; 1 for
    a task that is not named. UserError for another form."""
    given = {}
    for part in config.ratios.split(",") if config.ratios else ():
        task, _, steps = part.partition(":")
        if task not in TASKS or not re.fullmatch("[1-9][0-9]{0,2}", steps):
            raise UserError(
                f"--ratios {config.ratios}: expected task:steps pairs such as trad:1,cc:2; tasks "
                f"are {', '.join(TASKS)}, steps 1 to 999"
            )
        given[task] = int(steps)
    return {dataset.task: given.get(dataset.task, 1) for dataset in datasets}


if __name__ == "__main__":
    cli.run(main, Config)
