"""Sources and couplings in ten dimensions, where paths can be measured: MM-FM's study, with GMFlow and the union.

The data are eight curved modes. In a mode's own axes a point lies on an arc, 1.5 (sin a, 1 - cos a, 0, ...) + 0.25
noise, a ~ N(0, 1), turned by a random rotation and moved to the mode's place. "Compact": places at random on a sphere
of radius 2, so that modes overlap; "Spread": of radius 6, so that they are far apart. Arcs are bounded, so that no few
points of a tail decide a distance. All is then scaled to variance 1 in each dimension. The mixture that flows start
from is fitted by EM (diagonal, eight modes), not told.

For every pair of source and coupling the tables hold length, straightness and mean Lipschitz constant of the flow
(`gmtool.evaluation.trajectory`) along 100 Euler steps; then W2^2 on moderate sets and squared sliced W2 on large ones,
by network evaluations, 0 being the source itself, beside the same distances between two samples of the data. The row
"told its mode" gives the network the mode k, as the union must, so that it says what that knowledge alone is worth.

    python examples/mixture_source.py             # about 40 minutes on one idle core
    python examples/mixture_source.py --quick     # the same in miniature, for a look at the output
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.mixture import GaussianMixture as FittedMixture
from torch import Tensor

from gmtool.console import print_table
from gmtool.evaluation.trajectory import Trajectory, mean_lipschitz, sliced_distance, trace, transport_distance
from gmtool.flow.coupling import batch_optimal_transport, draw_modes
from gmtool.flow.objectives import flow_matching_loss, transition_loss
from gmtool.flow.path import data_mixture, forward_transition, interpolate, velocity
from gmtool.flow.prediction import MixtureModel, VelocityModel, unguided
from gmtool.flow.solvers.mixture import gm_ode
from gmtool.flow.solvers.velocity import euler
from gmtool.flow.source import Frame
from gmtool.flow.times import draw_times
from gmtool.mixture.gaussian_mixture import GaussianMixture
from gmtool.nn.mlp import PointNetwork
from gmtool.streams import generator

DIMENSIONS, MODES, COMPONENTS = 10, 8, 32
RADIUS, THICKNESS = 1.5, 0.25
RADII = {"Compact": 2.0, "Spread": 6.0}
EVALUATIONS = (1, 2, 4, 6, 10, 50)
RATIO = 0.97
"""lambda of the transition loss. GMFlow's in two dimensions is 0.9; with more, the loss at t = 1 sees the data less
blurred, which is what a drawing in one evaluation is made of."""
PATH_STEPS, SUBSTEPS_IN_ALL = 100, 128


@dataclass(frozen=True)
class Flow:
    """A row of the study. told: whether the network is given the mode; mixture: whether it predicts a mixture."""

    name: str
    source: Literal["gaussian", "gmm"] = "gaussian"
    coupling: Literal["independent", "batch-ot", "mode"] = "independent"
    mixture: bool = False
    told: bool = False

    @property
    def union(self) -> bool:
        return self.mixture and self.source == "gmm"


FLOWS = (
    Flow("Gaussian, independent (fm)"),
    Flow("Gaussian, batch-OT", coupling="batch-ot"),
    Flow("mixture, independent", source="gmm"),
    Flow("mixture, mode (MM-FM)", source="gmm", coupling="mode"),
    Flow("mixture, mode, told its mode", source="gmm", coupling="mode", told=True),
    Flow("Gaussian, gm-kl (GMFlow)", mixture=True),
    Flow("mixture, mode, gm-kl (union)", source="gmm", coupling="mode", mixture=True, told=True),
)


@dataclass(frozen=True)
class Setting:
    """Network, training, and the points of each measure."""

    width: int
    depth: int
    steps: int
    batch: int
    data: int
    sliced: int
    exact: int
    paths: int
    rate: float = 3e-3
    mixture_rate: float = 1e-2
    mixture_shift: float = 16.0  # of the times: a drawing in few evaluations is decided near t = 1


FULL = Setting(width=128, depth=4, steps=10_000, batch=256, data=20_000, sliced=20_000, exact=1000, paths=300)
QUICK = Setting(width=16, depth=2, steps=3, batch=32, data=200, sliced=100, exact=50, paths=20)


@dataclass(frozen=True)
class Source:
    """The fitted mixture: weights (K,), means and stds (K, D, 1, 1)."""

    weights: Tensor
    means: Tensor
    stds: Tensor
    fitted: FittedMixture

    def frame(self, modes: Tensor) -> Frame:
        return Frame(self.means[modes], self.stds[modes])

    def free(self, count: int, stream: torch.Generator) -> Tensor:
        """Modes (count,) by their weights alone."""
        return torch.multinomial(self.weights, count, replacement=True, generator=stream)

    def own(self, x: Tensor, stream: torch.Generator) -> Tensor:
        """A mode of each point by its responsibilities, (B,)."""
        shares = torch.from_numpy(self.fitted.predict_proba(x.flatten(1).numpy().astype(np.float64))).float()
        return draw_modes(torch.arange(MODES).expand(len(x), -1), shares, torch.rand(len(x), generator=stream))


def draw_data(radius: float, count: int, stream: torch.Generator) -> Tensor:
    """Points (count, 10, 1, 1), see the module; where and how the modes lie depends on the radius alone."""
    shape = generator("modes")
    centres = torch.nn.functional.normalize(torch.randn(MODES, DIMENSIONS, generator=shape)) * radius
    turns = torch.linalg.qr(torch.randn(MODES, DIMENSIONS, DIMENSIONS, generator=shape)).Q
    mode = torch.randint(MODES, (count,), generator=stream)
    along = torch.randn(count, generator=stream)
    local = THICKNESS * torch.randn(count, DIMENSIONS, generator=stream)
    local[:, 0] += RADIUS * along.sin()
    local[:, 1] += RADIUS * (1 - along.cos())
    points = (turns[mode] @ local.unsqueeze(2)).squeeze(2) + centres[mode]
    # E sin^2 a, E (1 - cos a) and its variance, for a ~ N(0, 1)
    sine, height = (1 - math.exp(-2)) / 2, 1 - math.exp(-0.5)
    spread = (1 + math.exp(-2)) / 2 - math.exp(-1)
    arc = RADIUS**2 * torch.tensor([sine, spread, *[0.0] * (DIMENSIONS - 2)]) + THICKNESS**2
    means = centres + RADIUS * height * turns[:, :, 1]
    variance = (turns.square() * arc).sum(2).mean(0) + means.var(0, unbiased=False)
    return ((points - means.mean(0)) / variance.sqrt()).reshape(count, DIMENSIONS, 1, 1)


def fit_source(x: Tensor, seed: int) -> Source:
    """A diagonal mixture of eight modes, by EM from k-means."""
    fitted = FittedMixture(MODES, covariance_type="diag", random_state=seed).fit(x.flatten(1).double().numpy())
    means, variances = (
        torch.from_numpy(each).float().reshape(MODES, -1, 1, 1) for each in (fitted.means_, fitted.covariances_)
    )
    return Source(torch.from_numpy(fitted.weights_).float(), means, variances.sqrt(), fitted)


def train(flow: Flow, x: Tensor, source: Source, setting: Setting, seed: int) -> PointNetwork:
    """A network of this flow, the rate falling to 0 along a cosine."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = PointNetwork(
            DIMENSIONS,
            setting.width,
            setting.depth,
            COMPONENTS if flow.mixture else 0,
            frequencies=0,
            modes=MODES if flow.told else 0,
        )
    rate, shift = (setting.mixture_rate, setting.mixture_shift) if flow.mixture else (setting.rate, 1.0)
    optimizer = torch.optim.AdamW(network.parameters(), rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, setting.steps, pct_start=0.05)
    stream = generator(seed, "train")
    for _ in range(setting.steps):
        batch = x[torch.randint(len(x), (setting.batch,), generator=stream)]
        loss = training_loss(network, flow, batch, source, shift, stream).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return network.eval().requires_grad_(False)


def training_loss(
    network: PointNetwork, flow: Flow, x: Tensor, source: Source, shift: float, stream: torch.Generator
) -> Tensor:
    """The loss of each point, (B,): pairing, path and objective by the library's own functions."""
    t = draw_times(len(x), "uniform", shift, stream)
    noise, fresh = torch.randn(2, *x.shape, generator=stream)
    modes = source.own(x, stream) if flow.coupling == "mode" else source.free(len(x), stream)
    told = modes if flow.told else None
    if flow.mixture:
        y = source.frame(modes).whiten(x) if flow.union else x
        s = t * (1 - RATIO)
        y_s = interpolate(y, noise, s)
        y_t = forward_transition(y_s, s, t, fresh)
        predicted = cast(GaussianMixture, network(y_t, t, told))
        return transition_loss(predicted, y_t, t, y_s, s)
    z = source.frame(modes).restore(noise) if flow.source == "gmm" else noise
    if flow.coupling == "batch-ot":
        z = z[batch_optimal_transport(x, z)]
    return flow_matching_loss(cast(Tensor, network(interpolate(x, z, t), t, told)), velocity(x, z))


@dataclass(frozen=True)
class Sampler:
    """A trained flow and the modes and noise (B, 10, 1, 1) of the points that it will draw."""

    flow: Flow
    network: PointNetwork
    frame: Frame
    noise: Tensor
    told: Tensor | None

    @property
    def start(self) -> Tensor:
        """Where the points begin, in the data's coordinates."""
        return self.frame.restore(self.noise) if self.flow.source == "gmm" else self.noise

    def field(self, rows: slice) -> VelocityModel:
        """The velocity of some of the points in the data's coordinates; s_k u(y), y = (x - mu_k) / s_k, for a union."""
        told = None if self.told is None else self.told[rows]
        frame = Frame(self.frame.mean[rows], self.frame.std[rows])

        def model(x_t: Tensor, t: Tensor) -> Tensor:
            predicted = self.network(frame.whiten(x_t) if self.flow.union else x_t, t, told)
            u = predicted.mean() if isinstance(predicted, GaussianMixture) else predicted
            return frame.std * u if self.flow.union else u

        return model

    def mixture(self) -> MixtureModel:
        """The mixture over the data, of a union in its modes' coordinates."""
        return lambda x_t, t: unguided(data_mixture(cast(GaussianMixture, self.network(x_t, t, self.told)), x_t, t))

    @torch.inference_mode()
    def draw(self, evaluations: int) -> Tensor:
        """Points (B, 10, 1, 1) by Euler's method, or by GM-ODE of order 2 where the network predicts a mixture."""
        if not self.flow.mixture:
            return euler(self.field(slice(None)), self.start, evaluations, 1.0)
        substeps = max(1, SUBSTEPS_IN_ALL // evaluations)
        end = gm_ode(self.mixture(), self.noise, evaluations, 1.0, 2, substeps)
        return self.frame.restore(end) if self.flow.union else end


def sampler(flow: Flow, network: PointNetwork, source: Source, count: int, seed: int) -> Sampler:
    """The same noise for every flow, and the same modes for those that start from the mixture."""
    stream = generator(seed, "draw")
    modes, noise = source.free(count, stream), torch.randn(count, DIMENSIONS, 1, 1, generator=stream)
    return Sampler(flow, network, source.frame(modes), noise, modes if flow.told else None)


@dataclass(frozen=True)
class Outcome:
    """A row of the table: the path's measures, and the distances by evaluations."""

    length: float
    straightness: float
    lipschitz: float
    exact: dict[int, float]
    sliced: dict[int, float]


def judge(sampling: Sampler, held_out: Tensor, setting: Setting) -> tuple[Outcome, Trajectory]:
    """The measures of a flow against data that it was not trained on, and the paths that were followed."""
    rows = slice(setting.paths)
    field = sampling.field(rows)
    paths = trace(field, sampling.start[rows], PATH_STEPS, 1.0)
    steepest = mean_lipschitz(field, paths, generator("lipschitz"))
    drawn = {0: sampling.start} | {count: sampling.draw(count) for count in EVALUATIONS}
    outcome = Outcome(
        float(paths.length().mean()),
        float(paths.straightness().mean()),
        float(steepest.mean()),
        {count: exact(each, held_out, setting) for count, each in drawn.items()},
        {count: sliced_distance(each, held_out, generator("directions")) for count, each in drawn.items()},
    )
    return outcome, paths


def exact(points: Tensor, held_out: Tensor, setting: Setting) -> float:
    return transport_distance(points[: setting.exact], held_out[: setting.exact])


def report(name: str, outcomes: dict[str, Outcome], floor: Outcome) -> None:
    """Print the three tables of a setting."""
    print_table(
        f"{name}: paths",
        ("source, coupling", "length", "straightness", "Lipschitz"),
        [(row, f"{o.length:.3f}", f"{o.straightness:.3f}", f"{o.lipschitz:.2f}") for row, o in outcomes.items()],
    )
    for title, least, values in (
        (f"{name}: W2^2", floor.exact, {row: each.exact for row, each in outcomes.items()}),
        (f"{name}: squared sliced W2", floor.sliced, {row: each.sliced for row, each in outcomes.items()}),
    ):
        print_table(
            f"{title}, by evaluations (two samples of the data: {least[0]:.4f})",
            ("source, coupling", *map(str, (0, *EVALUATIONS))),
            [(row, *(f"{value:.4f}" for value in each.values())) for row, each in values.items()],
        )


def picture(paths: dict[str, Trajectory], data: Tensor, path: Path) -> None:
    """Paths on the two first principal axes of the data, a panel a flow."""
    points = data.flatten(1)
    axes_of_data = torch.linalg.svd(points - points.mean(0), full_matrices=False).Vh[:2].T
    columns = math.ceil(len(paths) / 2)
    figure = Figure(figsize=(4 * columns, 8), layout="constrained")
    panels = iter(figure.subplots(2, columns, sharex=True, sharey=True, squeeze=False).flat)
    for (name, each), panel in zip(paths.items(), panels, strict=False):  # in this order, zip takes no panel too many
        flat = each.points.flatten(2)[:, :100] @ axes_of_data
        panel.scatter(*(points[:2000] @ axes_of_data).T, s=1, color="lightgrey")
        panel.plot(*flat.movedim(2, 0), color="steelblue", linewidth=0.5)
        panel.scatter(*flat[0].T, s=5, color="black", label="source")
        panel.scatter(*flat[-1].T, s=5, color="crimson", label="drawn")
        panel.set_title(name, fontsize="small")
    for panel in panels:  # those that are left
        panel.set_axis_off()
    figure.savefig(path, dpi=120)


def study(name: str, setting: Setting, seed: int, folder: Path) -> None:
    """All flows on one data set: tables and a picture."""
    x, held_out, other = (
        draw_data(RADII[name], count, generator(part))
        for part, count in (("training", setting.data), ("held out", setting.sliced), ("other", setting.sliced))
    )
    source = fit_source(x, seed)
    outcomes, paths = {}, {}
    for flow in FLOWS:
        network = train(flow, x, source, setting, seed)
        outcomes[flow.name], paths[flow.name] = judge(
            sampler(flow, network, source, setting.sliced, seed), held_out, setting
        )
        print(f"{name}: {flow.name} done", file=sys.stderr, flush=True)
    floor = Outcome(
        0,
        0,
        0,
        {0: exact(other, held_out, setting)},
        {0: sliced_distance(other, held_out, generator("directions"))},
    )
    report(name, outcomes, floor)
    picture(paths, x, folder / f"{name.lower()}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("mixture-source"), help="for the pictures")
    parser.add_argument("--quick", action="store_true", help="a miniature, whose figures mean nothing")
    parser.add_argument("--data", choices=RADII, help="one data set instead of both")
    parser.add_argument("--seed", type=int, default=0, help="of the networks and the mixture")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in [options.data] if options.data else RADII:
        study(name, QUICK if options.quick else FULL, options.seed, options.folder)


if __name__ == "__main__":
    main()
