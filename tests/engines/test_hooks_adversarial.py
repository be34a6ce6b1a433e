"""Models that do what a tracer does not expect: each was once scored wrongly, or left a trace, without a word."""

import copy
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import checkpoint

from gaia_fast import GaiaA, GaiaZ, reference
from gaia_fast.errors import CalibrationError, GaiaError, InputError, LayerError, ModelError, NonFiniteError

Network = TypeVar("Network", bound=nn.Module)


class Base(nn.Module):
    """Two convolutions with norms, a residual add, a mean and a linear head, in parts to be overridden."""

    b2: nn.BatchNorm2d | nn.GroupNorm

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.c2, self.b2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def head(self, y: Tensor) -> Tensor:
        return self.fc(y.mean((2, 3)))

    def mid(self, y: Tensor) -> Tensor:
        return F.relu(self.b2(self.c2(y)))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.b1(self.c1(x)))
        return self.head(y + self.mid(y))


def prepared(kind: Callable[[], Network]) -> Network:
    torch.manual_seed(0)
    model = kind().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    return model


def images(size: int = 8) -> Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


def assert_equals_the_reference(model: nn.Module, x: Tensor | None = None) -> None:
    x = images() if x is None else x
    double = copy.deepcopy(model).double()
    for detector, method in ((GaiaZ, reference.gaia_z), (GaiaA, reference.gaia_a)):
        truth = method(double, x.double()).score
        assert torch.allclose(detector(model)(x.clone()).double(), truth, rtol=1e-5), detector


# ---- scores


class FoldedNorm(Base):
    """A norm over half images, two to a whole one: no map of these images, but the gradient passes through it."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.ReLU()

    def head(self, y: Tensor) -> Tensor:
        return super().head(self.last(y))

    def mid(self, y: Tensor) -> Tensor:
        n, c, h, w = y.shape
        z = y.reshape(n, c, 2, h // 2, w).transpose(1, 2).reshape(n * 2, c, h // 2, w)
        return super().mid(z).reshape(n, 2, c, h // 2, w).transpose(1, 2).reshape(n, c, h, w)


class BorrowedParameters(Base):
    def mid(self, y: Tensor) -> Tensor:
        parameters = {name: each * 3 for name, each in self.b2.named_parameters()}
        return F.relu(torch.func.functional_call(self.b2, parameters, (self.c2(y),)))


class SwappedStatistics(Base):
    def mid(self, y: Tensor) -> Tensor:
        assert isinstance(self.b2, nn.BatchNorm2d)
        old = self.b2.running_var
        assert old is not None
        self.b2.running_var = old * 9
        y = super().mid(y)
        self.b2.running_var = old
        return y


class ChangesItsInput(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub_(0.5).div_(0.25))


class SwitchesGradientsOn(Base):
    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            y = F.relu(self.b1(self.c1(x)))
        w = self.c2(y)
        with torch.enable_grad():
            return self.head(F.relu(self.b2(w.relu() + y)))


class ChangesPhi(Base):
    def head(self, y: Tensor) -> Tensor:
        phi = y.mean((2, 3))
        logits = self.fc(phi)
        phi.mul_(0.5)
        return logits


class CatchesAnException(Base):
    def __init__(self) -> None:
        super().__init__()
        self.group = nn.GroupNorm(2, 8)

    def mid(self, y: Tensor) -> Tensor:
        try:
            return super().mid(self.b2(y[:, :4]))
        except RuntimeError:
            return F.relu(self.group(self.c2(y)))


class KeywordHead(Base):
    def head(self, y: Tensor) -> Tensor:
        return self.fc(input=y.mean((2, 3)))


class NormAct(nn.BatchNorm2d):
    def __init__(self, act: nn.Module) -> None:
        super().__init__(8)
        self.unused, self.act = nn.ModuleList([nn.Identity()]), act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class SharedActivation(Base):
    def __init__(self, act: nn.Module | None = None) -> None:
        super().__init__()
        act = nn.ReLU()
        self.b1, self.b2 = NormAct(act), NormAct(act)


@pytest.mark.parametrize(
    "kind",
    [
        FoldedNorm,
        BorrowedParameters,
        SwappedStatistics,
        SwitchesGradientsOn,
        CatchesAnException,
        KeywordHead,
        SharedActivation,
    ],
)
def test_scores_equal_the_reference(kind: type) -> None:
    assert_equals_the_reference(prepared(kind))


def test_phi_changed_in_place_behind_the_head() -> None:
    model = prepared(ChangesPhi).requires_grad_(False)
    plain = prepared(Base).requires_grad_(False)
    assert torch.allclose(GaiaA(model)(images()), GaiaA(plain)(images()), rtol=1e-6)


def test_a_model_that_changes_its_input_leaves_ours_alone() -> None:
    model, x = prepared(ChangesItsInput), images()
    expected = reference.gaia_a(prepared(Base), (x - 0.5) / 0.25).score
    for call in (GaiaA(model), GaiaA(model), lambda x: reference.gaia_a(model, x).score):
        assert torch.allclose(call(x), expected, rtol=1e-5)
        assert torch.equal(x, images())


def test_a_shared_activation_makes_no_more_maps_than_two() -> None:
    names = [each.name for each in GaiaZ(prepared(SharedActivation)).plan(images()).maps]
    assert names == ["b1", "b2"]


def test_a_norm_with_a_parametrization_is_inspected() -> None:
    model = prepared(Base)
    plain = GaiaZ(model)(images())
    nn.utils.parametrize.register_parametrization(model.b2, "weight", nn.Identity())
    model.eval()
    assert torch.allclose(GaiaZ(model)(images()), plain)
    assert [each.name for each in GaiaZ(model).plan(images()).maps] == ["b1", "b2"]


def test_a_function_that_stops_the_gradient_is_noticed() -> None:
    class Stop(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, g: Tensor) -> None:
            return None

    class Stopped(Base):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.mid(Stop.apply(F.relu(self.b1(self.c1(x))))))

    with pytest.raises(LayerError, match="'b1'"):
        GaiaZ(prepared(Stopped))(images())


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_is_refused(reentrant: bool) -> None:
    class Checkpointed(Base):
        def mid(self, y: Tensor) -> Tensor:
            return checkpoint.checkpoint(super().mid, y, use_reentrant=reentrant)

    with pytest.raises(ModelError, match="checkpointing|gradients off"):
        GaiaZ(prepared(Checkpointed))(images())


# ---- a model that is changed after the detector was made


def test_replaced_modules_are_found() -> None:
    model = prepared(Base)
    detectors = GaiaZ(model), GaiaA(model)
    for each in detectors:
        each(images())
    torch.manual_seed(5)
    model.b2, model.fc = nn.BatchNorm2d(8).eval(), nn.Linear(8, 7)
    nn.init.normal_(model.b2.bias)
    model.eval()
    for each in detectors:
        assert torch.equal(each(images()), type(each)(model)(images()))
    model.b2.compile(backend="eager")
    for each in detectors:
        with pytest.raises(ModelError, match="'b2' was compiled in place"):
            each(images())


def test_a_last_may_depend_on_the_size_of_the_image() -> None:
    class BySize(Base):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.AvgPool2d(2)

        def head(self, y: Tensor) -> Tensor:
            return super().head(self.pool(y) if y.shape[-1] > 8 else y)

    model = prepared(BySize)
    detector = GaiaA(model)
    for size in (8, 16, 8):
        truth = reference.gaia_a(model, images(size)).score
        assert torch.allclose(detector(images(size)), truth, rtol=1e-5)


# ---- traces


def test_features_that_the_model_keeps_hang_on_no_graph() -> None:
    class Keeps(Base):
        average: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("average", torch.zeros(8))
            self.kept = torch.zeros(())

        def mid(self, y: Tensor) -> Tensor:
            self.kept = super().mid(y)
            self.average.mul_(0.9).add_(self.kept.mean((0, 2, 3)))
            return self.kept

    for kind in (GaiaZ, GaiaA):
        model = prepared(Keeps)
        average = model.average
        kind(model)(images())
        assert model.average is average
        assert not model.kept.requires_grad
        assert not average.requires_grad
        copy.deepcopy(model)


@pytest.mark.parametrize("detector", [GaiaZ, GaiaA])
def test_a_norm_that_returns_its_input_or_a_kept_tensor(detector: type) -> None:
    class Nothing(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return x

    class First(Base):
        def __init__(self) -> None:
            super().__init__()
            self.b0 = Nothing(3)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.b0(x))

    model, x = prepared(First), images()
    detector(model)(x)
    assert not x.requires_grad
    kept: list[Tensor] = []
    model.b1.register_forward_hook(lambda _, __, out: kept.append(out))
    detector(model, layers=["b1"])(x)
    assert not any(each.requires_grad and each.grad_fn is None for each in kept)


def test_a_grid_made_on_the_first_call_in_inference_mode() -> None:
    class Grid(Base):
        grid: Tensor | None = None

        def mid(self, y: Tensor) -> Tensor:
            if self.grid is None:
                self.grid = torch.linspace(1, 2, y.shape[-1])
            return super().mid(y * self.grid)

    model = prepared(Grid)
    with torch.inference_mode():
        score = GaiaA(model)(images())
    assert torch.equal(GaiaA(model)(images()), score)


def test_many_threads_hook_one_model() -> None:
    model, x = prepared(Base), images()
    expected = GaiaZ(model)(x)
    failures: list[object] = []

    def work() -> None:
        try:
            for _ in range(40):
                if not torch.equal(GaiaZ(model)(x), expected):
                    failures.append("another score")
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not failures


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Python may swallow an interruption
def test_an_interruption_at_any_moment_leaves_no_hook_and_no_mode() -> None:
    """Ctrl-C is raised where a Python function begins or a C function has returned: here, at such moments in turn."""
    model, x = prepared(Base), images()[:1]
    surveyed = GaiaA(model, engine="hooks")
    surveyed(x)
    countdown = 0

    def interrupt(_: object, event: str, __: object) -> None:
        nonlocal countdown
        if event in ("call", "c_return"):
            countdown -= 1
            if countdown == 0:
                raise KeyboardInterrupt

    def at(moment: int, detector: GaiaA) -> bool:
        nonlocal countdown
        countdown = moment
        try:
            sys.setprofile(interrupt)
            detector(x)
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
        return countdown <= 0

    def traces() -> list[object]:
        tables = (
            "_forward_hooks",
            "_forward_pre_hooks",
            "_forward_hooks_always_called",
            "_forward_pre_hooks_with_kwargs",
        )
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch._C._len_torch_dispatch_stack()
        return [*modes, *(len(getattr(module, table)) for module in model.modules() for table in tables)]

    before = traces()
    for fresh, stride in ((False, 3), (True, 19)):
        moment = 1
        while at(moment, GaiaA(model, engine="hooks") if fresh else surveyed):
            assert traces() == before, f"moment {moment}"
            moment += stride
        assert moment > 500


# ---- refusals of the package's own


class DoubleHead(Base):
    def head(self, y: Tensor) -> Tensor:
        return super().head(y).double()


def test_logits_of_another_dtype_than_the_maps() -> None:
    assert torch.equal(GaiaZ(prepared(DoubleHead))(images()), GaiaZ(prepared(Base))(images()))
    by_name = GaiaA(prepared(DoubleHead), head="fc")(images())
    assert torch.allclose(by_name, GaiaA(prepared(Base))(images()), rtol=1e-5)


def test_a_model_that_cannot_be_differentiated() -> None:
    class InPlace(Base):
        def mid(self, y: Tensor) -> Tensor:
            a = torch.sigmoid(super().mid(y))
            a.mul_(2)
            return a

    for call in (GaiaZ(prepared(InPlace)), lambda x: reference.gaia_z(prepared(InPlace), x)):
        with pytest.raises(ModelError, match="the backward pass failed.*in place"):
            call(images())


def test_a_last_that_nothing_reads() -> None:
    class DeadEnd(Base):
        def __init__(self) -> None:
            super().__init__()
            self.extra = nn.Conv2d(8, 1, 1)

        def head(self, y: Tensor) -> Tensor:
            self.extra(y.detach())
            return super().head(y)

    for call in (GaiaA(prepared(DeadEnd)), lambda x: reference.gaia_a(prepared(DeadEnd), x)):
        with pytest.raises(GaiaError, match="'extra'|do not depend"):
            call(images())


def test_a_last_that_runs_without_gradients() -> None:
    class Gate(Base):
        def mid(self, y: Tensor) -> Tensor:
            with torch.no_grad():
                gate = torch.sigmoid(self.c2(y))
            return y * gate

    for engine in ("hooks", "reference", "compiled"):
        with pytest.raises(LayerError, match="the logits do not depend on the output of 'c2'"):
            GaiaA(prepared(Gate), engine=engine, layers=["b1"])(images())
    assert torch.equal(GaiaZ(prepared(Gate))(images()), reference.gaia_z(prepared(Gate), images()).score)


def test_constant_logits_have_no_output_component() -> None:
    class Constant(Base):
        def head(self, y: Tensor) -> Tensor:
            logits = super().head(y)
            return logits - logits.detach()

    for engine in ("hooks", "reference"):
        with pytest.raises(NonFiniteError, match="output component of images 0, 1, 2"):
            GaiaA(prepared(Constant), head="fc", engine=engine)(images())


def test_gradients_that_overflow_are_not_counted() -> None:
    class Overflows(Base):
        def head(self, y: Tensor) -> Tensor:
            return self.fc((y / 4000 * 4000).mean((2, 3)) * 1e-3) * 3e38 * 1e-6

    model = prepared(Overflows)
    nn.init.constant_(model.fc.weight, 1e10)
    nn.init.zeros_(model.fc.bias)
    for engine in ("hooks", "reference"):
        with pytest.raises(NonFiniteError):
            GaiaZ(model, engine=engine)(images())


def test_images_of_another_layout() -> None:
    with pytest.raises(InputError, match="to_dense"):
        GaiaZ(prepared(Base))(images().to_sparse())


def test_no_images_with_a_head_without_bias() -> None:
    model = prepared(Base)
    model.fc = nn.Linear(8, 5, bias=False).eval()
    out = GaiaA(model).score(images()[:0], return_matrix=True)
    assert out.matrix is not None
    assert (out.logits.shape, out.score.shape, out.matrix.shape) == ((0, 5), (0,), (0, 2, 8))


def test_scores_that_are_all_equal_make_no_threshold() -> None:
    with pytest.raises(CalibrationError, match="tell nothing apart"):
        GaiaZ(prepared(Base)).calibrate([2.0, 2.0, 2.0])
