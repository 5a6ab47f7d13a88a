"""What each command does, callable from Python: from specs and paths to files on disk.

`expunge train` is `train(...)`, `expunge forget` is `forget(...)`, `expunge demo` is `demo(...)`.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import nn

from expunge.audit import accuracy
from expunge.data import ImageSet, check_disjoint, digests, draw_ids, load_data, read_ids
from expunge.errors import InputError, SettingError
from expunge.files import check_unused, new_directory
from expunge.methods import METHODS, Method, Needs, make_method
from expunge.models import Header, ModelSpec, build, load_model, save_checkpoint
from expunge.models.building import Classifier
from expunge.models.checkpoint import FILE_NAME, checkpoint_path
from expunge.records import Measurement, Trace
from expunge.training import Recipe, recipe_for
from expunge.training import train as train_network
from expunge.unlearning import unlearn
from expunge.update_log import UpdateRecorder

UPDATES = "updates"
"""The directory of the update log, inside a trained model's directory."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What `train` did; `training.json` in its directory.

    Attributes:
        directory: where the checkpoint lies.
        data: the DATA spec of the training set.
        num_examples: how many it was trained on.
        recipe, options: the settings, and those of the model.
        seed: of the initial weights, the order and the augmentation.
        train_accuracy, test_accuracy: in [0, 1]; test is None where there is no test set.
        seconds: wall clock of the training alone.
        history: loss and accuracy of each epoch.
        versions, device: where it ran.
    """

    directory: str
    data: str
    num_examples: int
    architecture: str
    recipe: Mapping[str, Any]
    options: Mapping[str, Any]
    seed: int
    train_accuracy: float
    test_accuracy: float | None
    seconds: float
    history: tuple[Mapping[str, float], ...]
    versions: Mapping[str, str]
    device: str

    def to_json(self) -> str:
        """JSON text."""
        return json.dumps({"format": "expunge-training/1", **asdict(self)}, indent=2)


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What `forget` reads, as MODEL and DATA specs.

    Attributes:
        model: MODEL spec.
        forget: DATA spec of the examples to forget.
        ids: a file with one id a line picks from `forget`; None takes all of it.
        retain: DATA spec of retained training examples; those that `forget` holds too are left out.
        test: DATA spec of a test set, for the report alone.
        weights: a weights file, for `timm:` and `py:` models.
        allow_pickle: accept a .pt file as weights, read with `weights_only=True`.
        updates: an update log; None: the one beside the model.
        resize: resize images of folders to the model's size.
    """

    model: str
    forget: str
    ids: Path | None = None
    retain: str | None = None
    test: str | None = None
    weights: Path | None = None
    allow_pickle: bool = False
    updates: Path | None = None
    resize: bool = False


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `forget` did and measured; `report.json` in its directory."""

    directory: str
    sources: Mapping[str, Any]
    before: Measurement
    after: Measurement
    trace: Trace
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> str:
        """JSON text."""
        return json.dumps({"format": "expunge-report/1", **asdict(self)}, indent=2)


def train(
    data: str,
    model: str,
    out: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str = "auto",
    record_updates: str | None = None,
    announce: Callable[[str], None] = lambda line: None,
) -> Training:
    """Trains a classifier and writes `model.safetensors` and `training.json` to the new directory `out`.

    Args:
        data: DATA spec of the training set. A named dataset is tested on its test split.
        model: a key of `ARCHITECTURES` or `timm:NAME`.
        out: must not exist.
        settings: fields of `Recipe`, or options of the model (`stem=small`); over the measured recipe.
        seed: of everything random.
        device: `cpu`, `cuda`, or `auto`.
        record_updates: `all`, or a file with ids of examples that may have to be forgotten: writes the update log
            to `out/updates`.
        announce: is told what the update log will cost before training starts.
    """
    check_unused(out)
    where = _device(device)
    images = load_data(data)
    recipe, options = _recipe(images.name.partition(":")[0], model, settings or {})
    spec = spec_for(images, model, options)
    with torch.random.fork_rng([where] if where.type == "cuda" else []):
        torch.manual_seed(seed)
        network = _build(spec).to(where)
    with new_directory(out) as temporary:
        recorder = None
        if record_updates is not None:
            watched = None
            if record_updates != "all":
                watched = frozenset(digests(images.select(read_ids(Path(record_updates))).images))
            recorder = UpdateRecorder(temporary / UPDATES, watched)
            cost = recorder.expected_bytes(network, len(images), recipe.batch_size, recipe.epochs)
            announce(f"the update log will take about {cost / 1e9:.2f} GB in {out / UPDATES}")
            recorder.check_room(cost)
        started = time.perf_counter()
        rng = torch.Generator().manual_seed(seed)
        history = train_network(network, images.examples, recipe, rng=rng, updates=recorder)
        seconds = time.perf_counter() - started
        test = _test_split(data)
        done = Training(
            directory=str(out),
            data=data,
            num_examples=len(images),
            architecture=model,
            recipe=recipe.to_json(),
            options=options,
            seed=seed,
            train_accuracy=accuracy(network, images.examples),
            test_accuracy=accuracy(network, test.examples) if test is not None else None,
            seconds=seconds,
            history=tuple(asdict(epoch) for epoch in history),
            versions={"torch": torch.__version__},
            device=f"{where}, {torch.get_num_threads()} threads",
        )
        entry = {"did": "train", "data": data, "seed": seed, "test_accuracy": done.test_accuracy}
        header = Header(spec=spec, class_names=images.class_names, data=data, recipe=recipe.to_json(), history=(entry,))
        save_checkpoint(temporary / FILE_NAME, network, header)
        (temporary / "training.json").write_text(done.to_json())
    return done


def forget(
    sources: Sources,
    out: Path,
    *,
    method: str = "targeted",
    protocol: str | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str = "auto",
) -> Report:
    """Makes a model forget, measures it before and after, and writes `model.safetensors` and `report.json`.

    Args:
        sources: what to read.
        out: the new directory; must not exist.
        method: a key of `METHODS`. `retrain` takes the original's recipe where the checkpoint tells it.
        protocol: a preset of that method, such as `paper`.
        settings: fields of the method.
        seed: of everything random.
        device: `cpu`, `cuda`, or `auto`.
    """
    check_unused(out)
    where = _device(device)
    _check_method(method)
    needs: Needs = METHODS[method].needs
    if Needs.RETAIN in needs and sources.retain is None:
        raise SettingError(f"{method} needs retained training examples: add --retain DATA")
    make_method(method, protocol=protocol, **(settings or {}))  # wrong settings, before anything is read
    network, header = load_model(sources.model, weights=sources.weights, allow_pickle=sources.allow_pickle)
    recipe = dict(header.recipe) if method == "retrain" and protocol is None else {}
    chosen: Method = make_method(method, protocol=protocol, **{**recipe, **(settings or {})})
    forgotten = _load(sources.forget, header, sources.resize)
    if sources.ids is not None:
        forgotten = forgotten.select(read_ids(sources.ids))
    if len(forgotten) == 0:
        raise InputError("the forget set is empty; give it at least one example")
    notes = []
    test = retain = None
    if sources.test is not None:
        test = _load(sources.test, header, sources.resize)
        check_disjoint(forgotten.images, test.images, "forget", "test")
    if sources.retain is not None:
        whole = _load(sources.retain, header, sources.resize)
        retain = whole.without(forgotten)
        if len(retain) == 0:
            raise InputError("every retained example is in the forget set too; give others with --retain")
        if len(retain) < len(whole):
            notes.append(f"left {len(whole) - len(retain):,} examples that are to be forgotten out of the retain set")
    with new_directory(out) as temporary:  # before the work: a place that cannot be written says so at once
        network.to(where)
        before = _measure(network, retain, test)
        result = unlearn(
            network,
            forgotten,
            method=chosen,
            retain=retain if Needs.RETAIN in needs else None,
            factory=_factory(network, sources.model),
            updates=_updates(sources) if Needs.UPDATES in needs else None,
            seed=seed,
        )
        after = _measure(result.model, retain, test)
        trace = result.trace
        report = Report(
            directory=str(out),
            sources={key: str(value) if isinstance(value, Path) else value for key, value in asdict(sources).items()},
            before=replace(before, forget_accuracy=trace.forget_accuracy_before),
            after=replace(after, forget_accuracy=trace.forget_accuracy_after),
            trace=trace,
            notes=tuple(notes),
        )
        entry = {"did": "forget", "method": method, "settings": dict(trace.settings), "num_forget": trace.num_forget}
        class_names = header.class_names or forgotten.class_names
        header = replace(header, class_names=class_names, history=(*header.history, entry))
        save_checkpoint(temporary / FILE_NAME, result.model.cpu(), header)
        (temporary / "report.json").write_text(report.to_json())
    return report


DEMO_SIZE = 32
"""How many images the demo forgets."""


def demo(out: Path, *, method: str = "targeted", seed: int = 0) -> Report:
    """Trains the small residual network on the embedded sample and makes it forget 32 of its images.

    Writes `original/` (as `train` does), `ids.txt` and `forgot/` (as `forget` does) to the new directory `out`.
    """
    check_unused(out)
    with new_directory(out) as temporary:
        train("sample:train", "small_resnet", temporary / "original", seed=seed, device="cpu")
        drawn = draw_ids(load_data("sample:train"), DEMO_SIZE, seed)
        (temporary / "ids.txt").write_text("\n".join(drawn) + "\n")
        sources = Sources(
            model=str(temporary / "original"),
            forget="sample:train",
            ids=temporary / "ids.txt",
            retain="sample:train",
            test="sample:test",
        )
        report = forget(sources, temporary / "forgot", method=method, seed=seed, device="cpu")
        final = replace(sources, model=str(out / "original"), ids=out / "ids.txt")
        told = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(final).items()}
        report = replace(report, directory=str(out / "forgot"), sources=told)
        (temporary / "forgot" / "report.json").write_text(report.to_json())
    return report


def spec_for(images: ImageSet, architecture: str, options: Mapping[str, Any]) -> ModelSpec:
    """The spec of a network for these images: their classes, size, and mean and standard deviation by channel."""
    _, channels, height, width = images.images.shape
    if len(images) == 0:
        raise InputError(f"{images.name} is empty; training needs images")
    if len(images.class_names) < 2:
        raise InputError(f"{images.name} has one class; a classifier needs at least two classes")
    if height != width:
        raise InputError(f"{images.name}: images must be square, not {width} × {height}")
    # From counts of the 256 values: exact, and needs no floating-point copy of the images.
    counts = torch.stack([torch.bincount(images.images[:, c].flatten(), minlength=256) for c in range(channels)])
    share = counts.double() / counts.sum(1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ values
    deviation = (share @ values.square() - mean.square()).clamp(min=1e-12).sqrt()
    return ModelSpec(
        architecture=architecture,
        num_classes=len(images.class_names),
        in_channels=channels,
        image_size=height,
        mean=tuple(round(float(m), 6) for m in mean),
        std=tuple(max(round(float(d), 6), 1e-6) for d in deviation),
        options=dict(options),
    )


def _recipe(dataset: str, architecture: str, settings: Mapping[str, Any]) -> tuple[Recipe, dict[str, Any]]:
    """The measured recipe with `settings` over it: fields of `Recipe` to it, the rest to the model's options."""
    recipe, options = recipe_for(dataset, architecture)
    known = set(Recipe.__dataclass_fields__)
    # Retrain has the recipe's fields and converts text to their types.
    over = {key: value for key, value in settings.items() if key in known}
    changed = make_method("retrain", **{**recipe.to_json(), **over})
    assert isinstance(changed, Recipe)
    for key, value in settings.items():
        if key not in known:
            options[key] = _number(value) if isinstance(value, str) else value
    return changed.recipe, options


def _build(spec: ModelSpec) -> nn.Module:
    """`build`, whose error names the setting of the training that a wrong option was meant to be."""
    try:
        return build(spec)
    except SettingError as error:
        close = [found for key in spec.options for found in get_close_matches(key, Recipe.__dataclass_fields__, n=1)]
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise SettingError(f"{error}{hint}") from error


def _number(text: str) -> int | float | str:
    """What an option's text means: a number where it is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _check_method(name: str) -> None:
    if name not in METHODS:
        make_method(name)


def _load(spec: str, header: Header, resize: bool) -> ImageSet:
    """Loads data and checks that the model can take it."""
    wanted = header.spec
    size = wanted.image_size if resize and wanted.image_size else None
    images = load_data(spec, size=size, channels=wanted.in_channels or None, class_names=header.class_names)
    if wanted.num_classes and len(images) and int(images.labels.max()) >= wanted.num_classes:
        raise InputError(
            f"{spec} has label {int(images.labels.max())}, outside [0, {wanted.num_classes}), the model's classes"
        )
    shape = tuple(images.images.shape[1:])
    if wanted.image_size and shape != (wanted.in_channels, wanted.image_size, wanted.image_size):
        expected = f"{wanted.in_channels} × {wanted.image_size} × {wanted.image_size}"
        raise InputError(
            f"{spec} holds images of {' × '.join(map(str, shape))} (channels × height × width), the model takes "
            f"{expected}; convert them, or add --resize for a folder"
        )
    return images


def _measure(network: nn.Module, retain: ImageSet | None, test: ImageSet | None) -> Measurement:
    return Measurement(
        forget_accuracy=0.0,  # unlearn() measures it; the caller fills it in
        retain_accuracy=accuracy(network, retain.examples) if retain is not None else None,
        test_accuracy=accuracy(network, test.examples) if test is not None else None,
    )


def _factory(network: nn.Module, spec: str) -> Callable[[], nn.Module] | None:
    """For `py:` models the factory that the user named; the rest build themselves from their spec."""
    if not spec.startswith("py:") or not isinstance(network, Classifier):
        return None
    from expunge.data.specs import import_factory

    make = import_factory(spec.removeprefix("py:"))
    return lambda: Classifier(network.spec, make())


def _updates(sources: Sources) -> Path:
    return sources.updates or checkpoint_path(Path(sources.model)).parent / UPDATES


def _test_split(data: str) -> ImageSet | None:
    kind, _, split = data.partition(":")
    from expunge.data import NAMED

    return load_data(f"{kind}:test") if kind in NAMED and split in {"", "train"} else None


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in {"cpu", "cuda"}:
            raise RuntimeError("it is cpu, cuda or auto")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SettingError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return device
