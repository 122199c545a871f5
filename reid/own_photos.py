"""Own photos: one folder per person, with photos or with one folder per outfit.

    mine/anna/1.jpg                    a random split of the people, kept in mine/split.json
    mine/anna/coat/1_c3.jpg            with outfits, and with the camera in the name
    mine/train/anna/1.jpg              a split made by hand: train, query and gallery
"""

import json
import random
import re
from collections import Counter
from dataclasses import replace
from glob import glob

from reid.cli import UserError, user_error
from reid.files import read_json, write_text
from reid.images import is_image
from reid.records import Record

GIVEN = ("train", "query", "gallery")
SPLIT = "split.json"
AS_IT_WAS = "restore it, or remove it for a new split"
CAMERA = re.compile(r"(?:^|_)c(?:am)?(\d{1,4})(?=_|s\d|\.)", re.IGNORECASE)
FEWEST = 4  # people with two photos: two for training and two for testing


def is_own(root, names):
    """Whether `root` has folders of people, none of which has one of these reserved names."""
    photos = photos_of(root)
    folders = {part for path in photos for part in path.split("/")[:-1]}
    return len(numbered(photos)) > 1 and not folders & names


def photos_of(root):
    """The sorted paths of all photos below `root`: person/photo and person/outfit/photo."""
    paths = glob("*/*", root_dir=root) + glob("*/*/*", root_dir=root)
    return sorted(path for path in paths if is_image(path) and (root / path).is_file())


def person_of(path):
    return path.partition("/")[0]


def read_own(root, row):
    """The Records of a folder; one photo of each outfit of a test person is a query, the others are
    in the gallery."""
    if all((root / role).is_dir() for role in GIVEN):
        photos = [(role, path) for role in GIVEN for path in photos_of(root / role)]
        people = numbered(path for _, path in photos)
        return [record_of("given", role, path, people, f"{role}/") for role, path in photos]

    photos = photos_of(root)
    people = numbered(photos)
    trained = trained_people(root, photos)
    records = []
    seen = set()  # (person, outfit) with a query
    for path in random.Random(0).sample(photos, len(photos)):
        role = "train" if person_of(path) in trained else "gallery"
        record = record_of("random", role, path, people)
        if role == "gallery" and (record.pid, record.clothes) not in seen:
            seen.add((record.pid, record.clothes))
            record = replace(record, role="query")
        records.append(record)
    return sorted(records, key=lambda record: record.path)


def numbered(paths):
    """{person: pid}"""
    people = sorted({person_of(path) for path in paths})
    return {person: pid for pid, person in enumerate(people)}


def record_of(split, role, path, people, above=""):
    """The Record of the photo `above` + `path`, where `path` begins with the person."""
    person, *outfit, photo = path.split("/")
    pid = people[person]
    camera = CAMERA.search(photo)
    return Record(
        f"own:{split}-split", role, above + path, pid,
        cam=int(camera[1]) if camera else None,
        clothes=f"{pid}:{outfit[0]}" if outfit else None,
    )


def trained_people(root, photos):
    """The training people in split.json; if it is absent, a random half, which is saved there."""
    path = root / SPLIT
    people = Counter(map(person_of, photos))
    if path.exists():
        split = read_json(path, dict, AS_IT_WAS)
        with user_error(f"{path}: expected lists of people, train and test", AS_IT_WAS):
            trained, tested = (set(split[part]) for part in ("train", "test"))
        unknown = set(people) - trained - tested
        if unknown:
            raise UserError(f"{path}: {min(unknown)} is in neither list; add that name, or remove "
                            "the file for a new split")
        return trained

    several = sorted(person for person, count in people.items() if count > 1)
    if len(several) < FEWEST:
        raise UserError(f"{root}: {len(several)} people with two photos or more; at least {FEWEST} "
                        "are needed, half of them for testing")
    tested = set(several) - set(random.Random(0).sample(several, len(several) // 2))
    trained = set(people) - tested  # and those with one photo, which could not be found
    try:
        write_text(path, json.dumps({"train": sorted(trained), "test": sorted(tested)}, indent=1))
        print(f"{path}: half of the people are for training, the others for testing")
    except UserError as error:
        print(f"note: {error}; the next run makes the same split")
    return trained
