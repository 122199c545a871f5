"""The exercises: what is handed out, what gets points, what a hand-out cannot do to the others."""

import ast
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from textwrap import indent

import pytest

from extras.exercises import code, grade, make, sandbox
from extras.exercises.table import EXERCISES
from reid import cli
from reid.cli import UserError

ROOT = Path(__file__).parents[1]
BY_NAME = {exercise.name: exercise for exercise in EXERCISES}
PYTHON = sys.executable
SLEEP = str(10**6 + os.getpid())  # seconds: nobody else sleeps that long

WRONG = {  # exercise -> a function of it, and a body that is not right
    "zero-init": ("EditingAttention.__init__", """\
super().__init__()
self.heads = heads
for name in ("q", "k", "v", "out"):
    setattr(self, name, nn.Linear(dim, dim))
if instr_dim is not None:
    self.k_instr = nn.Linear(instr_dim, dim)
    self.v_instr = nn.Linear(instr_dim, dim)
    self.gate = nn.Parameter(torch.ones(heads))"""),
    "gated-attention": ("EditingAttention.forward", "return self.out(self.v(x))"),
    "dual-attention": ("AttentionModule.forward", "return image_tokens[:, :2].flatten(1)"),
    "relatedness": ("relatedness", "return (ids[:, None] == ids).to(instr.dtype)"),
    "adaptive-triplet": ("triplet_terms", "return (gap.sign() * (d1 - d2) + margin).relu()"),
    "contrast": ("contrastive", """\
logits = image_feats @ text_feats.T / temperature
return F.cross_entropy(logits, torch.arange(len(ids)))"""),
    "matching": ("hard_negatives", "return similarity.argmax(1), similarity.argmax(0)"),
    "instructions": ("training_instructions", "return [TASKS[task].sentences[0]] * len(records)"),
    "sampler": ("PKSampler._pick", "return group[:count]"),
    "schedule": ("schedule", "return min(1, step / config.warmup)"),
    "average-precision": ("hit_ranks", "return 1 + np.argsort(np.argsort(dist))[hits]"),
}
FORGED = "".join(  # lines that give all points
    f"\n{json.dumps({each.name: dict.fromkeys(each.tests, '')})}\n" for each in EXERCISES).encode()
TROUBLE = {  # exercise -> a body of its first function that harms the grading
    "relatedness": f"""\
import os
for _ in range(20 if os.getuid() == 0 else 0):  # others may not fork
    if not os.fork():
        os.execvp("sleep", ["sleep", "{SLEEP}"])
while True: pass""",
    "adaptive-triplet": "import os; os.fork() or os._exit(0)",
    "contrast": "import os; os._exit(0)",
    "matching": "return torch.empty(6 * 2**30, dtype=torch.uint8)",
    "sampler": "import ctypes; ctypes.string_at(0)",
    "schedule": f"""\
import os, shutil
from pathlib import Path
processes = ["self", str(os.getppid())] if os.getuid() else ["self"]  # to root all are open
for process in processes:
    for file in Path("/proc", process, "fd").glob("*"):
        try:
            file.open("ab").write({FORGED})
        except OSError:
            print("all work and no play")
shutil.copy("evaluate.py", "../average-precision")
""",
    "average-precision": "import pytest; pytest.exit('done', 0)",
}


def with_body(text, name, body):
    """The text of a file in which the function `name` has that body."""
    owner, i = code.find(ast.parse(text), name)
    statements = owner[i].body
    lines = text.splitlines(keepends=True)
    margin = " " * statements[0].col_offset
    lines[statements[0].lineno - 1:statements[-1].end_lineno] = [indent(body, margin) + "\n"]
    return "".join(lines)


def hand_in(folder, bodies=()):
    """Writes the files of the exercises, complete but for {exercise: (function, body)}."""
    folder.mkdir()
    for exercise in EXERCISES:
        (folder / exercise.file).write_text(code.original(exercise))
    for name, (function, body) in dict(bodies).items():
        file = folder / BY_NAME[name].file
        file.write_text(with_body(file.read_text(), function, body))
    return folder


def rows_of(file):
    with open(file, newline="") as opened:
        return {row["handout"]: row for row in csv.DictReader(opened)}


# ---- hand-outs ----

@pytest.fixture(scope="module")
def handout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("handed") / "out"
    make.main(make.Config(out=str(folder)))
    return folder


def test_a_hand_out_lacks_the_bodies_and_nothing_else(handout):
    solved = {}
    for exercise in EXERCISES:
        original = code.original(exercise)
        handed = (handout / exercise.file).read_text()
        with pytest.raises(code.Unusable, match="is not written yet"):
            code.exchanged(original, handed.encode(), exercise)
        for name in exercise.functions:
            (body, i), (ours, j) = (code.find(ast.parse(text), name) for text in (handed, original))
            assert ast.dump(body[i].args) == ast.dump(ours[j].args)
            assert ast.get_docstring(body[i]) == ast.get_docstring(ours[j])
        so_far = solved.get(exercise.file, handed)
        solved[exercise.file] = code.exchanged(so_far, original.encode(), exercise)

    for path in handout.rglob("*.py"):
        name = str(path.relative_to(handout))
        text = solved.get(name, path.read_text())
        assert ast.dump(ast.parse(text)) == ast.dump(ast.parse((ROOT / name).read_text()))
    assert not list(handout.rglob("*.pt")) and not (handout / "extras").exists()


def test_the_page_asks_the_questions_of_what_is_handed_out(handout):
    page = (handout / "README.md").read_text()
    assert f"There are {sum(len(each.tests) for each in EXERCISES)} points" in page
    docs = (ROOT / "docs/teaching.md").read_text()
    for name, exercise in BY_NAME.items():
        assert re.search(rf"`{name}` \|.*\| {exercise.minutes} \| {len(exercise.tests)} \|", docs)
    alone = make.page([BY_NAME["schedule"]])
    for name in BY_NAME:
        assert f"\n**{name}**. " in page and f"| {name} | `" in page
        assert (f"**{name}**" in alone) == (f"| {name} |" in alone) == (name == "schedule")


def test_students_test_with_the_hand_out_alone(handout, tmp_path):
    folder = shutil.copytree(handout, tmp_path / "mine")
    shutil.copy(ROOT / "losses.py", folder)
    command = [PYTHON, "-m", "pytest", "@exercises/matching", "@exercises/schedule"]
    said = subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout
    assert "NotImplementedError: exercise schedule" in said and "1 failed, 2 passed" in said


# ---- grading ----

@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """The marks of three hand-outs by one command whose standard streams are closed."""
    folder = tmp_path_factory.mktemp("handed-in")
    hand_in(folder / "wrong", WRONG)
    bodies = {name: (BY_NAME[name].functions[0], body) for name, body in TROUBLE.items()}
    hand_in(folder / "trouble", bodies)
    (folder / "trouble/model.py").unlink()
    good = hand_in(folder / "good") / "losses.py"
    good.write_text(f"import no_such_module\n{good.read_text()}")  # nothing but functions is taken
    marks = folder / "marks.csv"
    folders = [folder / name for name in ("wrong", "trouble", "good")]
    words = [PYTHON, "-m", "extras.exercises", "grade", *folders, "--csv", marks, "--seconds", "6"]
    line = "exec " + " ".join(f"'{word}'" for word in words) + " <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", line], cwd=ROOT, timeout=600).returncode == 0
    return {Path(name).name: row for name, row in rows_of(marks).items()}


def test_what_is_right_gets_all_points(rows):
    for exercise in EXERCISES:
        assert rows["good"][exercise.name] == str(len(exercise.tests))
    assert rows["good"]["feedback"] == ""


def test_what_is_wrong_loses_points_and_a_sentence_says_why(rows):
    assert WRONG.keys() == BY_NAME.keys()
    for name, exercise in BY_NAME.items():
        assert int(rows["wrong"][name]) < len(exercise.tests), name
    assert rows["wrong"]["zero-init"] == "1" and rows["wrong"]["matching"] == "1"
    assert "the gates of layer 0 start at [1.0" in rows["wrong"]["feedback"]
    assert "the margin is not multiplied by b1 - b2, Eq. 5 has" in rows["wrong"]["feedback"]


def test_trouble_costs_the_exercise_that_makes_it(rows):
    found = {name: int(rows["trouble"][name]) for name in BY_NAME}
    assert found.pop("instructions") == 3
    assert found.pop("matching") == 1  # the test of its other function
    assert set(found.values()) == {0}
    for words in (
        "zero-init: model.py: the file is missing",
        "relatedness: the tests did not end in time",
        "adaptive-triplet: ",
        "contrast: the process that ran the tests ended without a result",
        "matching: RuntimeError",
        "sampler: the process that ran the tests was ended by: Segmentation fault",
    ):
        assert words in rows["trouble"]["feedback"]
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has just ended
            assert SLEEP.encode() not in file.read_bytes()


def test_time_memory_and_processes_are_limited():
    lines = ("from extras.exercises import child", "child.set_limits(7)",
             "left = child.signal.alarm(0)", "limits = child.resource",
             "print(left, *(limits.getrlimit(each)[1] for each in "
             "(limits.RLIMIT_CPU, limits.RLIMIT_NPROC, limits.RLIMIT_FSIZE)))")
    said = subprocess.check_output([PYTHON, "-c", "\n".join(lines)], cwd=ROOT, text=True)
    assert said.split() == ["42", "7", "0", str(2**24)]


def test_marks_survive_ctrl_c(tmp_path):
    hand_in(tmp_path / "good")
    hand_in(tmp_path / "hang", {"schedule": ("schedule", "while True: pass")})
    marks = tmp_path / "marks.csv"
    process = subprocess.Popen(
        [PYTHON, "-m", "extras.exercises", "grade", tmp_path / "good", tmp_path / "hang", "--csv",
         marks, "--only", "schedule", "--seconds", "3000"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 120
        while not marks.exists() or not rows_of(marks):
            assert time.monotonic() < deadline, "the first row is not written"
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "interrupted" in error
    [row] = rows_of(marks).values()
    assert row["points"] == "1"


@pytest.mark.parametrize("spoil, sentence", (
    (lambda file: file.unlink(), "the file is missing"),
    (lambda file: (file.unlink(), os.mkfifo(file)), "the file is missing"),
    (lambda file: (file.unlink(), file.symlink_to(ROOT / file.name)), "it leads out of the hand-"),
    (lambda file: (file.unlink(), file.symlink_to(file)), "it cannot be read"),
    (lambda file: file.write_text("#" * 2**19), "the file has more than 262144 bytes"),
    (lambda file: file.write_text("def f:"), "it is not Python: expected '(' (train.py, line 1)"),
    (lambda file: file.write_bytes(b"x = '\0'"), "it is not Python"),
    (lambda file: file.write_bytes("x = 'é'".encode("latin-1")), "not Python"),
    (lambda file: file.write_text("1 +" * 80_000 + "1"), "it is not Python"),
    (lambda file: file.write_text("schedule = 1"), "there is no schedule"),
    (lambda file: file.write_text(  # Python takes the second of two
        file.read_text() + code.emptied(file.read_text(), BY_NAME["schedule"])), "not written yet"),
))
def test_a_file_that_cannot_be_graded_costs_its_exercise(tmp_path, spoil, sentence):
    folder = hand_in(tmp_path / "a")
    spoil(folder / "train.py")
    marks = grade.grade(folder, [BY_NAME["schedule"]], 1)
    assert grade.points(marks["schedule"]) == 0
    assert sentence in grade.sentences(marks["schedule"])[0]


def test_names_and_sentences_cannot_act_on_a_terminal_or_a_table(tmp_path):
    folder = Path(os.fsdecode(b"=\xe9\n\x1b[31m"))
    marks = {"schedule": {"test": "a\nb\x1b[2J" + "x" * 999}}
    for text in (grade.in_a_line(folder, marks), grade.in_full(marks).replace("\n", "")):
        assert text.isprintable()
    with grade.open_marks(tmp_path / "marks.csv") as file:
        grade.write_row(file, grade.as_row(folder, marks))
    with open(tmp_path / "marks.csv", encoding="utf-8", newline="") as file:
        [row] = csv.reader(file)
    assert row[0].startswith("./=") and all(cell.isprintable() for cell in row)


@pytest.mark.parametrize("answer", (None, 0, 7, -9, -10**9, True, "", [], ["a"], {}, {"a": ""},
                                    {"a": "", "b": 1}, {"a": "", "b": None}, {"c": ""}, 1e999))
def test_no_answer_of_another_form_passes(answer):
    assert sandbox.verdict({"a": "", "b": "wrong"}, ("a", "b")) == {"a": "", "b": "wrong"}
    verdict = sandbox.verdict(answer, ("a", "b"))
    assert verdict.keys() == {"a", "b"} and verdict["b"]


def test_what_killed_graders_left_is_removed(monkeypatch, tmp_path):
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))
    for name in ("reid-grading-killed", "another"):
        (tmp_path / name / "copy").mkdir(parents=True)
    precious = tmp_path / "another/precious"
    precious.write_text("marks")
    (tmp_path / "reid-grading-killed/.lock").symlink_to(precious)
    monkeypatch.setattr(grade, "check_tests", lambda *_: None)
    monkeypatch.setattr(grade, "grade", lambda *_: {"schedule": {}})
    grade.main(grade.Config([tmp_path / "another"]))
    assert [path.name for path in tmp_path.iterdir()] == ["another"]
    assert precious.read_text() == "marks"


@pytest.mark.parametrize("full, empty, sentence", (
    ("wrong", "wrong", "the code itself fails the tests of schedule"),
    ("", "", "test passes without the functions of schedule"),
))
def test_the_table_is_checked_before_anybody_is_graded(monkeypatch, full, empty, sentence):
    said = iter((full, empty))
    monkeypatch.setattr(grade, "verdicts", lambda *_: {"schedule": {"test": next(said)}})
    with pytest.raises(UserError, match=sentence):
        grade.check_tests([BY_NAME["schedule"]], 1)


def test_bwrap_is_given_no_way_to_the_answers(monkeypatch, tmp_path):
    monkeypatch.setattr(sandbox, "trouble_with_bwrap", lambda: "")
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: f"/usr/bin/{name}")
    words = sandbox.fence(str(tmp_path / "copies"), tmp_path / "copies/tmp")
    assert "--unshare-all" in words  # the network too
    seen = {Path(words[i + 1]) for i in range(len(words)) if words[i] == "--ro-bind-try"}
    assert tmp_path / "copies" in seen
    assert not any(ROOT.is_relative_to(path) or path == tmp_path for path in seen)


@pytest.mark.parametrize("words, sentence", (
    ("make --out docs", "--out docs is there already"),
    ("make --out x --only nonsense", "--only nonsense: no such exercise; there are zero-init, "),
    ("grade README.md", "README.md is no folder"),
    ("grade docs --only nonsense", "--only nonsense: no such exercise"),
    ("grade docs --csv README.md", "--csv README.md is there already"),
))
def test_a_users_mistake_is_one_line(monkeypatch, words, sentence):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(grade, "check_tests", lambda *_: None)
    command, *rest = words.split()
    module = {"make": make, "grade": grade}[command]
    with pytest.raises(UserError, match=sentence):
        module.main(cli.parse(module.Config, rest))
