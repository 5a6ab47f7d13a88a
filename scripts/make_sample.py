"""Cuts the embedded sample out of Fashion-MNIST: `python scripts/make_sample.py`."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from expunge.data.named import load_fashion_mnist

SIZES = {"train": 2_000, "test": 1_000}

tensors = {}
for split, size in SIZES.items():
    whole = load_fashion_mnist(split)
    tensors[f"{split}_images"] = whole.images[:size].contiguous()
    tensors[f"{split}_labels"] = whole.labels[:size].to(torch.uint8)
target = Path(__file__).parents[1] / "src/expunge/data/sample.safetensors"
save_file(tensors, target, metadata={"source": "Fashion-MNIST, first images of each split; MIT licence"})
print(f"{target}: {target.stat().st_size:,} bytes")
