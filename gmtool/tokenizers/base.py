"""What a tokenizer is: images to latents and back, and one descriptor an image (DINOv2's [CLS], or its stand-in)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gmtool.artifacts.tokenizer_spec import TokenizerSpec


@dataclass(frozen=True)
class Encoded:
    """patches: (B, C, H, W) float32 latents. descriptors: (B, D) float32."""

    patches: Tensor
    descriptors: Tensor


class Tokenizer(Protocol):
    """Images are uint8 (B, 3, S, S) in RGB with S = ``image_size``; latents float32 (B, C, H, W), not normalised."""

    @property
    def image_size(self) -> int:
        """Side S, in pixels, of the images taken and of those given back."""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image's latents."""

    @property
    def descriptor_size(self) -> int:
        """D of one image's descriptor."""

    def spec(self) -> TokenizerSpec:
        """The tokenizer's name, settings and fitted state."""

    def encode(self, images: Tensor) -> Encoded:
        """Latents and descriptors of images."""

    def describe(self, images: Tensor) -> Tensor:
        """Descriptors (B, D) alone."""

    def decode(self, latents: Tensor, truncate: bool = False) -> Tensor:
        """Images uint8 (B, 3, S, S) of latents; see `to_uint8`.

        Raises UserError, naming the repair, when there is no decoder.
        """


def to_uint8(levels: Tensor, truncate: bool) -> Tensor:
    """Levels, nominally in [0, 255], as uint8: clamped, and rounded to the nearest or else truncated."""
    return (levels if truncate else levels.round()).clamp(0, 255).to(torch.uint8)
