import json
import re

import pytest

from gaia_fast import GaiaA
from gaia_fast.errors import ArgumentError
from gaia_fast.method import Method
from gaia_fast.options import EngineName, Fusion, Measure, Option, Runtime, Statistic

import zoo

EVERY = [Measure, Fusion, Statistic, EngineName, Runtime]


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
