"""How hard each example is for networks that never saw it: what an audit of an odd forget set takes off the scores."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from expunge.audit.forward import outputs_of
from expunge.audit.placement import as_scores
from expunge.audit.scores import Floats, logit_margin
from expunge.data import Examples
from expunge.errors import InputError, SettingError
from expunge.randomness import stream
from expunge.training import Recipe, train

FOLDS = 4
"""Reference networks; each is trained on the held-out examples of all folds but one."""


@dataclass(frozen=True, kw_only=True)
class Difficulty:
    """The margin of each example under a reference network that never saw it; low is hard.

    Attributes:
        forget: float64, shape (n,), in the order of the forget set.
        heldout: float64, shape (m,), in the order of the held-out set.
        num_references: networks that were trained.
        accuracy: in [0, 1], of the references on the held-out examples that they never saw.
        forget_accuracy: likewise on the forget set: about what a network that never saw it gets right.
    """

    forget: Floats
    heldout: Floats
    num_references: int
    accuracy: float
    forget_accuracy: float


def difficulty_of(
    forget: Examples,
    heldout: Examples,
    *,
    factory: Callable[[], nn.Module],
    recipe: Recipe,
    folds: int = FOLDS,
    seed: int = 0,
) -> Difficulty:
    """Trains networks on the held-out examples alone, and scores every example by one that did not see it.

    Held-out examples are dealt into `folds`; network f is trained without fold f. A held-out example is scored by its
    fold's network, and so is a forgotten one by that of the fold it is dealt into: by one network each, so that the
    scores of both kinds are equally noisy. No training data of the audited model is needed.

    Costs about `folds` − 1 trainings on all of the held-out set.

    Args:
        forget, heldout: examples that the networks can take.
        factory: builds a network with fresh random weights from torch's global random state, which is put back.
        recipe: how each is trained; that of the audited model, where it is known.
        folds: ≥ 2.
        seed: of the folds and the trainings.

    Raises:
        SettingError: `folds` < 2.
        InputError: fewer held-out examples than twice the folds.
        NonFiniteError: a training diverged.

    >>> data = Examples(torch.rand(40, 4), torch.arange(40) % 2)
    >>> recipe = Recipe(epochs=1, batch_size=10)
    >>> found = difficulty_of(data.take(torch.arange(8)), data.take(torch.arange(8, 40)),
    ...                       factory=lambda: nn.Linear(4, 2), recipe=recipe)
    >>> found.forget.shape, found.heldout.shape, found.num_references
    ((8,), (32,), 4)
    """
    if folds < 2:
        raise SettingError(f"folds is at least 2, not {folds}")
    if len(heldout) < 2 * folds:
        raise InputError(f"{len(heldout)} held-out examples cannot be dealt into {folds} folds; give more")
    rng = stream("folds", seed)
    fold = {
        "forget": torch.randperm(len(forget), generator=rng) % folds,
        "heldout": torch.randperm(len(heldout), generator=rng) % folds,
    }
    sets = {"forget": forget, "heldout": heldout}
    scores = {name: np.zeros(len(examples)) for name, examples in sets.items()}
    right = {name: np.zeros(len(examples), dtype=bool) for name, examples in sets.items()}
    for number in range(folds):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=rng)))
            network = factory()
        label = f"reference {number + 1} of {folds}"
        rest = heldout.take(torch.nonzero(fold["heldout"] != number).flatten())
        train(network, rest, recipe, rng=rng, label=label)
        for name, examples in sets.items():
            members = torch.nonzero(fold[name] == number).flatten()
            if len(members):
                outputs = outputs_of(network, examples.take(members), label=label)
                scores[name][members.numpy()] = logit_margin(outputs.logits, outputs.labels)
                right[name][members.numpy()] = outputs.logits.argmax(1) == outputs.labels
    return Difficulty(
        forget=scores["forget"],
        heldout=scores["heldout"],
        num_references=folds,
        accuracy=float(right["heldout"].mean()),
        forget_accuracy=float(right["forget"].mean()),
    )


def corrected_scores(
    forget_scores: ArrayLike,
    heldout_scores: ArrayLike,
    forget_difficulty: ArrayLike,
    heldout_difficulty: ArrayLike,
) -> tuple[Floats, Floats, float]:
    """Scores less `slope` × difficulty, of forgotten and of held-out examples, and the slope.

    The slope is that of the reduced major axis through the held-out examples, sd(scores) / sd(difficulty): both carry
    noise of the same kind, for which least squares would correct hard examples too little. It is 0 where the two are
    not positively correlated. It comes from held-out examples alone, which are exchangeable with forgotten ones of
    equal difficulty after a perfect retraining, so that the score test keeps its meaning.

    Args:
        forget_scores, heldout_scores: `logit_margin` under the audited model, float, shapes (n,) and (m,).
        forget_difficulty, heldout_difficulty: of `Difficulty`, same shapes.

    Returns:
        float64, shapes (n,) and (m,), and the slope ≥ 0.

    Raises:
        InputError: other shapes, NaN or infinity.

    >>> corrected_scores([1.0, -7.0], [0.0, 2.0, 4.0], [0.5, -3.5], [0.0, 1.0, 2.0])
    (array([0., 0.]), array([0., 0., 0.]), 2.0)
    """
    scores = as_scores(forget_scores, "forget_scores"), as_scores(heldout_scores, "heldout_scores")
    hard = as_scores(forget_difficulty, "forget_difficulty"), as_scores(heldout_difficulty, "heldout_difficulty")
    for given, found in zip(scores, hard, strict=True):
        if given.shape != found.shape:
            raise InputError(f"there are {len(given)} scores and {len(found)} difficulties; give one for each example")
    spread, own = float(hard[1].std()), float(scores[1].std())
    together = float(((hard[1] - hard[1].mean()) * (scores[1] - scores[1].mean())).mean())
    slope = own / spread if together > 0 else 0.0
    return scores[0] - slope * hard[0], scores[1] - slope * hard[1], slope
