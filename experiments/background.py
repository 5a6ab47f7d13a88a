"""One background job that works through the plan: idle priority, resumable, paused by a file, safe at any moment."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from experiments.places import ROOT
from experiments.plan import Step, load_plan
from expunge.errors import ExpungeError

RUNS = ROOT / "runs"
POLL_SECONDS = 1.0
RETRY_SECONDS = 60.0
START_SECONDS = 120.0


class Job:
    """The background job of one directory.

    Args:
        runs: the directory; the job keeps to `runs/grid`, and finds datasets in `runs/data` (or
            EXPUNGE_DATA); the file `runs/pause` holds it.
        plan: the list of steps. The job itself reads the one of its own clone.
    """

    def __init__(self, runs: Path, plan: Path) -> None:
        self.plan = plan.resolve()
        self.pause = runs / "pause"
        self.runs = runs
        self.home = runs / "grid"
        self.clone = self.home / "source"
        self.results = self.home / "results"
        self.originals = self.home / "originals"

    def start(self) -> str:
        """Brings the clone to the newest commit, and starts the job there in place of one that runs."""
        self.home.mkdir(parents=True, exist_ok=True)
        stopped = self.stop()
        commit = self._bring_forward()
        environment = {
            "EXPUNGE_DATA": str(self.runs / "data"),
            **os.environ,
            "PYTHONPATH": f"{self.clone / 'src'}:{self.clone}",
        }
        plan = self.clone / self.plan.relative_to(ROOT) if self.plan.is_relative_to(ROOT) else self.plan
        command = ["setsid", "--fork", sys.executable, "-m", "experiments", "supervisor", str(plan), str(self.runs)]
        self._note("job", commit=commit)
        with (self.home / "log").open("ab") as log:  # --fork: it is nobody's child, and outlives who started it
            subprocess.run(
                command, cwd=self.clone, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True
            )
        until = time.monotonic() + START_SECONDS
        while self._free():
            if time.monotonic() > until:
                raise ExpungeError(f"the job did not start; see {self.home / 'log'}")
            time.sleep(0.1)
        return f"{'restarted' if stopped else 'started'} at commit {commit}; its log is {self.home / 'log'}"

    def stop(self) -> bool:
        """Ends the job, if one runs. It loses the cells in flight and the epoch that it is in."""
        if self._free():
            return False
        for name in ("job", "worker"):
            with suppress(ProcessLookupError, KeyError):
                os.killpg(int(self._noted(name)["pid"]), signal.SIGKILL)
        while not self._free():
            time.sleep(0.1)
        return True

    def supervise(self) -> None:
        """Runs the worker at idle priority, stops it while the pause file is there, and starts it anew if it dies."""
        with self._locked():
            self._note("job", pid=os.getpid(), commit=_git(ROOT, "rev-parse", "HEAD")[:7])
            for _ in range(3):
                worker = subprocess.Popen(
                    [sys.executable, "-m", "experiments", "worker", str(self.plan), str(self.runs)],
                    stdin=subprocess.DEVNULL,
                    process_group=0,
                    pass_fds=[self._lock],
                    preexec_fn=_be_idle,
                )
                self._note("worker", pid=worker.pid)
                if self._watched(worker) == 0:
                    return
                print(f"{_now()} the worker ended with code {worker.returncode}", flush=True)
                time.sleep(RETRY_SECONDS)

    def _watched(self, worker: "subprocess.Popen[bytes]") -> int:
        held = False
        while worker.poll() is None:
            if self.pause.exists() != held:
                held = not held
                os.killpg(worker.pid, signal.SIGSTOP if held else signal.SIGCONT)
                print(f"{_now()} {'paused' if held else 'goes on'}", flush=True)
            time.sleep(POLL_SECONDS)
        return worker.returncode

    def work(self, limit_minutes: float | None = None) -> None:
        """Does what is missing, step by step."""
        from experiments.grid.run import bench_run

        def announce(line: str) -> None:
            print(f"{_now()} {line}", flush=True)
            self._note("now", step=step.name, line=line, at=time.time())

        deadline = None if limit_minutes is None else time.monotonic() + 60 * limit_minutes
        for step in load_plan(self.plan):
            left = None if deadline is None else (deadline - time.monotonic()) / 60
            if left is not None and left <= 0:
                return
            merge(ROOT / "results" / step.results, self.results / step.results)
            summary = bench_run(
                self.plan.parent / step.grid,
                self.results / step.results,
                models=self.originals / step.originals,
                only_cells=step.only,
                workers=os.cpu_count() or 1,
                limit_minutes=left,
                announce=announce,
                beat=30,
            )
            for problem in summary.problems:
                announce(problem)

    def collect(self, into: Path = ROOT / "results") -> str:
        """Copies the lines of the job's results, in folders of folders too, that `into` lacks; says how many."""
        made = sorted({path.parent.relative_to(self.results) for path in self.results.rglob("*.jsonl")})
        new = sum(merge(self.results / each, into / each) for each in made)
        return f"{new:,} new results; `python -m experiments docs` brings the docs up to date"

    def status(self) -> str:
        """What is done, what is being done, what comes next and when all is through."""
        lines, hours = [], 0.0
        for step in load_plan(self.plan):
            done, total, pace = self._progress(step)
            left = (total - done) * pace if pace else step.hours * (total - done) / total
            hours += left
            lines.append(f"{done:5,} of {total:5,} cells  {left:6.1f} h left  {step.name}")
        now = self._noted("now")
        running = "not running" if self._free() else "paused" if self.pause.exists() else "running"
        at = f" at commit {self._noted('job').get('commit', '?')}" if running != "not running" else ""
        told = f"; {now['step']}: {now['line']}" if now else ""
        through = (datetime.now() + timedelta(hours=hours)).strftime("%Y-%m-%d %H:%M")
        return "\n".join(
            [f"{running}{at}{told}", *lines, f"{hours:.0f} h of an idle machine are left: not before {through}"]
        )

    def _progress(self, step: Step) -> tuple[int, int, float]:
        """Cells done, cells in all, and hours a cell as measured here; 0.0 where too few were."""
        from experiments.grid import current, read_results

        cells = step.cells(self.plan)
        known = [
            result
            for directory in (ROOT / "results" / step.results, self.results / step.results)
            if directory.is_dir()
            for result in read_results(directory)
        ]
        found = current(cells, known)
        seconds = [(r.seconds or 0) + (r.seconds_evaluating or 0) for r in found.values() if r.method != "before"]
        workers = os.cpu_count() or 1
        return len(found), len(cells), sum(seconds) / len(seconds) / workers / 3600 if len(seconds) >= 10 else 0.0

    def _bring_forward(self) -> str:
        if not self.clone.exists():
            _git(ROOT, "clone", "--quiet", "--no-checkout", str(ROOT), str(self.clone))
        head = _git(ROOT, "rev-parse", "HEAD")
        _git(self.clone, "fetch", "--quiet", "origin", head)
        _git(self.clone, "checkout", "--quiet", "--detach", "--force", head)
        return head[:7]

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Holds the lock; the worker inherits it, so that it is held while either lives."""
        self._lock = os.open(self.home / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            yield
        finally:
            os.close(self._lock)

    def _free(self) -> bool:
        """Whether no job runs."""
        if not (self.home / "lock").exists():
            return True
        with (self.home / "lock").open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return False
            return True

    def _note(self, name: str, **content: Any) -> None:
        temporary = self.home / f".{name}.json"
        temporary.write_text(json.dumps(content))
        temporary.replace(self.home / f"{name}.json")

    def _noted(self, name: str) -> dict[str, Any]:
        path = self.home / f"{name}.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}


def merge(source: Path, target: Path) -> int:
    """Appends the whole lines of the result files in `source` that those in `target` lack; returns how many."""
    new = 0
    for path in sorted(source.glob("*.jsonl")):
        into = target / path.name
        known = set(into.read_bytes().splitlines()) if into.exists() else set()
        text = path.read_bytes()
        lines = [line for line in text[: text.rfind(b"\n") + 1].splitlines() if line not in known]
        if lines:
            target.mkdir(parents=True, exist_ok=True)
            with into.open("ab") as file:
                file.write(b"".join(line + b"\n" for line in lines))
        new += len(lines)
    return new


def _be_idle() -> None:
    """Yields to everything else on the machine."""
    os.nice(19)
    group = Path("/proc/self/autogroup")  # Linux shares the processors by sessions first
    if group.exists():
        group.write_text("19")
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _git(where: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(where), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _now() -> str:
    return datetime.now().strftime("%Y-%m-%d %H:%M:%S")
