"""The weaker run of autoguidance: opened, checked against the run that it guides, and loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gmtool.artifacts.manifest import Input, file_fingerprint
from gmtool.artifacts.run import RunFolder, open_run
from gmtool.errors import UserError
from gmtool.runtime import compute_dtype
from gmtool.sampling.model import load_network
from gmtool.sampling.sampler import Model
from gmtool.stages.sample.config import SampleConfig
from gmtool.stages.train.config import TrainConfig
from gmtool.training.checkpoint import MODEL, find_checkpoint
from gmtool.training.ema import average_file


@dataclass(frozen=True)
class WeakerRun:
    """A run, the weights of its newest checkpoint, and their fingerprint as an input of the samples."""

    run: RunFolder
    weights: Path
    input: Input

    def load(self, config: SampleConfig, device: torch.device) -> Model:
        """The network, ready to be asked; its frames are those of the run that it guides."""
        network = load_network(self.run.architecture, self.weights, config, device)
        precision = compute_dtype(config.precision, device)
        return Model(network, self.run.config, self.run.statistics(), None, device, precision)


def weights_file(config: SampleConfig, trained: TrainConfig) -> str:
    """The file of a checkpoint that holds the weights to sample. Raises UserError for an average that is not there."""
    return average_file(config.ema, trained.averages) if config.weights == "ema" else MODEL


def open_weaker(run: RunFolder, config: SampleConfig) -> WeakerRun | None:
    """The run of ``--guide``, None without one. Raises UserError when it cannot guide ``run``."""
    if config.guide is None:
        return None
    weaker = open_run(config.guide)
    _expect_comparable(run, weaker)
    weights = find_checkpoint(weaker.checkpoints, None).path / weights_file(replace(config, ema=None), weaker.config)
    return WeakerRun(weaker, weights, Input("guide", str(weaker.path.absolute()), file_fingerprint(weights)))


def _expect_comparable(run: RunFolder, weaker: RunFolder) -> None:
    """Raise UserError unless both networks answer the same question: same data, same noise, labels that are known."""
    problem = None
    if _fingerprint(run, "latents") != _fingerprint(weaker, "latents"):
        problem = "was trained on other latents"
    elif run.config.source != weaker.config.source or run.config.union != weaker.config.union:
        problem = "starts from another source: train it with the same --source, and gm-kl if this run is gm-kl on gmm"
    elif run.config.coupling != weaker.config.coupling:
        problem = f"pairs noise and data otherwise: train it with --coupling {run.config.coupling}"
    elif weaker.architecture.classes not in (0, run.architecture.classes):
        problem = "is conditioned on classes, which this run does not know"
    elif weaker.architecture.modes not in (0, run.architecture.modes):
        problem = "is conditioned on modes, which this run does not know"
    elif weaker.config.mode_mean and not run.config.uses_frames:
        problem = "is shown the means of modes (--mode-mean), whose mixture this run does not open"
    elif _fingerprint(weaker, "gmm") not in (None, _fingerprint(run, "gmm")):
        problem = "was trained with another mixture (--gmm)"
    if problem is not None:
        raise UserError(f"--guide {weaker.path} cannot guide {run.path}: it {problem}")


def _fingerprint(run: RunFolder, role: str) -> str | None:
    known = run.manifest.input(role)
    return None if known is None else known.fingerprint
