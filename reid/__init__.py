"""What any re-identification code needs and a reader of the paper need not open.

cli          flags from a dataclass; whatever ends a command early ends it in one line
files        writing files: whole or not at all, by one process at a time
device       what a model runs on, and in which precision
processes    several processes of one run, one for each GPU
records      one record per image, and the data set that they make up
layouts      the data sets as they lie on disk: one reader and one row each
synth_pedes  the one data set that is too large to be in memory
protocols    who asks, who answers, what is left out of a ranking, what is a hit
folders      finding, counting and checking data sets
images       pictures into tensors
photos       a folder of one's own photos, and the index of their features
uninstructed photos that carry no instruction, and the rule by which they answer one
features     features of a run: computed once, kept in a file; the second stage of t2i
rerank       k-reciprocal re-ranking
compare      two runs on the same queries
pictures     rankings, gates and instruction attention, drawn
runs         what a run leaves in its folder: its log
history      the log of a run as it is written
checkpoints  what train.py writes, read and written
weights      a model that starts from published weights, PASS, DeiT, HAP, ALBEF; which it takes
text         the BERT that reads the sentences, and its tokenizer
"""

import os

# Threads of torch that wait for each other look out for a moment, then sleep. By default they look
# out for so long that, beside another busy program, they keep the core from the very thread they
# wait for (benchmarks/threads.py). Read once, when torch is imported: so reid is imported first.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
