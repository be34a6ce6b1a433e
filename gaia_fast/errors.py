"""Every exception that gaia_fast raises on purpose.

Each derives from `GaiaError` and from the built-in class that a caller would expect, names the module, tensor or file
at fault, and says what to do about it. Warnings are here, too.
"""

from collections.abc import Sequence
from typing import Any


class GaiaError(Exception):
    """Base of all exceptions of this package."""


class InputError(GaiaError, ValueError):
    """The images are of the wrong type, shape, dtype, device or value."""


class ModelError(GaiaError, RuntimeError):
    """The model is in a state, or of a kind, that cannot be scored."""


class CompilationError(ModelError):
    """The model, or its program, cannot be compiled or written in the form asked for; hooks may score it."""


class LayerError(GaiaError, ValueError):
    """A layer or head that was asked for does not exist or cannot be inspected."""


class BackendError(GaiaError, RuntimeError):
    """The engine or backend that was forced cannot run here, or a kernel refused its arguments."""


class UnpreparedError(GaiaError, RuntimeError):
    """There is no program for images of this kind, and hooks were not to take them."""


class UnpreparedWarning(UserWarning):
    """Images are scored by hooks, which is slower, where a program could be prepared; said once for each kind."""


class MissingKernelsWarning(UserWarning):
    """The package's own kernels are not built here, and PyTorch's operators do on the CPU what they would, slower."""


class ProgramCacheWarning(UserWarning):
    """A program could not be kept in the folder that it was to be kept in, or what was kept there did not fit."""


class NonFiniteError(GaiaError, ArithmeticError):
    """A logit or a score came out infinite or NaN; the message names the images."""


class CalibrationError(GaiaError, ValueError):
    """The threshold is missing, or the scores it should come from are unusable."""


class WeightsError(GaiaError, ValueError):
    """A weights file cannot be read or does not fit the network."""


class DataError(GaiaError, ValueError):
    """An image source cannot be read at all (single unreadable images are reported, not raised)."""


class ArgumentError(GaiaError, ValueError):
    """An option has a value that is not one of those allowed."""


class InvariantError(GaiaError, AssertionError):
    """What must always hold of a detector does not, on the user's own model; `results` holds all that was asked."""

    def __init__(self, message: str, results: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.results = list(results)


def first_line(error: BaseException) -> str:
    """Returns the first line that another library's exception says, or its kind where it says nothing."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def printable(text: str) -> str:
    """Returns a name from a file as it may be shown: some hold what terminals take for commands."""
    return text if text.isprintable() else ascii(text)
