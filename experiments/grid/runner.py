"""Running a grid: what is missing, original by original, until it is done or the time is up."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import Protocol

import torch

from experiments.commit import commit
from experiments.grid.cells import BEFORE, Cell, Original
from experiments.grid.measuring import Outcome, Task, model_digest
from experiments.grid.results import ResultFiles, done, opened
from experiments.grid.summary import BenchSummary, OriginalSummary, reached
from expunge.data import ImageSet, digests, draw_ids, load_data
from expunge.errors import ExpungeError, InputError, MissingExtraError, SettingError
from expunge.files import scratch_directory
from expunge.models import ModelSpec, build, read_header
from expunge.models.checkpoint import FILE_NAME
from expunge.progress import advance
from expunge.training import Recipe
from expunge.update_log import UPDATES, watched_by


class Engine(Protocol):
    """Where tasks run."""

    device: str

    def train(self, original: Original, directory: Path, idle: Callable[[], None], record: Path | None = None) -> None:
        """Trains an original into the new directory. What `idle` raises ends it.

        With an update log of the examples whose ids the file `record` lists, where one is given; then it is not
        resumed.
        """
        ...

    def run(self, tasks: Sequence[Task], idle: Callable[[], None]) -> Iterator[tuple[Task, Outcome]]:
        """Yields tasks as they get done, and calls `idle` in between. What it raises ends those in flight."""
        ...


MOST_DEATHS = 3
"""Tasks in a row whose process died: then something is wrong with the machine, not with a cell."""


class _TimeIsUp(Exception):
    """The limit was reached."""


def run_cells(
    cells: Sequence[Cell],
    out: Path,
    models: Path,
    engine: Engine,
    *,
    limit: float | None = None,
    train_missing: bool = True,
    retry_failed: bool = False,
    announce: Callable[[str], None] = lambda line: None,
    beat: float | None = None,
) -> BenchSummary:
    """Measures the cells that `out` has no result of, one line each, and trains missing originals into `models`.

    Args:
        cells: in the order in which to do them; those of one original stand together.
        out: directory of the results; made where it is missing.
        models: directory of the checkpoints, `DATASET-ARCHITECTURE/model.safetensors`.
        engine: runs the tasks, and trains originals.
        limit: seconds after which to end; None: no limit.
        train_missing: False leaves out the cells whose original is not there.
        retry_failed: run cells again whose result is a failure.
        announce: is told what is noteworthy on the way, a line each.
        beat: also announce how far it is every so many seconds; None: do not.

    Raises:
        InputError: `out` cannot be written, another run writes there, or a checkpoint was trained in another way.
        SettingError: the network of an original that is to be trained cannot be built with its options.
        ExpungeError: the disk is full, or worker processes die one after the other.
    """
    with opened(out) as files:
        for name in files.dropped:
            announce(f"{name}: dropped an unfinished last line, which a killed run left")
        run = _Run(cells, files, models, limit=limit, retry_failed=retry_failed, announce=announce, beat=beat)
        if train_missing:
            for original in run.untrained():
                check_options(original)
        if any(run.missing.values()):
            try:
                for original in run.originals:
                    if run.missing[original.name]:
                        run.why[original.name] = run.work(engine, original, train_missing)
            except _TimeIsUp:
                run.limit_reached = True
        return run.summary()


def check_original(path: Path, original: Original) -> None:
    """Raises `InputError` unless the checkpoint was trained as the grid says."""
    header = read_header(path)
    did = header.history[0] if header.history else {}
    pairs = {
        "data": (header.data.removesuffix(":train"), original.dataset),
        "architecture": (header.spec.architecture, original.architecture),
        "seed": (did.get("seed"), original.seed),
        "options": (dict(header.spec.options), dict(original.options)),
        # A checkpoint from before a setting existed was trained with its default.
        **{key: (header.recipe.get(key, getattr(Recipe, key)), value) for key, value in original.recipe.items()},
    }
    for key, (is_, wanted) in pairs.items():
        if is_ != wanted:
            raise InputError(
                f"{path} was trained with {key}={is_!r}, the grid wants {wanted!r}; choose another --models, or write "
                f"it into the grid under originals.{original.dataset}.{original.architecture}"
            )
    if len(header.history) > 1:
        raise InputError(f"{path} is no original: it was made to forget already; choose another --models")


def check_options(original: Original) -> None:
    """Raises `SettingError` unless the network can be built, without weights: training may begin hours from now."""
    spec = ModelSpec(
        architecture=original.architecture,
        num_classes=2,
        in_channels=3,
        image_size=32,
        mean=(0.5,) * 3,
        std=(1.0,) * 3,
        options=original.options,
    )
    try:
        with torch.device("meta"), suppress(MissingExtraError):  # where it is trained the package may be there
            build(spec)
    except SettingError as error:
        raise SettingError(f"originals.{original.dataset}.{original.architecture}: {error}") from error


class _Run:
    """The state of one call of `run_cells`."""

    def __init__(
        self,
        cells: Sequence[Cell],
        files: ResultFiles,
        models: Path,
        *,
        limit: float | None,
        retry_failed: bool,
        announce: Callable[[str], None],
        beat: float | None,
    ) -> None:
        self.files, self.models, self.announce, self.beat = files, models, announce, beat
        self.started = self.last_beat = self.since = time.monotonic()
        self.deadline = None if limit is None else self.started + limit
        self.retry_failed = retry_failed
        self.commit = commit()
        groups = [(original, list(group)) for original, group in groupby(cells, key=lambda cell: cell.original)]
        self.originals = [original for original, _ in groups]
        self.cells = {original.name: group for original, group in groups}
        self.missing = {original.name: self._missing(original) for original in self.originals}
        self.new = dict.fromkeys(self.cells, 0)
        self.why: dict[str, str] = {}
        self.nodes: dict[str, int] = {}
        self.limit_reached = False
        self.measuring = 0.0
        """Seconds spent on cells, without those spent on training."""

    def untrained(self) -> list[Original]:
        """The originals that missing cells need and that are not there."""
        return [o for o in self.originals if self.missing[o.name] and not self._checkpoint(o).exists()]

    def work(self, engine: Engine, original: Original, train_missing: bool) -> str:
        """Does the missing cells of one original; returns why some are left."""
        path = self._checkpoint(original)
        if not path.exists():
            if not train_missing:
                return f"there is no {path}"
            if path.parent.exists():
                return f"{path.parent} holds no {FILE_NAME}: remove it, or choose another --models"
            self.announce(f"training {original.name} into {path.parent}")
            self._check_time()
            # Of all cells, since what is done of an earlier original will be missing of this one.
            logged = [cell for cell in self.cells[original.name] if cell.reads_updates]
            try:
                with _alone(path.parent), scratch_directory() as directory:
                    record = _ids_file(directory, logged) if logged else None
                    engine.train(original, path.parent, lambda: self._wait_for(original), record)
            except ExpungeError as error:
                return f"it could not be trained: {error}" + ("; or pick other rows by --only" if logged else "")
            except _TimeIsUp:
                after = "it needs a longer --limit" if logged else "the next run goes on with it"
                self.why[original.name] = f"its training was cut off; {after}"
                raise
            self.missing[original.name] = self._missing(original)  # of this original, not of an earlier one
        why = self._leave_unlogged(original)
        digest = model_digest(path)
        tasks = [
            Task(cells=batch, model=path, model_digest=digest, device=engine.device, commit=self.commit)
            for batch in _batches(self.missing[original.name])
        ]
        self.since = time.monotonic()
        try:
            with closing(engine.run(tasks, self._tell)) as outcomes:  # type: ignore[type-var]
                died: list[Outcome] = []  # in a row, and recorded once a task shows that the machine can do them
                for _, outcome in outcomes:
                    if outcome.unavailable is None:
                        outcome = self._on_known_images(outcome)
                    if outcome.unavailable is not None:
                        return outcome.unavailable
                    if outcome.died:
                        died.append(outcome)
                        self._stop_after(died)
                        continue
                    self._keep(original, [*died, outcome])
                    died.clear()
                self._keep(original, died)
            self._tell()
        except _TimeIsUp:
            self.why[original.name] = why
            raise
        return why

    def _keep(self, original: Original, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            self.files.add(outcome.results)
            self.new[original.name] += len(outcome.results)
            if outcome.node:
                self.nodes[outcome.node] = self.nodes.get(outcome.node, 0) + len(outcome.results)

    @staticmethod
    def _stop_after(died: Sequence[Outcome]) -> None:
        if len(died) == MOST_DEATHS:
            raise ExpungeError(
                f"{MOST_DEATHS} tasks in a row failed: {died[-1].results[0].failed}; try fewer --workers, then run it "
                "again to go on"
            )

    def _on_known_images(self, outcome: Outcome) -> Outcome:
        """The outcome, or that the cells are unavailable where earlier ones of this original are of other images."""
        for new in outcome.results:
            for old in self.files.results:
                if old.model_digest == new.model_digest and len({old.data_digest, new.data_digest, None}) == 3:
                    why = (
                        f"the images of {new.dataset} here are not those that earlier cells of this original were "
                        "measured on (another copy of the dataset?); get those, or choose another --out"
                    )
                    return Outcome(unavailable=why)
        return outcome

    def _leave_unlogged(self, original: Original) -> str:
        """Takes the cells out whose examples no update log beside the original watched; returns why, if any are."""
        logged = [cell for cell in self.missing[original.name] if cell.reads_updates]
        if not logged:
            return ""
        log = self._checkpoint(original).parent / UPDATES
        try:
            watched, images = watched_by(log), load_data(f"{original.dataset}:train")
        except ExpungeError as error:
            left, why = {cell.id for cell in logged}, str(error)
        else:
            forgotten = {cell.id: digests(images.select(_drawn(images, cell)).images) for cell in logged}
            left = {name for name, examples in forgotten.items() if not watched.issuperset(examples)}
            why = f"the update log in {log} was recorded for other examples"
        self.missing[original.name] = [cell for cell in self.missing[original.name] if cell.id not in left]
        return f"{why}; with a new --models the original is trained again, with a log for these cells" if left else ""

    def summary(self) -> BenchSummary:
        """How far all of it is."""
        originals = []
        for original in self.originals:
            cells = self.cells[original.name]
            found = done(cells, self.files.results, self._digest(original))
            originals.append(
                OriginalSummary(
                    name=original.name,
                    cells=len(cells),
                    new=self.new[original.name],
                    failed=sum(result.failed is not None for result in found.values()),
                    left=len(cells) - len(found),
                    reached=reached(self._checkpoint(original), found.values()),
                    target=original.target,
                    why=self.why.get(original.name, ""),
                )
            )
        return BenchSummary(
            directory=str(self.files.directory),
            originals=tuple(originals),
            seconds=time.monotonic() - self.started,
            limit_reached=self.limit_reached,
            nodes=self.nodes,
        )

    def _missing(self, original: Original) -> list[Cell]:
        """The cells without a result of this original, or of an earlier one: see `done`."""
        cells = self.cells[original.name]
        if self._checkpoint(original).exists():
            check_original(self._checkpoint(original), original)
        found = done(cells, self.files.results, self._digest(original))
        kept = {name for name, result in found.items() if not (self.retry_failed and result.failed)}
        return [cell for cell in cells if cell.id not in kept]

    def _checkpoint(self, original: Original) -> Path:
        return self.models / original.name / FILE_NAME

    def _digest(self, original: Original) -> str | None:
        path = self._checkpoint(original)
        return model_digest(path) if path.exists() else None

    def _check_time(self) -> None:
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise _TimeIsUp

    def _wait_for(self, original: Original) -> None:
        self._check_time()
        if self._is_due():
            self.announce(f"still training {original.name}")

    def _is_due(self) -> bool:
        now = time.monotonic()
        due = self.beat is not None and now - self.last_beat >= self.beat
        if due:
            self.last_beat = now
        return due

    def _tell(self) -> None:
        self._check_time()
        now = time.monotonic()
        self.measuring += now - self.since
        self.since = now
        done = sum(self.new.values())
        total = done + sum(
            max(0, len(missing) - self.new[name]) for name, missing in self.missing.items() if name not in self.why
        )
        advance("cells", done, total)
        if self._is_due():
            left = f", about {(total - done) * self.measuring / done / 60:.0f} minutes left" if done else ""
            self.announce(f"{done:,} of {total:,} cells{left}")


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Keeps other runs from training the same original meanwhile.

    Raises:
        ExpungeError: another run is at it, or nothing can be written there.
    """
    lock = directory.with_name(f".{directory.name}.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ExpungeError(f"cannot write {lock}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ExpungeError("another run is training it; run this again once that is done") from error
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _drawn(images: ImageSet, cell: Cell) -> list[str]:
    """The ids that a cell forgets; none where it wants more than there are, which it fails by itself."""
    return draw_ids(images, cell.forget_size, cell.seed) if cell.forget_size <= len(images) else []


def _ids_file(directory: Path, cells: Sequence[Cell]) -> Path:
    """Writes the ids of all examples that these cells of one original forget."""
    images = load_data(f"{cells[0].original.dataset}:train")
    ids = {name for cell in cells for name in _drawn(images, cell)}
    path = directory / "ids.txt"
    path.write_text("".join(f"{name}\n" for name in sorted(ids)), encoding="utf-8")
    return path


def _batches(cells: Sequence[Cell]) -> list[tuple[Cell, ...]]:
    """What is done in one go: `before` for every forget set from one pass, and each other cell by itself."""
    before = tuple(cell for cell in cells if cell.method == BEFORE)
    return [*([before] if before else []), *((cell,) for cell in cells if cell.method != BEFORE)]
