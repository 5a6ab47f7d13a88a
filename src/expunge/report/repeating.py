"""The command, or the call in Python, that does a run again."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from expunge.auditing.report import AuditReport
from expunge.auditing.settings import AuditSettings
from expunge.methods import METHODS, Retrain, default_method, settings_of
from expunge.records import Trace


def repetition(
    report: AuditReport | None, trace: Trace | None, sources: Mapping[str, Any] | None, *, with_images: bool = False
) -> str:
    """The command line that does it again, one option a line; or, without sources, the call in Python.

    Options and settings at their defaults are left out.

    Args:
        report: the audit; None without one. It or `trace` is given.
        trace: what was done; None of an audit alone.
        sources: the options of the command, by name.
        with_images: whether the page shows images.
    """
    settings = own_settings(trace) if trace else {}
    seed = trace.seed if trace else report.seed if report else 0
    if sources is None:
        seeded = [f"seed={seed}"] if seed else []
        if trace is None:
            return f"expunge.audit({', '.join(['before', 'after', 'forget', 'test', *seeded])})"
        method = METHODS[trace.method].__name__ if trace.method in METHODS else trace.method
        given = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        call = ("model", "forget", f"method=expunge.{method}({given})", *seeded)
        return "".join(["expunge.unlearn(\n", *(f"    {argument},\n" for argument in call), ")"])
    usual: dict[str, Any] = {"max_loss": AuditSettings.max_loss, "precision": AuditSettings.precision}
    options: list[Sequence[str]] = [["expunge", "forget" if trace else "audit"]]
    for name, value in {**sources, "with_images": with_images}.items():
        option = "--before" if name == "model" and trace is None else f"--{name.replace('_', '-')}"
        if value is True:
            options.append([option])
        elif value is not None and value is not False and value != usual.get(name):
            options.append([option, str(value)])
    if trace is not None:
        if trace.method != default_method(sources.get("test") is not None):
            options.append(["--method", trace.method])
        options += [["--set", f"{name}={_setting(value)}"] for name, value in settings.items()]
    options += [*([["--seed", str(seed)]] if seed else []), ["--out", "NEW-DIRECTORY"]]
    return " \\\n  ".join(" ".join(map(shlex.quote, words)) for words in options)


def own_settings(trace: Trace) -> dict[str, Any]:
    """The settings of the method that are not its defaults: all of a method that expunge does not know.

    All of `retrain` too, since the command takes the recipe of the model's file in place of its defaults.
    """
    if trace.method not in METHODS or trace.method == Retrain.name:
        return dict(trace.settings)
    usual = settings_of(METHODS[trace.method]())
    return {name: value for name, value in trace.settings.items() if name not in usual or value != usual[name]}


def _setting(value: Any) -> str:
    """As `--set` reads it."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
