"""Exported files, ready to run: what scores and decides as the detector that they were written from."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gaia_fast.calibration import checked
from gaia_fast.compiler.ir.results import LOGITS, decision_name
from gaia_fast.compiler.onnx.session import open_session
from gaia_fast.compiler.package.metadata import Accepted, accepted, model_name, read_metadata
from gaia_fast.errors import ArgumentError, BackendError, first_line
from gaia_fast.inspection.requests import SCORE
from gaia_fast.method import Method
from gaia_fast.outputs import GaiaOutput, GaiaScores
from gaia_fast.scorers import JointScorer, Scorer

Run = Callable[[Tensor], tuple[Tensor, ...]]


class ExportedProgram:
    """What is in a file: from images that fit to logits and scores."""

    def __init__(self, path: Path, images: Accepted) -> None:
        self.path, self.images = path, images
        try:
            self._run = _onnx_runner(path) if path.suffix == ".onnx" else _package_runner(path, images)
        # Of another processor or version, or damaged: each runtime has its own ways to say so.
        except Exception as error:
            raise ArgumentError(f"{path} cannot be loaded here ({first_line(error)}); export it again, here") from error

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """Returns the outputs for images that fit; others are refused: a file itself does not look at all of them."""
        self.images.check(x)
        try:
            return self._run(x.detach().contiguous())  # a package does not look at strides
        except Exception as error:
            raise BackendError(
                f"{self.path} failed on images of shape {tuple(x.shape)}: {first_line(error)}"
            ) from error


class _Exported:
    """What exported files of one score and of several share.

    Attributes:
        path: the file.
        metadata: all of `gaia_fast.read_metadata`.
    """

    path: Path
    metadata: dict[str, str]
    _program: ExportedProgram
    _names: tuple[str, ...]

    def outputs(self, x: Tensor) -> dict[str, Tensor]:
        """Returns what the file itself gives, by the names of its outputs, in their order.

        Args:
            x: as in `score`.

        Returns:
            "logits" (N, C); scores, each (N,) float32: "score", or of several "gaia_z" and so on; decisions by the
            file's own thresholds, whatever this object's are, each (N,) bool: "is_ood", or "is_ood_gaia_z" and so on.

        Raises:
            InputError, BackendError: as `score`.

        Example:
            >>> from gaia_fast import GaiaZ, load
            >>> from gaia_fast.data.digits import held_out_digits
            >>> from gaia_fast.models import digits_resnet
            >>> from tempfile import TemporaryDirectory
            >>> x, labels = held_out_digits()
            >>> with TemporaryDirectory() as folder:
            ...     detector = GaiaZ(digits_resnet(pretrained=True)).calibrate(x[:200])
            ...     found = load(detector.export(f"{folder}/model.onnx", x[:4])).outputs(x[:3])
            >>> {name: tuple(each.shape) for name, each in found.items()}
            {'logits': (3, 10), 'score': (3,), 'is_ood': (3,)}
        """
        return dict(zip(self._names, self._program(x), strict=True))


class ExportedDetector(_Exported, Scorer):
    """An exported file of one score. Scores and decides as the detector that it was written from, without its model.

    Attributes:
        path: the file.
        threshold: the file's, if it has one; to set it, or to call `calibrate`, changes this object alone.
        method: the measurement, with its options.
        layers: the names of the inspected layers.
        metadata: all of `gaia_fast.read_metadata`.
    """

    def __init__(self, path: Path, metadata: dict[str, str], images: Accepted) -> None:
        self.path, self.metadata = path, metadata
        with _read(path):
            self.method = Method(**json.loads(metadata["method"]))
            self.layers: list[str] = json.loads(metadata["layers"])
            self.threshold = checked(metadata["threshold"]) if metadata["threshold"] else None
        decided = () if self.threshold is None else (decision_name(SCORE),)
        self._names = (LOGITS, SCORE, *decided)
        self._program = ExportedProgram(path, images)  # of a package it runs code: last

    def score(self, x: Tensor) -> GaiaOutput:
        """Predicts and scores a batch in one call.

        Args:
            x: (N, C, H, W) images of a size, dtype and device that the file was exported for; uint8 pictures where it
                prepares them itself.

        Returns:
            GaiaOutput: logits (N, C), score (N,) float32. The score of an image that the file cannot score is NaN, and
            the image counts as out of distribution.

        Raises:
            InputError: other images. BackendError: the runtime failed on them.
        """
        logits, score, *_ = self._program(x)
        return GaiaOutput(logits, score, threshold=self.threshold)

    def __repr__(self) -> str:
        return f"ExportedDetector({str(self.path)!r}, {self.method}, threshold={self.threshold})"


class ExportedJointDetector(_Exported, JointScorer):
    """An exported file of several scores. Scores and decides as the `Gaia` that it was written from, without its model.

    Attributes:
        path: the file.
        scores: the scores' names, in order.
        thresholds: by score, those of the file; to set them, or to call `calibrate`, changes this object alone.
        methods: by GAIA score, its options.
        layers: by GAIA score, the names of the inspected layers.
        metadata: all of `gaia_fast.read_metadata`.
    """

    def __init__(self, path: Path, metadata: dict[str, str], images: Accepted) -> None:
        self.path, self.metadata = path, metadata
        with _read(path):
            described: dict[str, dict[str, Any]] = json.loads(metadata["scores"])
            self.scores = tuple(described)
            self.methods = {name: Method(**each["method"]) for name, each in described.items() if "method" in each}
            self.layers: dict[str, list[str]] = {name: described[name]["layers"] for name in self.methods}
            given = {name: each["threshold"] for name, each in described.items()}
            self.thresholds = {name: checked(each) for name, each in given.items() if each is not None}
            self.calibrations = {}
            outputs = [each["output"] for each in described.values()]
            self._names = (LOGITS, *outputs, *(each["decision"] for each in described.values() if "decision" in each))
        self._program = ExportedProgram(path, images)

    def score(self, x: Tensor) -> GaiaScores:
        """Predicts and scores a batch in one call.

        Args:
            x: as in `ExportedDetector.score`.

        Returns:
            GaiaScores: logits (N, C), and by name scores (N,) float32. A score that the file cannot tell of an image is
            NaN, and by that score the image counts as out of distribution.

        Raises:
            InputError: other images. BackendError: the runtime failed on them.
        """
        logits, *given = self._program(x)
        return GaiaScores(logits, dict(zip(self.scores, given, strict=False)), thresholds=self._known_thresholds())

    def __repr__(self) -> str:
        return f"ExportedJointDetector({str(self.path)!r}, {self.scores}, thresholds={self.thresholds})"


def load(path: str | Path) -> ExportedDetector | ExportedJointDetector:
    """Returns an exported file as what scores images with it; on the CPU for ".onnx".

    A ".pt2" file is a program of machine code: loading it runs it, with all rights of the user. Load only what you
    trust; `read_metadata` is safe for any.

    Returns:
        ExportedDetector, of one score, as `GaiaZ` and `GaiaA`: `score`, `predict`, `is_ood`, `threshold`, `calibrate`;
        or ExportedJointDetector, of a file that `Gaia` wrote.

    Raises:
        ArgumentError, BackendError: as `read_metadata`; also where its runtime cannot load the file.

    Example:
        >>> from gaia_fast import GaiaA
        >>> from gaia_fast.data.digits import held_out_digits
        >>> from gaia_fast.models import digits_resnet
        >>> from tempfile import TemporaryDirectory
        >>> x, labels = held_out_digits()
        >>> with TemporaryDirectory() as folder:
        ...     detector = GaiaA(digits_resnet(pretrained=True)).calibrate(x[:200])
        ...     exported = load(detector.export(f"{folder}/model.onnx", x[:4]))
        >>> logits, score = exported.score(x[:3])
        >>> logits.shape, score.shape
        (torch.Size([3, 10]), torch.Size([3]))
        >>> exported.threshold == detector.threshold
        True
        >>> bool(exported.is_ood(torch.rand_like(x[:3])).all())
        True
    """
    path = Path(path)
    metadata = read_metadata(path)
    images = accepted(path, metadata)
    return (ExportedJointDetector if "scores" in metadata else ExportedDetector)(path, metadata, images)


def open_program(path: Path) -> ExportedProgram:
    """Returns the program of a file alone. Raises as `load`."""
    return ExportedProgram(path, accepted(path, read_metadata(path)))


@contextmanager
def _read(path: Path) -> Iterator[None]:
    """Says of metadata that are not as `export` writes them whose they are."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArgumentError(
            f"{path} does not say which scores it gives, or not so that it can be read ({first_line(error)}); export "
            "it again"
        ) from error


def _onnx_runner(path: Path) -> Run:
    session = open_session(path, str(path))
    return lambda x: tuple(torch.from_numpy(each) for each in session.run(None, {"images": x.cpu().numpy()}))


def _package_runner(path: Path, images: Accepted) -> Run:
    from torch._inductor.package.package import load_package

    packages = {sizes[2:]: load_package(str(path), model_name(images.sizes, sizes)) for sizes in images.sizes}

    def run(x: Tensor) -> tuple[Tensor, ...]:
        package = packages.get(tuple(x.shape[2:])) or packages[None, None]
        with torch.no_grad():
            return tuple(package(x))

    return run
