import dataclasses
import itertools

import pytest
import torch
from toys import exact_posterior, random_mixture, solve

from gmtool.flow.coordinates import Plain, Whitened
from gmtool.flow.coupling import BatchOT, Independent, ModeCoupling
from gmtool.flow.method import Method, fm, gmflow, method_of, mm_fm, union
from gmtool.flow.model import Prediction
from gmtool.flow.objective import Draws, FlowMatching, TransitionNLL
from gmtool.flow.path import interpolate, velocity
from gmtool.flow.solvers.gm_ode import GmOde
from gmtool.flow.solvers.gm_sde import GmSde
from gmtool.flow.source import GaussianSource, MixtureSource, ModeMixture, ModeStatistics
from gmtool.flow.spectral import Spectrum
from gmtool.flow.times import TrainingTimes
from gmtool.mixture.gaussian_mixture import GaussianMixture
from gmtool.streams import SharedNoise, generator

SHAPE = (3, 2, 2)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def some_modes(count=4, shape=SHAPE):
    return ModeStatistics(normal(count, *shape, seed=10), normal(count, *shape, seed=11).exp())


def network(x_t, t):
    """A mixture over the velocity that depends on the point and the time."""
    base = random_mixture(12, len(x_t), components=5, channels=x_t.shape[1], spatial=x_t.shape[2:])
    means = base.means + torch.sin(x_t).unsqueeze(1) * (1 + t).reshape(-1, *[1] * x_t.dim())
    return GaussianMixture(means, base.log_weights, base.variance)


@pytest.mark.parametrize("spectrum", [None, Spectrum(lambda gaussian: 0.1 * gaussian.mean, axes=2)])
@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_the_loss_of_the_union_is_that_of_gmflow_in_whitened_coordinates(ratio, spectrum):
    x, modes = normal(4, *SHAPE, seed=1), some_modes()
    method, other = union(ratio, spectrum), gmflow(ratio, spectrum)
    draws = method.draw(4, SHAPE, generator(0))
    losses = method.loss(network, method.pair(x, draws.noise, modes), draws)
    expected = other.loss(network, other.pair((x - modes.mean) / modes.std, draws.noise), draws)
    torch.testing.assert_close(losses, expected)
    assert losses.shape == (4,) and losses.dtype == torch.float32


@pytest.mark.parametrize("coordinates", [Plain(), Whitened()], ids=["plain", "whitened"])
def test_the_scale_of_coordinates_is_the_determinant_of_their_map(coordinates):
    modes, y = some_modes(), normal(4, *SHAPE, seed=1)
    scale = coordinates.log_scale(coordinates.leave(y, modes), modes)
    for index in range(4):
        own = ModeStatistics(modes.mean[index : index + 1], modes.std[index : index + 1])
        jacobian = torch.autograd.functional.jacobian(
            lambda y, own=own: coordinates.leave(y, own), y[index : index + 1]
        )
        expected = torch.linalg.slogdet(jacobian.reshape(12, 12)).logabsdet / 12
        torch.testing.assert_close(scale[index], expected)


def test_mm_fm_pairs_each_sample_with_noise_from_its_own_mode():
    x, noise, modes, t = normal(4, *SHAPE, seed=1), normal(4, *SHAPE, seed=2), some_modes(), torch.linspace(0, 1, 4)
    pairs = mm_fm().pair(x, noise, modes)
    z = modes.mean + modes.std * noise
    torch.testing.assert_close(pairs.z, z)
    assert torch.equal(pairs.x, x)
    losses = mm_fm().loss(lambda x_t, t: torch.cos(x_t), pairs, Draws(t, noise))
    x_t = (1 - t).reshape(4, 1, 1, 1) * x + t.reshape(4, 1, 1, 1) * z
    torch.testing.assert_close(losses, (torch.cos(x_t) - (z - x)).square().mean((1, 2, 3)).float())


def test_batch_transport_pairs_what_the_source_drew():
    x, noise, modes = normal(4, *SHAPE, seed=1), normal(4, *SHAPE, seed=2), some_modes()
    method = mm_fm(coupling=BatchOT())
    pairs, z = method.pair(x, noise, modes), method.start(noise, modes)
    orders = itertools.permutations(range(4))
    best = min(orders, key=lambda order: (x - z[list(order)]).square().sum().item())
    assert torch.equal(pairs.z, z[list(best)]) and torch.equal(pairs.x, x)


@pytest.mark.parametrize("method", [fm(), gmflow(), mm_fm(), union()], ids=["fm", "gmflow", "mm-fm", "union"])
def test_samples_start_where_training_pairs_end_and_finish_where_they_begin(method):
    """The path of a pair, at t = 1 and at t = 0, is `start` of the noise and, by `finish`, the data."""
    x, noise, modes = normal(4, *SHAPE, seed=1), normal(4, *SHAPE, seed=2), some_modes()
    pairs = method.pair(x, noise, modes)
    ends = [interpolate(pairs.x, pairs.z, torch.full((4,), time, dtype=torch.float64)) for time in (0.0, 1.0)]
    torch.testing.assert_close(method.finish(ends[0], modes), x)
    torch.testing.assert_close(ends[1], method.start(noise, modes))


@pytest.mark.parametrize("method", [fm(), gmflow(), mm_fm(), union()], ids=["fm", "gmflow", "mm-fm", "union"])
def test_the_field_is_the_derivative_of_the_path_in_latents(method):
    """A network that knows the pair moves y along its straight path: x moves by finite differences of `finish`."""
    x, noise, modes = normal(4, *SHAPE, seed=1), normal(4, *SHAPE, seed=2), some_modes()
    pairs, t, step = method.pair(x, noise, modes), torch.full((4,), 0.3, dtype=torch.float64), 1e-4
    u = velocity(pairs.x, pairs.z)

    def predict(y_t, t):
        torch.testing.assert_close(y_t, interpolate(pairs.x, pairs.z, t))
        return GaussianMixture(u.unsqueeze(1), u.new_zeros(4, 1, 1, 2, 2), u.new_ones(4, 1, 1, 1, 1))

    def at(time):
        return method.finish(interpolate(pairs.x, pairs.z, time), modes)

    moved = method.field(predict, modes)(at(t), t)
    torch.testing.assert_close(moved, (at(t + step) - at(t - step)) / (2 * step))


def test_the_field_of_the_union_is_scaled_by_the_modes():
    modes, x_t, t = some_modes(), normal(4, *SHAPE, seed=3), torch.linspace(0.1, 0.9, 4, dtype=torch.float64)
    u = union().field(network, modes)(x_t, t)
    torch.testing.assert_close(u, modes.std * network((x_t - modes.mean) / modes.std, t).mean())


def test_models_are_of_the_kind_of_the_objective():
    x_t, t = normal(2, *SHAPE, seed=3), torch.tensor([0.4, 0.9], dtype=torch.float64)
    predicted = network(x_t, t)
    prediction = gmflow().model(network)(x_t, t)
    assert isinstance(prediction, Prediction)
    torch.testing.assert_close(prediction.mixture.mean(), x_t - t.reshape(2, 1, 1, 1) * predicted.mean())
    torch.testing.assert_close(mm_fm().model(network)(x_t, t), predicted.mean())
    with pytest.raises(TypeError, match="mixture"):
        gmflow().model(lambda x, t: x)(x_t, t)


def test_draws_are_those_that_the_objective_takes():
    spectrum = Spectrum(lambda gaussian: gaussian.mean, axes=1)
    for method, further in ((fm(), {}), (gmflow(), {"onward"}), (gmflow(spectrum=spectrum), {"onward", "uniform"})):
        draws = method.draw(5, SHAPE, generator(1))
        assert draws.t.shape == (5,) and draws.noise.shape == (5, *SHAPE)
        assert {name for name, value in vars(draws).items() if value is not None} == {"t", "noise", *further}
        repeated = method.draw(5, SHAPE, generator(1))
        for name, value in vars(draws).items():
            assert value is None or torch.equal(value, getattr(repeated, name))
    assert draws.uniform.shape == (5, 1, 2, 2)
    late = dataclasses.replace(fm(), times=TrainingTimes(shift=50.0)).draw(500, (1,), generator(2))
    assert late.t.median() > 0.95


def test_draws_that_a_loss_lacks_are_named():
    x = normal(2, *SHAPE, seed=1)
    draws = gmflow().draw(2, SHAPE, generator(0))
    spectral = gmflow(spectrum=Spectrum(lambda gaussian: gaussian.mean, axes=1))
    with pytest.raises(ValueError, match="uniform numbers"):
        spectral.loss(network, spectral.pair(x, draws.noise), draws)


@pytest.mark.parametrize("method", [mm_fm(), union()], ids=["mm-fm", "union"])
def test_methods_that_use_modes_ask_for_them(method):
    x, noise = normal(2, *SHAPE, seed=1), normal(2, *SHAPE, seed=2)
    assert method.uses_modes and not fm().uses_modes and not gmflow().uses_modes
    with pytest.raises(ValueError, match="modes"):
        method.pair(x, noise)
    with pytest.raises(ValueError, match="modes"):
        method.finish(method.start(noise))


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ((MixtureSource(), ModeCoupling(), Plain(), TransitionNLL()), "whiten"),
        ((GaussianSource(), BatchOT(), Plain(), TransitionNLL()), "permuted"),
        ((GaussianSource(), Independent(), Whitened(), TransitionNLL()), "mode coupling"),
        ((GaussianSource(), BatchOT(), Whitened(), FlowMatching()), "mode coupling"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(parts, reason):
    with pytest.raises(ValueError, match=reason):
        Method(*parts)


def test_names_make_the_four_methods_and_refuse_what_does_not_go_together():
    assert method_of("fm", "gaussian", "independent") == fm()
    assert method_of("gm-kl", "gaussian", "independent", ratio=0.9) == gmflow(0.9)
    assert method_of("fm", "gmm", "mode") == mm_fm()
    assert method_of("gm-kl", "gmm", "mode", ratio=0.9) == union(0.9)
    assert method_of("fm", "gmm", "batch-ot") == mm_fm(coupling=BatchOT())
    for names in (("gm-kl", "gmm", "independent"), ("gm-kl", "gmm", "batch-ot"), ("gm-kl", "gaussian", "batch-ot")):
        with pytest.raises(ValueError):
            method_of(*names)


FITTED = ModeMixture(
    weights=torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64),
    means=torch.tensor([[-4.0, 1.0], [0.5, -3.0], [5.0, 6.0]], dtype=torch.float64),
    stds=torch.tensor([[0.3, 1.0], [2.0, 0.5], [1.0, 1.5]], dtype=torch.float64),
)
"""Three modes in the plane, as if fitted."""

INNER = {
    "centers": torch.tensor(
        [[[-1.0, 0.4], [0.8, -0.6]], [[0.5, 1.0], [-0.5, -0.8]], [[0.0, -1.2], [0.2, 0.9]]], dtype=torch.float64
    ),
    "std": torch.tensor([0.3, 0.5, 0.4], dtype=torch.float64),
    "weights": torch.tensor([[0.7, 0.3], [0.4, 0.6], [0.15, 0.85]], dtype=torch.float64),
}
"""The data in each mode's whitened coordinates: two Gaussians, so that a mode is not what was fitted to it."""


def exact_network(modes):
    """The exact mixture over the velocity in the union's coordinates, given each sample's mode."""
    posterior = exact_posterior(*(value[modes] for value in INNER.values()))

    def predict(y_t, t):
        inverse = 1 / t.reshape(-1, 1)
        return posterior(y_t, t).base.affine(-inverse, inverse * y_t)

    return predict


@pytest.mark.parametrize(
    ("solver", "evaluations"),
    [(GmOde(1, 400), 1), (GmOde(2, 100), 4), (GmSde(1), 4)],
    ids=["gm-ode-1", "gm-ode-2", "gm-sde-1"],
)
def test_the_union_samples_the_data_where_its_network_is_exact(solver, evaluations):
    """Weights, means and variances of every part of every mode, within 5 standard errors of a sample of that size.

    The ODE's sub-steps add an error of their own, below 1 % of a standard deviation.
    """
    count, method = 20_000, union()
    modes = FITTED.draw(count, generator(5))
    given = FITTED.at(modes)
    noise = SharedNoise(count, generator(6))
    start = method.start(noise.normal((2,)).double(), given)
    samples = method.finish(solve(solver, method.model(exact_network(modes)), start, evaluations, noise=noise), given)
    shares = modes.bincount(minlength=3) / count
    torch.testing.assert_close(shares.double(), FITTED.weights, atol=5 * 0.5 / count**0.5, rtol=0)
    for k, (mean, std) in enumerate(zip(FITTED.means, FITTED.stds, strict=True)):
        x, weights, centers = samples[modes == k], INNER["weights"][k], INNER["centers"][k]
        middle = weights @ centers
        spread = (INNER["std"][k] ** 2 + weights @ (centers - middle).square()).sqrt()
        error = 5 / len(x) ** 0.5 + 0.01
        torch.testing.assert_close((x.mean(0) - mean - std * middle) / (std * spread), 0 * mean, atol=error, rtol=0)
        torch.testing.assert_close(x.std(0) / (std * spread), 1 + 0 * mean, atol=error, rtol=0)
        # the parts: how likely each point is of the second one, by Bayes' rule, has the mean of its weight
        log_joint = (
            weights.log() - (x.unsqueeze(1) - mean - std * centers).div(std * INNER["std"][k]).square().sum(2) / 2
        )
        belongs = torch.softmax(log_joint, 1)
        torch.testing.assert_close(belongs.mean(0), weights, atol=0.5 * error, rtol=0)
        for part in range(2):
            share = belongs[:, part : part + 1]
            center = (share * x).sum(0) / share.sum()
            width = ((share * (x - center).square()).sum(0) / share.sum()).sqrt()
            error = 5 / (weights[part] * len(x)).sqrt().item() + 0.01
            own = std * INNER["std"][k]
            torch.testing.assert_close((center - mean - std * centers[part]) / own, 0 * mean, atol=error, rtol=0)
            torch.testing.assert_close(width / own, 1 + 0 * mean, atol=error, rtol=0)
