"""`expunge demo`: the main job on the embedded images."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expunge.cli.options import Json, Seed
from expunge.cli.printing import print_report
from expunge.errors import SettingError
from expunge.stopping import work

if TYPE_CHECKING:
    from expunge.report.record import Report

DEMO_SIZE = 100
"""How many images the demo forgets: enough for the audit to say PASS."""

DEMO_SETTINGS = {"epochs": 15, "width": 16}
"""Half the epochs and half the width of the recipe: enough to learn every image by heart, in seconds."""


def demo(
    out: Annotated[Path | None, typer.Option(help="New directory for what it makes; default: expunge-demo.")] = None,
    method: Annotated[str | None, typer.Option(help="See `expunge methods`. Default: calibrated.")] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train a small network on the embedded images, make it forget 100 of them, and report."""
    with work():
        taken = 1
        while out is None:  # expunge-demo, expunge-demo-2, …
            candidate = Path("expunge-demo" if taken == 1 else f"expunge-demo-{taken}")
            out, taken = None if candidate.exists() else candidate, taken + 1
        report = run(out, method=method, seed=seed)
    print_report(report, as_json)


def run(out: Path, *, method: str | None = None, seed: int = 0) -> "Report":
    """Writes `original/` (as `train` does), `ids.txt` and `forgot/` (as `forget` does) to the new directory `out`."""
    from expunge.cli import forget
    from expunge.cli.sources import Sources, told, write_report
    from expunge.data import draw_ids, load_data
    from expunge.files import check_unused, new_directory, write_private
    from expunge.methods import Needs, make_method
    from expunge.trainer import train

    check_unused(out)
    if method is not None and Needs.UPDATES in make_method(method).needs:
        raise SettingError(f"{method} needs the update log of a training, which the demo does not write; name another")
    with new_directory(out) as temporary:
        train("sample:train", "small_resnet", temporary / "original", settings=DEMO_SETTINGS, seed=seed, device="cpu")
        drawn = draw_ids(load_data("sample:train"), DEMO_SIZE, seed)
        write_private(temporary / "ids.txt", "\n".join(drawn) + "\n")
        sources = Sources(
            model=str(temporary / "original"),
            forget="sample:train",
            ids=temporary / "ids.txt",
            retain="sample:train",
            test="sample:test",
        )
        report = forget.run(sources, temporary / "forgot", method=method, seed=seed, device="cpu")
        final = replace(sources, model=str(out / "original"), ids=out / "ids.txt")
        report = replace(report, directory=str(out / "forgot"), sources=told(final, device="cpu"))
        return write_report(temporary / "forgot", report)
