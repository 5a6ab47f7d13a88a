"""The `expunge` command: one file a verb. It parses and prints; torch is imported once there is work to do."""

import io
import os
import sys
import warnings
from typing import Annotated

import typer

from expunge import __version__
from expunge.cli import audit, data, demo, forget, methods, train
from expunge.errors import ExpungeError, ExpungeWarning
from expunge.stopping import Stopped, fail, stop_on_signals, stopped_outside

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
for command in (demo.demo, train.train, forget.forget, audit.audit, methods.methods):
    app.command()(command)
app.add_typer(data.app, name="data")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"expunge {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Make a trained PyTorch classifier forget chosen training examples."""


def main() -> None:
    """Runs the command line. Exit codes: 0 done, 1 could not be done, 2 wrong usage, 3 done but the audit failed."""
    run(app)


def run(app: typer.Typer) -> None:
    """Runs a command line: what goes wrong is one line on standard error, and an exit code."""
    stop_on_signals()
    warnings.simplefilter("ignore", ExpungeWarning)  # commands print what they say
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a path need not be text that the terminal can show
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(standalone_mode=False)
    except ExpungeError as error:
        fail(str(error), error.exit_code)
    except (Stopped, KeyboardInterrupt, typer.Abort):
        stopped_outside()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads on; let exit flush quietly
        sys.exit(1)
    except OSError as error:
        fail(str(error), 1)
    except Exception as error:
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        fail(" ".join(message().split()), 2)  # click's usage errors
    sys.exit(code or 0)
