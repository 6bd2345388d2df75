"""Inputs of ``gmtool bench``: images, tokenizers of random weights, and the small files of a chain made of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from gmtool.data.digits import write_digits
from gmtool.errors import UserError
from gmtool.progress import Progress
from gmtool.stages.encode.config import EncodeConfig
from gmtool.stages.encode.run import encode_images
from gmtool.stages.fit_gmm.config import FitGmmConfig
from gmtool.stages.fit_gmm.run import fit_gmm
from gmtool.stages.presets import Preset

SMALL_MODES = 2
"""Modes of the small mixture: noise of any mode costs the same."""
SIDE = (375, 500)
"""Height and width of an image, in pixels: ImageNet's median."""


@dataclass(frozen=True)
class Inputs:
    """Images, how they are encoded, and a latents file and a mixture made of some of them."""

    images: Path
    encode: EncodeConfig
    latents: Path
    gmm: Path


def make_inputs(preset: Preset, folder: Path, device: str, count: int) -> Inputs:
    """The inputs of a preset: of ``count`` photographs' size with random weights, or the digits where it takes pixels.

    Raises UserError when the tokenizer's library is missing.
    """
    config: EncodeConfig = replace(preset.config("encode"), device=device, workers=0, flip="none", descriptor=None)
    if config.tokenizer == "pixels":
        images, _ = write_digits(folder / "images")
    else:
        images = folder / "images"
        write_images(images, count)
        config = replace(config, tokenizer=str(_random_model(config.tokenizer, folder / "model")), limit=count)
    latents, gmm = folder / "latents.h5", folder / "gmm.h5"
    encode_images(images, latents, config, Progress())
    fit_gmm(latents, gmm, FitGmmConfig(modes=SMALL_MODES, em_iterations=1, held_out=0.0, device="cpu"), Progress())
    return Inputs(images, config, latents, gmm)


def write_images(folder: Path, count: int) -> None:
    """JPEGs of smooth noise in two class folders, of a photograph's size in pixels and in bytes."""
    draws = np.random.default_rng(0)
    height, width = SIDE
    for index in range(count):
        path = folder / "ab"[index % 2] / f"{index:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(draws.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)


def _random_model(name: str, folder: Path) -> Path:
    """A folder with a model of random weights, of the size that the name stands for; a folder stays as it is."""
    if Path(name).is_dir():
        return Path(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name == "sd-vae":
            _random_autoencoder(folder)
        else:
            from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

            Dinov2WithRegistersModel(Dinov2WithRegistersConfig(image_size=518)).save_pretrained(folder)
    return folder


def _random_autoencoder(folder: Path) -> None:
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise UserError(
            "the preset's sd-vae needs diffusers: run pip install '.[sd-vae]' in the clone of gmtool"
        ) from error
    network: Any = AutoencoderKL(  # type: ignore[no-untyped-call]  # diffusers has no types
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=256,
    )
    network.save_pretrained(folder)
