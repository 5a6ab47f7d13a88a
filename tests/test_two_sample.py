"""The cross-fitted classifier: its scores against scikit-learn's ridge, its p-value, what it finds."""

import numpy as np
import pytest
from numpy.typing import NDArray

from expunge.auditing.attacks import attacked, classifier_attack, shifted, views_of
from expunge.auditing.forward import Outputs
from expunge.errors import InputError, SettingError
from expunge.metrics.two_sample import RIDGE, as_columns, cross_fitted, two_sample

Floats = NDArray[np.float64]


def test_each_score_is_of_a_ridge_regression_that_did_not_see_the_example() -> None:
    linear = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is an optional oracle")
    rng = np.random.default_rng(0)
    columns, response = rng.normal(size=(60, 4)), (rng.random(60) < 0.4).astype(float)
    fold = rng.permutation(60) % 10
    found = cross_fitted(columns, fold) @ response
    for number in range(10):
        inside, outside = fold == number, fold != number
        centre = columns[outside].mean(0)
        oracle = linear.Ridge(alpha=RIDGE * outside.sum()).fit(columns[outside] - centre, response[outside])
        expected = oracle.predict(columns[inside] - centre) - response[outside].mean()
        assert found[inside] == pytest.approx(expected, abs=1e-9)


def test_its_p_value_is_uniform_where_nothing_differs() -> None:
    """Also where classes have other shares on either side, and other scores."""
    rng = np.random.default_rng(1)
    values = []
    for seed in range(300):
        labels = rng.choice(3, 30, p=[0.7, 0.2, 0.1]), rng.choice(3, 90)
        views = [[rng.normal(size=(len(own), 3)) + 2.0 * own[:, None] for own in labels] for _ in range(2)]
        values.append(
            two_sample([v[0] for v in views], [v[1] for v in views], *labels, num_permutations=99, seed=seed).p_value
        )
    shares = [(np.array(values) <= level).mean() for level in (0.05, 0.2, 0.5)]
    assert shares[0] <= 0.09
    assert shares[1] == pytest.approx(0.2, abs=0.08)
    assert shares[2] == pytest.approx(0.5, abs=0.1)


def outputs(num: int, seed: int, *, moved: float = 0.0, spread: float = 1.0) -> Outputs:
    """Logits of three classes: the true one's is drawn about `moved`, with `spread`."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, num)
    logits = rng.normal(size=(num, 3))
    logits[np.arange(num), labels] = moved + spread * rng.normal(size=num)
    return Outputs(logits=logits, labels=labels)


def test_it_finds_what_is_higher_lower_or_more_spread_out_and_not_what_is_alike() -> None:
    unseen = outputs(600, 0)
    for told in ({"moved": 1.0}, {"moved": -1.0}, {"spread": 3.0}):
        assert classifier_attack(outputs(100, 1, **told), unseen).succeeded
    assert not classifier_attack(outputs(100, 1), unseen).succeeded


def test_columns_ignore_the_scale_and_what_classes_differ_in() -> None:
    rng = np.random.default_rng(2)
    values, labels = rng.normal(size=(90, 2)), rng.integers(0, 3, 90)
    found = as_columns(values, labels)
    assert found == pytest.approx(as_columns(np.exp(values) + 5.0 * labels[:, None], labels))
    assert [found[labels == each].mean() for each in range(3)] == pytest.approx([0.0] * 3, abs=1e-12)
    assert as_columns(rng.normal(size=(90, 50)), labels, most=4).shape == (90, 4)
    assert not as_columns(np.ones((9, 1)), np.zeros(9, dtype=int)).any()


def test_views_hold_scores_features_and_shifts() -> None:
    import torch

    plain = outputs(20, 3), outputs(50, 4)
    rich = [
        Outputs(
            logits=each.logits,
            labels=each.labels,
            features=torch.rand(len(each.labels), 40),
            shifted=(each.logits,) * 4,
        )
        for each in plain
    ]
    assert [view.shape for view in views_of(*plain)] == [(70, 12)]
    assert [view.shape for view in views_of(*rich)] == [(70, 12), (70, 44), (70, 20)]


def test_images_move_by_a_pixel_and_their_edge_is_repeated() -> None:
    import torch

    image = torch.arange(12, dtype=torch.uint8).reshape(1, 1, 3, 4)
    assert shifted(image, 0, 1)[0, 0].tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7]]
    assert shifted(image, 1, 2)[0, 0, 0].tolist() == [1, 2, 3, 3]
    assert shifted(image, 1, 1).equal(image)


def test_only_classes_that_both_sets_have_are_attacked() -> None:
    found = attacked(np.array([0, 1, 5]), np.array([0, 0, 2, 1]), seed=0)
    assert sorted(found["forget"].tolist()) == [0, 1]
    assert sorted(found["test"].tolist()) == [0, 1, 3]


def test_bad_input_is_refused() -> None:
    good = [np.zeros((3, 2))]
    with pytest.raises(SettingError):
        two_sample(good, good, [0] * 3, [0] * 3, num_permutations=0)
    for forget, test in (([], []), (good, []), ([np.zeros((2, 2))], good), ([np.zeros(3)], [np.zeros(3)])):
        with pytest.raises(InputError):
            two_sample(forget, test, [0] * 3, [0] * 3)
