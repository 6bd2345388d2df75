"""The plan of a decoder's training on given images, with all settings resolved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.data.image_crops import CropSource
from gmtool.data.image_sets import ImageSet, find_images, spread
from gmtool.data.images import ImageSample
from gmtool.errors import UserError
from gmtool.forecast import Choice
from gmtool.reconstruction.network import SIZES, DecoderNetwork, check_sides, decoder_from, new_decoder
from gmtool.reconstruction.settings import Phases, phases
from gmtool.runtime import planned_dtype
from gmtool.settings import as_flat, changed
from gmtool.stages.train_decoder.config import TrainDecoderConfig
from gmtool.tokenizers.build import image_size_of, latent_sizes
from gmtool.tokenizers.choose import choose_tokenizer, settled_settings
from gmtool.tokenizers.table import family_of
from gmtool.training.schedule import Schedule
from gmtool.training.settings import by_device

RATES: Mapping[str, float] = {"tiny": 1e-3, "B": 2e-4, "L": 2e-4, "XL": 2e-4}
"""Learning rates by the decoder's size."""
ENLARGED = 1.5
"""The short side before a crop, in crops."""
HELD_OUT = 0.1
"""Share of the images that is held out by default at most."""


@dataclass(frozen=True)
class NewDecoder:
    """A decoder of a named size, with random weights."""

    size: str


@dataclass(frozen=True)
class FurtherTrained:
    """The decoder of a folder, hub id or file."""

    source: str


@dataclass(frozen=True, eq=False)
class TrainDecoderPlan:
    """A training whose defaults are resolved.

    crops: what is trained on. held_out: images for scores, with the rows of theirs that are used. tokenizer: the record
    of what makes the latents, of shape (C, h, w). start: what the decoder begins as. precision: of the networks'
    arithmetic. choices: defaults that were resolved. settings: all flags as they are recorded.
    """

    config: TrainDecoderConfig
    crops: CropSource
    held_out: ImageSet
    held_out_rows: np.ndarray
    tokenizer: TokenizerSpec
    latent_shape: tuple[int, int, int]
    start: NewDecoder | FurtherTrained
    precision: torch.dtype
    schedule: Schedule
    phases: Phases
    batch_size: int
    choices: tuple[Choice, ...]
    settings: Mapping[str, Any]

    @property
    def image_size(self) -> int:
        """Side of the images, in pixels."""
        return self.crops.size

    @property
    def adversarial(self) -> bool:
        """Whether there is a discriminator."""
        return self.config.adversarial.adversarial != "none"

    def network(self) -> DecoderNetwork:
        """The decoder at its start; one with random weights on the device of the context. Raises as `decoder_from`."""
        checkpointing = self.config.compute.checkpoint_activations
        if isinstance(self.start, FurtherTrained):
            return decoder_from(self.start.source, self.tokenizer, checkpoint_activations=checkpointing)
        size, seed = SIZES[self.start.size], self.config.seed
        return new_decoder(size, self.tokenizer, self.latent_shape, seed, checkpoint_activations=checkpointing)


def plan_decoder(images: Path, config: TrainDecoderConfig, gpu: bool) -> TrainDecoderPlan:
    """The plan for images, on a GPU or a CPU.

    Raises UserError, naming the flag, where they do not go together, MachineError when weights cannot be fetched.
    """
    image_set = find_images(images)
    settled = choose_tokenizer(config.tokenizer, ImageSample(image_set, np.arange(len(image_set)), 0, False))
    spec = settled.spec
    if family_of(spec.name).decoder_hint is None:
        raise UserError(f"--tokenizer {spec.name} decodes its latents by itself: give an encoder, such as dinov2")
    shape, image_size = latent_sizes(spec, len(image_set)).shape, image_size_of(spec)
    check_sides(image_size, shape)
    enlarged = config.crops.resize or round(ENLARGED * image_size)
    if enlarged < image_size:
        raise UserError(f"--resize {enlarged} is smaller than the crop of --image-size {image_size}")
    held_out, held_out_rows, rows = _held_out(image_set, config)
    crops = CropSource(image_set, rows, image_size, enlarged, config.crops.upscale)
    crops.check()
    init, size = config.decoder.init, config.decoder.size or ("XL" if gpu else "tiny")
    start = NewDecoder(size) if init is None else FurtherTrained(init)
    batch_size, own_batch = config.loop.settled_batch(gpu)
    like = size if init is None else "XL"
    schedule = config.schedule.resolve(RATES[like], config.loop.steps)
    settled_here = (
        Choice("--size", size, by_device(gpu)) if init is None and config.decoder.size is None else None,
        own_batch,
        Choice("--lr", f"{schedule.rate:g}", f"that of {like}") if config.schedule.lr is None else None,
        Choice("--resize", str(enlarged), f"{ENLARGED} times the crop") if config.crops.resize is None else None,
        Choice("--hold-out", str(len(held_out_rows)), "evenly spread") if config.crops.validation is None else None,
    )
    flat = as_flat(
        changed(
            config,
            {
                **as_flat(settled_settings(config.tokenizer, spec)),
                "size": size if init is None else None,
                "resize": enlarged,
                "hold_out": None if config.crops.validation is not None else len(held_out_rows),
                "batch_size": batch_size,
                "lr": schedule.rate,
            },
        )
    )
    return TrainDecoderPlan(
        config=config,
        crops=crops,
        held_out=held_out,
        held_out_rows=held_out_rows,
        tokenizer=spec,
        latent_shape=shape,
        start=start,
        precision=planned_dtype(config.compute.precision, gpu),
        schedule=schedule,
        phases=phases(config.losses, config.adversarial, config.loop.steps),
        batch_size=batch_size,
        choices=(*settled.choices, *(choice for choice in settled_here if choice is not None)),
        settings=flat,
    )


def _held_out(images: ImageSet, config: TrainDecoderConfig) -> tuple[ImageSet, np.ndarray, np.ndarray]:
    """The images for scores with their rows, and the rows of ``images`` that are trained on."""
    every, wanted = np.arange(len(images)), config.logging.eval_num
    if config.crops.validation is not None:
        others = find_images(config.crops.validation)
        return others, spread(len(others), wanted), every
    count = config.crops.hold_out or min(wanted, int(HELD_OUT * len(images)))
    if not count and len(images) > 1:
        raise UserError(
            f"{images.root} holds {len(images)} images, too few to hold a tenth out: use --hold-out 1, --validation "
            "DIR, or more images"
        )
    if not 0 < count < len(images):
        raise UserError(
            f"{images.root} holds {len(images)} images, too few to hold {max(count, 1)} out: give more images, a "
            "smaller --hold-out, or --validation DIR"
        )
    rows = spread(len(images), count)
    return images, rows, np.setdiff1d(every, rows)
