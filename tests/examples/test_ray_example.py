"""examples/ray: the script runs, kills a worker, and finds every row once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import gaia_fast

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray" / "score_on_ray.py"


def test_every_row_is_there_once_although_a_worker_is_killed() -> None:
    for package in ("ray", "pyarrow"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    # The package must be found there as this process found it.
    path = os.pathsep.join(filter(None, (str(Path(gaia_fast.__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    found = subprocess.run(
        [sys.executable, EXAMPLE], capture_output=True, text=True, timeout=180, env={**os.environ, "PYTHONPATH": path}
    )
    assert found.returncode == 0, found.stderr
    killed, counted = found.stdout.splitlines()
    assert "is killed" in killed
    assert counted == "3000 pictures, 3000 rows: 0 missing, 0 twice"
