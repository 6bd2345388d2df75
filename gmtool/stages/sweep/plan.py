"""The plan of a sweep, resolved and checked before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gmtool.artifacts.files import resolved
from gmtool.artifacts.outputs import Output, output_of
from gmtool.artifacts.run import CONFIG, RunFolder, open_run
from gmtool.distributed import World, join
from gmtool.errors import UserError
from gmtool.evaluation.extractors import Described
from gmtool.evaluation.feature_plan import PlannedFeatures, plan_features
from gmtool.evaluation.references import Reference, open_reference, open_training_latents, same_tokenizer
from gmtool.evaluation.sweep_table import Axis
from gmtool.forecast import FileSize, Forecast
from gmtool.progress import Progress
from gmtool.settings import flag
from gmtool.stages.sweep.config import SweepConfig
from gmtool.stages.sweep.points import Grid, plan_grid
from gmtool.tokenizers.build import missing_decoder
from gmtool.words import counted

FOLDER = Path("sweep")
"""The folder that is written by default."""

SHOWN = 12
"""Values of an axis that are listed."""


@dataclass(frozen=True, eq=False)
class SweepPlan:
    """A sweep that is settled.

    reference: what samples are compared with. described: the tokenizer of all runs, None where they differ. features:
    the extractors, and the metrics on each.
    """

    config: SweepConfig
    output: Output
    runs: tuple[RunFolder, ...]
    grid: Grid
    reference: Reference
    described: Described | None
    features: PlannedFeatures
    world: World

    def notes(self) -> list[str]:
        """Notes for the user on points and choices."""
        grid, features = self.grid, self.features
        chosen = () if self.config.extractor.asked else features.features
        same = f"{grid.repeated:,} combinations differ in settings without effect alone: each is drawn once"
        return [
            *map(str, grid.skipped),
            *([same] if grid.repeated else []),
            *(f"features: {feature.choice.value}, because {feature.choice.why}" for feature in chosen),
            *features.left_out,
        ]

    def forecast(self, seconds: float | None) -> Forecast:
        """What is drawn and scored; seconds: about the time that it takes."""
        grid, features, seeds = self.grid, self.features.features, self.config.seeds
        drawings = list({point.drawing.weights: point.drawing for point in grid.points}.values())
        count = max(len(point.drawing) for point in grid.points)
        metrics = [
            metric.name
            for feature in features
            for row in feature.computed(len(self.reference) > 0, True)
            for metric in row.metrics
        ]
        return Forecast(
            title=f"Would sweep {', '.join(str(run.path) for run in self.runs)} to {self.output.path}",
            reads=(
                *(FileSize(drawing.weights, drawing.weights.stat().st_size) for drawing in drawings),
                FileSize(self.reference.path, None),
            ),
            writes=(FileSize(self.output.path, None),),
            work=(
                (
                    "points",
                    f"{len(grid.points):,}"
                    + (f" ({len(grid.points) // seeds:,} settings, {seeds:,} seeds)" if seeds > 1 else ""),
                ),
                *((axis.setting.replace("_", " "), _values(axis)) for axis in grid.axes),
                ("network evaluations of a sample", _extent([point.evaluations for point in grid.points])),
                ("network evaluations in all", f"{sum(point.work for point in grid.points):,}"),
                ("samples", f"{sum(len(point.drawing) for point in grid.points):,}"),
                ("features", ", ".join(feature.name for feature in features)),
                ("reference", f"{len(self.reference):,} images" if len(self.reference) else "mu and sigma alone"),
                ("metrics", ", ".join(metrics)),
                *(("skipped", f"{counted(skipped.count, 'point')}: {skipped.reason}") for skipped in grid.skipped),
                *((("drawn once", f"{grid.repeated:,} repeated points"),) if grid.repeated else ()),
            ),
            choices=tuple(feature.choice for feature in features) if self.config.extractor.automatic else (),
            memory=max(drawing.model_bytes() for drawing in drawings)
            + sum(feature.memory(count, len(self.reference), subsets=False) for feature in features),
            seconds=seconds,
            more_memory="what the network computes of a batch, the decoder and the extractors",
        )


def _values(axis: Axis) -> str:
    shown = ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in axis.values[:SHOWN])
    return shown + (f", ... ({len(axis.values)} values)" if len(axis.values) > SHOWN else "")


def _extent(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def places(paths: Sequence[Path], output: Path | None) -> tuple[tuple[Path, ...], Path]:
    """The runs, and the folder to write: ``--output``, or the last of several paths where that is no run."""
    if output is None and len(paths) > 1 and not (paths[-1] / CONFIG).exists():
        return tuple(paths[:-1]), paths[-1]
    return tuple(paths), output or FOLDER


def plan_sweep(
    paths: Sequence[Path], output: Path | None, config: SweepConfig, progress: Progress, fetch: bool = True
) -> SweepPlan:
    """Open and check all inputs and every point, the quick ones first; nothing is computed or written.

    fetch: whether missing weights of the extractors are downloaded. Raises UserError for inputs that are missing,
    damaged or do not fit together, and for values that no point can have; MachineError when no features that were asked
    for can be had.
    """
    folders, folder = places(paths, output)
    target = output_of(folder, "sweep")
    runs = tuple(open_run(path) for path in folders)
    absolute = [resolved(run.path) for run in runs]
    for run, place in zip(runs, absolute, strict=True):
        if absolute.count(place) > 1:
            raise UserError(f"{run.path} is given twice: remove one of them")
    if min(config.selection.num, default=2) < 2:
        raise UserError("--num 1: a distribution takes 2 images at least")
    grid = plan_grid(config, runs)
    for run in runs:
        if (hint := missing_decoder(run.tokenizer(), config.decoder)) is not None:
            raise UserError(f"the samples of {run.path} are scored as images: {hint}")
    reference = _reference(config, runs)
    if len(reference) == 1:
        raise UserError(f"{reference.path} holds 1 image: a distribution takes 2 at least")
    described = _described(runs)
    lacking = {} if described is not None else {"tokenizer": "the runs have different tokenizers"}
    world = join(config.device)
    features = plan_features(config.extractor, described, reference, progress, world, fetch, lacking)
    return SweepPlan(config, target, runs, grid, reference, described, features, world)


def _reference(config: SweepConfig, runs: Sequence[RunFolder]) -> Reference:
    """The real images that were asked for, else those that all runs were trained on."""
    if config.reference is not None:
        return open_reference(config.reference)
    latents = [open_training_latents(run) for run in runs]
    for run, images in zip(runs, latents, strict=True):
        if images.fingerprint != latents[0].fingerprint:
            raise UserError(
                f"{runs[0].path} and {run.path} were trained on other images than each other: give those to compare "
                f"with by {flag('reference')}"
            )
    return latents[0]


def _described(runs: Sequence[RunFolder]) -> Described | None:
    """The tokenizer of all runs; None where they have different ones."""
    tokenizers = [run.tokenizer() for run in runs]
    if not all(same_tokenizer(tokenizers[0], tokenizer) for tokenizer in tokenizers):
        return None
    return Described(tokenizers[0], runs[0].manifest.details["descriptor_size"])
