"""Imported once by the process that every command of the tests is forked from: what commands import by and by."""

import gc
from contextlib import suppress
from importlib import import_module

for name in (
    "expunge.cli.sources",
    "expunge.forgetting",
    "expunge.report.page",
    "expunge.trainer",
    "jinja2",
    "matplotlib.backends.backend_svg",
    "rich.progress",
    "rich.table",
    "torch._dynamo",
):
    with suppress(ImportError):  # of an extra that is not installed
        import_module(name)

# Else each fork goes through all these objects at its collections, and copies their pages.
gc.collect()
gc.freeze()
