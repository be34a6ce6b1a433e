"""examples/serve runs, and shows what its README says."""

import json
import subprocess
import sys
from pathlib import Path

import gaia_fast

ROOT = Path(__file__).parents[2]


def test_digits_and_noise_are_told_apart() -> None:
    script = ROOT / "examples" / "serve" / "run.py"
    cwd = Path(gaia_fast.__file__).parents[1]
    done = subprocess.run([sys.executable, str(script)], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    answers = {line.partition(": ")[0]: json.loads(line.partition(": ")[2]) for line in lines if line.endswith("}")}
    assert [answers[f"digit {k}.png"]["is_ood"] for k in range(3)] == [False] * 3
    assert [answers[f"noise {k}.png"]["is_ood"] for k in range(3)] == [True] * 3
    assert lines[3].startswith("after digits: ")
    assert lines[3].endswith("5% expected: no drift")
    assert lines[7].endswith("5% expected: drifted")
