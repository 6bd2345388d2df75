"""A tokenizer for new images: its record with defaults settled by the images, then what has to be fitted to them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.data.image_sets import ImageSet, spread
from gmtool.data.images import ImageBatch, first_image_size, image_batches, no_image_error
from gmtool.errors import UserError
from gmtool.stages.encode.config import EncodeConfig
from gmtool.tokenizers import dinov2, sd_vae
from gmtool.tokenizers.pixels import (
    component_count,
    default_image_size,
    default_patch_size,
    fit_pixels,
    grey,
    pixels_settings,
    pixels_shape,
    small_images,
)
from gmtool.tokenizers.pretrained import model_folder
from gmtool.tokenizers.with_descriptor import described_spec, describer_spec, undescribed

FIT_IMAGES = 4096
"""Images, spread evenly, that the PCA of pixels is fitted to, at most."""
GREY_IMAGES = 256
"""Images, spread evenly, that decide whether all are grey."""


def choose_tokenizer(config: EncodeConfig, images: ImageSet, rows: np.ndarray) -> TokenizerSpec:
    """The record of the tokenizer that ``config`` asks for, its defaults settled by the images ``rows``.

    It lacks what `fit_tokenizer` adds. Raises UserError for settings that do not go together.
    """
    if config.tokenizer == "pixels":
        spec = TokenizerSpec("pixels", _choose_pixels(config, images, rows))
    else:
        spec = _choose_model(config)
    if config.descriptor is None:
        return spec
    if spec.name == "dinov2":
        raise UserError("--descriptor is for --tokenizer pixels or sd-vae: a DINOv2 describes images by its own [CLS]")
    model = dinov2.DEFAULT_MODEL if config.descriptor == "dinov2" else config.descriptor
    return described_spec(spec, dinov2.dinov2_spec(model, spec.settings["image_size"], "--descriptor"))


def _choose_model(config: EncodeConfig) -> TokenizerSpec:
    """The record of a network: one of the two by name, or what the model's own configuration says it is."""
    for name in ("patch_size", "channels"):
        if getattr(config, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} is a setting of --tokenizer pixels: leave it out")
    size, model = config.image_size or 256, config.tokenizer
    if model == "dinov2":
        return dinov2.dinov2_spec(dinov2.DEFAULT_MODEL, size)
    if model == "sd-vae":
        return sd_vae.sd_vae_spec(sd_vae.DEFAULT_MODEL, size)
    if sd_vae.is_autoencoder(model_folder(model, "--tokenizer")):
        return sd_vae.sd_vae_spec(model, size)
    return dinov2.dinov2_spec(model, size)


def fit_tokenizer(spec: TokenizerSpec, config: EncodeConfig, images: ImageSet, rows: np.ndarray) -> TokenizerSpec:
    """The record completed by what is fitted to the images ``rows``: the PCA of pixels."""
    if spec.name != "pixels":
        return spec
    sample = rows[spread(len(rows), FIT_IMAGES)]
    small = []
    for batch in _decoded(images, sample, spec.settings["image_size"], config, config.skip_bad):
        check_colour(spec, images, batch)
        small.append(small_images(batch.images, spec.settings["channels"]))
    if not small:
        raise no_image_error(images)
    return fit_pixels(spec.settings, np.concatenate(small))


def check_colour(spec: TokenizerSpec, images: ImageSet, batch: ImageBatch) -> None:
    """Raise UserError, with its name, for a colour image in a batch for a tokenizer of grey ones."""
    if spec.settings.get("channels") == 1 and not (found := grey(batch.images)).all():
        name = images.names[batch.indices[int(found.int().argmin())]]
        raise UserError(f"{images.root}: {name} is a colour image: encode with --channels 3")


def _choose_pixels(config: EncodeConfig, images: ImageSet, rows: np.ndarray) -> dict[str, Any]:
    size = config.image_size
    if size is None:
        width, height = first_image_size(images, rows, config.skip_bad)
        size = default_image_size(min(width, height)) if config.patch_size is None else min(width, height, 256)
    patch = config.patch_size or default_patch_size(size)
    if size % patch:
        raise UserError(
            f"--patch-size {patch} does not divide the image size {size}: choose a divisor, or --image-size"
        )
    if config.channels == 2:
        raise UserError("--channels must be 1 (grey) or 3 (RGB), not 2")
    channels = config.channels
    if channels is None:
        sample = rows[spread(len(rows), GREY_IMAGES)]
        channels = 1 if all(grey(batch.images).all() for batch in _decoded(images, sample, size, config, True)) else 3
    return pixels_settings(size, patch, channels)


def _decoded(
    images: ImageSet, rows: np.ndarray, size: int, config: EncodeConfig, skip_bad: bool
) -> Iterator[ImageBatch]:
    """Batches, none empty, of the images ``rows``."""
    for batch in image_batches(images, size, 64, workers=config.workers, skip_bad=skip_bad, rows=rows):
        if len(batch.images):
            yield batch


def latent_sizes(spec: TokenizerSpec, images: int) -> tuple[tuple[int, int, int], int]:
    """(C, H, W) and D of the latents that the tokenizer makes, fitted or to be fitted to so many images."""
    describer = describer_spec(spec)
    if describer is not None:
        return latent_sizes(undescribed(spec), images)[0], dinov2.dinov2_hidden_size(describer)
    if spec.name == "pixels":
        fitted = spec.arrays.get("components")
        return pixels_shape(spec.settings), component_count(spec.settings, images) if fitted is None else len(fitted)
    if spec.name == "sd-vae":
        shape = sd_vae.sd_vae_shape(spec)
        return shape, sd_vae.pooled_size(shape)
    hidden_size = dinov2.dinov2_hidden_size(spec)
    return dinov2.dinov2_shape(hidden_size, spec.settings["image_size"]), hidden_size
