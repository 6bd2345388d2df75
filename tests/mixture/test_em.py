import warnings
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture

from gmtool.errors import UserError
from gmtool.mixture.diagonal import DiagonalMixture, posterior
from gmtool.mixture.em import (
    Blocks,
    Fit,
    SufficientStatistics,
    expected_moments,
    fit_em,
    label_moments,
    log_likelihood,
    maximise,
    split_largest,
    start_from_clusters,
)
from gmtool.mixture.settings import EmSettings

CPU = torch.device("cpu")


def mixture_data(n: int, modes: int, size: int, spread: float = 2.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draws (n, size) float64 from a mixture of ``modes`` random diagonal Gaussians, and their labels."""
    rng = np.random.default_rng(seed)
    means = spread * rng.normal(size=(modes, size))
    deviations = rng.uniform(0.3, 1.5, size=(modes, size))
    labels = rng.integers(modes, size=n)
    return means[labels] + deviations[labels] * rng.normal(size=(n, size)), labels


def start_at(x: np.ndarray, modes: int, seed: int = 1) -> DiagonalMixture:
    """Means at random data, the data's own variance."""
    rng = np.random.default_rng(seed)
    means = x[rng.choice(len(x), modes, replace=False)].astype(np.float64)
    return DiagonalMixture(
        torch.full((modes,), 1 / modes, dtype=torch.float64),
        torch.from_numpy(means),
        torch.from_numpy(np.tile(x.var(0).astype(np.float64), (modes, 1))),
    )


def fit(x: np.ndarray, start: DiagonalMixture, iterations: int, rows: int = 100, **settings: float):
    return fit_em(Blocks(x, rows, CPU), Fit(start), EmSettings(iterations, **{"tolerance": 0.0, **settings}))


def sklearn_fit(x: np.ndarray, start: DiagonalMixture, iterations: int, floor: float) -> GaussianMixture:
    reference = GaussianMixture(
        len(start.weights),
        covariance_type="diag",
        reg_covar=floor,
        max_iter=iterations,
        tol=0.0,
        weights_init=start.weights.numpy(),
        means_init=start.means.numpy(),
        precisions_init=1 / start.variances.numpy(),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has not converged, which is meant
        return reference.fit(x)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-9), (np.float32, 1e-4)])
def test_equals_scikit_learn(dtype: type, tolerance: float) -> None:
    x, _ = mixture_data(1500, modes=6, size=5)
    x = x.astype(dtype)
    start = start_at(x, 8)
    fitted = fit(x, start, 30, variance_floor=1e-3).mixture
    reference = sklearn_fit(x.astype(np.float64), start, 30, 1e-3)
    np.testing.assert_allclose(fitted.weights, reference.weights_, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(fitted.means, reference.means_, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(fitted.variances, reference.covariances_, rtol=tolerance, atol=tolerance)
    kept = posterior(Blocks(x, 64, CPU), fitted, 8)
    np.testing.assert_allclose(kept.log_likelihood.mean(), reference.score(x), rtol=tolerance)


def test_likelihood_never_falls() -> None:
    x, _ = mixture_data(800, modes=5, size=4, spread=1.0)
    history = fit(x, start_at(x, 7), 40, variance_floor=0.0).history
    assert len(history) == 40
    assert min(np.diff(history)) >= -1e-12
    assert history[-1] > history[0] + 0.1


@pytest.mark.slow
def test_recovers_the_mixture_that_made_the_data() -> None:
    x, labels = mixture_data(30_000, modes=4, size=3, spread=6.0)
    start = start_at(np.stack([x[labels == k][0] for k in range(4)]), 4)
    fitted = fit(x, start, 50).mixture
    order = [int((fitted.means - torch.from_numpy(x[labels == k].mean(0))).norm(dim=1).argmin()) for k in range(4)]
    assert sorted(order) == [0, 1, 2, 3]
    for k, mode in enumerate(order):
        own = x[labels == k]
        # within a few standard errors of the sample's own moments
        np.testing.assert_allclose(fitted.means[mode], own.mean(0), atol=0.05)
        np.testing.assert_allclose(fitted.variances[mode], own.var(0), rtol=0.05)
        np.testing.assert_allclose(fitted.weights[mode], len(own) / len(x), atol=0.005)


@pytest.mark.parametrize("rows", [1, 7, 299, 300, 1000])
def test_block_size_changes_nothing(rows: int) -> None:
    x, _ = mixture_data(300, modes=3, size=4)
    start = start_at(x, 5)
    whole, blocked = fit(x, start, 10, rows=300).mixture, fit(x, start, 10, rows=rows).mixture
    np.testing.assert_allclose(blocked.means, whole.means, rtol=1e-9)
    np.testing.assert_allclose(blocked.variances, whole.variances, rtol=1e-9)
    first, second = (posterior(Blocks(x, rows_of_block, CPU), whole, 3) for rows_of_block in (300, rows))
    np.testing.assert_array_equal(first.modes, second.modes)
    np.testing.assert_allclose(first.probabilities, second.probabilities, rtol=1e-5)


def test_order_of_the_data_changes_nothing() -> None:
    x, _ = mixture_data(300, modes=3, size=4)
    start = start_at(x, 5)
    shuffled = x[np.random.default_rng(5).permutation(300)]
    np.testing.assert_allclose(fit(shuffled, start, 10).mixture.means, fit(x, start, 10).mixture.means, rtol=1e-8)


def test_blocks_may_be_any_iterable() -> None:
    x, _ = mixture_data(90, modes=3, size=2)
    start = start_at(x, 3)
    listed = fit_em([torch.from_numpy(x[:50]), torch.from_numpy(x[50:])], Fit(start), EmSettings(5, tolerance=0.0))
    torch.testing.assert_close(listed.mixture.means, fit(x, start, 5).mixture.means)


def test_stops_at_the_tolerance() -> None:
    x, _ = mixture_data(500, modes=3, size=3)
    settled = fit(x, start_at(x, 3), 500, tolerance=1e-5)
    assert settled.converged
    assert 2 < len(settled.history) < 500
    assert abs(settled.history[-1] - settled.history[-2]) < 1e-5 <= abs(settled.history[-2] - settled.history[-3])
    assert not fit(x, start_at(x, 3), 2).converged


def test_start_is_not_changed() -> None:
    x, _ = mixture_data(100, modes=3, size=3)
    start = start_at(x, 3)
    before = [parameters.clone() for parameters in (start.weights, start.means, start.variances)]
    fit(x, start, 3)
    for parameters, old in zip((start.weights, start.means, start.variances), before, strict=True):
        assert torch.equal(parameters, old)


def test_label_moments_are_those_of_one_hot_responsibilities() -> None:
    x, labels = mixture_data(200, modes=4, size=3)
    moments = label_moments(Blocks(x.astype(np.float32), 33, CPU), torch.from_numpy(labels), 6)
    mixture = maximise(moments, None, 0.25)
    for k in range(4):
        own = x[labels == k]
        np.testing.assert_allclose(mixture.means[k], own.mean(0), rtol=1e-5)
        np.testing.assert_allclose(mixture.variances[k], own.var(0) + 0.25, rtol=1e-5)
        np.testing.assert_allclose(mixture.weights[k], len(own) / 200)
    # modes without a label stay, with weight 0 and finite numbers
    np.testing.assert_array_equal(mixture.weights[4:], 0)
    assert torch.isfinite(mixture.means).all()
    assert (mixture.variances > 0).all()


def test_start_from_clusters_is_its_formula() -> None:
    x, labels = mixture_data(200, modes=4, size=3)
    x[:, 2] = 0.5  # an axis without spread
    moments = label_moments(Blocks(x, 33, CPU), torch.from_numpy(labels), 4)
    centroids = np.stack([x[labels == k].mean(0) for k in range(4)]) + 0.25
    start = start_from_clusters(torch.from_numpy(centroids), moments, 0.125)
    within = sum((labels == k).mean() * x[labels == k].var(0) for k in range(4))
    for k in range(4):
        reach = (centroids[k, :2] - x[:, :2].mean(0)) ** 2 / x[:, :2].var(0)
        np.testing.assert_allclose(start.variances[k, :2], within[:2] / 2 * (1 + reach) + 0.125)
    np.testing.assert_array_equal(start.means, centroids)
    np.testing.assert_array_equal(start.weights, 0.25)
    assert torch.isfinite(start.variances).all()


def with_an_empty_mode(start: DiagonalMixture) -> DiagonalMixture:
    """The same mixture after a last mode whose mean is out of all data's reach."""
    far = DiagonalMixture(start.weights, start.means.clone(), start.variances)
    far.means[-1] = 1e4
    return far


def test_a_mode_that_is_emptied_in_the_last_iteration_does_not_touch_the_others() -> None:
    x, _ = mixture_data(400, modes=3, size=3)
    start = start_at(x, 4)
    far = with_an_empty_mode(start)
    fitted = fit(x, far, 1).mixture
    assert fitted.weights[3] == 0
    torch.testing.assert_close(fitted.means[3], far.means[3])
    without = DiagonalMixture(start.weights[:3] / start.weights[:3].sum(), start.means[:3], start.variances[:3])
    torch.testing.assert_close(fitted.means[:3], fit(x, without, 1).mixture.means)
    kept = posterior(Blocks(x, 64, CPU), fitted, 4)
    assert (kept.modes[kept.probabilities > 0] != 3).all()


@pytest.mark.slow
def test_an_empty_mode_is_initialised_again_where_it_is_of_use() -> None:
    # three modes on four far clusters, and one on none
    x, labels = mixture_data(4000, modes=4, size=3, spread=8.0)
    start = start_at(np.stack([x[labels == k][0] for k in range(4)]), 4)
    fitted = fit(x, with_an_empty_mode(start), 100)
    assert (fitted.mixture.weights > 0.1).all()
    assert fitted.history[-1] == pytest.approx(fit(x, start, 100).history[-1], abs=0.02)


@pytest.mark.parametrize("size", [1, 3, 64])
def test_empty_modes_split_the_largest(size: int) -> None:
    rng = np.random.default_rng(0)
    weights = torch.tensor([0.5, 0.0, 0.2, 0.3, 0.0], dtype=torch.float64)
    means, variances = (torch.from_numpy(rng.uniform(1, 2, (5, size))) for _ in range(2))
    split = split_largest(DiagonalMixture(weights, means, variances))
    torch.testing.assert_close(split.weights, torch.tensor([0.25, 0.25, 0.2, 0.15, 0.15], dtype=torch.float64))
    for old, new in ((0, 1), (3, 4)):
        torch.testing.assert_close((split.means[old] + split.means[new]) / 2, means[old])
        apart = ((split.means[old] - split.means[new]) ** 2 / variances[old]).sum()
        assert float(apart) == pytest.approx(8 / np.pi)  # each half of N(0, 1) has its centre at sqrt(2 / pi)
        torch.testing.assert_close(split.variances[[old, new]], variances[[old, old]])
    assert torch.equal(split.means[2], means[2])
    assert split_largest(split) is split
    alone = DiagonalMixture(torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64), means[:3], variances[:3])
    assert split_largest(alone).weights.tolist() == [0.5, 0.5, 0.0]  # a mode gives one half, whoever is in need


@pytest.mark.parametrize("modes", [40, 37, 36])  # in groups of eight, of one, of four
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 1e-5)])
def test_the_sparse_product_changes_nothing(dtype: type, tolerance: float, modes: int) -> None:
    x, _ = mixture_data(600, modes=40, size=16, spread=4.0)
    start = fit(x, start_at(x, modes), 3).mixture
    blocks = Blocks(x.astype(dtype), 128, CPU)
    dense, sparse = (expected_moments(blocks, start, sparse_share=share) for share in (0.0, 1.0))
    assert not torch.equal(sparse.features, dense.features)  # rounded otherwise, so computed otherwise
    assert sparse.log_likelihood == pytest.approx(dense.log_likelihood, rel=tolerance)
    torch.testing.assert_close(sparse.mass, dense.mass, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(sparse.features, dense.features, rtol=tolerance, atol=100 * tolerance)


def test_going_on_is_never_having_stopped() -> None:
    x, _ = mixture_data(500, modes=3, size=3)
    whole = fit(x, start_at(x, 3), 40, tolerance=1e-4)
    for stop in (1, 5):
        first = fit(x, start_at(x, 3), stop, tolerance=1e-4)
        rest = fit_em(Blocks(x, 100, CPU), first, EmSettings(40, tolerance=1e-4))
        assert (rest.history, rest.converged) == (whole.history, whole.converged)
        assert torch.equal(rest.mixture.means, whole.mixture.means)


def test_data_held_out_are_watched() -> None:
    x, _ = mixture_data(500, modes=3, size=3)
    blocks, others = Blocks(x[:400], 64, CPU), Blocks(x[400:], 64, CPU)
    fits = fit_em(blocks, Fit(start_at(x, 3)), EmSettings(4, tolerance=0.0), held_out=others)
    assert len(fits.history) == len(fits.held_out) == 4
    before = fit(x[:400], start_at(x, 3), 3).mixture
    assert fits.held_out[3] == pytest.approx(float(posterior(others, before, 1).log_likelihood.mean()), rel=1e-12)
    assert fits.history[3] == pytest.approx(log_likelihood(blocks, before), rel=1e-12)
    assert fit(x[:400], start_at(x, 3), 4).held_out == ()


def test_processes_that_share_the_data_find_the_same() -> None:
    # one thread per process; the sum waits for all of them
    x, _ = mixture_data(500, modes=3, size=3)
    start, count = Fit(start_at(x, 5)), 3
    barrier, given = Barrier(count), [None] * count

    def climb(rank: int) -> Fit:
        def total(own: torch.Tensor) -> torch.Tensor:
            given[rank] = own
            barrier.wait()
            total = sum(tensor.clone() for tensor in given)
            barrier.wait()
            return total

        part = slice(rank * 200, rank * 200 + 200)  # the last one has half as many
        blocks, others = Blocks(x[:400][part], 50, CPU), Blocks(x[400:][rank::count], 50, CPU)
        return fit_em(blocks, start, EmSettings(10, tolerance=0.0), held_out=others, total=total)

    with ThreadPoolExecutor(count) as pool:
        fits = list(pool.map(climb, range(count)))
    alone = fit_em(Blocks(x[:400], 50, CPU), start, EmSettings(10, tolerance=0.0), held_out=Blocks(x[400:], 50, CPU))
    for fit_of_start in fits:
        assert fit_of_start.history == pytest.approx(alone.history, rel=1e-12)
        assert fit_of_start.held_out == pytest.approx(alone.held_out, rel=1e-12)
        torch.testing.assert_close(fit_of_start.mixture.means, alone.mixture.means, rtol=1e-9, atol=1e-12)
        assert torch.equal(fit_of_start.mixture.means, fits[0].mixture.means)


def test_a_mode_of_a_single_sample_has_the_floor_for_variance() -> None:
    x = np.array([[0.0, 0.0], [0.1, 0.1], [0.0, 0.1], [50.0, 50.0]], np.float32)
    mixture = maximise(label_moments(Blocks(x, 4, CPU), torch.tensor([0, 0, 0, 1]), 2), None, 1e-6)
    fitted = fit(x, mixture, 20).mixture
    np.testing.assert_allclose(fitted.variances[1], 1e-6)
    np.testing.assert_allclose(fitted.means[1], 50.0)
    assert torch.isfinite(fitted.variances).all()


@pytest.mark.parametrize("modes", [4, 40])  # dense, and sparse products
@pytest.mark.parametrize("wide", [0, 2])
def test_narrow_modes_far_from_the_origin_lose_no_digits(modes: int, wide: int) -> None:
    """Spreads of 1e-3 at means of 0.5, in pairs that overlap: the expanded square would cancel in float32."""
    rng = np.random.default_rng(0)
    centres = rng.choice([-0.5, 0.5], (modes // 2, 16))
    means = np.concatenate([centres, centres + 5e-4 * rng.normal(size=centres.shape)])
    means = np.concatenate([means, rng.normal(size=(wide, 16))])
    variances = np.repeat([1e-6, 1.0], [modes, wide])[:, None].repeat(16, 1)
    modes += wide
    labels = rng.integers(modes, size=2000)
    x = (means[labels] + np.sqrt(variances[labels]) * rng.normal(size=(2000, 16))).astype(np.float32)
    mixture = DiagonalMixture(
        torch.full((modes,), 1 / modes, dtype=torch.float64), torch.from_numpy(means), torch.from_numpy(variances)
    )
    joint = np.stack([multivariate_normal(m, np.diag(v)).logpdf(x) for m, v in zip(means, variances, strict=True)], 1)
    expected = np.exp(joint - joint.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    assert np.sort(expected, axis=1)[:, -2].mean() > 0.05  # pairs overlap
    kept = posterior(Blocks(x, 256, CPU), mixture, modes)
    dense = np.zeros((2000, modes))
    np.add.at(dense, (np.arange(2000)[:, None], kept.modes), kept.probabilities)
    np.testing.assert_allclose(dense, expected, atol=4e-4)  # negligible ones are dropped
    single, double = (
        maximise(expected_moments(Blocks(x.astype(dtype), 256, CPU), mixture), mixture, 0.0)
        for dtype in (np.float32, np.float64)
    )
    np.testing.assert_allclose(single.means, double.means, atol=1e-6)
    np.testing.assert_allclose(single.variances, double.variances, rtol=1e-3)


@pytest.mark.parametrize("value", [0.0, 0.1, 100.0])
def test_modes_without_spread_and_without_a_floor_are_refused(value: float) -> None:
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    x[:, 1] = value  # an axis without spread
    moments = label_moments(Blocks(x, 7, CPU), torch.arange(60) % 2, 2)
    with pytest.raises(UserError, match=r"2 of 2 modes have no spread .* use --variance-floor 1e-06"):
        fit(x, maximise(moments, None, 0.0), 3, variance_floor=0.0)
    assert np.isfinite(fit(x, maximise(moments, None, 1e-6), 3).history).all()


@pytest.mark.parametrize("floor", [0.0, 1e-30, 1e-12, 1e-6, 1.0])
def test_modes_of_one_sample_are_refused_or_finite(floor: float) -> None:
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    alone = maximise(label_moments(Blocks(x, 7, CPU), torch.arange(20), 20), None, floor)
    if floor < 1e-12:
        with pytest.raises(UserError, match=r"20 of 20 modes have no spread .* use --variance-floor 1e-06"):
            fit(x, alone, 3, variance_floor=floor)
        return
    fitted = fit(x, alone, 3, variance_floor=floor)
    assert np.isfinite(fitted.history).all()
    kept = posterior(Blocks(x, 7, CPU), fitted.mixture, 2)
    assert kept.log_likelihood.isfinite().all()
    if floor < 1e-3:
        np.testing.assert_array_equal(kept.modes[:, 0], np.arange(20))


def test_posterior_is_bayes_rule() -> None:
    x, _ = mixture_data(50, modes=4, size=3, spread=0.5)
    mixture = fit(x, start_at(x, 4), 5).mixture
    joint = np.stack(
        [
            float(w) * multivariate_normal(m.numpy(), np.diag(v.numpy())).pdf(x)
            for w, m, v in zip(mixture.weights, mixture.means, mixture.variances, strict=True)
        ],
        axis=1,
    )
    kept = posterior(Blocks(x, 16, CPU), mixture, 9)
    assert kept.modes.shape == kept.probabilities.shape == (50, 4)
    np.testing.assert_allclose(kept.log_likelihood, np.log(joint.sum(1)), rtol=1e-9)
    dense = np.zeros((50, 4))
    np.add.at(dense, (np.arange(50)[:, None], kept.modes), kept.probabilities)
    np.testing.assert_allclose(dense, joint / joint.sum(1, keepdims=True), atol=4e-4)  # negligible ones are dropped
    np.testing.assert_allclose(kept.probabilities.sum(1), 1, rtol=1e-6)
    assert (np.diff(kept.probabilities, axis=1) <= 0).all()

    two = posterior(Blocks(x, 16, CPU), mixture, 2)
    best = np.sort(joint, axis=1)[:, :-3:-1]
    np.testing.assert_allclose(two.probabilities, best / best.sum(1, keepdims=True), atol=2e-4)
    hard = posterior(Blocks(x, 16, CPU), mixture, 1)
    np.testing.assert_array_equal(hard.modes[:, 0], joint.argmax(1))
    np.testing.assert_array_equal(hard.probabilities, 1)


def test_a_process_without_data_finds_nothing() -> None:
    x, _ = mixture_data(50, modes=4, size=3)
    none = posterior(Blocks(x[:0], 16, CPU), start_at(x, 4), 3)
    assert none.modes.shape == none.probabilities.shape == (0, 3)
    assert none.log_likelihood.shape == (0,)
    assert none.modes.dtype == torch.int32 and none.probabilities.dtype == torch.float32


def test_moments_of_one_mode_are_the_data_s() -> None:
    x, _ = mixture_data(100, modes=2, size=3)
    moments: SufficientStatistics = expected_moments(Blocks(x, 30, CPU), start_at(x, 1))
    assert moments.count == 100
    np.testing.assert_allclose(moments.mass, [100])
    np.testing.assert_allclose(moments.features[0], np.concatenate([(x**2).sum(0), x.sum(0)]))
