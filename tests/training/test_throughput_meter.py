"""The clock of training, on a clock of its own."""

from collections.abc import Iterator

import pytest

from gmtool.training.throughput import ThroughputMeter


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def slow(clock: Clock, count: int) -> Iterator[int]:
    """Batches that take 1 s each to come."""
    for index in range(count):
        clock.now += 1
        yield index


def test_figures_of_a_lap() -> None:
    clock = Clock()
    pace, seen = ThroughputMeter(flops=2 * 10**12, peak=8e13, clock=clock), []
    for batch in pace.waiting(slow(clock, 4)):
        seen.append(batch)
        clock.now += 3
        pace.count(32)
    assert seen == [0, 1, 2, 3]
    rate = 4 * 32 / 16
    expected = {"images/s": rate, "TFLOP/s": 2 * rate, "of peak": 2 * rate / 80, "waiting": 4 / 16}
    assert pace.figures() == pytest.approx(expected)


def test_a_lap_forgets_the_one_before() -> None:
    clock = Clock()
    pace = ThroughputMeter(clock=clock)
    batches = pace.waiting(slow(clock, 3))
    next(batches)
    clock.now += 1000
    pace.begin_lap()
    for _ in batches:
        clock.now += 1
        pace.count(5)
    assert pace.figures() == pytest.approx({"images/s": 10 / 4, "waiting": 2 / 4})
