"""What encoding ImageNet would take: ``gmtool encode --preset NAME --dry-run`` without any images."""

from __future__ import annotations

from pathlib import Path

from gmtool.artifacts.outputs import output_of
from gmtool.data.images import default_workers
from gmtool.forecast import FileSize, Forecast
from gmtool.stages.assumed import assumed_latents
from gmtool.stages.encode.config import EncodeConfig
from gmtool.stages.encode.plan import batches_bytes


def forecast_of_imagenet(images: Path, output: Path, config: EncodeConfig) -> Forecast:
    """What ``encode`` with these settings would do with ImageNet in the place of ``images``, which do not exist.

    Raises UserError where the settings do not tell the latents' shape, and where the file cannot be written.
    """
    written, latents = output_of(output, "latents"), assumed_latents(config, images)
    layout = latents.layout
    workers = default_workers() if config.workers is None else config.workers
    return Forecast(
        title=f"{images}: ImageNet's {latents.images:,} images",
        reads=(FileSize(images, None),),
        writes=(FileSize(written.path, layout.bytes()),),
        work=(
            latents.row("IMAGES"),
            ("descriptors", f"of {layout.descriptor_size}"),
            ("tokenizer", config.tokenizer.tokenizer),
        ),
        memory=batches_bytes(latents.image_size, config.batch_size, workers, layout, latents.views),
        more_memory="the tokenizer's network",
    )
