"""Whether scores still look like those of the calibration: the share that is out of distribution, the distance of the
recent ones from the calibration's, and since when it is too large.
"""

import hashlib
import json
import math
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from gaia_fast import extras
from gaia_fast._version import __version__
from gaia_fast.calibration import QUANTILES, Calibration, checked, decide
from gaia_fast.errors import ArgumentError, CalibrationError, first_line
from gaia_fast.outputs import GaiaOutput, GaiaScores
from gaia_fast.scorers import JointScorer, Scorer

REPORTED = (0.05, 0.25, 0.5, 0.75, 0.95)

# Of the sketches: ranks to 0.7 % (at 99 % confidence), exact up to 400 scores, 11 kB at most.
_SKETCH_K = 400

_MAGIC = b"gaia_fast drift monitor\n"
_FORMAT = 1
_DIGEST = 16


@dataclass(frozen=True)
class DriftReport:
    """What a monitor saw in its window, beside the calibration.

    Attributes:
        window: how many seconds back it reaches.
        images: how many images were scored in it.
        total: how many since the monitor was made.
        not_scored: how many of `images` have no score (NaN).
        ood_share: the share of `images` that is out of distribution, those without a score included; None without a
            threshold, or without images.
        expected_ood_share: the share of the calibration images that is; None where one of both is not known.
        quantiles: by share, the smallest recent score that so large a share of them is not above, to the sketch's
            error; empty where there are none.
        calibration_quantiles: the same of the calibration scores; empty without calibration.
        distance: of the distributions of recent and calibration scores, as Kolmogorov and Smirnov measure it: the
            largest difference of their cumulative distribution functions, in [0, 1]; None where one of both is empty.
        critical_distance: what it must be above to be called drift.
        drifted: whether it is.
        since: the time from which on it has been, without a break, in seconds since 1970; None where it is not.
    """

    window: float
    images: int
    total: int
    not_scored: int
    ood_share: float | None
    expected_ood_share: float | None
    quantiles: dict[float, float]
    calibration_quantiles: dict[float, float]
    distance: float | None
    critical_distance: float | None
    drifted: bool
    since: float | None

    def as_dict(self) -> dict[str, Any]:
        """Returns all of it as JSON takes it; the quantiles' shares are then strings, such as "0.05".

        Example:
            >>> import json
            >>> from gaia_fast import DriftMonitor
            >>> monitor = DriftMonitor(None, threshold=2.5)
            >>> monitor.update([1.0, 2.0, 3.0])
            >>> json.loads(json.dumps(monitor.report().as_dict()))["quantiles"]["0.5"]
            2.0
        """
        named = {
            name: {str(share): value for share, value in getattr(self, name).items()}
            for name in ("quantiles", "calibration_quantiles")
        }
        return {**asdict(self), **named}

    def __str__(self) -> str:
        parts = [f"{self.images:,} images in the last {self.window:g} s ({self.total:,} in all)"]
        if self.ood_share is not None:
            expected = "" if self.expected_ood_share is None else f" ({self.expected_ood_share:.1%} expected)"
            parts.append(f"{self.ood_share:.1%} out of distribution{expected}")
        if self.not_scored:
            parts.append(f"{self.not_scored:,} not scored")
        first = ", ".join(parts)
        if self.distance is None or self.critical_distance is None:
            return first
        compared = f"distance from the calibration {self.distance:.3f}, critical {self.critical_distance:.3f}"
        if self.since is None:
            return f"{first}\nno drift: {compared}"
        since = datetime.fromtimestamp(self.since, timezone.utc)
        return f"{first}\ndrifted since {since:%Y-%m-%d %H:%M:%S} UTC: {compared}"


class DriftMonitor:
    """Takes scores as they come, in fixed memory, and tells whether they still look like those of the calibration.

    Images are counted exactly, and decided upon as detectors do; the distribution of the scores is sketched (KLL, of
    Apache DataSketches: `pip install 'gaia-fast[monitor]'`). Time is cut into buckets of window / resolution seconds,
    which begin at the same times in every process: monitors of several workers are merged bucket by bucket. The window
    is the bucket that is open and the `resolution` - 1 before it.

    The window has *drifted* where the Kolmogorov-Smirnov distance of its n scores from the m of the calibration is
    above `sqrt(ln(2 / alpha) / 2 * (1 / n + 1 / m))`, plus what the sketch and the 1001 quantiles of the calibration
    leave unknown. By chance, of independent images like those of the calibration, it is with probability `alpha` at
    most. Each window is a new test, and those that overlap are nearly the same one. Many images make small differences
    significant: `distance` says how large it is. What changed, the images or the model, scores do not tell.

    *Since* is the begin of the first bucket at whose end the window had drifted, as it has without a break up to now.
    Buckets without images break nothing, but a whole window without images does. It reaches back as far as the drift
    does, beyond the window, too.

    Safe to use from many threads. Copied, pickled, and sent as bytes (`to_bytes`), with all that it has seen.

    Args:
        source: a calibrated detector, or a file that was loaded; or the `Calibration` itself, or None for none, with a
            threshold. What it is calibrated to later does not concern the monitor.
        threshold: scores above it are out of distribution; None for none. A detector has its own.
        score: of a detector of several scores (`Gaia`), the name of the one to watch: make a monitor for each.
        window: how many seconds back a report reaches.
        resolution: how many buckets there are in a window.
        alpha: the probability of a false alarm, in (0, 1).
        clock: gives the time in seconds since 1970.

    Attributes:
        calibration, threshold, score, window, resolution, alpha: as given, or the detector's; not to be changed.

    Raises:
        CalibrationError: there is neither a threshold nor a calibration.
        ArgumentError: an argument is none of those allowed. BackendError: datasketches is not installed.

    Example:
        >>> import torch
        >>> from gaia_fast import DriftMonitor, GaiaZ
        >>> from gaia_fast.data.digits import held_out_digits
        >>> from gaia_fast.models import digits_resnet
        >>> model, (x, labels) = digits_resnet(pretrained=True), held_out_digits()
        >>> detector = GaiaZ(model).calibrate(x[:400])
        >>> monitor = DriftMonitor(detector)
        >>> monitor.update(detector.score(x[400:]))
        >>> monitor.report().drifted
        False
        >>> monitor.update(detector.score(torch.rand_like(x)))
        >>> report = monitor.report()
        >>> report.drifted, report.ood_share > report.expected_ood_share
        (True, True)
    """

    def __init__(
        self,
        source: Scorer | JointScorer | Calibration | None,
        threshold: float | None = None,
        *,
        score: str | None = None,
        window: float = 3600.0,
        resolution: int = 60,
        alpha: float = 0.001,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.calibration, self.threshold, self.score = _watched(source, threshold, score)
        if not _is_number(window) or not 0 < window < math.inf:
            raise ArgumentError(f"window={window!r} is not a number of seconds; give one above 0")
        if not isinstance(resolution, int) or isinstance(resolution, bool) or resolution < 1:
            raise ArgumentError(f"resolution={resolution!r} is not a number of buckets; give a whole one, 1 or more")
        if not _is_number(alpha) or not 0 < alpha < 1:
            raise ArgumentError(f"alpha={alpha!r} is not a probability of false alarms; give a number between 0 and 1")
        self.window, self.resolution, self.alpha = float(window), resolution, float(alpha)
        self._clock = clock
        self._reference = None if self.calibration is None else _Reference(self.calibration)
        self._new_sketch = _sketches().kll_doubles_sketch
        self._lock = threading.Lock()
        self._total = 0
        self._now = self._bucket_of_now()
        # Those of two windows: as many as the windows that end within the last one are made of.
        self._buckets: dict[int, _Bucket] = {}
        self._drifted: dict[int, bool] = {}  # of windows by the buckets they end with, closed ones; found when asked
        self._since: int | None = None  # the first bucket of the drift that reaches up to the last window's begin

    def update(self, scores: Any) -> None:
        """Takes in the scores of a batch, now.

        Args:
            scores: (N,) tensor on any device, array or sequence of numbers, N may be 0; or what `score` of the detector
                returned. NaN, an image that an exported file could not score, counts as out of distribution and as
                `not_scored`.

        Raises:
            ArgumentError: scores of another shape, infinite, of another detector or under another threshold; none of
                them is counted.

        Example:
            >>> from gaia_fast import DriftMonitor
            >>> monitor = DriftMonitor(None, threshold=2.5)
            >>> monitor.update([1.0, 2.0, 3.0, float("nan")])
            >>> monitor.report().ood_share
            0.5
        """
        given = self._scores_of(scores)
        values = given.double().numpy()
        known = values[~np.isnan(values)]
        if np.isinf(known).any():
            raise ArgumentError(
                f"{int(np.isinf(known).sum())} of {values.size} scores are infinite, which no image's is"
            )
        ood = 0 if self.threshold is None else int(decide(given, self.threshold).sum())
        with self._lock:
            self._advance()
            self._total += values.size
            self._bucket(self._now).add(values.size, ood, known)

    def report(self) -> DriftReport:
        """Returns what was seen in the window, beside the calibration.

        Example:
            >>> import numpy as np
            >>> from gaia_fast import DriftMonitor
            >>> from gaia_fast.calibration import Calibration
            >>> monitor = DriftMonitor(Calibration.of(np.arange(1000.0), id_tpr=0.95), threshold=949.0)
            >>> monitor.update(np.arange(500.0, 1000.0, 2.0))
            >>> report = monitor.report()
            >>> report.drifted, report.distance, report.ood_share
            (True, 0.5, 0.1)
            >>> print(report)  # doctest: +ELLIPSIS
            250 images in the last 3600 s (250 in all), 10.0% out of distribution (5.0% expected)
            drifted since ... UTC: distance from the calibration 0.500, critical 0.138
        """
        with self._lock:
            self._advance()
            recent = self._ending_with(self._now)
            distance, critical = self._distance(recent)
            drifted = distance is not None and distance > critical
            since = self._first_drifted() * self._bucket_length if drifted else None
            total = self._total
        sketch, calibration = recent.sketch, self.calibration
        found = [] if sketch.is_empty() else sketch.get_quantiles(list(REPORTED), inclusive=True)
        expected = None
        if calibration is not None and self.threshold is not None:
            expected = 1 - calibration.accepted_by(self.threshold)
        return DriftReport(
            self.window,
            recent.images,
            total,
            recent.not_scored,
            recent.ood / recent.images if recent.images and self.threshold is not None else None,
            expected,
            dict(zip(REPORTED, found, strict=False)),
            {} if calibration is None else {q: float(calibration.quantiles[round(q * QUANTILES)]) for q in REPORTED},
            distance,
            None if distance is None else critical,
            drifted,
            since,
        )

    def merge(self, other: "DriftMonitor") -> Self:
        """Adds what another monitor saw, of another worker on the same detector; that one stays as it is.

        The order of merging does not matter, but to the sketches' error. What was seen in the last window decides
        again, all together, since when it drifts; before that, what each had found by itself: the earliest counts.

        Returns:
            Itself.

        Raises:
            ArgumentError: another calibration, threshold, score, window, resolution or alpha.

        Example:
            >>> from gaia_fast import DriftMonitor
            >>> workers = [DriftMonitor(None, threshold=2.5) for _ in range(2)]
            >>> workers[0].update([1.0, 2.0, 3.0])
            >>> workers[1].update([1.0])
            >>> workers[0].copy().merge(workers[1]).report().ood_share
            0.25
        """
        if not isinstance(other, DriftMonitor):
            raise ArgumentError(f"a {type(other).__name__} is no DriftMonitor; give another worker's")
        if different := self._different(other):
            raise ArgumentError(
                f"the monitors differ in {' and '.join(different)}; merge those of workers on one detector, with "
                "the same arguments"
            )
        seen = other.copy()  # two that are merged into each other must not wait for each other
        with self._lock:
            self._advance(seen._now)
            seen._advance(self._now)
            for index, bucket in seen._buckets.items():
                self._bucket(index).merge(bucket)
            self._since = min((each for each in (self._since, seen._since) if each is not None), default=None)
            self._total += seen._total
            self._drifted.clear()
        return self

    def copy(self) -> Self:
        """Returns another one that has seen the same; what either sees from now on does not concern the other.

        Example:
            >>> from gaia_fast import DriftMonitor
            >>> monitor = DriftMonitor(None, threshold=2.5)
            >>> other = monitor.copy()
            >>> other.update([1.0])
            >>> monitor.report().total, other.report().total
            (0, 1)
        """
        return self.from_bytes(self.to_bytes(), clock=self._clock)

    def to_bytes(self) -> bytes:
        """Returns all that it has seen, and is, but the clock, for `from_bytes`: 1.4 MB at most with 60 buckets.

        Example:
            >>> from gaia_fast import DriftMonitor
            >>> monitor = DriftMonitor(None, threshold=2.5)
            >>> monitor.update([1.0, 2.0])
            >>> DriftMonitor.from_bytes(monitor.to_bytes()).report() == monitor.report()
            True
        """
        calibration = self.calibration
        with self._lock:
            sketches = [each.sketch.serialize() for each in self._buckets.values()]
            header = {
                "format": _FORMAT,
                "version": __version__,
                "threshold": self.threshold,
                "score": self.score,
                "window": self.window,
                "resolution": self.resolution,
                "alpha": self.alpha,
                "calibration": None if calibration is None else [calibration.images, calibration.id_tpr],
                "total": self._total,
                "now": self._now,
                "since": self._since,
                "buckets": [
                    [index, each.images, each.ood, each.not_scored, len(sketch)]
                    for (index, each), sketch in zip(self._buckets.items(), sketches, strict=True)
                ],
            }
        quantiles = b"" if calibration is None else calibration.quantiles.numpy().astype("<f8").tobytes()
        body = b"".join((json.dumps(header, allow_nan=False).encode(), b"\n", quantiles, *sketches))
        return _MAGIC + _digest(body) + body

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview, *, clock: Callable[[], float] = time.time) -> Self:
        """Returns the monitor that `to_bytes` was called of. Nothing is unpickled. A checksum tells damage, not malice,
        and the library that reads the sketches trusts them: take bytes of your own workers alone.

        Raises:
            ArgumentError: bytes that are damaged, cut short, of another kind or of a later release.
        """
        start = len(_MAGIC) + _DIGEST
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise ArgumentError(
                f"a {type(data).__name__} is not the bytes of a drift monitor; give what to_bytes() returned"
            )
        data = bytes(data)
        if not data.startswith(_MAGIC) or data[len(_MAGIC) : start] != _digest(data[start:]):
            raise ArgumentError(
                "these are not the bytes of a drift monitor, or not all as they were; give what to_bytes() returned"
            )
        try:
            line, _, rest = data[start:].partition(b"\n")
            header = json.loads(line)
            if header["format"] == _FORMAT:
                return cls._read(header, rest, clock)
        # JSON, numpy and the sketches report what does not fit each in their own way.
        except Exception as error:
            raise ArgumentError(
                f"a drift monitor cannot be read ({type(error).__name__}: {first_line(error)}); give what to_bytes() "
                "returned"
            ) from error
        raise ArgumentError(
            f"a drift monitor was written by gaia_fast {header['version']}, in a form that {__version__} does not "
            "know; install that, or a later release"
        )

    @classmethod
    def _read(cls, header: dict[str, Any], rest: bytes, clock: Callable[[], float]) -> Self:
        calibration, at = None, 0
        if header["calibration"] is not None:
            images, id_tpr = header["calibration"]
            at = 8 * (QUANTILES + 1)
            quantiles = np.frombuffer(rest[:at], dtype="<f8").astype(np.float64)
            calibration = Calibration(images, id_tpr, torch.from_numpy(quantiles))
        settings = {name: header[name] for name in ("score", "window", "resolution", "alpha")}
        read = cls(calibration, header["threshold"], clock=clock, **settings)
        read._total, read._now, read._since = header["total"], header["now"], header["since"]
        for index, images, ood, not_scored, length in header["buckets"]:
            sketch = read._new_sketch.deserialize(rest[at : at + length])
            read._buckets[index] = _Bucket(sketch, images, ood, not_scored)
            at += length
        if at != len(rest):
            raise ValueError(f"there are {len(rest) - at} bytes more than it says")
        return read

    def __getstate__(self) -> dict[str, Any]:
        return {"bytes": self.to_bytes(), "clock": self._clock}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(vars(self.from_bytes(state["bytes"], clock=state["clock"])))

    def __repr__(self) -> str:
        named = "" if self.score is None else f"score={self.score!r}, "
        calibrated = "no calibration" if self.calibration is None else f"{self.calibration.images} calibration images"
        return (
            f"{type(self).__name__}({named}threshold={self.threshold}, {calibrated}, window={self.window:g}, "
            f"resolution={self.resolution}, alpha={self.alpha:g})"
        )

    @property
    def _bucket_length(self) -> float:
        return self.window / self.resolution

    def _bucket_of_now(self) -> int:
        return math.floor(self._clock() / self._bucket_length)

    def _scores_of(self, given: Any) -> Tensor:
        """(N,) tensor on the CPU."""
        if isinstance(given, GaiaScores):
            if self.score not in given.scores:
                raise ArgumentError(
                    f"of the scores {', '.join(given.scores)} none is that of the monitor, {self.score!r}; make one "
                    "for each with DriftMonitor(detector, score=...)"
                )
            decided_by, given = given.thresholds.get(self.score), given.scores[self.score]
        elif isinstance(given, GaiaOutput):
            decided_by, given = given.threshold, given.score
        else:
            decided_by = None
        if decided_by is not None and self.threshold is not None and decided_by != self.threshold:
            raise ArgumentError(
                f"these scores were decided upon by the threshold {decided_by}, and the monitor has {self.threshold}; "
                "make another monitor where a detector is calibrated again"
            )
        try:
            scores = given.detach().cpu() if isinstance(given, Tensor) else torch.from_numpy(np.array(given))
        except (TypeError, ValueError, RuntimeError) as error:
            raise ArgumentError(
                f"a {type(given).__name__} is not the scores of images ({first_line(error)}); give (N,) numbers"
            ) from error
        if scores.ndim != 1 or scores.is_complex():
            raise ArgumentError(f"scores are (N,) real numbers, got shape {tuple(scores.shape)} of {scores.dtype}")
        return scores

    def _different(self, other: "DriftMonitor") -> list[str]:
        named = ("threshold", "score", "window", "resolution", "alpha")
        different = [name for name in named if getattr(self, name) != getattr(other, name)]
        mine, others = self.calibration, other.calibration
        same = mine is others or (
            mine is not None
            and others is not None
            and (mine.images, mine.id_tpr) == (others.images, others.id_tpr)
            and torch.equal(mine.quantiles, others.quantiles)
        )
        return different if same else ["calibration", *different]

    def _bucket(self, index: int) -> "_Bucket":
        found = self._buckets.get(index)
        if found is None:
            found = self._buckets[index] = _Bucket(self._new_sketch(_SKETCH_K))
        return found

    def _advance(self, *others: int) -> None:
        """Opens the bucket of now; a clock that was set back leaves the newest open. What no report looks at goes."""
        now = max(self._bucket_of_now(), self._now, *others)
        if now == self._now:
            return
        remain = now - self.resolution  # the windows that end with it and before are no longer asked for
        if remain >= self._now + self.resolution:  # there was one without images
            self._since = None
        else:
            for index in range(self._now - self.resolution + 1, remain + 1):
                if not self._window_drifted(index):
                    self._since = None
                elif self._since is None:
                    self._since = index
        self._now = now
        self._buckets = {i: each for i, each in self._buckets.items() if i > remain - self.resolution + 1}
        self._drifted = {i: each for i, each in self._drifted.items() if i > remain}

    def _ending_with(self, index: int) -> "_Bucket":
        """What was seen in the window that ends with a bucket."""
        seen = _Bucket(self._new_sketch(_SKETCH_K))
        for each in range(index - self.resolution + 1, index + 1):
            if each in self._buckets:
                seen.merge(self._buckets[each])
        return seen

    def _distance(self, seen: "_Bucket") -> tuple[float | None, float]:
        if self._reference is None or seen.sketch.is_empty():
            return None, math.inf
        return self._reference.distance(seen.sketch), self._reference.critical_distance(seen.sketch, self.alpha)

    def _window_drifted(self, index: int) -> bool:
        """Whether the window that ends with a closed bucket had drifted."""
        if index not in self._drifted:
            distance, critical = self._distance(self._ending_with(index))
            self._drifted[index] = distance is not None and distance > critical
        return self._drifted[index]

    def _first_drifted(self) -> int:
        """The bucket since which it has drifted, where it has now."""
        first = self._now
        for index in range(self._now - 1, self._now - self.resolution, -1):
            if not self._window_drifted(index):
                return first
            first = index
        return first if self._since is None else self._since


@dataclass
class _Bucket:
    """What was seen in a stretch of time; `sketch` is of all scores that are numbers."""

    sketch: Any
    images: int = 0
    ood: int = 0
    not_scored: int = 0

    def add(self, images: int, ood: int, known: np.ndarray) -> None:
        self.images += images
        self.ood += ood
        self.not_scored += images - known.size
        self.sketch.update(known)

    def merge(self, other: "_Bucket") -> None:
        self.images += other.images
        self.ood += other.ood
        self.not_scored += other.not_scored
        self.sketch.merge(other.sketch)


class _Reference:
    """The distribution of the calibration scores, to which others are compared."""

    def __init__(self, calibration: Calibration) -> None:
        self._calibration = calibration
        self._values, self._shares = calibration.cdf()
        # At each value, and just before it: where many scores are one number, the functions may differ there alone.
        before = np.concatenate([[0.0], self._shares[:-1]])
        points = np.concatenate([np.nextafter(self._values, -math.inf), self._values])
        points, first = np.unique(points, return_index=True)
        self._points: list[float] = points.tolist()
        self._cdf = np.concatenate([before, self._shares])[first]

    def distance(self, sketch: Any) -> float:
        """The largest difference of the cumulative distribution functions, that of some scores' sketch and this."""
        found = np.array(sketch.get_cdf(self._points, inclusive=True)[:-1])
        return float(np.abs(found - self._cdf).max())

    def critical_distance(self, sketch: Any, alpha: float) -> float:
        """What the distance is above with probability `alpha` at most where both are samples of one distribution."""
        images = self._calibration.images
        by_chance = math.sqrt(math.log(2 / alpha) / 2 * (1 / sketch.n + 1 / images))
        unknown = 1 / QUANTILES if images > QUANTILES else 0.0
        # While a sketch holds every score, it is exact.
        return by_chance + unknown + (sketch.normalized_rank_error(False) if sketch.is_estimation_mode() else 0.0)


def _watched(
    source: Scorer | JointScorer | Calibration | None, threshold: float | None, score: str | None
) -> tuple[Calibration | None, float | None, str | None]:
    """The calibration, threshold and name of the score that is watched."""
    calibration: Any = source
    if isinstance(source, (Scorer, JointScorer)):
        if threshold is not None:
            raise ArgumentError("a detector has its own threshold; leave it out, or give the detector's calibration")
        if isinstance(source, Scorer):
            if score is not None:
                raise ArgumentError(f"the detector has one score, which has no name; leave score={score!r} out")
            calibration, threshold = source.calibration, source.threshold
        else:
            if score is None and len(source.scores) == 1:
                (score,) = source.scores
            if score not in source.scores:
                raise ArgumentError(
                    f"the detector has no score {score!r}; make a monitor for each with DriftMonitor(detector, "
                    f"score=...), which is {' or '.join(map(repr, source.scores))}"
                )
            calibration, threshold = source.calibrations.get(score), source.thresholds.get(score)
    if calibration is not None:
        _check(calibration)
    if threshold is None and calibration is None:
        raise CalibrationError(
            "there is neither a threshold nor a calibration to compare scores with: call calibrate(...) with "
            "in-distribution images or scores first"
        )
    return calibration, None if threshold is None else checked(threshold), score


def _check(calibration: Any) -> None:
    if not isinstance(calibration, Calibration):
        raise ArgumentError(
            f"a {type(calibration).__name__} is neither a detector nor a calibration; give one that was calibrated"
        )
    quantiles = calibration.quantiles
    ascend = quantiles.shape == (QUANTILES + 1,) and quantiles.isfinite().all() and (quantiles.diff() >= 0).all()
    if calibration.images < 1 or not ascend:
        raise ArgumentError("the calibration is not one that calibrate(...) made; calibrate again")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _sketches() -> Any:
    return extras.load("datasketches", "monitor", "DriftMonitor")


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_DIGEST).digest()
