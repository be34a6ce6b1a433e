"""The rewrite that benchmarks/gpu/engines.py times: a program on this package's kernels gives what it gave."""

import pytest
import torch

from gaia_fast import GaiaA, GaiaZ, models

from own_kernels import on_own_kernels


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("make", "layers", "expected"), [(GaiaZ, None, 17), (GaiaA, None, 17), (GaiaA, ["layer3", "layer4"], 8)]
)
def test_every_unit_that_is_counted_or_summed(
    make: type[GaiaA] | type[GaiaZ], layers: list[str] | None, expected: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    model = models.resnet18(num_classes=10).eval().to(dtype)
    x = torch.randn(3, 3, 32, 32, dtype=dtype)
    prepared = make(model, layers=layers, engine="compiled", runtime="eager").prepare(x).program(x)
    assert prepared is not None
    program = prepared.program
    own, count = on_own_kernels(program.graph, "torch")
    assert count == expected
    assert sum(str(node.target).startswith("gaia_fast.") for node in own.graph.nodes) == expected
    for name, got, plain in zip(program.outputs, own(x), program.graph(x), strict=True):
        torch.testing.assert_close(got, plain, rtol=1e-6, atol=1e-5, msg=name)
