"""`expunge data`: get and look at data."""

from typing import Annotated

import typer

from expunge.cli.options import Seed
from expunge.cli.printing import print_table, say
from expunge.errors import printable
from expunge.stopping import work

app = typer.Typer(help="Get and look at data.", no_args_is_help=True)
Data = Annotated[str, typer.Argument(help="DATA, such as fashion-mnist:train.")]


@app.command()
def get(name: Annotated[str, typer.Argument(help="fashion-mnist, cifar10, cifar100 or tiny-imagenet.")]) -> None:
    """Download a dataset from where it is published into the cache directory."""
    with work():
        from expunge.data import download

        say(f"{name} is in {download(name)}.")


@app.command()
def show(data: Data) -> None:
    """Say what a DATA spec holds: how many images, of what shape, in which classes."""
    with work():
        from expunge.data import load_data

        images = load_data(data)
    channels, height, width = images.images.shape[1:]
    counts = images.labels.bincount(minlength=len(images.class_names)).tolist()
    ids = f"; ids {images.ids[0]} … {images.ids[-1]}" if images.ids else ""
    say(f"{data}: {len(images):,} images, {channels} × {height} × {width}{ids}")
    print_table("", ["class", "images"], [(n, f"{c:,}") for n, c in zip(images.class_names, counts, strict=True)])


@app.command()
def ids(data: Data, num: Annotated[int, typer.Option(min=1, help="How many to draw.")], seed: Seed = 0) -> None:
    """Draw ids at random, one a line, for --ids. With one seed, the first of many are the same as few."""
    with work():
        from expunge.data import draw_ids, load_data

        drawn = draw_ids(load_data(data), num, seed)
    for id_ in drawn:  # `--ids` takes them as they are printed
        print(printable(id_, lines=False))
