"""One step of training: random numbers, micro-batches, gradients, optimiser, averages.

Nothing in it waits for the device: a step whose loss or gradient is not finite is called off there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gmtool.distributed import ALONE, World, whole
from gmtool.errors import MachineError
from gmtool.flow.times import time_quartiles
from gmtool.stages.train.config import TrainConfig
from gmtool.streams import generator
from gmtool.training.loss import Batch, Draws, draw, each_tensor, pair, take_rows, training_loss
from gmtool.training.metrics import Record
from gmtool.training.schedule import learning_rate
from gmtool.training.state import TrainState


@dataclass(frozen=True)
class StepResult:
    """A step that was taken, on the device: its number from 1 and its learning rate; the mean loss () of the batch and
    the norm () of its gradient before clipping, over all processes; whether it was called off, () bool; and the sum of
    the losses and the number of data in each quarter of the times, (2, 4), the one next to the data first.
    """

    step: int
    rate: float
    loss: Tensor
    norm: Tensor
    skipped: Tensor
    quarters: Tensor

    def record(self) -> Record:
        """The step's figures; what is not finite, or has no data, is left out. Waits for the device."""
        found = {"step": self.step, "loss": self.loss.item(), "grad_norm": self.norm.item(), "lr": self.rate}
        sums, counts = self.quarters.tolist()
        for number, (total, count) in enumerate(zip(sums, counts, strict=True), 1):
            if count:
                found[f"loss_q{number}"] = total / count
        return {name: value for name, value in found.items() if math.isfinite(value)}


@dataclass(frozen=True)
class Stepper:
    """What takes steps.

    autocast: makes the context of the network's arithmetic. micro_batch: data computed at once; default: all.
    """

    config: TrainConfig
    trainee: TrainState
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext
    world: World = ALONE
    micro_batch: int | None = None

    def take(self, batch: Batch, step: int, seed: int) -> StepResult:
        """Take step ``step``, from 0, on this process's part of its batch; (seed, step) gives the random numbers."""
        config, trainee, world = self.config, self.trainee, self.world
        draws = self._draw(len(batch.x), generator(seed, "train", step, device=batch.x.device))
        batch, draws = self._paired(batch, draws)
        weights = torch.ones_like(draws.t)
        if trainee.focal is not None and batch.modes is not None:
            weights = trainee.focal.weights(batch.modes)
        try:
            losses = self._accumulate(batch, draws, weights)
        except Exception as error:
            if is_out_of_memory(error):
                raise _too_large(self.micro_batch or len(batch.x)) from error
            raise
        assert config.time_shift is not None  # a run's config is resolved
        edges = time_quartiles(config.time_distribution, config.time_shift)
        figures = world.sum(torch.cat([losses.mean()[None], by_quarter(losses, draws.t, edges).flatten()]))
        loss, quarters = figures[0] / world.size, figures[1:].reshape(2, 4)
        norm = whole(nn.utils.clip_grad_norm_(trainee.network.parameters(), config.clip or math.inf))
        skipped = ~(torch.isfinite(loss) & torch.isfinite(norm))
        rate = learning_rate(config, step)
        trainee.optimizer.step(rate, skipped)
        if trainee.focal is not None and batch.modes is not None:
            trainee.focal.update(batch.modes, losses, world)
        for average in trainee.averages:
            average.update(trainee.network, step)
        return StepResult(step + 1, rate, loss, norm, skipped, quarters)

    def rehearse(self, batch: Batch, count: int) -> None:
        """Compute a gradient as a step on ``batch`` does, of its first ``count`` data alone and within this process."""
        draws = self._draw(len(batch.x), generator("rehearsal", device=batch.x.device))
        with self.trainee.hold():
            self._accumulate(take_rows(batch, slice(count)), take_rows(draws, slice(count)), draws.t)

    def _draw(self, count: int, stream: torch.Generator) -> Draws:
        """The random numbers of all processes, each of which has ``count`` data."""
        return draw(count * self.world.size, self.trainee.network.architecture, self.config, stream)

    def _paired(self, batch: Batch, draws: Draws) -> tuple[Batch, Draws]:
        """This process's data and random numbers, as the coupling pairs them: batch-ot looks at those of all."""
        mine = self.world.rows(len(draws.t))
        if self.config.coupling != "batch-ot":
            return batch, take_rows(draws, mine)
        batch, draws = pair(each_tensor(batch, self.world.collect), draws, self.config)
        return take_rows(batch, mine), take_rows(draws, mine)

    def _accumulate(self, batch: Batch, draws: Draws, weights: Tensor) -> Tensor:
        """Leave the gradient of the mean of the weighted losses in the parameters; return the loss of each datum, (B,).

        weights: of the data, (B,).
        """
        count = len(batch.x)
        size = self.micro_batch or count
        self.trainee.optimizer.zero_grad()
        losses = []
        for start in range(0, count, size):
            last = start + size >= count
            with nullcontext() if last else self.trainee.hold():
                losses.append(self._backward(batch, draws, weights, slice(start, start + size)))
        return torch.cat(losses)

    def _backward(self, batch: Batch, draws: Draws, weights: Tensor, rows: slice) -> Tensor:
        """Add the part of ``rows`` to the gradient of the weighted mean; return their losses."""
        trainee = self.trainee
        with self.autocast():
            losses = training_loss(
                trainee.network, take_rows(batch, rows), take_rows(draws, rows), self.config, trainee.forward
            )
        ((weights[rows] * losses).sum() / len(batch.x)).backward()
        return losses.detach()


def by_quarter(losses: Tensor, t: Tensor, edges: Tensor) -> Tensor:
    """Sums of losses (B,), and numbers of data, whose times t (B,) lie between the ``edges`` (3,): (2, 4) float32."""
    # the edges go to the device as numbers: a copy would wait for it
    quarter = sum((t > edge).long() for edge in edges.tolist())
    within = quarter[:, None] == torch.arange(4, device=t.device)
    return torch.stack([torch.where(within, losses[:, None], 0).sum(0), within.sum(0)])


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that the GPU's memory, or the machine's, is not enough."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def _too_large(size: int) -> MachineError:
    """What to do when ``size`` data at once are too many."""
    if size == 1:
        return MachineError("out of memory at --micro-batch 1: take a smaller --model")
    smaller = next(each for each in range(size // 2, 0, -1) if size % each == 0)
    return MachineError(f"out of memory at --micro-batch {size}: try --micro-batch {smaller}")
