"""A fitted mixture as a picture beside its file: populations, likelihood, distances, and the modes' means as images."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from gmtool.artifacts.files import written_aside
from gmtool.artifacts.gmm import GmmFile, open_gmm
from gmtool.artifacts.latents import LatentsFile
from gmtool.artifacts.outputs import kind_of
from gmtool.errors import GmtoolError, UserError
from gmtool.evaluation.plots import image_grid
from gmtool.progress import Progress
from gmtool.stages.fit_gmm.report import FitMetrics
from gmtool.tokenizers.build import build_tokenizer, missing_decoder

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SOFTWARE = "gmtool fit-gmm"
"""Name of the program that wrote a picture, in its metadata."""

SHOWN = 64
"""Modes, the largest ones, whose means are shown."""

DECODED = 16
"""Means that are decoded at a time."""


def check_picture(picture: Path, gmm: Path) -> None:
    """Raise UserError where ``picture`` is not one that was drawn of a mixture, or would replace ``gmm`` itself."""
    if picture == gmm:
        raise UserError(f"the mixture {gmm} would be replaced by its picture: give it a name that ends in .h5")
    # versions before left Matplotlib's name in the picture beside a mixture
    drawn_by = (SOFTWARE, "Matplotlib") if kind_of(gmm) == "gmm" else (SOFTWARE,)
    if picture.exists() and not _is_drawn(picture, drawn_by):
        raise UserError(f"{picture} would be replaced by a picture of the mixture: choose another name for {gmm}")


def _is_drawn(picture: Path, drawn_by: tuple[str, ...]) -> bool:
    from PIL import Image

    try:
        with Image.open(picture) as image:
            return str(image.info.get("Software")).startswith(drawn_by)
    except (OSError, SyntaxError, ValueError):  # no image
        return False


def draw_fit(
    gmm_path: Path,
    picture: Path,
    latents: LatentsFile,
    metrics: FitMetrics,
    decoder: str | None,
    device: torch.device,
    progress: Progress,
) -> None:
    """Draw the mixture at ``gmm_path`` to ``picture``, its means as images where the tokenizer can decode them.

    decoder: of dinov2 latents; see `gmtool.tokenizers.build.build_tokenizer`.
    """
    from matplotlib.figure import Figure  # without pyplot, which would look for a display

    with open_gmm(gmm_path) as gmm:
        images = _means(gmm, latents, decoder, device, progress)
        figure = Figure(figsize=(11, 7 if images is None else 11), layout="constrained")
        grid = figure.add_gridspec(2 if images is None else 3, 2, height_ratios=[1, 1] if images is None else [1, 1, 2])
        _draw_populations(figure.add_subplot(grid[0, 0]), gmm.population)
        _draw_likelihood(figure.add_subplot(grid[0, 1]), metrics)
        for column, (name, what) in enumerate(
            {"nats": "-log p(latents | mode), nats", "travel": "|data - source|^2"}.items()
        ):
            _draw_distances(figure.add_subplot(grid[1, column]), metrics, name, what)
        if images is not None:
            axes = figure.add_subplot(grid[2, :])
            axes.imshow(image_grid(images, columns=math.ceil(math.sqrt(2 * len(images)))))
            axes.set_title(f"means of the {len(images)} largest modes, largest first")
            axes.set_axis_off()
    with written_aside(picture) as part:
        figure.savefig(part, format="png", dpi=100, metadata={"Software": SOFTWARE})


def _means(
    gmm: GmmFile, latents: LatentsFile, decoder: str | None, device: torch.device, progress: Progress
) -> np.ndarray | None:
    """The largest modes' means as images (n, S, S, 3) uint8; None where they cannot be decoded."""
    if missing_decoder(latents.tokenizer, decoder) is not None:
        return None
    order = np.argsort(-gmm.population, kind="stable")[:SHOWN]
    order = order[gmm.population[order] > 0]
    try:
        tokenizer = build_tokenizer(latents.tokenizer, device, decoder=decoder)
        parts = [gmm.patch_mean(order[start : start + DECODED]) for start in range(0, len(order), DECODED)]
        images = torch.cat([tokenizer.decode(torch.from_numpy(part).to(device)).cpu() for part in parts])
    except (GmtoolError, KeyError) as error:  # no weights, or a record without what decodes
        progress.note(f"the modes' means are not in the picture: {error}")
        return None
    return images.permute(0, 2, 3, 1).numpy()


def _draw_populations(axes: Axes, population: np.ndarray) -> None:
    axes.plot(np.arange(1, len(population) + 1), np.sort(population)[::-1], drawstyle="steps-post")
    axes.set(title="population", xlabel="mode, largest first", ylabel="images", yscale="symlog", ylim=(0, None))


def _draw_likelihood(axes: Axes, metrics: FitMetrics) -> None:
    size = metrics.descriptor_size
    ends = ((metrics.history, metrics.log_likelihood, "fitted"),) + (
        ((metrics.held_out_history, metrics.held_out_log_likelihood, "held out"),) if metrics.held_out else ()
    )
    for history, last, name in ends:
        axes.plot(np.array([*history, last]) / size, label=name, marker=".")
    axes.legend()
    axes.set(title="log-likelihood of the descriptors", xlabel="EM iteration", ylabel="nats per dimension")


def _draw_distances(axes: Axes, metrics: FitMetrics, name: str, what: str) -> None:
    values = [getattr(distance, name) for distance in metrics.distances]
    bars = axes.bar(["one Gaussian", "spherical", "diagonal"], values)
    axes.bar_label(bars, fmt="%.4g")
    low, high = min(values), max(values)
    axes.set(title=f"{what} per latent entry", ylim=(low - 0.5 * (high - low) - 0.01, high + 0.2 * (high - low) + 0.01))
