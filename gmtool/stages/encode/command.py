"""``gmtool encode``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gmtool.flags import PresetName, with_options
from gmtool.settings import quoted
from gmtool.stages.encode.config import EncodeConfig

if TYPE_CHECKING:
    from gmtool.stages.encode.run import EncodeReport

LISTED = 20
"""Skipped images that are listed at most."""


@with_options(EncodeConfig)
def command(
    images: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGES",
            help="Folder, .zip or .tar of images; its top-level folders, if it has any, are the classes.",
        ),
    ] = Path("images"),
    latents: Annotated[Path, typer.Argument(metavar="LATENTS", help="File to write.")] = Path("latents.h5"),
    *,
    preset: PresetName = None,
    config: EncodeConfig,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print what would be encoded and the size of the file; write nothing. With --preset and no IMAGES, "
            "these are ImageNet's.",
        ),
    ] = False,
) -> None:
    """Encode images to latents. Run the same command again to resume after an interruption.

    Example: gmtool encode imagenet/ latents.h5 --flip both --batch-size 256
    """
    from gmtool.console import ConsoleProgress, print_forecast
    from gmtool.stages.encode.forecast import forecast_of_imagenet
    from gmtool.stages.encode.plan import plan_encoding
    from gmtool.stages.encode.run import encode_images

    if dry_run:
        assumed = preset is not None and not images.exists()
        print_forecast(
            forecast_of_imagenet(images, latents, config)
            if assumed
            else plan_encoding(images, latents, config).forecast()
        )
        return
    _print_report(encode_images(images, latents, config, ConsoleProgress()))


def _print_report(report: EncodeReport) -> None:
    from gmtool.words import counted, duration, human_bytes

    shape = " x ".join(map(str, report.shape))
    took = f", in {duration(report.seconds)}" if report.fresh else ""
    print(
        f"{report.path}: {counted(report.samples, 'sample')} of {shape}, descriptors of {report.descriptor_size}, "
        f"{report.classes} classes, {human_bytes(report.bytes)}{took}"
    )
    if report.skipped:
        print(f"skipped {counted(len(report.skipped), 'image')} that cannot be read:")
        for bad in report.skipped[:LISTED]:
            print(f"  {bad.name}: {bad.reason}")
        if len(report.skipped) > LISTED:
            print(f"  and {len(report.skipped) - LISTED:,} more")
    if report.empty_classes:
        print(f"classes without images, which no network can learn: {report.empty_classes}")
    print(f"next: gmtool fit-gmm {quoted(report.path)}, or gmtool train {quoted(report.path)}")
