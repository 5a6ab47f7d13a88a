"""How one step of unlearning spreads over the last linear layer, in closed form. NumPy only.

For one example with features o and softmax probabilities p, the cross-entropy toward class k has the last-layer
gradient (p − e_k) oᵀ ("Towards Safe Machine Unlearning", appendix A, Eq. (7)). Descending toward k and ascending from
k differ in sign alone, so that the size of the update, scaled to total 1, is the outer product of `row_shares(p, k)`
and `feature_shares(o)` in both cases. δ-Targeted^λ has k = y′, the likeliest class other than the label y
(`second_best`); gradient ascent has k = y. docs/theory.md states what follows from that, and what does not.
"""

from expunge.theory.measures import gini, majorizes, participation_ratio
from expunge.theory.shares import (
    entry_shares,
    feature_shares,
    l1_to_boundary_ratio,
    pair_share,
    row_shares,
    second_best,
)

__all__ = [
    "entry_shares",
    "feature_shares",
    "gini",
    "l1_to_boundary_ratio",
    "majorizes",
    "pair_share",
    "participation_ratio",
    "row_shares",
    "second_best",
]
