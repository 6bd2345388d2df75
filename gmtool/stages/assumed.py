"""What a preset says of latents that are not there yet, for a dry run in an empty folder: ImageNet's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gmtool.artifacts.latents import Layout
from gmtool.errors import UserError
from gmtool.stages.encode.config import EncodeConfig
from gmtool.stages.presets import Preset, load_preset
from gmtool.tokenizers.table import TOKENIZERS, family_of

IMAGENET_IMAGES, IMAGENET_CLASSES = 1_281_167, 1000
IMAGE_SIZE = 256
"""Side in pixels where the settings leave it open: every network's default."""
NAME_BYTES = len("n01440764/n01440764_10026.JPEG")
"""Bytes of the name of an image."""


@dataclass(frozen=True)
class AssumedLatents:
    """Latents of ImageNet: their layout, the images that they are made of, and these images' side in pixels.

    missing: what is not there, for which they are assumed.
    """

    missing: Path
    layout: Layout
    images: int
    image_size: int

    @property
    def views(self) -> int:
        """Samples made of an image."""
        return self.layout.capacity // self.images

    @property
    def words(self) -> str:
        """The latents in a line."""
        layout = self.layout
        shape = " x ".join(map(str, layout.shape))
        return f"{layout.capacity:,} samples of {shape} in {IMAGENET_CLASSES:,} classes"

    def row(self, name: str) -> tuple[str, str]:
        """The row of a dry run on what is assumed, where the argument ``name`` is missing."""
        return f"{name} (assumed)", f"{self.words}: {self.missing} does not exist, so ImageNet's by the preset"


def assumed_latents(encode: EncodeConfig, missing: Path) -> AssumedLatents:
    """ImageNet's latents by settings of ``encode``, as ``missing`` does not exist.

    Raises UserError where the settings do not tell the latents' shape.
    """
    settings = encode.tokenizer
    size = settings.image_size or IMAGE_SIZE
    named = [settings.tokenizer, settings.descriptor or settings.tokenizer]
    sizes = [family_of(name).default_sizes(size) if name in TOKENIZERS else None for name in named]
    own, described = sizes
    if own is None or described is None:
        raise UserError(f"{missing} does not exist, and the preset does not tell the latents' shape: make it first")
    images = min(IMAGENET_IMAGES, encode.limit or IMAGENET_IMAGES)
    views = 2 if encode.flip == "both" else 1
    layout = Layout(views * images, own.shape, described.descriptor, (), NAME_BYTES)
    return AssumedLatents(missing, layout, images, size)


def preset_without(source: str | None, *paths: Path) -> Preset | None:
    """The preset of that name or file, where none of ``paths`` exists; None without a preset, and where one does."""
    return None if source is None or any(path.exists() for path in paths) else load_preset(source)
