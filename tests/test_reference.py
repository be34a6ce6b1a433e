"""The reference against hand-computed cases and against gradients taken in another way."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gaia_fast import GaiaA, GaiaZ, reference
from gaia_fast.errors import LayerError
from gaia_fast.options import EngineOption

from zoo import Dangling, build, images

FLOAT64 = torch.float64


class Tiny(nn.Module):
    """Norm, ReLU, mean, linear: every gradient can be written down."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(2, affine=False, eps=0.0)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(2, 2, bias=False)
        self.fc.weight.data = torch.tensor([[1.0, 2.0], [0.0, -1.0]])

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.relu(self.norm(x)).mean((2, 3)))


@pytest.fixture
def tiny() -> tuple[nn.Module, Tensor]:
    # Channel 0 has one positive position of four, channel 1 has three.
    x = torch.tensor([[[[4.0, -1.0], [-1.0, -1.0]], [[1.0, 1.0], [2.0, -5.0]]]], dtype=FLOAT64)
    return Tiny().to(FLOAT64).eval(), x


def test_gaia_z_by_hand(tiny: tuple[nn.Module, Tensor]) -> None:
    # The features are (1, 1), the logits (3, -1), the top-1 weights (1, 2): no gradient vanishes but behind the ReLU.
    score, abnormality, logits = reference.gaia_z(*tiny)
    assert logits.tolist() == [[3.0, -1.0]]
    assert abnormality[0].tolist() == [[0.25, 0.75]]
    assert score.item() == pytest.approx((0.25**2 + 0.75**2) ** 0.5, rel=1e-15)


def test_gaia_a_by_hand(tiny: tuple[nn.Module, Tensor]) -> None:
    # Inner: dPhi/dA is 1/4 at the live positions, so its mean over the map is 1/16 and 3/16. Output: A_last is what the
    # ReLU returns, d(sum log_softmax)/dlogit_c = 1 - 2 softmax_c = -tanh(2), tanh(2); through the weights and the mean.
    tanh = torch.tanh(torch.tensor(2.0, dtype=FLOAT64)).item()
    g = [abs(-tanh * 1 + tanh * 0) / 4, abs(-tanh * 2 + tanh * -1) / 4]
    out = ((g[0] + g[1]) / 2) ** 0.5
    score, abnormality, _ = reference.gaia_a(*tiny)
    assert abnormality[0].tolist() == [pytest.approx([1 / 16 / out, 3 / 16 / out], rel=1e-12)]
    assert score.item() == pytest.approx((1 + 9) ** 0.5 / 16 / out, rel=1e-12)


def test_fusions_by_hand(tiny: tuple[nn.Module, Tensor]) -> None:
    tanh = torch.tanh(torch.tensor(2.0, dtype=FLOAT64)).item()
    out = ((tanh / 4 + 3 * tanh / 4) / 2) ** 0.5
    assert reference.gaia_a(*tiny, fusion="inner").abnormality[0].tolist() == [[1 / 16, 3 / 16]]
    assert reference.gaia_a(*tiny, fusion="output").score.item() == pytest.approx(1 / out, rel=1e-12)
    # d logit_0 / dA is the weight over four at the live positions.
    assert reference.gaia_a(*tiny, fusion="top1").abnormality[0].tolist() == [[1 / 16, 2 * 3 / 16]]


def test_mean_abs_differs_from_abs_mean_where_signs_mix() -> None:
    model = build("vgg_like", FLOAT64)
    x = images(2, dtype=FLOAT64)
    abs_mean = reference.gaia_a(model, x, fusion="top1").abnormality
    mean_abs = reference.gaia_a(model, x, fusion="top1", statistic="mean_abs").abnormality
    assert all((wide >= narrow - 1e-15).all() for wide, narrow in zip(mean_abs, abs_mean, strict=True))
    assert any((wide > narrow + 1e-9).any() for wide, narrow in zip(mean_abs, abs_mean, strict=True))


@pytest.mark.parametrize("p", [1.0, 2.0, 4.0])
def test_the_order_of_the_norm(tiny: tuple[nn.Module, Tensor], p: float) -> None:
    assert reference.gaia_z(*tiny, p=p).score.item() == pytest.approx((0.25**p + 0.75**p) ** (1 / p), rel=1e-14)


def test_gradients_equal_those_of_each_image_and_class_alone() -> None:
    """One backward pass serves the batch: the same as a backward pass for each image's own top-1 logit."""
    model, x = build("strided_shortcut", FLOAT64), images(3, dtype=FLOAT64)
    together = reference.gaia_z(model, x)
    for i in range(3):
        alone = reference.gaia_z(model, x[i : i + 1])
        assert torch.allclose(alone.score, together.score[i : i + 1], rtol=1e-12)


def test_gradients_against_finite_differences() -> None:
    """The inner component of a smooth network's last map, by differences of Phi instead of autograd."""
    model, x = build("smooth", FLOAT64), images(1, size=6, dtype=FLOAT64)
    norm = model.get_submodule("trunk.4")
    inner = reference.gaia_a(model, x, ["trunk.4"], fusion="inner").abnormality[0]
    shift = torch.zeros(8, dtype=FLOAT64)
    handle = norm.register_forward_hook(lambda _, __, out: out + shift.view(1, -1, 1, 1))

    def phi(channel: int, step: float) -> Tensor:
        shift.zero_()[channel] = step
        with torch.no_grad():
            return model.get_submodule("trunk")(x).mean((2, 3)).sum()

    # Shifting a whole channel adds up its gradient over space: H*W times the mean.
    area = 36
    differences = [(phi(k, 1e-6) - phi(k, -1e-6)) / 2e-6 / area for k in range(8)]
    handle.remove()
    assert torch.allclose(torch.stack(differences).abs(), inner[0], rtol=1e-6)


@pytest.mark.parametrize("method", [reference.gaia_z, reference.gaia_a])
def test_identity_with_the_definition_of_the_authors(method: Callable[..., reference.Reference]) -> None:
    """Their score is the mean of eps^2 over all channels: ours squared, over the number of channels."""
    score, abnormality, _ = method(build("wrn_40_2", FLOAT64), images(3, 32, FLOAT64))
    eps = torch.cat(abnormality, dim=1)
    assert torch.allclose(score**2 / eps.shape[1], eps.square().mean(1), rtol=1e-12)


def test_a_map_behind_an_in_place_relu_is_not_dense() -> None:
    """Capturing the tensor instead of its gradient edge gives density 1 there."""
    abnormality = reference.gaia_z(build("strided_shortcut", FLOAT64), images(2, dtype=FLOAT64)).abnormality
    assert all(each.mean() < 0.9 for each in abnormality)


def test_a_map_that_the_output_does_not_depend_on_is_named() -> None:
    with pytest.raises(LayerError, match="'unused'"):
        reference.gaia_z(Dangling().eval(), images(1))


def test_the_caller_s_images_are_left_alone() -> None:
    x = images(2)
    before = x.clone()
    reference.gaia_a(build("vgg_like"), x)
    assert not x.requires_grad
    assert torch.equal(x, before)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("method", [reference.gaia_z, reference.gaia_a])
def test_inside_every_grad_mode(method: Callable[..., reference.Reference], mode: type) -> None:
    model = build("vgg_like")
    expected = method(model, images(2))
    with mode():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        found = method(model, images(2))
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
    assert torch.equal(found.score, expected.score)
    assert not found.logits.requires_grad


class Permuting(nn.Module):
    """A norm over the channels, as ConvNeXt has it: its output is a view."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("engine", ["hooks", "reference"])
@pytest.mark.parametrize(
    "norm", [lambda: nn.InstanceNorm2d(8, affine=True), Permuting, lambda: nn.Unflatten(1, (8, 1))]
)
def test_a_map_that_is_a_view_and_an_activation_in_place(norm: Callable[[], nn.Module], engine: EngineOption) -> None:
    """The place in the graph of a view changes when it is written, and so would that of A_last."""

    class Net(nn.Module):
        def __init__(self, inplace: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3, padding=1), norm(), nn.Linear(8, 5)
            self.inplace = inplace

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            y = self.norm(y.flatten(2) if isinstance(self.norm, nn.Unflatten) else y).flatten(3)
            return self.fc(F.relu(y, inplace=self.inplace).mean((2, 3)))

    x = images(2)
    for detector in (GaiaZ, GaiaA):
        written, plain = (detector(Net(each).eval(), layers=["norm"], engine=engine)(x) for each in (True, False))
        assert torch.equal(written, plain)
