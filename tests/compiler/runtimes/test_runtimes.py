import copy
import threading
import warnings
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gaia_fast import GaiaA, GaiaZ, reference
from gaia_fast.compiler.runtimes import FixedSizes, Guard, Native, computes_in, no_guard
from gaia_fast.errors import ArgumentError, BackendError, CompilationError, ModelError
from gaia_fast.options import Runtime, RuntimeOption

import zoo

HERE = [runtime for runtime in Runtime if runtime != "cudagraph"]


@pytest.mark.parametrize("runtime", HERE)
@pytest.mark.parametrize("detector", [GaiaZ, GaiaA])
def test_every_runtime_scores_any_number_of_images(runtime: RuntimeOption, detector: type[GaiaA] | type[GaiaZ]) -> None:
    model = zoo.build("strided_shortcut")
    compiled = detector(model, engine="compiled", runtime=runtime).prepare(zoo.images(4))
    truth = reference.gaia_z if detector is GaiaZ else reference.gaia_a
    for count in (4, 1, 3, 9):
        x = zoo.images(count, seed=count)
        out = compiled.score(x)
        assert torch.allclose(out.score, truth(model, x).score, rtol=1e-5)
        with torch.no_grad():
            assert torch.allclose(out.logits, model(x), rtol=1e-4, atol=1e-5)
    choice = compiled.plan(zoo.images(2)).runtime
    assert choice is not None
    assert choice.name == runtime


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("runtime", ["eager", "inductor"])
def test_half_precision(dtype: torch.dtype, runtime: RuntimeOption) -> None:
    model, x = zoo.build("strided_shortcut", dtype), zoo.images(4, dtype=dtype)
    truth = reference.gaia_a(zoo.build("strided_shortcut").double(), x.double()).score
    own = (reference.gaia_a(model, x).score / truth - 1).abs().max()
    found = GaiaA(model, engine="compiled", runtime=runtime)(x)
    assert found.dtype == torch.float32
    assert (found / truth - 1).abs().max() <= max(2 * float(own), 4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("runtime", ["native", "onnxruntime", "openvino", "auto"])
@pytest.mark.parametrize("detector", [GaiaA, GaiaZ])
def test_half_precision_is_widened(
    detector: type[GaiaA] | type[GaiaZ], runtime: RuntimeOption, dtype: torch.dtype
) -> None:
    """The score is that of the same weights and images in float64; nothing is rounded to half precision in between."""
    x = zoo.images(4, dtype=dtype)
    model: Any = zoo.build("strided_shortcut", dtype)
    truth = (reference.gaia_a if detector is GaiaA else reference.gaia_z)(copy.deepcopy(model).double(), x.double())
    compiled = detector(model, engine="compiled", runtime=runtime)
    out = compiled.score(x)
    assert (out.logits.dtype, out.score.dtype) == (dtype, torch.float32)
    assert torch.allclose(out.score.double(), truth.score, rtol=1e-5)
    assert torch.allclose(out.logits.double(), truth.logits, rtol=torch.finfo(dtype).eps)
    assert {each.dtype for each in model.parameters()} == {dtype}
    with torch.no_grad():
        model.fc.bias.add_(1)  # the copy is made anew
    assert torch.allclose(compiled.score(x).logits, out.logits + 1, rtol=0, atol=2 * torch.finfo(dtype).eps)


class Bound(nn.Module):
    """A model in bfloat16 that says so."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x.to(torch.bfloat16))).relu().mean((2, 3)))


def test_a_model_that_cannot_be_widened_is_compiled_as_it_is() -> None:
    torch.manual_seed(0)
    model, x = Bound().to(torch.bfloat16).eval(), zoo.images(3, dtype=torch.bfloat16)
    compiled = GaiaZ(model, engine="compiled")
    choice = compiled.plan(x).runtime
    assert choice is not None
    assert choice.name == "inductor"
    truth = reference.gaia_z(model, x).score
    assert torch.allclose(compiled(x), truth, rtol=0.05)
    with pytest.raises(
        CompilationError,
        match=r"runtime='native' computes in torch.float32, and the model, widened to it, cannot be compiled: Bound",
    ):
        GaiaZ(model, engine="compiled", runtime="native")(x)


def test_many_images_in_bfloat16_go_where_there_are_matrix_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    for tiles, images, dtype, expected in (
        (True, 8, torch.bfloat16, torch.bfloat16),
        (True, 7, torch.bfloat16, torch.float32),
        (True, 8, torch.float16, torch.float32),
        (False, 8, torch.bfloat16, torch.float32),
        (True, 8, torch.float64, torch.float64),
    ):
        monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda tiles=tiles: tiles)
        x = torch.zeros(images, 3, 4, 4, dtype=dtype)
        assert computes_in("auto", x) == expected
        assert computes_in("inductor", x) == dtype
        assert computes_in("native", x) == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("runtime", ["eager", "inductor"])
def test_channels_last(runtime: RuntimeOption) -> None:
    model: Any = zoo.build("vgg_like")
    model = model.to(memory_format=torch.channels_last)
    x = zoo.images(3).to(memory_format=torch.channels_last)
    found = GaiaA(model, engine="compiled", runtime=runtime)(x)
    assert torch.allclose(found, reference.gaia_a(model, x).score, rtol=1e-5)


def groups_of(channels: int) -> nn.Module:
    """A network with convolutions in two groups."""
    torch.manual_seed(0)
    first = nn.Sequential(*zoo.conv_norm(3, 2 * channels), nn.ReLU())
    second = nn.Conv2d(2 * channels, 2 * channels, 3, groups=2, bias=False)
    return zoo.Pooled(nn.Sequential(first, second, nn.BatchNorm2d(2 * channels), nn.ReLU()), 2 * channels).eval()


def test_auto_says_why() -> None:
    one = GaiaZ(zoo.build("resnet34"), engine="compiled").plan(zoo.images(1, 16)).runtime
    assert one is not None
    assert (one.name, one.why) == ("native", "its kernels take the convolutions")
    grouped = GaiaZ(groups_of(24), engine="compiled").plan(zoo.images(2)).runtime
    assert grouped is not None
    assert grouped.name == "onnxruntime"
    assert "of the convolutions' operations" in grouped.why
    choice = (
        GaiaZ(zoo.build("parallel", torch.float64), engine="compiled").plan(zoo.images(2, dtype=torch.float64)).runtime
    )
    assert choice is not None
    assert choice.name == "eager"


def test_runtimes_that_cannot_run_here_say_why() -> None:
    with pytest.raises(ArgumentError, match=r"runtime='fast' does not exist; choose from \('auto', 'eager'"):
        GaiaZ(zoo.build("parallel"), runtime="fast")  # type: ignore[arg-type]
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match="runtime='cudagraph' needs a CUDA device"):
            GaiaZ(zoo.build("parallel"), engine="compiled", runtime="cudagraph")(zoo.images(2))
    wide = zoo.build("parallel", torch.float64)
    for runtime in ("onnxruntime", "openvino", "native"):
        with pytest.raises(BackendError, match=f"runtime='{runtime}' takes float32 images on the CPU"):
            GaiaZ(wide, engine="compiled", runtime=runtime)(zoo.images(2, dtype=torch.float64))


@pytest.mark.parametrize("runtime", HERE)
def test_threads_do_not_disturb_each_other(runtime: RuntimeOption) -> None:
    model = zoo.build("strided_shortcut")
    detector = GaiaA(model, engine="compiled", runtime=runtime).prepare(zoo.images(2))
    batches = [zoo.images(2, seed=seed) for seed in range(6)]
    expected = [detector(x) for x in batches]
    found: dict[int, Tensor] = {}

    def run(index: int) -> None:
        for _ in range(5):
            found[index] = detector(batches[index])

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.allclose(found[index], expected[index], rtol=1e-6) for index in range(len(batches)))


class Recorder:
    """A runner for a number of images that notes what it was given."""

    def __init__(self, size: int, calls: list[int]) -> None:
        self.size, self.calls = size, calls

    def __call__(self, x: Tensor, guard: Guard = no_guard) -> tuple[Tensor, ...]:
        guard()
        assert x.shape[0] == self.size
        self.calls.append(self.size)
        return (x.sum((1, 2, 3)), x[:, 0])


def test_sizes_are_filled_up_to_the_next_or_split() -> None:
    calls: list[int] = []
    runner = FixedSizes(lambda size: Recorder(size, calls))
    x = zoo.images(11)
    runner(x[:4])  # nothing is prepared: made for as many
    runner.prepare(8)
    for count, expected in ((3, [4]), (4, [4]), (5, [8]), (8, [8]), (9, [8, 4]), (11, [8, 4])):
        calls.clear()
        looks: list[int] = []
        total, channel = runner(x[:count], partial(looks.append, 1))
        assert looks == [1]
        assert calls == expected
        torch.testing.assert_close(total, x[:count].sum((1, 2, 3)))
        assert torch.equal(channel, x[:count, 0])


@pytest.mark.parametrize("runtime", HERE)
def test_a_runner_calls_once_meanwhile_and_raises_what_that_does(runtime: RuntimeOption) -> None:
    model, x = zoo.build("strided_shortcut"), zoo.images(3)
    prepared = GaiaZ(model, engine="compiled", runtime=runtime).prepare(x).program(x)
    assert prepared is not None
    expected = prepared.runner(x)
    here: list[int] = []
    for images in (3, 2, 5):  # as prepared, filled up and split, or any number
        here.clear()
        prepared.runner(x[[*range(3), 0, 0]][:images], lambda: here.append(threading.get_ident()))
        assert here == [threading.get_ident()]

    def fail() -> None:
        raise KeyboardInterrupt("in the middle")

    with pytest.raises(KeyboardInterrupt, match="in the middle"):
        prepared.runner(x, fail)
    for a, b in zip(prepared.runner(x), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_no_warnings_reach_the_user() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GaiaA(zoo.build("parallel"), engine="compiled", runtime="onnxruntime")(zoo.images(2))


def test_auto_goes_on_where_native_is_off_by_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    class Off(Native):
        def __call__(self, x: Tensor, guard: Guard = no_guard) -> tuple[Tensor, ...]:
            logits, score, *rest = super().__call__(x, guard)
            return logits, score * 1.01, *rest

    monkeypatch.setattr("gaia_fast.compiler.runtimes.choice.Native", Off)
    model, x = zoo.build("parallel"), zoo.images(2)
    detector = GaiaZ(model, engine="compiled").prepare(x, tune="model")
    plan = detector.plan(x)
    assert plan.runtime is not None
    assert plan.runtime.name in ("onnxruntime", "eager")
    assert "not native: the program of Parallel under runtime 'native' is off by" in plan.runtime.why
    torch.testing.assert_close(detector(x), GaiaZ(model, engine="hooks")(x), rtol=1e-5, atol=0)
    with pytest.raises(ModelError, match="'native' is off by"):
        GaiaZ(model, engine="compiled", runtime="native").prepare(x)
