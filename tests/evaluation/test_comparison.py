import numpy as np
import pytest
import torch

from gmtool.evaluation import comparison
from gmtool.evaluation.comparison import Settings, figures_of, real_pair
from gmtool.evaluation.features import Features
from gmtool.evaluation.fidelity import FeatureStatistics, feature_statistics
from gmtool.progress import Progress

SETTINGS = Settings(neighbours=3, seed=0, device=torch.device("cpu"))


def numbered(count: int, first: int = 0) -> Features:
    """Image i has the feature i."""
    return Features(torch.arange(first, first + count).float()[:, None])


def normal(count: int, seed: int, logits: bool = False) -> Features:
    random = torch.Generator().manual_seed(seed)
    return Features(
        torch.randn(count, 4, generator=random), torch.randn(count, 6, generator=random) if logits else None
    )


@pytest.mark.parametrize(
    ("reference", "samples", "sizes"), [(100, 30, (30, 70)), (100, 50, (50, 50)), (101, 90, (50, 51)), (4, 9, (2, 2))]
)
def test_a_split_reference_is_disjoint_and_sized_as_the_samples(reference, samples, sizes):
    pair = real_pair(numbered(reference), None, samples, seed=0)
    assert (len(pair.images), len(pair.reference)) == sizes
    together = torch.cat([pair.images.vectors, pair.reference.vectors]).flatten().sort().values
    assert torch.equal(together, torch.arange(reference).float())


def test_the_split_depends_on_the_seed_alone():
    first, again, other = (real_pair(numbered(50), None, 10, seed).images.vectors for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_other_real_images_stand_in_for_the_samples():
    pair = real_pair(numbered(20), numbered(8, first=100), 8, seed=0)
    assert pair.images.vectors.min() == 100 and len(pair.reference) == 20


def test_too_few_real_images_give_no_pair():
    assert real_pair(numbered(3), None, 10, seed=0) is None


def test_all_metrics_stand_beside_their_real_values():
    reference = normal(80, 0, logits=True)
    figures = figures_of(
        normal(30, 1, logits=True), reference, None, real_pair(reference, None, 30, 0), SETTINGS, Progress()
    )
    assert [each.metric for each in figures] == [
        "frechet_distance", "inception_score", "kernel_distance", "precision", "recall",
    ]  # fmt: skip
    for each in figures:
        sizes = (None, None) if each.metric == "inception_score" else (80, 50)
        assert (each.generated.images, each.generated.reference_images) == (30, sizes[0])
        assert (each.real.images, each.real.reference_images) == (30, sizes[1])
        assert np.isfinite(each.generated.value) and np.isfinite(each.real.value)


def test_statistics_alone_give_the_frechet_distance_alone():
    reference = normal(50, 2)
    found = feature_statistics(reference.vectors)
    statistics = FeatureStatistics(found.mean, found.covariance)
    (figure,) = figures_of(normal(30, 3), None, statistics, None, SETTINGS, Progress())
    expected = figures_of(normal(30, 3), reference, None, None, SETTINGS, Progress())[0]
    assert (figure.metric, figure.real, figure.generated.reference_images) == ("frechet_distance", None, None)
    assert figure.generated.value == pytest.approx(expected.generated.value)


def test_statistics_of_a_larger_set_replace_those_of_its_sample():
    reference, wide = normal(50, 2), FeatureStatistics(np.full(4, 10.0), np.eye(4))
    figures = figures_of(normal(30, 3), reference, wide, real_pair(reference, None, 10, 0), SETTINGS, Progress())
    assert figures[0].generated.value == pytest.approx(400, rel=0.1) and figures[0].real is None
    assert [each.metric for each in figures if each.real is not None] == ["kernel_distance", "precision", "recall"]


def test_metrics_of_pairs_look_at_a_bounded_number_of_images(monkeypatch):
    monkeypatch.setattr(comparison, "NEIGHBOUR_IMAGES", 20)
    monkeypatch.setattr(comparison, "NEIGHBOUR_REFERENCES", 25)
    figures = figures_of(normal(30, 1), normal(80, 0), None, None, SETTINGS, Progress())
    assert [(each.generated.images, each.generated.reference_images) for each in figures] == [(30, 80)] + [(20, 25)] * 3
