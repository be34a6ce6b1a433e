"""The end of a program as one operation: the same results as without it, and what is left beside it."""

from collections import Counter
from functools import partial

import pytest
import torch
from torch import Tensor, fx, nn

from gaia_fast import GaiaA, GaiaZ
from gaia_fast.compiler.ir.passes import Pass
from gaia_fast.compiler.ir.rewriting import copy_of
from gaia_fast.compiler.passes.count_and_score import count_and_score
from gaia_fast.compiler.program import build as build_program
from gaia_fast.compiler.sparsity import Sparsity, analyse
from gaia_fast.inspection.layers import inspected_layers
from gaia_fast.inspection.requests import Request
from gaia_fast.method import Method
from gaia_fast.options import Measure

import zoo
from graphs import captured, fold

aten, ops = torch.ops.aten, torch.ops.gaia_fast
IMAGES = 3


class Bounded(nn.Module):
    """ReLU6 before windows that overlap, and before some that do not."""

    def __init__(self) -> None:
        super().__init__()
        layers = [*zoo.conv_norm(3, 8), nn.ReLU6(), *zoo.conv_norm(8, 8), nn.ReLU6(), *zoo.conv_norm(8, 8, 2, 1)]
        self.trunk, self.fc = nn.Sequential(*layers, nn.ReLU6()), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.trunk(x * 4).mean((2, 3)))


class Joined(nn.Module):
    """Two norms whose outputs one ReLU reads side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = (nn.Sequential(*zoo.conv_norm(3, channels)) for channels in (5, 8))
        self.fc = nn.Linear(13, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(torch.cat([self.one(x), self.other(x)], 1)).mean((2, 3)))


def build(name: str) -> nn.Module:
    if name not in (own := {"bounded": Bounded, "joined": Joined}):
        return zoo.build(name)
    torch.manual_seed(0)
    return zoo.with_statistics(own[name]())


def graph_of(detector: GaiaA | GaiaZ, x: Tensor) -> fx.GraphModule:
    prepared = detector.prepare(x).program(x)
    assert prepared is not None
    return prepared.program.graph


def program(name: str, x: Tensor, p: float = 2.0) -> fx.GraphModule:
    model = build(name).to(x.dtype)
    return graph_of(GaiaZ(model, engine="compiled", runtime="eager", p=p), x)


def rewritten(graph: fx.GraphModule, images: int = IMAGES) -> fx.GraphModule:
    return Pass("count and score", partial(count_and_score, images=images))(copy_of(graph))


def targets(graph: fx.GraphModule) -> Counter[object]:
    return Counter(node.target for node in graph.graph.nodes if node.op == "call_function")


def assert_same(graph: fx.GraphModule, made: fx.GraphModule, x: Tensor) -> None:
    """Logits and scores, the counts to the last one, and which images the counts hold for."""
    with torch.no_grad():
        logits, score, packed, *preconditions = graph(x)
        for _ in range(2):  # the operation leaves its memory as it was
            other_logits, other_score, other_packed, *others = made(x)
            torch.testing.assert_close(other_logits, logits, rtol=0, atol=0, equal_nan=True)
            torch.testing.assert_close(other_score, score, rtol=1e-5, atol=0)
            assert torch.equal(other_packed, packed)
            assert [(each > 0).tolist() for each in others] == [(each > 0).tolist() for each in preconditions]


# Of each network, how many counts come from elsewhere (None: all, and the end stays as it is), and how many of the
# preconditions are windows.
ENDS = {
    "bounded": (2, 0),
    "dense_like": (3, 0),
    "joined": (0, 0),
    "parallel": (0, 0),
    "strided_shortcut": (0, 2),
    "vgg_like": None,
}


def end_of(graph: fx.GraphModule) -> tuple[int, int] | None:
    found = [node for node in graph.graph.nodes if node.target is ops.count_and_score.default]
    return (len(found[0].args[1]), len(found[0].args[5]) // 3) if found else None


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_results(name: str, dtype: torch.dtype) -> None:
    x = zoo.images(IMAGES).to(dtype)
    graph = program(name, x)
    made = rewritten(graph)
    assert_same(graph, made, x)
    assert end_of(made) == ENDS[name]
    if ENDS[name] is not None:
        found = targets(made)
        assert found[aten.linalg_vector_norm.default] == found[aten.stack.default] == found[aten.amin.default] == 0


def test_the_same_verdicts_on_images_that_break_the_preconditions() -> None:
    x = zoo.images(IMAGES)
    graph = program("strided_shortcut", x)
    hostile = torch.stack([torch.zeros_like(x[0]), torch.full_like(x[0], -30.0), x[0].clone()])
    hostile[2, :, :4] = torch.nan
    with torch.no_grad():
        *_, preconditions = graph(hostile)
    assert 0 < int((preconditions > 0).sum()) < preconditions.numel()
    assert_same(graph, rewritten(graph), hostile)


@pytest.mark.parametrize("p", [1.0, 3.0, float("inf")])
def test_other_norms_stay_beside_it(p: float) -> None:
    x = zoo.images(IMAGES)
    graph = program("strided_shortcut", x, p)
    made = rewritten(graph)
    assert_same(graph, made, x)
    assert targets(made)[ops.count_and_score.default] == 1


def test_preconditions_of_another_kind_keep_their_columns() -> None:
    """A hidden layer asks for one active unit in all, the convolution before it for one in each window."""
    torch.manual_seed(0)
    hidden = [nn.AvgPool2d(4), nn.Flatten(), nn.Linear(8 * 16, 9), nn.ReLU(), nn.Linear(9, 5)]
    model = nn.Sequential(*zoo.conv_norm(3, 8), nn.ReLU(), *zoo.conv_norm(8, 8), nn.ReLU(), *hidden)
    x = zoo.images(IMAGES)
    graph = graph_of(GaiaZ(zoo.with_statistics(model), engine="compiled", runtime="eager"), x)
    made = rewritten(graph)
    assert_same(graph, made, x)
    assert_same(graph, made, torch.zeros_like(x))
    assert end_of(made) == (0, 1)
    assert targets(made)[aten.stack.default] == 1


def test_a_program_without_counts_stays_as_it_is() -> None:
    x = zoo.images(IMAGES)
    graph = graph_of(GaiaA(zoo.build("strided_shortcut"), engine="compiled", runtime="eager"), x)
    assert targets(rewritten(graph)) == targets(graph)


def test_maps_in_float64_stay_as_they_are() -> None:
    x = zoo.images(IMAGES).double()
    graph = program("strided_shortcut", x)
    assert targets(rewritten(graph)) == targets(graph)


class InTwoPrecisions(nn.Module):
    """A first stage in bfloat16, a second one in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(*zoo.conv_norm(3, 8), nn.ReLU())
        self.second = nn.Sequential(*zoo.conv_norm(8, 8), nn.ReLU())
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.second(self.first(x).to(self.fc.weight.dtype)).mean((2, 3)))


def test_maps_of_another_dtype_are_counted_beside_it() -> None:
    torch.manual_seed(0)
    model, x = zoo.with_statistics(InTwoPrecisions()), zoo.images(IMAGES).bfloat16()
    model.first.bfloat16()
    whole = captured(model, x)
    fold(whole.graph)
    request = Request(Method(Measure.GAIA_Z), tuple(inspected_layers(model, None)))
    sparsity = [each if isinstance(each, Sparsity) else None for each in analyse(whole.graph.graph)]
    graph = build_program(whole, [request], None, sparsity).graph
    made = rewritten(graph)
    assert_same(graph, made, x)
    assert end_of(made) == (1, 0)


def test_more_maps_than_one_launch_takes_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gaia_fast.compiler.passes.count_and_score.fits", lambda *numbers: max(numbers) < 4)
    x = zoo.images(IMAGES)
    graph = program("strided_shortcut", x)
    assert targets(rewritten(graph)) == targets(graph)
