"""A pytest plugin: what failed is printed when it fails, and what was run so far is kept, as JSON, in the file that
`--tally` names. A run that is cut short says nothing at its end."""

import json
import time
from collections import Counter
from pathlib import Path

import pytest

_EVERY = 2.0  # seconds


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tally", metavar="FILE", help="keep in this file what was run so far")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # pytest-xdist's workers tell the process that started them
        config.pluginmanager.register(Tally(config.getoption("--tally")), "tally")


class Tally:
    def __init__(self, path: str | None) -> None:
        self._path = None if path is None else Path(path)
        self._outcomes: Counter[str] = Counter()
        self._failed: list[str] = []
        self._written = 0.0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            print(f"\nFAILED {report.nodeid}\n{report.longreprtext[-3000:]}", flush=True)
            self._failed.append(report.nodeid)
        if report.when == "call" or report.outcome != "passed":
            self._outcomes[report.outcome] += 1
        if report.failed or time.monotonic() - self._written > _EVERY:
            self._write("still running")

    def pytest_sessionfinish(self) -> None:
        self._write("all were run")

    def _write(self, state: str) -> None:
        self._written = time.monotonic()
        if self._path is not None:
            said = {"state": state, **self._outcomes, "failures": self._failed}
            part = self._path.with_suffix(".part")
            part.write_text(json.dumps(said, indent=1) + "\n")
            part.replace(self._path)
