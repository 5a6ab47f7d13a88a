"""What tells one model from another in a record: a digest of its tensors."""

from hashlib import sha256

import torch
from torch import Tensor, nn

from expunge.models.adapter import unwrapped
from expunge.models.checkpoint import own_network


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of the names, types, shapes and bits of all parameters and buffers, 64 hexadecimal digits.

    It is the same on every device, and for a model that was saved and loaded again with the same types: by
    `expunge.load_model`, or by the library that it is of. It is not the digest of a file.

    >>> fingerprint(nn.Identity())[:8]
    'e3b0c442'
    """
    found = sha256()
    for name, tensor in sorted(own_network(unwrapped(model)).state_dict().items()):
        if isinstance(tensor, Tensor):  # a module may keep other things in its state
            flat = tensor.detach().cpu().contiguous().flatten()
            found.update(f"{name} {flat.dtype} {tuple(tensor.shape)} ".encode())
            found.update(flat.view(torch.uint8).numpy().data)
    return found.hexdigest()
