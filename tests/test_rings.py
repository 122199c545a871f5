"""Three rings: the six scripts stand on reid/, tools stand on both, and nobody stands on tools."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPTS = {path.stem for path in ROOT.glob("*.py")}
TOOLS = {"toydata", "extras"}


def imported(path):
    """The first names of all modules that a file imports, wherever it does, as a list."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names.append(node.module.split(".")[0])
    return names


def test_imports_go_from_tools_to_scripts_to_the_kit():
    assert SCRIPTS >= {"model", "losses", "instructions", "data", "train", "evaluate"}
    for path in ROOT.glob("reid/*.py"):
        assert not set(imported(path)) & (SCRIPTS | TOOLS), path
    for path in ROOT.glob("*.py"):
        assert "extras" not in imported(path) and imported(path).count("toydata") <= 1, path
    for path in ROOT.glob("toydata/*.py"):
        assert "extras" not in imported(path), path
