"""``gmtool reconstruct``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gmtool.errors import UserError
from gmtool.flags import PresetName, with_options
from gmtool.stages.reconstruct.config import ReconstructConfig

if TYPE_CHECKING:
    from gmtool.stages.reconstruct.report import ReconstructionReport

LISTED = 5
"""Number of the worst images that are printed."""


@with_options(ReconstructConfig)
def command(
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="Folder, .zip or .tar of images.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Folder to write grids and metrics to.")] = Path(
        "reconstruction"
    ),
    *,
    _preset: PresetName = None,
    json: Annotated[
        bool,
        typer.Option("--json", help="Print the metrics as JSON instead of a table; everything else goes to stderr."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be reconstructed, and how; compute nothing.")
    ] = False,
    config: ReconstructConfig,
) -> None:
    """Encode and decode images, and score the reconstructions: PSNR, SSIM, LPIPS, reconstruction FID.

    Writes pairs.png, worst.png (image left, reconstruction right), images.csv and reconstruction.json. Also checks that
    the decoder was trained for this encoder, and that latent statistics belong to its latents.

    Example: gmtool reconstruct validation/ --decoder decoder/
    """
    from gmtool.console import ConsoleProgress, print_forecast
    from gmtool.stages.reconstruct.run import plan_reconstruction, reconstruct

    if dry_run and json:
        raise UserError("--json prints metrics, and --dry-run computes none: remove one of them")
    if dry_run:
        print_forecast(plan_reconstruction(images, output, config, ConsoleProgress()).forecast())
        return
    report = reconstruct(images, output, config, ConsoleProgress())
    if json:
        print(report.to_json())
    else:
        _print(report, output)


def _print(report: ReconstructionReport, output: Path) -> None:
    from gmtool.console import print_table
    from gmtool.stages.reconstruct.report import BETTER, LABELS

    rows: list[tuple[str, ...]] = [
        (LABELS[name], BETTER[name], f"{quality.mean:.4g}", f"{quality.std:.2g}")
        for name, quality in report.qualities.items()
    ]
    rows += [
        (f"Fréchet distance, {distance.extractor}", "lower", f"{distance.value:.4g}", "")
        for distance in report.distances
    ]
    rows += [(f"mean square by {name}", "1", f"{value:.3g}", "") for name, value in report.statistics.items()]
    by = f"{report.tokenizer}" + ("" if report.decoder is None else f" and {report.decoder}")
    print_table(f"{report.images}: {report.count:,} images by {by}", ("figure", "better", "mean", "std"), rows)
    print(f"worst by {LABELS[report.worst_by]}:")
    for image in report.worst[:LISTED]:
        print(f"  {image.name}: {image.figures[report.worst_by]:.4g}")
    print(f"pairs: {output}/pairs.png, {output}/worst.png; every image: {output}/images.csv")
