"""Grids of images, enlarged for viewing."""

from __future__ import annotations

import math

import numpy as np

READABLE = 32
"""Tiles smaller than this many pixels are enlarged."""

GAP, BACKGROUND = 2, 255
"""Pixels between tiles, and their grey value."""


def image_grid(images: np.ndarray, columns: int | None = None, scale: int | None = None) -> np.ndarray:
    """Lay out images in rows, first image top left.

    images: uint8 (N, h, w, 3), N >= 1. columns: tiles per row; default ceil(sqrt(N)). scale: whole factor by which each
    pixel is repeated (nearest neighbour); default the smallest that makes tiles at least `READABLE` pixels.
    Returns uint8 (H, W, 3). Raises ValueError for another shape or type.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not len(images):
        raise ValueError(f"a grid takes uint8 images (N, h, w, 3), not {images.dtype} {images.shape}")
    columns = columns or math.ceil(math.sqrt(len(images)))
    scale = scale or max(1, math.ceil(READABLE / min(images.shape[1:3])))
    tiles = images.repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = (side + GAP for side in tiles.shape[1:3])
    rows = math.ceil(len(tiles) / columns)
    grid = np.full((rows * height - GAP, columns * width - GAP, 3), BACKGROUND, dtype=np.uint8)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        grid[row * height : (row + 1) * height - GAP, column * width : (column + 1) * width - GAP] = tile
    return grid
