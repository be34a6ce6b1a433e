"""Every method and option as a program, against the reference."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gaia_fast import GaiaA, GaiaZ, reference
from gaia_fast.compiler import program as program_module
from gaia_fast.errors import CompilationError

import zoo

OPTIONS: list[dict[str, Any]] = [
    {},
    {"fusion": "inner"},
    {"fusion": "output"},
    {"fusion": "top1"},
    {"statistic": "mean_abs"},
    {"fusion": "inner", "statistic": "mean_abs", "p": 1.0},
    {"p": 3.0},
    {"p": float("inf")},
]
SMALL = [name for name in zoo.ZOO if name not in ("resnet34", "wrn_40_2", "small_bit")]


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gaia_a_equals_the_reference_in_float64(name: str, options: dict[str, Any]) -> None:
    model, x = zoo.build(name, torch.float64), zoo.images(3, dtype=torch.float64)
    out = GaiaA(model, engine="compiled", runtime="eager", **options).score(x, return_matrix=True)
    truth = reference.gaia_a(model, x, **options)
    torch.testing.assert_close(out.score, truth.score.float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(out.logits, truth.logits, rtol=1e-10, atol=1e-11)
    assert out.matrix is not None
    for index, expected in enumerate(truth.abnormality):
        found = out.matrix[:, index, : expected.shape[1]]
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, float("inf")])
def test_gaia_z_equals_the_reference_in_float64(name: str, p: float) -> None:
    model, x = zoo.build(name, torch.float64), zoo.images(3, dtype=torch.float64)
    out = GaiaZ(model, engine="compiled", runtime="eager", p=p).score(x, return_matrix=True)
    truth = reference.gaia_z(model, x, p=p)
    torch.testing.assert_close(out.score, truth.score.float(), rtol=1e-6, atol=0)
    assert out.matrix is not None
    for index, expected in enumerate(truth.abnormality):
        assert torch.allclose(out.matrix[:, index, : expected.shape[1]].double(), expected, rtol=1e-6)


@pytest.mark.parametrize("name", SMALL)
def test_nothing_is_recorded_when_a_program_runs(name: str) -> None:
    model, x = zoo.build(name), zoo.images(2)
    detector = GaiaA(model, engine="compiled", runtime="eager").prepare(x)
    prepared = detector.program(x)
    assert prepared is not None
    targets = [str(node.target) for node in prepared.program.graph.graph.nodes]
    assert not any("backward" in target or "detach" in target or "gaia_fast" in target for target in targets)
    outputs = prepared.program.graph(x)
    assert not any(each.requires_grad for each in outputs)


def test_what_lies_before_the_earliest_map_has_no_adjoint() -> None:
    model, x = zoo.build("resnet34"), zoo.images(2, 32)
    convolutions = {}
    for layers in (["layer4"], ["layer3", "layer4"]):
        detector = GaiaA(model, layers=layers, engine="compiled", runtime="eager").prepare(x)
        prepared = detector.program(x)
        assert prepared is not None
        graph = prepared.program.graph.graph
        convolutions[len(layers)] = sum("convolution" in str(node.target) for node in graph.nodes)
    # 36 forward; backward through all but the convolution that makes the earliest map, as far as it reaches: the
    # shortcut of a stage's first block hangs on the stage before.
    assert convolutions == {1: 36 + 5, 2: 36 + 5 + 2 + 11}


class Crop(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[..., :-1, 1:]


class Cropped(nn.Module):
    """Its A_last is a view that is not contiguous, and is flattened behind."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(*zoo.conv_norm(3, 6), nn.ReLU(), Crop())
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).flatten(2).max(2).values)


def test_what_is_flattened_behind_a_view() -> None:
    torch.manual_seed(0)
    model, x = Cropped().eval(), zoo.images(6)
    for detector, method in ((GaiaZ, reference.gaia_z), (GaiaA, reference.gaia_a)):
        compiled = detector(model, engine="compiled", runtime="eager").prepare(x[:2])
        truth = method(copy.deepcopy(model).double(), x.double()).score
        torch.testing.assert_close(compiled(x).double(), truth.double(), rtol=1e-5, atol=0)


def test_what_pytorch_cannot_record_is_refused_and_scored_by_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise ValueError("no such view")

    monkeypatch.setattr(program_module, "make_fx", lambda *_, **__: failing)
    model, x = zoo.build("parallel"), zoo.images(2)
    with pytest.raises(CompilationError, match=r"cannot record the model's gradients [(]no such view[)].*hooks"):
        GaiaZ(model, engine="compiled").prepare(x)
    assert GaiaZ(model).prepare(x).plan(x).engine.name == "hooks"
