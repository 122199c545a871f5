"""The loop of train.py against a slow twin: clipping, AdamW and the schedule written out by hand.

A real run of a few steps is recorded: what every step was given, and the weights it began with.
The twin begins each step with these weights and says which weights the next one must begin with.
Where they differ, the test names the mistake that gives what was found.
"""

import copy
import json
import math
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import data
import model as irm
import toydata
import train
from instructions import asked_tasks
from reid import cli
from reid.folders import open_all
from tests.explain import assert_close, close
from tests.small_bert import write_bert

STEPS = 6
WARMUP = 2
LR = 1.5e-3
GATE_LR = 7.0
WEIGHT_DECAY = 5.0
CLIP = 5.0
SEED = 3
IDS = 4
IMAGES = 2
EVALUATE_EVERY = 3
ERASE = 0.3
FLAGS = ("--task", "li", "--name", "li", "--steps", STEPS, "--warmup", WARMUP, "--lr", LR, "--gate-lr", GATE_LR,
         "--weight-decay", WEIGHT_DECAY, "--seed", SEED, "--ids", IDS, "--images", IMAGES,
         "--evaluate-every", EVALUATE_EVERY, "--feature", "fused", "--erase", ERASE)


class Step(NamedTuple):
    """What one step of the recorded run began with."""
    weights: dict  # name -> tensor: parameters that learn and statistics of the norms
    training: bool  # the model's mode
    grads: bool  # whether any gradient was left over from the step before
    images: torch.Tensor  # as loss_terms got them
    batch: data.Batch
    arguments: tuple  # all of loss_terms' arguments but the model
    keywords: dict


class Augmented(NamedTuple):
    """What data.augment was given, and the images that it returned."""
    given: torch.Tensor
    returned: torch.Tensor
    pad: int
    erase: float
    seed: int  # of the generator


class Recording(NamedTuple):
    model: irm.InstructReID  # a copy from before the first step
    steps: list  # of Step
    last: dict  # the weights after the last step
    augmented: list  # of Augmented, one for every call of data.augment
    autocast: set  # whether autocast was on, in every pass through E_e
    ranked: set  # which necks worked in testing: "edit", "fused"
    people: Path  # the drawn data sets
    logged: list  # the steps in log.jsonl


def weights_of(model):
    """{name: a copy}; the text tower is frozen."""
    weights = {}
    for name, value in model.state_dict().items():
        if not name.startswith("encoder.text."):
            weights[name] = value.clone()
    return weights


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """`python train.py` with FLAGS on drawn people, from the command line to the last table."""
    folder = tmp_path_factory.mktemp("run")
    toydata.make_toy(folder / "toy", people=8, seed=0, workers=1)
    bert = write_bert(folder / "bert")
    argv = ["train.py", "--data", folder / "toy", "--text-model", bert, *FLAGS]
    live = []
    copies = []
    steps = []
    augmented = []
    autocast = set()
    ranked = set()
    loss_terms = train.loss_terms
    augment = data.augment

    def note_autocast(module, inputs):
        autocast.add(torch.is_autocast_enabled("cpu"))

    def note_neck(module, inputs, output):
        if not module.training:
            ranked.add("edit" if module is live[0].neck else "fused")

    def watch(model):
        model.editor.register_forward_pre_hook(note_autocast)
        model.neck.register_forward_hook(note_neck)
        model.fused_neck.register_forward_hook(note_neck)

    def spy_on_loss(model, images, what, batch, *args, **kwargs):
        if not live:
            live.append(model)
            copies.append(copy.deepcopy(model))
            watch(model)
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        left_over = any(grad.abs().sum() > 0 for grad in grads)
        arguments = (images, what, batch, *args)
        step = Step(weights_of(model), model.training, left_over, images, batch, arguments, kwargs)
        steps.append(step)
        return loss_terms(model, images, what, batch, *args, **kwargs)

    def spy_on_augment(images, pictures, pad=10, erase_prob=0.5, generator=None):
        seed = generator.initial_seed() if generator else None
        result = augment(images, pictures, pad, erase_prob, generator)
        augmented.append(Augmented(images, result[0], pad, erase_prob, seed))
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", [str(each) for each in argv])
        patch.setattr(train, "loss_terms", spy_on_loss)
        patch.setattr(data, "augment", spy_on_augment)
        cli.run(train.main, train.Config)
    lines = (folder / "runs/li/log.jsonl").read_text().splitlines()
    logged = [line["step"] for line in map(json.loads, lines) if "rows" in line]
    return Recording(copies[0], steps, weights_of(live[0]), augmented, autocast, ranked,
                     folder / "toy", logged)


# ---- what a step begins with ----

def test_no_gradient_is_left_from_the_step_before(recording):
    left = [number for number, step in enumerate(recording.steps) if step.grads]
    assert not left, f"zero_grad is forgotten: steps {left} begin with the gradients of others"


def test_the_model_trains_after_an_evaluation_in_the_middle(recording):
    wrong = [number for number, step in enumerate(recording.steps) if not step.training]
    assert not wrong, (f"an evaluation after {EVALUATE_EVERY} steps leaves the model in test mode: "
                       f"so it is in steps {wrong}")


def test_autocast_is_off_on_the_cpu(recording):
    assert recording.autocast == {False}, "--amp auto switched autocast on by itself on the CPU"


def test_feature_fused_is_what_the_evaluation_ranks(recording):
    words = f"--feature fused, but the evaluation ranks behind the necks of {recording.ranked}"
    assert recording.ranked == {"fused"}, words


def test_every_step_trains_on_the_augmented_batch_of_its_number(recording):
    model = recording.model
    datasets = open_all(recording.people, asked_tasks("li"))
    batches = data.Batches(datasets, model.size, model.picture_size, IDS, IMAGES, seed=SEED)
    assert len(recording.augmented) == STEPS, "data.augment is not called once in each step"

    for number, (step, augmented) in enumerate(zip(recording.steps, recording.augmented)):
        expected = batches[number]
        words = f"step {number} trains on another batch than its own"
        assert torch.equal(step.batch.images, expected.images), words
        words = f"step {number} trains with other instructions than its own"
        assert step.batch.instr == expected.instr, words
        words = f"step {number} augments other images than those of its batch"
        assert torch.equal(augmented.given, expected.images), words
        words = f"step {number} trains on images that were not augmented"
        assert torch.equal(augmented.returned, step.images), words


def test_every_step_flips_crops_and_erases_as_it_was_told(recording):
    height = recording.model.size[0]
    for number, augmented in enumerate(recording.augmented):
        words = f"step {number} erases with probability {augmented.erase}, --erase says {ERASE}"
        assert augmented.erase == ERASE, words
        words = f"step {number} moves images by up to {augmented.pad} pixels of {height}"
        assert augmented.pad == height // 16, words

    seeds = [augmented.seed for augmented in recording.augmented]
    words = f"the seeds of the augmentation are {seeds}: each step has its own, so that it resumes"
    assert None not in seeds and len(set(seeds)) == STEPS, words


def test_the_ratios_are_the_shares_of_the_tasks_in_a_round(recording):
    config = train.Config(data=str(recording.people), size="tiny", ids=IDS, images=IMAGES,
                          ratios="trad:3,li:2")
    batches = train.make_batches(config, open_all(config.data, asked_tasks("all")), rank=0, world=1)
    expected = {"trad": 3, "cc": 1, "ctcc": 1, "vi": 1, "t2i": 1, "li": 2}
    found = Counter(batches.cycle)
    assert found == expected, f"--ratios {config.ratios} makes rounds of {dict(found)}"


def test_the_loss_gets_the_augmented_pictures_and_the_generator_of_the_step(
        recording, tmp_path, monkeypatch):
    """Instruction pictures turn with their images; false pairs are drawn so that a run resumes."""
    loss_terms = train.loss_terms
    augment = data.augment
    augmented = []

    def spy_on_augment(*arguments):
        augmented.append((*augment(*arguments), arguments[-1]))
        return augmented[-1][:2]

    def spy_on_loss(model, images, what, batch, config, precision, chance=None):
        [(augmented_images, pictures, generator)] = augmented
        assert images is augmented_images, "the loss gets images that were not augmented"
        assert what is pictures, "the loss gets instruction pictures that were not flipped"
        assert chance is generator, "the generator of the step does not reach the loss"
        return loss_terms(model, images, what, batch, config, precision, chance)

    bert = write_bert(tmp_path / "bert")
    flags = ("--task", "ctcc", "--data", recording.people, "--text-model", bert, "--steps", 1,
             "--ids", IDS, "--images", IMAGES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, flags)])
    monkeypatch.setattr(data, "augment", spy_on_augment)
    monkeypatch.setattr(train, "loss_terms", spy_on_loss)
    cli.run(train.main, train.Config)
    assert len(augmented) == 1


def test_evaluations_come_after_the_steps_that_were_asked_for(recording):
    words = f"evaluated after the steps {recording.logged}, --evaluate-every {EVALUATE_EVERY}"
    assert recording.logged == [EVALUATE_EVERY, STEPS], words


def test_gradient_checkpointing_reaches_both_vits(recording):
    config = train.Config(lr=LR, weight_decay=0.0, gate_lr=1.0, grad_checkpointing=True)
    model = copy.deepcopy(recording.model)
    train.prepare(model, config, torch.device("cpu"))
    assert model.editor.checkpointing, "--grad-checkpointing does not reach E_e"
    assert model.encoder.picture.checkpointing, "--grad-checkpointing does not reach E_i"


# ---- the twin ----

class Rule(NamedTuple):
    """How a parameter moves; the defaults are what README says, everything else is a mistake."""
    gate_lr: float = GATE_LR
    clip: float = CLIP
    decay_vectors: bool = False
    decay_gates: bool = False
    decay_matrices: bool = True
    warmup: bool = True
    early: int = 0  # steps that the schedule is ahead
    cosine: bool = True


MISTAKES = {
    "weight decay pulls the gates back to 0": Rule(decay_gates=True),
    "weight decay acts on norms and biases: only matrices have it": Rule(decay_vectors=True),
    "weight decay acts on every parameter, gates, norms and biases too: only matrices have it":
        Rule(decay_gates=True, decay_vectors=True),
    "weight decay acts on nothing": Rule(decay_matrices=False),
    "--gate-lr is ignored: gates move with the learning rate of the others": Rule(gate_lr=1.0),
    f"gradients are not clipped to a norm of {CLIP:g}": Rule(clip=math.inf),
    "gradients are clipped to a norm of 1": Rule(clip=1.0),
    "the warm-up is left out": Rule(warmup=False),
    "a step has the learning rate of the next one": Rule(early=1),
    "a step has the learning rate of the one before": Rule(early=-1),
    "the learning rate stays where the warm-up leaves it: the cosine is left out":
        Rule(cosine=False),
}


def learning_rate(step, rule):
    """Linear from LR / 100 to LR, then a cosine to 0."""
    step += rule.early
    if step < WARMUP and rule.warmup:
        return LR * (0.01 + 0.99 * step / WARMUP)
    if not rule.cosine:
        return LR
    passed = (step - WARMUP) / (STEPS - WARMUP)
    return LR * (1 + math.cos(math.pi * passed)) / 2


def gradients(recording):
    """[{name: gradient}] of every step before clipping, without what the loss does not reach."""
    model = recording.model
    rows = []
    for step in recording.steps:
        model.load_state_dict(step.weights, strict=False)
        model.train()
        model.zero_grad()
        terms = train.loss_terms(model, *step.arguments, **step.keywords)
        sum(terms.values()).backward()

        grads = {}
        for name, p in model.named_parameters():
            if p.grad is not None:
                grads[name] = p.grad.clone()
        rows.append(grads)
    return rows


def global_norm(grads):
    return math.sqrt(sum(grad.double().square().sum().item() for grad in grads.values()))


def next_weights(before, grads, moments, number, rule):
    """The weights after step `number`, counted from 0: AdamW (Loshchilov & Hutter 2019), clipped.

    moments: {name: (mean, mean square)} of the gradients, brought up to date here.
    """
    shrink = min(1.0, rule.clip / (global_norm(grads) + 1e-6))
    after = {}
    for name, grad in grads.items():
        p = before[name]
        lr = learning_rate(number, rule)
        if name.endswith("gate"):
            lr = lr * rule.gate_lr
            decays = rule.decay_gates
        elif p.ndim > 1:
            decays = rule.decay_matrices
        else:
            decays = rule.decay_vectors

        grad = grad * shrink
        mean, square = moments.get(name, (torch.zeros_like(p), torch.zeros_like(p)))
        mean = 0.9 * mean + 0.1 * grad
        square = 0.999 * square + 0.001 * grad ** 2
        moments[name] = (mean, square)

        if decays:
            p = p * (1 - lr * WEIGHT_DECAY)
        unbiased_mean = mean / (1 - 0.9 ** (number + 1))
        unbiased_square = square / (1 - 0.999 ** (number + 1))
        after[name] = p - lr * unbiased_mean / (unbiased_square.sqrt() + 1e-8)
    return after


def predictions(recording, fresh, rule):
    """[{name: weight}] after every step under a rule."""
    moments = {}
    rows = []
    for number, (step, grads) in enumerate(zip(recording.steps, fresh)):
        rows.append(next_weights(step.weights, grads, moments, number, rule))
    return rows


def flat(rows, names):
    """The named weights of all steps as one matrix, (steps weights)."""
    return torch.stack([torch.cat([row[name].flatten() for name in names]) for row in rows])


def test_every_step_is_clipping_and_adamw_by_hand(recording):
    fresh = gradients(recording)
    names = list(fresh[0])
    tolerance = 2e-6

    norms = [global_norm(grads) for grads in fresh]
    assert len(norms) == STEPS
    words = f"clipping has to matter in this test, but the norms are {norms}"
    assert max(norms) > 1.5 * CLIP and max(norms) > 1.2 * min(norms), words

    # all steps at once: the first alone does not tell one mistake from another
    found = flat([step.weights for step in recording.steps[1:]] + [recording.last], names)
    expected = flat(predictions(recording, fresh, Rule()), names)
    mistakes = {}
    for words, rule in MISTAKES.items():
        mistakes[words] = flat(predictions(recording, fresh, rule), names)
        assert not close(mistakes[words], expected, tolerance), f"this run cannot notice: {words}"
    assert_close(found, expected, mistakes, tolerance)


def test_a_weight_that_no_loss_reaches_stays(recording):
    reached = set(gradients(recording)[0])
    before = recording.steps[0].weights
    parameters = {name for name, _ in recording.model.named_parameters()}
    idle = [name for name in before if name in parameters and name not in reached]
    assert any(name.startswith("text_head") for name in idle)  # li trains no text query
    for name in idle:
        assert torch.equal(before[name], recording.last[name]), f"{name} moved without a gradient"


# ---- half precision ----

SCALE = 16.0  # of the loss: the usual 65,536 is too large for the first step of this run


@pytest.fixture(scope="module")
def norms(recording, tmp_path_factory):
    """{--amp: norm of the gradient that the first step clips}, of runs that are otherwise alike."""
    folder = tmp_path_factory.mktemp("precisions")
    bert = write_bert(folder / "bert")
    clip = torch.nn.utils.clip_grad_norm_
    found = {}

    for amp in ("off", "fp16"):
        def spy(parameters, largest, amp=amp):
            norm = clip(parameters, largest)
            found.setdefault(amp, norm.item())
            return norm

        flags = ("--task", "li", "--data", recording.people, "--text-model", bert, "--name", amp,
                 "--steps", 1, "--ids", IDS, "--images", IMAGES, "--margin", 0.3, "--amp", amp)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setattr(sys, "argv", ["train.py", *map(str, flags)])
            patch.setattr(torch.nn.utils, "clip_grad_norm_", spy)
            patch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=SCALE))
            cli.run(train.main, train.Config)
    return found


def test_scaled_gradients_of_fp16_are_unscaled_before_they_are_clipped(norms):
    words = (f"the norm that is clipped is {norms['fp16']:.3g} in fp16 and {norms['off']:.3g} in "
             "float32: the scale of the loss is still in it")
    assert norms["fp16"] == pytest.approx(norms["off"], rel=0.2), words
