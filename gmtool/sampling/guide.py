"""The weaker run of autoguidance: opened, checked against the run that it guides, and loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from gmtool.artifacts.manifest import Input, file_fingerprint
from gmtool.artifacts.run import RunFolder, open_run
from gmtool.errors import UserError
from gmtool.sampling.model import TrainedModel, load_network
from gmtool.training.checkpoint import Checkpoint, find_checkpoint
from gmtool.training.ema import average_file


@dataclass(frozen=True)
class WeakerRun:
    """A run, its newest checkpoint, the weights there, and their fingerprint as an input of the samples."""

    run: RunFolder
    checkpoint: Checkpoint
    weights: Path
    input: Input

    def load(self, device: torch.device, precision: torch.dtype, compiled: bool = False) -> TrainedModel:
        """The network, ready to guide; the statistics of the modes are those of the run that it guides.

        Raises UserError when its weights are missing, damaged or of another network, MachineError when it is to be
        compiled and there is no compiler.
        """
        network = load_network(self.run.architecture, self.weights, device, compiled)
        return TrainedModel.of(self.run.method, network, self.run.statistics(), None, device, precision)


def open_weaker(run: RunFolder, guide: Path) -> WeakerRun:
    """The run of ``--guide``, and its default average.

    Raises UserError when it is no run, has no whole checkpoint, or cannot guide ``run``.
    """
    weaker = open_run(guide)
    _expect_comparable(run, weaker)
    checkpoint = find_checkpoint(weaker.checkpoints, None)
    weights = checkpoint.path / average_file(None, weaker.averages)
    return WeakerRun(
        weaker, checkpoint, weights, Input("guide", str(weaker.path.absolute()), file_fingerprint(weights))
    )


def _expect_comparable(run: RunFolder, weaker: RunFolder) -> None:
    """Raise UserError unless both networks answer the same question: same data, same noise, labels that are known.

    The same data are in the same coordinates, too: velocities of other ones cannot be added.
    """
    problem, mine, other = None, run.method, weaker.method
    if other.student is not None:
        problem = "is a student, which knows no velocity between its segments"
    elif _fingerprint(run, "latents") != _fingerprint(weaker, "latents"):
        problem = "was trained on other latents"
    elif not _normalised_alike(run, weaker):
        problem = "has another mean and std of the latents: train it on the same part of them (--fraction, --seed)"
    elif mine.source != other.source or mine.method.coordinates != other.method.coordinates:
        problem = "starts from another source: train it with the same --source, and gm-kl if this run is gm-kl on gmm"
    elif mine.coupling != other.coupling:
        problem = f"pairs noise and data otherwise: train it with --coupling {mine.coupling}"
    elif weaker.architecture.classes not in (0, run.architecture.classes):
        problem = "is conditioned on classes, which this run does not know"
    elif weaker.architecture.modes not in (0, run.architecture.modes):
        problem = "is conditioned on modes, which this run does not know"
    elif other.mode_mean and not mine.uses_mode_statistics:
        problem = "is shown the means of modes (--mode-mean), whose mixture this run does not open"
    elif _fingerprint(weaker, "gmm") not in (None, _fingerprint(run, "gmm")):
        problem = "was trained with another mixture (--gmm)"
    if problem is not None:
        raise UserError(f"--guide {weaker.path} cannot guide {run.path}: it {problem}")


def _normalised_alike(run: RunFolder, weaker: RunFolder) -> bool:
    mine, other = run.statistics(), weaker.statistics()
    return torch.equal(mine.mean, other.mean) and torch.equal(mine.std, other.std)


def _fingerprint(run: RunFolder, role: str) -> str | None:
    known = run.manifest.input(role)
    return None if known is None else known.fingerprint
