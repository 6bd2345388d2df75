import json

import golden
import pytest
import torch
from safetensors.torch import load_file

from gmtool.foreign.gmdit import gmdit_architecture, gmdit_weights
from gmtool.nn.architecture import Conditions
from gmtool.nn.dit import DiT

every_version = pytest.mark.parametrize("name", ["gmdit", "gmdit_p1", "gmdit_v2"])


def published(name: str) -> DiT:
    """A network with the weights of the reference."""
    architecture = gmdit_architecture(json.loads((golden.DATA / f"{name}.json").read_text()))
    network = DiT(architecture)
    network.load_state_dict(gmdit_weights(load_file(golden.DATA / f"{name}.safetensors"), architecture))
    return network


@every_version
@torch.no_grad()
def test_weights_of_the_reference_load_and_give_its_mixture(name: str) -> None:
    network, values = published(name), golden.arrays(name)
    output = network(values["hidden_states"], values["timestep"] / 1000, Conditions(values["class_labels"]))
    torch.testing.assert_close(output.means, values["means"], **golden.TOLERANCE)
    torch.testing.assert_close(output.log_weights, values["logweights"], **golden.TOLERANCE)
    torch.testing.assert_close(output.variance, (2 * values["logstds"]).exp(), **golden.TOLERANCE)


def test_a_weight_too_many_or_too_few_is_an_error() -> None:
    architecture = gmdit_architecture(json.loads((golden.DATA / "gmdit.json").read_text()))
    weights = load_file(golden.DATA / "gmdit.safetensors")
    with pytest.raises(RuntimeError, match="other"):
        DiT(architecture).load_state_dict(gmdit_weights({**weights, "other": torch.ones(1)}, architecture))
    del weights["transformer_blocks.1.attn1.to_k.bias"]
    with pytest.raises(KeyError, match="to_k"):
        gmdit_weights(weights, architecture)


def test_the_tolerances_of_the_norms_are_those_of_the_reference() -> None:
    network = published("gmdit")
    assert {(block.norm1.eps, block.norm2.eps) for block in network.blocks} == {(1e-6, 1e-5)}
    assert network.norm_out.eps == 1e-6
