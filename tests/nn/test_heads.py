import math

import torch

from gmtool.flow.objective import flow_matching_loss, transition_loss
from gmtool.flow.path import interpolate, velocity
from gmtool.nn.architecture import Conditions
from gmtool.nn.build import build_network
from gmtool.nn.dit import DiTArchitecture
from gmtool.nn.heads import make_head, output_layer

SHAPE = (3, 2, 2)


def head(components=1, constant_std=None):
    torch.manual_seed(0)
    return make_head(output_layer(16, 3, components), SHAPE, components, 16, constant_std=constant_std)


def test_a_constant_std_is_that_of_every_sample_and_has_no_parameters():
    fixed, learned = head(4, 0.3), head(4)
    mixture = fixed(torch.randn(5, 4, 16), torch.randn(5, 16, dtype=torch.bfloat16))
    torch.testing.assert_close(mixture.variance, torch.full((5, 1, 1, 1, 1), 0.09))
    assert mixture.variance.dtype == torch.float32
    assert set(learned.state_dict()) - set(fixed.state_dict()) == {
        f"log_std.{layer}.{kind}" for layer in (1, 3) for kind in ("weight", "bias")
    }


def test_the_learned_std_is_that_of_float32_under_autocast():
    """Its logarithm enters an exponential, where the rounding of a large one would become one of sigma^2 itself."""
    module, tokens, embedding = head(4), torch.randn(5, 4, 16), torch.randn(5, 16)
    torch.nn.init.normal_(module.log_std[3].weight, std=0.1)
    torch.nn.init.constant_(module.log_std[3].bias, -3)
    with torch.autocast("cpu", torch.bfloat16):
        lower = module(tokens, embedding).variance
    torch.testing.assert_close(lower, module(tokens, embedding).variance)


def test_one_component_of_constant_std_learns_what_flow_matching_learns():
    """The head's gradients of the mixture loss at s = 0 are those of the squared error over 2 std^2."""
    std, module = 0.7, head(1, 0.7)
    tokens, embedding = torch.randn(2, 4, 16), torch.randn(2, 16)
    x, z, t = torch.randn(2, *SHAPE), torch.randn(2, *SHAPE), torch.tensor([0.3, 0.8])
    x_t = interpolate(x, z, t)
    predicted = module(tokens, embedding)
    kl = transition_loss(predicted, x_t, t, x, torch.zeros(2))
    square = flow_matching_loss(predicted.means.squeeze(1), velocity(x, z)) / (2 * std**2)
    torch.testing.assert_close(kl, square + (t * std).log())
    parameters = list(module.parameters())
    gradients, expected = (torch.autograd.grad(loss.sum(), parameters, retain_graph=True) for loss in (kl, square))
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-5, rtol=1e-4)


def test_the_network_passes_the_constant_on():
    network = build_network(DiTArchitecture(SHAPE, 1, 16, 2, components=2, constant_std=math.e), seed=0)
    mixture = network(torch.randn(2, *SHAPE), torch.rand(2), Conditions())
    torch.testing.assert_close(mixture.variance.flatten(), torch.full((2,), math.e**2))
