"""The README's Python example runs as it is written, and gives what its comments say."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import gaia_fast
from gaia_fast import extras, models

README = Path(__file__).parents[1] / "README.md"


def test_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for extra in ("onnx", "monitor"):
        if reason := extras.missing(extra):
            pytest.skip(reason)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32)
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names: dict[str, Any] = {
        "model": models.resnet18(num_classes=10).eval(),
        "x": x,
        "in_distribution_loader": [torch.randn(16, 3, 32, 32)],
        "pictures": torch.randint(0, 256, (2, 3, 48, 40), dtype=torch.uint8),
    }
    exec(compile(code, README, "exec"), names)
    assert names["logits"].shape == (2, 10)
    assert names["score"].shape == (2,)
    assert names["score"].dtype == torch.float32
    detector = names["det"]
    assert detector.is_ood(x).shape == (2,)
    assert detector.is_ood(x).dtype == torch.bool
    assert detector.score(x, return_matrix=True).matrix.shape[:2] == (2, len(detector.plan(x).maps))
    assert "runtime" in capsys.readouterr().out
    is_ood = gaia_fast.load("pictures.onnx").score(names["pictures"]).is_ood
    assert isinstance(is_ood, torch.Tensor)
    assert is_ood.dtype == torch.bool
    assert list(names["several"].score(x).scores) == ["gaia-z", "gaia-a", "msp", "energy", "max_logit"]
