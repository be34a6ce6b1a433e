"""What the native runtime adds to its executables: algorithms measured for the example's number of images."""

import pytest
import torch
from torch import nn

from gaia_fast import GaiaZ
from gaia_fast.compiler.native.executable import Executable
from gaia_fast.compiler.native.kernels import Convolution
from gaia_fast.compiler.runtimes.native import Native
from gaia_fast.errors import ArgumentError
from gaia_fast.ops.convolution import Part, measured
from gaia_fast.ops.convolution.packing import Algorithm

import zoo


def test_a_prepared_detector_measures_for_its_number_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def seconds(part: Part, x: torch.Size, out: tuple[int, int], algorithm: Algorithm, weight_bytes: int) -> float:
        asked.append(x[0])
        assert weight_bytes == 64 << 20  # of 85 MB
        return 1.0 if algorithm is Algorithm.INDIRECT_GEMM else 2.0

    monkeypatch.setattr(measured, "_seconds", seconds)
    monkeypatch.setenv("GAIA_FAST_CACHE", "")
    measured.ANSWERS.forget()
    model, x = zoo.build("resnet34"), zoo.images(4, 16)
    reference = GaiaZ(model, engine="reference").score(x)
    plain = GaiaZ(model, engine="compiled", runtime="native").prepare(x, tune="model")
    plain.score(x[:2])
    assert not asked
    tuned = GaiaZ(model, engine="compiled", runtime="native").prepare(x, tune="measure")
    tuned.score(x[:2])
    assert set(asked) == {4}
    torch.testing.assert_close(tuned.score(x).score, reference.score, rtol=1e-4, atol=0)
    program = tuned.program(x)
    assert program is not None
    assert isinstance(program.runner, Native)
    assert program.runner._graph is not None
    kernels = [each for each in program.runner._graph.modules() if isinstance(each, Executable)]
    asked_for = {
        each.kernel.measured_for for one in kernels for each in one.instructions if isinstance(each.kernel, Convolution)
    }
    assert asked_for == {
        (4, sum(4 * each.weight.numel() for each in model.modules() if isinstance(each, nn.Conv2d | nn.Linear)))
    }
    with pytest.raises(ArgumentError, match="tune='fast' does not exist"):
        tuned.prepare(x, tune="fast")  # type: ignore[arg-type]
    measured.ANSWERS.forget()


class Around(nn.Module):
    """A convolution, and what is PyTorch's of the images, or not."""

    def __init__(self, reads: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.reads = reads
        self.stem, self.fc = nn.Sequential(*zoo.conv_norm(3, 16)), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.fc(self.stem(x).relu().mean((2, 3)))
        return logits + x.cos().amax((1, 2, 3))[:, None] if self.reads else logits


@pytest.mark.parametrize("reads", [False, True])
def test_images_are_copied_by_the_executable_unless_pytorch_reads_them(
    reads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = Around(reads).eval(), zoo.images(2)
    det = GaiaZ(model, engine="compiled", runtime="native").prepare(x)
    given: list[torch.Tensor] = []
    forward = Executable.forward

    def spy(self: Executable, guard: object, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given.extend(inputs)
        return forward(self, guard, *inputs)  # type: ignore[arg-type]

    monkeypatch.setattr(Executable, "forward", spy)
    found = det.score(x)
    torch.testing.assert_close(found.score, GaiaZ(model, engine="reference")(x), rtol=2e-5, atol=0)
    images = [each for each in given if each.shape == x.shape]
    assert images
    assert all((each.data_ptr() == x.data_ptr()) is not reads for each in images)
