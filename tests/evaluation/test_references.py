"""What serves as real images, by an extractor that is nothing but the mean colour."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gmtool.artifacts.latents import Provenance, open_latents, write_latents
from gmtool.artifacts.manifest import Input
from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.data.image_sets import find_images
from gmtool.distributed import World
from gmtool.errors import UserError
from gmtool.evaluation.features import Features
from gmtool.evaluation.references import open_reference, reference_features, same_tokenizer, some_images
from gmtool.progress import Progress


@dataclass(frozen=True)
class MeanColour:
    name: str = "mean colour"
    size: int = 3

    def __call__(self, images: torch.Tensor) -> Features:
        return Features(images.float().mean(dim=(2, 3)))


def features(path: Path, side: int = 8) -> np.ndarray:
    return reference_features(open_reference(path), MeanColour(), side, 32, World(), Progress()).vectors.numpy()


def mean_colours(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float64).mean(axis=(1, 2))


def opaque_latents(path: Path, source: Path, names: list[str]) -> Path:
    """Latents by a tokenizer without a decoder, of some images of ``source``, each also mirrored."""
    count = 2 * len(names)
    write_latents(
        path,
        patches=np.zeros((count, 1, 2, 2), np.float32),
        descriptors=np.zeros((count, 4), np.float32),
        labels=np.full(count, -1),
        names=[name for name in names for _ in range(2)],
        classes=(),
        tokenizer=TokenizerSpec("dinov2", {}),
        provenance=Provenance("encode", {}, (Input("images", str(source), find_images(source).fingerprint),)),
        flipped=np.arange(count) % 2 == 1,
    )
    return path


def test_latents_of_pixels_decode_to_the_images(world, digits):
    np.testing.assert_allclose(features(world / "latents.h5"), mean_colours(digits[:500]), rtol=1e-6)


def test_latents_of_pixels_of_another_size_are_refused(world):
    with pytest.raises(UserError, match="8 x 8 px, but the samples have 16 x 16"):
        features(world / "latents.h5", side=16)


def test_other_latents_stand_for_the_images_that_they_were_made_from(world, tmp_path, digits):
    latents = opaque_latents(tmp_path / "opaque.h5", world / "held_out", ["0002.png", "0000.png", "0007.png"])
    np.testing.assert_allclose(features(latents), mean_colours(digits[[500, 502, 507]]), rtol=1e-6)


def test_images_that_are_gone_or_changed_are_not_used(world, tmp_path):
    source = shutil.copytree(world / "held_out", tmp_path / "source")
    latents = opaque_latents(tmp_path / "opaque.h5", source, ["0000.png"])
    (source / "0001.png").unlink()
    with pytest.raises(UserError, match="source has changed since"):
        features(latents)
    shutil.rmtree(source)
    with pytest.raises(UserError, match=r"no longer at .*source.*--reference"):
        features(latents)


def test_folders_are_cropped_to_the_samples_size(world):
    assert features(world / "held_out", side=4).shape == (300, 3)


def test_other_samples_serve_by_their_images_without_the_grid(world, digits):
    reference = open_reference(world / "samples")
    assert reference.kind == "samples" and len(reference) == 200
    np.testing.assert_allclose(features(world / "samples"), mean_colours(digits[800:1000]), rtol=1e-6)


def test_a_run_is_no_reference(world, tmp_path):
    shutil.copy(world / "held_out" / "0000.png", tmp_path / "preview.png")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is a training run"):
        open_reference(tmp_path)


def test_an_npz_may_hold_images_and_statistics(tmp_path, digits):
    np.savez(tmp_path / "r.npz", arr_0=digits[:20], mu=np.ones(3), sigma=np.eye(3), mu_s=np.zeros(9))
    reference = open_reference(tmp_path / "r.npz")
    assert (reference.kind, len(reference)) == ("npz of images, mu and sigma", 20)
    np.testing.assert_array_equal(reference.statistics.mean, np.ones(3))
    np.testing.assert_allclose(features(tmp_path / "r.npz"), mean_colours(digits[:20]), rtol=1e-6)


def test_the_fingerprint_follows_the_content(tmp_path, digits):
    for name, images in (("a", digits[:20]), ("b", digits[:20]), ("c", digits[:21])):
        np.savez(tmp_path / f"{name}.npz", arr_0=images)
    first, second, third = (open_reference(tmp_path / f"{name}.npz").fingerprint for name in "abc")
    assert first == second != third


def test_tokenizers_are_the_same_when_all_of_them_is(world):
    with open_latents(world / "latents.h5") as latents:
        spec = latents.tokenizer
    arrays = {name: array.copy() for name, array in spec.arrays.items()}
    assert same_tokenizer(spec, replace(spec, arrays=arrays))
    next(iter(arrays.values())).flat[0] += 1
    assert not same_tokenizer(spec, replace(spec, arrays=arrays))
    assert not same_tokenizer(spec, replace(spec, arrays={}))
    assert not same_tokenizer(spec, replace(spec, settings={**spec.settings, "image_size": 9}))
    assert not same_tokenizer(spec, replace(spec, name="dinov2"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["latents.h5", "train"])
def test_few_evenly_spaced_images_stand_for_a_large_reference(world, name, digits):
    reference = open_reference(world / name)
    for most, step in ((500, 1), (180, 3), (1, 500)):
        batches = some_images(reference, 8, 64, most=most)
        for _ in range(2):  # it can be read again
            pixels = torch.cat(list(batches())).permute(0, 2, 3, 1).numpy()
            np.testing.assert_array_equal(pixels, digits[:500:step])


def test_statistics_alone_have_no_images(tmp_path):
    np.savez(tmp_path / "r.npz", mu=np.ones(3), sigma=np.eye(3))
    assert some_images(open_reference(tmp_path / "r.npz"), 8, 64) is None


def test_latents_whose_images_are_gone_have_none(world, tmp_path):
    source = shutil.copytree(world / "held_out", tmp_path / "source")
    latents = opaque_latents(tmp_path / "opaque.h5", source, ["0000.png", "0001.png"])
    assert some_images(open_reference(latents), 8, 64) is not None
    shutil.rmtree(source)
    assert some_images(open_reference(latents), 8, 64) is None
