"""The operations under torch.vmap and the other transforms of torch.func.

torch.vmap hands a rule tensors with one dimension more; it joins that of the images, or that of the channels where a
parameter of the channels is mapped, so that one call of a kernel takes them all. Nothing here can be differentiated,
and torch.func.grad and its kin would take that for a gradient of zero: they are refused. So they are for values that
are detached inside the function that is differentiated, as a.detach() of its argument a, and for those that has_aux
returns beside the loss: PyTorch counts both as values of that function. What is to be computed of them is computed
outside of it.
"""

from collections.abc import Callable, Iterator, Sequence
from inspect import Signature
from typing import Any, overload

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import FuncTorchInterpreter, VmapInterpreter, retrieve_current_functorch_interpreter

from gaia_fast.errors import BackendError

# Takes the operation, how many times it is mapped, the mapped dimension of each argument, and the arguments; returns
# the results and their mapped dimensions.
BatchingRule = Callable[..., tuple[Any, Any]]
Dims = tuple[int | None, ...]
ListDims = Sequence["int | None"]  # of an argument that is a list of tensors: one for each

IMAGES, CHANNELS = 0, 1


def of_maps(*parameters: int | None) -> int:
    """Returns what a map's mapped dimension joins, given that of each parameter of its channels."""
    return IMAGES if all(dim is None for dim in parameters) else CHANNELS


@overload
def joined(tensor: Tensor, dim: int | None, times: int, into: int) -> Tensor: ...
@overload
def joined(tensor: None, dim: int | None, times: int, into: int) -> None: ...
@overload
def joined(tensor: Tensor | None, dim: int | None, times: int, into: int) -> Tensor | None: ...
def joined(tensor: Tensor | None, dim: int | None, times: int, into: int) -> Tensor | None:
    """Returns a tensor whose mapped dimension is joined with the one at `into`; one that is not mapped is repeated."""
    if tensor is None:
        return None
    if dim is None:
        tensor = tensor.unsqueeze(into).expand(*tensor.shape[:into], times, *tensor.shape[into:])
    else:
        tensor = tensor.movedim(dim, into)
    return tensor.flatten(into, into + 1)


def parted(tensor: Tensor, times: int, at: int) -> Tensor:
    """Undoes `joined`: the mapped dimension is at `at` again."""
    return tensor.unflatten(at, (times, tensor.shape[at] // times))


def under_transforms(op: Callable[..., Any], signature: Signature, rule: BatchingRule) -> Callable[..., Any]:
    """Returns what an operation does when it is called under a transform: PyTorch asks for the innermost one.

    Args:
        op: the operation, to be called again without that transform.
        signature: its arguments.
        rule: what torch.vmap does with it.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = tuple(bound.arguments.values())
        transform = retrieve_current_functorch_interpreter()
        if isinstance(transform, VmapInterpreter):
            return _mapped(op, transform, rule, given)
        _refuse_derivatives(op, transform, given)
        with transform.lower():
            return op(*given)

    return call


def _mapped(op: Callable[..., Any], transform: VmapInterpreter, rule: BatchingRule, given: tuple[Any, ...]) -> Any:
    level = transform.level()
    pairs = [_unwrapped(each, level) for each in given]
    with transform.lower():
        if all(dim is None for _, dims in pairs for dim in (dims if isinstance(dims, list) else [dims])):
            return op(*(x for x, _ in pairs))
        times = transform.batch_size()
        if times == 0:  # what one element gives tells the shapes
            pairs = [(_with_ones(x, dim), dim) for x, dim in pairs]
        results, dims = rule(op, times or 1, tuple(dim for _, dim in pairs), *(x for x, _ in pairs))
        if times == 0:
            results, dims = _emptied(results, dims)
    if isinstance(results, Tensor):
        return torch._C._functorch._add_batch_dim(results, dims, level)
    return tuple(torch._C._functorch._add_batch_dim(each, dim, level) for each, dim in zip(results, dims, strict=True))


def _unwrapped(given: Any, level: int) -> tuple[Any, Any]:
    """Returns an argument without the transform, and its mapped dimension; of a list of tensors lists of both."""
    if isinstance(given, Tensor):
        return torch._C._functorch._unwrap_batched(given, level)
    if isinstance(given, (list, tuple)) and any(isinstance(each, Tensor) for each in given):
        pairs = [_unwrapped(each, level) for each in given]
        return [x for x, _ in pairs], [dim for _, dim in pairs]
    return given, None


def _with_ones(given: Any, dim: Any) -> Any:
    if isinstance(dim, list):
        return [_with_ones(*pair) for pair in zip(given, dim, strict=True)]
    return given if dim is None else _ones(given, dim)


def _tensors(given: tuple[Any, ...]) -> Iterator[Tensor]:
    for each in given:
        for x in each if isinstance(each, (list, tuple)) else (each,):
            if isinstance(x, Tensor):
                yield x


def _ones(empty: Tensor, dim: int) -> Tensor:
    """Ones in the shape of one element of a mapped tensor that has none."""
    dim %= empty.ndim
    return empty.new_ones((*empty.shape[:dim], 1, *empty.shape[dim + 1 :]))


def _emptied(results: Any, dims: Any) -> tuple[Any, Any]:
    """Takes the one element out of the results of a rule."""
    if isinstance(results, Tensor):
        return results.narrow(dims, 0, 0), dims
    return tuple(each.narrow(dim, 0, 0) for each, dim in zip(results, dims, strict=True)), dims


def _refuse_derivatives(op: Callable[..., Any], transform: FuncTorchInterpreter, given: tuple[Any, ...]) -> None:
    """Raises BackendError where a derivative would be taken through the operation, or it is not known what would."""
    if transform.key() in (TransformType.Grad, TransformType.Jvp):
        level = transform.level()
        if not any(torch._C._functorch.maybe_get_level(x) == level for x in _tensors(given)):
            return
        raise BackendError(
            f"{op} has no derivative, and torch.func.grad, vjp, jvp and their kin would take it for zero; take it out "
            "of the function that is differentiated, also where it has detached values or goes into has_aux: return "
            "its arguments there, and call it on what is returned"
        )
    raise BackendError(f"{op} runs under torch.vmap, and under no other transform: {transform.key()}")
