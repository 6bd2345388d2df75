"""What holds for every network over latents: kinds, heads, patches, blocks and conditions."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gmtool.mixture.gaussian_mixture import GaussianMixture
from gmtool.nn.architecture import Architecture, Conditions, TransformerArchitecture
from gmtool.nn.build import build_network, named
from gmtool.nn.dit import DiTArchitecture
from gmtool.nn.ditdh import DiTDH, DiTDHArchitecture
from gmtool.nn.network import Network
from gmtool.nn.settings import NetworkSettings

DIT = DiTArchitecture(shape=(3, 4, 2), depth=2, width=32, heads=4)
MODERN = replace(DIT, rms_norm=True, swiglu=True, rope=True, qk_norm=True)
DITDH = DiTDHArchitecture((3, 4, 2), 2, 32, 4, wide_depth=1, wide_width=64, wide_heads=2)
SHORT = replace(DITDH, wide_width=32, rms_norm=False, swiglu=False, rope=False, qk_norm=True)
KINDS = [DIT, MODERN, DITDH, SHORT, replace(DIT, patch=2), replace(DITDH, patch=2)]
NAMES = ["dit", "modern", "ditdh", "ditdh-classic", "dit/2", "ditdh/2"]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=NAMES)


def everything(kind: TransformerArchitecture) -> TransformerArchitecture:
    return replace(kind, classes=5, modes=7, components=6)


def inputs(batch: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *DIT.shape, generator=draw), torch.rand(batch, generator=draw)


def perturbed(architecture: Architecture) -> Network:
    """A network as after training: no weight is at its initial zero."""
    network = build_network(architecture, 0)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.1)
    return network


def last_layer(network: Network) -> torch.nn.Linear:
    """The layer whose numbers the head reads."""
    return network.final_layer.linear if isinstance(network, DiTDH) else network.head.linear


@every_kind
def test_a_velocity_network_begins_at_zero_and_learns_each_position_of_a_patch(kind: TransformerArchitecture) -> None:
    """At u = 0 the gradient of sum |u - target|^2 / 2 by the last bias is minus the sum of the targets it adds to."""
    network, (x, t) = build_network(kind, 0), inputs(4)
    target = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    output = network(x, t, Conditions())
    assert torch.equal(output, torch.zeros(4, 3, 4, 2))
    (slope,) = torch.autograd.grad((output - target).square().sum() / 2, last_layer(network).bias)
    side = kind.patch
    places = [(row, column, channel) for row in range(side) for column in range(side) for channel in range(3)]
    expected = torch.stack([-target[:, channel, row::side, column::side].sum() for row, column, channel in places])
    torch.testing.assert_close(slope, expected, atol=1e-5, rtol=1e-5)


@every_kind
def test_a_mixture_network_begins_with_distinct_components_of_std_one(kind: TransformerArchitecture) -> None:
    """The last layer's weights are of N(0, 0.02^2) and its tokens are normalised: outputs of std 0.02 sqrt(width)."""
    x, t = inputs(4)
    network = build_network(replace(kind, components=6), 0)
    mixture = network(x, t, Conditions())
    assert isinstance(mixture, GaussianMixture)
    torch.testing.assert_close(mixture.variance, torch.ones(4, 1, 1, 1, 1))
    std = 0.02 * last_layer(network).in_features ** 0.5
    assert mixture.means.std().item() == pytest.approx(std, rel=0.35)
    logits = mixture.log_weights - mixture.log_weights.mean(1, keepdim=True)
    assert logits.std().item() == pytest.approx(std, rel=0.7)  # of few rows
    # distinct also relative to that: they are not drawn from the tokens alone
    points = mixture.means.permute(0, 3, 4, 1, 2).flatten(0, 2)
    assert (torch.cdist(points, points) + 10 * torch.eye(6)).min() > 0.1 * std


@every_kind
@pytest.mark.parametrize("of", [lambda kind: kind, everything], ids=["velocity", "everything"])
def test_samples_of_a_batch_are_independent(kind: TransformerArchitecture, of) -> None:
    network, (x, t) = perturbed(of(kind)), inputs(5)
    classes, modes = torch.arange(5), torch.arange(2, 7)
    order = torch.tensor([3, 0, 4, 1, 2])

    def run(rows: Tensor) -> Tensor:
        output = network(x[rows], t[rows], Conditions(classes[rows], modes[rows]))
        return output.means if isinstance(output, GaussianMixture) else output

    together = run(torch.arange(5))
    close = {"atol": 1e-5 * together.detach().std().item(), "rtol": 1e-5}
    torch.testing.assert_close(run(order), together[order], **close)
    alone = torch.cat([run(torch.tensor([index])) for index in range(5)])
    torch.testing.assert_close(alone, together, **close)


@every_kind
def test_every_input_matters_and_the_null_label_is_one_of_its_own(kind: TransformerArchitecture) -> None:
    network, (x, t) = perturbed(everything(kind)), inputs(1)

    def means(x: Tensor, t: Tensor, label: int, mode: int) -> Tensor:
        return network(x, t, Conditions(torch.tensor([label]), torch.tensor([mode]))).means

    hidden = means(x, t, 0, 0)
    changed = [
        means(x, t, 5, 0),
        means(x, t, 1, 0),
        means(x, t, 0, 7),
        means(x, 0.5 * t, 0, 0),
        means(x.flip(2), t, 0, 0),
    ]
    for index, one in enumerate([hidden, *changed]):
        for other in [hidden, *changed][:index]:
            assert (one - other).abs().max() > 1e-3


@every_kind
@pytest.mark.parametrize("components", [0, 2])
def test_the_output_of_a_position_depends_on_all_of_them(kind: TransformerArchitecture, components: int) -> None:
    network, (x, t) = perturbed(replace(kind, components=components)), inputs(1)
    x.requires_grad_()
    output = network(x, t, Conditions())
    output = output.means if isinstance(output, GaussianMixture) else output
    (reached,) = torch.autograd.grad(output[..., 3, 1].sum(), x)
    assert (reached.abs() > 1e-6).all()


@pytest.mark.parametrize("kind", [DIT, DITDH], ids=["dit", "ditdh"])
@pytest.mark.parametrize(
    ("given", "missing"),
    [
        (Conditions(modes=torch.zeros(2, dtype=torch.long)), "classes"),
        (Conditions(torch.zeros(2, dtype=torch.long)), "modes"),
    ],
)
def test_a_missing_label_is_an_error(kind: TransformerArchitecture, given: Conditions, missing: str) -> None:
    with pytest.raises(ValueError, match=f"conditioned on {missing}"):
        build_network(everything(kind), 0)(*inputs(2), given)


@every_kind
@torch.no_grad()
def test_half_precision_is_that_of_the_layers_alone(kind: TransformerArchitecture) -> None:
    """Under autocast a network predicts nearly the same, in float32, and keeps its tokens in float32 between blocks."""
    network, (x, t) = perturbed(everything(kind)), inputs(4)
    conditions = Conditions(torch.arange(4), torch.arange(4))
    expected, between = network(x, t, conditions), []
    for block in network.blocks:
        block.register_forward_hook(lambda _module, _inputs, tokens: between.append(tokens.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        output = network(x, t, conditions)
    assert set(between) == {torch.float32}
    for name in ("means", "log_weights", "variance"):
        one, other = getattr(output, name), getattr(expected, name)
        assert one.dtype == torch.float32
        assert (one - other).square().mean() < 0.05**2 * other.square().mean()


@every_kind
def test_weights_depend_on_the_seed_alone(kind: TransformerArchitecture) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = build_network(everything(kind), 0).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    again, other = (build_network(everything(kind), seed).state_dict() for seed in (0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["blocks.0.attn.qkv.weight"], other["blocks.0.attn.qkv.weight"])


@every_kind
def test_the_std_does_not_train_the_embedding(kind: TransformerArchitecture) -> None:
    network = perturbed(everything(kind))
    labels = torch.zeros(2, dtype=torch.long)
    network(*inputs(2), Conditions(labels, labels)).variance.sum().backward()
    reached = {
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is not None and parameter.grad.abs().sum() > 0
    }
    assert reached
    assert all(name.startswith("head.log_std") for name in reached)


@pytest.mark.parametrize("kind", [DIT, DITDH], ids=["dit", "ditdh"])
def test_the_std_knows_time_and_condition(kind: TransformerArchitecture) -> None:
    network, x = perturbed(replace(kind, classes=5, components=6)), torch.zeros(3, *DIT.shape)
    variance = network(x, torch.tensor([0.2, 0.8, 0.2]), Conditions(torch.tensor([0, 0, 1]))).variance.flatten()
    assert len(set(variance.tolist())) == 3


def test_a_constant_label_is_a_learned_vector_that_needs_no_labels() -> None:
    network, (x, t) = perturbed(replace(DITDH, constant_label=True)), inputs(2)
    output = network(x, t, Conditions())
    (table,) = network.y_embedder.parameters()
    assert table.shape == (1, 32)
    with torch.no_grad():
        table.zero_()
    plain = build_network(DITDH, 0)
    plain.load_state_dict({name: tensor for name, tensor in network.state_dict().items() if "y_embedder" not in name})
    torch.testing.assert_close(network(x, t, Conditions()), plain(x, t, Conditions()))
    assert (output - plain(x, t, Conditions())).abs().max() > 1e-3


def size_of(architecture: Architecture) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_network(architecture, 0).parameters())


@pytest.mark.parametrize(("name", "parameters"), [("S", 33e6), ("B", 130e6), ("L", 458e6), ("XL", 675e6)])
def test_the_published_sizes_of_dit(name: str, parameters: float) -> None:
    """Table 1 of DiT at patch size 2, with ImageNet's classes and latents, its head without the predicted variances."""
    architecture = replace(named(name, (4, 32, 32)), classes=1000).configured(NetworkSettings(patch_size=2))
    assert size_of(architecture) == pytest.approx(parameters, abs=0.5e6)


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_a_patch_costs_its_numbers_in_the_first_and_last_layer(patch: int) -> None:
    architecture = DiTArchitecture((4, 8, 8), 1, 16, 2, components=3)
    extra = 4 * (patch**2 - 1) * 16 + 3 * (4 + 1) * (patch**2 - 1) * (16 + 1)
    assert size_of(replace(architecture, patch=patch)) - size_of(architecture) == extra


def test_a_grid_of_one_colour_channel() -> None:
    network = build_network(DiTArchitecture((1, 8, 8), 1, 16, 2, components=1), 0)
    mixture = network(torch.zeros(2, 1, 8, 8), torch.ones(2), Conditions())
    assert mixture.means.shape == (2, 1, 1, 8, 8)
    torch.testing.assert_close(mixture.log_weights, torch.zeros(2, 1, 1, 8, 8))
