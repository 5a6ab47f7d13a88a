"""How hard each example is for networks that never saw it, for the difficulty calibration of an audit."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from expunge.auditing.forward import outputs_of
from expunge.auditing.settings import AuditSettings
from expunge.data import Examples, as_examples, check_disjoint
from expunge.errors import ExpungeError, InputError
from expunge.metrics.difficulty import Difficulty
from expunge.models import built_by, copied, widened
from expunge.randomness import stream
from expunge.training import Recipe, train

NUM_REFERENCES = 4
"""Networks; each is trained on half of the held-out examples, and each example is scored by two that never saw it."""


def references_within(
    settings: AuditSettings, model: nn.Module, forget: Examples, test: Examples, *, seed: int = 0
) -> Difficulty | str:
    """`difficulty_of`, where that takes at most `reference_minutes` by a first step; else a sentence that says why not.

    A `non_random` forget set has it however long it takes. `model` is the audited one. Raises as `check_factory` does.
    """
    minutes = _minutes(settings)
    if minutes == 0:
        return "No attack by reference models was made: it was left out by a setting."
    recipe, factory = settings.recipe, settings.factory
    check_factory(settings, model)
    make = partial(fresh_copy, model) if factory is None else partial(built_by, factory, model)
    try:
        steps = recipe.epochs * NUM_REFERENCES * max(1, len(test) // 2 // recipe.batch_size)
        needed = steps * _seconds_a_step(make, test, recipe) / 60
        if needed > minutes:
            return (
                f"No attack by reference models was made: training them takes about {needed:,.0f} minutes here, more "
                f"than the {minutes:g} that are allowed."
            )
        return difficulty_of(forget, test, factory=make, recipe=recipe, seed=seed)
    except ExpungeError as error:
        return f"No attack by reference models was made: {str(error).rstrip('.')}."


def check_factory(settings: AuditSettings, model: nn.Module) -> None:
    """Raises `InputError` where reference models are to be trained, and `settings.factory` gives no fresh weights.

    Reference models that know what `model` knows would find nothing.
    """
    if settings.factory is not None and _minutes(settings):
        with torch.random.fork_rng():
            built_by(settings.factory, model)


def _minutes(settings: AuditSettings) -> float:
    return float("inf") if settings.non_random else settings.reference_minutes


def fresh_copy(model: nn.Module) -> nn.Module:
    """The same network with fresh random weights, from torch's global random state; half-precision ones in float32.

    Raises `InputError` where a parameter belongs to a module without `reset_parameters`, or stays as it was: those that
    weights are computed from do.
    """
    network, old = widened(copied(model)), dict(widened(copied(model)).named_parameters())
    for name, module in network.named_modules():
        reset = getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()
        elif any(True for _ in module.parameters(recurse=False)):
            raise InputError(f"the weights of {name or type(module).__name__} cannot be initialised anew")
    for name, parameter in network.named_parameters():
        if torch.equal(parameter, old[name]) and bool((parameter != parameter.flatten()[:1]).any()):
            raise InputError(f"the weights {name} cannot be initialised anew")
    return network.requires_grad_(True)


def _seconds_a_step(factory: Callable[[], nn.Module], test: Examples, recipe: Recipe) -> float:
    """Of training, by one epoch over a batch; the first also loads what is needed, and does not count."""
    batch = test.take(torch.arange(min(len(test), recipe.batch_size)))
    once = replace(recipe, epochs=1)
    seconds = []
    for _ in range(2):
        with torch.random.fork_rng():
            network = factory()
        started = time.perf_counter()
        train(network, batch, once, rng=stream("difficulty", 0), label="timing a step")
        seconds.append(time.perf_counter() - started)
    return seconds[-1]


def difficulty_of(
    forget: "Examples | Dataset[Any]",
    test: "Examples | Dataset[Any]",
    *,
    factory: Callable[[], nn.Module],
    recipe: Recipe,
    seed: int = 0,
) -> Difficulty:
    """Trains four networks on halves of the held-out examples, and scores every example by two that never saw it.

    No training data of the audited model is needed. It costs two trainings on as many examples as there are held-out
    ones.

    Args:
        forget, test: forgotten and unseen examples that the networks can take, without an input in common.
        factory: builds a network with fresh random weights from torch's global random state, which is put back.
        recipe: how each is trained; that of the audited model, where it is known.
        seed: of the pairs and the trainings.

    Raises:
        InputError: an empty forget set, fewer than 16 held-out examples, an input in both sets, or examples that the
            factory's network cannot take.
        SettingError: a recipe or seed that cannot be used.
        NonFiniteError: a training diverged.

    >>> data = Examples(torch.rand(40, 4), torch.arange(40) % 2)
    >>> recipe = Recipe(epochs=1, batch_size=10)
    >>> found = difficulty_of(data.take(torch.arange(8)), data.take(torch.arange(8, 40)),
    ...                       factory=lambda: nn.Linear(4, 2), recipe=recipe)
    >>> found.forget.shape, found.test.shape, found.num_references
    ((8,), (32,), 4)
    """
    forget, heldout = as_examples(forget, "forget"), as_examples(test, "test")
    if len(heldout) < 16:
        raise InputError(f"{len(heldout)} held-out examples are too few to train networks on; give at least 16")
    check_disjoint(forget.inputs, heldout.inputs, "forget", "test")
    rng = stream("difficulty", seed)
    pairs = torch.tensor(list(combinations(range(NUM_REFERENCES), 2)), device="cpu")
    sets = {"forget": forget, "heldout": heldout}
    orders = {name: torch.randperm(len(held), generator=rng, device="cpu") for name, held in sets.items()}
    dealt = {name: pairs[order % len(pairs)] for name, order in orders.items()}
    scores = {name: np.zeros((len(held), 2)) for name, held in sets.items()}
    right = {name: np.zeros((len(held), 2), dtype=bool) for name, held in sets.items()}
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    for number in range(NUM_REFERENCES):
        label = f"reference {number + 1} of {NUM_REFERENCES}"
        seen = heldout.take(torch.nonzero((dealt["heldout"] != number).all(1)).flatten())
        with torch.random.fork_rng(devices):
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=rng, device="cpu")))
            network = factory()
            train(network, seen, recipe, rng=rng, label=label)
        for name, held in sets.items():
            members, place = torch.nonzero(dealt[name] == number).unbind(1)
            if len(members):
                outputs = outputs_of(network, held.take(members), label=label)
                at = members.numpy(), place.numpy()
                scores[name][at] = outputs.scores
                right[name][at] = outputs.logits.argmax(1) == outputs.labels
    return Difficulty(
        forget=scores["forget"].mean(1),
        test=scores["heldout"].mean(1),
        num_references=NUM_REFERENCES,
        accuracy=float(right["heldout"].mean()),
        forget_accuracy=float(right["forget"].mean()),
    )
