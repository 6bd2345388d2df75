"""Real images of the same classes as a grid of samples, to look at beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gmtool.artifacts.latents import LatentsFile, open_latents
from gmtool.artifacts.samples import open_samples
from gmtool.data.images import centre_crop, to_rgb
from gmtool.errors import GmtoolError
from gmtool.evaluation.plots import image_grid
from gmtool.tokenizers.build import build_tokenizer, decodes_exactly

SHOWN = 100
"""Images of a grid: as many as ``gmtool sample`` shows."""


def real_grid(samples: Path, latents: Path, fingerprint: str) -> np.ndarray | None:
    """Training images (H, W, 3) uint8 laid out as the grid of ``samples``, of its classes in its order.

    latents, fingerprint: what the samples' run was trained on. None where that or its images are gone, and its latents
    do not decode to them; images in an archive are taken for gone, since finding them would mean reading all of it.
    """
    try:
        folder = open_samples(samples)
        _, side = folder.image_shape()
        with open_latents(folder.latents) as drawn, open_latents(latents) as file:
            if file.manifest.fingerprint != fingerprint:
                return None
            rows = _rows(file.labels, drawn.labels[:SHOWN])
            images = _decoded(file, rows) if decodes_exactly(file.tokenizer) else _read(file, rows, side)
    except (GmtoolError, OSError, ValueError):
        return None
    return None if images is None else image_grid(images)


def _rows(labels: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Rows of images with the labels that are wanted; evenly spaced ones, where a label has none."""
    chosen = np.linspace(0, len(labels) - 1, len(wanted)).round().astype(np.int64)
    for label in np.unique(wanted):
        places, rows = np.flatnonzero(wanted == label), np.flatnonzero(labels == label)
        if len(rows):
            chosen[places] = rows[np.linspace(0, len(rows) - 1, len(places)).round().astype(np.int64)]
    return chosen


def _decoded(file: LatentsFile, rows: np.ndarray) -> np.ndarray:
    tokenizer = build_tokenizer(file.tokenizer, torch.device("cpu"), "float32")
    latents = torch.from_numpy(file.patches(rows)).float()
    return tokenizer.decode(latents).permute(0, 2, 3, 1).cpu().numpy()


def _read(file: LatentsFile, rows: np.ndarray, side: int) -> np.ndarray | None:
    recorded = file.manifest.input("images")
    if recorded is None or not Path(recorded.path).is_dir():
        return None
    names = file.names()
    images = []
    for row in rows:
        with Image.open(Path(recorded.path) / names[row]) as image:
            images.append(centre_crop(to_rgb(image), side).transpose(1, 2, 0))
    return np.stack(images)
