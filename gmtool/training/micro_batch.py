"""The micro-batch size: as asked, or the largest that fits on the GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from gmtool.distributed import World
from gmtool.errors import MachineError, UserError, is_out_of_memory
from gmtool.progress import Progress


class Rehearsing(Protocol):
    """A stepper whose memory can be tried out."""

    @property
    def world(self) -> World:
        """The processes that share a step."""

    @property
    def parameters(self) -> Sequence[Tensor]:
        """The trained parameters."""

    @property
    def lighter(self) -> str:
        """What to use where not even one sample fits, for messages."""

    def rehearse(self, size: int, count: int, device: torch.device) -> None:
        """Compute a gradient as a step on ``count`` samples does, ``size`` at once and within this process."""

    def zero_grad(self) -> None:
        """Drop the gradients."""


MARGIN = 0.05
"""Share of the GPU's memory that a trial leaves free, for what is not tried: other kernels, fragments."""


def divisors(count: int) -> list[int]:
    """The divisors of ``count``, the largest first."""
    return [size for size in range(count, 0, -1) if count % size == 0]


def check_shares(batch: int, world: World) -> None:
    """Raise UserError, with a batch size near it, where the processes cannot share a batch."""
    if batch % world.size:
        near = max(1, round(batch / world.size)) * world.size
        raise UserError(f"--batch-size {batch} is not divisible by {world.size} processes; use {near}")


def tell_micro_batch(size: int | None, batch: int, world: World, progress: Progress) -> None:
    """Note how many images each process computes at once, where these are not a whole batch."""
    if size != batch:
        processes = f" in each of {world.size} processes" if world.size > 1 else ""
        progress.note(f"{size} images at once{processes}, {batch} a step")


def choose_micro_batch(
    stepper: Rehearsing, wanted: str, count: int, device: torch.device, estimate: Callable[[int], int] | None = None
) -> int:
    """The micro-batch size of a process that has ``count`` samples per step; wanted: --micro-batch, a number or auto.

    estimate: number of samples -> about the bytes that they take; the choice then relies on it, without a trial, and is
    1 where nothing fits. It is for a sharded network, which a trial that runs out of memory would leave in the middle
    of its communication.

    Raises UserError when ``wanted`` does not divide ``count``, MachineError when a trial finds that not even one sample
    fits.
    """
    if wanted != "auto":
        size = int(wanted)
        if count % size:
            near = next(divisor for divisor in divisors(count) if divisor <= size)
            raise UserError(f"--micro-batch {size} does not divide the {count} images of a step: use {near}")
        return size
    if device.type != "cuda":
        return count
    if estimate is not None:
        available = torch.cuda.mem_get_info(device)[0] - _spare_bytes(device)
        return next((size for size in divisors(count) if estimate(size) <= available), 1)
    return largest_that_fits(stepper, count, device)


def expected_micro_batch(wanted: str, count: int, device: torch.device, estimate: Callable[[int], int]) -> int:
    """The micro-batch size that `choose_micro_batch` is expected to choose for ``count`` samples per step, untried.

    estimate: number of samples -> about the bytes that they take. The whole memory of the GPU counts as free.
    """
    if wanted != "auto":
        return int(wanted)
    if device.type != "cuda":
        return count
    total = torch.cuda.mem_get_info(device)[1]
    return next((size for size in divisors(count) if estimate(size) <= total), 1)


def largest_that_fits(stepper: Rehearsing, count: int, device: torch.device) -> int:
    """The largest divisor of ``count`` that fits as micro-batch size beside all that training keeps, by trial.

    Raises MachineError when not even one sample fits.
    """
    # compiled, every size that is tried would be compiled anew, and the last one for sizes that vary
    with torch.compiler.set_stance("force_eager"):
        for size in divisors(count):
            # all processes take the same size
            if not stepper.world.any(not _fits(stepper, size, count, device)):
                return size
    raise MachineError(f"a single image does not fit on the GPU: use {stepper.lighter}")


def _fits(stepper: Rehearsing, size: int, count: int, device: torch.device) -> bool:
    """Whether a batch of ``count`` data gives a gradient, ``size`` at once. Afterwards there is no gradient."""
    try:
        moments = [torch.empty_like(parameter) for parameter in stepper.parameters for _ in range(2)]
        spare = torch.empty(_spare_bytes(device), dtype=torch.uint8, device=device)
        stepper.rehearse(size, count, device)
        del moments, spare
        return True
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        stepper.zero_grad()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _spare_bytes(device: torch.device) -> int:
    return int(MARGIN * torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else 0
