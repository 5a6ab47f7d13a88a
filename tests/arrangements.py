"""Small networks, data and ready-to-run arrangements of every method, shared by the contract and golden tests."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from expunge.data import Examples
from expunge.methods import METHODS, GradientMethod, Method, Needs, make_method
from expunge.training import Recipe, train
from expunge.unlearning import Unlearned, unlearn
from expunge.update_log import UpdateRecorder

NUM_CLASSES = 4
SHORT: dict[str, dict[str, Any]] = {
    "retrain": {"epochs": 2, "batch_size": 4},
    "amnesiac_undo": {},
    "ssd": {"alpha": 1.0},
    "lfssd": {"alpha": 1.0},
    **{
        name: {"epochs": 3, "lr": 1e-2} | ({} if name == "finetune" else {"stop": "budget"})
        for name, cls in METHODS.items()
        if issubclass(cls, GradientMethod)
    },
}
SHORT["instance_wise"] |= {"adversarial": 2, "attack_steps": 3}
SHORT["amun"] |= {"attack_steps": 10}
SHORT["amun_retain"] |= {"attack_steps": 10}
SHORT["calibrated"] |= {"pace": None}
SHORT["masked_distillation"] |= {"pace": None}
SHORT["held_boundary"] |= {"pace": None, "retention_size": 2}
"""Settings that make each method quick and its effect large enough to see."""


class Pairs(Dataset[tuple[Tensor, int]]):
    """A plain dataset of (float image, label) that counts how often each example is read."""

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs = inputs
        self.labels = labels
        self.reads = [0] * len(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index >= len(self):
            raise IndexError(index)
        self.reads[index] += 1
        return self.inputs[index], int(self.labels[index])

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return (self[n] for n in range(len(self)))


class Untouchable(Dataset[Any]):
    """A dataset that fails the test when anything reads it."""

    def __len__(self) -> int:
        raise AssertionError("an input that the method did not declare was measured")

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("an input that the method did not declare was read")


def pairs(size: int, seed: int, shape: tuple[int, ...] = (1, 6, 6)) -> Pairs:
    """Random images with random labels."""
    rng = torch.Generator().manual_seed(seed)
    return Pairs(torch.rand(size, *shape, generator=rng), torch.randint(0, NUM_CLASSES, (size,), generator=rng))


class Tied(nn.Module):
    """Two linear layers that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(36, 36, bias=False)
        self.second = nn.Linear(36, 36, bias=False)
        self.second.weight = self.first.weight
        self.head = nn.Linear(36, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.second(torch.relu(self.first(x.flatten(1)))))
        return logits


def _batch_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, NUM_CLASSES)
    )


def _layer_norm() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, NUM_CLASSES))


def _dropout() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, NUM_CLASSES))


def _frozen() -> nn.Module:
    network = _layer_norm()
    network[1].requires_grad_(False)  # type: ignore[index]
    return network


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "dropout": _dropout,
    "tied": Tied,
    "frozen": _frozen,
    "float64": lambda: _batch_norm().double(),
    "bf16": lambda: _layer_norm().bfloat16(),
}


def read_by(method: Method, **given: Any) -> dict[str, Any]:
    """Those of `unlearn`'s inputs that the method reads."""
    needs = {"retain": Needs.RETAIN, "test": Needs.TEST, "unlabelled": Needs.UNLABELLED, "factory": Needs.FACTORY}
    return {name: value for name, value in given.items() if needs[name] in method.needs}


@dataclass
class Arrangement:
    """A method with all that it needs, ready to run."""

    name: str
    model: nn.Module
    forget: Pairs
    retain: Dataset[Any]
    factory: Callable[[], nn.Module]
    updates: Path
    heldout: Dataset[Any]
    settings: dict[str, Any] = field(default_factory=dict)

    def run(self, seed: int = 0, **settings: Any) -> Unlearned:
        """Runs `unlearn` with the inputs that the method reads."""
        where: dict[str, Any] = {"updates": self.updates} if Needs.UPDATES in METHODS[self.name].needs else {}
        method = make_method(self.name, **{**SHORT[self.name], **self.settings, **where, **settings})
        given = read_by(method, retain=self.retain, test=self.heldout, factory=self.factory)
        return unlearn(self.model, self.forget, method=method, seed=seed, **given)


def arrange(name: str, network: str, directory: Path, num_forget: int = 6) -> Arrangement:
    """A network trained for a moment on forget and retain examples, with its update log in `directory` if read."""
    forget, retain = pairs(num_forget, seed=2), pairs(12, seed=3)
    updates = UpdateRecorder(directory / "updates") if Needs.UPDATES in METHODS[name].needs else None
    model = copy.deepcopy(_trained(network, num_forget)) if updates is None else _train(network, num_forget, updates)
    return Arrangement(name, model, forget, retain, NETWORKS[network], directory / "updates", pairs(60, seed=5))


def _train(network: str, num_forget: int, updates: UpdateRecorder | None = None) -> nn.Module:
    torch.manual_seed(1)
    model = NETWORKS[network]()
    forget, retain = pairs(num_forget, seed=2), pairs(12, seed=3)
    both = Examples(torch.cat([forget.inputs, retain.inputs]), torch.cat([forget.labels, retain.labels]))
    train(
        model,
        both,
        Recipe(epochs=4, batch_size=3, lr=0.02),
        rng=torch.Generator().manual_seed(4),
        updates=updates,
    )
    return model


_trained = cache(_train)


def state_bits(model: nn.Module) -> dict[str, bytes]:
    """Every parameter and buffer as bytes, for comparison to the bit."""
    return {
        key: value.detach().contiguous().view(torch.uint8).numpy().tobytes() if value.ndim else str(value).encode()
        for key, value in model.state_dict().items()
    }
