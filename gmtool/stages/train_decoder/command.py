"""``gmtool train-decoder``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gmtool.flags import HourlyPrice, PresetName, expect_dry_run, with_options
from gmtool.settings import quoted
from gmtool.stages.train_decoder.config import TrainDecoderConfig


@with_options(TrainDecoderConfig)
def command(
    images: Annotated[
        Path,
        typer.Argument(metavar="IMAGES", help="Folder, .zip or .tar of images to train on; classes do not matter."),
    ],
    decoder: Annotated[Path, typer.Argument(metavar="DECODER", help="Folder to write, or to resume.")] = Path(
        "decoder"
    ),
    *,
    preset: PresetName = None,
    config: TrainDecoderConfig,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved settings, memory and time; train nothing.")
    ] = False,
    price: HourlyPrice = None,
) -> None:
    """Train a decoder that turns an encoder's latents into images. Run the same command again to resume.

    The loss is L1, LPIPS and, later in training, an adversarial term. The folder is what --decoder and diffusers read.
    LPIPS and the discriminator need weights; --perceptual none and --adversarial none do without.

    Example: gmtool train-decoder imagenet/ decoder/ --preset rae-decoder-imagenet256
    """
    expect_dry_run(price, dry_run)
    if dry_run:
        from gmtool.console import print_forecast
        from gmtool.stages.presets import load_preset
        from gmtool.stages.train_decoder.forecast import forecast

        estimate = forecast(images, decoder, config)
        if preset is not None:
            print(load_preset(preset).heading)
        print_forecast(estimate, price)
        return
    from gmtool.console import ConsoleProgress
    from gmtool.stages.train_decoder.run import train_decoder
    from gmtool.words import counted

    report = train_decoder(images, decoder, config, ConsoleProgress())
    steps = counted(report.steps, "step")
    print(
        f"{decoder}: {steps}, {report.parameters:,} parameters. "
        f"Next: gmtool reconstruct {quoted(images)} --decoder {quoted(decoder)}"
    )
