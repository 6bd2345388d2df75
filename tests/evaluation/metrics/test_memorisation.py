"""Memorised samples are copies; fresh ones are not."""

import numpy as np
import pytest
import torch
from points import normal
from scipy.spatial.distance import cdist

from gmtool.evaluation.metrics.memorisation import memorised_share, nearest_of

CPU = torch.device("cpu")


def share(images: torch.Tensor, training: torch.Tensor) -> float:
    return memorised_share(images, training, CPU, rows_at_once=7).value


def test_it_follows_its_definition():
    images, training = normal(90, 3, 1), normal(60, 3, 2)
    across, within = cdist(images.numpy(), training.numpy()), cdist(training.numpy(), training.numpy())
    np.fill_diagonal(within, np.inf)
    expected = (across.min(1) < within.min(1)[across.argmin(1)]).mean()
    assert share(images, training) == pytest.approx(expected) and 0.1 < expected < 0.9


def test_copies_are_memorised_and_distant_images_are_not():
    training = normal(80, 6, 3, shift=50)  # far from the origin, where distances by products lose their digits
    assert share(training[:30], training) == 1
    assert share(training[:30] + 1e-3 * normal(30, 6, 4), training) == 1
    assert share(training + 40, training) == 0


def test_more_noise_on_copies_is_less_memorisation():
    training = normal(200, 6, 5)
    shares = [share(training + level * normal(200, 6, 6), training) for level in (0.05, 0.5, 2.0)]
    assert shares[0] == 1 > shares[1] > shares[2]


def test_nearest_leaves_out_what_does_not_count():
    points = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    distance, nearest = nearest_of(points, points, CPU, rows_at_once=1, but=torch.arange(4))
    assert nearest.tolist() == [1, 0, 1, 2] and distance.tolist() == [1, 1, 2, 4]
