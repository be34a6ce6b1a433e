"""The operations under torch.vmap, against a loop, and under the transforms of torch.func that differentiate."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gaia_fast import ops
from gaia_fast.errors import BackendError

from cases import INSTRUMENTED, INTERPRETED

if INSTRUMENTED or INTERPRETED:
    pytest.skip("the registry is tested with the kernels that users have", allow_module_level=True)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
REGISTERED = torch.ops.gaia_fast
WIDTHS, AREAS = [2, 5], [0.25, 1.0]
MAP, CHANNELS, ROWS, IMAGES = (2, 4, 5, 6), (4,), (2, 7), (2,)

# Of every operation: a call of tensors alone, eager and registered, and the tensors' shapes.
CALLS: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
    "channel_moments": (ops.channel_moments, (MAP,)),
    "relu_backward_moments": (ops.relu_backward_moments, (MAP, MAP, CHANNELS)),
    "relu_backward_moments, no mask": (lambda g, scale: ops.relu_backward_moments(g, None, scale), (MAP, CHANNELS)),
    "relu_forward_count": (ops.relu_forward_count, (MAP, CHANNELS, CHANNELS, MAP)),
    "relu_forward_count, alone": (ops.relu_forward_count, (MAP,)),
    "frobenius": (lambda rows, out: ops.frobenius(rows, WIDTHS, AREAS, out, 3.0), (ROWS, IMAGES)),
    "frobenius, padded": (lambda rows: ops.frobenius(rows, WIDTHS, AREAS), ((2, 2, 5),)),
    "count_and_score": (
        lambda x, y, rows: ops.count_and_score([x, y], [rows], [2, 0, 1], [1.0, 0.5, 0.5], windows=[1, 0, 1]),
        (MAP, MAP, ROWS),
    ),
    "count_and_score, registered": (
        lambda x: REGISTERED.count_and_score([x], [], [0], [0.5], [1.0], [0, 1, 2]),
        (MAP,),
    ),
    "channel_moments, registered": (REGISTERED.channel_moments, (MAP,)),
    "relu_backward_moments, registered": (REGISTERED.relu_backward_moments, (MAP, MAP, CHANNELS)),
    "relu_forward_count, registered": (REGISTERED.relu_forward_count, (MAP, CHANNELS)),
    "frobenius, registered": (lambda rows, out: REGISTERED.frobenius(rows, WIDTHS, AREAS, out), (ROWS, IMAGES)),
}
each_call = pytest.mark.parametrize("name", CALLS)


def tensors(shapes: tuple[tuple[int, ...], ...], mapped: tuple[int | None, ...], times: int) -> list[Tensor]:
    """Random tensors with zeros among their entries, the mapped dimension where it is asked for."""
    generator = torch.Generator().manual_seed(len(shapes))
    found = []
    for shape, dim in zip(shapes, mapped, strict=True):
        size = list(shape)
        if dim is not None:
            size.insert(dim, times)
        values = torch.randn(size, generator=generator)
        zeros = 1 if shape[-1:] == IMAGES else 0  # an output component that is zero divides nothing
        found.append(torch.where(values > -0.5, values.abs(), zeros).to(DEVICE))
    return found


def looped(call: Callable[..., Any], given: list[Tensor], mapped: tuple[int | None, ...], times: int) -> Any:
    """What torch.vmap means."""
    results = [
        call(
            *(
                each if dim is None else each.select(dim, i).contiguous()
                for each, dim in zip(given, mapped, strict=True)
            )
        )
        for i in range(times)
    ]
    if isinstance(results[0], tuple):
        return tuple(map(torch.stack, zip(*results, strict=True)))
    return torch.stack(results)


@each_call
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_vmap_is_a_loop(name: str, dim: int) -> None:
    call, shapes = CALLS[name]
    mapped = tuple(dim % (len(shape) + 1) for shape in shapes)
    given = tensors(shapes, mapped, 3)
    torch.testing.assert_close(torch.vmap(call, mapped)(*given), looped(call, given, mapped, 3))


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("name", ["relu_backward_moments", "relu_forward_count", "frobenius", "count_and_score"])
def test_each_argument_may_be_mapped_alone_or_not_at_all(name: str, place: int) -> None:
    call, shapes = CALLS[name]
    place %= len(shapes)
    alone = tuple(0 if at == place else None for at in range(len(shapes)))
    for mapped in (alone, tuple(None if dim == 0 else 0 for dim in alone)):
        given = tensors(shapes, mapped, 3)
        torch.testing.assert_close(torch.vmap(call, mapped)(*given), looped(call, given, mapped, 3))


@each_call
def test_vmap_in_vmap(name: str) -> None:
    call, shapes = CALLS[name]
    inner, outer = (0,) * len(shapes), (1,) * len(shapes)
    given = tensors(tuple((3, *shape) for shape in shapes), outer, 2)
    expected = looped(lambda *each: looped(call, list(each), inner, 3), given, outer, 2)
    torch.testing.assert_close(torch.vmap(torch.vmap(call, inner), outer)(*given), expected)


def test_what_is_not_mapped_stays_so() -> None:
    g = tensors((MAP,), (None,), 0)[0]
    found = torch.vmap(lambda x: x + ops.channel_moments(g).sum())(torch.zeros(3, device=DEVICE))
    torch.testing.assert_close(found, ops.channel_moments(g).sum().expand(3))


def test_vmap_is_one_call_and_warns_of_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """PyTorch's own way is a loop, and a warning that it is slow."""
    g = tensors((MAP,), (0,), 3)[0]
    torch.vmap(REGISTERED.channel_moments)(g)
    assert "batching rule" not in capfd.readouterr().err


@each_call
@pytest.mark.parametrize("dim", [0, -1])
def test_vmap_over_no_elements_gives_none(name: str, dim: int) -> None:
    call, shapes = CALLS[name]
    mapped = tuple(dim % (len(shape) + 1) for shape in shapes)
    one = torch.vmap(call, mapped)(*tensors(shapes, mapped, 1))
    none = torch.vmap(call, mapped)(*tensors(shapes, mapped, 0))
    pairs = zip(one, none, strict=True) if isinstance(one, tuple) else [(one, none)]
    assert [(each.dtype, each[:0].shape) for each, _ in pairs] == [
        (each.dtype, each.shape) for each in (none if isinstance(none, tuple) else [none])
    ]
    outer = tuple((2, *shape) for shape in shapes)
    within = torch.vmap(torch.vmap(call, mapped), 0)(*(tensors(outer, tuple(at + 1 for at in mapped), 0)))
    assert (within[0] if isinstance(within, tuple) else within).shape[:2] == (2, 0)


@each_call
def test_what_cannot_be_differentiated_is_no_gradient_of_zero(name: str) -> None:
    call, shapes = CALLS[name]
    given = tensors(shapes, (None,) * len(shapes), 0)

    def loss(*each: Tensor) -> Tensor:
        found = call(*each)
        return (found[0] if isinstance(found, tuple) else found).sum()

    for transform in (
        lambda: torch.func.grad(loss)(*given),
        lambda: torch.func.vjp(loss, *given),
        lambda: torch.func.jvp(loss, tuple(given), tuple(given)),
        lambda: torch.func.jacrev(loss)(*given),
        lambda: torch.vmap(torch.func.grad(loss))(*(each.expand(2, *each.shape) for each in given)),
        lambda: torch.func.grad(lambda *each: torch.vmap(loss)(*each).sum())(*(each[None] for each in given)),
    ):
        with pytest.raises(BackendError, match=r"gaia_fast\.\w+\.default has no derivative"):
            transform()


def test_what_does_not_hang_on_the_variable_may_be_computed_beside_it() -> None:
    g = tensors((MAP,), (None,), 0)[0]
    found = torch.func.grad(lambda x: x * ops.channel_moments(g).sum())(torch.ones((), device=DEVICE))
    torch.testing.assert_close(found, ops.channel_moments(g).sum())


def test_detached_values_within_are_refused_with_what_to_do() -> None:
    g = tensors((MAP,), (None,), 0)[0]

    def loss(x: Tensor) -> tuple[Tensor, Any]:
        return x.square().sum(), ops.channel_moments(x.detach())

    with pytest.raises(BackendError, match="detached values or goes into has_aux: return its arguments there"):
        torch.func.grad(loss, has_aux=True)(g)
    _, beside = torch.func.grad(lambda x: (x.square().sum(), x.detach()), has_aux=True)(g)
    torch.testing.assert_close(ops.channel_moments(beside), ops.channel_moments(g))


def test_other_transforms_are_refused() -> None:
    g = tensors((MAP,), (None,), 0)[0]
    with pytest.raises(BackendError, match="under no other transform"):
        torch.func.functionalize(ops.channel_moments)(g)
