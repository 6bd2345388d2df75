"""A discriminator on the features of a frozen DINO ViT.

An image in [-1, 1] is resized (bilinear) to the ViT's own size. Features are its patch tokens after the last block,
before the final norm, and after some earlier blocks. Each has its own head over the sequence of tokens: a convolution
with kernel 1; (x + f(x)) / sqrt(2) with f a circular convolution with kernel 9; and a convolution to one logit per
token. The first two are followed by a normalisation over the tokens of each sample and channel, and LeakyReLU 0.2. All
convolutions have spectral normalisation, with one power iteration per forward pass in training and none in evaluation.

The weights of the heads are named as in RAE's public implementation.
Source: StyleGAN-T, arXiv 2301.09515, section 3.2; RAE, arXiv 2510.11690.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import spectral_norm

from gmtool.streams import key_seed
from gmtool.tokenizers.vit import IMAGENET

NORM_EPS = 1e-6
SLOPE = 0.2
READINGS = 4
"""Number of earlier blocks whose tokens are read by default."""


class DinoFeatures(nn.Module):
    """The tokens of a frozen ViT of transformers: images (B, 3, H, W) in [-1, 1] -> a list of (B, C, tokens).

    The tokens after the last block come first.
    blocks: indices, from 0, of the earlier blocks after which tokens are read.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: Any, blocks: Sequence[int]) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.blocks = tuple(blocks)
        self.size = int(network.config.image_size)
        mean, std = (torch.tensor(colour).view(3, 1, 1) for colour in IMAGENET)
        # ((x + 1) / 2 - mean) / std as one product and sum
        self.register_buffer("scale", 0.5 / std, persistent=False)
        self.register_buffer("shift", (0.5 - mean) / std, persistent=False)

    @property
    def width(self) -> int:
        """Channels of the tokens."""
        return int(self.network.config.hidden_size)

    def train(self, mode: bool = True) -> DinoFeatures:
        """The network stays in evaluation mode, as it is frozen."""
        self.training = mode
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """See the class."""
        if images.shape[-2:] != (self.size, self.size):
            images = functional.interpolate(images, (self.size, self.size), mode="bilinear", align_corners=False)
        tokens = self.network.embeddings(images * self.scale + self.shift)
        read = []
        for block in vit_blocks(self.network):
            output = block(tokens)
            tokens = output[0] if isinstance(output, tuple) else output  # as older versions of transformers return it
            read.append(tokens[:, 1:].transpose(1, 2))
        return [read[-1], *(read[number] for number in self.blocks)]


def vit_blocks(network: Any) -> nn.ModuleList:
    """The blocks of a ViTModel, wherever its version of transformers keeps them."""
    return network.layers if hasattr(network, "layers") else network.encoder.layer


def default_blocks(depth: int) -> tuple[int, ...]:
    """The last block of each quarter of a ViT: 2, 5, 8, 11 of 12."""
    return tuple(sorted({max(0, depth * part // READINGS - 1) for part in range(1, READINGS + 1)}))


class _Residual(nn.Module):
    """(x + f(x)) / sqrt(2)."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, tokens: Tensor) -> Tensor:
        return (tokens + self.fn(tokens)) / math.sqrt(2)


def _block(width: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv1d(width, width, kernel, padding=kernel // 2, padding_mode="circular")
    if convolution.bias is not None:
        convolution.bias.requires_grad_(False)  # the norm takes it away again: its gradient would be rounding alone
    # one group per channel: mean and variance over a sample's tokens
    return nn.Sequential(spectral_norm(convolution), nn.GroupNorm(width, width, NORM_EPS), nn.LeakyReLU(SLOPE))


def _head(width: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(_block(width, 1), _Residual(_block(width, kernel)), spectral_norm(nn.Conv1d(width, 1, 1)))


class Discriminator(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] -> logits (B, (blocks + 1) x tokens) float32, those of all heads concatenated.

    Only ``heads`` are trained, except for biases before a normalisation, which have no effect.
    """

    def __init__(self, features: DinoFeatures, kernel: int = 9, seed: int = 0) -> None:
        super().__init__()
        self.features = features
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key_seed(seed, "discriminator"))
            self.heads = nn.ModuleList(_head(features.width, kernel) for _ in range(1 + len(features.blocks)))

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        logits = [head(tokens).flatten(1) for head, tokens in zip(self.heads, self.features(images), strict=True)]
        return torch.cat(logits, 1).float()
