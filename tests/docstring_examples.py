"""Runs the examples of a docstring."""

import doctest
import inspect
from collections.abc import Callable
from typing import Any


def check_examples(of: Callable[..., Any]) -> None:
    """Asserts that the docstring of a class or function has examples, and that each says what comes out."""
    names = vars(inspect.getmodule(inspect.unwrap(of)))
    tests = [
        each
        for each in doctest.DocTestFinder(recurse=False).find(of, of.__qualname__, globs=dict(names))
        if each.examples
    ]
    assert tests, "its docstring has no example"
    for test in tests:
        assert doctest.DocTestRunner(verbose=False).run(test).failed == 0
