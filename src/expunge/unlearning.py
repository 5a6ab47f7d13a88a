"""`unlearn`: the one driver. It copies the model, checks the inputs, seeds, runs the method, verifies and records."""

import platform
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from expunge.data import Examples, digests, materialise
from expunge.data.examples import check_logits, check_steady
from expunge.distributed import as_first_model, check_alike, processes, together
from expunge.doubts import doubts_of_labels, doubts_of_layers, doubts_of_scale, doubts_of_zeros, whole_classes
from expunge.errors import InputError, NonFiniteError, SettingError, caution, one_line
from expunge.inputs import fitted
from expunge.method_inputs import calibration_examples, check_shared, retained_examples, unlabelled_examples
from expunge.methods import Method, Needs, Recorder, Task, default_method, make_method, settings_of
from expunge.methods._tokens import run_on
from expunge.metrics import parameter_change
from expunge.models import (
    Adapted,
    calibration_seeds,
    check_changeable,
    check_heads,
    check_no_sigmoid,
    check_one_label,
    check_same_network,
    device_and_dtype,
    device_name,
    enough_memory,
    forward,
    in_precision,
    last_layer,
    logits_of,
    mark_calibrated,
    mask_names,
    not_finite,
    own_copy,
    own_factory,
    recomputing,
    refusing,
    slow_in,
    split_logits_of,
    unwrapped,
)
from expunge.progress import log
from expunge.randomness import as_seed, seeded, stream
from expunge.records import Epoch, Trace


@dataclass(frozen=True)
class Unlearned:
    """What `unlearn` returns: the unlearned `model`, a new module in the original's mode, and its `trace`."""

    model: nn.Module
    trace: Trace

    def __repr__(self) -> str:
        return f"Unlearned({type(self.model).__name__})\n{self.trace.summary()}"


def unlearn(
    model: nn.Module,
    forget: Any,
    *,
    method: Method | str | None = None,
    retain: Any = None,
    test: Any = None,
    unlabelled: Any = None,
    factory: Callable[[], nn.Module] | None = None,
    callback: Callable[[Epoch], object] | None = None,
    seed: int = 0,
) -> Unlearned:
    """Makes a copy of `model` that has forgotten the examples in `forget`. `model` itself is left untouched.

    It runs the method alone: `expunge.forget` also audits. What is handed in is used or refused.

    Args:
        model: maps a batch of inputs (B, ...) to logits (B, C), or to an output that has them (`logits`, a dict, a
            tuple that begins with them, one logit of two classes). Any device; the copy runs on the same one.
        forget: the examples to forget: a dataset of (input, integer label), or of dicts, a `DataLoader`, a list, a
            table, a stream (docs/reference/inputs.md). Its inputs are what the model takes, one example each; they are
            read once and held in memory. Where both the dataset (`class_names`, `classes`) and the model name their
            classes, labels are matched by name; so are those of the other sets.
        method: a method, or its registry name; None: `calibrated` where there are `test` examples, or `held_boundary`.
        retain: retained training examples, for the methods that need them.
        test: examples that the model was never trained on, such as its test set, for `calibrated`, which they make
            the default, `held_boundary` and `masked_distillation`. About half of them are used, those on the
            calibration side of a split by `seed` (`expunge.data.calibration_side`). The trace records it, and the audit
            leaves them out.
        unlabelled: other inputs whose labels nobody needs to know, such as those that the model is used on, or public
            images: a dataset of inputs, or of tuples that begin with one. `held_boundary`, `masked_distillation` and
            `calibrated` hold the model's outputs there. Those that are forgotten or test examples are left out.
        factory: builds the model's network with fresh random weights, for `bad_teacher` and `retrain`; the model's own
            are refused. Models that expunge built need none.
        callback: called after each epoch of a gradient method; the run ends where it returns True.
        seed: of everything random. The same seed gives the same bits on the same machine and thread count. The
            global random states of Python, NumPy and torch are put back afterwards.

    Warns:
        ExpungeWarning: each warning of the trace; before the work, that bf16 is slow on this processor.

    Raises:
        SettingError: unknown method, an input that the method needs is missing, or one is given that it does not read.
        InputError: an empty or mislabelled forget set, inputs that the model cannot take, NaN or infinity in the
            inputs or weights (but for −inf in buffers: those are masks), retained or test examples that overlap the
            forget set, or examples that read otherwise each time.
        NonFiniteError: the loss or a weight became NaN or infinite on the way.

    >>> import expunge
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    >>> forget = torch.utils.data.TensorDataset(torch.eye(4)[:2], torch.tensor([0, 1]))
    >>> result = expunge.unlearn(model, forget, method=expunge.Targeted(lr=0.1, epochs=50))
    >>> result.trace.forget_accuracy_after
    0.0
    """
    seed = as_seed(seed)
    chosen = resolve(method, test is not None)
    updates = getattr(chosen, "updates", None)
    missing = [
        name
        for need, name, given in (
            (Needs.RETAIN, "retained examples (retain=, --retain)", retain),
            (Needs.FACTORY, "a way to build a fresh network (factory=)", factory or own_factory(unwrapped(model))),
            (Needs.UPDATES, f"an update log ({chosen.name}'s updates=, --updates)", updates),
        )
        if need in chosen.needs and given is None
    ]
    if missing:
        raise SettingError(f"{chosen.name} needs {' and '.join(missing)}")
    unused = [
        name
        for need, name, given in (
            (Needs.RETAIN, "retain", retain),
            (Needs.TEST, "test", test),
            (Needs.UNLABELLED, "unlabelled", unlabelled),
            (Needs.FACTORY, "factory", factory),
        )
        if need not in chosen.needs and given is not None
    ]
    if unused:
        raise SettingError(f"{chosen.name} does not use {' and '.join(unused)}: leave it out, or choose another method")
    check_changeable(unwrapped(model))
    check_one_label(model)
    given = model
    fit = fitted(model, {"forget": forget, "retain": retain, "test": test, "unlabelled": unlabelled})
    build = fit.building(factory or own_factory(model))
    model = fit.around(model)
    forget, retain, test, unlabelled = (fit.sets.get(n) for n in ("forget", "retain", "test", "unlabelled"))
    device, _ = device_and_dtype(model)
    caution(slow_in(getattr(chosen, "precision", "fp32"), device))
    _check_finite(model, mask_names(model), InputError, "the model", "take another checkpoint")

    def on_epoch(epoch: Epoch) -> object:
        log.debug("%s: epoch %d, %s", chosen.name, len(record.epochs), epoch)
        return callback(epoch) if callback is not None else None

    record = Recorder(callback=on_epoch)
    for sentence in fit.said:
        record.warn(sentence)
    started = time.perf_counter()
    # Whatever mode the caller is in, it takes gradients.
    with together(), seeded(seed, device), torch.inference_mode(False), torch.enable_grad():
        rng = stream("method", seed)
        examples = materialise(forget, "forget")
        check_steady(forget, examples, "forget")
        identity = tuple(digests(examples.inputs))
        own = own_copy(model)
        shapes = [(name, tuple(parameter.shape)) for name, parameter in own.named_parameters()]
        check_alike(settings=(chosen.name, settings_of(chosen), seed), models=shapes, forget=identity)
        as_first_model(own)
        log.info("%s begins: %d examples to forget", chosen.name, len(examples))
        examples = examples.to(*device_and_dtype(own))
        with enough_memory("take a machine with more"):
            logits = _original_logits(own, examples)
        _check_own(own, model, examples)
        check_no_sigmoid(own, examples.inputs, logits.shape[1])
        check_heads(own, examples.inputs, logits)
        if bool((logits >= 0).all()) and bool(((logits.sum(1) - 1).abs() < 1e-3).all()):
            record.warn(
                "the model's outputs look like probabilities, which methods take for logits: leave the softmax out"
            )
        for doubt in (*doubts_of_labels(logits, examples.labels), *doubts_of_layers(model)):
            record.warn(doubt)
        if any(parameter._backward_hooks for parameter in model.parameters()):
            record.warn("hooks on the gradients of parameters were not copied: they had no effect")
        buffers = {name for name, _ in model.named_buffers()}
        masks = [n for n in mask_names(own) if n not in buffers or not_finite([(n, own.get_buffer(n))]) is not None]
        task = Task(
            forget=examples,
            forget_digests=identity,
            forget_logits=logits,
            retain=retained_examples(retain, examples, logits.shape[1], chosen, seed),
            factory=build if Needs.FACTORY in chosen.needs else None,
            updates=Path(updates) if updates is not None and Needs.UPDATES in chosen.needs else None,
            calibration=calibration_examples(test, examples, logits.shape[1], seed),
            unlabelled=unlabelled_examples(unlabelled, test, examples, record),
        )
        check_shared(task)
        for name, part in (("retain", task.retain), ("test", task.calibration), ("unlabelled", task.unlabelled)):
            inputs = part if isinstance(part, Tensor) or part is None else part.inputs
            for doubt in () if inputs is None else doubts_of_scale(examples.inputs, inputs, name):
                record.warn(doubt)
        try:
            with (
                enough_memory(_memory_advice(chosen)),
                in_precision(getattr(chosen, "precision", "fp32"), own),
                recomputing(own, getattr(chosen, "gradient_checkpointing", False)),
            ):
                result = run_on(chosen, own, task, rng=rng, record=record)
        except IndexError as error:  # codes and token ids are looked up in tables
            raise InputError(
                f"{chosen.name} made inputs that the model cannot look up ({one_line(error)}): give codes as integers, "
                "or choose a method that makes none, such as targeted"
            ) from error
        as_first_model(result)
        _check_finite(result, masks, NonFiniteError, f"after {record.steps} steps the model", "lower lr")
        check_same_network(result, model)
        after = _back_to_its_dtypes(result, model, masks, examples, record)
    adapted, model, result = result, unwrapped(model), unwrapped(result)
    originals = dict(model.named_parameters())
    for name, parameter in result.named_parameters():
        parameter.requires_grad_(originals[name].requires_grad)
        parameter.grad = None
    mark_calibrated(result, *calibration_seeds(model), *([seed] if task.calibration is not None else []))
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in result.named_modules():
        module.training = modes.get(name, module.training)
    for doubt in doubts_of_zeros(originals, dict(result.named_parameters())):
        record.warn(doubt)
    whole = whole_classes(examples.labels, None if task.retain is None else task.retain.labels, task.num_classes)
    if whole:
        record.warn(
            f"every example of class {', '.join(map(str, whole))} seems to be forgotten. Where the class itself is to "
            "go, the test accuracy is to be judged without it"
        )
    change = parameter_change(originals, dict(result.named_parameters()), last_layer=last_layer(result))
    _add_warnings(record, change.l1, logits, after)
    label_bytes = [int(label).to_bytes(4, "big") for label in examples.labels.tolist()]
    trace = Trace(
        method=chosen.name,
        settings=settings_of(chosen),
        seed=seed,
        forget_digest=sha256(b"".join(sorted(map(bytes.__add__, identity, label_bytes)))).hexdigest(),
        num_forget=len(examples),
        num_retain=len(task.retain) if task.retain is not None else 0,
        num_calibration=len(task.calibration) if task.calibration is not None else 0,
        num_unlabelled=len(task.unlabelled) if task.unlabelled is not None else 0,
        calibration_digest=None if task.calibration is None else _digest_of(task.calibration),
        pseudo_labels=record.pseudo_labels,
        epochs=tuple(record.epochs),
        first_step_all_reached=record.first_step_all_reached,
        steps=record.steps,
        examples_seen=record.examples_seen,
        forget_accuracy_before=_share(logits, examples.labels),
        forget_accuracy_after=_share(after, examples.labels),
        seconds=time.perf_counter() - started,
        peak_bytes=_peak_bytes(device),
        change=change,
        warnings=tuple(record.warnings),
        versions={
            "expunge": version("expunge"),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        device=device_name(device) + (f", {processes()} processes" if processes() > 1 else ""),
    )
    log.info("%s ends: %d steps, %d warnings", chosen.name, trace.steps, len(trace.warnings))
    caution(trace.warnings)
    return Unlearned(adapted if isinstance(given, Adapted) else result, trace)


def _digest_of(examples: Examples) -> str:
    return sha256(b"".join(sorted(digests(examples.inputs)))).hexdigest()


def resolve(method: Method | str | None, has_test: bool) -> Method:
    """The method that is meant; None: the default with or without test examples. Raises `SettingError`."""
    if method is None:
        method = default_method(has_test)
    if isinstance(method, str):
        return make_method(method)
    if isinstance(method, type) or not all(hasattr(method, name) for name in ("run", "name", "needs")):
        raise SettingError(f"method must be a method such as expunge.Targeted() or its name, not {method!r}")
    return method


def _memory_advice(method: Method) -> str:
    sizes = {name: size for name, size in settings_of(method).items() if name.endswith("batch_size")}
    if not sizes:
        return "take a machine with more, or another method"
    now = " and ".join(f"{name} (now {'all' if size is None else size})" for name, size in sizes.items())
    return f"lower {now} with --set"


def _original_logits(own: nn.Module, examples: Examples) -> Tensor:
    with refusing(examples.inputs, "the forget set"):
        logits = split_logits_of(own, examples.inputs)
    check_logits(logits.shape, examples.labels, "forget set")
    if len(logits) != len(examples):
        raise InputError(f"the model returned {len(logits)} rows of logits for {len(examples)} examples")
    if not bool(torch.isfinite(logits).all()):
        raise InputError("the model's logits on the forget set hold NaN or infinity; take another checkpoint")
    return logits


def _check_own(own: nn.Module, model: nn.Module, examples: Examples) -> None:
    """Raises `InputError` where the copy computes with the original's parameters: functions are not copied."""
    theirs = {id(parameter) for parameter in model.parameters()}
    batch = examples.inputs[:2]
    with refusing(batch, "the forget set"):
        front = [forward(own, batch).grad_fn]
    seen = set()
    while front:
        node = front.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if id(getattr(node, "variable", None)) in theirs:
            raise InputError(
                "the model's forward refers to the model itself (a lambda, or a patched method), which no copy can "
                "have; wrap it in a module that does"
            )
        front += [following for following, _ in node.next_functions]


def _check_finite(model: nn.Module, masks: Collection[str], error: type[Exception], subject: str, advice: str) -> None:
    bad = not_finite([*model.named_parameters(), *model.named_buffers()], masks)
    if bad is not None:
        raise error(f"{subject} holds NaN or infinity in {bad!r}; {advice}")


def _back_to_its_dtypes(
    result: nn.Module, model: nn.Module, masks: Collection[str], examples: Examples, record: Recorder
) -> Tensor:
    """Rounds what was widened back to the original's dtypes; the logits (N, C) on the forget set of what came of it."""
    wide = logits_of(result, examples.inputs)
    device, kind = device_and_dtype(model)
    widened, narrowed = device_and_dtype(result)[1] != kind, False
    dtypes = {name: given.dtype for name, given in [*model.named_parameters(), *model.named_buffers()]}
    for name, tensor in [*result.named_parameters(), *result.named_buffers()]:
        made = kind if widened and tensor.is_floating_point() else tensor.dtype  # by the model, on its first run
        dtype = dtypes.get(name, made)
        narrowed |= tensor.dtype != dtype
        tensor.data = tensor.data.to(dtype)
    if not narrowed:
        return wide
    _check_finite(
        result, masks, NonFiniteError, f"rounded back to {kind} the model", "lower lr, or unlearn a float32 copy"
    )
    after = logits_of(result, examples.to(device, kind).inputs)
    shares = _share(wide, examples.labels), _share(after, examples.labels)
    if shares[0] != shares[1]:
        record.warn(
            f"rounding the weights back to {kind} moved the forget accuracy from {shares[0]:.4f} to {shares[1]:.4f}; "
            "unlearn a float32 copy of the model"
        )
    return after


def _add_warnings(record: Recorder, l1: float, before: Tensor, after: Tensor) -> None:
    if l1 == 0:
        record.warn("the parameters did not change: nothing was forgotten")
    predictions = after.argmax(1)
    if len(predictions) >= 8 and before.argmax(1).unique().numel() > 1 and predictions.unique().numel() == 1:
        record.warn(f"the model collapsed: it predicts class {int(predictions[0])} for every forgotten example")


def _share(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).double().mean())


def _peak_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows has none
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
