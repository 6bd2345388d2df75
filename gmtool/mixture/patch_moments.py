"""Mean and variance of the patch latents in each mode of a mixture that was fitted to the descriptors.

With p_nk the probability that sample n keeps for mode k, x_n its latents (C, H, W) and n_k = sum_n p_nk:

    m_k = sum_n p_nk x_n / n_k,     S_k = sum_n p_nk (x_n - m_k)^2 / n_k        per entry of (C, H, W)
    v_k = (n_k S_k + W S) / (n_k + W) + floor                                    shrunk toward the global variance S

The floor is what the normalisation of latents adds, (x - mean) / sqrt(S + floor): a mixture of one mode is then exactly
N(0, 1) in normalised coordinates, and an entry that is the same in all data has a spread that can be divided by.

A mode that no sample keeps has the global mean and variance. Spherical: v_k = rho_k (S + floor) with one number rho_k,
the mean over entries of the diagonal v_k / (S + floor): spherical in the normalised coordinates that models see.
Mirrored: every sample counts a second time with W reversed, in all of the above. With R that reversal, the moments
(n, m, S) of the data alone become (2 n, (m + R m) / 2, (S + R S) / 2 + (m - R m)^2 / 4).

Data are read in order and in blocks, the next one while the current one is summed, several modes at a time, on the CPU
even if there is a GPU: two cores sum as fast as a disk reads. Source: MM-FM (Luo et al., CVPR 2026), section 3; the
shrinkage is this project's own. Sums are float64 about the origin, which loses nothing: a square of a float16 number
has 22 bits, and no variance that float16 can resolve is below 2^-22 of it, so 30 of 53 bits are left where the most
cancels. Where the sums of all modes do not fit in memory, modes are processed in blocks, and for each block only the
samples that keep one of its modes are read: under hard assignment every sample is still read once. The samples of a
mode are added one by one in order, so that the sums depend neither on the memory nor on the number of threads.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np

from gmtool.mixture.patch_kernels import Add, adder
from gmtool.mixture.settings import PatchSettings

ALL_SUMS_SHARE, SUMS_SHARE = 3 / 4, 1 / 3
"""Share of the memory for the modes' sums: up to the first where the sums of all modes fit into it, so that data are
read from start to end; else the second. The rest is for the data just read: the more samples of a mode are added at
once, the less often its sums travel between memory and processor. More blocks of modes hardly mean more reading."""

SAMPLES_A_MODE, READ_BYTES = 4, 1 << 28
"""Samples read at once: at most so many a mode, or 256 MiB with those read ahead if that is more. Larger reads are not
summed faster, and delay the first sum."""

THREADS = 8
"""Threads at most: so many sum faster than a disk reads."""

TILE = 1 << 13
"""Entries of a mode that are finished at a time, so that they stay in a processor's cache."""

SUMS_BYTES, ROW_BYTES, WORK_BYTES = 16, 4, 40 + 8 * THREADS
"""Bytes of memory an entry: of a mode's two float64 sums; of a float16 sample in two buffers; of the moments of all
data and the modes being finished."""


class PatchSource(Protocol):
    """N latents (C, H, W) on disk, with their mean and variance (float64) per entry."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""

    @property
    def mean(self) -> np.ndarray:
        """Mean over the data."""

    @property
    def var(self) -> np.ndarray:
        """Variance over the data."""

    def patches(self, rows: np.ndarray, out: np.ndarray, /) -> np.ndarray:
        """Latents (n, C, H, W) float16 of samples of increasing numbers, read to the start of ``out``."""


@dataclass(frozen=True)
class PatchMemory:
    """The use of memory: modes whose sums are held, samples read at a time."""

    modes: int
    rows: int


class Distance(NamedTuple):
    """Distance between data and source, per entry of the normalised latents.

    nats: mean negative log-likelihood of a sample, given its mode. travel: mean squared distance to a draw of its mode.
    """

    nats: float
    travel: float


class Distances(NamedTuple):
    """Distance of data from one Gaussian, N(0, 1) in normalised latents, and from their mode of either covariance."""

    gaussian: Distance
    spherical: Distance
    diagonal: Distance


@dataclass(frozen=True)
class PatchMode:
    """One mode in patch space: its number, mean (C, H, W) and standard deviation (C, H, W), float32, latent units."""

    mode: int
    mean: np.ndarray
    std: np.ndarray


@dataclass(frozen=True)
class FittedMode:
    """A mode in patch space, and the distances of its data from sources."""

    patch: PatchMode
    distances: Distances


@dataclass(frozen=True)
class ModeBlock:
    """Modes ``first`` to ``end`` (excluded), and the numbers of the samples that keep one of them, ascending."""

    first: int
    end: int
    rows: np.ndarray


def least_memory(shape: tuple[int, int, int]) -> int:
    """Bytes below which not even one mode and one sample fit."""
    return math.prod(shape) * (SUMS_BYTES + ROW_BYTES + WORK_BYTES)


def share_memory(modes: int, shape: tuple[int, int, int], memory: float) -> PatchMemory:
    """Divide ``memory`` bytes, `least_memory` or more, for latents of ``shape`` (C, H, W)."""
    entries = math.prod(shape)
    available = memory / entries - WORK_BYTES
    share = ALL_SUMS_SHARE if SUMS_BYTES * modes <= ALL_SUMS_SHARE * available else SUMS_SHARE
    at_once = min(modes, max(1, int(share * available / SUMS_BYTES)))
    enough = max(SAMPLES_A_MODE * at_once, READ_BYTES / (ROW_BYTES * entries))
    return PatchMemory(at_once, max(1, int(min((available - SUMS_BYTES * at_once) / ROW_BYTES, enough))))


def mode_block(modes: np.ndarray, probabilities: np.ndarray, first: int, end: int) -> ModeBlock:
    """A block, from the kept modes (N, n) of the samples and their probabilities (N, n)."""
    kept = (modes >= first) & (modes < end) & (probabilities > 0)
    return ModeBlock(first, end, np.flatnonzero(kept.any(axis=1)))


def patch_moments(
    source: PatchSource,
    modes: np.ndarray,
    probabilities: np.ndarray,
    blocks: Sequence[ModeBlock],
    settings: PatchSettings,
    *,
    floor: float,
    memory: PatchMemory,
    threads: int,
    add: Add | None = None,
    on_rows: Callable[[int], None] = lambda _: None,
) -> Iterator[FittedMode]:
    """Yield every mode of each block in order.

    modes, probabilities (N, n): the kept modes of each sample, int32, and float32; of probability 0 beyond the last.
    floor: in squared latent units. add: the inner loop; None for the one that suits the size of the data. ``on_rows``
    is called with the number of samples that have just been added.
    """
    buffer = _Sums.zeros(max((block.end - block.first for block in blocks), default=0), math.prod(source.shape))
    everything = _Everything.of(source, floor, settings.mirror)
    add = add or adder(2 * math.prod(source.shape) * sum(len(block.rows) for block in blocks))
    finish = partial(_finish, everything=everything, settings=settings)
    threads = min(threads, THREADS)
    with ThreadPoolExecutor(threads) as pool:
        for block, pieces in _read_ahead(source, blocks, memory.rows):
            sums = buffer.cleared(block.end - block.first)
            for rows, patches in pieces:
                kept, shares = modes[rows], probabilities[rows]
                inside = (kept >= block.first) & (kept < block.end) & (shares > 0)
                sample, _ = np.nonzero(inside)
                sums.add(patches.reshape(len(rows), -1), sample, kept[inside] - block.first, shares[inside], add, pool)
                on_rows(len(rows))
            of_modes = zip(range(block.first, block.end), sums.mass.tolist(), sums.first, sums.second, strict=True)
            while few := list(itertools.islice(of_modes, threads)):
                yield from pool.map(finish, *zip(*few, strict=True))


@dataclass(frozen=True)
class _Sums:
    """Sums over samples, weighted by probability, of 1, x and x^2: (K,), (K, E), (K, E) float64."""

    mass: np.ndarray
    first: np.ndarray
    second: np.ndarray

    @classmethod
    def zeros(cls, modes: int, entries: int) -> _Sums:
        return cls(np.zeros(modes), np.zeros((modes, entries)), np.zeros((modes, entries)))

    def cleared(self, modes: int) -> _Sums:
        """The memory of the first ``modes``, all zero."""
        first, second = self.first[:modes], self.second[:modes]
        first[:], second[:] = 0, 0
        return _Sums(np.zeros(modes), first, second)

    def add(
        self,
        x: np.ndarray,
        sample: np.ndarray,
        mode: np.ndarray,
        share: np.ndarray,
        add: Add,
        pool: ThreadPoolExecutor,
    ) -> None:
        """Pair i is sample ``sample[i]`` of x (B, E) float16, which belongs to mode ``mode[i]`` by ``share[i]``."""
        np.add.at(self.mass, mode, share)
        order = np.argsort(mode, kind="stable")
        present, starts = np.unique(mode[order], return_index=True)

        def add_to_mode(index: int, pairs: np.ndarray) -> None:
            add(self.first[index], self.second[index], x, sample[pairs], share[pairs])

        for _ in pool.map(add_to_mode, present.tolist(), np.split(order, starts[1:])):
            pass  # raises what a thread has raised


_Rows = tuple[np.ndarray, np.ndarray]
"""Numbers of samples, and their latents."""


def _read_ahead(
    source: PatchSource, blocks: Sequence[ModeBlock], at_once: int
) -> Iterator[tuple[ModeBlock, Iterator[_Rows]]]:
    """Each block with its data, ``at_once`` samples at a time; the next ones are read meanwhile, also across blocks.

    They are read into two buffers in turn: new memory for each would take half as much time as reading.
    """
    starts = [range(0, len(block.rows), at_once) for block in blocks]
    pieces = [block.rows[start : start + at_once] for block, own in zip(blocks, starts, strict=True) for start in own]
    buffers = [np.empty((max(map(len, pieces), default=0), *source.shape), np.float16) for _ in range(2)]
    with ThreadPoolExecutor(1) as reader:

        def read() -> Iterator[_Rows]:
            turns = zip(pieces, itertools.cycle(buffers))
            coming = [reader.submit(source.patches, *turn) for turn in itertools.islice(turns, 1)]
            for piece in pieces:
                patches = coming.pop().result()
                coming += [reader.submit(source.patches, *turn) for turn in itertools.islice(turns, 1)]
                yield piece, patches

        data = read()
        for block, own in zip(blocks, starts, strict=True):
            yield block, itertools.islice(data, len(own))


@dataclass(frozen=True)
class _Everything:
    """Of all data, (C, H, W) float64: the origin of normalised latents and one over the square of their scale, which
    know no mirror images; mean and variance, with mirror images where they count. The floor of variances, and the mean
    logarithm of the scale's square.
    """

    origin: np.ndarray
    per_scale: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    floor: float
    log_scale: float

    @classmethod
    def of(cls, source: PatchSource, floor: float, mirror: bool) -> _Everything:
        mean, variance = (np.asarray(values, np.float64) for values in (source.mean, source.var))
        scale = variance + floor
        of_all = _mirrored(mean, variance) if mirror else (mean, variance)
        return cls(mean, 1 / scale, of_all[0], of_all[1], floor, float(np.log(scale).mean()))


def _mirrored(mean: np.ndarray, variance: np.ndarray) -> _Rows:
    """From the moments (..., W) of data to those of the data with their mirror images."""
    apart = (mean - mean[..., ::-1]) / 2
    return mean - apart, (variance + variance[..., ::-1]) / 2 + np.square(apart)


def _finish(
    mode: int, mass: float, first: np.ndarray, second: np.ndarray, everything: _Everything, settings: PatchSettings
) -> FittedMode:
    """From a mode's sums (E,) to its mean, its standard deviation and the distances; see the module."""
    shape = everything.mean.shape
    mean, std = np.empty(shape, np.float32), np.empty(shape, np.float32)
    count = 2 * mass if settings.mirror else mass
    keep = count / (count + settings.shrinkage) if mass > 0 else 1.0  # of the mode's own variance
    sums = np.zeros(4)
    channels = max(1, TILE // math.prod(shape[1:]))
    for start in range(0, shape[0], channels):
        tile = slice(start, start + channels)
        variance, per_scale = everything.variance[tile], everything.per_scale[tile]
        if mass > 0:
            center = first.reshape(shape)[tile] / mass
            own = second.reshape(shape)[tile] / mass
            own -= np.square(center)
            np.maximum(own, 0, out=own)
            if settings.mirror:
                center, own = _mirrored(center, own)
        else:
            center, own = everything.mean[tile], variance
        given = keep * own
        given += (1 - keep) * variance
        given += everything.floor
        mean[tile] = center
        np.sqrt(given, out=std[tile], casting="same_kind")
        apart = np.square(center - everything.origin[tile])
        sums += [*(np.vdot(values, per_scale) for values in (own, apart, given)), (own / given).sum()]
    within, distance, ratio, share = (sums / mean.size).tolist()
    logarithm = 2 * float(np.log(std).mean(dtype=np.float64)) - everything.log_scale
    if settings.covariance == "spherical":
        std = np.sqrt(ratio / everything.per_scale).astype(np.float32)
    normaliser = math.log(2 * math.pi)
    distances = Distances(
        gaussian=Distance(0.5 * (normaliser + within + distance), within + distance + 1),
        spherical=Distance(0.5 * (normaliser + math.log(ratio) + within / ratio), within + ratio),
        diagonal=Distance(0.5 * (normaliser + logarithm + share), within + ratio),
    )
    return FittedMode(PatchMode(mode, mean, std), distances)
