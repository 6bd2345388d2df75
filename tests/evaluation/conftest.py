"""A small world of digits: latents to train on, held-out images, and samples of known quality."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch_fidelity import feature_extractor_inceptionv3 as upstream

from gmtool.artifacts.latents import Provenance, open_latents, write_latents
from gmtool.artifacts.manifest import Input, Manifest, fingerprint
from gmtool.cli.app import main
from gmtool.tokenizers.build import build_tokenizer


def write_images(folder: Path, images: np.ndarray) -> Path:
    folder.mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index:04d}.png")
    return folder


def write_pixel_latents(source: Path, output: Path) -> Path:
    """Latents of an image folder by a `pixels` tokenizer that is fitted to it."""
    assert main(["encode", str(source), str(output), "--tokenizer", "pixels", "--workers", "0"]) == 0
    return output


def write_samples(folder: Path, images: np.ndarray, training: Path) -> Path:
    """A folder of samples as `gmtool sample` writes it, without its pictures."""
    folder.mkdir()
    np.savez(folder / "samples.npz", arr_0=images, arr_1=np.full(len(images), -1))
    with open_latents(training) as latents:
        source, spec = latents.manifest, latents.tokenizer
    encoded = build_tokenizer(spec, torch.device("cpu"), "float32").encode(
        torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    )
    write_latents(
        folder / "latents.h5",
        patches=encoded.patches.numpy(),
        descriptors=encoded.descriptors.numpy(),
        labels=np.full(len(images), -1),
        names=[f"{index:06d}.png" for index in range(len(images))],
        classes=(),
        tokenizer=spec,
        provenance=Provenance("gmtool sample", {}),
    )
    inputs = (Input("latents", str(training), source.fingerprint),)
    manifest = Manifest("samples", "gmtool sample", fingerprint([images]), {}, inputs)
    (folder / "sampling.json").write_text(manifest.to_json())
    return folder


@pytest.fixture(scope="session")
def digits() -> np.ndarray:
    """1797 digits, uint8 (N, 8, 8, 3), in random order."""
    grey = (load_digits().images * 255 / 16).astype(np.uint8)[..., None].repeat(3, axis=-1)
    return grey[np.random.default_rng(0).permutation(len(grey))]


@pytest.fixture(scope="session")
def make_samples() -> Callable[[Path, np.ndarray, Path], Path]:
    """`write_samples`, for tests that need other samples than the world's."""
    return write_samples


@pytest.fixture(scope="session")
def make_latents() -> Callable[[Path, Path], Path]:
    """`write_pixel_latents`, for tests that need other latents than the world's."""
    return write_pixel_latents


@pytest.fixture(scope="session")
def world(tmp_path_factory, digits) -> Path:
    """train/ (500 digits) and its latents.h5, held_out/ (300), and samples/ that are 200 other real digits."""
    root, images = tmp_path_factory.mktemp("world"), digits
    write_images(root / "held_out", images[500:800])
    training = write_pixel_latents(write_images(root / "train", images[:500]), root / "latents.h5")
    write_samples(root / "samples", images[800:1000], training)
    return root


class RandomInception(upstream.FeatureExtractorInceptionV3):
    """torch-fidelity's network before it has read any weights."""

    def load_state_dict(self, state_dict: dict) -> None:
        pass


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory) -> Path:
    """A file of random weights of the Inception network."""
    folder = tmp_path_factory.mktemp("weights")
    torch.save({}, folder / "empty.pth")
    torch.manual_seed(0)
    network = RandomInception("random", ["2048"], feature_extractor_weights_path=str(folder / "empty.pth"))
    torch.save(network.state_dict(), folder / "weights.pth")
    return folder / "weights.pth"


@pytest.fixture(autouse=True)
def no_weights(tmp_path, tmp_path_factory, monkeypatch):
    """Neither a cache of Inception weights nor a server that has them, and no features of other tests."""
    monkeypatch.setenv("GMTOOL_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(upstream, "URL_INCEPTION_V3", "http://127.0.0.1:9/weights-01234567.pth")
