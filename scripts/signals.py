"""Stops a command at random moments, in a real process, and counts what goes wrong.

    python scripts/signals.py [forget | train | grid] [--num 40] [--kill]

With SIGINT and SIGTERM it must say in one line that it was stopped, and leave nothing. With --kill (SIGKILL) it cannot
say or remove anything: what is there under a final name must be whole, and the next run must remove what was left.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.forked import start

COMMAND = Path(sys.executable).with_name("expunge")
ROOT = Path(__file__).parents[1]


def main() -> None:
    """Prints how each run ended, and exits with 1 where one ended otherwise than it must."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", choices=["forget", "train", "grid"], default="forget")
    parser.add_argument("--num", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--after", type=float, default=0.0, help="Seconds from the start to the first moment.")
    parser.add_argument(
        "--until", type=float, help="Seconds to the last moment; default: as long as a whole run takes."
    )
    given = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):  # which may be ignored in the background, and so inherited
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if given.command == "grid" and not given.kill:
        parser.error("the grid goes on from what was stopped: add --kill")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tmp").mkdir()
        os.environ["TMPDIR"] = str(folder / "tmp")
        counts = count(folder, given)
    print(given.command, "SIGKILL" if given.kill else "SIGINT, SIGTERM", dict(counts))
    sys.exit(any(how.startswith("WRONG") for how in counts))


def count(folder: Path, given: argparse.Namespace) -> Counter[str]:
    """How often each end was met."""
    rng = random.Random(given.seed)  # noqa: S311
    if given.command == "forget":
        prepare(folder)
    whole = given.until
    if given.kill or whole is None:
        started = time.monotonic()
        finish(begin(given, folder, folder / "whole"), folder)
        whole = given.until or time.monotonic() - started
    found: Counter[str] = Counter()
    outs = places(folder, given.command)
    for n in range(given.num):
        number = signal.SIGKILL if given.kill else rng.choice([signal.SIGINT, signal.SIGTERM])
        out = next(outs)
        moment = rng.uniform(given.after, whole)
        process = begin(given, folder, out)
        time.sleep(moment)
        with suppress(ProcessLookupError):  # it is done
            os.kill(process.pid, number)
        code, output, errors = finish(process, folder)
        if not given.kill:
            how = ended(code, output, errors, folder, out)
        elif code not in {0, -signal.SIGKILL}:
            how = f"WRONG: code {code} after what was killed before"
        else:
            how = killed(given.command, folder, out)
        found[how] += 1
        print(f"{n} {number.name} after {moment:.3f} of {whole:.2f} s: {how}", flush=True)
        if how.startswith("WRONG"):
            print(errors[-1000:], flush=True)
    if given.kill:
        left = len(leftovers(folder))
        if code := finish(begin(given, folder, folder / "last"), folder)[0]:
            found[f"WRONG: the last run ends with {code}"] += 1
        after_all = leftovers(folder)
        found[f"left by the killed: {left}, after another run: {len(after_all)}"] += 1
        if after_all:
            found[f"WRONG: leftovers, such as {after_all[0].name}"] += 1
    return found


def begin(given: argparse.Namespace, folder: Path, out: Path) -> Any:
    """Starts the command.

    What is killed is forked from a process that has imported torch: no moment falls into the imports, which write
    nothing. Others are processes from their first moment on.
    """
    streams = folder / "stdout", folder / "stderr"
    for path in streams:
        path.write_text("")
    line = arguments(given.command, folder, out)
    if given.kill:
        if given.command == "grid":
            line = ["experiments", *line[3:]]
        return start(line, ROOT, os.environ, *streams)
    with streams[0].open("w") as output, streams[1].open("w") as errors:
        return subprocess.Popen(line, stdout=output, stderr=errors)


def finish(process: Any, folder: Path) -> tuple[int, str, str]:
    """Waits for its end: the exit code, and what it printed."""
    if isinstance(process, subprocess.Popen):
        code = process.wait()
    else:
        process.join()
        code = process.exitcode
    return code, (folder / "stdout").read_text(), (folder / "stderr").read_text()


def prepare(folder: Path) -> None:
    """A model to forget with, and the ids."""
    train = ("train", "--data", "sample", "--model", "small_resnet", "--set", "epochs=1", "--set", "width=4")
    line = [str(word) for word in (COMMAND, *train, "--out", folder / "model")]
    code, _, errors = finish(start(line, ROOT, os.environ, folder / "stdout", folder / "stderr"), folder)
    if code:
        sys.exit(errors)
    (folder / "ids.txt").write_text("0\n1\n2\n")


def arguments(command: str, folder: Path, out: Path) -> list[str]:
    """The command line that writes to `out`."""
    if command == "forget":
        line = [COMMAND, "forget", "--model", folder / "model", "--forget", "sample", "--ids", folder / "ids.txt"]
        line += ["--method", "neg_grad", "--set", "epochs=2", "--out", out]
    elif command == "train":
        line = [COMMAND, "train", "--data", "sample", "--model", "small_resnet", "--set", "width=4"]
        line += ["--set", "epochs=2", "--state", out.with_suffix(".state"), "--out", out]
    else:
        line = [sys.executable, "-m", "experiments", "run", ROOT / "grids/smoke.toml", "--only", "seed=0,size=4"]
        line += ["--workers", "1", "--device", "cpu", "--out", out, "--models", out.with_suffix(".models")]
    return [str(word) for word in line]


def places(folder: Path, command: str) -> Iterator[Path]:
    """Where each run writes: a new place, or, what can be gone on with, the last one until all is there."""
    n = 0
    while True:
        out = folder / f"out{n}"
        yield out
        if command == "forget" or (command == "train" and out.exists()):
            n += 1
        elif command == "grid" and cells(out) == cells(folder / "whole"):
            for path in (out, out.with_suffix(".models")):
                shutil.rmtree(path)
            n += 1


def leftovers(folder: Path) -> list[Path]:
    """What is there that no run shall leave."""
    ours = [path for path in (folder / "tmp").iterdir() if not path.name.startswith("torchinductor")]  # torch's, empty
    return [*folder.rglob(".*.part"), *ours]


def ended(code: int, output: str, errors: str, folder: Path, out: Path) -> str:
    """How a run that was told to stop has ended."""
    told = errors.count("\n") == 1 and errors.startswith("expunge: error: stopped; ")
    out.with_suffix(".state").unlink(missing_ok=True)  # what it is for
    if leftovers(folder):
        return "WRONG: leftovers"
    if code == 0 and not errors and out.exists():
        return "done before the signal came"
    if code == 1 and told and out.exists() == ("the work was done" in errors):
        return "done and told" if out.exists() else "stopped"
    if code == -signal.SIGTERM and not errors:
        return "ended by SIGTERM before the command began"
    frames = [line for line in errors.splitlines() if line.startswith('  File "')]
    if code in {1, -signal.SIGINT} and (not errors or "KeyboardInterrupt" in errors):
        ours = any("/expunge/" in line for line in frames)
        return f"WRONG: a traceback from expunge, code {code}" if ours else "ended by Python before the command began"
    return f"WRONG: code {code}, {errors.count(os.linesep)} lines"


def killed(command: str, folder: Path, out: Path) -> str:
    """What a killed run has left under the final name."""
    if command == "grid":
        lines = cells(out)
        return "WRONG: a cell twice" if len(lines) != len(set(lines)) else "a part of the cells, each whole"
    if not out.exists():
        return "nothing under the final name"
    whole = folder / "whole"
    if {path.name for path in out.iterdir()} != {path.name for path in whole.iterdir()}:
        return "WRONG: a part of the results under the final name"
    name = "model.safetensors"
    same = (out / name).read_bytes() == (whole / name).read_bytes()
    return "whole" if same else "WRONG: other weights than those of a run that nobody stopped"


def cells(out: Path) -> list[str]:
    """The cells in the files of results, sorted; an unfinished last line is left out."""
    lines = [line for path in out.glob("*.jsonl") for line in path.read_text().splitlines(keepends=True)]
    return sorted(json.loads(line)["cell"] for line in lines if line.endswith("\n"))


if __name__ == "__main__":
    main()
