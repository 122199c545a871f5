"""A folder of one's own photos, and their features, kept in a file: the index.

Letters in shapes: b batch, n photos, d feature width, H W size of a photo.
"""

import hashlib
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from tqdm import tqdm

from reid.cli import UserError
from reid.files import replacing
from reid.images import load_image

SUFFIXES = (
    ".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp",
)
BATCH = 64


class Photo(NamedTuple):
    """A file as it was when it was read: with another size or time it is another photo."""

    path: str  # below the folder
    size: int  # bytes
    mtime: int  # nanoseconds


def find_photos(folder):
    """The Photos in a folder and its subfolders, by path; hidden ones are not looked at.

    UserError if there are none.
    """
    if not os.path.isdir(folder):
        raise UserError(f"--photos {folder}: no such folder")

    photos = []
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            is_photo = name.lower().endswith(SUFFIXES) and not name.startswith(".")
            path = Path(where, name)
            if is_photo and path.is_file():
                stat = path.stat()
                below = str(path.relative_to(folder))
                photos.append(Photo(below, stat.st_size, stat.st_mtime_ns))

    if not photos:
        raise UserError(f"--photos {folder}: no photo in it; looked for {' '.join(SUFFIXES)}")
    return sorted(photos)


# ---- features ----

def photo_features(folder, photos, views, embed, index, checkpoint, size):
    """([Photo], {view: (n d)}): what can be read, and its features on the CPU.

    Those in the file `index` are reused, the others computed and written there.
    views: names of kinds of features. embed(view, images): features (b d) of uint8 images
    (b 3 H W) of `size`. checkpoint: the file of the model.
    Files that cannot be read are named on stderr and left out. UserError if none can, or if the
    index cannot be written.
    """
    digest = file_digest(checkpoint)
    rows, kept = read_index(index, digest)
    views = list(dict.fromkeys([*views, *kept]))
    if len(views) > len(kept):  # each photo of an index has all its views
        rows = {}
        kept = {}

    new = [photo for photo in photos if photo not in rows]
    if new:
        check_writable(index)
    read, new_feats = embed_photos(folder, new, views, embed, size)
    for place, photo in enumerate(read, len(rows)):
        rows[photo] = place
    photos = [photo for photo in photos if photo in rows]
    if not photos:
        raise UserError(f"--photos {folder}: not one of its {len(new)} photos can be read")

    wanted = torch.tensor([rows[photo] for photo in photos])
    feats = {}
    for view in views:
        parts = [kept[view]] if view in kept else []
        feats[view] = torch.cat(parts + new_feats[view])[wanted]
    print(f"{len(photos)} photos, {len(read)} of them new", file=sys.stderr)
    if read:
        write_index(index, digest, photos, feats)
    return photos, feats


def embed_photos(folder, photos, views, embed, size):
    """([Photo] that can be read, {view: [(b d) of each batch]})."""
    read = []
    feats = {view: [] for view in views}
    for start in tqdm(range(0, len(photos), BATCH), "photos", leave=False, disable=None):
        batch = photos[start:start + BATCH]
        loaded, images = load_readable(folder, batch, size)
        if not loaded:
            continue
        for view in views:
            feats[view].append(embed(view, images))
        read += loaded
    return read, feats


def load_readable(folder, photos, size):
    """([Photo] that can be read, their images, uint8 (b 3 H W)); names the others on stderr."""
    def load(photo):
        try:
            return load_image(Path(folder, photo.path), size)
        except UserError as error:
            return error

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(load, photos))

    readable = []
    images = []
    for photo, result in zip(photos, results):
        if isinstance(result, UserError):
            print(f"skipped: {result}", file=sys.stderr)
            continue
        readable.append(photo)
        images.append(result)
    return readable, torch.stack(images) if images else None


# ---- the index: tensors are the views, the notes name photos and checkpoint ----

def read_index(path, digest):
    """({Photo: row}, {view: (n d)}) of an index; both empty if it is of another checkpoint, or if
    there is none. UserError if the file is something else."""
    if not os.path.exists(path):
        return {}, {}
    try:
        with safe_open(path, "pt") as file:
            notes = file.metadata() or {}
            photos = json.loads(notes["photos"])
            if notes["checkpoint"] != digest:
                return {}, {}
            feats = {view: file.get_tensor(view) for view in file.keys()}
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(
            f"{path} is no index that search.py wrote ({error}); move it or name another --index"
        ) from error
    rows = {Photo(*photo): row for row, photo in enumerate(photos)}
    return rows, feats


def write_index(path, digest, photos, feats):
    """Writes an index atomically. UserError if it cannot be written."""
    notes = {"checkpoint": digest, "photos": json.dumps(photos)}
    with replacing(path) as file:
        file.write(save(feats, notes))


def check_writable(path):
    """UserError for what would fail only after the photos have been read."""
    try:
        with open(f"{path}.part", "wb"):
            pass
        os.remove(f"{path}.part")
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error}); name a .safetensors in a folder that takes it by "
            "--index"
        ) from error


def file_digest(path):
    """What a file holds, in 16 letters."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
