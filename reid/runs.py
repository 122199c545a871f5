"""A run's log."""

from pathlib import Path

from reid.files import parse_json


def read_log(folder):
    """The lines of a run's log.jsonl, [] without one. UserError if it is no log."""
    path = Path(folder) / "log.jsonl"
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [parse_json(line, dict, path, "it is no log of a run, remove it") for line in lines]
