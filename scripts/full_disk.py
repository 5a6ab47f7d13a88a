"""Runs `expunge forget` and `expunge train` on a disk that is full, at many sizes, and counts what goes wrong.

    python scripts/full_disk.py [--num 40]

No file may grow over a size, from less than any file has to more than the largest of a whole run. A run that is cut off
must say so in one line, and leave nothing; one that is not must have written all.
"""

import argparse
import os
import resource
import sys
import tempfile
from collections import Counter
from pathlib import Path

from signals import begin, finish, prepare

LEAST = 400
"""Bytes: what is printed goes to files, too."""


def main() -> None:
    """Prints how each run ended, and exits with 1 where one ended otherwise than it must."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=40, help="Sizes, of each command.")
    num = parser.parse_args().num
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tmp").mkdir()
        os.environ["TMPDIR"] = str(folder / "tmp")
        prepare(folder)
        for command in ("forget", "train"):
            whole = folder / f"whole-{command}"
            run(command, folder, whole, resource.RLIM_INFINITY, whole)
            largest = max(path.stat().st_size for path in whole.iterdir())
            for n in range(num):
                size = LEAST + (largest - LEAST) * n // (num - 2)
                how = run(command, folder, folder / f"{command}{n}", size, whole)
                found[f"{command}: {how}"] += 1
                print(f"{command}, at most {size:,} of {largest:,} bytes a file: {how}", flush=True)
    print(dict(found))
    sys.exit(any("WRONG" in how for how in found))


def run(command: str, folder: Path, out: Path, size: int, whole: Path) -> str:
    """How a run ends where no file may have more than `size` bytes."""
    before = tree(folder)
    process = begin(argparse.Namespace(command=command, kill=True), folder, out)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, size))
    code, _, errors = finish(process, folder)
    if code == 0 and not errors:
        same = {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()}
        return "all was written" if same else "WRONG: a part was written"
    out.with_suffix(".state").unlink(missing_ok=True)  # whole, for the next run to go on from
    if left := sorted(tree(folder) - before):
        return f"WRONG: it left {left[0].name}"
    if code == 1 and errors.count("\n") == 1 and "disk is full" in errors:
        return "one line, and nothing is left"
    return f"WRONG: code {code}: {errors[-500:]}"


def tree(folder: Path) -> set[Path]:
    """All files and directories but those that hold what is printed."""
    return set(folder.rglob("*")) - {folder / "stdout", folder / "stderr"}


if __name__ == "__main__":
    main()
