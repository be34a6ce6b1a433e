"""The command line `gaia-fast`: one file per command; what they compute lives in modules that know nothing of click."""

import errno
import warnings
from typing import Any

import click

from gaia_fast.cli.calibrate import calibrate as calibrate_command
from gaia_fast.cli.demo import demo as demo_command
from gaia_fast.cli.evaluate import evaluate as evaluate_command
from gaia_fast.cli.export import export as export_command
from gaia_fast.cli.layers import layers as layers_command
from gaia_fast.cli.reproduce import reproduce as reproduce_command
from gaia_fast.cli.score import score as score_command
from gaia_fast.cli.serve import serve as serve_command
from gaia_fast.cli.validate import validate as validate_command
from gaia_fast.errors import GaiaError
from gaia_fast.versions import version_report


class _Group(click.Group):
    """Turns the errors that a user can mend into one line on stderr and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with warnings.catch_warnings():  # what a command leaves unsaid, others that call it may say
                return super().invoke(ctx)
        except GaiaError as error:
            raise click.ClickException(" ".join(str(error).split())) from error
        except OSError as error:
            # A closed pipe (| head) is no error of anybody's: click ends quietly on it.
            if error.errno == errno.EPIPE:
                raise
            raise click.ClickException(str(error)) from error


def _print_versions(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        click.echo(version_report())
        ctx.exit()


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done; 1 an error, an interruption, or a validation that failed; 2 wrong usage; 3 done, but "
    "some images could not be read: they are named on stderr and left out.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_versions,
    help="Show the version, kernels, backends, runtimes and packages that are here, and exit.",
)
def main() -> None:
    """Tells how far out of distribution images are for a PyTorch classifier (GAIA). Larger score = further out.

    `gaia-fast demo` needs no arguments.
    """


for _command in (
    score_command,
    evaluate_command,
    reproduce_command,
    validate_command,
    layers_command,
    export_command,
    calibrate_command,
    serve_command,
    demo_command,
):
    main.add_command(_command)
