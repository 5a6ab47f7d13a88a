"""Running a network: on a copy of its input, with logits in floats, and with a clear word where it refuses."""

import platform
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from expunge.distributed import as_first_model, gathered, share
from expunge.errors import ExpungeError, InputError, NotEnoughMemoryError, one_line
from expunge.models.adapter import Adapted, logits_in
from expunge.models.copies import copied

SHAPING = ("Stack", "View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Select", "Slice", "ToCopy", "Clone")
"""What the names of operations begin with that give an output another shape or precision, and no other values."""

BATCH_BYTES = 2**25
"""The most that a batch of inputs takes up, beside what the model makes of it."""


def as_float(logits: object) -> Tensor:
    """The logits in an output (`logits_in`) in float32, or in float64 where the model computes in it."""
    # Inside of another autocast its copies of the weights would be kept, and no later pass would see an update.
    torch.clear_autocast_cache()
    found = logits_in(logits)
    return found if found.dtype == torch.float64 else found.float()


def forward(model: nn.Module, inputs: Tensor) -> Tensor:
    """What `as_float` makes of the model's output. It gets a copy of `inputs`: some models change theirs in place."""
    return as_float(model(inputs.clone()))


def check_no_sigmoid(model: nn.Module, inputs: Tensor, num_classes: int) -> None:
    """Raises `InputError` where a model of one output ends in a sigmoid: what it gives would be taken for a logit.

    The graph of the gradient tells, for two of `inputs` (N, ...). Only a model of two classes, of its `num_classes`,
    is run: one output becomes two logits. Modes are put back.
    """
    if num_classes != 2:
        return
    modes = {module: module.training for module in model.modules()}
    device, dtype = device_and_dtype(model)
    batch = inputs[:2].to(device, dtype) if inputs.is_floating_point() else inputs[:2].to(device)
    try:
        with torch.enable_grad(), refusing(batch, "the forget set"):
            node: Any = forward(model.eval(), batch).grad_fn
    finally:
        for module, training in modes.items():
            module.training = training
    one = type(node).__name__.startswith("Stack")  # of the two logits that one becomes
    while node is not None and type(node).__name__.startswith(SHAPING):
        node = next((before for before, _ in node.next_functions if before is not None), None)
    if one and type(node).__name__.startswith("Sigmoid"):
        raise InputError(
            "the model's one output is a probability, that of a sigmoid, and a logit is needed: leave the sigmoid out, "
            "or give expunge.WithOutput(model, lambda p: torch.logit(p, 1e-6))"
        )


def in_precision(precision: str, model: nn.Module) -> AbstractContextManager[Any]:
    """Where models of this one's device run under autocast in bfloat16, if `precision` is `bf16`."""
    return torch.autocast(device_and_dtype(model)[0].type, torch.bfloat16, enabled=precision == "bf16")


def logits_of(
    model: nn.Module,
    inputs: Tensor,
    batch_size: int = 500,
    run: Callable[[nn.Module, Tensor], Tensor] = forward,
) -> Tensor:
    """Logits (N, C), float32 or float64, of `inputs` (N, ...), without gradients. Leaves `model` in eval mode.

    `run` makes them of a batch: of `batch_size` inputs, or fewer where they take more than `BATCH_BYTES`, or memory
    does not suffice.
    """
    model.eval()
    with torch.no_grad():  # not in inference mode: a tensor that the model keeps must serve training still
        size = min(batch_size, max(1, BATCH_BYTES // max(1, inputs[:1].nbytes)))
        parts = (part for batch in inputs.split(size) for part in _in_memory(lambda given: run(model, given), batch))
        # Into one tensor as they come: small ones that stay between large ones that go would break memory into pieces.
        found, done = next(parts), 0
        together = found.new_empty(max(len(inputs), len(found)), *found.shape[1:])
        for logits in chain([found], parts):
            if done + len(logits) > len(together):  # more rows than inputs: the caller counts them
                together = torch.cat([together[:done], logits])
            together[done : done + len(logits)] = logits
            done += len(logits)
        return together[:done]


def split_logits_of(
    model: nn.Module,
    inputs: Tensor,
    batch_size: int = 500,
    run: Callable[[nn.Module, Tensor], Tensor] = forward,
) -> Tensor:
    """`logits_of`, to which each process of a run gives its share: all must come here. Hooks see this process's."""
    part = share(len(inputs))
    if part is None:
        return logits_of(model, inputs, batch_size, run)
    return gathered(logits_of(model, inputs[part], batch_size, run), len(inputs))


def _in_memory(run: Callable[[Tensor], Tensor], batch: Tensor) -> list[Tensor]:
    """What `run` makes of a batch (N, ...), or, where memory does not suffice, of its halves, their halves, ..."""
    try:
        return [run(batch)]
    except Exception as error:
        if len(batch) == 1 or not _is_of_memory(error):
            raise
    # Out of the handler: the traceback holds what was computed.
    return [made for half in batch.split((len(batch) + 1) // 2) for made in _in_memory(run, half)]


@contextmanager
def refusing(inputs: Tensor, where: str) -> Iterator[None]:
    """Turns what a model raises inside the block, a forward pass over `inputs` (N, ...), into an `InputError`.

    Its line begins with `where`, such as the set's name.
    """
    try:
        yield
    except ExpungeError:
        raise
    except Exception as error:  # the model's own code runs here, and may raise anything
        if _is_of_memory(error):
            raise
        shape, way = tuple(inputs.shape[1:]), ""
        if inputs.dtype == torch.uint8 and inputs.ndim > 2:
            way = "; pixels are integers: give them by the transforms that the model was trained with"
        raise InputError(f"{where}: the model cannot take inputs of shape {shape}: {one_line(error)}{way}") from error


@contextmanager
def enough_memory(advice: str) -> Iterator[None]:
    """Turns what says inside the block that memory ran out into a `NotEnoughMemoryError`, which ends with `advice`."""
    try:
        yield
    except NotEnoughMemoryError:
        raise
    except Exception as error:
        if not _is_of_memory(error):
            raise
        raise NotEnoughMemoryError(f"there is not enough memory for what is computed at once: {advice}") from error


def _is_of_memory(error: Exception) -> bool:
    # On CPUs, torch raises a plain RuntimeError.
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)


def built_by(factory: Callable[[], nn.Module], like: nn.Module) -> nn.Module:
    """What `factory` builds, on the device and in the precision of `like`, which is float32 or float64.

    It is a copy, since a factory may hand out what others hold. Raises `InputError` where it fails, and where most of
    its weights are those of `like`: it is to be a network that has learned nothing.
    """
    device, dtype = device_and_dtype(like)
    try:
        with torch.device("cpu"):  # whatever the caller's default is: one seed is to give one network
            network = factory()
    except ExpungeError:
        raise
    except Exception as error:  # the user's own code runs here, and may raise anything
        raise InputError(f"the factory failed: {one_line(error)}") from error
    if not isinstance(network, nn.Module):
        raise InputError(f"the factory must build a torch.nn.Module, not {type(network).__name__}")
    try:
        network = copied(network).to(device)
    except Exception as error:
        raise InputError(f"what the factory builds cannot be copied: {one_line(error)}") from error
    network = network.double() if dtype == torch.float64 else network.float()  # complex and integer tensors stay so
    _check_fresh(network, like)
    as_first_model(network)
    return network


def _check_fresh(network: nn.Module, like: nn.Module) -> None:
    """Raises `InputError` where most of a network's tensors are those that another one was trained to.

    Frozen ones do not count, which no training moved, and neither do those that all networks begin with, such as zeros.
    """
    trained = {name: p.detach() for name, p in like.named_parameters() if p.requires_grad}
    same = [
        _is_same(p.detach(), trained[name])
        for name, p in network.named_parameters()
        if name in trained and not isinstance(p, nn.UninitializedParameter) and bool((p != p.flatten()[:1]).any())
    ]
    if 2 * sum(same) > len(same):
        raise InputError(
            f"the factory gives no fresh weights: {sum(same)} of its {len(same)} tensors are the trained model's; "
            "build the network with random weights, from its class"
        )


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal, or one is what the other is in half precision."""
    if one.shape != other.shape:
        return False
    kinds = (torch.bfloat16, torch.float16) if one.is_floating_point() else ()
    return torch.equal(one, other) or any(torch.equal(one.to(kind), other.to(kind)) for kind in kinds)


def check_same_network(other: nn.Module, model: nn.Module) -> None:
    """Raises `InputError` unless parameters and saved buffers have the same names and shapes.

    Buffers that are not saved may be made by a model when it first runs, and so may lazy parameters.
    """
    if any(isinstance(parameter, nn.UninitializedParameter) for parameter in other.parameters()):
        return
    parameters = [{name: p.shape for name, p in net.named_parameters()} for net in (other, model)]
    saved = [{k: v.shape for k, v in net.state_dict().items() if isinstance(v, Tensor)} for net in (other, model)]
    changed = [name for name in saved[0] if saved[1].get(name, saved[0][name]) != saved[0][name]]
    if parameters[0] != parameters[1] or changed:
        raise InputError("the factory builds another network than the model; give the model's own")


def computes_in_bf16(device: torch.device) -> bool:
    """Whether it has instructions for bf16. A CPU without them takes many times as long as in fp32."""
    if device.type != "cpu":
        return True
    known = getattr(torch.cpu, "get_capabilities", None)  # not in every torch that we take
    if known is None:
        return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())
    return any(there is True for name, there in known().items() if "bf16" in name)


def slow_in(precision: str, device: torch.device) -> list[str]:
    """What to know of a run in `precision` there: one sentence, or none."""
    slow = precision == "bf16" and not computes_in_bf16(device)
    return ["this processor has no instructions for bf16: precision=fp32 is many times as quick"] if slow else []


def device_name(device: torch.device) -> str:
    """What a record calls it: the GPU's name, or the processor's with its number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def device_and_dtype(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Those of the first floating-point parameter, or of the first. Raises `InputError` for none, or without values."""
    reference = next(model.parameters(), None)
    if reference is None:
        raise InputError("the model has no parameters, so that there is nothing to train, forget or audit")
    for parameter in model.parameters():
        if parameter.is_meta or isinstance(parameter, nn.UninitializedParameter):
            raise InputError("the model's parameters hold no values yet; load its weights, or run it on a batch, first")
    floating = (parameter for parameter in model.parameters() if parameter.is_floating_point())
    reference = next(floating, reference)
    if isinstance(model, Adapted) and model.packs_rows:
        return reference.device, torch.promote_types(reference.dtype, torch.float32)
    return reference.device, reference.dtype


def last_layer(model: nn.Module) -> str:
    """The name of the last linear layer, or of the last module with parameters where there is none."""
    modules = dict(model.named_modules())
    owners = [name for name, module in modules.items() if any(True for _ in module.parameters(recurse=False))]
    linear = [name for name in owners if isinstance(modules[name], nn.Linear)]
    last: str = (linear or owners)[-1]
    return last


def mask_names(model: nn.Module) -> set[str]:
    """The buffers in which −inf may stand, as it says what may not be attended to: all but running statistics."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if not isinstance(module, nn.modules.batchnorm._NormBase)
        for name, _ in module.named_buffers(recurse=False)
    }


def not_finite(tensors: Iterable[tuple[str, Tensor]], masks: Collection[str] = ()) -> str | None:
    """The name of the first tensor that holds NaN or infinity, None where there is none; −inf may stand in `masks`."""
    for name, tensor in tensors:
        if tensor.is_floating_point() and tensor.dtype.itemsize == 1:
            tensor = tensor.float()  # of which torch computes no sums
        if not (tensor.is_floating_point() or tensor.is_complex()) or bool(torch.isfinite(tensor.sum())):
            continue  # a sum is finite only where every term is, and much quicker than looking at each
        bad = ~torch.isfinite(tensor)
        if name in masks and tensor.is_floating_point():
            bad &= ~torch.isneginf(tensor)
        if bool(bad.any()):
            return name
    return None
