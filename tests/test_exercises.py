"""The course: hand-outs are made from the code, solutions pass, mistakes are named, nothing hangs."""

import ast
import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from exercises import checks, code, grade, listen, make, probes
from exercises.table import EXERCISES
from reid.cli import UserError

ROOT = Path(__file__).parents[1]
WRITTEN = [exercise for exercise in EXERCISES if not exercise.trained]
BY_NAME = {exercise.name: exercise for exercise in EXERCISES}


@pytest.fixture(scope="module")
def runner():
    """One process for all students, with little time for each."""
    with grade.Runner(seconds=3) as runner:
        yield runner


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A hand-out as it is given away."""
    folder = tmp_path_factory.mktemp("course") / "handout"
    make.main(make.Make(str(folder)))
    return folder


@pytest.fixture
def hand_in(tmp_path, runner):
    """hand_in({path: text}, names) -> the Marks, by exercise, of a solution with these changes."""
    def graded(changes, names):
        for path, text in (code.reference() | changes).items():
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_text(text)
        marks = grade.grade(tmp_path, make.chosen(names), runner)
        return {mark.exercise: mark for mark in marks}
    return graded


def changed(path, old, new):
    """{path: text} of the code with one place changed."""
    text = code.reference()[path]
    assert text.count(old) == 1, f"{path} has {text.count(old)} times {old}"
    return {path: text.replace(old, new)}


def with_body(name, *lines):
    """{path: text} of the code with another body of a function."""
    path, inner = code.module_of(name)
    text = code.reference()[path]
    body = code.find(ast.parse(text), inner).body
    return {path: code._replaced(text, body[0], body[-1], "\n".join(lines))}


# ---- the hand-out ----

def test_every_exercise_names_functions_that_are_there():
    for exercise in EXERCISES:
        assert exercise.trained == (not exercise.functions)
        for name in [*exercise.functions, *exercise.docstrings]:
            path, inner = code.module_of(name)
            assert code.find(ast.parse(code.reference()[path]), inner), name
    for exercise in WRITTEN:
        assert hasattr(probes, exercise.function) and hasattr(checks, exercise.function)
    functions = [name for exercise in EXERCISES for name in exercise.functions]
    assert len(functions) == len(set(functions)) and len(BY_NAME) == len(EXERCISES) >= 12


def test_a_handout_is_the_code_but_for_the_bodies(empty):
    """Taken back, each blanked function and docstring gives the code byte for byte."""
    for path, text in code.reference().items():
        blank = (empty / path).read_text()
        for exercise in WRITTEN:
            for name in [*exercise.functions, *exercise.docstrings]:
                module, inner = code.module_of(name)
                if module == path:
                    whole = name in exercise.functions
                    theirs = code.find(ast.parse(blank), inner).body
                    ours = code.find(ast.parse(text), inner).body
                    assert not whole or code.is_blank(code.find(ast.parse(blank), inner)), name
                    lines = text.splitlines(keepends=True)
                    last = ours[-1] if whole else ours[0]
                    own = "".join(lines[ours[0].lineno - 1:last.end_lineno]).rstrip("\n")
                    given = theirs[-1] if whole else theirs[0]
                    own = own.replace("\n" + " " * ours[0].col_offset, "\n")
                    own = own.removeprefix(" " * ours[0].col_offset)
                    blank = code._replaced(blank, theirs[0], given, own)
        assert blank.splitlines() == text.splitlines(), path


TELL_TALES = (  # a line of each solution
    "patches = rearrange(self.embed(images)", "gated = gate * v_instr", "torch.zeros(heads)",
    "equal_pairs(ids) * cosine", "gap.sign() * (d1 - d2", "dist.masked_fill(~far_ones",
    "(tokens * mask).sum(1)", "F.pad(mask, (1, 0)", "self._attend(instr_cls, patches)",
    "F.cross_entropy(logits.T", "exponential_(", "labels[:len(positive_logits)] = 1",
    "self.seed}:epoch", "h * w * (0.02", "hits_so_far / rank", "first_hits.cumsum()",
    "(q.clothes == g.clothes)", "F.interpolate(", "softmax(Q K", "S' = Q K'^T",
)


def test_a_handout_has_no_solution(empty):
    files = {path for path in empty.rglob("*") if path.is_file()}
    theirs = "\n".join(path.read_text() for path in files)
    ours = "\n".join(code.reference().values())
    for line in TELL_TALES:
        assert line in ours and line not in theirs, line
    tops = {path.relative_to(empty).parts[0] for path in files}
    assert not tops & {"exercises", "tests", "docs", "benchmarks"}
    assert "{" not in (empty / "README.md").read_text().replace("{.}_+", "")


def test_a_handout_imports_and_says_what_is_next(empty):
    program = "import train, search, model; model.ViT((8, 8), 4, dim=8, depth=1, heads=2).forward(0)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=empty, capture_output=True, text=True)
    assert done.stderr.strip().endswith("exercise patches: patches and positions")


def test_only_some_exercises(tmp_path):
    folder = tmp_path / "new" / "handout"
    make.main(make.Make(str(folder), only=("contrast",)))
    changes = [p for p, text in code.reference().items() if (folder / p).read_text() != text]
    assert changes == ["losses.py"]
    assert "gated-attention, " not in (folder / "README.md").read_text()


# ---- grading ----

def test_an_empty_handout_gets_nothing_and_a_solution_all(empty, tmp_path, capsys):
    out = {"json": str(tmp_path / "marks.json"), "csv": str(tmp_path / "marks.csv")}
    grade.main(grade.Grade([str(empty), str(ROOT)], **out))
    marks = json.loads((tmp_path / "marks.json").read_text())
    most = sum(exercise.points for exercise in WRITTEN)
    assert [each["points"] for each in marks.values()] == [0, most]
    for row in marks[str(empty)]["exercises"]:
        assert row["sentence"].endswith(".py is not written yet")

    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == f"{ROOT}  points: {most} of {most}"
    assert lines[0].startswith(f"{empty}  points: 0 of {most}  not patches, gated-attention, ")
    with open(tmp_path / "marks.csv") as file:
        header, first, second = csv.reader(file)
    assert header[1:-1] == [exercise.name for exercise in WRITTEN]
    assert first[-1] == "0" and second[-1] == str(most)


M, L, D, E, P, W = (
    "model.py", "losses.py", "data.py", "evaluate.py", "reid/protocols.py", "reid/weights.py")
MISTAKES = (  # exercise, module, what is there, what a student may write, what the grader says
    ("patches", M, '"b d rows columns -> b (rows columns) d")\n        prefix',
     '"b d rows columns -> b (columns rows) d")\n        prefix', "column by column"),
    ("patches", M, "torch.cat([prefix, patches], 1) + self.pos", "torch.cat([prefix, patches], 1)",
     "the positions are missing"),
    ("patches", M, "x = block(x, instr, instr_mask)\n        return", "x = block(x)\n        return",
     "never see the instruction"),
    ("gated-attention", M, "gated = gate * v_instr  #", "gated = v_instr  #",
     "the gate is not applied"),
    ("gated-attention", M, "gated = gate * v_instr  #", "gated = gate.tanh() * v_instr  #", "tanh"),
    ("gated-attention", M, "keys = as_keys(instr_mask)", "keys = None", "the mask is ignored"),
    ("gated-attention", M, "right = gate * scores_instr.softmax(-1)",
     "right = scores_instr.softmax(-1)", "the map lacks the gate"),
    ("zero-init", M, "torch.zeros(heads)", "torch.ones(heads)", "the gate is wrong: it starts at 0"),
    ("zero-init", M, "nn.Parameter(torch.zeros(heads))", "torch.zeros(heads)",
     "they differ in gate (2,)"),
    ("zero-init", M, "self.v_instr = nn.Linear(instr_dim, dim)\n",
     "self.v_instr = nn.Linear(instr_dim, dim)\n            nn.init.zeros_(self.v_instr.weight)\n"
     "            nn.init.zeros_(self.v_instr.bias)\n", "the gate gets no gradient"),
    ("adaptive-triplet", L, "return equal_pairs(ids) * cosine", "return cosine",
     "the identities are ignored"),
    ("adaptive-triplet", L, "gap.sign() * (d1 - d2 + gap * margin)", "d1 - d2 + gap * margin",
     "the sign of b1 - b2 is missing"),
    ("adaptive-triplet", L, "full(instr.detach())", "full(instr)", "beta has a gradient"),
    ("adaptive-triplet", L, '    valid &= rearrange(different, "r1 r2 -> 1 r1 r2")\n', "", None),
    ("adaptive-triplet", L, '    valid &= rearrange(different, "a r1 -> a r1 1")\n',
     "", "b1 != b2"),
    ("hard-mining", L, "masked_fill(~far_ones, -torch.inf).argmax(1)",
     "masked_fill(~far_ones, torch.inf).argmin(1)", "the nearest of far_ones"),
    ("hard-mining", L, "return by_identity + by_instruction", "return by_identity",
     "the triplets by instruction are missing"),
    ("hard-mining", L, "same = equal & different_images(ids)", "same = equal", "is wrong"),
    ("text-pooling", M, "(tokens * mask).sum(1) / mask.sum(1)", "tokens.mean(1)",
     "the mean runs over the padding"),
    ("text-pooling", M, "torch.cat([whole, words], 1))  #", "torch.cat([words, whole], 1))  #",
     "the whole stands behind the words"),
    ("text-pooling", M, "(1, 0), value=True)\n        return I", "(0, 1), value=True)\n        return I",
     "the mask is padded at its end"),
    ("text-pooling", M, "what[:1] if all_alike else what", "what", "encoded twice"),
    ("dual-attention", M, "torch.cat([person, wish], -1)", "torch.cat([wish, person], -1)",
     "the instruction's side comes first"),
    ("dual-attention", M, "self._attend(image_cls, words, words_mask)",
     "self._attend(image_cls, words)", "the mask is ignored"),
    ("dual-attention", M, "return self.norm(x[:, 0])", "return x[:, 0]", "self.norm is missing"),
    ("contrast", L, "(image_to_text + text_to_image) / 2", "image_to_text",
     "only images look for texts"),
    ("contrast", L, "positive = equal_pairs(ids).to(logits.dtype)",
     "positive = torch.eye(len(ids)).to(logits)", "only its own sentence"),
    ("contrast", L, "similarity / temperature", "similarity * temperature", "multiplied"),
    ("hard-negatives", L, "logits.masked_fill(equal_pairs(ids), -torch.inf)\n    of_texts",
     "logits\n    of_texts", "of the same identity"),
    ("hard-negatives", L, "(chances / waits).argmax(1)", "chances.argmax(1)", "by chance"),
    ("hard-negatives", L, "of_images = logits.T.softmax(1)", "of_images = logits.softmax(1)",
     "rows and columns are exchanged"),
    ("hard-negatives", L, "labels[:len(positive_logits)] = 1",
     "labels[len(positive_logits):] = 1", "the labels are exchanged"),
    ("sampler", D, 'random.Random(f"{self.seed}:step {step}")', "random.Random()",
     "depends on those asked for before"),
    ("sampler", D, "count = (self.images_per_id + turn) // len(groups)",
     "count = self.images_per_id if i == favoured else 0", "among the modalities"),
    ("sampler", D, "turns.sort(key=lambda turn: turn[0])", "pass", "an outfit comes twice"),
    ("sampler", D, 'f"{self.seed}:epoch {epoch}"', '"0"', "same order"),
    ("erasing", D, "in_rows & in_columns & (chance < prob)", "in_rows & in_columns",
     "all images are erased or none"),
    ("erasing", D, "h * w * (0.02 + 0.31 * area)", "h * w * (0.02 + 0.6 * area)",
     "more than 33 % of the area"),
    ("erasing", D, "torch.rand(5, b, 1, 1, generator=generator", "torch.rand(5, b, 1, 1",
     "all random numbers must come from it"),
    ("erasing", D, "torch.rand(5, b, 1, 1, generator=generator, device=device)",
     "torch.rand(5, 1, 1, 1, generator=generator, device=device).expand(5, b, 1, 1)",
     "each decides by itself"),
    ("average-precision", E, "(dist <= hit_dist.max()) & ~removed", "dist <= hit_dist.max()",
     "removed images still take a place"),
    ("average-precision", E, "return np.sort(1 + ahead)", "return np.sort(ahead)",
     "ranks begin at 0"),
    ("average-precision", E, "earlier = candidates[candidates < hits[i]]", "earlier = candidates[:0]",
     "a tie counts for the hit"),
    ("average-precision", E, "ap = np.mean(hits_so_far / ranks)", "ap = 1 / ranks[0]",
     "ap is the mean over the hits"),
    ("average-precision", E, "first_hits.cumsum() / queries", "first_hits / queries",
     "cmc is not cumulative"),
    ("protocols", P, "return same_person(q, g) & (q.cam == g.cam)", "return q.cam == g.cam",
     "general leaves out strangers too"),
    ("protocols", P, "((q.cam == g.cam) | (q.clothes == g.clothes))", "(q.clothes == g.clothes)",
     "cc ignores the camera"),
    ("protocols", P, " | g.junk", "", "keeps junk"),
    ("resize-positions", W, "align_corners=False", "align_corners=True", "corners are aligned"),
    ("resize-positions", W, '"1 (h w) d -> 1 d h w", h=source[0]', '"1 (w h) d -> 1 d h w", h=source[0]',
     "the grid is read column by column"),
)


@pytest.mark.parametrize("name, path, old, new, sentence", MISTAKES)
def test_a_mistake_is_named(hand_in, name, path, old, new, sentence):
    if old == "align_corners=False" and "mode" in new:
        return
    marks = hand_in(changed(path, old, new), [name])
    print(marks[name].sentence)
    assert marks[name].points == 0
    assert sentence in marks[name].sentence and "assert" not in marks[name].sentence
