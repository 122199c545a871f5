"""A training step against its slow twin: the loss of one batch of each task, written image by image
from the paper.

The twin takes nothing from the model but its weights: attention is Eq. 2-4 with loops over the
heads, sentences are read without padding, every batch norm and every loss is spelled out. Which
feature goes into which loss under which flag, and in which precision, is then checked with the
features that the model itself gave.
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
from model import InstructReID
from reid import processes
from tests.reference import Rule, attention_module, contrast, cross_entropy, eq5, through, tokens_of
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


class DoubleLetters(Letters):
    """The text tower of the tests in float64, so that the twin can be compared to 1e-9."""

    def forward(self, sentences):
        tokens, mask, _ = super().forward(sentences)
        tokens = tokens.double()
        return tokens, mask, tokens.sum(1) / mask.sum(1, keepdim=True)


def a_model(editing=True):
    """Open gates and a used neck; another data set comes first, so that the wrong classifier is
    noticed."""
    torch.manual_seed(3)
    model = InstructReID(TINY, {"other": 3, "market": 3}, editing, text=DoubleLetters())
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
    batch = Batch(None, PEOPLE, PEOPLE + 100, "market", task, sentences, None, clothes)
    return images, pictures, batch


def a_config(**flags):
    return train.Config(**{"mining": "all", "margin": 0.7, "smoothing": 0.2, **flags})


# ---- the twin ----

def instruction_of(model, sentence, picture):
    """(F_T with the whole first (1+t d), pooled (k)) of one image's sentence, picture, or both."""
    parts = []
    if sentence is not None:
        words = model.encoder.text([sentence])[0][0].to(model.log_temperature.dtype)
        parts.append((model.encoder.from_text, words, words.mean(0)))
    if picture is not None:
        words = tokens_of(model.encoder.picture, picture)
        parts.append((model.encoder.from_picture, words, words[1:].mean(0)))

    tokens = [project(torch.cat([pooled[None], words])) for project, words, pooled in parts]
    pooled = [pooled for *_, pooled in parts]
    if len(parts) == 2:  # both count alike in the cosine
        pooled = [each / each.norm() for each in pooled]
    return torch.cat(tokens), torch.cat(pooled)


def instructions_of(model, pictures, batch):
    """([F_T of each image], pooled (b k))."""
    nothing = [None] * len(batch.labels)
    pairs = zip(batch.sentences or nothing, nothing if pictures is None else pictures)
    tokens, pooled = zip(*(instruction_of(model, *pair) for pair in pairs))
    return tokens, torch.stack(pooled)


def after_neck(feats, neck):
    """Batch normalisation of (b d) by the batch's own mean and variance, without a shift."""
    mean = feats.mean(0)
    variance = ((feats - mean) ** 2).mean(0)
    return (feats - mean) / torch.sqrt(variance + neck.eps) * neck.weight


def mean_entropy(logits, labels, smoothing=0.0):
    rows = [cross_entropy(row, label, smoothing) for row, label in zip(logits, labels)]
    return sum(rows) / len(rows)


def eq7(model, images, pictures, batch, config):
    """L = L_atri(F) + L_id(F) + L_atri(F_out) + L_id(F_out), and the contrast of the clothes on the
    pictures, as {term: value}."""
    instrs, pooled = instructions_of(model, pictures, batch)
    tokens = [tokens_of(model.editor, image, instr) for image, instr in zip(images, instrs)]
    fused = [attention_module(model.attention, *pair) for pair in zip(tokens, instrs)]

    triplets = list(itertools.permutations(range(len(images)), 3))
    name = batch.dataset
    terms = {}
    for end, feats, neck, head in (
        ("", torch.stack([each[0] for each in tokens]), model.neck, model.classifiers[name]),
        ("_out", torch.stack(fused), model.fused_neck, model.fused_classifiers[name]),
    ):
        rule = Rule(margin=config.margin)
        terms["tri" + end] = eq5(triplets, (feats, batch.labels, pooled), rule)
        logits = after_neck(feats, neck) @ head.weight.T
        terms["id" + end] = mean_entropy(logits, batch.labels, config.smoothing)
    if batch.clothes is not None:
        looks = torch.stack([each / each.norm() for each in pooled])
        terms["align"] = contrast(looks, looks, batch.clothes, train.ALIGN_TEMPERATURE)
    return terms


def eq8(model, images, batch, described):
    """({"con": L_cl, "match": L_match}, similarity image x text / temperature).

    described (b): whom the captions tell of. The images are not edited, and pass a neck of theirs.
    """
    instrs, _ = instructions_of(model, None, batch)
    instrs = [through(instr, [model.text_block], torch.nn.Identity()) for instr in instrs]
    tokens = [tokens_of(model.editor, image) for image in images]
    feats = after_neck(torch.stack([each[0] for each in tokens]), model.plain_neck)
    image_feats = F.normalize(feats, dim=1)
    texts = torch.stack([model.text_head(instr[0]) for instr in instrs])
    text_feats = F.normalize(texts, dim=1)
    temperature = model.log_temperature.exp()

    true_pairs = [(i, i, 1) for i in range(len(images))]
    false_texts = [(i, int(text), 0) for i, text in enumerate(FALSE_TEXTS)]
    false_images = [(int(image), i, 0) for i, image in enumerate(FALSE_IMAGES)]
    pairs = true_pairs + false_texts + false_images
    logits = []
    for image, text, _ in pairs:
        fused = attention_module(model.matcher, tokens[image], instrs[text])
        logits.append(model.match_head(fused))
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
        sum(values.values()).backward()
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
        terms = train.loss_terms(model, images, pictures, batch, config, FULL)
        assert_step(model, terms, eq7(model, images, pictures, batch, config), task)


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
    terms = train.loss_terms(model, images, None, batch, a_config(), FULL, rng)
    twin, similarity = eq8(model, images, batch, described)
    assert_step(model, terms, twin, TEXT_ONLY)
    assert given[2] is rng, "a resumed run would sample other hard negatives"
    assert torch.equal(given[1], described)
    torch.testing.assert_close(given[0], similarity, rtol=0, atol=1e-9)


# ---- which feature, under which flag, in which precision ----

def watch(model):
    """{"out", "instr", "text", "logits"}: what the model gives in the next step."""
    seen = {}

    def spy_on(name, method):
        def spy(*args, **named):
            seen[name] = method(*args, **named)
            return seen[name]
        return spy

    model.forward = spy_on("out", model.forward)
    model.instruct = spy_on("instr", model.instruct)
    model.embed_text = spy_on("text", model.embed_text)
    model.match = spy_on("logits", model.match)
    return seen


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
    for end, feats, neck, heads in (
        ("", out.feat, out.neck, model.classifiers),
        ("_out", out.fused, out.fused_neck, model.fused_classifiers),
    ):
        arguments = dict(margin=config.margin, mining=config.mining)
        if config.loss == "adaptive":
            pooled = instr.pooled.double()
            tri = losses.adaptive_triplet(feats.double(), batch.labels, pooled, **arguments)
        else:
            tri = losses.triplet(feats.double(), batch.labels, **arguments)
        terms["tri" + end] = tri
        logits = neck.double() @ heads[batch.dataset].weight.double().T
        terms["id" + end] = losses.identity(logits, batch.labels, config.smoothing)
    if config.loss == "image":
        return {name: value for name, value in terms.items() if not name.endswith("_out")}
    if batch.clothes is not None and config.align:
        looks = F.normalize(instr.pooled.double(), dim=1)
        temperature = torch.tensor(train.ALIGN_TEMPERATURE, dtype=torch.float64)
        terms["align"] = losses.contrastive(looks, looks, batch.clothes, temperature)
    return terms


@pytest.mark.parametrize("flags", [
    {"loss": "triplet"}, {"loss": "triplet", "mining": "hard"}, {"loss": "image"},
    {"mining": "hard"}, {"mining": "even"}, {"margin": 5.0}, {"smoothing": 0.0},
    {"align": False}, {"editing": False},
])
def test_flags_reach_the_loss(flags):
    model = a_model(flags.get("editing", True))
    config = a_config(**flags)
    images, pictures, batch = a_batch("both")
    seen = watch(model)
    terms = train.loss_terms(model, images, pictures, batch, config, FULL)
    assert_terms(terms, terms_of(seen, model, batch, config), 1e-9, str(flags))

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
        model = a_model(editing=False)
        asked = batch._replace(sentences=sentences)
        terms = train.loss_terms(model, images, None, asked, a_config(loss="image"), FULL)
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
            for method in ("forward", "instruct", "embed_text", "match"):
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


@pytest.mark.parametrize("task", ["cc", "both", TEXT_ONLY])
def test_losses_of_a_run_in_bf16_are_those_of_its_features_in_float32(task, steps_of):
    for model, (_, _, batch, config), terms, seen, autocast in steps_of(
        "--task", task, "--amp", "bf16"
    ):
        assert autocast == [True]
        assert {value.dtype for value in terms.values()} == {torch.float32}
        assert_terms(terms, terms_of(seen, model, batch, config), 1e-5, task)


def test_a_run_that_asks_with_words_and_pictures_equals_eq7(steps_of):
    for model, arguments, terms, _, autocast in steps_of("--task", "both", "--mining", "all"):
        images, pictures, batch, config = arguments
        assert autocast == [False]
        assert len(set(batch.sentences)) > 1 and len(set(batch.clothes.tolist())) > 1
        model.encoder.text.eval()
        twin = eq7(model.double(), images.double(), pictures.double(), batch, config)
        assert_terms(terms, twin, 1e-4, "both")
