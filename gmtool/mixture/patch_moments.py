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

Data are read in order and in blocks, the next while the present one is summed, on a processor several modes at a time.
Sums are float64 about the origin, which loses nothing: a square of a float16 number has 22 bits, and no variance that
float16 can resolve is below 2^-22 of it, so 30 of 53 bits are left where the most cancels. Where the sums of all modes
do not fit the memory, modes go in blocks, and for each block only the data that keep one of its modes are read: under
hard assignment every datum is still read once. A mode's data are added one by one in their order, so that the sums do
not depend on the memory, nor on the threads.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

ALL_SUMS_SHARE, SUMS_SHARE = 3 / 4, 1 / 3
"""Share of the memory for the modes' sums: at most the first when the sums of all modes fit into it, so that data are
read from start to end; else the second. The rest holds the data just read: the more of a mode's are added at once, the
less its sums, which are larger, have to travel between memory and processor. More blocks hardly mean more reading."""

DATA_A_MODE, READ_BYTES = 8, 1 << 30
"""Data read at once at most: so many a mode, or a GiB with those read ahead if that is more; still more would not be
summed faster."""

THREADS, TILE = 8, 3 << 15
"""A processor's threads at most, since more would wait for Python's lock, and the entries that each works on at a time.
Fewer would stay in the caches closer to it, but have the threads wait for the lock more often."""

SUMS_BYTES, ROW_BYTES, WORK_BYTES = 16, 4, 64
"""Bytes an entry: of a mode's two float64 sums; of a float16 datum read, and the one read ahead; of all that is made of
a datum and of a mode, which a processor's threads hold for a tile alone."""


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

    def patches(self, rows: slice | np.ndarray) -> np.ndarray:
        """Latents (n, C, H, W) of some data."""


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
    share = ALL_SUMS_SHARE if SUMS_BYTES * entries * modes <= ALL_SUMS_SHARE * memory else SUMS_SHARE
    at_once = min(modes, max(1, int(share * memory / (SUMS_BYTES * entries))))
    rest = memory / entries - SUMS_BYTES * at_once - WORK_BYTES
    enough = max(DATA_A_MODE * at_once, READ_BYTES / (ROW_BYTES * entries))
    return PatchMemory(at_once, max(1, int(min(rest / ROW_BYTES, enough))))


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
    device: torch.device,
    on_rows: Callable[[int], None] = lambda _: None,
) -> Iterator[FittedMode]:
    """Yield every mode of each block in order. ``on_rows`` hears how many data have just been read.

    modes, probabilities (N, n): the kept modes of each datum, of probability 0 beyond the last.
    """
    room = _Sums.zeros(max((each.end - each.first for each in blocks), default=0), math.prod(source.shape), device)
    finish = _Finish(source, rule, device)
    threads = min(torch.get_num_threads(), THREADS) if device.type == "cpu" else 1
    with _workers(threads) as pool:
        for block, data in _read_ahead(source, blocks, memory.rows):
            sums = room.cleared(block.end - block.first)
            for rows, patches in data:
                x = torch.from_numpy(patches.reshape(len(rows), -1)).to(device)
                kept, shares = modes[rows], probabilities[rows]
                inside = (kept >= block.first) & (kept < block.end) & (shares > 0)
                datum, _ = np.nonzero(inside)
                _add(sums, x, datum, kept[inside] - block.first, shares[inside], pool)
                on_rows(len(rows))
                del patches, x  # before room is taken for others
            of_modes = zip(range(block.first, block.end), sums.mass.tolist(), sums.first, sums.second, strict=True)
            while few := list(itertools.islice(of_modes, threads)):
                yield from pool.map(finish, *zip(*few, strict=True))


@contextlib.contextmanager
def _workers(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads for whose operations PyTorch starts none of its own."""
    before = torch.get_num_threads()
    with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            yield pool
        finally:
            torch.set_num_threads(before)  # some of what a thread sets holds for all


@dataclass(frozen=True)
class _Sums:
    """Sums over data, weighted by probability, of 1, x and x^2: (K,), (K, E), (K, E) float64."""

    mass: np.ndarray
    first: Tensor
    second: Tensor

    @classmethod
    def zeros(cls, modes: int, entries: int, device: torch.device) -> _Sums:
        # NumPy asks for large pages of memory, PyTorch does not
        first, second = (torch.from_numpy(np.zeros((modes, entries))).to(device) for _ in range(2))
        return cls(np.zeros(modes), first, second)

    def cleared(self, modes: int) -> _Sums:
        """The room of the first ``modes``, all zero."""
        return _Sums(np.zeros(modes), self.first[:modes].zero_(), self.second[:modes].zero_())


_Rows = tuple[np.ndarray, np.ndarray]
"""Numbers of data, and their latents."""


def _read_ahead(
    source: PatchSource, blocks: Sequence[ModeBlock], at_once: int
) -> Iterator[tuple[ModeBlock, Iterator[_Rows]]]:
    """Each block with its data, ``at_once`` at a time; the next ones, also of the next block, are read meanwhile."""
    starts = [range(0, len(block.rows), at_once) for block in blocks]
    pieces = [block.rows[start : start + at_once] for block, own in zip(blocks, starts, strict=True) for start in own]
    with ThreadPoolExecutor(1) as reader:

        def read() -> Iterator[_Rows]:
            coming = [reader.submit(source.patches, each) for each in pieces[:1]]
            for index, piece in enumerate(pieces):
                patches = coming.pop().result()
                coming += [reader.submit(source.patches, each) for each in pieces[index + 1 : index + 2]]
                yield piece, patches
                del patches

        data = read()
        for block, own in zip(blocks, starts, strict=True):
            yield block, itertools.islice(data, len(own))


def _add(
    sums: _Sums, x: Tensor, datum: np.ndarray, mode: np.ndarray, share: np.ndarray, pool: ThreadPoolExecutor
) -> None:
    """Add to the sums: pair i is datum ``datum[i]`` of x (B, E), which belongs to mode ``mode[i]`` by ``share[i]``."""
    np.add.at(sums.mass, mode, share)
    order = np.argsort(mode, kind="stable")
    present, starts = np.unique(mode[order], return_index=True)

    def add(index: int, pairs: np.ndarray) -> None:
        _add_data(sums.first[index], sums.second[index], x, datum[pairs].tolist(), share[pairs].tolist())

    for _ in pool.map(add, present.tolist(), np.split(order, starts[1:])):
        pass  # raises what a thread has raised


def _add_data(first: Tensor, second: Tensor, x: Tensor, rows: list[int], shares: list[float]) -> None:
    """Add a mode's data, rows of x (B, E) that belong to it by ``shares``, to its sums (E,)."""
    tiles = _tiles(len(first), x.device)
    single = x.new_empty(tiles[0].stop, dtype=torch.float32)
    double = x.new_empty(tiles[0].stop, dtype=torch.float64)
    for tile in tiles:
        size = tile.stop - tile.start
        own_first, own_second, own_single, own_double = first[tile], second[tile], single[:size], double[:size]
        for row, share in zip(rows, shares, strict=True):
            # from float16 to float64 in one step takes twice as long
            value = own_double.copy_(own_single.copy_(x[row, tile]))
            own_first.add_(value, alpha=share)
            own_second.addcmul_(value, value, value=share)


def _tiles(entries: int, device: torch.device, step: int = 1) -> list[slice]:
    """All entries in tiles, each but the last of a multiple of ``step``."""
    size = max(TILE // step, 1) * step if device.type == "cpu" else entries
    return [slice(start, min(start + size, entries)) for start in range(0, entries, size)]


class _Finish:
    """From a mode's sums to its mean, its standard deviation and the distances."""

    def __init__(self, source: PatchSource, rule: Rule, device: torch.device) -> None:
        self._rule, self._grid = rule, source.shape
        self._origin, variance = (torch.from_numpy(each.reshape(-1)).to(device) for each in (source.mean, source.var))
        # latents are normalised by origin and scale, which know no mirror images
        scale = variance + rule.floor
        self._scale, self._per_scale = scale.float(), (1 / scale).float()
        self._log_scale = float(scale.log().sum()) / len(scale)
        self._mean, self._variance = self._mirrored(self._origin, variance)
        self._global = self._variance.float()
        self._tiles = _tiles(len(variance), device, source.shape[-1])

    def __call__(self, mode: int, mass: float, first: Tensor, second: Tensor) -> FittedMode:
        mean, std = (torch.empty_like(first, dtype=torch.float32) for _ in range(2))
        parts = [self._part(tile, mass, first[tile], second[tile], mean[tile], std[tile]) for tile in self._tiles]
        distance, within, ratio, share, logarithm = (torch.stack(parts).double().sum(0) / len(first)).tolist()
        logarithm -= self._log_scale
        if self._rule.spherical:
            std = (ratio * self._scale).sqrt_()
        normaliser = math.log(2 * math.pi)
        distances = Distances(
            gaussian=Distance(0.5 * (normaliser + distance), distance + 1),
            spherical=Distance(0.5 * (normaliser + math.log(ratio) + within / ratio), within + ratio),
            diagonal=Distance(0.5 * (normaliser + logarithm + share), within + ratio),
        )
        stored = (each.reshape(self._grid).cpu().numpy() for each in (mean, std))
        return FittedMode(PatchMode(mode, *stored), distances)

    def _part(self, tile: slice, mass: float, first: Tensor, second: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Fill in mean and std of a tile, the latter diagonal.

        Returns sums (5,) over its entries, with m and v the mode's mean and own variance, d the variance it is given,
        o and g the data's mean and variance: (v + (m - o)^2) / g, v / g, d / g, v / d, log d.
        """
        center, own, everywhere, per_scale = (
            each[tile] for each in (self._mean, self._variance, self._global, self._per_scale)
        )
        if mass > 0:
            center, square = first / mass, second / mass
            center, own = self._mirrored(center, square.addcmul_(center, center, value=-1).clamp_min_(0.0))
        mean.copy_(center)
        # nothing cancels from here on
        apart, own = (center - self._origin[tile]).float(), own.float()
        diagonal = own + self._rule.floor
        if mass > 0:
            count = mass * (2 if self._rule.mirror else 1)
            total = count + self._rule.shrinkage
            diagonal = (own * (count / total)).add_(everywhere, alpha=self._rule.shrinkage / total)
            diagonal.add_(self._rule.floor)
        torch.sqrt(diagonal, out=std)
        within, distance = own @ per_scale, apart.square_() @ per_scale
        share, logarithm = (own / diagonal).sum(), diagonal.log().sum()
        return torch.stack([distance + within, within, diagonal @ per_scale, share, logarithm])

    def _mirrored(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Moments (E,) of data with their mirror images, if those count, from the moments of the data."""
        if not self._rule.mirror:
            return mean, variance
        turned_mean, turned = (each.reshape(-1, self._grid[-1]).flip(-1).reshape(-1) for each in (mean, variance))
        return (mean + turned_mean) / 2, (variance + turned) / 2 + (mean - turned_mean).square() / 4
