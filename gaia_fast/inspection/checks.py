"""What a model, its images and its output must be like before a score means anything."""

import traceback
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy

from gaia_fast.errors import GaiaError, InputError, ModelError, NonFiniteError
from gaia_fast.ops.result_checks import divisible, together

# What moves statistics, or draws random numbers, as soon as it is set to training.
DIFFERENT_IN_TRAINING = (_NormBase, _DropoutNd, nn.RReLU)


class DeferredChecks:
    """Checks that are looked at together when the context is left: on a device each look waits for all work before it.

    They raise in the order in which they were added. An exception meanwhile gives way to them, as if each had been made
    at once.
    """

    def __init__(self) -> None:
        self._answers: list[bool | Tensor] = []
        self._checks: list[Callable[[], None]] = []

    def pixels(self, x: Tensor) -> None:
        """Defers `check_pixels`."""
        self._add(torch.isfinite(x).all(), lambda: check_pixels(x))

    def finite(self, values: Tensor, what: str, why: str) -> None:
        """Defers `check_finite`."""
        self._add(torch.isfinite(values).all(), lambda: check_finite(values, what, why))

    def output_component(self, out: Tensor, logits: Tensor) -> None:
        """Defers `check_output_component`."""
        self._add(divisible(out, logits).all(), lambda: check_output_component(out, logits))

    def logits(self, logits: Tensor) -> None:
        """Defers `check_logits`."""
        self._add(torch.isfinite(logits).all(), lambda: check_logits(logits))

    def score(self, score: Tensor) -> None:
        """Defers `check_score`."""
        self._add(torch.isfinite(score).all(), lambda: check_score(score))

    def _add(self, answer: Tensor, check: Callable[[], None]) -> None:
        self._answers.append(answer)
        self._checks.append(check)

    def _make(self) -> None:
        if not together(self._answers):
            for check in self._checks:
                check()

    def __enter__(self) -> "DeferredChecks":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._make()
            elif isinstance(error, Exception):
                try:
                    self._make()
                except GaiaError as found:
                    raise found from None
                except Exception:  # of a device that has failed: what it failed in is on its way
                    return
        finally:
            self._answers, self._checks = [], []


def unwrap(model: nn.Module) -> nn.Module:
    """Returns the eager module inside DataParallel, DistributedDataParallel and torch.compile wrappers.

    Scores do not differ: the wrappers split batches, synchronise gradients of parameters or compile, none of which the
    score depends on. Hooks would not fire inside a compiled module, hence its original.

    Raises:
        ModelError: not a module, a TorchScript module, or one with compiled parts that cannot be taken out.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"the model must be a torch.nn.Module, got {type(model).__name__}")
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif _is_compiled_wrapper(model):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            break
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(
                f"{_part(name)} is a TorchScript module, whose gradients cannot be hooked; pass the eager model"
            )
        if _is_compiled(module):
            raise ModelError(_compiled_message(name))
    return model


def _is_compiled(module: nn.Module) -> bool:
    return getattr(module, "_compiled_call_impl", None) is not None or _is_compiled_wrapper(module)


def _compiled_message(name: str) -> str:
    return (
        f"{_part(name)} was compiled in place, and hooks do not fire inside compiled "
        "code; pass the model as it was before .compile() or torch.compile(...)"
    )


def _is_compiled_wrapper(module: nn.Module) -> bool:
    return type(module).__name__ == "OptimizedModule" and hasattr(module, "_orig_mod")


def check_mode(module: nn.Module, name: str | None = None) -> None:
    """Raises ModelError if the module is in training mode."""
    if module.training:
        raise ModelError(
            f"{f'a {type(module).__name__}' if name is None else _part(name)} is in training mode: batch statistics "
            "and dropout would make the scores of a batch depend on each other and on chance; call model.eval() first, "
            "and leave it so while images are scored"
        )


def check_model(model: nn.Module) -> None:
    """Raises ModelError if any part of `model` is in training mode, or takes statistics of the batch in eval mode."""
    for name, module in model.named_modules():
        check_mode(module, name)
        if _is_compiled(module):
            raise ModelError(_compiled_message(name))
        if any(map(is_lazy, (*module._parameters.values(), *module._buffers.values()))):
            raise ModelError(
                f"{_part(name)} is a {type(module).__name__} whose parameters have no shape before its first call, and "
                "chance makes them then; load its weights, or run one batch first: model(x)"
            )
        if isinstance(module, _BatchNorm) and module.running_var is None:
            raise ModelError(
                f"{_part(name)} has no running statistics, so the scores of a batch would depend on each other; train "
                "it with track_running_stats=True, or use a norm over each image alone"
            )


def _part(name: str) -> str:
    return f"module {name!r}" if name else "the model"


def check_images(x: Tensor, model: nn.Module) -> None:
    """Raises InputError unless `x` is a finite floating (N, C, H, W) tensor with the dtype and device of `model`."""
    check_kind(x, model)
    check_pixels(x)


def check_form(x: Tensor, floating: bool = True) -> None:
    """Raises InputError unless `x` is a (N, C, H, W) tensor, and `floating` where it is to be."""
    if not isinstance(x, Tensor):
        raise InputError(f"images must be a torch.Tensor, got {type(x).__name__}; use torch.as_tensor(...)")
    if x.layout != torch.strided or x.is_nested:
        raise InputError(f"images are a tensor of layout {x.layout}; use x.to_dense()")
    if x.ndim != 4:
        hint = "; for one image use x.unsqueeze(0)" if x.ndim == 3 else ""
        raise InputError(f"images must be of shape (N, C, H, W), got {tuple(x.shape)}{hint}")
    if floating and not x.is_floating_point():
        raise InputError(
            f"images are {x.dtype}; normalise them to floats as in training, (x.float() / 255 - mean) / std"
        )
    if 0 in x.shape[1:]:
        raise InputError(f"images of shape {tuple(x.shape)} hold no pixels")


def check_kind(x: Tensor, model: nn.Module) -> None:
    """Raises InputError unless `x` is a floating (N, C, H, W) tensor with the dtype and device of `model`."""
    check_form(x)
    first = next(chain(model.parameters(), model.buffers()), None)
    if first is not None:
        if x.device != first.device:
            raise InputError(
                f"images are on {x.device}, the model on {first.device}; move one: x.to({str(first.device)!r})"
            )
        if first.is_floating_point() and x.dtype != first.dtype and not torch.is_autocast_enabled(x.device.type):
            raise InputError(f"images are {x.dtype}, the model's parameters {first.dtype}; use x.to({first.dtype})")
        if first.is_inference():
            raise ModelError(
                "the model's parameters were created under torch.inference_mode() and cannot take part in a gradient; "
                "create or load the model outside of it"
            )


def check_pixels(x: Tensor) -> None:
    """Raises InputError naming the images of `x` that are not finite."""
    finite = torch.isfinite(x)
    if not finite.all():
        bad = (~finite.flatten(1).all(1)).nonzero().flatten().tolist()
        raise InputError(f"images {_listed(bad)} of the batch hold infinite or NaN pixels; remove or repair them")


def logits_of(output: Any, images: int) -> Tensor:
    """Returns the (N, C) logits in what a model returned: a tensor, or a mapping or object with `logits`.

    Raises:
        ModelError: no such tensor.
    """
    logits = output
    if not isinstance(output, Tensor):
        logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
        if not isinstance(logits, Tensor):
            raise ModelError(
                f"the model returned a {type(output).__name__} without `logits`; wrap it in a module that returns the "
                "(N, C) logits alone"
            )
    if logits.ndim != 2 or logits.shape[0] != images or logits.shape[1] == 0:
        raise ModelError(f"the model returned logits of shape {tuple(logits.shape)} for {images} images; need (N, C)")
    return logits


def check_finite(values: Tensor, what: str, why: str) -> None:
    """Raises NonFiniteError naming the images whose `values` (N, ...) are not finite."""
    finite = torch.isfinite(values)
    if not finite.all():
        bad = (~finite.flatten(1).all(1) if values.ndim > 1 else ~finite).nonzero().flatten().tolist()
        raise NonFiniteError(f"{what} of images {_listed(bad)} of the batch is infinite or NaN: {why}")


def check_logits(logits: Tensor) -> None:
    """Raises NonFiniteError naming the images whose logits are not finite."""
    check_finite(logits, "a logit", "the model overflows on them; use a wider dtype")


def check_score(score: Tensor) -> None:
    """Raises NonFiniteError naming the images whose score is not finite."""
    check_finite(score, "the score", "the gradients overflow; use a wider dtype")


def forward(model: nn.Module, x: Tensor) -> Any:
    """Returns `model(x)`.

    Raises:
        ModelError: for a plain RuntimeError of PyTorch or the model, naming the module it arose in. Every other
            exception passes unchanged.
    """
    try:
        return model(x)
    except RuntimeError as error:
        if type(error) is not RuntimeError:
            raise
        names = {id(module): name for name, module in model.named_modules()}
        selves = [id(frame.f_locals.get("self")) for frame, _ in traceback.walk_tb(error.__traceback__)]
        inside = [names[each] for each in selves if names.get(each)]
        where = f" in module {inside[-1]!r}" if inside else ""
        raise ModelError(
            f"the model failed{where} on {x.dtype} images of shape {tuple(x.shape)}: {error}. If the shape is at "
            f"fault, {_shape_advice(x)}; if it runs under no_grad alone, detach what leaves the graph in it"
        ) from error


def _shape_advice(x: Tensor) -> str:
    if x.shape[3] in (1, 3) and x.shape[1] not in (1, 3):
        return "the channels may come last: x.permute(0, 3, 1, 2)"
    return "prepare the images as in training (channels, crop, size)"


def backward(
    outputs: Any, inputs: Any, cotangents: Any = None, *, retain_graph: bool = False
) -> tuple[Tensor | None, ...]:
    """Returns `torch.autograd.grad` of the outputs towards the inputs, None where nothing leads there.

    Raises:
        ModelError: the backward pass itself failed.
    """
    try:
        return torch.autograd.grad(outputs, inputs, cotangents, retain_graph=retain_graph, allow_unused=True)
    except RuntimeError as error:
        raise ModelError(
            f"the backward pass failed: {error}. The model runs in inference but cannot be differentiated as it is "
            "written; an operation in place, or activation checkpointing, is the usual cause"
        ) from error


def check_output_component(out: Tensor, logits: Tensor) -> None:
    """Raises NonFiniteError naming the images that `gaia_fast.ops.result_checks.divisible` does not hold for."""
    unusable = (~divisible(out, logits)).nonzero().flatten().tolist()
    if unusable:
        raise NonFiniteError(
            f"the output component of images {_listed(unusable)} of the batch is zero or NaN, so GAIA-A cannot divide "
            "by it: the logits are all equal, not finite, or one only; fusion='inner' or 'top1' does not divide"
        )


def quantised(model: nn.Module) -> str:
    """Returns the message for a model with modules that compute in integers; empty for one without."""
    for name, module in model.named_modules():
        if type(module).__module__.startswith("torch.ao.nn.") and "quantized" in type(module).__module__:
            return (
                f"{_part(name)} is quantised ({type(module).__name__}), and no gradient passes integers: score the "
                "float model that it was made from, on the same images; where the head alone is quantised, GAIA-A with "
                "head=... and fusion='inner' needs no gradient of the logits"
            )
    return ""


def unusable_last(name: str, model: nn.Module | None = None) -> str:
    """Returns the message for an A_last that no gradient of the logits reaches, or that is of other images."""
    return (model is not None and quantised(model)) or (
        f"the logits do not depend on the output of {name!r}, the last module before the head that returns a feature "
        "map, or it is a map of another number of images; GAIA-A needs it, fusion='inner' and 'top1' do not"
    )


def unreached(names: Sequence[str], model: nn.Module | None = None) -> str:
    """Returns the message for inspected layers that no gradient reaches."""
    listed = ", ".join(repr(name) for name in names[:8])
    return (model is not None and quantised(model)) or (
        f"no gradient reaches the feature map of {listed}: the model's output does not depend on it, or the forward "
        "pass cuts the gradient (detach, .data, no_grad); leave it out, layers=[...]"
    )


def _listed(indices: Sequence[int], most: int = 8) -> str:
    more = f", ... ({len(indices)} in all)" if len(indices) > most else ""
    return ", ".join(str(index) for index in indices[:most]) + more
