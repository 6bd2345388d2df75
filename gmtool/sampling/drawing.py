"""Samples of a run that will be drawn: settings checked against the run, weights found, nothing loaded or written."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gmtool.artifacts.manifest import Input, file_fingerprint
from gmtool.artifacts.run import RunFolder
from gmtool.errors import NotFinite
from gmtool.forecast import Choice
from gmtool.sampling.guide import WeakerRun, open_weaker
from gmtool.sampling.labels import labels_of, modes_of
from gmtool.sampling.model import TrainedModel, find_weights, load_model, load_network, model_bytes
from gmtool.sampling.plan import SamplePlan, make_plan, sampling_choices
from gmtool.sampling.sampler import generate
from gmtool.sampling.settings import SamplingSettings, SelectionSettings, WeightSettings
from gmtool.training.checkpoint import Checkpoint


@dataclass(frozen=True, eq=False)
class Drawing:
    """Samples that will be drawn from a run.

    plan: how. labels, modes (num,) int64: of the samples, -1 for no class, None for modes that are drawn. weights: the
    file of the network's weights. guide: the weaker run, None for none. gmm: the file of the run's mixture; None: where
    it was in training. choices: defaults that depend on the run.
    """

    run: RunFolder
    plan: SamplePlan
    labels: np.ndarray
    modes: np.ndarray | None
    checkpoint: Checkpoint
    weights: Path
    guide: WeakerRun | None
    gmm: Path | None
    choices: tuple[Choice, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the weights, a line each: newer checkpoints that are not whole."""
        return (*self.checkpoint.notes, *(() if self.guide is None else self.guide.checkpoint.notes))

    def batches(self, size: int) -> list[range]:
        """The samples of each network call, ``size`` at most."""
        return [range(start, min(start + size, len(self))) for start in range(0, len(self), size)]

    def inputs(self, fingerprint: Callable[[Path], str] = file_fingerprint) -> tuple[Input, ...]:
        """What the samples are made from. fingerprint: of a file's content."""
        return (
            Input("run", str(self.run.path.absolute()), fingerprint(self.weights)),
            *(used for used in self.run.manifest.inputs if used.role == "latents"),
            *(() if self.guide is None else (self.guide.input,)),
        )

    def model_bytes(self) -> int:
        """About the memory of the network, its guide and the statistics of its modes; raises as `model_bytes` does."""
        guide = 0 if self.guide is None else self.guide.weights.stat().st_size
        return model_bytes(self.run, self.weights) + guide

    def load(self, device: torch.device, precision: torch.dtype, compiled: bool, stack: ExitStack) -> TrainedModel:
        """The network, and its guide; ``stack`` closes the run's mixture. precision: of the network's arithmetic.

        Raises UserError when weights, statistics or mixture are missing, damaged or not the run's, MachineError when
        the network is to be compiled and there is no compiler.
        """
        network = load_network(self.run.architecture, self.weights, device, compiled)
        model = load_model(self.run, network, device, precision, self.gmm, stack)
        return model if self.guide is None else replace(model, weaker=self.guide.load(device, precision, compiled))

    def draw(self, model: TrainedModel, batch: range) -> Tensor:
        """Latents (B, C, H, W) float32, not normalised, of the samples ``batch``.

        Raises NotFinite when one is infinite or NaN.
        """
        rows = slice(batch.start, batch.stop)
        classes = torch.from_numpy(self.labels[rows]).clamp(min=0)
        modes = None if self.modes is None else torch.from_numpy(self.modes[rows])
        latents = generate(model, self.plan, batch, classes, modes)
        if not torch.isfinite(latents).all():
            raise NotFinite("the samples are not finite: try --precision float32, or an earlier --checkpoint")
        return latents


def plan_drawing(
    run: RunFolder,
    sampling: SamplingSettings,
    selection: SelectionSettings,
    weights: WeightSettings,
    weaker: Callable[[RunFolder, Path], WeakerRun] = open_weaker,
) -> Drawing:
    """The samples that the settings ask for, checked against the run, with its weights found.

    weaker: opens the run of ``--guide``. Raises UserError, naming the flag, for what the run cannot do and for weights
    that it does not have.
    """
    plan = make_plan(sampling, run.method, run.architecture.spectral, selection.seed)
    labels, modes = labels_of(selection, run), modes_of(selection, run)
    checkpoint, file = find_weights(weights, run)
    guide = None if sampling.guide is None else weaker(run, sampling.guide)
    choices = sampling_choices(sampling, run.method)
    return Drawing(run, plan, labels, modes, checkpoint, file, guide, weights.gmm, choices)
