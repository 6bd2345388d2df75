"""What this machine does in a second, for each stage of a recipe, and how long so many images would take.

All runs through the code of the stages, with random weights and images: a chain of small files is made, and the parts
that take the time are measured on it. A network that is too large for the device is measured by a smaller one of its
kind, and scaled by their operations; the table says where.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from gmtool.artifacts.gmm import GmmFile, open_gmm
from gmtool.artifacts.latents import LatentsFile, open_latents
from gmtool.artifacts.run import latent_statistics
from gmtool.data.image_sets import find_images
from gmtool.data.images import image_batches
from gmtool.data.memory import fits_in_memory
from gmtool.data.mode_statistics import ModeFrames
from gmtool.distributed import World
from gmtool.mixture.em import Blocks, DiagonalMixture, block_rows, expected_moments, maximise
from gmtool.mixture.kmeans import kmeans
from gmtool.nn.architecture import SIZES
from gmtool.nn.build import build_network
from gmtool.nn.compile import compile_network
from gmtool.progress import Progress
from gmtool.runtime import allow_tf32, compute_dtype, resolve_device
from gmtool.sampling.plan import make_plan
from gmtool.sampling.sampler import Model, generate
from gmtool.stages.bench.config import BenchConfig
from gmtool.stages.bench.inputs import Inputs, make_inputs
from gmtool.stages.presets import Preset, load_preset
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train.inputs import TrainingData, open_data
from gmtool.stages.train.plan import architecture_for, resolve
from gmtool.throughput import Speed, device_name, keep_speed, matmul_rate, seconds_of
from gmtool.tokenizers.build import build_tokenizer
from gmtool.training.batches import mode_weights
from gmtool.training.checkpoint import Position
from gmtool.training.cost import StepCost, step_cost
from gmtool.training.micro_batch import choose_micro_batch
from gmtool.training.state import make_state
from gmtool.training.step import Stepper

CPU_BATCH, GPU_BATCH = 8, 256
"""Images of the batches that are measured."""


@dataclass(frozen=True)
class Measurement:
    """A part of a stage: its rate in ``unit`` a second, the seconds that the whole task takes, and what to know."""

    stage: str
    unit: str
    rate: float
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class BenchReport:
    """What was found. matmul: operations a second of matrix products in ``precision``; images: of the task."""

    preset: str
    device: str
    precision: str
    matmul: float
    images: int
    measurements: tuple[Measurement, ...]

    def to_json(self) -> str:
        """The report as one JSON object."""
        return json.dumps(asdict(self), indent=1)


@dataclass(frozen=True)
class _Bench:
    """What every measurement needs."""

    preset: Preset
    config: BenchConfig
    device: torch.device
    inputs: Inputs

    def seconds_of(self, action: Callable[[], object]) -> float:
        return seconds_of(action, self.device, self.config.seconds)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"


def bench(config: BenchConfig, progress: Progress) -> BenchReport:
    """Measure this machine; keep the speed of training for ``train --dry-run``.

    Raises UserError for an unknown preset or device, and when a library that the preset needs is missing.
    """
    preset, device = load_preset(config.preset), resolve_device(config.device)
    precision = compute_dtype(preset.config("train").precision, device)
    matmul = matmul_rate(device, precision, min(1.0, config.seconds))
    with tempfile.TemporaryDirectory(prefix="gmtool-bench-") as folder:
        progress.note(f"{device_name(device)}: making random images and weights")
        inputs = make_inputs(preset, Path(folder), str(device), 64 if device.type == "cuda" else CPU_BATCH)
        run = _Bench(preset, config, device, inputs)
        found: list[Measurement] = []
        for name, measure in (
            ("encode", _encoding),
            ("fit-gmm", _fitting),
            ("train and sample", lambda each: _network(each, matmul, precision)),
        ):
            progress.note(f"measuring {name}")
            found += measure(run)
    return BenchReport(preset.name, device_name(device), _name(precision), matmul, config.images, tuple(found))


def _name(precision: torch.dtype) -> str:
    return str(precision).removeprefix("torch.")


def _encoding(run: _Bench) -> list[Measurement]:
    """Reading and decoding images, by the cores; and the tokenizer, on the device."""
    asked, images = run.preset.config("encode"), find_images(run.inputs.images)
    with open_latents(run.inputs.latents) as latents:
        tokenizer = build_tokenizer(latents.tokenizer, run.device, asked.precision)
    rows = np.resize(np.arange(len(images)), 16 * CPU_BATCH)

    def decode() -> None:
        for _ in image_batches(images, tokenizer.image_size, CPU_BATCH, workers=0, rows=rows[:CPU_BATCH]):
            pass

    batch = next(image_batches(images, tokenizer.image_size, CPU_BATCH, workers=0, rows=rows)).images
    pictures = torch.from_numpy(np.resize(batch, (asked.batch_size if run.on_gpu else CPU_BATCH, *batch.shape[1:])))
    decoding = CPU_BATCH / run.seconds_of(decode)
    encoding = len(pictures) / run.seconds_of(lambda: tokenizer.encode(pictures))
    views = 2 if asked.flip == "both" else 1
    total = run.config.images
    return [
        Measurement("encode: decode", "images", decoding, total / decoding, "one core; --workers share it"),
        Measurement("encode: tokenizer", "images", encoding, views * total / encoding, "mirrored too" * (views - 1)),
    ]


def _fitting(run: _Bench) -> list[Measurement]:
    """An iteration of k-means, and one of EM, on random descriptors with as many modes as the preset's."""
    asked = run.preset.config("fit-gmm")
    with open_latents(run.inputs.latents) as latents:
        size = latents.descriptor_size
    count = max(65_536 if run.on_gpu else 4096, asked.modes)
    data = np.random.default_rng(0).standard_normal((count, size), dtype=np.float32)
    start = torch.from_numpy(data[: asked.modes]).double().to(run.device)
    weights = torch.full((asked.modes,), 1 / asked.modes, dtype=torch.float64, device=run.device)
    mixture = DiagonalMixture(weights, start, torch.ones_like(start))
    blocks = Blocks(data, block_rows(asked.modes, run.device), run.device)
    lloyd = run.seconds_of(lambda: kmeans(data, data[: asked.modes], iterations=1, device=run.device))
    climb = run.seconds_of(lambda: maximise(expected_moments(blocks, mixture), mixture, asked.em.variance_floor))
    total, found = run.config.images, []
    for name, seconds, iterations in (
        ("k-means", lloyd, asked.kmeans.iterations),
        ("EM", climb, asked.em.iterations),
    ):
        rate = count / seconds
        note = f"{asked.modes:,} modes, {iterations} iterations at most"
        found.append(Measurement(f"fit-gmm: {name}", "images an iteration", rate, iterations * total / rate, note))
    return found


def _network(run: _Bench, matmul: float, precision: torch.dtype) -> list[Measurement]:
    """A training step, and sampling."""
    with ExitStack() as stack:
        latents = stack.enter_context(open_latents(run.inputs.latents))
        gmm = stack.enter_context(open_gmm(run.inputs.gmm))
        asked: TrainConfig = replace(
            run.preset.config("train"), device=str(run.device), gmm=run.inputs.gmm, micro_batch="auto"
        )
        wanted = resolve(asked, latents, gmm, run.device)
        allow_tf32(wanted.tf32)
        batch = GPU_BATCH if run.on_gpu else min(CPU_BATCH, wanted.batch_size or CPU_BATCH)
        whole = _cost(wanted, latents, gmm, precision)
        taken, cost = _affordable(wanted, latents, gmm, precision, matmul * run.config.seconds, whole)
        config = replace(taken, batch_size=batch)
        model, stepper, data = _trainer(config, latents, gmm, run.device, precision)
        images = next(data.batches(Position()))
        speed = batch * cost.flops / run.seconds_of(lambda: stepper.take(images, 0, 0))
        keep_speed(Speed(device_name(run.device), _name(precision), matmul, speed, f"{config.model}, {batch} images"))
        note = f"{wanted.model}, {100 * speed / matmul:.0f} % of matrix products"
        if config.model != wanted.model:
            note += f"; measured on {config.model}, scaled by operations"
        rate = speed / whole.flops
        assert wanted.batch_size is not None  # resolved
        training = Measurement("train", "images", rate, wanted.steps * wanted.batch_size / rate, note)
        drawn = _sampling_rate(run, model) * cost.flops / whole.flops
        asked_for = run.preset.config("sample")
        note = f"{asked_for.num:,} images, {asked_for.steps} steps"
        return [training, Measurement("sample", "images", drawn, asked_for.num / drawn, note)]


def _cost(config: TrainConfig, latents: LatentsFile, gmm: GmmFile, precision: torch.dtype) -> StepCost:
    return step_cost(architecture_for(config, latents, gmm), config, precision)


def _affordable(
    config: TrainConfig,
    latents: LatentsFile,
    gmm: GmmFile,
    precision: torch.dtype,
    operations: float,
    whole: StepCost,
) -> tuple[TrainConfig, StepCost]:
    """The settings, or on a CPU those of the largest network of the kind that it can take a step with.

    operations: that a datum may cost.
    """
    if config.device != "cpu":
        return config, whole
    assert config.model is not None  # resolved
    names = [name for name, size in SIZES.items() if (size.wide is None) == (SIZES[config.model].wide is None)]
    names = names[: names.index(config.model) + 1][::-1]
    for name, smaller in pairwise([*names, ""]):
        tried = replace(config, model=cast(Any, name))
        cost = whole if name == config.model else _cost(tried, latents, gmm, precision)
        if not smaller or (cost.flops <= operations and fits_in_memory(cost.memory(CPU_BATCH, len(config.averages)))):
            return tried, cost
    raise AssertionError("there is always a smallest network")


def _trainer(
    config: TrainConfig, latents: LatentsFile, gmm: GmmFile, device: torch.device, precision: torch.dtype
) -> tuple[Model, Stepper, TrainingData]:
    """What is drawn from, what takes steps, and what feeds it, as in training."""
    by_class = config.condition == "class" and config.coupling == "mode"
    statistics = latent_statistics(latents, mode_weights(latents, gmm, by_class) if config.uses_modes else None)
    frames = ModeFrames(gmm, statistics, device, whitened=config.union) if config.uses_frames else None
    network = build_network(architecture_for(config, latents, gmm), 0).to(device)
    network.checkpoint_activations = config.checkpoint_activations
    if config.compile:
        compile_network(network)
    statistics, trainee = statistics.to(device), make_state(network, config)
    model = Model(trainee.averages[0].network, config, statistics, frames, device, precision)
    stepper = Stepper(config, trainee, model.autocast)
    assert config.batch_size is not None  # resolved
    stepper = replace(stepper, micro_batch=choose_micro_batch(stepper, config, config.batch_size, device))
    return model, stepper, open_data(latents, gmm, config, statistics, frames, World(device=device))


def _sampling_rate(run: _Bench, model: Model) -> float:
    """Images a second, by the preset's sampler; its guide, if it has one, left out."""
    asked = run.preset.config("sample")
    if asked.guidance == "auto":
        asked = replace(asked, guidance="none", guide=None, guidance_scale=None)
    count = GPU_BATCH // 4 if run.on_gpu else 1
    plan, classes = make_plan(asked, model.config), torch.zeros(count, dtype=torch.long)
    return count / run.seconds_of(lambda: generate(model, plan, range(count), classes))
