"""Whether every engine, backend, runtime and export that runs here scores the user's own model and images right."""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from gaia_fast import backends, reference
from gaia_fast.compiler.package.reading import load
from gaia_fast.compiler.package.writing import FORMATS
from gaia_fast.errors import ArgumentError, BackendError, CompilationError, DataError, GaiaError
from gaia_fast.evaluation.image_sets import METHODS, Detector, make_detector
from gaia_fast.inspection import checks, stages
from gaia_fast.method import Method
from gaia_fast.options import EngineName, Runtime
from gaia_fast.outputs import GaiaOutput
from gaia_fast.reference import Reference, copy_in, relative_error
from gaia_fast.scorers import Scorer

# Largest relative error of a float32 score. GAIA-Z counts: one activation that is zero to rounding moves its score.
TOLERANCE = {"gaia-a": 1e-5, "gaia-z": 1e-4}

# What can be checked: the engines, and the files that the compiled one writes.
SUBJECTS = (*EngineName.values(), "export")


def limit(method: str, own_error: float) -> float:
    """Returns the largest relative error that passes, if plain PyTorch in the model's own dtype makes `own_error`."""
    return max(TOLERANCE[method], 2 * own_error)


@dataclass(frozen=True)
class Check:
    """One method on one engine, in one of its variants.

    Attributes:
        method: which.
        engine: of `SUBJECTS`.
        backend: the backend of the reference and of hooks, the runtime of a compiled program, the ending of an export.
        passed: the score error is at most `limit` and no count differs; None where it cannot run here.
        reason: why it cannot run here, or why it failed; where it passed, what it left out; else empty.
        score_error: largest relative error of a score against the float64 reference; None where there is no score.
        limit: the largest error that passes.
        wrong_counts: GAIA-Z: how many channels, over all images, have another number of non-zero gradients than the
            reference in the model's own dtype; None for GAIA-A, which counts nothing, and for exports, which tell the
            score alone. A compiled program folds norms into weights, so that units which are zero to rounding may
            become active or inactive: its counts are told, and only its scores judged.
    """

    method: str
    engine: str
    backend: str
    passed: bool | None
    reason: str
    score_error: float | None = None
    limit: float | None = None
    wrong_counts: int | None = None


@dataclass(frozen=True)
class Validation:
    """All checks of a model on some images.

    Attributes:
        images: how many there were.
        dtype: the model's.
        own_error: by method, the largest relative error of plain PyTorch (the reference in the model's own dtype)
            against float64: what rounding alone does to this model.
        float64_counts: GAIA-Z: how many channels, over all images, count otherwise in float64 than in the model's own
            dtype, because an activation is zero to rounding; None where GAIA-Z was not asked for.
        channels: GAIA-Z: how many channels, over all images, were compared.
        checks: one per method, engine and backend.
    """

    images: int
    dtype: str
    own_error: dict[str, float]
    float64_counts: int | None
    channels: int | None
    checks: list[Check]

    @property
    def passed(self) -> bool:
        """Whether no check failed and at least one ran."""
        ran = [check.passed for check in self.checks if check.passed is not None]
        return bool(ran) and all(ran)


def validate(
    model: nn.Module,
    batches: Iterable[Tensor],
    methods: Sequence[str] = METHODS,
    layers: Mapping[str, Sequence[str] | None] | None = None,
    *,
    head: str | None = None,
    fusion: str = "division",
    statistic: str = "abs_mean",
    engines: Sequence[str] = SUBJECTS,
) -> Validation:
    """Compares every engine and backend, runtime and export with the reference on a float64 copy of the model.

    A check passes with a score error of at most TOLERANCE, or of twice the error of plain PyTorch in the model's own
    dtype where that is more; for GAIA-Z the counts of non-zero gradients must also be those of that reference.

    Args:
        model: the classifier, in eval mode; it is not changed.
        batches: (N, C, H, W) images of the model's dtype and device.
        methods: of `METHODS`.
        layers: by method, as in `GaiaZ`; None for every normalisation layer.
        head, fusion, statistic: as in `GaiaA`; the head by name.
        engines: of `SUBJECTS`.

    Raises:
        ArgumentError: no such engine. DataError: no images. GaiaError: as the reference, if it cannot run.
    """
    if unknown := set(engines) - set(SUBJECTS):
        raise ArgumentError(f"engines={sorted(unknown)} do not exist; choose from {SUBJECTS}")
    model = checks.unwrap(model)
    names: dict[str, str | Sequence[str] | None] = {method: (layers or {}).get(method) for method in methods}
    gaia_a = {"head": head, "fusion": fusion, "statistic": statistic}
    truth_model = copy_in(model, torch.float64)
    rows = [row for method in methods for row in _rows(method, model, names[method], gaia_a, engines)]
    measured = {
        method: Method(method) if method == "gaia-z" else Method(method, fusion, statistic) for method in methods
    }
    own_error = dict.fromkeys(methods, 0.0)
    images = channels = float64_counts = 0
    dtype = ""

    for x in batches:
        if images == 0:
            names = {method: stages.resolved(each, model, x) for method, each in names.items()}
        images, dtype = images + x.shape[0], str(x.dtype).removeprefix("torch.")
        for method in methods:
            truth = reference.run(measured[method], truth_model, x.double(), names[method], head)
            own = reference.run(measured[method], model, x, names[method], head)
            own_error[method] = max(own_error[method], relative_error(own.score, truth.score))
            areas: list[int] = []
            if method == "gaia-z":
                plan = make_detector(method, model, layers=names[method]).plan(x)
                areas = [each.area for each in plan.maps]
                float64_counts += _count_differences(own.abnormality, truth.abnormality, areas)
                channels += x.shape[0] * plan.channels
            for row in rows:
                if row.method == method:
                    row.run(x, truth, own, areas)
    if images == 0:
        raise DataError("there are no images to validate on; give at least one that can be read")

    results = [row.check(limit(row.method, own_error[row.method])) for row in rows]
    counted = "gaia-z" in methods
    return Validation(
        images, dtype, own_error, float64_counts if counted else None, channels if counted else None, results
    )


@dataclass
class _Row:
    """A check under way: what has been seen so far."""

    method: str
    engine: str
    backend: str
    detector: Detector | None
    unavailable: str = ""
    failures: list[str] = field(default_factory=list)
    score_error: float = 0.0
    wrong_counts: int = 0
    images: int = 0
    unscored: int = 0
    exported: Scorer | None = None

    def run(self, x: Tensor, truth: Reference, own: Reference, areas: Sequence[int]) -> None:
        """Adds a batch; `areas` of the maps for GAIA-Z."""
        if self.detector is None or self.failures:
            return
        try:
            out = self._score(x)
        except (BackendError, CompilationError) as error:
            self.detector, self.unavailable = None, str(error)
            return
        except GaiaError as error:
            self.failures.append(f"{type(error).__name__}: {error}")
            return
        scored = ~out.score.isnan()  # an export leaves out what it cannot score
        self.images += scored.numel()
        self.unscored += scored.numel() - int(scored.sum())
        self.score_error = max(self.score_error, relative_error(out.score[scored], truth.score[scored]))
        if out.matrix is not None:
            found = [out.matrix[:, index, : each.shape[1]] for index, each in enumerate(own.abnormality)]
            self.wrong_counts += _count_differences(found, own.abnormality, areas)

    def _score(self, x: Tensor) -> GaiaOutput:
        assert self.detector is not None
        if self.engine != "export":
            return self.detector.score(x, return_matrix=self.method == "gaia-z")
        if self.exported is None:
            with tempfile.TemporaryDirectory() as folder:
                exported = load(self.detector.export(Path(folder) / f"model{self.backend}", x))
            assert isinstance(exported, Scorer)
            self.exported = exported
        return self.exported.score(x)

    def check(self, limit: float) -> Check:
        """The result, once all batches were run."""
        if self.detector is None:
            return Check(self.method, self.engine, self.backend, None, self.unavailable)
        if self.failures:
            return Check(self.method, self.engine, self.backend, False, self.failures[0], limit=limit)
        left_out = f"{self.unscored} of {self.images} images got no score (NaN): a file cannot ask hooks"
        if self.unscored == self.images:
            return Check(self.method, self.engine, self.backend, False, left_out, limit=limit)
        reasons = []
        if not self.score_error <= limit:
            reasons.append(f"the score is off by {self.score_error:.2g}, more than {limit:.2g}")
        if self.wrong_counts and self.engine != "compiled":
            reasons.append(f"{self.wrong_counts} channels have a wrong count")
        counts = self.wrong_counts if self.method == "gaia-z" and self.engine != "export" else None
        passed = not reasons
        if self.unscored:
            reasons.append(left_out)
        why = "; ".join(reasons)
        return Check(self.method, self.engine, self.backend, passed, why, self.score_error, limit, counts)


def _rows(
    method: str,
    model: nn.Module,
    layers: Sequence[str] | None,
    gaia_a: Mapping[str, str | None],
    engines: Sequence[str],
) -> list[_Row]:
    # The reference uses no kernels, so it has but one backend.
    variants: dict[str, Sequence[str]] = {
        EngineName.REFERENCE: ("torch",),
        EngineName.HOOKS: tuple(backends.available()),
        EngineName.COMPILED: Runtime.values(),
        "export": FORMATS,
    }
    rows = []
    for engine in engines:
        for variant in variants[engine]:
            options: dict[str, str] = {"runtime": variant} if engine == "compiled" else {}
            if engine in ("reference", "hooks"):
                options = {"backend": variant}
            name = "compiled" if engine == "export" else engine
            try:
                detector = make_detector(method, model, layers=layers, engine=name, **options, **gaia_a)  # type: ignore[arg-type]
            except BackendError as error:
                rows.append(_Row(method, engine, variant, None, str(error)))
            else:
                rows.append(_Row(method, engine, variant, detector))
    return rows


def _count_differences(found: Sequence[Tensor], expected: Sequence[Tensor], areas: Sequence[int]) -> int:
    """How many densities (N, K_l) stand for another count of positions; a list entry per map."""
    different = 0
    for a, b, area in zip(found, expected, areas, strict=True):
        # Counts are whole numbers: less than half of one is the rounding of the densities, which bfloat16 rounds most.
        rounding = 2 * area * max(torch.finfo(each.dtype).eps for each in (a, b))
        different += int(((a.double() - b.double()).abs() * area > max(rounding, 0.05)).sum())
    return different
