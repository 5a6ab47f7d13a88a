"""The full audit: every formula against SciPy or a plain loop, the defects of others, and real worker processes."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import special, stats

from expunge.auditing import references as references_module
from expunge.auditing.full_audit import FullAudit, full_audit, scores_of
from expunge.auditing.references import ReferencePlan, References, load_references, recipe_sets, train_references
from expunge.auditing.relearning import network_steps
from expunge.data import ImageSet, audit_side, load_data
from expunge.errors import ExpungeError, InputError, SettingError
from expunge.methods import Calibrated, NegGrad, Targeted, make_method
from expunge.metrics.distances import activation_distance, update_leakage
from expunge.metrics.epsilon import epsilon_bound, epsilon_ceiling, epsilon_lower_bound
from expunge.metrics.klom import klom
from expunge.metrics.lira import example_aucs, likelihood_ratios, lira
from expunge.metrics.membership import auc_interval, clopper_pearson, tpr_at_fpr
from expunge.metrics.scores import logit_scaled_confidence
from expunge.models import ModelSpec, build, logits_of
from expunge.tasks import Died, cluster
from expunge.training import Recipe, train
from expunge.unlearning import unlearn
from tests.forked import PATIENCE

Floats = NDArray[np.float64]


def scores(num: int = 7, n: int = 5, shift: float = 0.7, seed: int = 0) -> tuple[Floats, Floats]:
    """Margins of `num` models more or less, unlearned and retrained, of different spread by example."""
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0.5, 2.0, n)
    return shift + scale * rng.normal(size=(num, n)), scale * rng.normal(size=(num + 2, n))


def area(above: Floats, below: Floats) -> float:
    return float(stats.mannwhitneyu(above.ravel(), below.ravel()).statistic) / (above.size * below.size)


# --- U-LiRA --------------------------------------------------------------------------------------------------------


def test_likelihood_ratios_leave_each_score_out_of_its_own_gaussian() -> None:
    u, r = scores()
    above, below = likelihood_ratios(u, r)
    for which, sample in ((0, u), (1, r)):
        for i in range(len(sample)):
            for j in range(u.shape[1]):
                fits = [
                    [row[j] for n, row in enumerate(models) if which != side or n != i]
                    for side, models in enumerate((u, r))
                ]
                parts = [stats.norm.logpdf(sample[i, j], np.mean(f), np.std(f, ddof=1)) for f in fits]
                assert (above, below)[which][i, j] == pytest.approx(parts[0] - parts[1], rel=1e-9, abs=1e-9)


def test_pooled_area_and_rates_agree_with_their_definitions() -> None:
    u, r = scores(20, 30)
    found = lira(u, r, fprs=(0.1, 0.01, 0.001), num_bootstrap=3)
    above, below = likelihood_ratios(u, r)
    assert found.auc == pytest.approx(area(above, below), abs=1e-9)
    for fpr, tpr in zip(found.fprs, found.tprs, strict=True):
        rate = tpr_at_fpr(above.ravel(), below.ravel(), fpr)
        assert tpr is None if rate is None else tpr == pytest.approx(rate.value, abs=1e-12)
    assert found.tprs[2] is None
    assert found.tpr_intervals[2] is None
    each = [area(above[:, j], below[:, j]) for j in range(30)]
    np.testing.assert_allclose(example_aucs(above, below), each, atol=1e-12)
    tied = u.round(), r.round()
    np.testing.assert_allclose(example_aucs(*tied), [area(tied[0][:, j], tied[1][:, j]) for j in range(30)], atol=1e-12)
    assert found.auc_worst_decile == pytest.approx(np.quantile(each, 0.9), abs=1e-12)
    assert (found.num_unlearned, found.num_retrained, found.num_examples) == (20, 22, 30)


def test_the_smallest_false_positive_rate_is_one_of_all_retrained_scores_and_one() -> None:
    """99 retrained scores have a threshold for 1% and none for less; 0.29 · 100 is 28.999… in binary."""
    u, r = scores(7, 11)
    assert r.size == 99
    found = lira(u, r, fprs=(0.01, 0.0099, 0.29), num_bootstrap=3)
    above, below = (part.ravel() for part in likelihood_ratios(u, r))
    thresholds = [np.sort(below)[-rank] for rank in (1, 29)]
    assert found.tprs[1] is None
    for tpr, threshold in zip((found.tprs[0], found.tprs[2]), thresholds, strict=True):
        assert tpr == pytest.approx((above > threshold).mean(), abs=1e-12)


def test_the_bootstrap_is_that_of_whole_models_and_whole_examples() -> None:
    """Recomputed with every drawn score written out as often as it was drawn, ties included."""
    u, r = (values.round(1) for values in scores(6, 4))
    above, below = likelihood_ratios(u, r)
    found = lira(u, r, fprs=(0.1,), num_bootstrap=25, seed=3)
    rng = np.random.default_rng(3)
    drawn = [rng.multinomial(size, np.full(size, 1 / size), 25) for size in (6, 8, 4)]
    areas, rates = [], []
    for models_u, models_r, examples in zip(*drawn, strict=True):
        one, other = (
            np.repeat(np.repeat(values, models, axis=0), examples, axis=1)
            for values, models in ((above, models_u), (below, models_r))
        )
        areas.append(area(one, other))
        rate = tpr_at_fpr(one.ravel(), other.ravel(), 0.1)
        assert rate is not None
        rates.append(rate.value)
    np.testing.assert_allclose(found.auc_interval, np.quantile(areas, [0.025, 0.975]), atol=1e-9)
    assert found.tpr_intervals[0] is not None
    np.testing.assert_allclose(found.tpr_intervals[0], np.quantile(rates, [0.025, 0.975]), atol=1e-9)


def test_models_without_a_difference_have_half_the_area_within_the_interval() -> None:
    inside = 0
    for seed in range(20):
        u, r = scores(32, 40, 0.0, seed)
        found = lira(u, r, num_bootstrap=60, seed=seed)
        assert found.auc == pytest.approx(0.5, abs=0.05)
        inside += found.auc_interval[0] <= 0.5 <= found.auc_interval[1]
    assert inside >= 17


def test_constant_scores_and_wrong_shapes() -> None:
    apart = lira(np.ones((3, 2)), np.zeros((3, 2)), num_bootstrap=5)
    assert (apart.auc, apart.auc_interval) == (1.0, (1.0, 1.0))
    above, below = likelihood_ratios(np.ones((3, 2)), np.zeros((3, 2)))  # σ is 1e-6 where all models agree
    assert above == pytest.approx(np.full((3, 2), 0.5e12), rel=1e-9)
    assert below == pytest.approx(np.full((3, 2), -0.5e12), rel=1e-9)
    same = lira(np.zeros((3, 2)), np.zeros((3, 2)), fprs=(0.2,), num_bootstrap=5)
    assert (same.auc, same.tprs) == (0.5, (0.0,))  # none is above a threshold that all are at
    for u, r in [
        (np.zeros((2, 4)), np.zeros((3, 4))),
        (np.zeros((3, 4)), np.zeros((3, 5))),
        (np.zeros(3), np.zeros(3)),
        (np.full((3, 1), np.nan), np.zeros((3, 1))),
        (np.zeros((3, 0)), np.zeros((3, 0))),
    ]:
        with pytest.raises(InputError):
            lira(u, r)
    with pytest.raises(SettingError):
        lira(*scores(), fprs=(0.0,))


# --- ε -------------------------------------------------------------------------------------------------------------


def test_clopper_pearson_agrees_with_scipy() -> None:
    for total, confidence in ((1, 0.95), (16, 0.9), (64, 0.95), (60, 0.9996)):
        low, high = clopper_pearson(np.arange(total + 1), total, confidence=confidence)
        for hits in range(total + 1):
            exact = stats.binomtest(hits, total).proportion_ci(confidence, method="exact")
            assert (low[hits], high[hits]) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_the_ceiling_is_that_of_a_perfect_attack_with_two_sided_limits() -> None:
    assert [round(epsilon_ceiling(num), 2) for num in (32, 64, 128, 256)] == [2.10, 2.82, 3.53, 4.23]
    rng = np.random.default_rng(0)
    for num in (8, 64):
        far = epsilon_bound(rng.normal(size=(num, 5)) + 50, rng.normal(size=(num, 5)))
        assert far.median == pytest.approx(far.ceiling, abs=1e-9)
        assert far.ceiling == pytest.approx(epsilon_ceiling(num // 2), abs=1e-9)
        assert far.num_evaluated == num // 2
    # With other numbers of models on the sides, too.
    uneven = epsilon_bound(rng.normal(size=(16, 5)) + 50, rng.normal(size=(40, 5)))
    assert uneven.maximum == pytest.approx(uneven.ceiling, abs=1e-9)
    assert uneven.ceiling > epsilon_ceiling(8)
    assert epsilon_ceiling(1) == 0.0


def test_the_lower_bound_agrees_with_a_plain_loop() -> None:
    u, r = scores(13, 6, 3.0)
    delta = 1e-5

    def bound(found: int, num_u: int, false: int, num_r: int) -> float:
        tpr = stats.binomtest(found, num_u).proportion_ci(0.95, method="exact")
        fpr = stats.binomtest(false, num_r).proportion_ci(0.95, method="exact")
        logs = [
            math.log((low - delta) / high) if low > delta else -math.inf
            for low, high in ((tpr.low, fpr.high), (1 - fpr.high, 1 - tpr.low))
        ]
        return max(logs)

    rng = np.random.default_rng(5)
    order_u, order_r = rng.permutation(13), rng.permutation(15)
    fit_u, rest_u, fit_r, rest_r = u[order_u[:6]], u[order_u[6:]], r[order_r[:7]], r[order_r[7:]]
    for j, measured in enumerate(epsilon_lower_bound(u, r, seed=5)):
        gaussians = [(f[:, j].mean(), f[:, j].std(ddof=1)) for f in (fit_u, fit_r)]

        def ratios(values: Floats, fits: list[tuple[Any, Any]] = gaussians) -> Floats:
            return np.asarray(stats.norm.logpdf(values, *fits[0]) - stats.norm.logpdf(values, *fits[1]))

        one, other = ratios(fit_u[:, j]), ratios(fit_r[:, j])
        ordered = sorted([*one, *other])
        best, chosen = -math.inf, ordered[0]
        for low, high in pairwise(ordered):
            middle = (low + high) / 2
            here = bound(int((one >= middle).sum()), 6, int((other >= middle).sum()), 7)
            if here > best:
                best, chosen = here, middle
        expected = bound(int((ratios(rest_u[:, j]) >= chosen).sum()), 7, int((ratios(rest_r[:, j]) >= chosen).sum()), 8)
        assert measured == pytest.approx(max(0.0, expected), abs=1e-9)


def test_the_bound_in_short_is_of_the_smaller_side_and_once_for_all_examples() -> None:
    r, u = scores(41, 6, -4.0)
    found = epsilon_bound(u, r, seed=5)
    single, joint = (epsilon_lower_bound(u, r, confidence=given, seed=5) for given in (0.95, 1 - 0.05 / 6))
    assert (found.median, found.maximum, found.simultaneous) == (np.median(single), single.max(), joint.max())
    assert 0 < found.simultaneous < found.maximum
    assert found.num_evaluated == 21  # the halves that chose the thresholds have 20 and 21
    low = stats.binomtest(22, 22).proportion_ci(0.95, method="exact").low
    high = stats.binomtest(0, 21).proportion_ci(0.95, method="exact").high
    by_finds, by_misses = (low - 1e-5) / high, (1 - high - 1e-5) / (1 - low)
    assert found.ceiling == pytest.approx(math.log(by_misses), abs=1e-9)
    assert by_misses > by_finds


def test_the_bound_is_zero_where_nothing_differs_and_sees_other_widths_and_both_directions() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=(64, 400))
    null = epsilon_lower_bound(rng.normal(size=(64, 400)), base)
    assert np.median(null) == 0
    assert (null > 0).mean() <= 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5
    assert epsilon_bound(rng.normal(size=(64, 400)), base).simultaneous == 0
    for unlearned in (rng.normal(4, 1, (64, 9)), rng.normal(-4, 1, (64, 9)), rng.normal(0, 0.01, (64, 9))):
        assert np.median(epsilon_lower_bound(unlearned, base[:, :9])) > 1
    with pytest.raises(SettingError):
        epsilon_lower_bound(base, base, delta=1.0)
    with pytest.raises(InputError, match="at least 4"):
        epsilon_lower_bound(base[:3], base)
    with pytest.raises(InputError):
        epsilon_ceiling(0)


# --- KLoM ----------------------------------------------------------------------------------------------------------


def histogram_kl(p: Floats, q: Floats, num_bins: int = 20, floor: float = 1e-5) -> float:
    edges = np.linspace(min(p.min(), q.min()), max(p.max(), q.max()), num_bins + 1)
    first, second = (np.histogram(values, edges)[0] / len(values) for values in (p, q))
    return float(stats.entropy(first, np.where((first > 0) & (second == 0), floor, second)))


def test_klom_agrees_with_numpys_histogram_and_scipys_entropy_in_both_directions() -> None:
    u, r = scores(30, 8)
    found = klom(u, r)
    for j in range(8):
        assert found.unlearned_from_retrained[j] == pytest.approx(histogram_kl(u[:, j], r[:, j]), rel=1e-9)
        assert found.retrained_from_unlearned[j] == pytest.approx(histogram_kl(r[:, j], u[:, j]), rel=1e-9)
    assert found.forward == pytest.approx(
        (found.unlearned_from_retrained - found.null_unlearned_from_retrained).mean(), abs=1e-12
    )
    json.dumps(found.to_dict())


def test_klom_counts_the_sample_on_the_top_edge() -> None:
    """The reference code's `digitize` put it in a bin that is never counted."""
    u, r = np.array([[0.0], [0.5], [10.0], [10.0]]), np.array([[0.0], [0.5], [0.4], [0.1]])
    found = klom(u, r, num_bins=10)
    half = 0.5 * math.log(0.5 / (1 / (1 + 1e-5))) + 0.5 * math.log(0.5 / (1e-5 / (1 + 1e-5)))
    assert found.unlearned_from_retrained[0] == pytest.approx(half, rel=1e-9)
    assert found.retrained_from_unlearned[0] == pytest.approx(math.log(2.0), rel=1e-9)  # all of it in one bin


def test_klom_cuts_scores_at_100_into_20_bins_that_hold_their_lower_edge() -> None:
    """By hand, with u in bins 0, 0, 16, 19 and r in bins 0, 0, 19, 19, where 90 begins the last bin."""
    u, r = np.array([[-300.0], [-120.0], [60.0], [300.0]]), np.array([[-100.0], [-100.0], [90.0], [500.0]])
    found = klom(u, r)
    total = 1 + 1e-5
    forward = 0.5 * math.log(total) + 0.25 * math.log(0.25 * total / 1e-5) + 0.25 * math.log(0.25 * total / 0.5)
    assert found.unlearned_from_retrained[0] == pytest.approx(forward, rel=1e-9)
    assert found.retrained_from_unlearned[0] == pytest.approx(0.5 * math.log(2), rel=1e-9)


def test_klom_keeps_its_two_directions_apart() -> None:
    """A caller of the reference code swapped the arguments."""
    rng = np.random.default_rng(0)
    narrow, wide = rng.normal(0, 0.1, (200, 3)), rng.normal(0, 3.0, (200, 3))
    found, swapped = klom(narrow, wide), klom(wide, narrow)
    assert (found.unlearned_from_retrained < found.retrained_from_unlearned).all()
    np.testing.assert_array_equal(found.unlearned_from_retrained, swapped.retrained_from_unlearned)


def test_the_null_mean_is_that_of_exchanged_models() -> None:
    u, r = scores(9, 2)
    both = np.concatenate([u, r])
    for given, num in (({"num_permutations": 40}, 40), ({}, 200)):
        found, rng = klom(u, r, seed=2, **given), np.random.default_rng(2)
        forward, backward = np.zeros(2), np.zeros(2)
        for _ in range(num):
            order = rng.permutation(20)
            one, other = both[order[:9]], both[order[9:]]
            forward += [histogram_kl(one[:, j], other[:, j]) for j in range(2)]
            backward += [histogram_kl(other[:, j], one[:, j]) for j in range(2)]
        np.testing.assert_allclose(found.null_unlearned_from_retrained, forward / num, rtol=1e-9)
        np.testing.assert_allclose(found.null_retrained_from_unlearned, backward / num, rtol=1e-9)
        assert found.backward == pytest.approx((found.retrained_from_unlearned - backward / num).mean(), abs=1e-12)
    same = klom(np.zeros((4, 3)), np.zeros((4, 3)))
    assert (same.forward, same.backward) == (0.0, 0.0)
    clipped = klom(np.full((3, 1), 1e30), np.full((3, 1), 100.0))
    assert clipped.unlearned_from_retrained[0] == 0
    with pytest.raises(SettingError):
        klom(u, r, floor=0.0)


# --- distances and leakage -----------------------------------------------------------------------------------------


def distributions(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).dirichlet(np.full(shape[-1], 0.3), shape[:-1])


def test_activation_distance_agrees_with_plain_distances() -> None:
    p, q = distributions(0, 3, 7, 5), distributions(1, 3, 7, 5)
    pairs = list(zip(p.reshape(-1, 5), q.reshape(-1, 5), strict=True))
    assert activation_distance(p, q) == pytest.approx(np.mean([math.dist(a, b) for a, b in pairs]), abs=1e-9)
    for shapes in ((p, q[:2]), (p[:0], q[:0])):
        with pytest.raises(InputError):
            activation_distance(*shapes)


def test_leakage_is_the_area_of_the_distances_moved() -> None:
    sets = [distributions(seed, num, 4) for seed, num in ((0, 20), (1, 20), (2, 50), (3, 50))]
    moved = [
        np.array([math.dist(a, b) for a, b in zip(before, after, strict=True)])
        for before, after in (sets[:2], sets[2:])
    ]
    found, interval = update_leakage(*sets)
    assert found == pytest.approx(area(moved[0], moved[1]), abs=1e-9)
    assert interval == pytest.approx(auc_interval(moved[0], moved[1]), abs=1e-9)
    narrow = update_leakage(*sets, confidence=0.5)[1]
    assert narrow == pytest.approx(auc_interval(moved[0], moved[1], confidence=0.5), abs=1e-9)
    assert update_leakage(sets[0], sets[0], sets[2], sets[2])[0] == 0.5
    with pytest.raises(InputError):
        update_leakage(sets[0], sets[2], sets[2], sets[3])


# --- the record ----------------------------------------------------------------------------------------------------


def invented(num: int = 16, **settings: Any) -> References:
    """Logits as of models that know the forget set (original), hide it badly (over), or never saw it."""
    rng = np.random.default_rng(0)
    sizes = {"forget": 24, "heldout": 120, "retained": 30}
    labels = {name: np.arange(size) % 3 for name, size in sizes.items()}
    hardness = {name: rng.normal(2, 1, size) for name, size in sizes.items()}

    def said(name: str, shift: float) -> NDArray[np.float32]:
        margin = hardness[name] + shift
        noise = rng.normal(size=(num, sizes[name], 3))
        return (noise + margin[:, None] * np.eye(3)[labels[name]]).astype(np.float32)

    shifts = {"original": 4.0, "retrained": 0.0, "good": 0.0, "over": -8.0}
    return References(
        logits={row: {s: said(s, shift if s == "forget" else 0.0) for s in sizes} for row, shift in shifts.items()},
        labels=labels,
        relearn_steps={row: np.full(num, 10.0) - (row == "original") * 10 for row in shifts},
        methods={"good": {"method": "targeted", "settings": {}}, "over": {"method": "neg_grad", "settings": {}}},
        settings={"relearn": {"max_steps": 100}},
        **settings,
    )


def test_the_full_audit_puts_the_measures_in_rows() -> None:
    references = invented()
    report = full_audit(references, num_bootstrap=40)
    assert [row.name for row in report.rows] == ["original", "good", "over", "retrained"]
    margins = {row: scores_of(said["forget"], references.labels["forget"]) for row, said in references.logits.items()}
    over = report.row("over")
    assert over.lira == lira(margins["over"], margins["retrained"], num_bootstrap=40)
    assert over.epsilon == epsilon_bound(margins["over"], margins["retrained"])
    assert over.klom == klom(margins["over"], margins["retrained"]).to_dict()
    p, q = (special.softmax(references.logits[row]["forget"].astype(np.float64), -1) for row in ("over", "retrained"))
    assert over.activation_distance == activation_distance(p, q)
    right = {name: said.argmax(-1) == references.labels[name] for name, said in references.logits["over"].items()}
    accuracies = (over.forget_accuracy, over.test_accuracy, over.retained_accuracy)
    assert accuracies == tuple(right[name].mean() for name in ("forget", "heldout", "retained"))
    assert over.forget_accuracy < 0.1 < 0.6 < over.test_accuracy
    for name, low, high in (("original", 0.9, 1.0), ("good", 0.4, 0.6), ("over", 0.9, 1.0), ("retrained", 0.4, 0.6)):
        assert low < report.row(name).lira.auc <= high
        assert 0.4 < report.row(name).lira_retained.auc < 0.6
        assert sum(report.row(name).verdicts.values()) == 16
    assert report.row("retrained").epsilon.median == 0
    assert report.row("retrained").lira.num_unlearned == 8
    assert report.row("original").epsilon.median > 0.2
    assert report.row("original").verdicts["FAIL"] == report.row("over").verdicts["FAIL"] == 16
    assert (report.row("original").relearn_ratio, report.row("good").relearn_ratio) == (0.0, 1.0)


def test_the_full_audit_goes_to_json_and_back_and_into_a_table() -> None:
    report = full_audit(invented(9, subject="audits the recipe, not this model"), num_bootstrap=5)
    assert FullAudit.from_json(report.to_json()) == report
    assert "NaN" not in report.to_json()
    table = report.table().splitlines()
    assert len(table) == 2 + 4
    assert len({line.count("|") for line in table}) == 1
    assert "100.0" not in table[4].split("|")[9]
    assert any("audits the recipe" in caveat for caveat in report.caveats)
    for num, few in ((63, True), (64, False)):
        caveats = full_audit(invented(num), num_bootstrap=1).caveats
        assert any(f"{num} models" in caveat for caveat in caveats) == few
    for text in ("{}", "[]", "no", json.dumps({**json.loads(report.to_json()), "rows": [{}]})):
        with pytest.raises(InputError, match="full audit"):
            FullAudit.from_json(text)
    content = json.loads(report.to_json())
    row = content["rows"][0]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"klom": {"forward": 1.0}}, "backward"),
        ({"klom": {**row["klom"], "forward": "1"}}, "float"),
        ({"verdicts": {}}, "PASS"),
        ({"lira": {**row["lira"], "tprs": []}}, "rates"),
        ({"lira": {**row["lira"], "auc_interval": [0.1]}}, "auc_interval"),
        ({"epsilon": None}, "epsilon"),
    ]
    for change, said in wrong:
        with pytest.raises(InputError, match=said):
            FullAudit.from_json(json.dumps({**content, "rows": [{**row, **change}]}))
    for text in ("[" * 100_000, '{"a":' * 50, json.dumps({**content, "seed": 10**30})):
        with pytest.raises(InputError, match="not a full audit"):
            FullAudit.from_json(text)
    with pytest.raises(InputError, match="8 models"):
        full_audit(invented(7))


# --- reference models, in real processes ---------------------------------------------------------------------------

RECIPE = Recipe(epochs=1, batch_size=16, lr=0.05)
SPEC = ModelSpec(
    architecture="small_resnet",
    num_classes=10,
    in_channels=1,
    image_size=28,
    mean=(0.3,),
    std=(0.3,),
    options={"width": 4},
)
METHODS = {"targeted": Targeted(epochs=2, lr=1e-3), "random_label.2": make_method("random_label", epochs=1)}


def arranged(**changes: Any) -> dict[str, Any]:
    """A plan on the sample's first 60 images, and arguments of `train_references`."""
    data = load_data("sample:train").take(range(60))
    return {
        "spec": SPEC,
        "recipe": RECIPE,
        "data": data,
        "forget_ids": data.ids[:4],
        "heldout": load_data("sample:test").take(range(30)),
        "methods": {"targeted": METHODS["targeted"]},
        "num_models": 2,
        "num_retained": 20,
        "relearn_max_steps": 2,
        "workers": 1,
        **changes,
    }


def trained(directory: Path, **changes: Any) -> References:
    given = arranged(**changes)
    others = {name: given.pop(name) for name in ("num_models", "workers", "announce", "cluster") if name in given}
    return train_references(directory, ReferencePlan(**given), **others)


SCRIPT = """
if __name__ == "__main__":
    import sys
    from pathlib import Path
    from tests.test_audit_full import trained
    trained(Path(sys.argv[1]), num_models=500)
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of references whose making was killed after the first pair."""
    root = tmp_path_factory.mktemp("references")
    (root / "script.py").write_text(SCRIPT)
    with subprocess.Popen(
        [sys.executable, str(root / "script.py"), str(root / "run")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    ) as process:
        deadline = time.monotonic() + PATIENCE
        try:
            while not (root / "run" / "retrained-0000.safetensors").exists():
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    return root / "run"


@pytest.fixture(scope="module")
def resumed(killed: Path) -> tuple[Path, dict[Path, tuple[int, bytes]], References, list[str]]:
    """The same directory after another run with one method more; what stood there before; what was told."""
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in killed.glob("[a-z]*-*.safetensors")}
    told: list[str] = []
    references = trained(killed, num_models=2, methods=METHODS, announce=told.append)
    return killed, before, references, told


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


Resumed = tuple[Path, dict[Path, tuple[int, bytes]], References, list[str]]


def test_what_was_finished_before_the_kill_is_kept(resumed: Resumed) -> None:
    directory, before, references, told = resumed
    assert directory / "retrained-0000.safetensors" in before
    for path, content in before.items():
        assert (path.stat().st_mtime_ns, path.read_bytes()) == content
    assert references.num_models == 2
    assert set(references.logits) == {"original", "retrained", "targeted", "random_label.2"}
    shapes = {name: said.shape for name, said in references.logits["targeted"].items()}
    assert shapes == {"forget": (2, 4, 10), "heldout": (2, 30, 10), "retained": (2, 20, 10)}
    assert "2 of 2" in told[0]
    assert " min" in told[1]
    again = trained(directory, methods=METHODS, announce=told.append)
    assert "0 of 2" in told[-1]
    assert (again.logits["original"]["forget"] == references.logits["original"]["forget"]).all()
    assert load_references(directory, rows=["targeted"], num_models=1).num_models == 1


def test_each_row_is_what_it_says(resumed: Resumed, one_thread: None) -> None:
    """Trained and unlearned here, in this process, from the same seeds."""
    _, _, references, _ = resumed
    settings = arranged()
    data: ImageSet = settings["data"]
    forget = data.select(settings["forget_ids"])
    from expunge.auditing.references import _seed

    networks = {}
    for name, examples in (("original", data), ("retrained", data.without(forget))):
        seed = _seed(0, f"{name} 1")
        torch.manual_seed(seed)
        networks[name] = build(SPEC)
        train(networks[name], examples.examples, RECIPE, rng=torch.Generator().manual_seed(seed))
    method = METHODS["targeted"]
    networks["targeted"] = unlearn(networks["original"], forget, method=method, seed=_seed(0, "targeted 1")).model
    for name, network in networks.items():
        for images, part in ((forget, "forget"), (settings["heldout"], "heldout")):
            expected = logits_of(network, images.images).numpy()
            np.testing.assert_array_equal(references.logits[name][part][1], expected)
    loss = -special.log_softmax(references.logits["original"]["forget"][1].astype(np.float64), -1)[
        np.arange(4), forget.labels.numpy()
    ].mean()
    for name in ("targeted", "retrained"):
        steps = network_steps(networks[name], forget.examples, 1.05 * float(loss), max_steps=2)
        assert references.relearn_steps[name][1] == pytest.approx(steps, abs=1e-6)
    assert (references.relearn_steps["original"] == 0).all()
    assert (references.labels["forget"] == forget.labels.numpy()).all()
    assert not (references.logits["original"]["forget"][0] == references.logits["original"]["forget"][1]).all()
    margins = logit_scaled_confidence(references.logits["original"]["forget"][0], references.labels["forget"])
    both = scores_of(references.logits["original"]["forget"], references.labels["forget"])
    np.testing.assert_array_equal(both[0], margins)


def test_methods_that_read_held_out_examples_leave_one_half_to_all_rows(tmp_path: Path, one_thread: None) -> None:
    methods = {"calibrated": Calibrated(epochs=2), "targeted": METHODS["targeted"]}
    settings = arranged(methods=methods, num_models=1, seed=3)
    references = trained(tmp_path, **settings)
    heldout: ImageSet = settings["heldout"]
    left = audit_side(heldout.images, [3])
    assert 0 < int(left.sum()) < len(heldout)
    assert (references.labels["heldout"] == heldout.labels[left].numpy()).all()
    for said in references.logits.values():
        assert said["heldout"].shape == (1, int(left.sum()), 10)
    alone = load_references(tmp_path, rows=["targeted"])
    assert alone.logits["targeted"]["heldout"].shape == (1, len(heldout), 10)
    from expunge.auditing.references import _seed

    seed = _seed(3, "original 0")
    torch.manual_seed(seed)
    original = build(SPEC)
    data: ImageSet = settings["data"]
    train(original, data.examples, RECIPE, rng=torch.Generator().manual_seed(seed))
    forget = data.select(settings["forget_ids"])
    model = unlearn(original, forget, method=methods["calibrated"], test=heldout, seed=3).model
    for images, part in ((forget.images, "forget"), (heldout.images[left], "heldout")):
        np.testing.assert_array_equal(references.logits["calibrated"][part][0], logits_of(model, images).numpy())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"recipe": replace(RECIPE, lr=0.01)}, "recipe"),
        ({"spec": replace(SPEC, options={"width": 5})}, "spec"),
        ({"seed": 1}, "seed"),
        ({"relearn_lr": 0.5}, "relearn"),
        ({"methods": {"targeted": Targeted(lam=9.0)}}, "method targeted"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_results_of_other_settings_are_never_reused(killed: Path, change: dict[str, Any], named: str) -> None:
    before = sorted(killed.iterdir())
    with pytest.raises(InputError, match=named):
        trained(killed, **change)
    assert sorted(killed.iterdir()) == before


def test_other_forget_sets_and_foreign_files_are_not_reused_either(resumed: Resumed, tmp_path: Path) -> None:
    directory = resumed[0]
    settings = arranged()
    with pytest.raises(InputError, match="forget"):
        trained(directory, forget_ids=settings["data"].ids[:5])
    for path in directory.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(
        json.dumps(manifest | {"settings": manifest["settings"] | {"device": "cuda"}})
    )
    with pytest.raises(InputError, match="device"):  # which this machine did not train
        trained(tmp_path)
    manifest["settings"]["recipe"]["lr"] = 0.5
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="settings"):
        load_references(tmp_path)
    (tmp_path / "original-0000.safetensors").write_bytes(b"half")
    with pytest.raises(InputError, match="damaged"):
        load_references(tmp_path)
    good = json.loads((directory / "manifest.json").read_text())
    told, mine = good["settings"], {"method": "targeted", "settings": {}}
    for content in (
        "{",
        "[" * 100_000,
        json.dumps([good]),
        json.dumps({**good, "format": "theirs"}),
        json.dumps({**good, "settings": {**told, "relearn": 3}}),
        json.dumps({**good, "settings": {**told, "seed": 10**30}}),
        json.dumps({**good, "methods": {"../x": mine}}),
        json.dumps({**good, "methods": {"x": []}}),
    ):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(InputError, match="no manifest"):
            load_references(tmp_path)
    with pytest.raises(InputError, match="none"):
        load_references(tmp_path / "none")
    with pytest.raises(InputError, match="'finetune'"):
        load_references(directory, rows=["finetune"])
    with pytest.raises(InputError, match="missing"):
        load_references(directory, num_models=400)


def test_a_flipped_bit_in_outputs_is_noticed(resumed: Resumed, tmp_path: Path) -> None:
    directory = resumed[0]
    for path in directory.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    expected, taken = load_references(tmp_path, num_models=1), 0

    def same(one: References, other: References) -> bool:
        outputs = [[*found.labels.values(), *found.logits["original"].values()] for found in (one, other)]
        return all(np.array_equal(*pair) for pair in zip(*outputs, strict=True))

    for name in ("original-0000", "labels"):
        path = tmp_path / f"{name}.safetensors"
        whole = path.read_bytes()
        for bit in torch.randint(0, 8 * len(whole), (50,), generator=torch.Generator().manual_seed(0)).tolist():
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            with suppress(InputError):  # but where it is in the word "sha256", which changes nothing that is read
                assert same(load_references(tmp_path, num_models=1), expected)
                taken += 1
        path.write_bytes(whole)
    assert taken < 3


def test_what_cannot_be_made_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    data = arranged()["data"]
    refused: list[tuple[dict[str, Any], type[ExpungeError], str]] = [
        ({"methods": {"a/b": NegGrad()}}, SettingError, "'a/b'"),
        ({"methods": {"retrained": NegGrad()}}, SettingError, "'retrained'"),
        ({"methods": {"undo": make_method("amnesiac_undo")}}, SettingError, "update log"),
        ({"num_models": 0}, SettingError, "num_models"),
        ({"device": "gpu"}, SettingError, "device='gpu'"),
        ({"forget_ids": ["nonsense"]}, InputError, "'nonsense'"),
        ({"forget_ids": data.ids}, InputError, "forget set"),
        ({"heldout": data}, InputError, "forget"),
    ]
    for changes, error, match in refused:
        with pytest.raises(error, match=match):
            trained(out, **changes)
        assert not out.exists()


def test_a_network_that_relearning_wrecks_counts_as_one_that_does_not_relearn(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"relearn_lr": 1e30, "relearn_max_steps": 5, "num_models": 1}
    references = trained(tmp_path / "references", **changes)
    assert references.relearn_steps["retrained"].tolist() == [5.0]


def test_a_method_that_fails_is_named(tmp_path: Path) -> None:
    wild = {"steady": NegGrad(epochs=1), "wild": NegGrad(lr=1e38, optimizer="sgd", epochs=3)}
    with pytest.raises(ExpungeError, match=r"wild.* 0.*nan"):
        trained(tmp_path / "references", methods=wild, num_models=1)


def test_halves_of_a_held_out_set_share_nothing() -> None:
    images = load_data("sample:test").take(range(101))
    data, forget_ids, heldout = recipe_sets(images, 7)
    assert (len(data), len(forget_ids), len(heldout)) == (50, 7, 51)
    assert not set(data.ids) & set(heldout.ids)
    assert len(data.select(forget_ids)) == 7
    with pytest.raises(InputError, match="50"):
        recipe_sets(images, 50)


def test_a_worker_that_dies_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references_module, "in_processes", lambda *given, **how: iter([(0, Died("it was killed"))]))
    with pytest.raises(ExpungeError, match="it was killed"):
        trained(tmp_path / "references", num_models=1)


def test_a_ray_cluster_trains_the_same_models(tmp_path: Path) -> None:
    """What is there already travels to the nodes, and what is new comes back."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
    here = trained(tmp_path / "here", num_models=2)
    trained(tmp_path / "there", num_models=2)
    for name in ("unlearned-targeted-0001.safetensors", "retrained-0000.safetensors"):
        (tmp_path / "there" / name).unlink()
    with cluster("local") as nodes:
        there = trained(tmp_path / "there", num_models=2, cluster=nodes)
    for row, logits in here.logits.items():
        for name, values in logits.items():
            np.testing.assert_array_equal(there.logits[row][name], values)
