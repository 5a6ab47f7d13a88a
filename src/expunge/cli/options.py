"""Options that several commands share, each defined once."""

from pathlib import Path
from typing import Annotated, Any

import typer

from expunge.errors import SettingError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto.")]
Resize = Annotated[bool, typer.Option("--resize", help="Resize a folder's images to the model's size.")]
Ids = Annotated[Path | None, typer.Option(help="File with one id a line: only these of --forget.")]
Retain = Annotated[str | None, typer.Option(metavar="DATA", help="Retained training examples.")]
Unlabelled = Annotated[
    str | None,
    typer.Option(metavar="DATA", help="Other images, of any class: the method holds the model's outputs there."),
]
Weights = Annotated[Path | None, typer.Option(help="Weights file of the original, for timm: and py: models.")]
AllowPickle = Annotated[bool, typer.Option("--allow-pickle", help="Accept .pt weights (tensors only).")]
WithImages = Annotated[
    bool,
    typer.Option("--with-images", help="Show recognisable forgotten images in report.html, which then holds them."),
]
MaxLoss = Annotated[
    float | None,
    typer.Option(help="The test accuracy that may be lost, as a share; more is FAIL. Default: 0.05."),
]
ReferenceMinutes = Annotated[
    float | None,
    typer.Option(help="The longest that training reference models for the audit may take; 0: none. Default: 5."),
]
ToSet = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="A setting of the method (`expunge methods`), or of the recipe or the network (`train`), such as "
        "epochs=20; repeat for more.",
    ),
]


def settings_of(pairs: list[str]) -> dict[str, Any]:
    """{name: text} of NAME=VALUE. Raises `SettingError`."""
    settings = {}
    for pair in pairs:
        name, found, value = pair.partition("=")
        if not found or not name:
            raise SettingError(f"--set takes NAME=VALUE, such as lam=3, not {pair!r}")
        settings[name.strip().replace("-", "_")] = value.strip()
    return settings
