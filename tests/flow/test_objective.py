import golden
import pytest
import torch
from toys import exact_posterior, random_mixture, random_point

from gmtool.flow.objective import flow_matching_loss, mixture_nll, squared_distance, transition_loss
from gmtool.flow.path import data_mixture, forward_transition, interpolate, transition_mixture
from gmtool.mixture.gaussian_mixture import GaussianMixture

G = golden.arrays("gmflow_math")


def test_nll_matches_the_reference():
    transition = transition_mixture(golden.predicted(G), G["x_t"], G["t"], G["s"])
    torch.testing.assert_close(mixture_nll(transition, G["x_s"]), G["trans_nll"], **golden.TOLERANCE)


def test_nll_is_the_log_density_without_its_constant():
    mixture = random_mixture(0)
    x = random_point(1, mixture)
    constant = 1.5 * torch.log(torch.tensor(2 * torch.pi, dtype=torch.float64))
    torch.testing.assert_close(mixture_nll(mixture, x), -mixture.log_density(x) - constant)


def test_one_component_of_fixed_std_is_flow_matching():
    """Value up to the constant, and gradient: with s = 0 the loss is |u_theta - u|^2 / (2 std^2) + log(t std)."""
    std, t = 0.7, torch.tensor([0.3, 0.8])
    x, z = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    predicted = torch.randn(2, 3, 4, 4, requires_grad=True)
    mixture = GaussianMixture(predicted.unsqueeze(1), torch.zeros(2, 1, 1, 4, 4), torch.full((2, 1, 1, 1, 1), std**2))
    x_t = interpolate(x, z, t)
    kl = transition_loss(mixture, x_t, t, x, torch.zeros(2))
    square = flow_matching_loss(predicted, z - x) / (2 * std**2)
    torch.testing.assert_close(kl, square + (t * std).log())
    gradients = [torch.autograd.grad(loss.sum(), predicted, retain_graph=True)[0] for loss in (kl, square)]
    torch.testing.assert_close(*gradients)


def test_the_exact_posterior_minimises_the_loss():
    """On a known data mixture the expected loss of the true posterior is below that of any perturbed one."""
    count = 20_000
    draw = torch.Generator().manual_seed(0)
    centers, weights, std = torch.tensor([[-1.0], [1.5]]), torch.tensor([0.3, 0.7]), 0.2
    x = centers[torch.multinomial(weights, count, True, generator=draw)] + std * torch.randn(count, 1, generator=draw)
    t = torch.full((count,), 0.6)
    s = 0.5 * t
    x_s = interpolate(x, torch.randn(count, 1, generator=draw), s)
    x_t = forward_transition(x_s, s, t, torch.randn(count, 1, generator=draw))
    exact = exact_posterior(centers, std, weights)(x_t, t).mixture

    def loss(means, log_weights, variance):
        mixture = GaussianMixture(means, torch.log_softmax(log_weights, 1), variance)
        return transition_loss(mixture.affine(-1 / t.unsqueeze(1), x_t / t.unsqueeze(1)), x_t, t, x_s, s).mean()

    best = loss(exact.means, exact.log_weights, exact.variance)
    tilt = torch.tensor([[[0.5], [-0.5]]])
    assert loss(exact.means + 0.2, exact.log_weights, exact.variance) > best
    assert loss(exact.means - 0.2, exact.log_weights, exact.variance) > best
    assert loss(exact.means, exact.log_weights + tilt, exact.variance) > best
    assert loss(exact.means, exact.log_weights, exact.variance * 2) > best
    assert loss(exact.means, exact.log_weights, exact.variance / 2) > best


@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_the_minimiser_recovers_a_known_mixture(ratio):
    """From pure noise, t = 1, the posterior is the data's own mixture: gradients of the loss lead there."""
    count, draw = 20_000, torch.Generator().manual_seed(0)
    centers, weights, std = torch.tensor([[-1.0, 0.3], [1.2, -0.5]]), torch.tensor([0.3, 0.7]), 0.4
    chosen = torch.multinomial(weights, count, True, generator=draw)
    x = centers[chosen] + std * torch.randn(count, 2, generator=draw)
    z = torch.randn(count, 2, generator=draw)
    t = torch.ones(count)
    s = t * (1 - ratio)
    x_s = interpolate(x, z, s)
    x_t = forward_transition(x_s, s, t, torch.randn(count, 2, generator=draw))
    means = torch.tensor([[-0.2, 0.0], [0.2, 0.0]]).requires_grad_()
    logits, log_std = torch.zeros(2, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([means, logits, log_std], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        log_weights = torch.log_softmax(logits, 0).reshape(1, 2, 1).expand(count, -1, -1)
        variance = (2 * log_std).exp().reshape(1, 1, 1).expand(count, -1, -1)
        mixture = GaussianMixture(means.expand(count, -1, -1), log_weights, variance)
        loss = transition_loss(mixture.affine(-1.0, x_t), x_t, t, x_s, s).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    # noise at s = 1/2 blurs the data, which costs accuracy at equal counts
    tolerance = 0.02 if ratio == 1 else 0.05
    torch.testing.assert_close(means.detach(), centers, atol=tolerance, rtol=0)
    torch.testing.assert_close(torch.softmax(logits.detach(), 0), weights, atol=tolerance, rtol=0)
    torch.testing.assert_close(log_std.detach().exp(), torch.tensor([std]), atol=tolerance, rtol=0)


def test_gradients_match_finite_differences():
    means = torch.randn(1, 3, 2, 1, 1, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(1, 3, 1, 1, 1, dtype=torch.float64, requires_grad=True)
    log_std = torch.zeros(1, 1, 1, 1, 1, dtype=torch.float64, requires_grad=True)
    x = torch.randn(1, 2, 1, 1, dtype=torch.float64)

    def loss(means, logits, log_std):
        return mixture_nll(GaussianMixture(means, torch.log_softmax(logits, 1), (2 * log_std).exp()), x)

    assert torch.autograd.gradcheck(loss, (means, logits, log_std))


def test_losses_are_float32_under_autocast_and_one_a_sample():
    mixture = random_mixture(0, dtype=torch.bfloat16)
    x = random_point(1, mixture)
    t = torch.tensor([0.5, 0.9])
    with torch.autocast("cpu", torch.bfloat16):
        loss = transition_loss(mixture, x, t, x, 0.5 * t)
    assert loss.dtype == torch.float32 and loss.shape == (2,)
    assert flow_matching_loss(x, 2 * x).dtype == torch.float32


def test_losses_stay_finite_at_the_ends_of_time():
    mixture = random_mixture(0, dtype=torch.float32)
    x = random_point(1, mixture)
    for time in (1e-4, 1 - 1e-4):
        t = torch.full((2,), time)
        assert torch.isfinite(transition_loss(mixture, x, t, x, 0.5 * t)).all()


def test_transition_loss_is_the_nll_of_the_transition_mixture():
    """It forms no means of the data nor of the transition; in value and in all gradients it is the NLL under them."""
    mixture = random_mixture(3, dtype=torch.float32)
    parameters = [part.clone().requires_grad_() for part in (mixture.means, mixture.log_weights, mixture.variance)]
    x_t, x_s = random_point(4, mixture), random_point(5, mixture)
    t, s = torch.tensor([0.9, 0.4]), torch.tensor([0.3, 0.2])
    nll = transition_loss(GaussianMixture(*parameters), x_t, t, x_s, s)
    pushed = transition_mixture(data_mixture(GaussianMixture(*parameters), x_t, t), x_t, t, s)
    expected = -pushed.log_density(x_s).flatten(1).mean(1) / 3 - 0.5 * torch.log(torch.tensor(2 * torch.pi))
    torch.testing.assert_close(nll, expected)
    gradients = [torch.autograd.grad(loss.sum(), parameters, retain_graph=True) for loss in (nll, expected)]
    for gradient, other in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, other)


def test_squared_distance_is_differentiable_in_the_point_and_the_means():
    x, means = torch.randn(2, 3, 1, 4, dtype=torch.float64), torch.randn(2, 3, 5, 4, dtype=torch.float64)
    scale = torch.tensor([0.7, -1.3], dtype=torch.float64).reshape(2, 1, 1, 1)
    expected = (x - scale * means).square().sum(-1, keepdim=True)
    torch.testing.assert_close(squared_distance(x, means, scale), expected)
    torch.autograd.gradcheck(squared_distance, (x.requires_grad_(), means.requires_grad_(), scale))


def test_components_without_a_part_get_no_subnormal_gradients():
    """exp(-d^2 / 2) runs through all sizes of numbers: what float32 cannot hold in full is 0."""
    means = torch.linspace(0, 15, 200).reshape(1, 200, 1, 1).requires_grad_()
    mixture = GaussianMixture(means, torch.zeros(1, 200, 1, 1).log_softmax(1), torch.ones(1, 1, 1, 1))
    (gradient,) = torch.autograd.grad(mixture_nll(mixture, torch.zeros(1, 1, 1)).sum(), means)
    sizes = gradient[gradient != 0].abs()
    assert sizes.min() > torch.finfo(torch.float32).tiny
    assert (sizes < 1e-20).any() and (gradient[:, -1] == 0).all()
