"""What a model says of the held-out examples that it was calibrated on, so that no audit uses them again."""

from torch import nn

_ATTRIBUTE = "calibration_seeds"


def calibration_seeds(model: nn.Module) -> tuple[int, ...]:
    """The seeds of the splits whose calibration sides the model has seen; () for any other model.

    `unlearn` leaves them on the model, and a checkpoint keeps them in its history.
    """
    return tuple(dict.fromkeys(seed for module in model.modules() for seed in getattr(module, _ATTRIBUTE, ())))


def mark_calibrated(model: nn.Module, *seeds: int) -> None:
    """Adds splits to those that the model has seen.

    Every module of it is marked: what users wrap a network in, or take out of a wrapper, has seen them too.
    """
    marked = tuple(dict.fromkeys((*calibration_seeds(model), *seeds)))
    for module in model.modules():
        setattr(module, _ATTRIBUTE, marked)
