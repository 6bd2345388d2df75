"""A tokenizer whose descriptors are those of another network, an encoder such as DINOv2.

Clusters of descriptors become modes, so what they should have in common is content. A tokenizer of pixels or of an
autoencoder has no such summary of its own: this one keeps its latents and takes the descriptors from an encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.tokenizers.base import Encoded, Tokenizer

DESCRIPTOR = "descriptor"
"""The key, among a tokenizer's settings, of the settings of the encoder that describes."""
FAMILY = "tokenizer"
"""The key, among these, of the encoder's family; a DINOv2 goes without saying, as it did when there was no other."""
_FIRST_FAMILY = "dinov2"


def described_spec(spec: TokenizerSpec, describer: TokenizerSpec) -> TokenizerSpec:
    """The record of the tokenizer ``spec`` with the descriptors of the encoder ``describer``."""
    family = {} if describer.name == _FIRST_FAMILY else {FAMILY: describer.name}
    return TokenizerSpec(spec.name, {**spec.settings, DESCRIPTOR: {**describer.settings, **family}}, spec.arrays)


def describer_spec(spec: TokenizerSpec) -> TokenizerSpec | None:
    """The record of the encoder that gives a tokenizer's descriptors; None where the tokenizer has its own."""
    settings: Mapping[str, Any] | None = spec.settings.get(DESCRIPTOR)
    if settings is None:
        return None
    own = {name: value for name, value in settings.items() if name != FAMILY}
    return TokenizerSpec(settings.get(FAMILY, _FIRST_FAMILY), own)


def undescribed(spec: TokenizerSpec) -> TokenizerSpec:
    """The record of a tokenizer without the encoder that describes for it."""
    settings = {name: value for name, value in spec.settings.items() if name != DESCRIPTOR}
    return TokenizerSpec(spec.name, settings, spec.arrays)


@dataclass(frozen=True, eq=False)
class WithDescriptor:
    """A tokenizer with the descriptors of another one; see the module.

    tokenizer: gives latents, and images of them. describer: gives the descriptors of the same images.
    """

    tokenizer: Tokenizer
    describer: Tokenizer

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
