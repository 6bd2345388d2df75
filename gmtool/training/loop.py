"""The optimiser loop: it takes batches and a loss, and leaves metrics and checkpoints.

Every random number of step n is drawn from (seed, n), and the order of the data from (seed, epoch): a run resumed at
step n therefore goes on exactly as the uninterrupted one.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from gmtool.artifacts.files import written_aside
from gmtool.config.train import TrainConfig
from gmtool.errors import UserError
from gmtool.nn.network import Network
from gmtool.progress import Progress
from gmtool.random import generator
from gmtool.training.checkpoint import save_checkpoint
from gmtool.training.interrupt import finishing_the_step
from gmtool.training.loss import Batch, training_loss

READ_EVERY = 50
"""Steps on a GPU between two readings of the losses: reading one waits for the GPU."""


@dataclass(frozen=True)
class Trainee:
    """What a training run changes: the network, its moving average, the optimiser. The step is kept beside them."""

    network: Network
    ema: Network
    optimizer: torch.optim.Optimizer


def make_optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW, betas 0.9 and 0.95, with weight decay on matrices alone."""
    matrices = [each for each in network.parameters() if each.dim() >= 2]
    others = [each for each in network.parameters() if each.dim() < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    assert config.lr is not None  # a run's config is resolved
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.95), fused=True)


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of step ``step`` (from 0): a linear rise over the warm-up, then the schedule."""
    assert config.lr is not None  # a run's config is resolved
    rise = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    done = min(1.0, max(0, step - config.warmup) / max(1, config.steps - config.warmup))
    fall = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[config.schedule]
    return config.lr * rise * fall


def ema_decay(decay: float, step: int) -> float:
    """The decay at step ``step`` (from 0): (1 + n) / (10 + n) at first, so that an early average forgets the start."""
    return min(decay, (1 + step) / (10 + step))


class Metrics:
    """``metrics.jsonl``: a line a step. Lines after the step that a run resumes from are dropped."""

    def __init__(self, path: Path, start: int) -> None:
        self._path = path
        kept = [line for line in _lines(path) if line.get("step", 0) <= start]
        with written_aside(path) as part:
            part.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def write(self, records: list[dict[str, float]]) -> None:
        """Append records."""
        with self._path.open("a") as file:
            file.writelines(json.dumps(each) + "\n" for each in records)


def _lines(path: Path) -> Iterable[dict[str, float]]:
    """The whole lines of a metrics file; a last line that was cut short is passed over."""
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            yield json.loads(line)
        except ValueError:
            continue


@dataclass(frozen=True)
class Taken:
    """A step that was taken: its number from 1, mean loss and norm of the gradient (), on the device; learning rate."""

    step: int
    loss: Tensor
    norm: Tensor
    rate: float

    def record(self) -> dict[str, float]:
        """The step's line of metrics. Waits for the device."""
        return {"step": self.step, "loss": self.loss.item(), "grad_norm": self.norm.item(), "lr": self.rate}


@dataclass(frozen=True)
class Loop:
    """What the loop needs besides data: settings, where to write, and what to call now and then.

    autocast: makes the context of the network's arithmetic. preview: called with the step at intervals.
    """

    config: TrainConfig
    folder: Path
    metrics: Path
    autocast: Callable[[], AbstractContextManager[object]]
    preview: Callable[[int], None]

    def run(self, trainee: Trainee, batches: Iterable[Batch], start: int, progress: Progress) -> None:
        """Take the steps ``start`` ... ``config.steps`` - 1, one a batch.

        Told to stop (Ctrl-C, SIGTERM), it finishes the step, saves a checkpoint and raises KeyboardInterrupt. Raises
        UserError at a loss that is not finite, naming the step, the last good checkpoint and what to try.
        """
        config, metrics = self.config, Metrics(self.metrics, start)
        pending: list[Taken] = []
        progress.begin("train", config.steps, "steps", start)
        saved, began = start, time.monotonic()
        with finishing_the_step() as told_to_stop:
            for done, batch in enumerate(batches, start + 1):
                pending.append(self._step(trainee, batch, done - 1))
                stopping = told_to_stop()
                save = stopping or done % config.save_every == 0 or done == config.steps
                if save or not batch.x.is_cuda or len(pending) >= READ_EVERY:
                    records = [each.record() for each in pending]
                    good = list(itertools.takewhile(_is_finite, records))
                    metrics.write(good)
                    if len(good) < len(records):
                        raise _not_finite(records[len(good)], saved)
                    speed = (done - start) * len(batch.x) / (time.monotonic() - began)
                    progress.advance(len(records), {"loss": records[-1]["loss"], "images/s": speed})
                    pending = []
                if save:
                    save_checkpoint(self.folder, done, trainee.network, trainee.ema, trainee.optimizer, config.keep)
                    saved = done
                if stopping:
                    raise KeyboardInterrupt
                if config.preview_every and (done % config.preview_every == 0 or done == config.steps):
                    self.preview(done)
        progress.end()

    def _step(self, trainee: Trainee, batch: Batch, step: int) -> Taken:
        """One optimiser step, step ``step`` from 0."""
        config, network = self.config, trainee.network
        rate = learning_rate(config, step)
        for group in trainee.optimizer.param_groups:
            group["lr"] = rate
        with self.autocast():
            losses = training_loss(network, batch, config, generator(config.seed, "train", step, device=batch.x.device))
        loss = losses.mean()
        trainee.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), config.clip or math.inf)
        trainee.optimizer.step()
        average = get_ema_multi_avg_fn(ema_decay(config.ema, step))
        average(list(trainee.ema.parameters()), list(network.parameters()), step)
        return Taken(step + 1, loss.detach(), norm.detach(), rate)


def _is_finite(record: dict[str, float]) -> bool:
    return math.isfinite(record["loss"]) and math.isfinite(record["grad_norm"])


def _not_finite(record: dict[str, float], saved: int) -> UserError:
    good = f"the last good checkpoint is step {saved}" if saved else "there is no checkpoint yet"
    return UserError(
        f"the loss is {record['loss']} at step {record['step']} ({good}): try a smaller --lr or --clip, or --precision "
        "float32, in a new run"
    )
