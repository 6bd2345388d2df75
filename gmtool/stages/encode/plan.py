"""What ``encode`` will make, settled before anything is written: images, tokenizer, sizes of the file, settings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np

from gmtool.artifacts.files import free_bytes, human_bytes
from gmtool.artifacts.latents import Layout
from gmtool.artifacts.manifest import fingerprint
from gmtool.artifacts.outputs import Output, output_of
from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.data.image_sets import ImageSet, find_images, spread
from gmtool.distributed import join
from gmtool.runtime import compute_dtype
from gmtool.settings import Precision
from gmtool.stages.encode.config import EncodeConfig
from gmtool.tokenizers.choose import choose_tokenizer, latent_sizes
from gmtool.tokenizers.with_descriptor import describer_spec


@dataclass(frozen=True, eq=False)
class EncodePlan:
    """What will be encoded, settled before anything is written.

    images: all that were found. rows: those to encode. tokenizer: its record, not fitted. layout: the sizes of the
    file. key: digest of all that the result depends on. config: the settings, with defaults settled.
    """

    images: ImageSet
    rows: np.ndarray
    tokenizer: TokenizerSpec
    layout: Layout
    key: str
    config: EncodeConfig
    output: Output

    @property
    def views(self) -> int:
        """Samples made of an image: 2 with its mirror image, else 1."""
        return 2 if self.config.flip == "both" else 1

    def lines(self) -> tuple[str, ...]:
        """The plan for people."""
        found, layout = self.images, self.layout
        classes = f"{len(found.classes)} classes" if found.classes else "no classes"
        ignored = f", {found.others:,} other files ignored" if found.others else ""
        taken = f", {len(self.rows):,} of them taken" if len(self.rows) < len(found) else ""
        shape = " x ".join(map(str, layout.shape))
        return (
            f"{found.root}: {len(found):,} images, {classes}{taken}{ignored}",
            f"{self.output.path}: {layout.capacity:,} samples of {shape} and {layout.descriptor_size} numbers "
            f"({self.tokenizer.name}), {human_bytes(layout.bytes())}; "
            f"{human_bytes(free_bytes(self.output.path))} are free",
        )


def plan_encoding(images: Path, output: Path, config: EncodeConfig) -> EncodePlan:
    """Find the images and settle everything about the file; writes nothing.

    Raises UserError for wrong images, settings or output, MachineError when weights cannot be fetched.
    """
    written = output_of(output, "latents")
    found = find_images(images)
    rows = spread(len(found), config.limit)
    device = join(config.device).device
    tokenizer = choose_tokenizer(config, found, rows)
    settings = tokenizer.settings
    settled = replace(
        config,
        image_size=settings["image_size"],
        patch_size=settings.get("patch_size"),
        channels=settings.get("channels"),
        device=str(device),
        precision=cast(Precision, str(compute_dtype(config.precision, device)).removeprefix("torch.")),
    )
    shape, descriptor_size = latent_sizes(tokenizer, len(rows))
    samples = len(rows) * (2 if config.flip == "both" else 1)
    name_size = max(len(found.names[row].encode()) for row in rows)
    return EncodePlan(
        images=found,
        rows=rows,
        tokenizer=tokenizer,
        layout=Layout(samples, shape, descriptor_size, found.classes, name_size),
        key=_key(found, len(rows), tokenizer, settled),
        config=settled,
        output=written,
    )


def _key(images: ImageSet, count: int, tokenizer: TokenizerSpec, config: EncodeConfig) -> str:
    """Digest of all that the latents depend on: not of batch size, workers, device, or what to do with bad images."""
    settings = sorted(tokenizer.settings.items())
    parts = [str(images.root.resolve()), images.fingerprint, count, tokenizer.name, settings, config.flip]
    by_network = tokenizer.name != "pixels" or describer_spec(tokenizer) is not None
    return fingerprint(map(str, [*parts, config.precision if by_network else ""]))
