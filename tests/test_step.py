"""A training step: the loss of one batch of each task, from the features that the model gave in
that step: which of them goes into which term of Eq. 7 and 8, behind which neck and classifier, with
which flag, in which precision. The terms themselves are tested in test_losses.py."""

import copy
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
# pictures, and words too if a task has both
RICHEST = max(EDITED, key=lambda name: (TASKS[name].pictures, len(TASKS[name].parts)))
NO_AUTOCAST = torch.autocast("cpu", enabled=False)
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
    return images, pictures, Batch(None, PEOPLE, "market", task, sentences, None, clothes)


def a_config(**flags):
    return train.Config(**{"mining": "all", "margin": 0.02, "smoothing": 0.2, **flags})


def parts_of(config, task):
    record = Record("market", "train", "a.jpg", 1)
    return train.trained_parts(config, [Dataset("market", "Market", task, None, (record,))])


def watch(model):
    """{key of WATCHED: what that method of the model gives in the next step}."""
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

def terms_of(seen, model, batch, config):
    """The terms of Eq. 7 or 8 in float64, from what `watch` saw."""
    out, labels, clothes = seen["out"], batch.labels, batch.clothes
    if TASKS[batch.task].text_only:
        described = labels if clothes is None else clothes  # whom the captions tell of
        image_feats = F.normalize(out.neck.double(), dim=1)
        text_feats = seen["text"].double()
        temperature = model.log_temperature.double().exp().clamp(*irm.TEMPERATURES)
        logits = seen["logits"].double()
        return {
            "con": losses.contrastive(image_feats, text_feats, described, temperature),
            "match": losses.matching(logits[:len(labels)], logits[len(labels):]),
        }

    pooled = seen["instr"].expand(len(labels)).pooled.double()
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
    """The terms and the gradients of train.py are those of the twin."""
    assert_terms(terms, twin, 1e-9, name)
    grads = []
    for values in (terms, twin):
        model.zero_grad()
        sum(values.values()).backward(retain_graph=True)
        grads.append({key: p.grad for key, p in model.named_parameters()})
    for key, expected in grads[1].items():
        found = grads[0][key]
        assert (found is None) == (expected is None), f"{name}: does {key} learn?"
        if expected is not None:
            largest = 1e-9 * (1 + expected.abs().max())
            assert (found - expected).abs().max() < largest, f"{name}: the gradient of {key}"


@pytest.mark.parametrize("task", EDITED)
def test_a_step_equals_eq7(task):
    model = a_model()
    images, pictures, batch = a_batch(task)
    seen = watch(model)
    terms = train.loss_terms(model, images, pictures, batch, a_config(), NO_AUTOCAST)
    assert_step(model, terms, terms_of(seen, model, batch, a_config()), task)
    assert not model.neck.bias.requires_grad and not model.fused_neck.bias.requires_grad


@pytest.mark.parametrize("clothes", [None, CLOTHES], ids=["people", "people in clothes"])
def test_a_step_of_t2i_equals_eq8_pair_by_pair(clothes, monkeypatch):
    """Where people change their clothes, a person in others is not whom a caption describes."""
    model = a_model()
    images, _, batch = a_batch(TEXT_ONLY)
    batch = batch._replace(clothes=clothes)
    rng = torch.Generator()
    given = []

    def chosen(*arguments):
        given.extend(arguments)
        return FALSE_TEXTS, FALSE_IMAGES

    monkeypatch.setattr(losses, "hard_negatives", chosen)
    seen = watch(model)
    terms = train.loss_terms(model, images, None, batch, a_config(), NO_AUTOCAST, rng)
    own = range(len(PEOPLE))
    pairs = [*zip(own, own), *zip(own, FALSE_TEXTS.tolist()), *zip(FALSE_IMAGES.tolist(), own)]
    tokens, read = seen["out"].tokens, seen["read"]
    seen["text"] = InstructReID.embed_text(model, read)
    seen["logits"] = torch.cat([InstructReID.match(model, tokens[[image]], read.take([text]))
                                for image, text in pairs])
    assert_step(model, terms, terms_of(seen, model, batch, a_config()), TEXT_ONLY)

    similarity, described, generator = given
    assert generator is rng, "a resumed run would sample other hard negatives"
    assert torch.equal(described, PEOPLE if clothes is None else clothes)
    expected = F.normalize(seen["out"].neck) @ seen["text"].T / model.log_temperature.exp()
    torch.testing.assert_close(similarity, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("flags", [
    {"loss": "triplet"}, {"loss": "triplet", "mining": "hard"}, {"loss": "image"},
    {"mining": "hard"}, {"mining": "even"}, {"margin": 0.2}, {"smoothing": 0.0},
    {"align": False}, {"editing": False},
])
def test_flags_reach_the_loss(flags):
    config = a_config(**flags)
    model = a_model(parts_of(config, RICHEST))
    images, pictures, batch = a_batch(RICHEST)
    seen = watch(model)
    terms = train.loss_terms(model, images, pictures, batch, config, NO_AUTOCAST)
    assert_terms(terms, terms_of(seen, model, batch, config), 1e-9, str(flags))
    if config.loss != "image" and "editing" not in flags:
        usual = terms_of(seen, model, batch, a_config())
        assert terms.keys() != usual.keys() or any(
            not torch.equal(terms[name], usual[name]) for name in terms)


def test_the_baseline_of_tab_4_never_sees_an_instruction():
    """--no-editing --loss image: another instruction changes neither loss nor gradient, and neither
    E_i nor E_f gets one."""
    images, _, batch = a_batch("li")
    config = a_config(loss="image", editing=False)
    results = []
    for sentences in (DESCRIPTIONS, DESCRIPTIONS[::-1]):
        model = a_model(parts_of(config, "li"))
        asked = batch._replace(sentences=sentences)
        terms = train.loss_terms(model, images, None, asked, config, NO_AUTOCAST)
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
    assert model.temperature().item() == pytest.approx(bound)
    images, _, batch = a_batch(TEXT_ONLY)
    seen = watch(model)
    terms = train.loss_terms(model, images, None, batch, a_config(), NO_AUTOCAST)
    assert_terms(terms, terms_of(seen, model, batch, a_config()), 1e-9, TEXT_ONLY)


# ---- the outer wire ----

@pytest.mark.parametrize("task", [EDITED[0], RICHEST, TEXT_ONLY])
@pytest.mark.parametrize("amp", ["bf16", "off"])
def test_losses_of_a_run_are_those_of_its_features_in_float32(task, amp, train_tiny, monkeypatch):
    """Through the module that several processes share, in every step; the model alone runs in half
    precision."""
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
            assert shared == [self] and autocast == [amp == "bf16"]
            steps.append((before, batch, self.config, terms, seen))
            return terms

    monkeypatch.setattr(train, "finish", lambda *_: None)
    monkeypatch.setattr(train, "Loss", Watched)
    monkeypatch.setattr(processes, "parallel", lambda loss: shared.append(loss) or loss)
    code, _, err = train_tiny("--steps", 2, "--task", task, "--amp", amp)
    assert code == 0 and len(steps) == 2, err
    for before, batch, config, terms, seen in steps:
        assert batch.clothes is None or len(set(batch.clothes.tolist())) > 1
        assert {value.dtype for value in terms.values()} == {torch.float32}
        assert_terms(terms, terms_of(seen, before, batch, config), 1e-5, task)
