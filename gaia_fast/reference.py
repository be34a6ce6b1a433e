"""Algorithm 1 of the paper in plain PyTorch: the truth that every engine and kernel is checked against.

Any dtype (use float64 for truth), any device, any model; no kernels and no shortcuts: the whole graph is recorded and
every gradient kept. Symbols are the paper's: S logits, A feature maps, Phi the vector that the head reads, Lambda the
abnormality matrix, eps its entries.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from gaia_fast import checks
from gaia_fast.capture import ForwardHooks
from gaia_fast.errors import LayerError
from gaia_fast.layers import Head, InspectedLayer, MapNames, find_head, inspected_layers, is_feature_map
from gaia_fast.method import Method


class Reference(NamedTuple):
    """The score (N,), the abnormality E[eps | A^kl] of each layer (a list of (N, K_l)) and the logits (N, C)."""

    score: Tensor
    abnormality: list[Tensor]
    logits: Tensor


def gaia_z(model: nn.Module, x: Tensor, layers: Sequence[str] | None = None, *, p: float = 2.0) -> Reference:
    """GAIA-Z: the density of non-zero attribution gradients.

        eps[n, l, k] = |{(i, j) : dS_c / dA^kl_ij != 0}| / (H_l * W_l),  c = argmax S      (Eq. 10)
        score[n]     = (sum over l, k of eps^p)^(1/p)                                      (Eq. 12)

    Args:
        model: the classifier, in eval mode.
        x: (N, C, H, W) images of the model's dtype.
        layers: as in `gaia_fast.layers.inspected_layers`.
        p: order of the norm.

    Raises:
        GaiaError: of the kind that fits; bad input never gives a number.
    """
    trace = _record(model, x, layers)
    top1 = trace.logits.max(dim=1).values
    gradients = _gradients(top1.sum(), trace)
    abnormality = [(g != 0).to(g.dtype).mean((2, 3)) for g in gradients]
    return Reference(_norm(abnormality, p), abnormality, trace.logits.detach())


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
    """
    method = Method("gaia-a", fusion, statistic, p)
    model = checks.unwrap(model)
    where = None
    if method.needs_inner_component or method.needs_output_component:
        checks.check_model(model)
        checks.check_images(x, model)
        with torch.no_grad():
            where = find_head(model, x, head)
    trace = _record(model, x, layers, where)

    out = None
    if method.needs_output_component:
        log_softmax = torch.log_softmax(trace.logits, dim=1)
        (g,) = checks.backward(log_softmax.sum(), [trace.last], retain_graph=True)
        if g is None or g.shape[0] != x.shape[0]:
            raise LayerError(checks.unusable_last(where.last_name))  # type: ignore[union-attr]
        out = g.to(torch.promote_types(g.dtype, torch.float32)).mean((2, 3)).abs().mean(1).sqrt()
        checks.check_output_component(out, trace.logits)
    if fusion == "output":
        abnormality = [1 / out.unsqueeze(1)]  # type: ignore[union-attr]
        return Reference(_norm(abnormality, p), abnormality, trace.logits.detach())

    if fusion == "top1":
        gradients = _gradients(trace.logits.max(dim=1).values.sum(), trace)
    else:
        gradients = _gradients([trace.phi[0]], trace, [trace.phi[1]])
    if statistic == "abs_mean":
        abnormality = [h.mean((2, 3)).abs() for h in gradients]
    else:
        abnormality = [h.abs().mean((2, 3)) for h in gradients]
    if fusion == "division":
        abnormality = [inner / out.unsqueeze(1) for inner in abnormality]  # type: ignore[union-attr]
    return Reference(_norm(abnormality, p), abnormality, trace.logits.detach())


class _Trace:
    """One recorded forward pass: the logits, and where gradients are to be taken."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.maps: list[GradientEdge] = []
        self.logits: Tensor
        self.phi: tuple[GradientEdge, Tensor]  # where Phi is in the graph, and ones in its shape: d(sum of Phi)
        self.last_seen: GradientEdge
        self.last: GradientEdge


@torch.inference_mode(False)
@torch.enable_grad()
def _record(model: nn.Module, x: Tensor, layers: Sequence[str] | None, head: Head | None = None) -> _Trace:
    model = checks.unwrap(model)
    checks.check_model(model)
    checks.check_images(x, model)
    trace, names, inspected = _Trace(), MapNames(), inspected_layers(model, layers)

    def see(layer: InspectedLayer, _: nn.Module, output: Tensor) -> None:
        # A gradient edge, not the tensor: an in-place ReLU behind the layer would change what the tensor stands for.
        if is_feature_map(output, layer, x.shape[0], layers is not None):
            trace.names.append(names.next(layer))
            trace.maps.append(get_gradient_edge(output))

    def enter_head(phi: Tensor) -> None:
        trace.phi, trace.last = (get_gradient_edge(phi), torch.ones_like(phi)), trace.last_seen

    with ForwardHooks() as hooks:
        for layer in inspected:
            layer.watch(hooks, partial(see, layer))
        if head is not None:
            hooks.after(head.last_module, lambda _, last: setattr(trace, "last_seen", get_gradient_edge(last)))
            hooks.before(head.module, lambda _, phi: enter_head(phi))
        # Cloned twice: the first clone leaves the caller's tensor alone, the second may be changed in place.
        images = x.detach().clone().requires_grad_().clone()
        trace.logits = checks.logits_of(checks.forward(model, images), x.shape[0])
    names.check_called(inspected, layers is not None)
    return trace


def _gradients(target: Any, trace: _Trace, cotangents: list[Tensor] | None = None) -> list[Tensor]:
    gradients = checks.backward(target, trace.maps, cotangents, retain_graph=True)
    unused = [name for name, g in zip(trace.names, gradients, strict=True) if g is None]
    if unused:
        raise LayerError(checks.unreached(unused))
    # Half-precision gradients keep their values, but densities and means of them need more than 8 or 11 bits.
    wide = [g.to(torch.promote_types(g.dtype, torch.float32)) for g in gradients if g is not None]
    for g in wide:
        checks.check_finite(g, "the gradient", "it overflows; use a wider dtype")
    return wide


def _norm(abnormality: list[Tensor], p: float) -> Tensor:
    score = torch.linalg.vector_norm(torch.cat(abnormality, dim=1), ord=p, dim=1)
    checks.check_finite(score, "the score", "the gradients overflow or the logits are not finite; use float32 or wider")
    return score
