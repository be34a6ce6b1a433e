"""Checks recorded with the program, as a CUDA graph has them: here PyTorch runs them, on any device."""

from typing import Any

import pytest
import torch
from torch import Tensor

from gaia_fast import GaiaA, GaiaZ, reference
from gaia_fast.compiler import runtimes
from gaia_fast.compiler.program import Program
from gaia_fast.compiler.runtimes import Runner
from gaia_fast.compiler.runtimes.checked import Checked, Checks
from gaia_fast.engines.compiled import CompiledEngine
from gaia_fast.errors import InputError, NonFiniteError
from gaia_fast.inspection import guards

import zoo


@pytest.fixture(autouse=True)
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    make = runtimes.make_runner

    def make_runner(
        runtime: str, program: Program, example: Tensor, dynamic: bool, checks: Checks | None, *others: Any
    ) -> Runner:
        assert checks is not None
        return Checked(make(runtime, program, example, dynamic, None, *others), checks)

    monkeypatch.setattr(guards, "kernels", None)  # which reads no device's memory
    monkeypatch.setattr(runtimes, "checks_results", lambda runtime, x: True)
    monkeypatch.setattr(runtimes, "checks_memory", lambda runtime, x: True)
    monkeypatch.setattr(runtimes, "make_runner", make_runner)


@pytest.mark.parametrize("make", [GaiaZ, GaiaA])
def test_a_write_past_pytorch_is_seen(make: type[GaiaZ] | type[GaiaA]) -> None:
    x = zoo.images(2)
    model: Any = zoo.build("strided_shortcut")
    detector = make(model, engine="compiled", runtime="eager").prepare(x)
    before = detector(x)
    model.residual[0].weight.data.neg_()
    truth = reference.gaia_z(model, x) if make is GaiaZ else reference.gaia_a(model, x)
    assert torch.allclose(detector(x), truth.score, rtol=1e-5)
    assert not torch.allclose(before, truth.score, rtol=1e-2)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_pixels(value: float) -> None:
    x = zoo.images(3)
    detector = GaiaZ(zoo.build("strided_shortcut"), engine="compiled", runtime="eager").prepare(x)
    bad = x.clone()
    bad[1, 0, 0, 0] = value
    with pytest.raises(InputError, match="images 1 of the batch"):
        detector(bad)
    largest = torch.finfo(torch.float32).max
    checks = Checks((), (), guards.ModelGuard([]))
    assert checks.before(torch.stack([bad[1], x[0].fill_(largest)])).tolist() == [False, True]


def test_closed_windows_are_scored_by_hooks() -> None:
    model, good, bad = zoo.sometimes_closed()
    detector = GaiaZ(model, engine="compiled", runtime="eager").prepare(good)
    x = torch.cat([good[:1], bad])
    expected = GaiaZ(model, engine="hooks")(x)
    assert torch.allclose(detector(x), expected, rtol=1e-6)


@pytest.mark.parametrize("make", [GaiaZ, GaiaA])
def test_logits_that_overflow(make: type[GaiaZ] | type[GaiaA]) -> None:
    model, x = zoo.build("strided_shortcut"), zoo.images(2)
    detector = make(model, engine="compiled", runtime="eager").prepare(x)
    huge = x.clone()
    huge[1].fill_(3e38)
    with pytest.raises(NonFiniteError, match="a logit of images 1 of"):
        detector(huge)


def test_one_look_where_all_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    x = zoo.images(2)
    detector = GaiaZ(zoo.build("strided_shortcut"), engine="compiled", runtime="eager").prepare(x)
    monkeypatch.setattr("gaia_fast.engines.hooks.measure", None)
    monkeypatch.setattr(CompiledEngine, "_find_failures", None)
    monkeypatch.setattr("gaia_fast.ops.result_checks.all_finite", None)
    monkeypatch.setattr("gaia_fast.ops.result_checks.results_hold", None)
    assert detector(x).shape == (2,)
