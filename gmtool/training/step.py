"""One step of training: random numbers, micro-batches, gradients, optimizer, averages.

Nothing in it waits for the device: a step whose loss or gradient is not finite is called off there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from gmtool.distributed import ALONE, World, whole
from gmtool.errors import MachineError, is_out_of_memory
from gmtool.nn.network import Network
from gmtool.streams import generator
from gmtool.training.logging import Record
from gmtool.training.micro_batch import divisors
from gmtool.training.schedule import Schedule
from gmtool.training.state import TrainState
from gmtool.training.task import Batch, Prepared, Task, each_tensor, take_rows


@dataclass(frozen=True)
class StepResult:
    """A step that was taken, on the device.

    step: its number, from 1.
    rate: its learning rate.
    loss: () the mean over the batch, of all processes.
    norm: () of the gradient before clipping, of all processes.
    skipped: () bool, whether the step was called off.
    quarters: (2, 4) sums of the losses, and numbers of samples, in each quarter of the times; that of the data first.
    """

    step: int
    rate: float
    loss: Tensor
    norm: Tensor
    skipped: Tensor
    quarters: Tensor

    def record(self) -> Record:
        """The step's figures; what is not finite, or has no data, is left out. Waits for the device."""
        figures = {"step": self.step, "loss": self.loss.item(), "grad_norm": self.norm.item(), "lr": self.rate}
        sums, counts = self.quarters.tolist()
        for number, (total, count) in enumerate(zip(sums, counts, strict=True), 1):
            if count:
                figures[f"loss_q{number}"] = total / count
        return {name: value for name, value in figures.items() if math.isfinite(value)}


@dataclass(frozen=True)
class Stepper:
    """Takes training steps.

    clip: bound of the gradient's norm by step, from 0; infinite for none. autocast: makes the context in which the
    network is called. micro_batch: samples per forward and backward pass; None for the whole batch. lighter: what takes
    less memory, for messages.
    """

    task: Task
    state: TrainState[Network]
    schedule: Schedule
    clip: Callable[[int], float] = lambda _step: math.inf
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext
    world: World = ALONE
    micro_batch: int | None = None
    lighter: str = "a smaller network"

    def take(self, batch: Batch, step: int, seed: int) -> StepResult:
        """Take step ``step``, from 0, on this process's part of its batch; (seed, step) gives the random numbers.

        Raises MachineError, naming a smaller micro-batch size, when the memory does not suffice.
        """
        state, world = self.state, self.world
        prepared = self._prepared(batch, generator(seed, "train", step, device=batch.x.device), step)
        weights = torch.ones_like(prepared.draws.t)
        if state.focal is not None and batch.modes is not None:
            weights = state.focal.weights(batch.modes)
        try:
            losses = self._accumulate(prepared, weights)
        except Exception as error:
            if is_out_of_memory(error):
                raise too_large(self.micro_batch or len(batch.x), self.lighter) from error
            raise
        edges = self.task.method.times.quartiles()
        sums = world.sum(torch.cat([losses.mean()[None], by_quarter(losses, prepared.draws.t, edges).flatten()]))
        loss, quarters = sums[0] / world.size, sums[1:].reshape(2, 4)
        norm = whole(nn.utils.clip_grad_norm_(state.network.parameters(), self.clip(step)))
        skipped = ~(torch.isfinite(loss) & torch.isfinite(norm))
        rate = self.schedule.at(step)
        state.optimizer.step(rate, skipped)
        if state.focal is not None and batch.modes is not None:
            state.focal.update(batch.modes, losses, world)
        for average in state.averages:
            average.update(state.network, step)
        return StepResult(step + 1, rate, loss, norm, skipped, quarters)

    @property
    def parameters(self) -> Sequence[Tensor]:
        """The trained parameters."""
        return list(self.state.network.parameters())

    def rehearse(self, size: int, count: int, device: torch.device) -> None:
        """Compute a gradient as a step on ``count`` samples does, ``size`` at once and within this process."""
        batch = self.task.any_batch(count, device)
        prepared = self._prepared(batch, generator("rehearsal", device=device))
        # the second part of a batch meets the gradients that the first one left
        some = take_rows(prepared, slice(2 * size))
        with self.state.hold():
            replace(self, micro_batch=size)._accumulate(some, torch.ones_like(prepared.draws.t))

    def zero_grad(self) -> None:
        """Drop the gradients."""
        self.state.optimizer.zero_grad()

    def _prepared(self, batch: Batch, stream: torch.Generator, step: int = 0) -> Prepared:
        """This process's samples, paired with noise; a coupling of whole batches looks at those of all processes."""
        mine, whole_batch = self.world.rows(len(batch.x) * self.world.size), self.task.method.coupling.whole_batch
        draws = self.task.draw(len(batch.x) * self.world.size, stream, step)
        if whole_batch and self.world.size > 1:
            return take_rows(self.task.prepare(each_tensor(batch, self.world.collect), draws), mine)
        return self.task.prepare(batch, take_rows(draws, mine))

    def _accumulate(self, prepared: Prepared, weights: Tensor) -> Tensor:
        """Leave the gradient of the mean of the weighted losses in the parameters; return the losses, (B,).

        weights: of the samples, (B,).
        """
        count = len(prepared)
        size = self.micro_batch or count
        self.state.optimizer.zero_grad()
        losses = []
        for start in range(0, count, size):
            last = start + size >= count
            with nullcontext() if last else self.state.hold():
                losses.append(self._backward(prepared, weights, slice(start, start + size)))
        return torch.cat(losses)

    def _backward(self, prepared: Prepared, weights: Tensor, rows: slice) -> Tensor:
        """Add the part of ``rows`` to the gradient of the weighted mean; return their losses."""
        with self.autocast():
            losses = self.task.losses(self.state.forward, take_rows(prepared, rows))
        ((weights[rows] * losses).sum() / len(prepared)).backward()
        return losses.detach()


def by_quarter(losses: Tensor, t: Tensor, edges: Tensor) -> Tensor:
    """Sums of losses (B,), and numbers of samples, by the quarter of time that t (B,) lies in: (2, 4) float32.

    edges (3,): the times between the quarters, increasing.
    """
    # the edges go to the device as numbers: a copy would wait for it
    quarter = sum((t > edge).long() for edge in edges.tolist())
    within = quarter[:, None] == torch.arange(4, device=t.device)
    return torch.stack([torch.where(within, losses[:, None], 0).sum(0), within.sum(0)])


def too_large(size: int, lighter: str) -> MachineError:
    """The error that says what to do if ``size`` samples do not fit in memory. lighter: what to use if size is 1."""
    if size == 1:
        return MachineError(f"out of memory at --micro-batch 1: use {lighter}")
    return MachineError(f"out of memory at --micro-batch {size}: try --micro-batch {divisors(size)[1]}")
