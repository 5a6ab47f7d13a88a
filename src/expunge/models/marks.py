"""What a model says of what was done to it, so that nothing is done or counted twice.

Every module of it is marked: what users wrap a network in, or take out of a wrapper, has seen the same. A checkpoint
keeps the marks in its history; a bare state dict has none.
"""

from torch import nn

_CALIBRATED = "calibration_seeds"
_UNDONE = "undone_steps"


def calibration_seeds(model: nn.Module) -> tuple[int, ...]:
    """The seeds of the splits whose calibration sides the model has seen; () for any other model.

    No audit uses those held-out examples again.
    """
    return _marked(model, _CALIBRATED)


def says_calibration(model: nn.Module) -> bool:
    """Whether the model says what it was calibrated on, be it nothing: one from a bare state dict does not."""
    return any(hasattr(module, _CALIBRATED) for module in model.modules())


def mark_calibrated(model: nn.Module, *seeds: int) -> None:
    """Adds splits to those that the model has seen."""
    _mark(model, _CALIBRATED, seeds)


def undone_steps(model: nn.Module) -> tuple[int, ...]:
    """The steps of the training whose updates were taken back, once and for all; () for any other model."""
    return _marked(model, _UNDONE)


def mark_undone(model: nn.Module, *steps: int) -> None:
    """Adds steps to those that were taken back."""
    _mark(model, _UNDONE, steps)


def _marked(model: nn.Module, name: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(value for module in model.modules() for value in getattr(module, name, ())))


def _mark(model: nn.Module, name: str, values: tuple[int, ...]) -> None:
    marked = tuple(dict.fromkeys((*_marked(model, name), *values)))
    for module in model.modules():
        setattr(module, name, marked)
