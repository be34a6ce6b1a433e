"""What runs in each replica: a detector, prepared, that scores batches. Knows nothing of HTTP or Ray."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from gaia_fast.compiler.frontend.example_batch import repeated
from gaia_fast.errors import InputError, NonFiniteError, first_line
from gaia_fast.evaluation.image_sets import Detector, model_input
from gaia_fast.gaia import Gaia
from gaia_fast.options import EngineName
from gaia_fast.outputs import GaiaScores
from gaia_fast.scorers import score_names
from gaia_fast.serving.errors import ReplicaError, RequestError


@dataclass(frozen=True)
class Scored:
    """What a replica found of a batch.

    Attributes:
        predicted: (N,) int64, the class of the largest logit.
        scores: by name, (N,) float64, of float32 scores.
        refused: by index, why an image has no score; its values above mean nothing.
    """

    predicted: np.ndarray
    scores: Mapping[str, np.ndarray]
    refused: Mapping[int, RequestError] = field(default_factory=dict)

    def answers(self) -> list["Answer"]:
        """One for each image, in order."""
        scores = {name: values.tolist() for name, values in self.scores.items()}
        return [
            self.refused[place]
            if place in self.refused
            else ImageScores(predicted, {name: scores[name][place] for name in scores})
            for place, predicted in enumerate(self.predicted.tolist())
        ]


class ImageScores(NamedTuple):
    """The class of an image, and its scores by name."""

    predicted: int
    scores: Mapping[str, float]


Answer: TypeAlias = ImageScores | RequestError


class Replica:
    """A detector that is prepared for images of one size, and knows what it found of them at first.

    Args:
        detector: where its engine can be prepared, it is.
        example: float32 (N, 3, H, W): what it is prepared on, and asked again by `check`.
        threads: of PyTorch's and the kernels'.
        max_batch: images in a batch, at most.
        cache_dir: where programs are kept for replicas that come later; None for nowhere.
    """

    def __init__(
        self,
        detector: Detector | Gaia,
        example: np.ndarray,
        threads: int,
        max_batch: int,
        cache_dir: Path | None = None,
    ) -> None:
        torch.set_num_threads(threads)
        self._detector, self._example = detector, example
        images = self._input(example)
        # Not so `hooks` and `reference`, which have nothing to prepare.
        if detector.engine not in (EngineName.HOOKS, EngineName.REFERENCE):
            detector.prepare(images, cache_dir=cache_dir)
            if images.device.type != "cpu":  # programs there are made for a number of images
                for number in (1, max_batch):
                    detector.prepare(repeated(images, number), cache_dir=cache_dir)
        self._expected = self.score(example)
        for refusal in self._expected.refused.values():
            if isinstance(refusal, ReplicaError):
                raise refusal

    def score(self, images: np.ndarray) -> Scored:
        """Scores a batch, (N, 3, H, W). An image that cannot be scored is refused, and the others are not."""
        try:
            return self._score(images)
        except Exception as error:
            if len(images) == 1:
                nothing = {name: np.full(1, np.nan) for name in score_names(self._detector)}
                return Scored(np.zeros(1, np.int64), nothing, {0: _refusal(error)})
        each = [self.score(images[place : place + 1]) for place in range(len(images))]
        return Scored(
            np.concatenate([one.predicted for one in each]),
            {name: np.concatenate([one.scores[name] for one in each]) for name in score_names(self._detector)},
            {place: one.refused[0] for place, one in enumerate(each) if one.refused},
        )

    def check(self) -> None:
        """Raises RuntimeError where the example's scores are not what they were: this process cannot be trusted."""
        found = self.score(self._example)
        for name, expected in self._expected.scores.items():
            if not np.allclose(found.scores[name], expected, rtol=1e-4, atol=0, equal_nan=True):
                raise RuntimeError(f"{name} of the images that the replica was prepared on has changed since")

    def _score(self, images: np.ndarray) -> Scored:
        out = self._detector.score(self._input(images))
        scores = out.scores if isinstance(out, GaiaScores) else {score_names(self._detector)[0]: out.score}
        return Scored(
            out.logits.argmax(dim=1).cpu().numpy(),
            {name: score.double().cpu().numpy() for name, score in scores.items()},
        )

    def _input(self, images: np.ndarray) -> Tensor:
        # A copy: what comes from another process lies in memory that cannot be written to.
        return model_input(self._detector.model, torch.from_numpy(np.array(images)))


def _refusal(error: Exception) -> RequestError:
    """What is answered in the place of a score: what GAIA cannot score is the image's fault, all else the replica's."""
    if isinstance(error, (InputError, NonFiniteError)):
        return RequestError(first_line(error), 422)
    return ReplicaError(f"the replica failed: {type(error).__name__}: {first_line(error)}")
