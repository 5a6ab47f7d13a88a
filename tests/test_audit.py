"""The default audit on real networks: what it sees, what it costs, what it refuses."""

import copy
import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.utils.data import TensorDataset

from expunge.auditing import AuditSettings, audit
from expunge.auditing.attacks import attacked
from expunge.auditing.details import BINS, ROC_POINTS, histograms
from expunge.auditing.forward import entering, outputs_of
from expunge.auditing.relearning import relearn
from expunge.auditing.report import DifficultyCalibration, Unseen
from expunge.data import Examples, load_data
from expunge.errors import InputError
from expunge.methods import Targeted
from expunge.metrics import Difficulty, cross_entropy, logit_scaled_confidence, score_test
from expunge.models import ModelSpec, build
from expunge.records import Measurement
from expunge.report.wording import mark_of_accuracy
from expunge.training import Recipe, train
from expunge.unlearning import unlearn
from tests.forked import PATIENCE

ODD = AuditSettings(non_random=True)

OUT_OF_MEMORY = """
import resource, torch
from torch import nn
from expunge import audit
from expunge.data import Examples
torch.set_num_threads(1)
model = nn.Sequential(nn.Linear(4, 200_000), nn.ReLU(), nn.Linear(200_000, 8), nn.Linear(8, 2))  # 0.8 MB an example
forget, heldout = (Examples(torch.rand(n, 4), torch.arange(n) % 2) for n in (20, 600))
audit(model, model, forget, heldout.take(torch.arange(60)))  # loads code
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 300_000_000, resource.RLIM_INFINITY))
print(audit(model, model, forget, heldout).num_test)
"""
TRAINED_ON = 200
HELD_OUT = 600


@pytest.fixture(scope="module")
def original() -> nn.Module:
    """A small network that has memorised the first 200 images of the embedded sample."""
    data = load_data("sample:train")
    spec = ModelSpec(
        architecture="small_resnet", num_classes=10, in_channels=1, image_size=28, mean=(0.286,), std=(0.353,),
        options={"width": 8},
    )  # fmt: skip
    torch.manual_seed(0)
    model = build(spec)
    recipe = Recipe(epochs=12, batch_size=50, lr=0.1)
    train(model, data.examples.take(torch.arange(TRAINED_ON)), recipe, rng=torch.Generator().manual_seed(0))
    return model.eval()


@pytest.fixture(scope="module")
def sets() -> tuple[Examples, Examples]:
    """A forget set out of the training data, and held-out examples."""
    data = load_data("sample:train").examples
    return data.take(torch.arange(16)), load_data("sample:test").examples.take(torch.arange(HELD_OUT))


@pytest.fixture(scope="module")
def unlearned(original: nn.Module, sets: tuple[Examples, Examples]) -> nn.Module:
    forget = TensorDataset(sets[0].inputs, sets[0].labels)
    return unlearn(original, forget, method=Targeted(lr=1e-3, stop="budget", epochs=40)).model


def test_memorised_examples_fail(original: nn.Module, sets: tuple[Examples, Examples]) -> None:
    report = audit(original, original, *sets)
    assert report.verdict == "FAIL"
    assert report.scores_after.a1 > 0.6
    assert report.change is not None
    assert report.change.l1 == report.relative_l1 == 0
    assert {each.auc for each in report.comparisons} == {0.5}  # nothing moved, so nothing is told
    assert report.relearning is not None
    assert report.relearning.ratio <= 1


def test_forced_mistakes_fail_and_the_report_says_so(
    original: nn.Module, unlearned: nn.Module, sets: tuple[Examples, Examples]
) -> None:
    report = audit(original, unlearned, *sets)
    assert report.after.forget_accuracy == 0
    assert report.verdict == "FAIL"
    assert report.scores_after.a1 < 0.4
    assert "too far" in report.scores_after.reason
    assert mark_of_accuracy(report) is not None
    assert "memorised" not in {found.side for found in report.recognisable}
    assert report.comparisons[0].auc > 0.6


def test_fewer_examples_are_read_at_once_where_memory_is_short() -> None:
    done = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout == "600\n", done.stderr


def test_a_batch_for_which_memory_does_not_suffice_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(100))

    def failing(*given: Any) -> list[torch.Tensor]:
        if next(calls) == 0:  # at the last thing that is done to the batch
            raise torch.OutOfMemoryError
        return entering(*given)

    model, data = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), Examples(torch.rand(10, 4), torch.arange(10) % 3)
    plain = outputs_of(model, data, features=True)
    monkeypatch.setattr("expunge.auditing.forward.entering", failing)
    found = outputs_of(model, data, features=True)
    assert np.allclose(found.logits, plain.logits)
    assert found.features is not None
    assert plain.features is not None
    assert torch.allclose(found.features, plain.features)


def test_the_default_device_is_left_alone(
    original: nn.Module, unlearned: nn.Module, sets: tuple[Examples, Examples]
) -> None:
    reports = [audit(original, unlearned, *sets, seed=1)]
    with torch.device("meta"):  # one that no tensor can come back from
        reports.append(audit(original, unlearned, *sets, seed=1))
    assert reports[0].scores_after == reports[1].scores_after
    assert reports[0].relearning == reports[1].relearning
    assert reports[0].comparisons == reports[1].comparisons


def test_unseen_examples_do_not_fail(original: nn.Module) -> None:
    held_out = load_data("sample:test").examples
    unseen = held_out.take(torch.arange(HELD_OUT, HELD_OUT + 64))
    report = audit(original, original, unseen, held_out.take(torch.arange(HELD_OUT)))
    assert report.verdict != "FAIL"


def test_its_figures_are_those_of_the_public_functions(
    original: nn.Module, unlearned: nn.Module, sets: tuple[Examples, Examples]
) -> None:
    forget, heldout = sets
    report = audit(original, unlearned, forget, heldout)
    with torch.no_grad():
        logits = {
            (when, name): model(held.inputs).numpy()
            for when, model in (("before", original.eval()), ("after", unlearned.eval()))
            for name, held in (("forget", forget), ("heldout", heldout))
        }
    labels = {"forget": forget.labels.numpy(), "heldout": heldout.labels.numpy()}
    for when, found in (("before", report.scores_before), ("after", report.scores_after)):
        margins = {name: logit_scaled_confidence(logits[when, name], labels[name]) for name in labels}
        expected = score_test(
            margins["forget"], margins["heldout"], forget_labels=labels["forget"], test_labels=labels["heldout"]
        )
        assert found.a1 == pytest.approx(expected.a1, abs=1e-3)  # batches of another size round differently
        assert found.verdict == expected.verdict
    correct = (logits["after", "heldout"].argmax(1) == labels["heldout"]).mean()
    assert report.after.test_accuracy == pytest.approx(correct, abs=0.005)
    assert report.change is not None
    norm = sum(float(p.detach().double().abs().sum()) for p in original.parameters())
    assert report.relative_l1 == pytest.approx(report.change.l1 / norm)
    norm = sum(float(p.detach().double().square().sum()) for p in original.parameters()) ** 0.5
    assert report.relative_l2 == pytest.approx(report.change.l2 / norm)
    own, unseen = (outputs_of(unlearned, held, features=True) for held in (forget, heldout))
    before = outputs_of(original, forget)
    loss = float(cross_entropy(before.logits, before.labels).mean())
    assert report.relearning == relearn(unlearned, own, unseen, original_loss=loss)


def test_models_see_each_example_as_often_as_the_docs_say(
    original: nn.Module, unlearned: nn.Module, sets: tuple[Examples, Examples]
) -> None:
    seen: dict[str, int] = {}
    retain = load_data("sample:train").examples.take(torch.arange(64, 164))
    hooks = []
    for name, model in (("before", original), ("after", unlearned)):

        def count(_: nn.Module, given: tuple[torch.Tensor, ...], name: str = name) -> None:
            seen[name] = seen.get(name, 0) + len(given[0])

        hooks.append(model.register_forward_pre_hook(count))
    report = audit(original, unlearned, *sets, retain=retain)
    for hook in hooks:
        hook.remove()
    both = 16 + HELD_OUT
    part = sum(map(len, attacked(sets[0].labels.numpy(), sets[1].labels.numpy(), 0).values()))
    # Once; moved by a pixel to four sides; and along the update, by a copy of the model after.
    assert seen == {"before": both + 100 + 4 * part, "after": both + 100 + 4 * part + both}
    assert (report.num_forget, report.num_test, report.num_retain) == (16, HELD_OUT, 100)


def test_it_leaves_models_and_random_state_as_they_were(
    original: nn.Module, unlearned: nn.Module, sets: tuple[Examples, Examples]
) -> None:
    original.train()
    state = torch.get_rng_state()
    weights = {name: value.clone() for name, value in original.state_dict().items()}
    try:
        audit(original, unlearned, *sets)
        assert all(module.training for module in original.modules())
    finally:
        original.eval()
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(weights[name], value) for name, value in original.state_dict().items())


def test_the_same_seed_gives_the_same_report(
    original: nn.Module, unlearned: nn.Module, sets: tuple[Examples, Examples]
) -> None:
    first, second = (replace(audit(original, unlearned, *sets, seed=3), seconds={}) for _ in range(2))
    assert first == second


def test_it_is_standard_json(original: nn.Module, unlearned: nn.Module, sets: tuple[Examples, Examples]) -> None:
    report = audit(original, unlearned, *sets)
    text = json.dumps(report.to_dict(), allow_nan=False)
    content = json.loads(text)
    assert (content["verdict"], content["reason"]) == (report.verdict, report.reason)
    for name, num in (("forget", 16), ("test", HELD_OUT)):
        for when in ("before", "after"):
            assert sum(content["confidences"]["counts"][name][when]) == num
    assert len(content["confidences"]["edges"]) == BINS + 1
    for curve in (report.roc_before, report.roc_after):
        assert (curve.fpr[0], curve.fpr[-1], curve.tpr[-1]) == (0, 1, 1)
        assert len(curve.fpr) <= ROC_POINTS + 1
        for low, rate, high in zip(curve.low, curve.tpr, curve.high, strict=True):
            assert 0 <= low <= rate <= high <= 1


def test_a_model_without_a_last_linear_layer_is_audited_but_for_relearning(sets: tuple[Examples, Examples]) -> None:
    forget, heldout = (Examples(held.inputs.float() / 255, held.labels) for held in sets)
    model = nn.Sequential(nn.Conv2d(1, 10, 28), nn.Flatten())
    report = audit(model, model, forget, heldout)
    assert report.relearning is None
    assert any("last" in caveat and "linear" in caveat for caveat in report.caveats)


def test_float64_and_bfloat16_models(sets: tuple[Examples, Examples]) -> None:
    forget, heldout = (Examples(held.inputs.double() / 255, held.labels) for held in sets)
    for dtype in (torch.float64, torch.bfloat16):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).to(dtype)
        assert audit(model, model, forget, heldout).num_classes == 10


SMALL = Examples(torch.rand(300, 4), torch.arange(300) % 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"forget": SMALL.take(torch.arange(0))}, "forget.*empty"),
        ({"test": SMALL.take(torch.arange(0))}, "test.*empty"),
        ({"test": SMALL}, "forget"),
        ({"forget": Examples(SMALL.inputs[:9], SMALL.labels[:9] + 3)}, "label 3"),
        ({"after": nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))}, "network"),
    ],
)
def test_what_cannot_be_audited_is_refused(change: dict[str, Any], message: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3))
    given: dict[str, Any] = {
        "before": model,
        "after": model,
        "forget": SMALL.take(torch.arange(9)),
        "test": SMALL.take(torch.arange(9, 300)),
        **change,
    }
    with pytest.raises(InputError, match=message):
        audit(given["before"], given["after"], given["forget"], given["test"])


def test_logits_that_are_not_finite_are_refused() -> None:
    model = nn.Linear(4, 3)
    nn.init.constant_(model.weight, float("nan"))
    with pytest.raises(InputError, match="NaN"):
        audit(model, model, SMALL.take(torch.arange(9)), SMALL.take(torch.arange(9, 300)))


def test_outputs_are_those_of_the_model(original: nn.Module, sets: tuple[Examples, Examples]) -> None:
    outputs = outputs_of(original, sets[0], features=True, batch_size=7)
    assert outputs.features is not None
    head = [module for module in original.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        again = head(outputs.features).double().numpy()
    np.testing.assert_allclose(outputs.logits, again, atol=1e-4)
    np.testing.assert_allclose(outputs.probabilities.sum(1), 1)


def test_histograms_hold_what_lies_beyond_their_edges() -> None:
    values = np.concatenate([np.linspace(-1, 1, 1000), [-1e6, 1e6]])
    found = histograms({"before": {"forget": values}, "after": {"forget": np.zeros(5)}})
    assert sum(found.counts["forget"]["before"]) == 1002
    assert sum(found.counts["forget"]["after"]) == 5
    everything = np.concatenate([values, np.zeros(5)])
    assert (found.edges[0], found.edges[-1]) == pytest.approx(tuple(np.quantile(everything, [0.005, 0.995])))


def test_held_out_examples_that_are_retained_ones_too_are_left_out_or_refused(original: nn.Module) -> None:
    train, test = load_data("sample:train").examples, load_data("sample:test").examples
    forget, retain = train.take(torch.arange(16)), train.take(torch.arange(16, 200))
    twins = torch.cat([test.inputs[:90], retain.inputs[:6]]), torch.cat([test.labels[:90], retain.labels[:6]])
    report = audit(original, original, forget, Examples(*twins), retain=retain)
    assert report.num_test == 90
    assert [found for found in report.left_out if "6 of 96" in found and "retain" in found]
    with pytest.raises(InputError, match=r"184 .*retain"):
        audit(original, original, forget, retain, retain=retain)


def test_what_is_expected_of_the_forgotten_examples_is_that_of_their_classes(original: nn.Module) -> None:
    """Nothing is odd about being wrong on a class as often as on unseen examples of it, however good the rest."""
    test = load_data("sample:test").examples
    predicted = original(test.inputs).argmax(1)
    shares = torch.stack([(predicted == label)[test.labels == label].double().mean() for label in range(10)])
    hardest = int(shares.argmin())
    of_it = (test.labels == hardest).nonzero()[:, 0]
    rest = torch.cat([of_it[40:], (test.labels != hardest).nonzero()[:, 0]])
    report = audit(original, original, test.take(of_it[:40]), test.take(rest))
    assert report.unseen is not None
    expected = float((predicted[of_it[40:]] == hardest).double().mean())
    assert report.unseen.accuracy == pytest.approx(expected, abs=1e-12)
    wrong = int((predicted[of_it[:40]] != hardest).sum())
    all_wrong, size = int((predicted[of_it] != hardest).sum()), len(of_it)
    assert report.unseen.p_value == pytest.approx(stats.hypergeom.sf(wrong - 1, size, all_wrong, 40), rel=1e-9)
    assert report.after.test_accuracy is not None
    assert report.after.test_accuracy > report.after.forget_accuracy + 0.1
    assert mark_of_accuracy(report) is None


def test_each_class_weighs_as_it_does_in_the_forget_set() -> None:
    """Two forgotten examples of a class that is always right, and six of one that is right half of the time."""
    net = nn.Linear(2, 2, bias=False, dtype=torch.float64)
    net.weight.data = torch.eye(2, dtype=torch.float64)
    right, wrong = torch.tensor([[3.0, 1.0], [1.0, 3.0]]).double()

    def examples(*rows: tuple[torch.Tensor, int], start: int) -> Examples:
        shifts = start + torch.arange(len(rows)).double()[:, None]  # which tell inputs apart, no more
        return Examples(torch.stack([row for row, _ in rows]) + shifts, torch.tensor([label for _, label in rows]))

    forget = examples(*[(right, 0)] * 2, *[(wrong, 1)] * 6, start=0)
    heldout = examples(*[(right, 0)] * 60, *[(wrong, 1)] * 20, *[(right, 1)] * 20, start=100)
    found = audit(net, net, forget, heldout).unseen
    assert found is not None
    assert found.accuracy == pytest.approx((2 * 1 + 6 * 0.5) / 8, abs=1e-12)


def test_an_accuracy_is_a_mark_from_ten_points_below_the_expected_one_if_chance_is_below_one_percent() -> None:
    net = nn.Linear(4, 3)
    report = audit(net, net, SMALL.take(torch.arange(8)), SMALL.take(torch.arange(8, 300)))
    report = replace(report, after=Measurement(forget_accuracy=0.25, test_accuracy=0.9))
    for accuracy, p_value, marked in ((0.36, 0.009, True), (0.34, 0.0, False), (0.36, 0.011, False)):
        told = replace(report, unseen=Unseen(accuracy=accuracy, p_value=p_value))
        assert (mark_of_accuracy(told) is not None) == marked
    for expected, marked in ((0.9, True), (0.4, False)):  # six wrong of eight by chance: 2e-5, 0.3
        correction = DifficultyCalibration(
            before=report.scores_before, after=report.scores_after, slope_before=1.0, slope_after=1.0,
            num_references=4, expected_forget_accuracy=expected, reference_accuracy=0.5,
        )  # fmt: skip
        told = replace(report, correction=correction)
        assert (mark_of_accuracy(told) is not None) == marked


def test_copies_count_once(original: nn.Module, sets: tuple[Examples, Examples]) -> None:
    """The scores of equal examples are one: sixteen of them eightfold are no 128 that chance could not make."""
    forget, test = sets
    once = audit(original, original, forget, test)
    many = audit(original, original, forget.take(torch.arange(16).repeat(8)), test)
    assert (many.num_forget, many.scores_after, many.recognisable) == (16, once.scores_after, once.recognisable)
    known = Difficulty(
        forget=np.linspace(-1, 1, 16), test=np.linspace(-1, 1, len(test)), num_references=4,
        forget_accuracy=0.8, accuracy=0.8,
    )  # fmt: skip
    of_all = replace(known, forget=np.tile(known.forget, 8))
    for given in (known, of_all):  # told of each example, or of each copy
        fixed = audit(original, original, forget.take(torch.arange(16).repeat(8)), test, references=given, settings=ODD)
        assert fixed.correction == audit(original, original, forget, test, references=known, settings=ODD).correction
    assert ["112 of 128" in found for found in many.left_out] == [True]
    assert set(many.left_out) <= set(many.caveats)
    assert once.left_out == ()


def test_a_model_that_did_not_change_is_told(original: nn.Module, sets: tuple[Examples, Examples]) -> None:
    assert ["parameters" in doubt for doubt in audit(original, original, *sets).doubts] == [True]
    other = copy.deepcopy(original)
    next(other.parameters()).data.mul_(1.01)
    assert audit(original, other, *sets).doubts == ()


def test_classes_without_held_out_examples_are_told(original: nn.Module, sets: tuple[Examples, Examples]) -> None:
    forget, test = sets
    label = int(forget.labels[0])
    num = int((forget.labels == label).sum())
    report = audit(original, original, forget, test.take((test.labels != label).nonzero()[:, 0]))
    told = [doubt for doubt in report.doubts if "classes" in doubt]
    assert [doubt.split()[0] == f"{num}" and "16" in doubt for doubt in told] == [True]
    assert set(told) <= set(report.caveats)
    assert not any("classes" in doubt for doubt in audit(original, original, *sets).doubts)


def test_examples_that_are_tied_with_unseen_ones_are_not_listed_as_recognisable() -> None:
    """15 of 1,000 unseen scores are as high as can be: to score as high is nothing odd."""
    net = nn.Linear(2, 2, bias=False, dtype=torch.float64)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))  # the second input tells twins apart, no more
    scores = torch.cat([torch.linspace(-1, 1, 985).double(), torch.full((15,), 5.0).double()])
    held = Examples(torch.stack([scores, torch.arange(1000.0).double()], 1), torch.zeros(1000, dtype=torch.int64))
    tied = Examples(torch.tensor([[5.0, -1.0], [6.0, -2.0]]).double(), torch.zeros(2, dtype=torch.int64))
    found = audit(net, net, tied, held).recognisable
    assert [(each.id, each.side) for each in found] == [("1", "memorised")]
    scores = torch.linspace(-1, 1, 1000).double()
    held = Examples(torch.stack([scores, torch.arange(1000.0).double()], 1), torch.zeros(1000, dtype=torch.int64))
    ends = torch.tensor([[0.99, -1.0], [-1.1, -2.0], [1.1, -3.0], [-0.985, -4.0]]).double()
    found = audit(net, net, Examples(ends, torch.zeros(4, dtype=torch.int64)), held).recognisable
    sides = {"0": "memorised", "1": "over-forgotten", "2": "memorised", "3": "over-forgotten"}
    assert {each.id: each.side for each in found} == sides
    assert [each.id for each in found] == ["1", "2", "0", "3"], "the most extreme come first"
