"""Sources and couplings in ten dimensions, where paths can be measured: MM-FM's study, with GMFlow and the union.

The data are eight curved modes (`point_flows`): "Compact", which overlap, and "Spread", which are far apart. The
mixture that flows start from is fitted to them by EM. For every method the tables hold length, straightness
and mean Lipschitz constant of the flow (`gmtool.evaluation.trajectory`) along 100 Euler steps; then W2^2 on moderate
sets and squared sliced W2 on large ones, by network evaluations, 0 being the source itself, beside the same between two
samples of the data. The row "mixture, mode, conditioned" shows what that condition, which the union requires, is worth.

    python examples/mixture_source.py             # about 40 minutes on one idle core
    python examples/mixture_source.py --quick     # the same in miniature, for a look at the output
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from point_flows import DIMENSIONS, MODES, curved_modes, fit, optimise
from torch import Tensor

from gmtool.console import print_table
from gmtool.evaluation.trajectory import Trajectory, mean_lipschitz, sliced_distance, trace, transport_distance
from gmtool.flow.coupling import BatchOT, Independent, draw_modes
from gmtool.flow.method import Method, fm, gmflow, mm_fm, union
from gmtool.flow.model import Predict
from gmtool.flow.objective import TransitionDraws
from gmtool.flow.solvers.base import integrate
from gmtool.flow.solvers.euler import Euler
from gmtool.flow.solvers.gm_ode import GmOde
from gmtool.flow.source import ModeMixture, ModeStatistics
from gmtool.flow.times import TrainingTimes, full_grid
from gmtool.nn.mlp import PointNetwork
from gmtool.streams import generator

DISTANCES = {"Compact": 2.0, "Spread": 6.0}
EVALUATIONS = (1, 2, 4, 6, 10, 50)
WIDTH, DEPTH, COMPONENTS, BATCH, SUBSTEPS_IN_ALL = 128, 4, 32, 256, 128
EXACT, PATHS, PATH_STEPS = 1000, 300, 100  # points of W2^2, those that are followed, and in how many steps
# few evaluations are decided near t = 1: hence times that are shifted there, and lambda nearer to 1 than GMFlow's 0.9
RATIO, EVEN, LATE = 0.97, TrainingTimes("uniform"), TrainingTimes("uniform", shift=16.0)
FLOWS: dict[str, tuple[Method, bool]] = {
    "Gaussian, independent (fm)": (fm(EVEN), False),
    "Gaussian, batch-OT": (fm(EVEN, BatchOT()), False),
    "mixture, independent": (mm_fm(EVEN, Independent()), False),
    "mixture, mode (MM-FM)": (mm_fm(EVEN), False),
    "mixture, mode, conditioned": (mm_fm(EVEN), True),
    "Gaussian, gm-kl (GMFlow)": (gmflow(RATIO, times=LATE), False),
    "mixture, mode, gm-kl (union)": (union(RATIO, times=LATE), True),
}
"""The rows of the tables: the method, and whether the network is conditioned on the mode."""


def train(flow: str, x: Tensor, shares: Tensor, mixture: ModeMixture, steps: int, seed: int) -> PointNetwork:
    """A network of a row; in every row it sees the same points, times and noise of N(0, I)."""
    torch.manual_seed(seed)
    method, told = FLOWS[flow]
    components, rate = (COMPONENTS, 1e-2) if method.objective.mixture else (0, 3e-3)
    labels, stream = MODES if told else 0, generator(seed, "train")
    network = PointNetwork(DIMENSIONS, WIDTH, DEPTH, components, frequencies=0, modes=labels)

    def losses() -> Tensor:
        rows = torch.randint(len(x), (BATCH,), generator=stream)
        t = method.times.draw(BATCH, stream)
        noise, onward = torch.randn(2, *x[rows].shape, generator=stream)
        if method.coupling.own_mode:
            every = torch.arange(MODES).expand(BATCH, -1)
            modes = draw_modes(every, shares[rows], torch.rand(BATCH, generator=stream))
        else:
            modes = mixture.draw(BATCH, stream)
        pairs = method.pair(x[rows], noise, mixture.at(modes))
        return method.loss(partial(network, modes=modes), pairs, TransitionDraws(t, noise, onward))

    return optimise(network, losses, rate, steps)


@torch.inference_mode()
def draw(method: Method, predict: Predict, own: ModeStatistics, noise: Tensor, count: int, order: int = 1) -> Tensor:
    """Points (B, 10, 1, 1) from the given modes and noise by so many evaluations; by 0, where they start.

    order: of GM-ODE. It extrapolates how the network's mean differs from what its previous mixture foretold. Of points,
    whose mixture is a joint one, that difference is the network's error; of images it is what other positions tell.
    """
    solver = GmOde(order, SUBSTEPS_IN_ALL // max(count, 1)) if method.objective.mixture else Euler()
    return method.finish(integrate(solver, method.model(predict), method.start(noise, own), full_grid(count)), own)


def study(name: str, steps: int, count: int, seed: int, folder: Path) -> None:
    """All methods on one data set of so many points: tables and a picture."""
    parts = ("training", "held out", "other")
    x, held_out, other = (curved_modes(DISTANCES[name], count, generator(part)) for part in parts)
    mixture, shares = fit(x, seed)
    stream = generator(seed, "draw")
    modes, noise = mixture.draw(count, stream), torch.randn(x.shape, generator=stream)
    own, few, columns = mixture.at(modes), modes[:PATHS], ("source, coupling", *map(str, (0, *EVALUATIONS)))
    paths, drawn, figures = {}, {}, []
    for flow, (method, _) in FLOWS.items():
        network = train(flow, x, shares, mixture, steps, seed)
        for order in (1, 2) if method.objective.mixture else (1,):
            row = f"{flow}, order {order}" if method.objective.mixture else flow
            drawn[row] = [draw(method, partial(network, modes=modes), own, noise, n, order) for n in (0, *EVALUATIONS)]
        field = method.field(partial(network, modes=few), mixture.at(few))
        paths[flow] = path = trace(field, drawn[row][0][:PATHS], full_grid(PATH_STEPS))
        measured = path.length(), path.straightness(), mean_lipschitz(field, path, generator("lipschitz"))
        figures.append((flow, *(f"{float(values.mean()):.3f}" for values in measured)))
    print_table(f"{name}: paths", (columns[0], "length", "straightness", "Lipschitz"), figures)
    for title, distance in (
        ("W2^2", lambda samples: transport_distance(samples[:EXACT], held_out[:EXACT])),
        ("squared sliced W2", lambda samples: sliced_distance(samples, held_out, generator("directions"))),
    ):
        rows = [(flow, *(f"{distance(samples):.4f}" for samples in row)) for flow, row in drawn.items()]
        print_table(f"{name}: {title}, by evaluations (two samples of the data: {distance(other):.4f})", columns, rows)
    picture(paths, x.flatten(1), folder / f"{name.lower()}.png")


def picture(paths: dict[str, Trajectory], x: Tensor, path: Path) -> None:
    """Paths on the two first principal axes of the data x (N, 10), a panel per method."""
    plane = torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh[:2].T
    figure = Figure(figsize=(16, 8), layout="constrained")
    for panel, (name, trajectory) in zip(
        figure.subplots(2, 4, sharex=True, sharey=True).flat, paths.items(), strict=False
    ):
        flat = trajectory.points.flatten(2)[:, :100] @ plane
        panel.scatter(*(x[:2000] @ plane).T, s=1, color="lightgrey")
        panel.plot(*flat.movedim(2, 0), color="steelblue", linewidth=0.5)
        panel.scatter(*flat[0].T, s=5, color="black")  # where they start
        panel.scatter(*flat[-1].T, s=5, color="crimson")
        panel.set_title(name, fontsize="small")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("mixture-source"), help="for the pictures")
    parser.add_argument("--quick", action="store_true", help="a miniature, whose figures mean nothing")
    parser.add_argument("--data", choices=DISTANCES, help="one data set instead of both")
    parser.add_argument("--seed", type=int, default=0, help="of the networks and the mixture")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in [options.data] if options.data else DISTANCES:
        study(name, *((3, 100) if options.quick else (10_000, 20_000)), options.seed, options.folder)


if __name__ == "__main__":
    main()
