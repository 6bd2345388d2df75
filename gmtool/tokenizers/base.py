"""What a tokenizer is: images to latents and back, and one descriptor per image (an encoder's [CLS], or its stand-in).

A `TokenizerFamily` makes tokenizers of one kind: it resolves defaults, fits what has to be fitted, and
opens a tokenizer from its record. `gmtool.tokenizers.table` lists the families.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.forecast import Choice
from gmtool.tokenizers.settings import TokenizerSettings


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
        """Latents and descriptors of images uint8 (B, 3, S, S)."""

    def describe(self, images: Tensor) -> Tensor:
        """Descriptors float32 (B, D) of images, without their latents."""

    def decode(self, latents: Tensor, truncate: bool = False) -> Tensor:
        """Images uint8 (B, 3, S, S) of latents (B, C, H, W). truncate: see `to_uint8`.

        Raises UserError, naming the repair, when there is no decoder, or it is for another number of channels.
        """


class ImageSample(Protocol):
    """The images that are to be encoded, as far as a family asks for them before any is."""

    def __len__(self) -> int:
        """Their number."""

    def first_size(self) -> tuple[int, int]:
        """Width and height, upright, in pixels, of the first. Raises UserError when none can be read."""

    def batches(self, size: int, limit: int, grey: bool = False) -> Iterator[np.ndarray]:
        """At most ``limit`` of them, spread evenly, as uint8 (B, 3, size, size), B >= 1.

        Raises UserError, naming the image, for a colour image where all should be ``grey``, and when none can be read.
        """


Fact = tuple[str, str]
"""A name and what there is to say, human-readable."""


@dataclass(frozen=True)
class LatentSizes:
    """shape: (C, H, W) of one image's latents. descriptor: D of its descriptor."""

    shape: tuple[int, int, int]
    descriptor: int


@dataclass(frozen=True)
class Settled:
    """The record of a tokenizer that is not fitted yet, and the defaults that were settled for it, with why."""

    spec: TokenizerSpec
    choices: tuple[Choice, ...] = ()


class TokenizerFamily(ABC):
    """Tokenizers of one kind, which differ in settings, weights and fitted state.

    decoder_hint: how to get the decoder without which its latents become no images; None where it decodes by itself.
    exact: whether decoding gives the very images that were encoded. content: whether its own descriptors are a
    network's summary of the content, which --descriptor gives to others. weights: whether it is a network with weights,
    for which the precision of arithmetic matters.
    """

    decoder_hint: str | None = None
    exact: bool = False
    content: bool = False
    weights: bool = False

    @abstractmethod
    def settle(self, settings: TokenizerSettings, model: str | None, images: ImageSample) -> Settled:
        """The record for settings, what they leave open settled by the images; `fit` completes it.

        model: a folder or hub id, None for the family's default. Raises UserError for settings that do not go together
        and for a wrong model, MachineError when the model cannot be fetched.
        """

    @abstractmethod
    def sizes(self, spec: TokenizerSpec, images: int) -> LatentSizes:
        """The sizes of the latents and descriptors of a tokenizer that is, or will be, fitted to ``images`` images.

        Raises UserError or MachineError when the files of its model cannot be had.
        """

    @abstractmethod
    def open(self, spec: TokenizerSpec, device: torch.device, dtype: torch.dtype, decoder: str | None) -> Tokenizer:
        """The tokenizer of a record, which computes in ``dtype``.

        decoder: hub id, folder or file, where `decoder_hint` says that one is needed. Raises UserError when the model's
        weights are no longer those of the record, MachineError when they cannot be fetched.
        """

    def default_sizes(self, image_size: int) -> LatentSizes | None:
        """The sizes of the default model's latents, known without its files; None where the images decide."""
        return None

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Whether a model folder's ``config.json`` is of this family."""
        return False

    def fit(self, spec: TokenizerSpec, images: ImageSample) -> TokenizerSpec:
        """The record completed by what is fitted to the images; most families fit nothing.

        Raises UserError as `ImageSample.batches` does.
        """
        return spec

    def takes_grey(self, spec: TokenizerSpec) -> bool:
        """Whether its images must be grey."""
        return False

    def facts(self, spec: TokenizerSpec) -> tuple[Fact, ...]:
        """What its model's files settle, such as the size of its input; most families have nothing to tell.

        Raises UserError or MachineError when the files cannot be had.
        """
        return ()

    def save_random(self, folder: Path) -> None:  # noqa: B027  # without weights there is nothing to save
        """Save a model of the default's size with random weights, to measure its speed; nothing without `weights`.

        Raises UserError when a library is missing.
        """


def to_uint8(levels: Tensor, truncate: bool) -> Tensor:
    """Levels of any shape, nominally in [0, 255], as uint8: truncated, or else rounded to the nearest, and clamped."""
    return (levels if truncate else levels.round()).clamp(0, 255).to(torch.uint8)


def is_grey(images: np.ndarray | Tensor) -> Tensor:
    """Which of the images (B, 3, S, S) have equal channels: bool (B,)."""
    images = torch.as_tensor(images)
    return (images == images[:, :1]).flatten(1).all(dim=1)
