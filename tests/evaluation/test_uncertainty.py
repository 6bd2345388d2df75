"""Intervals that hold what they promise, and means over seeds."""

import json
from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
import torch
from points import normal

from gmtool.cli.app import main
from gmtool.evaluation.features import Features, FeatureStatistics, feature_statistics
from gmtool.evaluation.metric import Pair, bounded
from gmtool.evaluation.metrics import Resampling
from gmtool.evaluation.metrics.density_coverage import density_coverage
from gmtool.evaluation.metrics.frechet_distance import frechet_distance
from gmtool.evaluation.metrics.memorisation import memorised_share
from gmtool.evaluation.metrics.mind import mind
from gmtool.evaluation.report import Figure, Measurement
from gmtool.evaluation.uncertainty import over_seeds, resampled, with_intervals
from gmtool.progress import Progress

CPU = torch.device("cpu")
REFERENCE = normal(240, 4, 999)

METRICS: dict[str, Callable[[torch.Tensor], float]] = {
    "mean": lambda x: float(x[:, 0].mean()),
    "frechet": lambda x: frechet_distance(feature_statistics(x), feature_statistics(REFERENCE)),
    "density": lambda x: density_coverage(x, REFERENCE, CPU)[0].value,
    "coverage": lambda x: density_coverage(x, REFERENCE, CPU)[1].value,
    "mind": lambda x: mind(x, REFERENCE[: len(x)], 0, directions=100),
    "memorised": lambda x: memorised_share(x, REFERENCE, CPU).value,
}


RESAMPLINGS = get_args(Resampling)


def interval(
    metric: Callable[[torch.Tensor], float],
    x: torch.Tensor,
    resampling: Resampling = "halves",
    number: int = 20,
    seed: int = 0,
) -> Measurement:
    value = Measurement(metric(x), None, len(x), len(REFERENCE))
    values = resampled(
        resampling,
        lambda rows: {"it": Measurement(metric(x[rows]), None, len(rows), None)},
        len(x),
        number,
        seed,
        Progress(),
    )
    (figure,) = with_intervals([Figure("it", value, None)], values, resampling, len(x), limits=True)
    return figure.generated


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("resampling", RESAMPLINGS)
@pytest.mark.slow
def test_half_widths_are_the_deviations_over_other_samples(resampling, name):
    """Of metrics that are no means, too: their values over independent sets tell what the interval should be."""
    metric = METRICS[name]
    draws = [normal(120, 4, seed, shift=0.3) for seed in range(60)]
    truth = np.std([metric(x) for x in draws], ddof=1)
    wide = [(estimate.high - estimate.low) / 2 for estimate in (interval(metric, x, resampling) for x in draws[:12])]
    assert np.mean(wide) / (2.093 * truth) == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("cap", [10, 40, 60, 80, 100])
def test_half_widths_of_a_metric_that_reads_some_of_the_samples_are_its_deviations(cap):
    """Whether a half has more than it reads, fewer, or the whole has no more either."""
    count, repetitions, number = 80, 60, 20

    def measure(x: torch.Tensor) -> Measurement:
        read = bounded(Pair(x, x), 0, cap, cap).images
        return Measurement(float(read.mean()), None, len(read), None)

    variances = []
    for seed in range(repetitions):
        x = normal(count, 1, seed)
        subsets = resampled("halves", lambda rows, x=x: {"it": measure(x[rows])}, count, number, seed, Progress())
        (figure,) = with_intervals([Figure("it", measure(x), None)], subsets, "halves", count)
        variances.append(((figure.generated.high - figure.generated.value) / 2.093) ** 2)  # t of 19 degrees of freedom
    assert np.mean(variances) ** 0.5 * min(cap, count) ** 0.5 == pytest.approx(1, abs=0.06)


def of_values(metric: str, value: float, subsets: list[float], resampling: Resampling) -> Measurement:
    """The interval and the limit of a metric that has these values on subsets of 8 samples."""
    figure = Figure(metric, Measurement(value, None, 8, 8), None)
    measurements = [Measurement(of_subset, None, 4, 8) for of_subset in subsets]
    return with_intervals([figure], {metric: measurements}, resampling, 8, limits=True)[0].generated


def test_a_jackknife_that_lacks_a_part_has_no_interval():
    lacking = of_values("frechet_distance", 2.0, [2.1, float("nan"), 2.3, 2.2], "jackknife")
    assert (lacking.low, lacking.high, lacking.limit) == (None, None, None)
    whole = of_values("frechet_distance", 2.0, [2.1, 2.0, 2.3, 2.2], "jackknife")
    assert whole.low < 2.0 < whole.high and whole.limit == pytest.approx(4 * 2.0 - 3 * 2.15)
    halves, fewer = (of_values("mind", 2.0, [2.1, *bad, 2.3], "halves") for bad in ([float("inf")], []))
    assert halves == fewer and halves.low < 2.0 < halves.high  # either of which tells the deviation


def test_the_limit_stays_within_the_range_of_the_metric():
    assert of_values("frechet_distance", 0.1, [0.3, 0.4, 0.5, 0.4], "jackknife").limit == 0


@pytest.mark.parametrize("resampling", RESAMPLINGS)
def test_the_seed_decides_which_subsets_and_too_few_samples_have_none(resampling):
    x = normal(50, 4, 0)
    first, again, other = (interval(METRICS["mean"], x, resampling, seed=seed) for seed in (3, 3, 4))
    assert first == again != other and first.low < first.value < first.high
    few = interval(METRICS["mean"], normal(3, 4, 0), resampling)
    assert few.low is None and few.high is None and few.limit is None


def test_the_jackknife_of_a_mean_is_its_standard_error():
    x = normal(40, 1, 0)
    estimate = interval(METRICS["mean"], x, "jackknife", number=40)
    error = float(x.std() / 40**0.5)
    assert (estimate.high - estimate.value) / 2.0227 == pytest.approx(error, rel=1e-4)  # t of 39 degrees of freedom
    assert estimate.limit == pytest.approx(estimate.value, abs=1e-6)  # a mean has no bias


@pytest.mark.slow
def test_intervals_of_a_frechet_distance_cover():
    """Of Gaussians of known distance: what as many samples reach on average, and the limit what all of them would."""
    size, count, draws = 24, 200, 60
    true = FeatureStatistics(np.zeros(size), np.eye(size))

    def metric(x: torch.Tensor) -> float:
        return frechet_distance(feature_statistics(x), true)

    samples = [1.1 * normal(count, size, seed, shift=0.1) for seed in range(draws)]
    values = [metric(x) for x in samples]
    expected, limit = np.mean(values), 0.11**2 * size + 0.1**2 * size
    estimates = [interval(metric, x, "jackknife") for x in samples]
    assert expected > 1.5 * limit  # the bias of few samples is most of it
    assert np.mean([estimate.low <= expected <= estimate.high for estimate in estimates]) >= 0.9
    assert np.mean([estimate.low <= limit <= estimate.high for estimate in estimates]) <= 0.1
    wide = [estimate.high - estimate.value for estimate in estimates]
    covered = [abs(estimate.limit - limit) <= half for estimate, half in zip(estimates, wide, strict=True)]
    assert np.mean(covered) >= 0.9
    halves = interval(metric, samples[0], "halves")
    assert np.mean(wide) < halves.high - halves.value and halves.limit is None


def figure(value: float, real: float | None) -> Figure:
    floor = None if real is None else Measurement(real, None, 3, 3)
    return Figure("kid", Measurement(value, 0.5, 3, 3), floor, "inception")


def test_means_and_spreads_over_seeds():
    (averaged,) = over_seeds([[figure(1.0, 5.0)], [figure(3.0, 5.0)]])
    assert (averaged.generated.value, averaged.generated.spread) == (2.0, pytest.approx(2**0.5))
    assert averaged.real == figure(1.0, 5.0).real and averaged.features == "inception"
    assert over_seeds([[figure(1.0, None)]]) == (figure(1.0, None),)


@pytest.mark.slow
def test_the_command_shows_both(world, capsys):
    arguments = ["eval", str(world / "samples"), "--features", "tokenizer"]
    assert main([*arguments, "--intervals", "3", "--repeats", "2", "--json"]) == 0
    by_metric = {entry["metric"]: entry for entry in json.loads(capsys.readouterr().out)["figures"]}
    for metric in ("frechet_distance", "precision", "kernel_distance", "mind", "memorisation"):
        values = by_metric[metric]["generated"]
        assert values["low"] <= values["value"] <= values["high"], metric
    assert (
        by_metric["frechet_distance"]["real"]["spread"] > 0
        and by_metric["frechet_distance"]["generated"]["spread"] is None
    )
    assert by_metric["recall"]["generated"]["limit"] is None
    assert by_metric["frechet_distance"]["generated"]["limit"] < by_metric["frechet_distance"]["generated"]["value"]
    assert main([*arguments, "--intervals", "3"]) == 0
    assert "extrapolated to infinitely many samples: Fréchet distance" in capsys.readouterr().out
    assert main([*arguments, "--intervals", "1"]) == 2
    assert "--intervals 1" in capsys.readouterr().err


def test_features_by_rows_keep_all_that_is_known():
    features = Features(normal(4, 2, 0), normal(4, 3, 1), normal(4, 5, 2))
    half = features.rows(torch.tensor([2, 0]))
    assert torch.equal(half.spatial, features.spatial[[2, 0]]) and torch.equal(half.logits, features.logits[[2, 0]])


def test_an_interval_stays_within_the_range_of_the_metric():
    values = iter([0.5, 1.0, 0.7, 0.2])
    shares = Figure("recall", Measurement(0.95, None, 8, 8), None)
    distances = Figure("kernel_distance", Measurement(-0.01, None, 8, 8), None)
    subsets = resampled(
        "halves",
        lambda _: {name: Measurement(next(values), None, 4, 8) for name in ("recall", "kernel_distance")},
        8,
        2,
        0,
        Progress(),
    )
    figures = with_intervals([shares, distances], subsets, "halves", 8)
    assert figures[0].generated.high == 1 and figures[0].generated.low < 0.95
    assert figures[1].generated.low < -0.01  # unbiased, it may be below 0
