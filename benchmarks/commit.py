"""Which state of the sources a figure is of."""

import os
import subprocess
from pathlib import Path


def commit() -> str:
    """The commit that runs, with "-dirty" where the sources differ from it. Call it before anything is measured.

    $EXPUNGE_COMMIT where the sources are no git checkout.
    """
    if not (Path(__file__).parents[1] / ".git").exists():
        return os.environ.get("EXPUNGE_COMMIT", "unknown")
    short = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    clean = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "src", "benchmarks"], check=False).returncode == 0
    return short.stdout.strip() + ("" if clean else "-dirty")
