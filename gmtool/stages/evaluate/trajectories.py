"""Trajectories of a run's flow, and the distance of its latents to real ones: the metrics that need the network.

All in normalised latents, unguided, by Euler's method in `STEPS` steps; see `gmtool.evaluation.trajectory`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gmtool.artifacts.latents import open_latents
from gmtool.artifacts.manifest import file_fingerprint
from gmtool.artifacts.run import RunFolder, open_run
from gmtool.artifacts.samples import SamplesFolder
from gmtool.errors import UserError
from gmtool.evaluation.metric import Pair
from gmtool.evaluation.references import open_training_latents
from gmtool.evaluation.trajectory import FollowedPath, trace
from gmtool.flow.times import full_grid
from gmtool.progress import Progress
from gmtool.sampling.labels import labels_of, modes_of
from gmtool.sampling.model import find_weights, load_model, load_network
from gmtool.sampling.sampler import unguided_field
from gmtool.sampling.settings import SelectionSettings, WeightSettings
from gmtool.settings import some_from_json
from gmtool.stages.evaluate.config import EvaluateConfig
from gmtool.training.checkpoint import Checkpoint

STEPS = 50


def _settings(folder: SamplesFolder) -> tuple[SelectionSettings, WeightSettings]:
    """What the samples are, and the weights that they were drawn with."""
    config, whose = folder.manifest.config, str(folder.path)
    return some_from_json(SelectionSettings, config, whose), some_from_json(WeightSettings, config, whose)


def run_of(folder: SamplesFolder) -> tuple[RunFolder, Checkpoint, Path]:
    """The run that drew the samples, the checkpoint, and the file of the weights that it drew them with.

    Raises UserError when the run is gone, is a student, or has no longer these weights.
    """
    _, settings = _settings(folder)
    recorded = folder.manifest.input("run")
    if recorded is None:
        raise UserError(f"--trajectories: {folder.path} does not say which run drew it")
    run = open_run(Path(recorded.path))
    if run.method.student is not None:
        raise UserError(
            f"--trajectories: {run.path} is a student, which has no velocity at every time: remove the flag"
        )
    checkpoint, weights = find_weights(settings, run)
    if file_fingerprint(weights) != recorded.fingerprint:
        passed_over = "".join(f" ({line})" for line in checkpoint.notes)
        raise UserError(
            f"--trajectories: {folder.path} was drawn with other weights than {run.path} has now{passed_over}: run "
            "gmtool sample again"
        )
    return run, checkpoint, weights


def followed_paths(
    folder: SamplesFolder, config: EvaluateConfig, device: torch.device, progress: Progress
) -> Iterator[FollowedPath]:
    """The paths of the first ``config.trajectories`` samples, or of all when there are fewer, a batch at a time.

    Raises what `run_of` does.
    """
    selection, weights = _settings(folder)
    run, checkpoint, file = run_of(folder)
    for line in checkpoint.notes:
        progress.note(line)
    count = min(config.trajectories, selection.num)
    labels = torch.from_numpy(labels_of(selection, run)).clamp(min=0)
    chosen = modes_of(selection, run)
    with ExitStack() as stack:
        network = load_network(run.architecture, file, device)
        model = load_model(run, network, device, torch.float32, weights.gmm, stack)
        progress.begin("trajectories", count, "samples")
        stack.callback(progress.end)
        for start in range(0, count, config.batch_size):
            rows = range(start, min(start + config.batch_size, count))
            part = slice(rows.start, rows.stop)
            modes = None if chosen is None else torch.from_numpy(chosen[part])
            field, begin = unguided_field(model, selection.seed, rows, labels[part], modes)
            yield FollowedPath(field, trace(field, begin, full_grid(STEPS, run.method.time_shift)))
            progress.advance(len(rows))


def latents_of_both(folder: SamplesFolder, config: EvaluateConfig, progress: Progress) -> Pair[Pair[Tensor]] | None:
    """Latents of samples beside as many real ones, and two disjoint sets of real ones, each as a pair.

    All are normalised, float32 (n, C, H, W), with n the number of paths that are followed, or half the number of real
    ones if that is smaller. None, with a note, when the training latents are gone. Raises what `run_of` does.
    """
    run, _, _ = run_of(folder)
    selection, _ = _settings(folder)
    statistics, count = run.statistics(), min(config.trajectories, selection.num)
    try:
        training = open_training_latents(folder).file
    except UserError as error:
        progress.note(f"no transport distance: {error}")
        return None
    with training, open_latents(folder.latents) as drawn:
        size = min(count, len(training) // 2)
        rows = np.random.default_rng(config.seed).permutation(len(training))[: 2 * size]
        samples, first, second = (
            statistics.normalise(torch.from_numpy(file.patches(part)))
            for file, part in ((drawn, np.arange(size)), (training, rows[:size]), (training, rows[size:]))
        )
    return Pair(Pair(samples, first), Pair(second, first))
