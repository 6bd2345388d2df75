"""The 2-D checkerboard of the GMFlow paper: mixtures of K = 1, 8, 64 components against plain flow matching.

All four learn the same 4 x 4 squares over [-4, 4]^2 with the same network, then draw with every solver at 1 ... 64
network evaluations. The table holds, for each draw, the share of samples on the white squares and the total variation
distance between their 200 x 200 histogram and the truth; a true sample of the same size stands above, because a
histogram of few samples is far from the truth for the best of samplers. The folder holds a picture of every histogram,
a row a solver, a column a number of evaluations. The last table compares the extremes, K = 64 by GM-SDE at 8
evaluations and flow matching by Heun at 64, on more samples.

    python examples/checkerboard.py                  # about 5 minutes on a CPU
    python examples/checkerboard.py --setting paper  # the published one, for a GPU
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gmtool.console import print_table
from gmtool.evaluation.plots import image_grid
from gmtool.flow.objectives import flow_matching_loss, transition_loss
from gmtool.flow.path import data_mixture, forward_transition, interpolate, velocity
from gmtool.flow.prediction import MixtureModel, VelocityModel, unguided
from gmtool.flow.solvers.mixture import gm_ode, gm_sde
from gmtool.flow.solvers.table import VELOCITY_SOLVERS, integrate
from gmtool.flow.times import draw_times
from gmtool.mixture.gaussian_mixture import GaussianMixture
from gmtool.nn.mlp import PointNetwork
from gmtool.runtime import resolve_device
from gmtool.streams import Noise, generator

SIDE, SQUARES, BINS = 8.0, 4, 200
MODELS = {"flow matching": 0, "K = 1": 1, "K = 8": 8, "K = 64": 64}
"""Components of each model; 0 is a velocity alone."""
EVALUATIONS = (1, 2, 4, 8, 16, 32, 64)
SUBSTEPS_IN_ALL = 128
CHUNK = 2000
"""Samples drawn at a time on a CPU: the activations then stay in its cache."""


@dataclass(frozen=True)
class Setting:
    """The network, its training, the samples of a histogram, and those of the last table."""

    width: int
    depth: int
    steps: int
    batch: int
    rate: float
    samples: int
    final: int
    ratio: float = 0.9
    """lambda of the transition loss."""


SETTINGS = {
    "cpu": Setting(width=128, depth=4, steps=1500, batch=1024, rate=3e-3, samples=5000, final=100_000),
    "paper": Setting(width=512, depth=5, steps=200_000, batch=4096, rate=2e-4, samples=1_000_000, final=1_000_000),
}


class OneStream(Noise):
    """Numbers for a whole batch from one stream: a stream a sample would cost more than the toy network."""

    def __init__(self, seed: int, count: int, device: torch.device) -> None:
        self._count, self._stream = count, generator(seed, "checkerboard", device=device)

    def normal(self, shape: torch.Size) -> Tensor:
        return torch.randn(self._count, *shape, generator=self._stream, device=self._stream.device)

    def uniform(self, shape: torch.Size) -> Tensor:
        return torch.rand(self._count, *shape, generator=self._stream, device=self._stream.device)


def draw_data(count: int, stream: torch.Generator) -> Tensor:
    """Points (count, 2, 1, 1), uniform on the white squares: those whose row and column add up to an even number."""
    row = torch.randint(SQUARES, (count,), generator=stream, device=stream.device)
    column = 2 * torch.randint(SQUARES // 2, (count,), generator=stream, device=stream.device) + row % 2
    inside = torch.rand(count, 2, generator=stream, device=stream.device)
    return ((torch.stack([row, column], 1) + inside) * (SIDE / SQUARES) - SIDE / 2).reshape(count, 2, 1, 1)


def is_white(points: np.ndarray) -> np.ndarray:
    """Whether each of the points (n, 2) lies on a white square: (n,) bool."""
    square = np.floor((points + SIDE / 2) * (SQUARES / SIDE)).astype(int)
    return ((square >= 0) & (square < SQUARES)).all(1) & (square.sum(1) % 2 == 0)


def histogram(points: np.ndarray) -> np.ndarray:
    """Share of the points (n, 2) in each of the 200 x 200 bins; those outside the board are in none."""
    ends = [[-SIDE / 2, SIDE / 2]] * 2
    return np.histogram2d(*points.T, bins=BINS, range=ends)[0] / len(points)


def truth() -> np.ndarray:
    """The probability of each bin."""
    centres = (np.arange(BINS) + 0.5) * (SIDE / BINS) - SIDE / 2
    white = is_white(np.stack(np.meshgrid(centres, centres, indexing="ij"), 2).reshape(-1, 2)).reshape(BINS, BINS)
    return white / white.sum()


def total_variation(shares: np.ndarray) -> float:
    """(sum |p - q| + what lies outside the board) / 2 against the truth, in [0, 1]."""
    return 0.5 * float(np.abs(shares - truth()).sum() + 1 - shares.sum())


def train(components: int, setting: Setting, seed: int, device: torch.device) -> PointNetwork:
    """A network trained by the library's own objectives, the rate falling to 0 along a cosine."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = PointNetwork(2, setting.width, setting.depth, components).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), setting.rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, setting.rate, setting.steps, pct_start=0.05)
    stream = generator(seed, "train", device=device)
    for _ in range(setting.steps):
        loss = training_loss(network, components, setting, stream).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return network.eval()


def training_loss(network: PointNetwork, components: int, setting: Setting, stream: torch.Generator) -> Tensor:
    """The loss of each datum of a fresh batch: least squares on the velocity, or the transition NLL."""
    x = draw_data(setting.batch, stream)
    t = draw_times(len(x), "uniform", 1.0, stream)
    z, fresh = torch.randn(2, *x.shape, generator=stream, device=x.device)
    if not components:
        return flow_matching_loss(cast(Tensor, network(interpolate(x, z, t), t)), velocity(x, z))
    s = t * (1 - setting.ratio)
    x_s = interpolate(x, z, s)
    x_t = forward_transition(x_s, s, t, fresh)
    return transition_loss(cast(GaussianMixture, network(x_t, t)), x_t, t, x_s, s)


def as_velocity(network: PointNetwork) -> VelocityModel:
    """The network's velocity, or its mixture's mean."""

    def model(x_t: Tensor, t: Tensor) -> Tensor:
        predicted = network(x_t, t)
        return predicted.mean() if isinstance(predicted, GaussianMixture) else predicted

    return model


def as_mixture(network: PointNetwork) -> MixtureModel:
    """The network's mixture over the data."""
    return lambda x_t, t: unguided(data_mixture(cast(GaussianMixture, network(x_t, t)), x_t, t))


@torch.inference_mode()
def draw(network: PointNetwork, solver: str, steps: int, count: int, device: torch.device) -> np.ndarray:
    """Points (count, 2) by ``steps`` network evaluations each; the same start for every solver."""
    size = CHUNK if device.type == "cpu" else count
    sizes = [min(size, count - first) for first in range(0, count, size)]
    ends = [_solve(network, solver, steps, OneStream(seed, each, device)) for seed, each in enumerate(sizes)]
    return torch.cat(ends).flatten(1).cpu().numpy()


def _solve(network: PointNetwork, solver: str, steps: int, noise: OneStream) -> Tensor:
    x = noise.normal(torch.Size((2, 1, 1)))
    if solver in VELOCITY_SOLVERS:
        return integrate(solver, as_velocity(network), x, steps, 1.0, noise)
    order = int(solver[-1])
    if solver.startswith("gm-ode"):
        return gm_ode(as_mixture(network), x, steps, 1.0, order, max(1, SUBSTEPS_IN_ALL // steps))
    return gm_sde(as_mixture(network), x, steps, 1.0, noise, order)


def solvers_of(components: int) -> Iterator[str]:
    """The solvers of a velocity but ddim, which is euler; those of a mixture, with their order, where there is one."""
    yield from (name for name in VELOCITY_SOLVERS if name != "ddim")
    if components:
        yield from ("gm-ode 1", "gm-ode 2", "gm-sde 1", "gm-sde 2")


@dataclass(frozen=True)
class Outcome:
    """One draw: its histogram, the share of its points on white squares, and the distance from the truth."""

    shares: np.ndarray
    white: float
    distance: float


def judge(points: np.ndarray) -> Outcome:
    shares = histogram(points)
    return Outcome(shares, float(is_white(points).mean()), total_variation(shares))


def picture(outcome: Outcome) -> np.ndarray:
    """The histogram as uint8 (200, 200, 3): black is empty, white twice the mean of a white square; y is up."""
    grey = np.clip(255 * outcome.shares / (2 * truth().max()), 0, 255).astype(np.uint8)
    return np.repeat(grey.T[::-1, :, None], 3, axis=2)


def report(name: str, outcomes: dict[str, list[Outcome]], folder: Path) -> None:
    """Print a model's table, and write its histograms, a row a solver, a column a number of evaluations."""
    print_table(
        f"{name}: % on white squares, total variation",
        ("solver", *(f"{steps} eval." for steps in EVALUATIONS)),
        [
            (solver, *(f"{100 * each.white:.1f} {each.distance:.3f}" for each in row))
            for solver, row in outcomes.items()
        ],
    )
    tiles = np.stack([picture(each) for row in outcomes.values() for each in row])
    slug = name.replace(" ", "").lower()
    Image.fromarray(image_grid(tiles, columns=len(EVALUATIONS), scale=1)).save(folder / f"{slug}.png")


def compare(networks: dict[str, PointNetwork], count: int, device: torch.device) -> None:
    """Print the table of the extremes, beside a true sample."""
    points = {"a true sample": true_sample(count, device)}
    for name, solver, steps in (("flow matching", "heun", 64), ("K = 64", "gm-sde 2", 8)):
        points[f"{name}, {solver}, {steps} evaluations"] = draw(networks[name], solver, steps, count, device)
    outcomes = {name: judge(each) for name, each in points.items()}
    rows = [(name, f"{100 * each.white:.1f}", f"{each.distance:.4f}") for name, each in outcomes.items()]
    print_table(f"{count:,} samples", ("", "% on white", "total variation"), rows)


def true_sample(count: int, device: torch.device) -> np.ndarray:
    return draw_data(count, generator("truth", device=device)).flatten(1).cpu().numpy()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("checkerboard"), help="for the pictures")
    parser.add_argument("--setting", choices=SETTINGS, default="cpu", help="network, training and samples")
    parser.add_argument("--steps", type=int, help="training steps instead of the setting's")
    parser.add_argument("--samples", type=int, help="samples of a histogram instead of the setting's")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    return parser.parse_args()


def main() -> None:
    options = parse()
    setting = SETTINGS[options.setting]
    setting = replace(setting, steps=options.steps or setting.steps, samples=options.samples or setting.samples)
    device = resolve_device(options.device)
    options.folder.mkdir(parents=True, exist_ok=True)
    real = judge(true_sample(setting.samples, device))
    Image.fromarray(picture(real)).save(options.folder / "truth.png")
    print(f"a true sample of {setting.samples:,}: {100 * real.white:.1f} % on white, distance {real.distance:.3f}")
    networks = {}
    for name, components in MODELS.items():
        started = time.perf_counter()
        networks[name] = network = train(components, setting, options.seed, device)
        trained = time.perf_counter()
        outcomes = {
            solver: [judge(draw(network, solver, steps, setting.samples, device)) for steps in EVALUATIONS]
            for solver in solvers_of(components)
        }
        report(name, outcomes, options.folder)
        print(f"trained in {trained - started:.0f} s, drew in {time.perf_counter() - trained:.0f} s", flush=True)
    compare(networks, setting.final, device)


if __name__ == "__main__":
    main()
