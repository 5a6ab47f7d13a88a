"""Checkpoints that describe themselves: safetensors, with the model's description in the header."""

import json
import re
import warnings
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial, reduce
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from expunge.errors import InputError, SettingError, caution
from expunge.files import is_regular, is_utf8, written_whole
from expunge.models.building import Classifier, ModelSpec, Normalise, build
from expunge.models.inference import mask_names, not_finite
from expunge.models.skeleton import skeleton
from expunge.models.weight_choice import chosen_weights, own_names
from expunge.parsing import parse_json, record
from expunge.tensor_files import check_digest, write_tensors

FORMAT = "expunge-checkpoint/3"
PREFIXED = "expunge-checkpoint/2"
"""The format in which names began with `network.`."""
UNSIGNED = "expunge-checkpoint/1"
"""The format before there were digests."""
FILE_NAME = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a checkpoint says of itself.

    Attributes:
        spec: how to build the network.
        class_names: one a class.
        data: the DATA spec that it was trained on, "" where unknown.
        recipe: the settings that it was trained with, {} where unknown.
        history: one entry for each thing done to the weights: training, forgetting.
        processor: settings of the image processor of a Hugging Face model, {} for any other.
    """

    spec: ModelSpec
    class_names: tuple[str, ...]
    data: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[Mapping[str, Any], ...] = ()
    processor: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """A dict of JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Header":
        """The inverse of `to_dict`. Raises `InputError` or `SettingError` where it is none."""
        told = record(cls, {**content, "spec": ModelSpec.from_dict(content.get("spec", {}))}, "the header")
        for entry in told.history:
            for key in ("calibration_seeds", "undone_steps"):
                if not isinstance(entry.get(key, []), list) or not all(type(n) is int for n in entry.get(key, [])):
                    raise InputError(f"{key} of the history is a list of integers")
        if told.spec.num_classes and len(told.class_names) not in {0, told.spec.num_classes}:
            raise InputError(f"it has {len(told.class_names)} names for {told.spec.num_classes} classes")
        return told


def checkpoint_path(path: Path) -> Path:
    """The checkpoint file that `path`, a directory or a file, means."""
    return path / FILE_NAME if path.is_dir() else path


def save_checkpoint(path: str | Path, model: nn.Module, header: Header) -> None:
    """Writes weights and header to `path` whole or not at all. Tied weights are stored once.

    Names are those of the network itself (`own_network`), so that it takes the file as a plain state dict.
    """
    named = own_network(model).state_dict(keep_vars=True)
    first = {id(tensor): name for name, tensor in reversed(named.items())}
    # All but tied weights apart: views of one tensor are tensors of their own in a file.
    kept = {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in named.items()
        if first[id(tensor)] == name
    }
    with written_whole(Path(path)) as temporary:
        write_tensors(kept, temporary, metadata_of(header))


def own_network(model: nn.Module) -> nn.Module:
    """The network in a model that `build` or `load_model` made; any other model itself."""
    return model.own if isinstance(model, Classifier) else model


def metadata_of(header: Header) -> dict[str, str]:
    """What a file of weights says of itself: its format, as other libraries look for it too, and the header."""
    return {"format": "pt", "expunge_format": FORMAT, "expunge": json.dumps(header.to_dict(), sort_keys=True)}


def read_header(path: Path) -> Header:
    """Reads a checkpoint's description. Raises `InputError`: missing, a pickle, damaged, or not written by expunge."""
    path = checkpoint_path(path)
    found = header_in(path)
    if found is None:
        told = any((path.parent / name).exists() for name in ("config.json", "adapter_config.json"))
        hf = f" hf:{path.parent}," if told else ""
        raise InputError(
            f"{path} was not written by expunge (its header has no {FORMAT}); name the network with --model{hf} "
            "timm:NAME, torchvision:NAME or py:package.module:factory, and give this file as --weights"
        )
    return found


def header_in(path: Path) -> Header | None:
    """The header of a safetensors file, None where expunge did not write it.

    Raises `InputError`: it is missing, a pickle or damaged.
    """
    with _opened(path) as file:
        metadata = file.metadata() or {}
    told = metadata.get("expunge_format", metadata.get("format"))
    if told not in {FORMAT, PREFIXED, UNSIGNED}:
        return None
    check_digest(path, needed=told != UNSIGNED)
    return header_of(path, metadata.get("expunge", ""))


def header_of(path: Path, text: str) -> Header:
    """The header that a file holds as JSON. Raises `InputError` where it is none."""
    try:
        content = parse_json(text)
        if not isinstance(content, dict):
            raise InputError("it is no object")
        return Header.from_dict(content)
    except ValueError as error:
        raise InputError(f"{path}: the header is damaged ({error}); take another copy") from error


def load_weights(model: nn.Module, path: Path, *, allow_pickle: bool = False, key: str | None = None) -> None:
    """Copies the weights in `path` into `model`, whose names and shapes must match exactly.

    With `allow_pickle`, it may be a .pt file of a state dict, read with `weights_only=True`. `key` says which weights
    are meant, of several in the file (`chosen_weights`).

    Raises:
        InputError: missing, damaged, a pickle that was not allowed, weights that do not fit, NaN or infinity, or
            several sets of weights without a `key`.

    Warns:
        ExpungeWarning: what was left out, such as the weights of a loss function.
    """
    if path.suffix == ".safetensors":
        check_digest(path)
        with _opened(path) as file:
            content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    else:
        content = _read_pickle(path, allow_pickle)
    network = own_network(model)
    wanted = network.state_dict()
    state = chosen_weights(content, wanted, key, path)
    odd = next((name for name, value in state.items() if value.layout != torch.strided or value.is_meta), None)
    if odd is not None:
        raise InputError(f"{path}: {odd!r} is sparse, or holds no values; give plain tensors")
    state, left_out = own_names(state, wanted)
    _fill_in_ties(network, state)
    _check_fit(path, _shapes(wanted), _shapes(state))
    bad = not_finite(state.items(), mask_names(network))
    if bad is not None:
        raise InputError(f"{path}: {bad!r} holds NaN or infinity; take another checkpoint")
    state = _in_one_precision(path, wanted, state)
    dtypes = {name: value.dtype for name, value in state.items()}
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if name in dtypes and dtypes[name] != tensor.dtype:
            tensor.data = tensor.data.to(dtypes[name])
        if tensor.layout == torch.strided and 0 in tensor.stride() and tensor.numel() > 1:  # one number for all
            tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    network.load_state_dict(state)
    if left_out:
        caution([f"left out of {path}, as no part of the network: {', '.join(left_out)}"])
    normalise_in_its_dtype(model)


def check_description(path: Path, spec: ModelSpec) -> None:
    """Raises `InputError` unless a checkpoint holds what its description needs. Nothing large is built for it."""
    with _opened(path) as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    try:
        network = own_network(skeleton(partial(build, spec), len(found), path.stat().st_size))
    except SettingError as error:  # the file is at fault, not the command
        raise InputError(f"{path} cannot be built: {error}") from error
    wanted = _shapes(network.state_dict())
    found, _ = own_names(found, wanted)
    _fill_in_ties(network, found)
    _check_fit(path, wanted, found)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _check_fit(path: Path, wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
    """Raises `InputError` unless the shapes that a file holds are those of the network."""
    missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    shapes = [name for name in wanted if name in found and wanted[name] != found[name]]
    if missing or extra:
        groups = [(missing, "missing"), (extra, "unknown")]
        counts = [f"{len(names)} {what}, such as {names[0]!r}" for names, what in groups if names]
        raise InputError(f"the weights in {path} do not fit the network: of its tensors are {', and '.join(counts)}")
    if shapes:
        name = shapes[0]
        raise InputError(
            f"the weights in {path} do not fit the network: {name!r} is {found[name]}, the network's is {wanted[name]}"
        )


def normalise_in_its_dtype(model: nn.Module) -> None:
    """Gives the buffers of `Normalise` the dtype of the weights: they are none, but what it hands on must have it."""
    kind = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    for module in model.modules():
        if isinstance(module, Normalise):
            module.to(kind)


def _in_one_precision(path: Path, wanted: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights, floats of several precisions as the widest of them: no layer takes a mixture."""
    for name, value in state.items():
        if wanted[name].is_floating_point() and (not value.is_floating_point() or value.itemsize < 2):
            raise InputError(f"{path}: {name!r} is {value.dtype}; give weights in floats of 16 bits or more")
    if all(value.dtype == wanted[name].dtype for name, value in state.items()):
        return state
    floats = {value.dtype for value in state.values() if value.is_floating_point()}
    widest = reduce(torch.promote_types, floats)
    return {name: value.to(widest) if value.is_floating_point() else value for name, value in state.items()}


def _fill_in_ties(model: nn.Module, state: dict[str, Any]) -> None:
    """Gives each tied name the tensor that was stored under another of its names."""
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    for tied in names.values():
        stored = next((name for name in tied if name in state), None)
        if stored is not None:
            state.update(dict.fromkeys(tied, state[stored]))


def _opened(path: Path) -> Any:
    if not is_regular(path):
        raise InputError(f"there is no checkpoint {path}; check the path")
    if not is_utf8(str(path)):
        raise InputError(f"{path} is not UTF-8, which safetensors needs; rename it")
    with path.open("rb") as file:
        start = file.read(9)
    # A safetensors file is the header's length in eight bytes, then "{". Those bytes can spell a pickle's first two.
    if start[8:] != b"{" and (start[:2] == b"PK" or start[:1] == b"\x80"):
        raise InputError(
            f"{path} is a pickle, which can run any code while it loads; convert it to safetensors, or give it as "
            "--weights with --allow-pickle, which loads tensors and nothing else"
        )
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a whole safetensors file ({error}); take another copy") from error


def _read_pickle(path: Path, allowed: bool) -> dict[Any, Any]:
    if not is_regular(path):
        raise InputError(f"there is no file {path}; check the path")
    if not allowed:
        raise InputError(
            f"{path} is not a .safetensors file; convert it, or add --allow-pickle, which loads tensors and "
            "nothing else"
        )
    try:
        # Trainings keep their arguments beside the weights, in a Namespace: a bare record, without code that would run.
        # The warnings are of the pickle's age, beside the error below.
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals([Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile pickle raises many types
        culprit = re.search(r"GLOBAL ([\w.]+)", str(error))
        held = f" (it holds a {culprit[1]}, and may hold code)" if culprit else ""
        raise InputError(
            f"{path} cannot be loaded with weights_only=True{held}; where you trust the file, convert its "
            "state dict to safetensors"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path} does not hold a state dict (names and tensors)")
    return content


# What a model says of what was done to it, so that nothing is done or counted twice. Every module of it is marked: what
# users wrap a network in, or take out of a wrapper, has seen the same. A bare state dict has no marks.
_CALIBRATED = "calibration_seeds"
_UNDONE = "undone_steps"


def calibration_seeds(model: nn.Module) -> tuple[int, ...]:
    """The seeds of the splits whose calibration sides the model has seen; () for any other model."""
    return _marked(model, _CALIBRATED)


def says_calibration(model: nn.Module) -> bool:
    """Whether the model says what it was calibrated on, be it nothing: one from a bare state dict does not."""
    return any(hasattr(module, _CALIBRATED) for module in model.modules())


def mark_calibrated(model: nn.Module, *seeds: int) -> None:
    """Adds splits to those that the model has seen."""
    _mark(model, _CALIBRATED, seeds)


def undone_steps(model: nn.Module) -> tuple[int, ...]:
    """The steps of the training whose updates were taken back, once and for all; () for any other model."""
    return _marked(model, _UNDONE)


def mark_undone(model: nn.Module, *steps: int) -> None:
    """Adds steps to those that were taken back."""
    _mark(model, _UNDONE, steps)


def _marked(model: nn.Module, name: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(value for module in model.modules() for value in getattr(module, name, ())))


def _mark(model: nn.Module, name: str, values: tuple[int, ...]) -> None:
    marked = tuple(dict.fromkeys((*_marked(model, name), *values)))
    for module in model.modules():
        setattr(module, name, marked)
