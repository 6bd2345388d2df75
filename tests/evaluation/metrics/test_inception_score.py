"""The Inception score of classifiers that are sure, and of one that is not."""

import pytest
import torch

from gmtool.evaluation.metrics.inception_score import inception_score


def test_inception_score_lies_between_one_and_the_number_of_classes():
    classes = 8
    certain = torch.full((8000, classes), -40.0)
    certain[torch.arange(8000), torch.arange(8000) % classes] = 40.0
    assert inception_score(certain, 0).value == pytest.approx(classes, rel=1e-2)
    assert inception_score(torch.zeros(100, classes), 0).value == pytest.approx(1)
    assert inception_score(certain[:8], 0).value == pytest.approx(classes)  # too few to be split


def test_inception_score_is_torch_fidelitys():
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

    logits = 2 * torch.randn(173, 9, generator=torch.Generator().manual_seed(0))
    theirs = isc_features_to_metric(logits, splits=10, rng_seed=5)
    ours = inception_score(logits, 5)
    assert ours.value == pytest.approx(theirs[KEY_METRIC_ISC_MEAN], rel=1e-12)
    assert ours.spread == pytest.approx(theirs[KEY_METRIC_ISC_STD], rel=1e-9)
