"""How much memory large sets take.

    python -m experiments memory

Each line is a process of its own, which notes the highest anonymous memory (RssAnon) above that before the call: what
cannot be moved out of memory. Images come from a function or a file, one at a time. Writes results/memory.json.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from experiments import places
from experiments.commit import origin
from experiments.markdown import sourced
from expunge.markdown import markdown

TARGET = places.ROOT / "results" / "memory.json"
CASES: dict[str, dict[str, Any]] = {
    "forget 100, 500 unseen, 224 × 224 in float32": {"forget": 100, "test": 500},
    "forget 100, 1,000 unseen, 224 × 224 in float32": {"forget": 100, "test": 1000},
    "forget 10,000, 32 × 32 in uint8": {"forget": 10_000, "side": 32},
    "forget 100,000, 32 × 32 in uint8": {"forget": 100_000, "side": 32},
}


class Drawn(Dataset[tuple[Tensor, int]]):
    """Images of noise, float32 (3, 224, 224), made when they are read."""

    def __init__(self, num: int, seed: int) -> None:
        self.num, self.seed = num, seed

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        rng = torch.Generator().manual_seed(self.seed * 10**6 + index)
        return torch.rand(3, 224, 224, generator=rng), index % 10


class OnDisk(Dataset[tuple[Tensor, int]]):
    """Images of noise, uint8 (3, side, side), in a file."""

    def __init__(self, path: Path, num: int, side: int) -> None:
        self.images = np.memmap(path, np.uint8, "w+", shape=(num, 3, side, side))
        rng = np.random.default_rng(0)
        for n in range(0, num, 1000):
            self.images[n : n + 1000] = rng.integers(0, 256, self.images[n : n + 1000].shape, np.uint8)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.from_numpy(self.images[index].copy()), index % 10


class Scaled(nn.Module):
    """A small network of images of any size, floats in [0, 1] or bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.head = nn.Linear(128, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images if images.is_floating_point() else images.float() / 255))
        return logits


def anonymous() -> int:
    """Bytes of this process that no file holds."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def case(name: str) -> dict[str, float]:
    """Runs one case in this process: the highest memory above that before, bytes, and seconds."""
    import expunge

    warnings.simplefilter("ignore", expunge.ExpungeWarning)
    told, model, method = CASES[name], Scaled(), expunge.Targeted(epochs=2, batch_size=64, lr=1e-4)
    with tempfile.TemporaryDirectory() as directory:
        side = told.get("side")
        forget: Any = OnDisk(Path(directory, "images"), told["forget"], side) if side else Drawn(told["forget"], 1)
        expunge.unlearn(model, [forget[n] for n in range(8)], method=method)  # what is loaded on first use
        before, peak, done = anonymous(), [0], threading.Event()

        def watch() -> None:
            while not done.wait(0.005):
                peak[0] = max(peak[0], anonymous() - before)

        watcher = threading.Thread(target=watch)
        watcher.start()
        started = time.perf_counter()
        if side:
            expunge.unlearn(model, forget, method=method)
        else:
            settings = expunge.AuditSettings(reference_minutes=0)
            expunge.forget(model, forget, test=Drawn(told["test"], 2), method=method, settings=settings)
        seconds = time.perf_counter() - started
        done.set()
        watcher.join()
    return {"bytes": peak[0], "seconds": seconds}


def main() -> None:
    """Measures all cases, or prints one."""
    if len(sys.argv) > 1:
        print(json.dumps(case(sys.argv[1])))
        return
    made, found = origin(), {}
    for name in CASES:
        command = [sys.executable, "-m", "experiments.speed.memory", name]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found[name] = json.loads(output.splitlines()[-1])
        print(name, found[name])
    TARGET.write_text(json.dumps({"cases": found, **made}, indent=2) + "\n")


def table() -> str:
    """What was measured."""
    record = json.loads(TARGET.read_text())
    rows = [[name, f"{each['bytes'] / 1e9:.2f}", f"{each['seconds']:.0f}"] for name, each in record["cases"].items()]
    return sourced(markdown(["what", "GB", "seconds"], rows), record, "`python -m experiments memory`")


if __name__ == "__main__":
    main()
