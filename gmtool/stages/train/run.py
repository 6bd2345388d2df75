"""Training: open the inputs, settle what was left open, create or resume the run, and loop."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from gmtool.artifacts.files import check_space, check_writable
from gmtool.artifacts.gmm import GmmFile, expect_latents, open_gmm
from gmtool.artifacts.latents import LatentsFile, open_latents
from gmtool.artifacts.manifest import Input, Manifest, fingerprint
from gmtool.artifacts.run import (
    CONFIG,
    RunFolder,
    create_run,
    is_unfinished,
    latent_statistics,
    locked,
    open_run,
    run_details,
    update_config,
)
from gmtool.data.fraction import part_of_data
from gmtool.data.image_sets import find_images
from gmtool.data.mode_statistics import ModeFrames
from gmtool.distributed import World, join
from gmtool.errors import UserError
from gmtool.nn.architecture import Architecture
from gmtool.nn.build import build_network
from gmtool.nn.compile import compile_network
from gmtool.progress import Progress
from gmtool.runtime import allow_tf32, compute_dtype
from gmtool.sampling.sampler import Model
from gmtool.settings import as_flat, as_text, flag
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train.inputs import open_data
from gmtool.stages.train.monitoring import watch
from gmtool.stages.train.plan import architecture_for, resolve
from gmtool.training.batches import mode_weights
from gmtool.training.checkpoint import Position, cut_short, list_checkpoints, remove_old, save_checkpoint
from gmtool.training.loggers import check_installed
from gmtool.training.loop import DivergedError, Loop
from gmtool.training.micro_batch import choose_micro_batch
from gmtool.training.roll_back import roll_back
from gmtool.training.state import TrainState, make_state
from gmtool.training.step import Stepper

FREE_TO_CHANGE = (
    "steps",
    "save_every",
    "keep",
    "keep_every",
    "preview_every",
    "eval_every",
    "eval_num",
    "tensorboard",
    "wandb",
    "workers",
    "micro_batch",
    "skip_limit",
    "device",
    "gmm",
    "images",
    "checkpoint_activations",
    "compile",
    "shard",
)
"""Settings that a resumed run may change: they change a step by rounding at most. A falling rate fixes ``steps``."""


@dataclass(frozen=True)
class TrainReport:
    """The run, its steps taken before and in all, its number of parameters, and its last checkpoint."""

    folder: Path
    resumed_from: int
    steps: int
    parameters: int
    config: TrainConfig


def train(latents_path: Path, run_path: Path, config: TrainConfig, progress: Progress) -> TrainReport:
    """Train a network on latents, or go on with a run that the same settings began.

    Raises UserError for inputs that do not fit together and for another run in ``run_path``; MachineError when the
    checkpoints will not fit on the disk.
    """
    with ExitStack() as stack:
        latents = stack.enter_context(open_latents(latents_path))
        gmm = open_mixture(latents, config, stack)
        world = join(config.device)
        config = resolve(config, latents, gmm, world.device)
        _check_processes(config, world)
        check_installed(config.tensorboard, config.wandb)
        allow_tf32(config.tf32)
        architecture = architecture_for(config, latents, gmm)
        network = build_network(architecture, config.seed)
        if not config.shard:  # of a sharded network the parts go to the device, one after another
            network = network.to(world.device)
        parameters = sum(each.numel() for each in network.parameters())
        report = TrainReport(run_path, 0, config.steps, parameters, config)
        with world.first_before_others():
            run = _create_or_open(run_path, latents, gmm, config, architecture, parameters)
            if world.first:
                stack.enter_context(locked(run_path))
        trainee = make_state(network, config, 0 if gmm is None else len(gmm), world)
        at = _resume(run, trainee, progress)
        if at.step >= config.steps:
            progress.note(f"{run_path} has all its {at.step} steps; a larger --steps goes on")
            return replace(report, resumed_from=at.step, steps=at.step)
        bytes_each = 4 * (3 + len(trainee.averages)) * parameters
        check_space(run.checkpoints / "next", (config.keep + 1) * bytes_each, "the checkpoints in")
        if world.first:
            update_config(run, config)
        run = replace(run, config=config)
        network.checkpoint_activations = config.checkpoint_activations
        if config.compile:
            compile_network(network)
        _loop(run, latents, gmm, trainee, world, at, progress)
        return replace(report, resumed_from=at.step)


def _loop(
    run: RunFolder,
    latents: LatentsFile,
    gmm: GmmFile | None,
    trainee: TrainState,
    world: World,
    at: Position,
    progress: Progress,
) -> None:
    """Take a run's steps from a position on, going back to a checkpoint where training diverges."""
    config, statistics, device = run.config, run.statistics(), world.device
    assert config.batch_size is not None  # resolved
    frames = (
        ModeFrames(gmm, statistics, device, whitened=config.union) if gmm is not None and config.uses_frames else None
    )
    precision = compute_dtype(config.precision, device)
    statistics = statistics.to(device)
    model = Model(trainee.averages[0].network, config, statistics, frames, device, precision)
    with world.first_before_others():  # which may fetch the tokenizer of --images
        data = open_data(latents, gmm, config, statistics, frames, world)

    def save(position: Position) -> None:
        files = trainee.tensors(world)
        if world.first:
            save_checkpoint(run.checkpoints, position, files)
            remove_old(run.checkpoints, config.keep, config.keep_every)

    stepper = Stepper(config, trainee, model.autocast, world)
    stepper = replace(stepper, micro_batch=choose_micro_batch(stepper, config, config.batch_size // world.size, device))
    if stepper.micro_batch != config.batch_size:
        processes = f" in each of {world.size} processes" if world.size > 1 else ""
        progress.note(f"{stepper.micro_batch} images at once{processes}, {config.batch_size} a step")
    with ExitStack() as stack:
        watching = watch(run, latents, model, world, progress, stack)
        loop = Loop(config, stepper, save, watching.loggers, watching.events, watching.pace)
        while True:
            try:
                return loop.run(data.batches(at), at, progress)
            except DivergedError as diverged:
                at = roll_back(run.checkpoints, diverged.position, trainee, progress, world)


def _check_processes(config: TrainConfig, world: World) -> None:
    """Raise UserError where the processes cannot share the work."""
    assert config.batch_size is not None  # resolved
    if config.batch_size % world.size:
        near = max(1, round(config.batch_size / world.size)) * world.size
        raise UserError(f"--batch-size {config.batch_size} cannot be divided among {world.size} processes: take {near}")
    if config.shard and world.size == 1:
        raise UserError("--shard needs several processes: torchrun --nproc-per-node N -m gmtool train, or drop it")


def open_mixture(latents: LatentsFile, config: TrainConfig, stack: ExitStack) -> GmmFile | None:
    """The fitted mixture that was asked for, or that lies beside the latents; None when there is none.

    A mixture beside the latents that was fitted to others is refused only where it would be used.
    """
    path = config.gmm or latents.path.with_name("gmm.h5")
    needed = config.gmm is not None or config.source == "gmm" or config.coupling == "mode"
    needed = needed or config.objective == "mm-fm" or config.condition == "mode"
    unlabelled = config.condition is None and len(latents.classes) <= 1 and config.images is None
    if not (needed or (unlabelled and path.exists())):
        return None
    gmm = stack.enter_context(open_gmm(path))
    expect_latents(gmm, latents)
    return gmm


def _create_or_open(
    path: Path,
    latents: LatentsFile,
    gmm: GmmFile | None,
    config: TrainConfig,
    architecture: Architecture,
    parameters: int,
) -> RunFolder:
    """The run in ``path``: a new one, or one that the same settings and inputs began."""
    check_writable(path, "the run")
    inputs = [Input("latents", str(latents.path.absolute()), latents.manifest.fingerprint)]
    if gmm is not None and config.uses_modes:
        inputs.append(Input("gmm", str(gmm.path.absolute()), gmm.manifest.fingerprint))
    if config.images is not None:
        inputs.append(Input("images", str(config.images.absolute()), find_images(config.images).fingerprint))
    if (path / CONFIG).exists():
        run = open_run(path)
        _expect_same(run, config, inputs)
        return run
    if path.exists() and not (path.is_dir() and is_unfinished(path)):
        raise UserError(f"{path} exists and is not a run: choose another folder")
    settings: dict[str, Any] = as_flat(config)
    weights = None
    if gmm is not None and config.uses_modes:
        # under other couplings noise knows nothing of the class, so neither does the mode that it is drawn from
        by_class = config.condition == "class" and config.coupling == "mode"
        weights = mode_weights(latents, gmm, by_class, part_of_data(latents, config.fraction, config.seed))
    manifest = Manifest(
        kind="run",
        stage="train",
        fingerprint=fingerprint([repr(sorted(settings.items())), *(each.fingerprint for each in inputs)]),
        config=settings,
        inputs=tuple(inputs),
        details=run_details(architecture, parameters, latents.classes, latents.tokenizer, latents.descriptor_size),
    )
    return create_run(path, manifest, latent_statistics(latents, weights), latents.tokenizer)


def _expect_same(run: RunFolder, config: TrainConfig, inputs: list[Input]) -> None:
    """Raise UserError unless the run began with these settings, as far as they enter a step, and these inputs."""
    fixed = [each.name for each in fields(TrainConfig) if each.name not in FREE_TO_CHANGE]
    if config.falls_to_the_end:
        fixed.append("steps")
    for name in fixed:
        before, now = getattr(run.config, name), getattr(config, name)
        if before != now:
            settings = f"{flag(name)} {as_text(before)}, not {as_text(now)}"
            raise UserError(
                f"{run.path} was begun with {settings}: repeat its settings to go on, or choose another folder"
            )
    if (run.config.images is None) != (config.images is None):
        how = "without" if run.config.images is None else "with"
        raise UserError(f"{run.path} was begun {how} --images: repeat its settings to go on, or choose another folder")
    for each in inputs:
        known = run.manifest.input(each.role)
        if known is None or known.fingerprint != each.fingerprint:
            raise UserError(
                f"{run.path} was trained on another {each.role} file than {each.path}: choose another folder"
            )


def _resume(run: RunFolder, trainee: TrainState, progress: Progress) -> Position:
    """Load the newest checkpoint that is sound into the trainee; return its position, the first for a fresh start.

    Raises UserError when there are checkpoints and none of them is sound.
    """
    damaged = [f"{path} was cut short" for path in cut_short(run.checkpoints)]
    for checkpoint in reversed(list_checkpoints(run.checkpoints)):
        try:
            trainee.load(checkpoint.path)
        except UserError as error:
            damaged.append(str(error))
            continue
        for each in damaged:
            progress.note(f"passing over a checkpoint: {each}")
        progress.note(f"resuming {run.path} at step {checkpoint.step}")
        return checkpoint.position
    if damaged:
        raise UserError(f"no checkpoint is sound, remove them to train from the start: {'; '.join(damaged)}")
    return Position()
