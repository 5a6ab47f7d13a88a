"""The verbs of the `expunge` command."""

from typing import Annotated

import typer

from expunge import __version__
from expunge.cli import audit, data, demo, forget, methods, train
from expunge.errors import SettingError
from expunge.stopping import launched

app = typer.Typer(no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, rich_markup_mode=None)
for command in (demo.demo, train.train, forget.forget, audit.audit, methods.methods):
    app.command()(command)
app.add_typer(data.app, name="data")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"expunge {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Say on standard error what is done, a line for each phase and epoch.")
    ] = False,
) -> None:
    """Make a trained PyTorch classifier forget chosen training examples."""
    if verbose:
        from expunge.progress import tell

        tell()
    if launched() and context.invoked_subcommand not in {"forget", None}:
        raise SettingError(
            f"several processes were launched, which `expunge forget` alone can use: start "
            f"`expunge {context.invoked_subcommand}` by itself"
        )
