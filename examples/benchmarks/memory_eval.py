"""Peak memory of ``gmtool eval`` on 50,000 images of 256 px, 9.8 GB in one samples.npz.

Two commands are started as a user starts them, and their largest resident memory is printed. The first scores the
images by a tokenizer's descriptors against latents, all metrics. The second scores them by Inception against 10,000
images, all metrics: of random weights, and with features of random numbers in the cache, because extracting them would
take hours on a CPU. What extraction itself takes is the peak of a third command, on 256 of the images.

    python examples/benchmarks/memory_eval.py                      # 15 GB of disk
    python examples/benchmarks/memory_eval.py --images 5000 --reference 2000
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from gmtool.console import print_table
from gmtool.evaluation.cache import FeatureCache, feature_key
from gmtool.evaluation.extractors import ExtractorSettings
from gmtool.evaluation.extractors.inception import FEATURES, SIZE, open_extractor
from gmtool.evaluation.feature_plan import SPATIAL_SIZE
from gmtool.evaluation.features import Features
from gmtool.evaluation.references import Reference, open_reference
from gmtool.progress import Progress
from gmtool.stages.evaluate.subjects import open_subject
from gmtool.words import human_bytes

SIDE, AT_ONCE, CLASSES = 256, 250, 1008
LATENTS = 500
"""Images of the latents that the first command compares with."""
EXTRACTED = 256


class RandomInception(FeatureExtractorInceptionV3):
    """The network with the weights that it is made with."""

    def load_state_dict(self, state_dict: Mapping[str, torch.Tensor]) -> None:
        """Read nothing."""


def write_images(path: Path, count: int, seed: int) -> Path:
    """An .npz of random images uint8 (count, 256, 256, 3), written a few at a time."""
    some = np.random.default_rng(seed).integers(0, 256, (AT_ONCE, SIDE, SIDE, 3), dtype=np.uint8)
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, SIDE, SIDE, 3)}
    with zipfile.ZipFile(path, "w") as archive, archive.open("arr_0.npy", "w", force_zip64=True) as array:
        np.lib.format.write_array_header_1_0(array, header)
        for start in range(0, count, AT_ONCE):
            part = some[: count - start]
            array.write((part + np.uint8(start // AT_ONCE % 256)).tobytes())
    return path


def write_weights(folder: Path) -> Path:
    """A file of random weights of Inception."""
    torch.save({}, folder / "empty.pth")
    torch.manual_seed(0)
    network = RandomInception("random", [FEATURES], feature_extractor_weights_path=str(folder / "empty.pth"))
    torch.save(network.state_dict(), folder / "weights.pth")
    return folder / "weights.pth"


def keep_features(images: Reference, extractor: str, cache: FeatureCache, seed: int) -> None:
    """Keep random numbers as the Inception features of images, where the command looks for them."""
    draw, count = torch.Generator().manual_seed(seed), len(images)
    vectors, logits, spatial = (torch.randn(count, size, generator=draw) for size in (SIZE, CLASSES, SPATIAL_SIZE))
    cache.save(feature_key(extractor, images.digest, SIDE), Features(vectors.abs_(), logits, spatial), Progress())


def peak(arguments: list[str], folder: Path) -> tuple[int, float]:
    """The largest resident memory of a command of gmtool, in bytes, and its seconds."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "gmtool", *arguments],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "GMTOOL_CACHE": str(folder / "cache")},
    )
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"gmtool {' '.join(arguments)} failed")
    return 1024 * used.ru_maxrss, time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--reference", type=int, default=10_000, help="images of the reference of Inception")
    parser.add_argument("--only", choices=("tokenizer", "inception", "extraction"))
    parser.add_argument("--folder", type=Path, help="where the files are made; default: a temporary folder")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        samples = write_images(folder / "samples.npz", options.images, seed=0)
        weights = ["--inception-weights", str(write_weights(folder))]
        eval_ = ["eval", "samples.npz", "--device", "cpu"]
        few = ["eval", "few.npz", "--reference", "few.npz", *weights, "--device", "cpu", "--cache-size", "0"]
        if options.only in (None, "tokenizer"):
            real = folder / "real"
            real.mkdir()
            _write_pictures(real, LATENTS)
            size = ["--image-size", str(SIDE), "--patch-size", "16"]
            peak(["encode", "real", "latents.h5", "--tokenizer", "pixels", *size, "--device", "cpu"], folder)
            arguments = [*eval_, "--reference", "latents.h5", "--features", "tokenizer"]
            rows.append(("a tokenizer's descriptors", *peak(arguments, folder)))
        if options.only in (None, "inception"):
            reference = write_images(folder / "reference.npz", options.reference, seed=1)
            settings = ExtractorSettings("inception", inception_weights=folder / "weights.pth")
            extractor = open_extractor(settings, None, torch.device("cpu"), Progress()).name
            cache = FeatureCache(folder / "cache" / "features", 2**40)
            for number, images in enumerate((open_subject(samples).images, open_reference(reference))):
                keep_features(images, extractor, cache, number)
            arguments = [*eval_, "--reference", "reference.npz", "--features", "inception", *weights]
            rows.append(("Inception, features from the cache", *peak(arguments, folder)))
        if options.only in (None, "extraction"):
            write_images(folder / "few.npz", EXTRACTED, seed=2)
            rows.append((f"Inception, extraction of {EXTRACTED} images", *peak(few, folder)))
    print_table(
        f"gmtool eval of {options.images:,} images of {SIDE} px",
        ("by", "peak memory", "seconds"),
        [(words, human_bytes(size), f"{seconds:.0f}") for words, size, seconds in rows],
    )


def _write_pictures(folder: Path, count: int) -> None:
    from PIL import Image

    draw = np.random.default_rng(3)
    for number in range(count):
        small = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / f"{number:04d}.png")


if __name__ == "__main__":
    main()
