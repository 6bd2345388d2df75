"""Loops of the fit for which neither PyTorch nor NumPy has one operation, compiled by Numba when they are first used.

They start no threads of their own, and let those of others run meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial, wraps
from pickle import UnpicklingError
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit

F = TypeVar("F", bound=Callable[..., Any])

TILE = 1 << 11
"""Entries taken at a time: a mode's two sums of them and a datum stay in the cache closest to the processor."""

SINGLE_PER_HALF = np.float32(2.0**112)
"""Between the biases of the exponents of float32, 127, and float16, 15."""

SIGN, MAGNITUDE, SIGN_SHIFT, MAGNITUDE_SHIFT = np.uint32(0x8000), np.uint32(0x7FFF), np.uint32(16), np.uint32(13)
"""Bits of a float16, and how far they move in a float32."""


def compiled(function: F, *, cache: bool = False, fastmath: frozenset[str] = frozenset()) -> F:
    """A function that runs without Python's lock and its errors."""
    return njit(function, nogil=True, error_model="numpy", cache=cache, fastmath=set(fastmath))


def kept(function: F) -> F:
    """A compiled function that is kept for later processes, where there is a place for it: beside Python's own
    compiled files, or in the user's cache. No file that a user hands over is read.
    """
    anew = compiled(function)
    try:
        found = compiled(function, cache=True)
    except RuntimeError:  # neither the package's folder nor the user's can be written to
        return anew

    @wraps(function)
    def call(*given: Any) -> Any:
        try:
            return found(*given)
        except (OSError, EOFError, UnpicklingError):  # before it has run: that place is full, or what it holds damaged
            return anew(*given)

    return cast(F, call)


@kept
def add_data(first: np.ndarray, second: np.ndarray, x: np.ndarray, rows: np.ndarray, shares: np.ndarray) -> None:
    """Add p x and p x^2 to first and second (E,) float64, for the data ``rows`` (n,) of x and their ``shares`` p (n,).

    x (B, E): the bits of float16 numbers, as uint16, all finite.
    """
    size = len(first)
    bits = np.empty(TILE, np.uint32)
    values = bits.view(np.float32)
    for start in range(0, size, TILE):
        end = min(start + TILE, size)
        for each in range(len(rows)):
            _widen(x[rows[each], start:end], bits)
            _add(first[start:end], second[start:end], values, shares[each])


@kept
def finish_mode(
    mass: float,
    first: np.ndarray,
    second: np.ndarray,
    width: int,
    data: np.ndarray,
    shrinkage: float,
    floor: float,
    mean: np.ndarray,
    std: np.ndarray,
) -> tuple[float, float, float, float]:
    """From a mode's mass and sums (E,) of x and x^2 to its mean and standard deviation (E,) float32, filled in.

    width: the grid's, where mirror images count; else 0. data (4, E): the origin o of normalised latents, 1 / g with g
    the square of their scale, and mean and variance of all data. Returns sums over entries, with m and v the mode's
    mean and own variance, d the variance it is given: v / g, (m - o)^2 / g, d / g, v / d.
    """
    row = max(width, 1)
    tile = max(TILE // row, 1) * row
    center, own, given = np.empty(tile), np.empty(tile), np.empty(tile)
    count = 2 * mass if width else mass
    keep, shrink = (count / (count + shrinkage), shrinkage / (count + shrinkage)) if mass > 0 else (1.0, 0.0)
    within, distance, ratio, share = 0.0, 0.0, 0.0, 0.0
    for start in range(0, len(first), tile):
        end = min(start + tile, len(first))
        everywhere, variance = data[2, start:end], data[3, start:end]
        if mass > 0:
            _moments(mass, first[start:end], second[start:end], center, own)
        else:
            _copy(everywhere, variance, center, own)
        if mass > 0 and width:
            mirror_images(width, center[: end - start], own)
        _shrink(own, variance, keep, shrink, floor, given)
        _store(center, given, mean[start:end], std[start:end])
        parts = _measure(center, own, given, data[0, start:end], data[1, start:end])
        within, distance, ratio, share = within + parts[0], distance + parts[1], ratio + parts[2], share + parts[3]
    return within, distance, ratio, share


@compiled
def mirror_images(width: int, mean: np.ndarray, variance: np.ndarray) -> None:
    """From the moments (E,) of data to those of the data with their mirror images, in place; ``width`` of the grid."""
    for start in range(0, len(mean), width):
        for column in range(width // 2):
            one, other = start + column, start + width - 1 - column
            apart = (mean[one] - mean[other]) / 2
            mean[one] = mean[other] = (mean[one] + mean[other]) / 2
            variance[one] = variance[other] = (variance[one] + variance[other]) / 2 + apart * apart


# each of these a loop over arrays of one dimension, which the compiler turns into vector instructions


@compiled
def _widen(half: np.ndarray, single: np.ndarray) -> None:
    """The bits of float16 numbers at their places in float32 numbers, which are then too small by SINGLE_PER_HALF."""
    for entry in range(len(half)):
        bits = np.uint32(half[entry])
        single[entry] = ((bits & SIGN) << SIGN_SHIFT) | ((bits & MAGNITUDE) << MAGNITUDE_SHIFT)


@compiled
def _add(first: np.ndarray, second: np.ndarray, values: np.ndarray, share: float) -> None:
    for entry in range(len(first)):
        value = np.float64(values[entry] * SINGLE_PER_HALF)
        part = share * value
        first[entry] += part
        second[entry] += part * value


@compiled
def _moments(mass: float, first: np.ndarray, second: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> None:
    for entry in range(len(first)):
        center = first[entry] / mass
        mean[entry] = center
        variance[entry] = max(second[entry] / mass - center * center, 0.0)


@compiled
def _copy(first: np.ndarray, second: np.ndarray, center: np.ndarray, own: np.ndarray) -> None:
    for entry in range(len(first)):
        center[entry], own[entry] = first[entry], second[entry]


@compiled
def _shrink(
    own: np.ndarray, everywhere: np.ndarray, keep: float, shrink: float, floor: float, given: np.ndarray
) -> None:
    for entry in range(len(everywhere)):
        given[entry] = keep * own[entry] + shrink * everywhere[entry] + floor


@compiled
def _store(center: np.ndarray, given: np.ndarray, mean: np.ndarray, std: np.ndarray) -> None:
    for entry in range(len(mean)):
        mean[entry], std[entry] = center[entry], math.sqrt(given[entry])


@partial(compiled, fastmath=frozenset({"reassoc"}))
def _measure(
    center: np.ndarray, own: np.ndarray, given: np.ndarray, origin: np.ndarray, per_scale: np.ndarray
) -> tuple[float, float, float, float]:
    within, distance, ratio, share = 0.0, 0.0, 0.0, 0.0
    for entry in range(len(origin)):
        apart = center[entry] - origin[entry]
        within += own[entry] * per_scale[entry]
        distance += apart * apart * per_scale[entry]
        ratio += given[entry] * per_scale[entry]
        share += own[entry] / given[entry]
    return within, distance, ratio, share
