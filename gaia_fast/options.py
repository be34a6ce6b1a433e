"""The values that options take. They are strings, and strings are taken wherever one is asked for."""

import os
from enum import Enum
from typing import Literal, TypeAlias, TypeVar

from gaia_fast.errors import ArgumentError

AUTO = "auto"

T = TypeVar("T", bound="Option")


class Option(str, Enum):
    """A string of a few that are allowed; prints, compares and is written to JSON as it."""

    __str__ = str.__str__
    __repr__ = str.__repr__
    __format__ = str.__format__  # type: ignore[assignment]

    @classmethod
    def parse(cls: type[T], value: object, argument: str) -> T:
        """Returns the option that a value stands for; ArgumentError, naming the argument, where it stands for none."""
        try:
            return cls(value)
        except ValueError:
            raise ArgumentError(f"{argument}={value!r} does not exist; choose from {tuple(cls)}") from None

    @classmethod
    def values(cls) -> tuple[str, ...]:
        """Returns what is allowed, as plain strings."""
        return tuple(each.value for each in cls)

    @classmethod
    def check_or_auto(cls, value: object, argument: str) -> None:
        """Raises ArgumentError unless a value stands for an option, or is "auto"."""
        if value != AUTO and value not in tuple(cls):
            raise ArgumentError(f"{argument}={value!r} does not exist; choose from {(AUTO, *cls)}")


class Measure(Option):
    """The two measurements of the paper: zero-deflation (Eq. 10), and channel-wise average (Eq. 8, 9 and 11)."""

    GAIA_Z = "gaia-z"
    GAIA_A = "gaia-a"


class LogitScore(Option):
    """The scores that the logits alone give, for comparison: see `gaia_fast.logit_scores`."""

    MSP = "msp"
    ENERGY = "energy"
    MAX_LOGIT = "max_logit"


class Fusion(Option):
    """What GAIA-A makes of its two components: the rows of Table 3."""

    DIVISION = "division"
    INNER = "inner"
    OUTPUT = "output"
    TOP1 = "top1"


class Statistic(Option):
    """How GAIA-A averages a channel: |mean of h| (Eq. 11), or mean of |h|."""

    ABS_MEAN = "abs_mean"
    MEAN_ABS = "mean_abs"


class EngineName(Option):
    """The engines, but for "auto"."""

    REFERENCE = "reference"
    HOOKS = "hooks"
    COMPILED = "compiled"


class Tune(Option):
    """How is settled between algorithms, runtimes and engines: by timing them here, or by their operations."""

    MEASURE = "measure"
    MODEL = "model"

    @classmethod
    def default(cls) -> "Tune":
        """What $GAIA_FAST_TUNE says, and "measure" otherwise."""
        return cls.parse(os.environ.get("GAIA_FAST_TUNE") or cls.MEASURE, "GAIA_FAST_TUNE")


class Unprepared(Option):
    """What engine "auto" does with images that no program was prepared for: score them by hooks, after a warning; or
    prepare one; or refuse."""

    WARN = "warn"
    PREPARE = "prepare"
    ERROR = "error"


class Runtime(Option):
    """The ways to run a compiled program, but for "auto"."""

    EAGER = "eager"
    NATIVE = "native"
    INDUCTOR = "inductor"
    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"
    CUDAGRAPH = "cudagraph"


# The same, for signatures: what an editor offers, and a type checker refuses. `tests/test_options.py` keeps them equal.
ScoreOption: TypeAlias = Literal["gaia-z", "gaia-a", "msp", "energy", "max_logit"] | Measure | LogitScore
FusionOption: TypeAlias = Literal["division", "inner", "output", "top1"] | Fusion
StatisticOption: TypeAlias = Literal["abs_mean", "mean_abs"] | Statistic
EngineOption: TypeAlias = Literal["auto", "reference", "hooks", "compiled"] | EngineName
RuntimeOption: TypeAlias = (
    Literal["auto", "eager", "native", "inductor", "onnxruntime", "openvino", "cudagraph"] | Runtime
)
BackendOption: TypeAlias = Literal["auto", "cpu", "triton", "cuda", "torch"]
TuneOption: TypeAlias = Literal["measure", "model"] | Tune
UnpreparedOption: TypeAlias = Literal["warn", "prepare", "error"] | Unprepared
