"""The examples in the docstrings of what users call: each is there, and says what comes out."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest

import gaia_fast
from gaia_fast import DriftMonitor, DriftReport, Gaia, GaiaA, GaiaZ, backends, logit_scores, ops, reference, versions
from gaia_fast.compiler.runtimes import availability
from gaia_fast.data import surrogate_sources
from gaia_fast.data.hugging_face import from_hugging_face
from gaia_fast.evaluation.combinations import max_standardised, rank_average, title
from gaia_fast.evaluation.metrics import ood_metrics

from docstring_examples import check_examples

METHODS = dict.fromkeys(
    method
    for of in (GaiaZ, Gaia, DriftMonitor, DriftReport)
    for name, method in inspect.getmembers(of, inspect.isfunction)
    if name[0] != "_"
)
PUBLIC = [
    GaiaZ,
    GaiaA,
    Gaia,
    DriftMonitor,
    *METHODS,
    logit_scores.logit_score,
    gaia_fast.check_detector,
    gaia_fast.load,
    gaia_fast.read_metadata,
    reference.gaia_z,
    reference.gaia_a,
    *(getattr(ops, name) for name in ops.__all__),
    backends.available,
    backends.choose,
    versions.show_versions,
    versions.version_report,
    versions.versions,
    availability.available,
    ood_metrics,
    rank_average,
    max_standardised,
    title,
    surrogate_sources,
    from_hugging_face,
]


@pytest.mark.parametrize("of", PUBLIC, ids=lambda of: of.__qualname__)
def test_the_example_runs(of: Callable[..., Any]) -> None:
    check_examples(of)
