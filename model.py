"""IRM, the Instruct-ReID model (Sec. 4, Fig. 3): an instruction edits the features that a ViT
extracts from a photo of a person.

E_i is `InstructionEncoder`, E_e is `ViT`, E_f is `AttentionModule`; Fig. 3 is
`InstructReID.forward`.
Dimension letters: b batch, n image tokens (CLS first), t instruction tokens, d width, h heads,
c width of one head, k width of the pooled instruction.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import nn
from torch.utils.checkpoint import checkpoint


class Instruction(NamedTuple):
    """F_T, the output of the instruction encoder. b is 1 if all images share one sentence."""

    tokens: torch.Tensor  # (b t d), in the width of E_e; the first represents the whole
    mask: torch.Tensor  # (b t) bool, True = a real token
    pooled: torch.Tensor  # (b k), pooled by the encoder; their cosines are beta of Eq. 6
    encoded: torch.Tensor  # (b t-1 k), the encoder's tokens as they are, for ALBEF's E_f

    def expand(self, batch):
        """Repeats a shared instruction for each image of a batch; b instructions stay."""
        return Instruction(*(part.expand(batch, *part.shape[1:]) for part in self))

    def take(self, index):
        """The instructions at index (m), in that order."""
        return Instruction(*(part[index] for part in self))

    @staticmethod
    def cat(instructions):
        """Concatenates batches of instructions that have the same number of tokens."""
        return Instruction(*(torch.cat(parts) for parts in zip(*instructions)))

    def join(self, picture):
        """Concatenates these sentences with one picture each: the tokens, and the normalised
        pooled vectors, so that beta of Eq. 6 is the mean of both cosines."""
        sentence = self.expand(picture.tokens.shape[0])
        pooled = [F.normalize(part.pooled, dim=1) for part in (sentence, picture)]
        return Instruction(
            torch.cat([sentence.tokens, picture.tokens], 1),
            torch.cat([sentence.mask, picture.mask], 1),
            torch.cat(pooled, 1),
            sentence.encoded,
        )


class Output(NamedTuple):
    """The result of a forward pass; without an instruction there is no fused feature."""

    feat: torch.Tensor  # (b d) F, the CLS token of the last editing layer
    neck: torch.Tensor  # (b d) F after the BN neck: classified in training, ranked in testing
    fused: torch.Tensor | None  # (b 2d) F_out; also None without E_f
    fused_neck: torch.Tensor | None  # (b 2d) F_out after its BN neck
    tokens: torch.Tensor  # (b n d) all tokens of the last editing layer


# ---- E_e, the editing transformer (Sec. 4.2) ----

SPLIT = "b n (h c) -> b h n c"  # the channels of each head


class EditingAttention(nn.Module):
    """Attention of the image tokens to themselves and, through a gate, to the instruction.

        M = [softmax(Q K^T / sqrt(c)), g * softmax(Q K'^T / sqrt(c))]      Eq. 2-3
        F = Linear_o(M [V; V'])                                            Eq. 4

    With two softmaxes, the instruction is added to self-attention without changing it. g is one
    number per head, without a tanh. With instr_dim None there is no instruction branch.
    """

    def __init__(self, dim, heads, instr_dim=None):
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

        if instr_dim is not None:
            self.k_instr = nn.Linear(instr_dim, dim)
            self.v_instr = nn.Linear(instr_dim, dim)
            self.gate = nn.Parameter(torch.zeros(heads))  # starts at 0: at step 0 an ordinary ViT

    def forward(self, x, instr=None, instr_mask=None, mask=None, rows=None):
        """x (b n d), instr (b or 1, t, instr_dim) -> (b n d).

        instr_mask (b or 1, t) and mask (b n) bool, True = a real token.
        rows: compute the output of the first `rows` tokens only, (b rows d).
        """
        q = rearrange(self.q(x[:, :rows]), SPLIT, h=self.heads)
        k = rearrange(self.k(x), SPLIT, h=self.heads)
        v = rearrange(self.v(x), SPLIT, h=self.heads)
        if mask is not None:
            mask = rearrange(mask, "b n -> b 1 1 n")
        read = F.scaled_dot_product_attention(q, k, v, mask)  # left half of M [V; V']

        if instr is not None:
            all_images = (x.shape[0], -1, -1, -1)  # one shared instruction serves the whole batch
            k_instr = rearrange(self.k_instr(instr), SPLIT, h=self.heads).expand(all_images)
            v_instr = rearrange(self.v_instr(instr), SPLIT, h=self.heads).expand(all_images)
            gate = rearrange(self.gate, "h -> h 1 1")
            gated = gate * v_instr  # (g S') V' = S' (g V'), and V' has fewer rows than S'
            if instr_mask is not None:
                instr_mask = rearrange(instr_mask, "b t -> b 1 1 t")
            read = read + F.scaled_dot_product_attention(q, k_instr, gated, instr_mask)  # right

        read = rearrange(read, "b h n c -> b n (h c)")
        return self.out(read)  # Eq. 4: F = Linear_o(M [V; V'])

    def maps(self, x, instr, instr_mask=None):
        """M of Eq. 2, (b h n n+t), computed as printed: slow, for figures and tests."""
        q = rearrange(self.q(x), SPLIT, h=self.heads)
        k = rearrange(self.k(x), SPLIT, h=self.heads)
        k_instr = rearrange(self.k_instr(instr), SPLIT, h=self.heads)

        scale = q.shape[-1] ** -0.5
        scores = q @ k.mT * scale  # Eq. 3: S = Q K^T / sqrt(C)
        scores_instr = q @ k_instr.mT * scale  # Eq. 3: S' = Q K'^T / sqrt(C)
        if instr_mask is not None:
            padding = ~rearrange(instr_mask, "b t -> b 1 1 t")
            scores_instr = scores_instr.masked_fill(padding, -torch.inf)

        gate = rearrange(self.gate, "h -> h 1 1")
        left = scores.softmax(-1)
        right = gate * scores_instr.softmax(-1)
        return torch.cat([left, right], -1)  # Eq. 2: M = [Softmax(S), g Softmax(S')]


class Block(nn.Module):
    """F_l of Eq. 1, a zero-init transformer layer: pre-norm residual attention and MLP."""

    def __init__(self, dim, heads, instr_dim=None):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = EditingAttention(dim, heads, instr_dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, 4 * dim),
            nn.GELU(),
            nn.Linear(4 * dim, dim),
        )

    def forward(self, x, instr=None, instr_mask=None, mask=None, rows=None):
        """Arguments as in EditingAttention; x (b n d) -> (b n d), or (b rows d)."""
        attended = self.attn(self.norm1(x), instr, instr_mask, mask, rows)
        x = x[:, :rows] + attended
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Vision transformer (Dosovitskiy et al. 2021), each layer of which an instruction can edit:
    E_e if instr_dim is given, an ordinary image encoder if it is None.

    size: (height, width) of the images. stride: None = patch; smaller = overlapping patches.
    part_tokens: as in PASS (Zhu et al. 2022). stem: "patch" or "conv", see conv_stem.
    Returns all tokens after the final norm, (b, 1 + part_tokens + patches, dim): CLS, parts, then
    patches row by row.
    """

    def __init__(
        self,
        size=(256, 128),
        patch=16,
        stride=None,
        dim=768,
        depth=12,
        heads=12,
        part_tokens=0,
        instr_dim=None,
        stem="patch",
    ):
        super().__init__()
        stride = stride or patch
        assert stem == "patch" or patch == stride == 8, "the convolutional stem has a stride of 8"
        self.size = tuple(size)
        self.patch = patch
        self.grid = tuple((side - patch) // stride + 1 for side in size)
        rows, columns = self.grid
        prefix = 1 + part_tokens  # CLS and part tokens

        if stem == "conv":
            self.embed = conv_stem(dim)
        else:
            self.embed = nn.Conv2d(3, dim, patch, stride)
        self.prefix = nn.Parameter(torch.zeros(1, prefix, dim))
        self.pos = nn.Parameter(torch.zeros(1, prefix + rows * columns, dim))
        self.blocks = nn.ModuleList(Block(dim, heads, instr_dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

        nn.init.trunc_normal_(self.prefix, std=0.02)
        nn.init.trunc_normal_(self.pos, std=0.02)
        self.blocks.apply(init_linear)
        self.checkpointing = False  # True: backward computes each layer again, which saves memory

    def forward(self, images, instr=None, instr_mask=None):
        """images (b 3 H W), instr (b or 1, t, instr_dim), instr_mask (b or 1, t) -> (b n d)."""
        if images.shape[-2:] != self.size:
            raise ValueError(
                "image is {}x{} (HxW)".format(*images.shape[-2:])
                + ", expected {}x{}: height and width swapped?".format(*self.size)
            )
        patches = rearrange(self.embed(images), "b d rows columns -> b (rows columns) d")
        prefix = repeat(self.prefix, "1 n d -> b n d", b=images.shape[0])
        x = torch.cat([prefix, patches], 1) + self.pos

        for block in self.blocks:  # Eq. 1: F_l = F_l(F_{l-1}, F_T)
            if self.checkpointing and self.training:
                x = checkpoint(block, x, instr, instr_mask, use_reentrant=False)
            else:
                x = block(x, instr, instr_mask)
        return self.norm(x)


def init_linear(module):
    """Weights scaled to the width, so that activations are as large in narrow as in wide models."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


def conv_stem(dim):
    """Convolutions down to 1/8 of the size instead of one large patch projection: a small ViT
    without pre-training learns much faster with them (Xiao et al. 2021)."""
    return nn.Sequential(
        *conv(3, dim // 4, stride=2),
        nn.ReLU(),
        *conv(dim // 4, dim // 2, stride=2),
        nn.ReLU(),
        Residual(dim // 2),
        *conv(dim // 2, dim, stride=2),
        nn.ReLU(),
        Residual(dim),
    )


def conv(width, dim, stride=1):
    """A 3x3 convolution and its batch norm."""
    return nn.Conv2d(width, dim, 3, stride, padding=1), nn.BatchNorm2d(dim)


class Residual(nn.Sequential):
    """Two convolutions and a shortcut (He et al. 2016)."""

    def __init__(self, dim):
        super().__init__(*conv(dim, dim), nn.ReLU(), *conv(dim, dim))

    def forward(self, x):
        return F.relu(x + super().forward(x))


# ---- E_i, the instruction encoder (Sec. 4.1, Fig. 3a) ----

class InstructionEncoder(nn.Module):
    """E_i: a BERT for sentences, a ViT for pictures of clothes, each with a projection to the width
    of the editing transformer.

    Pictures are pooled like sentences: the mean of the patches or, for "cls", ALBEF's CLS token.
    """

    def __init__(self, dim, text, picture=None, reads_sentences=True):
        super().__init__()
        self.text = text
        self.picture = picture
        if reads_sentences:
            self.from_text = nn.Sequential(nn.LayerNorm(text.width), nn.Linear(text.width, dim))
        if picture:
            self.from_picture = nn.Linear(dim, dim)

    def forward(self, sentences=None, pictures=None):
        """b sentences, pictures (b 3 h w), normalised, or both -> Instruction; neither -> None."""
        sentence = picture = None
        if sentences is not None:
            is_shared = len(set(sentences)) == 1  # then it is encoded once for the whole batch
            encoded = self.text(sentences[:1] if is_shared else sentences)
            sentence = with_pooled_first(self.from_text, *encoded)
        if pictures is not None:
            tokens = self.picture(pictures)
            mask = tokens.new_ones(tokens.shape[:2], dtype=torch.bool)
            pooled = tokens[:, 0] if self.text.pooling == "cls" else tokens[:, 1:].mean(1)
            picture = with_pooled_first(self.from_picture, tokens, mask, pooled)
        if sentence and picture:
            return sentence.join(picture)
        return sentence or picture


def with_pooled_first(project, encoded, mask, pooled):
    """The Instruction of encoded tokens (b t k), with the pooled vector (b k) as first token."""
    first = rearrange(pooled, "b k -> b 1 k")
    tokens = project(torch.cat([first, encoded], 1))
    return Instruction(tokens, F.pad(mask, (1, 0), value=True), pooled, encoded)


# ---- E_f, the attention module (Fig. 3a) ----

class AttentionModule(nn.Module):
    """E_f: [CLS_image; instruction tokens] and [CLS_instruction; image tokens] through the same
    blocks; F_out is the concatenation of the two resulting CLS tokens, (b 2d)."""

    def __init__(self, dim, heads, depth):
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.blocks.apply(init_linear)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, image_tokens, instr):
        """image_tokens (b n d), instr an Instruction of b or 1 -> F_out (b 2d)."""
        instr = instr.expand(image_tokens.shape[0])
        image_cls, patches = image_tokens.tensor_split((1,), 1)
        instr_cls, instr_tokens = instr.tokens.tensor_split((1,), 1)
        of_image = self._attend(image_cls, instr_tokens, instr.mask)  # which is True for any CLS
        of_instr = self._attend(instr_cls, patches)
        return torch.cat([of_image, of_instr], -1)

    def _attend(self, cls, tokens, mask=None):
        x = torch.cat([cls, tokens], 1)
        for block in self.blocks[:-1]:
            x = block(x, mask=mask)
        x = self.blocks[-1](x, mask=mask, rows=1)  # its other outputs are not used
        return self.norm(x[:, 0])


# ---- the whole model (Fig. 3) ----

SIZES = {  # person images and E_e; instruction pictures and their encoder; depth of E_f
    "tiny": dict(size=(64, 32), patch=8, dim=128, depth=2, heads=4, stem="conv",
                 picture_size=(32, 32), picture_depth=2, fusion_depth=1),
    "tiny-128": dict(size=(128, 64), patch=8, dim=128, depth=2, heads=4, stem="conv",
                     picture_size=(64, 64), picture_depth=2, fusion_depth=1),
    "small": dict(size=(256, 128), patch=16, dim=384, depth=12, heads=6, stem="patch",
                  picture_size=(128, 128), picture_depth=6, fusion_depth=2),
    "base": dict(size=(256, 128), patch=16, dim=768, depth=12, heads=12, stem="patch",
                 picture_size=(128, 128), picture_depth=12, fusion_depth=2),
    "base-384": dict(size=(384, 192), patch=16, dim=768, depth=12, heads=12, stem="patch",
                     picture_size=(128, 128), picture_depth=12, fusion_depth=2),
}


PARTS = (  # that only some tasks train (Task.parts); a model has the parts of its tasks
    "words",  # E_i reads sentences
    "pictures",  # E_i sees pictures of clothes
    "editing",  # the gated branch of every layer of E_e; without it, "w/o editing" of Tab. 5
    "fused",  # E_f and the layers that use F_out
    "text queries",  # t2i: a sentence alone as query, and the matching of pairs
)
TEMPERATURES = 0.01, 0.5  # bounds of the learned temperature of Eq. 8


class InstructReID(nn.Module):
    """The whole model.

    size: a key of SIZES, or a dict like those in it.
    classes: {training data set: its number of identities}; each gets a classifier.
    parts: those of PARTS that it has.
    text: a reid.text.TextEncoder. If it pools by "cls", it is ALBEF's, and so is the picture
    encoder, which is then fixed.
    cross: ALBEF's reid.text.CrossEncoder, or None.
    """

    def __init__(self, size="tiny", classes=None, parts=PARTS, *, text, cross=None):
        super().__init__()
        shape = SIZES[size] if isinstance(size, str) else size
        self.shape = shape
        self.parts = tuple(parts)
        self.editing = "editing" in parts
        self.size = shape["size"]
        self.picture_size = shape["picture_size"]
        dim = shape["dim"]
        heads = shape["heads"]
        trunk = {key: shape[key] for key in ("patch", "dim", "heads", "stem")}
        classes = classes or {}

        picture = None
        if "pictures" in parts:
            picture = ViT(self.picture_size, depth=shape["picture_depth"], **trunk)
            picture.requires_grad_(text.pooling == "mean")
        self.encoder = InstructionEncoder(dim, text, picture, "words" in parts)
        self.editor = ViT(
            self.size,
            depth=shape["depth"],
            part_tokens=shape.get("part_tokens", 0),
            instr_dim=dim if self.editing else None,
            **trunk,
        )
        self.attention = None
        if "fused" in parts:
            self.attention = AttentionModule(dim, heads, shape["fusion_depth"])
            self.fused_neck = bn_neck(2 * dim)
        self.neck = bn_neck(dim)
        self.classifiers = classifiers(dim, classes)
        self.fused_classifiers = classifiers(2 * dim, classes if self.attention else {})
        for head in [*self.classifiers.values(), *self.fused_classifiers.values()]:
            nn.init.normal_(head.weight, std=0.02)

        # T2I: the query is a sentence alone, which a separate layer reads; C_e of Eq. 8 scores
        # pairs, after a separate E_f
        self.cross = cross
        if "text queries" in parts:
            self.plain_neck = bn_neck(dim)  # without an instruction F's distribution differs
            self.text_block = Block(dim, heads)
            self.text_block.apply(init_linear)
            self.text_head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim))
            self.log_temperature = nn.Parameter(torch.tensor(0.07).log())
            if cross is None:
                self.matcher = AttentionModule(dim, heads, shape["fusion_depth"])
                self.match_head = nn.Sequential(
                    nn.Linear(2 * dim, dim),
                    nn.GELU(),
                    nn.Linear(dim, 2),
                )

    def forward(self, images, instr):
        """images (b 3 H W), normalised; instr an Instruction or None. Fig. 3 from left to right."""
        tokens = self.edit(images, instr)  # E_e, Eq. 1-4
        feat = tokens[:, 0]  # F
        neck = self.plain_neck(feat) if instr is None else self.neck(feat)
        if instr is None or self.attention is None:
            return Output(feat, neck, None, None, tokens)
        fused = self.attention(tokens, instr)  # E_f: F_out
        return Output(feat, neck, fused, self.fused_neck(fused), tokens)

    def instruct(self, sentences=None, pictures=None):
        """E_i: F_T of b sentences, of pictures (b 3 h w), or of both; None of neither."""
        return self.encoder(sentences, pictures)

    def edit(self, images, instr=None):
        """E_e: all image tokens (b n d), edited by the instruction if there is one."""
        if instr is None or not self.editing:
            return self.editor(images)
        return self.editor(images, instr.tokens, instr.mask)

    def embed(self, images, instr=None):
        """The retrieval feature (b d): F after its BN neck, L2-normalised."""
        neck = self.plain_neck if instr is None else self.neck
        return F.normalize(neck(self.edit(images, instr)[:, 0]), dim=-1)

    def read_text(self, instr):
        """The Instruction of a T2I query after its tokens have attended to each other, so that
        "red" belongs to "coat" and not to "trousers"; a mean of words can hardly express this."""
        return instr._replace(tokens=self.text_block(instr.tokens, mask=instr.mask))

    def embed_text(self, instr):
        """The feature of a T2I query, (b d): of a sentence after `read_text`, L2-normalised."""
        return F.normalize(self.text_head(instr.tokens[:, 0]), dim=-1)

    def temperature(self):
        """The learned temperature of the contrastive loss in Eq. 8."""
        return self.log_temperature.exp().clamp(*TEMPERATURES)

    def match(self, image_tokens, instr):
        """Logits (b 2) of [no match, match], Eq. 8: tokens of b images, sentences after
        `read_text`."""
        if self.cross is None:
            return self.match_head(self.matcher(image_tokens, instr))
        instr = instr.expand(image_tokens.shape[0])
        tokens = self.cross(instr.encoded, instr.mask[:, 1:], image_tokens)
        return self.cross.head(tokens[:, 0])


def bn_neck(dim):
    """The BN neck (Luo et al. 2019): the triplet loss uses the feature before it, classifier and
    ranking the feature after it."""
    norm = nn.BatchNorm1d(dim)
    norm.bias.requires_grad_(False)  # no shift, so that features stay centred for the cosine
    return norm


def classifiers(dim, classes):
    """One for each data set, {name: number of identities}."""
    return nn.ModuleDict(
        {name: nn.Linear(dim, count, bias=False) for name, count in classes.items()})
