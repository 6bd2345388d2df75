"""Does it pay to refit the mixture: while a network trains on it, or when images are added to the data?

``flows`` (ten dimensions, `mixture_source`): MM-FM and the union trained on a mixture of eight modes; on sixteen; on
eight that are split and fitted on to sixteen half way through training; and on eight, each of which two modes of the
whitened residuals (x - mu_k) / s_k take the place of, from the start or half way. The network and its budget are the
same in all. In a conditioned network a new mode inherits the label of the old one that its mean belongs to.

``append`` (4 x 4 patches of photographs): a mixture is fitted to some of the data, and others are added, of the same
photographs or of three that it has not seen. It is fitted anew, or updated: by EM from where it is, on all data or on
the new ones alone, or by one pass of stepwise EM, which moves the means of its statistics towards those of each new
block j, s <- (1 - n) s + n s_j, with n = (j + 2)^-0.7 or the block's share of all data so far (Cappé and Moulines 2009;
Liang and Klein 2009). Time and held-out log-likelihood.

    python examples/refit_study.py                # about 20 minutes on one idle core
    python examples/refit_study.py --quick        # the same in miniature, for a look at the output
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean, stdev

import numpy as np
import torch
from mixture_source import BATCH, COMPONENTS, DEPTH, DISTANCES, FLOWS, WIDTH, draw
from photographs import BANDS, SHORT, photographs
from PIL import Image
from point_flows import DIMENSIONS, curved_modes, optimise
from torch import Tensor

from gmtool.console import print_table
from gmtool.evaluation.trajectory import sliced_distance
from gmtool.flow.coupling import draw_modes
from gmtool.flow.objective import TransitionDraws
from gmtool.flow.source import ModeMixture
from gmtool.mixture.diagonal import DiagonalMixture, posterior
from gmtool.mixture.em import (
    Blocks,
    Fit,
    SufficientStatistics,
    block_rows,
    expected_moments,
    fit_em,
    label_moments,
    log_likelihood,
    maximise,
    split_largest,
    start_from_clusters,
)
from gmtool.mixture.kmeans import kmeans, seed_centroids
from gmtool.mixture.settings import EmSettings
from gmtool.nn.mlp import PointNetwork
from gmtool.streams import generator

CPU = torch.device("cpu")


def blocks_of(data: np.ndarray, modes: int) -> Blocks:
    return Blocks(data, block_rows(modes, CPU), CPU)


def climbed(data: np.ndarray, start: DiagonalMixture) -> Fit:
    """EM on data (N, D) from a mixture, to `fit-gmm`'s tolerance."""
    return fit_em(blocks_of(data, len(start.weights)), Fit(start), EmSettings())


def fitted(data: np.ndarray, modes: int, seed: int) -> Fit:
    """A mixture of data (N, D) as `fit-gmm` makes it: k-means++, k-means, EM."""
    seeds = seed_centroids(data, modes, seed=seed, device=CPU)
    clusters = kmeans(data, seeds, iterations=2, device=CPU)
    moments = label_moments(blocks_of(data, modes), torch.from_numpy(clusters.labels), modes)
    return climbed(data, start_from_clusters(torch.from_numpy(clusters.centroids), moments, EmSettings.variance_floor))


def of_data(data: np.ndarray, mixture: DiagonalMixture) -> float:
    """Log-likelihood of data (N, D), nats a sample."""
    return log_likelihood(blocks_of(data, len(mixture.weights)), mixture)


# --- while a network trains -------------------------------------------------------------------------------------------

MODES, EVALUATIONS = 8, (1, 2, 6, 50)
ROWS = (
    f"{MODES} modes",
    f"{2 * MODES} modes",
    f"{MODES}, half way {2 * MODES}",
    f"{MODES} x 2 of the residuals",
    f"{MODES}, half way x 2 of the residuals",
)
METHODS = {"MM-FM": "mixture, mode (MM-FM)", "union": "mixture, mode, gm-kl (union)"}


def split(mixture: DiagonalMixture) -> DiagonalMixture:
    """Every mode split in two."""
    empty = DiagonalMixture(torch.zeros_like(mixture.weights), mixture.means, mixture.variances)
    pairs = zip(vars(mixture).values(), vars(empty).values(), strict=True)
    return split_largest(DiagonalMixture(*(torch.cat(pair) for pair in pairs)))


def assigned(data: np.ndarray, mixture: DiagonalMixture) -> tuple[Tensor, Tensor]:
    """The modes of data (N, D) and their probabilities, both (N, K), most probable first."""
    kept = posterior(blocks_of(data, len(mixture.weights)), mixture, len(mixture.weights))
    return kept.modes.long(), kept.probabilities


def refined(data: np.ndarray, mixture: DiagonalMixture, modes: int, seed: int) -> DiagonalMixture:
    """Each mode k replaced by ``modes`` ones of means m_k + s_k a_j, variances v_k b_j and weights w_k c_j.

    (c, a, b) is a mixture of all data's residuals (x - m_k) / s_k, k the most probable mode of x.
    """
    own = assigned(data, mixture)[0][:, 0]
    residuals = (torch.from_numpy(data).double() - mixture.means[own]) / mixture.variances[own].sqrt()
    inner = fitted(residuals.float().numpy(), modes, seed).mixture
    return DiagonalMixture(
        (mixture.weights[:, None] * inner.weights).flatten(),
        (mixture.means[:, None] + mixture.variances.sqrt()[:, None] * inner.means).flatten(0, 1),
        (mixture.variances[:, None] * inner.variances).flatten(0, 1),
    )


def plans(data: np.ndarray, seed: int) -> dict[str, tuple[DiagonalMixture, ...]]:
    """The mixtures of a row, one after another in equal parts of the training."""
    few, many = fitted(data, MODES, seed).mixture, fitted(data, 2 * MODES, seed).mixture
    more, inner = climbed(data, split(few)).mixture, refined(data, few, 2, seed)
    return dict(zip(ROWS, ((few,), (many,), (few, more), (inner,), (few, inner)), strict=True))


def source(mixture: DiagonalMixture) -> ModeMixture:
    """The mixture as a source of points (10, 1, 1)."""
    weights, means, variances = (values.float() for values in vars(mixture).values())
    return ModeMixture(weights, means[..., None, None], variances.sqrt()[..., None, None])


def train(flow: str, x: Tensor, stages: Sequence[DiagonalMixture], steps: int, seed: int) -> PointNetwork:
    """A network trained on mixtures one after another; it sees the same points, times and noise in every row."""
    torch.manual_seed(seed)
    method, told = FLOWS[flow]
    components, rate = (COMPONENTS, 1e-2) if method.objective.mixture else (0, 3e-3)
    labels, stream = 2 * MODES if told else 0, generator(seed, "train")
    network = PointNetwork(DIMENSIONS, WIDTH, DEPTH, components, frequencies=0, modes=labels)
    data = x.flatten(1).numpy()
    shares, sources = [assigned(data, mixture) for mixture in stages], [source(mixture) for mixture in stages]
    heirs = [assigned(after.means.float().numpy(), before)[0][:, 0] for before, after in zip(stages, stages[1:])]  # noqa: B905, RUF007
    done = iter(range(steps))

    def losses() -> Tensor:
        stage, first = divmod(next(done) * len(stages), steps)
        if stage and not first and network.from_mode is not None:
            inherit(network.from_mode.get_parameter("table.weight"), heirs[stage - 1])
        rows = torch.randint(len(x), (BATCH,), generator=stream)
        t = method.times.draw(BATCH, stream)
        noise, onward = torch.randn(2, *x[rows].shape, generator=stream)
        modes, probabilities = shares[stage]
        own = draw_modes(modes[rows], probabilities[rows], torch.rand(BATCH, generator=stream))
        pairs = method.pair(x[rows], noise, sources[stage].at(own))
        return method.loss(partial(network, modes=own), pairs, TransitionDraws(t, noise, onward))

    return optimise(network, losses, rate, steps)


@torch.no_grad()
def inherit(labels: Tensor, heirs: Tensor) -> None:
    """The vector of each new mode becomes that of the old one that it comes from, in place."""
    labels[: len(heirs)] = labels[heirs]


def flows(name: str, methods: Sequence[str], mixtures: Sequence[str], steps: int, count: int, seeds: int) -> None:
    """All rows on one data set: likelihood of the mixtures, and distances by evaluations."""
    x, held_out, other = (
        curved_modes(DISTANCES[name], count, generator(part)) for part in ("training", "held out", "other")
    )

    def distance(points: Tensor) -> float:
        return sliced_distance(points, held_out, generator("directions"))

    table: dict[tuple[str, str], list[list[float]]] = {}
    likelihoods: dict[str, list[float]] = {}
    for seed in range(seeds):
        stages_of = plans(x.flatten(1).numpy(), seed)
        for row in mixtures:
            stages = stages_of[row]
            last = source(stages[-1])
            likelihoods.setdefault(row, []).append(of_data(held_out.flatten(1).numpy(), stages[-1]))
            for label in methods:
                flow = METHODS[label]
                network, stream = train(flow, x, stages, steps, seed), generator(seed, "draw")
                modes, noise = last.draw(count, stream), torch.randn(x.shape, generator=stream)
                predict, own = partial(network, modes=modes), last.at(modes)
                scores = [distance(draw(FLOWS[flow][0], predict, own, noise, n)) for n in (0, *EVALUATIONS)]
                table.setdefault((label, row), []).append(scores)
    print_table(
        f"{name}: held-out nats of the last mixture, and squared sliced W2 by evaluations (other data: "
        f"{distance(other):.4f}), {seeds} seeds",
        ("", "mixture", "nats", "0", *map(str, EVALUATIONS)),
        [
            (label, row, spread(likelihoods[row], 2), *(spread(column, 4) for column in zip(*scores, strict=True)))
            for (label, row), scores in sorted(table.items(), key=lambda item: item[0][0])
        ],
    )


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation."""
    around = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{around}"


# --- when data are added ----------------------------------------------------------------------------------------------

PATCH, BLOCK = 4, 512
Step = Callable[[int, float], float]
"""n of the block j whose data are such a share of all so far."""
STEPS: dict[str, Step] = {"(j + 2)^-0.7": lambda number, _: (number + 2) ** -0.7, "its share": lambda _, share: share}
UNSEEN = 3
"""Photographs that are added as a whole; fewer where there are no more than so many."""
DIGITS = (2, 0, 3)
"""Of the table's columns, after the point."""


@dataclass(frozen=True)
class Added:
    """Data (n, D) that a mixture was fitted to, those that are added, and held-out data of both."""

    before: np.ndarray
    new: np.ndarray
    held_out: np.ndarray

    @property
    def whole(self) -> np.ndarray:
        return np.concatenate([self.before, self.new])


def patches_of(part: str, count: int, stream: np.random.Generator) -> dict[str, np.ndarray]:
    """``count`` random patches of each photograph, colours in 0 ... 1, (count, 48), from the bands of a part."""
    taken = {}
    first, last = BANDS[part]
    for name, photograph in photographs().items():
        scale = SHORT / min(photograph.size)
        width, height = (round(scale * length) for length in photograph.size)
        pixels = np.asarray(photograph.resize((width, height), Image.Resampling.LANCZOS), np.float32) / 255
        starts = np.arange(width - PATCH + 1)
        place = starts % max(end for _, end in BANDS.values())
        x = stream.choice(starts[(place >= first) & (place <= last - PATCH)], count)
        y = stream.integers(height - PATCH + 1, size=count)
        patches = [pixels[b : b + PATCH, a : a + PATCH].ravel() for a, b in zip(x.tolist(), y.tolist(), strict=True)]
        noise = stream.random((count, len(patches[0])), np.float32) / 255  # of rounding, or flat skies have no density
        taken[name] = np.stack(patches) + noise
    return taken


def added(same: bool, count: int, seed: int) -> Added:
    """Patches of which those of three photographs, or as many of all, are added."""
    stream = np.random.default_rng(seed)
    train, held_out = (patches_of(part, many, stream) for part, many in (("train", count), ("held-out", count // 4)))
    names = stream.permutation(sorted(train)).tolist()
    parts = [train[name] for name in names]
    if same:
        parts = np.array_split(stream.permutation(np.concatenate(parts)), len(names))
    count_new = min(UNSEEN, len(parts) // 2)
    before, new = np.concatenate(parts[count_new:]), np.concatenate(parts[:count_new])
    centre = before.mean(axis=0)
    return Added(before - centre, new - centre, np.concatenate(list(held_out.values())) - centre)


def stepwise(
    before: DiagonalMixture, moments: SufficientStatistics, new: Iterable[Tensor], size: Step
) -> DiagonalMixture:
    """One pass of stepwise EM over new data in blocks (B, D), from the statistics of those before."""
    mixture, mass, features = before, moments.mass / moments.count, moments.features / moments.count
    seen = moments.count
    for number, block in enumerate(new):
        seen += len(block)
        step, own = size(number, len(block) / seen), expected_moments([block], mixture)
        mass, features = mass.lerp(own.mass / own.count, step), features.lerp(own.features / own.count, step)
        running = SufficientStatistics(mass * moments.count, features * moments.count, moments.count, float("nan"))
        mixture = maximise(running, mixture, EmSettings.variance_floor)
    return mixture


def ways(data: Added, modes: int, seed: int) -> Iterator[tuple[str, Callable[[], tuple[DiagonalMixture, int]]]]:
    """What can be done with a mixture when data are added: the mixture, and its iterations of EM."""
    old = fitted(data.before, modes, seed).mixture
    moments = expected_moments(blocks_of(data.before, modes), old)

    def climb(some: np.ndarray, start: DiagonalMixture) -> tuple[DiagonalMixture, int]:
        fit = climbed(some, start)
        return fit.mixture, len(fit.history)

    def anew() -> tuple[DiagonalMixture, int]:
        fit = fitted(data.whole, modes, seed)
        return fit.mixture, len(fit.history)

    yield "left as it is", lambda: (old, 0)
    yield "fitted anew", anew
    yield "updated by EM, all data", lambda: climb(data.whole, old)
    yield "updated by EM, new data alone", lambda: climb(data.new, old)
    shuffled = Blocks(np.random.default_rng(seed).permutation(data.new), BLOCK, CPU)
    for name, size in STEPS.items():
        yield f"updated stepwise, new data, {name}", lambda size=size: (stepwise(old, moments, shuffled, size), 0)


def append(count: int, modes: int, seeds: int) -> None:
    """The table of both cases."""
    for same in (True, False):
        rows: dict[str, list[tuple[float, float, float]]] = {}
        for seed in range(seeds):
            data = added(same, count, seed)
            for name, way in ways(data, modes, seed):
                began = time.process_time()
                mixture, iterations = way()
                taken = time.process_time() - began
                rows.setdefault(name, []).append((taken, iterations, of_data(data.held_out, mixture)))
        print_table(
            f"{len(data.before):,} patches, then {len(data.new):,} more of "
            f"{'the same photographs' if same else 'others'}; {modes} modes, {seeds} seeds",
            ("the mixture is", "processor, s", "EM iterations", "held-out, nats"),
            [
                (name, *(spread(values, digits) for values, digits in zip(zip(*row, strict=True), DIGITS, strict=True)))
                for name, row in rows.items()
            ],
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=("flows", "append"), help="one part instead of both")
    parser.add_argument("--quick", action="store_true", help="a miniature, whose figures mean nothing")
    parser.add_argument("--data", choices=DISTANCES, help="one data set of points instead of both")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=tuple(METHODS), help="of flows")
    parser.add_argument("--mixtures", nargs="+", choices=ROWS, default=ROWS, help="of flows")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000, help="of training")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what != "append":
        for name in [options.data] if options.data else DISTANCES:
            budget = (4, 200) if options.quick else (options.steps, 5000)
            flows(name, options.methods, options.mixtures, *budget, options.seeds)
    if options.what != "flows":
        append(*((40, 4) if options.quick else (2000, 128)), options.seeds)


if __name__ == "__main__":
    main()
