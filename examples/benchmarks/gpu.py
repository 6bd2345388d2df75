"""Every check and benchmark of gmtool that needs a GPU, in one command of under 8 minutes, as one Markdown table.

- the tests marked gpu;
- training steps of DiTDH-XL (latents of 768 x 16 x 16) and DiT-XL/2 (4 x 32 x 32), 256 tokens each, with fm and gm-kl,
  compiled and eager: images per second, and the share of the rate of bfloat16 matrix products, measured in the same
  run;
- what gm-kl costs beside fm, and gm-ode beside euler, on the same network: the arithmetic of mixtures;
- sampling; an iteration of EM; the share of the time that training waits for data that are read from the disk.

A row says when its check does not fit into the time, or fails. Aims are for an H200.

    python examples/benchmarks/gpu.py              # --smoke runs all of it in miniature, on a CPU too
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gmtool.artifacts.latents import Provenance, open_latents, write_latents
from gmtool.artifacts.run import LatentStatistics
from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.distributed import World
from gmtool.mixture.diagonal import DiagonalMixture
from gmtool.mixture.em import Blocks, block_rows, expected_moments, maximise
from gmtool.nn.architecture import Architecture
from gmtool.nn.build import build_network
from gmtool.nn.compile import compile_network
from gmtool.nn.network import Network
from gmtool.progress import Progress
from gmtool.runtime import compute_dtype
from gmtool.sampling.model import TrainedModel
from gmtool.sampling.plan import make_plan
from gmtool.sampling.sampler import generate
from gmtool.sampling.settings import SamplingSettings
from gmtool.settings import make
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train.inputs import open_data, open_inputs
from gmtool.stages.train.plan import DataFacts, TrainPlan, plan_training
from gmtool.throughput import device_name, matmul_rate, seconds_of
from gmtool.training.checkpoint import Position
from gmtool.training.cost import StepCost, step_cost
from gmtool.training.logging import Group, Record
from gmtool.training.loop import Loop
from gmtool.training.state import make_state
from gmtool.training.step import Stepper
from gmtool.training.task import Batch, task_of
from gmtool.training.throughput import ThroughputMeter

ROOT = Path(__file__).parents[2]
CLASSES, COMPONENTS = 1000, 8


@dataclass(frozen=True)
class Case:
    """A network over latents."""

    name: str
    model: str
    shape: tuple[int, int, int]
    patch: int = 1

    def plan(self, objective: str, batch: int, samples: int = 1, **settings: int) -> TrainPlan:
        """How it is trained on so many samples of a thousand classes. settings: others than the defaults."""
        values = {"objective": objective, "source": "gaussian", "condition": "class", "model": self.model}
        values |= {"patch_size": self.patch, "components": COMPONENTS if objective == "gm-kl" else None}
        values |= {"batch_size": batch, "lr": 1e-4, "save_every": 10**9, **settings}
        return plan_training(make(TrainConfig, values), DataFacts(self.shape, samples, CLASSES), gpu=True)


@dataclass(frozen=True)
class Sizes:
    """How large everything is. batches: of training, the largest first; data: latents on the disk."""

    wide: Case
    plain: Case
    batches: tuple[int, ...]
    seconds: float
    modes: int
    descriptors: tuple[int, int]
    data: int
    steps: int
    compiled: bool


FULL = Sizes(
    wide=Case("DiTDH-XL", "DH-XL", (768, 16, 16)),
    plain=Case("DiT-XL/2", "XL", (4, 32, 32), patch=2),
    batches=(256, 128, 64, 32, 16, 8),
    seconds=4.0,
    modes=8192,
    descriptors=(131_072, 768),
    data=2048,
    steps=50,
    compiled=True,
)
SMOKE = Sizes(
    wide=Case("DiTDH-tiny", "DH-tiny", (16, 4, 4)),
    plain=Case("DiT-tiny/2", "tiny", (4, 8, 8), patch=2),
    batches=(4, 2),
    seconds=0.0,
    modes=16,
    descriptors=(256, 8),
    data=32,
    steps=3,
    compiled=False,
)


@dataclass
class Report:
    """Rows of the table, and the time that is left."""

    deadline: float
    rows: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, what: str, figure: str, aim: str = "") -> None:
        self.rows.append((what, figure, aim))
        print(f"{what}: {figure}", file=sys.stderr, flush=True)

    @contextmanager
    def part(self, what: str) -> Iterator[None]:
        """A part whose failure is a row and stops no other; one that comes after the deadline is not begun."""
        try:
            if time.monotonic() > self.deadline:
                raise TimeoutError("left out: no time")
            yield
        except Exception as error:  # a benchmark of many parts: each may fail by itself
            self.add(what, f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")
        finally:
            # else the next network, whose blocks share the code, counts as one more of their recompilations
            torch.compiler.reset()
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def markdown(self, title: str) -> str:
        lines = [f"| {title} | measured | aim |", "| --- | --- | --- |"]
        return "\n".join(lines + [f"| {' | '.join(row)} |" for row in self.rows])


@dataclass(frozen=True)
class Machine:
    """Where it runs. peak: operations per second of matrix products in ``precision``."""

    device: torch.device
    precision: torch.dtype
    peak: float
    sizes: Sizes

    def seconds_of(self, action: Callable[[], object]) -> float:
        return seconds_of(action, self.device, self.sizes.seconds)

    def build(self, architecture: Architecture) -> Network:
        """A network of random weights, drawn on the device: a large one takes the CPU seconds."""
        with self.device:
            return build_network(architecture, 0).to(self.device)

    def ready(self, plan: TrainPlan, network: Network) -> TrainedModel:
        """The network, ready to draw from, of latents that are normalised as they are."""
        shape = plan.architecture.shape
        statistics = LatentStatistics(torch.zeros(shape), torch.ones(shape))
        return TrainedModel.of(plan.method, network, statistics, None, self.device, self.precision)

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device)


# --- training ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """A training step that was measured: seconds, images in it, and operations per image."""

    seconds: float
    batch: int
    flops: int

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.batch / self.seconds

    def share(self, peak: float) -> float:
        """Of the peak."""
        return self.rate * self.flops / peak


def batch_that_fits(machine: Machine, cost: StepCost) -> int:
    """The largest of the batches that the estimate lets on the device, with a fifth to spare."""
    if machine.device.type != "cuda":
        return machine.sizes.batches[0]
    available = 0.8 * torch.cuda.mem_get_info(machine.device)[0]
    return next(
        (batch for batch in machine.sizes.batches if cost.memory(batch, 1) < available), machine.sizes.batches[-1]
    )


def stepper_of(machine: Machine, plan: TrainPlan, compiled: bool) -> Stepper:
    """What takes steps as ``gmtool train`` does: bfloat16 autocast, fused AdamW, clipping, one average."""
    config, network = plan.config, machine.build(plan.architecture)
    if compiled:
        compile_network(network)
    state = make_state(network, config.optimizer, config.averages, plan.schedule.rate, plan.batch_size)
    autocast = machine.ready(plan, network).autocast
    return Stepper(task_of(plan.method, network), state, plan.schedule, config.optimizer.clip_at, autocast)


def measure_step(machine: Machine, case: Case, objective: str, compiled: bool) -> Step:
    plan = case.plan(objective, 1)
    cost = step_cost(plan.architecture, plan.method, machine.precision)
    batch = batch_that_fits(machine, cost)
    stepper = stepper_of(machine, plan, compiled)
    labels = torch.arange(batch, device=machine.device) % CLASSES
    data = Batch(machine.random(batch, *case.shape), labels)
    return Step(machine.seconds_of(lambda: stepper.take(data, 0, 0)), batch, cost.flops)


def training(report: Report, machine: Machine) -> None:
    """All four pairs of a network and an objective, compiled first; the most important ones come first."""
    sizes, steps = machine.sizes, dict[tuple[str, str, bool], Step]()
    for case in (sizes.wide, sizes.plain):
        for objective in ("fm", "gm-kl"):
            for compiled in (True, False) if sizes.compiled else (False,):
                name = f"train {case.name}, {objective}, {'compiled' if compiled else 'eager'}"
                with report.part(name):
                    step = measure_step(machine, case, objective, compiled)
                    steps[case.name, objective, compiled] = step
                    main_aim = case is sizes.wide and compiled
                    report.add(
                        name,
                        f"{step.rate:.1f} images/s at {step.batch}, {step.rate * step.flops / 1e12:.3g} TFLOP/s, "
                        f"{100 * step.share(machine.peak):.1f} % of matrix products",
                        "45 %" if main_aim else "",
                    )
    for case in (sizes.wide, sizes.plain):
        for objective in ("fm", "gm-kl"):
            fast, plain = (steps.get((case.name, objective, compiled)) for compiled in (True, False))
            if fast and plain:
                report.add(f"{case.name}, {objective}: compiled / eager", f"{fast.rate / plain.rate:.2f}", "1.3")
        one, many = (steps.get((case.name, objective, sizes.compiled)) for objective in ("fm", "gm-kl"))
        if one and many:
            report.add(f"{case.name}: an image of gm-kl / fm, training", f"{one.rate / many.rate:.3f}", "1.05")


# --- sampling ---------------------------------------------------------------------------------------------------------


def sampling(report: Report, machine: Machine) -> None:
    """gm-ode and euler on one mixture network: images per second, and what the mixtures' arithmetic adds."""
    case, steps = machine.sizes.wide, 8
    with report.part("sampling"):
        training_plan = case.plan("gm-kl", 1)
        model = machine.ready(training_plan, machine.build(training_plan.architecture).eval().requires_grad_(False))
        count = machine.sizes.batches[0] // 4
        seconds = {}
        for solver in ("gm-ode", "euler"):
            plan = make_plan(SamplingSettings(steps=steps, solver=solver), training_plan.method, spectral=0, seed=0)
            seconds[solver] = machine.seconds_of(
                lambda plan=plan: generate(model, plan, range(count), torch.zeros(count, dtype=torch.long))
            )
            name = f"sample {case.name}, K = {COMPONENTS}, {solver}, {steps} steps"
            report.add(name, f"{count / seconds[solver]:.1f} images/s at {count}")
        report.add(
            "gm-ode 2 with 16 sub-steps / euler, sampling", f"{seconds['gm-ode'] / seconds['euler']:.3f}", "1.05"
        )


# --- data and EM ------------------------------------------------------------------------------------------------------


class Figures:
    """Keeps what a loop tells of its pace."""

    def __init__(self) -> None:
        self.pace: list[Record] = []

    def begin(self, step: int) -> None:
        """Nothing was told before."""

    def write(self, records: Sequence[Record], group: Group = "train") -> None:
        self.pace += records if group == "machine" else []

    def close(self) -> None:
        """Nothing is open."""


def waiting(report: Report, machine: Machine) -> None:
    """The training loop on latents of a file that is read by worker processes."""
    case, sizes = machine.sizes.wide, machine.sizes
    with report.part("waiting for data"), tempfile.TemporaryDirectory() as folder:
        draws = np.random.default_rng(0)
        path = Path(folder) / "latents.h5"
        write_latents(
            path,
            patches=(draws.standard_normal((32, *case.shape), dtype=np.float32) for _ in range(sizes.data // 32)),
            descriptors=np.zeros((sizes.data, 1), np.float32),
            labels=np.arange(sizes.data) % CLASSES,
            names=[str(index) for index in range(sizes.data)],
            classes=[str(index) for index in range(CLASSES)],
            tokenizer=TokenizerSpec("none", {}),
            provenance=Provenance("benchmark", {}),
        )
        plan = case.plan("fm", 1)
        cost = step_cost(plan.architecture, plan.method, machine.precision)
        batch = min(batch_that_fits(machine, cost), sizes.data)
        steps = sizes.steps + 1  # the first one compiles, and waits for the workers to start
        workers = 4 if machine.device.type == "cuda" else 0
        plan = case.plan("fm", batch, samples=sizes.data, steps=steps, workers=workers)
        stepper = stepper_of(machine, plan, sizes.compiled)
        told = Figures()
        pace = ThroughputMeter(cost.flops, machine.peak)
        with open_latents(path) as latents:
            batches = open_data(open_inputs(plan, latents, None, World(device=machine.device))).batches(Position())
            stepper.take(next(batches), 0, 0)
            loop = Loop(plan.config.loop, stepper, lambda _: None, [told], (), pace)
            loop.run(batches, Position(step=1), 0, Progress())
        figures = told.pace[-1]
        report.add(
            f"train {case.name}, fm, from the disk",
            f"{figures['images/s']:.1f} images/s, {100 * figures['of peak']:.1f} % of matrix products",
        )
        report.add("time waited for data", f"{100 * figures['waiting']:.2f} %", "below 2 %")


def expectation(report: Report, machine: Machine) -> None:
    """An iteration of EM on random descriptors."""
    count, size = machine.sizes.descriptors
    with report.part("EM"):
        data = np.random.default_rng(0).standard_normal((count, size), dtype=np.float32)
        means = torch.from_numpy(data[: machine.sizes.modes]).double().to(machine.device)
        weights = torch.full((len(means),), 1 / len(means), dtype=torch.float64, device=machine.device)
        mixture = DiagonalMixture(weights, means, torch.ones_like(means))
        blocks = Blocks(data, block_rows(len(means), machine.device), machine.device)
        seconds = machine.seconds_of(lambda: maximise(expected_moments(blocks, mixture), mixture, 1e-6))
        peak = matmul_rate(machine.device, torch.float32, machine.sizes.seconds / 4)
        share = 2 * 2 * count * len(means) * 2 * size / seconds / peak
        report.add(
            f"EM, {len(means):,} modes of {size} numbers",
            f"{count / seconds:,.0f} data a second an iteration, {100 * share:.0f} % of float32 matrix products",
        )


# --- all of it --------------------------------------------------------------------------------------------------------


def tests(report: Report, seconds: float) -> None:
    """The tests marked gpu, in a process of their own."""
    with report.part("tests marked gpu"):
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-m",
            "gpu",
            "-q",
            "--continue-on-collection-errors",
            str(ROOT / "tests"),
        ]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
        last = (ended.stdout.strip().splitlines() or ["no output"])[-1].strip("= ")
        report.add("tests marked gpu", last, "all pass")
        if ended.returncode:
            print(ended.stdout, ended.stderr, file=sys.stderr)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="everything in miniature: nothing compiled, no tests")
    parser.add_argument("--minutes", type=float, default=6.5, help="no part is begun after so many minutes")
    parser.add_argument("--no-tests", action="store_true", help="leave the tests out")
    options = parser.parse_args(arguments)
    if not options.smoke and not torch.cuda.is_available():
        raise SystemExit("this benchmark needs a GPU; --smoke runs it in miniature on a CPU")
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    precision = compute_dtype("auto", device)
    sizes = SMOKE if options.smoke else FULL
    report = Report(time.monotonic() + 60 * options.minutes)
    machine = Machine(device, precision, matmul_rate(device, precision, sizes.seconds / 2), sizes)
    report.add("matrix products, " + str(precision).removeprefix("torch."), f"{machine.peak / 1e12:.4g} TFLOP/s")
    if not (options.smoke or options.no_tests):
        tests(report, seconds=150)
    training(report, machine)
    waiting(report, machine)
    sampling(report, machine)
    expectation(report, machine)
    print(report.markdown(f"{device_name(device)}, torch {torch.__version__}"))


if __name__ == "__main__":
    main()
