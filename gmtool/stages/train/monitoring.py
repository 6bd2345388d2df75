"""Monitoring of a training run: loggers, preview grids and scores at intervals, throughput."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from gmtool.artifacts.run import METRICS, RunFolder
from gmtool.progress import Progress
from gmtool.sampling.decoder import decoder_of
from gmtool.sampling.model import TrainedModel
from gmtool.sampling.plan import make_plan
from gmtool.sampling.sampler import generate
from gmtool.sampling.settings import SamplingSettings
from gmtool.settings import as_flags
from gmtool.stages.train.inputs import TrainInputs, rows_of
from gmtool.stages.train.online_eval import DISTANCE, Scorer
from gmtool.stages.train.preview import Previewer, preview_file
from gmtool.training.logging import Logger, has_record, loggers_for
from gmtool.training.loop import Event
from gmtool.training.settings import LoggingSettings
from gmtool.training.throughput import ThroughputMeter, meter_of


@dataclass(frozen=True)
class Monitoring:
    """Loggers and events of a run's loop; none by default."""

    loggers: tuple[Logger, ...] = ()
    events: tuple[Event, ...] = ()
    pace: ThroughputMeter = field(default_factory=ThroughputMeter)


def monitoring_of(
    run: RunFolder, inputs: TrainInputs, model: TrainedModel, progress: Progress, stack: ExitStack
) -> Monitoring:
    """The loggers and events that a run's settings ask for; ``stack`` closes the loggers. Notes the settings.

    Of several processes the first alone keeps metrics; all draw, which a sharded network asks of them. model: the
    network that is drawn from.
    """
    config, world = inputs.plan.config, inputs.world
    settings = config.logging
    progress.note(f"settings: {as_flags(type(config), inputs.plan.settings)}")
    loggers = loggers_for(settings, run) if world.first else ()
    for logger in loggers:
        stack.callback(logger.close)
    wanted = settings.preview_every or settings.eval_every
    tokenizer, no_images = decoder_of(run, None, model.device) if wanted else (None, None)
    if no_images is not None and settings.preview_every:
        progress.note(
            "no preview grids: latents of an encoder become images by a decoder alone; draw them with gmtool sample "
            "--decoder"
        )
    plan = make_plan(SamplingSettings(), run.method, run.architecture.spectral, seed=0)
    classes = torch.tensor(run.sampled_classes or (0,))

    def draw(indices: range) -> Tensor:
        return generate(model, plan, indices, classes[torch.tensor(indices) % len(classes)])

    previewer = Previewer(draw, run, tokenizer, world)
    events = [Event(settings.preview_every, previewer.draw, previewer.is_drawn)]
    if inputs.latents is not None:
        trained = rows_of(inputs.plan, inputs.latents)
        scorer = Scorer(draw, inputs.latents, trained, tokenizer, settings.eval_num, loggers, config.seed)
        scored = partial(has_record, run.path / METRICS, DISTANCE)
        events.append(Event(settings.eval_every, scorer.score, scored))
    meter = meter_of(lambda: inputs.plan.cost().flops, model.precision, world)
    return Monitoring(loggers, tuple(events), meter)


def is_watched(run: RunFolder, settings: LoggingSettings, step: int) -> bool:
    """Whether the preview grid and the score of a finished run's last step exist, as far as they are asked for."""
    drawn = not settings.preview_every or preview_file(run, step).exists()
    return drawn and (not settings.eval_every or has_record(run.path / METRICS, DISTANCE, step))
