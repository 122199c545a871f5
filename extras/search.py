"""Find people in a folder of photos with a picture of them, a sentence, or both.

    python -m extras.search --photos ./crops --query anna.jpg --instruction "in a red coat"

A photo shows one person, cropped as detectors do. Such photos carry no instruction, as gallery
images of ctcc and li do: `reid.uninstructed.scores` is the rule that ranks them without one.
Letters in shapes: b batch, n photos, d feature width, H W size of a photo.
"""

import hashlib
import json
import os
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import reid  # noqa: F401  before torch: how its threads wait
# isort: split

import torch
import torch.nn.functional as F

import evaluate
from instructions import PERSON_SENTENCE, SENTENCES, Ask
from reid import cli, pictures
from reid.cli import UserError, printable
from reid.device import inference, pick_device, send
from reid.features import load_features, save_features
from reid.files import parse_json
from reid.images import DECODERS, is_image, load_image
from reid.records import Dataset, Record
from reid.uninstructed import CLOTHES, SHARES, UNINSTRUCTED, scores

TASK_SENTENCES = {sentence for sentences in SENTENCES.values() for sentence in sentences}
FILES = Dataset("photos", "photos", "", Path(), ())  # paths as they are given
BATCH = 64
UNREADABLE = "cannot be read"


# ---- the question ----

def understand(config):
    """(s of the rule, the Ask that photos are compared with, None if there is none).

    One of the paper's task sentences, with a query, is given to query and photos alike, as in its
    task: "do not change clothes" finds the same clothes.
    """
    instruction = config.instruction
    if instruction is None:
        return PERSON_SENTENCE, None
    if config.query and instruction in TASK_SENTENCES:
        return instruction, None
    if os.path.isfile(instruction):
        return PERSON_SENTENCE, Ask(picture=instruction)
    return PERSON_SENTENCE, Ask(instruction)


def kind_of(ask):
    """The kind of the photos' features that an Ask is compared with."""
    return CLOTHES if ask.picture else UNINSTRUCTED


def weight_of(config, ask):
    """w of the rule."""
    if ask is None:
        return 0
    if not config.query:
        return 1
    return SHARES[kind_of(ask)] if config.weight is None else config.weight


# ---- features: all L2-normalised, on the CPU ----

def embed_images(run, kind, images):
    """Features (b d) of images, uint8 (b 3 H W): a kind of reid.uninstructed, or a sentence, which
    the images are then given."""
    ask = None
    if kind not in SHARES:
        ask = Ask(kind)
        kind = "person"
    images = send(images, run.model.log_temperature.device)
    feats = evaluate.embed_batch(run, FILES, images, [ask], kind)
    return F.normalize(feats, dim=1).cpu()


def embed_ask(run, ask):
    """The feature (d) of an Ask, without an image of a person."""
    kind = "instruction" if ask.picture else "text"
    feats = evaluate.embed_batch(run, FILES, None, [ask], kind)
    return F.normalize(feats, dim=1)[0].cpu()


# ---- the photos ----

class Photo(NamedTuple):
    """A file as it was when it was read: with another size or time it is another photo."""

    path: str  # below the folder
    size: int  # bytes
    mtime: int  # nanoseconds


def find_photos(folder, index):
    """([Photo] in a folder and its subfolders, by path; {reason: [path]} of all else but the
    index)."""
    photos = []
    left_out = defaultdict(list)

    def keep(path):
        reason = why_left_out(path)
        if reason:
            left_out[reason].append(str(path))
        return not reason

    def failed(error):
        left_out[UNREADABLE].append(error.filename)

    for where, folders, names in os.walk(folder, onerror=failed):
        folders[:] = [name for name in folders if keep(Path(where, name))]
        for name in names:
            path = Path(where, name)
            if path != Path(index) and keep(path):
                stat = path.stat()
                below = str(path.relative_to(folder))
                photos.append(Photo(below, stat.st_size, stat.st_mtime_ns))
    return sorted(photos), left_out


def why_left_out(path):
    """The reason why a file or folder is not looked at; None if it is."""
    if path.name.startswith("."):
        return "hidden"
    if path.is_dir():
        return "links to folders" if path.is_symlink() else None
    if not is_image(path.name):
        return "not named as images"
    return None if path.is_file() else UNREADABLE


def photo_features(folder, embed, size, kinds, index, checkpoint):
    """([Photo] that can be read, {kind: (n d)} of them).

    embed(kind, images): features (b d) of uint8 images (b 3 H W) of `size`. Those in the file
    `index` are reused; the others are added to it, also when the program is interrupted.
    Says on stderr how many files were left out and why. UserError if no photo can be read.
    """
    photos, left_out = find_photos(folder, index)
    known = read_index(index, checkpoint, lambda kind: width_of(kind, embed, size))
    kinds = list(dict.fromkeys([*kinds, *known]))
    for kind in kinds:
        known.setdefault(kind, {})
    new = [photo for photo in photos if any(photo not in known[kind] for kind in kinds)]

    read = 0
    try:
        for some, images in load_readable(folder, new, size, left_out):
            for kind in kinds:
                known[kind].update(zip(some, embed(kind, images)))
            read += len(some)
    finally:
        photos = [photo for photo in photos if all(photo in known[kind] for kind in kinds)]
        if read:
            write_index(index, checkpoint, photos, known)

    counts = [f"{len(paths)} {why} (such as {paths[0]})" for why, paths in left_out.items()]
    summary = f"left out: {', '.join(counts) or 'none'}"
    if not photos:
        raise UserError(f"--photos {folder}: no photo in it that can be read; {summary}")
    print(printable(f"{len(photos)} photos, {read} of them new; {summary}"), file=sys.stderr)
    return photos, {kind: together(known[kind], photos) for kind in kinds}


def together(feats, photos):
    """{Photo: (d)} -> (n d), in the order of the photos."""
    return torch.stack([feats[photo] for photo in photos])


def width_of(kind, embed, size):
    """d of a kind of features."""
    return embed(kind, torch.zeros(1, 3, *size, dtype=torch.uint8)).shape[1]


def load_readable(folder, photos, size, left_out):
    """Yields ([Photo], their images, uint8 (b 3 H W)), BATCH at a time; those that cannot be read
    are added to left_out."""
    def load(photo):
        path = Path(folder, photo.path)
        try:
            return load_image(path, size)
        except UserError:
            left_out[UNREADABLE].append(str(path))

    with ThreadPoolExecutor(DECODERS) as pool:
        for start in cli.progress(range(0, len(photos), BATCH), "photos", leave=False):
            some = photos[start:start + BATCH]
            images = dict(zip(some, pool.map(load, some)))
            images = {photo: image for photo, image in images.items() if image is not None}
            if images:
                yield list(images), torch.stack(list(images.values()))


# ---- the index: a tensor (n d) of each kind, the notes name photos and checkpoint ----

def read_index(path, checkpoint, width):
    """{kind: {Photo: (d)}} of an index; empty if it is of another checkpoint, or if there is none.

    width(kind): d. UserError if the file is something else.
    """
    if not os.path.exists(path):
        return {}
    try:
        known, notes = load_features(path, {"photos", "checkpoint"})
        if notes["checkpoint"] != checkpoint:
            return {}
        photos = [Photo(*photo) for photo in parse_json(notes["photos"], list, path, "")]
        for kind, feats in known.items():
            if feats.shape != (len(photos), width(kind)):
                raise ValueError(f"{kind:.60} is of shape {tuple(feats.shape)}")
        return {kind: dict(zip(photos, feats)) for kind, feats in known.items()}
    except (UserError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is no index that a search wrote ({error.__cause__ or error}); move it or name "
            "another --index"
        ) from error


def write_index(path, checkpoint, photos, known):
    """Writes an index atomically; where that fails, one line says so, and the search goes on."""
    notes = {"checkpoint": checkpoint, "photos": json.dumps(photos)}
    try:
        feats = {kind: together(of_kind, photos) for kind, of_kind in known.items()}
        save_features(path, feats, notes)
    except UserError as error:
        print(printable(f"the next search computes these features again: {error}"), file=sys.stderr)


def file_digest(path):
    """What a file holds, in 16 letters."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


# ---- the hits ----

def hits_of(query, paths, person, instruction, top):
    """The best `top` photos as dicts; the query's own file is not one of them.

    person, instruction (n): the two parts of the scores. UserError if there is no other photo, and
    for scores that are not finite.
    """
    total = person + instruction
    if not total.isfinite().all():
        raise UserError("the model gives NaN or infinity: take an earlier --checkpoint")

    hits = []
    for i in total.argsort(descending=True, stable=True).tolist():
        if query and paths[i].samefile(query):
            continue
        if len(hits) == top:
            break

        hits.append({
            "rank": len(hits) + 1,
            "photo": str(paths[i]),
            "score": total[i].item(),
            "from_person": person[i].item(),
            "from_instruction": instruction[i].item(),
        })
    if not hits:
        raise UserError("--photos: no photo in it but the query itself")
    return hits


def show(query, hits, config):
    """Prints the hits, as text or as JSON lines."""
    if config.json:
        for hit in hits:
            print(json.dumps({"query": query, "instruction": config.instruction} | hit))
        return

    question = [query, config.instruction]
    print(printable(" + ".join(text for text in question if text)))
    for hit in hits:
        parts = ""
        if config.explain:
            parts = " = {from_person:.3f} person + {from_instruction:.3f} instruction".format(**hit)
        print(f"{hit['rank']:4}  {hit['score']:.3f}{parts}  {printable(hit['photo'])}")
    print()


def draw(answers, sentence, ask):
    """The picture of the hits, which nobody has judged right or wrong. answers: [(query, hits)]."""
    ask = ask or Ask(sentence)
    rows = []
    for query, hits in answers:
        record = Record("photos", "query", query, pid=0)
        ranking = []
        for hit in hits[:pictures.TOP]:
            ranking.append((Record("photos", "gallery", hit["photo"], pid=0), None))
        rows.append(pictures.RankRow(FILES, record, ask.words or "wanted", ask, ranking))
    return pictures.ranking_list(rows)


# ---- command line ----

@dataclass
class Config:
    """Finds people in a folder of photos with a picture of them, a sentence, or both.

    python -m extras.search --photos ./crops --query anna.jpg --instruction "in a red coat" \\
        --out hits.png
    """

    photos: str = cli.option(None, "folder of photos, flat or nested, one person on each")
    query: tuple = cli.option((), "pictures of people; each is a search of its own")
    instruction: str = cli.option(
        None, "what they wear, in words or as a picture of clothes; or a task sentence such as "
        "'do not change clothes'")
    weight: float = cli.option(
        None, "w, the instruction's share of the score, from 0 to 1; None = .4 for words, .3 for a "
        "picture of clothes", least=0, most=1)
    top: int = cli.option(10, "how many photos to show", least=1)
    explain: bool = cli.option(False, "how much of a score is the person, how much the instruction")
    json: bool = cli.option(False, "print JSON lines, always with both parts of the score")
    out: str = cli.option(None, "draw the first ten into this .png")
    checkpoint: str = cli.option(
        None, "a last.pt that train.py wrote; None = runs/all/last.pt or, before the first run, a "
        "model of drawn people")
    index: str = cli.option(
        None, "keep the features of the photos here; None = in index.safetensors beside them")
    device: str = cli.option("auto", "auto takes a GPU if it is there")


def main(config):
    check_flags(config)
    sentence, ask = understand(config)
    index = config.index or Path(config.photos, "index.safetensors")
    checkpoint = evaluate.chosen_checkpoint(config.checkpoint)
    model, trained = evaluate.load_model(checkpoint)
    run = evaluate.Run(model.to(pick_device(config.device)), trained["feature"])
    embed = partial(embed_images, run)

    with inference(model, trained["amp"]):
        wanted = ask and embed_ask(run, ask)
        people = [embed(sentence, load_image(path, model.size)[None])[0] for path in config.query]
        kinds = (sentence, UNINSTRUCTED, CLOTHES)
        photos, feats = photo_features(
            config.photos, embed, model.size, kinds, index, file_digest(checkpoint)
        )

    zeros = torch.zeros(len(photos))
    instruction = feats[kind_of(ask)] @ wanted if ask else zeros
    paths = [Path(config.photos, photo.path) for photo in photos]
    answers = []
    for query, feat in zip(config.query or [None], people or [None]):
        person = zeros if feat is None else feats[sentence] @ feat
        parts = scores(person, instruction, weight_of(config, ask))
        hits = hits_of(query, paths, *parts, config.top)
        show(query, hits, config)
        answers.append((query, hits))
    if config.out:
        pictures.save(draw(answers, sentence, ask), config.out)


def check_flags(config):
    """UserError for what cannot be asked, and for an --out that would replace an input."""
    if not os.path.isdir(config.photos or ""):
        raise UserError(f"--photos {config.photos}: name the folder to search in")
    instruction = config.instruction
    if not config.query and instruction is None:
        raise UserError("nothing to look for: give --query a picture, --instruction words, or both")
    if instruction is not None and not instruction.strip():
        raise UserError("--instruction is empty: say what to look for, or leave the flag out")
    if instruction and is_image(instruction) and not os.path.isfile(instruction):
        raise UserError(f"--instruction {instruction}: no such picture")

    cli.check_output("--out", config.out, ".png")
    if config.out is None:
        return
    out = os.path.realpath(config.out)
    if out in map(os.path.realpath, [*config.query, instruction or ""]):
        raise UserError(f"--out {config.out}: it would replace the picture that is looked for")
    if Path(os.path.realpath(config.photos)) in Path(out).parents:
        raise UserError(f"--out {config.out}: lies in --photos, where it would become a photo")


if __name__ == "__main__":
    cli.run(main, Config)
