"""`--help` in a fraction of a second: packages that take seconds to import, and that no flag needs,
are replaced by stand-ins. These serve what modules use during their import: base classes,
decorators, annotations.
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
    if sys.argv[0] == "-m":  # while the package of a module to run is being imported
        return True
    program = Path(sys.argv[0]).resolve()
    is_here = Path(__file__).parents[1] in program.parents
    return is_here and program.suffix == ".py" and "site-packages" not in program.parts


def is_asked_for():
    """Whether this program is a command of the repository and its flags ask for --help."""
    is_first = not HEAVY & sys.modules.keys() and SLOWLY not in os.environ
    return is_command() and is_first and "--help" in sys.argv


def start():
    """From now on heavy packages are stand-ins. If one is not enough, the command starts again with
    the real packages."""
    def again(*error):
        os.execve(sys.executable, sys.orig_argv, {**os.environ, SLOWLY: "1"})

    sys.meta_path.insert(0, _Finder())
    sys.excepthook = again


class _Anything(type):
    """The type of the stand-in class: each attribute is the class itself, and so is the result of a
    call, except that a call with an argument returns it, like a decorator."""

    def __getattr__(cls, name):
        return cls

    def __call__(cls, *args, **options):
        return args[0] if args else cls


class _Finder(Loader):
    """Finds the heavy packages and everything in them."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            return ModuleSpec(name, self, is_package=True)

    def exec_module(self, module):
        stand_in = type.__new__(_Anything, "StandIn", (), {})
        module.__getattr__ = lambda name: stand_in
