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
from pathlib import Path

import numpy as np
import torch

from gmtool.artifacts.gmm import open_gmm
from gmtool.artifacts.latents import open_latents
from gmtool.data.image_sets import find_images
from gmtool.data.images import image_batches
from gmtool.data.memory import fits_in_memory
from gmtool.distributed import World
from gmtool.mixture.diagonal import DiagonalMixture
from gmtool.mixture.em import Blocks, block_rows, expected_moments, maximise
from gmtool.mixture.kmeans import Centroids, label_points, lloyd
from gmtool.nn import NETWORKS, kind_of
from gmtool.progress import Progress
from gmtool.runtime import allow_tf32, compute_dtype, resolve_device
from gmtool.sampling.model import TrainedModel
from gmtool.sampling.plan import make_plan
from gmtool.sampling.sampler import generate
from gmtool.settings import changed
from gmtool.stages.bench.config import BenchConfig
from gmtool.stages.bench.inputs import Inputs, make_inputs
from gmtool.stages.presets import Preset, load_preset
from gmtool.stages.sample.config import SampleConfig
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train.inputs import open_data, open_inputs
from gmtool.stages.train.plan import DataFacts, TrainPlan, facts_of, plan_training
from gmtool.stages.train.run import make_stepper, new_state
from gmtool.throughput import Speed, device_name, keep_speed, matmul_rate, seconds_of
from gmtool.tokenizers.build import build_tokenizer
from gmtool.training.checkpoint import Position
from gmtool.training.cost import StepCost

CPU_BATCH, GPU_BATCH = 8, 256
"""Images of the batches that are measured."""


@dataclass(frozen=True)
class StageRate:
    """A part of a stage: its rate in ``unit`` per second, the seconds that the whole task takes, and a note."""

    stage: str
    unit: str
    rate: float
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class BenchReport:
    """The results of a benchmark.

    matmul: operations per second of matrix products in ``precision``. images: number that the times are for.
    """

    preset: str
    device: str
    precision: str
    matmul: float
    images: int
    measurements: tuple[StageRate, ...]

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
    precision = compute_dtype(preset.config("train").compute.precision, device)
    matmul = matmul_rate(device, precision, min(1.0, config.seconds))
    with tempfile.TemporaryDirectory(prefix="gmtool-bench-") as folder:
        progress.note(f"{device_name(device)}: making random images and weights")
        inputs = make_inputs(preset, Path(folder), str(device), 64 if device.type == "cuda" else CPU_BATCH)
        run = _Bench(preset, config, device, inputs)
        measurements: list[StageRate] = []
        for name, measure in (
            ("encode", _encoding),
            ("fit-gmm", _fitting),
            ("train and sample", lambda run: _network(run, matmul, precision)),
        ):
            progress.note(f"measuring {name}")
            measurements += measure(run)
    return BenchReport(preset.name, device_name(device), _name(precision), matmul, config.num, tuple(measurements))


def _name(precision: torch.dtype) -> str:
    return str(precision).removeprefix("torch.")


def _encoding(run: _Bench) -> list[StageRate]:
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
    total = run.config.num
    return [
        StageRate("encode: decode", "images", decoding, total / decoding, "one core; --workers share it"),
        StageRate("encode: tokenizer", "images", encoding, views * total / encoding, "mirrored too" * (views - 1)),
    ]


def _fitting(run: _Bench) -> list[StageRate]:
    """An iteration of k-means, and one of EM, on random descriptors with as many modes as the preset's.

    In the whole, k-means ends by labelling the images once.
    """
    asked = run.preset.config("fit-gmm")
    with open_latents(run.inputs.latents) as latents:
        size = latents.descriptor_size
    count = max(65_536 if run.on_gpu else 4096, asked.modes)
    data = np.random.default_rng(0).standard_normal((count, size), dtype=np.float32)
    start = torch.from_numpy(data[: asked.modes]).double().to(run.device)
    weights = torch.full((asked.modes,), 1 / asked.modes, dtype=torch.float64, device=run.device)
    mixture = DiagonalMixture(weights, start, torch.ones_like(start))
    blocks = Blocks(data, block_rows(asked.modes, run.device), run.device)
    seeds = data[: asked.modes]
    move = run.seconds_of(lambda: next(lloyd(data, Centroids(seeds), iterations=1, device=run.device)))
    label = run.seconds_of(lambda: label_points(data, seeds, device=run.device))
    climb = run.seconds_of(lambda: maximise(expected_moments(blocks, mixture), mixture, asked.em.variance_floor))
    total, measurements = run.config.num, []
    for name, seconds, iterations, once in (
        ("k-means", move, asked.kmeans.iterations, label),
        ("EM", climb, asked.em.iterations, 0.0),
    ):
        note = f"{asked.modes:,} modes, {iterations} iterations at most"
        in_all = (iterations * seconds + once) * total / count
        measurements.append(StageRate(f"fit-gmm: {name}", "images per iteration", count / seconds, in_all, note))
    return measurements


def _network(run: _Bench, matmul: float, precision: torch.dtype) -> list[StageRate]:
    """A training step, and sampling."""
    with ExitStack() as stack:
        latents = stack.enter_context(open_latents(run.inputs.latents))
        gmm = stack.enter_context(open_gmm(run.inputs.gmm))
        asked: TrainConfig = changed(run.preset.config("train"), {"device": str(run.device), "micro_batch": "auto"})
        facts = facts_of(latents, gmm)
        wanted = plan_training(asked, facts, run.on_gpu)
        allow_tf32(asked.compute.tf32)
        whole = wanted.cost()
        plan, cost = wanted, whole
        if not run.on_gpu:
            plan, cost = affordable(asked, facts, matmul * run.config.seconds, fits_in_memory)
        batch = GPU_BATCH if run.on_gpu else min(CPU_BATCH, wanted.batch_size)
        asked = changed(asked, {"batch_size": batch, "model": plan.model})
        plan = replace(plan_training(asked, facts, run.on_gpu), lighter="a --preset with a smaller network")
        inputs = open_inputs(plan, latents, gmm, World(device=run.device))
        model, stepper = make_stepper(inputs, new_state(inputs))
        images = next(open_data(inputs).batches(Position()))
        speed = batch * cost.flops / run.seconds_of(lambda: stepper.take(images, 0, 0))
        keep_speed(Speed(device_name(run.device), _name(precision), matmul, speed, f"{plan.model}, {batch} images"))
        note = f"{wanted.model}, {100 * speed / matmul:.0f} % of matrix products"
        if plan.model != wanted.model:
            note += f"; measured on {plan.model}, scaled by operations"
        rate = speed / whole.flops
        training = StageRate("train", "images", rate, asked.loop.steps * wanted.batch_size / rate, note)
        settings: SampleConfig = run.preset.config("sample")
        drawn = _sampling_rate(run, model, plan, settings) * cost.flops / whole.flops
        count = settings.selection.num
        note = f"{count:,} images, {settings.sampling.evaluations} steps"
        return [training, StageRate("sample", "images", drawn, count / drawn, note)]


def affordable(
    config: TrainConfig, facts: DataFacts, operations: float, fits: Callable[[int], bool]
) -> tuple[TrainPlan, StepCost]:
    """The plan of training the largest network that a CPU can take a step with, of the kind in the settings and up to
    that one; and its cost.

    operations: limit per image. fits: whether so many bytes may be used. The smallest network is used in any case.
    """
    wanted = config.network.model_on(gpu=False)
    names = list(NETWORKS[kind_of(wanted)].sizes)
    names = names[: names.index(wanted) + 1]
    for name in reversed(names):
        tried = plan_training(changed(config, {"model": name}), facts, gpu=False)
        cost = tried.cost()
        memory = cost.memory(CPU_BATCH, len(config.averages.names))
        if name == names[0] or (cost.flops <= operations and fits(memory)):
            break
    return tried, cost


def _sampling_rate(run: _Bench, model: TrainedModel, plan: TrainPlan, settings: SampleConfig) -> float:
    """Images per second, by the preset's sampler; its guide, if it has one, left out."""
    asked = settings.sampling
    if asked.guide is not None:
        asked = replace(asked, guidance="none", guide=None, guidance_scale=None, orthogonal=None)
    count = GPU_BATCH // 4 if run.on_gpu else 1
    drawn = make_plan(asked, plan.method, plan.architecture.spectral, seed=0)
    classes = torch.zeros(count, dtype=torch.long)
    return count / run.seconds_of(lambda: generate(model, drawn, range(count), classes))
