"""The hooks engine: any eager model, unmodified, for the price of the gradient alone.

The graph is recorded only from the earliest inspected map on, and the backward pass runs towards the inspected maps
alone: no weight gradient is computed and nothing upstream runs. Each inspected map is replaced, in the graph, by a tap:
an identity whose backward reduces the gradient that passes to its channel moments, keeps those and nothing else.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.autograd.graph import GradientEdge, get_gradient_edge

from gaia_fast import checks
from gaia_fast.capture import ForwardHooks, has_other_hooks
from gaia_fast.errors import LayerError, ModelError
from gaia_fast.layers import Head, InspectedLayer, MapNames, is_feature_map, is_normalisation, shares_memory
from gaia_fast.measurement import FeatureMap, Measurement
from gaia_fast.method import Method
from gaia_fast.ops import maps
from gaia_fast.ops.channel_moments import channel_moments
from gaia_fast.ops.frobenius import frobenius
from gaia_fast.ops.relu_backward_moments import relu_backward_moments

# Autograd nodes of norms, none of which keeps its output for the backward pass: a tap may take that output over.
_NORM_NODES = ("NativeBatchNormBackward0", "CudnnBatchNormBackward0", "NativeGroupNormBackward0")


@torch.inference_mode(False)
@torch.no_grad()
def measure(
    model: nn.Module,
    x: Tensor,
    method: Method,
    layers: list[InspectedLayer],
    asked_for: bool,
    head: Head | None,
    backend: str,
) -> Measurement:
    """Scores one batch.

    Args:
        model: the classifier, checked and in eval mode.
        x: (N, C, H, W) images, checked, N at least 1.
        method: what to measure.
        layers: the modules whose maps are inspected; `asked_for` by name, so that each must give a map.
        head: where GAIA-A's components meet; None where the method needs none.
        backend: the kernels to reduce with.

    Raises:
        LayerError, ModelError, NonFiniteError: see the messages. The model is left as it was all the same.
    """
    recording = _Recording(x.shape[0], backend)
    if x.is_inference():
        x = x.clone()
    with ForwardHooks() as hooks:
        if method.needs_maps:
            recording.watch(hooks, layers, asked_for)
        if head is not None:
            recording.watch_head(hooks, head)
        logits = checks.logits_of(checks.forward(model, x), x.shape[0])
    if method.needs_maps:
        recording.names.check_called(layers, asked_for)
    if head is not None and not head.asked_for and not shares_memory(recording.head_output, logits):
        raise ModelError(
            f"the logits no longer come from the head {head.name!r} found on the first call; name the head, head=..."
        )
    return recording.finish(logits, method)


class _Sink:
    """Where the taps leave their moments. Holds no tensor of the graph, so that graph and taps make no cycle."""

    def __init__(self, images: int, backend: str) -> None:
        self.images = images
        self.backend = backend
        self.maps: list[FeatureMap] = []
        self.offsets = [0]
        self.reached: list[bool] = []
        self.moments: Tensor | None = None  # (3, N, sum of K_l) while the backward pass that counts is running

    def add(self, name: str, shape: torch.Size) -> int:
        self.maps.append(FeatureMap(name, *shape[1:]))
        self.offsets.append(self.offsets[-1] + shape[1])
        self.reached.append(False)
        return len(self.maps) - 1

    def record(self, index: int, g: Tensor) -> None:
        """Keeps the moments of `g`, the gradient at map `index`."""
        if self.moments is not None:
            channel_moments(g, out=self._columns(index, self.moments), backend=self.backend)

    def record_and_scale(self, index: int, g: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        """Keeps the moments of `g`, the gradient at the output of `norm`; returns the gradient at its input."""
        scale = torch.rsqrt(norm.running_var.to(maps.accumulator_dtype(g.dtype)) + norm.eps)  # type: ignore[union-attr]
        if norm.weight is not None:
            scale = scale * norm.weight
        out = None if self.moments is None else self._columns(index, self.moments)
        return relu_backward_moments(g, None, scale, out=out, backend=self.backend)[0]

    def _columns(self, index: int, moments: Tensor) -> Tensor:
        self.reached[index] = True
        return moments[:, :, self.offsets[index] : self.offsets[index + 1]]


class _Recording:
    """One forward pass being recorded, and the backward pass over it."""

    def __init__(self, images: int, backend: str) -> None:
        self.sink = _Sink(images, backend)
        self.names = MapNames()
        self.started = False
        self.norm_input: Tensor | None = None
        self.phi: Tensor
        self.head_output: Tensor
        self.last: GradientEdge
        # Every tap leads to the anchor, so one backward pass towards it reaches them all, whatever branch they are on.
        self.anchor = torch.zeros((), requires_grad=True)

    # ---- the forward pass

    def watch(self, hooks: ForwardHooks, layers: list[InspectedLayer], asked_for: bool) -> None:
        for layer in layers:
            module, at_input = layer.hooked
            if not at_input and _has_constant_scale(layer.module):
                hooks.before(module, self._before_norm)
            hooks.on_map(module, at_input, partial(self._tap, layer, asked_for))

    def watch_head(self, hooks: ForwardHooks, head: Head) -> None:
        hooks.before(head.module, lambda _, phi: setattr(self, "phi", phi))
        hooks.after(head.module, lambda _, output: setattr(self, "head_output", output))
        hooks.after(head.last_module, lambda _, last: self._mark_last(last))

    def _before_norm(self, module: nn.Module, x: Tensor) -> None:
        """Takes the recording of a norm over: its backward pass is one product, done together with the moments."""
        if self.started and isinstance(x, Tensor) and x.requires_grad:
            self._require_gradients(module)
            self.norm_input = x
            torch.set_grad_enabled(False)

    def _tap(self, layer: InspectedLayer, asked_for: bool, _: nn.Module, output: object) -> Tensor | None:
        norm_input, self.norm_input = self.norm_input, None
        if norm_input is not None:
            torch.set_grad_enabled(True)
        if not is_feature_map(output, layer, self.sink.images, asked_for):
            return None
        assert isinstance(output, Tensor)
        if self.started:
            self._require_gradients(layer.module)
        else:
            self._start(output)
        index = self.sink.add(self.names.next(layer), output.shape)
        if norm_input is not None:
            return _NormTap.apply(norm_input, output, self.anchor, self.sink, index, layer.module)
        return _Tap.apply(output if _is_own(layer, output) else output.clone(), self.anchor, self.sink, index)

    def _mark_last(self, last: Tensor) -> Tensor | None:
        replaced = None
        if not last.requires_grad:
            self._start(last)
            last = replaced = _Tap.apply(last.clone(), self.anchor, None, 0)
        self.last = get_gradient_edge(last)
        return replaced

    def _start(self, tensor: Tensor) -> None:
        if tensor.is_inference():
            raise ModelError("the model enters torch.inference_mode() in its forward pass; no gradient can be taken")
        self.started = True
        torch.set_grad_enabled(True)

    def _require_gradients(self, module: nn.Module) -> None:
        if not torch.is_grad_enabled():
            raise ModelError(
                f"the model turns gradients off (no_grad or inference_mode in its forward pass) before a "
                f"{type(module).__name__} that is inspected; no gradient can be taken through that part"
            )

    # ---- the backward pass

    def finish(self, logits: Tensor, method: Method) -> Measurement:
        if not logits.requires_grad:
            raise LayerError(checks.unreached([each.name for each in self.sink.maps]))
        out = self._output_component(logits, method) if method.needs_output_component else None
        if not method.needs_maps:
            assert out is not None
            return self._result(logits, torch.ones_like(out).unsqueeze(1), out, method)

        moments = self._moments(logits, method)
        return self._result(logits, moments[_moment(method)], out if method.fusion == "division" else None, method)

    def _output_component(self, logits: Tensor, method: Method) -> Tensor:
        with torch.enable_grad():
            log_softmax = torch.log_softmax(logits, dim=1)
        (g,) = torch.autograd.grad(log_softmax, [self.last], torch.ones_like(logits), retain_graph=method.needs_maps)
        out = g.to(maps.accumulator_dtype(g.dtype)).mean((2, 3)).abs().mean(1).sqrt()
        checks.check_output_component(out)
        return out

    def _moments(self, logits: Tensor, method: Method) -> Tensor:
        if method.needs_inner_component:
            target, cotangent = self.phi, torch.ones_like(self.phi)
        else:
            top1 = logits.detach().argmax(dim=1, keepdim=True)
            target, cotangent = logits, torch.zeros_like(logits).scatter_(1, top1, 1)
        sink = self.sink
        dtype = maps.accumulator_dtype(logits.dtype)
        sink.moments = moments = logits.new_empty((3, sink.images, sink.offsets[-1]), dtype=dtype)
        if target.requires_grad:
            torch.autograd.grad(target, self.anchor, cotangent, allow_unused=True)
        sink.moments = None
        if not all(sink.reached):
            missed = [each.name for each, reached in zip(sink.maps, sink.reached, strict=True) if not reached]
            raise LayerError(checks.unreached(missed))
        return moments

    def _result(self, logits: Tensor, packed: Tensor, out: Tensor | None, method: Method) -> Measurement:
        inspected = tuple(self.sink.maps) or (FeatureMap("output component", 1, 1, 1),)
        widths = [each.channels for each in inspected]
        inverse_area = [1.0 / each.area for each in inspected]
        score = frobenius(packed, widths, inverse_area, out, method.p, backend=self.sink.backend).float()
        return Measurement(logits.detach(), score, inspected, packed, out)


def _moment(method: Method) -> int:
    """Which of the three moments the method's eps is made of."""
    if method.name == "gaia-z":
        return maps.NONZERO
    return maps.SUM if method.statistic == "abs_mean" else maps.ABS_SUM


def _has_constant_scale(module: nn.Module) -> bool:
    """Whether the module's derivative is one factor a channel: BatchNorm2d itself, and nothing of the user's in it."""
    return type(module) is nn.BatchNorm2d and "forward" not in vars(module) and not has_other_hooks(module)


def _is_own(layer: InspectedLayer, output: Tensor) -> bool:
    """Whether `output` is a tensor that nothing else holds, so that the tap may take it over without a copy."""
    if not is_normalisation(layer.module) or output._is_view():
        return False
    return output.grad_fn is None or output.grad_fn.name() in _NORM_NODES


class _Tap(torch.autograd.Function):
    """Identity; backward records the moments of the gradient that passes."""

    @staticmethod
    def forward(ctx: FunctionCtx, output: Tensor, anchor: Tensor, sink: _Sink | None, index: int) -> Tensor:
        ctx.mark_dirty(output)  # taken over, not copied; a ReLU may still change it in place
        ctx.sink, ctx.index = sink, index  # type: ignore[attr-defined]
        return output

    @staticmethod
    def backward(ctx: FunctionCtx, g: Tensor) -> tuple[Tensor, None, None, None]:
        if ctx.sink is not None:  # type: ignore[attr-defined]
            ctx.sink.record(ctx.index, g)  # type: ignore[attr-defined]
        return g, None, None, None


class _NormTap(torch.autograd.Function):
    """A batch norm already computed; backward records the moments of the gradient and scales it, in one pass."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        norm_input: Tensor,
        output: Tensor,
        anchor: Tensor,
        sink: _Sink,
        index: int,
        norm: nn.BatchNorm2d,
    ) -> Tensor:
        ctx.mark_dirty(output)
        ctx.sink, ctx.index, ctx.norm = sink, index, norm  # type: ignore[attr-defined]
        return output

    @staticmethod
    def backward(ctx: FunctionCtx, g: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        grad_in = ctx.sink.record_and_scale(ctx.index, g, ctx.norm)  # type: ignore[attr-defined]
        return grad_in, None, None, None, None, None
