"""How hard each example is for networks that never saw it: what an audit of an odd forget set takes off the scores."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from expunge.audit.forward import outputs_of
from expunge.audit.placement import as_scores
from expunge.audit.scores import Floats, logit_margin
from expunge.data import Examples, check_disjoint
from expunge.errors import InputError
from expunge.randomness import stream
from expunge.training import Recipe, train

NUM_REFERENCES = 4
"""Networks; each is trained on half of the held-out examples, and each example is scored by two that never saw it."""

LEAST_RELIABILITY = 0.25
"""The share of the difficulties' variance that is taken to be no noise, at the least: it bounds the slope."""


@dataclass(frozen=True, kw_only=True)
class Difficulty:
    """The margins of each example under two reference networks that never saw it; low is hard.

    Attributes:
        forget: float64, shape (n, 2), in the order of the forget set.
        heldout: float64, shape (m, 2), in the order of the held-out set.
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
    forget: Examples, heldout: Examples, *, factory: Callable[[], nn.Module], recipe: Recipe, seed: int = 0
) -> Difficulty:
    """Trains four networks on halves of the held-out examples, and scores every example by two that never saw it.

    Every example, held out or forgotten, is dealt a pair of networks: those are not trained on it, and they score it.
    Both kinds are so treated alike. No training data of the audited model is needed. It costs two trainings on as many
    examples as there are held-out ones.

    Args:
        forget, heldout: examples that the networks can take, without an input in common.
        factory: builds a network with fresh random weights from torch's global random state, which is put back.
        recipe: how each is trained; that of the audited model, where it is known.
        seed: of the pairs and the trainings.

    Raises:
        InputError: an empty forget set, fewer than 16 held-out examples, or an input in both sets.
        NonFiniteError: a training diverged.

    >>> data = Examples(torch.rand(40, 4), torch.arange(40) % 2)
    >>> recipe = Recipe(epochs=1, batch_size=10)
    >>> found = difficulty_of(data.take(torch.arange(8)), data.take(torch.arange(8, 40)),
    ...                       factory=lambda: nn.Linear(4, 2), recipe=recipe)
    >>> found.forget.shape, found.heldout.shape, found.num_references
    ((8, 2), (32, 2), 4)
    """
    if len(forget) == 0:
        raise InputError("the forget set is empty; give it at least one example")
    if len(heldout) < 16:
        raise InputError(f"{len(heldout)} held-out examples are too few to train networks on; give at least 16")
    check_disjoint(forget.inputs, heldout.inputs, "forget", "test")
    rng = stream("difficulty", seed)
    pairs = torch.tensor(list(combinations(range(NUM_REFERENCES), 2)))
    sets = {"forget": forget, "heldout": heldout}
    dealt = {name: pairs[torch.randperm(len(held), generator=rng) % len(pairs)] for name, held in sets.items()}
    scores = {name: np.zeros((len(held), 2)) for name, held in sets.items()}
    right = {name: np.zeros((len(held), 2), dtype=bool) for name, held in sets.items()}
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    for number in range(NUM_REFERENCES):
        label = f"reference {number + 1} of {NUM_REFERENCES}"
        seen = heldout.take(torch.nonzero((dealt["heldout"] != number).all(1)).flatten())
        with torch.random.fork_rng(devices):
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=rng)))
            network = factory()
            train(network, seen, recipe, rng=rng, label=label)
        for name, held in sets.items():
            members, place = torch.nonzero(dealt[name] == number).unbind(1)
            if len(members):
                outputs = outputs_of(network, held.take(members), label=label)
                scores[name][members, place] = logit_margin(outputs.logits, outputs.labels)
                right[name][members, place] = outputs.logits.argmax(1) == outputs.labels
    return Difficulty(
        forget=scores["forget"],
        heldout=scores["heldout"],
        num_references=NUM_REFERENCES,
        accuracy=float(right["heldout"].mean()),
        forget_accuracy=float(right["forget"].mean()),
    )


def corrected_scores(
    forget_scores: ArrayLike,
    heldout_scores: ArrayLike,
    forget_difficulty: ArrayLike,
    heldout_difficulty: ArrayLike,
) -> tuple[Floats, Floats, float]:
    """Scores less `slope` × d, of forgotten and of held-out examples, and the slope; d is the mean of two difficulties.

    The slope is that of scores on *true* difficulty, from held-out examples alone: Cov(s, d) / Cov(d₁, d₂), where d₁
    and d₂ are two noisy measurements of one example's difficulty. The slope of least squares, Cov(s, d) / Var(d), would
    correct examples that really are hard too little. It is 0 where s and d are not positively correlated, and
    Cov(d₁, d₂) counts as at least `LEAST_RELIABILITY` × Var(d).

    After a perfect retraining the corrected scores of odd and of ordinary examples have one mean where scores are
    linear in difficulty; where their noise differs, they differ in spread. The score test on them is therefore an
    approximation, whose false alarms docs/audit.md measures.

    Args:
        forget_scores, heldout_scores: `logit_margin` under the audited model, float, shapes (n,) and (m,).
        forget_difficulty, heldout_difficulty: of `Difficulty`, shapes (n, 2) and (m, 2).

    Returns:
        float64, shapes (n,) and (m,), and the slope ≥ 0.

    Raises:
        InputError: other shapes, NaN or infinity.

    >>> hard = [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]
    >>> corrected_scores([1.0, -7.0], [0.0, 2.0, 4.0], [[0.5, 0.5], [-4.0, -3.0]], hard)
    (array([0., 0.]), array([0., 0., 0.]), 2.0)
    """
    ours, theirs = as_scores(forget_scores, "forget_scores"), as_scores(heldout_scores, "heldout_scores")
    odd = _as_pairs(forget_difficulty, len(ours), "forget_difficulty")
    known = _as_pairs(heldout_difficulty, len(theirs), "heldout_difficulty")
    first, second = (known - known.mean(0)).T
    hard = known.mean(1)
    shared, variance = float((first * second).mean()), float(hard.var())
    together = float(((hard - hard.mean()) * (theirs - theirs.mean())).mean())
    varies = variance > 1e-20 * float(np.square(hard).mean())  # more than rounding makes of equal numbers
    slope = max(0.0, together) / max(shared, LEAST_RELIABILITY * variance) if varies else 0.0
    return ours - slope * odd.mean(1), theirs - slope * hard, slope


def _as_pairs(difficulty: ArrayLike, num: int, name: str) -> Floats:
    values = np.asarray(difficulty, dtype=np.float64)
    if values.shape != (num, 2):
        raise InputError(f"{name} must have shape ({num}, 2), two for each score, not {values.shape}")
    as_scores(values.ravel(), name)
    return values
