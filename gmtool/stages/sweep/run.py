"""A sweep: every point drawn and scored with the network loaded once, resumed point by point.

The work goes to a hidden folder (`gmtool.artifacts.outputs`), a file per point, by a key of everything that its figures
depend on; an earlier sweep in the same place is looked through too, so that a larger grid draws only what is new. Of
several processes each takes its share of the points, and the first puts them together.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from gmtool import __version__
from gmtool.artifacts.files import check_space, new_part_of, reserve, written_aside
from gmtool.artifacts.manifest import Input, Manifest, fingerprint
from gmtool.artifacts.sweep import MANIFEST, TABLE
from gmtool.distributed import World
from gmtool.errors import NotFinite, UserError
from gmtool.evaluation.report import Figure
from gmtool.evaluation.sweep_plots import draw_sweep
from gmtool.evaluation.sweep_table import Sweep, SweepPoint, parse_point, read_sweep
from gmtool.progress import Progress
from gmtool.runtime import allow_tf32, compute_dtype
from gmtool.sampling.decoder import decoder_of
from gmtool.sampling.drawing import Drawing
from gmtool.sampling.model import TrainedModel
from gmtool.settings import as_arguments, as_flat, make, settings_of
from gmtool.stages.evaluate.config import EvaluateConfig
from gmtool.stages.sweep.config import SweepConfig
from gmtool.stages.sweep.judge import Judge, open_judge
from gmtool.stages.sweep.plan import SweepPlan, plan_sweep
from gmtool.stages.sweep.points import PlannedPoint
from gmtool.tokenizers.base import Tokenizer
from gmtool.tokenizers.rae import decoder_inputs

POINTS = "points"
"""In the unfinished folder: the files of points that are done."""


@dataclass(frozen=True)
class SweepReport:
    """The folder, what was found, and how many of its points were drawn now."""

    folder: Path
    sweep: Sweep
    drawn: int


@dataclass(frozen=True, eq=False)
class SweepTask:
    """A point, and its key."""

    point: PlannedPoint
    key: str


def sweep(paths: Sequence[Path], output: Path | None, config: SweepConfig, progress: Progress) -> SweepReport:
    """Draw and score every point of a grid into a folder of a table and plots, which replaces an earlier sweep.

    paths: runs, and the folder to write where the last of several is no run; see `places`. Raises what `plan_sweep`
    does, UserError for images that cannot be read or do not fit the samples, and for runs whose images differ in size;
    MachineError when the images of a point do not fit on the disk.
    """
    plan = plan_sweep(paths, output, config, progress)
    allow_tf32(False)  # figures are to be those of any other device
    for line in plan.notes():
        progress.note(line)
    world, part = plan.world, plan.output.part
    tokenizers = open_tokenizers(plan)
    side, decoder = _common_side(tokenizers), decoder_inputs(config.decoder)
    with plan.output.locked(world.first):
        check_space(plan.output.target, _bytes_needed(plan, side), "the folder")
        judge = open_judge(plan, side, progress)
        keys = keys_of(plan, judge, decoder)
        tasks = [SweepTask(point, key) for point, key in zip(plan.grid.points, keys, strict=True)]
        if world.first:
            (part / POINTS).mkdir(parents=True, exist_ok=True)
        scored = set(world.tell(list(finished(part, plan.output.target))))
        missing = [task for task in tasks if task.key not in scored]
        done = sum(task.point.work for task in tasks) - sum(task.point.work for task in missing)
        _score_share(plan, judge, tokenizers, shared(missing, world), done, progress)
        world.barrier()
        known = finished(part, plan.output.target)
        table = _table(plan, judge, tasks, known)
        world.barrier()  # until all have read it
        if world.first:
            _write(plan, table, decoder)
            plan.output.publish()
        world.barrier()
    return SweepReport(plan.output.path, table, len(missing))


def open_tokenizers(plan: SweepPlan) -> Mapping[Path, Tokenizer]:
    """The tokenizers that decode the samples, by the run's path.

    Raises UserError where one cannot, MachineError when a decoder cannot be fetched.
    """
    tokenizers = {}
    for run in plan.runs:
        with plan.world.first_before_others():  # which may fetch the decoder
            tokenizer, no_images = decoder_of(run, plan.config.decoder, plan.world.device)
        if tokenizer is None:
            raise UserError(f"the samples of {run.path} are scored as images: {no_images}")
        tokenizers[run.path] = tokenizer
    return tokenizers


def _common_side(tokenizers: Mapping[Path, Tokenizer]) -> int:
    """The side of all images, in pixels. Raises UserError where runs have different ones."""
    sides = {tokenizer.image_size: path for path, tokenizer in tokenizers.items()}
    if len(sides) > 1:
        words = " and ".join(f"{path} {side} px" for side, path in sides.items())
        raise UserError(f"the runs draw images of different sizes ({words}): sweep them apart")
    return next(iter(sides))


def _bytes_needed(plan: SweepPlan, side: int) -> int:
    """Bytes of the images of one point in every process."""
    return 3 * side**2 * max(len(point.drawing) for point in plan.grid.points) * plan.world.size


def keys_of(plan: SweepPlan, judge: Judge, decoder: Sequence[Input]) -> Iterator[str]:
    """For each point, a digest of everything that its figures depend on except the device and the batch size."""
    shared = {
        "gmtool": __version__,
        "extractors": judge.names,
        "reference": plan.reference.fingerprint,
        "metrics": asdict(plan.config.metrics),
        "seed": plan.config.seed,
        "decoder": [used.fingerprint for used in decoder] or None,
    }
    for point in plan.grid.points:
        own = {
            "inputs": [source.fingerprint for source in point.inputs],
            "run": point.run.manifest.fingerprint,
            "plan": asdict(point.drawing.plan),
            "selection": asdict(point.config.selection),
            "precision": point.config.precision,
        }
        yield fingerprint([json.dumps({**shared, **own}, sort_keys=True, default=str)])


def finished(*folders: Path) -> dict[str, SweepPoint]:
    """The points by key that were scored in unfinished and finished folders of sweeps; what is damaged is left out."""
    points: dict[str, SweepPoint] = {}
    for folder in folders:
        with suppress(UserError):
            points |= {point.key: point for point in read_sweep(folder).points}
        for file in sorted((folder / POINTS).glob("*.json")):
            with suppress(OSError, ValueError, KeyError, TypeError):
                point = parse_point(json.loads(file.read_text()))
                points[point.key] = point
    return points


def shared(missing: Sequence[SweepTask], world: World) -> list[SweepTask]:
    """This process's share of the points, by their work: each in turn goes to the process with the least so far."""
    loads = [0] * world.size
    own = []
    for task in missing:
        rank = loads.index(min(loads))
        loads[rank] += task.point.work
        own += [task] if rank == world.rank else []
    return own


def _score_share(
    plan: SweepPlan,
    judge: Judge,
    tokenizers: Mapping[Path, Tokenizer],
    own: Sequence[SweepTask],
    done: int,
    progress: Progress,
) -> None:
    """Draw and score this process's points, each into its file; done: evaluations for points that were found."""
    device, part = plan.world.device, plan.output.part
    images = new_part_of(plan.output.work / "images.npy")
    progress.begin("sweep", done + sum(task.point.work for task in own), "evaluations", done)
    with ExitStack() as stack:
        stack.callback(progress.end)
        stack.callback(images.unlink, missing_ok=True)
        mixture, loaded = stack.enter_context(ExitStack()), None
        for number, task in enumerate(own, 1):
            drawing, config = task.point.drawing, task.point.config
            weights = (drawing.weights, None if drawing.guide is None else drawing.guide.weights)
            if weights != loaded:
                mixture.close()
                model = drawing.load(device, compute_dtype(config.precision, device), config.compile, mixture)
                loaded = weights
            within = PointProgress(progress, task.point.evaluations, number, len(own))
            figures: tuple[Figure, ...] = ()
            try:
                drawn = _draw(plan, drawing, model, tokenizers[drawing.run.path], images, within)
                figures = judge.figures(drawing.run, drawn, within)
            except NotFinite as error:
                progress.note(f"{drawing.run.path}, {drawing.plan.words}: no figures, {error}")
            with written_aside(part / POINTS / f"{task.key}.json") as aside:
                aside.write_text(json.dumps(asdict(_row(plan, judge, task, figures))))


class PointProgress(Progress):
    """The progress that a point reports to its sweep: the images that were drawn, and notes."""

    def __init__(self, progress: Progress, evaluations: int, number: int, count: int) -> None:
        self._progress, self._evaluations = progress, evaluations
        self._shown = {"point": number, "of": count}

    def drawn(self, images: int) -> None:
        """Report images that were drawn."""
        self._progress.advance(images * self._evaluations, self._shown)

    def note(self, message: str) -> None:
        """See `Progress.note`."""
        self._progress.note(message)


def _draw(
    plan: SweepPlan, drawing: Drawing, model: TrainedModel, tokenizer: Tokenizer, file: Path, progress: PointProgress
) -> np.ndarray:
    """The images of a point, uint8 (N, S, S, 3), in a file, since they need not fit in memory.

    Raises MachineError where the disk cannot hold them.
    """
    side = tokenizer.image_size
    images = np.lib.format.open_memmap(file, "w+", np.uint8, (len(drawing), side, side, 3))
    reserve(file, file.stat().st_size)  # a write to a page without a place on a full disk would end the process
    for batch in drawing.batches(plan.config.batch_size):
        pictures = tokenizer.decode(drawing.draw(model, batch), truncate=drawing.plan.truncates)
        images[batch.start : batch.stop] = pictures.permute(0, 2, 3, 1).cpu().numpy()
        progress.drawn(len(batch))
    return images


def _row(plan: SweepPlan, judge: Judge, task: SweepTask, figures: tuple[Figure, ...]) -> SweepPoint:
    """The row of a point."""
    point, drawing = task.point, task.point.drawing
    return SweepPoint(
        key=task.key,
        run=str(point.run.path),
        settings=point.settings,
        plan=json.loads(json.dumps(asdict(drawing.plan))),
        seed=drawing.plan.seed,
        checkpoint=drawing.checkpoint.step,
        evaluations=point.evaluations,
        images=len(drawing),
        figures=figures,
        command=command_of(plan, judge, task),
    )


def command_of(plan: SweepPlan, judge: Judge, task: SweepTask) -> str:
    """The commands that reproduce the samples of a point and their scores."""
    samples = f"samples-{task.key[:8]}"
    config = plan.config
    names = settings_of(EvaluateConfig).keys() & settings_of(SweepConfig).keys()
    given = {name: value for name, value in as_flat(config).items() if name in names}
    scoring = make(EvaluateConfig, {**given, "features": ",".join(judge.names)})
    drawing = ["gmtool", "sample", str(task.point.run.path), samples, *as_arguments(task.point.config)]
    return f"{shlex.join(drawing)} && {shlex.join(['gmtool', 'eval', samples, *as_arguments(scoring)])}"


def _table(plan: SweepPlan, judge: Judge, tasks: Sequence[SweepTask], known: Mapping[str, SweepPoint]) -> Sweep:
    """The table of all points; what is told of a point beside its figures is as in this sweep."""
    first = next(iter(judge.names))
    return Sweep(
        axes=plan.grid.axes,
        points=tuple(_row(plan, judge, task, known[task.key].figures) for task in tasks),
        skipped=plan.grid.skipped,
        features=first,
        extractor=judge.names[first],
        reference=str(plan.reference.path),
        reference_kind=plan.reference.kind,
        reference_fingerprint=plan.reference.fingerprint,
    )


def _write(plan: SweepPlan, table: Sweep, decoder: Sequence[Input]) -> None:
    """Write the table and the plots into the unfinished folder, and clear it of the points."""
    part = plan.output.part
    inputs = dict.fromkeys(source for point in plan.grid.points for source in point.inputs)
    settings = json.loads(json.dumps(as_flat(plan.config), default=str))
    manifest = Manifest(
        kind="sweep",
        stage="sweep",
        fingerprint=fingerprint([table.to_csv()]),
        config=settings,
        inputs=(*inputs, *decoder),
        details=table.to_details(),
    )
    (part / TABLE).write_text(table.to_csv())
    draw_sweep(table, part)
    with written_aside(part / MANIFEST) as aside:
        aside.write_text(manifest.to_json())
    shutil.rmtree(part / POINTS)
