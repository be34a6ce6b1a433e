"""What a score costs beside the plain prediction, measured where it is asked. Prints nothing."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gaia_fast.detector import GaiaA, GaiaZ


@dataclass(frozen=True)
class Timing:
    """What scores cost beside the plain prediction, measured here and now.

    Attributes:
        forward_ms: median time of the model's plain forward pass under no_grad.
        ratios: by method, the median over the repeats of prediction and score together over the forward pass alone.
        images: size of the batch.
        repeats: number of interleaved repeats.
        threads: number of threads that PyTorch used.
    """

    forward_ms: float
    ratios: dict[str, float]
    images: int
    repeats: int
    threads: int


def measure_times(detectors: Mapping[str, GaiaA | GaiaZ], x: Tensor, repeats: int = 11) -> Timing:
    """Times the plain forward pass and each detector in turns, so that a slow moment hits all of them; CPU only.

    Args:
        detectors: at least one, by method; all of the same model.
        x: (N, C, H, W) images, ready for the model.
        repeats: number of turns, after one that warms up.
    """
    model = next(iter(detectors.values())).model

    def forward() -> None:
        with torch.no_grad():
            model(x)

    forward_times, ratios = [], {method: [] for method in detectors}  # type: ignore[var-annotated]
    for turn in range(repeats + 1):
        plain = _seconds(forward)
        own = {method: _seconds(lambda: detector.score(x)) for method, detector in detectors.items()}  # noqa: B023
        if turn:
            forward_times.append(plain)
            for method, seconds in own.items():
                ratios[method].append(seconds / plain)
    return Timing(
        forward_ms=1000 * statistics.median(forward_times),
        ratios={method: statistics.median(each) for method, each in ratios.items()},
        images=x.shape[0],
        repeats=repeats,
        threads=torch.get_num_threads(),
    )


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
