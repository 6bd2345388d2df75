"""How the run of some samples moves latents, and how far they end from real ones: what eval asks the network for.

All in normalised latents, unguided, by Euler's method in `STEPS` steps; see `gmtool.evaluation.trajectory`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gmtool.artifacts.latents import open_latents
from gmtool.artifacts.manifest import file_fingerprint
from gmtool.artifacts.run import LatentStatistics, RunFolder, open_run
from gmtool.artifacts.samples import SamplesFolder
from gmtool.errors import UserError
from gmtool.evaluation.references import open_training_latents
from gmtool.evaluation.report import Figure, Measurement, Metric
from gmtool.evaluation.trajectory import mean_lipschitz, sliced_distance, trace, transport_distance
from gmtool.flow.times import full_grid
from gmtool.progress import Progress
from gmtool.sampling.labels import labels_of, modes_of
from gmtool.sampling.model import TrainedModel, find_weights, load_model, load_network
from gmtool.sampling.sampler import unguided_field
from gmtool.sampling.settings import SelectionSettings, WeightSettings
from gmtool.settings import some_from_json
from gmtool.stages.evaluate.config import EvaluateConfig
from gmtool.streams import generator

STEPS = 50


def trajectory_figures(
    folder: SamplesFolder, config: EvaluateConfig, device: torch.device, progress: Progress
) -> tuple[Figure, ...]:
    """The figures of ``config.trajectories`` samples, or of all when there are fewer. Raises what `run_of` does."""
    selection, weights = _settings(folder)
    run, file = run_of(folder)
    count = min(config.trajectories, selection.num)
    with ExitStack() as stack:
        network = load_network(run.architecture, file, device)
        model = load_model(run, network, device, torch.float32, weights.gmm, stack)
        paths = _follow(model, run, selection, count, config, progress)
    return (*paths, *_distances(folder, run.statistics(), count, config.seed, progress))


def _settings(folder: SamplesFolder) -> tuple[SelectionSettings, WeightSettings]:
    """What the samples are, and the weights that they were drawn with."""
    config, whose = folder.manifest.config, str(folder.path)
    return some_from_json(SelectionSettings, config, whose), some_from_json(WeightSettings, config, whose)


def run_of(folder: SamplesFolder) -> tuple[RunFolder, Path]:
    """The run that drew the samples, and the file of the weights that it drew them with.

    Raises UserError when the run is gone, or has no longer these weights.
    """
    _, settings = _settings(folder)
    recorded = folder.manifest.input("run")
    if recorded is None:
        raise UserError(f"--trajectories: {folder.path} does not say which run drew it")
    run = open_run(Path(recorded.path))
    _, weights = find_weights(settings, run)
    if file_fingerprint(weights) != recorded.fingerprint:
        raise UserError(
            f"--trajectories: {folder.path} was drawn with other weights than {run.path} has now: run gmtool sample "
            "again"
        )
    return run, weights


def _follow(
    model: TrainedModel,
    run: RunFolder,
    selection: SelectionSettings,
    count: int,
    config: EvaluateConfig,
    progress: Progress,
) -> list[Figure]:
    """Length, straightness and Lipschitz constant of the first ``count`` samples' paths."""
    labels = torch.from_numpy(labels_of(selection, run)).clamp(min=0)
    chosen = modes_of(selection, run)
    found: dict[Metric, list[Tensor]] = {"path_length": [], "straightness": [], "lipschitz": []}
    stream = generator(config.seed, "trajectories")
    progress.begin("trajectories", count, "samples")
    for start in range(0, count, config.batch_size):
        rows = range(start, min(start + config.batch_size, count))
        part = slice(rows.start, rows.stop)
        modes = None if chosen is None else torch.from_numpy(chosen[part])
        field, begin = unguided_field(model, selection.seed, rows, labels[part], modes)
        path = trace(field, begin, full_grid(STEPS, run.method.time_shift))
        found["path_length"].append(path.length())
        found["straightness"].append(path.straightness())
        found["lipschitz"].append(mean_lipschitz(field, path, stream))
        progress.advance(len(rows))
    progress.end()
    means = {metric: float(torch.cat(values).mean()) for metric, values in found.items()}
    return [Figure(metric, Measurement(value, None, count, None), None) for metric, value in means.items()]


def _distances(
    folder: SamplesFolder, statistics: LatentStatistics, count: int, seed: int, progress: Progress
) -> list[Figure]:
    """W2^2 and sliced W2^2 of ``count`` samples' latents to real ones, beside those of two disjoint sets of real ones.

    Nothing when the training latents are gone. Fewer are compared when there are less than 2 ``count`` real ones.
    """
    try:
        training = open_training_latents(folder).file
    except UserError as error:
        progress.note(f"no transport distance: {error}")
        return []
    with training, open_latents(folder.latents) as drawn:
        size = min(count, len(training) // 2)
        rows = np.random.default_rng(seed).permutation(len(training))[: 2 * size]
        samples, first, second = (
            statistics.normalise(torch.from_numpy(file.patches(part)))
            for file, part in ((drawn, np.arange(size)), (training, rows[:size]), (training, rows[size:]))
        )

    def measured(distance: Callable[[Tensor, Tensor], float], images: Tensor) -> Measurement:
        return Measurement(distance(images, first), None, size, size)

    def sliced(x: Tensor, y: Tensor) -> float:
        return sliced_distance(x, y, generator(seed, "directions"))

    return [
        Figure("transport", measured(transport_distance, samples), measured(transport_distance, second)),
        Figure("sliced_transport", measured(sliced, samples), measured(sliced, second)),
    ]
