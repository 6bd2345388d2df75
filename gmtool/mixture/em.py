"""Maximum likelihood of a mixture of Gaussians with diagonal covariances, by expectation maximisation in blocks.

The model of a descriptor x in R^D is p(x) = sum_k w_k N(x; m_k, diag v_k). One iteration:

    E   r_nk = w_k N(x_n; m_k, v_k) / p(x_n)
    M   n_k = sum_n r_nk,  w_k = n_k / N,  m_k = sum_n r_nk x_n / n_k,  v_k = sum_n r_nk x_n^2 / n_k - m_k^2 + floor

(Dempster, Laird and Rubin 1977; the floor as in scikit-learn's ``reg_covar``.) Both halves are matrix products, x^2 and
x against -1/2v and m/v, then r^T against x^2 and x, so that a block of B samples needs B x K numbers and the N x K
responsibilities never exist at once. Where modes are many and far apart, nearly all responsibilities are zero in the
blocks' precision, and the second product uses a sparse matrix of the others, at a small fraction of the cost of the
first.

Data are an iterable of blocks (B, D) that can be iterated repeatedly (such as `Blocks`). Products are
taken in the blocks' own precision, sums over blocks in float64. The expanded squares lose digits where a mean is far
from the origin in units of its mode's spread: the data should be centred, and both products of the modes that are
narrow nevertheless (`PRECISION`) are computed in float64.

An empty mode is re-initialised before the next iteration by splitting the largest one (`split_largest`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from gmtool.mixture.diagonal import DiagonalMixture, LogDensity, exponentials
from gmtool.mixture.settings import EmSettings
from gmtool.streams import generator

BLOCK_ROWS, BLOCK_ENTRIES_GPU = 1 << 11, 1 << 26
"""A processor's block has 2048 samples, or K if that is more: it stays in the caches while modes are few, and the
float64 sums (K x 2 D), which each block walks, stay cheap while they are many. A GPU wants so many B x K numbers."""

GROUP, SPARSE_SHARE = 8, 1 / 8
"""Responsibilities above zero are looked for in groups of so many modes. Where no more than this share of the groups
holds one, a sparse product is the faster one."""

EMPTY = 1e-6
"""A mode that holds less than this many samples is empty: it gets weight 0."""


@dataclass(frozen=True)
class SufficientStatistics:
    """Sums over data: mass n_k (K,), features sum_n r_nk (x_n^2, x_n) (K, 2 D), their number, and sum_n log p(x_n)."""

    mass: Tensor
    features: Tensor
    count: int
    log_likelihood: float


@dataclass(frozen=True)
class Fit:
    """The mixture; the mean log-likelihood of a sample before each iteration, in nats, of the fitted data (history) and
    of the held-out data; whether it converged.
    """

    mixture: DiagonalMixture
    history: tuple[float, ...] = ()
    held_out: tuple[float, ...] = ()
    converged: bool = False


@dataclass(frozen=True)
class Blocks:
    """Data (N, D) in main memory, iterated in blocks of ``rows`` on ``device``."""

    data: np.ndarray
    rows: int
    device: torch.device

    def __iter__(self) -> Iterator[Tensor]:
        for start in range(0, len(self.data), self.rows):
            yield torch.from_numpy(self.data[start : start + self.rows]).to(self.device)


def block_rows(modes: int, device: torch.device) -> int:
    """Data in a block, by the number of modes."""
    if device.type == "cuda":
        return max(1, BLOCK_ENTRIES_GPU // max(modes, 256))
    return max(BLOCK_ROWS, modes)


def fit_em(
    blocks: Iterable[Tensor],
    start: Fit,
    settings: EmSettings,
    *,
    held_out: Iterable[Tensor] = (),
    total: Callable[[Tensor], Tensor] = lambda own: own,
) -> Fit:
    """The last fit that `em_iterations` yields, from blocks (B, D); ``start`` when there is none."""
    fits = em_iterations(blocks, start, settings, held_out=held_out, total=total)
    return reduce(lambda _, fit: fit, fits, start)


def em_iterations(
    blocks: Iterable[Tensor],
    start: Fit,
    settings: EmSettings,
    *,
    held_out: Iterable[Tensor] = (),
    total: Callable[[Tensor], Tensor] = lambda own: own,
) -> Iterator[Fit]:
    """Yield the fit after each iteration from ``start``, until one gains less than the tolerance.

    blocks, held_out: data as (B, D); of the held-out data only the likelihood is computed. The settings' iterations
    include those of ``start``.
    total: the sum over all processes, where each has blocks of its own. Raises UserError where a mode has no spread
    along some dimension, which happens without a variance floor.
    """
    fit = start
    while len(fit.history) < settings.iterations and not fit.converged:
        mixture = split_largest(fit.mixture)
        moments = expected_moments(blocks, mixture, total)
        mean = moments.log_likelihood / moments.count
        of_held_out = log_likelihood(held_out, mixture, total)
        fit = Fit(
            maximise(moments, mixture, settings.variance_floor),
            (*fit.history, mean),
            fit.held_out if math.isnan(of_held_out) else (*fit.held_out, of_held_out),
            bool(fit.history) and abs(mean - fit.history[-1]) < settings.tolerance,
        )
        yield fit


def log_likelihood(
    blocks: Iterable[Tensor], mixture: DiagonalMixture, total: Callable[[Tensor], Tensor] = lambda own: own
) -> float:
    """Mean log-likelihood of a sample of blocks (B, D), in nats; NaN without data. total: see `em_iterations`."""
    density: LogDensity | None = None
    sums = mixture.weights.new_zeros(2)
    for x in blocks:
        density = density or LogDensity(mixture, x.dtype)
        evidence = exponentials(density(x)[0])[2]
        sums += torch.stack([evidence.sum(dtype=sums.dtype), sums.new_tensor(len(x))])
    likelihood, count = total(sums).tolist()
    return likelihood / count if count else math.nan


def expected_moments(
    blocks: Iterable[Tensor],
    mixture: DiagonalMixture,
    total: Callable[[Tensor], Tensor] = lambda own: own,
    sparse_share: float = SPARSE_SHARE,
) -> SufficientStatistics:
    """The E step: moments of data in blocks (B, D) under their responsibilities. total: see `em_iterations`.

    sparse_share: of the groups of modes, up to which the responsibilities above zero make a sparse matrix.
    """
    modes, size = mixture.means.shape
    mass = mixture.weights.new_zeros(modes)
    sums = mixture.weights.new_zeros(modes, 2 * size)
    of_squares, of_values = sums.chunk(2, dim=1)
    scalars = mixture.weights.new_zeros(2)  # log-likelihood, number of data
    density: LogDensity | None = None
    for x in blocks:
        density = density or LogDensity(mixture, x.dtype)
        joint, squares = density(x)
        responsibilities, own_mass, evidence = _responsibilities(joint, sparse_share)
        parts = own_mass, responsibilities @ squares, responsibilities @ x
        if len(density.narrow):
            parts = _in_float64(parts, density.narrow, responsibilities, x)
        mass += parts[0]
        of_squares += parts[1]
        of_values += parts[2]
        scalars += torch.stack([evidence.sum(dtype=scalars.dtype), scalars.new_tensor(len(x))])
    likelihood, count = total(scalars).tolist()
    return SufficientStatistics(total(mass), total(sums), int(count), likelihood)


_Parts = tuple[Tensor, Tensor, Tensor]
"""Sums of r (K,), r x^2 (K, D) and r x (K, D) over a block."""


def _in_float64(parts: _Parts, narrow: Tensor, responsibilities: Tensor, x: Tensor) -> _Parts:
    """The same sums, those of the modes numbered ``narrow`` taken anew in float64; the responsibilities are (K, B)."""
    exact, own, size = x.double(), responsibilities.index_select(0, narrow).double(), x.shape[1]
    sums = own @ torch.cat([torch.ones_like(exact[:, :1]), exact.square(), exact], dim=1)
    mass, squares, values = (part.double() for part in parts)
    mass[narrow], squares[narrow], values[narrow] = sums[:, 0], sums[:, 1 : 1 + size], sums[:, 1 + size :]
    return mass, squares, values


def label_moments(blocks: Iterable[Tensor], labels: Tensor, modes: int) -> SufficientStatistics:
    """The statistics when sample n belongs to mode ``labels[n]`` (N,) alone; the log-likelihood is not known."""
    mass = torch.bincount(labels, minlength=modes).double()
    sums: Tensor | None = None
    count = 0
    for x in blocks:
        values = x.double()
        features = torch.cat([values.square(), values], dim=1)
        sums = features.new_zeros(modes, features.shape[1]) if sums is None else sums
        sums.index_add_(0, labels[count : count + len(x)], features)
        count += len(x)
    if sums is None:
        raise ValueError("no data")
    return SufficientStatistics(mass, sums, count, math.nan)


def start_from_clusters(centroids: Tensor, clusters: SufficientStatistics, floor: float) -> DiagonalMixture:
    """A mixture to climb from: equal weights, means at k-means' centroids (K, D), and the variances

        v_kd = p_d / 2 (1 + (c_kd - a_d)^2 / g_d) + floor

    with a and g the data's mean and variance, p the mean variance within the ``clusters`` around the centroids.
    Starting from each cluster's own variance, EM would stay near the k-means solution, whose clusters differ in their
    means only. A mode whose mean is far out along an axis is likely wide along it: started like that, EM separates wide
    modes from narrow ones and reaches a higher likelihood (on patches of photographs by 0.1 nats, on mixtures of
    unequal spread by 0.3 to 0.6).
    """
    mean_square, mean = (clusters.features.sum(0) / clusters.count).chunk(2)
    spread = mean_square - mean.square()
    within = (clusters.mass[:, None] * maximise(clusters, None, 0.0).variances).sum(0) / clusters.count
    # an axis without spread has no width to tell
    reach = (centroids.double() - mean).square() / spread.clamp_min(torch.finfo(spread.dtype).tiny)
    return DiagonalMixture(
        torch.full_like(clusters.mass, 1 / len(centroids)), centroids.double(), within / 2 * (1 + reach) + floor
    )


def maximise(moments: SufficientStatistics, previous: DiagonalMixture | None, floor: float) -> DiagonalMixture:
    """The M step. An empty mode gets weight 0, and the mean and variance it had before (else 0 and 1)."""
    alive = moments.mass > EMPTY
    mass = torch.where(alive, moments.mass, 1.0)[:, None]
    second, means = (moments.features / mass).chunk(2, dim=1)
    spread = second - means.square()
    # what rounding leaves of no spread is none, or it would look like a variance
    variances = torch.where(spread > 8 * torch.finfo(spread.dtype).eps * second, spread, 0.0) + floor
    old_means, old_variances = (
        (torch.zeros_like(means), torch.ones_like(means)) if previous is None else (previous.means, previous.variances)
    )
    weights = torch.where(alive, moments.mass, 0.0)
    return DiagonalMixture(
        weights / weights.sum(),
        torch.where(alive[:, None], means, old_means),
        torch.where(alive[:, None], variances, old_variances),
    )


def split_largest(mixture: DiagonalMixture) -> DiagonalMixture:
    """Re-initialise each mode of weight 0 by splitting one of the largest modes; the same mixture if there is none.

    The two halves of N(m, v) stand at m +- offset, where the offset's length in units of sqrt(v) is sqrt(2 / pi): as
    far as the centres of the halves that a plane through m cuts. Its direction is a corner of the cube.
    """
    empty = (mixture.weights == 0).nonzero()[:, 0]
    if not len(empty):
        return mixture
    order = mixture.weights.argsort(descending=True, stable=True)
    count = min(len(empty), len(order) - len(empty))
    empty, large = empty[:count], order[:count]
    size = mixture.means.shape[1]
    signs = torch.randint(0, 2, (count, size), generator=generator("revive", size)).to(mixture.means) * 2 - 1
    offset = mixture.variances[large].sqrt() * signs * math.sqrt(2 / (math.pi * size))
    weights, means, variances = (tensor.clone() for tensor in (mixture.weights, mixture.means, mixture.variances))
    weights[empty] = weights[large] = mixture.weights[large] / 2
    means[empty], means[large] = mixture.means[large] + offset, mixture.means[large] - offset
    variances[empty] = mixture.variances[large]
    return DiagonalMixture(weights, means, variances)


def _responsibilities(joint: Tensor, sparse_share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of log w_k N(x_n; m_k, v_k), joint (B, K): r_nk transposed (K, B), its sums (K,) over data, log p(x_n) (B, 1).

    ``joint`` is overwritten. The first is a sparse matrix where few of its entries are above zero, to the precision of
    the sum over modes.
    """
    rows, modes = joint.shape
    # strided groups: their maxima are taken along whole rows, and a search among them is so many times shorter
    groups = joint.view(rows, math.gcd(modes, GROUP), -1)
    of_groups = groups.amax(1)
    highest = of_groups.amax(1, keepdim=True)
    least = highest + math.log(torch.finfo(joint.dtype).eps / modes)
    near = of_groups > least
    if int(near.count_nonzero()) > sparse_share * near.numel():
        dense, norm, evidence = exponentials(joint, highest)
        return dense.div_(norm).T, dense.sum(0), evidence
    group_row, group = near.nonzero(as_tuple=True)
    entries = groups[group_row, :, group]
    which, place = (entries > least[group_row]).nonzero(as_tuple=True)
    row, mode = group_row[which], group[which] + place * groups.shape[2]
    values = entries[which, place].sub_(highest[row, 0]).exp_()
    norm = joint.new_zeros(rows).index_add_(0, row, values)
    values.div_(norm[row])
    mass = joint.new_zeros(modes).index_add_(0, mode, values)
    sparse = torch.sparse_coo_tensor(torch.stack([mode, row]), values, (modes, rows), check_invariants=False)
    return sparse, mass, norm.log()[:, None].add_(highest)
