"""The model as one graph of ATen operators, with the places marked where gradients are taken.

PyTorch's own exporter does the work. The layers and the head are found by the same hooks as in the other engines; each
hook leaves an identity, `gaia_fast::mark`, in the graph.
"""

import traceback
import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from gaia_fast.compiler.frontend.attributes import put_back
from gaia_fast.compiler.frontend.example_batch import export_arguments
from gaia_fast.compiler.frontend.functionalization import functional
from gaia_fast.compiler.frontend.regions import inline_regions
from gaia_fast.compiler.ir.marks import LAST, MAP, MARK, PHI
from gaia_fast.compiler.pipeline import RETURN_POOL_INDICES, run_passes
from gaia_fast.errors import CompilationError, GaiaError, first_line
from gaia_fast.inspection import checks
from gaia_fast.inspection.forward_hooks import ForwardHooks
from gaia_fast.inspection.head import Head
from gaia_fast.inspection.layers import InspectedLayer, MapNames, is_feature_map
from gaia_fast.measurement import FeatureMap

_SATURATING = (torch.ops.aten.elu_.default, torch.ops.aten.celu_.default, torch.ops.aten.selu_.default)


@dataclass(frozen=True)
class Captured:
    """A model as a graph.

    Attributes:
        graph: functional ATen operators from one placeholder, the images, to the logits; weights are attributes.
        maps: the inspected maps, in the order in which the model makes them; `index` of a MAP mark counts them.
        dynamic: whether the graph holds for any number of images; else for that of the example alone.
        saturating: operators of the model, in place, whose gradient is computed from their rounded result: it is zero
            where that of the graph's operator, which is not in place, is merely small.
    """

    graph: fx.GraphModule
    maps: tuple[FeatureMap, ...]
    dynamic: bool
    saturating: tuple[str, ...] = ()

    @property
    def images(self) -> Tensor:
        """The fake tensor that stands for the images; its first size is a symbol where the graph is dynamic."""
        return next(node for node in self.graph.graph.nodes if node.op == "placeholder").meta["val"]


def capture(
    model: nn.Module,
    x: Tensor,
    layers: list[InspectedLayer],
    head: Head | None,
    dynamic: bool | None = None,
) -> Captured:
    """Exports `model`, which is left as it was.

    Args:
        model: the classifier, checked and in eval mode.
        x: (N, C, H, W) images; the graph is made for their C, H, W, dtype and device.
        layers: the modules whose maps are inspected.
        head: where Phi and A_last are; None where the method needs neither.
        dynamic: whether the graph is made for any number of images, or for that of `x`; None for any, if that can be.
            PyTorch refuses numbers that its graph does not hold for, but one image: that has to be tried.

    Raises:
        CompilationError: PyTorch cannot export the model; the operator or line at fault is named.
        LayerError: as in the other engines.
    """
    if dynamic is not None:
        return _export(model, x, dynamic, layers, head)
    try:
        return _export(model, x, True, layers, head)
    except CompilationError:
        # A model may have its batch size written into it, and still be a graph.
        return _export(model, x, False, layers, head)


class _Marker:
    """Finds the places in one run of the model, and puts a mark at each. No module: the exporter puts those back."""

    def __init__(self, layers: list[InspectedLayer], head: Head | None) -> None:
        self._layers, self._head = layers, head
        self.begin()

    def begin(self) -> None:
        self.maps: list[FeatureMap] = []
        self.names = MapNames()

    def watch(self, hooks: ForwardHooks, images: int) -> None:
        for layer in self._layers:
            layer.watch(hooks, partial(self._mark_map, images, layer))
        if self._head is not None:
            hooks.after(self._head.last_module, self._mark_last)
            hooks.before(self._head.module, self._mark_phi)

    def _mark_map(self, images: int, layer: InspectedLayer, _: nn.Module, output: Any) -> Tensor | None:
        if not is_feature_map(output, layer, images):
            return None
        self.maps.append(FeatureMap(self.names.next(layer), *output.shape[1:]))
        return MARK(output, MAP, len(self.maps) - 1)

    def _mark_last(self, _: nn.Module, output: Any) -> Tensor | None:
        if not isinstance(output, Tensor) or output.ndim != 4:
            return None
        return MARK(output, LAST, 0)

    def _mark_phi(self, _: nn.Module, phi: Any) -> Tensor | None:
        return MARK(phi, PHI, 0) if isinstance(phi, Tensor) else None


class _Marked(nn.Module):
    """The model with marks at the places asked for, and its logits taken out of what it returns."""

    def __init__(self, model: nn.Module, marker: _Marker) -> None:
        super().__init__()
        self.model = model
        self.marker = marker

    def forward(self, x: Tensor) -> Tensor:
        self.marker.begin()  # the exporter may run this more than once
        with ForwardHooks() as hooks:
            self.marker.watch(hooks, x.shape[0])
            return checks.logits_of(self.model(x), x.shape[0])


def _export(model: nn.Module, x: Tensor, dynamic: bool, layers: list[InspectedLayer], head: Head | None) -> Captured:
    marker = _Marker(layers, head)
    arguments, sizes = export_arguments(x, dynamic)
    try:
        with warnings.catch_warnings(), torch.no_grad(), put_back(model):
            warnings.simplefilter("ignore")
            exported = torch.export.export(_Marked(model, marker).eval(), arguments, dynamic_shapes=sizes)
            saturating = tuple({str(n.target) for n in exported.graph.nodes if n.target in _SATURATING})
            graph = exported.module(check_guards=False)
            assert isinstance(graph, fx.GraphModule)
            inline_regions(graph)
            if not functional(graph):
                graph = exported.run_decompositions({}).module(check_guards=False)
                assert isinstance(graph, fx.GraphModule)
                inline_regions(graph)
    except GaiaError:
        raise
    except Exception as error:
        raise CompilationError(_refusal(model, error)) from error
    if layers:
        marker.names.check_called(layers)
    assert isinstance(graph, fx.GraphModule)
    run_passes([RETURN_POOL_INDICES], graph)
    return Captured(graph, tuple(marker.maps), dynamic, saturating)


def _refusal(model: nn.Module, error: Exception) -> str:
    """Why the model cannot be exported, with the line of the model where PyTorch gave up."""
    lines = [
        frame.f_code.co_filename + f":{line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if isinstance(frame.f_locals.get("self"), nn.Module)
        and "/torch/" not in frame.f_code.co_filename
        and not isinstance(frame.f_locals["self"], _Marked)
    ]
    where = f" at {lines[-1]}" if lines else ""
    return (
        f"{type(model).__name__} cannot be compiled: torch.export stops{where}: {first_line(error)}. engine='hooks' "
        "scores it as it is"
    )


def logits_node(graph: fx.Graph) -> fx.Node:
    """The node that the graph returns."""
    (result,) = next(node for node in graph.nodes if node.op == "output").args
    return result if isinstance(result, fx.Node) else result[0]
