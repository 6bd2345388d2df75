"""All that watches a training run: who is told its figures, what is drawn and scored now and then, how fast it goes."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field

import torch

from gmtool.artifacts.latents import LatentsFile
from gmtool.artifacts.run import METRICS, RunFolder
from gmtool.distributed import World
from gmtool.progress import Progress
from gmtool.sampling.sampler import Model
from gmtool.settings import as_flags
from gmtool.stages.sample.run import decoder_of
from gmtool.stages.train.online_eval import Scorer
from gmtool.stages.train.preview import Previewer
from gmtool.throughput import matmul_rate
from gmtool.training.cost import step_cost
from gmtool.training.loggers import TensorBoard, WeightsAndBiases, tensorboard_wanted
from gmtool.training.loop import Event
from gmtool.training.metrics import Logger, MetricsFile
from gmtool.training.throughput import ThroughputMeter


@dataclass(frozen=True)
class Monitoring:
    """The watchers of a run, for its loop; by default there are none."""

    loggers: tuple[Logger, ...] = ()
    events: tuple[Event, ...] = ()
    pace: ThroughputMeter = field(default_factory=ThroughputMeter)


def watch(
    run: RunFolder, latents: LatentsFile, model: Model, world: World, progress: Progress, stack: ExitStack
) -> Monitoring:
    """The watchers that a run's settings ask for; ``stack`` closes them. Says in notes what is trained, and with what.

    Of several processes the first alone keeps figures; all draw, which a sharded network asks of them. model: the
    network that is drawn from, in its run's coordinates.
    """
    config = run.config
    progress.note(f"settings: {as_flags(config)}")
    loggers = _loggers(run) if world.first else []
    for logger in loggers:
        stack.callback(logger.close)
    wanted = config.preview_every or config.eval_every
    tokenizer, no_images = decoder_of(run, None, model.device) if wanted else (None, None)
    if no_images is not None and config.preview_every:
        progress.note(f"no preview grids: {no_images}")
    events = (
        Event(config.preview_every, Previewer(model, run, tokenizer, world).draw),
        Event(config.eval_every, Scorer(model, latents, tokenizer, config.eval_num, loggers).score),
    )
    return Monitoring(tuple(loggers), events, _pace(run, model, world))


def _loggers(run: RunFolder) -> list[Logger]:
    config = run.config
    loggers: list[Logger] = [MetricsFile(run.path / METRICS)]
    if tensorboard_wanted(config.tensorboard):
        loggers.append(TensorBoard(run))
    if config.wandb is not None:
        loggers.append(WeightsAndBiases(run, config.wandb))
    return loggers


def _pace(run: RunFolder, model: Model, world: World) -> ThroughputMeter:
    """A clock that knows, on a GPU, what a step costs and what the device can do; elsewhere finding out costs more."""
    if model.device.type != "cuda":
        return ThroughputMeter()
    flops = step_cost(run.architecture, run.config, model.precision).flops
    peak = matmul_rate(model.device, model.precision)
    torch.cuda.empty_cache()
    return ThroughputMeter(flops, peak * world.size)
