"""The cost of a step of a decoder's training, estimated without computing it; see `gmtool.training.cost`.

An image passes the encoder once, and the decoder forward and backward, and once more to make a fake image. LPIPS takes
three passes of VGG16 (two images, and back to one of them); the discriminator's ViT four (the fake image forward and
back, a fake and a real one). What the heads cost is small beside that, and is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from gmtool.reconstruction.network import DecoderNetwork
from gmtool.tokenizers.vit import VitFacts
from gmtool.training.cost import FORWARD_AND_BACKWARD, StepCost, Trace, trace

VGG_PASSES, VIT_PASSES = 3, 4
FAKE_PASSES = 1


class ViewedBy(NamedTuple):
    """A ViT's width and blocks, and the tokens of an image in it."""

    width: int
    blocks: int
    tokens: int


DINO_S8 = ViewedBy(384, 12, 785)
"""The discriminator's ViT of the recipe."""


def vit_flops(width: int, blocks: int, tokens: int) -> int:
    """Operations of a forward pass of a ViT with MLPs of four times its width: d n (24 w^2 + 4 n w).

    width, blocks, tokens: w, d and n of an image. A multiply-add counts as two; norms and softmax are left out.
    """
    return blocks * tokens * (24 * width * width + 4 * tokens * width)


def encoder_flops(facts: VitFacts, tokens: int) -> int:
    """Operations of encoding an image of ``tokens`` patches, the encoder's other tokens included; see `vit_flops`."""
    return vit_flops(facts.width, facts.blocks, tokens + facts.dropped)


def decoder_step_cost(
    make_network: Callable[[], DecoderNetwork],
    latent_shape: tuple[int, int, int],
    encoder: VitFacts,
    precision: torch.dtype,
    *,
    perceptual: bool,
    discriminator: ViewedBy | None,
) -> StepCost:
    """The cost of a step with all losses, for latents (C, h, w); see the module.

    make_network: is called on the meta device, where nothing is computed. encoder: what makes the latents. precision:
    of the networks. perceptual: whether LPIPS is used. discriminator: the discriminator's ViT, None without one.
    """
    with torch.device("meta"):
        network = make_network()
    with FakeTensorMode(allow_non_fake_inputs=True):
        network.to_empty(device="cpu")
        one, two = (_decoding(network, latent_shape, precision, count) for count in (1, 2))
        side = network.decoder.image_size
        vgg = _vgg(side, precision) if perceptual else Trace(0, 0)
    tokens = latent_shape[1] * latent_shape[2]
    judge = 0 if discriminator is None else vit_flops(*discriminator)
    decoder = two.flops - one.flops
    return StepCost(
        flops=encoder_flops(encoder, tokens)
        + (FORWARD_AND_BACKWARD + (FAKE_PASSES if discriminator is not None else 0)) * decoder
        + VGG_PASSES * vgg.flops
        + VIT_PASSES * judge,
        # the losses' activations come while the decoder's are kept
        sample_bytes=two.bytes - one.bytes + vgg.bytes,
        fixed_bytes=2 * one.bytes - two.bytes,
        parameters=sum(weights.numel() for weights in network.parameters()),
    )


def _decoding(network: DecoderNetwork, shape: tuple[int, int, int], precision: torch.dtype, count: int) -> Trace:
    def decode(samples: int) -> Tensor:
        return network(torch.zeros(samples, *shape))

    return trace(decode, network.parameters(), precision, count)


def _vgg(side: int, precision: torch.dtype) -> Trace:
    """An image through VGG16's features, and what is kept for the way back."""
    from torchvision.models import vgg16

    features: nn.Module = vgg16(weights=None).features
    images = torch.zeros(1, 3, side, side, requires_grad=True)
    return trace(lambda _: features(images), features.parameters(), precision, 1)
