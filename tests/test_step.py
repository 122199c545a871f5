"""A training step against its slow twin: the loss of one batch of each task, written image by image from the paper.

The twin takes nothing from the model but its weights: every attention is Eq. 2-4 with loops over the heads, every
sentence is read without padding, every batch norm and every loss is spelled out. What `train.loss_terms` computes must
agree with it term by term, and so must the gradient of every parameter.
"""

import dataclasses
import itertools
import math
import random
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F

import instructions
import losses
import train
from data import Batch
from model import InstructReID
from reid import device, features
from reid.records import Record
from tests.explain import assert_close, close
from tests.test_model import TINY, Letters

TASKS = ("trad", "cc", "ctcc", "vi", "t2i", "li")
PEOPLE = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])  # labels of the batch
CLOTHES = torch.tensor([0, 1, 0, 2, 2, 3, 4, 3])  # on the pictures of ctcc
DESCRIPTIONS = ["a red coat", "a man in blue", "a red coat", "black boots", "a black bag and boots", "white shirt",
                "a woman wears a long green dress", "white shirt"]
SHARED = {"trad": "do not change clothes", "cc": "ignore clothes", "vi": "retrieve images across modalities"}
FALSE_TEXTS = torch.tensor([3, 4, 5, 0, 6, 1, 2, 4])  # of another person, for each image
FALSE_IMAGES = torch.tensor([5, 6, 7, 1, 2, 3, 0, 1])  # of another person, for each text


class DoubleLetters(Letters):
    """The word-by-word text tower of the tests in float64, so that the twin can be compared to 1e-9."""

    def forward(self, sentences):
        tokens, mask, _ = super().forward(sentences)
        tokens = tokens.double()
        return tokens, mask, tokens.sum(1) / mask.sum(1, keepdim=True)


def a_model(editing=True):
    """Open gates and a used neck; another data set comes first, so that the wrong classifier is noticed."""
    torch.manual_seed(3)
    model = InstructReID(TINY, {"other": 3, "market": 3}, editing, text=DoubleLetters()).double().train()
    for name, p in model.named_parameters():
        if p.requires_grad and p.ndim <= 1:  # norms, biases, gates: nothing stays at its neutral value
            p.data += 0.3 * torch.randn_like(p)
    return model


def a_batch(task):
    """(Batch, images, what the instruction encoder gets) of one task."""
    g = torch.Generator().manual_seed(7)
    images = torch.randn(len(PEOPLE), 3, *TINY["size"], generator=g, dtype=torch.float64)
    clothes = None
    if task in SHARED:
        what = [SHARED[task]] * len(images)
    elif task == "ctcc":
        pictures = torch.randn(int(CLOTHES.max()) + 1, 3, *TINY["picture_size"], generator=g, dtype=torch.float64)
        what, clothes = pictures[CLOTHES], CLOTHES
    else:
        what = DESCRIPTIONS
    return Batch(None, PEOPLE, PEOPLE + 100, "market", task, what, clothes), images, what


def a_config(**flags):
    return train.Config(**{"mining": "all", "margin": 0.7, "smoothing": 0.2, **flags})


# ---- the twin ----

def attend(x, attn, instr=None):
    """Eq. 2-4 head by head. x (n d), instr (t d) -> (n d)."""
    width = x.shape[1] // attn.heads
    q, k, v = attn.q(x), attn.k(x), attn.v(x)
    heads = []
    for h in range(attn.heads):
        part = slice(h * width, (h + 1) * width)
        read = torch.softmax(q[:, part] @ k[:, part].T / math.sqrt(width), 1) @ v[:, part]
        if instr is not None:
            scores = q[:, part] @ attn.k_instr(instr)[:, part].T / math.sqrt(width)
            read = read + attn.gate[h] * torch.softmax(scores, 1) @ attn.v_instr(instr)[:, part]
        heads.append(read)
    return attn.out(torch.cat(heads, 1))


def through(x, blocks, norm, instr=None):
    """Tokens (n d) of one image through pre-norm blocks, each of which is edited by instr if there is one (Eq. 1)."""
    for block in blocks:
        x = x + attend(block.norm1(x), block.attn, instr)
        x = x + block.mlp(block.norm2(x))
    return norm(x)


def tokens_of(vit, image, instr=None):
    """All tokens (n d) of one image (3 H W): patches row by row behind CLS, then the blocks."""
    p = vit.patch
    tokens = [vit.prefix[0, 0]]
    for row, column in itertools.product(range(image.shape[1] // p), range(image.shape[2] // p)):
        patch = image[:, row * p:row * p + p, column * p:column * p + p]
        tokens.append((vit.embed.weight * patch).sum((1, 2, 3)) + vit.embed.bias)
    return through(torch.stack(tokens) + vit.pos[0], vit.blocks, vit.norm, instr)


def instruction_of(model, what):
    """(F_T with the whole first (1+t d), pooled (k)) of one sentence or picture."""
    if isinstance(what, str):
        words = model.encoder.text([what])[0][0]
        pooled = words.mean(0)
        return model.encoder.from_text(torch.cat([pooled[None], words])), pooled
    words = tokens_of(model.encoder.picture, what)
    pooled = words[1:].mean(0)
    return model.encoder.from_picture(torch.cat([pooled[None], words])), pooled


def attention_module(module, tokens, instr):
    """E_f: F_out (2d) of the image tokens (n d) and F_T (1+t d)."""
    blocks, norm = module.blocks, module.norm
    person = through(torch.cat([tokens[:1], instr[1:]]), blocks, norm)[0]
    words = through(torch.cat([instr[:1], tokens[1:]]), blocks, norm)[0]
    return torch.cat([person, words])


def after_neck(feats, neck):
    """Batch normalisation of (b d) by the batch's own mean and variance, without a shift."""
    mean = feats.mean(0)
    variance = ((feats - mean) ** 2).mean(0)
    return (feats - mean) / torch.sqrt(variance + neck.eps) * neck.weight


def cross_entropy(logits, label, smoothing=0.0):
    """Of one row of logits: the target is 1 - smoothing, and smoothing is spread over all classes."""
    log_p = logits - torch.logsumexp(logits, 0)
    return -(1 - smoothing) * log_p[label] - smoothing * log_p.mean()


def triplets(feats, pooled, config):
    """Eq. 5-6 with three nested loops; the plain triplet loss is the case of equal instructions."""
    def beta(a, r):
        if PEOPLE[a] != PEOPLE[r]:
            return 0.0
        if config.loss == "triplet":
            return 1.0
        return F.cosine_similarity(pooled[a], pooled[r], dim=0).item()

    terms = []
    for a, r1, r2 in itertools.permutations(range(len(PEOPLE)), 3):
        gap = beta(a, r1) - beta(a, r2)
        if abs(gap) > 1e-6:
            d1, d2 = ((feats[a] - feats[r]).square().sum() for r in (r1, r2))
            terms.append((math.copysign(1, gap) * (d1 + gap * config.margin - d2)).clamp(min=0))
    return sum(terms) / len(terms)


def contrast(rows, columns, same, temperature):
    """Eq. 8, L_cl: each row against all columns and back; the target is shared by the columns of the same number."""
    total = 0.0
    for a, b in ((rows, columns), (columns, rows)):
        for i in range(len(a)):
            logits = b @ a[i] / temperature
            hits = [j for j in range(len(b)) if same[j] == same[i]]
            total = total + sum(cross_entropy(logits, j) for j in hits) / len(hits)
    return total / (2 * len(rows))


def identities(feats, classifier, smoothing):
    """L_id: the mean over the images."""
    logits = feats @ classifier.weight.T
    return sum(cross_entropy(row, label, smoothing) for row, label in zip(logits, PEOPLE)) / len(PEOPLE)


def eq7(model, images, batch, what, config):
    """L = L_atri(F) + L_id(F) + L_atri(F_out) + L_id(F_out), and the contrast of the clothes on the pictures.

    Returns (terms, {term: {what is wrong: a function that gives what the term would then be}}).
    """
    instrs, pooled = zip(*(instruction_of(model, each) for each in what))
    tokens = []
    fused = []
    for image, instr in zip(images, instrs):
        tokens.append(tokens_of(model.editor, image, instr if model.editing else None))
        fused.append(attention_module(model.attention, tokens[-1], instr))
    feats = torch.stack([each[0] for each in tokens])

    other_loss = {"adaptive": "triplet", "triplet": "adaptive"}[config.loss]
    inverted = dataclasses.replace(config, loss=other_loss)
    projected = [instr[0] for instr in instrs]
    terms = {}
    mistakes = {}
    for end, name, source, neck, heads in (
        ("", "F", feats, model.neck, model.classifiers),
        ("_out", "F_out", torch.stack(fused), model.fused_neck, model.fused_classifiers),
    ):
        behind = after_neck(source, neck)
        head = heads[batch.dataset]
        terms["tri" + end] = triplets(source, pooled, config)
        terms["id" + end] = identities(behind, head, config.smoothing)
        mistakes["tri" + end] = {
            f"the triplets see {name} after its neck, they have to see it before":
                partial(triplets, behind, pooled, config),
            f"this is the loss of --loss {other_loss}, asked for is --loss {config.loss}":
                partial(triplets, source, pooled, inverted),
            "beta comes from the projected instruction, Eq. 6 has the encoder's own pooled vector":
                partial(triplets, source, projected, config),
            "--margin is ignored": partial(triplets, source, pooled, dataclasses.replace(config, margin=0.3)),
        }
        mistakes["id" + end] = {
            f"the classifier sees {name} before its neck, it has to see it after":
                partial(identities, source, head, config.smoothing),
            f"the neck of {name} has a bias that learns, it has to stay 0":
                partial(identities, behind + neck.bias, head, config.smoothing),
            "the label smoothing is ignored": partial(identities, behind, head, 0.0),
            "the classifier is that of another data set":
                partial(identities, behind, heads["other"], config.smoothing),
        }

    if batch.clothes is not None and config.align:
        looks = torch.stack([each / each.norm() for each in pooled])
        terms["align"] = contrast(looks, looks, CLOTHES, 0.1)
        mistakes["align"] = {"pictures of a person agree, and not pictures of the same clothes":
                             partial(contrast, looks, looks, PEOPLE, 0.1)}
    return terms, mistakes


def matchings(model, module, tokens, instrs, true_label, false_texts, false_images):
    """L_match: the mean over the pairs; true_label 1 is [0, 1], the answer for a true pair."""
    pairs = [(i, i, true_label) for i in range(len(tokens))]
    pairs += [(i, int(text), 1 - true_label) for i, text in enumerate(false_texts)]
    pairs += [(int(image), i, 1 - true_label) for i, image in enumerate(false_images)]
    values = []
    for image, text, label in pairs:
        logits = model.match_head(attention_module(module, tokens[image], instrs[text]))
        values.append(cross_entropy(logits, label))
    return sum(values) / len(values)


def eq8(model, images, what, described=PEOPLE):
    """L = L_cl(F) + L_match(F_out); the images are not edited. described (b): whom captions tell of.

    Returns (terms, mistakes as in eq7, {what is wrong: similarity}); the right similarity is that of "".
    """
    instrs = [instruction_of(model, sentence)[0] for sentence in what]
    tokens = [tokens_of(model.editor, image) for image in images]
    temperature = model.log_temperature.exp()
    before = torch.stack([each[0] for each in tokens])
    behind = after_neck(before, model.plain_neck)
    image_feats = F.normalize(behind, dim=1)
    edited_neck = F.normalize(after_neck(before, model.neck), dim=1)
    before = F.normalize(before, dim=1)
    instrs = [through(instr, [model.text_block], torch.nn.Identity()) for instr in instrs]
    text_feats = F.normalize(torch.stack([model.text_head(instr[0]) for instr in instrs]), dim=1)

    match = partial(matchings, model, model.matcher, tokens, instrs)
    of_others = partial(matchings, model, model.attention, tokens, instrs)
    others = CLOTHES if described is PEOPLE else PEOPLE
    terms = {
        "con": contrast(image_feats, text_feats, described, temperature),
        "match": match(1, FALSE_TEXTS, FALSE_IMAGES),
    }
    mistakes = {
        "con": {
            "the contrast sees F before the neck, it has to see it after":
                partial(contrast, before, text_feats, described, temperature),
            "the image passes the neck of edited images, it has one of its own":
                partial(contrast, edited_neck, text_feats, described, temperature),
            "people are confused with people in clothes, or the reverse":
                partial(contrast, image_feats, text_feats, others, temperature),
            "the similarity is not divided by the temperature":
                partial(contrast, image_feats, text_feats, described, 1.0),
        },
        "match": {
            "true pairs are labelled false and false ones true": partial(match, 0, FALSE_TEXTS, FALSE_IMAGES),
            "the pairs go through the E_f of the other tasks, t2i has one of its own":
                partial(of_others, 1, FALSE_TEXTS, FALSE_IMAGES),
            "the indices of false texts and of false images are exchanged":
                partial(match, 1, FALSE_IMAGES, FALSE_TEXTS),
        },
    }
    similarity = {
        "": image_feats @ text_feats.T / temperature,
        "it is that of F before the neck": before @ text_feats.T / temperature,
        "it is not divided by the temperature": image_feats @ text_feats.T,
        "it is text x image": text_feats @ image_feats.T / temperature,
    }
    return terms, mistakes, similarity


# ---- the comparison ----

LOOK = {  # term -> what it is
    "tri": "the triplet loss of F (Eq. 5-7; test_losses.py knows more of its mistakes)",
    "id": "the identity loss of F (Eq. 7)",
    "tri_out": "the triplet loss of F_out (Eq. 5-7; test_losses.py knows more of its mistakes)",
    "id_out": "the identity loss of F_out (Eq. 7)",
    "align": "the contrast of the pictures of clothes",
    "con": "L_cl of Eq. 8 (test_losses.py knows more of its mistakes)",
    "match": "L_match of Eq. 8",
}


def compare(ours, twin, mistakes, model, grads):
    """The terms and the gradients of train.py against those of the twin."""
    words = f"the terms of the loss are {sorted(ours)}, by the paper they are {sorted(twin)}"
    assert ours.keys() == twin.keys(), words
    for name, expected in twin.items():
        found = ours[name].detach()
        expected = expected.detach()
        if not close(found, expected, 1e-9):
            wrong = {words: value().detach() for words, value in mistakes[name].items()}
            assert_close(found, expected, wrong, 1e-9, f"{name}, {LOOK[name]}")

    model.zero_grad()
    sum(twin.values()).backward()
    for name, p in model.named_parameters():
        found = grads[name]
        if p.grad is None:
            assert found is None, f"{name} gets a gradient, by the paper's loss it has none"
            continue
        assert found is not None, f"{name} gets no gradient, the paper's loss gives it one"
        scale = 1e-9 * (1 + p.grad.abs().max())
        words = f"the gradient of {name} is not that of the paper's loss, whose value is right"
        assert (found - p.grad).abs().max() < scale, words


def step(model, task, config, monkeypatch, **changed):
    """(terms, gradients, what hard negatives were asked for) of train.loss_terms, with parts of the batch changed;
    the hard negatives are FALSE_TEXTS and FALSE_IMAGES."""
    batch, images, what = a_batch(task)
    batch = batch._replace(**changed)
    asked = []

    def chosen(similarity, ids, generator=None):
        asked.append((similarity.detach(), ids))
        return FALSE_TEXTS, FALSE_IMAGES

    monkeypatch.setattr(losses, "hard_negatives", chosen)
    terms = train.loss_terms(model, images, what, batch, config, torch.autocast("cpu", enabled=False))
    sum(terms.values()).backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    return terms, grads, asked


@pytest.mark.parametrize("loss", ["adaptive", "triplet"])
@pytest.mark.parametrize("task", [task for task in TASKS if task != "t2i"])
def test_a_step_equals_eq7_image_by_image(task, loss, monkeypatch):
    model, config = a_model(), a_config(loss=loss)
    terms, grads, _ = step(model, task, config, monkeypatch)
    batch, images, what = a_batch(task)
    compare(terms, *eq7(model, images, batch, what, config), model, grads)


def test_a_step_of_t2i_equals_eq8_pair_by_pair(monkeypatch):
    model = a_model()
    terms, grads, [(similarity, ids)] = step(model, "t2i", a_config(), monkeypatch)
    twin, mistakes, wrong = eq8(model, *a_batch("t2i")[1:])
    expected = wrong.pop("")
    assert_close(similarity, expected, wrong, 1e-9, "the similarity that hard negatives are drawn by")
    assert torch.equal(ids, PEOPLE), "hard negatives are told other identities than those of the batch"
    compare(terms, twin, mistakes, model, grads)


def test_a_caption_describes_a_person_in_clothes_where_they_change(monkeypatch):
    """COCAS+: the same person in other clothes is no positive of Eq. 8."""
    model = a_model()
    terms, grads, [(_, ids)] = step(model, "t2i", a_config(), monkeypatch, clothes=CLOTHES)
    twin, mistakes, _ = eq8(model, *a_batch("t2i")[1:], CLOTHES)
    assert torch.equal(ids, CLOTHES), "hard negatives are told people, and not people in clothes"
    compare(terms, twin, mistakes, model, grads)


@pytest.mark.parametrize("flags", [{"align": False}, {"margin": 5.0}, {"smoothing": 0.0}])
def test_flags_reach_the_loss(flags, monkeypatch):
    model, config = a_model(), a_config(**flags)
    terms, grads, _ = step(model, "ctcc", config, monkeypatch)
    batch, images, what = a_batch("ctcc")
    compare(terms, *eq7(model, images, batch, what, config), model, grads)


@pytest.mark.parametrize("task", ["cc", "ctcc", "li"])
def test_the_baseline_of_tab_4_never_sees_an_instruction(task, monkeypatch):
    """--no-editing --loss image: what is asked for changes neither loss nor gradient, and E_i and E_f get none."""
    terms, grads, _ = step(a_model(editing=False), task, a_config(loss="image"), monkeypatch)
    assert terms.keys() == {"tri", "id"}
    learned = {name.split(".")[0] for name, grad in grads.items() if grad is not None}
    assert learned == {"editor", "neck", "classifiers"}

    plain, _, _ = step(a_model(editing=False), task, a_config(loss="triplet"), monkeypatch)
    assert all(torch.equal(terms[name], plain[name]) for name in terms)
    monkeypatch.setitem(SHARED, "cc", "do not change clothes")
    monkeypatch.setattr(sys.modules[__name__], "DESCRIPTIONS", DESCRIPTIONS[::-1])
    monkeypatch.setattr(sys.modules[__name__], "CLOTHES", CLOTHES.flip(0))
    again, other, _ = step(a_model(editing=False), task, a_config(loss="image"), monkeypatch)
    assert all(torch.equal(terms[name], again[name]) for name in terms)
    assert all(grad is None or torch.equal(grad, other[name]) for name, grad in grads.items())


def test_without_editing_the_instruction_reaches_f_out_alone(monkeypatch):
    model, config = a_model(editing=False), a_config()
    terms, grads, _ = step(model, "li", config, monkeypatch)
    batch, images, what = a_batch("li")
    compare(terms, *eq7(model, images, batch, what, config), model, grads)


@pytest.mark.parametrize("loss", ["adaptive", "triplet"])
def test_mining_reaches_both_triplet_losses(loss, monkeypatch):
    """--mining hard gives each of F and F_out the loss of test_losses.py::test_hard_triplets_equal_loops."""
    model = a_model()
    terms, _, _ = step(model, "li", a_config(mining="hard", loss=loss), monkeypatch)
    batch, images, what = a_batch("li")
    with torch.no_grad():
        instr = model.instruct(what)
        out = model(images, instr)
    for name, feats in (("tri", out.feat), ("tri_out", out.fused)):
        if loss == "triplet":
            wanted = losses.triplet(feats, PEOPLE, 0.7, mining="hard")
        else:
            wanted = losses.adaptive_triplet(feats, PEOPLE, instr.pooled, 0.7, mining="hard")
        words = f"--mining hard does not reach {name} of --loss {loss}"
        assert abs(terms[name].item() - wanted.item()) < 1e-9, words


def test_hard_negatives_are_drawn_from_the_generator_of_the_step(monkeypatch):
    """Else a resumed run would draw others."""
    model = a_model()
    batch, images, what = a_batch("t2i")
    given = []

    def spy(similarity, ids, generator=None):
        given.append(generator)
        return FALSE_TEXTS, FALSE_IMAGES

    monkeypatch.setattr(losses, "hard_negatives", spy)
    chance = torch.Generator()
    train.loss_terms(model, images, what, batch, a_config(), torch.autocast("cpu", enabled=False), chance)
    assert given[0] is chance, "hard negatives are drawn from torch's default generator"


@pytest.mark.parametrize("learned,used", [(0.001, 0.01), (0.2, 0.2), (3.0, 0.5)])
def test_the_learned_temperature_stays_between_its_bounds(learned, used, monkeypatch):
    model = a_model()
    model.log_temperature.data.fill_(math.log(learned))
    temperatures = []
    contrastive = losses.contrastive

    def spy(image_feats, text_feats, ids, temperature):
        temperatures.append(temperature.item())
        return contrastive(image_feats, text_feats, ids, temperature)

    monkeypatch.setattr(losses, "contrastive", spy)
    step(model, "t2i", a_config(), monkeypatch)
    words = f"a learned temperature of {learned} is used as {temperatures}, its bounds are 0.01 and 0.5"
    assert temperatures == pytest.approx([used]), words


# ---- what a step is made of ----

def test_any_caption_of_an_image_can_be_drawn():
    records = [Record("cuhk-pedes", "train", f"{pid}.jpg", pid, captions=(f"first {pid}", f"second {pid}")) for pid in (1, 2)]
    drawn = set()
    for seed in range(60):
        drawn.add(tuple(instructions.training_instructions("t2i", records, {}, random.Random(seed))))
    possible = set(itertools.product(("first 1", "second 1"), ("first 2", "second 2")))
    assert drawn == possible, f"of the captions of two images only these are ever drawn: {drawn}"


@pytest.mark.parametrize("task", ["ctcc", "li"])
def test_another_images_instruction_is_never_the_images_own(task):
    """Of two images of a person, the half of a batch that asks must ask for the other one."""
    pool = {pid: [Record("cocas", "train", f"{pid}_{k}.jpg", pid, captions=(f"{pid} {k}",), crop_path=f"{pid} {k}")
                  for k in range(2)] for pid in range(4)}
    records = [record for group in pool.values() for record in group]
    for seed in range(20):
        said = instructions.training_instructions(task, records, pool, random.Random(seed))
        own = [words == instructions.gallery_instruction(task, record) for words, record in zip(said, records)]
        assert sum(own) == len(records) * (1 - instructions.OTHERS_SHARE)


def test_the_only_image_of_a_person_asks_for_itself():
    records = [Record("cocas", "train", f"{pid}.jpg", pid, captions=(f"{pid}",)) for pid in range(4)]
    said = instructions.training_instructions("li", records, {r.pid: [r] for r in records}, random.Random(0))
    assert said == ["0", "1", "2", "3"]


# ---- precision ----

@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("task", ["li", "ctcc", "t2i"])
def test_losses_leave_autocast(task, dtype, monkeypatch):
    """From the features that a half-precision model gives, the losses are those of float32, to the last digits."""
    torch.manual_seed(0)
    model = InstructReID(TINY, {"market": 3}, text=Letters()).train()
    for norm in (model.editor.norm, model.attention.norm, model.matcher.norm):
        norm.weight.data *= 40  # squared distances of some 50,000, where bf16 moves in steps of 256
    batch, images, what = a_batch(task)
    images, what = images.float(), what.float() if task == "ctcc" else what
    monkeypatch.setattr(losses, "hard_negatives", lambda *_, **__: (FALSE_TEXTS, FALSE_IMAGES))

    seen, forward, embed_text, match = {}, model.forward, model.embed_text, model.match
    monkeypatch.setattr(model, "forward", lambda *args: seen.setdefault("out", forward(*args)))
    monkeypatch.setattr(model, "embed_text", lambda *args: seen.setdefault("text", embed_text(*args)))
    monkeypatch.setattr(model, "match", lambda *args: seen.setdefault("logits", match(*args)))
    instruct = model.instruct
    monkeypatch.setattr(model, "instruct", lambda *args: seen.setdefault("instr", instruct(*args)))
    terms = train.loss_terms(model, images, what, batch, a_config(), torch.autocast("cpu", dtype))

    out, double = seen["out"], lambda x: x.double()
    if task == "t2i":
        image_feats = F.normalize(double(out.neck), dim=1)
        exact = {"con": losses.contrastive(image_feats, double(seen["text"]), PEOPLE, double(model.log_temperature).exp()),
                 "match": losses.matching(*double(seen["logits"]).split([8, 16]))}
    else:
        pooled = double(seen["instr"].pooled)
        exact = {"tri": losses.adaptive_triplet(double(out.feat), PEOPLE, pooled, 0.7),
                 "tri_out": losses.adaptive_triplet(double(out.fused), PEOPLE, pooled, 0.7)}
        for name, feats, heads in (("id", out.neck, model.classifiers), ("id_out", out.fused_neck, model.fused_classifiers)):
            exact[name] = losses.identity(double(feats) @ double(heads["market"].weight).T, PEOPLE, 0.2)
        if task == "ctcc":
            looks = F.normalize(pooled, dim=1)
            exact["align"] = losses.contrastive(looks, looks, CLOTHES, torch.tensor(0.1, dtype=torch.float64))
    assert terms.keys() == exact.keys()
    for name, value in exact.items():
        assert terms[name].dtype == torch.float32, f"{name} is computed in {terms[name].dtype}"
        assert abs(terms[name].item() / value.item() - 1) < 1e-5, f"{name} is {terms[name].item()}, in float32 {value.item()}"


def test_half_precision_features_make_float32_losses():
    half = torch.randn(8, 16, generator=torch.Generator().manual_seed(0)).mul(30).bfloat16()
    unit = F.normalize(half.float(), dim=1).bfloat16()
    for loss in (lambda x, _: losses.adaptive_triplet(x, PEOPLE, x), lambda x, _: losses.triplet(x, PEOPLE),
                 lambda x, _: losses.identity(x, PEOPLE), lambda x, _: losses.matching(x[:, :2], x[:, 2:4]),
                 lambda _, x: losses.contrastive(x, x, PEOPLE, torch.tensor(0.1)), lambda x, _: losses.relatedness(PEOPLE, x)):
        assert torch.equal(loss(half, unit), loss(half.float(), unit.float()))


def test_auto_takes_no_emulated_bf16(monkeypatch):
    """A V100 says that it supports bf16 where emulation counts; fp16 is what it computes."""
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert device.amp_dtype("auto", gpu) == torch.float16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert device.amp_dtype("auto", gpu) == torch.bfloat16
    assert device.amp_dtype("auto", torch.device("cpu")) is None


@pytest.mark.parametrize("amp,dtype", [("bf16", torch.bfloat16), ("fp16", torch.float16), ("off", None), ("auto", None)])
def test_evaluation_has_the_precision_of_training(amp, dtype):
    model = InstructReID(TINY, {"market": 3}, text=Letters())
    with features.evaluating(model, amp):
        assert torch.is_autocast_enabled("cpu") == (dtype is not None)
        assert dtype is None or torch.get_autocast_dtype("cpu") == dtype
    assert not torch.is_autocast_enabled("cpu")
