"""The verbs of the `expunge` command."""

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from expunge import __version__
from expunge.cli import audit, data, demo, forget, methods, train
from expunge.errors import SettingError
from expunge.stopping import launched

app = typer.Typer(no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, rich_markup_mode=None)
"""Help without rich's boxes, which take a third of a narrow terminal."""


class Sectioned(TyperCommand):
    """A command whose help lists its options by their `rich_help_panel`."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes a section a panel, in the order in which they first come."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if (line := param.get_help_record(ctx)) is not None:
                sections.setdefault(getattr(param, "rich_help_panel", None) or "Options", []).append(line)
        for name, lines in sections.items():
            with formatter.section(name):
                formatter.write_dl(lines)


for command, in_short, example in (
    (demo.demo, "See it work: train, forget 100 images, audit. A minute.", "expunge demo"),
    (
        forget.forget,
        "Make a model forget examples, and audit it.",
        "expunge forget --model hf:my-model --forget folder:delete-these --test folder:unseen --out forgot",
    ),
    (
        audit.audit,
        "Test whether an unlearned model still reveals them.",
        "expunge audit --before old --after new --forget folder:deleted --test folder:unseen --out report",
    ),
    (methods.methods, "List the methods, or the settings of one.", "expunge methods targeted"),
    (
        train.train,
        "Train a classifier.",
        "expunge train --data folder:photos --model resnet18 --set epochs=20 --out my-model",
    ),
):
    app.command(cls=Sectioned, short_help=in_short, epilog=f"Example: {example}")(command)
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
