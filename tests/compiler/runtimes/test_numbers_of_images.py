"""Models that look at how many images there are: right for each number, or refused."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gaia_fast import GaiaA, GaiaZ, reference
from gaia_fast.errors import CompilationError
from gaia_fast.reference import Reference

import zoo


class Trunk(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*zoo.conv_norm(3, 8), nn.ReLU(), *zoo.conv_norm(8, 8), nn.ReLU())
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.trunk(x)).flatten(1))


class OneIsOther(Trunk):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (0.5 if x.shape[0] == 1 else 1.0)


class ManyAreOther(Trunk):
    def forward(self, x: Tensor) -> Tensor:
        y = self.trunk(x)
        return self.fc(self.pool(y * 2 if x.shape[0] > 2 else F.relu(y - 0.1)).flatten(1))


class Relative(Trunk):
    """Looks at each image beside the others."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0))


class Counted(Trunk):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * x.shape[0]


class Squeezed(Trunk):
    """The same for any number, by other operators for one."""

    def forward(self, x: Tensor) -> Tensor:
        f = self.pool(self.trunk(x)).squeeze()
        if f.dim() == 1:
            f = f.unsqueeze(0)
        return self.fc(f)


class OddAreOther(Trunk):
    """The same for any number, by other operators for odd ones: PyTorch exports no graph of any number."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.trunk(x)
        return self.fc(self.pool(y * 0.5 + y * 0.5 if x.shape[0] % 2 else y).flatten(1))


METHODS: dict[Callable[..., GaiaZ | GaiaA], Callable[..., Reference]] = {
    GaiaZ: reference.gaia_z,
    partial(GaiaA, head="fc"): partial(reference.gaia_a, head="fc"),
}


@pytest.mark.parametrize("kind", [OneIsOther, ManyAreOther, Relative, Counted])
@pytest.mark.parametrize("images", [1, 4])
@pytest.mark.parametrize("detector", METHODS, ids=["GaiaZ", "GaiaA"])
def test_results_that_depend_on_the_number_of_images_are_refused(
    detector: Callable[..., GaiaZ | GaiaA], images: int, kind: Callable[[], nn.Module]
) -> None:
    torch.manual_seed(0)
    model, x = kind().eval(), zoo.images(5)
    with pytest.raises(CompilationError, match="depends on how many others are in the batch"):
        detector(model, engine="compiled", runtime="eager").prepare(x[:images])
    prepared = detector(model, runtime="eager").prepare(x[:images])
    assert prepared.plan(x).engine.name == "hooks"
    for number in (1, 2, 5):
        truth = METHODS[detector](model, x[:number])
        found = prepared.score(x[:number])
        torch.testing.assert_close(found.logits, truth.logits)
        torch.testing.assert_close(found.score, truth.score, rtol=1e-4, atol=0)


class OneIsDarker(Trunk):
    """By no more than what a few operators in bfloat16 may lose."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * (0.9 if x.shape[0] == 1 else 1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("images", [1, 4])
def test_half_precision_hides_no_dependence(dtype: torch.dtype, images: int) -> None:
    torch.manual_seed(0)
    model, x = OneIsDarker().eval().to(dtype), zoo.images(4, dtype=dtype)
    with pytest.raises(CompilationError, match="depends on how many others are in the batch"):
        GaiaZ(model, engine="compiled", runtime="eager").prepare(x[:images])


@pytest.mark.parametrize("runtime", ["eager", "native", "onnxruntime"])
@pytest.mark.parametrize("kind", [Squeezed, OddAreOther])
@pytest.mark.parametrize("images", [1, 4])
@pytest.mark.parametrize("detector", METHODS, ids=["GaiaZ", "GaiaA"])
def test_other_operators_for_other_numbers_are_right_for_each(
    detector: Callable[..., GaiaZ | GaiaA], images: int, kind: Callable[[], nn.Module], runtime: str
) -> None:
    torch.manual_seed(0)
    model, x = kind().eval(), zoo.images(5)
    compiled = detector(model, engine="compiled", runtime=runtime).prepare(x[:images])
    for number in (1, 2, 3, 5):
        truth = METHODS[detector](model, x[:number])
        found = compiled.score(x[:number])
        torch.testing.assert_close(found.logits, truth.logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.score, truth.score, rtol=1e-3, atol=0)
