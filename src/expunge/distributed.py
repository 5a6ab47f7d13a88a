"""Several processes that make one run together, as `accelerate launch` and `torchrun` start them.

Every process computes the same run from the same data and draws the same random numbers. What takes long, running
networks over many examples, is split: each process takes its rows, and what comes of them is put together. Nothing
here does anything where there is one process, or outside of `together`.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

from expunge.errors import ExpungeError, InputError, one_line

T = TypeVar("T")

PATIENCE = timedelta(minutes=30)
"""How long the others may take to come to the same point; one that ends is noticed at once."""

AUDIT_PATIENCE = timedelta(days=1)
"""The same, where one process works and the others wait."""

BUCKET_BYTES = 2**25
"""Gradients that are added up in one message, at least: many small messages are slow."""

_together: ContextVar[bool] = ContextVar("expunge_together", default=False)


class LostError(ExpungeError):
    """Another process of the run ended, or did not come to the same point."""


def processes() -> int:
    """How many processes there are in the default group; 1 where there is none."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def count() -> int:
    """How many processes split the work here: 1 outside of `together`."""
    return processes() if _together.get() else 1


def rank() -> int:
    """The number of this process among those of its group."""
    return dist.get_rank() if processes() > 1 else 0


@contextmanager
def together() -> Iterator[None]:
    """Splits the work inside the block over the processes of the default group, which must all come here."""
    token = _together.set(True)
    try:
        yield
    finally:
        _together.reset(token)


def join(device: str) -> Callable[[], bool]:
    """Joins the processes that a launcher started, each on its own GPU unless `device` is `cpu`.

    Returns what is True in the first process that calls it, and False in all that call it later.

    Raises:
        LostError: the others do not answer.
    """
    from torch.distributed.rendezvous import rendezvous

    gpus = torch.cuda.device_count() if device != "cpu" else 0
    with _answered():
        # The store outlives a process that dies: launchers hold it.
        store, number, size = next(iter(rendezvous("env://", timeout=PATIENCE)))
        if gpus:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % gpus)
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=PATIENCE)
        _control()  # while all live: to be made, a group waits for all, and to be lost, it must have been made

    def is_first_to_call() -> bool:
        try:
            return int(store.add("expunge/said", 1)) == 1
        except RuntimeError:  # nobody is left to ask
            return True

    return is_first_to_call


def leave() -> None:
    """Waits for all, and ends the group that `join` made."""
    barrier()
    _control_of.cache_clear()
    dist.destroy_process_group()


def barrier() -> None:
    """Waits until every process has come here. Raises `LostError` where one has ended."""
    if processes() > 1:
        with _answered():
            dist.barrier(group=_control())


def share(num: int) -> slice | None:
    """This process's part of `num` rows, by position; None where each does all of them, as there are too few."""
    size = count()
    if size == 1 or num < size:
        return None
    least, more = divmod(num, size)
    start = rank() * least + min(rank(), more)
    return slice(start, start + least + (rank() < more))


def summed(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes, which takes its place where it lies on their device."""
    if count() == 1:
        return tensor
    sent = tensor.to(_wire(tensor))
    with _answered():
        dist.all_reduce(sent)
    return sent.to(tensor.device)


def gathered(rows: Tensor, num: int) -> Tensor:
    """All `num` rows, (num, ...), of which this process holds those in `share(num)`."""
    if share(num) is None:
        return rows
    size = count()
    most = -(-num // size)
    sent = rows.new_zeros(most, *rows.shape[1:], device=_wire(rows))
    sent[: len(rows)] = rows
    found = [torch.empty_like(sent) for _ in range(size)]
    with _answered():
        dist.all_gather(found, sent)
    least, more = divmod(num, size)
    return torch.cat([part[: least + (number < more)] for number, part in enumerate(found)]).to(rows.device)


def agreed(value: T) -> T:
    """The first process's value: what hardware rounds differently must not part them."""
    if count() == 1:
        return value
    held: list[Any] = [value]
    with _answered():
        dist.broadcast_object_list(held, src=0, group=_control())
    found: T = held[0]
    return found


def as_first(tensors: Iterable[Tensor]) -> None:
    """Gives each tensor the first process's values."""
    if count() == 1:
        return
    for tensor in tensors:
        if tensor.numel():
            # As bytes: Gloo sends no truth values.
            sent = tensor.detach().to(_wire(tensor)).contiguous().flatten().view(torch.uint8)
            with _answered():
                dist.broadcast(sent, src=0)
            tensor.detach().copy_(sent.view(tensor.dtype).view(tensor.shape))


def as_first_model(model: nn.Module) -> None:
    """Gives each parameter and buffer the first process's values."""
    as_first([*model.parameters(), *model.buffers()])


def add_gradients(parameters: Sequence[Tensor]) -> None:
    """Sets the gradient of each parameter to the sum over all processes; of those that have none anywhere, to none."""
    if count() == 1 or not parameters:
        return
    has = summed(torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device))
    bucket: list[Tensor] = []
    for parameter, number in zip(parameters, has.tolist(), strict=True):
        if not number:
            continue
        if parameter.grad is None:  # its examples did not need it, and another's did
            parameter.grad = torch.zeros_like(parameter)
        if bucket and (bucket[0].dtype, bucket[0].device) != (parameter.dtype, parameter.device):
            _add_bucket(bucket)
        bucket.append(parameter.grad)
        if sum(held.nbytes for held in bucket) >= BUCKET_BYTES:
            _add_bucket(bucket)
    _add_bucket(bucket)


def _add_bucket(bucket: list[Tensor]) -> None:
    """Adds these gradients up over all processes, in one message, and empties the list."""
    if bucket:
        flat = summed(torch.cat([held.flatten() for held in bucket]))
        for held, part in zip(bucket, flat.split([held.numel() for held in bucket]), strict=True):
            held.copy_(part.view_as(held))
        bucket.clear()


def by_first(work: Callable[[], T]) -> T:
    """What `work` gives in the first process; the others wait for it. What it raises is raised in all of them."""
    if processes() == 1:
        return work()
    held: list[Any] = [None, None]
    if rank() == 0:
        try:
            held[0] = work()
        except ExpungeError as error:
            held[1] = error
        except Exception as error:
            held[1] = ExpungeError(f"the first process failed: {one_line(error)}")
            _tell(held)
            raise
    _tell(held)
    if held[1] is not None:
        raise held[1]
    found: T = held[0]
    return found


def _tell(held: list[Any]) -> None:
    with _answered():
        dist.broadcast_object_list(held, src=0, group=_control())


def check_alike(**given: object) -> None:
    """Raises `InputError` where the processes were given different things, each by its name."""
    if count() == 1:
        return
    found: list[Any] = [None] * count()
    with _answered():
        dist.all_gather_object(found, given, group=_control())
    other = [name for name in given if any(each.get(name) != given[name] for each in found)]
    if other:
        raise InputError(
            f"the processes of this run were given different {' and '.join(other)}: give each the same, whole and in "
            "one order (not what accelerator.prepare made of a DataLoader, which is a part)"
        )


def _control() -> Any:
    """A group of the same processes for objects, on the CPU, in which one may take long."""
    return _control_of(dist.group.WORLD)


@cache
def _control_of(_: Any) -> Any:
    return dist.new_group(backend="gloo", timeout=AUDIT_PATIENCE)


def _wire(tensor: Tensor) -> torch.device:
    """Where a tensor is to lie, to be sent: NCCL sends from GPUs alone."""
    takes_any = tensor.is_cuda or "gloo" in dist.get_backend_config()
    return tensor.device if takes_any else torch.device("cuda", torch.cuda.current_device())


@contextmanager
def _answered() -> Iterator[None]:
    """Turns what is raised where another process does not answer into a `LostError`."""
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        raise LostError(f"another process of this run ended, or does not answer ({one_line(error)})") from error


class Summed(torch.autograd.Function):
    """`summed`, and the sum of the gradients on the way back."""

    @staticmethod
    def forward(_: Any, tensor: Tensor) -> Tensor:
        """The sum over all processes, of the tensor's shape."""
        return summed(tensor.clone())

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        """The sum of what each process's loss says of it."""
        return summed(gradients[0].clone())
