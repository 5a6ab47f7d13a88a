"""The same number of steps by another library and by ours: CPU seconds, one after the other in one process.

python -m experiments.peers.steps NAME EPOCHS
"""

import copy
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import expunge
from experiments.peers.candidates import BY_NAME, check_installed
from experiments.peers.job import CLASSES, ORIGINAL, SEEDS, job, trained
from experiments.peers.measuring import main, quiet
from expunge.errors import MissingExtraError

REPEATS, BATCH, LR = 5, 100, 1e-4
EPOCHS = (5, 100)
"""Passes over the 200 images, two steps each."""


def torchunlearn(trainer: str, model: nn.Module, forget: TensorDataset, epochs: int) -> int:
    """Steps of momentum by one of its trainers; returns their number."""
    import torchunlearn.unlearn
    from torchunlearn.utils.data import MergedLoaders

    loaders = MergedLoaders({"Forget": DataLoader(forget, BATCH, shuffle=True)})
    made = getattr(torchunlearn.unlearn, trainer)(torchunlearn.RobModel(model, n_classes=CLASSES))
    made.setup(optimizer=f"SGD(lr={LR}, momentum=0.9, weight_decay=5e-4)", n_epochs=epochs)
    made.fit(train_loaders=loaders, n_epochs=epochs)
    return int(made.accumulated_iter)


def erasus(strategy: str, model: nn.Module, forget: TensorDataset, epochs: int) -> int:
    """Steps of plain gradient descent by one of its strategies; returns their number."""
    from erasus import ErasusUnlearner

    loader = DataLoader(forget, BATCH, shuffle=True)
    done = ErasusUnlearner(model=model, strategy=strategy).fit(loader, epochs=epochs)
    return len(loader) * len(done.forget_loss_history)


def ours(method: str, model: nn.Module, forget: TensorDataset, epochs: int, **settings: Any) -> int:
    """The same steps by `expunge.unlearn`."""
    chosen = expunge.make_method(method, optimizer="sgd", lr=LR, batch_size=BATCH, epochs=epochs, **settings)
    return expunge.unlearn(model, forget, method=chosen).trace.steps


MOMENTUM: dict[str, Any] = {"momentum": 0.9, "weight_decay": 5e-4}
PAIRS: dict[str, tuple[Callable[..., int], str, dict[str, Any]]] = {
    "torchunlearn NegGrad": (torchunlearn, "neg_grad", MOMENTUM),
    "torchunlearn RandomLabel": (torchunlearn, "random_label", MOMENTUM),
    "erasus gradient_ascent": (erasus, "neg_grad", {"weight_decay": 0.0}),
}
"""{library and method: (the function above, our method, its settings)}."""


def compared(name: str, epochs: int) -> dict[str, Any]:
    """Median CPU seconds of each, and the median, lowest and highest ratio of ours to theirs."""
    warnings.simplefilter("ignore")
    try:
        check_installed(BY_NAME[name])
    except MissingExtraError as error:
        return {"missing": str(error)}
    theirs, method, settings = PAIRS[name]
    model, forget = trained(ORIGINAL), job(SEEDS[0]).forget
    pairs, steps = [], set()
    for n in range(REPEATS + 1):
        own = copy.deepcopy(model)
        runs = (
            partial(theirs, name.split()[1], own, forget, epochs),
            partial(ours, method, model, forget, epochs, **settings),
        )
        taken = []
        for run in runs:
            started = time.process_time()
            with quiet():
                steps.add(run())
            taken.append(time.process_time() - started)
        if n:  # the first is for what is loaded on first use
            pairs.append(taken)
    assert len(steps) == 1, f"{name} made another number of steps: {steps}"
    ratios = [mine / other for other, mine in pairs]
    return {
        "steps": steps.pop(),
        "ours": method,
        "their_cpu_seconds": statistics.median(other for other, _ in pairs),
        "our_cpu_seconds": statistics.median(mine for _, mine in pairs),
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
    }


if __name__ == "__main__":
    main(compared)
