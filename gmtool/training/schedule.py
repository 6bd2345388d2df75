"""The learning rate of each step, from the settings alone: warm-up, plateaus, and a fall along a line or a cosine."""

from __future__ import annotations

import math

from gmtool.stages.train.config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of step ``step`` (from 0): a linear rise over the warm-up, then the schedule.

    It falls from the rate of its time to ``lr_end`` over the steps of ``fall``, which end with the run by default.
    """
    assert config.lr is not None  # a run's config is resolved
    rate = config.lr
    if config.lr_from is not None and step >= config.lr_from[0]:
        rate = config.lr_from[1]
    rise = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    first, last = config.fall or (config.warmup, config.steps)
    done = min(1.0, max(0, step - first) / max(1, last - first))
    left = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[config.schedule]
    return rise * (config.lr_end + (rate - config.lr_end) * left)
