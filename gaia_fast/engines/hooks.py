"""The hooks engine: any eager model, unmodified, for the price of the gradient alone.

The graph is recorded only from the earliest inspected map on, and the backward pass runs towards the inspected maps
alone: no weight gradient is computed and nothing upstream runs. Each inspected map is replaced, in the graph, by a tap:
an identity whose backward reduces the gradient that passes to its channel moments, keeps those and nothing else.
Several methods share the forward pass; each has a backward pass of its own, as far as its earliest map.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.autograd.graph import GradientEdge, get_gradient_edge

from gaia_fast import backends
from gaia_fast.backends import Choice
from gaia_fast.compiler.program_cache import ProgramCache
from gaia_fast.engines.base import EnginePlan, Subject
from gaia_fast.errors import ArgumentError, LayerError, ModelError
from gaia_fast.inspection import checks
from gaia_fast.inspection.forward_hooks import ForwardHooks, has_other_hooks, in_grad_mode
from gaia_fast.inspection.graph import NORM_NODES, NORMS, check_norms
from gaia_fast.inspection.head import Head, shares_memory
from gaia_fast.inspection.kept import leaves_nothing, undisturbed
from gaia_fast.inspection.layers import InspectedLayer, MapNames, is_feature_map
from gaia_fast.inspection.requests import Request, all_layers
from gaia_fast.inspection.survey import Passes
from gaia_fast.measurement import FeatureMap, Measurement, Result
from gaia_fast.method import Method
from gaia_fast.ops import maps
from gaia_fast.ops.channel_moments import channel_moments
from gaia_fast.ops.frobenius import frobenius
from gaia_fast.ops.relu_backward_moments import relu_backward_moments
from gaia_fast.options import Fusion, Measure, Statistic


class HooksEngine:
    """See `gaia_fast.engines.base.Engine`.

    Args:
        subject: what is measured.
        backend: "cpu", "triton", "cuda", "torch" or "auto"; see `gaia_fast.backends`.
    """

    def __init__(self, subject: Subject, backend: str) -> None:
        self._subject, self._backend = subject, backend

    def plan(self, x: Tensor) -> EnginePlan:
        return EnginePlan(Choice("hooks", "asked for"), backends.choose(self._backend, x.device, x.dtype))

    def prepare(self, x: Tensor, tune: str | None = None, cache: ProgramCache | None = None) -> None:
        raise ArgumentError("engine='hooks' has nothing to prepare; use engine='compiled' or 'auto'")

    def program(self, x: Tensor) -> None:
        return None

    def score_prepared(self, x: Tensor) -> Measurement | None:
        return None

    def score(self, x: Tensor) -> Measurement:
        backend, subject = self.plan(x).backend.name, self._subject
        with checks.DeferredChecks() as deferred:
            # Images that are not checked yet do no harm to a model that is known and keeps nothing of them.
            if _waits(x) and subject.passes.knows(x) and leaves_nothing(subject.model):
                deferred.pixels(x)
            else:
                checks.check_pixels(x)
            measured = self.measure(x, subject.head(x), backend, deferred=deferred)
            deferred.logits(measured.logits)
            for each in measured.results:
                deferred.score(each.score)
        return measured

    def measure(
        self,
        x: Tensor,
        head: Head | None,
        backend: str | None = None,
        requests: Sequence[Request] | None = None,
        deferred: checks.DeferredChecks | None = None,
    ) -> Measurement:
        """Scores images, the head being known; no look at logits and scores. Of the requests, all or those given."""
        subject = self._subject
        backend = self._backend if backend is None else backend
        requests = subject.requests if requests is None else requests
        return measure(subject.model, x, requests, head, backend, subject.passes, deferred)


def _waits(x: Tensor) -> bool:
    """Whether a look at what is computed of the images waits for a device."""
    return x.device.type != "cpu"


class _GradModeChangedError(BaseException):  # no Exception: those are for the model to catch
    """The model switches gradients on or off by itself, so the recording cannot be started in its middle."""


@in_grad_mode(False)
def measure(
    model: nn.Module,
    x: Tensor,
    requests: Sequence[Request],
    head: Head | None,
    backend: str,
    passes: Passes | None = None,
    deferred: checks.DeferredChecks | None = None,
) -> Measurement:
    """Scores one batch.

    Args:
        model: the classifier, checked and in eval mode.
        x: (N, C, H, W) images, checked, or to be by the deferred checks; N at least 1.
        requests: what to measure.
        head: where GAIA-A's components meet; None where no method needs one.
        backend: the kernels to reduce with.
        passes: what is known of the model from earlier calls; None if it is to be looked at anew.
        deferred: takes the checks of gradients and output components; None to make them before this returns.

    Raises:
        LayerError, ModelError, NonFiniteError: see the messages. The model is left as it was all the same.
    """
    passes = passes or Passes()
    if deferred is not None:
        return _measure(model, x, requests, head, backend, passes, deferred)
    with checks.DeferredChecks() as deferred:
        return _measure(model, x, requests, head, backend, passes, deferred)


def _measure(
    model: nn.Module,
    x: Tensor,
    requests: Sequence[Request],
    head: Head | None,
    backend: str,
    passes: Passes,
    deferred: checks.DeferredChecks,
) -> Measurement:
    head = head if any(each.method.needs_head for each in requests) else None

    def once(from_the_start: bool) -> Measurement:
        def watch(hooks: ForwardHooks) -> _Recording:
            recording = _Recording(model, x.shape[0], requests, backend, from_the_start, deferred)
            recording.watch(hooks)
            if head is not None:
                recording.watch_head(hooks, head)
            return recording

        output, recording, ran = passes.run(model, x.detach().as_subclass(Tensor), watch)
        logits = checks.logits_of(output, x.shape[0])
        for each in requests:
            if each.method.needs_maps:
                recording.names.check_called(each.layers, ran)
        if head is not None:
            recording.check_head(head, logits)
        if recording.started and not torch.is_grad_enabled():
            raise _GradModeChangedError
        return recording.finish(logits, head)

    def score() -> Measurement:
        try:
            return once(False)
        except _GradModeChangedError:
            # Rare, so it may cost more: everything is recorded, and the model's own switching has its usual effect.
            with torch.enable_grad():
                return once(True)

    return undisturbed(model, score)


class _Sink:
    """Where the taps leave their moments. Holds no tensor of the graph, so that graph and taps make no cycle."""

    def __init__(self, images: int, backend: str) -> None:
        self.images = images
        self.backend = backend
        self.maps: list[FeatureMap] = []
        self.offsets = [0]
        self.dtype = torch.float32
        self.device = torch.device("cpu")
        # While the backward pass that counts is running: (3, N, sum of K_l), and whose moments are wanted.
        self.moments: Tensor | None = None
        self.wanted: dict[int, None] = {}
        self.reached: set[int] = set()

    def add(self, name: str, output: Tensor) -> int:
        self.maps.append(FeatureMap(name, *output.shape[1:]))
        self.offsets.append(self.offsets[-1] + output.shape[1])
        self.dtype = torch.promote_types(self.dtype, maps.accumulator_dtype(output.dtype))
        self.device = output.device
        return len(self.maps) - 1

    def open(self, wanted: Sequence[int]) -> None:
        """Begins to keep the moments of the gradients at some of the maps."""
        self.wanted, self.reached = dict.fromkeys(wanted), set()
        self.moments = torch.empty((3, self.images, self.offsets[-1]), dtype=self.dtype, device=self.device)

    def close(self) -> Tensor:
        """Returns the moments of the wanted maps, side by side."""
        assert self.moments is not None
        moments, self.moments = self.moments, None
        if len(self.wanted) == len(self.maps):
            return moments
        return torch.cat([moments[:, :, self.offsets[index] : self.offsets[index + 1]] for index in self.wanted], 2)

    def record(self, index: int, g: Tensor) -> None:
        """Keeps the moments of `g`, the gradient at map `index`."""
        if self._keeps(index):
            self._keep(index, channel_moments(g, out=self._columns(index, g), backend=self.backend))

    def record_and_scale(self, index: int, g: Tensor, scale: Tensor) -> Tensor:
        """Keeps the moments of `g`, the gradient at the output of a norm; returns the gradient at its input."""
        out = self._columns(index, g) if self._keeps(index) else None
        grad_in, moments = relu_backward_moments(g, None, scale, out=out, backend=self.backend)
        if self._keeps(index):
            self._keep(index, moments)
        return grad_in

    def _keeps(self, index: int) -> bool:
        return self.moments is not None and index in self.wanted

    def _columns(self, index: int, g: Tensor) -> Tensor | None:
        """The place for the moments of a map; None where they come in another dtype or on another device."""
        assert self.moments is not None
        if maps.accumulator_dtype(g.dtype) != self.dtype or g.device != self.device:
            return None
        return self.moments[:, :, self.offsets[index] : self.offsets[index + 1]]

    def _keep(self, index: int, moments: Tensor) -> None:
        assert self.moments is not None
        self.reached.add(index)
        if moments.untyped_storage().data_ptr() != self.moments.untyped_storage().data_ptr():
            self.moments[:, :, self.offsets[index] : self.offsets[index + 1]] = moments


class _Recording:
    """One forward pass being recorded, and the backward pass over it."""

    def __init__(
        self,
        model: nn.Module,
        images: int,
        requests: Sequence[Request],
        backend: str,
        from_the_start: bool,
        deferred: checks.DeferredChecks,
    ) -> None:
        self.model, self.requests, self.deferred = model, requests, deferred
        self.sink = _Sink(images, backend)
        self.names = MapNames()
        self.layers: list[InspectedLayer] = []
        self.calls: Counter[InspectedLayer] = Counter()  # those that left a node in the graph
        self.from_the_start = from_the_start
        self.started = False
        self.passes_left = 0  # backward passes
        # A norm whose recording was taken over: its module, its input, and its factor for each channel.
        self.norm: tuple[nn.Module, Tensor, Tensor] | None = None
        self.phi: tuple[GradientEdge, Tensor] | None = None  # where it is in the graph, and ones in its shape
        self.head_output: Tensor | None = None
        self.last_seen: GradientEdge | None = None
        self.last: GradientEdge | None = None
        # The taps of a request's maps lead to its anchor, so one backward pass towards it reaches them all, whatever
        # branch they are on, and goes no further.
        self.anchors = [torch.zeros((), requires_grad=True) for _ in requests]
        self.read = [{layer.module for layer in each.layers} for each in requests]

    # ---- the forward pass

    def watch(self, hooks: ForwardHooks) -> None:
        self.layers = all_layers([each for each in self.requests if each.method.needs_maps], self.model.modules())
        for layer in self.layers:
            if not layer.inner and _has_constant_scale(layer.module):
                hooks.before(layer.module, self._before_norm)
                hooks.after(layer.module, self._after_norm, also_failed=True)
            layer.watch(hooks, partial(self._tap, layer))

    def watch_head(self, hooks: ForwardHooks, head: Head) -> None:
        hooks.after(head.last_module, self._after_last)
        hooks.before(head.module, self._before_head)
        hooks.after(head.module, lambda _, output: setattr(self, "head_output", output))

    def _before_norm(self, module: nn.Module, x: Any) -> None:
        """Takes the recording of a norm over: its backward pass is one product, done together with the moments."""
        if not (self.started and isinstance(x, Tensor) and x.ndim == 4 and x.shape[0] == self.sink.images):
            return
        if x.requires_grad:
            self._require_gradients(module)
            # Now, not in the backward pass: the model may use other parameters by then.
            wide = maps.accumulator_dtype(x.dtype)
            assert isinstance(module, nn.BatchNorm2d)
            assert module.running_var is not None
            scale = torch.rsqrt(module.running_var.detach().to(wide) + module.eps)
            if module.weight is not None:
                scale = scale * module.weight.detach()
            self.norm = (module, x, scale)
            torch.set_grad_enabled(False)

    def _after_norm(self, module: nn.Module, output: Any) -> None:
        if self.norm is not None:
            torch.set_grad_enabled(True)
            if output is None:  # it raised, and the model may go on
                self.norm = None

    def _tap(self, layer: InspectedLayer, module: nn.Module, output: Any) -> Tensor | None:
        norm, self.norm = self.norm, None
        self.calls[layer] += isinstance(output, Tensor) and output.grad_fn is not None
        if not is_feature_map(output, layer, self.sink.images):
            return None
        if self.started:
            self._require_gradients(layer.module)
        else:
            self._start(output)
        self._refuse_checkpointing(layer)
        index = self.sink.add(self.names.next(layer), output)
        anchors = [anchor for anchor, read in zip(self.anchors, self.read, strict=True) if layer.module in read]
        if norm is not None and norm[0] is module:
            return _NormTap.apply(norm[1], output, self.sink, index, norm[2], *anchors)
        return _Tap.apply(output if _is_own(layer, output) else output.clone(), self.sink, index, *anchors)

    def _after_last(self, module: nn.Module, last: Any) -> Tensor | None:
        if not isinstance(last, Tensor) or last.ndim != 4:
            return None
        replaced = None
        if not (self.started and last.requires_grad):
            if not self.started:
                self._start(last)
            last = replaced = _Tap.apply(last.detach().clone(), None, 0, torch.zeros((), requires_grad=True))
        elif last._is_view():  # its place in the graph is lost where it, or what it is a view of, is written in place
            last = replaced = last.clone()
        self.last_seen = get_gradient_edge(last) if last.requires_grad else None  # it may run under no_grad
        return replaced

    def _before_head(self, module: nn.Module, phi: Any) -> None:
        self.last = self.last_seen
        if isinstance(phi, Tensor) and phi.requires_grad:
            # The edge, not the tensor: the model may change Phi in place afterwards.
            self.phi = get_gradient_edge(phi), torch.ones_like(phi)

    def check_head(self, head: Head, logits: Tensor) -> None:
        if self.head_output is None:
            raise ModelError(f"the head {head.name!r} was not called for these images; name the one that is, head=...")
        if not head.explicit and not shares_memory(self.head_output, logits):
            raise ModelError(f"the logits do not come from the head {head.name!r} this time; name the head, head=...")

    def _start(self, tensor: Tensor) -> None:
        if tensor.is_inference():
            raise ModelError("the model enters torch.inference_mode() in its forward pass; no gradient can be taken")
        if torch.is_grad_enabled() and not self.from_the_start:
            raise _GradModeChangedError
        self.started = True
        torch.set_grad_enabled(True)

    def _require_gradients(self, module: nn.Module) -> None:
        if not torch.is_grad_enabled():
            if not self.from_the_start:
                raise _GradModeChangedError
            raise ModelError(
                f"the model turns gradients off (no_grad or inference_mode in its forward pass) before a "
                f"{type(module).__name__} that is inspected; no gradient can be taken through that part"
            )

    def _refuse_checkpointing(self, layer: InspectedLayer) -> None:
        """Recomputing a part of the graph would not find the taps in it."""
        if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
            raise ModelError(
                f"layer {layer.name!r} runs under saved-tensor hooks (activation checkpointing, save_on_cpu), which "
                "cannot be scored through; turn them off, for instance model.set_grad_checkpointing(False)"
            )

    # ---- the backward pass

    def finish(self, logits: Tensor, head: Head | None) -> Measurement:
        if self.requests and not logits.requires_grad:
            raise LayerError(checks.unreached([each.name for each in self.sink.maps], self.model))
        if self.layers:
            check_norms(logits, self.layers, self.calls)
        self.passes_left = sum(each.method.needs_output_component + each.method.needs_maps for each in self.requests)
        results = tuple(
            self._measure(logits, request, anchor, head)
            for request, anchor in zip(self.requests, self.anchors, strict=True)
        )
        return Measurement(logits.detach(), results)

    def _measure(self, logits: Tensor, request: Request, anchor: Tensor, head: Head | None) -> Result:
        method = request.method
        out = None
        if method.needs_output_component:
            assert head is not None
            out = self._output_component(logits, head)
        if not method.needs_maps:
            assert out is not None
            return self._result(torch.ones_like(out).unsqueeze(1), (), out, method)

        places = request.places(self.sink.maps)
        moments = self._moments(logits, method, anchor, places)
        self.deferred.finite(moments[maps.ABS_SUM], "the gradient", "it overflows; use a wider dtype")
        inspected = tuple(self.sink.maps[place] for place in places)
        return self._result(
            moments[_moment(method)], inspected, out if method.fusion == Fusion.DIVISION else None, method
        )

    def _backward(self, outputs: Any, inputs: Any, cotangents: Any) -> tuple[Tensor | None, ...]:
        """A backward pass; the graph is let go with the last of them."""
        self.passes_left -= 1
        return checks.backward(outputs, inputs, cotangents, retain_graph=self.passes_left > 0)

    def _output_component(self, logits: Tensor, head: Head) -> Tensor:
        with torch.enable_grad():
            log_softmax = torch.log_softmax(logits, dim=1)
        g = None
        if self.last is not None:
            (g,) = self._backward(log_softmax, [self.last], torch.ones_like(log_softmax))
        if g is None or g.shape[0] != self.sink.images:
            raise LayerError(checks.unusable_last(head.last_name, self.model))
        out = g.to(maps.accumulator_dtype(g.dtype)).mean((2, 3)).abs().mean(1).sqrt()
        self.deferred.output_component(out, logits.detach())
        return out

    def _moments(self, logits: Tensor, method: Method, anchor: Tensor, places: Sequence[int]) -> Tensor:
        self.sink.open(places)
        if not method.needs_inner_component:
            top1 = logits.detach().argmax(dim=1, keepdim=True)
            self._backward(logits, anchor, torch.zeros_like(logits).scatter_(1, top1, 1))
        elif self.phi is not None:
            edge, ones = self.phi
            self._backward([edge], anchor, [ones])
        missed = [self.sink.maps[place].name for place in places if place not in self.sink.reached]
        if missed:
            raise LayerError(checks.unreached(missed, self.model))
        return self.sink.close()

    def _result(self, packed: Tensor, inspected: tuple[FeatureMap, ...], out: Tensor | None, method: Method) -> Result:
        widths = [each.channels for each in inspected] or [1]
        inverse_area = [1.0 / each.area for each in inspected] or [1.0]
        if out is not None:
            out = out.to(packed)
        score = frobenius(packed, widths, inverse_area, out, method.p, backend=self.sink.backend).float()
        return Result(score, inspected, packed, out)


def _moment(method: Method) -> int:
    """Which of the three moments the method's eps is made of."""
    if method.name == Measure.GAIA_Z:
        return maps.NONZERO
    return maps.SUM if method.statistic == Statistic.ABS_MEAN else maps.ABS_SUM


def _is_untouched(module: nn.Module) -> bool:
    """Whether the module is one of PyTorch's own norms, with nothing of the user's in it."""
    return type(module) in NORMS and "forward" not in vars(module) and not has_other_hooks(module)


def _has_constant_scale(module: nn.Module) -> bool:
    """Whether the module's derivative is one factor a channel: BatchNorm2d on its running statistics."""
    return type(module) is nn.BatchNorm2d and _is_untouched(module)


def _is_own(layer: InspectedLayer, output: Tensor) -> bool:
    """Whether `output` is a tensor that nothing else holds, so that the tap may take it over without a copy."""
    if output._is_view() or has_other_hooks(layer.module):
        return False
    if output.grad_fn is None:
        return _is_untouched(layer.module)
    return output.grad_fn.name() in NORM_NODES


class _Tap(torch.autograd.Function):
    """Identity; backward records the moments of the gradient that passes."""

    @staticmethod
    def forward(ctx: FunctionCtx, output: Tensor, sink: _Sink | None, index: int, *anchors: Tensor) -> Tensor:
        ctx.mark_dirty(output)  # taken over, not copied; a ReLU may still change it in place
        ctx.set_materialize_grads(False)
        ctx.sink, ctx.index, ctx.anchors = sink, index, len(anchors)  # type: ignore[attr-defined]
        return output

    @staticmethod
    def backward(ctx: FunctionCtx, g: Tensor | None) -> tuple[Tensor | None, ...]:
        if ctx.sink is not None and g is not None:  # type: ignore[attr-defined]
            ctx.sink.record(ctx.index, g)  # type: ignore[attr-defined]
        return g, None, None, *[None] * ctx.anchors  # type: ignore[attr-defined]


class _NormTap(torch.autograd.Function):
    """A batch norm already computed; backward records the moments of the gradient and scales it, in one pass."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, norm_input: Tensor, output: Tensor, sink: _Sink, index: int, scale: Tensor, *anchors: Tensor
    ) -> Tensor:
        ctx.mark_dirty(output)
        ctx.set_materialize_grads(False)
        ctx.sink, ctx.index, ctx.scale, ctx.anchors = sink, index, scale, len(anchors)  # type: ignore[attr-defined]
        return output

    @staticmethod
    def backward(ctx: FunctionCtx, g: Tensor | None) -> tuple[Tensor | None, ...]:
        if g is not None:
            g = ctx.sink.record_and_scale(ctx.index, g, ctx.scale)  # type: ignore[attr-defined]
        return g, None, None, None, None, *[None] * ctx.anchors  # type: ignore[attr-defined]
