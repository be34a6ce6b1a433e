"""Where sigmoid and tanh are 0 or 1, in onnxruntime as in PyTorch: gradients that GAIA-Z counts."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gaia_fast import GaiaZ
from gaia_fast.compiler.onnx.conversion import missing

from exported import load_one
from graphs import with_whole_exponentials

if reason := missing():
    pytest.skip(reason, allow_module_level=True)

aten = torch.ops.aten


class Squashed(nn.Module):
    """The values of an image, squashed: where this is flat, the gradient at the norm is zero."""

    def __init__(self, squash: nn.Module) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.squash = squash
        self.fc = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.squash(self.norm(x)).mean((2, 3)))


# Where each is told from flat: PyTorch's own limits lie inside, onnxruntime's Sigmoid and Tanh are flat in half of it.
SQUASHED = {"sigmoid": (nn.Sigmoid(), 12.0, 20.0), "tanh": (nn.Tanh(), 6.0, 10.0)}


@pytest.mark.parametrize(("squash", "least", "most"), SQUASHED.values(), ids=SQUASHED)
def test_counts_of_units_that_are_almost_flat(squash: nn.Module, least: float, most: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Squashed(squash).eval()
    generator = torch.Generator().manual_seed(1)
    # Signs by channel: a mean's gradient does not cancel. No value so near the limit that one rounding decides.
    x = torch.rand(16, 3, 8, 8, generator=generator) * (most - least) + least
    x *= torch.tensor([1.0, -1.0, 1.0]).view(1, 3, 1, 1)
    expected = GaiaZ(model, engine="hooks").score(x).score
    assert float(expected.std()) > 0, "nothing is flat: the test says nothing"
    compiled = GaiaZ(model, engine="compiled", runtime="onnxruntime").prepare(x[:2])
    torch.testing.assert_close(compiled.score(x).score, expected, rtol=1e-5, atol=0)
    found = load_one(compiled.export(tmp_path / "model.onnx", x[:2]))(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("target", "function"),
    [
        (aten.sigmoid.default, torch.sigmoid),
        (aten.silu.default, nn.functional.silu),
        (aten.tanh.default, torch.tanh),
    ],
    ids=["sigmoid", "silu", "tanh"],
)
def test_the_same_numbers(target: torch._ops.OpOverload, function: Callable[[Tensor], Tensor]) -> None:
    x = torch.cat((torch.linspace(-110, 110, 40001), torch.linspace(-10, 10, 40001), torch.tensor([0.0, -0.0])))
    graph = torch.fx.Graph()
    images = graph.placeholder("images")
    called = graph.call_function(target, (images,))
    images.meta["val"] = called.meta["val"] = x
    graph.output((called,))
    module = torch.fx.GraphModule(torch.nn.Module(), graph)
    form = with_whole_exponentials(module)
    assert target not in {node.target for node in form.graph.nodes} or target is aten.tanh.default
    (found,) = form(x)
    torch.testing.assert_close(found, function(x), rtol=5e-7, atol=1e-37)
    if target is not aten.silu.default:
        assert torch.equal(found.abs() == 1, function(x).abs() == 1)
        assert torch.equal(found == 0, function(x) == 0)
