"""Pseudo-labels and the loss of the paper's method, as properties."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binomtest
from torch import Tensor, nn

from expunge.methods import make_method
from expunge.methods.targeted import pseudo_labels
from expunge.unlearning import unlearn
from tests.arrangements import pairs


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@st.composite
def logits_and_labels(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    classes, size = draw(st.integers(2, 8)), draw(st.integers(1, 20))
    values = draw(arrays(np.float64, (size, classes), elements=st.floats(-30, 30), unique=True))
    labels = draw(arrays(np.int64, size, elements=st.integers(0, classes - 1)))
    return torch.tensor(values), torch.tensor(labels)


def test_of_equal_logits_the_first_is_predicted_as_in_every_accuracy() -> None:
    logits = torch.zeros(3, 5)
    drawn, counts = pseudo_labels(logits, torch.tensor([0, 0, 3]), 0.0, rng(0))
    assert drawn.tolist() == [1, 1, 0]
    assert (counts.second_best, counts.already_mispredicted) == (2, 1)


@given(logits_and_labels(), st.integers(0, 1000))
def test_delta_zero_never_keeps_the_label_of_a_right_prediction(given: tuple[Tensor, Tensor], seed: int) -> None:
    logits, labels = given
    drawn, counts = pseudo_labels(logits, labels, 0.0, rng(seed))
    right = logits.argmax(1) == labels
    assert (drawn[right] != labels[right]).all()
    assert torch.equal(drawn[~right], logits.argmax(1)[~right])
    assert counts.kept == 0
    assert counts.second_best == int(right.sum())
    assert counts.second_best + counts.already_mispredicted == len(labels)


@given(logits_and_labels(), st.integers(0, 1000))
def test_delta_one_keeps_every_label(given: tuple[Tensor, Tensor], seed: int) -> None:
    logits, labels = given
    drawn, counts = pseudo_labels(logits, labels, 1.0, rng(seed))
    assert torch.equal(drawn, labels)
    assert counts.kept == len(labels)


@given(logits_and_labels(), st.floats(0, 1), st.integers(0, 1000))
def test_the_second_best_is_the_most_likely_wrong_class(given: tuple[Tensor, Tensor], delta: float, seed: int) -> None:
    logits, labels = given
    drawn, counts = pseudo_labels(logits, labels, delta, rng(seed))
    for row, label, chosen in zip(logits.numpy(), labels.tolist(), drawn.tolist(), strict=True):
        order = np.argsort(-row)
        best_other = order[1] if order[0] == label else order[0]
        assert chosen in {label, best_other}
    assert counts.kept + counts.second_best + counts.already_mispredicted == len(labels)


@pytest.mark.parametrize("delta", [0.1, 0.5, 0.9])
def test_the_kept_share_is_binomial(delta: float) -> None:
    logits = torch.randn(20_000, 5, generator=rng(1))
    _, counts = pseudo_labels(logits, logits.argmax(1), delta, rng(2))
    assert binomtest(counts.kept, 20_000, delta).pvalue > 1e-3


@given(st.floats(1, 6), st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_the_loss_is_the_mean_of_cross_entropies_raised_to_lambda(lam: float, seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4, dtype=torch.float64))
    forget = pairs(5, seed)
    trace = unlearn(model, forget, method=make_method("targeted", lam=lam, stop="budget", epochs=1)).trace
    with torch.no_grad():
        logits = model(forget.inputs.double())
        best_two = logits.topk(2).indices
    labels = torch.where(best_two[:, 0] == forget.labels, best_two[:, 1], best_two[:, 0])
    expected = F.cross_entropy(logits, labels, reduction="none").pow(lam).mean()
    assert trace.epochs[0].loss == pytest.approx(float(expected), rel=1e-9)


def test_a_single_example_moves_in_the_same_direction_for_every_lambda() -> None:
    """The gradient of ℓ^λ is λ·ℓ^(λ−1) times that of ℓ: one example, same direction, other length."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4, dtype=torch.float64))
    moved = []
    for lam in (1.0, 3.0):
        method = make_method("targeted", lam=lam, stop="budget", optimizer="sgd", lr=1e-3, weight_decay=0, epochs=1)
        result = unlearn(model, pairs(1, 0), method=method)
        moved.append((result.model[1].weight - model[1].weight).detach().flatten())  # type: ignore[index]
    loss = (
        unlearn(model, pairs(1, 0), method=make_method("targeted", lam=1, stop="budget", epochs=1)).trace.epochs[0].loss
    )
    assert loss is not None
    torch.testing.assert_close(moved[1], moved[0] * 3 * loss**2, rtol=1e-9, atol=0)
