"""The `expunge` command: one file a verb. It parses and prints; torch is imported once there is work to do.

This file imports nothing that takes time: signals are seen to before anything else is.
"""

from __future__ import annotations

from expunge.stopping import Stopped, fail, finish, stop_on_signals, stopped_outside

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typer


def main() -> None:
    """Runs the command line. Exit codes: 0 done, 1 could not be done, 2 wrong usage, 3 done but the audit failed."""
    stop_on_signals()
    from expunge.cli.app import app

    run(app)


def run(app: typer.Typer) -> None:
    """Runs a command line: what goes wrong is one line on standard error, and an exit code."""
    stop_on_signals()
    import io
    import os
    import sys
    import warnings

    import typer

    from expunge.errors import ExpungeError, ExpungeWarning, one_line

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
        fail(one_line(error), 1)
    except Exception as error:
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        fail(" ".join(message().split()), 2)  # click's usage errors
    finish(code or 0)
