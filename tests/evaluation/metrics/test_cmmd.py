import numpy as np
import pytest
import torch
from points import normal

from gmtool.evaluation.metric import Pair
from gmtool.evaluation.metrics.cmmd import cmmd

CPU = torch.device("cpu")


def unit(count: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    vectors = normal(count, 8, seed, shift=shift)
    return vectors / vectors.norm(dim=1, keepdim=True)


def by_definition(x: np.ndarray, y: np.ndarray) -> float:
    def kernel(a: np.ndarray, b: np.ndarray) -> np.longdouble:
        differences = a[:, None].astype(np.longdouble) - b[None]
        return np.exp(-np.square(differences).sum(-1) / 200).mean()

    return float(1000 * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)))


def test_it_is_the_definition_in_more_than_float64():
    x, y = unit(40, 0), unit(30, 1, shift=0.3)
    for rows_at_once in (1024, 7):
        assert cmmd(x, y, CPU, rows_at_once) == pytest.approx(by_definition(x.numpy(), y.numpy()), rel=1e-9)


def test_equal_sets_are_at_distance_0_and_order_changes_nothing():
    x, y = unit(40, 0), unit(30, 1)
    assert cmmd(x, x, CPU) == pytest.approx(0, abs=1e-10)
    assert cmmd(x.flip(0), y, CPU) == pytest.approx(cmmd(x, y, CPU), rel=1e-9)


def test_a_shifted_set_is_farther():
    pair = Pair(unit(200, 0), unit(200, 1))
    near, far, farther = (cmmd(unit(200, 0, shift), pair.reference, CPU) for shift in (0.0, 0.3, 1.0))
    assert near < far < farther
