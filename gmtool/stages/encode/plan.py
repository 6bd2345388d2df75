"""The plan of ``encode``, resolved before anything is written: images, tokenizer, sizes of the file, settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gmtool.artifacts.files import free_bytes
from gmtool.artifacts.latents import Layout
from gmtool.artifacts.manifest import fingerprint
from gmtool.artifacts.outputs import Output, output_of
from gmtool.artifacts.resume import ResumeFile
from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.data.image_sets import ImageSet, find_images, spread
from gmtool.data.images import ImageSample, batch_bytes, default_workers
from gmtool.distributed import join
from gmtool.forecast import Choice, FileSize, Forecast
from gmtool.runtime import compute_dtype
from gmtool.settings import Precision, as_flat, changed
from gmtool.stages.encode.config import EncodeConfig
from gmtool.streams import generator
from gmtool.tokenizers.build import depends_on_precision, facts_of_models, image_size_of, latent_sizes, takes_grey
from gmtool.tokenizers.choose import choose_tokenizer, settled_settings
from gmtool.words import human_bytes


@dataclass(frozen=True, eq=False)
class EncodePlan:
    """The plan of an encoding.

    images: all that were found. rows: those to encode. tokenizer: its record, not fitted. layout: the sizes of the
    file. key: digest of all that the result depends on. settings: as the file records them, by name. choices: the
    defaults that were settled. views: samples made of an image, 2 with its mirror image, else 1. mirrored: which
    images, of all, are encoded mirrored instead, bool.
    """

    images: ImageSet
    rows: np.ndarray
    tokenizer: TokenizerSpec
    layout: Layout
    key: str
    settings: Mapping[str, Any]
    choices: tuple[Choice, ...]
    output: Output
    views: int
    mirrored: np.ndarray
    batch_size: int
    workers: int
    skip_bad: bool
    precision: Precision

    @property
    def sample(self) -> ImageSample:
        """The images to encode, as the tokenizer is fitted to them."""
        return ImageSample(self.images, self.rows, self.workers, self.skip_bad)

    @property
    def grey(self) -> bool:
        """Whether the images must be grey."""
        return takes_grey(self.tokenizer)

    @property
    def resume_file(self) -> ResumeFile:
        """The file with the progress of the encoding, which is void once an image has changed."""
        return ResumeFile(self.output.target, fingerprint([self.key, self.images.fingerprint]))

    def class_counts(self) -> list[int]:
        """Samples of each class, if every image can be read."""
        return class_counts(self.images.labels[self.rows], len(self.images.classes), self.views)

    def forecast(self) -> Forecast:
        """The plan as ``--dry-run`` shows it."""
        images, layout = self.images, self.layout
        shape = " x ".join(map(str, layout.shape))
        classes = f"{len(images.classes)} classes" if images.classes else "no classes"
        taken = f", {len(self.rows):,} of them encoded" if len(self.rows) < len(images) else ""
        empty = empty_classes(images.classes, self.class_counts())
        return Forecast(
            title=f"{images.root}: {len(images):,} images, {classes}{taken}",
            reads=(FileSize(images.root, images.bytes),),
            writes=(FileSize(self.output.path, layout.bytes()),),
            work=(
                ("makes", f"{layout.capacity:,} samples of {shape}, descriptors of {layout.descriptor_size}"),
                ("tokenizer", self.tokenizer.name),
                *facts_of_models(self.tokenizer),
                ("free", f"{human_bytes(free_bytes(self.output.target))} on the disk of {self.output.path}"),
                *(("leaves out", str(kind)) for kind in images.left_out),
                *(("classes without images", empty) for _ in range(bool(empty))),
            ),
            choices=self.choices,
            memory=batches_bytes(image_size_of(self.tokenizer), self.batch_size, self.workers, layout, self.views),
            more_memory="the tokenizer's network" if depends_on_precision(self.tokenizer) else "",
        )


def batches_bytes(image_size: int, batch_size: int, workers: int, layout: Layout, views: int) -> int:
    """Bytes of the images that are in memory at once, and of what a batch of them is encoded to.

    image_size: side, in pixels. views: samples made of an image.
    """
    sample = 4 * (math.prod(layout.shape) + layout.descriptor_size)
    return batch_bytes(image_size, batch_size, workers) + batch_size * views * sample


def class_counts(labels: np.ndarray, classes: int, views: int) -> list[int]:
    """Number of samples of each class.

    labels (N,): of the images, -1 for none. classes: their number. views: samples per image.
    """
    return (views * np.bincount(labels[labels >= 0], minlength=classes)).tolist()


def empty_classes(classes: tuple[str, ...], counts: list[int]) -> str:
    """The classes without a sample, in words; "" when there are none."""
    names = [name for name, count in zip(classes, counts, strict=True) if not count]
    return f"{len(names):,} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})" if names else ""


def plan_encoding(images: Path, output: Path, config: EncodeConfig) -> EncodePlan:
    """Find the images and settle everything about the file; writes nothing.

    Raises UserError for wrong images, settings or output, MachineError when weights cannot be fetched.
    """
    written = output_of(output, "latents")
    image_set = find_images(images)
    rows = spread(len(image_set), config.limit)
    workers = default_workers() if config.workers is None else config.workers
    device = join(config.device).device
    settled = choose_tokenizer(config.tokenizer, ImageSample(image_set, rows, workers, config.skip_bad))
    precision = _named(compute_dtype(config.precision, device))
    settings = as_flat(
        changed(
            config,
            {
                **as_flat(settled_settings(config.tokenizer, settled.spec)),
                "workers": workers,
                "device": str(device),
                "precision": precision,
            },
        )
    )
    sizes = latent_sizes(settled.spec, len(rows))
    views, random = 2 if config.flip == "both" else 1, config.flip == "random"
    name_size = max(len(image_set.names[row].encode()) for row in rows)
    return EncodePlan(
        images=image_set,
        rows=rows,
        tokenizer=settled.spec,
        layout=Layout(views * len(rows), sizes.shape, sizes.descriptor, image_set.classes, name_size),
        key=_key(image_set, len(rows), settled.spec, f"random {config.seed}" if random else config.flip, precision),
        settings=settings,
        choices=(*settled.choices, *_machine_choices(config, settings)),
        output=written,
        views=views,
        mirrored=_coins(len(image_set), config.seed) if random else np.zeros(len(image_set), bool),
        batch_size=config.batch_size,
        workers=workers,
        skip_bad=config.skip_bad,
        precision=precision,
    )


def _coins(count: int, seed: int) -> np.ndarray:
    """A fair coin for each of ``count`` images, bool."""
    return (torch.rand(count, generator=generator(seed, "flip")) < 0.5).numpy()


def _named(dtype: torch.dtype) -> Precision:
    names: dict[torch.dtype, Precision] = {
        torch.float32: "float32",
        torch.bfloat16: "bfloat16",
        torch.float16: "float16",
    }
    return names[dtype]


def _machine_choices(config: EncodeConfig, settings: Mapping[str, Any]) -> tuple[Choice, ...]:
    """The defaults that this machine settled."""
    reasons = {
        "device": ("auto", "the first GPU, else the CPU"),
        "precision": ("auto", "bfloat16 on a GPU that has it, else float32"),
        "workers": (None, "the CPU cores, at most 16"),
    }
    given = as_flat(config)
    return tuple(
        Choice(f"--{name}", str(settings[name]), why) for name, (auto, why) in reasons.items() if given[name] == auto
    )


def _key(images: ImageSet, count: int, tokenizer: TokenizerSpec, flip: str, precision: Precision) -> str:
    """Digest of all that the latents depend on: not of batch size, workers, device, or what to do with bad images."""
    settings = sorted(tokenizer.settings.items())
    parts = [str(images.root.resolve()), images.listing, count, tokenizer.name, settings, flip]
    return fingerprint(map(str, [*parts, precision if depends_on_precision(tokenizer) else ""]))
