"""Interruptions and divergence: a run stops between two steps, and rolls back when training diverges."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Protocol

from gmtool.distributed import ALONE, World, under_torchrun
from gmtool.errors import UserError
from gmtool.progress import Progress
from gmtool.training.checkpoint import NOT_WHOLE, Checkpoint, Position, cut_short, list_checkpoints

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and what schedulers send before they take a machine away."""


@contextmanager
def finishing_the_step() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether the process was told to stop (`SIGNALS`).

    A second signal raises KeyboardInterrupt at once, except under torchrun, which sends again what the terminal has
    sent already, and stops all processes by force after half a minute. Only the main thread can listen to signals;
    elsewhere the function always returns False.
    """
    told = False

    def listen(_number: int, _frame: FrameType | None) -> None:
        nonlocal told
        if told and not under_torchrun():
            raise KeyboardInterrupt
        told = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = [signal.signal(number, listen) for number in SIGNALS]
    try:
        yield lambda: told
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)


class Trainee(Protocol):
    """The state that a checkpoint holds, in memory."""

    def load(self, folder: Path, world: World) -> None:
        """Take over a checkpoint's files in place, in all processes together.

        Raises UserError, in all of them, when one is damaged or of another network.
        """


def resume(run: Path, folder: Path, trainee: Trainee, progress: Progress, world: World = ALONE) -> Position:
    """Load a run's newest sound checkpoint, in ``folder``, into what is trained; return its position, or the first.

    All processes load the same one: the newest of those that the first process sees which all of them can read. Raises
    UserError when there are checkpoints and none of them is intact.
    """
    damaged = world.tell([f"{path} {NOT_WHOLE}" for path in cut_short(folder)])
    for checkpoint in reversed(_listed(folder, world)):
        try:
            trainee.load(checkpoint.path, world)
        except UserError as error:
            damaged.append(str(error))
            continue
        for problem in damaged:
            progress.note(f"passing over a checkpoint: {problem}")
        progress.note(f"resuming {run} at step {checkpoint.step:,}")
        return checkpoint.position
    if damaged:
        raise UserError(f"no checkpoint is intact, remove them to train from the start: {'; '.join(damaged)}")
    return Position()


def _listed(folder: Path, world: World) -> list[Checkpoint]:
    """The whole checkpoints of a folder as the first process sees them, oldest first."""
    seen = [(checkpoint.path.name, asdict(checkpoint.position)) for checkpoint in list_checkpoints(folder)]
    return [Checkpoint(folder / name, Position(**position)) for name, position in world.tell(seen)]


ROLLBACKS = 3
"""How often a run rolls back at most: what fails again and again on other data is no accident."""


def roll_back(folder: Path, at: Position, trainee: Trainee, progress: Progress, world: World = ALONE) -> Position:
    """Load the newest checkpoint that was not saved amid skipped steps; return its position, with a new order of data.

    at: the position of the last bad step. Later checkpoints are removed. Raises UserError with advice when there is no
    such checkpoint, or the run has rolled back `ROLLBACKS` times before. Deterministic, so that a run that is killed
    afterwards comes to the same checkpoint again. All processes load the same one, or raise.
    """
    progress.end()  # of the steps so far: there will be others
    checkpoints = _listed(folder, world)
    good = [checkpoint for checkpoint in checkpoints if not checkpoint.position.streak]
    what = f"{at.streak} steps in a row up to step {at.step:,} had a loss or gradient that is not finite"
    advice = "try a smaller --lr or --clip, a longer --warmup, or --precision float32, in a new run"
    if not good:
        raise UserError(f"{what}, and there is no checkpoint to go back to: {advice}")
    if at.order >= ROLLBACKS:
        raise UserError(
            f"{what}, after going back {at.order} times; the last good checkpoint is {good[-1].path}: {advice}"
        )
    for checkpoint in checkpoints if world.first else ():
        if checkpoint.step > good[-1].step:
            shutil.rmtree(checkpoint.path, ignore_errors=True)
    trainee.load(good[-1].path, world)
    progress.note(f"{what}: going back to step {good[-1].step:,}, with the data in another order")
    return replace(good[-1].position, order=at.order + 1)
