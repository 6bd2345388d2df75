"""Several processes that ``torchrun`` started: the only file that uses ``torch.distributed``.

Every process runs the same command on its share of the work, and sends its results to the first one, which alone
writes files and prints. Tensors on the CPU travel by gloo, those on a GPU by nccl. Without ``torchrun`` a world has one
process, and all that is here does nothing.
"""

from __future__ import annotations

import json
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from gmtool.errors import UserError
from gmtool.runtime import resolve_device

CPU = torch.device("cpu")

PATIENCE = timedelta(days=1)
"""Time that a process waits for the others, one of whom may be writing a large file; a process that died is noticed at
once all the same."""


@dataclass(frozen=True)
class World:
    """This process's number among ``size``, from 0, and the device that it computes on."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """This process's part of ``count`` items in a row: parts follow the ranks and differ in size by one at most."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def rows(self, count: int) -> slice:
        """`share` as a slice, to index a tensor or array (count, ...) with."""
        return slice(self.share(count).start, self.share(count).stop)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes of tensors (...) of one shape, in every process."""
        if self.size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes of tensors (...) of one shape, in every process, without waiting for a GPU."""
        return self.sum(values) / self.size

    def any(self, here: bool) -> bool:
        """Whether ``here`` is true in some process; every process gets the same answer."""
        return self.sum(torch.tensor(int(here))).item() > 0

    def broadcast(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The first process's tensors (...) by name, on the CPU, in every process; what the others give is ignored.

        A single process gets its tensors back as they are.
        """
        if self.size == 1:
            return dict(tensors)
        message = _pack(tensors) if self.first else torch.empty(0, dtype=torch.uint8)
        size = torch.tensor(len(message))
        dist.broadcast(size, src=0)
        message = message if self.first else torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(message, src=0)
        return _unpack(message)

    def tell(self, value: Any) -> Any:
        """The first process's value, of JSON, in every process; what the others give is ignored.

        What the first one finds on the disk, or decides, then holds for all. A single process gets its value as it is.
        """
        if self.size == 1:
            return value
        return _value_of(self.broadcast({_JSON: _bytes_of(value)} if self.first else {})[_JSON])

    def failure(self, here: str | None) -> str | None:
        """The message of the process of lowest rank that failed, in every process; None where none did.

        here: this process's message, None where it did not fail.
        """
        gathered = self.gather({_JSON: _bytes_of(here)})
        messages = (_value_of(part[_JSON]) for part in gathered)
        return self.tell(next((message for message in messages if message is not None), None))

    def gather(self, tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """The tensors (...) of every process by name, in the order of ranks, for the first process; [] for the others.

        Those of other processes arrive on the CPU, and may differ from its own in names and shapes.
        """
        if self.size == 1:
            return [dict(tensors)]
        if self.first:
            return [dict(tensors), *(_receive(rank) for rank in range(1, self.size))]
        message = _pack(tensors)
        dist.send(torch.tensor(len(message)), dst=0)
        dist.send(message, dst=0)
        return []

    def collect(self, values: Tensor) -> Tensor:
        """The rows (n, ...) of all processes, equally many in each, concatenated in the order of ranks: (size n, ...).

        Every process gets all of them.
        """
        if self.size == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    def assemble(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors (...) by name for the first process, sharded ones whole and on the CPU; {} for the others.

        All processes call this together.
        """
        assembled = {}
        for name, tensor in tensors.items():
            values = whole(tensor)
            if self.first:
                # a sharded one comes as a promise, which a copy waits for
                assembled[name] = values.clone().cpu() if is_sharded(tensor) else values
        return assembled

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.any(False)

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """A context that the others enter only once the first process has left it, so that they find what it made."""
        if not self.first:
            self.barrier()
        yield
        if self.first:
            self.barrier()


ALONE = World()
"""One process, on the CPU."""


_JSON = "json"


def _bytes_of(value: Any) -> Tensor:
    """A value of JSON as one row of bytes."""
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _value_of(message: Tensor) -> Any:
    return json.loads(message.numpy().tobytes())


def _pack(tensors: Mapping[str, Tensor]) -> Tensor:
    """Named tensors as one row of bytes."""
    return torch.frombuffer(
        bytearray(save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})),
        dtype=torch.uint8,
    )


def _unpack(message: Tensor) -> dict[str, Tensor]:
    return load(message.numpy().tobytes())


def _receive(rank: int) -> dict[str, Tensor]:
    size = torch.tensor(0)
    dist.recv(size, src=rank)
    message = torch.empty(int(size), dtype=torch.uint8)
    dist.recv(message, src=rank)
    return _unpack(message)


def under_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def neighbours() -> int:
    """Processes that torchrun started on this machine, this one included."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def join(device: str) -> World:
    """The world of this process, with the device that ``--device`` names; each process of a machine has its own GPU.

    Raises UserError for a device that is not there, or that several processes would share.
    """
    if not dist.is_initialized():
        alone = resolve_device(device)
        if alone.type == "cuda":
            torch.cuda.set_device(alone)  # pinned memory and compiled kernels are made for the current device
        return World(device=alone)
    rank, size = dist.get_rank(), dist.get_world_size()
    here = neighbours()
    if here > 1 and device.startswith("cuda:"):
        raise UserError(f"--device {device}: {here} processes would share it; use --device cuda")
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        gpus = torch.cuda.device_count()
        if 0 < gpus < here:
            raise UserError(f"{here} processes, but {gpus} GPUs here: torchrun --nproc-per-node {gpus}")
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    own = resolve_device(device)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    return World(rank, size, own)


@contextmanager
def process_group() -> Iterator[Callable[[], bool]]:
    """The processes that torchrun started, as one group, in which only the first prints on standard output and error.

    Yields a function that a failing process calls; it returns whether this process is the first to fail, and hence the
    one that reports the error: the others fail because of it. After a failure the group is not shut down in order,
    since the others may be waiting forever; torchrun stops them once this process is gone.
    """
    signal.signal(signal.SIGINT, _interrupt_once)
    store, rank, size = next(iter(rendezvous("env://", timeout=PATIENCE)))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    failures: list[bool] = []

    def first_to_fail() -> bool:
        failures.append(True)
        try:
            first = store.add("failures", 1) == 1
        except RuntimeError:  # torchrun, which holds the store, is gone
            return True
        if not first:
            time.sleep(1.0)  # torchrun stops all when one has gone: let the first say why
        return first

    with ExitStack() as stack:
        if rank:
            silence = stack.enter_context(Path(os.devnull).open("w"))
            stack.enter_context(redirect_stdout(silence))
            stack.enter_context(redirect_stderr(silence))
        yield first_to_fail
    if not failures:
        dist.destroy_process_group()


def _interrupt_once(_number: int, _frame: FrameType | None) -> None:
    """Ctrl-C reaches the processes from the terminal, and again through torchrun: the second is no impatience."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def replicate(network: nn.Module) -> DistributedDataParallel:
    """A wrapper of a network that every process holds whole: gradients of calls through it are means over processes."""
    return DistributedDataParallel(network, gradient_as_bucket_view=True)


def shard(network: nn.Module, world: World) -> None:
    """Shard a network's parameters over processes, in place (FSDP2); those of a block are gathered while it runs."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # our networks' outputs are not written to
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
    mesh = init_device_mesh(world.device.type, (world.size,))
    for blocks in list(network.modules()):
        if isinstance(blocks, nn.ModuleList):
            for block in blocks:
                fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


@contextmanager
def holding_shards(network: Any) -> Iterator[None]:
    """A context in which backward passes of a sharded network accumulate gradients without communication."""
    network.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        network.set_requires_gradient_sync(True)


def is_sharded(values: Tensor) -> bool:
    """Whether every process holds a part of the tensor."""
    if not dist.is_initialized():
        return False
    from torch.distributed.tensor import DTensor  # a second to import

    return isinstance(values, DTensor)


def whole(values: Any) -> Tensor:
    """A sharded tensor (...) put together from all processes' parts, a collective call; other tensors unchanged."""
    return values.full_tensor() if is_sharded(values) else values


def local(values: Any) -> Tensor:
    """This process's part of a sharded tensor, a view of the tensor's memory; other tensors unchanged."""
    return values.to_local() if is_sharded(values) else values


def sharded_like(values: Tensor, like: Any) -> Tensor:
    """A tensor (...) that is equal in all processes, sharded as ``like`` is, if that is sharded and of its shape."""
    if not is_sharded(like) or like.shape != values.shape:
        return values
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(values, like.device_mesh, like.placements)
