"""`python -m experiments`: the paper's experiments, run in the background."""

from pathlib import Path
from typing import Annotated

import typer

from experiments import background
from experiments.plan import PLAN

app = typer.Typer(no_args_is_help=True, add_completion=False, help="The paper's experiments.")


@app.callback()
def experiments() -> None:
    """Runs the paper's experiments."""


@app.command()
def grid(
    status: Annotated[bool, typer.Option("--status", help="Say what is done and what comes next.")] = False,
    collect: Annotated[bool, typer.Option("--collect", help="Copy finished results into results/.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="End the background job.")] = False,
    minutes: Annotated[float | None, typer.Option(help="Work here for so long instead, as on a lent GPU.")] = None,
    plan: Annotated[Path, typer.Option(help="The list of steps.")] = PLAN,
    runs: Annotated[Path, typer.Option(help="Where weights, states and new results are kept.")] = background.RUNS,
) -> None:
    """Works through the experiments in the background, at the lowest priority, until all are done.

    A file `pause` in the directory RUNS holds it. Started again, it goes on with the sources of the newest commit.
    """
    job = background.Job(runs.resolve(), plan)
    if status:
        typer.echo(job.status())
    elif collect:
        typer.echo(job.collect())
    elif stop:
        typer.echo("stopped" if job.stop() else "it was not running")
    elif minutes is not None:
        job.work(limit_minutes=minutes)
    else:
        typer.echo(job.start())


@app.command(hidden=True)
def supervise(plan: Path, runs: Path) -> None:
    """What the background job itself runs: the work, paused while there is a file `pause`."""
    background.Job(runs, plan).supervise()


@app.command(hidden=True)
def work(plan: Path, runs: Path) -> None:
    """What the background job's worker runs."""
    background.Job(runs, plan).work()


if __name__ == "__main__":
    app()
