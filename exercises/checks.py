"""The answers: each equation once more, in loops and double precision, and what the usual mistakes
would give instead. A check raises Wrong with one sentence that says where to look.
"""

import itertools
import math

import numpy as np
import torch
from torch.nn.functional import softplus

from exercises import probes
from exercises.answers import Wrong, demand
from tests.by_hand import attention_by_hand, attention_mistakes


# ---- model.py ----

def embedding(vit, images, order="rows", positions=True):
    """Patches by loops, one at a time."""
    kernel = vit.embed.weight.flatten(1)
    p = vit.patch
    rows, columns = vit.grid
    places = list(itertools.product(range(rows), range(columns)))
    if order == "columns":
        places.sort(key=lambda place: place[1])

    sequences = []
    for image in images:
        patches = []
        for row, column in places:
            patch = image[:, row * p:(row + 1) * p, column * p:(column + 1) * p]
            patches.append(kernel @ patch.flatten() + vit.embed.bias)
        sequences.append(torch.cat([vit.prefix[0], torch.stack(patches)]))
    x = torch.stack(sequences)
    return x + vit.pos if positions else x


def patches(answers):
    vit, images, instr, mask = probes.vit_case(depth=0)
    right = embedding(vit, images)
    only_patches = embedding(vit, images, positions=False)
    only_patches[:, 2:] += vit.pos[:, 2:]
    mistakes = {
        "the patches are read column by column, self.pos has them row by row":
            vit.norm(embedding(vit, images, order="columns")),
        "the positions are missing: add self.pos to all tokens":
            vit.norm(embedding(vit, images, positions=False)),
        "the tokens of the prefix have no position, self.pos has one for each of them":
            vit.norm(only_patches),
        "the final norm is missing": right,
    }
    answers.equal(
        "the embedding without layers",
        vit.norm(right),
        "it is self.norm of [prefix; patches] + positions",
        mistakes,
    )

    vit, images, instr, mask = probes.vit_case(depth=2)
    first, second = vit.blocks
    x = embedding(vit, images)
    deaf = vit.norm(second(first(x)))
    answers.equal(
        "the output of two layers without an instruction",
        deaf,
        "each layer of self.blocks reads what the one before it wrote, self.norm comes last",
    )

    right = vit.norm(second(first(x, instr, mask), instr, mask))
    mistakes = {
        "the layers never see the instruction, each of them reads F_T (Eq. 1)": deaf,
        "the layers do not get instr_mask: padding is read as if it were words":
            vit.norm(second(first(x, instr), instr)),
    }
    answers.equal("the output of two layers", right, "each layer reads F_T (Eq. 1)", mistakes)
    demand(answers["what images on their side raise"] == "ValueError", (
        "images of a wrong size are not refused: call self._check"))


def map_by_hand(attn, x, instr, mask, gates):
    """M of Eq. 2, weight by weight."""
    c = x.shape[2] // attn.heads
    rows = torch.zeros(len(x), attn.heads, x.shape[1], x.shape[1] + instr.shape[1]).double()
    for b, h, i in itertools.product(*map(range, rows.shape[:3])):
        part = slice(h * c, (h + 1) * c)
        query = attn.q(x[b, i])[part]
        own = torch.stack([query @ attn.k(key)[part] for key in x[b]]) / math.sqrt(c)
        said = torch.stack([query @ attn.k_instr(key)[part] for key in instr[b]]) / math.sqrt(c)
        said[~mask[b]] = -torch.inf
        rows[b, h, i] = torch.cat([own.softmax(0), gates[h] * said.softmax(0)])
    return rows


def gated_attention(answers):
    attn, x, instr, mask = probes.attention_case()
    right = attention_by_hand(attn, x, instr, mask)
    zero = torch.zeros_like(attn.gate)
    plain = attention_by_hand(attn, x, instr, mask, gates=zero)
    mistakes = {
        "the scores are divided by the root of the full width d, Eq. 3 has the width c of a head":
            attention_by_hand(attn, x, instr, mask, gates=zero, width=8),
        "the scores are not divided by the root of the width of a head (Eq. 3)":
            attention_by_hand(attn, x, instr, mask, gates=zero, width=1),
    }
    answers.equal(
        "the output without an instruction",
        plain,
        "without instr it is plain self-attention of each head, then Linear_o",
        mistakes,
    )
    answers.equal(
        "the output",
        right,
        "compare with Eq. 2-4 head by head",
        attention_mistakes(attn, x, instr, mask),
    )

    shared = attention_by_hand(attn, x, instr[:1])
    answers.equal(
        "the output where one instruction serves all images",
        shared,
        "without instr_mask all tokens are real, and an instruction of batch 1 is everybody's",
    )

    kept = attention_by_hand(attn, x[:, :3], instr, gates=zero)
    mistakes = {
        "the image's mask is ignored: padded image tokens are read":
            attention_by_hand(attn, x, instr, gates=zero)[:, :3],
    }
    answers.equal(
        "the output beside padded image tokens", kept, "`mask` hides image tokens", mistakes
    )
    answers.equal(
        "the output of the first two rows",
        right[:, :2],
        "`rows` limits the queries alone, keys and values are those of all tokens",
    )

    gates = attn.gate
    mistakes = {
        "the map lacks the gate of Eq. 2":
            map_by_hand(attn, x, instr, mask, torch.ones_like(gates)),
        "the map ignores instr_mask: padding has weight":
            map_by_hand(attn, x, instr, torch.ones_like(mask), gates),
    }
    answers.equal(
        "the map",
        map_by_hand(attn, x, instr, mask, gates),
        "it is [Softmax(S), g Softmax(S')] of each head",
        mistakes,
    )


def zero_init(answers):
    layers = {"k": (8, 8), "out": (8, 8), "q": (8, 8), "v": (8, 8)}
    instructed = layers | {"k_instr": (8, 6), "v_instr": (8, 6)}
    for kind, shapes in (("with", instructed), ("without", layers)):
        names = []
        for name, shape in shapes.items():
            names += [f"{name}.bias {shape[:1]}", f"{name}.weight {shape}"]
        if kind == "with":
            names.append("gate (2,)")
        what = f"the parameters {kind} an instruction"
        given = answers[what]
        demand(given == sorted(names), (
            f"{what} should be {', '.join(sorted(names))}; they differ in "
            f"{', '.join(map(str, set(given) ^ set(names)))}"))
    answers.equal("the gate", np.zeros(2), "it starts at 0 for each head (Eq. 2)")
    answers.equal("what the instruction adds at step 0", np.zeros((2, 5, 8)), "nothing, at gate 0")

    gradient = answers.array("the gradient of the gate", (2,))
    demand((gradient != 0).all(), (
        "the gate gets no gradient, so it stays at 0 for ever: only the gate may start at zero, "
        "neither v_instr nor out"))


def text_pooling(answers):
    tokens = probes.numbers(1, 2, 4, 6)
    lengths = (4, 2)
    mean = torch.stack([row[:length].mean(0) for row, length in zip(tokens, lengths)])
    last = torch.stack([row[length - 1] for row, length in zip(tokens, lengths)])
    padded = torch.stack([row[:length].sum(0) / 4 for row, length in zip(tokens, lengths)])
    mistakes = {
        "the mean runs over the padding too: a sentence changes with its neighbours in the batch":
            tokens.mean(1),
        "the sum is divided by the padded length, divide by the number of real tokens":
            padded,
    }
    answers.equal("the pooled vector (mean)", mean, "it is the mean of the real tokens", mistakes)

    mistakes = {
        "with pooling cls it is still the mean": mean,
        "it is the last real token": last,
    }
    answers.equal("the pooled vector (cls)", tokens[:, 0], "it is the first token", mistakes)

    encoder = probes.encoder_case()
    sentences = encoder.text(["a red coat", "blue"])
    pictures = encoder._see(probes.numbers(3, 2, 3, 8, 8))
    alone = encoder.text(["blue"])
    for kind, (words, mask, pooled), project in (
        ("two sentences", sentences, encoder.from_text),
        ("two equal sentences", alone, encoder.from_text),
        ("two pictures", pictures, encoder.from_picture),
    ):
        b, t, _ = words.shape
        wide = torch.ones(b, t + 1, dtype=torch.bool)
        wide[:, 1:] = mask
        given = answers[f"mask of {kind}"]
        doubled = isinstance(given, dict) and list(given.get("shape", [])) == [2, t + 1]
        demand(b > 1 or not doubled, (
            "two equal sentences are encoded twice: one row serves the whole batch"))
        mistakes = {
            "the mask is padded at its end: the new first token is the whole, so True comes first":
                np.roll(wide.numpy(), -1, 1),
        }
        answers.equal(
            f"mask of {kind}", wide, "the whole is a real token, and comes first", mistakes
        )

        whole = pooled[:, None]
        right = project(torch.cat([whole, words], 1))
        mistakes = {
            "the whole stands behind the words, it must be the first token":
                project(torch.cat([words, whole], 1)),
        }
        answers.equal(f"tokens of {kind}", right, "they are the whole, then its parts", mistakes)
        answers.equal(f"pooled of {kind}", pooled, "it is the encoder's own vector, unprojected")
        answers.equal(f"words of {kind}", words, "they are the encoder's own, unprojected")
    demand(answers["the instruction of None"] is None, "without an instruction it gives None")


def fused(module, image_tokens, instr, masked=True, crossed=True, begin=1):
    """E_f image by image, without a mask: padding is taken away before."""
    persons = []
    wishes = []
    for i, image in enumerate(image_tokens):
        tokens = instr.tokens[i][instr.mask[i]] if masked else instr.tokens[i]
        sides = [(image[:1], tokens[begin:]), (tokens[:1], image[begin:])]
        if not crossed:
            sides = [(image[:1], image[1:]), (tokens[:1], tokens[1:])]
        read = []
        for cls, others in sides:
            x = torch.cat([cls, others])[None]
            for block in module.blocks:
                x = block(x)
            read.append(x[0, 0])
        persons.append(read[0])
        wishes.append(read[1])
    return torch.stack(persons), torch.stack(wishes)


def dual_attention(answers):
    module, image_tokens, instr = probes.fusion_case()
    person, wish = map(module.norm, fused(module, image_tokens, instr))
    own = map(module.norm, fused(module, image_tokens, instr, crossed=False))
    unmasked = map(module.norm, fused(module, image_tokens, instr, masked=False))
    with_both = map(module.norm, fused(module, image_tokens, instr, begin=0))
    mistakes = {
        "the instruction's side comes first, F_out begins with the person":
            torch.cat([wish, person], 1),
        "each CLS token reads its own side, E_f crosses them (Fig. 3a)":
            torch.cat([*own], 1),
        "the mask is ignored: padding is read as if it were words":
            torch.cat([*unmasked], 1),
        "a CLS token reads the other one too: leave that out, and its column of the mask":
            torch.cat([*with_both], 1),
        "self.norm is missing": torch.cat(fused(module, image_tokens, instr), 1),
    }
    answers.equal(
        "F_out",
        torch.cat([person, wish], 1),
        "each CLS token reads the other side's tokens without its CLS; then norm, side by side",
        mistakes,
    )

    one = instr.take([0, 0])
    right = torch.cat([*map(module.norm, fused(module, image_tokens, one))], 1)
    answers.equal(
        "F_out where one instruction serves all images",
        right,
        "an instruction of batch 1 is everybody's: see Instruction.expand",
    )


# ---- losses.py ----

def demand_single(answers, what):
    given = answers[what]
    demand("16" not in str(given), f"{what}: {given}, compute it in float32, see `full`")


def relatednesses(ids, instr, blind=False, dot=False):
    beta = torch.zeros(len(ids), len(ids)).double()
    for a, r in itertools.product(range(len(ids)), repeat=2):
        product = instr[a] @ instr[r]
        length = 1 if dot else instr[a].norm() * instr[r].norm()
        beta[a, r] = product / length if blind or ids[a] == ids[r] else 0
    return beta


def term(d1, d2, gap, margin):
    """Eq. 5 of one triplet."""
    sign = np.sign(float(gap))
    return max(0.0, float(sign * (d1 + gap * margin - d2)))


def mean_term(dist, beta, margin, triplets=None, tie=1e-6):
    """The mean of Eq. 5 over triplets (a, r1, r2); those whose betas differ by `tie` count not."""
    total = 0.0
    count = 0
    for a, r1, r2 in triplets or itertools.permutations(range(len(dist)), 3):
        gap = beta[a, r1] - beta[a, r2]
        if abs(gap) > tie:
            total += term(dist[a, r1], dist[a, r2], gap, margin)
            count += 1
    return total / max(1, count)


def adaptive_triplet(answers):
    instr, dist, beta = probes.triplet_case()
    ids = probes.IDS.tolist()
    mistakes = {
        "the identities are ignored: beta of two people is 0 (Eq. 6)":
            relatednesses(ids, instr, blind=True),
        "the instructions are not normalised: Eq. 6 has a cosine":
            relatednesses(ids, instr, dot=True),
    }
    answers.equal("beta", relatednesses(ids, instr), "compare with Eq. 6 pair by pair", mistakes)

    demand_single(answers, "beta of half precision")
    demand(answers["whether beta has a gradient"] is False, (
        "beta has a gradient: Eq. 6 is a label and must not move the instructions"))

    d1, d2, gap = probes.terms_case()
    inner = d1 - d2 + gap * 0.5
    sign = gap.sign()
    right = [term(*triplet, 0.5) for triplet in zip(d1, d2, gap)]
    mistakes = {
        "the sign of b1 - b2 is missing: the more related reference must be the nearer one":
            inner.relu(),
        "the hinge {.}_+ is missing: terms below 0 count as 0": sign * inner,
        "the margin is the same for all: Eq. 5 scales it by b1 - b2":
            (sign * (d1 - d2) + 0.5).relu(),
        "d1 and d2 are exchanged: the more related reference must be the nearer one":
            (sign * (d2 - d1 + gap * 0.5)).relu(),
    }
    answers.equal(
        "the terms of Eq. 5", right, "compare with Eq. 5 for both signs of b1 - b2", mistakes
    )

    every = list(itertools.product(range(7), repeat=3))
    not_first = [(a, r1, r2) for a, r1, r2 in every if a != r1]
    not_second = [(a, r1, r2) for a, r1, r2 in every if a != r2]
    mistakes = {
        "triplets with b1 = b2 are counted: they say nothing and must not thin the mean":
            mean_term(dist, beta, 0.5, tie=-1),
        "triplets whose b1 and b2 differ by less than TIE are counted":
            mean_term(dist, beta, 0.5, tie=0),
        "an image is a reference of itself: a, r1 and r2 are three different images":
            mean_term(dist, beta, 0.5, every),
        "r1 may be the anchor itself: a, r1 and r2 are three different images":
            mean_term(dist, beta, 0.5, not_second),
        "r2 may be the anchor itself: a, r1 and r2 are three different images":
            mean_term(dist, beta, 0.5, not_first),
    }
    answers.equal(
        "the mean over all triplets",
        mean_term(dist, beta, 0.5),
        "it is the mean of Eq. 5 over ordered triplets of three different images with b1 != b2",
        mistakes,
    )
    answers.equal("the mean where no triplet counts", 0.0, "it is 0, not a division by zero")


def hard_triplet_list(dist, far_ones, near_ones, far=max, near=min):
    """(a, the farthest of far_ones, the nearest of near_ones) of the anchors that have both."""
    triplets = []
    for a, row in enumerate(dist.tolist()):
        fars = [r for r, is_one in enumerate(far_ones[a]) if is_one]
        nears = [r for r, is_one in enumerate(near_ones[a]) if is_one]
        if fars and nears:
            triplets.append((a, far(fars, key=row.__getitem__), near(nears, key=row.__getitem__)))
    return triplets


def hard_mining(answers):
    dist, beta, far_ones, near_ones = probes.hard_case()

    def mean(far_ones, near_ones, tie=1e-6, **picks):
        triplets = hard_triplet_list(dist, far_ones, near_ones, **picks)
        return mean_term(dist, beta, 0.5, triplets, tie)

    counted = mean(far_ones, near_ones)
    anchors = len(hard_triplet_list(dist, far_ones, near_ones))
    mistakes = {
        "r1 is the nearest of far_ones, the hard one is the farthest":
            mean(far_ones, near_ones, far=min),
        "r2 is the farthest of near_ones, the hard one is the nearest":
            mean(far_ones, near_ones, near=max),
        "anchors with b1 = b2 are counted: they say nothing and must not thin the mean":
            mean(far_ones, near_ones, tie=-1),
        "the mean runs over all anchors, only those with both references count":
            mean(far_ones, near_ones, tie=-1) * anchors / len(dist),
    }
    answers.equal(
        "the mean of hard_pair",
        counted,
        "r1 is the farthest of far_ones, r2 the nearest of near_ones; "
        "anchors without either, or with b1 = b2, do not count",
        mistakes,
    )

    def by_instruction(allowed, tie=1e-6):
        most = torch.zeros_like(allowed)
        least = torch.zeros_like(allowed)
        for a, row in enumerate(beta):
            references = allowed[a].nonzero()[:, 0].tolist()
            for r in references:
                most[a, r] = abs(row[r] - max(row[references])) <= tie
                least[a, r] = abs(row[r] - min(row[references])) <= tie
        return most, least

    equal = probes.FOUR[:, None] == probes.FOUR
    same = equal & ~torch.eye(7, dtype=torch.bool)
    most, least = by_instruction(same)
    identity = mean(same, ~equal)
    instruction = mean(most, least)
    mistakes = {
        "the triplets by instruction are missing": identity,
        "the triplets by identity are missing": instruction,
        "an image is a reference of itself":
            mean(equal, ~equal) + mean(*by_instruction(equal)),
        "betas that differ by less than TIE are equally alike: of them the farthest, the nearest":
            identity + mean(*by_instruction(same, tie=0)),
    }
    answers.equal(
        "the loss of hard_triplets",
        identity + instruction,
        "it is the mean over triplets by identity plus the mean over triplets by instruction",
        mistakes,
    )


def contrast_by_hand(image, text, targets, temperature, ways=(1, 1)):
    total = 0.0
    for (left, right), share in zip(((image, text), (text, image)), ways):
        for i in range(len(left)):
            logits = [float(left[i] @ other) / temperature for other in right]
            log_sum = math.log(sum(map(math.exp, logits)))
            total += share * sum(t * (log_sum - s) for t, s in zip(targets[i], logits)) / len(left)
    return total / 2


def contrast(answers):
    image, text = probes.contrast_case()
    ids = probes.IDS
    equal = (ids[:, None] == ids).double()
    shared = (equal / equal.sum(1, keepdim=True)).tolist()
    alone = torch.eye(7).tolist()
    alone_loss = contrast_by_hand(image, text, alone, 0.5)
    mistakes = {
        "only images look for texts, Eq. 8 has both directions":
            contrast_by_hand(image, text, alone, 0.5, (2, 0)),
        "only texts look for images, Eq. 8 has both directions":
            contrast_by_hand(image, text, alone, 0.5, (0, 2)),
        "both directions are added, take their mean": alone_loss * 2,
        "the similarities are not divided by the temperature":
            contrast_by_hand(image, text, alone, 1),
        "the similarities are multiplied by the temperature, divide by it":
            contrast_by_hand(image, text, alone, 2),
    }
    answers.equal(
        "L_cl where every image has one sentence",
        alone_loss,
        "it is the cross-entropy of similarity / temperature, averaged over both directions",
        mistakes,
    )

    mistakes = {
        "only its own sentence is an image's positive: all sentences of one identity are":
            contrast_by_hand(image, text, alone, 0.2),
        "the target does not sum to 1: positives share it equally":
            contrast_by_hand(image, text, equal.tolist(), 0.2),
    }
    answers.equal(
        "L_cl",
        contrast_by_hand(image, text, shared, 0.2),
        "the target of an image is shared equally by all sentences of its identity",
        mistakes,
    )


    demand_single(answers, "L_cl of half precision")
    demand(answers["whether L_cl has a gradient"] is True, (
        "the temperature gets no gradient, it is learned"))


def hard_negatives(answers):
    judge_draw(answers)
    judge_partners(answers)
    judge_matching(answers)


def judge_draw(answers):
    b = probes.DRAWS
    drawn = answers.array("the columns of draw", (b,), "i")
    again = answers.array("the columns of draw, drawn again", (b,), "i")
    demand(((0 <= drawn) & (drawn < 5)).all(), "draw gives columns that do not exist")
    demand((drawn == again).all(), (
        "draw gives other columns for an equal generator: all random numbers must come from it"))

    counts = np.bincount(drawn, minlength=5) / b
    listed = ", ".join(f"{count:.2f}" for count in counts[:3])
    demand(counts[3:].sum() == 0, "draw gives columns whose chance is 0")
    demand((counts[:3] > 0).sum() == 3, "draw always takes the likeliest column: it is by chance")
    demand(np.abs(counts - [0.5, 0.3, 0.2, 0, 0]).max() < 0.06, (
        f"draw does not follow the chances: 0.5, 0.3, 0.2 became {listed}"))


def judge_partners(answers):
    similarity, ids = probes.negatives_case()
    equal = ids[:, None] == ids

    def chances(logits):
        return logits.masked_fill(equal, -torch.inf).softmax(1).numpy()

    for what, logits in (
        ("how often each image draws each text", similarity),
        ("how often each text draws each image", similarity.T),
    ):
        counts = answers.array(what, (5, 5))

        def are(shares, counts=counts):
            return np.abs(counts - shares).max() < 0.07

        demand(counts[equal.numpy()].sum() == 0, (
            f"{what}: some are of the same identity, which are no negatives"))
        if are(chances(logits)):
            continue
        demand(not are(chances(torch.zeros_like(logits))), (
            f"{what}: all equally often, the more similar ones must come more often"))
        demand(not are(chances(logits.T)), (
            f"{what}: rows and columns are exchanged, similarity is image x text"))
        demand(counts.max(1).min() < 1, f"{what}: always the hardest, it is drawn by chance")
        raise Wrong(f"{what}: not in proportion to the softmax of the similarity")


def judge_matching(answers):
    positive = probes.numbers(2, 4, 2)
    negative = probes.numbers(3, 6, 2)

    def loss(true, false):
        true = softplus(true[:, 0] - true[:, 1])
        false = softplus(false[:, 1] - false[:, 0])
        return torch.cat([true, false]).mean()

    mistakes = {
        "the labels are exchanged: [0, 1] is a match (Eq. 8)":
            loss(positive.flip(1), negative.flip(1)),
    }
    answers.equal(
        "L_match", loss(positive, negative), "the mean over all pairs of -log of the right label",
        mistakes,
    )
    demand_single(answers, "L_match of half precision")


# ---- data.py, evaluate.py, reid/ ----

def batches_of(answers, what, count, size=8):
    """Batches of P x K = `size` indices, or Wrong."""
    batches = answers[what]
    demand(isinstance(batches, list), f"{what} are no list")
    for batch in batches:
        demand(isinstance(batch, list) and len(batch) == size, (
            f"{what}: a batch is a list of P x K = {size} indices"))
        demand(all(type(i) is int and 0 <= i < count for i in batch), (
            f"{what}: a batch holds indices of records, this one holds {batch[:2]!s:.60}"))
    return batches


def sampler(answers):
    records = probes.sampler_case()
    batches = batches_of(answers, "the batches", len(records))
    epochs = []
    for step, batch in enumerate(batches):
        pids = [records[i].pid for i in batch]
        first, second = pids[0], pids[4]
        demand(pids == [first] * 4 + [second] * 4, (
            "the 4 images of a person do not stand side by side"))
        demand(first != second, "a batch holds one person twice: P different identities")
        if step % 3 == 0:
            epochs.append([])
        epochs[-1] += [first, second]
    for people in epochs:
        demand(len(set(people)) == 6, (
            "a person comes twice in an epoch: an epoch is a permutation of the identities"))
    demand(len(set(map(tuple, epochs))) > 1, "every epoch has the same order: shuffle each anew")
    backwards = batches_of(answers, "the batches, the last one first", len(records))
    demand(batches == backwards[::-1], (
        "a batch depends on those asked for before: it is a function of (seed, step) alone"))
    other = batches_of(answers, "the batches of another seed", len(records))
    demand(batches != other, "another seed gives the same batches")
    demand(people_of(batches, records) != people_of(other, records), (
        "another seed gives the same order of people: shuffle by self.seed and the epoch"))
    pairs = zip(batches, other)
    alike = [one[:4] == two[:4] for one, two in pairs if records[one[0]].pid == records[two[0]].pid]
    demand(not all(alike), (
        "another seed gives the same images of a person: draw by self.seed and the step"))
    batches_of(answers, "the batches of K = 3", len(records), 6)

    shown = {}
    for batch in batches:
        for images in (batch[:4], batch[4:]):
            pid = records[images[0]].pid
            shown.setdefault(pid, []).append(images)
            modalities = [records[i].modality for i in images]
            demand(pid != 5 or modalities.count("ir") == 2, (
                "K is not divided evenly among the modalities of a person"))
            demand(pid in (5, 6) or len(set(images)) == 4, (
                "an image comes twice though the person has others"))
            outfits = {records[i].clothes for i in images}
            demand(pid in (5, 6) or len(outfits) == (2 if pid % 2 else 3), (
                "an outfit comes twice before each was seen once"))
    demand(all(len(set(map(tuple, rows))) > 1 for pid, rows in shown.items() if pid < 5), (
        "a person's images are the same in every epoch: draw them anew"))


def people_of(batches, records):
    return [records[i].pid for batch in batches for i in batch]


def erasing(answers):
    h, w = probes.SIZE
    answers.array("the mask of two images", (2, 1, h, w), "b")
    demand(answers["whether equal seeds erase alike"] is True, (
        "an equal generator erases something else: all random numbers must come from it"))
    half = answers.array("the erased rectangles", (400, 5), "i")
    share = (half[:, 4] > 0).mean()
    demand(share not in (0, 1), (
        "with probability 0.5 all images are erased or none: each decides by itself"))
    demand(abs(share - 0.5) < 0.12, (
        f"with probability 0.5, {share:.0%} of the images are erased"))
    always = answers.array("the rectangles at probability 1", (2000, 5), "i")
    demand((always[:, 4] > 0).all(), "with probability 1 some images are not erased")

    top, left, height, width, count = always.T
    demand((count == height * width).all(), "what is erased is not a filled rectangle")
    demand(len(np.unique(always, axis=0)) > 40, "all images have the same rectangle")
    area = count / (h * w)
    slack = (height + width) / (h * w)  # of rounding or cutting both sides
    demand((area < 0.33 + slack).all(), "a rectangle has more than 33 % of the area")
    demand((area > 0.02 - slack).all(), "a rectangle has less than 2 % of the area")
    demand(area.min() < 0.06 and area.max() > 0.27, (
        f"areas from {area.min():.0%} to {area.max():.0%}, they should fill 2 to 33 %"))
    tall = (height - 0.5) / (width + 1)
    flat = (height + 1) / (width - 0.5)
    demand((tall < 3.3).all() and (flat > 0.3).all(), (
        "a rectangle is higher than 3.3 or flatter than 0.3 times its width"))
    aspect = height / width
    demand(aspect.min() < 0.6 and aspect.max() > 2, (
        f"heights of {aspect.min():.1f} to {aspect.max():.1f} times the width, they should fill "
        "0.3 to 3.3"))
    edges = {
        "first row": top == 0,
        "last row": top + height == h,
        "first column": left == 0,
        "last column": left + width == w,
    }
    for edge, reached in edges.items():
        demand(reached[width < w].mean() > 0.004, (
            f"the {edge} is hardly ever erased: a rectangle may lie anywhere"))


def ranks_by_hand(dist, hits, removed, ties="earlier"):
    ranks = []
    for hit in hits:
        ahead = 0
        for i, d in enumerate(dist):
            tied = d == dist[hit] and {
                "earlier": i < hit, "later": i > hit, "none": False, "all": i != hit}[ties]
            ahead += not removed[i] and (d < dist[hit] or tied)
        ranks.append(1 + ahead)
    return np.array(sorted(ranks))


def average_precision(answers):
    dist, positive, removed = probes.ranking_case()
    untied = np.argsort(np.argsort(dist, 1, kind="stable"), 1) / 10
    hits = np.flatnonzero(positive[0] & ~removed[0])
    nothing = np.zeros_like(removed[0])
    for kind, row in (("different distances", untied[0]), ("ties", dist[0])):
        right = ranks_by_hand(row, hits, removed[0])
        mistakes = {
            "ranks begin at 0, the first is 1": right - 1,
            "removed images still take a place in the ranking":
                ranks_by_hand(row, hits, nothing),
            "the farthest image is ranked first": ranks_by_hand(-row, hits, removed[0]),
            "a tie counts for the hit: the earlier image of the gallery is ahead":
                ranks_by_hand(row, hits, removed[0], "none"),
            "a tie counts against the hit, even a later image of the gallery":
                ranks_by_hand(row, hits, removed[0], "all"),
            "among ties the later image of the gallery is ahead, it must be the earlier one":
                ranks_by_hand(row, hits, removed[0], "later"),
        }
        answers.equal(
            f"the ranks of the hits with {kind}",
            right,
            "count the images ahead of each hit that are not removed, ascending from 1",
            mistakes,
        )

    hits = np.flatnonzero(positive[2] & ~removed[2])
    nearest = min(hits, key=lambda hit: (dist[2][hit], hit))

    def people_ahead(removed):
        ahead = []
        for i, d in enumerate(dist[2]):
            if not removed[i] and (d, i) < (dist[2][nearest], nearest):
                ahead.append(probes.PEOPLE[i])
        return ahead

    ahead = people_ahead(removed[2])
    people = set(ahead)
    mistakes = {
        "images are counted for the rank of a person, a person with several counts once":
            1 + len(ahead),
        "removed images count for the rank of a person": 1 + len(set(people_ahead(nothing))),
        "the hit's own person counts too, by an image ahead of the hit that is none":
            1 + len(people - {probes.PEOPLE[nearest]}),
    }
    answers.equal(
        "the rank of a person",
        1 + len(people),
        "it is 1 + the number of people with an image ahead of the nearest hit",
        mistakes,
    )

    def figures(i):
        hits = np.flatnonzero(positive[i] & ~removed[i])
        ranks = ranks_by_hand(dist[i], hits, removed[i])
        precisions = [(k + 1) / rank for k, rank in enumerate(ranks)]
        ap = sum(precisions) / len(hits)
        return [ap, len(hits) / ranks[-1], ranks[0], len(hits), int((~removed[i]).sum())]


    meanings = {  # what the others depend on comes first
        3: "hits is the number of hits, of which a removed image is none",
        4: "ranked is the number of gallery images that are not removed",
        2: "first_rank is the rank of the nearest hit",
        0: "ap is the mean over the hits of the precision at their ranks: hits so far / rank",
        1: "inp is the number of hits / rank of the last one",
    }
    given = answers.array("the figures of a query", (5,))
    for i, meaning in meanings.items():
        value = given[i]
        right = figures(1)[i]
        is_right = math.isclose(value, right, rel_tol=1e-6)
        demand(is_right, f"{meaning}; got {value:.3f}, expected {right:.3f}")
    demand(answers["the hits of a query without one"] == 0, "a query without a hit has 0 hits")
    demand(answers["whether it has NaN"] is True, (
        "a query without a hit: ap, inp and first_rank are NaN"))
    demand(answers["what nothing but such queries raises"] == "UserError", (
        "summary raises a UserError where no query has a hit"))

    rows = np.array([figures(i) for i in range(5)])
    mistakes = {
        "a query without a hit counts as 0: it must not count": rows[:, 0].sum() / 6,
    }
    answers.equal(
        "mAP", rows[:, 0].mean(), "it is the mean over the queries that have a hit", mistakes
    )
    answers.equal("mINP", rows[:, 1].mean(), "it is the mean over the queries that have a hit")

    firsts = rows[:, 2]
    cmc = [(firsts <= k).mean() for k in range(1, 13)]
    at_rank = [(firsts == k).mean() for k in range(1, 13)]
    mistakes = {
        "cmc is not cumulative: a hit at rank 1 is a hit among the first 5 too":
            np.array(at_rank),
        "a query without a hit counts in the CMC: it must not": np.array(cmc) * 5 / 6,
    }
    answers.equal(
        "cmc", np.array(cmc), "cmc[k-1] is the share of queries with first rank <= k", mistakes
    )

    demand(answers["queries"] == 5, "queries is the number of those with a hit")


def protocols(answers):
    query, gallery = probes.protocol_case()
    left_out = {
        "general": lambda r: r.cam == 1,
        "cc": lambda r: r.cam == 1 or r.clothes == query.clothes,
        "sc": lambda r: r.cam == 1 or r.clothes != query.clothes,
    }
    for name, rule in left_out.items():
        given = answers.array(f"what {name} leaves out", (1, len(gallery)), "b")
        for record, is_removed in zip(gallery, given[0]):
            right = record.junk or record.pid == query.pid and rule(record)
            demand(is_removed == right, (
                f"{name} {'keeps' if right else 'leaves out'} {in_words(record, query)}"))

        hits = np.array([[record.pid == query.pid for record in gallery]])
        answers.equal(f"the hits of {name}", hits, "protocol.positive says it, removed or not")


def in_words(record, query):
    who = "the query's person" if record.pid == query.pid else "a stranger"
    cam = {query.cam: "the query's camera", None: "an unknown camera"}
    clothes = "the query's" if record.clothes == query.clothes else "other"
    junk = ", marked as junk" if record.junk else ""
    return f"{who} before {cam.get(record.cam, 'another camera')} in {clothes} clothes{junk}"


def resized(positions, source, target, mode, aligned=False):
    """Each new cell as a weighted sum of the old ones around its centre."""
    def weight(x):
        x = abs(x)
        if mode == "bilinear":
            return max(0.0, 1 - x)
        if x <= 1:
            return 1.25 * x ** 3 - 2.25 * x ** 2 + 1
        return -0.75 * x ** 3 + 3.75 * x ** 2 - 6 * x + 3 if x < 2 else 0.0

    def mixture(old, new):
        rows = torch.zeros(new, old, dtype=torch.float64)
        for i in range(new):
            centre = (i + 0.5) * old / new - 0.5
            if aligned:
                centre = i * (old - 1) / max(1, new - 1)
            if mode == "bilinear":
                centre = max(0.0, centre)
            for k in range(math.floor(centre) - 1, math.floor(centre) + 3):
                rows[i, min(max(k, 0), old - 1)] += weight(centre - k)
        return rows

    down = mixture(source[0], target[0])
    across = mixture(source[1], target[1])
    cells = []
    for row, column in itertools.product(range(target[0]), range(target[1])):
        cell = 0
        for i, k in itertools.product(range(source[0]), range(source[1])):
            cell = cell + down[row, i] * across[column, k] * positions[0, i * source[1] + k]
        cells.append(cell)
    return torch.stack(cells)[None]


def resize_positions(answers):
    positions = probes.numbers(1, 1, 6, 4)
    answers.equal("an equal grid", positions, "it stays as it is")

    for mode in ("bilinear", "bicubic"):
        for size, target in (("larger", (5, 4)), ("smaller", (2, 2))):
            what = f"a {size} grid ({mode})"
            right = resized(positions, (3, 2), target, mode)
            other = "bicubic" if mode == "bilinear" else "bilinear"
            turned = positions.reshape(1, 2, 3, 4).transpose(1, 2).reshape(1, 6, 4)
            wrong = resized(turned, (3, 2), target, mode)
            mistakes = {
                f"the mode is ignored: this is {other}":
                    resized(positions, (3, 2), target, other),
                "the grid is read column by column, positions stand row by row": wrong,
                "corners are aligned: a position stands for an area, align_corners is False":
                    resized(positions, (3, 2), target, mode, aligned=True),
            }
            answers.equal(what, right, "rows before columns, in and out, pixels as areas", mistakes)
