"""What the reference pages say of the product itself: every verb of the command, and every method side by side."""

from collections.abc import Iterable
from typing import Any

import typer

from experiments.comparisons import alone, overview
from experiments.comparisons.better import SHOWN
from expunge.cli.app import app
from expunge.markdown import markdown
from expunge.methods import METHODS, Needs

EXAMPLES = {
    "demo": "expunge demo --out expunge-demo",
    "train": "expunge train --data sample --model small_resnet --out trained",
    "forget": "expunge forget --model trained --forget sample --ids ids.txt --test sample:test --out forgot",
    "audit": (
        "expunge audit --before trained --after forgot --forget sample --ids ids.txt --test sample:test --out audit"
    ),
    "methods": "expunge methods --json",
    "data get": "expunge data get cifar10",
    "data show": "expunge data show sample",
    "data ids": "expunge data ids sample --num 100 > ids.txt",
}
"""One that runs as it stands, for each verb: those on `sample` use what the ones before them wrote."""

NEEDS = {
    Needs.RETAIN: "retained",
    Needs.TEST: "test",
    Needs.UNLABELLED: "unlabelled",
    Needs.UPDATES: "update log",
    Needs.FACTORY: "a new network",
}
OWN = "of this package"
READ = {
    "targeted": "the whole paper; no code of its authors is known",
    "calibrated": OWN,
    "masked_distillation": f"{OWN}; its other objective is of `delete`",
    "held_boundary": OWN,
    "neg_grad": "code",
    "random_label": "the paper that compares it; no code",
    "boundary_shrink": "code, in a mirror",
    "delete": "code",
    "amun": "code; of the paper the beginning",
    "instance_wise": "code",
    "jit": "code; of the paper summaries",
    "mu_mis": "neither: summaries, and code of others",
    "salsa": "code and abstract",
    "bad_teacher": "code",
    "amnesiac": "code",
    "amnesiac_undo": "code",
    "finetune": "neither",
    "retrain": "a definition",
    "salun": "code",
    "scrub": "code",
    "ssd": "code",
    "lfssd": "code; of the paper the abstract",
    "falw": "the abstract, and code of others",
    "amun_retain": "code; of the paper the beginning",
}
"""What was read of a method's source, in short; the line Read on its page says which files, at which commit."""

REFUSE_WITHOUT = {"falw"}
"""Methods that must have what others only read where it is given."""


def cli_reference() -> str:
    """A section for each verb: what it does, how it is called, an example, its arguments and options."""
    parts = []
    for name, command in _commands(typer.main.get_group(app)):
        context = command.context_class(command, info_name=f"expunge {name}")
        usage = command.get_usage(context).removeprefix("Usage: ")
        parts += [f"## expunge {name}", command.help or "", f"```\n{' '.join(usage.split())}\n```"]
        parts += ["For example:", f"```\n{EXAMPLES[name]}\n```"]
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in command.get_params(context):
            if record := param.get_help_record(context):
                option, told = record
                row = (f"`{option.replace('|', ' or ')}`", _cell(told))
                sections.setdefault(getattr(param, "rich_help_panel", None) or "Options", []).append(row)
        for title, rows in sections.items():
            parts += [f"**{title}**"] if len(sections) > 1 else []
            parts.append(markdown(["option", "what"], rows, left=2))
    return "\n\n".join(parts)


def _commands(group: typer.core.TyperGroup, before: str = "") -> Iterable[tuple[str, Any]]:
    for name, command in group.commands.items():
        if isinstance(command, typer.core.TyperGroup):
            yield from _commands(command, f"{before}{name} ")
        else:
            yield f"{before}{name}", command


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", " or ")


def methods_matrix() -> str:
    """A row a method: what it needs and reads, what it costs and the audit says, and how far its source was read."""
    rows = []
    for name, cls in METHODS.items():
        given = Needs(0) if name in REFUSE_WITHOUT else cls.needs & Needs.IF_GIVEN
        must = cls.needs & ~given
        cost = alone.cost(name, SHOWN) if name == "held_boundary" else overview.cost("sample", name)
        rows.append([f"[{name}]({name}.md)", cls.summary, _named(must), _named(given), READ[name], *cost])
    head = ["method", "what it does", "needs", "reads if given", "read of its source"]
    return markdown([*head, "points lost", "still right %", "verdicts"], rows, left=5)


def methods_in_short() -> str:
    """A row a method that was measured: what it needs, what it costs, what the audit says, where it comes from."""
    rows, others = [], []
    for name, cls in METHODS.items():
        cost = alone.cost(name, SHOWN) if name == "held_boundary" else overview.cost("sample", name)
        link = f"[{name}](docs/methods/{name}.md)"
        needs = "a test set" if name == "calibrated" else _named(cls.needs & ~Needs.IF_GIVEN)
        if "–" in cost:
            others.append(link)
        else:
            rows.append([link, needs, *cost, cls.source])
    head = ["method", "needs", "points lost", "still right %", "verdicts", "source"]
    return f"{markdown(head, rows, left=2)}\n\nNot measured there: {', '.join(others)}."


def _named(needs: Needs) -> str:
    return ", ".join(told for need, told in NEEDS.items() if need in needs) or "–"
