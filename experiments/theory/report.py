"""What `python -m experiments theory` measured."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from experiments.theory.updates import UpdateMeasurement
from expunge.errors import InputError

FORMAT = "expunge-theory/1"


@dataclass(frozen=True, kw_only=True)
class SingleSteps:
    """The theorem's regime: one SGD step on one example, over the examples. JSON values.

    Percentiles are lists of 101 numbers: the least value, the 1st, …, the 99th percentile, the greatest, with linear
    interpolation.

    Attributes:
        num_examples: N.
        num_predicted: how many the model predicts right; the theorem applies to these.
        num_majorized_predicted: in how many of these targeted's |Δφ| majorizes that of gradient ascent.
        num_majorized_mispredicted: the same among the others.
        disagreement: largest relative difference between closed form and autograd.
        label_probability: percentiles of p_y.
        l1_ratio: percentiles, over the examples predicted right, of ‖Δφ‖₁ with which targeted levels y and y′ over
            that of gradient ascent; None where there is none.
        percentiles: {method: {measure: percentiles}} over all N; methods `targeted`, `gradient_ascent` and
            `random_label`, measures the fields of `UpdateShape`.
    """

    num_examples: int
    num_predicted: int
    num_majorized_predicted: int
    num_majorized_mispredicted: int
    disagreement: float
    label_probability: tuple[float, ...]
    l1_ratio: tuple[float, ...] | None
    percentiles: Mapping[str, Mapping[str, tuple[float, ...]]]


@dataclass(frozen=True, kw_only=True)
class TheoryReport:
    """What `theory` measured; `theory.json` in its directory.

    Attributes:
        directory: where it was written; None: nowhere.
        model, data: the MODEL and DATA specs.
        ids: the file with ids; None: drawn.
        seed: of the draw and of everything random.
        num_classes: C.
        num_entries: parameters of the last layer: C × M, with a bias C × (M + 1).
        single: one SGD step on one example, for each of the examples.
        batch: how many of the examples, the first ones, the runs forget.
        forget_accuracy_before: accuracy on the batch, in [0, 1].
        trajectory: what the runs on the batch did.
        versions, device: where it ran.
    """

    directory: str | None
    model: str
    data: str
    ids: str | None
    seed: int
    num_classes: int
    num_entries: int
    single: SingleSteps
    batch: int
    forget_accuracy_before: float
    trajectory: tuple[UpdateMeasurement, ...]
    versions: Mapping[str, str]
    device: str

    def to_json(self) -> str:
        """JSON text."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> "TheoryReport":
        """The inverse of `to_json`. Raises `InputError` when `text` is not such a report."""
        try:
            content = json.loads(text)
            if content.pop("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            single = content.pop("single")
            single["percentiles"] = {
                method: {measure: tuple(values) for measure, values in measures.items()}
                for method, measures in single["percentiles"].items()
            }
            single["label_probability"] = tuple(single["label_probability"])
            single["l1_ratio"] = None if single["l1_ratio"] is None else tuple(single["l1_ratio"])
            trajectory = tuple(UpdateMeasurement(**entry) for entry in content.pop("trajectory"))
            return cls(single=SingleSteps(**single), trajectory=trajectory, **content)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"this is not a theory report that expunge wrote: {error}") from error
