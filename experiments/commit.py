"""Which state of the sources a figure is of."""

import os
import platform
import subprocess

import torch

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


def origin(threads: str = "") -> dict[str, str]:
    """What a record says of where it comes from: `commit`, `torch` and `device`. Call it before anything is measured.

    `threads` says how many there are, where not torch does.
    """
    device = f"{platform.machine()}, {threads or f'{torch.get_num_threads()} threads'}"
    return {"commit": commit(), "torch": torch.__version__, "device": device}
