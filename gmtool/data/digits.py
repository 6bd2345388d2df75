"""Real images that come with a package: scikit-learn's 1797 handwritten digits, 8 x 8 px, 17 grey levels.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

TRAINING = 1400
"""Digits to train on; the other 397 are held out. The two parts have different writers only by chance."""


def write_digits(folder: Path) -> tuple[Path, Path]:
    """Write the digits as PNG class folders ``train/<digit>/`` and ``held-out/<digit>/``; return the two folders.

    The split is fixed. A file that already has the right content is not written again, so that its modification time
    stays. Raises OSError when one cannot be written.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.rint(data.images * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    for place, index in enumerate(order):
        part = folder / ("train" if place < TRAINING else "held-out") / str(data.target[index])
        part.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        Image.fromarray(images[index]).save(content, "PNG")
        path = part / f"{index:04d}.png"
        if not path.exists() or path.read_bytes() != content.getvalue():
            path.write_bytes(content.getvalue())
    return folder / "train", folder / "held-out"
