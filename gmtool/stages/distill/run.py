"""Distillation: open the teacher and its data, plan the student, and train it as any run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import mean

from gmtool.artifacts.run import METRICS
from gmtool.data.mode_statistics import mode_table_of
from gmtool.distributed import World, join
from gmtool.forecast import FileSize, Forecast
from gmtool.progress import Progress
from gmtool.runtime import resolve_device
from gmtool.sampling.drawing import Drawing
from gmtool.sampling.teacher import load_teacher, teacher_inputs
from gmtool.stages.distill.config import DistillConfig
from gmtool.stages.distill.plan import Sources, open_sources, open_teacher, plan_distillation
from gmtool.stages.train.forecast import forecast_of
from gmtool.stages.train.inputs import TrainInputs, files_of
from gmtool.stages.train.plan import TrainPlan
from gmtool.stages.train.run import TrainReport, check_machine, open_begun, run_training
from gmtool.training.logging import step_losses

LAP = 100
"""Steps whose mean loss is compared with that of others."""
RISE = 1.1
"""A higher loss by this factor is more than the noise of its mean."""


def distill(teacher_path: Path, run_path: Path, config: DistillConfig, progress: Progress) -> TrainReport:
    """Train a student of a run, or resume one with the same settings.

    Raises UserError, naming the flag, for a teacher that cannot teach it, for other latents, and for another run in
    ``run_path``; MachineError when the checkpoints will not fit on the disk.
    """
    with ExitStack() as stack:
        teacher = open_teacher(teacher_path, config)
        sources = open_sources(teacher.run, config, stack)
        world = join(config.compute.device)
        plan = plan_distillation(config, teacher, sources, gpu=world.device.type == "cuda")
        check_machine(plan, world)
        used = files_of(plan, sources.latents, sources.gmm, teacher_inputs(teacher))
        open_begun(run_path, plan, used)  # that another run is in the way is said before the teacher is loaded
        world.barrier()
        report = run_training(_inputs(plan, teacher, sources, world), used, run_path, progress)
        if world.first:
            note = drift_note(step_losses(run_path / METRICS), config.student.teacher_steps)
            if note is not None:
                progress.note(note)
        return report


def drift_note(losses: Sequence[float], teacher_steps: int) -> str | None:
    """What to say of a student whose loss has risen, None where it has fallen or there were too few steps to tell.

    A policy is asked where it leads. If it leads away from the data, to where its teacher knows nothing, the two may
    agree ever further out: then the loss rises above that of the beginning, which is never so of a student that learns.
    losses: of its steps; the first ``teacher_steps``, in which the teacher leads, say nothing.
    """
    own = losses[teacher_steps:]
    if len(own) < 4 * LAP:
        return None
    first, last = mean(own[:LAP]), mean(own[-LAP:])
    if last <= RISE * first:
        return None
    return (
        f"the loss rose from {first:.3g} in the first {LAP} steps to {last:.3g} in the last: the student probably "
        "leads to where its teacher knows nothing, and its samples are not like the data. Begin another one with more "
        "--evaluations, or with the teacher leading all the way: --teacher-steps as many as --steps"
    )


def forecast(teacher_path: Path, run_path: Path, config: DistillConfig) -> Forecast:
    """The cost of ``distill`` with the same arguments; nothing is written. Raises as `distill` does."""
    device = resolve_device(config.compute.device)
    with ExitStack() as stack:
        teacher = open_teacher(teacher_path, config)
        sources = open_sources(teacher.run, config, stack)
        plan = plan_distillation(config, teacher, sources, gpu=device.type == "cuda")
        used = [teacher.weights, *(file.path for file in (sources.latents, sources.gmm) if file is not None)]
        reads = tuple(FileSize(path, path.stat().st_size) for path in used)
        return forecast_of(plan, run_path, device, reads)


def _inputs(plan: TrainPlan, teacher: Drawing, sources: Sources, world: World) -> TrainInputs:
    """The open inputs of a planned student, its teacher loaded."""
    loaded = load_teacher(teacher, plan.architecture, world.device, plan.precision, plan.config.compute.compile)
    statistics = teacher.run.statistics()  # in whose coordinates the teacher's network is
    modes = mode_table_of(plan.method, sources.gmm, statistics, world.device)
    return TrainInputs(plan, sources.latents, sources.gmm, world, statistics, modes, loaded)
