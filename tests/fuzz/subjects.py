"""What is put to the test: each engine, each way to run a program, and the files."""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from sys import maxsize
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx

from gaia_fast import GaiaA, GaiaError, GaiaZ
from gaia_fast.compiler.ir.rewriting import copy_of
from gaia_fast.compiler.pipeline import cuda, run_passes
from gaia_fast.compiler.runtimes import choice
from gaia_fast.compiler.runtimes.eager import Eager
from gaia_fast.compiler.runtimes.fixed_sizes import FixedSizes

from exported import load_one
from fuzz.draws import Draw
from fuzz.judging import Found, Truth

Score = Callable[[Tensor], Found]


def silence() -> None:
    """Has onnxruntime raise what it has to say, and not print it as well."""
    with suppress(ImportError):
        import onnxruntime

        onnxruntime.set_default_logger_severity(4)


def _detector(draw: Draw, engine: str, runtime: str = "auto") -> GaiaA | GaiaZ:
    q = draw.question
    shared: dict[str, Any] = {"layers": q.layers, "p": q.p, "engine": engine, "runtime": runtime}
    of_gaia_a: dict[str, Any] = {"head": q.head, "fusion": q.fusion, "statistic": q.statistic}
    if q.name == "gaia-z":
        return GaiaZ(draw.model, **shared)
    return GaiaA(draw.model, **of_gaia_a, **shared)


def _by_engine(engine: str, draw: Draw, _: Path) -> Score:
    detector = _detector(draw, engine)
    return lambda x: Found(*detector.score(x))


def _by_program(runtime: str, draw: Draw, _: Path) -> Score:
    detector = _detector(draw, "compiled", runtime).prepare(draw.example)
    return lambda x: Found(*detector.score(x))


def _by_program_for_cuda(l2_bytes: int, draw: Draw, folder: Path) -> Score:
    """A program as it is made for a CUDA device, on the CPU, in its own layout: rounding would decide among equals."""

    def made(graph: fx.GraphModule) -> FixedSizes:
        return FixedSizes(lambda images: Eager(run_passes(cuda(images, l2_bytes, channels_last=False), copy_of(graph))))

    with mock.patch.object(choice, "Eager", made):
        return _by_program("eager", draw, folder)


def _by_file(name: str, draw: Draw, folder: Path) -> Score:
    run = load_one(_detector(draw, "compiled", "eager").export(folder / name, draw.example))
    return lambda x: Found(*run.score(x))


# What takes a draw, and a folder for files, and returns a function that scores.
SUBJECTS: dict[str, Callable[[Draw, Path], Score]] = {
    "reference": partial(_by_engine, "reference"),
    "hooks": partial(_by_engine, "hooks"),
    "eager": partial(_by_program, "eager"),
    "cuda": partial(_by_program_for_cuda, maxsize),  # maps in the cache are counted at the end
    "cuda-large": partial(_by_program_for_cuda, 0),  # others as they are written
    "native": partial(_by_program, "native"),
    "onnxruntime": partial(_by_program, "onnxruntime"),
    "onnx": partial(_by_file, "model.onnx"),
    "inductor": partial(_by_program, "inductor"),
    "pt2": partial(_by_file, "model.pt2"),
}
USUAL = tuple(name for name in SUBJECTS if name not in ("inductor", "pt2"))  # these need a C++ compiler and minutes
WIDENED = ("native", "onnxruntime", "onnx")  # these compute in float32, but for what a file in float64 does


@dataclass(frozen=True)
class Verdict:
    """What became of one batch of a draw: "right", "refused" or "wrong", and why."""

    subject: str
    batch: str
    outcome: str
    why: str = ""

    @property
    def kind(self) -> str:
        """Why, without names and numbers."""
        return re.sub(r"'[^']*'|\[[^]]*\]|\([^)]*\)|\d[\d.e-]*", "_", self.why)[:110]


def verdicts(draw: Draw, subjects: tuple[str, ...]) -> Iterator[Verdict]:
    """Has each subject score each batch of a draw."""
    truths = {words: Truth(draw.model, x, draw.question) for words, x in draw.batches.items()}
    for subject in subjects:
        before = _state(draw)
        with TemporaryDirectory() as folder:
            try:
                score = SUBJECTS[subject](draw, Path(folder))
            except Exception as error:
                for words in draw.batches:
                    yield _raised(subject, words, error)
            else:
                for words, x in draw.batches.items():
                    yield _verdict(subject, words, score, x, truths[words])
        if fault := _trace_left(draw, before):
            yield Verdict(subject, "all", "wrong", fault)


def _verdict(subject: str, words: str, score: Score, x: Tensor, truth: Truth) -> Verdict:
    try:
        found = score(x)
    except Exception as error:
        return _raised(subject, words, error)
    if subject in ("onnx", "pt2") and bool(found.score.isnan().any()):  # a file cannot score again what it cannot
        return Verdict(subject, words, "refused", "NaN: no number")
    # Images that a program cannot score are scored by hooks, in the model's own dtype.
    dtypes = {x.dtype, torch.float32} if subject in WIDENED else {x.dtype}
    faults = [truth.fault(found, dtype) for dtype in dtypes]
    fault = min(faults, key=len)
    return Verdict(subject, words, "wrong" if fault else "right", fault)


def _raised(subject: str, words: str, error: Exception) -> Verdict:
    outcome = "refused" if isinstance(error, GaiaError) else "wrong"
    return Verdict(subject, words, outcome, f"{type(error).__name__}: {error}")


def _state(draw: Draw) -> list[Tensor]:
    return [each.detach().clone() for each in [*draw.model.state_dict().values(), *draw.batches.values()]]


def _trace_left(draw: Draw, before: list[Tensor]) -> str:
    if not all(torch.equal(a, b) for a, b in zip(_state(draw), before, strict=True)):
        return "weights or images have changed"
    for name, module in draw.model.named_modules():
        if module.training or module._forward_hooks or module._forward_pre_hooks:
            return f"{name} is in training mode, or has a hook"
    return "a parameter has a gradient" if any(each.grad is not None for each in draw.model.parameters()) else ""
