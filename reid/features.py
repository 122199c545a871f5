"""Features of records under instructions: computed once by a model, kept in a file, and the second
stage of text-to-image retrieval.

Letters in shapes: b batch, n records, d feature width, q queries, g gallery images.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from instructions import TASKS
from model import send
from reid.cli import UserError, progress
from reid.device import amp_dtype, autocast, has_room
from reid.files import replacing
from reid.images import load_image, normalise
from reid.uninstructed import embed_instruction, embed_photos

DECODERS = 8  # threads that decode pictures
TOP = 128  # images of a t2i ranking that the second stage orders anew (Supp. 5.2)


# ---- running the model ----

@contextmanager
def evaluating(model, amp="off"):
    """Inference with BN necks in test mode, in the precision `amp` of training. Gives the device;
    the model keeps its mode."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), autocast(amp, device):
            yield device
    finally:
        model.train(was_training)


def load_batch(pool, dataset, paths, size):
    """Pictures below dataset.root, decoded by the threads of a pool: uint8 (b 3 h w)."""
    images = pool.map(lambda path: load_image(dataset.root / path, size), paths)
    return torch.stack(list(images))


def read_ahead(read, starts):
    """Yields read(start) of each of the starts; a thread reads the next while one is worked on."""
    with ThreadPoolExecutor(1) as thread:
        coming = None
        for start in starts:
            following = thread.submit(read, start)
            if coming is not None:
                yield coming.result()
            coming = following
        if coming is not None:
            yield coming.result()


def distinct(wanted):
    return list(dict.fromkeys(wanted))


def encode_instructions(model, wanted, pictures, device, mirrored=False):
    """The Instruction of a batch; equal sentences or pictures are encoded once and handed out by
    index.

    wanted: one instruction per image. pictures: those of the distinct ones, uint8 (m 3 h w), or
    None where instructions are sentences. mirrored: pictures are turned left-right.
    """
    if wanted[0] is None:
        return None
    unique = distinct(wanted)
    what = unique
    if pictures is not None:
        what = normalise(send(pictures, device))
        what = what.flip(3) if mirrored else what

    instr = model.instruct(what)
    if len(unique) == 1:
        return instr  # a batch of 1 serves all images
    index = [unique.index(each) for each in wanted]
    return instr.take(send(torch.tensor(index), device))


def extract(model, dataset, records, asks, feature="edit", batch=64, flip=False, amp="off"):
    """Retrieval features of records under several lists of instructions, (n d) float32 each, on
    the CPU, L2-normalised.

    asks: lists of one instruction per record: a sentence, the path of a picture below dataset.root,
    or None. Images are read once for all lists and, where they never meet the instruction, embedded
    once. Records without a picture (t2i queries) are embedded by their sentence alone.
    flip: the sum of the features of both views; the picture of an instruction turns with the image,
    as in training. amp: the precision, see amp_dtype.
    """
    text_only = records[0].path is None
    deaf = not model.editing and feature == "edit" and not text_only
    lists = asks[:1] if deaf else asks
    feats = [[] for _ in lists]
    starts = range(0, len(records), batch)
    starts = progress(starts, f"{dataset.title} {dataset.task}", leave=False)
    with ThreadPoolExecutor(DECODERS) as pool, evaluating(model, amp) as device:
        def read(start):
            return read_part(pool, model, dataset, records, lists, slice(start, start + batch))

        for part, images, pictures in read_ahead(read, starts):
            if not text_only:
                images = normalise(send(images, device))
            for instructions, shown, done in zip(lists, pictures, feats):
                wanted = instructions[part]
                if text_only:
                    instr = encode_instructions(model, wanted, shown, device)
                    new = model.embed_text(model.read_text(instr)).expand(len(wanted), -1)
                else:
                    new = embed_views(model, images, wanted, shown, feature, flip)
                done.append(F.normalize(new.float(), dim=1))

    feats = [torch.cat(done).cpu() for done in feats]
    return feats * len(asks) if deaf else feats


def read_part(pool, model, dataset, records, lists, part):
    """What the records of a part need from the disk: (the part, their images or None where there
    are none, the distinct instruction pictures of each list or None for sentences), uint8."""
    images = None
    paths = [record.path for record in records[part]]
    if paths[0] is not None:
        images = load_batch(pool, dataset, paths, model.size)

    pictures = []
    for instructions in lists:
        wanted = distinct(instructions[part])
        shown = None
        if TASKS[dataset.task].pictures and wanted[0] is not None:
            shown = load_batch(pool, dataset, wanted, model.picture_size)
        pictures.append(shown)
    return part, images, pictures


def embed_views(model, images, wanted, pictures, feature, flip):
    """Features of images (b 3 H W) under one instruction each; flip: plus those of the mirrored.
    wanted, pictures: as in encode_instructions."""
    instr = encode_instructions(model, wanted, pictures, images.device)
    feats = model.embed(images, instr, feature=feature).float()
    if flip:
        instr = encode_instructions(model, wanted, pictures, images.device, mirrored=True)
        feats = feats + model.embed(images.flip(3), instr, feature=feature).float()
    return feats


def extract_views(model, dataset, records, views, feature, batch=64, flip=False, amp="off"):
    """Features of photos alone, (n d) float32 of each view of reid.uninstructed, on the CPU,
    L2-normalised. flip: the sum of the features of a photo and of its mirror image."""
    paths = [record.path for record in records]
    feats = {view: [] for view in views}
    starts = range(0, len(paths), batch)
    starts = progress(starts, f"{dataset.title} {dataset.task} photos", leave=False)
    with ThreadPoolExecutor(DECODERS) as pool, evaluating(model, amp) as device:
        def read(start):
            return load_batch(pool, dataset, paths[start:start + batch], model.size)

        for images in read_ahead(read, starts):
            images = send(images, device)
            for view, done in feats.items():
                new = embed_photos(model, view, images, feature)
                if flip:
                    new = new + embed_photos(model, view, images.flip(3), feature)
                done.append(F.normalize(new, dim=1).cpu())
    return [torch.cat(done) for done in feats.values()]


def extract_instructions(model, dataset, wanted, view, batch=64, amp="off"):
    """Features of instructions without a photo, (n k) float32, on the CPU, L2-normalised.

    wanted: sentences, or paths of pictures below dataset.root. view: as in embed_instruction.
    """
    feats = []
    pictures = None
    with ThreadPoolExecutor(DECODERS) as pool, evaluating(model, amp) as device:
        for start in range(0, len(wanted), batch):
            part = wanted[start:start + batch]
            if TASKS[dataset.task].pictures:
                pictures = load_batch(pool, dataset, distinct(part), model.picture_size)
            instr = encode_instructions(model, part, pictures, device)
            new = embed_instruction(model, view, instr)
            feats.append(new.expand(len(part), -1).cpu())
    return torch.cat(feats)


# ---- features of a run ----

@dataclass
class Features:
    """The features of a run: computed by the model when first asked for, then remembered; or read
    from a file.

    known: {"data set/task/side/name of the instruction": ((n d), digest of what it is of)}.
    """

    model: torch.nn.Module | None = None
    feature: str = "edit"
    batch: int = 64
    flip: bool = False
    amp: str = "off"  # the precision of the model
    device: torch.device | str | None = None  # of the distances; None = beside the model
    known: dict = field(default_factory=dict)

    def __post_init__(self):
        if self.device is None:
            self.device = next(self.model.parameters()).device

    def __call__(self, dataset, side, records, asks):
        """asks {name: one instruction per record} -> [(n d) of each name].

        side: query, gallery, or test where the protocol decides.
        """
        prefix = f"{dataset.name}/{dataset.task}/{side}"
        named = {f"{prefix}/{name}": wanted for name, wanted in asks.items()}
        new = [key for key in named if key not in self.known]
        if new:
            self.need_model(new[0])
            lists = [named[key] for key in new]
            feats = extract(
                self.model, dataset, records, lists, self.feature, self.batch, self.flip, self.amp
            )
            for key, wanted, each in zip(new, lists, feats):
                self.known[key] = each, digest(records, wanted)

        return [self._checked(key, dataset, records, wanted) for key, wanted in named.items()]

    def views(self, dataset, side, records, views):
        """What photos show to whom no instruction of their own is given: (n d) of each view of
        reid.uninstructed."""
        keys = {view: f"{dataset.name}/{dataset.task}/{side} photo/{view}" for view in views}
        new = [view for view, key in keys.items() if key not in self.known]
        if new:
            self.need_model(keys[new[0]])
            feats = extract_views(
                self.model, dataset, records, new, self.feature, self.batch, self.flip, self.amp
            )
            for view, each in zip(new, feats):
                self.known[keys[view]] = each, digest(records, [view] * len(records))
        return [
            self._checked(key, dataset, records, [view] * len(records))
            for view, key in keys.items()
        ]

    def instructions(self, dataset, side, records, wanted, view=None):
        """Instructions alone, one for each record: (n k) as a view of photos is compared with, or
        as E_i gives them."""
        key = f"{dataset.name}/{dataset.task}/{side} instruction/{view or 'E_i'}"
        if key not in self.known:
            self.need_model(key)
            feats = extract_instructions(
                self.model, dataset, wanted, view, self.batch, self.amp
            )
            self.known[key] = feats, digest(records, wanted)
        return self._checked(key, dataset, records, wanted)

    def _checked(self, key, dataset, records, wanted):
        """The features of that key. UserError if a file holds those of something else."""
        feats, of = self.known[key]
        if of != digest(records, wanted) or len(feats) != len(records):
            raise UserError(
                f"the features saved as '{key}' are of other images or instructions than those "
                f"in {dataset.root}: mend --data or save them again"
            )
        return feats

    def matches(self, dataset, gallery, sentences, query_feats, gallery_feats, top=TOP):
        """The second stage of t2i: indices of the `top` nearest images of each query and their
        scores, both (q top).

        A score is the similarity as the contrast of Eq. 8 sees it, divided by the temperature, plus
        the logit of the pair: both say how probable it is that the two belong together.
        """
        prefix = f"{dataset.name}/{dataset.task}/matching"
        if f"{prefix}/nearest" not in self.known:
            self.need_model(f"{prefix}/nearest")
            top = min(top, len(gallery_feats))
            parts = [(rows @ gallery_feats.T).topk(top) for rows in query_feats.split(256)]
            nearest = torch.cat([part.indices for part in parts])
            similarity = torch.cat([part.values for part in parts])
            logits = match(self.model, dataset, gallery, sentences, nearest, self.batch, self.amp)
            scores = similarity / self.model.temperature().item() + logits
            if not scores.isfinite().all():
                raise UserError(
                    "the matching head gives NaN or infinity: take an earlier checkpoint or a "
                    "lower --lr"
                )
            self.known[f"{prefix}/nearest"] = nearest, ""
            self.known[f"{prefix}/scores"] = scores, ""

        nearest = self.known[f"{prefix}/nearest"][0]
        scores = self.known[f"{prefix}/scores"][0]
        if len(nearest) != len(sentences) or not ((0 <= nearest) & (nearest < len(gallery))).all():
            raise UserError(
                f"the features saved as '{prefix}' are of other images than those in "
                f"{dataset.root}: mend --data or save them again"
            )
        return nearest, scores

    def need_model(self, key):
        if self.model is None:
            raise UserError(
                f"the saved features lack '{key}', which takes a model: "
                "give --checkpoint the last.pt"
            )


def digest(records, wanted):
    """What features were computed from, in 16 letters: other images, instructions or another order
    have others."""
    lines = [f"{record.path} {instr}" for record, instr in zip(records, wanted, strict=True)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def save_features(path, features, **notes):
    """Writes what `features` knows as .safetensors, atomically; notes: strings to read again, such
    as task and data. UserError if it cannot be written."""
    notes |= {"feature": features.feature, "flip": str(features.flip)}
    tensors = {}
    for key, (tensor, of) in features.known.items():
        tensors[key] = tensor.clone()  # safetensors wants no tensor twice, as a deaf model's are
        notes[f"digest {key}"] = of
    with replacing(path) as file:
        file.write(save(tensors, notes))


def load_features(path, device="cpu"):
    """Undoes save_features: (Features without a model, the notes)."""
    try:
        with safe_open(path, "pt") as file:
            notes = file.metadata() or {}
            known = {}
            for key in file.keys():
                known[key] = file.get_tensor(key), notes.pop(f"digest {key}")
        check_saved(known, notes)
        flip = notes["flip"] == "True"
        return Features(feature=notes["feature"], flip=flip, device=device, known=known), notes
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(
            f"{path} holds no features that --save-features wrote ({error}); save them again"
        ) from error


def check_saved(known, notes):
    """ValueError, or KeyError, for what `save_features` cannot have written."""
    if "data" not in notes or notes["task"] not in ("all", *TASKS):
        raise ValueError("no data, or no known task")
    widths = {}
    for key, (tensor, _) in known.items():
        data_set, task, side, name = key.split("/", 3)
        if tensor.ndim != 2:
            raise ValueError(f"'{key}' has {tensor.ndim} dimensions and not 2")
        if side in ("query", "gallery", "test"):
            width = widths.setdefault((data_set, task), tensor.shape[1])
            if tensor.shape[1] != width:
                raise ValueError(f"'{key}' is {tensor.shape[1]} wide, others {width}")
        elif side == "matching" and name == "nearest":
            scores, _ = known[key.replace("nearest", "scores")]
            if tensor.shape != scores.shape or tensor.dtype != torch.int64:
                raise ValueError(f"'{key}' does not fit the scores beside it")


# ---- the second stage of text-to-image retrieval (Supp. 5.2) ----

def match(model, dataset, gallery, sentences, nearest, batch=64, amp="off"):
    """Matching logits of Eq. 8 of each sentence with the gallery images nearest (q top), (q top).

    The tokens of the whole gallery stay in memory, see `kept_where`; a sentence and its images are
    a batch of pairs.
    """
    paths = [record.path for record in gallery]
    with ThreadPoolExecutor(DECODERS) as pool, evaluating(model, amp) as device:
        def read(start):
            return load_batch(pool, dataset, paths[start:start + batch], model.size)

        tokens = []
        for images in read_ahead(read, range(0, len(paths), batch)):
            new = model.edit(normalise(send(images, device)))
            if not tokens:
                numbers = len(paths) * new[0].numel()
                place, dtype = kept_where(numbers, new.dtype, amp, device)
            tokens.append(new.to(place, dtype))
        tokens = torch.cat(tokens)

        logits = []
        bar = progress(sentences, f"{dataset.title} matching", leave=False)
        for sentence, indices in zip(bar, nearest.to(tokens.device)):
            instr = model.read_text(model.instruct([sentence]))
            no_and_yes = model.match(tokens[indices].to(device), instr)
            logits.append((no_and_yes[:, 1] - no_and_yes[:, 0]).float())
        return torch.stack(logits).cpu()


def kept_where(numbers, dtype, amp, device):
    """(device, dtype) of so many numbers that a model computed: a GPU keeps them if it has room,
    in the precision that the model reads them in; else they go to the CPU."""
    if device.type == "cuda":
        dtype = amp_dtype(amp, device) or dtype
    if has_room(numbers * dtype.itemsize, device):
        return device, dtype
    return torch.device("cpu"), dtype


def matched_first(nearest, scores):
    """A rescore(start, dist) that orders the images nearest (q top) by their scores; the others
    keep their order behind them."""
    nearest = nearest.numpy()
    scores = scores.numpy()

    def rescore(start, dist):
        for row, indices, best in zip(dist, nearest[start:], scores[start:]):
            row[indices] = best.min() - best - 2  # at most -2: ahead of every -cosine
        return dist

    return rescore
