"""The drawn benchmark: images of people, written in the folder layouts of real data sets.

people.py    who people are and what they wear
figure.py    where the parts of a person in a pose are
drawing.py   how they are drawn
cameras.py   the cameras, and the pictures they take
trees.py     the folders and lists of each data set
sheet.py     a contact sheet
trained.pt   the bundled model, from `python train.py` and `python -m reid.checkpoints`

In LTCC and COCAS+ the outfits come from a small wardrobe that people share: neither the body nor
the clothes alone identify the wanted picture.

    python -m toydata --out ./toy --people 400 --seed 0  # five data sets, always the same bytes
    python -m toydata --out ./toy-all --sets all  # twelve more, a quarter of the people each
    python -m toydata --sheet sheet.png  # only a contact sheet
"""

import json
import random
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from reid import cli, files
from toydata.people import draw_body, dress
from toydata.trees import FIVE, TREES, Job

VERSION = 3  # of the pictures; in toy.json
TOY = "./toy"
WEARERS = 4  # people who share an outfit in data sets with changes of clothes


def provide(data):
    """Draws ./toy if `data` is ./toy and is absent."""
    if Path(data) == Path(TOY) and not Path(data).exists():
        print(f"drawing people into {data}", flush=True)
        make_toy(data)


def make_toy(out, people=400, seed=0, workers=None, sets="five"):
    """Writes the data sets into the folder `out`, which only appears when it is complete.

    people: 8 to 999 in each of the five, 3/4 to train and 1/4 to test on. workers: processes, which
    do not change a byte. sets: "all" adds the other layouts, with a quarter of the people, and
    leaves every byte of the five as it is. UserError when `out` holds something already.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise cli.UserError(
            f"--out {out} is not an empty folder; name another one or remove it first")
    with files.creating(out) as folder:
        _write(folder, people, seed, workers, sets)


def _write(root, people, seed, workers, sets):
    jobs = []
    for data_set in TREES:
        if data_set in FIVE:
            jobs += jobs_of(data_set, root, people, seed)
        elif sets == "all":
            jobs += jobs_of(data_set, root, max(8, people // 4), seed)

    lists = {}  # file -> entries, in the order of the people
    for role in ("train", "test"):  # they may stay empty
        lists[root / f"LTCC_ReID/info/cloth-unchange_id_{role}.txt"] = []

    for entries, job in zip(drawn(jobs, workers), jobs):
        for name, entry in entries:
            lists.setdefault(job.folder / name, []).append(entry)

    for file, entries in lists.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(_list_text(file, entries))
    (root / "CUHK-PEDES/readme.txt").write_text("Drawn people in the layout of CUHK-PEDES.\n")
    marker = {"people": people, "seed": seed, "version": VERSION}
    (root / "toy.json").write_text(json.dumps(marker) + "\n")


def drawn(jobs, workers):
    """Yields the entries of lists, [(name of a file, entry)], of each Job. UserError if a process
    is killed."""
    try:
        with ProcessPoolExecutor(workers, None, cli.leave_signals_to_parent) as pool:
            entries = pool.map(_draw, jobs, chunksize=4)
            yield from cli.progress(entries, "drawing people", total=len(jobs), unit="person")
    except BrokenProcessPool as error:
        raise cli.UserError(
            "a process that draws people was killed, perhaps out of memory: close other programs, "
            "or draw fewer people (python -m toydata --people)") from error


def _draw(job):
    job.rng = random.Random(f"{job.seed}:{job.data_set}:{job.pid} pictures")
    TREES[job.data_set].write(job)
    return job.entries


def _list_text(file, entries):
    if file.suffix == ".json":  # COCAS+: image -> sentence
        return json.dumps(dict(entries) if file.name.startswith("runner") else entries, indent=1)
    if file.name == "test_id.txt":  # LLCM: one line
        return ",".join(entries)
    return "".join(f"{entry}\n" for entry in entries)


def jobs_of(data_set, root, people, seed):
    """One Job per person of a data set, training people first."""
    tree = TREES[data_set]
    sizes = _sizes(tree.outfits, people)
    jobs = []
    for role, outfits_each in tree.outfits.items():
        name = f"{seed}:{data_set}:{role}"
        bodies = [draw_body(random.Random(f"{name} {i}")) for i in range(sizes[role])]
        wearers = WEARERS if outfits_each > 1 else 0
        wardrobes = dress(bodies, random.Random(f"{name} clothes"), outfits_each, wearers)

        for label, (body, outfits) in enumerate(zip(bodies, wardrobes)):
            if tree.unchanging and label % tree.unchanging == tree.unchanging - 1:
                outfits = outfits[:1]
            pid = tree.first_pid + len(jobs)
            jobs.append(Job(root / tree.folder, seed, data_set, role, pid, label, body, outfits))
    return jobs


def _sizes(roles, people):
    """role -> number of people. 3/4 are for training, with a few for validation if there is one."""
    train = people * 3 // 4
    val = max(1, people // 40)
    return {
        "train": train - val if "val" in roles else train,
        "val": val,
        "test": people - train,
        "distractor": max(2, people // 10),
        "junk": max(1, people // 20),
    }
