"""`expunge data`: get and look at data."""

from typing import Annotated

import typer

from expunge.cli.options import IdColumn, InputColumns, LabelColumn, Seed, columns_of
from expunge.cli.printing import print_table, say
from expunge.errors import printable
from expunge.stopping import work

app = typer.Typer(help="Get and look at data.", no_args_is_help=True)
Data = Annotated[str, typer.Argument(help="DATA, such as fashion-mnist:train.")]


@app.command(short_help="Download a dataset.", epilog="Example: expunge data get cifar10")
def get(name: Annotated[str, typer.Argument(help="fashion-mnist, cifar10, cifar100 or tiny-imagenet.")]) -> None:
    """Download a dataset from where it is published into the cache directory."""
    with work():
        from expunge.data import download

        say(f"{name} is in {download(name)}.")


@app.command(short_help="Say what a DATA spec holds.", epilog="Example: expunge data show folder:photos")
def show(
    data: Data, label_column: LabelColumn = None, id_column: IdColumn = None, input_columns: InputColumns = None
) -> None:
    """Say what a DATA spec holds: how many images, of what shape, or texts or rows, in which classes."""
    with work():
        from expunge.data import ImageSet, load_examples

        held = load_examples(data, columns=columns_of(label_column, id_column, input_columns))
        if isinstance(held, ImageSet):
            what = " × ".join(map(str, held.images.shape[1:]))
            kind = "images"
        else:
            kind = "texts" if held.holds_texts else "rows"
            what = "as they are" if held.holds_texts else f"of {len(held.inputs[0])} numbers"
    counts = held.labels.bincount(minlength=len(held.class_names)).tolist()
    ids = f"; ids {held.ids[0]} … {held.ids[-1]}" if held.ids else ""
    say(f"{data}: {len(held):,} {kind}, {what}{ids}")
    print_table("", ["class", kind], [(n, f"{c:,}") for n, c in zip(held.class_names, counts, strict=True)])


@app.command(
    short_help="Draw ids at random, for --ids.", epilog="Example: expunge data ids folder:photos --num 100 > ids.txt"
)
def ids(
    data: Data,
    num: Annotated[int, typer.Option(min=1, help="How many to draw.")],
    label_column: LabelColumn = None,
    id_column: IdColumn = None,
    input_columns: InputColumns = None,
    seed: Seed = 0,
) -> None:
    """Draw ids at random, one a line, for --ids. With one seed, the first of many are the same as few."""
    with work():
        from expunge.data import draw_ids, load_examples

        drawn = draw_ids(load_examples(data, columns=columns_of(label_column, id_column, input_columns)), num, seed)
    for id_ in drawn:  # `--ids` takes them as they are printed
        print(printable(id_, lines=False))
