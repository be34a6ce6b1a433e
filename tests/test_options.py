import json
import re
from enum import Enum
from typing import Any, get_args

import pytest

from gaia_fast import GaiaA, backends
from gaia_fast.errors import ArgumentError
from gaia_fast.method import Method
from gaia_fast.options import (
    AUTO,
    BackendOption,
    EngineName,
    EngineOption,
    Fusion,
    FusionOption,
    LogitScore,
    Measure,
    Option,
    Runtime,
    RuntimeOption,
    ScoreOption,
    Statistic,
    StatisticOption,
    Tune,
    TuneOption,
    Unprepared,
    UnpreparedOption,
)

import zoo

EVERY = [Measure, LogitScore, Fusion, Statistic, EngineName, Runtime, Tune, Unprepared]


@pytest.mark.parametrize("options", EVERY, ids=lambda each: each.__name__)
def test_an_option_is_its_string(options: type[Option]) -> None:
    for option in options:
        value = option.value
        assert options.parse(value, "it") is option
        assert (f"{option}", repr(option), json.dumps(option)) == (value, repr(value), json.dumps(value))
        assert option == value


@pytest.mark.parametrize("value", ["divide", "DIVISION", "", None, 3, []], ids=str)
def test_what_is_no_option_is_refused(value: object) -> None:
    allowed = re.escape("choose from ('division', 'inner', 'output', 'top1')")
    with pytest.raises(ArgumentError, match=f"fusion={re.escape(repr(value))} does not exist; {allowed}"):
        Fusion.parse(value, "fusion")
    with pytest.raises(ArgumentError, match=re.escape("choose from ('auto', 'reference', 'hooks', 'compiled')")):
        EngineName.check_or_auto(value, "engine")


def test_methods_take_strings_and_options() -> None:
    assert Method("gaia-a", "inner", "mean_abs") == Method(Measure.GAIA_A, Fusion.INNER, Statistic.MEAN_ABS)
    assert isinstance(Method("gaia-a").fusion, Fusion)
    with pytest.raises(ArgumentError, match="method='gaia-b' does not exist"):
        Method("gaia-b")
    assert GaiaA(zoo.build("parallel"), fusion=Fusion.INNER, engine=EngineName.HOOKS).method.fusion == "inner"


@pytest.mark.parametrize(
    ("written", "allowed"),
    [
        (ScoreOption, [*Measure, *LogitScore]),
        (FusionOption, [*Fusion]),
        (StatisticOption, [*Statistic]),
        (EngineOption, [AUTO, *EngineName]),
        (RuntimeOption, [AUTO, *Runtime]),
        (BackendOption, [AUTO, *backends.BACKENDS]),
        (TuneOption, [*Tune]),
        (UnpreparedOption, [*Unprepared]),
    ],
    ids=["scores", "fusion", "statistic", "engine", "runtime", "backend", "tune", "on_unprepared"],
)
def test_what_signatures_offer_is_what_is_allowed(written: Any, allowed: list[str]) -> None:
    strings: set[str] = set()
    for part in get_args(written):
        own = () if isinstance(part, type) and issubclass(part, Enum) else get_args(part) or (part,)
        strings.update(own)
    assert strings == set(allowed)
