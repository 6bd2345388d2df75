"""``gmtool fit-gmm``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gmtool.flags import PresetName, with_options
from gmtool.settings import quoted
from gmtool.stages.fit_gmm.config import FitGmmConfig

if TYPE_CHECKING:
    from gmtool.stages.fit_gmm.report import FitReport


@with_options(FitGmmConfig)
def command(
    latents: Annotated[Path, typer.Argument(metavar="LATENTS", help="File that gmtool encode wrote.")] = Path(
        "latents.h5"
    ),
    gmm: Annotated[Path, typer.Argument(metavar="GMM", help="File to write.")] = Path("gmm.h5"),
    *,
    preset: PresetName = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print what would be computed and written; write nothing. With --preset and no LATENTS, these are "
            "ImageNet's.",
        ),
    ] = False,
    config: FitGmmConfig,
) -> None:
    """Fit a Gaussian mixture to latents: modes from the descriptors, then their means and variances in patch space.

    Example: gmtool fit-gmm latents.h5 gmm.h5 --modes 8192
    """
    from gmtool.console import ConsoleProgress, print_forecast
    from gmtool.stages.assumed import preset_without
    from gmtool.stages.fit_gmm.run import fit_gmm, forecast_fit

    if dry_run:
        print_forecast(forecast_fit(latents, gmm, config, preset_without(preset, latents)))
        return
    _print_report(fit_gmm(latents, gmm, config, ConsoleProgress()), latents, config)


def _print_report(report: FitReport, latents: Path, config: FitGmmConfig) -> None:
    from gmtool.console import print_table
    from gmtool.data.fraction import part_flags
    from gmtool.words import duration

    metrics = report.metrics
    names = ("smallest", "5 %", "median", "95 %", "largest")
    ending = "converged" if metrics.converged else "not converged"
    rows = [
        ("populated modes", f"{metrics.populated:,} of {metrics.modes:,}"),
        *((f"images in a mode, {name}", f"{value:.1f}") for name, value in zip(names, metrics.population, strict=True)),
        *_likelihood_rows(
            f"{metrics.data - metrics.held_out:,} fitted", metrics.log_likelihood, metrics.descriptor_size
        ),
        *_likelihood_rows(f"{metrics.held_out:,} held-out", metrics.held_out_log_likelihood, metrics.descriptor_size),
        ("k-means iterations", f"{metrics.kmeans_iterations}"),
        ("EM iterations", f"{metrics.em_iterations} ({ending})"),
    ]
    sources = ("one Gaussian", "spherical modes", "diagonal modes")
    distances = [
        (name, f"{distance.nats:.4f}", f"{distance.travel:.4f}")
        for name, distance in zip(sources, metrics.distances, strict=True)
    ]
    if report.reused:
        print(f"{report.path} is already what these settings make of these latents; nothing to do")
    print_table(f"{report.path}", ("mixture", ""), rows)
    print_table(
        "per-entry distance from source to data (normalised latents, conditional on the mode)",
        ("source", "-log p, nats", "squared distance of a pair"),
        distances,
    )
    if not report.reused:
        print(f"wrote {report.path} and {report.picture} in {duration(report.seconds)}")
        part = part_flags(config.fraction, config.seed) if config.fraction < 1 else ()
        print(" ".join((f"next: gmtool train {quoted(latents)} --objective mm-fm --gmm {quoted(report.path)}", *part)))


def _likelihood_rows(data: str, value: float | None, size: int) -> list[tuple[str, str]]:
    """Rows on the mean log-likelihood, an image and a dimension of its descriptor; none without a value."""
    if value is None:
        return []
    return [
        (f"log-likelihood of {data} images, nats per image", f"{value:.3f}"),
        (f"log-likelihood of {data} images, nats per dimension", f"{value / size:.4f}"),
    ]
