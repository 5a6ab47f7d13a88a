"""`expunge.forget`, and that what is handed in is used or refused."""

import inspect
import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

import expunge
from expunge import ExpungeWarning, Needs
from expunge.auditing import audit
from expunge.data import Examples, audit_side, calibration_side
from expunge.errors import InputError, SettingError
from expunge.records import Epoch, Trace
from tests.arrangements import pairs


def network() -> nn.Module:
    torch.manual_seed(0)
    inputs = pairs(1, seed=0).inputs
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs[0].numel(), 16), nn.ReLU(), nn.Linear(16, 5)).eval()


def sets() -> dict[str, Any]:
    return {
        name: pairs(num, seed=seed) for name, num, seed in (("examples", 12, 1), ("test", 120, 2), ("retain", 30, 3))
    }


def test_it_forgets_audits_and_reports(tmp_path: Path) -> None:
    model, given = network(), sets()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    done = expunge.forget(model, **given, method=expunge.Calibrated(epochs=3), seed=4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert done.report is not None
    assert done.report.verdict == done.report.audit.verdict  # type: ignore[union-attr]
    assert done.trace.num_calibration == int(calibration_side(given["test"].inputs, 4).sum())
    assert done.report.audit.num_test == int(audit_side(given["test"].inputs, [4]).sum())  # type: ignore[union-attr]
    assert done.after.retain_accuracy is not None
    done.report.save(tmp_path / "report.json")
    done.report.save(tmp_path / "report.html")
    assert "<html" in (tmp_path / "report.html").read_text()
    with pytest.raises(SettingError):
        done.report.save(tmp_path / "report.pdf")
    assert all(len(repr(made).splitlines()) <= 4 for made in (done, done.report))


def test_without_test_examples_there_is_no_report() -> None:
    given = sets()
    done = expunge.forget(network(), given["examples"], method=expunge.Targeted(epochs=2))
    assert (done.report, done.before.test_accuracy) == (None, None)
    assert done.trace.method == "targeted"


def test_a_dataset_that_is_no_image_set_is_counted_in_part() -> None:
    """A test example that is a forgotten one too is left out for the method and for the audit."""
    given = sets()
    inputs = torch.cat([given["test"].inputs, given["examples"].inputs[:1]])
    labels = torch.cat([given["test"].labels, given["examples"].labels[:1]])
    done = expunge.forget(
        network(), given["examples"], test=TensorDataset(inputs, labels), method=expunge.Calibrated(epochs=1)
    )
    assert done.report is not None
    assert done.trace.num_calibration + done.report.audit.num_test == 120  # type: ignore[union-attr]


@pytest.mark.parametrize(("name", "needs"), [("retain", Needs.RETAIN), ("test", Needs.TEST)])
def test_what_a_method_does_not_use_is_refused(name: str, needs: Needs) -> None:
    given = sets()
    unread = [method for method in expunge.list_methods() if needs not in expunge.METHODS[method].needs]
    assert unread
    for method in unread:
        if method in expunge.list_methods(Needs.FORGET):
            with pytest.raises(SettingError, match=f"does not use {name}"):
                expunge.unlearn(network(), given["examples"], method=method, **{name: given[name]})


def test_methods_are_listed_by_what_there_is() -> None:
    assert expunge.list_methods() == list(expunge.METHODS)
    alone = expunge.list_methods(Needs.FORGET)
    assert {"targeted", "calibrated"} <= set(alone)
    assert not {"scrub", "bad_teacher", "amnesiac_undo"} & set(alone)
    assert "scrub" in expunge.list_methods(Needs.FORGET | Needs.RETAIN)


def test_a_callback_sees_each_epoch_and_ends_the_run() -> None:
    seen: list[Epoch] = []

    def stop_at_three(epoch: Epoch) -> bool:
        seen.append(epoch)
        return len(seen) == 3

    method = expunge.NegGrad(epochs=10, lr=1e-4)
    done = expunge.unlearn(network(), sets()["examples"], method=method, callback=stop_at_three)
    assert done.trace.epochs == tuple(seen)
    assert (len(seen), done.trace.steps) == (3, 3)
    whole = expunge.unlearn(network(), sets()["examples"], method=method, callback=lambda epoch: None)
    assert len(whole.trace.epochs) == 10


def test_a_bare_state_dict_says_nothing_of_the_split_and_the_trace_does() -> None:
    given = sets()
    model = network()
    done = expunge.unlearn(model, given["examples"], test=given["test"], method=expunge.Calibrated(epochs=2), seed=7)
    bare = network()
    bare.load_state_dict(done.model.state_dict())
    left = int(audit_side(given["test"].inputs, [7]).sum())
    unknown = audit(model, bare, given["examples"], given["test"])
    assert unknown.num_test == 120
    assert any("calibrated" in line for line in unknown.caveats)
    trace = Trace.from_json(done.trace.to_json())
    assert trace.calibration_digest is not None
    told = audit(model, bare, given["examples"], given["test"], trace=trace)
    assert told.num_test == left == audit(model, done.model, given["examples"], given["test"]).num_test


class Shaken(Dataset[Any]):
    """Another input at each read, as with random transforms."""

    def __init__(self, of: Examples) -> None:
        self.of = of

    def __len__(self) -> int:
        return len(self.of)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.of.inputs[index] + torch.randn_like(self.of.inputs[index]), int(self.of.labels[index])


@pytest.mark.parametrize("name", ["examples", "test", "retain"])
def test_random_transforms_are_refused(name: str) -> None:
    given: dict[str, Any] = sets()
    given[name] = Shaken(given[name])
    with pytest.raises(InputError, match="random"):
        expunge.forget(network(), **given, method="scrub")
    forget, test = given["examples"], given["test"]
    if name != "retain":
        with pytest.raises(InputError, match="random"):
            audit(network(), network(), forget, test)


@pytest.mark.parametrize("function", [expunge.forget, expunge.unlearn, expunge.audit], ids=lambda f: f.__name__)
def test_a_call_takes_few_arguments(function: Any) -> None:
    parameters = inspect.signature(function).parameters.values()
    assert len(parameters) <= 9
    assert not [p for p in parameters if p.kind in {p.VAR_KEYWORD, p.VAR_POSITIONAL}]


def test_what_a_user_must_know_is_warned_of_once() -> None:
    """Each warning of the trace, each caveat of one audit alone, and what `forget` leaves out."""
    given, model = sets(), network()
    with pytest.warns(ExpungeWarning) as seen:
        done = expunge.unlearn(model, given["examples"], method=expunge.Targeted(max_steps=0))
    assert [str(each.message) for each in seen] == list(done.trace.warnings)
    assert any("nothing was forgotten" in line for line in done.trace.warnings)
    twice = given["examples"].inputs.repeat(2, 1, 1, 1), given["examples"].labels.repeat(2)
    with pytest.warns(ExpungeWarning) as seen:
        report = audit(model, done.model, TensorDataset(*twice), given["test"])
    told = [str(each.message) for each in seen]
    assert told == list(report.cautions) == [line for line in report.caveats if line in report.cautions]
    assert any("12 of 24" in line for line in told)
    assert len(report.caveats) == len(told) + 2  # which hold for every audit
    for test in (None, given["test"]):
        with pytest.warns(ExpungeWarning) as seen:
            both = expunge.forget(model, TensorDataset(*twice), test=test, method=expunge.Targeted(max_steps=0))
        told = [str(each.message) for each in seen]
        assert any("12 of 24" in line for line in told)
        assert sum("parameters did not change" in line for line in told) == 1
        assert {*both.trace.warnings, *both.left_out} <= set(told)
        assert len(told) == len(set(told))


def test_phases_and_epochs_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("expunge")
    assert any(isinstance(handler, logging.NullHandler) for handler in logger.handlers)
    assert logger.level == logging.NOTSET
    given, method = sets(), expunge.NegGrad(epochs=3, lr=1e-4)
    with caplog.at_level(logging.INFO, "expunge"), warnings.catch_warnings():
        expunge.forget(network(), given["examples"], test=given["test"], method=method)
    phases = [record.getMessage() for record in caplog.records]
    assert {record.levelno for record in caplog.records} == {logging.INFO}
    for begins, ends in (
        ("neg_grad begins: 12", "neg_grad ends: 3 steps"),
        ("test set begins: 120", "test set ends: 120"),
    ):
        at = [next(n for n, line in enumerate(phases) if part in line) for part in (begins, ends)]
        assert at == sorted(at)
    caplog.clear()
    with caplog.at_level(logging.DEBUG, "expunge"):
        done = expunge.unlearn(network(), given["examples"], method=method)
    epochs = [r.getMessage() for r in caplog.records if r.levelno == logging.DEBUG]
    assert len(epochs) == 3
    assert all(str(epoch.loss) in line for epoch, line in zip(done.trace.epochs, epochs, strict=True))
