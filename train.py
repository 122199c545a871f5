"""Trains IRM on one task or on all: `python train.py`, `python train.py --task cc --data ./ltcc`.

Read `main` for the loop and `loss_terms` for the loss of a batch.
Several GPUs: `torchrun --nproc_per_node=N train.py ...`; every process takes its own batches of the
same task and the gradients are averaged (reid/processes.py).
"""

import math
import random
import signal
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path

import reid  # noqa: F401  before torch: how its threads wait

# isort: split

import torch
import torch.nn.functional as F
from torch import nn

import data
import evaluate
import losses
from instructions import TASKS, asked_tasks
from model import PARTS, SIZES, Instruction, InstructReID
from reid import checkpoints, files, pictures, processes, runs, weights
from reid import text as text_models
from reid.cli import (
    Interrupted,
    UserError,
    collect,
    exit_with,
    on_signals,
    option,
    progress,
    restore,
    run,
)
from reid.compare import move_queries
from reid.device import (
    allow_tf32,
    amp_dtype,
    autocast,
    full_precision_matmul,
    loader_workers,
    pick_device,
    restore_rng,
    rng_state,
)
from reid.folders import (
    counts_table,
    find_datasets,
    is_drawn,
    open_all,
    print_notes,
    without_overlap,
)
from reid.records import column


@dataclass
class Config:
    """Train Instruct-ReID. A flag with several defaults takes that of the preset.

    python train.py                                 draws ./toy and trains all six tasks on it
    python train.py --task li --steps 100 --no-editing
    python train.py --task cc --data ./data/ltcc    photographs
    python train.py --resume runs/all/last.pt       go on
    """

    task: str = option(
        "all", "which task to train; all = every task that the data offers", ("all", *TASKS))
    data: str = option(
        "./toy", "data set, or folder of data sets; ./toy is drawn if it is absent")
    val: bool = option(
        False, "train on validation splits too (MSMT17, PRCC, CUHK-PEDES); the paper does not")
    name: str = option(
        None, "the run's folder under ./runs; None = the data, the task, and the flags that "
        "differ from the preset")
    resume: str = option(
        None, "go on from this last.pt, with the flags of that run; only --steps may be more")
    start: str = option(
        None, "begin with the weights of this last.pt, of whatever data; classifiers begin anew")
    preset: str = option(
        "auto", "toy for drawn data; for photographs paper with published weights, else scratch",
        ("auto", "toy", "scratch", "paper"))
    seed: int = option(0, "seed of the weights, the batches and the augmentation", least=0)

    size: str = option(
        None, "tiny, tiny-128, small, or the paper's ViT-B/16 for 256x128 (base) or 384x192 "
        "(base-384)",
        (*SIZES,), group="model")
    editing: bool = option(
        True, "let the instruction edit the image features (Eq. 1-4); --no-editing is Tab. 5 "
        "`w/o editing`")
    feature: str = option(
        "edit", "what is ranked: the edited CLS token, or F_out of the attention module",
        ("edit", "fused"))
    vit_weights: str = option(
        None, "published ViT that E_e starts from: PASS, DeiT, HAP or ALBEF file, or "
        "hub:OWNER/NAME; none is scratch; auto (for photographs) takes the best in ./weights/, "
        "else DeiT from the hub, else none")
    albef: str = option(
        None, "ALBEF.pth: its text tower and picture encoder as E_i, its multimodal layers as E_f "
        "of t2i")
    text_model: str = option(
        None, "BERT of the sentences in place of the embedded one: a folder, or a name on the hub")
    train_text: bool = option(False, "let the text tower learn too")

    loss: str = option(
        "adaptive", "adaptive triplet (Eq. 5-6); triplet: the plain one of Tab. 5; image: the "
        "plain one and the identity loss on F alone, with --no-editing the baseline of Tab. 4",
        ("adaptive", "triplet", "image"), group="loss")
    mining: str = option(
        None, "triplets: all of the batch; even, those within a person and the others half each; "
        "or the hard ones", ("all", "even", "hard"))
    margin: float = option(None, "m of Eq. 5, divided by the width of F", least=0)
    smoothing: float = option(0.1, "label smoothing of the identity loss", least=0, most=1)
    plain: bool = option(
        True, "with all tasks, learn words for plain photos (Eq. 8) from COCAS+'s descriptions "
        "too; --no-plain: from the captions of t2i alone, as the paper")
    align: bool = option(
        True, "contrast that gives a picture encoder without pre-trained weights an eye for "
        "clothes")

    steps: int = option(
        None, "training steps, each a batch of one task", least=1, most=10**9, group="schedule")
    ids: int = option(None, "identities per batch", least=2, most=10**5)
    images: int = option(None, "images per identity", least=2, most=10**4)
    optimiser: str = option(
        None, "muon: Muon for the matrices of transformer layers, AdamW for the rest",
        ("adamw", "muon"))
    lr: float = option(None, "learning rate after the warm-up; falls to 0 along a cosine", least=0)
    warmup: int = option(None, "steps of linear warm-up, from lr / 100", least=0)
    weight_decay: float = option(None, "of AdamW, on weight matrices only", least=0)
    gate_lr: float = option(None, "learning rate of the gates, in multiples of lr", least=0)
    new_lr: float = option(
        None, "learning rate of what no file of weights brought, in multiples of lr", least=0)
    erase: float = option(None, "probability of random erasing", least=0, most=1)
    ratios: str = option(None, "steps per task in a round, such as trad:1,cc:2")

    amp: str = option(
        "auto", "mixed precision: auto is bf16 or fp16 on CUDA and off on CPU",
        ("auto", "bf16", "fp16", "off"), group="machine")
    device: str = option("auto", "auto takes CUDA if it is there")
    grad_checkpointing: bool = option(
        False, "compute each ViT layer again in backward: less memory, a third more time")
    compile: bool = option(
        False, "torch.compile of the editing transformer: minutes at first, then faster on a GPU")
    workers: int = option(
        None, "loader processes; 0 keeps the decoded images in memory; None = 0 on the CPU, what "
        "the cores allow on a GPU", least=0, most=256)
    evaluate_every: int = option(
        None, "steps between evaluations; 0 = only after the last step", least=0)
    save_every: int = option(500, "steps between checkpoints", least=1)


SHARES = ",".join(f"{name}:{task.share}" for name, task in TASKS.items() if task.share)
VALUES = {  # flag: its value in the presets toy, scratch and paper (Sec. 5.1)
    "size": ("tiny", "tiny-128", "base"),
    "mining": ("even", "even", "all"),
    "margin": (5 / 128, 5 / 128, 5 / 128),  # see loss_terms
    "steps": (1600, 1500, 24000),
    "ids": (16, 16, 32),
    "images": (4, 4, 4),
    "optimiser": ("muon", "adamw", "adamw"),
    "lr": (1.5e-3, 1.5e-3, 1e-5),
    "warmup": (100, 100, 1000),
    "weight_decay": (0.05, 0.05, 5e-4),
    "gate_lr": (10.0, 10.0, 10.0),  # not the paper's, nor is new_lr
    "new_lr": (1.0, 1.0, 10.0),
    "erase": (0.0, 0.2, 0.5),
    "ratios": (SHARES, SHARES, ""),
    "workers": (0, None, None),  # None: what the device and the cores allow
    "evaluate_every": (0, 300, 4000),
}
TOY, SCRATCH, PAPER = (dict(zip(VALUES, values)) for values in zip(*VALUES.values()))
PRESETS = {"toy": TOY, "scratch": SCRATCH, "paper": PAPER}
Config.presets = PRESETS  # --help shows them

UNNAMED = (  # flags that do not show in the name of a run
    "task", "data", "name", "resume", "preset", "amp", "device", "compile", "grad_checkpointing",
    "workers", "evaluate_every", "save_every",
)
CLIP = 5.0  # the largest norm of a gradient
ALIGN_TEMPERATURE = 0.1  # of the contrast between pictures of clothes


# ---- the loop ----

def main(config):
    device = pick_device(config.device)
    rank, world = processes.join(device)
    allow_tf32(device, say=rank == 0)
    given = config
    saved = None
    if config.resume:
        saved = checkpoints.load(config.resume, checkpoints.MODEL | checkpoints.RUN)
        config = resumed_config(config, saved)
    else:
        config = preset_config(config, rank)
    torch.manual_seed(config.seed)

    # data, model, optimiser
    datasets = without_overlap(open_all(config.data, asked_tasks(config.task), config.val))
    if not config.plain:
        datasets = [dataset for dataset in datasets if not dataset.extra]
    if not saved:
        config = fitted_config(config, given, datasets)
    shape = SIZES[config.size]
    batches = data.Batches(
        datasets, shape["size"], shape["picture_size"], config.ids, config.images,
        seed=config.seed * world + rank, ratios=task_ratios(config, datasets),
    )
    trained_on = checkpoints.training_data(datasets)
    report = []
    if saved:
        checkpoints.refuse_other_data(saved["data"], trained_on, config.resume)
        with checkpoints.user_error_on(config.resume):
            model = evaluate.rebuild(saved)
            checkpoints.restore_model(model, saved["model"], config.resume)
    else:
        model, report = build_model(config, batches.classes, trained_parts(config, datasets))
        if config.start:
            report.append(checkpoints.start(model, config.start))
    model.to(device, memory_format=torch.channels_last)  # convolutions are faster so
    model.editor.checkpointing = config.grad_checkpointing
    if model.encoder.picture:
        model.encoder.picture.checkpointing = config.grad_checkpointing
    if config.compile:
        torch.compiler.config.recompile_limit = 32  # for each kind of instruction, twice
        model.editor.compile()
    optimisers = optimisers_of(model, config)
    is_fp16 = amp_dtype(config.amp, device) == torch.float16
    scaler = torch.amp.GradScaler(device.type, enabled=is_fp16)
    if rank == 0:
        print_notes(datasets)
        print("\n".join([settings(config), *report, *map(counts_table, datasets)]))
    sentences = sentences_of(datasets)
    if rank == 0:
        for line in model.encoder.text.unread(sentences):
            print(f"note: {line}")
    model.encoder.text.remember(sentences, partial(progress, title="sentences", disable=rank > 0))

    # begin, or go on
    step = 0
    if saved:
        step = saved["step"]
        if rank == 0 and given.steps:
            print(f"on to step {config.steps}, at the rates of a cosine of so many steps: "
                  f"{config.lr * schedule(step, config):.3g} now")
        with checkpoints.user_error_on(config.resume):
            for optimiser, state in zip(optimisers, saved["optimisers"], strict=True):
                optimiser.load_state_dict(state)
            scaler.load_state_dict(saved["scaler"])
            restore_rng(saved["rng"], device)
    folder, log = None, None
    if rank == 0:
        name = runs.name_of(config, PRESETS[config.preset], UNNAMED)
        folder = Path(config.resume).parent if saved else runs.new_folder(name, config)
        lock = files.lock(folder)  # noqa: F841  held until the program ends
        log = runs.Log(folder, step, saved and saved["history"])
    go_on = f"go on with: python train.py --resume {folder}/last.pt"

    def save():
        checkpoints.save(folder / "last.pt", {
            "config": asdict(config) | {"resume": None},
            "data": trained_on,
            "step": step,
            "history": log.state(),
            "optimisers": [optimiser.state_dict() for optimiser in optimisers],
            "scaler": scaler.state_dict(),
            "rng": rng_state(),
            **evaluate.parts_of(model, batches.classes),
        })

    def evaluate_between():
        """Evaluates a step in the middle where --evaluate-every asks for it and the log lacks it.
        """
        is_due = config.evaluate_every and step and step % config.evaluate_every == 0
        if is_due and not any(runs.is_evaluation(line, step) for line in log.lines):
            save()
            with on_signals(exit_with(f"stopped in an evaluation; {go_on}")):
                now = evaluate.Run(model, config.feature, amp=config.amp)
                rows = evaluate.evaluate_all(now, datasets)
            for row in rows:
                del row["each"]
            log.write_rows(step, rows)

    stops = []  # numbers of signals: finish the step, save, leave
    handlers = on_signals(collect(stops, f"stopped at once, the last steps are lost; {go_on}"))
    loss_of = processes.parallel(Loss(model, config, autocast(config.amp, device)))
    workers = loader_workers(config.workers, device, batches.bytes_of_a_batch, say=rank == 0)
    loader = data.loader(batches, step, config.steps, workers, device.type == "cuda", stops)
    bar = progress(loader, "training", total=config.steps, initial=step, disable=rank > 0)
    if rank == 0:
        evaluate_between()  # what a run that was interrupted still owes
    processes.wait()
    model.train()
    lr = config.lr * schedule(step - 1, config)  # of the last step, if a resume has none to go
    for batch in bar:
        lr = config.lr * schedule(step, config)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = lr * group["scale"]

        # the same augmentation for an image and its instruction picture, on the device
        batch = batch.to(device)
        seed = random.Random(f"{batches.seed}:augment {step}").getrandbits(63)
        rng = torch.Generator(device).manual_seed(seed)
        images, pictures = data.augment(
            batch.images, batch.pictures, model.size[0] // 16, config.erase, rng)
        if world > 1:  # dropout, of a text tower that learns, is a function of (seed, step) too
            torch.manual_seed(seed)

        # forward, backward, step
        terms = loss_of(images, pictures, batch, rng)
        with full_precision_matmul():  # distances need all bits in the backward pass too
            scaler.scale(sum(terms.values())).backward()
        processes.average_statistics(model)
        for optimiser in optimisers:
            scaler.unscale_(optimiser)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for optimiser in optimisers:
            scaler.step(optimiser)
        scaler.update()
        model.zero_grad(set_to_none=True)
        step += 1

        # report, save, evaluate
        if rank == 0:
            values = dict(terms)
            if not is_fp16:  # there it is infinite now and then, and the scaler skips the step
                values["gradient"] = norm
            log.note(step, batch.task, values, len(images) * world, lr)
            if step % 10 == 0:
                latest = [f"{task} {float(loss):.2f}" for task, loss in log.latest.items()]
                bar.set_postfix_str(f"{' '.join(latest)} {log.speed:.0f} images/s", refresh=False)
            if step % config.save_every == 0 and not stops:
                save()
            if step < config.steps and not stops:
                evaluate_between()
        if processes.any_process(stops):  # where the others wait for rank 0
            stops = stops or [signal.SIGINT]  # another process's
            break

    bar.close()
    handlers.close()
    processes.leave()
    if rank > 0:
        return
    if not stops:
        log.write(step, lr)
    save()
    if stops:
        raise Interrupted(stops[0], f"stopped at step {step}; {go_on}")
    with on_signals(exit_with(f"stopped in the last evaluation; {go_on}")):
        finish(evaluate.Run(model, config.feature, amp=config.amp), datasets, step, log)


def finish(last, datasets, step, log):
    """Evaluates the last step, an evaluate.Run; writes the line of the log and the figures of every
    query, prints the tables, draws pictures."""
    minutes = log.seconds / 60
    rows = evaluate.evaluate_all(last, datasets)
    matrix = evaluate.matrix_of_all(last, datasets)
    move_queries(rows + matrix, log.folder / "queries.json")
    log.write_rows(step, rows, matrix)
    print(f"\n{step} steps in {minutes:.1f} minutes; checkpoint, log and config in {log.folder}/")
    evaluate.show({"Results": rows, evaluate.MATRIX: matrix})

    for name, picture in evaluate.draw(last, datasets).items():
        pictures.save(picture, log.folder / f"{name}.png")
    print(f"rankings, gates and attention to words are drawn in {log.folder}/")
    evaluate.show({evaluate.SENTENCES: evaluate.evaluate_all(
        last, datasets, evaluate.evaluate_sentences)})


# ---- the loss of a batch ----

class Loss(nn.Module):
    """`loss_terms` as the forward pass of a module, which is what several processes can share."""

    def __init__(self, model, config, precision):
        super().__init__()
        self.model = model
        self.config = config
        self.precision = precision

    def forward(self, images, pictures, batch, rng):
        """The named terms of the loss of a batch; arguments as in loss_terms."""
        return loss_terms(self.model, images, pictures, batch, self.config, self.precision, rng)


def loss_terms(model, images, pictures, batch, config, precision, rng=None):
    """The loss of one batch of one task, as named terms: Eq. 8 for t2i, Eq. 7 for the others.

    images (b 3 H W) and pictures (b 3 h w) or None, augmented and normalised.
    The model runs under the autocast `precision`; the losses do not: a squared distance is the
    difference of terms of about 1500, where bf16 moves in steps of 8, and a margin would drown.
    F leaves a LayerNorm, so |F|^2 is about its width and d about 2 width (1 - cos): a margin must
    grow with the width, and config.margin is twice the difference of cosines that it asks for.
    rng: the generator that hard negatives are sampled with.
    """
    labels = batch.labels
    clothes = batch.clothes
    with precision:
        instr = model.instruct(batch.sentences, pictures)
    if TASKS[batch.task].text_only:
        # a caption tells of clothes: the person in others is not whom it describes
        described = labels if clothes is None else clothes
        return text_to_image_terms(model, images, instr, described, precision, rng)
    with precision:
        out = model(images, instr)

    pooled = instr.expand(len(images)).pooled
    if config.loss != "adaptive":  # equal instructions make it the plain one, Tab. 5 "w/o L_atri"
        pooled = torch.ones_like(pooled)
    triplet = partial(
        losses.adaptive_triplet,
        ids=labels,
        instr=pooled,
        margin=config.margin * out.feat.shape[1],
        mining=config.mining,
    )
    head = model.classifiers[batch.dataset]
    neck = losses.at_least_float32(out.neck)

    # Eq. 7: L = L_atri(F) + L_id(F) + L_atri(F_out) + L_id(F_out)
    terms = {
        "tri": triplet(out.feat),
        "id": losses.identity(head(neck), labels, config.smoothing),
    }
    if config.loss == "image":  # there is no E_f
        return terms
    fused_head = model.fused_classifiers[batch.dataset]
    fused_neck = losses.at_least_float32(out.fused_neck)
    terms |= {
        "tri_out": triplet(out.fused),
        "id_out": losses.identity(fused_head(fused_neck), labels, config.smoothing),
    }
    if clothes is not None and config.align:
        # pictures of the same clothes agree, as those of a pre-trained encoder would
        looks = F.normalize(losses.at_least_float32(instr.pooled), dim=1)
        terms["align"] = losses.contrastive(looks, looks, clothes, ALIGN_TEMPERATURE)
    return terms


def text_to_image_terms(model, images, instr, labels, precision, rng=None):
    """Eq. 8: L_cl of image and sentence, and L_match of true pairs against hard false ones."""
    with precision:
        out = model(images, None)
        instr = model.read_text(instr.expand(len(images)))
        text_feats = losses.at_least_float32(model.embed_text(instr))
    image_feats = F.normalize(losses.at_least_float32(out.neck), dim=1)
    temperature = model.temperature()

    similarity = image_feats @ text_feats.T / temperature
    text, image = losses.hard_negatives(similarity, labels, rng)
    # the true pairs, each image with a false text, each text with a false image
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
    """[AdamW], or with --optimiser muon AdamW and, for the matrices of transformer layers, Muon
    (Jordan et al. 2024), whose updates have the size of AdamW's."""
    of_adamw, of_muon = parameter_groups(model, config)
    chosen = [torch.optim.AdamW(of_adamw, lr=config.lr, fused=True)]
    if of_muon:
        chosen.append(torch.optim.Muon(of_muon, lr=config.lr, adjust_lr_fn="match_rms_adamw"))
    return chosen


def parameter_groups(model, config):
    """The groups of AdamW and those of Muon. Weight decay on matrices only; the gates, which start
    at 0, move faster and are not pulled back to it; what no file brought moves at new_lr."""
    groups = {False: {}, True: {}}  # Muon's? -> (weight decay, scale of the lr) -> parameters
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        decay = config.weight_decay if p.ndim > 1 else 0.0
        scale = 1.0 if is_loaded(name, config) else config.new_lr
        if name.endswith("gate"):
            decay = 0.0
            scale = config.gate_lr
        in_layer = ".blocks." in name or "text_block." in name
        is_muons = config.optimiser == "muon" and p.ndim == 2 and in_layer
        groups[is_muons].setdefault((decay, scale), []).append(p)
    return [
        [dict(params=params, weight_decay=decay, scale=scale)
         for (decay, scale), params in groups[is_muons].items()]
        for is_muons in (False, True)
    ]


# ---- what is trained ----

def trained_parts(config, datasets):
    """Those of model.PARTS that the tasks of these data sets train."""
    parts = set()
    for dataset in data.with_training_images(datasets):
        parts.update(TASKS[dataset.task].parts)
    if not config.editing:
        parts.discard("editing")
    if config.loss == "image":
        parts.discard("fused")
    return [part for part in PARTS if part in parts]


def build_model(config, classes, parts=PARTS):
    """(InstructReID, report lines): the model of a config with the published weights it names.

    classes: {data set: number of identities}; parts: those of model.PARTS that it has. UserError
    for a file that does not fit.
    """
    albef = config.albef
    if albef and config.text_model:
        raise UserError("--albef brings its own text tower: drop --text-model")

    cross = None
    report = []
    if albef:
        bert = weights.load_albef_text(albef)
        _, tokenizer = text_models.embedded_text_model()  # ALBEF has the same vocabulary
        report.append(f"text: ALBEF in {albef}")
        if "text queries" in parts:
            cross = weights.load_albef_cross(albef, SIZES[config.size]["dim"])
            report.append(f"E_f of t2i: ALBEF in {albef}")
    elif config.text_model:
        bert, tokenizer = text_models.named_text_model(config.text_model)
        report.append(f"text: BERT in {config.text_model}")
    else:
        bert, tokenizer = text_models.embedded_text_model()
    text_models.check_vocabulary(bert, tokenizer, albef or config.text_model)
    text = text_models.TextEncoder(bert, tokenizer, "cls" if albef else "mean", config.train_text)

    shape = dict(SIZES[config.size])
    if config.vit_weights or albef:
        shape["stem"] = "patch"  # published ViTs cut an image into patches
    if albef:
        shape["picture_depth"] = shape["depth"]  # its picture encoder is as deep as E_e
    model = InstructReID(shape, classes, parts, text=text, cross=cross)

    if albef and "pictures" in parts:
        report.append("pictures: " + weights.load_vit(model.encoder.picture, albef))
    if config.vit_weights:
        report.append("E_e: " + weights.load_vit(model.editor, config.vit_weights))
        model.shape["part_tokens"] = model.editor.prefix.shape[1] - 1  # as many as the file has
    return model, report


def is_loaded(name, config):
    """Whether a file of weights that `config` names brought the parameter of that name.

    A checkpoint holds the same config, so a resumed run answers alike without the files.
    """
    if config.start and "classifiers." not in name:
        return True
    if name.startswith(("encoder.picture.", "cross.")):
        return bool(config.albef)
    if name.startswith("editor."):
        return bool(config.vit_weights) and "instr" not in name and "gate" not in name
    return name.startswith("encoder.text.")


def sentences_of(datasets):
    """Every sentence that training can show; of a streamed data set there are too many to keep."""
    sentences = set()
    for dataset in datasets:
        sentences.update(TASKS[dataset.task].sentences)
        if TASKS[dataset.task].described and not dataset.streamed:
            for record in dataset.split("train"):
                sentences.update(record.captions)
    return sentences


# ---- config ----

def preset_config(config, rank=0):
    """Fills what the user left open from the preset that fits the data and the weights, drawing
    ./toy first if that is what is asked for."""
    if rank == 0 and Path(config.data) == Path(Config.data):
        import toydata  # here, so that all else goes on without it

        toydata.provide(config.data)
    processes.wait()
    find_datasets(config.data)  # a wrong folder is said before weights are looked for

    vit_weights = starting_weights(config, rank)
    name, why = config.preset, "--preset"
    if name == "auto" and is_drawn(config.data):
        name, why = "toy", "drawn data (toy.json is there)"
    elif name == "auto" and (vit_weights or config.albef):
        name, why = "paper", "no toy.json: photographs; published weights"
    elif name == "auto":
        name, why = "scratch", "no toy.json: photographs; no published weights"
    if rank == 0:
        print(f"preset {name}: {why}")

    chosen = {"preset": name, "vit_weights": vit_weights}
    for flag, value in PRESETS[name].items():
        if getattr(config, flag) is None:
            chosen[flag] = value
    if config.albef:
        chosen["align"] = False  # ALBEF's picture encoder is fixed
    if config.loss == "image" and config.feature == "fused":
        raise UserError("--feature fused: --loss image trains no E_f; drop one of the two")
    return replace(config, **chosen)


def starting_weights(config, rank):
    """What E_e starts from: a file, hub:OWNER/NAME, or None for scratch; auto is chosen here."""
    if config.vit_weights == "none":
        return None
    if config.vit_weights not in (None, "auto"):
        return config.vit_weights
    if config.preset in ("toy", "scratch"):
        return None
    if config.preset == "auto" and is_drawn(config.data):
        return None

    chosen = None
    if rank == 0:
        size = config.size or PRESETS["paper"]["size"]
        form = (SIZES[size]["dim"], SIZES[size]["depth"], SIZES[size]["patch"])
        chosen, report = weights.choose(form, config.albef, f"--size {size}")
        print("\n".join(report))
    return processes.from_first(chosen)  # the others may reach another hub


def fitted_config(config, given, datasets):
    """The config with what depends on the data, where `given` leaves it open: no more identities in
    a batch than the smallest training split has and, for all tasks with the preset paper, its steps
    for each stream, as the released code has them."""
    trained = data.with_training_images(datasets)
    if given.ids is None:
        counts = [len(set(column(dataset.split("train"), "pid"))) for dataset in trained]
        ids = min(config.ids, *counts)
        config = replace(config, ids=max(2, ids))  # a single one is the sampler's complaint
    if given.steps is None and config.preset == "paper" and config.task == "all":
        config = replace(config, steps=config.steps * len(trained))
    return config


def settings(config):
    """What is trained and how, in one line."""
    height, width = SIZES[config.size]["size"]
    start = config.vit_weights or "scratch"
    return (
        f"{config.steps} steps of {config.ids} identities x {config.images} images, "
        f"size {config.size} ({height}x{width}) from {start}, lr {config.lr:g} "
        f"(new layers {config.lr * config.new_lr:g}, gates {config.lr * config.gate_lr:g})"
    )


def resumed_config(config, saved):
    """The config of a checkpoint; only the machine's flags may differ, and more steps be given.
    UserError for others."""
    for field in fields(config):
        is_given = getattr(config, field.name) != field.default
        if is_given and field.name not in ("resume", "device", "workers", "steps"):
            flag = field.name.replace("_", "-")
            raise UserError(f"--resume goes on with the flags of that run: drop --{flag}")
    values = saved["config"] | {"resume": config.resume, "device": config.device}
    for flag in ("workers", "steps"):
        if getattr(config, flag) is not None:
            values[flag] = getattr(config, flag)
    resumed = restore(Config, values, config.resume)
    if resumed.steps < saved["step"]:
        raise UserError(f"--steps {resumed.steps}: the run has {saved['step']} already")
    return resumed


def task_ratios(config, datasets):
    """Steps per round of each task that the data offers: 'trad:1,cc:2' -> {'trad': 1, 'cc': 2}; 1
    where nothing is said. UserError if it cannot be read."""
    given = {}
    try:
        for part in filter(None, config.ratios.split(",")):
            task, steps = part.split(":")
            given[task] = int(steps)
    except ValueError as error:
        raise UserError(
            f"--ratios {config.ratios}: expected task:number pairs such as trad:1,cc:2"
        ) from error

    for task, steps in given.items():
        if task not in TASKS or not 1 <= steps <= 1000:
            raise UserError(
                f"--ratios {config.ratios}: tasks are {', '.join(TASKS)}, their steps 1 to 1000"
            )
    return {dataset.task: given.get(dataset.task, 1) for dataset in datasets}


if __name__ == "__main__":
    run(main, Config)
