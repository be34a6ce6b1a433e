"""`gaia-fast` in processes of their own, which can be interrupted and killed, and Ray's processes below them."""

import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

import gaia_fast

_EXAMPLE = Path(__file__).parents[1] / "examples" / "ray" / "score_on_ray.py"

CHUNK = 16  # images; of a real run there would have to be thousands

# Where tests run in the background, SIGINT is ignored, and so it would be below them.
_MAIN = f"""
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
import gaia_fast.batch_scoring.chunks as chunks
chunks.IMAGES_IN_A_CHUNK = {CHUNK}
from gaia_fast.cli import main
main()
"""

# A network that takes its time, so that a run can be ended in the middle.
SLOW = """
import time

from gaia_fast.models import digits_resnet


def make():
    model = digits_resnet(pretrained=True)
    model.conv1.register_forward_pre_hook(lambda *_: time.sleep(0.1))
    return model
"""


def start(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    """Starts gaia-fast in a folder."""
    command = [sys.executable, "-c", _MAIN, *map(str, arguments)]
    # The package must be found there as this process found it.
    path = os.pathsep.join(filter(None, (str(Path(gaia_fast.__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd, env=environment
    )


def parts_in(folder: Path) -> list[str]:
    """The parts that are there so far."""
    return sorted(each.name for each in folder.glob("*-*.json"))


def wait_for_parts(folder: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Waits until so many parts are there; an error if the process ends before."""
    end = time.monotonic() + 60
    while len(parts_in(folder)) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "a minute has passed"
        time.sleep(0.02)


def ray_workers(process: subprocess.Popen[str]) -> list[int]:
    """The processes that score for a `gaia-fast score --ray`."""
    return runpy.run_path(str(_EXAMPLE))["workers_of"](process.pid)
