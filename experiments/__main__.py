"""`python -m experiments`: everything that measures the paper, the methods and the speed."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from experiments import background
from experiments.plan import PLAN
from experiments.terminal import print_comparison, print_grid
from expunge import cli
from expunge.cli.options import Device, Json, Resize, Seed
from expunge.cli.printing import print_table
from expunge.errors import SettingError, printable
from expunge.stopping import work

app = typer.Typer(
    help="Measure the paper's experiments, the methods, the audit and the speed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
Results = Annotated[Path, typer.Argument(metavar="DIR", help="Results of `run`.")]

MEASUREMENTS = {
    "paper": ("paper.page", "Draw the figures of docs/research/paper-figures.md."),
    "protocol": ("paper.protocol", "Measure readings of the paper's protocol."),
    "better": ("comparisons.better", "Draw the figure of docs/research/comparisons.md."),
    "alone": ("comparisons.alone", "Measure what forgetting costs with nothing but the forget set."),
    "alone-figure": ("comparisons.alone_figure", "Draw the README's figure of the forget set alone."),
    "unlabelled": ("comparisons.unlabelled", "Measure what unlabelled images are worth without a test set."),
    "rivals": ("comparisons.rivals", "Measure another library with nothing but the forget set."),
    "peers": ("peers.main", "Measure other libraries beside ours on one job."),
    "chains": ("comparisons.chains", "Measure many requests, one after the other."),
    "ranking": ("comparisons.ranking", "Measure how well `calibrated` ranks forgotten examples."),
    "forgetting": ("comparisons.forgetting", "Measure every method and choice on Fashion-MNIST."),
    "forgetting-figure": ("comparisons.figures", "Draw the README's figure."),
    "audit-cost": ("audits.cost", "Time an audit."),
    "audit-attacks": ("audits.attacks", "Measure what each attack of the audit finds."),
    "audit-difficulty": ("audits.difficulty", "Measure the audit of non-random sets."),
    "audit-nearer": ("audits.nearer", "Measure how near to retraining `calibrated` comes with other targets."),
    "audit-simulation": ("audits.simulation", "Simulate the audit's error rates."),
    "full-audit": ("audits.full", "Run the full audit of docs/research/full-audit.md."),
    "theory-results": ("theory.page", "Measure the theorem for docs/research/theory.md, and draw its figure."),
    "speed": ("speed.library", "Time the library."),
    "memory": ("speed.memory", "Measure the memory that large sets take."),
    "grid-speed": ("speed.grid", "Time the grid's cells against a plain script."),
    "docs": ("docs", "Write measured tables into the docs; --check only compares."),
}
"""{command: (module with a `main`, what it does)}. Each parses its own options."""


@app.command()
def run(
    grid: Annotated[Path, typer.Argument(help="TOML file, such as grids/paper.toml.")],
    out: Annotated[Path, typer.Option(help="Directory of the results; a second run does only what is missing.")],
    models: Annotated[
        Path | None, typer.Option(help="Directory of the originals; missing ones are trained. Default: OUT-originals.")
    ] = None,
    only: Annotated[
        list[str],
        typer.Option(metavar="KEY=VALUE,…", help="Keys: dataset, architecture, method, size, seed; repeat for more."),
    ] = [],  # noqa: B006
    workers: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    ray: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Use a Ray cluster; local starts one.")] = None,
    limit: Annotated[float | None, typer.Option(metavar="MINUTES", help="End in time, with what is finished.")] = None,
    profile: Annotated[str | None, typer.Option(help="Of the grid; default: gpu where there is one, else cpu.")] = None,
    no_train: Annotated[bool, typer.Option("--no-train", help="Leave out cells whose original is missing.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Do failed cells again.")] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Do what is missing of a grid of experiments: one JSON line a cell, safe the moment it is written."""
    with work(kept=str(out)):
        from experiments.grid.run import bench_run

        done = bench_run(
            grid,
            out,
            models=models,
            only_cells=only,
            workers=workers,
            ray=ray,
            limit_minutes=limit,
            profile=profile,
            train_missing=not no_train,
            retry_failed=retry_failed,
            device=device,
            announce=lambda line: print(printable(line), file=sys.stderr),
            beat=None if sys.stderr.isatty() else 60.0,
        )
    print_grid(done, as_json)
    raise typer.Exit(1 if done.problems else 0)


@app.command()
def tables(
    directory: Results,
    beside_paper: Annotated[
        bool, typer.Option("--beside-paper", help="Print the paper's number and the difference in each cell.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="New directory for Markdown, LaTeX and CSV.")] = None,
) -> None:
    """Print the paper's Tables 1 to 16 from our results, as Markdown."""
    from experiments.paper import report

    print(report.bench_tables(directory, beside_paper=beside_paper, out=out), end="")


@app.command()
def figures(
    directory: Results, out: Annotated[Path, typer.Option(help="New directory for the figures (SVG) and figures.md.")]
) -> None:
    """Draw the paper's Figures 1 to 8 from our results, and print their captions and correlations."""
    from experiments.paper import report

    print(report.bench_figures(directory, out), end="")


@app.command()
def compare(
    directory: Results,
    out: Annotated[Path | None, typer.Option(help="New directory for compare.json and compare.md.")] = None,
    as_json: Json = False,
) -> None:
    """Say which of the paper's claims hold in our results: yes, no or undecided, each with the evidence."""
    from experiments.paper import report

    print_comparison(report.bench_compare(directory, out=out), as_json)


@app.command()
def theory(
    model: Annotated[str, typer.Option(help="MODEL, as for `expunge forget`.")],
    data: Annotated[str, typer.Option(help="DATA of examples that the model was trained on.")],
    ids: Annotated[Path | None, typer.Option(help="File with one id a line: measure only these of DATA.")] = None,
    num: Annotated[int | None, typer.Option(min=1, help="Draw so many of DATA; default: 512.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="The runs forget the first so many; default: 64.")] = None,
    steps: Annotated[str, typer.Option(help="Adam updates after which the runs are measured.")] = "1,2,5,10,20",
    weights: Annotated[Path | None, typer.Option(help="Weights file for timm: and py: models.")] = None,
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Accept .pt weights (tensors only).")] = False,
    resize: Resize = False,
    out: Annotated[Path | None, typer.Option(help="New directory for theory.json and theory.svg.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure how concentrated updates are: single steps, as the theorem has it, and runs."""
    with work():
        from experiments.theory.measure import theory as measured

        report = measured(
            model,
            data,
            ids=ids,
            num=num,
            batch=batch,
            steps=_counts("--steps", steps),
            seed=seed,
            device=device,
            weights=weights,
            allow_pickle=allow_pickle,
            resize=resize,
            out=out,
        )
    if as_json:
        print(report.to_json())
        return
    from experiments.theory import tables as theory_tables

    for table in theory_tables.tables(report):
        print_table(table.title, list(table.columns), table.rows)
    print(theory_tables.SCOPE)
    if report.directory:
        print(f"theory.json and theory.svg are in {report.directory}.")


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
def supervisor(plan: Path, runs: Path) -> None:
    """What the background job itself runs: the work, paused while there is a file `pause`."""
    background.Job(runs, plan).supervise()


@app.command(hidden=True)
def worker(plan: Path, runs: Path) -> None:
    """What the background job's worker runs."""
    background.Job(runs, plan).work()


def _measurement(name: str, module: str, summary: str) -> None:
    """Adds a command that hands its options to the module's own `main`."""

    @app.command(name, help=summary, add_help_option=False, context_settings={"ignore_unknown_options": True})
    def run_it(arguments: Annotated[list[str] | None, typer.Argument()] = None) -> None:
        sys.argv = [f"python -m experiments {name}", *(arguments or [])]
        found = import_module(f"experiments.{module}")
        options = [argument for argument in sys.argv[1:] if argument.startswith("-")]
        if not hasattr(found, "argparse") and {"--help", "-h"} & set(options):
            print(found.__doc__)
        elif not hasattr(found, "argparse") and options:
            raise SettingError(f"{name} has no option {options[0]}: see python -m experiments {name} --help")
        else:
            found.main()


for _name, (_module, _summary) in MEASUREMENTS.items():
    _measurement(_name, _module, _summary)


def _counts(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise SettingError(f"{option} takes whole numbers, such as 1,2,5, not {text!r}") from error


if __name__ == "__main__":
    cli.run(app)
