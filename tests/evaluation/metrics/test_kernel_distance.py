"""The kernel distance against its definition."""

import numpy as np
import pytest
import torch
from points import normal

from gmtool.evaluation.metrics.kernel_distance import kernel_distance


def test_kernel_distance_is_the_unbiased_mmd():
    first, second = normal(9, 4, 11), normal(9, 4, 12, shift=0.5)

    def kernel(x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
        return ((x.double() @ y.double().T).numpy() / 4 + 1) ** 3

    others = ~np.eye(9, dtype=bool)
    expected = kernel(first, first)[others].mean() + kernel(second, second)[others].mean()
    expected -= 2 * kernel(first, second).mean()
    distance = kernel_distance(first, second, seed=0)
    assert distance.value == pytest.approx(expected, rel=1e-10)
    assert distance.spread == 0


def test_kernel_distance_is_torch_fidelitys():
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    first, second = normal(60, 5, 17), normal(40, 5, 18, shift=0.2)
    theirs = kid_features_to_metric(
        first.double(), second.double(), kid_subsets=7, kid_subset_size=30, rng_seed=3, verbose=False
    )
    ours = kernel_distance(first, second, 3, subsets=7, subset_size=30)
    assert (ours.value, ours.spread) == (theirs[KEY_METRIC_KID_MEAN], theirs[KEY_METRIC_KID_STD])


@pytest.mark.slow
def test_kernel_distance_is_near_zero_between_equal_distributions_and_grows_with_a_shift():
    first = normal(1500, 8, 13)
    values = [
        kernel_distance(first, normal(1200, 8, 14, shift=shift), seed=1, subsets=10).value for shift in (0, 0.3, 0.6)
    ]
    assert abs(values[0]) < 0.02 < values[1] < values[2]


def test_the_seed_alone_decides_the_subsets():
    first, second = normal(40, 3, 15), normal(20, 3, 16)
    assert kernel_distance(first, second, 5) == kernel_distance(first, second, 5)
    assert kernel_distance(first, second, 5) != kernel_distance(first, second, 6)
    assert kernel_distance(first, second, 2**40).value == kernel_distance(first, second, 0).value
