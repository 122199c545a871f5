"""What any re-identification code needs and a reader of the paper need not open. It imports nothing
of the six scripts: it would serve another paper's model.

cli           flags from a dataclass; whatever ends a command early ends it in one line
files         files written whole or not at all, by one process at a time; JSON that is checked
device        what a model runs on, and in which precision
processes     several processes of one run, one for each GPU
records       one record per image, and the data set that they make up
layouts       the data sets as they lie on disk: one reader and one row each
streamed      JSON lists too long to be in memory
protocols     which queries, which gallery, what is left out of a ranking, what is a hit
folders       finding, counting and checking data sets
images        image files into tensors
uninstructed  photos that carry no instruction, and the rule by which they answer one
features      the file of --save-features
rerank        k-reciprocal re-ranking
compare       two runs on the same queries
pictures      rankings, gates and instruction attention, drawn
tables        rows as text
runs          a run's folder and its log
checkpoints   everything that a resume needs, in one file
weights       published weights: PASS, DeiT, HAP, ALBEF
text          the BERT that reads the sentences, and its tokenizer
quick_help    --help without the imports that take seconds
"""

import os
import sys

from reid import quick_help

# Threads of torch that wait for each other look out for a moment, then sleep. By default they look
# out for so long that, beside another busy program, they keep the core from the very thread they
# wait for. Read once, when torch is imported: so reid is imported first.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _say(kind, error, trace):
    """Says in one line that Ctrl-C ended a command, also while it imports its packages."""
    if kind is KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


if quick_help.is_command():
    sys.excepthook = _say
if quick_help.is_asked_for():
    quick_help.start()
