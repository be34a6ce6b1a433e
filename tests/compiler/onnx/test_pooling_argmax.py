"""What is scattered by a max-pooling's indices, without them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gaia_fast import GaiaA, GaiaZ
from gaia_fast.compiler.pipeline import EXPAND_POOLING_ARGMAX
from gaia_fast.options import RuntimeOption

import zoo
from graphs import rewritten, targets

aten = torch.ops.aten

# (kernel, stride, padding, dilation, ceil): windows that overlap and do not, that hang over the edge, and that skip.
POOLS: dict[str, tuple[Any, Any, Any, Any, bool]] = {
    "as in ResNet": (3, 2, 1, 1, False),
    "side by side": (2, 2, 0, 1, False),
    "each position": (3, 1, 1, 1, False),
    "oblong": ((2, 3), (1, 2), (1, 0), 1, False),
    "over the edge": (3, 2, 0, 1, True),
    "with gaps": (2, 3, 0, 1, False),
    "dilated": (2, 2, 1, 2, False),
}


class Pooled(nn.Module):
    """A max-pooling behind a ReLU, whose input has equal values: the first maximum is the one."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.pool = nn.Sequential(*zoo.conv_norm(3, 16), nn.ReLU()), pool
        self.last, self.fc = nn.Sequential(*zoo.conv_norm(16, 16), nn.ReLU()), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.last(self.pool(self.stem(x))).mean((2, 3)))


def images(size: int = 17) -> Tensor:
    x = zoo.images(3, size)
    x[1, :, 4:12, 4:12] = 0.5  # flat: many maxima in one window
    return x


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("detector", [GaiaA, GaiaZ])
def test_it_computes_what_the_indices_do(detector: type[GaiaA] | type[GaiaZ], name: str) -> None:
    model, x = Pooled(nn.MaxPool2d(*POOLS[name][:4], ceil_mode=POOLS[name][4])).eval(), images()
    prepared = detector(model, engine="compiled", runtime="eager").prepare(x).program(x)
    assert prepared is not None
    graph = prepared.program.graph
    assert aten.scatter_add.default in targets(graph)
    made = rewritten([EXPAND_POOLING_ARGMAX], graph)
    assert aten.scatter_add.default not in targets(made) or name == "over the edge"
    assert aten.max_pool2d_with_indices.default not in targets(made) or name == "over the edge"
    with torch.no_grad():
        for batch in (x, x[:1]):
            for found, expected in zip(made(batch), graph(batch), strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("detector", [GaiaA, GaiaZ])
def test_runtimes_score_as_the_reference(detector: type[GaiaA] | type[GaiaZ], runtime: RuntimeOption) -> None:
    model, x = Pooled(nn.MaxPool2d(3, 2, 1)).eval(), images(16)
    found = detector(model, engine="compiled", runtime=runtime).score(x)
    expected = detector(model, engine="reference").score(x)
    torch.testing.assert_close(found.score, expected.score, rtol=1e-5, atol=0)
