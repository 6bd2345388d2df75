from dataclasses import replace

import golden
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from gmtool.flow.guidance.cfg import ClassifierFree
from gmtool.flow.model import VelocityModel
from gmtool.mixture.gaussian_mixture import GaussianMixture
from gmtool.nn.architecture import Conditions
from gmtool.nn.build import build_network, named
from gmtool.nn.ditdh import DiTDH, DiTDHArchitecture

REFERENCE = DiTDHArchitecture(
    (16, 4, 4), depth=3, width=32, heads=4, classes=10, wide_depth=2, wide_width=64, wide_heads=2
)


def published(name: str) -> tuple[DiTDH, dict[str, Tensor]]:
    """A network with the weights of the reference, and its inputs and outputs."""
    network = DiTDH(replace(REFERENCE, qk_norm=name == "ditdh_qknorm"))
    network.load_state_dict(load_file(golden.DATA / f"{name}.safetensors"))
    return network, golden.arrays(name)


both = pytest.mark.parametrize("name", ["ditdh", "ditdh_qknorm"])


@both
@torch.no_grad()
def test_weights_of_the_reference_load_and_give_its_velocity(name: str) -> None:
    network, values = published(name)
    output = network(values["x"], values["t"], Conditions(values["y"]))
    torch.testing.assert_close(output, values["out"], **golden.TOLERANCE)


@both
@torch.no_grad()
def test_encoder_and_head_are_those_of_the_reference(name: str) -> None:
    network, values = published(name)
    time = network.t_embedder(values["t"])
    s = network.encode(values["x"], time, time + network.y_embedder(values["y"]))
    torch.testing.assert_close(s, values["s_cond"], **golden.TOLERANCE)
    output = network.head(network.decode(values["x"], values["given_s"]), time)
    torch.testing.assert_close(output, values["out_given_s"], **golden.TOLERANCE)


@both
@torch.no_grad()
def test_the_position_table_is_read_from_the_weights(name: str) -> None:
    network, values = published(name)
    network.load_state_dict({**network.state_dict(), "pos_embed": values["pos_embed_perturbed"]})
    output = network(values["x"], values["t"], Conditions(values["y"]))
    torch.testing.assert_close(output, values["out_pos_perturbed"], **golden.TOLERANCE)


@pytest.mark.parametrize("table", ["enc_feat_rope.freqs_cos", "dec_feat_rope.freqs_sin", "t_embedder.W"])
@torch.no_grad()
def test_the_other_tables_are_read_from_the_weights_too(table: str) -> None:
    network, values = published("ditdh")
    weights = network.state_dict()
    network.load_state_dict({**weights, table: weights[table] + 0.1})
    output = network(values["x"], values["t"], Conditions(values["y"]))
    assert (output - values["out"]).abs().max() > 1e-2


@both
@torch.no_grad()
def test_guidance_of_the_reference(name: str) -> None:
    network, values = published(name)
    x, t, labels = (values[f"cfg_{key}"] for key in "xty")

    def model(labels: Tensor) -> VelocityModel:
        return lambda x_t, t: network(x_t, t, Conditions(labels))

    given, null = labels.chunk(2)
    guided = ClassifierFree(2.5)(model(given), model(null))(x[: len(given)], t[: len(given)])
    torch.testing.assert_close(guided, values["cfg_out"][: len(given)], atol=5e-5, rtol=1e-5)


@both
def test_a_new_network_begins_with_the_tables_of_the_reference(name: str) -> None:
    fresh, published_weights = DiTDH(REFERENCE).state_dict(), load_file(golden.DATA / f"{name}.safetensors")
    for table in (
        "pos_embed",
        *(f"{part}_feat_rope.freqs_{kind}" for part in ("enc", "dec") for kind in ("cos", "sin")),
    ):
        torch.testing.assert_close(fresh[table], published_weights[table])


def test_tables_are_not_trained() -> None:
    trained = {name for name, _ in DiTDH(REFERENCE).named_parameters()}
    assert not trained & {"pos_embed", "t_embedder.W", "enc_feat_rope.freqs_cos", "dec_feat_rope.freqs_sin"}


def test_equal_widths_need_no_projector() -> None:
    network = DiTDH(replace(REFERENCE, wide_width=32))
    assert not any("s_projector" in name for name in network.state_dict())
    assert network(torch.randn(2, 16, 4, 4), torch.rand(2), Conditions(torch.tensor([0, 10]))).shape == (2, 16, 4, 4)


def test_a_mixture_head_reads_the_same_tokens() -> None:
    """The wide head's K (C + 1) numbers per token; the log-std reads the encoder's embedding."""
    network = DiTDH(replace(REFERENCE, components=3))
    assert network.final_layer.linear.weight.shape == (3 * 17, 64)
    assert network.head.log_std[1].weight.shape == (32, 32)
    mixture = network(torch.randn(2, 16, 4, 4), torch.rand(2), Conditions(torch.tensor([0, 10])))
    assert isinstance(mixture, GaussianMixture)
    assert mixture.means.shape == (2, 3, 16, 4, 4)


def test_the_published_size() -> None:
    """839 M with ImageNet's classes and DINOv2-B latents, counted with the tables that the reference holds fixed."""
    with torch.device("meta"):
        network = build_network(replace(named("DH-XL", (768, 16, 16)), classes=1000), 0)
    counted = [*network.parameters(), network.pos_embed, network.t_embedder.W]
    assert round(sum(count.numel() for count in counted) / 1e6) == 839
