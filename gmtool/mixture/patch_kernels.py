"""The inner loop of the patch moments: weighted sums of float16 samples in float64. See `patch_moments` for the source.

There are two implementations, by PyTorch and compiled by Numba (extra: fast), which needs two thirds of the time but
takes a second to compile in every process. They give the same bits: a float32 share times the square of a float16
number is exact in float64, so that one rounding is left, that of the sum, and samples are added one after another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

Add = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray], None]
"""add(first, second, x, rows, shares): add p x and p x^2 to first and second (E,) float64, for the samples ``rows``
(n,) of x (B, E) float16, all finite, in this order, with ``shares`` p (n,) float32. Runs without Python's lock."""

TILE_TORCH, TILE_NUMBA = 3 << 13, 1 << 11
"""Entries added at a time: for PyTorch as many as it still sums in a single thread, because calls are costly; for Numba
as many as keep two sums and a sample in the L1 cache."""

WORTH_COMPILING = 1 << 32
"""Bytes of samples from which compiling saves time: it takes a second, and then 0.8 in place of 1.1 ns per entry."""


def adder(size: float) -> Add:
    """The faster implementation that is installed, for about ``size`` bytes of samples in all."""
    if size >= WORTH_COMPILING:
        try:
            return numba_add()
        except ImportError:  # not installed, or no version that goes with the installed NumPy
            pass
    return torch_add


def torch_add(first: np.ndarray, second: np.ndarray, x: np.ndarray, rows: np.ndarray, shares: np.ndarray) -> None:
    """See `Add`."""
    to, samples = (torch.from_numpy(first), torch.from_numpy(second)), torch.from_numpy(x)
    single, double = torch.empty(TILE_TORCH), torch.empty(TILE_TORCH, dtype=torch.float64)
    for start in range(0, len(first), TILE_TORCH):
        of_values, of_squares = (sums[start : start + TILE_TORCH] for sums in to)
        halfway, values = single[: len(of_values)], double[: len(of_values)]
        for row, share in zip(rows.tolist(), shares.tolist(), strict=True):
            # PyTorch has vector instructions for either conversion, but not for both at once
            halfway.copy_(samples[row, start : start + TILE_TORCH])
            values.copy_(halfway)
            of_values.add_(values, alpha=share)
            of_squares.addcmul_(values, values, value=share)


def numba_add() -> Add:
    """The other one, which is compiled when it is first called. Raises ImportError where Numba is not installed."""
    from numba import njit

    sign, magnitude = np.uint32(0x8000), np.uint32(0x7FFF)
    sign_shift, magnitude_shift = np.uint32(16), np.uint32(13)  # from a float16's bits to their places in a float32
    scale = np.float32(2.0**112)  # between the biases of their exponents, 127 and 15
    tile = TILE_NUMBA

    def add_tiles(first: Any, second: Any, bits: Any, rows: Any, shares: Any) -> None:
        buffer, other_buffer = np.empty(tile, np.uint32), np.empty(tile, np.uint32)
        values, other_values = buffer.view(np.float32), other_buffer.view(np.float32)
        for start in range(0, len(first), tile):
            of_values, of_squares = first[start : start + tile], second[start : start + tile]
            # two samples at a time: their sums then travel to and from the cache half as often
            for index in range(0, len(rows), 2):
                other = min(index + 1, len(rows) - 1)
                share, other_share = np.float64(shares[index]), np.float64(shares[other]) if other > index else 0.0
                half, other_half = bits[rows[index], start : start + tile], bits[rows[other], start : start + tile]
                # three loops, each of which the compiler turns into vector instructions
                for entry in range(len(half)):
                    number = np.uint32(half[entry])
                    buffer[entry] = ((number & sign) << sign_shift) | ((number & magnitude) << magnitude_shift)
                for entry in range(len(half)):
                    number = np.uint32(other_half[entry])
                    other_buffer[entry] = ((number & sign) << sign_shift) | ((number & magnitude) << magnitude_shift)
                for entry in range(len(half)):
                    value, other_value = np.float64(values[entry] * scale), np.float64(other_values[entry] * scale)
                    part, other_part = share * value, other_share * other_value
                    of_values[entry] = (of_values[entry] + part) + other_part
                    of_squares[entry] = (of_squares[entry] + part * value) + other_part * other_value

    compiled = njit(add_tiles, nogil=True, error_model="numpy")

    def add(first: np.ndarray, second: np.ndarray, x: np.ndarray, rows: np.ndarray, shares: np.ndarray) -> None:
        compiled(first, second, x.view(np.uint16), rows, shares)

    return add
