"""examples/benchmarks, on a few images and an untrained network: they run, and libraries find what is found here."""

import torchvision_schemas  # noqa: F401  isort: skip  before the libraries

import importlib
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from gaia_fast.models import wrn_40_2

EXAMPLES = Path(__file__).parents[2] / "examples" / "benchmarks"
LIBRARIES = {"in_pytorch_ood": "pytorch_ood.benchmark", "in_openood": "openood.evaluation_api"}


@pytest.mark.parametrize("example", LIBRARIES)
def test_the_library_finds_what_is_found_here(
    example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        importlib.import_module(LIBRARIES[example])
    except Exception as error:
        pytest.skip(f"{LIBRARIES[example]} cannot be imported: {error!r}")
    torch.manual_seed(0)
    save_file(wrn_40_2(10).state_dict(), tmp_path / "wrn.safetensors")
    random = np.random.default_rng(0)
    arguments = [f"--weights={tmp_path / 'wrn.safetensors'}", "--batch-size=4"]
    for name in ("id", "noise", "dark"):
        pictures = random.integers(0, 64 if name == "dark" else 256, (4, 32, 32, 3), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", x=pictures, y=np.arange(4))
        arguments.append(f"--id={tmp_path / 'id.npz'}" if name == "id" else f"--ood={name}={tmp_path / name}.npz")
    monkeypatch.setattr(sys, "argv", [example, *arguments])
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(Tensor, "cuda", Tensor.cuda)  # which one of them replaces where there is no GPU
    runpy.run_path(str(EXAMPLES / f"{example}.py"), run_name="__main__")
    shown = capsys.readouterr().out
    lines = [line.split() for line in shown.splitlines()]
    rows = [line for line in lines if len(line) == 8 and line[0] in ("gaia-a", "gaia-z")]
    assert sorted(row[:2] for row in rows) == [
        [f"gaia-{method}", name] for method in "az" for name in ("dark", "noise")
    ]
    assert all(float(difference) == pytest.approx(0, abs=1e-12) for row in rows for difference in (row[4], row[7]))
    assert "False" not in shown
