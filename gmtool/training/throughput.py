"""Throughput: steps and images per second, the fraction of the peak rate, and the time spent waiting for data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from gmtool.distributed import World
from gmtool.throughput import matmul_rate
from gmtool.training.logging import Record

_Item = TypeVar("_Item")


@dataclass
class ThroughputMeter:
    """A clock for laps of steps.

    steps: taken in this lap. flops: floating-point operations of a training step per sample; peak: those per second of
    the machine's matrix products; both 0 where they are not known. clock: time in seconds. On a GPU, steps are only
    queued: the time waited for data is then an upper bound of the time that the GPU was idle because of it.
    """

    flops: int = 0
    peak: float = 0.0
    clock: Callable[[], float] = time.monotonic
    _began: float = field(default=0.0, init=False)
    _waited: float = field(default=0.0, init=False)
    _images: int = field(default=0, init=False)
    steps: int = field(default=0, init=False)

    def waiting(self, batches: Iterable[_Item]) -> Iterator[_Item]:
        """The batches, with the time spent waiting for each of them measured."""
        self.begin_lap()
        source = iter(batches)
        while True:
            started = self.clock()
            try:
                batch = next(source)
            except StopIteration:
                return
            self._waited += self.clock() - started
            yield batch

    def begin_lap(self) -> None:
        """Reset all counts."""
        self._began, self._waited, self._images, self.steps = self.clock(), 0.0, 0, 0

    def count(self, images: int) -> None:
        """Count a step on ``images`` images."""
        self._images += images
        self.steps += 1

    def figures(self) -> Record:
        """The lap's figures: images/s, TFLOP/s and its share of the peak where they are known, share of time waited."""
        passed = max(self.clock() - self._began, 1e-9)
        rate = self._images / passed
        figures = {"images/s": rate}
        if self.flops:
            figures["TFLOP/s"] = rate * self.flops / 1e12
        if self.flops and self.peak:
            figures["of peak"] = rate * self.flops / self.peak
        return {**figures, "waiting": self._waited / passed}


def meter_of(flops: Callable[[], int], precision: torch.dtype, world: World) -> ThroughputMeter:
    """A meter that knows, on a GPU, what a step costs and what the device can do; elsewhere finding out costs more.

    flops: finds the floating-point operations of a step per sample. precision: of the network's arithmetic.
    """
    if world.device.type != "cuda":
        return ThroughputMeter()
    peak = matmul_rate(world.device, precision) * world.size
    torch.cuda.empty_cache()
    return ThroughputMeter(flops(), peak)
