"""Programs made of models, and compared with the reference before they are used."""

from typing import Any

import pytest
import torch
from torch import nn

from gaia_fast import GaiaA, GaiaZ, reference
from gaia_fast.compiler import preparation
from gaia_fast.compiler.program import Program, build
from gaia_fast.compiler.sparsity import analyse
from gaia_fast.errors import BackendError, CompilationError, LayerError, ModelError
from gaia_fast.options import RuntimeOption

import zoo


def test_a_map_whose_density_fails_on_the_example_gets_its_adjoint() -> None:
    model, _, bad = zoo.sometimes_closed()
    detector = GaiaZ(model, engine="compiled", runtime="eager").prepare(bad)
    first, second = detector.plan(bad).derivations
    assert first == "adjoint, the example violates a precondition: every window has a non-zero channel"
    assert second == "active units"
    assert torch.allclose(detector(bad), reference.gaia_z(model, bad).score, rtol=1e-6)


def test_a_wrong_pattern_is_found_on_the_example(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = zoo.build("strided_shortcut"), zoo.images(4)
    # The second and third map have one shape, and each other's patterns now.
    monkeypatch.setattr(preparation, "analyse", lambda *arguments: [(d := analyse(*arguments))[0], d[2], d[1], d[3]])
    detector = GaiaZ(model, engine="compiled", runtime="eager").prepare(x)
    derivations = detector.plan(x).derivations
    assert derivations[1] == derivations[2] == "adjoint, the reference counts differently on the example"
    assert derivations[0] == derivations[3] == "active units"
    assert torch.allclose(detector(x), reference.gaia_z(model, x).score, rtol=1e-6)


def test_a_program_that_is_wrong_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:

    def wrong(*arguments: Any) -> Program:
        program = build(*arguments)
        with torch.no_grad():
            next(each for each in program.graph.buffers() if each.ndim == 4).mul_(1.5)
        return program

    monkeypatch.setattr(preparation, "build", wrong)
    with pytest.raises(ModelError, match=r"is off by .* from the reference .*engine='hooks' scores it") as caught:
        GaiaA(zoo.build("parallel"), engine="compiled", runtime="eager")(zoo.images(2))
    assert not isinstance(caught.value, CompilationError)


def test_autocast_is_refused() -> None:
    detector = GaiaZ(zoo.build("parallel"), engine="compiled", runtime="eager")
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(CompilationError, match="autocast"):
        detector(zoo.images(2))


def test_a_number_of_images_written_into_the_model_is_filled_up() -> None:
    torch.manual_seed(0)
    model, x = zoo.FixedBatch(3).eval(), zoo.images(3)
    detector = GaiaZ(model, engine="compiled", runtime="onnxruntime").prepare(x)
    truth = reference.gaia_z(model, x).score
    assert torch.allclose(detector(x), truth, rtol=1e-6)
    assert torch.allclose(detector(x[:2]), truth[:2], rtol=1e-6)
    assert torch.allclose(detector(torch.cat([x, x[1:]])), torch.cat([truth, truth[1:]]), rtol=1e-6)


def test_folding_flips_only_units_that_are_zero_to_rounding() -> None:
    """The counts of a program against the reference: where they differ, some unit is zero to rounding."""
    model, x = zoo.build("wrn_40_2"), zoo.images(8, 32)
    detector = GaiaZ(model, engine="compiled", runtime="eager").prepare(x)
    out = detector.score(x, return_matrix=True)
    own = reference.gaia_z(model, x)
    assert out.matrix is not None
    different = 0
    for index, (expected, each) in enumerate(zip(own.abnormality, detector.plan(x).maps, strict=True)):
        gap = (out.matrix[:, index, : each.channels] - expected).abs() * each.area
        assert float(gap.max()) < 1.5  # one unit of a channel, not a pattern
        different += int((gap > 0.5).sum())
    assert different <= 16


def test_a_program_with_wrong_logits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """GAIA-Z's score alone would not tell."""

    def wrong(*arguments: Any) -> Program:
        program = build(*arguments)
        head = next(each for each in program.graph.graph.nodes if each.target is torch.ops.aten.addmm.default)
        # Not in place: the model has its bias there.
        setattr(program.graph, head.args[0].target, getattr(program.graph, head.args[0].target) + 1)
        return program

    monkeypatch.setattr(preparation, "build", wrong)
    with pytest.raises(ModelError, match=r"is off by .* from the reference"):
        GaiaZ(zoo.build("parallel"), engine="compiled", runtime="eager")(zoo.images(2))


@pytest.mark.parametrize("activation", [nn.ELU, nn.CELU, nn.SELU])
def test_what_saturates_in_place_is_refused_where_zeros_are_counted(activation: type[nn.Module]) -> None:
    """The gradient of the result, y + 1, is zero where y is rounded to -1; that of the input, exp(x), is not."""
    torch.manual_seed(0)
    for inplace in (True, False):
        model = zoo.Pooled(nn.Sequential(*zoo.conv_norm(3, 8), activation(inplace=inplace)), 8).eval()
        x = zoo.images(3)
        truth = reference.gaia_z(model, x * 30).score
        if inplace:
            with pytest.raises(CompilationError, match=r"aten\.\w+_\.default, in place"):
                GaiaZ(model, engine="compiled", runtime="eager").prepare(x)
            found = GaiaZ(model, runtime="eager").prepare(x)
            assert found.plan(x).engine.name == "hooks"
        else:
            found = GaiaZ(model, engine="compiled", runtime="eager").prepare(x)
        torch.testing.assert_close(found(x * 30), truth)
        torch.testing.assert_close(
            GaiaA(model, engine="compiled", runtime="eager")(x), reference.gaia_a(model, x).score
        )


@pytest.mark.parametrize("detector", [GaiaZ, GaiaA])
def test_a_map_that_nothing_reads_is_refused_by_name(detector: type[GaiaZ] | type[GaiaA]) -> None:
    with pytest.raises(LayerError, match="no gradient reaches the feature map of 'unused'"):
        detector(zoo.Dangling().eval(), engine="compiled", runtime="eager").prepare(zoo.images(2))


@pytest.mark.parametrize(
    ("runtime", "dtype", "message"),
    [
        ("cudagraph", torch.float32, "needs a CUDA device"),
        ("native", torch.float64, "takes float32 images on the CPU, not torch.float64"),
        ("openvino", torch.float32, "cannot run here: it is not there"),
    ],
)
def test_a_runtime_that_cannot_run_here_is_refused_before_anything_is_captured(
    monkeypatch: pytest.MonkeyPatch, runtime: RuntimeOption, dtype: torch.dtype, message: str
) -> None:
    monkeypatch.setattr(preparation, "capture", lambda *_: pytest.fail("the model was captured"))
    monkeypatch.setattr("gaia_fast.compiler.runtimes.openvino.missing", lambda: "it is not there")
    with pytest.raises(BackendError, match=message):
        GaiaZ(zoo.build("parallel", dtype), engine="compiled", runtime=runtime).prepare(zoo.images(1, dtype=dtype))
