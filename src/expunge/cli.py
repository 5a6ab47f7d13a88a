"""The `expunge` command. It parses and prints; each command is one call of `expunge.commands`."""

import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expunge import __version__
from expunge.errors import ExpungeError, SettingError, printable
from expunge.stopping import Stopped, fail, stop_on_signals, stopped_outside, work
from expunge.terminal import percent, print_full_audit, print_methods, print_report, print_table

if TYPE_CHECKING:
    from expunge.commands import Report

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Get and look at data.", no_args_is_help=True)
app.add_typer(data_app, name="data")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto.")]
Resize = Annotated[bool, typer.Option("--resize", help="Resize a folder's images to the model's size.")]
WithImages = Annotated[
    bool,
    typer.Option("--with-images", help="Show recognisable forgotten images in report.html, which then holds them."),
]
Set = Annotated[
    list[str],
    typer.Option("--set", metavar="NAME=VALUE", help="A setting of the method (`expunge methods`); repeat for more."),
]
RecipeSet = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="A setting of the recipe, such as epochs=20, or of the network, such as width=32; repeat for more.",
    ),
]


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


@app.command()
def demo(
    out: Annotated[Path | None, typer.Option(help="New directory for what it makes; default: expunge-demo.")] = None,
    method: Annotated[str | None, typer.Option(help="See `expunge methods`. Default: calibrated.")] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train a small network on the embedded images, make it forget 100 of them, and report."""
    with work():
        from expunge import commands

        report = commands.demo(out or _unused(Path("expunge-demo")), method=method, seed=seed)
    print_report(report, as_json)


@app.command()
def train(
    data: Annotated[str, typer.Option(help="DATA of the training set, such as fashion-mnist or folder:DIR.")],
    model: Annotated[str, typer.Option(help="small_resnet, resnet18, resnet50, vit or timm:NAME.")],
    out: Annotated[Path, typer.Option(help="New directory for the checkpoint.")],
    settings: RecipeSet = [],  # noqa: B006  (typer reads it, nobody writes it)
    seed: Seed = 0,
    device: Device = "auto",
    record_updates: Annotated[
        str | None,
        typer.Option(metavar="all|IDS", help="Write the update log for amnesiac_undo: all steps, or those with ids."),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep the training here after each epoch; go on from it if it is there."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a classifier, and write a checkpoint that describes itself."""
    with work(kept=str(state) if state else None):
        from expunge import commands

        done = commands.train(
            data,
            model,
            out,
            settings=_settings(settings),
            seed=seed,
            device=device,
            record_updates=record_updates,
            state=state,
            announce=lambda line: print(printable(line), file=sys.stderr),
        )
    if as_json:
        print(done.to_json())
        return
    rows = [
        ("train accuracy", percent(done.train_accuracy)),
        ("test accuracy", percent(done.test_accuracy)),
        ("examples", f"{done.num_examples:,}"),
        ("seconds", f"{done.seconds:.1f}"),
    ]
    print_table(f"{model} trained on {data}", ["", ""], rows)
    print(f"The model is in {out}.")


@app.command()
def forget(
    model: Annotated[str, typer.Option(help="MODEL: a directory of `expunge train`, hf:DIR, timm:NAME, py:MOD:FN.")],
    forget: Annotated[str, typer.Option(metavar="DATA", help="The examples to forget, such as folder:DIR.")],
    out: Annotated[Path, typer.Option(help="New directory for the model and the report.")],
    ids: Annotated[Path | None, typer.Option(help="File with one id a line: forget only these of DATA.")] = None,
    retain: Annotated[str | None, typer.Option(metavar="DATA", help="Retained training examples.")] = None,
    test: Annotated[
        str | None, typer.Option(metavar="DATA", help="Unseen examples: half for the method, half for the audit.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="See `expunge methods`. Default: calibrated with --test, targeted without.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="A preset of the method, such as paper.")] = None,
    settings: Set = [],  # noqa: B006
    weights: Annotated[Path | None, typer.Option(help="Weights file for timm: and py: models.")] = None,
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Accept .pt weights (tensors only).")] = False,
    updates: Annotated[Path | None, typer.Option(help="Update log; default: the one beside the model.")] = None,
    resize: Resize = False,
    with_images: WithImages = False,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Make a model forget examples, measure it before and after, and audit it where there is a test set."""
    with work():
        from expunge import commands

        sources = commands.Sources(
            model=model,
            forget=forget,
            ids=ids,
            retain=retain,
            test=test,
            weights=weights,
            allow_pickle=allow_pickle,
            updates=updates,
            resize=resize,
        )
        report = commands.forget(
            sources,
            out,
            method=method,
            preset=preset,
            settings=_settings(settings),
            seed=seed,
            device=device,
            with_images=with_images,
        )
    print_report(report, as_json)
    raise typer.Exit(_audit_code(report))


@app.command()
def audit(
    before: Annotated[str, typer.Option(metavar="MODEL", help="The original model.")],
    forget: Annotated[str, typer.Option(metavar="DATA", help="The examples that were to be forgotten.")],
    test: Annotated[str, typer.Option(metavar="DATA", help="Examples that neither model was trained on.")],
    out: Annotated[Path, typer.Option(help="New directory for the report.")],
    after: Annotated[str | None, typer.Option(metavar="MODEL", help="The model that was made to forget.")] = None,
    ids: Annotated[Path | None, typer.Option(help="File with one id a line: only these of --forget.")] = None,
    retain: Annotated[str | None, typer.Option(metavar="DATA", help="Retained training examples.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Weights of --before, for timm: and py: models.")] = None,
    after_weights: Annotated[Path | None, typer.Option(help="Weights of --after, likewise.")] = None,
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Accept .pt weights (tensors only).")] = False,
    resize: Resize = False,
    with_images: WithImages = False,
    difficulty_calibration: Annotated[
        bool,
        typer.Option(
            "--difficulty-calibration",
            help="For non-random forget sets: allow for how hard networks trained on --test find them.",
        ),
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Train many models and compare methods with retraining.")
    ] = False,
    train: Annotated[str | None, typer.Option(metavar="DATA", help="--full: the model's training data.")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[,SETTING=VALUE…]", help="--full: what to compare; repeat for more."),
    ] = None,
    num: Annotated[int | None, typer.Option(min=1, help="--full: models of each kind; default: 64.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="--full: processes; default: 2.")] = None,
    ray: Annotated[str | None, typer.Option(metavar="ADDRESS", help="--full: train on a Ray cluster instead.")] = None,
    references: Annotated[
        Path | None, typer.Option(help="--full: directory of the models; a stopped audit goes on from it.")
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Tell how well a model forgot, from what it was before, what it is now, and examples it never saw."""
    if not full and after is None:
        raise SettingError("an audit needs the model that was made to forget: add --after MODEL (or --full)")
    of_full = {
        "--train": train,
        "--method": method,
        "--references": references,
        "--num": num,
        "--workers": workers,
        "--ray": ray,
    }
    of_default: dict[str, object] = {"--after": after, "--after-weights": after_weights, "--retain": retain}
    of_default |= {"--with-images": with_images, "--difficulty-calibration": difficulty_calibration}
    for option, given in (of_default if full else of_full).items():
        if given:
            raise SettingError(f"{option} is for audits {'without' if full else 'with'} --full; leave one of them out")
    kept = str(references or f"{out}-references") if full else None
    with work(kept):
        from expunge import commands

        sources = commands.Sources(
            model=before,
            forget=forget,
            ids=ids,
            retain=retain,
            test=test,
            weights=weights,
            allow_pickle=allow_pickle,
            resize=resize,
        )
        if full:
            found = commands.full_audit(
                sources,
                train,
                references,
                out,
                methods=method or ["targeted"],
                num_models=num or 64,
                workers=workers or 2,
                ray=ray,
                seed=seed,
                device=device,
                announce=lambda line: print(printable(line), file=sys.stderr),
            )
        else:
            assert after is not None
            report = commands.audit(
                sources,
                after,
                out,
                after_weights=after_weights,
                seed=seed,
                device=device,
                with_images=with_images,
                difficulty_calibration=difficulty_calibration,
            )
    if full:
        print_full_audit(found, out, as_json)
        return
    print_report(report, as_json)
    raise typer.Exit(_audit_code(report))


@app.command()
def methods(as_json: Json = False) -> None:
    """List every method: what it needs, where it comes from, its settings and defaults."""
    print_methods(as_json)


@data_app.command("get")
def data_get(name: Annotated[str, typer.Argument(help="fashion-mnist, cifar10, cifar100 or tiny-imagenet.")]) -> None:
    """Download a dataset from where it is published into the cache directory."""
    with work():
        from expunge.data import download

        print(f"{name} is in {download(name)}.")


@data_app.command("show")
def data_show(data: Annotated[str, typer.Argument(help="DATA, such as fashion-mnist:train.")]) -> None:
    """Say what a DATA spec holds: how many images, of what shape, in which classes."""
    with work():
        from expunge.data import load_data

        images = load_data(data)
    channels, height, width = images.images.shape[1:]
    counts = images.labels.bincount(minlength=len(images.class_names)).tolist()
    ids = f"; ids {images.ids[0]} … {images.ids[-1]}" if images.ids else ""
    print(printable(f"{data}: {len(images):,} images, {channels} × {height} × {width}{ids}"))
    print_table("", ["class", "images"], [(n, f"{c:,}") for n, c in zip(images.class_names, counts, strict=True)])


@data_app.command("ids")
def data_ids(
    data: Annotated[str, typer.Argument(help="DATA, such as fashion-mnist:train.")],
    num: Annotated[int, typer.Option(min=1, help="How many to draw.")],
    seed: Seed = 0,
) -> None:
    """Draw ids at random, one a line, for --ids. With one seed, the first of many are the same as few."""
    with work():
        from expunge.data import draw_ids, load_data

        drawn = draw_ids(load_data(data), num, seed)
    print("\n".join(drawn))


def main() -> None:
    """Runs the command line. Exit codes: 0 done, 1 could not be done, 2 wrong usage, 3 done but the audit failed."""
    run(app)


def run(app: typer.Typer) -> None:
    """Runs a command line: what goes wrong is one line on standard error, and an exit code."""
    stop_on_signals()
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


def _settings(pairs: list[str]) -> dict[str, Any]:
    settings = {}
    for pair in pairs:
        name, found, value = pair.partition("=")
        if not found or not name:
            raise SettingError(f"--set takes NAME=VALUE, such as lam=3, not {pair!r}")
        settings[name.strip().replace("-", "_")] = value.strip()
    return settings


def _unused(path: Path) -> Path:
    """`path`, or path-2, path-3, … where it is taken."""
    taken = 1
    candidate = path
    while candidate.exists():
        taken += 1
        candidate = path.with_name(f"{path.name}-{taken}")
    return candidate


def _audit_code(report: "Report") -> int:
    """3 where the audit failed, else 0."""
    return 3 if report.verdict == "FAIL" else 0
