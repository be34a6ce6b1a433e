"""--resume: what is said of the rows that are safe when a command ends early, or goes on."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from gaia_fast.batch_scoring.parts import PartsFolder, parts_of
from gaia_fast.batch_scoring.request import Request
from gaia_fast.cli.output import note


@contextlib.contextmanager
def resumable(table: Path, request: Request, resume: bool) -> Iterator[PartsFolder]:
    """The folder for the parts of a table, as `parts_of`; it goes when the table is there.

    A command that ends early, by an error, Ctrl-C or SIGTERM, says how many rows are safe, and leaves them. They go
    where no run could tell whether they are of the same model.
    """
    with parts_of(table, request, resume) as (folder, earlier), _ended_by_sigterm():
        everything = f"the rows of {folder.done:,} of {request.count:,} images"
        if earlier and resume:
            note(f"resuming: {everything} are in {folder.path}")
        elif earlier:
            note(
                f"{folder.path}: what an earlier run has left is replaced; --resume goes on with what the same command "
                "has left"
            )
        elif resume:
            note(f"nothing to resume: there is no {folder.path} of an earlier run; starting from the beginning")
        try:
            yield folder
        except BaseException:
            if folder.done and not request.difference(request):
                note(
                    f"the rows of {folder.done:,} of {request.count:,} images are safe in {folder.path}; --resume goes "
                    "on"
                )
            else:
                folder.remove()
            raise
        folder.remove()


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Lets SIGTERM end the process by an exception, as SIGINT does."""
    if threading.current_thread() is not threading.main_thread():  # no other may say what a signal does
        yield
        return

    def end(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)  # as shells have it

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # None: of no Python code
