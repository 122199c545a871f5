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
from contextlib import suppress
from pathlib import Path

import pytest

from extras.exercises import code, grade, make, sandbox
from extras.exercises.table import EXERCISES
from reid.cli import UserError
from tests.commands import one_line

ROOT = Path(__file__).parents[1]
BY_NAME = {exercise.name: exercise for exercise in EXERCISES}
PYTHON = sys.executable
SLEEP = str(10**6 + os.getpid())  # seconds: nobody else sleeps that long
FORGED = "".join(  # lines that give all points
    f"\n{json.dumps({each.name: dict.fromkeys(each.tests, '')})}\n" for each in EXERCISES).encode()

ODD = {  # file -> functions that are wrong or harm the grading, behind the right ones
    "losses.py": f"""
def relatedness(*_):
    import os
    for _ in range(20 if os.getuid() == 0 else 0):  # others may not fork
        if not os.fork():
            os.execvp("sleep", ["sleep", "{SLEEP}"])
    while True: pass

def triplet_terms(d1, d2, gap, margin):
    return (gap.sign() * (d1 - d2) + margin).relu()

def contrastive(*_):
    import os; os._exit(0)

def hard_negatives(*_):
    return torch.empty(6 * 2**30, dtype=torch.uint8)
""",
    "instructions.py": """
def training_instructions(*_):
    import ctypes; ctypes.string_at(0)
""",
    "train.py": f"""
def schedule(*_):
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
    "evaluate.py": """
def hit_ranks(*_):
    import pytest; pytest.exit("done", 0)
""",
}
FOUND = {  # exercise -> its points, and what is said of it
    "relatedness": (0, "the tests took too long"),
    "adaptive-triplet": (1, "the margin is not multiplied by b1 - b2, Eq. 5 has"),
    "contrast": (0, "the process that ran the tests ended without a result"),
    "matching": (1, "RuntimeError"),
    "instructions": (0, "the process that ran the tests was ended by: Segmentation fault"),
    "schedule": (0, ""),
    "average-precision": (0, ""),
}


def hand_in(folder, added=()):
    """Writes the files of the exercises, complete, with what is added to {file: text}."""
    folder.mkdir()
    for exercise in EXERCISES:
        text = code.original(exercise) + dict(added).get(exercise.file, "")
        (folder / exercise.file).write_text(text)
    return folder


def rows_of(file):
    with open(file, newline="") as opened:
        return list(csv.DictReader(opened))


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

def test_each_exercise_gets_what_it_earns_whatever_the_others_do(tmp_path):
    """By a command whose standard streams are closed."""
    file = hand_in(tmp_path / "odd", ODD) / "losses.py"
    file.write_text(f"import no_such_module\n{file.read_text()}")  # nothing but functions is taken
    words = [PYTHON, "-m", "extras.exercises", "grade", tmp_path / "odd", "--seconds", "4"]
    line = " ".join(f"'{word}'" for word in [*words, "--csv", tmp_path / "marks.csv"])
    shell = ["sh", "-c", f"exec {line} <&- >&- 2>&-"]
    assert subprocess.run(shell, cwd=ROOT, timeout=600).returncode == 0
    [row] = rows_of(tmp_path / "marks.csv")
    feedback = row["feedback"].split("; ")
    for name, exercise in BY_NAME.items():
        points, words = FOUND.get(name, (len(exercise.tests), None))
        assert row[name] == str(points), name
        said = [each for each in feedback if each.startswith(f"{name}: ")]
        assert any(words in each for each in said) if name in FOUND else not said
    assert row["points"] == str(sum(int(row[name]) for name in BY_NAME))
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


def test_marks_survive_ctrl_c(command, monkeypatch, usual_signals):
    """Each row is in the file before the next hand-out is graded."""
    def interrupted(*_):
        if len(rows_of("marks.csv")) == 2:
            signal.raise_signal(signal.SIGINT)
        return {"schedule": {"test": ""}}

    monkeypatch.setattr(grade, "check_tests", lambda *_: None)
    monkeypatch.setattr(grade, "grade", interrupted)
    code, _, err = command(grade, ".", ".", ".", "--csv", "marks.csv", "--only", "schedule")
    assert code == 130 and "interrupted" in err
    assert [row["points"] for row in rows_of("marks.csv")] == ["1", "1"]


@pytest.mark.parametrize("spoil, sentence", (
    (lambda file: file.unlink(), "the file is missing"),
    (lambda file: (file.unlink(), os.mkfifo(file)), "the file is missing"),
    (lambda file: (file.unlink(), file.symlink_to(ROOT / file.name)), "it leads out of the hand-"),
    (lambda file: (file.unlink(), file.symlink_to(file)), "it cannot be read"),
    (lambda file: file.write_text("#" * 2**19), "the file has more than 262144 bytes"),
    (lambda file: file.write_text("def f:"), "it is not Python: expected '(' (train.py, line 1)"),
    (lambda file: file.write_bytes(b"x = '\0'"), "it is not Python"),
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
    def verdicts(texts, seconds):
        found = {True: empty, False: full}
        return {each.name: {"test": found["raise NotImplementedError" in text]}
                for each, text in texts.items()}

    monkeypatch.setattr(grade, "verdicts", verdicts)
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


def test_mistakes_are_one_line(monkeypatch, command):
    monkeypatch.setattr(grade, "check_tests", lambda *_: None)
    Path("marks.csv").touch()
    one_line(command(make, "--out", "."), "--out . exists already")
    one_line(command(make, "--only", "all"), "--only all: no such exercise; there are zero-init, ")
    one_line(command(grade, "marks.csv"), "marks.csv is no folder")
    one_line(command(grade, ".", "--csv", "marks.csv"), "--csv marks.csv exists already")
