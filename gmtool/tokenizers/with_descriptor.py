"""A tokenizer whose descriptors are those of another network: the [CLS] token of a DINOv2.

Clusters of descriptors become modes, so what they should have in common is content. A tokenizer of pixels or of an
autoencoder has no such summary of its own: this one keeps its latents and takes the descriptors from a DINOv2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.tokenizers.base import Encoded, Tokenizer
from gmtool.tokenizers.dinov2 import Dinov2

DESCRIPTOR = "descriptor"
"""The key, among a tokenizer's settings, of the settings of the DINOv2 that describes."""


def described_spec(spec: TokenizerSpec, describer: TokenizerSpec) -> TokenizerSpec:
    """The record of a tokenizer ``spec`` that is described by a DINOv2."""
    return TokenizerSpec(spec.name, {**spec.settings, DESCRIPTOR: dict(describer.settings)}, spec.arrays)


def describer_spec(spec: TokenizerSpec) -> TokenizerSpec | None:
    """The record of the DINOv2 that describes for a tokenizer, None where it describes itself."""
    settings: Mapping[str, Any] | None = spec.settings.get(DESCRIPTOR)
    return None if settings is None else TokenizerSpec("dinov2", settings)


def undescribed(spec: TokenizerSpec) -> TokenizerSpec:
    """The record of the tokenizer by itself."""
    settings = {name: value for name, value in spec.settings.items() if name != DESCRIPTOR}
    return TokenizerSpec(spec.name, settings, spec.arrays)


@dataclass(frozen=True, eq=False)
class WithDescriptor:
    """tokenizer: gives latents and images. describer: gives descriptors, of the same images."""

    tokenizer: Tokenizer
    describer: Dinov2

    @property
    def image_size(self) -> int:
        """See `Tokenizer.image_size`."""
        return self.tokenizer.image_size

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """See `Tokenizer.latent_shape`."""
        return self.tokenizer.latent_shape

    @property
    def descriptor_size(self) -> int:
        """See `Tokenizer.descriptor_size`."""
        return self.describer.descriptor_size

    def spec(self) -> TokenizerSpec:
        """See `described_spec`."""
        return described_spec(self.tokenizer.spec(), self.describer.spec())

    def encode(self, images: Tensor) -> Encoded:
        """See `Tokenizer.encode`."""
        return Encoded(self.tokenizer.encode(images).patches, self.describe(images))

    def describe(self, images: Tensor) -> Tensor:
        """See `Tokenizer.describe`."""
        return self.describer.describe(images)

    def decode(self, latents: Tensor, truncate: bool = False) -> Tensor:
        """See `Tokenizer.decode`."""
        return self.tokenizer.decode(latents, truncate)
