"""Training a classifier from scratch: what `expunge train` runs, and what a retrained reference is made with."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.data import Examples, digests
from expunge.data.examples import check_logits
from expunge.errors import InputError, NonFiniteError, SettingError
from expunge.models import as_float, device_and_dtype, mask_names, not_finite, refusing
from expunge.parsing import record
from expunge.progress import advance, log
from expunge.settings import Ranges, check_settings
from expunge.training_state import identity, keep, restore
from expunge.update_log import UpdateRecorder


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train from scratch: SGD with Nesterov momentum, or Adam, under a one-cycle learning rate (Smith 2018).

    Attributes:
        epochs: passes over the training set, ≥ 0.
        batch_size: examples a step, ≥ 1. A last, smaller batch is left out of its epoch.
        lr: the highest learning rate, > 0, finite; it rises to it over `warmup` and falls to zero.
        momentum: in [0, 1): the highest; it falls by 0.1 while the learning rate rises, and back. Adam's β₁.
        weight_decay: ≥ 0, coupled (L2).
        warmup: share of the steps in which the learning rate rises, in (0, 1).
        augment: `none`, `shift` (up to 1/8 of the side, zero-padded) or `flip_shift` (also mirrored at random).
        precision: `fp32`, or `bf16` for autocast in bfloat16.
        optimizer: `sgd` or `adam`.
    """

    epochs: int = 30
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.95
    weight_decay: float = 5e-4
    warmup: float = 0.2
    augment: Literal["none", "shift", "flip_shift"] = "none"
    precision: Literal["fp32", "bf16"] = "fp32"
    optimizer: Literal["sgd", "adam"] = "sgd"

    ranges: ClassVar[Ranges] = {
        "epochs": "at least 0",
        "batch_size": "at least 1",
        "lr": "above 0",
        "momentum": "at least 0, below 1",
        "weight_decay": "at least 0",
        "warmup": "above 0, below 1",
    }

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def recipe(self) -> "Recipe":
        """The recipe alone, without what a subclass adds."""
        return Recipe(**{field.name: getattr(self, field.name) for field in fields(Recipe)})

    def to_dict(self) -> dict[str, Any]:
        """A dict of JSON values."""
        return asdict(self)


RECIPES: dict[tuple[str, str], dict[str, Any]] = {
    ("sample", "small_resnet"): {"epochs": 30, "batch_size": 64, "lr": 0.1},
    ("fashion-mnist", "resnet18"): {"epochs": 6, "batch_size": 256, "lr": 0.1, "options": {"stem": "standard"}},
}
"""Measured settings by dataset and architecture, each with the options that the model is built with."""


def recipe_for(dataset: str, architecture: str) -> tuple[Recipe, dict[str, Any]]:
    """The recipe for a dataset and an architecture, and the model's options; the defaults where none was measured."""
    settings = dict(RECIPES.get((dataset, architecture), {}))
    options = settings.pop("options", {})
    return replace(Recipe(), **settings), options


@dataclass(frozen=True)
class TrainedEpoch:
    """One epoch of training: the mean `loss` and the `accuracy` in [0, 1] over its batches, as trained on."""

    loss: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class _Told:
    """What a state is told: loss and accuracy of each epoch that is done."""

    history: tuple[tuple[float, float], ...]


def train(
    model: nn.Module,
    examples: Examples,
    recipe: Recipe,
    *,
    rng: torch.Generator,
    updates: UpdateRecorder | None = None,
    state: Path | None = None,
    label: str = "training",
) -> list[TrainedEpoch]:
    """Trains `model` in place, on the device that it is on.

    Args:
        rng: a CPU generator; it draws the order of the examples and the augmentation.
        updates: records what each step added, for `amnesiac_undo`.
        state: a file that is written after each epoch but the last, and gone on from where it is there: the result is
            that of a training without interruption. It has to be removed once the model is saved.

    Raises:
        NonFiniteError: the loss or a weight became NaN or infinite; says at which step.
        InputError: no examples, inputs that the model cannot take, labels that it has no class for, or a `state` that
            is damaged or of another training.
        SettingError: both `updates` and `state`, augmentation of what is no image, or no parameter that may change.
    """
    if updates is not None and state is not None:
        raise SettingError("a training whose updates are recorded cannot be gone on with: leave one of the two out")
    if len(examples) == 0:
        raise InputError("the training set is empty")
    names = digests(examples.inputs) if updates is not None else []  # of the inputs as given
    of = identity(model, examples, recipe.recipe.to_dict(), rng.initial_seed()) if state is not None else ""
    if recipe.augment != "none" and not are_images(examples.inputs):
        raise SettingError(f"augment={recipe.augment!r} is for images; take augment='none'")
    device, dtype = device_and_dtype(model)
    masks, layout = mask_names(model), quickest_layout(model)
    examples = examples.to(device, dtype)
    batch_size = min(recipe.batch_size, len(examples))
    num_batches = len(examples) // batch_size
    total = recipe.epochs * num_batches
    optimizer = _optimizer(model, recipe)
    # One step more than is taken: the schedule may be advanced once after the last update.
    num_steps = max(2, total + 1)
    # The schedule divides by warmup × steps − 1.
    divides_by_zero = recipe.warmup * num_steps == 1
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        recipe.lr,
        total_steps=num_steps,
        pct_start=recipe.warmup * (1 + 1e-6) if divides_by_zero else recipe.warmup,
        max_momentum=recipe.momentum,
        base_momentum=max(0.0, recipe.momentum - 0.1),
    )
    if updates is not None:
        updates.begin(names)
    finite = {name for name, tensor in _tensors(model) if not_finite([(name, tensor)], masks) is None}
    model.train()
    history: list[TrainedEpoch] = []
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    if state is not None and (told := restore(state, of, parts, rng)):
        history = [TrainedEpoch(*epoch) for epoch in record(_Told, told, str(state)).history]
    step = len(history) * num_batches

    def keep_all() -> None:
        if state is not None:
            keep(state, of, parts, rng, {"history": [[epoch.loss, epoch.accuracy] for epoch in history]})

    while len(history) < recipe.epochs:
        order = torch.randperm(len(examples), generator=rng, device="cpu")
        loss_sum = torch.zeros((), device=device)
        num_correct = torch.zeros((), device=device, dtype=torch.int64)
        for batch in order[: num_batches * batch_size].split(batch_size):
            index = batch.to(device)
            recording: AbstractContextManager[None] = nullcontext()
            if updates is not None:
                recording = updates.recording(model, step, [names[i] for i in batch.tolist()])
            with recording:
                inputs = augmented(examples.inputs[index], recipe.augment, rng)
                if inputs.ndim == 4:
                    inputs = inputs.contiguous(memory_format=layout)
                autocast = torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16")
                with refusing(inputs, label), autocast:
                    logits = as_float(model(inputs))
                if step == 0:
                    check_logits(logits.shape, examples.labels, "training set")
                loss = F.cross_entropy(logits, examples.labels[index])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            schedule.step()
            loss_sum += loss.detach()
            num_correct += (logits.detach().argmax(1) == examples.labels[index]).sum()
            step += 1
            if step % 10 == 0 or step == total:
                advance(label, step, total, f"loss {float(loss.detach()):.3f}")
        epoch = TrainedEpoch(float(loss_sum) / num_batches, int(num_correct) / (num_batches * batch_size))
        if not torch.isfinite(loss_sum):
            raise NonFiniteError(f"the training loss became NaN or infinite by step {step}; lower lr")
        history.append(epoch)
        log.debug("%s: epoch %d of %d, %s", label, len(history), recipe.epochs, epoch)
        if len(history) < recipe.epochs:
            keep_all()
    bad = not_finite([(name, tensor) for name, tensor in _tensors(model) if name in finite], masks)
    if bad is not None:
        raise NonFiniteError(f"after {step} steps the network holds NaN or infinity in {bad!r}; lower lr")
    if updates is not None:
        updates.end(model)
    keep_all()  # what comes after, such as accuracies, may be cut off too
    model.eval()
    return history


def quickest_layout(model: nn.Module) -> torch.memory_format:
    """Channels last, the quickest, unless oneDNN's 1×1 convolutions would write past their buffer.

    They do so in the backward pass of strided ones with few channels (github.com/uxlfoundation/oneDNN/issues/6035):
    fewer than a block, which is of 8 or 16 by the processor.
    """
    narrow = any(
        max(layer.kernel_size) == 1 < max(layer.stride) and layer.in_channels // layer.groups < 16
        for layer in model.modules()
        if isinstance(layer, nn.Conv2d)
    )
    return torch.contiguous_format if narrow else torch.channels_last


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise SettingError("every parameter of the network is frozen; set requires_grad on those that may change")
    if recipe.optimizer == "adam":
        return torch.optim.Adam(
            parameters, lr=recipe.lr, betas=(recipe.momentum, 0.999), weight_decay=recipe.weight_decay
        )
    return torch.optim.SGD(
        parameters,
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
        weight_decay=recipe.weight_decay,
    )


def are_images(inputs: Tensor) -> bool:
    """Whether inputs (N, channels, height, width) are pixels, uint8 or floating-point: not token ids in a grid."""
    return inputs.ndim == 4 and (inputs.is_floating_point() or inputs.dtype == torch.uint8)


def augmented(images: Tensor, augment: str, rng: torch.Generator) -> Tensor:
    """Shifts each image by up to 1/8 of its height and width, zero-padded, and mirrors it with probability ½.

    Images are (B, channels, H, W), of any dtype; `augment` is `none`, `shift` or `flip_shift`.
    """
    if augment == "none":
        return images
    size, high, wide = len(images), images.shape[-2] // 8, images.shape[-1] // 8
    shifts = (torch.randint(0, 2 * n + 1, (size, 1), generator=rng, device="cpu") for n in (high, wide))
    down, right = (shift.to(images.device) for shift in shifts)
    rows = torch.arange(images.shape[-2], device=images.device) + down
    columns = torch.arange(images.shape[-1], device=images.device) + right
    if augment == "flip_shift":
        mirrored = torch.rand((size, 1), generator=rng, device="cpu").to(images.device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    padded = F.pad(images, (wide, wide, high, high))
    example = torch.arange(size, device=images.device)[:, None, None]
    return padded[example, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
