"""`train`: from a dataset to a checkpoint that describes itself."""

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import nn

from expunge.auditing import accuracy
from expunge.data import NAMED, ImageSet, digests, load_data, read_ids
from expunge.errors import InputError, SettingError
from expunge.files import check_unused, new_directory
from expunge.methods import method_of
from expunge.models import Header, ModelSpec, build, enough_memory, save_checkpoint, slow_in
from expunge.models.checkpoint import FILE_NAME
from expunge.randomness import as_seed, seeded
from expunge.training import Recipe, recipe_for
from expunge.training import train as train_network
from expunge.update_log import UPDATES, UpdateRecorder

RECIPE = tuple(field.name for field in fields(Recipe))
"""The settings of a training; others are options of the network."""


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
        seconds: wall clock of the training alone, since it was last gone on with.
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


def train(
    data: str,
    model: str,
    out: str | Path,
    *,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str = "auto",
    record_updates: str | None = None,
    state: str | Path | None = None,
    announce: Callable[[str], None] = lambda line: None,
) -> Training:
    """Trains a classifier and writes `model.safetensors` and `training.json` to the new directory `out`.

    Args:
        data: DATA spec of the training set. A named dataset is tested on its test split.
        model: a key of `ARCHITECTURES`, `timm:NAME` or `torchvision:NAME`.
        out: must not exist.
        settings: fields of `Recipe`, or options of the model (`stem=small`); over the measured recipe.
        seed: of everything random.
        device: `cpu`, `cuda`, or `auto`.
        record_updates: `all`, or a file with ids of examples that may have to be forgotten: writes the update log
            to `out/updates`.
        state: a file in which the training is kept after each epoch, gone on from where it is there, and removed at the
            end.
        announce: is told before training starts what the update log will cost, and that bf16 is slow here.
    """
    out, state = Path(out), None if state is None else Path(state)
    check_unused(out)
    seed = as_seed(seed)
    if state is not None:
        place = next(path for path in state.absolute().parents if path.exists())
        if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
            raise SettingError(f"the state {state} cannot be written: nothing can be made in {place}")
    if state is not None and (state.is_dir() or out.resolve() in [state.resolve(), *state.resolve().parents]):
        raise SettingError(f"the state {state} must be a file outside of {out}, which is written at the end")
    where = device_named(device)
    images = load_data(data)
    recipe, options = _recipe(images.name.partition(":")[0], model, settings or {})
    for sentence in slow_in(recipe.precision, where):
        announce(sentence)
    spec = spec_for(images, model, options)
    if empty := sorted(set(range(len(images.class_names))) - set(images.labels.tolist())):
        names = ", ".join(images.class_names[n] for n in empty[:5]) + ", …" * (len(empty) > 5)
        announce(f"{len(empty)} of {len(images.class_names)} classes have no images: {names}")
    try:
        test = _test_split(data)
    except InputError as error:
        announce(f"no test accuracy: {error}")
        test = None
    with seeded(seed, where), new_directory(out) as temporary:
        network = _build(spec).to(where)
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
        with enough_memory(f"lower batch_size (now {recipe.batch_size}) with --set"):
            history = train_network(network, images.examples, recipe, rng=rng, updates=recorder, state=state)
        seconds = time.perf_counter() - started
        done = Training(
            directory=str(out),
            data=data,
            num_examples=len(images),
            architecture=model,
            recipe=recipe.to_dict(),
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
        header = Header(spec=spec, class_names=images.class_names, data=data, recipe=recipe.to_dict(), history=(entry,))
        save_checkpoint(temporary / FILE_NAME, network, header)
        (temporary / "training.json").write_text(done.to_json(), encoding="utf-8")
    if state is not None:
        state.unlink(missing_ok=True)
    return done


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
    # Retrain has the recipe's fields and converts text to their types.
    over = {key: value for key, value in settings.items() if key in RECIPE}
    changed = method_of("retrain", {**recipe.to_dict(), **over})
    assert isinstance(changed, Recipe)
    for key, value in settings.items():
        if key not in RECIPE:
            options[key] = _number(value) if isinstance(value, str) else value
    return changed.recipe, options


def _build(spec: ModelSpec) -> nn.Module:
    """`build`, whose error names the setting of the training that a wrong option was meant to be."""
    try:
        return build(spec)
    except SettingError as error:
        close = [found for key in spec.options for found in get_close_matches(key, RECIPE, n=1)]
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


def _test_split(data: str) -> ImageSet | None:
    kind, _, split = data.partition(":")
    return load_data(f"{kind}:test") if kind in NAMED and split in {"", "train"} else None


def device_named(name: str) -> torch.device:
    """`cpu`, `cuda`, or what `auto` finds; raises `SettingError` where it cannot be used here."""
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
