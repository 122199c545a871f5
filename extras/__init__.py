"""Tools around the paper's six scripts: search, ablations, curves, exercises and benchmarks.

They import the scripts and `reid`; nothing imports them, so that each can be deleted.
"""

import reid  # noqa: F401  before torch: sets how its threads wait, and --help without it
