"""Three rings: the six scripts stand on reid/, tools stand on both, and nobody stands on tools."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPTS = {path.stem for path in ROOT.glob("*.py")}


def imported(path):
    """The first names of all modules that a file imports, wherever it does, as a list."""
    return re.findall(r"^ *(?:from|import) +([.\w]\w*)", path.read_text(), re.M)


def test_imports_go_from_tools_to_scripts_to_the_kit():
    assert SCRIPTS >= {"model", "losses", "instructions", "data", "train", "evaluate"}
    for path in ROOT.glob("reid/*.py"):
        assert not set(imported(path)) & {*SCRIPTS, "toydata", "extras", "."}, path
    for path in ROOT.glob("*.py"):
        assert "extras" not in imported(path) and imported(path).count("toydata") <= 1, path
    for path in ROOT.glob("toydata/*.py"):
        assert "extras" not in imported(path), path
