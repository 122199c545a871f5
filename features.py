"""Features of records under instructions: computed once by a model, kept in a file, re-scored by matching.

Letters in shapes: b batch, n records, d feature width, q queries.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from cli import UserError
from instructions import TASKS
from reid.images import load_image, normalise


@contextmanager
def evaluating(model):
    """Inference with BN necks in test mode, bfloat16 on CUDA. Gives the device; the model keeps its mode."""
    device, training = next(model.parameters()).device, model.training
    model.eval()
    try:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            yield device
    finally:
        model.train(training)


def load_batch(dataset, paths, size, device):
    """Pictures below dataset.root, decoded by a few threads: (b 3 h w), normalised."""
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(lambda path: load_image(dataset.root / path, size), paths))
    return normalise(torch.stack(images).to(device))


def encode_instructions(model, dataset, wanted, device, turned=False):
    """The Instruction of a batch; equal sentences or pictures are encoded once and handed out by index.

    turned: pictures are mirrored.
    """
    if wanted[0] is None:
        return None
    unique = list(dict.fromkeys(wanted))
    what = unique
    if TASKS[dataset.task].pictures:
        what = load_batch(dataset, unique, model.picture_size, device)
        what = what.flip(3) if turned else what
    encoded = model.instruct(what)
    if len(unique) == 1:
        return encoded  # a batch of 1 serves all images
    index = torch.tensor([unique.index(item) for item in wanted], device=device)
    return type(encoded)(*(part[index] for part in encoded))


def extract(model, dataset, records, asks, feature="edit", batch=64, flip=False):
    """Retrieval features of records under several lists of instructions, (n d) float32 each, on the CPU, normalised.

    asks: lists of one instruction per record: a sentence, for ctcc the path of a picture below dataset.root, None for
    the gallery of t2i. Images are read once for all lists and, where they never meet the instruction, embedded once.
    Records without a picture (t2i queries) are embedded by their sentence alone.
    flip: the sum of the features of both views; the picture of an instruction turns with the image, as in training.
    """
    blind = not model.editing and feature == "edit" and records[0].path is not None
    feats = [[] for _ in (asks[:1] if blind else asks)]
    with evaluating(model) as device:
        for i in tqdm(range(0, len(records), batch), f"{dataset.title} {dataset.task}", leave=False, disable=None):
            some = records[i:i + batch]
            images = None if some[0].path is None else load_batch(dataset, [r.path for r in some], model.size, device)
            for wanted, done in zip(asks, feats):
                if images is None:
                    instr = encode_instructions(model, dataset, wanted[i:i + batch], device)
                    new = model.embed_text(instr).expand(len(some), -1)
                else:
                    new = sum(model.embed(images.flip(3) if turned else images,
                                          encode_instructions(model, dataset, wanted[i:i + batch], device, turned),
                                          feature=feature).float() for turned in ((False, True) if flip else (False,)))
                done.append(F.normalize(new.float(), dim=1).cpu())
    return [torch.cat(done) for done in feats] * (len(asks) if blind else 1)


@dataclass
class Features:
    """The features of a run: computed by the model when first asked for, then remembered; or read from a file.

    known: {"data set/task/side/name of the instruction": ((n d) tensor, digest of the records and instructions)}.
    """
    model: torch.nn.Module | None = None
    feature: str = "edit"
    batch: int = 64
    flip: bool = False
    device: torch.device | str | None = None  # where distances are computed; None = beside the model
    known: dict = field(default_factory=dict)

    def __post_init__(self):
        self.device = self.device or next(self.model.parameters()).device

    def __call__(self, dataset, side, records, asks):
        """asks {name: one instruction per record} -> (n d) for each name; side: query, gallery, or test for both."""
        named = {f"{dataset.name}/{dataset.task}/{side}/{name}": wanted for name, wanted in asks.items()}
        new = [key for key in named if key not in self.known]
        if new:
            self.need_model(new[0])
            asks = [named[key] for key in new]
            feats = extract(self.model, dataset, records, asks, self.feature, self.batch, self.flip)
            self.known |= {key: (tensor, digest(records, named[key])) for key, tensor in zip(new, feats)}
        for key, wanted in named.items():
            if self.known[key][1] != digest(records, wanted):
                raise UserError(f"the features saved as '{key}' are of other images or instructions than those in "
                                f"{dataset.root}: mend --data or save them again")
        return [self.known[key][0] for key in named]

    def matches(self, dataset, gallery, sentences, qf, gf, top=128):
        """The second stage of t2i: indices of the `top` nearest images of each query and their logits, both (q top)."""
        near, logits = (f"{dataset.name}/{dataset.task}/matching/{name}" for name in ("nearest", "logits"))
        if near not in self.known:
            self.need_model(near)
            nearest = torch.cat([(rows @ gf.T).topk(min(top, len(gf))).indices for rows in qf.split(256)])
            scores = match(self.model, dataset, gallery, sentences, nearest, self.batch)
            if not scores.isfinite().all():
                raise UserError("the matching head gives NaN or infinity: take an earlier checkpoint or a lower --lr")
            self.known |= {near: (nearest, ""), logits: (scores, "")}
        return self.known[near][0], self.known[logits][0]

    def need_model(self, key):
        if self.model is None:
            raise UserError(f"the saved features lack '{key}': give --checkpoint the last.pt and save them again")


def digest(records, wanted):
    """What features were computed from, in 16 letters: other images, instructions or another order have others."""
    text = "\n".join(f"{record.path} {instr}" for record, instr in zip(records, wanted, strict=True))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def save_features(path, features, **told):
    """Writes what `features` knows as .safetensors, atomically; told: strings to read again, such as task and data."""
    part = Path(path).with_suffix(".part")
    told |= {"feature": features.feature, "flip": str(features.flip)}
    told |= {f"digest {key}": of for key, (_, of) in features.known.items()}
    try:
        # safetensors wants no tensor twice, which is what a blind model's features under 20 sentences are
        save_file({key: tensor.clone() for key, (tensor, _) in features.known.items()}, part, told)
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise UserError(f"--save-features {path}: {error}; name a .safetensors in a folder that exists") from error


def load_features(path, device="cpu"):
    """Undoes save_features: (Features without a model, what was told)."""
    try:
        with safe_open(path, "pt") as file:
            told = file.metadata() or {}
            known = {key: (file.get_tensor(key), told.pop(f"digest {key}")) for key in file.keys()}
        return Features(feature=told["feature"], flip=told["flip"] == "True", device=device, known=known), told
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{path} holds no features that --save-features wrote ({error}); save them again") from error


def match(model, dataset, gallery, sentences, near, batch=64):
    """Matching logits of Eq. 8 of each sentence and the gallery images near (q top), (q top).

    The tokens of the whole gallery stay in memory; a sentence and its images are one batch of pairs.
    """
    paths = [record.path for record in gallery]
    with evaluating(model) as device:
        tokens = torch.cat([model.edit(load_batch(dataset, paths[i:i + batch], model.size, device)).cpu()
                            for i in range(0, len(paths), batch)])
        pairs = tqdm(zip(sentences, near), f"{dataset.title} matching", len(near), leave=False, disable=None)
        logits = [model.match(tokens[images].to(device), model.instruct([sentence])) for sentence, images in pairs]
        return torch.stack([(pair[:, 1] - pair[:, 0]).float().cpu() for pair in logits])


def matched_first(near, logits):
    """A `rescore` that orders the images near (q top) by their logits; the others keep their order behind them."""
    near, logits = near.numpy(), logits.numpy()

    def rescore(start, dist):
        for row, images, logit in zip(dist, near[start:], logits[start:]):
            row[images] = logit.min() - logit - 2  # at most -2: ahead of every -cosine
        return dist

    return rescore
