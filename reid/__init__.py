"""Code that any re-identification project needs; readers of the paper can skip it. It does not
import the six scripts, so it could serve another paper's model. A user's mistake, such as a damaged
file, is a cli.UserError; docstrings mention it only if it is not obvious.

cli           flags from a dataclass; errors and signals end a command with one line
files         atomic writing of files, by one process at a time; checked JSON
device        device and precision of a model
processes     several processes of one run, one per GPU
records       one record per image, and data sets made of them
layouts       the folder layouts of data sets: one reader and one row each
streamed      JSON lists that are too long for memory
protocols     queries, gallery, removed images and hits of an evaluation
folders       finding, counting and checking data sets
images        image files as tensors
uninstructed  scores of photos without instructions
features      the file of --save-features
rerank        k-reciprocal re-ranking
compare       comparison of two runs on the same queries
plots         rankings, gates and attention to the instruction as images
tables        rows as text
runs          a run's folder and its log
checkpoints   everything that is needed to resume a run, in one file
weights       published weights: PASS, DeiT, HAP, ALBEF
text          the BERT that encodes sentences, and its tokenizer
quick_help    --help without imports that take seconds
"""

import os
import sys

from reid import quick_help

# Threads of torch that wait for each other spin for a while before they sleep. By default they spin
# so long that, while another program uses the cores, they block the thread for which they wait.
# OpenMP reads this when torch is imported, so reid must be imported first.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _say(kind, error, trace):
    """Ends a command with one line if Ctrl-C or a missing package stops its imports."""
    if kind is KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    elif kind is ModuleNotFoundError:
        print(f"error: {error.name} is not installed: pip install -r requirements.txt",
              file=sys.stderr, flush=True)
        os._exit(2)
    else:
        sys.__excepthook__(kind, error, trace)


if quick_help.is_command():
    sys.excepthook = _say
if quick_help.is_asked_for():
    quick_help.start()
