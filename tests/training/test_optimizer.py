import sys
from dataclasses import replace

import pytest
import torch

from gmtool.errors import UserError
from gmtool.nn.build import build_network
from gmtool.nn.dit import DiTArchitecture
from gmtool.nn.network import Network
from gmtool.training.optimizer import Optimizer, make_optimizer
from gmtool.training.settings import OptimizerSettings

ARCHITECTURE = DiTArchitecture((2, 2, 2), depth=2, width=32, heads=2)
ADAMW = OptimizerSettings(weight_decay=0.1, betas=(0.8, 0.9))
MUON = replace(ADAMW, optimizer="muon")
EIGHT_BIT = replace(ADAMW, optimizer="adamw8bit")
ALL = pytest.mark.parametrize("config", [ADAMW, MUON, EIGHT_BIT], ids=["adamw", "muon", "adamw8bit"])
GO, SKIP = torch.tensor(False), torch.tensor(True)


def with_gradient(network: Network, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=draw)


def make(config: OptimizerSettings) -> tuple[Network, Optimizer]:
    network = build_network(ARCHITECTURE, 0)
    return network, make_optimizer(network, config, 0.01)


def weights(network: Network) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def test_adamw_is_torchs() -> None:
    network, optimizer = make(ADAMW)
    twin, _ = make(ADAMW)
    groups = [
        {"params": [parameter for parameter in twin.parameters() if parameter.dim() >= 2], "weight_decay": 0.1},
        {"params": [parameter for parameter in twin.parameters() if parameter.dim() < 2], "weight_decay": 0.0},
    ]
    theirs = torch.optim.AdamW(groups, lr=0.02, betas=(0.8, 0.9), fused=False, foreach=False)
    for seed in range(5):
        with_gradient(network, seed)
        optimizer.step(0.02, GO)
        with_gradient(twin, seed)
        theirs.step()
    for one, two in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


def test_moments_in_8_bits_move_the_weights_as_those_in_32_nearly() -> None:
    network, optimizer = make(EIGHT_BIT)
    twin, its_optimizer = make(ADAMW)
    start = weights(network)
    for seed in range(5):
        for subject, its in ((network, optimizer), (twin, its_optimizer)):
            with_gradient(subject, seed)
            its.step(0.01, GO)
    one, two = (
        torch.cat([(tensor - start[name]).flatten() for name, tensor in weights(subject).items()])
        for subject in (network, twin)
    )
    assert 0 < (one - two).norm() / two.norm() < 0.05
    kinds = {key.rpartition(".")[2]: tensor.dtype for key, tensor in optimizer.state().items()}
    assert kinds["exp_avg_codes"] == torch.uint8 and kinds["exp_avg_sq_scale"] == torch.float32
    assert optimizer.state()["blocks.0.mlp.0.weight.exp_avg_codes"].shape == (128, 32)


def test_without_torchao_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    for name in [module for module in sys.modules if module.partition(".")[0] == "torchao"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match=r"--optimizer adamw8bit needs torchao: run pip install.*, or use adamw"):
        EIGHT_BIT.check_installed()
    ADAMW.check_installed()


def test_muon_takes_the_matrices_of_the_blocks() -> None:
    network, optimizer = make(MUON)
    adamw, muon = optimizer.parts
    taken = {optimizer.names[parameter] for parameter in muon.param_groups[0]["params"]}
    assert "blocks.0.attn.qkv.weight" in taken
    assert taken == {
        name for name, parameter in network.named_parameters() if "blocks." in name and parameter.dim() == 2
    }
    rest = {optimizer.names[parameter] for group in adamw.param_groups for parameter in group["params"]}
    assert taken | rest == {name for name, _ in network.named_parameters()}
    assert not taken & rest


def test_a_muon_update_is_orthogonal_at_adamws_scale() -> None:
    """All singular values of the first update lie near 0.2 sqrt(max(rows, columns)) times the rate."""
    network, optimizer = make(replace(MUON, weight_decay=0.0))
    before = weights(network)
    with_gradient(network, 0)
    optimizer.step(0.01, GO)
    name = "blocks.1.mlp.0.weight"
    update = (network.state_dict()[name] - before[name]) / 0.01
    values = torch.linalg.svdvals(update) / (0.2 * max(update.shape) ** 0.5)
    assert update.shape == (128, 32)
    assert values.max() < 1.3
    assert values.median() > 0.6


@ALL
def test_a_step_that_is_called_off_leaves_no_trace(config: OptimizerSettings) -> None:
    """Neither at first nor later, whatever the gradient holds."""
    network, optimizer = make(config)
    twin, its_optimizer = make(config)
    for seed, skip in enumerate([SKIP, GO, SKIP, SKIP, GO]):
        with_gradient(network, seed)
        if skip:
            for index, parameter in enumerate(network.parameters()):
                assert parameter.grad is not None
                parameter.grad.mul_((torch.nan, torch.inf, 1.0)[index % 3])
        before = weights(network)
        optimizer.step(0.01, skip)
        assert all(torch.equal(tensor, before[name]) for name, tensor in weights(network).items()) == bool(skip)
        if not skip:
            with_gradient(twin, seed)
            its_optimizer.step(0.01, GO)
    assert all(torch.equal(tensor, weights(twin)[name]) for name, tensor in weights(network).items())
    here, there = optimizer.state(), its_optimizer.state()
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in here)


@ALL
def test_a_state_continues_in_another_optimizer(config: OptimizerSettings) -> None:
    network, optimizer = make(config)
    for seed in range(3):
        with_gradient(network, seed)
        optimizer.step(0.01, GO)
    twin, its_optimizer = make(config)
    twin.load_state_dict(network.state_dict())
    its_optimizer.load({name: tensor.clone() for name, tensor in optimizer.state().items()})
    for subject, its in ((network, optimizer), (twin, its_optimizer)):
        with_gradient(subject, 9)
        its.step(0.01, GO)
    assert all(torch.equal(tensor, weights(twin)[name]) for name, tensor in weights(network).items())
    with pytest.raises(KeyError, match="another"):
        its_optimizer.load({"another.exp_avg": torch.zeros(1)})


def test_a_torch_without_muon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(UserError, match=r"--optimizer muon needs torch 2.9.*upgrade, or use adamw"):
        make(MUON)


def test_betas_out_of_range() -> None:
    with pytest.raises(UserError, match=r"--betas must be below 1, not 1.5"):
        OptimizerSettings(betas=(0.9, 1.5))
