"""RunningMoments: any split of the samples gives numpy's float64 mean and variance."""

import numpy as np
import pytest

from gmtool.mixture.running_moments import RunningMoments


@pytest.fixture
def samples() -> np.ndarray:
    rng = np.random.default_rng(0)
    return 1e4 + rng.standard_normal((101, 3, 2, 2)) * rng.uniform(0.1, 5, (3, 2, 2))


@pytest.mark.parametrize("cuts", [[], [1], [50], [1, 2, 3, 100], list(range(1, 101)), [0, 40, 40, 101]])
def test_any_split_gives_the_same_moments(samples: np.ndarray, cuts: list[int]) -> None:
    moments = RunningMoments.empty(samples.shape[1:])
    for piece in np.split(samples, cuts):
        moments = moments.update(piece)
    assert moments.count == 101
    np.testing.assert_allclose(moments.mean, samples.mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.variance, samples.var(0), rtol=1e-11)


def test_merging_shards_is_symmetric_and_exact(samples: np.ndarray) -> None:
    first, second = RunningMoments.of(samples[:30]), RunningMoments.of(samples[30:])
    for merged in (first.merge(second), second.merge(first)):
        np.testing.assert_allclose(merged.mean, samples.mean(0), rtol=1e-14)
        np.testing.assert_allclose(merged.variance, samples.var(0), rtol=1e-11)


def test_an_empty_set_changes_nothing(samples: np.ndarray) -> None:
    moments, empty = RunningMoments.of(samples), RunningMoments.empty((3, 2, 2))
    assert moments.merge(empty) is moments
    assert empty.merge(moments) is moments
    assert (empty.variance == 0).all()


def test_float16_batches_are_accumulated_in_float64() -> None:
    batch = np.full((4096, 1), 60000, np.float16)  # their float16 sum overflows
    assert RunningMoments.of(batch).mean == 60000
