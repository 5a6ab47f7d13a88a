"""`expunge demo`: the main job on the embedded images."""

from dataclasses import replace
from pathlib import Path

from expunge.commands.forget import forget
from expunge.commands.sources import Sources
from expunge.commands.train import train
from expunge.data import draw_ids, load_data
from expunge.errors import SettingError
from expunge.files import check_unused, new_directory
from expunge.methods import Needs, make_method
from expunge.report.record import Report, told, write_report

DEMO_SIZE = 100
"""How many images the demo forgets: enough for the audit to certify it."""

DEMO_SETTINGS = {"epochs": 15, "width": 16}
"""Half the epochs and half the width of the recipe: enough to learn every image by heart, in seconds."""


def demo(out: str | Path, *, method: str | None = None, seed: int = 0) -> Report:
    """Trains the small residual network on the embedded sample and makes it forget 100 of its images.

    Writes `original/` (as `train` does), `ids.txt` and `forgot/` (as `forget` does) to the new directory `out`.
    """
    out = Path(out)
    check_unused(out)
    if method is not None and Needs.UPDATES in make_method(method).needs:
        raise SettingError(f"{method} needs the update log of a training, which the demo does not write; name another")
    with new_directory(out) as temporary:
        train("sample:train", "small_resnet", temporary / "original", settings=DEMO_SETTINGS, seed=seed, device="cpu")
        drawn = draw_ids(load_data("sample:train"), DEMO_SIZE, seed)
        (temporary / "ids.txt").write_text("\n".join(drawn) + "\n", encoding="utf-8")
        sources = Sources(
            model=str(temporary / "original"),
            forget="sample:train",
            ids=temporary / "ids.txt",
            retain="sample:train",
            test="sample:test",
        )
        report = forget(sources, temporary / "forgot", method=method, seed=seed, device="cpu")
        final = replace(sources, model=str(out / "original"), ids=out / "ids.txt")
        report = replace(report, directory=str(out / "forgot"), sources=told(final, device="cpu"))
        return write_report(temporary / "forgot", report)
