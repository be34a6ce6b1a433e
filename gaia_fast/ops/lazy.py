"""Implementations whose modules are imported on first use: Triton takes long to import and may not be installed."""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any


def lazily(module: str, name: str) -> Callable[..., Any]:
    """Returns a function that calls `name` of `module`, imported when it is first called."""

    @cache
    def found() -> Callable[..., Any]:
        return getattr(import_module(module), name)

    def call(*args: Any) -> Any:
        return found()(*args)

    return call
