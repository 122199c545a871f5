"""The exercises, a row each. A new exercise is a row here, a function of its name in probes.py that
calls what the student wrote, and one in checks.py that judges the answers.
"""

from typing import NamedTuple


class Exercise(NamedTuple):
    """What a student is asked. The docstrings stand in the hand-out in place of the code's own."""

    name: str
    title: str
    question: str  # in the words of the paper, for the student's README
    functions: dict  # module.function or module.Class.method, to be written -> its docstring
    points: int
    minutes: int
    docstrings: dict = {}  # what else has a docstring that tells the answer -> another one
    trained: bool = False  # graded by the last.pt that is handed in, and only if named

    @property
    def function(self):
        """The name of its function in probes.py and in checks.py."""
        return self.name.replace("-", "_")


EXERCISES = (
    Exercise(
        name="patches",
        title="patches and positions",
        question="A vision transformer (Dosovitskiy et al. 2021) sees a sentence of patches. Cut "
        "the image into patches, put the learned tokens before them, say where each patch was, and "
        "send all through the layers of Eq. 1, each of which reads the instruction F_T.",
        functions={
            "model.ViT.forward": """\
images (b 3 H W), instr (b or 1, t, instr_dim), instr_mask (b or 1, t) -> (b n d).

self.embed gives a grid (b d rows columns); the patches are read row by row. The tokens of
self.prefix stand before them, and each of all n tokens has its own self.pos. Layers:
self.blocks, called as Block.forward says; then self.norm. self._check(images) refuses a
wrong size; self.checkpointing need not be looked at.""",
        },
        points=5,
        minutes=20,
    ),
    Exercise(
        name="gated-attention",
        title="the gated attention of a zero-init layer, Eq. 2-4",
        question="The image tokens attend to themselves and to the instruction: Eq. 3 makes two "
        "score maps S and S', Eq. 2 an attention map M of both with a gate g, Eq. 4 the output. "
        "How many softmaxes are there, and what does the gate multiply?",
        functions={
            "model.EditingAttention.forward": """\
Eq. 2-4. x (b n d), instr (b or 1, t, instr_dim) -> (b n d).

instr_mask (b or 1, t) and mask (b n) bool, True = a real token: nobody reads the others.
rows: compute the output of the first `rows` tokens only, (b rows d); None = of all.
self.gate (h) is used as it stands. Without instr it is plain self-attention.""",
            "model.EditingAttention.maps": """\
M of Eq. 2, (b h n n+t): for each head and image token its weights on the n image tokens,
then those on the t instruction tokens. For pictures. Arguments as in forward.""",
        },
        docstrings={
            "model.EditingAttention": """\
Attention of the image tokens to themselves and, through a gate, to the instruction: Eq. 2-4.

Linear layers: q, k, v and out of the image tokens, k_instr and v_instr of the instruction (K'
and V'). With instr_dim None the second branch does not exist.""",
        },
        points=10,
        minutes=45,
    ),
    Exercise(
        name="zero-init",
        title="the promise of a zero-init layer",
        question="Sec. 4.2 calls F_l a zero-init transformer layer: the first step of training "
        "must see exactly the pre-trained ViT, whatever the instruction says, and yet learn from "
        "it. What starts at zero, and what must not?",
        functions={
            "model.EditingAttention.__init__": """\
Linear layers with biases: self.q, k, v and out, dim to dim; self.k_instr and self.v_instr,
instr_dim to dim. The parameter self.gate (heads) is one number for each head. With instr_dim
None these last three do not exist. self.heads is read by _split.""",
        },
        points=5,
        minutes=15,
    ),
    Exercise(
        name="adaptive-triplet",
        title="the adaptive triplet loss, Eq. 5-6",
        question="Eq. 6 says how related two images are by their identities and instructions, "
        "Eq. 5 turns the difference of two relatednesses into the order of two distances and into "
        "a margin. Which triplets say nothing?",
        functions={
            "losses.relatedness": """\
beta of Eq. 6 between all pairs, ids (b), instr (b k) -> (b b). No gradient flows into instr.""",
            "losses.triplet_terms": """\
Eq. 5 for triplets of any shape: an anchor is at distance d1 of its reference r1 and d2 of
r2; gap is b1 - b2. Returns a term for each triplet.""",
            "losses.ordered_triplets": """\
Eq. 5 for the ordered triplets [a, r1, r2] and which of them count, (b b b) each, the latter bool:
three different images whose b1 and b2 differ by more than TIE; dist, beta (b b). No loops.""",
        },
        points=15,
        minutes=60,
    ),
    Exercise(
        name="hard-mining",
        title="hard triplets for Eq. 5",
        question="The released code mines hard triplets (Hermans et al. 2017). Take two for each "
        "anchor: one about who it is, one about what the instruction says.",
        functions={
            "losses.hard_triplets": """\
Eq. 5 for two triplets per anchor; dist, beta (b b), ids (b) -> the sum of both means.

1. r1 the farthest image of the same identity, r2 the nearest of another.
2. Both of the same identity: r1 the one with the most alike instruction, r2 the one with the
   least alike (up to TIE); where several are equally alike, the farthest and the nearest.
An image is no reference of itself.""",
            "losses.hard_pair": """\
Mean of Eq. 5 over the anchors: r1 is the farthest of far_ones, r2 the nearest of near_ones,
both (b b) bool. Anchors that lack one of them, or whose b1 and b2 differ by no more than
TIE, do not count; dist, beta (b b) -> scalar.""",
        },
        points=10,
        minutes=40,
    ),
    Exercise(
        name="text-pooling",
        title="the instruction encoder E_i: pooling and masks",
        question="Sec. 4.1: a sentence becomes instruction tokens. Sentences of a batch differ in "
        "length; padding must leave no trace in the vector that stands for the whole sentence, and "
        "the whole comes first, then its words.",
        functions={
            "model.TextEncoder._pool": """\
tokens (b t k), mask (b t) bool, True = a real token -> (b k): by self.pooling the mean of the
real tokens ("mean") or the first token ("cls").""",
            "model.InstructionEncoder.forward": """\
what: b sentences, or pictures (b 3 h w), normalised -> Instruction; None -> None.

self.text(sentences) and self._see(pictures) give words (b t k), their mask and the pooled
vector (b k). The tokens are the pooled vector and then the words, all through from_text or
from_picture; their mask has t+1 columns. Pooled vector and words stay unprojected beside
them. Where all sentences are equal, only one is encoded and the batch of the result is 1.""",
        },
        points=10,
        minutes=30,
    ),
    Exercise(
        name="dual-attention",
        title="the attention module E_f, Fig. 3a",
        question="E_f lets each side's CLS token read the tokens of the other side without the CLS "
        "of that side: [CLS_image; instruction tokens] and [CLS_instruction; image tokens] go "
        "through the same layers. F_out is what became of both CLS tokens, the person's first.",
        functions={
            "model.AttentionModule.forward": """\
image_tokens (b n d), CLS first; instr an Instruction of b or 1, its first token the CLS ->
F_out (b 2d). Each CLS reads the tokens and the mask of the other side without the other CLS.""",
            "model.AttentionModule._attend": """\
cls (b 1 d) and tokens (b m d) in one row through self.blocks and self.norm -> the new cls
(b d). mask (b m) bool, True = a real token, or None: all are.""",
        },
        points=10,
        minutes=30,
    ),
    Exercise(
        name="contrast",
        title="the contrast of Eq. 8",
        question="L_cl of Eq. 8 pulls an image to its sentence and pushes it from those of others, "
        "in both directions. A batch holds several photos of a person: all their sentences are "
        "right answers, and share the target equally.",
        functions={
            "losses.contrastive": """\
L_cl of Eq. 8, the mean of both directions. image_feats, text_feats (b d) L2-normalised,
ids (b), temperature a number or scalar tensor, which is learned -> scalar.""",
        },
        points=10,
        minutes=25,
    ),
    Exercise(
        name="hard-negatives",
        title="hard negatives and the matching of Eq. 8",
        question="L_match of Eq. 8 tells true pairs from false ones. As in ALBEF (Li et al. 2021) "
        "a false partner is drawn by chance, the more often the more similar it is, and is never "
        "of the same identity.",
        functions={
            "losses.hard_negatives": """\
For each image a text, and for each text an image, of another identity, drawn in proportion
to the softmax of the similarity over those that are allowed.

similarity (b b) image x text logits, ids (b) -> index of a text (b), index of an image (b).
No gradient is needed.""",
            "losses.draw": """\
One column of each row, chances (b m) -> (b) long, each in proportion to its chance. All
random numbers come from `generator`.""",
            "losses.matching": """\
L_match of Eq. 8: binary cross-entropy over [no match, match], true pairs and false ones.

positive_logits (b 2), negative_logits (m 2) -> scalar, the mean over all b + m pairs.""",
        },
        points=10,
        minutes=35,
    ),
    Exercise(
        name="sampler",
        title="the P x K sampler, Sec. 5.1",
        question="A batch of 32 x 4: 32 identities with 4 images each. It must be a function of "
        "(seed, step) alone, so that a run resumes at any step without a history.",
        functions={
            "data.PKSampler.batch": """\
The P*K indices of a step, the K of a person side by side; P is self.ids_per_batch.

An epoch is a permutation of self.people in steps of P, a new one for each epoch; where P does
not divide it, the last ones have no place in this epoch. Seed every random.Random by self.seed,
a str, and the epoch or step.""",
            "data.PKSampler._images_of": """\
K = self.images_per_id indices of a person. self.people[pid] holds a list of indices for each
modality: K is divided evenly among them; it does not matter which ones get one more.""",
            "data.PKSampler._pick": """\
`count` indices of a group in random order: no image twice before each was taken once, and no
outfit (self.clothes[index]) twice before each was seen once.""",
        },
        docstrings={
            "data.PKSampler": """\
P identities x K images (Sec. 5.1: 32 x 4). `batch(step)` depends on seed and step alone.

records: training Records. seed: a str. UserError if there are fewer than P identities.""",
        },
        points=15,
        minutes=45,
    ),
    Exercise(
        name="erasing",
        title="random erasing",
        question="Sec. 5.1 erases at random (Zhong et al. 2017): with a probability, a rectangle "
        "anywhere in the image, of 2 to 33 % of its area and a height of 0.3 to 3.3 times its "
        "width.",
        functions={
            "data.erasing": """\
bool (b 1 H W), True in the erased rectangle of each image; size is (H, W).

Every image is erased by itself with probability `prob`, and the rectangle lies inside of it,
anywhere; its sides are rounded or cut to whole pixels.
All random numbers come from `generator`, on `device`. No loop over images.""",
        },
        points=10,
        minutes=45,
    ),
    Exercise(
        name="average-precision",
        title="mAP and CMC by counting ranks",
        question="The paper reports mAP and Top-1, the CMC at 1. The rank of a hit is one more than "
        "the number of gallery images ahead of it; the average precision is the mean, over the "
        "hits, of the precision at their ranks; CMC at k is the share of queries with a hit among "
        "the first k.",
        functions={
            "evaluate.hit_ranks": """\
Array of the ranks, ascending from 1, of the gallery items `hits` (indices) among those not
removed. All arrays are NumPy's.

dist (g,), smaller is nearer; removed (g,) bool: not in the ranking at all. Where distances
tie, the earlier item of the gallery is ahead.""",
            "evaluate.query_figures": """\
QueryFigures of one query; dist, positive, removed (g,). A removed image is no hit.

inp is the number of hits / rank of the last one. Without a hit ap, inp and first_rank are NaN
and hits is 0. ap_window and gallery_ids need not be looked at.""",
            "evaluate.person_rank": """\
The first rank of a hit where people are ranked, not images (LLCM): 1 + the number of people
who have an image ahead of the nearest hit, be it the hit's own person. hits (indices),
gallery_ids (g,); ties and removed as in hit_ranks.""",
            "evaluate.summary": """\
A dict of means over the QueryFigures of the queries that have a hit: "mAP", "mINP", "cmc" (an
array, (gallery_size,), with cmc[k-1] = rank-k) and "queries" (how many those are).
UserError if there is none.""",
        },
        docstrings={
            "evaluate.ranking_metrics": """\
Full-ranking mAP, mINP and CMC. Ties keep gallery order; a query without a hit counts not.

dist (q g) float, smaller is nearer; positive (q g) bool: a hit; removed (q g) bool: deleted
from the ranking. ap_window, gallery_ids: as the released code and LLCM have them.

Returns what summary does. UserError if nothing can be ranked.""",
        },
        points=15,
        minutes=50,
    ),
    Exercise(
        name="protocols",
        title="LTCC's three protocols",
        question="A query of LTCC (Qian et al. 2020) is ranked three times: in general, against "
        "other clothes only (cc), against the same clothes only (sc). A protocol is what it leaves "
        "out of a ranking. Only photos of the query's person are ever left out, and junk.",
        functions={
            "reid.protocols.same_camera": """\
q columns (q 1), g columns (g) -> (q g) bool: left out in general. The person, seen by the
camera of the query.""",
            "reid.protocols.same_camera_or_clothes": """\
q, g -> (q g) bool: left out of a ranking against other clothes (cc).""",
            "reid.protocols.same_camera_or_other_clothes": """\
q, g -> (q g) bool: left out of a ranking against the same clothes (sc).""",
            "reid.protocols.masks": """\
positive, removed, both (q g) bool, by the functions of those names of a Protocol. q, g:
`columns`. Junk (g.junk, bool) is always removed. Where removed is True, positive may be too.""",
        },
        points=5,
        minutes=20,
    ),
    Exercise(
        name="resize-positions",
        title="position embeddings for another grid",
        question="Published ViTs were trained on square images, people are twice as high as wide: "
        "the position embeddings of a grid are an image of it and are resized like one.",
        functions={
            "reid.weights.resize_grid": """\
Position embeddings (1 n d) of a grid `source` (rows, columns), row by row, for a grid
`target`. mode: "bilinear" or "bicubic", pixels as areas (align_corners False); an equal grid
stays as it is.""",
        },
        points=5,
        minutes=15,
    ),
    Exercise(
        name="make-a-model-listen",
        title="make a model listen",
        question="Train language-instructed re-identification (li): `python train.py --task li "
        "--steps 400 --name listen`, about two minutes with all functions written, then put "
        "runs/listen/last.pt beside this README. It is asked about drawn people that nobody has "
        "trained on: the mAP under the right description must be {mAP:.0%} or more, and {gap:.0%} or "
        "more above that under a description of what the query wears, which no model that ignores "
        "sentences can reach.",
        functions={},
        points=15,
        minutes=30,
        trained=True,
    ),
)
