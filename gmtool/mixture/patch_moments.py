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

Data are read in order and in blocks, the next while the present one is summed. Sums are float64 about the origin, which
loses nothing: a square of a float16 number has 22 bits, and no variance that float16 can resolve is below 2^-22 of it,
so 30 of 53 bits are left where the most cancels. Where the sums of all modes do not fit the memory, modes go in blocks,
and for each block only the data that keep one of its modes are read: under hard assignment every datum is still read
once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

SUMS_SHARE = 0.75
"""Share of the memory for the modes' sums at most; the rest holds the data just read."""

PIECE = 16
"""Data of one mode that are summed at a time at most."""

DATA_A_MODE, READ_BYTES = 2, 1 << 30
"""Data read at once at most: two a mode, or a GiB with those read ahead if that is more. More are not summed faster."""

TILE = 1 << 15
"""Entries that a processor sums at a time: what is made of a datum on its way into the sums stays in the cache."""

SUMS_BYTES, ROW_BYTES, PIECE_BYTES = 16, 4, 8
"""Bytes an entry: of a mode's two float64 sums; of a float16 datum read, and the one read ahead; of a float64 datum
being summed."""


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
    """How the memory is shared out: modes whose sums are held, data read at a time, data of a mode summed at a time."""

    modes: int
    rows: int
    piece: int


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
    return math.prod(shape) * (SUMS_BYTES + ROW_BYTES + 4 * PIECE_BYTES)


def share_memory(modes: int, shape: tuple[int, int, int], memory: float) -> PatchMemory:
    """Share out ``memory`` bytes, `least_memory` or more."""
    entries = math.prod(shape)
    at_once = min(modes, max(1, int(SUMS_SHARE * memory / (SUMS_BYTES * entries))))
    rest = memory / entries - SUMS_BYTES * at_once
    piece = min(PIECE, max(1, int(rest / 4 / PIECE_BYTES)))
    enough = max(DATA_A_MODE * at_once, READ_BYTES / (ROW_BYTES * entries))
    return PatchMemory(at_once, max(1, int(min((rest - PIECE_BYTES * piece) / ROW_BYTES, enough))), piece)


def mode_block(modes: np.ndarray, probabilities: np.ndarray, first: int, end: int) -> ModeBlock:
    """A block, from the kept modes (N, n) of the data and their probabilities (N, n)."""
    kept = (modes >= first) & (modes < end) & (probabilities > 0)
    return ModeBlock(first, end, np.flatnonzero(kept.any(axis=1)))


def patch_moments(
    source: PatchSource,
    modes: np.ndarray,
    probabilities: np.ndarray,
    block: ModeBlock,
    *,
    rule: Rule,
    memory: PatchMemory,
    device: torch.device,
    on_rows: Callable[[int], None] = lambda _: None,
) -> Iterator[FittedMode]:
    """Yield every mode of ``block`` in order. ``on_rows`` hears how many data have just been read.

    modes, probabilities (N, n): the kept modes of each datum, of probability 0 beyond the last.
    """
    entries = math.prod(source.shape)
    sums = _Sums.zeros(block.end - block.first, entries, memory.piece, device)
    for rows, patches in _read_ahead(source, block.rows, memory.rows):
        x = torch.from_numpy(patches.reshape(len(rows), entries)).to(device)
        kept, shares = modes[rows], probabilities[rows]
        inside = (kept >= block.first) & (kept < block.end) & (shares > 0)
        datum, _ = np.nonzero(inside)
        _add(sums, x, datum, kept[inside] - block.first, shares[inside])
        on_rows(len(rows))
    finish = _Finish(source, rule, device)
    for index in range(block.end - block.first):
        yield finish(block.first + index, float(sums.mass[index]), sums.first[index], sums.second[index])


@dataclass(frozen=True)
class _Sums:
    """Sums over data, weighted by probability, of 1, x and x^2: (K,), (K, E), (K, E) float64. room: (piece, E) float64
    for data being summed, since memory that is taken anew each time costs as much as the sums.
    """

    mass: np.ndarray
    first: Tensor
    second: Tensor
    room: Tensor

    @classmethod
    def zeros(cls, modes: int, entries: int, piece: int, device: torch.device) -> _Sums:
        sizes = (modes, modes, piece)
        return cls(np.zeros(modes), *(torch.zeros(each, entries, dtype=torch.float64, device=device) for each in sizes))


def _read_ahead(source: PatchSource, rows: np.ndarray, at_once: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows, ``at_once`` at a time, and their latents, the next of which are read meanwhile."""
    pieces = [rows[start : start + at_once] for start in range(0, len(rows), at_once)]
    with ThreadPoolExecutor(1) as reader:
        coming = [reader.submit(source.patches, pieces[0])] if pieces else []
        for index, piece in enumerate(pieces):
            patches = coming.pop().result()
            coming += [reader.submit(source.patches, each) for each in pieces[index + 1 : index + 2]]
            yield piece, patches
            del patches


def _add(sums: _Sums, x: Tensor, datum: np.ndarray, mode: np.ndarray, share: np.ndarray) -> None:
    """Add to the sums: pair i is datum ``datum[i]`` of x (B, E), which belongs to mode ``mode[i]`` by ``share[i]``."""
    np.add.at(sums.mass, mode, share)
    piece, entries = len(sums.room), x.shape[1]
    step = TILE if x.device.type == "cpu" else entries
    tiles = [slice(start, min(start + step, entries)) for start in range(0, entries, step)]
    order = np.argsort(mode, kind="stable")
    present, starts = np.unique(mode[order], return_index=True)
    for index, pairs in zip(present.tolist(), np.split(order, starts[1:]), strict=True):
        for start in range(0, len(pairs), piece):
            own = pairs[start : start + piece]
            weights = torch.from_numpy(share[own]).to(x.device).double()
            rows = datum[own].tolist()
            for tile in tiles:
                parts = sums.room[: len(rows), : tile.stop - tile.start]
                for place, each in zip(parts, rows, strict=True):
                    place.copy_(x[each, tile].float())  # from float16 to float64 in one step takes twice as long
                sums.first[index, tile].addmv_(parts.T, weights)
                sums.second[index, tile].addmv_(parts.square_().T, weights)


class _Finish:
    """From a mode's sums to its mean, its standard deviation and the distances."""

    def __init__(self, source: PatchSource, rule: Rule, device: torch.device) -> None:
        self._rule, self._grid = rule, source.shape
        self._origin, variance = (torch.from_numpy(each.reshape(-1)).to(device) for each in (source.mean, source.var))
        self._scale = variance + rule.floor  # latents are normalised by origin and scale, which know no mirror images
        self._mean, self._variance = self._mirrored(self._origin, variance)

    def __call__(self, mode: int, mass: float, first: Tensor, second: Tensor) -> FittedMode:
        mean, own = self._mean, self._variance
        diagonal = own + self._rule.floor
        if mass > 0:
            mean = first / mass
            mean, own = self._mirrored(mean, (second / mass - mean.square()).clamp_min_(0.0))
            count = mass * (2 if self._rule.mirror else 1)
            shrunk = (count * own + self._rule.shrinkage * self._variance) / (count + self._rule.shrinkage)
            diagonal = shrunk + self._rule.floor
        spherical = (diagonal / self._scale).mean() * self._scale
        distances = Distances(
            gaussian=self._distance(own + (mean - self._origin).square(), self._scale),
            spherical=self._distance(own, spherical),
            diagonal=self._distance(own, diagonal),
        )
        std = (spherical if self._rule.spherical else diagonal).sqrt()
        stored = (each.reshape(self._grid).float().cpu().numpy() for each in (mean, std))
        return FittedMode(PatchMode(mode, *stored), distances)

    def _mirrored(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Moments (E,) of data with their mirror images, if those count, from the moments of the data."""
        if not self._rule.mirror:
            return mean, variance
        turned_mean, turned = (each.reshape(self._grid).flip(-1).reshape(-1) for each in (mean, variance))
        return (mean + turned_mean) / 2, (variance + turned) / 2 + (mean - turned_mean).square() / 4

    def _distance(self, spread: Tensor, variance: Tensor) -> Distance:
        """From a Gaussian of this variance (E,) to data whose mean square about its mean is ``spread`` (E,)."""
        nats = 0.5 * (math.log(2 * math.pi) + (variance / self._scale).log() + spread / variance).mean()
        return Distance(float(nats), float(((spread + variance) / self._scale).mean()))
