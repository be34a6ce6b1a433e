"""Whether what must always hold of a detector holds on the user's own model and images: `check_detector`.

`INVARIANTS` is the specification: one short function each, in the order in which they are asked. A function returns
what was seen, or raises `_Failed`, or `_CannotAsk` where the model itself, in plain PyTorch, cannot do what is asked.
"""

import contextlib
import copy
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gaia_fast import backends
from gaia_fast.compiler.verification import Verifier, logits_error, lost
from gaia_fast.errors import (
    ArgumentError,
    BackendError,
    CalibrationError,
    CompilationError,
    GaiaError,
    InvariantError,
    first_line,
)
from gaia_fast.evaluation.image_sets import METHODS, Detector, make_detector
from gaia_fast.evaluation.model_state import ModelState, equal_bits
from gaia_fast.evaluation.validation import TOLERANCE, limit
from gaia_fast.inspection import checks, stages
from gaia_fast.inspection.forward_hooks import in_grad_mode
from gaia_fast.inspection.head import find_head
from gaia_fast.inspection.layers import inspected_layers
from gaia_fast.inspection.requests import Request
from gaia_fast.method import Method
from gaia_fast.options import EngineName, Fusion, FusionOption, Runtime, Statistic, StatisticOption, Tune
from gaia_fast.outputs import GaiaOutput
from gaia_fast.reference import relative_error

IMAGES = 3  # that are scored in each call; fewer are filled up with their mirror images
OnFail = Literal["raise", "return"]
Layers = str | Sequence[str] | None


@dataclass(frozen=True)
class InvariantResult:
    """One invariant, asked of one method on one engine.

    Attributes:
        name: of `INVARIANTS`.
        method, engine: which.
        passed: None where it cannot be asked here.
        detail: what was seen; where it failed also what to do, and where it cannot be asked why.
    """

    name: str
    method: str
    engine: str
    passed: bool | None
    detail: str


@in_grad_mode(True)
def check_detector(
    model: nn.Module,
    example: Tensor,
    *,
    methods: Sequence[str] = ("gaia-z", "gaia-a"),
    layers: Layers | Mapping[str, Layers] = None,
    head: str | None = None,
    fusion: FusionOption = "division",
    statistic: StatisticOption = "abs_mean",
    engines: Sequence[str] = (EngineName.HOOKS, EngineName.COMPILED),
    on_fail: OnFail = "raise",
    callback: Callable[[InvariantResult], object] | None = None,
) -> list[InvariantResult]:
    """Asks everything that must always hold of a detector, on your own model and images, like check_estimator.

    That a call leaves the model as it was, also when it raises; that scores are right, the same each time, and depend
    on no other image, memory layout or gradient mode; that bad input is refused; that nothing falls back without a
    word; that decisions and copies agree. What the model itself cannot do in plain PyTorch is not asked of its
    detector, and the result says so. Nothing is printed; the model is put back as it was, whatever a detector does, and
    so are the attributes and buffers that the model itself writes in a pass.

    The compiled engine takes runtime "auto" without timing the runtimes, and is prepared several times: seconds for a
    small network, minutes for a large one. `gaia-fast validate` asks the same, and compares every runtime and export.

    Args:
        model: the classifier, in eval mode.
        example: (N, C, H, W) images of the model's dtype and device, N at least 1; three are enough.
        methods: of "gaia-z" and "gaia-a".
        layers: as in `GaiaZ`, for each method; or a mapping of methods to that.
        head, fusion, statistic: as in `GaiaA`; the head by name.
        engines: of "hooks", "compiled" and "reference".
        on_fail: "raise", or "return" the results whatever they are.
        callback: called with each result as soon as it is there.

    Returns:
        A result for each invariant, method and engine; for an engine that refuses the model, one that says why.

    Raises:
        InvariantError: something does not hold, and `on_fail` is "raise"; the message lists all that does not, and the
            attribute `results` holds all results.
        GaiaError: as `GaiaZ` and `GaiaA`: the model and images are none for any engine; or no engine takes them with
            one of the methods, and `on_fail` is "raise".
        ArgumentError: a method, engine or `on_fail` that does not exist.

    Example:
        >>> from gaia_fast import check_detector
        >>> from gaia_fast.data.digits import held_out_digits
        >>> from gaia_fast.models import digits_resnet
        >>> model, (x, labels) = digits_resnet(pretrained=True), held_out_digits()
        >>> results = check_detector(model, x[:4], methods=["gaia-z"], engines=["hooks"])
        >>> {each.name: each.passed for each in results}["training_mode_is_refused"]
        True
        >>> [each.name for each in results if each.passed is False]
        []
    """
    if on_fail not in ("raise", "return"):
        raise ArgumentError(f"on_fail={on_fail!r} does not exist; choose from ('raise', 'return')")
    for what, given, allowed in (("methods", methods, METHODS), ("engines", engines, EngineName.values())):
        if isinstance(given, str) or not given or set(given) - set(allowed):
            raise ArgumentError(f"{what}={given!r} are not a list of some of {tuple(allowed)}")
    model = checks.unwrap(model)
    checks.check_model(model)
    checks.check_images(example, model)
    if example.shape[0] == 0:
        raise ArgumentError("an example of no images shows nothing; give at least one")
    by_method = dict(layers) if isinstance(layers, Mapping) else dict.fromkeys(methods, layers)
    if unknown := by_method.keys() - set(methods):
        raise ArgumentError(f"layers are named for {sorted(unknown)}, which are not among the methods {tuple(methods)}")
    gaia_a = {
        "head": head,
        "fusion": Fusion.parse(fusion, "fusion"),
        "statistic": Statistic.parse(statistic, "statistic"),
    }

    results: list[InvariantResult] = []
    refusals: dict[str, GaiaError] = {}

    def add(result: InvariantResult) -> None:
        results.append(result)
        if callback is not None:
            callback(result)

    x = _enough(example)
    with torch.autocast(x.device.type, enabled=False):
        state = ModelState(model, *_passes(model, x))
        try:
            for method in methods:
                of_layers = by_method.get(method)
                verifier, truth = _verifier(method, model, x, of_layers, gaia_a)
                for engine in engines:
                    case = _Case(model, x, method, engine, of_layers, gaia_a, state, verifier, truth)
                    if (refusal := _ask_all(case, add)) is not None:
                        refusals.setdefault(method, refusal)
        finally:
            state.restore()
            left = state.changes()
    if left:
        raise InvariantError(f"the model could not be put back as it was: {_listed(left)}; load it anew", results)
    taken = {each.method for each in results if each.passed is not None}
    if on_fail == "return":
        return results
    if refused := [method for method in methods if method not in taken]:
        raise refusals[refused[0]]
    if any(each.passed is False for each in results):
        raise InvariantError(_report(type(model).__name__, results), results)
    return results


def _report(model: str, results: Sequence[InvariantResult]) -> str:
    failed = [each for each in results if each.passed is False]
    lines = [f"{len(failed)} of {len(results)} checks fail on {model}:"]
    lines += [f"  {each.name} ({each.method}, {each.engine}): {each.detail}" for each in failed]
    engines = {each.engine for each in results if each.passed} - {each.engine for each in failed}
    remedy = f"use engine={min(engines)!r}, which passes" if engines else "do not rely on these scores"
    return "\n".join([*lines, f"{remedy}; `gaia-fast validate` shows how far each engine is off"])


class _Failed(Exception):
    """An invariant does not hold; the message says what was seen."""


class _CannotAsk(Exception):
    """An invariant that cannot be asked; the message says why."""


class _InjectedError(Exception):
    """What a module of the model is made to raise."""


class _Truth:
    """What the reference makes of images on a float64 copy, and how far off a result may be.

    Attributes:
        score, logits: in float64.
        score_limit, logits_limit: relative; twice what plain PyTorch is off, or TOLERANCE.
    """

    def __init__(self, verifier: Verifier, x: Tensor, method: str) -> None:
        exact, own = verifier.exact(x), verifier.reference(x)
        self._verifier, self._x, self._exact, self._own = verifier, x, exact, own
        (self.score,), self.logits = exact.scores, exact.logits
        self.score_limit = limit(method, relative_error(own.scores[0], self.score))
        self.logits_limit = limit("gaia-a", float(logits_error(own.logits, self.logits).max()))

    @cached_property
    def sensitivity(self) -> float:
        """By how much results change with weights that are off by what rounding loses.

        Asked only where a limit is exceeded: one unit that is zero to rounding moves a score by more than that.
        """
        return float(self._verifier.sensitivity(self._x, self._exact, lost(self._own.logits)).max())


@dataclass
class _Case:
    """One method on one engine, on the user's model and images.

    Attributes:
        x: `IMAGES` images.
        state: of the model, before anything was asked.
        truth: of `x`; why there is none, where the reference or a float64 copy cannot be had.
        traces: what invariants left behind in the model, by their names.
        detector, out: what is asked, and what it makes of `x`; from the first invariant on.
    """

    model: nn.Module
    x: Tensor
    method: str
    engine: str
    layers: Layers
    gaia_a: dict[str, Any]
    state: ModelState
    verifier: Verifier | None
    truth: _Truth | str
    traces: dict[str, list[str]] = field(default_factory=dict)
    detector: Detector = field(init=False)
    out: GaiaOutput = field(init=False)

    def make(self, **options: Any) -> Detector:
        """A detector of this method and engine."""
        of_method = self.gaia_a if self.method == "gaia-a" else {}
        every: dict[str, Any] = {"layers": self.layers, "engine": self.engine, **of_method, **options}
        return make_detector(self.method, self.model, **every)

    def prepare(self, detector: Detector, x: Tensor) -> None:
        """Makes a program for images like `x`, where the engine needs one, without timing anything."""
        if self.engine == EngineName.COMPILED:
            detector.prepare(x, tune=Tune.MODEL)

    def plain(self, x: Tensor) -> Tensor:
        """The logits of plain PyTorch; _CannotAsk where the model does not take such images."""
        try:
            with torch.no_grad():
                return checks.logits_of(self.model(x), x.shape[0]).detach()
        except Exception as error:
            raise _CannotAsk(
                f"the model itself fails on {tuple(x.shape)}, {type(error).__name__}: {first_line(error)}"
            ) from error

    def score(self, x: Tensor) -> Tensor:
        return self.detector.score(x).score

    def apart(self, found: Tensor, expected: Tensor, what: str, logits: float = 0.0) -> str:
        """What two scores of the same images are apart; _Failed if it is more than rounding explains.

        Each may be off from float64 by the limit, so that both may be apart by twice as much; or by twice what the
        logits of plain PyTorch are apart.
        """
        off = relative_error(_finite(found), expected)
        truth = self.truth if isinstance(self.truth, _Truth) else None
        most = 2 * max(truth.score_limit if truth else TOLERANCE[self.method], logits)
        if not off <= most and truth:
            most = max(most, 4 * truth.sensitivity)
        if not off <= most:
            raise _Failed(f"{what}: scores are {off:.2g} apart (relative), more than {most:.2g}")
        return f"{off:.2g} apart"


Invariant = Callable[[_Case], str]
INVARIANTS: dict[str, Invariant] = {}


def _invariant(function: Invariant) -> Invariant:
    INVARIANTS[function.__name__] = function
    return function


# ---- what comes out


@_invariant
def images_are_scored_or_refused(case: _Case) -> str:
    """An engine that does not take the model says so; then nothing else is asked of it."""
    case.detector = case.make()
    case.prepare(case.detector, case.x)
    case.out = case.detector.score(case.x)
    return f"{case.x.shape[0]} images"


@_invariant
def scores_are_float32_detached_and_finite(case: _Case) -> str:
    logits, score = case.detector.score(case.x)
    kind = (tuple(score.shape), score.dtype, score.device)
    wanted = ((case.x.shape[0],), torch.float32, case.x.device)
    if kind != wanted:
        raise _Failed(f"scores are {kind}, and should be {wanted}")
    if score.requires_grad or logits.requires_grad:
        raise _Failed("scores or logits hang on a graph, and keep it alive")
    if score.is_inference() or logits.is_inference():
        raise _Failed("scores or logits are inference tensors, of which nothing can be made in training")
    _finite(score)
    return f"({score.shape[0]},) float32"


@_invariant
def logits_and_scores_agree_with_float64(case: _Case) -> str:
    """The contract of all engines: at most twice plain PyTorch's own error, or TOLERANCE."""
    if case.engine == EngineName.REFERENCE:
        raise _CannotAsk("it is what the others are held to")
    return _agrees(case.detector.score(case.x), case.truth)


@_invariant
def the_same_call_gives_the_same_bits(case: _Case) -> str:
    again = case.detector.score(case.x)
    _same_bits(again.score, case.out.score, "the second call")
    _same_bits(again.logits, case.out.logits, "the second call's logits")
    return "bit for bit"


@_invariant
def odd_sizes_of_images_are_right(case: _Case) -> str:
    x = _odd(case.x)
    try:
        case.plain(x)
    except _CannotAsk as reason:
        _refused(lambda: case.score(x), "", own=reason.__cause__)  # then the detector gives no number either
        raise
    truth = _truth(case.verifier, x, case.method)
    case.prepare(case.detector, x)
    return f"{x.shape[2]}x{x.shape[3]}: {_agrees(case.detector.score(x), truth)}"


# ---- nothing but the image itself matters


@_invariant
def any_number_of_images_has_as_many_scores(case: _Case) -> str:
    for images in (1, IMAGES - 1, 0):
        if images:
            case.plain(case.x[:images])
        logits, score = case.detector.score(case.x[:images])
        if score.shape != (images,) or logits.shape != (images, case.out.logits.shape[1]):
            raise _Failed(f"{images} images have scores {tuple(score.shape)} and logits {tuple(logits.shape)}")
    return f"none, one and up to {IMAGES} images"


@_invariant
def an_image_by_itself_scores_as_in_a_batch(case: _Case) -> str:
    alone, together = case.plain(case.x[:1]), case.plain(case.x)[:1]
    logits = _independent(alone, together)
    for images in (1, IMAGES - 1):
        seen = case.apart(case.score(case.x[:images]), case.out.score[:images], f"{images} of the images", logits)
    return seen


@_invariant
def other_images_do_not_matter(case: _Case) -> str:
    others = torch.cat([case.x[:1], -case.x[1:].flip(3)])
    logits = _independent(case.plain(others)[:1], case.plain(case.x)[:1])
    return case.apart(case.score(others)[:1], case.out.score[:1], "beside other images", logits)


def _layout(name: str, arrange: Callable[[Tensor], Tensor]) -> None:
    def check(case: _Case) -> str:
        x = arrange(case.x)
        plain = x.contiguous()
        seen, expected = case.plain(x), case.plain(plain)
        score, wanted = case.score(x), case.score(plain)
        if torch.equal(seen, expected) and not x.is_contiguous(memory_format=torch.channels_last):
            _same_bits(score, wanted, "another memory layout, in which the logits are the same")
            return "bit for bit"
        return case.apart(score, wanted, "another memory layout", float(logits_error(seen, expected).max()))

    check.__name__ = name
    _invariant(check)


def _sliced(x: Tensor) -> Tensor:
    wide = torch.nn.functional.pad(x, (1, 2, 1, 2)).repeat_interleave(2, dim=0)
    return wide[::2, :, 1:-2, 1:-2]


_layout("channels_last_images_score_alike", lambda x: x.contiguous(memory_format=torch.channels_last))
_layout("sliced_images_score_alike", _sliced)
_layout("expanded_images_score_alike", lambda x: x[:1].expand_as(x))
_layout("transposed_images_score_alike", lambda x: x.transpose(2, 3).contiguous().transpose(2, 3))


def _mode(name: str, mode: Callable[[], contextlib.AbstractContextManager[Any]]) -> None:
    def check(case: _Case) -> str:
        with mode():
            before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
            score = case.score(case.x.clone())
            after = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        if before != after:
            raise _Failed(f"the call changes (gradients, inference mode) from {before} to {after}")
        _same_bits(score, case.out.score, "in this mode")
        return "bit for bit"

    check.__name__ = name
    _invariant(check)


_mode("works_inside_no_grad", torch.no_grad)
_mode("works_inside_inference_mode", torch.inference_mode)
_mode("works_inside_enable_grad", torch.enable_grad)


@_invariant
def works_with_frozen_parameters(case: _Case) -> str:
    before = [(each, each.requires_grad) for each in case.model.parameters()]
    try:
        for each, _ in before:
            each.requires_grad_(False)
        score = case.score(case.x)
        thawed = sum(each.requires_grad for each, _ in before)
    finally:
        for each, flag in before:
            each.requires_grad_(flag)
    if thawed:
        raise _Failed(f"the call makes {thawed} frozen parameters require gradients")
    _same_bits(score, case.out.score, "with frozen parameters")
    return "bit for bit"


@_invariant
def images_are_left_as_they_were(case: _Case) -> str:
    """Those that require a gradient, too: none is put there, and the score is the same."""
    x = case.x.clone().requires_grad_()
    score = case.score(x)
    if x.grad is not None or not x.requires_grad or x.grad_fn is not None:
        raise _Failed("the call writes .grad or requires_grad of the images")
    if not equal_bits(x, case.x):
        raise _Failed("the call changes the images' pixels")
    _same_bits(score, case.out.score, "of images that require gradients")
    return "bit for bit"


@_invariant
def autocast_is_right_or_refused(case: _Case) -> str:
    kind = case.x.device.type
    truth = case.truth
    if isinstance(truth, str) or case.verifier is None:
        raise _CannotAsk(str(truth))
    with torch.autocast(kind, dtype=torch.bfloat16):
        case.plain(case.x)
        try:
            (own,) = case.verifier.reference(case.x).scores
            score = case.score(case.x)
        except GaiaError as error:
            return f"refused: {_said(error)}"
    most = max(truth.score_limit, 2 * relative_error(own, truth.score), torch.finfo(torch.bfloat16).eps)
    off = relative_error(_finite(score), truth.score)
    if score.dtype != torch.float32 or not off <= most:
        raise _Failed(f"under autocast scores are {score.dtype} and off by {off:.2g}, more than {most:.2g}")
    return f"off by {off:.2g}, of {most:.2g} allowed"


# ---- what is refused


@_invariant
def training_mode_is_refused(case: _Case) -> str:
    modes = [(module, module.training) for module in case.model.modules()]
    try:
        for module, _ in modes:
            module.training = True  # not by `train`, in which models do what they like
        seen = _refused(lambda: case.score(case.x), "training mode")
        turned = sum(not module.training for module, _ in modes)
    finally:
        for module, flag in modes:
            module.training = flag
    if turned:
        raise _Failed(f"the call sets {turned} modules to eval mode by itself")
    return seen


def _refusal(name: str, spoil: Callable[[Tensor], Tensor], *words: str, plain: bool = False) -> None:
    """Of images made wrong by `spoil`, by a message with one of the words; `plain`: unless the model takes them."""

    def check(case: _Case) -> str:
        wrong, own = spoil(case.x), None
        if plain:
            try:
                case.plain(wrong)
            except _CannotAsk as reason:
                own = reason.__cause__
            else:
                raise _CannotAsk(f"the model itself takes images of shape {tuple(wrong.shape)}")
        return _refused(lambda: case.score(wrong), *words, own=own)

    check.__name__ = name
    _invariant(check)


def _one_not_finite(x: Tensor) -> Tensor:
    x = x.clone()
    x[1, 0, 0, 0] = float("nan")
    return x


_refusal("one_image_without_a_batch_is_refused", lambda x: x[0], "shape")
_refusal("wrong_channels_are_refused", lambda x: torch.cat([x, x[:, :1]], 1), "shape", "channel", plain=True)
_refusal("integer_images_are_refused", lambda x: x.to(torch.uint8), "uint8")
_refusal("images_that_are_not_finite_are_refused", _one_not_finite, "images 1 ")
_refusal(
    "another_dtype_is_refused",
    lambda x: x.to(torch.float32 if x.dtype == torch.float64 else torch.float64),
    "float32",
    "float64",
)
_refusal("another_device_is_refused", lambda x: x.to("meta"), "meta")


@_invariant
def the_plan_names_what_runs(case: _Case) -> str:
    plan = case.detector.plan(case.x)
    runtime = plan.runtime.name if plan.runtime else None
    seen = f"engine {plan.engine.name}, backend {plan.backend.name}" + (f", runtime {runtime}" if runtime else "")
    compiled = case.engine == EngineName.COMPILED
    if plan.engine.name != case.engine or (case.detector.program(case.x) is not None) != compiled:
        raise _Failed(f"engine={case.engine!r} was asked for, and {seen} is what runs")
    if not backends.available()[plan.backend.name] or (runtime in Runtime.values()) != compiled:
        raise _Failed(f"the plan names what cannot run: {seen}")
    return seen


@_invariant
def what_cannot_run_is_refused_when_forced(case: _Case) -> str:
    """A backend of hooks that is not available, a runtime of another device, a kernel of the reference."""
    if case.engine == EngineName.HOOKS:
        forced = [{"backend": name} for name, there in backends.available().items() if not there]
    elif case.engine == EngineName.COMPILED:
        forced = [{"runtime": Runtime.NATIVE if case.x.device.type == "cuda" else Runtime.CUDAGRAPH}]
    else:
        forced = [{"backend": "cpu"}]
    if not forced:
        raise _CannotAsk("every backend can run here")
    for options in forced:
        try:
            found = case.make(**options).score(case.x)
        except (BackendError, CompilationError, ArgumentError) as error:
            if not str(error).strip():
                raise _Failed(f"{options} is refused without a reason") from error
            continue
        raise _Failed(f"{options} cannot run here, and {found.score.shape[0]} scores came of it")
    return f"refused: {', '.join(str(value) for options in forced for value in options.values())}"


# ---- decisions and copies


@_invariant
def decisions_follow_the_threshold(case: _Case) -> str:
    detector, scores = case.detector, case.out.score.double()
    if len(scores.unique()) == 1:
        raise _CannotAsk(f"all scores are {float(scores[0]):g} on the example: no threshold tells anything apart")
    try:
        try:
            detector.is_ood(case.x)
        except CalibrationError:
            pass
        else:
            raise _Failed("there are decisions before there is a threshold")
        detector.calibrate(case.x, id_tpr=0.5)
        threshold = detector.threshold
        detector.calibrate(case.out.score, id_tpr=0.5)
        if threshold is None or threshold != detector.threshold:
            raise _Failed(f"the threshold is {threshold} from images, and {detector.threshold} from their scores")
        accepted, fewer = float((scores <= threshold).double().mean()), float((scores < threshold).double().mean())
        if not fewer < 0.5 <= accepted:
            raise _Failed(f"the threshold {threshold:g} that should accept half of the images accepts {accepted:.0%}")
        expected, out = scores > threshold, detector.score(case.x)
        for decisions in (detector.is_ood(case.x), out.is_ood):
            if decisions is None or decisions.dtype != torch.bool or not torch.equal(decisions, expected):
                raise _Failed(f"is_ood is {decisions}, and score > threshold is {expected}")
    finally:
        detector.threshold = None
    return f"{accepted:.0%} accepted of 50% asked"


@_invariant
def copies_score_alike(case: _Case) -> str:
    """Pickled and loaded, and then copied deep; as far as the model itself can be."""
    twin, ways, cannot = case.detector, [], ""
    for way, make in (("pickle", lambda each: pickle.loads(pickle.dumps(each))), ("deepcopy", copy.deepcopy)):
        try:
            twin = make(twin)
            ways.append(way)
        except Exception as error:
            try:
                make(case.model)
            except Exception as of_model:
                cannot = f"the model itself cannot be copied by {way}: {first_line(of_model)}"
            else:
                raise _Failed(f"{way} fails where the model alone can be: {first_line(error)}") from error
    if not ways:
        raise _CannotAsk(cannot)
    case.prepare(twin, case.x)
    score, same = twin.score(case.x).score, twin.plan(case.x).runtime == case.detector.plan(case.x).runtime
    if not same:
        return case.apart(score, case.out.score, f"a copy by {' and '.join(ways)}, in another runtime")
    _same_bits(score, case.out.score, f"a copy by {' and '.join(ways)}")
    return f"{' and '.join(ways)}: bit for bit{f'; {cannot}' if cannot else ''}"


# ---- the model is the user's


@_invariant
def hooks_of_the_user_still_fire(case: _Case) -> str:
    if case.engine != EngineName.HOOKS:
        raise _CannotAsk(
            "a program runs in the modules' place"
            if case.engine == EngineName.COMPILED
            else "the reference takes as many passes as it likes"
        )
    seen: list[str] = []
    with contextlib.ExitStack() as stack:
        for name, module in case.model.named_modules():
            stack.callback(module.register_forward_hook(lambda *_, name=name: seen.append(name)).remove)
        case.plain(case.x)
        plain = seen.copy()
        case.score(case.x)  # with hooks on modules, what was known of them may have to be found again
        seen.clear()
        case.score(case.x)
    # A model that turns gradients off is run again, from the start.
    if seen[-len(plain) :] != plain:
        missing = [name or "the model" for name in dict.fromkeys(plain) if seen.count(name) < plain.count(name)]
        what = f"less often than in a plain pass on {_listed(missing)}" if missing else "in another order"
        raise _Failed(f"forward hooks fire {what}")
    return f"{len(seen)} calls, {len(plain)} in a plain pass"


@_invariant
def the_model_is_left_as_it_was_when_it_raises(case: _Case) -> str:
    """In the middle of a pass: a hook on some module raises, and is taken away."""
    order: list[tuple[str, nn.Module]] = []
    with contextlib.ExitStack() as stack:
        for name, module in case.model.named_modules():
            if not any(module.children()):
                note = lambda module, *_, name=name: order.append((name, module))  # noqa: E731
                stack.callback(module.register_forward_hook(note).remove)
        case.plain(case.x)
    if not order:
        raise _CannotAsk("the model calls no modules")
    name, module = order[len(order) // 2]

    def fail(*_: object) -> None:
        raise _InjectedError(f"raised on purpose in {name!r}")

    handle = module.register_forward_hook(fail)
    try:
        case.score(case.x)
    except Exception:
        pass
    else:
        raise _Failed(f"module {name!r} raises, and scores come out nevertheless")
    finally:
        handle.remove()
    if left := case.state.changes():
        raise _Failed(f"after module {name!r} raised: {_listed(left)}")
    _same_bits(case.score(case.x), case.out.score, f"after module {name!r} raised")
    return f"raised in {name!r}"


@_invariant
def the_model_is_left_as_it_was(case: _Case) -> str:
    """Hooks, gradients, requires_grad, training flags, attributes, and parameters and buffers bit for bit."""
    case.score(case.x)
    left = {"a call": case.state.changes(), **case.traces}
    if found := [f"after {name}: {_listed(each)}" for name, each in left.items() if each]:
        raise _Failed("; ".join(found[:4]) + (f"; and after {len(found) - 4} more" if len(found) > 4 else ""))
    return f"{len(case.state)} modules, parameters and buffers"


# ---- asking


def _ask_all(case: _Case, add: Callable[[InvariantResult], None]) -> GaiaError | None:
    """Asks every invariant; returns why the engine does not take the model, if it does not."""
    for name, invariant in INVARIANTS.items():
        refusal = None
        try:
            passed, detail = True, invariant(case)
        except _CannotAsk as reason:
            passed, detail = None, str(reason)
        except _Failed as failure:
            passed, detail = False, str(failure)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            passed, detail = False, f"{type(error).__name__}: {first_line(error)}"
            if isinstance(error, GaiaError) and str(error).strip() and not hasattr(case, "out"):
                refusal, passed = error, None
        if left := case.state.changes():
            case.traces[name] = left
            case.state.put_back()
        add(InvariantResult(name, case.method, case.engine, passed, detail))
        if not hasattr(case, "out"):
            return refusal
    return None


def _refused(call: Callable[[], Tensor], *words: str, own: BaseException | None = None) -> str:
    """What the package's own refusal says; _Failed where there is none, or it does not say one of the words.

    Args:
        call: what is to be refused.
        words: one of which the message says.
        own: what the plain model raises, if anything. An error of the model's own, which is not PyTorch's RuntimeError,
            passes through a detector unchanged, and is as good.
    """
    try:
        score = call()
    except GaiaError as error:
        said = _said(error)
        if not any(word in str(error) for word in words):
            raise _Failed(f"the refusal does not name what is at fault ({' or '.join(words)}): {said}") from error
        return said
    except Exception as error:
        if type(error) is type(own) and not isinstance(error, RuntimeError):
            return f"the model's own {type(error).__name__}: {first_line(error)}"
        raise _Failed(f"a {type(error).__name__}, none of the package's own errors: {first_line(error)}") from error
    raise _Failed(f"not refused: {score.numel()} scores came of it")


def _said(error: GaiaError) -> str:
    if not str(error).strip():
        raise _Failed(f"a {type(error).__name__} without a message")
    return f"{type(error).__name__}: {first_line(error)}"


def _listed(places: Sequence[str]) -> str:
    return ", ".join(places[:4]) + (f" and {len(places) - 4} more" if len(places) > 4 else "")


# ---- numbers


def _enough(example: Tensor) -> Tensor:
    """`IMAGES` images, contiguous and in no graph: the first, or all there are and their mirror images."""
    x = example.detach().as_subclass(Tensor)[:IMAGES]
    while x.shape[0] < IMAGES:
        x = torch.cat([x, x.flip(3 if x.shape[0] == 1 else 2)])[:IMAGES]
    return x.clone(memory_format=torch.contiguous_format)


def _passes(model: nn.Module, x: Tensor) -> list[Callable[[], object]]:
    """A pass through the model for each kind of images that invariants use: what the model keeps of one kind alone, in
    a cache by size for one, shows with another. Only the images themselves must be taken."""

    def tried(images: Tensor, autocast: bool = False) -> None:
        with contextlib.suppress(Exception), torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
            model(images.clone())

    others = (_odd(x), *(x[:images] for images in range(1, IMAGES)))
    return [
        lambda: checks.forward(model, x.clone()),
        *(partial(tried, images) for images in others),
        partial(tried, x, autocast=True),
    ]


def _odd(x: Tensor) -> Tensor:
    """The images, cropped to an odd height and to another odd width, where they are as large."""
    height, width = x.shape[2] - 1 - x.shape[2] % 2, x.shape[3] - 3 + x.shape[3] % 2
    return x[:, :, : max(height, 1), : max(width, 1)].contiguous()


def _verifier(
    method: str, model: nn.Module, x: Tensor, layers: Layers, gaia_a: Mapping[str, Any]
) -> tuple[Verifier | None, _Truth | str]:
    """What holds results to the reference, and what that makes of the example."""
    try:
        measured = Method(method) if method == "gaia-z" else Method(method, gaia_a["fusion"], gaia_a["statistic"])
        inspected = inspected_layers(model, stages.resolved(layers, model, x)) if measured.needs_maps else []
        head = find_head(model, x, gaia_a["head"]) if measured.needs_head and gaia_a["head"] else None
        verifier = Verifier(model, [Request(measured, tuple(inspected))], head)
    except GaiaError as error:
        return None, _said(error)
    return verifier, _truth(verifier, x, method)


def _truth(verifier: Verifier | None, x: Tensor, method: str) -> _Truth | str:
    if verifier is None:
        return "the reference does not take the model"
    try:
        return _Truth(verifier, x, method)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        return f"the reference cannot tell: {type(error).__name__}: {first_line(error)}"


def _agrees(out: GaiaOutput, truth: _Truth | str) -> str:
    if isinstance(truth, str):
        raise _CannotAsk(truth)
    off = {
        "the score": (relative_error(_finite(out.score), truth.score), truth.score_limit),
        "the logits": (float(logits_error(out.logits, truth.logits).max()), truth.logits_limit),
    }
    for what, (error, most) in off.items():
        if not error <= most and not error <= 2 * truth.sensitivity:
            raise _Failed(f"{what} is off by {error:.2g} (relative), more than {max(most, 2 * truth.sensitivity):.2g}")
    return ", ".join(f"{what} off by {error:.2g} of {most:.2g}" for what, (error, most) in off.items())


def _independent(alone: Tensor, together: Tensor) -> float:
    """How far apart plain PyTorch's logits of an image are; _CannotAsk where that is more than rounding."""
    off = float(logits_error(alone, together).max())
    if not off <= max(1e-3, 8 * torch.finfo(alone.dtype).eps):
        raise _CannotAsk(f"the model's own logits of an image depend on the others in the batch, by {off:.2g}")
    return off


def _finite(score: Tensor) -> Tensor:
    if not bool(score.isfinite().all()):
        raise _Failed(f"scores are not finite: {score.tolist()}")
    return score


def _same_bits(found: Tensor, expected: Tensor, what: str) -> None:
    if not equal_bits(found, expected):
        raise _Failed(f"{what}: {found.flatten()[:4].tolist()} rather than {expected.flatten()[:4].tolist()}")
