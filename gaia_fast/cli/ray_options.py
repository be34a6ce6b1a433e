"""--ray: the workers of a Ray cluster, or of a Ray of the command's own."""

import contextlib
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click

from gaia_fast.batch_scoring import ray_data
from gaia_fast.cli.options import Command, ModelOptions
from gaia_fast.cli.output import note

_LOCAL = "local"


@dataclass(frozen=True)
class RayOptions:
    """--ray, --workers, and the device that the workers compute on."""

    address: str | None
    workers: int | None
    device: str

    @contextlib.contextmanager
    def connected(self) -> Iterator[ray_data.Workers]:
        """The workers, of which a line on stderr tells; they end with the context."""
        with ray_data.connected(self.address, self.workers, self.device) as workers:
            where = f"at {self.address}" if self.address else "of this process's own"
            note(f"Ray {where}: {_counted(workers.count, 'worker')}, {_counted(workers.threads, 'thread')} each")
            yield workers


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def ray_options(command: Command) -> Command:
    """Adds the options; the command gets them as `on_ray`, a RayOptions, or None."""

    @click.option(
        "--ray",
        "address",
        is_flag=False,
        flag_value=_LOCAL,
        metavar="[ADDRESS]",
        help="Score on Ray (the extra `ray`): on the cluster at HOST:PORT, on the one that runs here (auto), or, "
        "without an ADDRESS, on a Ray that is started for this command and ends with it. Workers are sent the model; "
        "images of a folder, of Parquet and WebDataset they read themselves.",
    )
    @click.option(
        "--workers",
        type=click.IntRange(1),
        help="Processes of --ray, each with a model of its own.  [default: one for each two processors, or for each "
        "GPU]",
    )
    @functools.wraps(command)
    def wrapped(*args: Any, address: str | None, workers: int | None, model: ModelOptions, **kwargs: Any) -> Any:
        if workers is not None and address is None:
            raise click.UsageError("--workers are Ray's; it needs --ray")
        if address not in (None, _LOCAL, "auto") and not re.fullmatch(
            r"[^\s/:]+:\d+|\[[0-9a-fA-F:]+\]:\d+", address or ""
        ):
            raise click.UsageError(
                f"--ray {address}: no HOST:PORT, and not auto. Without an address, put IMAGES before --ray, or another "
                "option after it"
            )
        on_ray = None
        if address is not None:
            on_ray = RayOptions(None if address == _LOCAL else address, workers, model.device)
        return command(*args, on_ray=on_ray, model=model, **kwargs)

    return wrapped
