"""A folder of pictures scored over two of Ray's workers, one of which is killed in the middle.

    python examples/ray/score_on_ray.py

The pictures are the digits that come with scikit-learn. At the end every picture must have its row, once.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image
from pyarrow import parquet

from gaia_fast.data.digits import held_out_pictures


def make_pictures(folder: Path, count: int) -> set[str]:
    """Writes so many pictures, and returns their names."""
    digits = held_out_pictures()[0]
    names = [f"{index // 500}/{index}.png" for index in range(count)]
    for index, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.repeat(digits[index % len(digits), ..., None], 3, axis=2)).save(folder / name)
    return set(names)


def workers_of(command: int) -> list[int]:
    """The processes that score for a `gaia-fast score --ray` that runs under this number."""
    titles, parents = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            titles[int(path.name)] = (path / "cmdline").read_bytes()
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):  # it has ended meanwhile
            continue

    def is_below(process: int | None) -> bool:
        while process not in (None, command):
            process = parents.get(process)
        return process is not None

    return [process for process, title in titles.items() if title.startswith(b"ray::MapWorker") and is_below(process)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        names = make_pictures(folder / "digits", asked.images)
        options = ["--arch", "digits_resnet", "--preset", "digits", "--engine", "hooks"]
        command = f"score {folder / 'digits'} --out {folder / 'rows.parquet'} --ray --workers 2".split()
        scoring = subprocess.Popen([sys.executable, "-m", "gaia_fast", *command, *options])
        try:
            while not (done := list(folder.glob("rows.parquet.partial/*-*.json"))) and scoring.poll() is None:
                time.sleep(0.05)
            victims = workers_of(scoring.pid)
            if scoring.poll() is None and victims:
                os.kill(victims[0], signal.SIGKILL)
                print(f"worker {victims[0]} is killed; {len(done)} part of the rows is there", flush=True)
            if scoring.wait() != 0:
                raise SystemExit("gaia-fast score failed: it says why above")
            if not victims:
                raise SystemExit("gaia-fast score ended before a worker could be killed; give more --images")
        finally:
            scoring.terminate()
            scoring.wait()
        rows = Counter(parquet.read_table(folder / "rows.parquet")["image"].to_pylist())
    missing, twice = names - rows.keys(), [each for each, count in rows.items() if count > 1]
    print(f"{len(names)} pictures, {rows.total()} rows: {len(missing)} missing, {len(twice)} twice")
    if missing or twice or rows.keys() - names:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
