"""Fixtures for all tests: memory that is poisoned before use, one parameter list of backends, settings put back."""

import gc
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

from cases import INTERPRETED, TARGETS, Target

# The same examples in every run; --hypothesis-profile=explore looks for new ones.
hypothesis.settings.register_profile(
    "repeatable",
    max_examples=20 if INTERPRETED else 150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.register_profile(
    "explore", hypothesis.settings.get_profile("repeatable"), derandomize=False, max_examples=2000, print_blob=True
)
hypothesis.settings.load_profile("repeatable")

# What is measured differs from run to run, and nothing is to be left in the user's cache.
os.environ.setdefault("GAIA_FAST_TUNE", "model")
os.environ.setdefault("GAIA_FAST_CACHE", "")

# A worker of pytest-xdist has one processor to itself, and so has what it starts.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


GPU_TESTS = Path(__file__).parent / "gpu"

# Tracing makes millions of objects, and PyTorch's modules are a million more: the collector need not go over these, nor
# over those every few hundred.
gc.collect()
gc.freeze()
gc.set_threshold(20_000, 20, 20)


def pytest_configure(config: pytest.Config) -> None:
    """Most tests mean hooks; `engines/test_auto.py` looks for the warning.

    Not in pyproject.toml: pytest would import the package before `cases` has put the extension in place that is tested.
    """
    config.addinivalue_line("filterwarnings", "ignore::gaia_fast.errors.UnpreparedWarning")


@pytest.fixture(autouse=True)
def poisoned_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fills what torch.empty and its kin hand out with NaN, so that an element that a kernel forgets shows.

    Not in tests/gpu: with deterministic algorithms PyTorch runs other kernels there than users have.
    """
    if request.path.is_relative_to(GPU_TESTS):
        yield
        return
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    deterministic: Any = torch.utils.deterministic  # a module with a property
    fill = deterministic.fill_uninitialized_memory
    # Torch fills only together with its deterministic algorithms; it need not refuse those that it does not have.
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = True
    yield
    deterministic.fill_uninitialized_memory = fill
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


@pytest.fixture(params=TARGETS, ids=str)
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Every implementation that runs here, in force during the test."""
    with request.param.active() as each:
        yield each


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """Returns torch.set_num_threads; the number is put back afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def flush_denormal() -> Iterator[Callable[[], None]]:
    """Returns a function that makes arithmetic take subnormals for zero, until the end of the test."""

    def flush() -> None:
        if not torch.set_flush_denormal(True):
            pytest.skip("this processor cannot flush subnormals to zero")

    yield flush
    torch.set_flush_denormal(False)


@pytest.fixture
def deadline() -> Iterator[None]:
    """Ends, by an error, a test of what must not wait or run for ever."""

    def late(*_: object) -> None:
        pytest.fail("still at it after a minute")  # no Exception, which what is tested might catch

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
