"""Random numbers named by what they are for, so that they never depend on batch size, order or a restart.

A key, such as (seed, "train", step) or (seed, "sample", i), gives a generator of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


def key_seed(*key: int | str) -> int:
    """A 63-bit seed: BLAKE2b of the parts of a key, with their types."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on ``device`` seeded by the key."""
    return torch.Generator(device).manual_seed(key_seed(*key))


class Noise(Protocol):
    """Random numbers for a batch of B samples, other ones at each call."""

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers (B, *shape), float32."""

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Uniform numbers in [0, 1), (B, *shape), float32."""


class SampleNoise:
    """Numbers for a batch of samples, each from a stream of its own: sample i sees the seed and i alone.

    The streams run on the CPU, so that every device draws the same numbers.
    """

    def __init__(self, seed: int, indices: Sequence[int]) -> None:
        self._streams = [generator(seed, "sample", int(index)) for index in indices]

    def normal(self, shape: Sequence[int]) -> Tensor:
        """See `Noise.normal`."""
        return torch.stack([torch.randn(tuple(shape), generator=stream) for stream in self._streams])

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """See `Noise.uniform`."""
        return torch.stack([torch.rand(tuple(shape), generator=stream) for stream in self._streams])


class SharedNoise:
    """Numbers for a batch of ``count`` samples from one stream, on its device: fast for many samples of few numbers.

    A sample's numbers then depend on its place in the batch.
    """

    def __init__(self, count: int, stream: torch.Generator) -> None:
        self._count, self._stream = count, stream

    def normal(self, shape: Sequence[int]) -> Tensor:
        """See `Noise.normal`."""
        return torch.randn(self._count, *shape, generator=self._stream, device=self._stream.device)

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """See `Noise.uniform`."""
        return torch.rand(self._count, *shape, generator=self._stream, device=self._stream.device)
