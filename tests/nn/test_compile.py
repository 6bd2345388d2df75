"""The networks as a compiler and a frugal trainer see them: one graph; the same gradients from fewer activations."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from gmtool.errors import MachineError
from gmtool.mixture.gaussian_mixture import GaussianMixture
from gmtool.nn.architecture import Conditions, TransformerArchitecture
from gmtool.nn.build import build_network
from gmtool.nn.compile import compile_network
from gmtool.nn.dit import DiTArchitecture
from gmtool.nn.ditdh import DiTDHArchitecture
from gmtool.nn.network import Network

DIT = DiTArchitecture((3, 4, 4), depth=1, width=32, heads=4, classes=3, modes=2)
DITDH = DiTDHArchitecture(
    (3, 4, 4), 1, 32, 4, wide_depth=1, wide_width=64, wide_heads=2, qk_norm=True, classes=3, modes=2
)
kinds = pytest.mark.parametrize("kind", [replace(DIT, patch=2), DITDH], ids=["dit", "ditdh"])
heads = pytest.mark.parametrize("components", [0, 3], ids=["velocity", "mixture"])


def trained(architecture: TransformerArchitecture, checkpointed: bool = False) -> Network:
    """A network with no weight at zero."""
    network = build_network(architecture, 0, checkpoint_activations=checkpointed)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
    return network


def inputs() -> tuple[Tensor, Tensor, Conditions]:
    draw = torch.Generator().manual_seed(0)
    labels = Conditions(torch.tensor([0, 3]), torch.tensor([2, 1]))
    return torch.randn(2, 3, 4, 4, generator=draw), torch.rand(2, generator=draw), labels


def numbers(predicted: Tensor | GaussianMixture) -> Tensor:
    """All outputs of a network, as one vector."""
    if isinstance(predicted, Tensor):
        return predicted.flatten()
    return torch.cat([part.flatten() for part in (predicted.means, predicted.log_weights, predicted.variance)])


def gradients(network: Network) -> list[Tensor]:
    loss = numbers(network(*inputs())).square().sum()
    return list(torch.autograd.grad(loss, list(network.parameters())))


@dataclass(frozen=True)
class Recorder:
    """A backend of the compiler that keeps the graphs and runs them as they are."""

    graphs: list[torch.fx.GraphModule] = field(default_factory=list)

    def __call__(self, graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable:
        self.graphs.append(graph)
        return graph.forward


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "components"), [(replace(DIT, patch=2), 3), (DITDH, 0)], ids=["dit", "ditdh"])
def test_a_network_is_one_graph(kind: TransformerArchitecture, components: int) -> None:
    torch.compiler.reset()
    network, recorder = trained(replace(kind, components=components)), Recorder()
    expected = numbers(network(*inputs()))
    network.compile(fullgraph=True, backend=recorder)  # refuses a break in the graph
    torch.testing.assert_close(numbers(network(*inputs())), expected, atol=1e-5, rtol=1e-5)
    assert len(recorder.graphs) == 1


@pytest.mark.slow
@pytest.mark.parametrize("checkpointed", [False, True], ids=["", "checkpointed"])
@pytest.mark.parametrize(("kind", "graphs"), [(DIT, 1), (DITDH, 2)], ids=["dit", "ditdh"])
def test_blocks_of_a_width_are_compiled_once(kind: TransformerArchitecture, graphs: int, checkpointed: bool) -> None:
    """However many there are, and gradients stay as they were."""
    torch.compiler.reset()
    expected = gradients(trained(replace(kind, depth=4)))
    network, recorder = trained(replace(kind, depth=4), checkpointed), Recorder()
    names = list(network.state_dict())
    compile_network(network, recorder)
    for gradient, other in zip(gradients(network), expected, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-4, rtol=1e-4)
    assert len(recorder.graphs) == graphs
    assert list(network.state_dict()) == names


@kinds
@heads
def test_checkpointed_activations_give_the_same_gradients(kind: TransformerArchitecture, components: int) -> None:
    kind = replace(kind, components=components)
    plain, frugal = trained(kind), trained(kind, checkpointed=True)
    assert frugal.checkpoint_activations and not plain.checkpoint_activations
    assert all(torch.equal(*pair) for pair in zip(gradients(frugal), gradients(plain), strict=True))


def kept_for_the_gradient(network: Network) -> int:
    """Numbers that a call keeps for the backward pass, weights aside."""
    weights = {parameter.data_ptr() for parameter in network.parameters()}
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(*inputs())
    return sum(kept.values())


@kinds
def test_checkpointing_keeps_a_fraction_of_the_activations(kind: TransformerArchitecture) -> None:
    plain, frugal = (trained(replace(kind, depth=8), checkpointed) for checkpointed in (False, True))
    assert kept_for_the_gradient(frugal) < 0.4 * kept_for_the_gradient(plain)


def test_a_machine_without_a_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MachineError, match=r"--compile needs a C\+\+ compiler: install g\+\+"):
        compile_network(build_network(DIT, 0))
