"""Differentiable augmentation of everything that a discriminator sees.

An image in [-1, 1] is

1. translated by up to ``translation`` of its side, in whole pixels, with zeros at the edges;
2. recoloured: U(-1/2, 1/2) is added, its saturation multiplied by U(0, 2) about each pixel's mean colour, and its
   contrast by U(1/2, 3/2) about the image's mean;
3. cut out: a square with ``cutout`` of its side is set to zero.

The seven uniform numbers are drawn per sample; whether each of the three is applied is drawn per batch.
Source: Zhao et al., Differentiable Augmentation for Data-Efficient GAN Training, arXiv 2006.10738.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NUMBERS = 7
"""Uniform numbers per sample: two translations, brightness, saturation, contrast, row and column of the cutout."""
KINDS = 3
"""Translation, colours, cutout."""


@dataclass(frozen=True)
class AugmentationDraws:
    """Random numbers in [0, 1): uniform (B, 7), see `NUMBERS`; chances (3,), one per kind for the whole batch."""

    uniform: Tensor
    chances: Tensor

    def rows(self, rows: slice) -> AugmentationDraws:
        """The random numbers of some samples of the batch."""
        return AugmentationDraws(self.uniform[rows], self.chances)


def draw_augmentation(count: int, generator: torch.Generator) -> AugmentationDraws:
    """The random numbers of ``count`` samples, on the generator's device: uniform (count, 7), chances (3,)."""
    device = generator.device
    chances = torch.rand(KINDS, generator=generator, device=device)
    return AugmentationDraws(torch.rand(count, NUMBERS, generator=generator, device=device), chances)


@dataclass(frozen=True)
class Augmentation:
    """See the module.

    translation, cutout: fractions of the side, 0 for none. colours: whether to recolour. chance: probability, per
    batch, of each of the three.
    """

    translation: float = 0.125
    colours: bool = True
    cutout: float = 0.0
    chance: float = 1.0

    def __call__(self, images: Tensor, draws: AugmentationDraws) -> Tensor:
        """Augmented images (B, C, H, W) float32. images (B, C, H, W) in [-1, 1]."""
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
    """Images translated up and left by -d ... d whole pixels, with d = ``share`` of the side: (B, C, H, W).

    images (B, C, H, W). uniform (B, 2): in [0, 1), for rows and columns.
    """
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
    """Images with another brightness, saturation and contrast: (B, C, H, W); see the module.

    images (B, C, H, W). uniform (B, 3): in [0, 1).
    """
    brightness, saturation, contrast = uniform[:, :, None, None, None].unbind(1)
    images = images + (brightness - 0.5)
    grey = images.mean(1, keepdim=True)
    images = grey + 2 * saturation * (images - grey)
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (0.5 + contrast) * (images - mean)


def cut_out(images: Tensor, uniform: Tensor, share: float) -> Tensor:
    """Images with a square of ``share`` of the side, centred at a random pixel, set to zero: (B, C, H, W).

    images (B, C, H, W). uniform (B, 2): in [0, 1), for row and column.
    """
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
