"""Precision and recall by brute force, and of sets whose quality is known."""

import numpy as np
import pytest
import torch
from points import normal
from scipy.spatial.distance import cdist

from gmtool.evaluation.metrics import MetricSettings
from gmtool.evaluation.metrics.precision_recall import precision_recall

CPU = torch.device("cpu")


def test_precision_and_recall_by_brute_force():
    generated, reference = normal(50, 3, 17, scale=1.3).numpy(), normal(70, 3, 18).numpy()

    def covered(points: np.ndarray, centres: np.ndarray) -> float:
        radii = np.sort(cdist(centres, centres), axis=1)[:, 3]
        return float((cdist(points, centres) <= radii).any(axis=1).mean())

    both = torch.from_numpy(generated), torch.from_numpy(reference)
    precision, recall = precision_recall(*both, 3, CPU, rows_at_once=13)
    assert precision.value == pytest.approx(covered(generated, reference))
    assert recall.value == pytest.approx(covered(reference, generated))
    assert precision.value != recall.value


def test_precision_and_recall_are_torch_fidelitys(monkeypatch):
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    monkeypatch.setattr("gmtool.evaluation.metrics.precision_recall.COLUMNS", 17)
    generated, reference = normal(150, 64, 1, scale=1.1), normal(120, 64, 2)
    theirs = prc_features_to_metric(
        generated.double(), reference.double(), prc_neighborhood=3, prc_batch_size=50, save_cpu_ram=False, verbose=False
    )
    precision, recall = precision_recall(generated, reference, 3, CPU)
    assert 0 < precision.value < 1 and 0 < recall.value < 1
    assert precision.value == pytest.approx(theirs[KEY_METRIC_PRECISION], rel=1e-6)
    assert recall.value == pytest.approx(theirs[KEY_METRIC_RECALL], rel=1e-6)


def shares(generated: torch.Tensor, reference: torch.Tensor) -> tuple[float, float]:
    """Precision and recall with three neighbours."""
    precision, recall = precision_recall(generated, reference, 3, CPU)
    return precision.value, recall.value


def test_precision_and_recall_of_equal_and_of_disjoint_sets():
    first = normal(40, 4, 19)
    assert shares(first, first) == (1, 1)
    assert shares(first, first + 100) == (0, 0)


def test_collapse_costs_recall_and_junk_costs_precision():
    reference = torch.cat([normal(100, 4, 20, shift=-5), normal(100, 4, 21, shift=5)])
    collapsed = normal(200, 4, 22, shift=5)
    junk = torch.cat([normal(100, 4, 23, shift=-5), normal(100, 4, 24, shift=5), normal(200, 4, 25, shift=50)])
    precision, recall = shares(collapsed, reference)
    assert recall <= 0.5 and precision > 0.8
    precision, recall = shares(junk, reference)
    assert precision <= 0.5 and recall > 0.8


def test_a_tiny_set_uses_the_neighbours_it_has():
    assert all(0 <= share <= 1 for share in shares(normal(2, 3, 26), normal(3, 3, 27)))


def test_the_default_is_that_of_published_figures():
    assert MetricSettings().neighbours == 3
