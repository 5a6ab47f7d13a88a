"""What a method is handed beside the forget set: read, checked against it, and put where it is."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from expunge.data import Examples, calibration_side, check_disjoint, digests, materialise, materialise_inputs
from expunge.data.content import apart_from
from expunge.data.examples import check_labels, check_steady, size_of
from expunge.distributed import check_alike, count
from expunge.errors import InputError
from expunge.methods import Method, Recorder, Task
from expunge.randomness import stream


def retained_examples(
    retain: Dataset[Any] | None, forget: Examples, num_classes: int, method: Method, seed: int
) -> Examples | None:
    """The retained examples that the method is to have: all, or a uniform draw that depends on `seed` alone.

    Two methods with one seed and one `retain_size` are handed the same examples.
    """
    if retain is None:
        return None
    size = size_of(retain, "retain")
    wanted = getattr(method, "retain_size", None)
    index = None
    if wanted is not None and wanted < size:
        order = torch.randperm(size, generator=stream("retain", seed), device="cpu")
        index = sorted(order[:wanted].tolist())
    examples = materialise(retain, "retain", index)
    check_steady(retain, examples, "retain", index)
    _check_beside(examples, forget, num_classes, "retained", "retain")
    return _like(examples, forget)


def calibration_examples(test: Dataset[Any] | None, forget: Examples, num_classes: int, seed: int) -> Examples | None:
    """The test examples on the calibration side of the split by `seed`."""
    if test is None:
        return None
    examples = materialise(test, "test")
    check_steady(test, examples, "test")  # the split is by content: nothing else tells the audit what was used
    _check_beside(examples, forget, num_classes, "test", "test")
    side = calibration_side(examples.inputs, seed)
    if not side.any() or side.all():
        raise InputError(
            f"{len(side)} test examples cannot be split into some to calibrate on and some to audit with; give more"
        )
    return _like(examples.take(side.nonzero()[:, 0]), forget)


def unlabelled_examples(
    given: Dataset[Any] | None, test: Dataset[Any] | None, forget: Examples, record: Recorder
) -> Tensor | None:
    """The unlabelled inputs that are neither forgotten nor test examples, where and as the forget set is."""
    if given is None:
        return None
    inputs = materialise_inputs(given, "unlabelled")
    _check_kind(inputs, forget.inputs, "unlabelled")
    others = {"forget": forget.inputs} | ({} if test is None else {"test": materialise_inputs(test, "test")})
    inputs, left_out = apart_from(inputs, "unlabelled", others)
    for sentence in left_out:
        record.warn(sentence)
    return inputs.to(forget.inputs.device, forget.inputs.dtype)


def _check_beside(examples: Examples, forget: Examples, num_classes: int, which: str, name: str) -> None:
    """Raises `InputError` where examples do not go with the forget set: mislabelled, of another kind, or shared."""
    check_labels(examples.labels, num_classes, f"{which} set")
    _check_kind(examples.inputs, forget.inputs, which)
    check_disjoint(forget.inputs, examples.inputs, "forget", name)


def _check_kind(inputs: Tensor, forgotten: Tensor, which: str) -> None:
    """Raises `InputError` where inputs are of another shape or kind than the forgotten ones."""
    shapes = tuple(inputs.shape[1:]), tuple(forgotten.shape[1:])
    if shapes[0] != shapes[1]:
        raise InputError(f"{which} inputs have shape {shapes[0]}, forgotten ones {shapes[1]}")
    kinds = inputs.dtype, forgotten.dtype
    if kinds[0].is_floating_point != kinds[1].is_floating_point:
        raise InputError(
            f"{which} inputs are {kinds[0]} and forgotten ones {kinds[1]}: pixels of 0 to 255 and of 0 to 1 are not "
            "the same; give both in the model's own form"
        )
    if not kinds[0].is_floating_point and not torch.equal(inputs.to(kinds[1]).to(kinds[0]), inputs):
        raise InputError(f"{which} inputs are {kinds[0]} and do not fit into {kinds[1]}, as forgotten ones are")


def _like(examples: Examples, forget: Examples) -> Examples:
    """Where and as the forget set is: a model may scale 8-bit integers and no others."""
    return Examples(
        examples.inputs.to(forget.inputs.device, forget.inputs.dtype), examples.labels.to(forget.labels.device)
    )


def check_shared(task: Task) -> None:
    """Raises `InputError` where several processes make a run together, and were given different sets."""
    if count() == 1:
        return
    sets = {"retain": task.retain, "test": task.calibration}
    inputs = {name: held.inputs for name, held in sets.items() if held is not None}
    inputs |= {} if task.unlabelled is None else {"unlabelled": task.unlabelled}
    check_alike(**{name: b"".join(digests(held)) for name, held in inputs.items()})
