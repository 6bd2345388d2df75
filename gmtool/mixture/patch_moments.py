"""Mean and variance of the patch latents in each mode of a mixture that was fitted to the descriptors.

With p_nk the probability that datum n keeps for mode k, x_n its latents (C, H, W) and n_k = sum_n p_nk:

    m_k = sum_n p_nk x_n / n_k,     S_k = sum_n p_nk (x_n - m_k)^2 / n_k        per entry of (C, H, W)
    v_k = (n_k S_k + W S) / (n_k + W) + floor                                    shrunk toward the global variance S

The floor is what the normalisation of latents adds, (x - mean) / sqrt(S + floor): a mixture of one mode is then exactly
N(0, 1) in normalised coordinates, and an entry that is the same in all data has a spread that can be divided by.

A mode that no datum keeps has the global mean and variance. Spherical: v_k = rho_k (S + floor) with one number rho_k,
the mean over entries of the diagonal v_k / (S + floor): spherical in the normalised coordinates that models see.
Mirrored: every datum counts a second time with W turned round, in all of the above. With R that turn, the moments
(n, m, S) of the data alone become (2 n, (m + R m) / 2, (S + R S) / 2 + (m - R m)^2 / 4).

Data are read in order and in blocks, the next while the present one is summed, several modes at a time. That is the
processor's work also where there is a GPU: two cores sum as fast as a disk gives.
Sums are float64 about the origin, which loses nothing: a square of a float16 number has 22 bits, and no variance that
float16 can resolve is below 2^-22 of it, so 30 of 53 bits are left where the most cancels. Where the sums of all modes
do not fit the memory, modes go in blocks, and for each block only the data that keep one of its modes are read: under
hard assignment every datum is still read once. A mode's data are added one by one in their order, so that the sums do
not depend on the memory, nor on the threads.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

ALL_SUMS_SHARE, SUMS_SHARE = 3 / 4, 1 / 3
"""Share of the memory for the modes' sums: at most the first when the sums of all modes fit into it, so that data are
read from start to end; else the second. The rest holds the data just read: the more of a mode's are added at once, the
less its sums, which are larger, have to travel between memory and processor. More blocks hardly mean more reading."""

DATA_A_MODE, READ_BYTES = 4, 1 << 28
"""Data read at once at most: so many a mode, or 256 MiB with those read ahead if that is more; still more would not be
summed faster, and before the first are there nothing is summed."""

THREADS = 8
"""A processor's threads at most: so many sum more than a disk gives."""

SUMS_BYTES, ROW_BYTES, WORK_BYTES = 16, 4, 40 + 8 * THREADS
"""Bytes an entry: of a mode's two float64 sums; of a float16 datum read, and the one read ahead; of the moments of all
data, and of what each thread makes of a mode."""


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

    def patches(self, rows: np.ndarray, room: np.ndarray) -> np.ndarray:
        """Latents (n, C, H, W) float16 of some data, of increasing numbers, read to the start of ``room``."""


@dataclass(frozen=True)
class PatchMemory:
    """How the memory is shared out: modes whose sums are held, data read at a time."""

    modes: int
    rows: int


@dataclass(frozen=True)
class Rule:
    """What becomes of a mode's sums; see the module. shrinkage: W, in data. floor: in squared latent units."""

    shrinkage: float
    floor: float
    spherical: bool
    mirror: bool = False


class Distance(NamedTuple):
    """How far data are from a source, an entry of normalised latents.

    nats: mean negative log-likelihood of a datum, given its mode. travel: mean squared distance to a draw of its mode.
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
    """A mode in patch space, and how far its data are from sources."""

    patch: PatchMode
    distances: Distances


@dataclass(frozen=True)
class ModeBlock:
    """Modes ``first`` to ``end`` (excluded), and the data that keep one of them, ascending."""

    first: int
    end: int
    rows: np.ndarray


def least_memory(shape: tuple[int, int, int]) -> int:
    """Bytes below which not even one mode and one datum fit."""
    return math.prod(shape) * (SUMS_BYTES + ROW_BYTES + WORK_BYTES)


def share_memory(modes: int, shape: tuple[int, int, int], memory: float) -> PatchMemory:
    """Share out ``memory`` bytes, `least_memory` or more."""
    entries = math.prod(shape)
    room = memory / entries - WORK_BYTES
    share = ALL_SUMS_SHARE if SUMS_BYTES * modes <= ALL_SUMS_SHARE * room else SUMS_SHARE
    at_once = min(modes, max(1, int(share * room / SUMS_BYTES)))
    enough = max(DATA_A_MODE * at_once, READ_BYTES / (ROW_BYTES * entries))
    return PatchMemory(at_once, max(1, int(min((room - SUMS_BYTES * at_once) / ROW_BYTES, enough))))


def mode_block(modes: np.ndarray, probabilities: np.ndarray, first: int, end: int) -> ModeBlock:
    """A block, from the kept modes (N, n) of the data and their probabilities (N, n)."""
    kept = (modes >= first) & (modes < end) & (probabilities > 0)
    return ModeBlock(first, end, np.flatnonzero(kept.any(axis=1)))


def patch_moments(
    source: PatchSource,
    modes: np.ndarray,
    probabilities: np.ndarray,
    blocks: Sequence[ModeBlock],
    *,
    rule: Rule,
    memory: PatchMemory,
    threads: int,
    on_rows: Callable[[int], None] = lambda _: None,
) -> Iterator[FittedMode]:
    """Yield every mode of each block in order. ``on_rows`` hears how many data have just been read.

    modes, probabilities (N, n): the kept modes of each datum, of probability 0 beyond the last.
    """
    room = _Sums.zeros(max((each.end - each.first for each in blocks), default=0), math.prod(source.shape))
    finish = _Finish(source, rule)
    threads = min(threads, THREADS)
    with ThreadPoolExecutor(threads) as pool:
        for block, data in _read_ahead(source, blocks, memory.rows):
            sums = room.cleared(block.end - block.first)
            for rows, patches in data:
                kept, shares = modes[rows], probabilities[rows]
                inside = (kept >= block.first) & (kept < block.end) & (shares > 0)
                datum, _ = np.nonzero(inside)
                sums.add(patches.reshape(len(rows), -1), datum, kept[inside] - block.first, shares[inside], pool)
                on_rows(len(rows))
            of_modes = zip(range(block.first, block.end), sums.mass.tolist(), sums.first, sums.second, strict=True)
            while few := list(itertools.islice(of_modes, threads)):
                yield from pool.map(finish, *zip(*few, strict=True))


@dataclass(frozen=True)
class _Sums:
    """Sums over data, weighted by probability, of 1, x and x^2: (K,), (K, E), (K, E) float64."""

    mass: np.ndarray
    first: np.ndarray
    second: np.ndarray

    @classmethod
    def zeros(cls, modes: int, entries: int) -> _Sums:
        return cls(np.zeros(modes), np.zeros((modes, entries)), np.zeros((modes, entries)))

    def cleared(self, modes: int) -> _Sums:
        """The room of the first ``modes``, all zero."""
        first, second = self.first[:modes], self.second[:modes]
        first[:], second[:] = 0, 0
        return _Sums(np.zeros(modes), first, second)

    def add(
        self, x: np.ndarray, datum: np.ndarray, mode: np.ndarray, share: np.ndarray, pool: ThreadPoolExecutor
    ) -> None:
        """Pair i is datum ``datum[i]`` of x (B, E) float16, which belongs to mode ``mode[i]`` by ``share[i]``."""
        from gmtool.mixture.patch_kernels import add_data  # here, since its library takes its time to be loaded

        np.add.at(self.mass, mode, share)
        order = np.argsort(mode, kind="stable")
        present, starts = np.unique(mode[order], return_index=True)
        bits = x.view(np.uint16)

        def add(index: int, pairs: np.ndarray) -> None:
            add_data(self.first[index], self.second[index], bits, datum[pairs], share[pairs])

        for _ in pool.map(add, present.tolist(), np.split(order, starts[1:])):
            pass  # raises what a thread has raised


_Rows = tuple[np.ndarray, np.ndarray]
"""Numbers of data, and their latents."""


def _read_ahead(
    source: PatchSource, blocks: Sequence[ModeBlock], at_once: int
) -> Iterator[tuple[ModeBlock, Iterator[_Rows]]]:
    """Each block with its data, ``at_once`` at a time; the next ones, also of the next block, are read meanwhile."""
    starts = [range(0, len(block.rows), at_once) for block in blocks]
    pieces = [block.rows[start : start + at_once] for block, own in zip(blocks, starts, strict=True) for start in own]
    # in turn; new memory for each would take half as much time as reading
    rooms = [np.empty((max(map(len, pieces), default=0), *source.shape), np.float16) for _ in range(2)]
    with ThreadPoolExecutor(1) as reader:

        def read() -> Iterator[_Rows]:
            turns = zip(pieces, itertools.cycle(rooms))
            coming = [reader.submit(source.patches, *each) for each in itertools.islice(turns, 1)]
            for piece in pieces:
                patches = coming.pop().result()
                coming += [reader.submit(source.patches, *each) for each in itertools.islice(turns, 1)]
                yield piece, patches

        data = read()
        for block, own in zip(blocks, starts, strict=True):
            yield block, itertools.islice(data, len(own))


class _Finish:
    """From a mode's sums to its mean, its standard deviation and the distances."""

    def __init__(self, source: PatchSource, rule: Rule) -> None:
        from gmtool.mixture.patch_kernels import mirror_images

        self._rule, self._grid = rule, source.shape
        self._width = source.shape[-1] if rule.mirror else 0
        origin, variance = (np.array(each, np.float64).reshape(-1) for each in (source.mean, source.var))
        # latents are normalised by origin and scale, which know no mirror images
        self._scale = variance + rule.floor
        self._log_scale = float(np.log(self._scale).mean())
        mean = origin.copy()
        if rule.mirror:
            mirror_images(self._width, mean, variance)
        self._data = np.stack([origin, 1 / self._scale, mean, variance])

    def __call__(self, mode: int, mass: float, first: np.ndarray, second: np.ndarray) -> FittedMode:
        from gmtool.mixture.patch_kernels import finish_mode

        mean, std = np.empty(self._grid, np.float32), np.empty(self._grid, np.float32)
        parts = finish_mode(
            mass,
            first,
            second,
            self._width,
            self._data,
            self._rule.shrinkage,
            self._rule.floor,
            mean.reshape(-1),
            std.reshape(-1),
        )
        within, distance, ratio, share = (each / mean.size for each in parts)
        logarithm = 2 * float(np.log(std).mean(dtype=np.float64)) - self._log_scale
        if self._rule.spherical:
            std = np.sqrt(ratio * self._scale).astype(np.float32).reshape(self._grid)
        normaliser = math.log(2 * math.pi)
        distances = Distances(
            gaussian=Distance(0.5 * (normaliser + within + distance), within + distance + 1),
            spherical=Distance(0.5 * (normaliser + math.log(ratio) + within / ratio), within + ratio),
            diagonal=Distance(0.5 * (normaliser + logarithm + share), within + ratio),
        )
        return FittedMode(PatchMode(mode, mean, std), distances)
