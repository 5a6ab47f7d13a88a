"""Membership attacks on one model that no method here is trained against; `attacks_on` runs all of them."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import special
from torch import Tensor, nn

from expunge.arrays import Floats, Integers
from expunge.auditing.forward import Outputs, outputs_of
from expunge.data import Examples
from expunge.metrics.difficulty import Difficulty, difficulty_calibrated_scores
from expunge.metrics.membership import Rate, auc, auc_interval, tpr_at_fpr
from expunge.metrics.scores import logit_scaled_confidence
from expunge.metrics.two_sample import as_columns, two_sample
from expunge.metrics.verdict import ScoreTest, score_test
from expunge.randomness import stream
from expunge.training import are_images

FALSE_ALARMS = {"rank test": 0.04, "classifier": 0.005, "reference models": 0.005}
"""What each attack may contribute to the 5% of audits that may say FAIL where nothing is recognisable (Bonferroni)."""

FOUND_AT = 0.01
"""The false positive rate at which found examples are counted."""

COMPONENTS = 32
"""Principal components of the last layer's inputs that the classifier reads, at most."""

MOST = (1000, 2000)
"""Forgotten and test examples that the classifier is fitted to, at most: it takes a matrix of as many squared."""

SHIFTS = ((0, 1), (2, 1), (1, 0), (1, 2))
"""Upper left corners of the images moved by a pixel up, down, left and right, in ones with a border of a pixel."""


@dataclass(frozen=True, kw_only=True)
class Attack:
    """What one attack found on one model.

    Attributes:
        name: `rank test`, `classifier` or `reference models`.
        p_value: how likely such a result is where nothing is recognisable, in (0, 1].
        level: below it the attack counts as successful.
        auc, auc_interval: of its scores, forgotten against unseen examples; 95% interval.
        found: the share of forgotten examples that it finds at 1% false positives; None where too few unseen examples
            define no threshold.
    """

    name: str
    p_value: float
    level: float
    auc: float
    auc_interval: tuple[float, float]
    found: Rate | None

    @property
    def succeeded(self) -> bool:
        """Whether it distinguishes forgotten from unseen examples beyond chance."""
        return self.p_value < self.level


def attacked(forget_labels: NDArray[Any], test_labels: NDArray[Any], seed: int) -> dict[str, Tensor]:
    """Positions, int64, of the `forget` and `test` examples that the classifier is fitted to, in random order.

    They are of classes that both sets have, since permutations within a class leave others where they are.
    """
    rng = stream("attacks", seed)
    found = {}
    for name, own, others, most in (
        ("forget", forget_labels, test_labels, MOST[0]),
        ("test", test_labels, forget_labels, MOST[1]),
    ):
        order = torch.randperm(len(own), generator=rng, device="cpu")
        found[name] = order[torch.from_numpy(np.isin(own, others))[order]][:most]
    return found


def with_shifts(model: nn.Module, examples: Examples, outputs: Outputs) -> Outputs:
    """The outputs, and those on the same images moved by a pixel; what is no image cannot be moved."""
    if not are_images(examples.inputs):
        return outputs
    moved = [
        outputs_of(model, examples, label="evaluating shifted images", view=partial(shifted, top=top, left=left))
        for top, left in SHIFTS
    ]
    return replace(outputs, shifted=tuple(each.logits for each in moved))


def shifted(images: Tensor, top: int, left: int) -> Tensor:
    """Images (B, channels, H, W) cut out of themselves with a border of one pixel, which repeats the outermost ones."""
    height, width = images.shape[-2:]
    bordered = F.pad(images.float(), (1, 1, 1, 1), mode="replicate").to(images.dtype)
    return bordered[..., top : top + height, left : left + width].contiguous()


def rank_attack(test: ScoreTest, name: str = "rank test") -> Attack:
    """The score test, as an attack."""
    return Attack(
        name=name,
        p_value=test.p_value,
        level=test.false_alarms,
        auc=test.auc,
        auc_interval=test.auc_interval,
        found=test.tpr_at_fpr[FOUND_AT],
    )


def classifier_attack(forget: Outputs, test: Outputs, *, seed: int = 0) -> Attack:
    """A cross-fitted linear classifier on all scores of an example, on its features, and on its scores when shifted."""
    views = views_of(forget, test)
    found = two_sample(
        [view[: len(forget.labels)] for view in views],
        [view[len(forget.labels) :] for view in views],
        forget.labels,
        test.labels,
        seed=seed,
    )
    return Attack(
        name="classifier",
        p_value=found.p_value,
        level=FALSE_ALARMS["classifier"],
        auc=auc(found.forget, found.test),
        auc_interval=auc_interval(found.forget, found.test),
        found=tpr_at_fpr(found.forget, found.test, FOUND_AT),
    )


def reference_attack(forget: Outputs, test: Outputs, hard: Difficulty) -> Attack:
    """The offline likelihood-ratio attack: scores less what networks say that never saw the example."""
    ours, theirs, _ = difficulty_calibrated_scores(forget.scores, test.scores, hard.forget, hard.test)
    found = score_test(
        ours,
        theirs,
        forget_labels=forget.labels,
        test_labels=test.labels,
        false_alarms=FALSE_ALARMS["reference models"],
    )
    return rank_attack(found, "reference models")


def views_of(forget: Outputs, test: Outputs) -> list[Floats]:
    """What the classifier sees of the forgotten, then of the test examples: columns by view."""
    labels = np.concatenate([forget.labels, test.labels])
    logits = np.concatenate([forget.logits, test.logits])
    plain = _with_squares(as_columns(scores_of(logits, labels), labels))
    views = [plain]
    if forget.features is not None and test.features is not None:
        features = np.concatenate([forget.features.double().numpy(), test.features.double().numpy()])
        views.append(np.concatenate([plain, as_columns(features, labels, most=COMPONENTS)], axis=1))
    if forget.shifted and test.shifted:
        moved = np.stack(
            [
                logit_scaled_confidence(np.concatenate(each), labels)
                for each in zip(forget.shifted, test.shifted, strict=True)
            ],
            axis=1,
        )
        own = logit_scaled_confidence(logits, labels)
        summary = [moved.mean(1), moved.min(1), moved.std(1), own - moved.mean(1)]
        columns = as_columns(np.stack(summary, axis=1), labels)
        views.append(np.concatenate([plain, _with_squares(columns)], axis=1))
    return views


def scores_of(logits: Floats, labels: Integers) -> Floats:
    """Scores of each example, float64, shape (N, 6): φ, entropy, two margins, the true logit and the largest."""
    own = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    others = np.where(np.arange(logits.shape[1]) == labels[:, None], -np.inf, logits).max(1)
    ordered = np.sort(logits, axis=1)
    logs = special.log_softmax(logits, axis=1)
    entropy = -(np.exp(logs) * logs).sum(1)
    columns = [logit_scaled_confidence(logits, labels), entropy, own - others, ordered[:, -1] - ordered[:, -2]]
    centre = logits.mean(1)
    return np.stack([*columns, own - centre, ordered[:, -1] - centre], axis=1)


def _with_squares(columns: Floats) -> Floats:
    """Columns of mean 0 and variance 1, and their squares likewise: examples in either tail stand out in those."""
    squares = columns**2 - 1
    return np.concatenate([columns, squares / np.maximum(squares.std(0), 1e-12)], axis=1)
