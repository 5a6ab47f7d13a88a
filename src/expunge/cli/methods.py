"""`expunge methods`: what there is to choose from."""

import json
from dataclasses import fields
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from expunge.cli.options import Json
from expunge.cli.printing import print_table, say
from expunge.settings import ranges_of


def methods(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show the settings of this method.")] = None,
    as_json: Json = False,
) -> None:
    """List the methods, or the settings of one with their defaults and ranges."""
    from expunge.methods import METHODS, make_method

    if name is not None:
        make_method(name)  # an unknown name is refused with what there is
    rows = [described(each) for each in (METHODS if name is None else (name,))]
    if as_json:
        print(json.dumps(rows if name is None else rows[0], indent=2))
    elif name is None:
        table = [(row["method"], _needs(row), row["what"]) for row in rows]
        print_table("", ["method", "needs", "what it does"], table)
        say(
            "Every method needs the model and the examples to forget. What stands in brackets is used where it is "
            "given. `expunge methods NAME` shows settings."
        )
    else:
        (row,) = rows
        say(f"{name}: {row['what']}")
        say(f"Source: {row['source']}. Needs: {_needs(row)}. Presets: {', '.join(row['presets'])}.")
        settings = [
            (key, "none" if value is None else str(value), row["ranges"].get(key, "true, false"))
            for key, value in row["settings"].items()
        ]
        print_table("", ["setting", "default", "what it may be"], settings)
        say(f"What each means: python -m pydoc expunge.{METHODS[name].__name__}")


def described(name: str) -> dict[str, Any]:
    """What there is to know about a method, as JSON values."""
    from expunge.methods import METHODS, Needs

    cls = METHODS[name]
    shown = {f.name: f.default for f in fields(cls) if f.metadata.get("setting", True)}
    return {
        "method": name,
        "needs": [need.name.lower() for need in cls.needs if need.name],
        "if_given": [need.name.lower() for need in cls.needs & Needs.IF_GIVEN if need.name],
        "what": cls.summary,
        "source": cls.source,
        "settings": shown,
        "ranges": {key: text for key, text in {**_choices(cls), **ranges_of(cls)}.items() if key in shown},
        "presets": list(cls.presets),
    }


def _needs(row: dict[str, Any]) -> str:
    needed = [each for each in row["needs"] if each != "forget" and each not in row["if_given"]]
    return ", ".join([*needed, *(f"[{each}]" for each in row["if_given"])]) or "–"


def _choices(cls: type) -> dict[str, str]:
    """The words that a setting may be."""
    return {
        key: ", ".join(map(str, get_args(hint)))
        for key, hint in get_type_hints(cls).items()
        if get_origin(hint) is Literal
    }
