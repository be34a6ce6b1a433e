"""Scores of a network on image sets, by every method; what was computed before is read from the cache."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn

from gaia_fast.baselines import BASELINES, Representation, SplitNetwork
from gaia_fast.baselines.methods import FitImages, Scorer
from gaia_fast.data import Batch, ImageSource
from gaia_fast.detector import GaiaA, GaiaZ
from gaia_fast.errors import DataError, LayerError
from gaia_fast.evaluation.image_sets import make_detector, model_input
from gaia_fast.inspection.stages import LAST, stages
from gaia_fast.measurement import FeatureMap
from gaia_fast.options import EngineOption, FusionOption
from gaia_fast.reproduction.networks import Network
from gaia_fast.reproduction.score_cache import Arrays, ScoreCache, model_digest

NORMS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)  # orders p of the norm of Lambda that are kept (Fig. 4)
_BASELINES_CODE = ("baselines", "data", "models", "inspection")  # what decides about scores that are not GAIA's
_AT_ONCE = 64  # images whose features are scored together: some methods take a number for each class and feature
_PART = 500  # images under one key: what is lost when a run is stopped


@dataclass(frozen=True)
class GaiaScore:
    """One of the paper's scores.

    Attributes:
        method: "gaia-z" or "gaia-a".
        fusion: of GAIA-A.
        layers: names of modules, of stages ("HxW", "last_stage"); None for all layers.
        p: order of the norm, one of `NORMS`.
    """

    method: str
    fusion: FusionOption = "division"
    layers: Sequence[str] | None = None
    p: float = 2.0


def places_of(maps: Sequence[FeatureMap], layers: Sequence[str] | None) -> list[int]:
    """The places of the maps that layers stand for, as `GaiaScore.layers` has them.

    Raises:
        LayerError: there is no map of such a name.

    Example:
        >>> maps = [FeatureMap("a.bn1", 8, 4, 4), FeatureMap("a.bn2", 8, 2, 2), FeatureMap("b.bn", 8, 2, 2)]
        >>> places_of(maps, ["a"]), places_of(maps, ["last_stage"]), places_of(maps, ["4x4"])
        ([0, 1], [1, 2], [0])
    """
    if layers is None:
        return list(range(len(maps)))
    sizes = stages(maps)
    by_size = dict(sizes)
    found: set[int] = set()
    for name in layers:
        if name in LAST:
            those = [place for _, places in sizes[-LAST[name] :] for place in places]
        elif name in by_size:
            those = list(by_size[name])
        else:
            those = [i for i, each in enumerate(maps) if each.layer == name or each.layer.startswith(f"{name}.")]
        if not those:
            raise LayerError(f"no inspected map is of {name!r}; there are {', '.join(each.name for each in maps)}")
        found.update(those)
    return sorted(found)


class NetworkScores:
    """The scores of one network.

    Args:
        network: what it is.
        model: it, trained and in eval mode.
        example: (N, C, H, W) images, on which the head is found and detectors are prepared.
        fit: the images that methods are fitted on; None for none.
        cache: where scores are kept.
        engine: of GAIA's detectors.
        batch_size: images that go through the network together.

    Attributes:
        advance: called with a number of images whenever these have been through the network, or were in the cache.
        seconds: by what was done, the time that it took when it was computed.
        unreadable: "set: name: reason" of each image that was left out.
        set_names: what sets are called in that.
    """

    def __init__(
        self,
        network: Network,
        model: nn.Module,
        example: Tensor,
        fit: ImageSource | None,
        cache: ScoreCache,
        engine: EngineOption = "auto",
        batch_size: int = 50,
    ) -> None:
        self.network, self.model, self.fit = network, model, fit
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.unreadable: dict[str, None] = {}
        self.set_names: dict[ImageSource, str] = {}
        self.advance: Callable[[int], None] = lambda images: None
        self._cache, self._engine, self._batch_size = cache, engine, batch_size
        self._example = model_input(model, example)
        self._digest = model_digest(model)
        self._detectors: dict[tuple[str, str], GaiaA | GaiaZ] = {}
        self._scorers: dict[str, Scorer] = {}
        self._within = 0.0  # seconds of what was timed in what is being timed
        self._device = str(self._example.device)
        self._known: dict[tuple[str, str, ImageSource], Arrays] = {}

    @cached_property
    def split(self) -> SplitNetwork:
        """The network, split at its head."""
        return SplitNetwork(self.model, self._example)

    @cached_property
    def maps(self) -> Sequence[FeatureMap]:
        """The inspected maps."""
        return self.detector("gaia-z").plan(self._example[:1]).maps

    def representation(self, source: ImageSource) -> tuple[Representation, np.ndarray | None]:
        """Logits and features of a set, and its labels."""

        def compute(batches: Iterable[Batch]) -> Arrays:
            found, labels = [], []
            for batch in batches:
                found.append(self.split.represent(model_input(self.model, batch.images)))
                labels.append(batch.labels)
            arrays = {
                "logits": torch.cat([each.logits for each in found]).numpy(),
                "features": torch.cat([each.features for each in found]).numpy(),
            }
            if all(each is not None for each in labels):
                arrays["labels"] = torch.cat([each for each in labels if each is not None]).numpy()
            return arrays

        arrays = self._by_parts("forward pass", {}, source, compute)
        logits, features = torch.from_numpy(arrays["logits"]), torch.from_numpy(arrays["features"])
        return Representation(logits, features), arrays.get("labels")

    def baseline(self, name: str, source: ImageSource) -> np.ndarray:
        """The (N,) scores of a baseline, by its name.

        Raises:
            GaiaError: as `Baseline.scorer`.
        """
        method = BASELINES[name]
        if not method.of_images:
            scorer = self._scorer(name)  # before a pass over the images
            found, _ = self.representation(source)
            parts = zip(found.logits.split(_AT_ONCE), found.features.split(_AT_ONCE), strict=True)
            with self._timing(name):
                return torch.cat([scorer(Representation(*part)) for part in parts]).double().numpy()

        def compute(batches: Iterable[Batch]) -> Arrays:
            scorer = self._scorer(name)
            found = [scorer(model_input(self.model, batch.images)).double() for batch in batches]
            return {"scores": torch.cat(found).numpy()}

        options: dict[str, object] = {"options": repr(self.network.hyperparameters)}
        if method.fitted and self.fit is not None:
            options["fit"] = self.fit.digest()
        return self._by_parts(name, options, source, compute)["scores"]

    def gaia(self, score: GaiaScore, source: ImageSource) -> np.ndarray:
        """The (N,) scores of GAIA: the p-norm of the rows of Lambda that `layers` stand for (Eq. 12).

        Raises:
            GaiaError: as the detectors'.
        """
        places = [0] if score.fusion == "output" else places_of(self.maps, score.layers)
        rows = self._norms(score, source)[NORMS.index(score.p)]
        return np.linalg.norm(rows[:, places], ord=score.p, axis=1)

    def abnormality(self, score: GaiaScore, images: Tensor) -> list[np.ndarray]:
        """E[eps | A^kl] of each layer, (N, K_l)."""
        matrix = self.detector(score.method, score.fusion).score(images, return_matrix=True).matrix
        assert matrix is not None
        return [matrix[:, place, : each.channels].double().cpu().numpy() for place, each in enumerate(self.maps)]

    def detector(self, method: str, fusion: FusionOption = "division") -> GaiaA | GaiaZ:
        """GAIA over all layers, prepared."""
        if (method, fusion) not in self._detectors:
            made = make_detector(method, self.model, engine=self._engine, fusion=fusion)
            if self._engine in ("auto", "compiled"):
                with self._timing(f"{_named(method, fusion)}, compiling"):
                    made.prepare(self._example, tune="model")  # seconds less; what a score costs is not measured here
            self._detectors[method, fusion] = made
        return self._detectors[method, fusion]

    def on_images(self, name: str) -> Callable[[Tensor], Tensor]:
        """What gives a baseline's scores of images, the forward pass included."""
        scorer = self._scorer(name)
        return scorer if BASELINES[name].of_images else lambda images: scorer(self.split.represent(images))

    def detector_of(self, score: GaiaScore, images: Tensor) -> GaiaA | GaiaZ:
        """GAIA over the layers of a score alone, prepared for images like these and for one of them."""
        places = places_of(self.maps, score.layers)
        layers = None if score.layers is None else list(dict.fromkeys(self.maps[place].layer for place in places))
        made = make_detector(score.method, self.model, layers=layers, engine=self._engine, fusion=score.fusion)
        if self._engine in ("auto", "compiled"):
            made.prepare(images).prepare(images[:1])
        return made

    def _norms(self, score: GaiaScore, source: ImageSource) -> np.ndarray:
        """(P, N, L): the norms of order `NORMS` of the rows of Lambda."""

        def compute(batches: Iterable[Batch]) -> Arrays:
            detector = self.detector(score.method, score.fusion)
            found = []
            for batch in batches:
                matrix = detector.score(model_input(self.model, batch.images), return_matrix=True).matrix
                assert matrix is not None
                matrix = matrix.double()
                found.append(torch.stack([torch.linalg.vector_norm(matrix, p, dim=2) for p in NORMS]).cpu())
            return {"norms": torch.cat(found, dim=1).numpy().swapaxes(0, 1)}

        what = _named(score.method, score.fusion)
        arrays = self._by_parts(what, {"engine": self._engine, "norms": NORMS}, source, compute, ())
        return arrays["norms"].swapaxes(0, 1)

    def _scorer(self, name: str) -> Scorer:
        if name not in self._scorers:
            method = BASELINES[name]
            fit = self._fit_images if method.fitted else None
            with self._timing(f"{name}, fitting"):
                self._scorers[name] = method.scorer(self.split, self.network.hyperparameters, fit)
        return self._scorers[name]

    @property
    def fitted_on(self) -> int:
        """The number of images that methods were fitted on so far."""
        fit = self.__dict__.get("_fit_images")
        return 0 if fit is None else len(fit.labels)

    @cached_property
    def _fit_images(self) -> FitImages | None:
        if self.fit is None:
            return None
        found, labels = self.representation(self.fit)
        if labels is None:
            raise DataError("the images to fit on have no labels")
        return FitImages(self.fit, torch.from_numpy(labels), found)

    def _by_parts(
        self,
        what: str,
        options: dict[str, object],
        source: ImageSource,
        compute: Callable[[Iterable[Batch]], Arrays],
        code: Sequence[str] = _BASELINES_CODE,
    ) -> Arrays:
        """What `compute` gives for all images of a source, part by part, each kept in the cache."""
        asked = (what, repr(options), source)
        if asked in self._known:
            return self._known[asked]
        found = []
        for start in range(0, len(source), _PART):
            part = source.part(start, start + _PART)
            key = {"what": what, **options, "model": self._digest, "device": self._device, "images": part.digest()}
            kept = self._cache.get(key, lambda part=part: self._timed(part, compute), code)  # type: ignore[misc]
            self.seconds[what] += float(kept.pop("seconds"))
            where = f"{self.set_names[source]}: " if source in self.set_names else ""
            self.unreadable.update(dict.fromkeys(where + each for each in kept.pop("unreadable").tolist()))
            if kept:
                found.append(kept)
            self.advance(len(part))
        if not found:
            raise DataError(f"none of the {len(source)} images can be read")
        self._known[asked] = {name: np.concatenate([each[name] for each in found]) for name in found[0]}
        return self._known[asked]

    def _timed(self, part: ImageSource, compute: Callable[[Iterable[Batch]], Arrays]) -> Arrays:
        spent: defaultdict[str, float] = defaultdict(float)
        with self._timing("", spent):
            batches = part.batches(self._batch_size)
            first = next(batches, None)  # None: not one image of the part can be read
            found = {} if first is None else compute(chain([first], batches))
        unreadable = [f"{name}: {reason}" for name, reason in part.unreadable]
        return {**found, "seconds": np.array(spent[""]), "unreadable": np.array(unreadable, dtype=np.str_)}

    @contextlib.contextmanager
    def _timing(self, what: str, into: defaultdict[str, float] | None = None) -> Iterator[None]:
        """Adds the time that is spent, but for what is timed within: fitting and compiling, passes of other images."""
        outside, self._within = self._within, 0.0
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            (self.seconds if into is None else into)[what] += spent - self._within
            self._within = outside + spent


def _named(method: str, fusion: str) -> str:
    return method if method == "gaia-z" or fusion == "division" else f"{method}, {fusion}"
