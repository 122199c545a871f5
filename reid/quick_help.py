"""`--help` in a fraction of a second: packages whose import takes seconds, and which no flag needs,
are not imported for it. What modules ask of them while they are imported, such as a base class, a
decorator or an annotation, is a stand-in.
"""

import os
import sys
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from pathlib import Path

HEAVY = {"torch", "numpy", "safetensors"}
SLOWLY = "REID_SLOW_HELP"  # in the environment: import everything


def is_command():
    """Whether this program is a command of the repository."""
    program = sys.argv[0]  # "-m" while the package of a module to run is being imported
    return program == "-m" or Path(__file__).parents[1] in Path(program).resolve().parents


def is_asked_for():
    """Whether this program is a command of the repository and its flags ask for --help."""
    is_first = not HEAVY & sys.modules.keys() and SLOWLY not in os.environ
    return is_command() and is_first and "--help" in sys.argv


def start():
    """From here on the heavy packages are stand-ins. If one does not do, the command begins again
    with all that it imports."""
    def again(*error):
        os.execve(sys.executable, sys.orig_argv, {**os.environ, SLOWLY: "1"})

    sys.meta_path.insert(0, _Finder())
    sys.excepthook = again


class _Anything(type):
    """The type of the stand-in, a class: each attribute is the class itself, and so is a call, but
    that a call with an argument gives that back, as a decorator would."""

    def __getattr__(cls, name):
        return cls

    def __call__(cls, *args, **options):
        return args[0] if args else cls


class _Finder(Loader):
    """Finds the heavy packages and whatever is in them."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            return ModuleSpec(name, self, is_package=True)

    def exec_module(self, module):
        stand_in = type.__new__(_Anything, "StandIn", (), {})
        module.__getattr__ = lambda name: stand_in
