"""The theorem's quantities for real examples, and the runs that it says nothing about."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from experiments.theory.concentration import Concentration, concentration
from experiments.theory.report import SingleSteps, TheoryReport
from experiments.theory.updates import measure_updates
from expunge.auditing import accuracy
from expunge.cli.sources import Sources, images_for
from expunge.data import ImageSet, draw_ids, read_ids
from expunge.errors import InputError, SettingError
from expunge.files import check_unused, new_directory
from expunge.models import last_layer, load_model
from expunge.trainer import device_named

NUM_EXAMPLES = 512
"""How many examples are drawn where neither ids nor a number is given, and there are as many."""
BATCH = 64
STEPS = (1, 2, 5, 10, 20)


def theory(
    model: str,
    data: str,
    *,
    ids: Path | None = None,
    num: int | None = None,
    batch: int | None = None,
    steps: Sequence[int] = STEPS,
    seed: int = 0,
    device: str = "auto",
    weights: Path | None = None,
    allow_pickle: bool = False,
    resize: bool = False,
    out: str | Path | None = None,
) -> TheoryReport:
    """Measures how concentrated updates are: single steps, which theorem 4.1 is about, and runs, which it is not.

    Single steps: `experiments.theory.concentration` for each example. Runs: `measure_updates`, which makes the
    model forget a batch of them. See docs/research/theory.md.

    Args:
        model, weights, allow_pickle: MODEL spec and what it may need; as for `forget`.
        data: DATA spec of the examples, which the model should know: training examples.
        ids: a file with one id a line picks examples, in its order.
        num: how many to draw, by `draw_ids`, without ids; None: 512, or all where there are fewer.
        batch: how many of them, the first ones, the runs forget; None: 64, or all where there are fewer.
        steps: the numbers of Adam updates after which the runs are measured, each ≥ 1.
        seed: of the draw, the random labels and the runs.
        device: `cpu`, `cuda`, or `auto`.
        resize: resize a folder's images to the model's size.
        out: a new directory for `theory.json` and `theory.svg`, which need the extra `report`; None writes nothing.

    Raises:
        SettingError: settings out of range, or ids and a number at once.
        InputError: the model or data cannot be used, `out` exists, the model's last layer is not a plain linear one
            whose output are the logits, or an example's gradient is exactly zero.
        MissingExtraError: `out` is given and matplotlib is missing.
        NonFiniteError: a run's loss became NaN or infinite.
    """
    if out is not None:
        from experiments.theory.figure import check_available

        check_available()
        check_unused(out)
    where = device_named(device)
    if ids is not None and num is not None:
        raise SettingError("give --ids or --num, not both: the ids say how many")
    if not steps or min(steps) < 1:
        raise SettingError("--steps takes numbers of updates, each at least 1, such as 1,2,5")
    network, header = load_model(model, weights=weights, allow_pickle=allow_pickle)
    examples = _chosen(images_for(data, header, Sources(model=model, forget=data, resize=resize)), ids, num, seed)
    if batch is not None and not 1 <= batch <= len(examples):
        raise SettingError(f"--batch {batch} is not between 1 and the {len(examples)} examples that there are")
    size = min(BATCH, len(examples)) if batch is None else batch

    def measured() -> TheoryReport:
        return _measured(
            network.to(where),
            examples,
            size,
            steps=sorted(set(steps)),
            seed=seed,
            described={"directory": None if out is None else str(out), "model": model, "data": data}
            | {"ids": None if ids is None else str(ids)},
        )

    if out is None:
        return measured()
    with new_directory(out) as temporary:  # before the work: a place that cannot be written says so at once
        report = measured()
        from experiments.theory.figure import draw_theory

        (temporary / "theory.json").write_text(report.to_json(), encoding="utf-8")
        draw_theory(report, temporary / "theory.svg")
    return report


def _chosen(images: ImageSet, ids: Path | None, num: int | None, seed: int) -> ImageSet:
    if ids is not None:
        return images.select(read_ids(ids))
    if len(images) == 0:
        raise InputError(f"{images.name} is empty; give at least one example")
    return images.select(draw_ids(images, min(NUM_EXAMPLES, len(images)) if num is None else num, seed))


def _measured(
    network: nn.Module, examples: ImageSet, size: int, *, steps: Sequence[int], seed: int, described: dict[str, Any]
) -> TheoryReport:
    shapes = concentration(network, examples, seed=seed)
    head = network.get_submodule(last_layer(network))
    assert isinstance(head, nn.Linear)  # or concentration would have refused
    batch = examples.take(range(size))
    return TheoryReport(
        **described,
        seed=seed,
        num_classes=head.out_features,
        num_entries=sum(parameter.numel() for parameter in head.parameters()),
        single=_summary(shapes),
        batch=size,
        forget_accuracy_before=accuracy(network, batch.examples),
        trajectory=measure_updates(network, batch, steps=steps, seed=seed),
        versions={"expunge": version("expunge"), "torch": torch.__version__, "numpy": np.__version__},
        device=f"{next(network.parameters()).device}, {torch.get_num_threads()} threads",
    )


def _summary(shapes: Concentration) -> SingleSteps:
    right = shapes.predicted
    return SingleSteps(
        num_examples=len(right),
        num_predicted=int(right.sum()),
        num_majorized_predicted=int(shapes.majorized[right].sum()),
        num_majorized_mispredicted=int(shapes.majorized[~right].sum()),
        disagreement=shapes.disagreement,
        label_probability=_percentiles(shapes.label_probability),
        l1_ratio=_percentiles(shapes.l1_ratio[right]) if right.any() else None,
        percentiles={
            method: {measure: _percentiles(values) for measure, values in vars(shape).items()}
            for method, shape in shapes.closed_form.items()
        },
    )


def _percentiles(values: "np.ndarray[Any, np.dtype[np.float64]]") -> tuple[float, ...]:
    return tuple(np.percentile(values, np.arange(101)).tolist())
