"""What a run of train.py leaves in its folder.

log.jsonl has a JSON object a line. For each task at its first step and every so many steps:
    {"step": 50, "task": "cc", "losses": {"tri": 0.91, ...}, "gradient": 2.1, "lr": 0.00075,
     "images/s": 212.0, "seconds": 14.2}
losses and gradient (its norm before clipping) are means since the task's line before. And for each
evaluation:
    {"step": 500, "rows": [{"task": "cc", ...}, ...], "matrix": [...], "seconds": 160.4}
"""

import json
from pathlib import Path

from reid.cli import UserError

DEPTH = 5  # lists and dicts inside each other, at most
LARGEST = 1e100  # a number, at most, so that sums stay finite too

# What readers of a log rely on, as `fits` takes it; a line may hold more.
NUMBER = (int, float)
ROWS = [{"task": str, "data": str, "protocol": str, "mAP": NUMBER}]
LOSSES = {"step": NUMBER, "task": str, "losses": {str: NUMBER}, "seconds": NUMBER}
EVALUATION = {"step": NUMBER, "rows": ROWS, "matrix": ROWS, "seconds": NUMBER}


def read_log(folder):
    """The lines of a run's log.jsonl as dicts, [] without one. UserError that names the file, and
    the line, if it is no log."""
    path = Path(folder) / "log.jsonl"
    if not path.is_file():  # a named pipe would be waited for
        return []
    try:
        texts = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); remove it") from error

    lines = []
    for number, text in enumerate(texts, 1):
        where = f"{path}, line {number}"
        line = parse_json(text, where)
        form = EVALUATION if fits(line, dict) and "rows" in line else LOSSES
        if not fits(line, form):
            raise UserError(f"{where} is not from the log of a run; remove the file")
        lines.append(line)
    return lines


def parse_json(text, where):
    """The value of a JSON text that this program wrote. UserError, which names `where`, for another
    one: no JSON, a number that is not finite, nested deeper than DEPTH."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is no JSON ({error}); remove the file") from error
    if not _is_sound(value, DEPTH):
        raise UserError(f"{where} holds NaN, infinity or too many brackets; remove the file")
    return value


def _is_sound(value, depth):
    if isinstance(value, (list, dict)):
        parts = value.values() if isinstance(value, dict) else value
        return depth > 0 and all(_is_sound(part, depth - 1) for part in parts)
    return not isinstance(value, NUMBER) or abs(value) <= LARGEST


def fits(value, form):
    """Whether a JSON value has a form: a type, [the form of every item], {key: the form of its
    value} or {str: the form of every value}."""
    if isinstance(form, list):
        return isinstance(value, list) and all(fits(item, form[0]) for item in value)
    if not isinstance(form, dict):
        return isinstance(value, form)
    if not isinstance(value, dict):
        return False
    if str in form:
        return fits([*value.values()], [form[str]])
    return all(fits(value.get(key), form[key]) for key in form)
