"""The rewrite that benchmarks/gpu/engines.py times: a program on this package's kernels gives what it gave."""

import pytest
import torch

from gaia_fast import GaiaA, GaiaZ, models
from gaia_fast.compiler.ir.rewriting import CONVOLUTIONS

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
    x = torch.randn(3, 3, 16, 16, dtype=dtype)
    prepared = make(model, layers=layers, engine="compiled", runtime="eager").prepare(x).program(x)
    assert prepared is not None
    program = prepared.program
    own, count = on_own_kernels(program.graph, "torch")
    assert count == expected
    assert sum(str(node.target).startswith("gaia_fast.") for node in own.graph.nodes) == expected
    for name, got, plain in zip(program.outputs, own(x), program.graph(x), strict=True):
        # A shift is added in float32, a convolution's bias in the convolution's dtype.
        rtol, atol = (1e-5, 1e-5) if dtype == torch.float32 else (2e-2, 2e-2 * float(plain.float().abs().max()))
        torch.testing.assert_close(got, plain, rtol=rtol, atol=atol, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_biases_of_convolutions_become_shifts(dtype: torch.dtype) -> None:
    """Those of projections, too: none is left that PyTorch's compiler would add in a kernel of its own."""
    torch.manual_seed(0)
    model = models.resnet18(num_classes=10).eval().to(dtype)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.bias)
    x = torch.randn(2, 3, 16, 16, dtype=dtype)
    prepared = GaiaZ(model, engine="compiled", runtime="eager").prepare(x).program(x)
    assert prepared is not None
    graph = prepared.program.graph
    own, _ = on_own_kernels(graph, "torch")
    assert all(node.args[2] is not None for node in graph.graph.nodes if node.target in CONVOLUTIONS)
    assert all(node.args[2] is None for node in own.graph.nodes if node.target in CONVOLUTIONS)
    kernels = [node for node in own.graph.nodes if "relu_forward_count" in str(node.target)]
    shifts = [getattr(own, node.args[2].target) for node in kernels]
    assert {each.dtype for each in shifts} == {torch.float32}
    # A block that begins a stage adds the projection's bias to its own.
    block = dict(model.named_modules())["layer2.0"]
    expected = (block.bn2.bias + block.shortcut[1].bias).float()  # of which the running means, zero, take nothing
    assert sum(each.shape == expected.shape and torch.allclose(each, expected, atol=2e-2) for each in shifts) == 1
