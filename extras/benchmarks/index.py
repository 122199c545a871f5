"""What opening SYNTH-PEDES costs, on invented entries of its size: `python benchmarks/index.py [entries]`."""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))


def write(folder, entries):
    """A JSON list as the real one: 15.3 images a person, two captions and a prompt each (12,138,157 texts in all)."""
    caption = ("a young woman with long black hair wears a red short sleeve t-shirt and blue trousers, carries a "
               "shoulder bag and walks towards the camera in white shoes")
    with open(folder / "synthpedes-dataset.json", "w") as file:
        for i in range(entries):
            person, image = i * 312321 // 4791711, i % 16
            entry = {"id": person, "file_path": f"Part{1 + person % 11}/{person}/{image}.jpg",
                     "attributes": ["woman,black hair,red t-shirt,blue trousers,white shoes,shoulder bag"],
                     "captions": [f"{caption} {i}"] * (1 + i % 2), "prompt_caption": [f"A photo of a woman. {caption}"]}
            file.write(("[" if i == 0 else ", ") + json.dumps(entry))
        file.write("]")


def opening(folder):
    """Opens it and draws a batch of 32 x 4, in this process."""
    import data
    from instructions import asked_tasks
    from reid.folders import open_all
    before, start = memory(), time.perf_counter()
    [dataset] = open_all(folder, asked_tasks("t2i"))
    opened = time.perf_counter()
    sampler = data.PKSampler(dataset.split("train"), 32, 4, seed=0)
    batch = [dataset.records[i] for i in sampler.batch(0)]
    drawn = time.perf_counter()
    print(f"{len(dataset.records):,} entries opened in {opened - start:.1f} s; sampler and first {len(batch)} records "
          f"in {drawn - opened:.1f} s; peak memory {memory():.2f} GB ({before:.2f} GB before)")


def memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    if sys.argv[1:2] == ["--open"]:
        opening(sys.argv[2])
    else:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), int((sys.argv[1:] or [4791711])[0]))
            size = (Path(folder) / "synthpedes-dataset.json").stat().st_size
            print(f"JSON of {size / 2**30:.2f} GB", flush=True)
            for time_ in ("first", "second"):
                print(time_, end=": ", flush=True)
                subprocess.run([sys.executable, "-W", "ignore", __file__, "--open", folder], check=True)
