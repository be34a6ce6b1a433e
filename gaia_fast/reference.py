"""Algorithm 1 of the paper in plain PyTorch: the truth that every engine and kernel is checked against.

Any dtype (use float64 for truth), any device, any model; no kernels and no shortcuts: the whole graph is recorded and
every gradient kept. Symbols are the paper's: S logits, A feature maps, Phi the vector that the head reads, Lambda the
abnormality matrix, eps its entries.
"""

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any, Concatenate, NamedTuple, ParamSpec

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from gaia_fast.errors import LayerError, ModelError
from gaia_fast.inspection import checks
from gaia_fast.inspection.forward_hooks import ForwardHooks, in_grad_mode
from gaia_fast.inspection.graph import check_norms
from gaia_fast.inspection.head import Head, find_head
from gaia_fast.inspection.kept import undisturbed
from gaia_fast.inspection.layers import InspectedLayer, MapNames, inspected_layers, is_feature_map
from gaia_fast.inspection.survey import Passes, nothing
from gaia_fast.method import Method
from gaia_fast.options import Fusion, Measure, Statistic

P = ParamSpec("P")


class Reference(NamedTuple):
    """The score (N,), the abnormality E[eps | A^kl] of each layer (a list of (N, K_l)) and the logits (N, C)."""

    score: Tensor
    abnormality: list[Tensor]
    logits: Tensor


def _of_eager_model(
    method: Callable[Concatenate[nn.Module, P], Reference],
) -> Callable[Concatenate[nn.Module, P], Reference]:
    """Has gradients recorded whatever mode the caller is in, and the model left as it was."""

    @wraps(method)
    @in_grad_mode(True)
    def call(model: nn.Module, /, *args: P.args, **kwargs: P.kwargs) -> Reference:
        model = checks.unwrap(model)
        return undisturbed(model, lambda: method(model, *args, **kwargs))

    return call


@_of_eager_model
def gaia_z(model: nn.Module, x: Tensor, layers: Sequence[str] | None = None, *, p: float = 2.0) -> Reference:
    """GAIA-Z: the density of non-zero attribution gradients.

        eps[n, l, k] = |{(i, j) : dS_c / dA^kl_ij != 0}| / (H_l * W_l),  c = argmax S      (Eq. 10)
        score[n]     = (sum over l, k of eps^p)^(1/p)                                      (Eq. 12)

    Args:
        model: the classifier, in eval mode.
        x: (N, C, H, W) images of the model's dtype.
        layers: as in `gaia_fast.inspection.layers.inspected_layers`.
        p: order of the norm.

    Raises:
        GaiaError: of the kind that fits; bad input never gives a number.

    Example:
        >>> from gaia_fast.data.digits import held_out_digits
        >>> from gaia_fast.models import digits_resnet
        >>> model, (x, labels) = digits_resnet(pretrained=True), held_out_digits()
        >>> score, abnormality, logits = gaia_z(model, x[:2])
        >>> [tuple(eps.shape) for eps in abnormality[:3]]
        [(2, 8), (2, 8), (2, 8)]
        >>> all(bool((0 <= eps).all() and (eps <= 1).all()) for eps in abnormality)
        True
    """
    trace = _record(model, x, layers)
    top1 = trace.logits.max(dim=1).values
    gradients = _gradients(top1.sum(), trace)
    abnormality = [(g != 0).to(g.dtype).mean((2, 3)) for g in gradients]
    return Reference(_norm(abnormality, p), abnormality, trace.logits.detach())


@_of_eager_model
def gaia_a(
    model: nn.Module,
    x: Tensor,
    layers: Sequence[str] | None = None,
    head: str | nn.Module | None = None,
    fusion: str = "division",
    statistic: str = "abs_mean",
    *,
    p: float = 2.0,
) -> Reference:
    """GAIA-A: the channel-wise average gradient, its inner component divided by its output component.

        g = d(sum over c of log_softmax(S)_c) / dA_last                                    (Eq. 8)
        h = d(sum of Phi(A)) / dA^l                                                        (Eq. 9)
        out[n]       = sqrt(mean over channels of |mean over space of g|)
        eps[n, l, k] = |mean over space of h| / out[n]                                     (Eq. 11)
        score[n]     = (sum over l, k of eps^p)^(1/p)                                      (Eq. 12)

    Args:
        model, x, layers, p: as in `gaia_z`.
        head: the final linear or 1x1-convolution module, or its name; None finds it.
        fusion, statistic: as in `gaia_fast.method.Method`.

    Raises:
        GaiaError: of the kind that fits; bad input never gives a number.

    Example:
        >>> from gaia_fast.data.digits import held_out_digits
        >>> from gaia_fast.models import digits_resnet
        >>> model, (x, labels) = digits_resnet(pretrained=True), held_out_digits()
        >>> top = gaia_a(model, x[:2], layers=["layer4"])
        >>> inner = gaia_a(model, x[:2], layers=["layer4"], fusion="inner")
        >>> ratio = inner.score / top.score  # the output component
        >>> bool((ratio > 0).all())
        True
    """
    method = Method(Measure.GAIA_A, fusion, statistic, p)
    where = None
    if method.needs_head:
        checks.check_model(model)
        checks.check_images(x, model)
        with torch.no_grad():
            where = find_head(model, x, head)
        if method.needs_output_component:
            where.check_last()
    trace = _record(model, x, layers, where)

    out = None
    if method.needs_output_component:
        log_softmax = torch.log_softmax(trace.logits, dim=1)
        g = None
        if trace.last is not None:
            (g,) = checks.backward(log_softmax.sum(), [trace.last], retain_graph=True)
        if g is None or g.shape[0] != x.shape[0]:
            raise LayerError(checks.unusable_last(where.last_name, model))  # type: ignore[union-attr]
        out = g.to(torch.promote_types(g.dtype, torch.float32)).mean((2, 3)).abs().mean(1).sqrt()
        checks.check_output_component(out, trace.logits)
    if method.fusion == Fusion.OUTPUT:
        abnormality = [1 / out.unsqueeze(1)]  # type: ignore[union-attr]
        return Reference(_norm(abnormality, p), abnormality, trace.logits.detach())

    if method.fusion == Fusion.TOP1:
        gradients = _gradients(trace.logits.max(dim=1).values.sum(), trace)
    elif trace.phi is None:
        raise LayerError(checks.unreached(trace.names))
    else:
        gradients = _gradients([trace.phi[0]], trace, [trace.phi[1]])
    if method.statistic == Statistic.ABS_MEAN:
        abnormality = [h.mean((2, 3)).abs() for h in gradients]
    else:
        abnormality = [h.abs().mean((2, 3)) for h in gradients]
    if method.fusion == Fusion.DIVISION:
        abnormality = [inner / out.unsqueeze(1) for inner in abnormality]  # type: ignore[union-attr]
    return Reference(_norm(abnormality, p), abnormality, trace.logits.detach())


def run(
    method: Method,
    model: nn.Module,
    x: Tensor,
    layers: Sequence[str] | None = None,
    head: str | nn.Module | None = None,
) -> Reference:
    """Returns what `gaia_z` or `gaia_a` gives: whichever the method is, with its options.

    Raises:
        GaiaError: of the kind that fits; bad input never gives a number.
    """
    if method.name == Measure.GAIA_Z:
        return gaia_z(model, x, layers, p=method.p)
    return gaia_a(model, x, layers, head, method.fusion, method.statistic, p=method.p)


@in_grad_mode(False)
def logits(model: nn.Module, x: Tensor) -> Tensor:
    """Returns what the model says, (N, C), where no method is asked for; raises as `gaia_z` does."""
    model = checks.unwrap(model)
    checks.check_model(model)
    checks.check_images(x, model)
    output, _, _ = undisturbed(model, lambda: Passes().run(model, x, nothing))
    return checks.logits_of(output, x.shape[0]).detach()


class _Trace:
    """One recorded forward pass: the logits, and where gradients are to be taken."""

    def __init__(self, model: nn.Module, images: int) -> None:
        self.model, self.images = model, images
        self.map_names = MapNames()
        self.calls: Counter[InspectedLayer] = Counter()
        self.names: list[str] = []
        self.maps: list[GradientEdge] = []
        self.logits: Tensor
        # Where Phi is in the graph, and ones in its shape: d(sum of Phi). None where no gradient leads there.
        self.phi: tuple[GradientEdge, Tensor] | None = None
        self.last_seen: GradientEdge | None = None
        self.last: GradientEdge | None = None

    def see(self, layer: InspectedLayer, _: nn.Module, output: Tensor) -> Tensor | None:
        self.calls[layer] += 1
        if not is_feature_map(output, layer, self.images):
            return None
        self.names.append(self.map_names.next(layer))
        output, edge = _edge(output)
        self.maps.append(edge)
        return output

    def see_last(self, _: nn.Module, last: Any) -> Tensor | None:
        self.last_seen = None
        if not isinstance(last, Tensor) or not last.requires_grad:
            return None
        last, self.last_seen = _edge(last)
        return last

    def enter_head(self, _: nn.Module, phi: Any) -> None:
        self.last = self.last_seen
        if isinstance(phi, Tensor) and phi.requires_grad:
            self.phi = get_gradient_edge(phi), torch.ones_like(phi)


def _record(model: nn.Module, x: Tensor, layers: Sequence[str] | None, head: Head | None = None) -> _Trace:
    checks.check_model(model)
    checks.check_images(x, model)
    inspected = inspected_layers(model, layers)

    def watch(hooks: ForwardHooks) -> _Trace:
        trace = _Trace(model, x.shape[0])
        for layer in inspected:
            layer.watch(hooks, partial(trace.see, layer))
        if head is not None:
            hooks.after(head.last_module, trace.see_last)
            hooks.before(head.module, trace.enter_head)
        return trace

    output, trace, ran = Passes().run(model, x.detach().clone().requires_grad_(), watch)
    trace.logits = checks.logits_of(output, x.shape[0])
    trace.map_names.check_called(inspected, ran)
    if trace.logits.requires_grad:
        check_norms(trace.logits, inspected, trace.calls)
    return trace


def _edge(tensor: Tensor) -> tuple[Tensor, GradientEdge]:
    """A tensor with the same values, and where it is in the graph.

    An edge, not the tensor: an in-place ReLU behind it would change what the tensor stands for. And no view: its edge
    leads nowhere once a view or its base is written in place.
    """
    if tensor._is_view():
        tensor = tensor.clone()
    return tensor, get_gradient_edge(tensor)


def _gradients(target: Any, trace: _Trace, cotangents: list[Tensor] | None = None) -> list[Tensor]:
    gradients = checks.backward(target, trace.maps, cotangents, retain_graph=True)
    unused = [name for name, g in zip(trace.names, gradients, strict=True) if g is None]
    if unused:
        raise LayerError(checks.unreached(unused, trace.model))
    # Half-precision gradients keep their values, but densities and means of them need more than 8 or 11 bits.
    wide = [g.to(torch.promote_types(g.dtype, torch.float32)) for g in gradients if g is not None]
    for g in wide:
        checks.check_finite(g, "the gradient", "it overflows; use a wider dtype")
    return wide


def _norm(abnormality: list[Tensor], p: float) -> Tensor:
    score = torch.linalg.vector_norm(torch.cat(abnormality, dim=1), ord=p, dim=1)
    checks.check_finite(score, "the score", "the gradients overflow or the logits are not finite; use float32 or wider")
    return score


def copy_in(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Returns a copy of the model in another dtype: float64 for the reference.

    Raises:
        ModelError: the model cannot be copied, or not converted.
    """
    try:
        return copy.deepcopy(model).to(dtype)
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be copied to {dtype} ({type(error).__name__}: {error}); give a model that "
            f"copy.deepcopy(model).to({dtype}) takes"
        ) from error


def relative_error(score: Tensor, truth: Tensor) -> float:
    """Returns the largest |score - truth| / |truth| of (N,) scores, computed in float64; 0.0 for none."""
    error = (score.double() - truth.double()).abs() / truth.double().abs().clamp_min(torch.finfo(torch.float64).tiny)
    return float(error.max()) if error.numel() else 0.0
