"""A resolved distillation: the teacher, checked, and the run of its student with all defaults resolved."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gmtool.artifacts.gmm import GmmFile, expect_latents
from gmtool.artifacts.latents import LatentsFile, open_latents
from gmtool.artifacts.method_record import MethodRecord, StudentRecord
from gmtool.artifacts.run import RunFolder, open_run
from gmtool.data.fraction import part_flags
from gmtool.errors import UserError
from gmtool.forecast import Choice
from gmtool.nn import default_lr, model_names
from gmtool.nn.architecture import Architecture
from gmtool.runtime import planned_dtype
from gmtool.sampling.drawing import Drawing
from gmtool.sampling.guide import open_weaker
from gmtool.sampling.model import find_weights, run_mixture
from gmtool.sampling.plan import make_plan
from gmtool.sampling.settings import SamplingSettings, WeightSettings
from gmtool.settings import as_flat
from gmtool.stages.distill.config import COMPONENTS, POINTS, DistillConfig
from gmtool.stages.train.plan import DataFacts, TrainPlan
from gmtool.training.cost import Teaching

RATE_SHARE = 0.25
"""Default learning rate relative to that of the teacher's network, as in pi-Flow."""
DEFAULT_RATE = 5e-5
"""Default learning rate for a network without a name, such as an imported one."""


@dataclass(frozen=True)
class Sources:
    """The open files that a student is trained on: latents, None without data; the mixture, None where none enters."""

    latents: LatentsFile | None
    gmm: GmmFile | None


def open_teacher(path: Path, config: DistillConfig) -> Drawing:
    """A run as a teacher: its newest EMA weights, guided. Raises UserError, naming the flag, for what cannot teach."""
    run = open_run(path)
    if run.method.student is not None:
        raise UserError(f"{path} is a student itself: give the run that it learned from")
    asked = config.guidance
    sampling = SamplingSettings(
        guidance=asked.guidance,
        guidance_scale=asked.guidance_scale,
        guide=asked.guide,
        guidance_interval=asked.guidance_interval,
        orthogonal=asked.orthogonal,
    )
    plan = make_plan(sampling, run.method, run.architecture.spectral, config.seed)
    checkpoint, weights = find_weights(WeightSettings(checkpoint=config.student.teacher_checkpoint), run)
    guide = None if asked.guide is None else open_weaker(run, asked.guide)
    if guide is not None and guide.run.method.mode_mean and not run.method.mode_mean:
        raise UserError(f"--guide {asked.guide} is shown the means of modes, which {path} is not: use another")
    return Drawing(run, plan, np.zeros(0, np.int64), None, checkpoint, weights, guide, config.data.gmm)


def open_sources(run: RunFolder, config: DistillConfig, stack: ExitStack) -> Sources:
    """The latents and the mixture of a student of ``run``, which ``stack`` closes.

    Raises UserError for other latents than the teacher's or none, and for a mixture that is missing or another one.
    """
    gmm = None
    if run.method.uses_mode_statistics or (run.method.uses_modes and not config.student.data_free):
        gmm = run_mixture(run, config.data.gmm, stack)
    if config.student.data_free:
        if run.method.condition == "class" and not run.sampled_classes:
            raise UserError(f"--data-free draws classes, and {run.path} knows none by name: give --latents instead")
        return Sources(None, gmm)
    known = run.manifest.input("latents")
    path = config.student.latents or (None if known is None else Path(known.path))
    if path is None:
        raise UserError(f"{run.path} does not say which latents it was trained on: give --latents, or --data-free")
    if not path.exists():
        raise UserError(f"the latents of {run.path}, {path}, do not exist: give --latents, or --data-free")
    latents = stack.enter_context(open_latents(path))
    _check_latents(run, latents)
    if gmm is not None:
        expect_latents(gmm, latents, "use --data-free")  # an imported run's, which names no latents
    return Sources(latents, gmm)


def fraction_of(config: DistillConfig, run: RunFolder, gmm: GmmFile | None) -> float:
    """The fraction of its teacher's latents that a student of ``run`` is trained on: the asked one, else the teacher's.

    Raises UserError for a part with images that the teacher was kept from, unless all are asked for, of which a mixture
    of the teacher's part would not know the modes.
    """
    asked, (known, seed) = config.data.fraction, run.part
    if config.student.data_free or config.data.images is not None:
        return 1.0
    fraction = known if asked is None else asked
    within = known == 1 or (fraction <= known and config.seed == seed)
    if not within and (asked != 1 or gmm is not None):
        its, own = (" ".join(part_flags(*part)) for part in ((known, seed), (fraction, config.seed)))
        every = "" if gmm is not None else ", or --fraction 1 to train on all latents"
        raise UserError(
            f"{run.path} was trained with {its}, and its student with {own} would see other images: use {its}{every}"
        )
    return fraction


def _check_latents(run: RunFolder, latents: LatentsFile) -> None:
    known, shape = run.manifest.input("latents"), run.architecture.shape
    if known is not None and known.fingerprint != latents.manifest.fingerprint:
        raise UserError(
            f"{run.path} was trained on other latents than {latents.path}: give its own by --latents, or --data-free"
        )
    if latents.shape != shape:
        wanted, actual = (" x ".join(map(str, sizes)) for sizes in (shape, latents.shape))
        raise UserError(f"{run.path} has latents of {wanted}, and {latents.path} of {actual}: give others by --latents")
    if run.method.condition == "class" and len(latents.classes) != run.architecture.classes:
        raise UserError(
            f"{run.path} knows {run.architecture.classes} classes, and {latents.path} has {len(latents.classes)}: give "
            "other --latents, or --data-free"
        )


def plan_distillation(config: DistillConfig, teacher: Drawing, sources: Sources, gpu: bool) -> TrainPlan:
    """The plan of a student. Raises UserError, naming the flag, for what its teacher cannot serve."""
    run = teacher.run
    architecture = student_architecture(config, run.architecture)
    whitened, why = _whitened(config, run)
    method = student_method(config, run.method, architecture, whitened)
    model = run.manifest.config.get("model")
    rate = RATE_SHARE * default_lr(model) if model in model_names() else DEFAULT_RATE
    schedule = config.schedule.resolve(rate, config.loop.steps)
    batch_size, own_batch = config.loop.settled_batch(gpu)
    components = architecture.components or None
    own_mixture = bool(run.architecture.components) and config.student.policy == "gm"
    coordinates = "whitened" if whitened else "plain"
    settled = (
        Choice("--components", str(components), "the teacher's")
        if config.student.components is None and own_mixture
        else None,
        Choice("--coordinates", coordinates, why) if config.student.coordinates == "auto" else None,
        own_batch,
        Choice("--lr", f"{schedule.rate:g}", "a quarter of the teacher's network's")
        if config.schedule.lr is None
        else None,
    )
    calls = config.student.evaluations if config.student.data_free else 1
    asked = calls * config.student.states * (1 if teacher.plan.guidance == "none" else 2)
    latents, fraction = sources.latents, fraction_of(config, run, sources.gmm)
    flat = {
        **as_flat(config),
        "fraction": fraction,
        "components": components,
        "coordinates": coordinates,
        "batch_size": batch_size,
        "lr": schedule.rate,
    }
    return TrainPlan(
        config=config,
        method=method,
        architecture=architecture,
        schedule=schedule,
        batch_size=batch_size,
        model=str(model),
        facts=DataFacts(architecture.shape, 0 if latents is None else len(latents), len(run.classes)),
        choices=tuple(choice for choice in settled if choice is not None),
        settings=flat,
        precision=planned_dtype(config.compute.precision, gpu),
        fraction=fraction,
        stage="distill",
        teaching=Teaching(run.architecture, run.method, asked),
        lighter="--checkpoint-activations, or a smaller teacher",
    )


def student_architecture(config: DistillConfig, teacher: Architecture) -> Architecture:
    """The student's network: its teacher's, with another head. Raises UserError for a head that it cannot begin as."""
    student = config.student
    if student.policy != "gm":
        points = student.points or POINTS
        if teacher.components:
            raise UserError(
                f"--policy {student.policy} predicts velocities, and this teacher a mixture, which it cannot begin as: "
                "use --policy gm"
            )
        return replace(teacher, velocities=points, spectral=0)
    components = student.components or teacher.components or COMPONENTS
    if components < teacher.components:
        raise UserError(
            f"--components {components}: this teacher's mixture has {teacher.components}: use as many, or more"
        )
    return replace(teacher, components=components, spectral=0)


def student_method(
    config: DistillConfig, teacher: MethodRecord, architecture: Architecture, whitened: bool
) -> MethodRecord:
    """What the student learns, as its record says it."""
    student = config.student
    record = StudentRecord(
        evaluations=student.evaluations,
        policy=student.policy,
        last_segment=student.last_segment,
        components=architecture.components,
        whitened=whitened,
        states=student.states,
        component_dropout=student.component_dropout,
        window=student.window,
        teacher_steps=student.teacher_steps,
        data_free=student.data_free,
    )
    # guidance is learned, not done: the student's condition is never hidden
    return replace(teacher, dropout=0.0, spectral_weight=1.0, student=record)


def _whitened(config: DistillConfig, run: RunFolder) -> tuple[bool, str]:
    """Whether the policy is in each mode's whitened coordinates, and why."""
    asked, record = config.student.coordinates, run.method
    taught = record.method
    if taught.coordinates.by_mode:
        if asked == "plain":
            raise UserError("--coordinates plain: this teacher's flow runs in whitened coordinates: remove the flag")
        return True, "as the teacher's flow"
    able = taught.source.by_mode and taught.coupling.own_mode and record.sees_modes
    if asked == "whitened" and not able:
        raise UserError(
            "--coordinates whitened needs a teacher that is conditioned on the mode and starts from it: train it with "
            "--source gmm --coupling mode --condition mode"
        )
    if asked == "auto" and able:
        return True, "the teacher is conditioned on the mode"
    return asked == "whitened", "as the teacher's flow"
