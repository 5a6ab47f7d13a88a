"""`expunge methods`: what there is to choose from."""

import json

from expunge.cli.options import Json
from expunge.cli.printing import print_table


def methods(as_json: Json = False) -> None:
    """List every method: what it needs, where it comes from, its settings and defaults."""
    from dataclasses import fields

    from expunge.methods import METHODS

    rows = [
        {
            "method": name,
            "needs": [need.name.lower() for need in cls.needs],
            "what": cls.summary,
            "source": cls.source,
            "settings": {f.name: f.default for f in fields(cls) if f.metadata.get("setting", True)},
            "presets": list(cls.presets),
        }
        for name, cls in METHODS.items()
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    table = [(r["method"], ", ".join(r["needs"]), f"{r['what']} ({r['source']})") for r in rows]
    print_table("Methods", ["method", "needs", "what (source)"], table)
    for row in rows:
        shown = "  ".join(f"{key}={value}" for key, value in row["settings"].items()) or "no settings"
        print(f"{row['method']}: {shown}\n    presets: {', '.join(row['presets'])}")
