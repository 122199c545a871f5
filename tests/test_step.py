"""A training step: the loss of one batch of each task, from the features that the model gave in
that step: which of them goes into which term of Eq. 7 and 8, behind which neck and classifier, with
which flag, in which precision. The terms themselves are tested in test_losses.py."""

import math

import pytest
import torch
import torch.nn.functional as F

import losses
import model as irm
import train
from data import Batch
from instructions import TASKS
from reid import processes
from reid.records import Dataset, Record
from tests.commands import output
from tests.test_model import TINY, Letters, tiny_model

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
# pictures, and words too if a task has both
RICHEST = max(EDITED, key=lambda name: (TASKS[name].pictures, len(TASKS[name].parts)))
NO_AUTOCAST = torch.autocast("cpu", enabled=False)

def a_model(config, task):
    """Of a run of that config; another data set comes first, so that the wrong classifier is
    noticed."""
    record = Record("market", "train", "a.jpg", 1)
    parts = train.trained_parts(config, [Dataset("market", "Market", task, None, (record,))])
    classes = () if TASKS[task].text_only else ("other", "market")
    text = Letters(torch.float64)  # so that the twin can be compared to 1e-9
    return tiny_model(classes=classes, parts=parts, text=text).double().train()


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
    return images, pictures, Batch(None, PEOPLE, "market", task, sentences, None, clothes)


def a_config(**flags):
    return train.Config(**{"mining": "all", "margin": 0.02, "smoothing": 0.2, **flags})


# ---- the twin ----

def terms_of(model, images, pictures, batch, config, negatives=None, precision=NO_AUTOCAST):
    """The terms of Eq. 7 or 8 in float64, from passes of the model under `precision`. negatives:
    the false text of each image, and the false image of each text."""
    labels, clothes = batch.labels, batch.clothes
    is_text = TASKS[batch.task].text_only
    with precision:
        instr = model.instruct(batch.sentences, pictures).expand(len(images))
        out = model(images, None if is_text else instr)
    if is_text:
        own = torch.arange(len(images))
        text, image = negatives
        with precision:
            read = model.read_text(instr)
            image_tokens = out.tokens[torch.cat([own, own, image])]
            logits = model.match(image_tokens, read.take(torch.cat([own, text, own]))).double()
            texts = model.embed_text(read).double()
        described = labels if clothes is None else clothes  # whom the captions tell of
        temperature = model.log_temperature.double().exp().clamp(*irm.TEMPERATURES)
        feats = F.normalize(out.neck.double(), dim=1)
        return {
            "con": losses.contrastive(feats, texts, described, temperature),
            "match": losses.matching(logits[:len(own)], logits[len(own):]),
        }

    pooled = instr.pooled.double()
    terms = {}
    for end, feats, neck, heads in (
        ("", out.feat, out.neck, model.classifiers),
        ("_out", out.fused, out.fused_neck, model.fused_classifiers),
    )[:1 if config.loss == "image" else 2]:
        terms["tri" + end] = losses.adaptive_triplet(
            feats.double(), labels,
            pooled if config.loss == "adaptive" else torch.ones_like(pooled),
            margin=config.margin * TINY["dim"], mining=config.mining)
        logits = neck.double() @ heads[batch.dataset].weight.double().T
        terms["id" + end] = losses.identity(logits, labels, config.smoothing)
    if config.loss != "image" and clothes is not None and config.align:
        looks = F.normalize(pooled, dim=1)
        temperature = torch.tensor(train.ALIGN_TEMPERATURE, dtype=torch.float64)
        terms["align"] = losses.contrastive(looks, looks, clothes, temperature)
    return terms


def assert_terms(found, expected, tolerance, name):
    assert found.keys() == expected.keys(), f"{name}: the terms of the loss"
    for term, value in expected.items():
        error = abs(found[term].item() - value.item())
        words = f"{name}: {term} is {found[term].item()}, by the paper {value.item()}"
        assert error < tolerance * (1 + abs(value.item())), words


def assert_step(model, terms, twin, name):
    """The terms and the gradients of train.py are those of the twin. Returns the names of
    idle weights, but for the other data set's."""
    assert_terms(terms, twin, 1e-9, name)
    learning = {key: p for key, p in model.named_parameters() if p.requires_grad}
    found, expected = (
        torch.autograd.grad(sum(values.values()), [*learning.values()], retain_graph=True,
                            allow_unused=True)
        for values in (terms, twin))
    idle = []
    for key, ours, theirs in zip(learning, found, expected):
        assert (ours is None) == (theirs is None), f"{name}: does {key} learn?"
        if ours is None and ".other." not in key:
            idle.append(key)
        if ours is not None:
            largest = 1e-9 * (1 + theirs.abs().max())
            assert (ours - theirs).abs().max() < largest, f"{name}: the gradient of {key}"
    return idle


@pytest.mark.parametrize("task, flags", [
    *((task, {}) for task in EDITED),
    *((RICHEST, flags) for flags in (
        {"loss": "triplet"}, {"loss": "triplet", "mining": "hard"}, {"loss": "image"},
        {"mining": "hard"}, {"mining": "even"}, {"margin": 0.2}, {"smoothing": 0.0},
        {"align": False}, {"editing": False}, {"loss": "image", "editing": False},
    )),
], ids=str)
def test_a_step_equals_eq7(task, flags):
    """Every weight that is built learns; the baseline of Tab. 4 leaves E_i alone."""
    config = a_config(**flags)
    model = a_model(config, task)
    images, pictures, batch = a_batch(task)
    terms = train.loss_terms(model, images, pictures, batch, config, NO_AUTOCAST)
    twin = terms_of(model, images, pictures, batch, config)
    idle = assert_step(model, terms, twin, f"{task} {flags}")
    is_baseline = flags == {"loss": "image", "editing": False}
    assert {name.split(".")[0] for name in idle} == ({"encoder"} if is_baseline else set())
    if flags and config.loss != "image" and config.editing:
        usual = terms_of(model, images, pictures, batch, a_config())
        assert terms.keys() != usual.keys() or any(
            not torch.equal(terms[name], usual[name]) for name in terms)


@pytest.mark.parametrize("clothes, share", [(None, None), (CLOTHES, 0.5), (None, 2.0)], ids=[
    "people", "people in clothes, below the lowest temperature", "above the highest"])
def test_a_step_of_t2i_equals_eq8(clothes, share, monkeypatch):
    """Where people change their clothes, a person in others is not whom a caption describes."""
    model = a_model(a_config(), TEXT_ONLY)
    temperature = model.log_temperature.exp().item()
    if share:
        temperature = irm.TEMPERATURES[share > 1]
        model.log_temperature.data.fill_(math.log(temperature * share))
    images, _, batch = a_batch(TEXT_ONLY)
    batch = batch._replace(clothes=clothes)
    negatives = FALSE_TEXTS, FALSE_IMAGES
    rng = torch.Generator()
    given = []
    monkeypatch.setattr(losses, "hard_negatives", lambda *args: given.extend(args) or negatives)
    terms = train.loss_terms(model, images, None, batch, a_config(), NO_AUTOCAST, rng)
    twin = terms_of(model, images, None, batch, a_config(), negatives)
    idle = assert_step(model, terms, twin, TEXT_ONLY)
    assert idle == ["neck.weight"]  # there for instructed images

    similarity, described, generator = given
    assert generator is rng, "a resumed run would sample other hard negatives"
    assert torch.equal(described, PEOPLE if clothes is None else clothes)
    texts = model.embed_text(model.read_text(model.instruct(batch.sentences)))
    expected = F.normalize(model(images, None).neck) @ texts.T / temperature
    torch.testing.assert_close(similarity, expected, rtol=0, atol=1e-6)


# ---- the outer wire ----

@pytest.mark.parametrize("task, amp", [(RICHEST, "bf16"), (RICHEST, "off"), (TEXT_ONLY, "bf16")])
def test_losses_of_a_run_are_those_of_its_features_in_float32(
        task, amp, train_tiny, unfinished, monkeypatch):
    """Through the module that several processes share, in every step; the model alone runs in half
    precision."""
    steps = []
    shared = []
    negatives = []
    sample = losses.hard_negatives
    precision = torch.autocast("cpu", torch.bfloat16, enabled=amp == "bf16")

    class Watched(train.Loss):
        def forward(self, images, pictures, batch, rng):
            assert shared == [self] and (batch.clothes is None or len(set(batch.clothes)) > 1)
            terms = super().forward(images, pictures, batch, rng)
            assert {value.dtype for value in terms.values()} == {torch.float32}
            steps.append(batch.task)
            inputs = self.model, images, pictures, batch, self.config
            assert_terms(terms, terms_of(*inputs, *negatives[-1:], precision=precision), 1e-5, task)
            return terms

    monkeypatch.setattr(
        losses, "hard_negatives", lambda *args: negatives.append(sample(*args)) or negatives[-1])
    monkeypatch.setattr(train, "Loss", Watched)
    monkeypatch.setattr(processes, "parallel", lambda loss: shared.append(loss) or loss)
    output(train_tiny("--steps", 2, "--task", task, "--amp", amp))
    assert steps == [task] * 2
