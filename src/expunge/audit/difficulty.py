"""How hard each example is for networks that never saw it: what an audit of an odd forget set takes off the scores."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn
from torch.utils.data import Dataset

from expunge.audit.forward import outputs_of
from expunge.audit.placement import as_scores, ranks
from expunge.audit.scores import Floats, logit_margin
from expunge.data import Examples, as_examples, check_disjoint
from expunge.errors import InputError
from expunge.randomness import stream
from expunge.training import Recipe, train

NUM_REFERENCES = 4
"""Networks; each is trained on half of the held-out examples, and each example is scored by two that never saw it."""

FULL_CORRELATION = 0.5
"""From this correlation of scores and difficulty on, over held-out examples, all of the difficulty is taken off."""


@dataclass(frozen=True, kw_only=True)
class Difficulty:
    """The mean margin of each example under two reference networks that never saw it; low is hard.

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
    forget: "Examples | Dataset[Any]",
    heldout: "Examples | Dataset[Any]",
    *,
    factory: Callable[[], nn.Module],
    recipe: Recipe,
    seed: int = 0,
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
        InputError: an empty forget set, fewer than 16 held-out examples, an input in both sets, or examples that the
            factory's network cannot take.
        SettingError: a recipe or seed that cannot be used.
        NonFiniteError: a training diverged.

    >>> data = Examples(torch.rand(40, 4), torch.arange(40) % 2)
    >>> recipe = Recipe(epochs=1, batch_size=10)
    >>> found = difficulty_of(data.take(torch.arange(8)), data.take(torch.arange(8, 40)),
    ...                       factory=lambda: nn.Linear(4, 2), recipe=recipe)
    >>> found.forget.shape, found.heldout.shape, found.num_references
    ((8,), (32,), 4)
    """
    forget, heldout = as_examples(forget, "forget"), as_examples(heldout, "test")
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
                scores[name][members, place] = logit_margin(outputs.logits, outputs.labels)
                right[name][members, place] = outputs.logits.argmax(1) == outputs.labels
    return Difficulty(
        forget=scores["forget"].mean(1),
        heldout=scores["heldout"].mean(1),
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
    """How much further up an example stands under the audited model than under networks that never saw it.

    Corrected scores are z(s) − β z(d). z is the normal score of a value's rank among the held-out ones, Φ⁻¹(u) with u
    its placement, so that neither the scale of margins nor their long tails matter. β = min(1, r / `FULL_CORRELATION`)
    with r the correlation of z(s) and z(d) over held-out examples, 0 where that is negative: difficulty that explains
    little is not taken off, since then only its noise would be.

    After a perfect retraining odd examples stand about where they stand under the references, and corrected scores of
    odd and of ordinary examples are alike; not exactly so where the two kinds of network differ in noise. The score
    test on corrected scores is therefore an approximation, whose false alarms docs/audit.md measures.

    Args:
        forget_scores, heldout_scores: `logit_margin` under the audited model, float, shapes (n,) and (m,).
        forget_difficulty, heldout_difficulty: of `Difficulty`, same shapes.

    Returns:
        float64, shapes (n,) and (m,), and β in [0, 1].

    Raises:
        InputError: other shapes, NaN or infinity.

    >>> corrected_scores([-7.0, 9.0], [0.0, 2.0, 4.0], [-3.0, -3.0], [0.0, 1.0, 2.0])[0].round(2).tolist()
    [0.0, 2.3]
    """
    scores = as_scores(forget_scores, "forget_scores"), as_scores(heldout_scores, "heldout_scores")
    hard = as_scores(forget_difficulty, "forget_difficulty"), as_scores(heldout_difficulty, "heldout_difficulty")
    for given, found in zip(scores, hard, strict=True):
        if given.shape != found.shape:
            raise InputError(f"there are {len(given)} scores and {len(found)} difficulties; give one for each example")
    of_scores, of_hard = (_normal_scores(values, values) for values in (scores[1], hard[1]))
    spread = float(of_scores.std() * of_hard.std())
    r = float((of_scores * of_hard).mean()) / spread if spread > 0 else 0.0  # their means are zero
    slope = min(1.0, max(0.0, r) / FULL_CORRELATION)
    ours = _normal_scores(scores[0], scores[1]) - slope * _normal_scores(hard[0], hard[1])
    return ours, of_scores - slope * of_hard, slope


def _normal_scores(values: Floats, among: Floats) -> Floats:
    from scipy import special

    below, through = ranks(values, among)
    return np.asarray(special.ndtri((0.5 * (below + through) + 0.5) / (len(among) + 1)))
