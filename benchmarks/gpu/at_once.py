"""A pytest plugin: what failed is printed when it fails. A run that is cut short says nothing at its end."""

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        print(f"\nFAILED {report.nodeid}\n{report.longreprtext[-3000:]}", flush=True)
