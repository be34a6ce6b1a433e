"""The program on this package's own CPU kernels, convolutions with all that stands behind them."""

import operator
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from gaia_fast import backends
from gaia_fast.compiler import pipeline
from gaia_fast.compiler.ir.rewriting import calls, copy_of
from gaia_fast.compiler.ir.serialization import digest
from gaia_fast.compiler.native import serialization
from gaia_fast.compiler.native.executable import Executable
from gaia_fast.compiler.native.kernels import Convolution
from gaia_fast.compiler.pipeline import run_passes
from gaia_fast.compiler.runtimes import autotuning
from gaia_fast.compiler.runtimes.checked import Checks
from gaia_fast.compiler.runtimes.runner import Guard, check_float32_on_cpu, no_guard
from gaia_fast.options import Runtime, Tune
from gaia_fast.timing_cache import TimingCache

_TURNS = 4
_LONGEST = 1.0  # seconds

SCHEDULES = TimingCache("schedules", lambda value: isinstance(value, bool))


class Native:
    """Runs the program on the C++ kernels; float32 on the CPU, any number of images.

    Args:
        graph: the program.
        example: images.
        tune: how algorithms are chosen for as many images as `example` has; for others, by their operations. Where they
            are measured, so is the order: all images layer by layer, or one after the other.
        checks: where images and results are to be checked, for one output more: (N,), positive where what was found for
            an image means something.

    Raises:
        BackendError: the extension is missing, or other images than float32 on the CPU.
    """

    def __init__(
        self, graph: fx.GraphModule, example: Tensor, tune: str = Tune.MODEL, checks: Checks | None = None
    ) -> None:
        check_float32_on_cpu("native", missing(), example)
        passes = pipeline.native() if checks is None else pipeline.native(checks.outputs, checks.results)
        self._graph: fx.GraphModule | None = run_passes(passes, copy_of(graph))
        self._alone = _executable_alone(self._graph)
        images = next(node for node in self._graph.graph.nodes if node.op == "placeholder")
        readers = [node for node in images.users if node.op != "call_module"]
        self._reads_images_itself = all(node.target is torch.ops.aten.sym_size.int for node in readers)
        if tune == Tune.MEASURE:
            executables = [each for each in self._graph.modules() if isinstance(each, Executable)]
            kernels = [each.kernel for executable in executables for each in executable.instructions]
            convolutions = [kernel for kernel in kernels if isinstance(kernel, Convolution)]
            weight_bytes = sum(4 * part.weights.weight.numel() for kernel in convolutions for part in kernel.parts)
            for kernel in convolutions:
                kernel.measured_for = example.shape[0], weight_bytes
            if example.shape[0] > 1:
                key = autotuning.key(digest(graph), example, [Runtime.NATIVE.value], True)
                faster = SCHEDULES.get(key, lambda: self._faster_one_by_one(executables, example))
                for each in executables:
                    each.one_by_one = {example.shape[0]} if faster else set()

    def to_data(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Returns it as plain data, and its constants by name; None where there is more to it than one executable."""
        if self._alone is None:
            return None
        executable, order = self._alone
        data, tensors = serialization.to_data(executable)
        return {"executable": data, "order": list(order)}, tensors

    @classmethod
    def from_data(cls, data: Mapping[str, Any], tensors: Mapping[str, Tensor], example: Tensor) -> "Native":
        """Returns what `to_data` was given, for images like `example`.

        Raises:
            BackendError: as the class. Exception: of many kinds, where the data are not those of one.
        """
        check_float32_on_cpu("native", missing(), example)
        made = cls.__new__(cls)
        made._graph, made._reads_images_itself = None, True
        made._alone = serialization.from_data(data["executable"], tensors), tuple(data["order"])
        return made

    def _faster_one_by_one(self, executables: list[Executable], x: Tensor) -> bool:
        """Whether to run images one by one, each on a thread, is faster by 5 %: their maps stay in the cache, but each
        reads the weights anew. Both compute the same, to the last bit."""
        times: dict[bool, list[float]] = {False: [], True: []}
        for turn in range(_TURNS):
            for one_by_one, spent in times.items():
                for each in executables:
                    each.one_by_one = {x.shape[0]} if one_by_one else set()
                start = time.perf_counter()
                self(x)
                if turn > 0:  # the first makes plans
                    spent.append(time.perf_counter() - start)
            if min(map(sum, times.values())) > _LONGEST:
                break
        return min(times[True]) < 0.95 * min(times[False])

    def __call__(self, x: Tensor, guard: Guard = no_guard) -> tuple[Tensor, ...]:
        # Behind a program all that is Python's and PyTorch's comes out of memory again: each call shows.
        if self._alone is not None:
            executable, order = self._alone
            found = executable.forward(guard, x)
            return tuple([found[place] for place in order])
        return self._run(x, guard)

    @torch.no_grad()
    def _run(self, x: Tensor, guard: Guard) -> tuple[Tensor, ...]:
        # Executables take images as they are; what is of PyTorch's is faster channels-last.
        if not self._reads_images_itself:
            x = x.contiguous(memory_format=torch.channels_last)
        assert self._graph is not None
        outputs: tuple[Tensor, ...] = self._graph(x, guard)
        return outputs


def _executable_alone(
    graph: fx.GraphModule,
) -> tuple[Executable, tuple[int, ...]] | None:
    """The executable that is all of a program, and which of its results the program's are, in order."""
    called = [node for node in graph.graph.nodes if node.op == "call_module"]
    results = list(graph.graph.output_node().args[0])
    if len(called) != 1 or not all(calls(each, operator.getitem) for each in results) or len(results) < 2:
        return None
    if any(node.op == "call_function" and node.target is not operator.getitem for node in graph.graph.nodes):
        return None
    images, guard = (node for node in graph.graph.nodes if node.op == "placeholder")
    executable = graph.get_submodule(str(called[0].target))
    if not isinstance(executable, Executable) or list(called[0].args) != [guard, images]:
        return None
    return executable, tuple(each.args[1] for each in results)


def missing() -> str:
    """Why the C++ kernels cannot run here; empty where they can."""
    here = backends.available()["cpu"]
    return "" if here else here.reason
