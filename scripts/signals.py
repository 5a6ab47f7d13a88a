"""Stops `expunge forget` at random moments, in a real process, and counts what goes wrong.

    python scripts/signals.py [--num 40] [--kill]

With SIGINT and SIGTERM the command must say in one line that it was stopped, and leave nothing. With --kill (SIGKILL)
it cannot say or remove anything: then the next run must remove what was left.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

COMMAND = Path(sys.executable).with_name("expunge")


def main() -> None:
    """Prints how each run ended, and exits with 1 where one ended otherwise than it must."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--after", type=float, default=0.3, help="Seconds from the start to the first moment.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        counts = count(Path(name), given.num, random.Random(given.seed), given.kill, given.after)  # noqa: S311
    print(dict(counts))
    sys.exit(any(how.startswith("WRONG") for how in counts))


def count(folder: Path, num: int, rng: random.Random, kill: bool, after: float) -> Counter[str]:
    """How often each end was met."""
    train = ("train", "--data", "sample", "--model", "small_resnet", "--set", "epochs=1", "--set", "width=4")
    subprocess.run([COMMAND, *train, "--out", folder / "model"], check=True, capture_output=True)
    (folder / "ids.txt").write_text("0\n1\n2\n")
    command = [str(COMMAND), "forget", "--model", str(folder / "model"), "--forget", "sample"]
    command += ["--ids", str(folder / "ids.txt"), "--method", "neg_grad", "--set", "epochs=2", "--out"]
    started = time.monotonic()
    subprocess.run([*command, str(folder / "whole")], check=True, capture_output=True)
    whole = time.monotonic() - started
    found: Counter[str] = Counter()
    for n in range(num):
        number = signal.SIGKILL if kill else rng.choice([signal.SIGINT, signal.SIGTERM])
        out = folder / f"out{n}"
        moment = rng.uniform(after, whole)
        process = subprocess.Popen([*command, str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        time.sleep(moment)
        process.send_signal(number)
        output, errors = process.communicate()
        how = ended(process.returncode, output, errors, out) if not kill else killed(folder, out)
        found[how] += 1
        print(f"{n} {number.name} after {moment:.2f} of {whole:.2f} s: {how}", flush=True)
        if how.startswith("WRONG"):
            print(errors[-600:], flush=True)
    if kill:
        left = len(list(folder.glob(".*.part")))
        subprocess.run([*command, str(folder / "last")], check=True, capture_output=True)
        after_all = len(list(folder.glob(".*.part")))
        found[f"left by the killed: {left}, after another run: {after_all}"] += 1
        if after_all:
            found["WRONG: leftovers"] += 1
    return found


def ended(code: int, output: str, errors: str, out: Path) -> str:
    """How a run that was told to stop has ended."""
    leftovers = list(out.parent.glob(".*.part"))
    told = errors.count("\n") == 1 and errors.startswith("expunge: error: stopped; ")
    if leftovers:
        return "WRONG: leftovers"
    if code == 0 and not errors and out.exists():
        return "done before the signal came"
    if code == 1 and told and out.exists() == ("the work was done" in errors):
        return "done and told" if out.exists() else "stopped"
    if code == -signal.SIGTERM and not errors:
        return "ended before Python began"
    return f"WRONG: code {code}, {errors.count(os.linesep)} lines"


def killed(folder: Path, out: Path) -> str:
    """What a killed run has left."""
    files = {path.name for path in out.iterdir()} if out.exists() else set()
    if files and files != {path.name for path in (folder / "whole").iterdir()}:
        return "WRONG: a part of the results under the final name"
    return "whole" if files else "nothing under the final name"


if __name__ == "__main__":
    main()
