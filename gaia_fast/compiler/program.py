"""Logits and score as one forward-only tensor program, with no autograd when it runs.

The captured model is run once more on tensors that hold no numbers, with gradients taken where the method wants them,
and everything that happens is recorded: the forward pass, the non-zeros counted beside it (`sparsity`), the
backward pass as far as the earliest map that needs it (`adjoint`), and the score.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isinf
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from gaia_fast.compiler.frontend.capture import Captured
from gaia_fast.compiler.ir.marks import LAST, MAP, MARK, PHI
from gaia_fast.compiler.ir.passes import clean_up
from gaia_fast.compiler.passes.backward_operators import DECOMPOSITIONS
from gaia_fast.compiler.pipeline import FOLD_CONSTANTS, RECORDED, RESHAPE_VIEWS, run_passes
from gaia_fast.compiler.sparsity import NonZeroCounter, Precondition, Sparsity
from gaia_fast.errors import CompilationError, GaiaError, LayerError, first_line
from gaia_fast.inspection import checks
from gaia_fast.inspection.head import Head
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
        outputs: their names: "logits" (N, C); "score" (N,) float32; "packed" (N, sum of K_l) and, where there is one,
            "component" (N,), as in `Measurement`; where there are any, "preconditions" (N, P), positive where what the
            counts rest on holds. In this order; where a program stands alone, the first two.
        maps: the inspected maps; none where the output component is all.
        preconditions: what the columns of "preconditions" stand for.
    """

    graph: fx.GraphModule
    outputs: tuple[str, ...]
    maps: tuple[FeatureMap, ...]
    preconditions: tuple[Precondition, ...] = ()


def build(
    captured: Captured, method: Method, head: Head | None, sparsity: Sequence[Sparsity | None] | None = None
) -> Program:
    """Records the program of a method.

    Args:
        captured: the model, its constants and norms folded.
        method: what to measure.
        head: for messages; None where the method needs none.
        sparsity: for GAIA-Z, of each map, what is counted in the forward pass; None for the gradient itself.

    Raises:
        LayerError: no gradient reaches a map, or A_last.
        CompilationError: PyTorch cannot record it.
    """
    # A mark is a copy in the captured graph, and none here: what is behind it may not be contiguous.
    RESHAPE_VIEWS(captured.graph)
    recorder = _Recorder(captured, method, head, sparsity)
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
    return Program(run_passes(RECORDED, graph), tuple(recorder.outputs), captured.maps, recorder.counter.preconditions)


def without_recourse(program: Program) -> Program:
    """The program as it stands alone, where nothing can score an image again: logits and score, nothing else.

    The score of an image that violates a precondition is NaN: no number is better than a wrong one. So is an
    infinite score, of an image whose output component is zero, which a detector refuses.
    """
    graph = fx.Graph()
    results = dict(zip(program.outputs, graph.graph_copy(program.graph.graph, {}), strict=True))
    score = results["score"]
    value = program.graph.graph.output_node().args[0][program.outputs.index("score")].meta["val"]
    unknown = graph.call_function(aten.eq.Scalar, (graph.call_function(aten.abs.default, (score,)), float("inf")))
    if "preconditions" in results:
        worst = graph.call_function(aten.amin.default, (results["preconditions"], [1]))
        violated = graph.call_function(aten.le.Scalar, (worst, 0))
        unknown = graph.call_function(aten.logical_or.default, (violated, unknown))
    nan = graph.call_function(
        aten.scalar_tensor.default, (float("nan"),), {"dtype": value.dtype, "device": value.device}
    )
    score = graph.call_function(aten.where.self, (unknown, nan, score))
    score.meta["val"] = value
    graph.output((results["logits"], score))
    return Program(FOLD_CONSTANTS(fx.GraphModule(program.graph, graph)), ("logits", "score"), program.maps)


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
    return Program(module, program.outputs, program.maps, program.preconditions)


class _Recorder(fx.Interpreter):  # type: ignore[misc]
    """One run of the captured model, and of what the method makes of it."""

    def __init__(
        self, captured: Captured, method: Method, head: Head | None, sparsity: Sequence[Sparsity | None] | None
    ) -> None:
        super().__init__(captured.graph)
        self.captured, self.method, self.head = captured, method, head
        maps = captured.maps
        sizes = [(each.channels, each.area) for each in maps]
        self.counter = NonZeroCounter([None] * len(maps) if sparsity is None else sparsity, sizes)
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
        if place == MAP and self.method.needs_maps and self.counter.needs_gradient(index):
            x = self.leaves[index] = _leaf(x)
        elif place == LAST and self.method.needs_output_component:
            x = self.last_seen = _leaf(x)
        elif place == PHI:
            self.last, self.phi = self.last_seen, x
        return x

    def run(self, x: Tensor) -> tuple[Tensor, ...]:
        self.leaves, self.outputs = {}, []
        with torch.enable_grad():
            result = super().run(x)
            logits = result if isinstance(result, Tensor) else result[0]
            component = self._output_component(logits) if self.method.needs_output_component else None
            gradients = self._gradients(logits) if self.leaves else {}
        with torch.no_grad():
            found: dict[str, Tensor] = {"logits": logits.detach()}
            if not self.method.needs_maps:
                assert component is not None
                packed = torch.ones_like(component).unsqueeze(1)
                weights = packed.new_ones(1)
            else:
                packed = torch.cat(
                    [self._moment(index, gradients.get(index)) for index in range(len(self.captured.maps))], 1
                )
                areas = [1 / each.area for each in self.captured.maps for _ in range(each.channels)]
                weights = torch.tensor(areas, dtype=packed.dtype, device=packed.device)
            found["score"] = _norm(packed * weights, self.method.p)
            if component is not None:
                found["score"] = found["score"] / component
            found["score"] = found["score"].to(torch.float32)
            found["packed"] = packed
            if component is not None:
                found["component"] = component.detach()
            preconditions = self.counter.precondition_values()
            if preconditions is not None:
                found["preconditions"] = preconditions
        self.outputs = list(found)
        return tuple(found.values())

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

    def _gradients(self, logits: Tensor) -> dict[int, Tensor]:
        target: Tensor | None
        if self.method.needs_inner_component and self.phi is not None:
            target = self.phi
            # Not `ones_like`: what only the number of images tells need not wait for the forward pass.
            cotangent = torch.ones(self.phi.shape, dtype=self.phi.dtype, device=self.phi.device)
        else:
            target = logits
            top1 = logits.detach().argmax(dim=1, keepdim=True)
            classes = torch.arange(logits.shape[1], device=logits.device)
            cotangent = (classes == top1).to(logits.dtype)
        wanted = list(self.leaves.values())
        found: Sequence[Tensor | None] = [None] * len(wanted)
        if target is not None and target.requires_grad:
            found = torch.autograd.grad([target], wanted, [cotangent], allow_unused=True)
        missed = [self.captured.maps[index].name for index, g in zip(self.leaves, found, strict=True) if g is None]
        if missed:
            raise LayerError(checks.unreached(missed))
        return {index: g.detach() for index, g in zip(self.leaves, found, strict=True) if g is not None}

    def _moment(self, index: int, g: Tensor | None) -> Tensor:
        """The sums over space that the method's eps of a map is made of: (N, K)."""
        if g is None:
            return self.counter.count(index)
        wide = accumulator_dtype(g.dtype)
        if self.method.name == Measure.GAIA_Z:
            return (g != 0).to(wide).sum((2, 3))
        return (g if self.method.statistic == Statistic.ABS_MEAN else g.abs()).sum((2, 3), dtype=wide)


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
