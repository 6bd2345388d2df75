"""A small world of real digits that the tests of train, sample, inspect and the command line share."""

import os

# before torch is imported, here and in subprocesses: small networks gain nothing from threads, and on busy cores the
# threads' barriers make them slower by a factor of thirty
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from small import MIXTURE, PIXELS, Small

from gmtool.progress import Progress
from gmtool.stages.encode.run import encode_images
from gmtool.stages.fit_gmm.run import fit_gmm


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session", autouse=True)
def cache_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests leave nothing in the user's cache."""
    os.environ["GMTOOL_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """60 digits 0, 1 and 2: 30, 20 and 10 of them. Not to be written to."""
    root, data = tmp_path_factory.mktemp("small"), load_digits()
    world = Small(root / "classes", root / "flat")
    for digit, count in enumerate((30, 20, 10)):
        for index in np.flatnonzero(data.target == digit)[:count]:
            image = Image.fromarray((data.images[index] * 255 / 16).astype(np.uint8))
            for folder in (world.classes / "images" / "abc"[digit], world.flat / "images"):
                folder.mkdir(parents=True, exist_ok=True)
                image.save(folder / f"{index:04d}.png")
    for folder in (world.classes, world.flat):
        encode_images(folder / "images", folder / "latents.h5", PIXELS, Progress())
        fit_gmm(folder / "latents.h5", folder / "gmm.h5", MIXTURE, Progress())
    return world
