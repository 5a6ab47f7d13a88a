"""Options that several commands share, each defined once."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expunge.errors import SettingError

if TYPE_CHECKING:
    from expunge.data import Columns

READING = "How models and data are read"
AUDIT = "The audit and its report"
RUN = "The run"

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.", rich_help_panel=RUN)
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.", rich_help_panel=RUN)]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto.", rich_help_panel=RUN)]
Resize = Annotated[
    bool,
    typer.Option(
        "--resize", help="Resize images of folder: and hf: data, as the model's library does.", rich_help_panel=READING
    ),
]
Ids = Annotated[Path | None, typer.Option(help="File with one id a line: only these of --forget.")]
Retain = Annotated[str | None, typer.Option(metavar="DATA", help="Retained training examples.")]
Unlabelled = Annotated[
    str | None,
    typer.Option(metavar="DATA", help="Other images, of any class: the method holds the model's outputs there."),
]
Weights = Annotated[
    Path | None, typer.Option(help="Weights file, for timm:, torchvision: and py: models.", rich_help_panel=READING)
]
AllowPickle = Annotated[
    bool,
    typer.Option("--allow-pickle", help="Accept .pt, .pth or .ckpt weights (tensors only).", rich_help_panel=READING),
]
WeightsKey = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Which weights of --weights, where the file holds several, such as model_ema.",
        rich_help_panel=READING,
    ),
]
AsStored = Annotated[
    bool,
    typer.Option(
        "--as-stored",
        help="Take images as they are stored, not turned as their EXIF orientation says.",
        rich_help_panel=READING,
    ),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="The column of classes, of csv:, parquet: and hf: data.", rich_help_panel=READING
    ),
]
IdColumn = Annotated[
    str | None, typer.Option(metavar="NAME", help="The column that names the rows, for --ids.", rich_help_panel=READING)
]
InputColumns = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="What the model takes: a column of texts or images, or numbers, by commas.",
        rich_help_panel=READING,
    ),
]
Reference = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="What the report is filed under, such as a ticket: it stands on top.",
        rich_help_panel=AUDIT,
    ),
]
WithImages = Annotated[
    bool,
    typer.Option(
        "--with-images",
        help="Show recognisable forgotten images in report.html, which then holds them.",
        rich_help_panel=AUDIT,
    ),
]
MaxLoss = Annotated[
    float | None,
    typer.Option(
        help="The test accuracy that may be lost, as a share; more is FAIL. Default: 0.05.", rich_help_panel=AUDIT
    ),
]
ReferenceMinutes = Annotated[
    float | None,
    typer.Option(
        help="The longest that training reference models for the audit may take; 0: none. Default: 5.",
        rich_help_panel=AUDIT,
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        metavar="fp32|bf16",
        help="Of the audit: bf16 runs the models under autocast, which GPUs do faster. Default: fp32.",
        rich_help_panel=AUDIT,
    ),
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


def columns_of(label: str | None, id_: str | None, inputs: str | None) -> "Columns":
    """Which columns of tables the options mean."""
    from expunge.data import Columns

    return Columns(label, id_, tuple(filter(None, (inputs or "").split(","))))


def settings_of(pairs: list[str]) -> dict[str, Any]:
    """{name: text} of NAME=VALUE. Raises `SettingError`."""
    settings = {}
    for pair in pairs:
        name, found, value = pair.partition("=")
        if not found or not name:
            raise SettingError(f"--set takes NAME=VALUE, such as lam=3, not {pair!r}")
        settings[name.strip().replace("-", "_")] = value.strip()
    return settings
