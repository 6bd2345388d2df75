"""Training a decoder: plan, create or resume, and loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from gmtool.artifacts.decoder_run import (
    TRAINING,
    DecoderRun,
    create_decoder_run,
    open_decoder_run,
    update_decoder_settings,
)
from gmtool.artifacts.files import check_space
from gmtool.artifacts.manifest import Input, Manifest, fingerprint
from gmtool.artifacts.run import check_place, locked
from gmtool.artifacts.safetensors_io import tensor_checksum
from gmtool.data.image_sets import expect_outside
from gmtool.distributed import World, join
from gmtool.errors import UserError
from gmtool.nn.compile import compile_network
from gmtool.progress import Progress
from gmtool.reconstruction.augmentation import Augmentation
from gmtool.reconstruction.discriminator import DinoFeatures, Discriminator
from gmtool.reconstruction.discriminator_weights import load_features
from gmtool.reconstruction.network import DecoderNetwork, save_decoder
from gmtool.reconstruction.perceptual import Lpips, load_lpips, vgg_file
from gmtool.reconstruction.state import DecoderState, make_discriminator_state
from gmtool.reconstruction.step import DecoderStepper, DiscriminatorLoss, ImageBatch, Weights
from gmtool.runtime import allow_tf32, autocast, to_device
from gmtool.settings import as_flags
from gmtool.stages.resumed_settings import FREE_TO_CHANGE, all_taken, another, expect_same_settings, is_known
from gmtool.stages.train_decoder.config import TrainDecoderConfig
from gmtool.stages.train_decoder.forecast import cost_of
from gmtool.stages.train_decoder.monitoring import HeldOut, events_of
from gmtool.stages.train_decoder.plan import TrainDecoderPlan, plan_decoder
from gmtool.tokenizers.base import Tokenizer
from gmtool.tokenizers.build import build_tokenizer, facts_of_models
from gmtool.training.batches import ahead
from gmtool.training.checkpoint import Position, checkpoint_bytes, keep_checkpoint
from gmtool.training.logging import loggers_for
from gmtool.training.loop import Loop
from gmtool.training.micro_batch import check_shares, choose_micro_batch, tell_micro_batch
from gmtool.training.recovery import resume, roll_back
from gmtool.training.settings import OptimizerSettings
from gmtool.training.state import make_state
from gmtool.training.throughput import meter_of

FREE = FREE_TO_CHANGE | {"validation", "hold_out", "init", "tokenizer", "lpips_weights", "discriminator_weights"}
"""Settings that a resumed run may change: a step does not depend on them, or what they name is compared by content."""


@dataclass(frozen=True)
class TrainDecoderReport:
    """The folder, the steps taken before and in all, the decoder's number of parameters."""

    folder: Path
    resumed_from: int
    steps: int
    parameters: int


@dataclass(frozen=True, eq=False)
class _Parts:
    """The parts of a run, in memory."""

    plan: TrainDecoderPlan
    world: World
    tokenizer: Tokenizer
    perceptual: Lpips | None
    state: DecoderState

    def autocast(self) -> AbstractContextManager[object]:
        return autocast(self.world.device, self.plan.precision)

    @property
    def parameters(self) -> int:
        return sum(weights.numel() for weights in self.state.decoder.network.parameters())


def train_decoder(images: Path, folder: Path, config: TrainDecoderConfig, progress: Progress) -> TrainDecoderReport:
    """Train a decoder on images, or resume its training with the same settings.

    Raises UserError for what does not go together, and for another decoder in ``folder``; MachineError when weights
    cannot be fetched, or checkpoints will not fit on the disk.
    """
    with ExitStack() as stack:
        world = join(config.compute.device)
        if world.first:
            check_place(folder, TRAINING, "decoder")
        with world.first_before_others():
            plan = plan_decoder(images, config, gpu=world.device.type == "cuda")
            for read in (plan.crops.images.root, plan.held_out.root) if not (folder / TRAINING).exists() else ():
                expect_outside(folder, read)
        check_shares(plan.batch_size, world)
        config.logging.check_installed()
        config.optimizer.check_installed()
        allow_tf32(config.compute.tf32)
        with world.first_before_others():  # which may fetch weights
            networks = _load(plan, world.device, progress)
        parts = _make_parts(plan, networks, world)
        with world.first_before_others():
            if world.first:
                stack.enter_context(locked(folder, TRAINING))
            run = _create_or_open(folder, parts)
        at = resume(folder, run.checkpoints, parts.state, progress, world)
        report = TrainDecoderReport(folder, at.step, max(config.loop.steps, at.step), parts.parameters)
        if at.step >= config.loop.steps:
            progress.note(all_taken(folder, at.step, config.follows_the_steps))
        else:
            _tell(parts, folder, progress)
            needed = (config.loop.keep + 2) * checkpoint_bytes(parts.parameters, config.averages, config.optimizer)
            check_space(run.checkpoints, needed, "the folder", inside=True)
            if world.first:
                update_decoder_settings(run, plan.settings)
        _loop(run, parts, at, progress)
        return report


@dataclass(frozen=True, eq=False)
class _Networks:
    """Networks in memory: those that others made, and the decoder at its start."""

    tokenizer: Tokenizer
    perceptual: Lpips | None
    features: DinoFeatures | None
    decoder: DecoderNetwork


def _load(plan: TrainDecoderPlan, device: torch.device, progress: Progress) -> _Networks:
    """The networks of a planned run; their weights are fetched if need be."""
    config, perceptual, features = plan.config, None, None
    tokenizer = build_tokenizer(plan.tokenizer, device, config.compute.precision)
    if config.losses.perceptual != "none":
        perceptual = load_lpips(vgg_file(config.losses.lpips_weights, progress), device)
    if plan.adversarial:
        settings = config.adversarial
        features = load_features(settings.discriminator_weights, settings.discriminator_blocks, device)
    return _Networks(tokenizer, perceptual, features, plan.network().to(device))


def _make_parts(plan: TrainDecoderPlan, networks: _Networks, world: World) -> _Parts:
    """What is trained, at its start. All processes call this together."""
    config, discriminator = plan.config, None
    if networks.features is not None:
        settings = config.adversarial
        network = Discriminator(networks.features, settings.discriminator_kernel, config.seed).to(world.device)
        optimizer = OptimizerSettings(
            betas=settings.discriminator_betas, weight_decay=settings.discriminator_weight_decay
        )
        discriminator = make_discriminator_state(network, optimizer, settings.schedule(plan.schedule).rate)
    decoder = make_state(
        networks.decoder, config.optimizer, config.averages, plan.schedule.rate, plan.batch_size, world=world
    )
    if config.compute.compile:
        compile_network(decoder.network)
    state = DecoderState(decoder, discriminator)
    return _Parts(plan, world, networks.tokenizer, networks.perceptual, state)


def _stepper(parts: _Parts) -> DecoderStepper:
    """The stepper, with its micro-batch resolved."""
    plan, world, config = parts.plan, parts.world, parts.plan.config
    adversarial = None
    if plan.adversarial:
        augmentation, settings = config.augmentation, config.adversarial
        adversarial = DiscriminatorLoss(
            Augmentation(
                augmentation.translation, augmentation.recolour, augmentation.cutout, augmentation.augment_chance
            ),
            settings.discriminator_loss,
            settings.schedule(plan.schedule),
        )
    stepper = DecoderStepper(
        encode=lambda images: parts.tokenizer.encode(images).patches,
        state=parts.state,
        schedule=plan.schedule,
        phases=plan.phases,
        weights=Weights(
            config.losses.perceptual_weight, config.adversarial.adversarial_weight, config.adversarial.adaptive_limit
        ),
        noise_tau=config.decoder.noise_tau,
        perceptual=parts.perceptual,
        adversarial=adversarial,
        clip=config.optimizer.clip_at,
        autocast=parts.autocast,
        world=world,
        lighter="--checkpoint-activations, or a smaller " + ("--size" if config.decoder.init is None else "--init"),
    )
    count = plan.batch_size // world.size
    return replace(stepper, micro_batch=choose_micro_batch(stepper, config.loop.micro_batch, count, world.device))


def _loop(run: DecoderRun, parts: _Parts, at: Position, progress: Progress) -> None:
    """Take a run's steps from a position on, rolling back where training diverges; leave the decoder in its folder."""
    plan, world, settings = parts.plan, parts.world, parts.plan.config.loop

    def export() -> None:
        if world.first:
            save_decoder(parts.state.decoder.averages[0].network, run.path, plan.tokenizer)

    def save(position: Position) -> None:
        files = parts.state.tensors(world)
        if world.first:
            keep_checkpoint(run.checkpoints, position, files, settings)
        export()

    def go_back(position: Position) -> Position:
        return roll_back(run.checkpoints, position, parts.state, progress, world)

    with ExitStack() as stack:
        loggers = loggers_for(plan.config.logging, run) if world.first else ()
        for logger in loggers:
            stack.callback(logger.close)
        average = parts.state.decoder.averages[0].network
        held_out = HeldOut(
            *(plan, parts.tokenizer, average, parts.perceptual, run.path, loggers, world), parts.autocast
        )
        events = events_of(held_out)
        if at.step >= settings.steps:  # what it was killed before, after its last checkpoint
            export()
            for logger in loggers:
                logger.begin(at.step)
            for event in events:
                event.make_up(at.step, settings.steps, world)
            return
        stepper = _stepper(parts)
        tell_micro_batch(stepper.micro_batch, plan.batch_size, world, progress)
        meter = meter_of(lambda: cost_of(plan).flops, plan.precision, world)
        loop = Loop(settings, stepper, save, loggers, events, meter)
        loop.run_through(partial(_batches, parts), at, plan.config.seed, progress, go_back)


def _batches(parts: _Parts, at: Position) -> Iterator[ImageBatch]:
    """The batches of the steps after a position."""
    plan, world, config = parts.plan, parts.world, parts.plan.config
    raw = plan.crops.batches(
        *(plan.batch_size, at.seed(config.seed), at.step, config.loop.steps, config.crops.workers),
        world.rows(plan.batch_size),
    )
    made = (ImageBatch(to_device(torch.from_numpy(images), world.device)) for images in raw)
    return ahead(made) if world.device.type == "cuda" else made


def _tell(parts: _Parts, folder: Path, progress: Progress) -> None:
    """Say in notes what is trained, and on what."""
    plan = parts.plan
    for choice in plan.choices:
        progress.note(f"{choice.flag} {choice.value}: {choice.why}")
    for name, fact in facts_of_models(plan.tokenizer):
        progress.note(f"{name}: {fact}")
    if parts.perceptual is None:
        progress.note("--perceptual none: without LPIPS reconstructions are blurred where L1 alone is undecided")
    if not plan.adversarial:
        progress.note("--adversarial none: without a discriminator fine texture is left out")
    else:
        progress.note(
            f"LPIPS from step {plan.phases.perceptual:,}, the discriminator from {plan.phases.discriminator:,}, its "
            f"loss from {plan.phases.adversarial:,}"
        )
    progress.note(f"settings: {as_flags(TrainDecoderConfig, plan.settings)}")
    progress.note(f"{folder}: {parts.parameters:,} parameters, {len(plan.crops.rows):,} images")


def _create_or_open(folder: Path, parts: _Parts) -> DecoderRun:
    """The run in ``folder``: a new one, or one that the same settings, images and weights began."""
    plan = parts.plan
    used, weights = _inputs(parts), _weights(parts)
    if (folder / TRAINING).exists():
        run = open_decoder_run(folder)
        _expect_same(run, plan, used, weights)
        return run
    manifest = Manifest(
        kind="decoder",
        stage="train-decoder",
        fingerprint=fingerprint(
            [repr(sorted(plan.settings.items())), *(entry.fingerprint for entry in used), *weights.values()]
        ),
        config=plan.settings,
        inputs=tuple(used),
        details={
            "tokenizer": {"name": plan.tokenizer.name, "settings": dict(plan.tokenizer.settings)},
            "parameters": parts.parameters,
            "averages": list(plan.config.averages.names),
            "weights": weights,
        },
    )
    return create_decoder_run(folder, manifest)


def _inputs(parts: _Parts) -> list[Input]:
    """The inputs of a run, by their fingerprints."""
    plan = parts.plan
    root = plan.crops.images.root
    return [
        Input("images", str(root.absolute()), plan.crops.images.fingerprint),
        Input("encoder", str(plan.tokenizer.settings["model"]), str(plan.tokenizer.settings["weights"])),
    ]


def _weights(parts: _Parts) -> dict[str, str]:
    """Digests of the weights that others made, by what they are for."""
    digests = {}
    if parts.perceptual is not None:
        digests["LPIPS weights"] = _digest(parts.perceptual)
    if parts.state.discriminator is not None:
        digests["discriminator weights"] = _digest(parts.state.discriminator.network.features)
    if parts.plan.config.decoder.init is not None:
        digests["decoder"] = _digest(parts.state.decoder.network)
    return digests


def _digest(network: nn.Module) -> str:
    """A digest of a network's weights."""
    weights: Mapping[str, Tensor] = network.state_dict()
    return fingerprint(
        f"{name} {tensor_checksum(tensor.cpu().contiguous())}" for name, tensor in sorted(weights.items())
    )


def _expect_same(run: DecoderRun, plan: TrainDecoderPlan, inputs: list[Input], weights: Mapping[str, str]) -> None:
    """Raise UserError unless the run began with these settings, as far as they enter a step, and these inputs."""
    free = FREE - {"steps"} if plan.config.follows_the_steps else FREE
    if plan.config.crops.validation is None:
        free -= {"hold_out"}  # which images are trained on
    expect_same_settings(run.path, TrainDecoderConfig, run.manifest.config, plan.settings, free)
    changed = [entry.role for entry in inputs if not is_known(entry, run.manifest.input(entry.role))]
    known = run.manifest.details["weights"]
    changed += [name for name, digest in weights.items() if known.get(name) != digest]
    if changed:
        raise UserError(f"{run.path} was trained with {another(changed[0])}: choose another folder")
