"""The code as text: functions emptied for a hand-out, or replaced by those of a student.

Functions have names as in the file: `relatedness`, `EditingAttention.forward`.
"""

import ast
import re
import shutil
from pathlib import Path
from textwrap import indent

ROOT = Path(__file__).parents[2]
COPIED = (
    "*.py", "reid/*.py", "toydata/*.py", "tests/*.py", "*.toml", "requirements.txt", "LICENSE",
)
GOLDEN = "tests/golden"  # the reference numbers of the tests


class Unusable(Exception):
    """Why a student's file cannot be tested, in a sentence."""


def copy(folder, exercises):
    """Copies the scripts, the packages, and the tests of these exercises with their helpers."""
    test_files = {"tests/conftest.py"}
    coming = {test.partition("::")[0] for exercise in exercises for test in exercise.tests}
    while coming:  # also those from which they import
        test_files |= coming
        texts = [(ROOT / name).read_text(encoding="utf-8") for name in test_files]
        imported = re.findall(r"from tests\.(test_\w+) import", " ".join(texts))
        coming = {f"tests/{name}.py" for name in imported} - test_files
    for pattern in COPIED:
        for file in ROOT.glob(pattern):
            name = str(file.relative_to(ROOT))
            if name.startswith("tests/test_") and name not in test_files:
                continue
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    shutil.copytree(ROOT / GOLDEN, folder / GOLDEN, copy_function=shutil.copyfile)


def original(exercise):
    """The text of an exercise's file."""
    return (ROOT / exercise.file).read_text(encoding="utf-8")


def find(tree, name):
    """(body that contains the function `name`, its index); Unusable if there is none."""
    body = tree.body
    *classes, function = name.split(".")
    for each in classes:
        body = body[_index(body, ast.ClassDef, each)].body
    return body, _index(body, ast.FunctionDef, function)


def _index(body, kind, name):
    for i in reversed(range(len(body))):  # of two, Python takes the last
        if isinstance(body[i], kind) and body[i].name == name:
            return i
    raise Unusable(f"there is no {name}: keep the names of functions and classes")


def emptied(text, exercise):
    """The text of a file without the bodies of the exercise's functions, but with docstrings."""
    for name in exercise.functions:
        body, i = find(ast.parse(text), name)
        statements = body[i].body
        if ast.get_docstring(body[i]) is not None:
            statements = statements[1:]
        first = statements[0]
        line = f'raise NotImplementedError("exercise {exercise.name}")\n'
        lines = text.splitlines(keepends=True)
        lines[first.lineno - 1:statements[-1].end_lineno] = [indent(line, " " * first.col_offset)]
        text = "".join(lines)
    return text


def exchanged(text, handed_in, exercise):
    """The text of a file with only the exercise's functions replaced by those in `handed_in`, the
    bytes of a student's file. Unusable if one is missing or not written yet, or for invalid Python.
    """
    ours = ast.parse(text)
    try:
        theirs = ast.parse(handed_in, exercise.file)
        for name in exercise.functions:
            body, i = find(theirs, name)
            function = body[i]
            if _is_empty(function):
                raise Unusable(f"{name} is not written yet")
            body, i = find(ours, name)
            body[i] = function
        return ast.unparse(ours)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Unusable(f"it is not Python: {error}") from error


def _is_empty(function):
    """Whether the body of a function is still missing."""
    body = function.body
    if ast.get_docstring(function) is not None:
        body = body[1:]
    return len(body) == 1 and ast.unparse(body[0]).startswith("raise NotImplementedError('exercise")
