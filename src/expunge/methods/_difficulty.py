"""How hard examples are for networks that never saw them: networks trained on held-out examples alone."""

import copy

import torch
from torch import Tensor, nn

from expunge.data import Examples
from expunge.errors import InputError
from expunge.methods._margins import margins
from expunge.models import device_and_dtype, logits_of, own_factory
from expunge.training import Recipe, train

REFERENCES = 4
"""Networks that are trained."""

RECIPE = Recipe(epochs=20, batch_size=64, lr=1e-3, optimizer="adam", momentum=0.9, weight_decay=1e-5)
"""How: the model's own recipe is not known, and this one suits most networks."""


def reference_margins(model: nn.Module, forget: Examples, heldout: Examples, rng: torch.Generator) -> Tensor:
    """Mean margins of forgotten examples under `REFERENCES` networks of the model's kind, trained on others alone.

    Costs that many trainings on the held-out examples. Fresh weights come from torch's global random state.

    Args:
        model: left as it is.
        forget: N examples that the networks score.
        heldout: the examples that they are trained on.
        rng: a CPU generator.

    Returns:
        floating-point, shape (N,).

    Raises:
        InputError: the model has parameters that cannot be drawn anew.
    """
    found = []
    for number in range(REFERENCES):
        fresh = untrained(model)
        train(fresh, heldout, RECIPE, rng=rng, label=f"reference {number + 1} of {REFERENCES}")
        found.append(margins(logits_of(fresh, forget.inputs), forget.labels))
    return torch.stack(found).mean(0)


def untrained(model: nn.Module) -> nn.Module:
    """A copy with every parameter drawn anew, and free to change: built anew, or as its layers do when they are made.

    Raises:
        InputError: a layer keeps parameters and has no `reset_parameters`, and expunge did not build the model.
    """
    if (factory := own_factory(model)) is not None:
        return factory().to(*device_and_dtype(model)).requires_grad_(True)
    fresh = copy.deepcopy(model)
    for name, module in fresh.named_modules():
        reset = getattr(module, "reset_parameters", None)
        own = [parameter for parameter in module.parameters(recurse=False) if parameter.is_floating_point()]
        if callable(reset):
            for parameter in own:  # what it leaves as it was shows
                nn.init.constant_(parameter, torch.nan)
            reset()
        if (not callable(reset) and own) or any(bool(parameter.isnan().any()) for parameter in own):
            raise InputError(
                f"the model's {type(module).__name__} {name!r} has no reset_parameters() for all of its parameters, so "
                'that no untrained copy can be made of it; take another rank than "references"'
            )
    return fresh.requires_grad_(True)
