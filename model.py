"""IRM, the Instruct-ReID model (Sec. 4, Fig. 3): an instruction edits the features that a ViT extracts of a person.

Dimension letters: b batch, n image tokens (CLS first), t instruction tokens, d width, h heads, c width of one head,
k width of the pooled instruction. E_e is `ViT`, E_i is `InstructionEncoder`, E_f is `AttentionModule`.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from torch.utils.checkpoint import checkpoint


class Instruction(NamedTuple):
    """F_T, what the instruction encoder says. The batch may be 1 where all images share one sentence."""
    tokens: torch.Tensor  # (b t d), in the width of the editing transformer; the first stands for the whole
    mask: torch.Tensor    # (b t) bool, True = a real token
    pooled: torch.Tensor  # (b k), the encoder's own pooled vector: its cosines are the beta of Eq. 6
    words: torch.Tensor   # (b t-1 k), the encoder's own tokens, as ALBEF's multimodal layers read them


class Output(NamedTuple):
    """What one forward pass gives in every mode; the fused features are None where there is no instruction."""
    feat: torch.Tensor               # (b d) F, the CLS token of the last editing layer
    neck: torch.Tensor               # (b d) F after the BN neck: classified in training, ranked in testing
    fused: torch.Tensor | None       # (b 2d) F_out
    fused_neck: torch.Tensor | None  # (b 2d) F_out after its BN neck
    tokens: torch.Tensor             # (b n d) all tokens of the last editing layer


class EditingAttention(nn.Module):
    """Attention of the image tokens to themselves and, through a gate, to the instruction (Eq. 2-4).

    M = [softmax(Q K^T / sqrt(c)), g * softmax(Q K'^T / sqrt(c))] and F = Linear_o(M [V; V']): two softmaxes, so the gate adds
    a second read-out to an untouched first one. g is one number per head, used as it stands. With instr_dim None the second
    branch does not exist.
    """

    def __init__(self, dim, heads, instr_dim=None):
        super().__init__()
        assert dim % heads == 0, f"dim {dim} is not divisible by {heads} heads"
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim) for _ in range(4))
        if instr_dim is not None:
            self.k_instr, self.v_instr = nn.Linear(instr_dim, dim), nn.Linear(instr_dim, dim)
            self.gate = nn.Parameter(torch.zeros(heads))  # Eq. 2: starts at 0, so at step 0 this is plain attention

    def forward(self, x, instr=None, instr_mask=None, mask=None, rows=None):
        """x (b n d), instr (b or 1, t, instr_dim), instr_mask (b or 1, t) and mask (b n) bool, True = real -> (b n d).

        rows: compute the output of the first `rows` tokens only, (b rows d).
        """
        q, k, v = self._split(self.q(x[:, :rows])), self._split(self.k(x)), self._split(self.v(x))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=_as_keys(mask))
        if instr is not None:
            k_instr, v_instr = (self._split(linear(instr)).expand(len(x), -1, -1, -1)
                                for linear in (self.k_instr, self.v_instr))
            v_instr = rearrange(self.gate, "h -> h 1 1") * v_instr  # (g S') V' = S' (g V'), and V' has fewer rows
            mixed = mixed + F.scaled_dot_product_attention(q, k_instr, v_instr, attn_mask=_as_keys(instr_mask))
        return self.out(rearrange(mixed, "b h n c -> b n (h c)"))

    def maps(self, x, instr, instr_mask=None):
        """M of Eq. 2, (b h n n+t), computed the slow way for pictures and tests."""
        q, k = self._split(self.q(x)), self._split(self.k(x))
        k_instr = self._split(self.k_instr(instr)).expand(len(x), -1, -1, -1)
        scale = q.shape[-1] ** -0.5
        scores_instr = q @ k_instr.mT * scale  # Eq. 3: S'
        if instr_mask is not None:
            scores_instr = scores_instr.masked_fill(~_as_keys(instr_mask), -torch.inf)
        gate = rearrange(self.gate, "h -> h 1 1")
        return torch.cat([(q @ k.mT * scale).softmax(-1), gate * scores_instr.softmax(-1)], -1)

    def _split(self, x):
        return rearrange(x, "b n (h c) -> b h n c", h=self.heads)


def _as_keys(mask):
    """(b n) -> (b 1 1 n): every head and every query sees the same real keys."""
    return None if mask is None else rearrange(mask, "b n -> b 1 1 n")


class Block(nn.Module):
    """One zero-init transformer layer (Eq. 1): pre-norm residual attention and MLP, as in every pre-trained ViT."""

    def __init__(self, dim, heads, instr_dim=None):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = EditingAttention(dim, heads, instr_dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x, instr=None, instr_mask=None, mask=None, rows=None):
        x = x[:, :rows] + self.attn(self.norm1(x), instr, instr_mask, mask, rows)
        return x + self.mlp(self.norm2(x))


class Residual(nn.Sequential):
    def __init__(self, dim):
        super().__init__(*conv(dim, dim), nn.ReLU(), *conv(dim, dim))

    def forward(self, x):
        return F.relu(x + super().forward(x))


def conv(width, dim, stride=1):
    return nn.Conv2d(width, dim, 3, stride, padding=1), nn.BatchNorm2d(dim)


def conv_stem(dim):
    """Convolutions to a grid of 1/8 in place of the one big patch projection: a small ViT without pre-training learns much
    sooner with them (Xiao et al. 2021)."""
    return nn.Sequential(*conv(3, dim // 4, 2), nn.ReLU(), *conv(dim // 4, dim // 2, 2), nn.ReLU(), Residual(dim // 2),
                         *conv(dim // 2, dim, 2), nn.ReLU(), Residual(dim))


class ViT(nn.Module):
    """Vision transformer (Dosovitskiy et al. 2021), each layer of which can be edited by an instruction: E_e when instr_dim
    is given, a plain image encoder when it is None.

    size (height, width) of the images; stride None = patch, smaller = overlapping patches; part_tokens as in PASS (Zhu et al.
    2022). Returns all tokens after the final norm, (b, 1 + part_tokens + patches, dim): CLS, parts, patches row by row.
    """

    def __init__(self, size=(256, 128), patch=16, stride=None, dim=768, depth=12, heads=12, part_tokens=0, instr_dim=None,
                 stem="patch"):
        super().__init__()
        stride = stride or patch
        assert stem == "patch" or patch == stride == 8, "the convolutional stem has a stride of 8"
        self.size, self.patch, self.grid = tuple(size), patch, tuple((side - patch) // stride + 1 for side in size)
        self.embed = conv_stem(dim) if stem == "conv" else nn.Conv2d(3, dim, patch, stride)
        self.prefix = nn.Parameter(torch.zeros(1, 1 + part_tokens, dim))  # CLS and part tokens
        self.pos = nn.Parameter(torch.zeros(1, 1 + part_tokens + self.grid[0] * self.grid[1], dim))
        self.blocks = nn.ModuleList(Block(dim, heads, instr_dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        nn.init.trunc_normal_(self.prefix, std=0.02), nn.init.trunc_normal_(self.pos, std=0.02)
        self.blocks.apply(_init_linear)
        self.checkpointing = False  # True: backward computes each layer again instead of keeping its activations

    def forward(self, images, instr=None, instr_mask=None):
        if images.shape[-2:] != self.size:
            (h, w), (height, width) = images.shape[-2:], self.size
            swapped = ": height and width swapped?" if (w, h) == self.size else ""
            raise ValueError(f"image is {h}x{w} (HxW), expected {height}x{width}{swapped}")
        patches = rearrange(self.embed(images), "b d h w -> b (h w) d")
        x = torch.cat([self.prefix.expand(len(images), -1, -1), patches], 1) + self.pos
        for block in self.blocks:  # Eq. 1: F_l = F_l(F_{l-1}, F_T)
            if self.checkpointing and self.training:
                x = checkpoint(block, x, instr, instr_mask, use_reentrant=False)
            else:
                x = block(x, instr, instr_mask)
        return self.norm(x)


def _init_linear(module):
    if isinstance(module, nn.Linear):  # scaled to the width, so that narrow models start as lively as wide ones
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


class TextEncoder(nn.Module):
    """The language half of E_i: a BERT and its tokenizer.

    A frozen encoder reads each sentence once: `remember` encodes those that it has not seen, in an order that depends on the
    sentences alone, so that a resumed run computes the same bits. pooling "mean" suits sentence encoders such as MiniLM, whose
    mean separates meanings and whose CLS does not; "cls" suits ALBEF.
    """

    MAX_TOKENS = 70
    MAX_KEPT = 200_000  # sentences, about 20 kB each; CUHK-PEDES has 80,440, SYNTH-PEDES 12 million

    def __init__(self, bert, tokenizer, pooling="mean", trainable=False):
        super().__init__()
        self.bert, self.tokenizer = bert.requires_grad_(trainable), tokenizer
        self.pooling, self.trainable, self.width, self.memory = pooling, trainable, bert.config.hidden_size, {}

    def forward(self, sentences):
        """b sentences -> tokens (b t k), mask (b t) bool, pooled (b k)."""
        if self.trainable:
            return self._read(sentences)
        if len(self.memory) > self.MAX_KEPT:
            self.memory.clear()
        self.remember(sentences)
        rows = [self.memory[sentence] for sentence in sentences]
        device = self.bert.device
        tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device, torch.float32)
        mask = torch.arange(tokens.shape[1])[None] < torch.tensor([len(row) for row in rows])[:, None]
        return tokens, mask.to(device), self._pool(tokens, mask.to(device))

    @torch.no_grad()
    def remember(self, sentences, progress=iter):
        """Encodes the sentences that are new to a frozen encoder and keeps their tokens in half precision on the CPU."""
        if self.trainable:
            return
        new = sorted(set(sentences) - self.memory.keys(), key=lambda sentence: (len(sentence), sentence))
        self.bert.eval()
        for start in progress(range(0, len(new), 64)):
            chunk = new[start:start + 64]
            tokens, mask, _ = self._read(chunk)
            for sentence, row, length in zip(chunk, tokens.half().cpu(), mask.sum(1).tolist()):
                self.memory[sentence] = row[:length].clone()

    def _read(self, sentences):
        batch = self.tokenizer(list(sentences), padding=True, truncation=True, max_length=self.MAX_TOKENS,
                               return_tensors="pt").to(self.bert.device)
        tokens, mask = self.bert(**batch).last_hidden_state, batch["attention_mask"].bool()
        return tokens, mask, self._pool(tokens, mask)

    def _pool(self, tokens, mask):
        if self.pooling == "cls":
            return tokens[:, 0]
        return (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


class InstructionEncoder(nn.Module):
    """E_i: a sentence through a BERT, a picture of clothes through a ViT, both projected once to the editing width.

    picture_pooling: "mean" of the patches, or "cls" for a pre-trained ViT whose CLS token stands for the picture.
    """

    def __init__(self, dim, text, picture, picture_pooling="mean"):
        super().__init__()
        self.text, self.picture, self.picture_pooling = text, picture, picture_pooling
        self.from_text = nn.Sequential(nn.LayerNorm(text.width), nn.Linear(text.width, dim))
        self.from_picture = nn.Linear(dim, dim)

    def forward(self, what):
        """what: b sentences or pictures (b 3 h w), normalised -> Instruction; None -> None."""
        if what is None:
            return None
        if isinstance(what, torch.Tensor):
            words, project = self.picture(what), self.from_picture
            mask = words.new_ones(words.shape[:2], dtype=torch.bool)
            pooled = words[:, 0] if self.picture_pooling == "cls" else words[:, 1:].mean(1)
        else:
            what = what[:1] if len(set(what)) == 1 else what  # one sentence for the whole batch costs one row
            (words, mask, pooled), project = self.text(what), self.from_text
        tokens = project(torch.cat([pooled[:, None], words], 1))  # the whole first, then its parts
        return Instruction(tokens, F.pad(mask, (1, 0), value=True), pooled, words)


class AttentionModule(nn.Module):
    """E_f: [CLS_image; instruction tokens] and [CLS_instruction; image tokens] through the same blocks; F_out is the two
    resulting CLS tokens side by side, (b 2d)."""

    def __init__(self, dim, heads, depth):
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth)).apply(_init_linear)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, image_tokens, instr):
        b = len(image_tokens)
        words, mask = instr.tokens.expand(b, -1, -1), instr.mask.expand(b, -1)
        return torch.cat([
            self._attend(image_tokens[:, :1], words[:, 1:], mask[:, 1:]),
            self._attend(words[:, :1], image_tokens[:, 1:], None),
        ], -1)

    def _attend(self, cls, tokens, mask):
        x = torch.cat([cls, tokens], 1)
        mask = None if mask is None else F.pad(mask, (1, 0), value=True)
        for block in self.blocks[:-1]:
            x = block(x, mask=mask)
        return self.norm(self.blocks[-1](x, mask=mask, rows=1)[:, 0])  # nobody reads the last layer's other tokens


class CrossEncoder(nn.Module):
    """E_f of T2I as ALBEF has it (Li et al. 2021): in every layer the words attend to each other, then to the image.

    config: a transformers.BertConfig with is_decoder and add_cross_attention, the way to such layers; image_width: that
    of the image tokens. `head` is ALBEF's matching head, C_e of Eq. 8.
    """

    def __init__(self, config, image_width):
        super().__init__()
        from transformers.models.bert.modeling_bert import BertEncoder
        self.layers, width = BertEncoder(config), config.hidden_size
        for layer in self.layers.layer:
            image = layer.crossattention.self
            image.key, image.value = nn.Linear(image_width, width), nn.Linear(image_width, width)
        self.head = nn.Linear(width, 2)

    def forward(self, words, mask, image_tokens, image_mask=None):
        """words (b t k), image_tokens (b n d); mask (b t), image_mask (b n) bool, True = real -> (b t k)."""
        # a mask is always given: without one, layers built as a decoder's let no word see the words behind it
        return self.layers(words, _as_keys(mask), image_tokens, _as_keys(image_mask), use_cache=False).last_hidden_state


SIZES = {  # person images and the editing transformer; instruction pictures and their encoder; E_f
    "tiny": dict(size=(64, 32), patch=8, dim=128, depth=2, heads=4, stem="conv",
                 picture_size=(32, 32), picture_depth=2, fusion_depth=1),
    "small": dict(size=(256, 128), patch=16, dim=384, depth=12, heads=6, stem="patch",
                  picture_size=(128, 128), picture_depth=6, fusion_depth=2),
    "base": dict(size=(256, 128), patch=16, dim=768, depth=12, heads=12, stem="patch",
                 picture_size=(128, 128), picture_depth=12, fusion_depth=2),
    "base-384": dict(size=(384, 192), patch=16, dim=768, depth=12, heads=12, stem="patch",
                     picture_size=(128, 128), picture_depth=12, fusion_depth=2),
}


class InstructReID(nn.Module):
    """The whole model. `classes` maps each training data set to its number of identities: one classifier per data set.

    size is a key of SIZES, or a dict of its form; editing=False is the "w/o editing" row of Tab. 5. text: a TextEncoder.
    cross: ALBEF's CrossEncoder, with which the picture encoder is ALBEF's too, and fixed.
    """

    def __init__(self, size, classes, editing=True, *, text, cross=None):
        super().__init__()
        shape = SIZES[size] if isinstance(size, str) else size
        dim, heads, patch, stem = (shape[key] for key in ("dim", "heads", "patch", "stem"))
        self.size, self.picture_size, self.editing = shape["size"], shape["picture_size"], editing
        picture = ViT(self.picture_size, patch, None, dim, shape["picture_depth"], heads, stem=stem)
        picture.requires_grad_(cross is None)
        self.encoder = InstructionEncoder(dim, text, picture, "cls" if cross else "mean")
        self.editor = ViT(self.size, patch, None, dim, shape["depth"], heads, shape.get("part_tokens", 0),
                          instr_dim=dim if editing else None, stem=stem)
        self.attention = AttentionModule(dim, heads, shape["fusion_depth"])
        self.neck, self.fused_neck = neck(dim), neck(2 * dim)
        self.classifiers, self.fused_classifiers = (
            nn.ModuleDict({name: nn.Linear(width, n, bias=False) for name, n in classes.items()})
            for width in (dim, 2 * dim))
        for classifier in [*self.classifiers.values(), *self.fused_classifiers.values()]:
            nn.init.normal_(classifier.weight, std=0.02)
        self.text_head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim))  # T2I: the query is the sentence alone
        self.cross = cross
        if cross is None:
            self.match_head = nn.Sequential(nn.Linear(2 * dim, dim), nn.GELU(), nn.Linear(dim, 2))  # T2I: C_e of Eq. 8
        self.log_temperature = nn.Parameter(torch.tensor(0.07).log())

    def instruct(self, what):
        """E_i: F_T of b sentences or of pictures (b 3 h w); None stays None."""
        return self.encoder(what)

    def forward(self, images, instr):
        """images (b 3 H W), normalised; instr an Instruction or None. Fig. 3 from left to right."""
        tokens = self.edit(images, instr)                                  # E_e, Eq. 1-4
        feat = tokens[:, 0]                                                # F
        fused = self.attention(tokens, instr) if instr else None           # E_f: F_out
        return Output(feat, self.neck(feat), fused, self.fused_neck(fused) if instr else None, tokens)

    def edit(self, images, instr=None):
        """E_e: all image tokens (b n d), edited by the instruction if there is one."""
        return self.editor(images, *(instr[:2] if instr and self.editing else ()))

    def embed(self, images, instr, feature="edit"):
        """Retrieval features (b d), or (b 2d) for feature "fused": after the neck, L2-normalised."""
        tokens = self.edit(images, instr)
        neck = self.fused_neck(self.attention(tokens, instr)) if feature == "fused" else self.neck(tokens[:, 0])
        return F.normalize(neck, dim=-1)

    def embed_text(self, instr):
        """The query side of T2I, (b d): a sentence without an image, L2-normalised."""
        return F.normalize(self.text_head(instr.tokens[:, 0]), dim=-1)

    def match(self, image_tokens, instr):
        """Logits (b 2) of [no match, match] for b image-sentence pairs (Eq. 8)."""
        if self.cross is None:
            return self.match_head(self.attention(image_tokens, instr))
        words, mask = (x.expand(len(image_tokens), *x.shape[1:]) for x in (instr.words, instr.mask[:, 1:]))
        return self.cross.head(self.cross(words, mask, image_tokens)[:, 0])


def neck(dim):
    """The BN neck (Luo et al. 2019): the loss of distances sees the feature before it, the classifier and ranking after it."""
    norm = nn.BatchNorm1d(dim)
    norm.bias.requires_grad_(False)  # no shift, so that features stay centred for the cosine
    return norm
