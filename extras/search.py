"""Find people in a folder of photos with a picture of them, a sentence, or both.

    python search.py --photos ./crops --query anna.jpg --instruction "in a red coat"

A photo shows one person, as detectors cut them out. Nothing describes it, so the instruction that
gallery images of ctcc and li carry is missing: `reid.uninstructed.scores` is a rule that does without.
Letters in shapes: n photos, d feature width.
"""

import json
import os
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import reid  # noqa: F401  before torch: how its threads wait

# isort: split

import torch

from extras.photos import SUFFIXES, find_photos, photo_features
from instructions import PERSON_SENTENCE, SENTENCES, Ask
from reid import checkpoints, cli, pictures
from reid.cli import UserError
from reid.device import pick_device
from reid.features import evaluating
from reid.images import load_image, normalise
from reid.records import Dataset, Record
from reid.uninstructed import CLOTHES, SHARES, UNINSTRUCTED, embed_instruction, embed_photos, scores

TASK_SENTENCES = {sentence for sentences in SENTENCES.values() for sentence in sentences}


# ---- what is asked ----

class Question(NamedTuple):
    """What is asked, in features, (d) each."""

    query: str | None  # the file of a picture
    person: torch.Tensor | None  # the query under the sentence
    instruction: torch.Tensor | None
    sentence: str  # s of the rule
    view: str | None  # of the photos, which the instruction is compared with

    def ask(self, feats, w):
        """feats {view: (n d)} -> the two parts of the scores, (n) each."""
        zeros = torch.zeros(len(feats[self.sentence]))
        if self.instruction is None:
            return scores(feats[self.sentence] @ self.person, zeros, 0)
        instruction = feats[self.view] @ self.instruction
        if self.person is None:
            return scores(zeros, instruction, 1)
        return scores(feats[self.sentence] @ self.person, instruction, w)


def embed_questions(model, config, feature, device):
    """A Question for each query, or one without a query."""
    sentence, view = understand(config)
    instruction = None
    if view:
        what = [config.instruction]
        if view == CLOTHES:
            picture = load_image(config.instruction, model.picture_size)[None].to(device)
            what = normalise(picture)
        [instruction] = embed_instruction(model, view, model.instruct(what)).cpu()
    if not config.query:
        return [Question(None, None, instruction, sentence, view)]

    questions = []
    for path in config.query:
        image = load_image(path, model.size)[None].to(device)
        [person] = embed_photos(model, sentence, image, feature).cpu()
        questions.append(Question(path, person, instruction, sentence, view))
    return questions


def understand(config):
    """(s of the rule, the view that the instruction is compared with, None if there is none).

    One of the task sentences of the paper, with a query, is given to query and photos alike, as in
    its task: "do not change clothes" finds the same clothes.
    """
    if config.instruction is None:
        return PERSON_SENTENCE, None
    if config.query and config.instruction in TASK_SENTENCES:
        return config.instruction, None
    if os.path.isfile(config.instruction):
        return PERSON_SENTENCE, CLOTHES
    return PERSON_SENTENCE, UNINSTRUCTED


# ---- answers ----

def hits_of(question, folder, photos, feats, w, top):
    """The best `top` photos as dicts; the query's own file is not one of them.

    UserError if there is no other, and for scores that are not finite.
    """
    person, instruction = question.ask(feats, w)
    total = person + instruction
    if not total.isfinite().all():
        raise UserError("the model gives NaN or infinity: take an earlier --checkpoint")

    hits = []
    for i in total.argsort(descending=True, stable=True).tolist():
        path = Path(folder, photos[i].path)
        if question.query and path.samefile(question.query):
            continue
        if len(hits) == top:
            break

        hits.append({
            "rank": len(hits) + 1,
            "photo": str(path),
            "score": total[i].item(),
            "from_person": person[i].item(),
            "from_instruction": instruction[i].item(),
        })
    if not hits:
        raise UserError(f"--photos {folder}: no photo in it but the query itself")
    return hits


def show(question, hits, config):
    """Prints the hits, as text or as JSON lines."""
    if config.json:
        for hit in hits:
            asked = {"query": question.query, "instruction": config.instruction}
            print(json.dumps(asked | hit))
        return

    asked = [question.query, config.instruction]
    print(" + ".join(text for text in asked if text))
    for hit in hits:
        parts = ""
        if config.explain:
            parts = " = {from_person:.3f} person + {from_instruction:.3f} instruction".format(**hit)
        print(f"{hit['rank']:4}  {hit['score']:.3f}{parts}  {hit['photo']}")
    print()


def draw(questions, answers, config):
    """The picture of the ranks, which nobody has judged right or wrong."""
    instruction = config.instruction or PERSON_SENTENCE
    by_picture = questions[0].view == CLOTHES
    name = "wanted" if by_picture else instruction
    ask = Ask(picture=instruction) if by_picture else Ask(instruction)
    dataset = Dataset("photos", config.photos, "", Path(), ())

    rows = []
    for question, hits in zip(questions, answers):
        query = Record("photos", "query", question.query, pid=0)
        ranking = []
        for hit in hits[:pictures.TOP]:
            ranking.append((Record("photos", "gallery", hit["photo"], pid=0), None))
        rows.append(pictures.RankRow(dataset, query, name, ask, ranking))

    with redirect_stdout(sys.stderr):  # stdout is for the hits, which a program may read
        pictures.save(pictures.ranking_list(rows), config.out)


# ---- command line ----

@dataclass
class Config:
    """Finds people in a folder of photos with a picture of them, a sentence, or both.

    python search.py --photos ./crops --query anna.jpg --instruction "in a red coat" --out hits.png
    """

    photos: str = cli.option(None, "folder of photos, flat or nested, one person on each")
    query: tuple = cli.option((), "pictures of people; each is a search of its own")
    instruction: str = cli.option(
        None, "what they wear, in words or as a picture of clothes; or a task sentence such as "
        "'do not change clothes'")
    weight: float = cli.option(
        None, "w, the instruction's share of the score, from 0 to 1; None = .4 for words, .3 for a "
        "picture of clothes")
    top: int = cli.option(10, "how many photos to show")
    explain: bool = cli.option(False, "how much of a score is the person, how much the instruction")
    json: bool = cli.option(False, "print JSON lines, always with both parts of the score")
    out: str = cli.option(None, "draw the first ten into this .png")
    checkpoint: str = cli.option(
        None, "a last.pt that train.py wrote; None = runs/all/last.pt or, before the first run, a "
        "model of drawn people")
    index: str = cli.option(
        None, "keep the features of the photos here; None = in index.safetensors beside them")
    device: str = cli.option("auto", "auto takes CUDA if it is there")


def main(config):
    check_flags(config)
    sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be any bytes
    photos = find_photos(config.photos)
    index = config.index or str(Path(config.photos, "index.safetensors"))
    checkpoint = checkpoints.chosen(config.checkpoint)
    model, trained = checkpoints.load_model(checkpoint)
    model.to(pick_device(config.device))
    feature = trained["feature"]

    with evaluating(model, trained.get("amp", "off")) as device:
        questions = embed_questions(model, config, feature, device)

        def embed(view, images):
            return embed_photos(model, view, images.to(device), feature).cpu()

        views = (questions[0].sentence, UNINSTRUCTED, CLOTHES)
        photos, feats = photo_features(
            config.photos, photos, views, embed, index, checkpoint, model.size
        )

    answers = []
    for question in questions:
        w = SHARES.get(question.view) if config.weight is None else config.weight
        hits = hits_of(question, config.photos, photos, feats, w, config.top)
        show(question, hits, config)
        answers.append(hits)
    if config.out:
        draw(questions, answers, config)


def check_flags(config):
    """UserError for what cannot be asked."""
    if config.photos is None:
        raise UserError("--photos: name the folder to search in")
    if not config.query and config.instruction is None:
        raise UserError("nothing to look for: give --query a picture, --instruction words, or both")
    if config.instruction is not None:
        check_instruction(config.instruction)
    if config.weight is not None and not 0 <= config.weight <= 1:
        raise UserError(f"--weight {config.weight}: must be from 0 to 1")
    if config.top < 1:
        raise UserError(f"--top {config.top}: must be at least 1")
    if not Path(config.out or ".").parent.is_dir():
        raise UserError(f"--out {config.out}: name a .png in a folder that exists")


def check_instruction(instruction):
    """UserError for an empty one, and for a file that is not there."""
    if not instruction.strip():
        raise UserError("--instruction is empty: say what to look for, or leave the flag out")
    looks_like_file = instruction.lower().endswith(SUFFIXES)
    if looks_like_file and not os.path.isfile(instruction):
        raise UserError(f"--instruction {instruction}: no such picture")


if __name__ == "__main__":
    cli.run(main, Config)
