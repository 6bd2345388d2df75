"""Training: open the inputs, plan, create or resume the run, and loop."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from gmtool.artifacts.files import check_space
from gmtool.artifacts.latents import open_latents
from gmtool.artifacts.manifest import Input, Manifest, fingerprint
from gmtool.artifacts.run import (
    CONFIG,
    RunFolder,
    check_place,
    create_run,
    locked,
    open_run,
    run_details,
    update_settings,
)
from gmtool.data.image_sets import expect_outside
from gmtool.distributed import World, join
from gmtool.errors import UserError
from gmtool.nn.build import build_network
from gmtool.nn.compile import compile_network
from gmtool.nn.network import Network
from gmtool.progress import Progress
from gmtool.runtime import allow_tf32
from gmtool.sampling.model import TrainedModel
from gmtool.stages.resumed_settings import FREE_TO_CHANGE, all_taken, another, expect_same_settings, is_known
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train.inputs import TrainInputs, files_of, open_data, open_inputs
from gmtool.stages.train.monitoring import is_watched, monitoring_of
from gmtool.stages.train.plan import (
    TrainPlan,
    expect_part,
    facts_of,
    open_mixture,
    plan_training,
    recorded_settings,
)
from gmtool.training.checkpoint import Position, checkpoint_bytes, keep_checkpoint
from gmtool.training.focal import ModeLosses
from gmtool.training.loop import Loop
from gmtool.training.micro_batch import check_shares, choose_micro_batch, tell_micro_batch
from gmtool.training.recovery import resume, roll_back
from gmtool.training.state import TrainState, make_state
from gmtool.training.step import Stepper
from gmtool.training.task import task_of

FREE = FREE_TO_CHANGE | {"gmm", "images", "latents", "shard"}
"""Settings that a resumed run may change; the files that they name are compared by their content."""


@dataclass(frozen=True)
class TrainReport:
    """The run, its steps taken before and in all, its number of parameters, and how it was planned."""

    folder: Path
    resumed_from: int
    steps: int
    parameters: int
    plan: TrainPlan


def train(latents_path: Path, run_path: Path, config: TrainConfig, progress: Progress) -> TrainReport:
    """Train a network on latents, or resume a run with the same settings.

    Raises UserError for inputs that do not fit together and for another run in ``run_path``; MachineError when the
    checkpoints will not fit on the disk.
    """
    with ExitStack() as stack:
        latents = stack.enter_context(open_latents(latents_path))
        gmm = open_mixture(latents, config, stack)
        world = join(config.compute.device)
        plan = plan_training(config, facts_of(latents, gmm), gpu=world.device.type == "cuda")
        check_machine(plan, world)
        used = files_of(plan, latents, gmm)
        begun = open_begun(run_path, plan, used)
        world.barrier()  # all have looked, before the first one makes the run
        if begun is None and gmm is not None and plan.method.uses_modes:
            expect_part(gmm, latents, config)
        inputs = open_inputs(plan, latents, gmm, world, None if begun is None else begun.statistics(), progress)
        return run_training(inputs, used, run_path, progress)


def check_machine(plan: TrainPlan, world: World) -> None:
    """Raise UserError where processes cannot share the work, or what is asked for is not installed."""
    check_shares(plan.batch_size, world)
    if plan.config.compute.shard and world.size == 1:
        raise UserError(
            f"--shard needs several processes: torchrun --nproc-per-node N -m gmtool -- {plan.stage}, or remove it"
        )
    plan.config.logging.check_installed()
    plan.config.optimizer.check_installed()


def run_training(inputs: TrainInputs, used: Sequence[Input], run_path: Path, progress: Progress) -> TrainReport:
    """Create the run of the given inputs, or resume it, and take its steps. Raises what `train` does.

    used: see `files_of`.
    """
    plan, world, config = inputs.plan, inputs.world, inputs.plan.config
    allow_tf32(config.compute.tf32)
    state = new_state(inputs)
    parameters = sum(weights.numel() for weights in state.network.parameters())
    report = TrainReport(run_path, 0, config.loop.steps, parameters, plan)
    with ExitStack() as stack:
        with world.first_before_others():
            if world.first:
                stack.enter_context(locked(run_path))
            run = open_begun(run_path, plan, used) or _create(run_path, inputs, used, parameters)
        at = resume(run_path, run.checkpoints, state, progress, world)
        if at.step >= config.loop.steps:
            progress.note(all_taken(run_path, at.step, config.schedule.follows_the_steps))
            _make_up(run, inputs, state, at, progress)
            return replace(report, resumed_from=at.step, steps=at.step)
        needed = (config.loop.keep + 1) * checkpoint_bytes(parameters, config.averages, config.optimizer)
        check_space(run.checkpoints, needed, "the folder", inside=True)
        for choice in plan.choices:
            progress.note(f"{choice.flag} {choice.value}: {choice.why}")
        if world.first:
            update_settings(run, plan.settings)
        _loop(run, inputs, state, at, progress)
        return replace(report, resumed_from=at.step)


def _make_up(run: RunFolder, inputs: TrainInputs, state: TrainState[Network], at: Position, progress: Progress) -> None:
    """Draw and score what a run was killed before, after its last checkpoint."""
    settings, world = inputs.plan.config.logging, inputs.world
    if not world.any(world.first and not is_watched(run, settings, at.step)):
        return
    with ExitStack() as stack:
        monitoring = monitoring_of(run, inputs, averaged_model(inputs, state), progress, stack)
        for logger in monitoring.loggers:
            logger.begin(at.step)
        for event in monitoring.events:
            event.make_up(at.step, inputs.plan.config.loop.steps, world)


def new_state(inputs: TrainInputs) -> TrainState[Network]:
    """The network, its averages and its optimizer at the start of a run, on the device.

    The shards of a sharded network are moved to the device later, one after another.
    """
    plan, world, gmm = inputs.plan, inputs.world, inputs.gmm
    config = plan.config
    checkpointing = config.compute.checkpoint_activations
    network = build_network(plan.architecture, config.seed, checkpoint_activations=checkpointing)
    if inputs.teacher is not None:
        inputs.teacher.begin(network, config.seed)
    if not config.compute.shard:
        network = network.to(world.device)
    focal = None
    if plan.focal and gmm is not None:
        focal = ModeLosses(len(gmm), plan.focal).to(world.device)
    state = make_state(
        network,
        config.optimizer,
        config.averages,
        plan.schedule.rate,
        plan.batch_size,
        focal=focal,
        sharded=config.compute.shard,
        world=world,
    )
    if config.compute.compile:
        compile_network(network)
    return state


def averaged_model(inputs: TrainInputs, state: TrainState[Network]) -> TrainedModel:
    """The model for previews and scores during training: the first average of the weights."""
    plan, network, device = inputs.plan, state.averages[0].network, inputs.world.device
    return TrainedModel.of(plan.method, network, inputs.statistics, inputs.modes, device, plan.precision)


def make_stepper(inputs: TrainInputs, state: TrainState[Network]) -> tuple[TrainedModel, Stepper]:
    """The model to sample from while a run is trained, and the stepper of its training, with the micro-batch resolved.

    Raises UserError for a micro-batch that does not divide the batch, MachineError when not even one sample fits.
    """
    plan, world = inputs.plan, inputs.world
    config, model = plan.config, averaged_model(inputs, state)
    teach = None if inputs.teacher is None else inputs.teacher.of(model.method)
    task = task_of(plan.method, state.network, teach)
    stepper = Stepper(task, state, plan.schedule, config.optimizer.clip_at, model.autocast, world, lighter=plan.lighter)
    count, wanted, estimate = plan.batch_size // world.size, config.loop.micro_batch, None
    if config.compute.shard:
        estimate = partial(plan.cost().memory, averages=len(state.averages), shards=world.size)
    size = choose_micro_batch(stepper, wanted, count, world.device, estimate)
    return model, replace(stepper, micro_batch=size)


def _loop(run: RunFolder, inputs: TrainInputs, state: TrainState[Network], at: Position, progress: Progress) -> None:
    """Take a run's steps from a position on, going back to a checkpoint where training diverges."""
    plan, world = inputs.plan, inputs.world
    loop_settings = plan.config.loop
    with world.first_before_others():  # which may fetch the tokenizer of --images
        data = open_data(inputs)

    def save(position: Position) -> None:
        files = state.tensors(world)
        if world.first:
            keep_checkpoint(run.checkpoints, position, files, loop_settings)

    def go_back(position: Position) -> Position:
        return roll_back(run.checkpoints, position, state, progress, world)

    model, stepper = make_stepper(inputs, state)
    tell_micro_batch(stepper.micro_batch, plan.batch_size, world, progress)
    with ExitStack() as stack:
        monitoring = monitoring_of(run, inputs, model, progress, stack)
        loop = Loop(loop_settings, stepper, save, monitoring.loggers, monitoring.events, monitoring.pace)
        loop.run_through(data.batches, at, plan.config.seed, progress, go_back)


def open_begun(path: Path, plan: TrainPlan, used: Sequence[Input]) -> RunFolder | None:
    """The run in ``path`` that the same settings and inputs began; None where there is none yet.

    Raises UserError for another run, and for a folder that is none.
    """
    check_place(path)
    if not (path / CONFIG).exists():
        if plan.config.data.images is not None:
            expect_outside(path, plan.config.data.images)
        return None
    run = open_run(path)
    if run.manifest.stage != plan.stage:
        raise UserError(f"{path} is a run of gmtool {run.manifest.stage}: choose another folder")
    _expect_same(run, plan, used)
    return run


def _create(path: Path, inputs: TrainInputs, used: Sequence[Input], parameters: int) -> RunFolder:
    """A new run in ``path``."""
    plan = inputs.plan
    settings, origin = plan.settings, inputs.origin()
    method = None if plan.method.student is None else plan.method
    manifest = Manifest(
        kind="run",
        stage=plan.stage,
        fingerprint=fingerprint([repr(sorted(settings.items())), *(entry.fingerprint for entry in used)]),
        config=settings,
        inputs=tuple(used),
        details=run_details(plan.architecture, plan.config.averages.names, parameters, origin, method),
    )
    return create_run(path, manifest, inputs.statistics, origin.tokenizer)


def _expect_same(run: RunFolder, plan: TrainPlan, inputs: Sequence[Input]) -> None:
    """Raise UserError unless the run began with these settings, as far as they enter a step, and these inputs."""
    free = FREE - {"steps"} if plan.config.schedule.follows_the_steps else FREE
    if not plan.method.method.objective.mixture:  # without effect, but earlier versions recorded their defaults
        free |= {"components", "transition_ratio"}
    config_class = type(plan.config)
    before, now = recorded_settings(run.manifest.config), plan.settings
    expect_same_settings(run.path, config_class, before, now, free)
    if (before["images"] is None) != (now["images"] is None):
        how = "without" if before["images"] is None else "with"
        raise UserError(f"{run.path} was begun {how} --images: repeat its settings to resume, or choose another folder")
    for entry in inputs:
        if not is_known(entry, run.manifest.input(entry.role)):
            raise UserError(f"{run.path} was trained on {another(entry.role)} than {entry.path}: choose another folder")
