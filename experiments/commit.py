"""Which state of the sources a figure is of."""

import os
import subprocess

from experiments.places import ROOT


def commit() -> str:
    """The commit that runs, with "-dirty" where the sources differ from it. Call it before anything is measured.

    $EXPUNGE_COMMIT, else "unknown", where the sources are no git checkout.
    """
    git = ["git", "-C", str(ROOT)]
    try:
        if (ROOT / ".git").exists():
            short = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
            differs = subprocess.run(
                [*git, "diff", "--quiet", "HEAD", "--", "src", "experiments"], check=False
            ).returncode
            return short.stdout.strip() + ("-dirty" if differs else "")
    except (OSError, subprocess.CalledProcessError):
        pass
    return os.environ.get("EXPUNGE_COMMIT", "unknown")
