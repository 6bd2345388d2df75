"""Inputs of ``gmtool bench``: images, tokenizers of random weights, and the small files of a chain made of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gmtool.data.digits import write_digits
from gmtool.mixture.settings import EmSettings
from gmtool.progress import Progress
from gmtool.settings import changed
from gmtool.stages.encode.config import EncodeConfig
from gmtool.stages.encode.run import encode_images
from gmtool.stages.fit_gmm.config import FitGmmConfig
from gmtool.stages.fit_gmm.run import fit_gmm
from gmtool.stages.presets import Preset
from gmtool.tokenizers.table import TOKENIZERS, family_of

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
    config: EncodeConfig = changed(
        preset.config("encode"), {"device": device, "workers": 0, "flip": "none", "descriptor": None}
    )
    name = config.tokenizer.tokenizer
    if name in TOKENIZERS and not family_of(name).weights:
        images, _ = write_digits(folder / "images")
    else:
        images = folder / "images"
        write_images(images, count)
        config = changed(config, {"tokenizer": _random_model(name, folder / "model"), "limit": count})
    latents, gmm = folder / "latents.h5", folder / "gmm.h5"
    encode_images(images, latents, config, Progress())
    fit_gmm(latents, gmm, FitGmmConfig(modes=SMALL_MODES, em=EmSettings(1), held_out=0.0, device="cpu"), Progress())
    return Inputs(images, config, latents, gmm)


def write_images(folder: Path, count: int) -> None:
    """Write ``count`` JPEGs of smooth noise, of a photograph's size in pixels and bytes, to two class folders."""
    draws = np.random.default_rng(0)
    height, width = SIDE
    for index in range(count):
        path = folder / "ab"[index % 2] / f"{index:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(draws.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)


def _random_model(name: str, folder: Path) -> str:
    """A folder with a model of random weights, of the size that the name stands for; a model's own stays as it is."""
    if name not in TOKENIZERS:
        return name
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        family_of(name).save_random(folder)
    return str(folder)
