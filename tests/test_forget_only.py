"""What the methods from the literature that read the forget set alone do beyond one step."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from expunge.errors import InputError, SettingError
from expunge.methods import make_method
from expunge.methods._inputs import Continuous
from expunge.methods.boundary_shrink import nearest_wrong
from expunge.methods.delete import masked_softmax
from expunge.methods.salsa import redistributed
from expunge.models import ModelSpec, build
from expunge.randomness import stream
from expunge.unlearning import unlearn
from tests.arrangements import Pairs
from tests.test_golden import LR, WD, B, C, M, N, W, X, Y, arrays, data, jit, network, one_hot, softmax

PERTURBING: dict[str, dict[str, Any]] = {
    "boundary_shrink": {"optimizer": "sgd", "lr": 0.1, "epochs": 2},
    "jit": {"optimizer": "sgd", "lr": 0.01, "epochs": 2, "sigma": 0.1, "draws": 2},
    "amun": {"optimizer": "sgd", "lr": 0.1, "epochs": 2},
}
"""Methods that perturb the inputs, with settings that make a run short."""


class Rescaling(nn.Module):
    """Divides whatever it gets by 255, integers and floats alike."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of images (B, ...) in [0, 255]."""
        logits: Tensor = self.network(images.to(torch.float32) / 255)
        return logits


def small_classifier() -> nn.Module:
    torch.manual_seed(0)
    return build(
        ModelSpec(architecture="small_resnet", num_classes=4, in_channels=1, image_size=8, mean=(0.3,), std=(0.2,))
    )


def dark_images() -> Tensor:
    """Six uint8 images whose own range is far from 0 to 255."""
    return torch.randint(10, 60, (6, 1, 8, 8), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_delete_keeps_learning_from_the_original_model(momentum: float) -> None:
    """Three steps: the target stays that of the original weights, whatever the model has become."""
    weight, bias, speed = W.copy(), B.copy(), [np.zeros_like(W), np.zeros_like(B)]
    wrong = np.exp(X @ W.T + B) * (1 - one_hot(Y))
    target = wrong / wrong.sum(1, keepdims=True)
    for _ in range(3):
        dz = (softmax(X @ weight.T + bias) - target) / N
        slopes = dz.T @ X + WD * weight, dz.sum(0) + WD * bias
        speed = [momentum * v + g for v, g in zip(speed, slopes, strict=True)]
        weight, bias = weight - LR * speed[0], bias - LR * speed[1]
    method = make_method("delete", optimizer="sgd", momentum=momentum, lr=LR, weight_decay=WD, epochs=3)
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


def steep() -> nn.Linear:
    """At the origin class 0 leads class 1; class 2 is last there, but grows fastest along the first input."""
    model = nn.Linear(2, 3)
    model.weight.data = torch.tensor([[0.0, 0.0], [0.0, 0.0], [10.0, 0.0]])
    model.bias.data = torch.tensor([1.0, 0.5, -0.5])
    return model


def test_boundary_shrink_takes_the_class_beyond_the_nearest_boundary_not_the_runner_up() -> None:
    forget = Continuous(torch.zeros(1, 2), -1.0, 1.0)
    labels, counts = nearest_wrong(steep(), forget, torch.tensor([0]), 0.1)
    assert labels.tolist() == [2]
    assert (counts.adversarial, counts.second_best) == (1, 0)
    at_its_end = Continuous(torch.zeros(1, 2), -2.0, 0.0)  # the same step would leave the range
    assert nearest_wrong(steep(), at_its_end, torch.tensor([0]), 0.1)[0].tolist() == [1]
    labels, counts = nearest_wrong(steep(), forget, torch.tensor([0]), 0.01)
    assert labels.tolist() == [1]
    assert (counts.adversarial, counts.second_best) == (0, 1)


def test_boundary_shrink_finds_the_boundary_of_a_model_that_is_certain() -> None:
    """p_y rounds to 1, so that the cross-entropy's gradient would lack the part of the true class, and turn round."""
    model = nn.Linear(1, 3)
    model.weight.data, model.bias.data = torch.tensor([[2.0], [1.0], [-0.1]]), torch.tensor([30.0, 10.0, 9.9])
    for kind in (torch.float32, torch.float64):
        forget = Continuous(torch.zeros(1, 1, dtype=kind), -1.0, 1.0)
        assert nearest_wrong(model.to(kind), forget, torch.tensor([0]), 0.5)[0].tolist() == [2]


@pytest.mark.parametrize("bound", [1e-6, 0.1, 10.0])
def test_boundary_shrink_never_teaches_the_true_label(bound: float) -> None:
    forget = Continuous(torch.tensor(X), float(X.min()), float(X.max()))
    labels, counts = nearest_wrong(network(W, B), forget, torch.tensor(Y), bound, batch_size=3)
    assert bool((labels != torch.tensor(Y)).all())
    assert counts.adversarial + counts.second_best == N


def test_boundary_shrink_keeps_the_labels_of_the_original_model() -> None:
    """Long steps toward labels that are found once, on the way of which other classes come to lie nearest."""
    forget = Continuous(torch.tensor(X), float(X.min()), float(X.max()))
    labels = nearest_wrong(network(W, B), forget, torch.tensor(Y), 0.1)[0]
    weight, bias, anew = W.copy(), B.copy(), []
    for _ in range(4):
        dz = (softmax(X @ weight.T + bias) - one_hot(labels.numpy())) / N
        weight, bias = weight - 10 * dz.T @ X, bias - 10 * dz.sum(0)
        anew.append(nearest_wrong(network(weight, bias), forget, torch.tensor(Y), 0.1)[0].tolist())
    assert any(found != labels.tolist() for found in anew[:-1]), "labels found anew would be the same"
    method = make_method("boundary_shrink", optimizer="sgd", lr=10.0, weight_decay=0, epochs=4)
    model = unlearn(network(W, B), data(X, Y), method=method).model
    np.testing.assert_allclose(arrays(model)[0], weight, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", sorted(PERTURBING))
def test_uint8_images_are_perturbed_as_the_model_scales_them(name: str) -> None:
    """expunge's models scale uint8 and take floats as scaled; others divide whatever they get. Both come to one."""
    method = make_method(name, **PERTURBING[name])
    images, labels = dark_images(), torch.tensor([0, 1, 2, 3, 0, 1])
    own = unlearn(small_classifier(), Pairs(images, labels), method=method).model
    other = unlearn(Rescaling(small_classifier()), Pairs(images, labels), method=method).model
    for one, two in zip(own.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted(PERTURBING))
def test_inputs_that_cannot_be_perturbed_are_refused(name: str) -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(2, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            logits: Tensor = self.head(inputs.long().float())
            return logits

    model = Steps()
    forget = Pairs(torch.tensor([[1, 2], [3, 4]]), torch.tensor([0, 1]))
    with pytest.raises(InputError, match="integers"):
        unlearn(model, forget, method=make_method(name))


@pytest.mark.parametrize("name", sorted(PERTURBING))
def test_perturbing_leaves_the_inputs_alone(name: str) -> None:
    forget = data(X, Y)
    before = forget.inputs.clone()
    unlearn(network(W, B), forget, method=make_method(name, **PERTURBING[name]))
    assert torch.equal(forget.inputs, before)
    assert forget.inputs.grad is None


def test_jit_reads_the_authors_code_where_told_to() -> None:
    """The noisy outputs are constants, and the loss is a sum over the batch."""
    settings: dict[str, Any] = {"optimizer": "sgd", "lr": LR, "weight_decay": WD, "epochs": 1, "sigma": 0.3, "draws": 2}
    method = make_method("jit", **settings, detach=True, reduction="sum")
    model = unlearn(network(W, B), data(X, Y), method=method).model
    for actual, golden in zip(arrays(model), jit(detach=True, scale=N), strict=True):
        np.testing.assert_allclose(actual, golden, rtol=0, atol=1e-12)


def test_jit_can_add_up_the_gradients_of_all_steps() -> None:
    draw, weight, total = stream("method", 0), W, np.zeros_like(W)
    unit = X.std()
    for _ in range(3):
        e = 0.3 * torch.randn(N, M, dtype=torch.float64, generator=draw).numpy()
        moved = unit * e @ weight.T
        slope = moved / np.linalg.norm(moved, axis=1, keepdims=True) / np.linalg.norm(e, axis=1, keepdims=True) / N
        total = total + slope.T @ (unit * e)
        weight = weight - LR * total
    settings: dict[str, Any] = {"optimizer": "sgd", "lr": LR, "weight_decay": 0, "epochs": 3, "sigma": 0.3, "draws": 1}
    method = make_method("jit", **settings, accumulate=True)
    actual, _ = arrays(unlearn(network(W, B), data(X, Y), method=method).model)
    np.testing.assert_allclose(actual, weight, rtol=0, atol=1e-12)


def test_jit_draws_new_noise_in_every_step() -> None:
    """Attached, with the noise in units of X's deviation s, a step's gradient is of ‖W s e‖ / ‖e‖."""
    draw, s, weight = stream("method", 0), X.std(), W
    for _ in range(3):
        e = 0.3 * torch.randn(N, M, dtype=torch.float64, generator=draw).numpy()
        moved = s * e @ weight.T
        u = moved / np.linalg.norm(moved, axis=1, keepdims=True) / np.linalg.norm(e, axis=1, keepdims=True) / N
        weight = weight - LR * u.T @ (s * e)
    method = make_method("jit", optimizer="sgd", lr=LR, weight_decay=0, epochs=3, sigma=0.3, draws=1)
    model = unlearn(network(W, B), data(X, Y), method=method).model
    np.testing.assert_allclose(arrays(model)[0], weight, rtol=0, atol=1e-12)


def test_jit_makes_the_model_less_sensitive_at_any_scale_of_the_inputs() -> None:
    """Noise is in units of the inputs' spread: a network that takes inputs 1000 times as large fares the same."""
    losses = []
    for scale in (1.0, 1000.0):
        method = make_method("jit", optimizer="sgd", lr=0.2 / scale**2, weight_decay=0, epochs=20, sigma=0.1)
        trace = unlearn(network(W / scale, B), data(scale * X, Y), method=method).trace
        losses.append(np.array([epoch.loss for epoch in trace.epochs], dtype=np.float64))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-9)
    assert losses[0][-1] < 0.7 * losses[0][0]


def test_jit_says_where_smoothing_forgets_not_all() -> None:
    forget = data(X, np.argmax(X @ W.T + B, axis=1))
    method = make_method("jit", stop="forgotten", optimizer="sgd", lr=1e-6, epochs=2, draws=1)
    trace = unlearn(network(W, B), forget, method=method).trace
    assert trace.forget_accuracy_after == 1
    assert any("budget" in warning for warning in trace.warnings)


def test_jit_takes_inputs_without_spread() -> None:
    forget = Pairs(torch.zeros(1, M), torch.tensor([0]))
    model = unlearn(nn.Linear(M, C), forget, method=make_method("jit", epochs=1)).model
    assert all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())


def test_salsa_follows_its_schedules_and_is_drawn_back_to_the_start() -> None:
    """Four steps: α and λ rise along half a cosine; λ grows toward the input; targets come from the model as it is."""
    given = one_hot((X @ W.T + B).argmax(1))
    weight, bias = W.copy(), B.copy()
    for t in range(4):
        risen = (1 - np.cos(np.pi * t / 3)) / 2
        p = softmax(X @ weight.T + bias)
        taken = (0.2 + 0.5 * risen) * (p * given).sum(1, keepdims=True)
        others = p * (1 - given) / (p * (1 - given)).sum(1, keepdims=True)
        stays = (p * given).sum(1, keepdims=True) - taken
        dz = (p - stays * given - (1 - stays) * others) / N
        pull_weight, pull_bias = 2 * (0.3 + 0.2 * 2 + 0.1 * risen), 2 * (0.3 + 0.2 * 1 + 0.1 * risen)
        weight, bias = (
            weight - LR * (dz.T @ X + pull_weight * (weight - W)),
            bias - LR * (dz.sum(0) + pull_bias * (bias - B)),
        )
    method = make_method(
        "salsa",
        optimizer="sgd",
        lr=LR,
        weight_decay=0,
        epochs=9,
        max_steps=4,
        alpha_min=0.2,
        alpha_max=0.7,
        shift=0.3,
        slope=0.2,
        gamma=0.1,
    )
    model = unlearn(network(W, B), data(X, Y), method=method).model
    for actual, golden in zip(arrays(model), (weight, bias), strict=True):
        np.testing.assert_allclose(actual, golden, rtol=0, atol=1e-12)


def test_amun_takes_the_runner_up_where_no_input_is_misclassified() -> None:
    model = nn.Linear(2, 3)
    model.weight.data, model.bias.data = 0.1 * torch.eye(3, 2), torch.tensor([9.0, 1.0, 0.0])
    result = unlearn(model, Pairs(torch.rand(5, 2), torch.zeros(5, dtype=torch.int64)), method=make_method("amun"))
    assert result.trace.pseudo_labels is not None
    assert (result.trace.pseudo_labels.adversarial, result.trace.pseudo_labels.second_best) == (0, 5)


def test_amun_makes_smaller_steps_from_epoch_to_epoch() -> None:
    """All are wrong from the start, so that each is its own neighbour: plain descent, at a third of the step size."""
    weight, bias, lr = W.copy(), B.copy(), LR
    wrong = (X @ W.T + B).argmax(1)
    assert (wrong != Y).all()
    for _ in range(3):
        dz = (softmax(X @ weight.T + bias) - one_hot(wrong)) / N
        weight, bias, lr = weight - lr * dz.T @ X, bias - lr * dz.sum(0), lr / 3
    settings: dict[str, Any] = {"optimizer": "sgd", "lr": LR, "weight_decay": 0, "epochs": 3, "decay": 1 / 3}
    method = make_method("amun", **settings, with_true=False)
    actual, _ = arrays(unlearn(network(W, B), data(X, Y), method=method).model)
    np.testing.assert_allclose(actual, weight, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["amun", "amun_retain"])
def test_amun_reads_integers_as_the_model_scales_them(name: str) -> None:
    """Retained images too: floats in [0, 1] give what uint8 images do."""
    images, labels = dark_images(), torch.tensor([0, 1, 2, 3, 0, 1])
    method = make_method(name, optimizer="sgd", lr=0.1, epochs=2)
    moved = []
    for scale in (None, 255):
        others = (60 + images) if scale is None else (60 + images) / scale
        given = {"retain": Pairs(others, labels)} if name == "amun_retain" else {}
        forget = Pairs(images if scale is None else images / scale, labels)
        moved.append(unlearn(small_classifier(), forget, method=method, **given).trace.change.l1)  # type: ignore[arg-type]
    assert moved[0] == pytest.approx(moved[1], rel=0.05)  # floats have a range of their own


def test_falw_needs_unseen_examples() -> None:
    with pytest.raises(InputError, match="held-out"):
        unlearn(network(W, B), data(X, Y), method="falw", retain=data(X + 9, Y))


def test_salsa_uses_no_labels() -> None:
    method = make_method("salsa", optimizer="sgd", lr=LR, epochs=3)
    one, two = (unlearn(network(W, B), data(X, labels), method=method).model for labels in (Y, (Y + 1) % C))
    np.testing.assert_array_equal(arrays(one)[0], arrays(two)[0])


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_salsa_redistributes_where_the_model_is_certain(alpha: float) -> None:
    target = redistributed(torch.tensor([[1000.0, 1.0, 1.0]]), torch.tensor([0]), alpha)
    torch.testing.assert_close(target, torch.tensor([[1 - alpha, alpha / 2, alpha / 2]]))


def test_adamw_decays_weights_apart_from_the_gradient() -> None:
    """Its first step is η g / (|g| + 1e-8) as Adam's, with g free of the decay, after θ shrank by η wd."""
    p = softmax(X @ W.T + B)
    gradient = -((p - one_hot(Y)) / N).T @ X
    method = make_method("neg_grad", optimizer="adamw", lr=LR, weight_decay=WD, epochs=1)
    model = unlearn(network(W, B), data(X, Y), method=method).model
    expected = W * (1 - LR * WD) - LR * gradient / (np.abs(gradient) + 1e-8)
    np.testing.assert_allclose(arrays(model)[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("boundary_shrink", {"bound": 0.0}),
        ("jit", {"sigma": 0.0}),
        ("jit", {"draws": 0}),
        ("salsa", {"alpha_min": 0.7}),
        ("amun", {"radius": 0.0}),
        ("amun", {"attack_steps": 0}),
        ("amun", {"decay": 0.0}),
        ("falw", {"tau": -0.1}),
    ],
)
def test_settings_out_of_range_are_refused(name: str, setting: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=f"{next(iter(setting))}="):
        make_method(name, **setting)
