"""The 2-D checkerboard of the GMFlow paper: mixtures of K = 1, 8, 64 components against plain flow matching.

All four learn the same 4 x 4 squares with the same network, then draw by every solver with 1 ... 64 evaluations of it.
A table holds the share of the samples on white squares and the total variation distance between their 200 x 200
histogram and the truth, beside a true sample of that size, since the histogram of few samples is far from the truth for
the best of samplers. A picture shows the histograms, black for no samples. The last table compares the extremes.

    python examples/checkerboard.py                  # about 5 minutes on a CPU
    python examples/checkerboard.py --setting paper  # the published one, for a GPU
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.image import imsave
from point_flows import optimise
from torch import Tensor

from gmtool.console import print_table
from gmtool.flow.method import Method, fm, gmflow
from gmtool.flow.objective import TransitionDraws
from gmtool.flow.solvers import SOLVERS
from gmtool.flow.solvers.base import SolverOptions, integrate
from gmtool.flow.times import TrainingTimes, full_grid
from gmtool.nn.mlp import PointNetwork
from gmtool.runtime import resolve_device
from gmtool.sampling.sampler import VIEWS
from gmtool.streams import SharedNoise, generator

SIDE, SQUARES, BINS = 8.0, 4, 200
WHITE = np.kron(np.indices((SQUARES, SQUARES)).sum(0) % 2 == 0, np.ones((BINS // SQUARES,) * 2, bool))
TRUTH = WHITE / WHITE.sum()  # the probability of each bin [x, y]
UNIFORM = TrainingTimes("uniform")
MODELS: dict[str, tuple[Method, int]] = {
    "flow matching": (fm(UNIFORM), 0),
    **{f"K = {components}": (gmflow(ratio=0.9, times=UNIFORM), components) for components in (1, 8, 64)},
}
"""How each model learns, and the components that its network predicts; 0 is a velocity alone."""
EVALUATIONS = (1, 2, 4, 8, 16, 32, 64)
SUBSTEPS_IN_ALL = 128
CHUNK = 2000  # samples drawn at a time on a CPU: the activations then stay in its cache


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


SETTINGS = {
    "cpu": Setting(width=128, depth=4, steps=1500, batch=1024, rate=3e-3, samples=5000, final=100_000),
    "paper": Setting(width=512, depth=5, steps=200_000, batch=4096, rate=2e-4, samples=1_000_000, final=1_000_000),
}


def draw_data(count: int, stream: torch.Generator) -> Tensor:
    """Points (count, 2, 1, 1), uniform on the white squares: those whose row and column add up to an even number."""
    row = torch.randint(SQUARES, (count,), generator=stream, device=stream.device)
    column = 2 * torch.randint(SQUARES // 2, (count,), generator=stream, device=stream.device) + row % 2
    inside = torch.rand(count, 2, generator=stream, device=stream.device)
    return ((torch.stack([row, column], 1) + inside) * (SIDE / SQUARES) - SIDE / 2).reshape(count, 2, 1, 1)


def losses(network: PointNetwork, method: Method, count: int, stream: torch.Generator) -> Tensor:
    """The loss of each of ``count`` fresh points; every method sees the same points, times and noise."""
    x, t = draw_data(count, stream), method.times.draw(count, stream)
    noise, onward = torch.randn(2, *x.shape, generator=stream, device=x.device)
    return method.loss(network, method.pair(x, noise), TransitionDraws(t, noise, onward))


def train(method: Method, components: int, setting: Setting, seed: int, device: torch.device) -> PointNetwork:
    torch.manual_seed(seed)
    network = PointNetwork(2, setting.width, setting.depth, components).to(device)
    stream = generator(seed, "train", device=device)
    return optimise(network, lambda: losses(network, method, setting.batch, stream), setting.rate, setting.steps)


@torch.inference_mode()
def draw(network: PointNetwork, name: str, order: int, steps: int, count: int, device: torch.device) -> Tensor:
    """Points (count, 2, 1, 1) by ``steps`` network evaluations each; the same start for every solver."""
    entry, drawn = SOLVERS[name], []
    solver = entry.make(SolverOptions(steps, order=order, substeps=max(1, SUBSTEPS_IN_ALL // steps)))
    for chunk, some in enumerate(torch.arange(count).split(CHUNK if device.type == "cpu" else count)):
        noise = SharedNoise(len(some), generator(chunk, "checkerboard", device=device))
        start, grid = noise.normal((2, 1, 1)), full_grid(solver.intervals(steps))
        drawn.append(integrate(solver, VIEWS[entry.on](network), start, grid, noise))
    return torch.cat(drawn)


def histogram(drawn: Tensor) -> np.ndarray:
    """Share of the points (n, 2, 1, 1) in each of the 200 x 200 bins; those outside the board are in none."""
    ends = [[-SIDE / 2, SIDE / 2]] * 2
    return np.histogram2d(*drawn.flatten(1).cpu().numpy().T, bins=BINS, range=ends)[0] / len(drawn)


def total_variation(shares: np.ndarray) -> float:
    """(sum |p - q| + what lies outside the board) / 2 against the truth, in [0, 1]."""
    return 0.5 * float(np.abs(shares - TRUTH).sum() + 1 - shares.sum())


def figures(shares: np.ndarray) -> str:
    return f"{100 * shares[WHITE].sum():.1f} {total_variation(shares):.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("checkerboard"), help="for the pictures")
    parser.add_argument("--setting", choices=SETTINGS, default="cpu", help="network, training and samples")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    options = parser.parse_args()
    setting, device, networks = SETTINGS[options.setting], resolve_device(options.device), {}
    count = setting.samples  # of a histogram
    options.folder.mkdir(parents=True, exist_ok=True)
    print("a true sample:", figures(histogram(draw_data(count, generator("truth", device=device)))))
    for name, (method, components) in MODELS.items():
        networks[name] = network = train(method, components, setting, options.seed, device)
        shares = {  # by every solver of what the network predicts, but ddim, which is euler here
            f"{solver} {order}": [histogram(draw(network, solver, order, n, count, device)) for n in EVALUATIONS]
            for solver, entry in SOLVERS.items()
            if solver != "ddim" and (entry.on == "velocity" or (components and entry.on == "mixture"))
            for order in ((entry.order,) if entry.order else (1, 2))
        }
        rows = [(solver, *map(figures, row)) for solver, row in shares.items()]
        columns = ("solver, order", *(f"{steps} eval." for steps in EVALUATIONS))
        print_table(f"{name}: % on white squares, total variation", columns, rows)
        board = np.block([[np.pad(np.rot90(share), 1) for share in row] for row in shares.values()])
        imsave(options.folder / f"{name}.png", board, cmap="gray", vmin=0, vmax=2 * TRUTH.max())
    rows = [("a true sample", figures(histogram(draw_data(setting.final, generator("truth", device=device)))))]
    for name, solver, steps in (("flow matching", "heun", 64), ("K = 64", "gm-sde", 8)):
        drawn = draw(networks[name], solver, 2, steps, setting.final, device)
        rows.append((f"{name}, {solver} 2, {steps} evaluations", figures(histogram(drawn))))
    print_table(f"{setting.final:,} samples", ("", "% on white, total variation"), rows)


if __name__ == "__main__":
    main()
