"""Find people in a folder of photos with a picture of them, a sentence, or both.

    python -m extras.search --photos ./crops --query anna.jpg --instruction "in a red coat"

Each photo shows one person, cropped as by a detector. Unlike gallery images of ctcc and li, such
photos have no instruction; `reid.uninstructed.scores` is the rule that ranks them.
Letters in shapes: b batch, n photos, d feature width, H W size of a photo.
"""

import json
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from os.path import realpath
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
import torch.nn.functional as F

import evaluate
from instructions import PERSON_SENTENCE, SENTENCES, Ask
from reid import cli, plots
from reid.cli import UserError, printable, user_error
from reid.device import inference, pick_device
from reid.features import load_features, save_features
from reid.files import digest_of
from reid.images import DECODERS, is_image, load_image, normalise
from reid.records import Dataset, Record
from reid.text import TextEncoder
from reid.uninstructed import CLOTHES, SHARES, UNINSTRUCTED, scores

TASK_SENTENCES = {sentence for sentences in SENTENCES.values() for sentence in sentences}
FILES = Dataset("photos", "photos", "", Path(), ())  # paths as they are given
UNREADABLE = "cannot be read"  # reasons why files are left out
LEFT_OUT = (UNREADABLE, "hidden", "linked folders", "not named as images")
INDEX = "index.safetensors"  # in the folder of photos, unless --index names another place
TOKENS = "tokens of "  # tensors in an index with names that begin so belong to sentences
MOST = 100  # sentences in an index
ANOTHER = "move it or name another --index"


# ---- features: all L2-normalised, on the CPU ----

def understand(config):
    """(s of the rule, the Ask with which photos are compared, or None).

    With a query, a task sentence of the paper becomes s, for query and photos, as in its task: "do
    not change clothes" finds the same clothes.
    """
    instruction = config.instruction
    if instruction is None:
        return PERSON_SENTENCE, None
    if config.query and instruction in TASK_SENTENCES:
        return instruction, None
    if os.path.isfile(instruction):
        return PERSON_SENTENCE, Ask(picture=instruction)
    return PERSON_SENTENCE, Ask(instruction)


def embed(run, images, ask, kind):
    """Features (b d) as in evaluation, all with the same Ask or None."""
    feats = evaluate.embed_batch(run.model, FILES, images, [ask], kind)
    return F.normalize(feats[kind], dim=1).cpu()


def embed_photos(run, images, kind):
    """Features (b d) of photos, uint8 (b 3 H W), of a kind: CLOTHES, UNINSTRUCTED, or a sentence as
    their instruction."""
    images = normalise(images.to(next(run.model.parameters()).device))
    if kind == CLOTHES:
        return embed(run, images, None, CLOTHES)
    if kind == UNINSTRUCTED:
        return embed(run, images, None, "edit")
    return embed(run, images, Ask(kind), run.feature)


def photo_features(run, folder, kinds, index):
    """(the readable [Photo], {kind: their features (n d)}).

    Features in the Index are reused; new ones are added to its file, even if the program is
    interrupted.
    """
    photos, left_out = find_photos(folder, index.path)
    check_widths(run, index)
    known = index.photos
    if not set(kinds) <= set(index.kinds):  # each photo of an index has all its kinds
        known = {}
    kinds = list(dict.fromkeys([*index.kinds, *kinds]))

    new = [photo for photo in photos if photo not in known]
    kept = len(known)
    try:
        for some, images in load_readable(folder, new, run.model.size, run.batch, left_out):
            feats = [embed_photos(run, images, kind) for kind in kinds]
            known.update(zip(some, zip(*feats)))
    finally:
        photos = [photo for photo in photos if photo in known]
        columns = zip(*[known[photo] for photo in photos])
        feats = {kind: torch.stack(column) for kind, column in zip(kinds, columns)}
        sentences = sentences_read(run.model.encoder.text, index.sentences)
        if len(known) > kept or sentences.keys() != index.sentences.keys():
            write_index(index._replace(photos=photos, sentences=sentences), feats)

    counts = [f"; {len(some)} {why}, such as {some[0]}" for why, some in left_out.items() if some]
    left_out = printable("".join(counts))
    if not photos:
        raise UserError(f"--photos {folder}: no photo in it that can be read{left_out}")
    print(f"{len(photos)} photos, {len(known) - kept} of them new{left_out}", file=sys.stderr)
    return photos, feats


# ---- the photos ----

class Photo(NamedTuple):
    """A file at the time when it was read; with another size or time it is another photo."""
    path: str  # below the folder
    size: int  # bytes
    mtime: int  # nanoseconds


def find_photos(folder, index):
    """([Photo] in a folder and its subfolders, by path; {reason: [path]} of other files)."""
    photos = []
    left_out = {why: [] for why in LEFT_OUT}
    for where, folders, names in os.walk(folder, onerror=left_out[UNREADABLE].append):
        closed = [name for name in folders if name[0] == "." or Path(where, name).is_symlink()]
        folders[:] = set(folders).difference(closed)
        for path in [Path(where, name) for name in [*closed, *names]]:
            if is_image(path) and path.is_file():
                stat = path.stat()
                name = str(path.relative_to(folder))
                photos.append(Photo(name, stat.st_size, stat.st_mtime_ns))
            elif path not in (Path(index), Path(folder, INDEX)):
                left_out[why_left_out(path)].append(str(path))
    return sorted(photos), left_out


def why_left_out(path):
    """The reason, of LEFT_OUT, why a path is not a photo."""
    unreadable, hidden, linked, other = LEFT_OUT
    if path.name.startswith("."):
        return hidden
    if path.is_dir():
        return linked
    return unreadable if is_image(path) else other


def load_readable(folder, photos, size, batch, left_out):
    """Yields (Photos, their images, uint8 (b 3 H W)), `batch` at a time; unreadable ones are added
    to left_out."""
    def load(photo):
        path = Path(folder, photo.path)
        try:
            return load_image(path, size)
        except UserError:
            left_out[UNREADABLE].append(str(path))

    with ThreadPoolExecutor(DECODERS) as pool:
        for start in cli.progress(range(0, len(photos), batch), "photos", leave=False):
            some = photos[start:start + batch]
            loaded = zip(some, pool.map(load, some))
            loaded = {photo: image for photo, image in loaded if image is not None}
            if loaded:
                yield loaded, torch.stack(list(loaded.values()))


# ---- the index: results of earlier searches ----

class Index(NamedTuple):
    """A file with a tensor (n d) of each kind and the tokens (t k) of each sentence; its notes have
    the photos and the checkpoint."""
    path: str
    checkpoint: str  # the digest of the model's file
    kinds: list = []
    photos: dict = {}  # {Photo: a feature (d) of each kind}
    sentences: dict = {}  # {sentence: its tokens, half precision}


def read_index(path, checkpoint):
    """The Index in a file; an empty one if it is of another checkpoint or does not exist."""
    if not os.path.exists(path):
        return Index(path, checkpoint)
    feats, notes = load_features(path, {"photos", "checkpoint"}, fix=ANOTHER)
    if notes["checkpoint"] != checkpoint:
        return Index(path, checkpoint)
    with user_error(f"{path}: no index that a search wrote", ANOTHER):
        photos = [Photo(*photo) for photo in json.loads(notes["photos"])]
        names = [name for name in feats if name.startswith(TOKENS)]
        sentences = {name.removeprefix(TOKENS): feats.pop(name).half() for name in names}
        shapes = {rows.shape[1:] for rows in sentences.values()}
        is_odd = len(shapes) > 1 or any(len(shape) != 1 for shape in shapes)
        is_odd |= not all(len(rows) and rows.isfinite().all() for rows in sentences.values())
        if is_odd or {len(of_kind) for of_kind in feats.values()} - {len(photos)}:
            raise ValueError("tensors of other shapes")
        known = dict(zip(photos, zip(*feats.values())))
    return Index(path, checkpoint, list(feats), known, sentences)


def check_widths(run, index):
    """UserError unless the features of an Index are as wide as those of the model."""
    blank = torch.zeros(1, 3, *run.model.size, dtype=torch.uint8)
    for feats in list(index.photos.values())[:1]:
        for kind, feat in zip(index.kinds, feats):
            if feat.shape != embed_photos(run, blank, kind)[0].shape:
                raise UserError(f"{index.path}: the features under '{kind:.60}' have another "
                                f"width; {ANOTHER}")


def write_index(index, feats):
    """Writes an index atomically; if this fails, prints a line, and the search continues."""
    notes = {"checkpoint": index.checkpoint, "photos": json.dumps(index.photos)}
    tokens = {f"{TOKENS}{key}": rows.float() for key, rows in index.sentences.items()}
    try:
        save_features(index.path, feats | tokens, notes)
    except UserError as error:
        print(printable(f"the features are not saved: {error}"), file=sys.stderr)


def sentences_read(text, known):
    """The latest sentences, of an index and those that the packaged BERT has encoded completely
    since, with their tokens."""
    if not getattr(text.bert, "embedded", False) or text.trainable:
        return known
    new = {key: rows for key, rows in text.memory.items()
           if key not in known and not text.unread([key])}
    return dict([*known.items(), *new.items()][-MOST:])


def reader_of(known, device):
    """A TextEncoder for sentences whose tokens are known, {sentence: (t k)}, without the BERT: to
    import transformers and load the BERT takes longer than the rest of a search."""
    bert = torch.nn.Module()
    bert.embedded = True
    bert.device = device
    bert.config = SimpleNamespace(hidden_size=next(iter(known.values())).shape[1])
    text = TextEncoder(bert, tokenizer=None)
    text.memory.update(known)
    return text


# ---- the hits ----

def hits_of(query, folder, photos, parts, top):
    """The best `top` photos as dicts, without the query's own file. parts: the two scores of
    `scores`."""
    total = parts[0] + parts[1]
    if not total.isfinite().all():
        raise UserError("the model gives NaN or infinity: use an earlier --checkpoint")

    paths = [Path(folder, photo.path) for photo in photos]
    order = total.argsort(descending=True, stable=True).tolist()
    others = (i for i in order if not (query and paths[i].samefile(query)))
    hits = []
    for rank, i in enumerate(islice(others, top), 1):
        hits.append({
            "rank": rank,
            "photo": str(paths[i]),
            "score": total[i].item(),
            "from_person": parts[0][i].item(),
            "from_instruction": parts[1][i].item(),
        })
    if not hits:
        raise UserError(f"--photos {folder}: no photo in it except the query itself")
    return hits


def show(query, hits, config):
    """Prints the hits, as text or as JSON lines."""
    if config.json:
        for hit in hits:
            print(json.dumps({"query": query, "instruction": config.instruction} | hit))
        return

    print(printable(" + ".join(filter(None, [query, config.instruction]))))
    for hit in hits:
        parts = ""
        if config.explain:
            parts = " = {from_person:.3f} person + {from_instruction:.3f} instruction".format(**hit)
        print(f"{hit['rank']:4}  {hit['score']:.3f}{parts}  {printable(hit['photo'])}")
    print()


def draw(answers, sentence, ask):
    """The figure of the hits, without verdicts. answers: [(query, hits)]."""
    ask = ask or Ask(sentence)
    rows = []
    for query, hits in answers:
        record = Record("photos", "query", query, pid=0)
        photos = [Record("photos", "gallery", hit["photo"], pid=0) for hit in hits]
        ranking = [(photo, None) for photo in photos[:plots.TOP]]
        rows.append(plots.RankRow(FILES, record, ask.words or "wanted", ask, ranking))
    return plots.ranking_list(rows)


# ---- command line ----

@dataclass
class Config:
    """Finds people in a folder of photos with a picture of them, a sentence, or both.

    python -m extras.search --photos ./crops --query anna.jpg --instruction "in red" --out hits.png
    """

    photos: str = cli.option(None, "folder of photos, flat or nested, each of one person")
    query: tuple = cli.option((), "photos of people; a separate search for each")
    instruction: str = cli.option(
        None, "the clothes to look for, as a sentence or a picture; or a task sentence such as 'do "
        "not change clothes'")
    weight: float = cli.option(
        None, "w, the instruction's share of the score, from 0 to 1; None = .4 for a sentence, .3 "
        "for a picture of clothes", least=0, most=1)
    top: int = cli.option(10, "number of photos to print", least=1)
    explain: bool = cli.option(False, "print the person's and the instruction's part of each score")
    json: bool = cli.option(False, "print JSON lines, always with both parts of the score")
    out: str = cli.option(None, "draw the first ten photos into this .png")
    checkpoint: str = cli.option(
        None, "a last.pt of train.py; None = runs/all/last.pt or, if that does not exist, the "
        "bundled model of drawn people")
    index: str = cli.option(
        None, "file for the features of the photos; None = index.safetensors in their folder")
    device: str = cli.option("auto", "auto = a GPU if there is one, else the CPU")


def main(config):
    check_flags(config)
    sentence, ask = understand(config)
    checkpoint = evaluate.chosen_checkpoint(config.checkpoint)
    path = config.index or Path(config.photos, INDEX)
    index = read_index(path, digest_of(checkpoint))
    device = pick_device(config.device)

    trained = {sentence: "words", UNINSTRUCTED: "text queries", CLOTHES: "pictures"}
    words = {ask.words} if ask and ask.words else set()
    sentences = words.union(trained, index.kinds) - {UNINSTRUCTED, CLOTHES}
    are_known = sentences <= index.sentences.keys()
    text = reader_of(index.sentences, device) if are_known else None
    model, noted = evaluate.load_model(checkpoint, text)
    run = evaluate.Run(model.to(device), noted["feature"])
    for line in model.encoder.text.unread(words - index.sentences.keys()):
        print(f"note: {line}", file=sys.stderr)

    kinds = [kind for kind, part in trained.items() if part in model.parts]
    with inference(model, noted["amp"]):
        images = [load_image(path, model.size)[None] for path in config.query]
        people = [embed_photos(run, image, sentence)[0] for image in images]
        wanted = ask and embed(run, None, ask, "instruction" if ask.picture else "text")[0]
        photos, feats = photo_features(run, config.photos, kinds, index)

    person = instruction = torch.zeros(len(photos))
    w = 0
    if ask:
        kind = CLOTHES if ask.picture else UNINSTRUCTED
        instruction = feats[kind] @ wanted
        w = SHARES[kind] if config.weight is None else config.weight

    answers = []
    for query, feat in zip(config.query or [None], people or [None]):
        if query:
            person = feats[sentence] @ feat
        parts = scores(person, instruction, w if query else 1)
        hits = hits_of(query, config.photos, photos, parts, config.top)
        show(query, hits, config)
        answers.append((query, hits))
    if config.out:
        plots.save(draw(answers, sentence, ask), config.out)


def check_flags(config):
    """UserError for impossible flags, and for an --out that is an input or among the photos."""
    if not os.path.isdir(config.photos or ""):
        raise UserError(f"--photos {config.photos}: no such folder; name the one to search in")
    instruction = config.instruction
    try:
        (instruction or "").encode()
    except UnicodeEncodeError as error:
        raise UserError("--instruction: is not UTF-8; set a UTF-8 locale") from error
    if not config.query and instruction is None:
        raise UserError("nothing to look for: give a --query photo, an --instruction, or both")
    if instruction is not None and not instruction.strip():
        raise UserError("--instruction is empty: describe the clothes, or drop the flag")
    is_file_name = re.fullmatch(r"\S+\.\w{2,5}", instruction or "")
    if is_file_name and not (os.path.isfile(instruction) and is_image(instruction)):
        raise UserError(f"--instruction {instruction}: no such picture, or of an unknown format")

    cli.check_output("--out", config.out, ".png")
    out = Path(realpath(config.out or ""))
    inputs = [realpath(path) for path in (*config.query, instruction or "")]
    if config.out and (str(out) in inputs or Path(realpath(config.photos)) in out.parents):
        raise UserError(f"--out {config.out}: is an input or lies in --photos; name another place")


if __name__ == "__main__":
    cli.run(main, Config)
