"""Programs in the form for onnxruntime: the same numbers."""

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from gaia_fast import GaiaA, GaiaZ

import zoo
from graphs import blocked

aten = torch.ops.aten


class Wide(nn.Module):
    """Channels in multiples of 16, norms behind and before convolutions, a strided block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.first = nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32))
        self.second = nn.Sequential(nn.ReLU(), nn.Conv2d(32, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU())
        self.fc = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.second(self.first(self.stem(x))).mean((2, 3)))


def wide() -> Wide:
    torch.manual_seed(0)
    model = Wide().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            module.running_mean.normal_(0, 0.2)
            nn.init.normal_(module.bias, 0, 0.2)
    return model


class Bounded(nn.Module):
    """Bounded units and depthwise convolutions, in strides and not, of several windows."""

    def __init__(self, stride: int, kernel: int, padding: int) -> None:
        super().__init__()
        depthwise = nn.Conv2d(32, 32, kernel, stride, padding, groups=32, bias=False)
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU6())
        self.body = nn.Sequential(depthwise, nn.BatchNorm2d(32), nn.ReLU6(), nn.Conv2d(32, 16, 1), nn.BatchNorm2d(16))
        self.fc = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(self.stem(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("stride", "kernel", "padding"), [(1, 3, 1), (2, 3, 1), (2, 5, 2), (2, 2, 0), (3, 4, 0), (1, 4, 1)]
)
def test_masks_of_bounded_units_and_windows(stride: int, kernel: int, padding: int) -> None:
    torch.manual_seed(0)
    model, x = Bounded(stride, kernel, padding).eval(), 8 * zoo.images(3, 18 if stride == 3 else 16)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, -1, 2)
    program = GaiaZ(model, engine="compiled", runtime="eager").prepare(x).program(x)
    assert program is not None
    assert not any("adjoint" in each for each in program.derivations)
    form = blocked(program.program.graph)
    with torch.no_grad():
        expected = dict(zip(program.program.outputs, program.program.graph(x), strict=True))
        found = dict(zip(program.program.outputs, form(x), strict=True))
    torch.testing.assert_close(found["packed"], expected["packed"], rtol=1e-6, atol=0)  # means times areas
    assert len(expected["packed"].unique()) > 8
    targets = {node.target for node in form.graph.nodes if node.op == "call_function"}
    transposed = [node for node in form.graph.nodes if node.target is aten.convolution.default and node.args[6]]
    uneven = (stride, kernel) in ((3, 4), (1, 4))  # windows, each repeated, are not as large as what they read
    assert bool(transposed) == (aten.bitwise_and.Tensor in targets) == uneven


def test_a_unit_just_below_its_bound_is_counted() -> None:
    bound, tiny = torch.tensor(6.0), torch.finfo(torch.float32).tiny
    below = torch.nextafter(bound, torch.tensor(0.0))
    x = torch.tensor([0.0, tiny, 1.0, below, bound, 7.0]).repeat(16, 1)[None, :, None]

    def count(x: torch.Tensor) -> torch.Tensor:
        y = aten.hardtanh(x, 0.0, 6.0)
        active = aten.bitwise_and.Tensor(aten.gt.Scalar(y, 0.0), aten.lt.Scalar(y, 6.0))
        return aten.cat([aten._to_copy(active, dtype=torch.float32).sum((2, 3))], 1)

    graph = make_fx(count, tracing_mode="fake")(x)
    form = blocked(graph)
    assert torch.equal(form(x), torch.full((1, 16), 3.0))
    assert aten.lt.Scalar not in {node.target for node in form.graph.nodes}


@pytest.mark.parametrize("detector", [GaiaZ, GaiaA])
@pytest.mark.parametrize("name", ["wide", "wrn_40_2", "strided_shortcut", "dense_like"])
def test_the_blocked_form_computes_the_same(detector: type[GaiaA] | type[GaiaZ], name: str) -> None:
    model = wide() if name == "wide" else zoo.build(name)
    x = zoo.images(4, 32 if name == "wrn_40_2" else 16)
    compiled = detector(model, engine="compiled", runtime="eager").prepare(x)
    prepared = compiled.program(x)
    assert prepared is not None
    program = prepared.program
    before = {name for name, _ in program.graph.named_buffers()}
    form = blocked(program.graph)
    assert {name for name, _ in program.graph.named_buffers()} == before
    with torch.no_grad():
        expected = dict(zip(program.outputs, program.graph(x), strict=True))
        found = dict(zip(program.outputs, form(x), strict=True))
    holds, other = expected.pop("preconditions", None), found.pop("preconditions", None)
    for output, value in expected.items():
        torch.testing.assert_close(found[output], value, rtol=2e-5, atol=1e-6 * float(value.abs().max()))
    if holds is not None:
        assert torch.equal((holds > 0).all(1), (other > 0).all(1))


def test_nothing_but_convolutions_poolings_sums_and_products_reads_a_map() -> None:
    for detector in (GaiaZ, GaiaA):
        x = zoo.images(4)
        compiled = detector(wide(), engine="compiled", runtime="eager").prepare(x)
        prepared = compiled.program(x)
        assert prepared is not None
        targets = {node.target for node in blocked(prepared.program.graph).graph.nodes if node.op == "call_function"}
        assert not targets & {aten.where.self, aten.gt.Scalar, aten._to_copy.default}


def test_a_dead_position_shows() -> None:
    model = wide()
    x = zoo.images(4)
    compiled = GaiaZ(model, engine="compiled", runtime="eager").prepare(x)
    prepared = compiled.program(x)
    assert prepared is not None
    program = prepared.program
    form = blocked(program.graph)
    closed = x.clone()
    closed[2] = 0
    assert model.stem.bias is not None
    model.stem.bias.data.zero_()
    values = {}
    for name, graph in (("plain", program.graph), ("blocked", form)):
        with torch.no_grad():
            values[name] = (dict(zip(program.outputs, graph(closed), strict=True))["preconditions"] > 0).all(1)
    assert torch.equal(values["plain"], values["blocked"])


def test_a_shift_times_a_number_stays_a_sum() -> None:
    class Shifted(Wide):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            norm = self.first[0]
            assert isinstance(norm, nn.BatchNorm2d)
            y = self.stem(x) * norm.weight.view(1, -1, 1, 1)
            y = torch.add(y, norm.bias.view(1, -1, 1, 1), alpha=-3)
            return self.fc(self.second(self.first(y.relu())).mean((2, 3)))

    torch.manual_seed(0)
    model, x = Shifted().eval(), zoo.images(2)
    norm = model.first[0]
    assert isinstance(norm, nn.BatchNorm2d)
    nn.init.normal_(norm.bias)
    compiled = GaiaA(model, engine="compiled", runtime="eager").prepare(x)
    prepared = compiled.program(x)
    assert prepared is not None
    with torch.no_grad():
        torch.testing.assert_close(blocked(prepared.program.graph)(x)[0], model(x), rtol=1e-4, atol=1e-5)
