"""Real colour pictures of 32 x 32 pixels: crops of the photographs that scikit-learn, matplotlib and scikit-image ship.

Each photograph is a class of 600 crops to train on and 140 held out. It is scaled to a short side of 256 pixels and
cut into upright bands, which are for training and held out by turns: no pixel that is held out is ever trained on.
Crops of one band overlap.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from digits import Digits
from PIL import Image, ImageDraw

from gmtool.console import ConsoleProgress
from gmtool.stages.encode.config import EncodeConfig
from gmtool.stages.encode.run import encode_images
from gmtool.tokenizers.settings import TokenizerSettings

SIDE, SHORT = 32, 256
BANDS = {"train": (0, 96), "held-out": (96, 144)}
"""First and last column of a band of either part; they repeat to the right."""
COUNTS = {"train": 600, "held-out": 140}
"""Crops of a photograph."""
ACROSS, DOWN = 4, 8
"""Pixels between neighbouring crops."""
SHIPPED = {
    "astronaut": "astronaut",
    "cat": "chelsea",
    "coffee": "coffee",
    "galaxies": "hubble_deep_field",
    "retina": "retina",
    "rocket": "rocket",
    "tissue": "immunohistochemistry",
}
"""Photographs of scikit-image that need no download, and the functions of `skimage.data` that load them."""


def prepare(root: Path) -> Digits:
    """The crops to train on, encoded in patches of 4 x 4 pixels, and the folder of those held out."""
    training, held_out = write_photographs(root / "images")
    data = Digits(root, root / "latents.h5", held_out)
    if not data.latents.exists():
        settings = EncodeConfig(TokenizerSettings("pixels", patch_size=4), workers=0, device="cpu")
        encode_images(training, data.latents, settings, ConsoleProgress())
    return data


def photographs() -> dict[str, Image.Image]:
    """All photographs that the installed packages hold, by name; three of eleven without scikit-image."""
    from matplotlib.cbook import get_sample_data
    from sklearn.datasets import load_sample_images

    china, flower = load_sample_images().images
    with get_sample_data("grace_hopper.jpg") as file:
        photographs = {"china": china, "flower": flower, "portrait": np.asarray(Image.open(file).convert("RGB"))}
    if find_spec("skimage") is None:
        print("scikit-image is not installed, so there are 3 photographs instead of 11: pip install scikit-image")
    else:
        from skimage import data

        photographs |= {name: getattr(data, function)() for name, function in SHIPPED.items()}
        photographs["motorcycle"] = data.stereo_motorcycle()[0]
    return {name: Image.fromarray(photographs[name]) for name in sorted(photographs)}


def write_photographs(folder: Path) -> tuple[Path, Path]:
    """The crops as PNGs in ``folder``, in a folder a part and class: those to train on, and those held out."""
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.partial")
        for name, photograph in photographs().items():
            for part in BANDS:
                (partial / part / name).mkdir(parents=True, exist_ok=True)
                scaled = _scaled(photograph)
                every = list(corners(part, scaled))
                for x, y in np.random.default_rng(0).permutation(every)[: COUNTS[part]].tolist():
                    crop = scaled.crop((x, y, x + SIDE, y + SIDE))
                    crop.save(partial / part / name / f"{name}-{y:03}-{x:03}.png")
        partial.rename(folder)
    return folder / "train", folder / "held-out"


def _scaled(photograph: Image.Image) -> Image.Image:
    scale = SHORT / min(photograph.size)
    width, height = (round(scale * length) for length in photograph.size)
    return photograph.resize((width, height), Image.Resampling.LANCZOS)


def corners(part: str, photograph: Image.Image) -> Iterator[tuple[int, int]]:
    """Left and upper edge of every crop of a part."""
    (first, last), period = BANDS[part], max(last for _, last in BANDS.values())
    for band in range(0, photograph.width, period):
        end = min(band + last, photograph.width)
        for x in range(band + first, end - SIDE + 1, ACROSS):
            for y in range(0, photograph.height - SIDE + 1, DOWN):
                yield x, y


def label_strips(strips: dict[str, Path], path: Path) -> None:
    """Draw strips of pictures under each other, twice as large, with their names to the left."""
    images = {label: Image.open(strip) for label, strip in strips.items()}
    left, height = 230, 2 * SIDE
    page = Image.new("RGB", (left + 2 * max(image.width for image in images.values()), height * len(images)), "white")
    for row, (label, strip) in enumerate(images.items()):
        page.paste(strip.resize((2 * strip.width, height), Image.Resampling.NEAREST), (left, row * height))
        ImageDraw.Draw(page).text((8, (row + 0.5) * height), label, "black", anchor="lm", font_size=14)
    page.quantize(128).save(path)
