"""The code as text: functions found by their names, blanked for a hand-out, exchanged for grading.

sources: {path below the root: text}. Names are module.function or module.Class.method.
"""

import ast
from pathlib import Path
from textwrap import indent

ROOT = Path(__file__).parents[1]
IMPORTS = (ast.Import, ast.ImportFrom)


def reference():
    """The sources that a hand-out has: the scripts, reid/ and toydata/."""
    sources = {}
    for pattern in ("*.py", "reid/*.py", "toydata/*.py"):
        for file in sorted(ROOT.glob(pattern)):
            sources[str(file.relative_to(ROOT))] = file.read_text()
    return sources


def module_of(name):
    """("reid/protocols.py", "masks") of reid.protocols.masks; KeyError if there is no such file."""
    parts = name.split(".")
    for count in range(1, len(parts)):
        path = "/".join(parts[:count]) + ".py"
        if (ROOT / path).is_file():
            return path, ".".join(parts[count:])
    raise KeyError(name)


def find(tree, name):
    """The node of a function or class, by its name within the module; None if it is missing."""
    for part in name.split("."):
        named = [node for node in tree.body if getattr(node, "name", None) == part]
        if not named:
            return None
        tree = named[-1]  # of two, the one that Python takes
    return tree


def function_names(sources):
    """Of all functions and methods: {"reid.protocols.masks"}."""
    names = set()
    for path, text in sources.items():
        module = path.removesuffix(".py").replace("/", ".")
        for node in ast.parse(text).body:
            names |= {f"{module}.{name}" for name in _bound(node)}
            if isinstance(node, ast.ClassDef):
                names |= {f"{module}.{node.name}.{name}" for each in node.body
                          for name in _bound(each)}
    return names


# ---- blanking ----

def blanked(sources, exercises):
    """The sources without the bodies of the exercises, and without the imports that these alone
    used; all else byte for byte."""
    whole = sources
    sources = dict(sources)
    for exercise in exercises:
        line = f'raise NotImplementedError("exercise {exercise.name}: {exercise.title}")'
        for name, text in exercise.functions.items():
            path, inner = module_of(name)
            body = find(ast.parse(sources[path]), inner).body
            sources[path] = _replaced(sources[path], body[0], body[-1], f'"""{text}\n"""\n{line}')
        for name, text in exercise.docstrings.items():
            path, inner = module_of(name)
            docstring = find(ast.parse(sources[path]), inner).body[0]
            sources[path] = _replaced(sources[path], docstring, docstring, f'"""{text}\n"""')
    for path, text in sources.items():
        if text != whole[path]:
            no_longer_used = _used(whole[path]) - _used(text)
            sources[path] = _without_imports(text, no_longer_used)
    return sources


def _used(source):
    return {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}


def _without_imports(source, names):
    """The source without the imports of these names at its top level."""
    lines = source.splitlines(keepends=True)
    for node in reversed(ast.parse(source).body):
        if isinstance(node, IMPORTS) and _bound(node) & names:
            node.names = _without(node.names, names)
            rest = [ast.unparse(node) + "\n"] if node.names else []
            lines[node.lineno - 1:node.end_lineno] = rest
    return "".join(lines)


def _without(aliases, names):
    return [alias for alias in aliases if _name(alias) not in names]


def _name(alias):
    return (alias.asname or alias.name).partition(".")[0]


def _replaced(source, first, last, text):
    """The source with `text` in place of the lines of the nodes `first` to `last`."""
    lines = source.splitlines(keepends=True)
    new = indent(text, " " * first.col_offset) + "\n"
    lines[first.lineno - 1:last.end_lineno] = [new]
    return "".join(lines)


def is_blank(node):
    """Whether a function is as it was handed out, whatever its docstring says."""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    if len(body) != 1 or not isinstance(body[0], ast.Raise):
        return False
    words = [leaf.value for leaf in ast.walk(body[0]) if isinstance(leaf, ast.Constant)]
    return any(str(word).startswith("exercise ") for word in words)


# ---- grafting ----

def grafted(source, handed_in, names):
    """The source of a module with the functions `names` of the module that was handed in, and with
    what that has under new names: helpers, constants, imports.

    Both are text. SyntaxError, ValueError or RecursionError if it cannot be read.
    """
    tree = ast.parse(source)
    _merge(tree, ast.parse(handed_in), set(names))
    return ast.unparse(tree)


def _merge(ours, theirs, names):
    """Takes the functions `names`, and new names, from the body of `theirs` into that of `ours`."""
    own_names = set()
    for node in ours.body:
        own_names |= _bound(node)

    place = 0  # in our body: behind what both have, so that new things keep their order
    for node in theirs.body:
        bound = _bound(node)
        if not bound:
            continue
        shared = bound & own_names
        if not shared:
            ours.body.insert(place, node)
            place += 1
            continue
        for i, own in enumerate(ours.body):
            if _bound(own) & shared:
                place = i + 1
                _take(ours.body, i, node, names)
        if isinstance(node, IMPORTS) and bound - own_names:
            node.names = _without(node.names, own_names)
            ours.body.insert(place, node)
            place += 1


def _take(body, i, theirs, names):
    """Exchanges body[i] for `theirs` if it is one of the names, merges it if it holds one."""
    name = getattr(body[i], "name", None)
    inner = {key.partition(".")[2] for key in names if key.startswith(f"{name}.")}
    if name in names:
        body[i] = theirs
    elif inner and isinstance(theirs, ast.ClassDef):
        _merge(body[i], theirs, inner)


def _bound(node):
    """The names that a statement gives a meaning to."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}
    if isinstance(node, IMPORTS):
        return {_name(alias) for alias in node.names}
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        leaves = [leaf for target in targets for leaf in ast.walk(target)]
        return {leaf.id for leaf in leaves if isinstance(leaf, ast.Name)}
    return set()
