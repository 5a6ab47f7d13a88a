"""The job that every library gets: a small network, 10,000 images that it was trained on, 200 of them to forget."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from experiments import places
from experiments.commit import origin
from expunge.data import ImageSet, audit_side, draw_ids, load_data

WORK = places.ROOT / "runs" / "peers"
TRAIN, FORGET, CLASSES, BATCH = 10_000, 200, 10, 128
EPOCHS, LR = 20, 1e-3
SEEDS = (1, 2, 3)
ORIGINAL = "original"


@dataclass(frozen=True)
class Job:
    """What an adapter may hand to its library.

    Attributes:
        forget, retain: the 200 images to forget and the other 9,800: inputs (N, 1, 28, 28) in [0, 1], and labels.
        test: Fashion-MNIST's test set.
        unseen: the half of `test` that `expunge.unlearn` calibrates nothing on. Everything is tested on it.
        seed: which 200.
    """

    forget: TensorDataset
    retain: TensorDataset
    test: TensorDataset
    unseen: TensorDataset
    seed: int


def network() -> nn.Sequential:
    """Two convolutions, each with batch normalisation, and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, CLASSES),
    )


def job(seed: int) -> Job:
    """The same images, and the draw of `seed` among them to forget."""
    train = load_data("fashion-mnist:train").take(range(TRAIN))
    gone = set(draw_ids(train, FORGET, seed))
    is_gone = torch.tensor([each in gone for each in train.ids])
    inputs, labels = _tensors(train)
    test, test_labels = _tensors(load_data("fashion-mnist:test"))
    side = audit_side(test, [0])
    return Job(
        forget=TensorDataset(inputs[is_gone], labels[is_gone]),
        retain=TensorDataset(inputs[~is_gone], labels[~is_gone]),
        test=TensorDataset(test, test_labels),
        unseen=TensorDataset(test[side], test_labels[side]),
        seed=seed,
    )


def _tensors(images: ImageSet) -> tuple[Tensor, Tensor]:
    return images.images.float() / 255, images.labels


def reference(seed: int) -> str:
    """The name of the network that is trained without the images of draw `seed`."""
    return f"retrained-{seed}"


def trained(name: str) -> nn.Module:
    """A network that `train_missing` made, in eval mode."""
    model = network()
    model.load_state_dict(load_file(WORK / f"{name}.safetensors"))
    return model.eval()


def training_record(name: str) -> dict[str, Any]:
    """What its training took."""
    record: dict[str, Any] = json.loads((WORK / f"{name}.json").read_text())
    return record


def train_missing() -> None:
    """Trains the original and a network without each draw, where they are missing."""
    for name, seed in ((ORIGINAL, None), *((reference(seed), seed) for seed in SEEDS)):
        if (WORK / f"{name}.json").exists():
            continue
        print(f"training {name}", flush=True)
        this = job(seed or SEEDS[0])
        sets = [this.retain.tensors] if seed else [this.retain.tensors, this.forget.tensors]
        made = origin()
        torch.manual_seed(seed or 0)
        model, started, on_cpu = network(), time.perf_counter(), time.process_time()
        _train(model, *(torch.cat(part) for part in zip(*sets, strict=True)))
        took = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - on_cpu}
        _save(model, WORK / name, {**took, **made})


def _train(model: nn.Module, inputs: Tensor, labels: Tensor) -> None:
    adam = torch.optim.Adam(model.parameters(), LR)
    model.train()
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(inputs)).split(BATCH):
            adam.zero_grad()
            nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
            adam.step()


def _save(model: nn.Module, path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(model.state_dict()), path.with_suffix(".safetensors"))
    path.with_suffix(".json").write_text(json.dumps(record) + "\n")
