"""What the methods from the literature that read the forget set alone do beyond one step."""

import numpy as np
import torch
from torch import nn

from expunge.methods import make_method
from expunge.methods.delete import masked_softmax
from expunge.unlearning import unlearn
from tests.arrangements import Pairs
from tests.test_golden import LR, WD, B, C, N, W, X, Y, arrays, data, network, one_hot, softmax


def test_delete_keeps_learning_from_the_original_model() -> None:
    """Three steps: the target stays that of the original weights, whatever the model has become."""
    weight, bias = W.copy(), B.copy()
    wrong = np.exp(X @ W.T + B) * (1 - one_hot(Y))
    target = wrong / wrong.sum(1, keepdims=True)
    for _ in range(3):
        dz = (softmax(X @ weight.T + bias) - target) / N
        weight, bias = weight - LR * (dz.T @ X + WD * weight), bias - LR * (dz.sum(0) + WD * bias)
    method = make_method("delete", optimizer="sgd", lr=LR, weight_decay=WD, epochs=3)
    model = unlearn(network(W, B), data(X, Y), method=method).model
    np.testing.assert_allclose(arrays(model)[0], weight, rtol=0, atol=1e-12)


def test_delete_moves_a_model_that_is_certain() -> None:
    """Where p_y = 1 in floating point, gradient ascent has no gradient; masking leaves one."""
    model = nn.Linear(C, C)
    model.weight.data, model.bias.data = 1000 * torch.eye(C), torch.zeros(C)
    forget = Pairs(torch.eye(C)[:2], torch.tensor([0, 1]))
    ascent, masked = (
        unlearn(model, forget, method=make_method(name, optimizer="sgd", weight_decay=0, epochs=1)).trace.change.l1
        for name in ("neg_grad", "delete")
    )
    assert ascent == 0
    assert masked > 0


def test_the_masked_softmax_keeps_the_odds_of_the_other_classes() -> None:
    logits = torch.tensor(X @ W.T + B)
    labels = torch.tensor(Y)
    masked, p = masked_softmax(logits, labels), logits.softmax(1)
    assert bool((masked.gather(1, labels[:, None]) == 0).all())
    torch.testing.assert_close(masked.sum(1), torch.ones(N, dtype=torch.float64))
    torch.testing.assert_close(masked[0, 1] / masked[0, 4], p[0, 1] / p[0, 4])
