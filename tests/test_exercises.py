"""The course: hand-outs come from the code, solutions pass, mistakes are named, nothing hangs."""

import ast
import csv
import ctypes
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import toydata
from exercises import answers, checks, code, grade, listen, make, probes
from exercises.table import EXERCISES
from model import InstructReID
from reid import cli
from reid.cli import UserError

ROOT = Path(__file__).parents[1]
WRITTEN = [exercise for exercise in EXERCISES if not exercise.trained]
BY_NAME = {exercise.name: exercise for exercise in EXERCISES}


@pytest.fixture(scope="module")
def runner():
    """One process for all students, with little time for each."""
    with grade.Runner(seconds=2) as runner:
        yield runner


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A hand-out as it is given away."""
    folder = tmp_path_factory.mktemp("course") / "handout"
    make.main(make.Config(str(folder)))
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
    """Taken back, each blanked function and docstring gives the code byte for byte, but for the
    imports."""
    def but_for_imports(text):
        imports = [node for node in ast.parse(text).body if isinstance(node, code.IMPORTS)]
        lines = text.splitlines()
        for node in reversed(imports):
            del lines[node.lineno - 1:node.end_lineno]
        return lines

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
        assert but_for_imports(blank) == but_for_imports(text), path


TELL_TALES = (  # a line of each solution
    "patches = rearrange(self.embed(images)", "gated = gate * v_instr", "torch.zeros(heads)",
    "equal_pairs(ids) * cosine", "gap.sign() * (d1 - d2", "dist.masked_fill(~far_ones",
    "(tokens * mask).sum(1)", "F.pad(mask, (1, 0)", "self._attend(instr_cls, patches)",
    "F.cross_entropy(logits.T", "exponential_(", "labels[:len(positive_logits)] = 1",
    "self.seed}:epoch", "h * w * (0.02", "hits_so_far / rank", "first_hits.cumsum()",
    "(q.clothes == g.clothes)", "F.interpolate(table", "softmax(Q K", "S' = Q K'^T",
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
    program = "import train, search, model; model.ViT.forward(None, None)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=empty, capture_output=True, text=True)
    assert done.stderr.strip().endswith("exercise patches: patches and positions")


def test_a_handout_imports_nothing_for_the_bodies_alone(empty):
    line = "from collections import Counter, defaultdict"
    assert line in code.reference()[D] and line not in (empty / D).read_text()
    for gone in ("Counter", "islice", "from einops import rearrange, repeat"):
        assert gone not in (empty / D).read_text() + (empty / M).read_text()


def test_only_some_exercises(tmp_path):
    folder = tmp_path / "new" / "handout"
    make.main(make.Config(str(folder), only=("contrast",)))
    changes = [p for p, text in code.reference().items() if (folder / p).read_text() != text]
    assert changes == ["losses.py"]
    assert "gated-attention, " not in (folder / "README.md").read_text()


# ---- grading ----

def test_an_empty_handout_gets_nothing_and_a_solution_all(empty, tmp_path, capsys):
    out = {"json": str(tmp_path / "marks.json"), "csv": str(tmp_path / "marks.csv")}
    grade.main(grade.Config([str(empty), str(ROOT)], **out))
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
    ("patches", M, "        self._check(images)\n", "", "are not refused"),
    ("gated-attention", M, "gated = gate * v_instr  #", "gated = v_instr  #",
     "the gate is not applied"),
    ("gated-attention", M, "gated = gate * v_instr  #", "gated = gate.tanh() * v_instr  #", "tanh"),
    ("gated-attention", M, "keys = as_keys(instr_mask)", "keys = None", "the mask is ignored"),
    ("gated-attention", M, "right = gate * scores_instr.softmax(-1)",
     "right = scores_instr.softmax(-1)", "the map lacks the gate"),
    ("zero-init", M, "torch.zeros(heads)", "torch.ones(heads)", "the gate: wrong, it starts at 0"),
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
    ("adaptive-triplet", L, '    valid &= rearrange(different, "a r1 -> a r1 1")\n',
     "", "r1 may be the anchor itself"),
    ("adaptive-triplet", L, "valid = gap.abs() > TIE\n    valid &= rearrange(different, \"a r1",
     "valid = gap.abs() >= 0\n    valid &= rearrange(different, \"a r1", "with b1 = b2 are counted"),
    ("adaptive-triplet", L, "valid = gap.abs() > TIE\n    valid &= rearrange(different, \"a r1",
     "valid = gap != 0\n    valid &= rearrange(different, \"a r1", "differ by less than TIE"),
    ("hard-mining", L, "masked_fill(~far_ones, -torch.inf).argmax(1)",
     "masked_fill(~far_ones, torch.inf).argmin(1)", "the nearest of far_ones"),
    ("hard-mining", L, "return by_identity + by_instruction", "return by_identity",
     "the triplets by instruction are missing"),
    ("hard-mining", L, 'rearrange(highest, "a -> a 1") - TIE', 'rearrange(highest, "a -> a 1")',
     "of them the farthest, the nearest"),
    ("hard-mining", L, "same = equal & different_images(ids)", "same = equal",
     "an image is a reference of itself"),
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
    ("dual-attention", M, "patches = image_tokens[:, 1:]\n        instr_cls = instr.tokens[:, :1]\n"
     "        words = instr.tokens[:, 1:]\n        words_mask = instr.mask[:, 1:]",
     "patches = image_tokens\n        instr_cls = instr.tokens[:, :1]\n"
     "        words = instr.tokens\n        words_mask = instr.mask", "reads the other one too"),
    ("dual-attention", M, "return self.norm(x[:, 0])", "return x[:, 0]", "self.norm is missing"),
    ("contrast", L, "(image_to_text + text_to_image) / 2", "image_to_text",
     "only images look for texts"),
    ("contrast", L, "positive = equal_pairs(ids).to(logits.dtype)",
     "positive = torch.eye(len(ids)).to(logits)", "only its own sentence"),
    ("contrast", L, "similarity / temperature", "similarity * temperature", "multiplied"),
    ("contrast", L, "full(image_feats) @ full(text_feats).T", "image_feats @ text_feats.T",
     "L_cl of half precision: torch.bfloat16"),
    ("contrast", L, "logits = similarity / temperature", "logits = similarity / float(temperature)",
     "the temperature gets no gradient"),
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
    ("sampler", D, "(self.images_per_id + turn) // len(groups)", "self.images_per_id // len(groups)",
     "the batches of K = 3: a batch is a list of P x K = 6"),
    ("sampler", D, 'f"{self.seed}:epoch {epoch}"', 'f"{epoch}"', "the same order of people"),
    ("sampler", D, 'f"{self.seed}:step {step}"', 'f"{step}"', "the same images of a person"),
    ("erasing", D, "(left * (w - width + 1)).floor()", "left * 0", "the last column is hardly ever"),
    ("erasing", D, "(top * (h - height + 1))", "(top * (h - height))", "the last row is hardly ever"),
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
    ("average-precision", E, "QueryFigures(np.nan, np.nan, np.nan, 0, ranked)",
     "QueryFigures(0.0, 0.0, 0.0, 0, ranked)", "ap, inp and first_rank are NaN"),
    ("average-precision", E, 'raise UserError("no query has a hit', 'raise ValueError("no query has a hit',
     "summary raises a UserError"),
    ("average-precision", E, "return np.sort(1 + ahead)", "return np.sort(ahead)",
     "ranks begin at 0"),
    ("average-precision", E, "earlier = candidates[candidates < hits[i]]", "earlier = candidates[:0]",
     "a tie counts for the hit"),
    ("average-precision", E, "ap = np.mean(hits_so_far / ranks)", "ap = 1 / ranks[0]",
     "ap is the mean over the hits"),
    ("average-precision", E, "first_hits.cumsum() / queries", "first_hits / queries",
     "cmc is not cumulative"),
    ("average-precision", E, "    ahead &= ~removed\n", "", "removed images count for the rank"),
    ("average-precision", E, "hits = np.flatnonzero(positive & ~removed)",
     "hits = np.flatnonzero(positive)", "hits is the number of hits, of which a removed image"),
    ("average-precision", E, "return 1 + len(np.unique(ids_ahead))", "return 1 + len(ids_ahead)",
     "a person with several counts once"),
    ("protocols", P, "return same_person(q, g) & (q.cam == g.cam)", "return q.cam == g.cam",
     "general leaves out a stranger before the query's camera"),
    ("protocols", P, "((q.cam == g.cam) | (q.clothes == g.clothes))", "(q.clothes == g.clothes)",
     "cc keeps the query's person before the query's camera in other"),
    ("protocols", P, " | g.junk", "", "marked as junk"),
    ("resize-positions", W, "mode=mode, align_corners=False", "mode=mode, align_corners=True",
     "corners are aligned"),
    ("resize-positions", W, '"1 (h w) d -> 1 d h w", h=source[0]', '"1 (w h) d -> 1 d h w", h=source[0]',
     "the grid is read column by column"),
)


@pytest.mark.parametrize("name, path, old, new, sentence", MISTAKES)
def test_a_mistake_is_named(hand_in, name, path, old, new, sentence):
    marks = hand_in(changed(path, old, new), [name])
    assert marks[name].points == 0
    assert sentence in marks[name].sentence and "assert" not in marks[name].sentence


def test_every_exercise_has_two_mistakes():
    for exercise in WRITTEN:
        assert sum(row[0] == exercise.name for row in MISTAKES) >= 2, exercise.name


def test_every_sentence_can_be_said(runner):
    """The value of each known mistake differs from the right one somewhere."""
    for exercise in WRITTEN:
        differ = {}

        class Recorded(answers.Answers):
            def equal(self, what, expected, otherwise, mistakes=()):
                super().equal(what, expected, otherwise, mistakes)
                right = answers.as_array(expected)
                for sentence, value in dict(mistakes).items():
                    is_other = not answers.close(answers.as_array(value), right)
                    differ[sentence] = differ.get(sentence, False) or is_other

        given = runner.answers(exercise, code.reference())
        getattr(checks, exercise.function)(Recorded(given.values))
        assert all(differ.values()), [sentence for sentence in differ if not differ[sentence]]


def test_a_wrong_exercise_takes_no_others_down(hand_in):
    changes = changed(L, "gap.sign() * (d1 - d2 + gap * margin)", "d1 - d2")
    changes |= with_body("model.ViT.forward", "raise ValueError('no idea')")
    marks = hand_in(changes, [])
    assert not marks
    marks = hand_in(changes, [exercise.name for exercise in WRITTEN])
    wrong = [mark.exercise for mark in marks.values() if not mark.points]
    assert wrong == ["patches", "adaptive-triplet"]
    assert marks["patches"].sentence == (
        "ValueError in forward, at `raise ValueError('no idea')`: no idea")


LEAKS = (  # exercise, module, what is there, what breaks our code, what is said
    ("dual-attention", M, "x = block(x, mask=mask)", "x = block(x, mask=mask[:, 1:])",
     "RuntimeError in _attend, at `x = block(x, mask=mask[:, 1:])`"),
    ("hard-mining", L, "b2 = beta[anchors, r2]\n    gap = b1 - b2",
     "b2 = beta[anchors, r2]\n    gap = (b1 - b2)[:2]",
     "RuntimeError in hard_pair, at `terms = triplet_terms(d1, d2, gap, margin)`"),
    ("text-pooling", M, "return Instruction(tokens", "return None; Instruction(tokens",
     "AttributeError outside of your functions"),
)


@pytest.mark.parametrize("name, path, old, new, sentence", LEAKS)
def test_an_error_in_our_code_quotes_none_of_it(hand_in, name, path, old, new, sentence):
    mark = hand_in(changed(path, old, new), [name])[name]
    assert mark.sentence.startswith(sentence)
    for ours in ("scaled_dot_product", "as_keys", "gap.sign", "in forward", "in triplet_terms"):
        assert ours not in mark.sentence


def test_helpers_of_ones_own(hand_in):
    """New imports, constants, functions and methods come along; changes of others do not."""
    text = changed(L, "import torch.nn.functional as F", (
        "import math\nimport torch.nn.functional as F\n"
        "from einops import rearrange, reduce\n"
        "ZERO = math.log(1)\n\n\ndef hinge(x):\n"
        "    return reduce(x.clamp(min=ZERO), '... -> ...', 'sum')"))[L]
    text = text.replace("return term.relu()", "return hinge(term)")
    text = text.replace("return equal_pairs(ids) * cosine", "return same(ids) * cosine")
    text += "\n\ndef same(ids):\n    return ids[:, None] == ids\n"
    text = text.replace("TIE = 1e-6", "TIE = 9.0")
    attention = with_body("model.EditingAttention.maps", "return self.mine(x, instr, instr_mask)")[M]
    attention = attention.replace("    def _split(self", (
        "    def mine(self, *given):\n        return self(*given)\n\n    def _split(self"))
    marks = hand_in({L: text, M: attention}, ["adaptive-triplet", "gated-attention"])
    assert marks["adaptive-triplet"].points == 15
    assert marks["gated-attention"].sentence == (
        "the map: the shape (2, 5, 8), expected (2, 2, 5, 9)")


def test_sides_of_rectangles_may_be_cut(hand_in):
    text = code.reference()[D].replace(".sqrt().round()", ".sqrt().floor()")
    assert hand_in({D: text}, ["erasing"])["erasing"].points == 10


TERMS = "losses.triplet_terms"
FORGE = """\
import os
for file in range(3, 30):
    try:
        os.write(file, b'{}')
    except OSError:
        pass
os._exit(0)"""
TROUBLE = (  # a body of triplet_terms, what the grader says of it
    ("while True: pass", "look for an endless loop"),
    ("while True: print('all work and no play')", "look for an endless loop"),
    ("import sys; sys.exit()", "it ends the program (sys.exit)"),
    ("import os; os._exit(0)", "the process ended without an answer"),
    ("import os; os.kill(os.getppid(), 9)", "has no need of os.kill"),
    ("import os; os.system('true')", "has no need of os.system"),
    ("open('/etc/passwd').read()", "has no need of the file /etc/passwd"),
    ("open('losses.py', 'w')", "has no need of the file"),
    ("import exercises.checks", "ModuleNotFoundError in triplet_terms"),
    ("import tests.by_hand", "ModuleNotFoundError in triplet_terms"),
    ("return triplet_terms(d1, d2, gap, margin)", "RecursionError in triplet_terms"),
    ("pass", "the terms of Eq. 5: None (no return?)"),
    ("return 'a string'", "the terms of Eq. 5: a str, expected a tensor"),
    ("return d1[:2]", "the terms of Eq. 5: the shape (2,), expected (8,)"),
    ("return d1 > d2", "bool, expected floating-point numbers"),
    ("return d1 / 0 * 0", "the terms of Eq. 5: NaN or infinity"),
    ("return torch.zeros(10**7)", "the terms of Eq. 5: a tensor of shape (10000000,), expected"),
    ("import os; os.listdir('/proc/self/fd')", "has no need of the file /proc/"),
    (FORGE.replace("{}", '{"beta": {"dtype": 1}}'), "cannot be read"),
    (FORGE.replace("{}", "[7]"), "the process ended without an answer"),
    ("return undefined", "name 'undefined' is not defined"),
)


@pytest.mark.parametrize("body, sentence", TROUBLE)
def test_trouble_ends_in_a_sentence(hand_in, body, sentence):
    mark = hand_in(with_body(TERMS, body), ["adaptive-triplet"])["adaptive-triplet"]
    assert mark.points == 0 and sentence in mark.sentence


@pytest.mark.parametrize("text, sentence", (
    ("def triplet_terms(:", "losses.py, line 1, is no Python"),
    ("x = '\0'", "is no Python"),
    ("x = 1", "losses.py has no relatedness"),
    ("1 +" * 100_000 + "1", "is no Python"),
    ("#" * 2**21, "is huge"),
))
def test_a_broken_module_costs_its_exercises_alone(hand_in, text, sentence):
    marks = hand_in({L: text}, ["contrast", "adaptive-triplet", "patches"])
    assert marks["patches"].points == 5 and marks["contrast"].points == 0
    assert sentence in marks["adaptive-triplet"].sentence


def test_the_answer_is_not_beside_the_student(hand_in, runner):
    """Neither the reference body nor the way to it: what a function finds around itself."""
    body = "\n".join((
        "import inspect, sys, os, losses, model",
        "found = inspect.getsource(losses) + str(sys.path) + str(sys.argv) + str(dict(os.environ))",
        "raise ValueError(('d1 - d2' + ' + gap' in found, 'exercises' in sys.modules, os.getcwd()[:5]))",
    ))
    sources = code.blanked(code.reference(), [BY_NAME["adaptive-triplet"]])
    assert "d1 - d2 + gap" in code.reference()[L]
    assert "d1 - d2 + gap" not in "".join(sources.values())
    mark = hand_in(with_body(TERMS, body), ["adaptive-triplet"])["adaptive-triplet"]
    assert "(False, False, '/tmp/')" in mark.sentence
    assert str(ROOT) not in mark.sentence


def test_the_kernel_refuses_what_native_code_reads(hand_in):
    if ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1) < 0:
        pytest.skip("this kernel has no Landlock")
    body = f"raise ValueError(torch.UntypedStorage.from_file('{ROOT / L}', False, 9).tolist())"
    mark = hand_in(with_body(TERMS, body), ["adaptive-triplet"])["adaptive-triplet"]
    assert "Permission denied" in mark.sentence and "[34, 34" not in mark.sentence


def test_a_link_is_no_hand_in(tmp_path, runner):
    (tmp_path / L).symlink_to(ROOT / L)
    [mark] = grade.grade(tmp_path, make.chosen(["contrast"]), runner)
    assert mark.sentence.startswith("losses.py is missing, is a link")


# ---- the trained one ----

@pytest.mark.parametrize("found, sentence", (
    ({"wanted": 0.85, "own": 0.2}, None),
    ({"wanted": 0.85, "own": 0.85}, "a wrong one 85.0%: the difference must be 30% or more"),
    ({"wanted": 0.5, "own": 0.1}, "the right description finds 50.0% mAP, 60% are asked for"),
    ({"error": "last.pt is not a checkpoint"}, "last.pt is not a checkpoint"),
))
def test_listening_is_asked_for(tmp_path, monkeypatch, found, sentence):
    """Judged by the figures, as if a model had been evaluated."""
    shutil.copy(ROOT / L, tmp_path)
    (tmp_path / "last.pt").write_bytes(b"weights")
    said = subprocess.CompletedProcess([], 0, json.dumps(found), "")
    monkeypatch.setattr(grade.subprocess, "run", lambda *_, **__: said)
    monkeypatch.setattr(grade.Runner, "people", lambda runner: "toy")
    [mark] = grade.grade(tmp_path, make.chosen(["make-a-model-listen"]), grade.Runner(1))
    assert (mark.points == mark.most) == (sentence is None)
    assert sentence is None or sentence in mark.sentence


def test_what_is_no_model_gets_a_sentence(tmp_path):
    [mark] = grade.grade(tmp_path, make.chosen(["make-a-model-listen"]), grade.Runner(1))
    assert mark.sentence.startswith("there is no last.pt")


class Text(nn.Module):
    """A text tower without a language: equal sentences are equal."""

    width = 6

    def forward(self, sentences):
        tokens = [probes.numbers(sum(text.encode()), 3, 6) for text in sentences]
        tokens = torch.stack(tokens).float()
        return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool), tokens[:, 0]


def test_a_model_that_ignores_the_sentence_is_out_of_reach(tmp_path, monkeypatch):
    toydata.make_toy(tmp_path / "toy", 12, 0)
    torch.manual_seed(0)
    found = {}
    for editing in (True, False):
        model = InstructReID("tiny", editing=editing, text=Text()).eval()
        for block in model.editor.blocks if editing else ():
            nn.init.ones_(block.attn.gate)
        loaded = (model, {"feature": "edit"})
        monkeypatch.setattr(listen.checkpoints, "load_model", lambda path: loaded)  # noqa: B023
        found[editing] = listen.figures("last.pt", tmp_path / "toy")
    assert found[True]["wanted"] != found[True]["own"]
    assert found[False]["wanted"] == found[False]["own"]
    with pytest.raises(answers.Wrong, match="the difference must be 30% or more"):
        grade.check_listens(found[False])


# ---- the command line ----

@pytest.mark.parametrize("words, sentence", (
    ("make --out .", "--out . is there already"),
    ("make --out x --only nonsense", "--only nonsense: no such exercise; there are patches, "),
    ("grade docs", "docs is no hand-out"),
    ("grade . --only nonsense", "--only nonsense: no such exercise"),
))
def test_a_users_mistake_is_one_line(words, sentence):
    command, *rest = words.split()
    main, config = {"make": (make.main, make.Config), "grade": (grade.main, grade.Config)}[command]
    with pytest.raises(UserError, match=sentence.replace(".", "[.]")):
        main(cli.parse(config, rest))


def test_the_command(tmp_path):
    def call(*words):
        return subprocess.run([sys.executable, "-m", "exercises", *words], cwd=ROOT,
                              capture_output=True, text=True)

    done = call()
    assert done.returncode == 2 and done.stderr.startswith("error: python -m exercises make")
    done = call("make", "--out", "docs")
    assert done.returncode == 2 and done.stderr.startswith("error: --out docs is there already")


def test_the_model_that_comes_with_the_code_is_no_answer(capsys):
    listen.main(listen.checkpoints.DRAWN, "nowhere")
    assert "hand in the last.pt of your run" in capsys.readouterr().out
