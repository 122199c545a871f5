"""What the grader calls, one function for each exercise; it yields (what it is, value).

Runs beside the code of a student, so no answer is here; checks.py builds the same cases. The names
of the values stand in the sentences that a student reads.
"""

import itertools
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

LARGEST = 100_000  # numbers in an answer


def encode(value):
    """A value as JSON: tensors and arrays with dtype and shape, all else as it is or by name."""
    if isinstance(value, torch.Tensor):
        value = value.detach().numpy()
    if isinstance(value, (np.ndarray, np.generic)):
        value = np.asarray(value)
        if value.size > LARGEST:
            return {"type": f"tensor of shape {value.shape}"}
        return {"dtype": str(value.dtype), "shape": value.shape, "values": value.ravel().tolist()}
    if isinstance(value, (list, tuple)):
        return [encode(each) for each in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return {"type": type(value).__name__}


def numbers(seed, *shape):
    """The same drawn numbers for everybody, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def filled(module):
    """The module in double precision, all parameters drawn."""
    module.double().eval()
    for i, (_, parameter) in enumerate(sorted(module.named_parameters())):
        parameter.data = numbers(i, *parameter.shape) * 0.4
    return module


def real(*lengths):
    """(b t) bool: so many real tokens in each row, behind them padding."""
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def raised(function, *args):
    """The name of the error that a call raises, None if it raises none."""
    try:
        function(*args)
    except Exception as error:
        return type(error).__name__
    return None


# ---- model.py ----

def vit_case(depth):
    from model import ViT
    vit = filled(ViT((12, 8), 4, dim=8, depth=depth, heads=2, part_tokens=1, instr_dim=6))
    return vit, numbers(1, 2, 3, 12, 8), numbers(2, 2, 3, 6), real(3, 2)


def patches():
    vit, images, _, _ = vit_case(depth=0)
    yield "the embedding without layers", vit(images)

    vit, images, instr, mask = vit_case(depth=2)
    yield "the output of two layers without an instruction", vit(images)
    yield "the output of two layers", vit(images, instr, mask)
    yield "what images on their side raise", raised(vit, images.mT)


def attention_case():
    from model import EditingAttention
    attn = filled(EditingAttention(8, 2, 6))
    return attn, numbers(1, 2, 5, 8), numbers(2, 2, 4, 6), real(4, 2)


def gated_attention():
    attn, x, instr, mask = attention_case()
    yield "the output", attn(x, instr, mask)
    yield "the output without an instruction", attn(x)
    yield "the output where one instruction serves all images", attn(x, instr[:1])
    yield "the output beside padded image tokens", attn(x, mask=real(3, 3, 5)[:2])[:, :3]
    yield "the output of the first two rows", attn(x, instr, mask, rows=2)
    yield "the map", attn.maps(x, instr, mask)


def zero_init():
    from model import EditingAttention
    torch.manual_seed(0)
    attn = EditingAttention(8, 2, 6)
    plain = EditingAttention(8, 2)
    x = numbers(1, 2, 5, 8).float()
    instr = numbers(2, 2, 4, 6).float()

    for name, layer in (("with", attn), ("without", plain)):
        yield f"the parameters {name} an instruction", [
            f"{key} {tuple(value.shape)}" for key, value in sorted(layer.named_parameters())]

    yield "the gate", attn.gate
    yield "what the instruction adds at step 0", attn(x, instr) - attn(x)
    attn(x, instr).square().sum().backward()
    yield "the gradient of the gate", attn.gate.grad


class Sentences(nn.Module):
    """A text tower that gives every sentence drawn tokens."""

    width = 6

    def forward(self, sentences):
        tokens = torch.stack([numbers(len(sentence), 4, 6) for sentence in sentences])
        return tokens, real(4, 2)[:len(tokens)], 2 * tokens[:, 0] + 1


def encoder_case():
    from model import InstructionEncoder, ViT
    picture = ViT((8, 8), 4, dim=8, depth=0, heads=2)
    return filled(InstructionEncoder(8, Sentences(), picture))


def text_pooling():
    from model import TextEncoder
    tokens = numbers(1, 2, 4, 6)
    for pooling in ("mean", "cls"):
        pooled = TextEncoder._pool(SimpleNamespace(pooling=pooling), tokens, real(4, 2))
        yield f"the pooled vector ({pooling})", pooled

    encoder = encoder_case()
    for kind, what in (
        ("two sentences", ["a red coat", "blue"]),
        ("two equal sentences", ["blue", "blue"]),
        ("two pictures", numbers(3, 2, 3, 8, 8)),
    ):
        instr = encoder(what)
        for part in ("mask", "tokens", "pooled", "words"):
            yield f"{part} of {kind}", getattr(instr, part)
    yield "the instruction of None", encoder(None)


def fusion_case():
    from model import AttentionModule, Instruction
    module = filled(AttentionModule(8, 2, 2))
    tokens = numbers(2, 2, 4, 8)
    instr = Instruction(tokens, real(4, 2), tokens[:, 0], tokens[:, 1:])
    return module, numbers(1, 2, 5, 8), instr


def dual_attention():
    module, image_tokens, instr = fusion_case()
    yield "F_out", module(image_tokens, instr)
    one = type(instr)(*(part[:1] for part in instr))
    yield "F_out where one instruction serves all images", module(image_tokens, one)


# ---- losses.py ----

IDS = torch.tensor([0, 0, 0, 1, 1, 1, 2])  # the last one is alone
FOUR = torch.tensor([0, 0, 0, 0, 1, 1, 2])


def triplet_case():
    """ids, instr, and dist and beta of other numbers."""
    instr = numbers(1, 7, 4)
    instr[1] = 2 * instr[0]  # equally alike to every other
    dist = numbers(2, 7, 7).abs() * 2
    beta = (numbers(3, 7, 7).tanh() + 1) / 2
    beta[0, 1] = beta[0, 2] + 1e-8
    return instr, dist, beta * (IDS[:, None] == IDS)


def terms_case():
    d1, d2 = numbers(4, 2, 8).abs()
    gap = torch.tensor([1, -1, 0.5, -0.5, 0.2, -0.2, 1, -1], dtype=torch.float64)
    return d1, d2, gap


def adaptive_triplet():
    from losses import all_triplets, relatedness, triplet_terms
    instr, dist, beta = triplet_case()
    yield "beta", relatedness(IDS, instr)
    yield "beta of half precision", str(relatedness(IDS, instr.bfloat16()).dtype)
    yield "whether beta has a gradient", relatedness(IDS, instr.requires_grad_()).requires_grad
    yield "the terms of Eq. 5", triplet_terms(*terms_case(), 0.5)
    yield "the mean over all triplets", all_triplets(dist, beta, 0.5)
    yield "the mean where no triplet counts", all_triplets(dist, torch.zeros_like(beta), 0.5)


def hard_case():
    """dist, beta of FOUR, and two masks, of which anchors lack one."""
    _, dist, _ = triplet_case()
    beta = (numbers(3, 7, 7).tanh() + 1) / 2
    beta[0, 1] = 0.9
    beta[0, 2] = 0.9 + 1e-8
    dist[0, 1] = dist[0, 2] + 1
    far_ones = numbers(5, 7, 7) > 0
    near_ones = ~far_ones & (numbers(6, 7, 7) > -1)
    far_ones[2] = False
    near_ones[4] = False
    return dist, beta * (FOUR[:, None] == FOUR), far_ones, near_ones


def hard_mining():
    from losses import hard_pair, hard_triplets
    dist, beta, far_ones, near_ones = hard_case()
    yield "the mean of hard_pair", hard_pair(dist, beta, far_ones, near_ones, 0.5)
    yield "the loss of hard_triplets", hard_triplets(dist, beta, FOUR, 0.5)


def contrast_case():
    return F.normalize(numbers(1, 7, 8), dim=1), F.normalize(numbers(2, 7, 8), dim=1)


def contrast():
    from losses import contrastive
    yield "L_cl", contrastive(*contrast_case(), IDS, 0.2)
    yield "L_cl where every image has one sentence", contrastive(
        *contrast_case(), torch.arange(7), 0.5)
    halves = [feats.bfloat16() for feats in contrast_case()]
    yield "L_cl of half precision", str(contrastive(*halves, IDS, 0.2).dtype)

    temperature = torch.tensor(0.2, requires_grad=True)
    loss = contrastive(*contrast_case(), IDS, temperature)
    yield "whether L_cl has a gradient", loss.requires_grad


DRAWS = 1500


def negatives_case():
    return numbers(1, 5, 5) * 1.5, torch.tensor([0, 0, 1, 2, 3])


def shares(columns):
    """Rows of drawn columns (draws b) -> (b b): how often each row drew each column."""
    return F.one_hot(torch.stack(columns), 5).double().mean(0)


def hard_negatives():
    from losses import draw, hard_negatives, matching
    similarity, ids = negatives_case()
    chances = torch.tensor([0.5, 0.3, 0.2, 0, 0]).expand(DRAWS, 5)
    generator = torch.Generator().manual_seed(1)
    drawn = draw(chances, generator)
    yield "the columns of draw", drawn
    yield "the columns of draw, drawn again", draw(chances, generator.manual_seed(1))

    pairs = [hard_negatives(similarity, ids, generator) for _ in range(DRAWS)]
    texts, images = zip(*pairs)
    yield "how often each image draws each text", shares(texts)
    yield "how often each text draws each image", shares(images)
    yield "L_match", matching(numbers(2, 4, 2), numbers(3, 6, 2))
    yield "L_match of half precision", str(matching(*numbers(2, 2, 4, 2).bfloat16()).dtype)


# ---- data.py, evaluate.py, reid/ ----

def sampler_case():
    """The Records of seven people: two or three outfits, one seen by two kinds of cameras, one
    with a single image."""
    from reid.records import Record
    records = []
    for pid in range(7):
        for i in range(1 if pid == 6 else 6):
            modality = "ir" if pid == 5 and i < 2 else "rgb"
            outfit = i // 4 if pid % 2 else i // 2
            records.append(Record(
                "x", "train", f"{pid}_{i}.jpg", pid, clothes=f"{pid}:{outfit}", modality=modality))
    return records


STEPS = range(90)


def sampler():
    from data import PKSampler
    records = sampler_case()
    first = PKSampler(records, 2, 4, "0")
    yield "the batches", [first.batch(step) for step in STEPS]

    again = PKSampler(records, 2, 4, "0")
    yield "the batches, the last one first", [again.batch(step) for step in reversed(STEPS)]

    other = PKSampler(records, 2, 4, "1")
    yield "the batches of another seed", [other.batch(step) for step in STEPS]

    threes = PKSampler(records, 2, 3, "0")
    yield "the batches of K = 3", [threes.batch(step) for step in STEPS]


SIZE = (64, 32)


def erasing():
    from data import erasing
    generator = torch.Generator().manual_seed(0)
    erased = erasing(400, SIZE, 0.5, generator=generator)
    yield "the mask of two images", erased[:2]

    again = erasing(400, SIZE, 0.5, generator=generator.manual_seed(0))
    yield "whether equal seeds erase alike", bool((erased == again).all())
    yield "the erased rectangles", rectangles(erased)
    yield "the rectangles at probability 1", rectangles(
        erasing(2000, SIZE, 1.0, generator=generator))


def rectangles(erased):
    """(b 1 H W) -> (b 5): top, left, height, width of what is erased, and how many pixels; zeros
    where nothing is."""
    rows = []
    for mask in erased[:, 0]:
        places = mask.nonzero()
        if not len(places):
            rows.append([0] * 5)
            continue
        top, left = places.amin(0).tolist()
        bottom, right = places.amax(0).tolist()
        rows.append([top, left, bottom - top + 1, right - left + 1, len(places)])
    return torch.tensor(rows)


PEOPLE = np.array([3, 4, 2, 5, 5, 1, 6, 1, 2, 2, 3, 3])  # who is on each image of the gallery


def ranking_case():
    """dist, positive, removed (q g): many ties, a query without a hit."""
    dist = (numbers(1, 6, 12).numpy() * 3).round() / 3
    positive = numbers(4, 6, 12).numpy() > 0.4
    removed = numbers(5, 6, 12).numpy() > 0.4
    positive[5] = False
    return dist, positive, removed


def average_precision():
    from evaluate import hit_ranks, person_rank, query_figures, ranking_metrics
    dist, positive, removed = ranking_case()
    untied = np.argsort(np.argsort(dist, 1, kind="stable"), 1) / 10
    for kind, distances in (("different distances", untied), ("ties", dist)):
        hits = np.flatnonzero(positive[0] & ~removed[0])
        yield f"the ranks of the hits with {kind}", hit_ranks(distances[0], hits, removed[0])
    hits = np.flatnonzero(positive[2] & ~removed[2])
    yield "the rank of a person", person_rank(dist[2], hits, removed[2], PEOPLE)

    figures = query_figures(dist[1], positive[1], removed[1])
    yield "the figures of a query", np.array(figures, float)
    figures = query_figures(dist[5], positive[5], removed[5])
    yield "the hits of a query without one", int(figures.hits)
    yield "whether it has NaN", bool(np.isnan(figures[:3]).all())
    yield "what nothing but such queries raises", raised(
        ranking_metrics, dist[5:], positive[5:], removed[5:])

    table = ranking_metrics(dist, positive, removed)
    for key in ("mAP", "mINP", "cmc", "queries"):
        yield key, table[key]


def protocol_case():
    """Records of a query and of a gallery: every mixture of person, camera, clothes and junk."""
    from reid.records import Record
    query = Record("ltcc", "query", "q", 1, cam=1, clothes="1:1")
    gallery = []
    for pid, cam, outfit, junk in itertools.product((1, 2), (1, 2, None), (1, 2), (False, True)):
        gallery.append(Record(
            "ltcc", "gallery", "g", pid, cam=cam, clothes=f"1:{outfit}", junk=junk))
    return query, gallery


def protocols():
    from reid.protocols import GENERAL, OTHER_CLOTHES, SAME_CLOTHES, columns, masks
    query, gallery = protocol_case()
    q, g = columns([query], gallery)
    for protocol in (GENERAL, OTHER_CLOTHES, SAME_CLOTHES):
        positive, removed = masks(protocol, q, g)
        yield f"the hits of {protocol.name}", positive
        yield f"what {protocol.name} leaves out", removed


def resize_positions():
    from reid.weights import resize_grid
    positions = numbers(1, 1, 6, 4)
    yield "an equal grid", resize_grid(positions, (3, 2), (3, 2), "bilinear")
    for mode in ("bilinear", "bicubic"):
        yield f"a larger grid ({mode})", resize_grid(positions, (3, 2), (5, 4), mode)
        yield f"a smaller grid ({mode})", resize_grid(positions, (3, 2), (2, 2), mode)
