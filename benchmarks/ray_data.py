"""Many images scored by one process and over Ray's workers; then with a worker killed, and with the command killed.

    python benchmarks/ray_data.py --images cifar10.npz --weights wrn.safetensors

The images of an .npz are repeated until there are as many as asked for. The runs of `gaia-fast score`: in one process
without Ray; over two workers; over two workers, one of which is killed when a quarter of the images is done; and over
two workers, the command killed when half of them is done, and resumed. Of each, rows are counted against the images,
and scores are compared with those of the first. A rate is of the images between the first and the last part that was
seen; the seconds are those of the whole command, with Ray's start and the preparation of the network.
"""

import argparse
import csv
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from conftest import machine

from gaia_fast.data import load_images
from gaia_fast.files import write_text

EXAMPLE = Path(__file__).parents[1] / "examples" / "ray" / "score_on_ray.py"
workers_of: Callable[[int], list[int]] = runpy.run_path(str(EXAMPLE))["workers_of"]

Act = Callable[[subprocess.Popen[bytes]], None]


class Run:
    """One `gaia-fast score` of all images into a file."""

    def __init__(self, folder: Path, options: list[str], count: int) -> None:
        self.folder, self.options, self.count = folder, options, count

    def __call__(self, name: str, *more: str, act: Act | None = None, at: float = 0.0) -> dict[str, Any]:
        """Runs it, and does something to it when a share of the images is done."""
        out = self.folder / f"{name}.csv"
        command = ["score", str(self.folder / "images.npz"), *self.options, *more, "--out", str(out)]
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", "gaia_fast", *command], stderr=subprocess.DEVNULL)
        seen: list[tuple[float, int]] = []
        acted = ""
        while process.poll() is None:
            done = self.done(out)
            if done and (not seen or done > seen[-1][1]):
                seen.append((time.perf_counter(), done))
            if act is not None and not acted and done >= at * self.count:
                act(process)
                acted = f"at {done} images"
            time.sleep(0.05)
        found: dict[str, Any] = {"run": name, "seconds": time.perf_counter() - start, "exit": process.returncode}
        if act is not None:
            found["killed"] = acted
        if len(seen) > 1:
            found["images_per_second"] = (seen[-1][1] - seen[0][1]) / (seen[-1][0] - seen[0][0])
        return found

    def done(self, out: Path) -> int:
        """How many images there are parts of."""
        names = [each.stem.split("-") for each in out.with_name(f"{out.name}.partial").glob("*-*.json")]
        return sum(int(stop) - int(start) for start, stop in names)

    def scores(self, name: str) -> dict[str, list[float]]:
        """The scores in the file by image, one for each row."""
        found: dict[str, list[float]] = {}
        with (self.folder / f"{name}.csv").open() as file:
            for row in csv.DictReader(file):
                found.setdefault(row["image"], []).append(float(row["score"]))
        return found

    def checked(self, name: str, against: str) -> dict[str, Any]:
        """Rows counted against the images, and scores compared."""
        mine, theirs = self.scores(name), self.scores(against)
        times = Counter(len(each) for each in mine.values())
        differences = [
            abs(mine[image][0] - score[0]) / abs(score[0]) for image, score in theirs.items() if image in mine
        ]
        return {
            "rows": sum(map(len, mine.values())),
            "missing": sum(str(index) not in mine for index in range(self.count)),
            "twice": sum(count for rows, count in times.items() if rows > 1),
            "largest_relative_difference": max(differences),
        }


def kill_a_worker(process: subprocess.Popen[bytes]) -> None:
    os.kill(workers_of(process.pid)[0], signal.SIGKILL)


def kill_the_command(process: subprocess.Popen[bytes]) -> None:
    process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help=".npz with x uint8 (N, H, W, 3)")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--arch", default="wrn_40_2")
    parser.add_argument("--num-classes", default="10")
    parser.add_argument("--preset", default="cifar10")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--results", type=Path)
    asked = parser.parse_args()
    options = ["--arch", asked.arch, "--num-classes", asked.num_classes, "--weights", str(asked.weights.absolute())]
    on_ray = ("--ray", "--workers", "2")
    rows = []

    def told(row: dict[str, Any]) -> None:
        rows.append(row)
        print(json.dumps(row), flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = load_images(asked.images, "none")
        pictures = np.stack([np.asarray(source.picture(index)) for index in range(min(len(source), asked.count))])
        np.savez(folder / "images.npz", x=np.resize(pictures, (asked.count, *pictures.shape[1:])))
        run = Run(folder, [*options, "--preset", asked.preset], asked.count)
        told(run("one process") | run.checked("one process", "one process"))
        told(run("two workers", *on_ray) | run.checked("two workers", "one process"))
        found = run("two workers, one killed", *on_ray, act=kill_a_worker, at=0.25)
        told(found | run.checked("two workers, one killed", "one process"))
        told(run("command killed", *on_ray, act=kill_the_command, at=0.5))
        told(
            run("command killed", *on_ray, "--resume")
            | {"run": "resumed"}
            | run.checked("command killed", "one process")
        )
    if asked.results is not None:
        about = {"network": asked.arch, "images": asked.count, "size": list(pictures.shape[1:3])}
        write_text(asked.results, json.dumps({**machine(), **about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
