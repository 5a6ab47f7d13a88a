"""`forget`: the main job. It splits the unseen examples, unlearns, audits and reports."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.utils.data import Dataset, Subset, TensorDataset

from expunge.auditing.default_audit import doubts_of, evaluate, report_of
from expunge.auditing.difficulty import check_factory
from expunge.auditing.preparation import AuditSets, prepare, sequence_of
from expunge.auditing.report import AuditReport
from expunge.auditing.settings import AuditSettings
from expunge.data import materialise_inputs
from expunge.data.content import apart_from
from expunge.distributed import by_first
from expunge.errors import caution
from expunge.inputs import fitted
from expunge.methods import Method, Needs
from expunge.models import check_changeable, device_and_dtype, own_factory, slow_in, unwrapped
from expunge.records import Measurement, Trace
from expunge.report.record import Report
from expunge.unlearning import resolve, unlearn


@dataclass(frozen=True, kw_only=True)
class Forgotten:
    """What `forget` returns.

    Attributes:
        model: the unlearned model, a new module in the original's mode.
        trace: what was done; goes to JSON and back.
        before, after: accuracies of both models.
        report: the audit, with `verdict` and `save("report.html")`; None without test examples.
        left_out: one sentence each on examples that were not counted.
    """

    model: nn.Module
    trace: Trace
    before: Measurement
    after: Measurement
    report: Report | None
    left_out: tuple[str, ...]

    def __repr__(self) -> str:
        verdict = self.report.verdict if self.report is not None else "not audited: give test="
        return f"Forgotten({type(self.model).__name__}), {verdict}\nbefore {self.before}\nafter  {self.after}"


def forget(
    model: nn.Module,
    examples: Any,
    *,
    test: Any = None,
    retain: Any = None,
    unlabelled: Any = None,
    method: Method | str | None = None,
    factory: Callable[[], nn.Module] | None = None,
    settings: AuditSettings | None = None,
    seed: int = 0,
) -> Forgotten:
    """Makes a copy of `model` forget `examples`, and with `test` audits whether it did. `model` itself is untouched.

    Args:
        model: maps a batch of inputs (B, ...) to logits (B, C), or to an output that has them, as in `expunge.unlearn`.
        examples: training examples to forget: a dataset of (input, integer label), or of dicts, a `DataLoader`, a list,
            a table, a stream (docs/reference/inputs.md). Its attribute `class_names`, or torchvision's `classes`, names
            the classes in the report. Where the model names its classes too, in its file or its `config.id2label`,
            labels are matched by name; so are those of the other sets.
        test: examples that the model was never trained on. A method that calibrates sees about half of them, by a split
            of their content with `seed`, and the audit uses the rest. The trace records the split.
        retain: retained training examples: for methods that need them, and to measure the accuracy on them. Forgotten
            ones among them are left out.
        unlabelled: other inputs whose labels nobody needs to know, as in `expunge.unlearn`.
        method: a method, or its name; None: `calibrated` with `test`, else `held_boundary`.
        factory: builds the model's network with fresh random weights, for methods that need it.
        settings: of the audit, such as how much test accuracy may be lost; None: `AuditSettings()`.
        seed: of everything random.

    Warns:
        ExpungeWarning: each warning of the trace, each caveat of this audit alone, and what is in `left_out`; before
            the work, that bf16 is slow on this processor.

    Raises:
        ExpungeError: as `expunge.unlearn` and `expunge.audit`.

    >>> import torch
    >>> from torch.utils.data import TensorDataset
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    >>> data = TensorDataset(torch.rand(90, 4), torch.arange(90) % 3)
    >>> done = forget(net, Subset(data, range(30)), test=Subset(data, range(30, 90)), method="targeted")
    >>> done.report.verdict in {"PASS", "INCONCLUSIVE", "FAIL"}
    True
    """
    chosen = resolve(method, test is not None)
    check_changeable(model)
    fit = fitted(model, {"forget": examples, "test": test, "retain": retain, "unlabelled": unlabelled})
    more = list(fit.said)
    build = factory or (own_factory(model) if Needs.FACTORY in chosen.needs else None)
    model, build = fit.around(model), fit.building(build)
    settings = settings or AuditSettings()
    settings = replace(settings, factory=fit.building(settings.factory))
    examples, test, retain, unlabelled = (fit.sets.get(n) for n in ("forget", "test", "retain", "unlabelled"))
    if test is not None:
        check_factory(settings, model)  # before the work, not after it
    sets = prepare(examples, test, retain)
    caution(slow_in(settings.precision, device_and_dtype(model)[0]))
    given: dict[str, Any] = {"retain": retain} if Needs.RETAIN in chosen.needs else {}
    given |= {"test": test} if Needs.TEST in chosen.needs else {}
    given = {name: _counted(dataset, sets, name) for name, dataset in given.items() if dataset is not None}
    if unlabelled is not None:
        others = {name: held.inputs for name, held in sets.by_name.items() if name != "retain"}
        inputs, left_out = apart_from(materialise_inputs(unlabelled, "unlabelled"), "unlabelled", others)
        given["unlabelled"], sets = TensorDataset(inputs), replace(sets, left_out=(*sets.left_out, *left_out))
    result = unlearn(model, examples, method=chosen, factory=build, seed=seed, **given)
    sets = sets.uncalibrated(result.model)
    own = sequence_of(getattr(examples, "class_names", None))
    own = own if len(own) else sequence_of(getattr(examples, "classes", None))

    def measured() -> tuple[list[Measurement], AuditReport | None, list[str]]:
        found = [evaluate(each, sets, seed, settings.precision) for each in (model, result.model)]
        measurements = [each.measurement for each in found]
        if test is None:
            return measurements, None, []
        audited = report_of(model, result.model, sets, found, class_names=own, settings=settings, seed=seed)
        return measurements, audited, doubts_of(sets, *found)

    # By one process alone: reference models are trained for as long as a clock says, which tells each another time.
    (before, after), audited, doubts = by_first(measured)
    more += doubts
    known = {line.rstrip(".").casefold() for line in result.trace.warnings}  # which `unlearn` has sent
    more = [line for line in more if line.rstrip(".").casefold() not in known]
    trace = replace(result.trace, warnings=(*result.trace.warnings, *more))
    cautions = sets.left_out if audited is None else audited.cautions
    caution([*more, *(line for line in cautions if line.rstrip(".").casefold() not in known)])
    return Forgotten(
        model=unwrapped(result.model),
        trace=trace,
        before=before,
        after=after,
        report=Report(before=before, after=after, trace=trace, audit=audited) if audited else None,
        left_out=sets.left_out,
    )


def _counted(dataset: Dataset[Any], sets: AuditSets, name: str) -> Dataset[Any]:
    """The examples of a dataset that count, as a dataset."""
    positions = sets.positions[name]
    if len(positions) == sets.given[name]:
        return dataset
    take = getattr(dataset, "take", None)
    chosen: Dataset[Any] = take(positions) if take is not None else Subset(dataset, positions.tolist())
    return chosen
