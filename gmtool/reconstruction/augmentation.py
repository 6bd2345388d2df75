"""Differentiable augmentation: all that a discriminator sees is moved and recoloured at random, with gradients.

An image in [-1, 1] is moved by up to ``translation`` of its side, in whole pixels, zeros coming in; then made brighter
by U(-1/2, 1/2), its saturation multiplied by U(0, 2) about each pixel's mean colour, its contrast by U(1/2, 3/2) about
the image's mean; then a square of ``cutout`` of its side is set to zero. The seven uniform numbers are a sample's own;
whether moving, colours and cutting out are applied at all is drawn once a batch. Source: Zhao et al., Differentiable
Augmentation for Data-Efficient GAN Training, arXiv 2006.10738.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NUMBERS = 7
"""Uniform numbers of a sample: moves down and right, brightness, saturation, contrast, row and column cut out."""
KINDS = 3
"""Moving, colours, cutting out."""


@dataclass(frozen=True)
class AugmentationDraws:
    """uniform: (B, 7) in [0, 1), see NUMBERS. chances: (3,) in [0, 1), one for each kind and the whole batch."""

    uniform: Tensor
    chances: Tensor

    def rows(self, rows: slice) -> AugmentationDraws:
        """Those of some samples of the batch."""
        return AugmentationDraws(self.uniform[rows], self.chances)


def draw_augmentation(count: int, generator: torch.Generator) -> AugmentationDraws:
    """The numbers of ``count`` samples, on the generator's device."""
    device = generator.device
    chances = torch.rand(KINDS, generator=generator, device=device)
    return AugmentationDraws(torch.rand(count, NUMBERS, generator=generator, device=device), chances)


@dataclass(frozen=True)
class Augmentation:
    """translation, cutout: shares of the side, 0 for none. colours: whether they are changed. chance: of each kind."""

    translation: float = 0.125
    colours: bool = True
    cutout: float = 0.0
    chance: float = 1.0

    def __call__(self, images: Tensor, draws: AugmentationDraws) -> Tensor:
        """Augmented images float32 of images (B, C, H, W)."""
        images, uniform = images.float(), draws.uniform
        applied = (draws.chances <= self.chance)[:, None, None, None, None]
        if self.translation:
            images = torch.where(applied[0], translated(images, uniform[:, :2], self.translation), images)
        if self.colours:
            images = torch.where(applied[1], recoloured(images, uniform[:, 2:5]), images)
        if self.cutout:
            images = torch.where(applied[2], cut_out(images, uniform[:, 5:], self.cutout), images)
        return images


def translated(images: Tensor, uniform: Tensor, share: float) -> Tensor:
    """Images (B, C, H, W) moved up and left by -d ... d whole pixels, d = ``share`` of the side; uniform (B, 2)."""
    moved = images
    for axis in (0, 1):
        side = images.shape[2 + axis]
        most = round(side * share)
        moves = (uniform[:, axis] * (2 * most + 1)).floor().long() - most
        source = torch.arange(side, device=images.device) + moves[:, None]  # (B, side)
        inside = ((source >= 0) & (source < side)).to(images.dtype)
        shape = (len(images), 1, side, 1) if axis == 0 else (len(images), 1, 1, side)
        index = source.clamp(0, side - 1).view(shape).expand_as(images)
        moved = moved.gather(2 + axis, index) * inside.view(shape)
    return moved


def recoloured(images: Tensor, uniform: Tensor) -> Tensor:
    """Images (B, C, H, W) with other brightness, saturation and contrast; uniform (B, 3)."""
    brightness, saturation, contrast = uniform[:, :, None, None, None].unbind(1)
    images = images + (brightness - 0.5)
    grey = images.mean(1, keepdim=True)
    images = grey + 2 * saturation * (images - grey)
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (0.5 + contrast) * (images - mean)


def cut_out(images: Tensor, uniform: Tensor, share: float) -> Tensor:
    """Images (B, C, H, W) with a square of ``share`` of the side set to zero, about any pixel; uniform (B, 2)."""
    kept = torch.zeros(len(images), *images.shape[2:], dtype=torch.bool, device=images.device)
    inside = []
    for axis in (0, 1):
        side = images.shape[2 + axis]
        size = round(side * share)
        first = (uniform[:, axis] * (side + 1 - size % 2)).floor().long() - size // 2
        place = torch.arange(side, device=images.device)
        inside.append((place >= first[:, None]) & (place < first[:, None] + size))
    kept = ~(inside[0][:, :, None] & inside[1][:, None, :])
    return images * kept[:, None]
