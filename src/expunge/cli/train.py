"""`expunge train`: from a dataset to a checkpoint that describes itself."""

from pathlib import Path
from typing import Annotated

import typer

from expunge.cli.options import Device, Json, Seed, ToSet, settings_of
from expunge.cli.printing import announce, percent, print_table, say
from expunge.stopping import work


def train(
    data: Annotated[str, typer.Option(help="DATA of the training set, such as fashion-mnist or folder:DIR.")],
    model: Annotated[str, typer.Option(help="small_resnet, resnet18, resnet50, vit, timm:NAME or torchvision:NAME.")],
    out: Annotated[Path, typer.Option(help="New directory for the checkpoint.")],
    settings: ToSet = [],  # noqa: B006  (typer reads it, nobody writes it)
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
        from expunge import trainer

        done = trainer.train(
            data,
            model,
            out,
            settings=settings_of(settings),
            seed=seed,
            device=device,
            record_updates=record_updates,
            state=state,
            announce=announce,
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
    say(f"The model is in {out}.")
