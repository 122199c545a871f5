"""What is embedded at test is what the losses were computed from, by value, on a tiny model of
which nothing is at its neutral value: of every kind, under flip, in both stages of t2i."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import evaluate
from evaluate import Run
from instructions import Ask
from model import PARTS, Instruction
from reid import uninstructed
from reid.cli import UserError
from reid.features import load_features, save_features
from reid.images import load_all, normalise
from reid.records import Dataset, Record
from reid.text import CrossEncoder, bert_config
from reid.uninstructed import BODY, CLOTHES
from tests.explain import assert_close
from tests.test_model import TINY, tiny_model

WORDS = ("a man in a red coat", "boots", "a woman with a bag", "in blue", "in grey shorts")
ASKS = {
    "shared": [Ask("ignore clothes")] * 5,
    "words": [Ask(words) for words in WORDS],
    "picture": [Ask(picture=f"clothes{i}.png") for i in range(5)],
    "both": [Ask(words, f"clothes{i}.png") for i, words in enumerate(WORDS)],
    "none": [None] * 5,
}
KINDS = {  # kind of feature: the instructions that it may have
    "edit": ("shared", "words", "picture", "both", "none"),
    "fused": ("shared", "words", "picture", "both"),
    "text": ("words",),
    "instruction": ("words", "picture", "both"),
    CLOTHES: ("none",),
}


def moved(albef=False):
    """A model in training mode of which nothing is at its neutral value."""
    cross = None
    if albef:
        config = dict(hidden_size=12, num_hidden_layers=2, num_attention_heads=2, vocab_size=9,
                      intermediate_size=24, is_decoder=True, add_cross_attention=True)
        cross = CrossEncoder(bert_config(config), TINY["dim"])
    return tiny_model(shape=TINY | dict(stem="conv"), cross=cross).train()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Five photos and five pictures of clothes, none of them symmetric."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    records = []
    for i, words in enumerate(WORDS):
        for name, size in ((f"{i}.png", (32, 16, 3)), (f"clothes{i}.png", (16, 16, 3))):
            Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(root / name)
        records.append(Record("x", "gallery", f"{i}.png", i, captions=(words,)))
        records.append(Record("x", "query", None, i, modality="text", captions=(words,)))
    return Dataset("x", "X", "t2i", root, tuple(records))


def by_hand(model, dataset, kind, path, ask, mirrored):
    """One feature (1 d), by the parts of a model in evaluation mode."""
    def look(name, size):
        image = load_all(dataset.root, [name], size)
        return image.flip(3) if mirrored else image

    photo = normalise(look(path, model.size))
    if kind == CLOTHES:
        clothes = uninstructed.as_clothes(photo, model.picture_size)
        return model.encoder.picture(clothes)[:, 1:].mean(1)
    if ask is None:
        return F.normalize(model.plain_neck(model.editor(photo)[:, 0]), dim=1)

    tokens, pooled = [], []
    if ask.words:
        words, _, mean = model.encoder.text([ask.words])
        tokens.append(model.encoder.from_text(torch.cat([mean[:, None], words], 1)))
        pooled.append(mean)
    if ask.picture:
        seen = model.encoder.picture(normalise(look(ask.picture, model.picture_size)))
        pooled.append(seen[:, 1:].mean(1))
        whole = torch.cat([pooled[-1][:, None], seen], 1)
        tokens.append(model.encoder.from_picture(whole))
    if kind == "instruction":
        return torch.cat([F.normalize(part, dim=1) for part in pooled], 1)
    tokens = torch.cat(tokens, 1)
    if kind == "text":
        return model.text_head(model.text_block(tokens)[:, 0])
    edited = model.editor(photo, tokens)
    if kind == "edit":
        return F.normalize(model.neck(edited[:, 0]), dim=1)
    no_padding = torch.ones(tokens.shape[:2], dtype=torch.bool)
    instr = Instruction(tokens, no_padding, tokens[:, 0], tokens)
    return F.normalize(model.fused_neck(model.attention(edited, instr)), dim=1)


def instruction(model, dataset, asks):
    """Of one Ask for each image, as a user makes it."""
    words = [ask.words for ask in asks if ask and ask.words]
    paths = [ask.picture for ask in asks if ask and ask.picture]
    clothes = normalise(load_all(dataset.root, paths, model.picture_size)) if paths else None
    return model.instruct(words or None, clothes)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("kind, form", [(kind, form) for kind in KINDS for form in KINDS[kind]])
@torch.inference_mode()
def test_features_are_what_the_losses_saw(dataset, kind, form, flip):
    """In any batch, and by `model.embed`; the model stays as it was. Where there is a photo, flip
    adds the feature of its mirror image, whose picture of clothes is mirrored too."""
    photos = dataset.split("gallery")
    model = moved()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = []
    for batch in (2, 5):
        run = Run(model, flip=flip, batch=batch)
        found.append(run.features(dataset, photos, ASKS[form], kind))
        if kind == "fused":  # F comes with it
            edited = Run(model, flip=flip, batch=batch).features(dataset, photos, ASKS[form])
            assert torch.equal(run.features(dataset, photos, ASKS[form], "edit"), edited)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())

    model.eval()
    if kind == "edit" and not flip:
        images = normalise(load_all(dataset.root, [each.path for each in photos], model.size))
        found.append(model.embed(images, instruction(model, dataset, ASKS[form])))
    flips = (False, True) if flip and kind not in ("text", "instruction") else (False,)
    for i, (record, ask) in enumerate(zip(photos, ASKS[form])):
        views = [by_hand(model, dataset, kind, record.path, ask, view) for view in flips]
        expected = F.normalize(sum(views), dim=1)[0]
        for feats in found:
            assert_close(feats[i], expected, {"flip is ignored": F.normalize(views[0])[0]})


@pytest.mark.parametrize("albef", [False, True], ids=["own E_f", "ALBEF's"])
@torch.inference_mode()
def test_the_second_stage_is_eq_8_pair_by_pair(dataset, albef, monkeypatch):
    """similarity / temperature + yes - no, of the nearest images, in which no sentence depends on
    another one's length."""
    model = moved(albef)
    monkeypatch.setattr(evaluate, "TOP", 3)
    retrieval = evaluate.task_retrieval(Run(model, batch=2), dataset)
    _, gallery, *feats, _ = retrieval
    nearest, scores = evaluate.match(Run(model, batch=2), dataset, retrieval)["matching"]
    similarity = feats[0] @ feats[1].T
    assert torch.equal(nearest, similarity.topk(3)[1].float())

    model.eval()
    images = normalise(load_all(dataset.root, [record.path for record in gallery], model.size))
    all_words = model.read_text(model.instruct(list(WORDS)))
    for i, words in enumerate(WORDS):
        instr = model.instruct([words])
        instr = instr._replace(tokens=model.text_block(instr.tokens))
        for place, j in enumerate(nearest[i].int().tolist()):
            tokens = model.editor(images[j:j + 1])
            if albef:
                said = model.cross(
                    instr.encoded, torch.ones(instr.encoded.shape[:2]).bool(), tokens)
                logits = model.cross.head(said[:, 0])
            else:
                logits = model.match_head(model.matcher(tokens, instr))
            [[no, yes]] = logits
            expected = similarity[i, j] / model.log_temperature.exp() + yes - no
            assert_close(scores[i, place], expected, {"'no' is left out": expected + no}, 1e-4)
            padded = model.match(tokens.expand(5, -1, -1), all_words)[i]
            assert_close(padded, logits[0], {}, 1e-5, "among sentences of other lengths")


def test_captions_with_a_long_common_beginning_have_features_of_their_own(dataset, tmp_path):
    """Saved features serve the same captions of the same images, and no others."""
    captions = ["a man " + "in a red coat " * 20 + end for end in "a b c d e f g".split()]
    photos = [dataset.split("gallery")[0]] * 7
    run = Run(moved(), "edit")

    def features(run, captions, **changed):
        asks = [Ask(words) for words in captions]
        return run.features(dataset._replace(**changed), photos, asks)

    found = features(run, captions)
    assert len(set(map(tuple, found.tolist()))) == 7
    of_kinds = [run.features(dataset, photos, [None] * 7, kind) for kind in ("edit", CLOTHES)]
    assert not torch.equal(*of_kinds)
    save_features(tmp_path / "f.safetensors", run.known, {"task": "t2i"})
    known, notes = load_features(tmp_path / "f.safetensors", {"task"})
    assert notes == {"task": "t2i"}
    saved = Run(known=known, parts=PARTS)
    assert torch.equal(features(saved, captions), found)
    for others, changed in ((captions[::-1], {}), (captions, {"name": "y"})):
        with pytest.raises(UserError, match="other images, captions"):
            features(saved, others, **changed)
    with pytest.raises(UserError, match="other images, captions"):
        saved.features(dataset, photos, [None] * 7, "text")


# ---- photos without instructions ----

def test_clothes_are_the_photo_without_head_and_margins():
    photo = torch.zeros(1, 3, 20, 10)
    top, left, bottom, right = BODY
    photo[:, :, round(20 * top):round(20 * bottom), round(10 * left):round(10 * right)] = 200
    clothes = uninstructed.as_clothes(photo, (8, 8))
    torch.testing.assert_close(clothes, torch.full((1, 3, 8, 8), 200.0))


def test_the_score_is_a_weighted_sum_by_hand_and_the_cosine_of_joined_features():
    """Several parts of an instruction, such as words and a picture, share its weight."""
    person = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    words = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.6, 0.8]])
    parts = uninstructed.scores(person @ person[1], words @ words[0], 0.25)
    torch.testing.assert_close(torch.stack(parts), torch.tensor([[0.45, 0.75], [0.25, 0.0]]))

    def cosines(*pairs):
        [query] = uninstructed.joined(person[1:], [(w, part[:1]) for w, part in pairs])
        return uninstructed.joined(person, pairs) @ query

    torch.testing.assert_close(cosines((0.25, words)), sum(parts))
    shared = 0.7 * person @ person[1] + 0.2 * words @ words[0] + 0.1 * person @ person[0]
    torch.testing.assert_close(cosines((0.4, words), (0.2, person)), shared)
