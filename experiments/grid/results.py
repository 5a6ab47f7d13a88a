"""Results of cells: one JSON line each, safe the moment that it is written."""

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from experiments.grid.cells import Cell, Run
from expunge.errors import ExpungeError, InputError
from expunge.files import written_whole
from expunge.parsing import parse_json, record

SUFFIX = ".jsonl"


@dataclass(frozen=True, kw_only=True)
class Result(Run):
    """One line of `DATASET-ARCHITECTURE.jsonl`: what a cell was, and what came of it. Old lines lack the newest fields.

    Attributes:
        cell: the `id` of the cell: it stands for all that determines the result, the original's weights apart.
        dataset, architecture, original: the original's, with recipe, options and seed of its training.
        model_digest: SHA-256 of the original's weights and description.
        failed: why there is no result, None where there is one; measurements are None where it failed.
        forget_accuracy, retain_accuracy, test_accuracy: of the unlearned model, in [0, 1], in eval mode.
        retain_measured: examples that retain accuracy was measured on. None of them shares its pixels with a
            forgotten one.
        delta_l1, delta_l2: norms of the change of all parameters; delta_l1_last_layer, delta_l2_last_layer: of the
            last linear layer's.
        test_measured: examples of the test set that test accuracy and audit are of; None in lines from before there was
            a choice: all of it.
        audit_verdict, audit_a1, audit_a2, audit_auc: the default audit's score test of the forget set against the test
            set (`expunge.metrics.ScoreTest`), in the precision of `evaluated_in`.
        original_l1, num_parameters: ‖θ‖₁ and size of the original, to normalise by.
        steps, examples_seen: updates made, and examples put through them with repetition.
        first_step_all_reached: updates after which every forgotten example was first predicted as wanted.
        seconds: unlearning alone; seconds_evaluating: the pass over retained, test and forgotten images.
        evaluated_in: `fp32` or `bf16`; forget accuracy is always of fp32.
        warnings: the trace's.
        forget_digest, retain_digest: SHA-256 of the ids drawn, in order; retain_digest is None where none was used.
        data_digest: SHA-256 of the training and test images and labels.
        device, versions, commit: where and with what it was measured.
    """

    cell: str
    dataset: str
    architecture: str
    original: Mapping[str, Any]
    model_digest: str
    failed: str | None = None
    forget_accuracy: float | None = None
    retain_accuracy: float | None = None
    retain_measured: int | None = None
    test_accuracy: float | None = None
    test_measured: int | None = None
    audit_verdict: str | None = None
    audit_a1: float | None = None
    audit_a2: float | None = None
    audit_auc: float | None = None
    delta_l1: float | None = None
    delta_l1_last_layer: float | None = None
    delta_l2: float | None = None
    delta_l2_last_layer: float | None = None
    original_l1: float | None = None
    num_parameters: int | None = None
    steps: int | None = None
    examples_seen: int | None = None
    first_step_all_reached: int | None = None
    seconds: float | None = None
    seconds_evaluating: float | None = None
    evaluated_in: str | None = None
    warnings: tuple[str, ...] = ()
    forget_digest: str | None = None
    retain_digest: str | None = None
    data_digest: str | None = None
    device: str = ""
    versions: Mapping[str, str]
    commit: str

    def to_line(self) -> str:
        """One line of JSON, keys sorted, with its newline."""
        return json.dumps(asdict(self), sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_line(cls, line: str) -> "Result":
        """The inverse of `to_line`. Raises `InputError` when it is none."""
        return record(cls, parse_json(line), "a line")


def result_of(cell: Cell, *, model_digest: str, versions: Mapping[str, str], commit: str, **measured: Any) -> Result:
    """The result of a cell from what was measured, or from `failed`."""
    return Result(
        cell=cell.id,
        dataset=cell.original.dataset,
        architecture=cell.original.architecture,
        **{field.name: getattr(cell, field.name) for field in fields(Run)},
        original=cell.original.training(),
        model_digest=model_digest,
        versions=dict(versions),
        commit=commit,
        **measured,
    )


def read_results(directory: Path) -> list[Result]:
    """All lines of all files in `directory`, in the order of writing; an unfinished last line of a file is left out.

    Raises:
        InputError: no such directory, or a line that is no result.
    """
    if not directory.is_dir():
        raise InputError(f"there is no directory {directory}; `python -m experiments run` makes it")
    return [result for path in sorted(directory.glob(f"*{SUFFIX}")) for result in _read(path)[0]]


def current(cells: Iterable[Cell], results: Iterable[Result]) -> dict[str, Result]:
    """{cell's id: its result} for the cells that have one.

    Results of other settings are left out. Where an original was trained anew, of each seed the one with the most
    measurements counts (of equals the latest); where a cell was run again, the last line.
    """
    wanted = {cell.id: (cell.original.name, cell.seed) for cell in cells}
    found = {(r.cell, r.model_digest): r for r in results if r.cell in wanted}
    counts: dict[tuple[str, int], Counter[str]] = {}
    for (cell, digest), result in reversed(found.items()):
        counts.setdefault(wanted[cell], Counter())[digest] += result.failed is None
    best = {name: count.most_common(1)[0][0] for name, count in counts.items()}
    return {cell: result for (cell, digest), result in found.items() if best[wanted[cell]] == digest}


def done(cells: Iterable[Cell], results: Iterable[Result], digest: str | None) -> dict[str, Result]:
    """{cell's id: its result} for the cells that need not be run again.

    Args:
        cells: of one original.
        results: of any.
        digest: of the original at hand; None: it is not there. Results of an earlier one, trained in the same way,
            count for a seed that they are complete for: all rows of a seed are to be of one original.
    """
    cells, results = list(cells), list(results)
    found = current(cells, results)
    if digest is None:
        return found
    mine = current(cells, (result for result in results if result.model_digest == digest))
    open_seeds = {cell.seed for cell in cells if cell.id not in found}
    return {id_: result for id_, result in found.items() if result.seed not in open_seeds} | mine


class ResultFiles:
    """The files of a directory for their one writer; see `opened`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.results: list[Result] = []
        self.dropped: list[str] = []
        for path in sorted(directory.glob(f"*{SUFFIX}")):
            found, whole, torn = _read(path)
            if torn:
                with written_whole(path) as temporary:
                    temporary.write_bytes(whole)
                self.dropped.append(path.name)
            self.results += found

    def add(self, results: Sequence[Result]) -> None:
        """Appends lines and syncs them: after this they survive anything."""
        for name in dict.fromkeys(f"{result.dataset}-{result.architecture}{SUFFIX}" for result in results):
            lines = [r.to_line() for r in results if f"{r.dataset}-{r.architecture}{SUFFIX}" == name]
            path = self.directory / name
            new = not path.exists()
            try:
                handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
                with os.fdopen(handle, "ab") as file:
                    file.write("".join(lines).encode())
                    file.flush()
                    os.fsync(handle)
            except OSError as error:
                raise ExpungeError(f"cannot write {path}: {error.strerror or error}; run it again to go on") from error
            if new:
                _sync(self.directory)
        self.results += results


@contextmanager
def opened(directory: Path) -> Iterator[ResultFiles]:
    """Makes the directory where it is missing, locks it, and drops last lines that a killed run left unfinished.

    Raises:
        InputError: another run writes there, a line is no result, or the directory cannot be made or written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise InputError(f"cannot write results to {directory}: {error.strerror}; choose another --out") from error
    try:
        if not os.access(directory, os.W_OK | os.X_OK):
            raise InputError(f"cannot write results to {directory}: permission denied; choose another --out")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of the directory: no file is left behind
        except OSError as error:
            raise InputError(f"another run writes to {directory}; wait for it, or choose another --out") from error
        yield ResultFiles(directory)
    finally:
        os.close(handle)


def _read(path: Path) -> tuple[list[Result], bytes, bool]:
    """The results in a file, its whole lines, and whether an unfinished one follows them."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    end = content.rfind(b"\n") + 1
    results = []
    for number, line in enumerate(content[:end].split(b"\n")[:-1], start=1):
        try:
            results.append(Result.from_line(line.decode()))
        except ValueError as error:  # InputError, or no UTF-8
            raise InputError(
                f"{path}, line {number}, is no result of `python -m experiments run` ({error}); take it out"
            ) from error
    return results, content[:end], end < len(content)


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
