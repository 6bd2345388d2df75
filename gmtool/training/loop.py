"""The loop of a training run: it takes a step per batch, and writes records and checkpoints.

Every random number of step n is drawn from (seed, n), and the order of the data from (seed, epoch): a run resumed at
step n is therefore identical to an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from gmtool.distributed import World
from gmtool.progress import Progress
from gmtool.training.checkpoint import Position
from gmtool.training.logging import Logger, Record
from gmtool.training.recovery import finishing_the_step
from gmtool.training.settings import LoopSettings
from gmtool.training.throughput import ThroughputMeter

READ_EVERY = 50
"""Steps on a GPU between two readings of the losses: reading one waits for the GPU."""


class Batch(Protocol):
    """The part of a batch that a process computes."""

    @property
    def x(self) -> Tensor:
        """This process's samples (B, ...)."""


class StepResult(Protocol):
    """The result of a step, on the device: its loss () and whether it was skipped, () bool."""

    @property
    def loss(self) -> Tensor:
        """The mean over the batch, of all processes."""

    @property
    def skipped(self) -> Tensor:
        """Whether the step was skipped, as it was not finite."""

    def record(self) -> Record:
        """The step's figures. Waits for the device."""


class Stepper(Protocol):
    """Takes training steps."""

    @property
    def world(self) -> World:
        """The processes that share a step."""

    def take(self, batch: Any, step: int, seed: int) -> StepResult:
        """Take step ``step``, from 0, on this process's part of its batch; (seed, step) gives the random numbers.

        Raises MachineError when the memory does not suffice.
        """


class DivergedError(Exception):
    """Too many consecutive steps were not finite. position: of the last of them."""

    def __init__(self, position: Position) -> None:
        super().__init__(position)
        self.position = position


@dataclass(frozen=True)
class Event:
    """Something that is done between two steps, at multiples of ``every`` steps (0: never) and after the last one.

    is_done: whether it was done after a step that an earlier process took.
    """

    every: int
    act: Callable[[int], None]
    is_done: Callable[[int], bool] = lambda _step: True

    def is_due(self, step: int, steps: int) -> bool:
        """Whether it is done after step ``step`` of ``steps``."""
        return bool(self.every) and (step % self.every == 0 or step == steps)

    def make_up(self, step: int, steps: int, world: World) -> None:
        """Do it now if it was due after step ``step`` of ``steps``, but the process was killed before it was done."""
        if step and self.is_due(step, steps) and world.any(world.first and not self.is_done(step)):
            self.act(step)


@dataclass(frozen=True)
class Loop:
    """The training loop: a stepper, and the checkpoints, records and events that follow from its steps."""

    settings: LoopSettings
    stepper: Stepper
    save: Callable[[Position], None]
    loggers: Sequence[Logger] = ()
    events: Sequence[Event] = ()
    pace: ThroughputMeter = field(default_factory=ThroughputMeter)

    def run(self, batches: Iterable[Batch], start: Position, seed: int, progress: Progress) -> None:
        """Take the steps ``start.step`` ... ``settings.steps`` - 1, one per batch. seed: that of the run.

        Told to stop (Ctrl-C, SIGTERM), it finishes the step, saves a checkpoint and raises KeyboardInterrupt. Raises
        DivergedError after ``settings.skip_limit`` steps in a row that were not finite.
        """
        settings, world = self.settings, self.stepper.world
        seed, at = start.seed(seed), start
        pending: list[StepResult] = []
        for logger in self.loggers:
            logger.begin(start.step)
        for event in self.events:
            event.make_up(start.step, settings.steps, world)
        progress.begin("train", settings.steps, "steps", start.step)
        with finishing_the_step() as told_to_stop:
            for done, batch in enumerate(self.pace.waiting(batches), start.step + 1):
                pending.append(self.stepper.take(batch, done - 1, seed))
                self.pace.count(len(batch.x) * world.size)
                stopping = world.any(told_to_stop())  # all stop after the same step
                due = [event for event in self.events if event.is_due(done, settings.steps)]
                save = stopping or done % settings.save_every == 0 or done == settings.steps
                if save or due or not batch.x.is_cuda or len(pending) >= READ_EVERY:
                    at = self._report(pending, at)
                    pace = self._report_pace(done)
                    skipped = {"skipped": at.skipped} if at.skipped else {}
                    progress.advance(len(pending), {"loss": pending[-1].loss.item(), **pace, **skipped})
                    pending = []
                if save:
                    self.save(at)
                if stopping:
                    raise KeyboardInterrupt
                for event in due:
                    event.act(done)
        progress.end()

    def run_through(
        self,
        batches: Callable[[Position], Iterable[Batch]],
        start: Position,
        seed: int,
        progress: Progress,
        go_back: Callable[[Position], Position],
    ) -> None:
        """`run` with the batches after a position, and again from where ``go_back`` leads when training diverges.

        go_back: takes the position of the last bad step.
        """
        at = start
        while True:
            try:
                return self.run(batches(at), at, seed, progress)
            except DivergedError as diverged:
                at = go_back(diverged.position)

    def _report_pace(self, step: int) -> Record:
        """The figures of the present lap; at its end it is handed on, and the next one begins."""
        figures = self.pace.figures()
        if self.pace.steps >= READ_EVERY or step == self.settings.steps:
            for logger in self.loggers:
                logger.write([{"step": step, **figures}], "machine")
            self.pace.begin_lap()
        return figures

    def _report(self, pending: Sequence[StepResult], at: Position) -> Position:
        """Hand the records of steps on; return where the run is after them. Waits for the device."""
        records = []
        for result in pending:
            at = at.after(bool(result.skipped))
            records.append({**result.record(), "skipped": at.skipped})
            if at.streak >= self.settings.skip_limit:
                break
        for logger in self.loggers:
            logger.write(records)
        if at.streak >= self.settings.skip_limit:
            raise DivergedError(at)
        return at
