"""A training step: the loss of one batch of each task, written image by image from the paper.

The twin begins with the features that the model gave in that step, so it says which feature goes
into which term of Eq. 7 and 8, behind which neck and classifier; how the features come about,
Eq. 1-4, E_i and E_f, is the affair of test_wires.py.
"""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

import losses
import model as irm
import train
from data import Batch
from instructions import TASKS
from model import PARTS, InstructReID
from reid import processes
from reid.records import Dataset, Record
from tests.reference import Rule, contrast, cross_entropy, eq5
from tests.test_model import TINY, Letters

PEOPLE = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])  # labels of the batch
CLOTHES = torch.tensor([0, 1, 0, 2, 2, 3, 4, 3])  # on its pictures
DESCRIPTIONS = [
    "a red coat", "a man in blue", "a red coat", "black boots", "a black bag and boots",
    "white shirt", "a woman wears a long green dress", "white shirt",
]
FALSE_TEXTS = torch.tensor([3, 4, 5, 0, 6, 1, 2, 4])  # of another person, for each image
FALSE_IMAGES = torch.tensor([5, 6, 7, 1, 2, 3, 0, 1])  # of another person, for each text
EDITED = [name for name, row in TASKS.items() if not row.text_only]  # Eq. 7
[TEXT_ONLY] = [name for name, row in TASKS.items() if row.text_only]  # Eq. 8
RICHEST = max(EDITED, key=lambda name: len(TASKS[name].parts))  # words and pictures, if any has
WATCHED = {
    "out": "forward", "instr": "instruct", "read": "read_text", "text": "embed_text",
    "logits": "match",
}


class DoubleLetters(Letters):
    """The text tower of the tests in float64, so that the twin can be compared to 1e-9."""

    def forward(self, sentences):
        tokens, mask, _ = super().forward(sentences)
        tokens = tokens.double()
        return tokens, mask, tokens.sum(1) / mask.sum(1, keepdim=True)


def a_model(parts=PARTS):
    """Open gates and a used neck; another data set comes first, so that the wrong classifier is
    noticed."""
    torch.manual_seed(3)
    model = InstructReID(TINY, {"other": 3, "market": 3}, parts, text=DoubleLetters())
    for p in model.parameters():
        if p.requires_grad and p.ndim <= 1:  # norms, biases, gates: nothing stays neutral
            p.data += 0.3 * torch.randn_like(p)
    return model.double().train()


def a_batch(task):
    """(images, pictures or None, Batch) of one task."""
    g = torch.Generator().manual_seed(7)
    row = TASKS[task]
    images = torch.randn(len(PEOPLE), 3, *TINY["size"], generator=g, dtype=torch.float64)
    sentences = DESCRIPTIONS if row.described else None
    if row.sentences:
        sentences = [row.sentences[-1]] * len(images)
    pictures = None
    if row.pictures:
        count = int(CLOTHES.max()) + 1
        pictures = torch.randn(count, 3, *TINY["picture_size"], generator=g, dtype=torch.float64)
        pictures = pictures[CLOTHES]
    clothes = CLOTHES if row.pictures else None
    batch = Batch(None, PEOPLE, "market", task, sentences, None, clothes)
    return images, pictures, batch


def dataset_of(task):
    return Dataset("market", "Market", task, None, (Record("market", "train", "a.jpg", 1),))


def a_config(**flags):
    return train.Config(**{"mining": "all", "margin": 0.02, "smoothing": 0.2, **flags})


def watch(model):
    """{"out", "instr", "read", "text", "logits"}: what the model gives in the next step."""
    seen = {}

    def spy_on(name, method):
        def spy(*args, **named):
            seen[name] = method(*args, **named)
            return seen[name]
        return spy

    for name, method in WATCHED.items():
        setattr(model, method, spy_on(name, getattr(model, method)))
    return seen


# ---- the twin ----

def after_neck(feats, neck):
    """Batch normalisation of (b d) by the batch's own mean and variance, without a shift."""
    mean = feats.mean(0)
    variance = ((feats - mean) ** 2).mean(0)
    return (feats - mean) / torch.sqrt(variance + neck.eps) * neck.weight


def mean_entropy(logits, labels, smoothing=0.0):
    rows = [cross_entropy(row, label, smoothing) for row, label in zip(logits, labels)]
    return sum(rows) / len(rows)


def eq7(seen, model, batch, config):
    """L = L_atri(F) + L_id(F) + L_atri(F_out) + L_id(F_out), and the contrast of the clothes on the
    pictures, as {term: value}."""
    out = seen["out"]
    pooled = seen["instr"].expand(len(batch.labels)).pooled
    triplets = list(itertools.permutations(range(len(batch.labels)), 3))
    rule = Rule(margin=config.margin * TINY["dim"])
    terms = {}
    for end, feats, neck, heads in (
        ("", out.feat, model.neck, model.classifiers),
        ("_out", out.fused, model.fused_neck, model.fused_classifiers),
    ):
        terms["tri" + end] = eq5(triplets, (feats, batch.labels, pooled), rule)
        logits = after_neck(feats, neck) @ heads[batch.dataset].weight.T
        terms["id" + end] = mean_entropy(logits, batch.labels, config.smoothing)
    if batch.clothes is not None:
        looks = torch.stack([each / each.norm() for each in pooled])
        terms["align"] = contrast(looks, looks, batch.clothes, train.ALIGN_TEMPERATURE)
    return terms


def eq8(seen, model, described):
    """({"con": L_cl, "match": L_match}, similarity image x text / temperature).

    described (b): whom the captions tell of. The images are not edited, and pass a neck of theirs.
    """
    out = seen["out"]
    read = seen["read"]
    image_feats = F.normalize(after_neck(out.feat, model.plain_neck), dim=1)
    text_feats = F.normalize(model.text_head(read.tokens[:, 0]), dim=1)
    temperature = model.log_temperature.exp()

    true_pairs = [(i, i, 1) for i in range(len(PEOPLE))]
    false_texts = [(i, int(text), 0) for i, text in enumerate(FALSE_TEXTS)]
    false_images = [(int(image), i, 0) for i, image in enumerate(FALSE_IMAGES)]
    pairs = true_pairs + false_texts + false_images
    logits = [InstructReID.match(model, out.tokens[[image]], read.take([text]))[0]
              for image, text, _ in pairs]
    terms = {
        "con": contrast(image_feats, text_feats, described, temperature),
        "match": mean_entropy(logits, [label for *_, label in pairs]),
    }
    return terms, image_feats @ text_feats.T / temperature


def assert_terms(found, expected, tolerance, what):
    assert found.keys() == expected.keys(), f"{what}: the terms of the loss"
    for name, value in expected.items():
        error = abs(found[name].item() - value.item())
        words = f"{what}: {name} is {found[name].item()}, by the paper {value.item()}"
        assert error < tolerance * (1 + abs(value.item())), words


def assert_step(model, terms, twin, what):
    """The terms and the gradients of train.py are those of the twin."""
    assert_terms(terms, twin, 1e-9, what)
    grads = []
    for values in (terms, twin):
        model.zero_grad()
        sum(values.values()).backward(retain_graph=True)
        grads.append({name: p.grad for name, p in model.named_parameters()})
    for name, expected in grads[1].items():
        found = grads[0][name]
        assert (found is None) == (expected is None), f"{what}: does {name} learn?"
        if expected is not None:
            largest = 1e-9 * (1 + expected.abs().max())
            assert (found - expected).abs().max() < largest, f"{what}: the gradient of {name}"


FULL = torch.autocast("cpu", enabled=False)


def test_a_step_equals_eq7_image_by_image():
    model = a_model()
    config = a_config()
    for task in EDITED:
        images, pictures, batch = a_batch(task)
        seen = watch(model)
        terms = train.loss_terms(model, images, pictures, batch, config, FULL)
        assert_step(model, terms, eq7(seen, model, batch, config), task)


@pytest.mark.parametrize("clothes", [None, CLOTHES], ids=["people", "people in clothes"])
def test_a_step_of_t2i_equals_eq8_pair_by_pair(clothes, monkeypatch):
    """Where people change their clothes, a person in others is not whom a caption describes."""
    model = a_model()
    images, _, batch = a_batch(TEXT_ONLY)
    batch = batch._replace(clothes=clothes)
    described = PEOPLE if clothes is None else clothes
    rng = torch.Generator()
    given = []

    def chosen(*arguments):
        given.extend(arguments)
        return FALSE_TEXTS, FALSE_IMAGES

    monkeypatch.setattr(losses, "hard_negatives", chosen)
    seen = watch(model)
    terms = train.loss_terms(model, images, None, batch, a_config(), FULL, rng)
    twin, similarity = eq8(seen, model, described)
    assert_step(model, terms, twin, TEXT_ONLY)
    assert given[2] is rng, "a resumed run would sample other hard negatives"
    assert torch.equal(given[1], described)
    torch.testing.assert_close(given[0], similarity, rtol=0, atol=1e-9)


# ---- which feature, under which flag, in which precision ----

def terms_of(seen, model, batch, config):
    """The terms of the loss in float64, from what `watch` saw."""
    out = seen["out"]
    instr = seen["instr"].expand(len(batch.labels))
    if TASKS[batch.task].text_only:
        described = batch.labels if batch.clothes is None else batch.clothes
        images = F.normalize(out.neck.double(), dim=1)
        temperature = model.log_temperature.double().exp().clamp(*irm.TEMPERATURES)
        logits = seen["logits"].double()
        true_logits = logits[:len(images)]
        return {
            "con": losses.contrastive(images, seen["text"].double(), described, temperature),
            "match": losses.matching(true_logits, logits[len(images):]),
        }

    terms = {}
    sides = [("", out.feat, out.neck, model.classifiers)]
    if config.loss != "image":
        sides.append(("_out", out.fused, out.fused_neck, model.fused_classifiers))
    for end, feats, neck, heads in sides:
        arguments = dict(margin=config.margin * TINY["dim"], mining=config.mining)
        pooled = instr.pooled.double()
        if config.loss != "adaptive":
            pooled = torch.ones_like(pooled)
        terms["tri" + end] = losses.adaptive_triplet(
            feats.double(), batch.labels, pooled, **arguments)
        logits = neck.double() @ heads[batch.dataset].weight.double().T
        terms["id" + end] = losses.identity(logits, batch.labels, config.smoothing)
    if config.loss != "image" and batch.clothes is not None and config.align:
        looks = F.normalize(instr.pooled.double(), dim=1)
        temperature = torch.tensor(train.ALIGN_TEMPERATURE, dtype=torch.float64)
        terms["align"] = losses.contrastive(looks, looks, batch.clothes, temperature)
    return terms


@pytest.mark.parametrize("flags", [
    {"loss": "triplet"}, {"loss": "triplet", "mining": "hard"}, {"loss": "image"},
    {"mining": "hard"}, {"mining": "even"}, {"margin": 0.2}, {"smoothing": 0.0},
    {"align": False}, {"editing": False},
])
def test_flags_reach_the_loss(flags):
    config = a_config(**flags)
    model = a_model(train.trained_parts(config, [dataset_of(RICHEST)]))
    images, pictures, batch = a_batch(RICHEST)
    seen = watch(model)
    terms = train.loss_terms(model, images, pictures, batch, config, FULL)
    assert_terms(terms, terms_of(seen, model, batch, config), 1e-9, str(flags))

    usual = {}
    if config.loss != "image":
        usual = terms_of(seen, model, batch, a_config())
    same = terms.keys() == usual.keys() and all(
        torch.equal(terms[name], usual[name]) for name in terms)
    assert not same or "editing" in flags


def test_the_baseline_of_tab_4_never_sees_an_instruction():
    """--no-editing --loss image: what is asked for changes neither loss nor gradient, and neither
    E_i nor E_f gets one."""
    images, _, batch = a_batch("li")
    results = []
    for sentences in (DESCRIPTIONS, DESCRIPTIONS[::-1]):
        config = a_config(loss="image", editing=False)
        model = a_model(train.trained_parts(config, [dataset_of("li")]))
        asked = batch._replace(sentences=sentences)
        terms = train.loss_terms(model, images, None, asked, config, FULL)
        sum(terms.values()).backward()
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append({**terms, **grads})
    first, second = results
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    learned = {name.split(".")[0] for name in first} - {"tri", "id"}
    assert learned == {"editor", "neck", "classifiers"}


@pytest.mark.parametrize("share", [0.5, 2.0])
def test_the_learned_temperature_stays_between_its_bounds(share):
    lowest, highest = irm.TEMPERATURES
    bound = lowest if share < 1 else highest
    model = a_model()
    model.log_temperature.data.fill_(math.log(bound * share))
    images, _, batch = a_batch(TEXT_ONLY)
    seen = watch(model)
    found = train.loss_terms(model, images, None, batch, a_config(), FULL)["con"].item()
    image_feats = F.normalize(seen["out"].neck, dim=1)
    expected = losses.contrastive(image_feats, seen["text"], PEOPLE, torch.tensor(bound))
    assert found == pytest.approx(expected.item())


# ---- the outer wire ----

@pytest.fixture
def steps_of(train_tiny, monkeypatch):
    """steps_of(*flags) -> what every step of a run of two steps computed: [(a copy of the model,
    the arguments of its loss, the terms, what `watch` saw, whether autocast was on)], all through
    the module that several processes share."""
    monkeypatch.setattr(train, "finish", lambda *_: None)
    steps = []
    shared = []

    class Watched(train.Loss):
        def forward(self, images, pictures, batch, rng):
            before = copy.deepcopy(self.model)
            seen = watch(self.model)
            autocast = []
            hook = self.model.editor.register_forward_pre_hook(
                lambda *_: autocast.append(torch.is_autocast_enabled("cpu")))
            terms = super().forward(images, pictures, batch, rng)
            hook.remove()
            for method in WATCHED.values():
                delattr(self.model, method)
            assert shared == [self]
            steps.append((before, (images, pictures, batch, self.config), terms, seen, autocast))
            return terms

    monkeypatch.setattr(train, "Loss", Watched)
    monkeypatch.setattr(processes, "parallel", lambda loss: shared.append(loss) or loss)

    def run(*flags):
        code, _, err = train_tiny("--steps", 2, *flags)
        assert code == 0, err
        assert len(steps) == 2
        return steps
    return run


@pytest.mark.parametrize("task", [EDITED[0], RICHEST, TEXT_ONLY])
def test_losses_of_a_run_in_bf16_are_those_of_its_features_in_float32(task, steps_of):
    for model, (_, _, batch, config), terms, seen, autocast in steps_of(
        "--task", task, "--amp", "bf16"
    ):
        assert autocast == [True]
        assert {value.dtype for value in terms.values()} == {torch.float32}
        assert_terms(terms, terms_of(seen, model, batch, config), 1e-5, task)


def test_a_run_equals_eq7(steps_of):
    for model, (_, _, batch, config), terms, seen, autocast in steps_of(
        "--task", RICHEST, "--mining", "all"
    ):
        assert autocast == [False]
        assert len(set(batch.clothes.tolist())) > 1
        assert_terms(terms, eq7(seen, model, batch, config), 1e-4, RICHEST)
