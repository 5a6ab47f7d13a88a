"""KLoM: the divergence between the scores of unlearned and of retrained models, example by example."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from expunge.arrays import Floats
from expunge.errors import SettingError
from expunge.metrics.lira import as_model_scores


@dataclass(frozen=True, kw_only=True)
class Klom:
    """Divergences in nats, float64, shape (n,): of each example, as measured, and expected of no difference.

    Attributes:
        unlearned_from_retrained: KL(U ‖ R), the direction of arXiv 2410.23232's code.
        retrained_from_unlearned: KL(R ‖ U).
        null_unlearned_from_retrained, null_retrained_from_unlearned: their means over random exchanges of the models
            of both kinds: what a histogram of as few models shows where there is nothing to find.
    """

    unlearned_from_retrained: Floats
    retrained_from_unlearned: Floats
    null_unlearned_from_retrained: Floats
    null_retrained_from_unlearned: Floats

    @property
    def forward(self) -> float:
        """KL(U ‖ R) less its null mean, averaged over the examples; may be slightly negative."""
        return float((self.unlearned_from_retrained - self.null_unlearned_from_retrained).mean())

    @property
    def backward(self) -> float:
        """KL(R ‖ U) less its null mean, averaged over the examples."""
        return float((self.retrained_from_unlearned - self.null_retrained_from_unlearned).mean())

    def to_dict(self) -> dict[str, Any]:
        """Means over the examples: a dict of JSON values."""
        return {"forward": self.forward, "backward": self.backward} | {
            name: float(values.mean()) for name, values in vars(self).items()
        }


def klom(
    unlearned: ArrayLike,
    retrained: ArrayLike,
    *,
    num_bins: int = 20,
    floor: float = 1e-5,
    clip: float = 100.0,
    num_permutations: int = 200,
    seed: int = 0,
) -> Klom:
    """KL divergence of the histograms of scores, in both directions, with its mean under no difference.

    Georgiev et al. 2024 (arXiv 2410.23232), KLoM. For each example, `num_bins` bins of equal width span the scores of
    both kinds of model, the top edge included; a share of 0 in the second histogram becomes `floor` where the first
    is positive, and it is scaled to total 1 again. Few models differ in their histograms by chance alone: by 1.7, 0.63
    and 0.36 nats with 32, 64 and 100 of each kind (simulated). The null mean tells how much.

    Args:
        unlearned, retrained: logit-scaled confidences, float, shapes (N_U, n) and (N_R, n), N ≥ 2 each.
        num_bins: ≥ 1.
        floor: in (0, 1).
        clip: scores are cut to ±`clip` first, > 0.
        num_permutations: ≥ 1, random exchanges behind the null mean, the same for all examples.
        seed: of the exchanges.

    Raises:
        InputError: fewer than two models on a side, other shapes, NaN or infinity.
        SettingError: a setting out of range.

    >>> rng = np.random.default_rng(0)
    >>> same = klom(rng.normal(0.0, 1.0, (64, 50)), rng.normal(0.0, 1.0, (64, 50)))
    >>> abs(same.forward) < 0.1 < same.to_dict()["unlearned_from_retrained"]
    True
    """
    if num_bins < 1 or not 0 < floor < 1 or not clip > 0 or num_permutations < 1:
        raise SettingError("num_bins and num_permutations are at least 1, floor lies in (0, 1), clip is positive")
    u, r = (np.clip(scores, -clip, clip) for scores in as_model_scores(unlearned, retrained, least=2))
    both = np.concatenate([u, r])
    num, n = both.shape
    edges = np.linspace(both.min(0), both.max(0), num_bins + 1)
    # Counting the inner edges at or below a score closes the top edge: the largest score is in the last bin.
    places = sum(((both >= edge).astype(np.int64) for edge in edges[1:-1]), np.zeros((num, n), np.int64))
    held = np.zeros((num, n, num_bins))
    np.put_along_axis(held, places[..., None], 1.0, axis=2)
    chosen = np.zeros((num_permutations + 1, num))
    chosen[0, : len(u)] = 1.0
    rng = np.random.default_rng(seed)
    for row in chosen[1:]:
        row[rng.permutation(num)[: len(u)]] = 1.0
    flat = held.reshape(num, -1)
    first = (chosen @ flat).reshape(-1, n, num_bins) / len(u)
    second = ((1 - chosen) @ flat).reshape(-1, n, num_bins) / len(r)
    forward, backward = _divergence(first, second, floor), _divergence(second, first, floor)
    return Klom(
        unlearned_from_retrained=forward[0],
        retrained_from_unlearned=backward[0],
        null_unlearned_from_retrained=forward[1:].mean(0),
        null_retrained_from_unlearned=backward[1:].mean(0),
    )


def _divergence(p: Floats, q: Floats, floor: float) -> Floats:
    """KL(p ‖ q) over the last axis, in nats, with q floored where p > 0 and scaled to total 1."""
    safe = np.where(p > 0, np.maximum(q, floor), q)
    safe /= safe.sum(-1, keepdims=True)
    return np.asarray(special.rel_entr(p, safe).sum(-1))
