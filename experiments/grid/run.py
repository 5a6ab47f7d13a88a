"""`python -m experiments run`: a grid of experiments, from its TOML file to one JSON line a cell."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from experiments.grid import BenchSummary, load_grid, only
from experiments.grid.engine import Engine
from experiments.grid.runner import run_cells
from expunge.errors import SettingError
from expunge.trainer import device_named, train


def bench_run(
    grid: Path,
    out: str | Path,
    *,
    models: Path | None = None,
    only_cells: Sequence[str] = (),
    workers: int = 1,
    ray: str | None = None,
    limit_minutes: float | None = None,
    profile: str | None = None,
    train_missing: bool = True,
    retry_failed: bool = False,
    device: str = "auto",
    announce: Callable[[str], None] = lambda line: None,
    beat: float | None = None,
) -> BenchSummary:
    """Does the missing cells of a grid; what is in `out` already is not done again.

    Args:
        grid: the TOML file.
        out: directory of the results, `DATASET-ARCHITECTURE.jsonl`; made where it is missing.
        models: directory of the originals; what is missing there is trained. None: OUT-originals, beside `out`.
        only_cells: `KEY=VALUE,…` with dataset, architecture, method, size, seed.
        workers: processes on this machine, not with `ray`; over several GPUs they are spread.
        ray: address of a Ray cluster to use instead, or `local`.
        limit_minutes: ends after so many minutes, with all that was finished.
        profile: of the grid. None: `gpu` where it runs on GPUs, else `cpu`.
        train_missing: False leaves out cells whose original is not there.
        retry_failed: do cells again whose result is a failure.
        device: `cpu`, `cuda` or `auto`; a Ray cluster's is its own.
        announce, beat: as in `experiments.grid.runner.run_cells`.
    """
    out = Path(out)
    if limit_minutes is not None and not limit_minutes > 0:
        raise SettingError(f"--limit is a number of minutes above 0, not {limit_minutes}")
    if workers < 1:
        raise SettingError(f"workers={workers}: it is at least 1")
    wanted = load_grid(grid)
    if ray is None:
        if device_named(device).index is not None:
            raise SettingError(
                f"--device {device}: it is cpu, cuda or auto, and cells are spread over the GPUs; CUDA_VISIBLE_DEVICES "
                "picks some"
            )
        where = device_named(device).type
    else:
        if workers != 1 or device != "auto":
            raise SettingError("--workers and --device are of this machine; with --ray the cluster's own are used")
        chosen = only(wanted.cells(profile or "cpu"), only_cells)  # the cluster's own is not known yet, nor needed
        if logged := {cell.row for cell in chosen if cell.reads_updates}:
            raise SettingError(
                f"the row {min(logged)!r} reads the update log beside its original, which does not travel: leave out "
                "--ray, or pick other rows by --only"
            )
        where = "cpu"
    engine = Engine(workers=workers, device=where, train=partial(train, announce=announce), ray=ray)
    try:
        cells = only(wanted.cells(profile or ("gpu" if engine.device == "cuda" else "cpu")), only_cells)
        return run_cells(
            cells,
            out,
            models or out.with_name(f"{out.name}-originals"),
            engine,
            limit=None if limit_minutes is None else 60 * limit_minutes,
            train_missing=train_missing,
            retry_failed=retry_failed,
            announce=announce,
            beat=beat,
        )
    finally:
        engine.close()
