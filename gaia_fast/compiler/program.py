"""Logits and scores as one forward-only tensor program, with no autograd when it runs.

The captured model is run once more on tensors that hold no numbers, with gradients taken where a method wants them,
and everything that happens is recorded: the forward pass, the non-zeros counted beside it (`sparsity`), the
backward passes as far as the earliest map that needs one (`adjoint`), and the scores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import isinf
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from gaia_fast.calibration import decide
from gaia_fast.compiler.frontend.capture import Captured
from gaia_fast.compiler.ir.marks import LAST, MAP, MARK, PHI
from gaia_fast.compiler.ir.passes import clean_up
from gaia_fast.compiler.ir.results import LOGITS, PRECONDITIONS, ResultNames, decision_name
from gaia_fast.compiler.ir.serialization import digest
from gaia_fast.compiler.passes.backward_operators import DECOMPOSITIONS
from gaia_fast.compiler.pipeline import FOLD_CONSTANTS, RECORDED, RESHAPE_VIEWS, run_passes
from gaia_fast.compiler.sparsity import NonZeroCounter, Precondition, Sparsity
from gaia_fast.errors import CompilationError, GaiaError, LayerError, first_line
from gaia_fast.inspection import checks
from gaia_fast.inspection.head import Head
from gaia_fast.inspection.requests import Request
from gaia_fast.logit_scores import logit_score
from gaia_fast.measurement import FeatureMap
from gaia_fast.method import Method
from gaia_fast.ops.maps import accumulator_dtype
from gaia_fast.options import Measure, Statistic

aten = torch.ops.aten


@dataclass(frozen=True)
class Program:
    """A forward-only program.

    Attributes:
        graph: ATen operators from the images to a tuple of `outputs`.
        outputs: their names: "logits" (N, C); of each method its score (N,) float32, what it was made from (N, sum of
            K_l), as `packed` in `gaia_fast.measurement.Result`, and, where there is one, the output component (N,);
            where there are any, "preconditions" (N, P), positive where what the counts rest on holds. In this order;
            where a program stands alone, logits and scores.
        results: which of them are whose; one for each method.
        maps: the inspected maps of each method; none where the output component is all.
        preconditions: what the columns of "preconditions" stand for; none where the program was read from a file.
    """

    graph: fx.GraphModule
    outputs: tuple[str, ...]
    results: tuple[ResultNames, ...]
    maps: tuple[tuple[FeatureMap, ...], ...]
    preconditions: tuple[Precondition, ...] = ()

    @cached_property
    def digest(self) -> str:
        """A hash of the graph and of its constants' sizes, not of their values."""
        return digest(self.graph)


def build(
    captured: Captured,
    requests: Sequence[Request],
    head: Head | None,
    sparsity: Sequence[Sparsity | None] | None = None,
) -> Program:
    """Records the program of some methods, around one forward pass.

    Args:
        captured: the model, its constants and norms folded.
        requests: what to measure.
        head: for messages; None where no method needs one.
        sparsity: for GAIA-Z, of each captured map, what is counted in the forward pass; None for the gradient itself.

    Raises:
        LayerError: no gradient reaches a map, or A_last.
        CompilationError: PyTorch cannot record it.
    """
    # A mark is a copy in the captured graph, and none here: what is behind it may not be contiguous.
    RESHAPE_VIEWS(captured.graph)
    recorder = _Recorder(captured, requests, head, sparsity)
    record = make_fx(
        lambda x: recorder.run(x),
        decomposition_table=DECOMPOSITIONS,
        tracing_mode="symbolic",
        _allow_non_fake_inputs=True,
    )
    try:
        graph = record(captured.images)
    except GaiaError:
        raise
    except Exception as error:
        raise CompilationError(
            f"PyTorch cannot record the model's gradients ({first_line(error)}); engine='hooks' scores it as it is"
        ) from error
    return Program(
        run_passes(RECORDED, graph),
        tuple(recorder.outputs),
        tuple(each.names for each in recorder.parts),
        tuple(tuple(captured.maps[place] for place in each.places) for each in recorder.parts),
        recorder.counter.preconditions,
    )


def without_recourse(program: Program, scores: Sequence[str] | None = None) -> Program:
    """The program as it stands alone, where nothing can score an image again: logits and scores, nothing else.

    A score that counts non-zeros is NaN for an image that violates a precondition: no number is better than a wrong
    one. So is an infinite score, of an image whose output component is zero, which a detector refuses, and every score
    of an image whose pixels or logits are not finite.

    Args:
        program: all of it.
        scores: their names, in the order in which they are given; one that is none of the program's results is of
            `gaia_fast.options.LogitScore`. None for the program's own.
    """
    graph = fx.Graph()
    copied = graph.graph_copy(program.graph.graph, {})
    found = dict(zip(program.outputs, copied, strict=True))
    given = dict(zip(program.outputs, program.graph.graph.output_node().args[0], strict=True))
    results: dict[str, fx.Node] = {}
    logits = found[LOGITS]
    images = next(node for node in graph.nodes if node.op == "placeholder")

    def not_finite(values: fx.Node, axes: list[int]) -> fx.Node:
        # What is not finite leaves NaN behind when it is taken from itself, and NaN is no zero.
        rest = graph.call_function(aten.sub.Tensor, (values, values))
        return graph.call_function(aten.ne.Scalar, (graph.call_function(aten.sum.dim_IntList, (rest, axes)), 0))

    # Of images as well: a ReLU that compilers make of a comparison turns NaN into zero.
    lost = graph.call_function(aten.logical_or.default, (not_finite(images, [1, 2, 3]), not_finite(logits, [1])))

    def known(score: fx.Node, unknown: fx.Node, value: Tensor) -> fx.Node:
        nan = graph.call_function(
            aten.scalar_tensor.default, (float("nan"),), {"dtype": value.dtype, "device": value.device}
        )
        node = graph.call_function(aten.where.self, (unknown, nan, score))
        node.meta["val"] = value
        return node

    for each in program.results:
        score = found[each.score]
        value = given[each.score].meta["val"]
        unknown = graph.call_function(aten.eq.Scalar, (graph.call_function(aten.abs.default, (score,)), float("inf")))
        if each.counted and PRECONDITIONS in found:
            worst = graph.call_function(aten.amin.default, (found[PRECONDITIONS], [1]))
            holds = graph.call_function(aten.gt.Scalar, (worst, 0))
            violated = graph.call_function(aten.logical_not.default, (holds,))
            unknown = graph.call_function(aten.logical_or.default, (violated, unknown))
        unknown = graph.call_function(aten.logical_or.default, (lost, unknown))
        results[each.score] = known(score, unknown, value)
    names = [each.score for each in program.results] if scores is None else list(scores)
    for name in [name for name in names if name not in results]:
        traced = make_fx(partial(logit_score, name), tracing_mode="symbolic", _allow_non_fake_inputs=True)(
            given[LOGITS].meta["val"]
        )
        (placeholder,) = (node for node in traced.graph.nodes if node.op == "placeholder")
        score = graph.graph_copy(traced.graph, {placeholder: logits})
        results[name] = known(score, lost, score.meta["val"])
    graph.output((found[LOGITS], *(results[name] for name in names)))
    module = FOLD_CONSTANTS(fx.GraphModule(program.graph, graph))
    return Program(module, (LOGITS, *names), program.results, program.maps)


def with_decisions(program: Program, thresholds: Mapping[str, float]) -> Program:
    """The same program, with decisions behind its outputs: (N,) bool, see `gaia_fast.calibration.decide`.

    Args:
        program: all of it.
        thresholds: by the names of scores among its outputs, in the decisions' order.
    """
    if not thresholds:
        return program
    graph = fx.Graph()
    results = dict(zip(program.outputs, graph.graph_copy(program.graph.graph, {}), strict=True))
    for name, threshold in thresholds.items():
        score = results[name]
        traced = make_fx(partial(decide, threshold=threshold), tracing_mode="symbolic", _allow_non_fake_inputs=True)(
            score.meta["val"]
        )
        (placeholder,) = (node for node in traced.graph.nodes if node.op == "placeholder")
        results[decision_name(name)] = graph.graph_copy(traced.graph, {placeholder: score})
    graph.output(tuple(results.values()))
    return replace(program, graph=fx.GraphModule(program.graph, graph), outputs=tuple(results))


def with_images_in(dtype: torch.dtype, program: Program) -> Program:
    """The same program for images in another dtype, and with logits in it; what is between is computed as before."""
    given = next(node for node in program.graph.graph.nodes if node.op == "placeholder")
    value = given.meta["val"]
    if value.dtype == dtype:
        return program
    graph = fx.Graph()
    images = graph.placeholder(given.name)
    images.meta["val"] = value.to(dtype)
    widened = graph.call_function(aten._to_copy.default, (images,), {"dtype": value.dtype})
    widened.meta["val"] = value
    results = dict(zip(program.outputs, graph.graph_copy(program.graph.graph, {given: widened}), strict=True))
    logits = results["logits"]
    results["logits"] = graph.call_function(aten._to_copy.default, (logits,), {"dtype": dtype})
    results["logits"].meta["val"] = logits.meta["val"].to(dtype)
    graph.output(tuple(results.values()))
    module = fx.GraphModule(program.graph, graph)
    clean_up(module)
    return replace(program, graph=module)


class _Part(NamedTuple):
    """One method in a recording: which of the captured maps it inspects, and what its results are called."""

    method: Method
    places: tuple[int, ...]
    names: ResultNames


class _Recorder(fx.Interpreter):  # type: ignore[misc]
    """One run of the captured model, and of what the methods make of it."""

    def __init__(
        self,
        captured: Captured,
        requests: Sequence[Request],
        head: Head | None,
        sparsity: Sequence[Sparsity | None] | None,
    ) -> None:
        super().__init__(captured.graph)
        self.captured, self.head = captured, head
        maps = captured.maps
        sizes = [(each.channels, each.area) for each in maps]
        self.counter = NonZeroCounter([None] * len(maps) if sparsity is None else sparsity, sizes)
        self.parts = [
            _Part(each.method, each.places(maps), ResultNames.of(each.name, each.method)) for each in requests
        ]
        self.outputs: list[str] = []
        self.leaves: dict[int, Tensor] = {}
        self.last_seen: Tensor | None = None
        self.last: Tensor | None = None
        self.phi: Tensor | None = None

    def run_node(self, n: fx.Node) -> Any:
        if n.target is MARK:
            args, _ = self.fetch_args_kwargs_from_env(n)
            value = self._mark(*args)
        else:
            value = super().run_node(n)
        self.counter.see(n, value)
        return value

    def _mark(self, x: Tensor, place: int, index: int) -> Tensor:
        if place == MAP and any(index in self._differentiated(part) for part in self.parts):
            x = self.leaves[index] = _leaf(x)
        elif place == LAST and any(part.method.needs_output_component for part in self.parts):
            x = self.last_seen = _leaf(x)
        elif place == PHI:
            self.last, self.phi = self.last_seen, x
        return x

    def _differentiated(self, part: _Part) -> list[int]:
        """The maps whose gradient a method takes: all, but for those whose non-zeros are counted."""
        if not part.method.needs_maps:
            return []
        return [place for place in part.places if not (part.names.counted and self.counter.counts(place))]

    def run(self, x: Tensor) -> tuple[Tensor, ...]:
        self.leaves = {}
        with torch.enable_grad():
            result = super().run(x)
            logits = result if isinstance(result, Tensor) else result[0]
            component = None
            if any(part.method.needs_output_component for part in self.parts):
                component = self._output_component(logits)
            gradients = [self._gradients(logits, part) for part in self.parts]
        with torch.no_grad():
            found: dict[str, Tensor] = {LOGITS: logits.detach()}
            for part, taken in zip(self.parts, gradients, strict=True):
                found.update(self._results(part, taken, component if part.names.component else None))
            preconditions = self.counter.precondition_values()
            if preconditions is not None:
                found[PRECONDITIONS] = preconditions
        self.outputs = list(found)
        return tuple(found.values())

    def _results(self, part: _Part, gradients: dict[int, Tensor], component: Tensor | None) -> dict[str, Tensor]:
        method, names = part.method, part.names
        if not method.needs_maps:
            assert component is not None
            packed = torch.ones_like(component).unsqueeze(1)
            weights = packed.new_ones(1)
        else:
            packed = torch.cat([self._moment(place, gradients.get(place), method) for place in part.places], 1)
            maps = [self.captured.maps[place] for place in part.places]
            areas = [1 / each.area for each in maps for _ in range(each.channels)]
            weights = torch.tensor(areas, dtype=packed.dtype, device=packed.device)
        score = _norm(packed * weights, method.p)
        if component is not None:
            score = score / component
        found = {names.score: score.to(torch.float32), names.packed: packed}
        if names.component is not None and component is not None:
            found[names.component] = component.detach()
        return found

    def _output_component(self, logits: Tensor) -> Tensor:
        """out[n] = sqrt(mean over channels of |mean over space of g|), g = d(sum of log_softmax(S)) / dA_last.

        d(sum of log_softmax(S)) / dS = 1 - C softmax(S).
        """
        g = None
        if self.last is not None and logits.requires_grad:
            cotangent = torch.rsub(logits.detach().softmax(1), 1, alpha=logits.shape[1])
            (g,) = torch.autograd.grad([logits], [self.last], [cotangent], retain_graph=True, allow_unused=True)
        if g is None:
            raise LayerError(checks.unusable_last(self.head.last_name if self.head else ""))
        return g.to(accumulator_dtype(g.dtype)).mean((2, 3)).abs().mean(1).sqrt()

    def _gradients(self, logits: Tensor, part: _Part) -> dict[int, Tensor]:
        places = [place for place in self._differentiated(part) if place in self.leaves]
        if not places:
            return {}
        target: Tensor | None
        if part.method.needs_inner_component and self.phi is not None:
            target = self.phi
            # Not `ones_like`: what only the number of images tells need not wait for the forward pass.
            cotangent = torch.ones(self.phi.shape, dtype=self.phi.dtype, device=self.phi.device)
        else:
            target = logits
            top1 = logits.detach().argmax(dim=1, keepdim=True)
            classes = torch.arange(logits.shape[1], device=logits.device)
            cotangent = (classes == top1).to(logits.dtype)
        wanted = [self.leaves[place] for place in places]
        found: Sequence[Tensor | None] = [None] * len(wanted)
        if target is not None and target.requires_grad:
            found = torch.autograd.grad([target], wanted, [cotangent], retain_graph=True, allow_unused=True)
        missed = [self.captured.maps[place].name for place, g in zip(places, found, strict=True) if g is None]
        if missed:
            raise LayerError(checks.unreached(missed))
        return {place: g.detach() for place, g in zip(places, found, strict=True) if g is not None}

    def _moment(self, index: int, g: Tensor | None, method: Method) -> Tensor:
        """The sums over space that the method's eps of a map is made of: (N, K)."""
        if g is None:
            return self.counter.count(index)
        wide = accumulator_dtype(g.dtype)
        if method.name == Measure.GAIA_Z:
            return (g != 0).to(wide).sum((2, 3))
        return (g if method.statistic == Statistic.ABS_MEAN else g.abs()).sum((2, 3), dtype=wide)


def _leaf(x: Tensor) -> Tensor:
    """The tensor, as one that gradients can be taken towards; nothing upstream of the first is recorded."""
    return x if x.requires_grad else x.detach().requires_grad_()


def _norm(eps: Tensor, p: float) -> Tensor:
    """(sum of |eps|^p)^(1/p) of each row."""
    if p == 2:
        return torch.linalg.vector_norm(eps, dim=1)
    if isinf(p):
        return eps.abs().amax(1)
    if p == 1:
        return eps.abs().sum(1)
    # The largest entry is taken out: powers of small numbers would underflow.
    largest = eps.abs().amax(1, keepdim=True).clamp_min(torch.finfo(eps.dtype).tiny)
    return largest.squeeze(1) * (eps.abs() / largest).pow(p).sum(1).pow(1 / p)
