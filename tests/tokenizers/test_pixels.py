"""pixels: inverted exactly, also through float16; the descriptor is scikit-learn's PCA of area-averaged images."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from gmtool.errors import UserError
from gmtool.tokenizers.base import Tokenizer
from gmtool.tokenizers.build import build_tokenizer
from gmtool.tokenizers.pixels import (
    component_count,
    default_image_size,
    default_patch_size,
    fit_pixels,
    pixels_settings,
    pixels_shape,
    small_images,
)

CPU = torch.device("cpu")


def images(count: int, size: int, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(size)
    pixels = rng.integers(0, 256, (count, channels, size, size), dtype=np.uint8)
    return np.broadcast_to(pixels, (count, 3, size, size)).copy()


def tokenizer(size: int, patch: int, channels: int, count: int = 10) -> Tokenizer:
    settings = pixels_settings(size, patch, channels)
    return build_tokenizer(fit_pixels(settings, small_images(images(count, size, channels), channels)), CPU)


@pytest.mark.parametrize(("size", "patch"), [(8, 1), (8, 2), (48, 6), (64, 16), (15, 5)])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_come_back_exactly_through_float16(size: int, patch: int, channels: int) -> None:
    pixels = tokenizer(size, patch, channels)
    given = torch.from_numpy(images(4, size, channels))
    encoded = pixels.encode(given)
    assert encoded.patches.dtype == torch.float32
    assert (
        tuple(encoded.patches.shape[1:]) == pixels.latent_shape == (channels * patch**2, size // patch, size // patch)
    )
    assert torch.equal(pixels.decode(encoded.patches), given)
    assert torch.equal(pixels.decode(encoded.patches.half().float()), given)


def test_all_levels_survive_float16() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(1, 3, 1, 1)
    pixels = tokenizer(16, 2, 1)
    patches = pixels.encode(levels).patches
    assert (float(patches.min()), float(patches.max())) == (-1, 1)
    assert torch.equal(pixels.decode(patches.half().float()), levels)


def test_a_patch_is_a_square_of_neighbours() -> None:
    given = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    given[..., 2:4, 6:8] = 255  # the second row and fourth column of 2 x 2 patches
    patches = tokenizer(8, 2, 3).encode(given).patches
    assert (patches[0, :, 1, 3] == 1).all()
    assert int((patches == 1).sum()) == 12


def test_decoding_clamps_and_rounds() -> None:
    decoded = tokenizer(8, 1, 1).decode(torch.tensor([-3.0, 3, 0.001, -0.001, 1, -1, 0.5, -0.5]).expand(1, 1, 8, 8))
    assert decoded[0, 0, 0].tolist() == [0, 255, 128, 127, 255, 0, 191, 64]


@pytest.mark.parametrize(("size", "channels", "count"), [(8, 1, 100), (32, 3, 90), (8, 3, 20)])
def test_the_descriptor_is_a_pca(size: int, channels: int, count: int) -> None:
    data = images(count, size, channels)
    signed = data[:, :channels] / 127.5 - 1.0
    side = min(size, 16)
    small = signed.reshape(count, channels, side, size // side, side, size // side).mean((3, 5)).reshape(count, -1)
    expected = PCA(min(64, count - 1, small.shape[1]), svd_solver="full").fit(small).transform(small)
    pixels = tokenizer(size, 1, channels, count)
    description = pixels.describe(torch.from_numpy(data)).numpy()
    assert description.shape == (count, pixels.descriptor_size) == expected.shape
    np.testing.assert_allclose(np.abs(description), np.abs(expected), atol=2e-4)
    np.testing.assert_array_equal(description, pixels.encode(torch.from_numpy(data)).descriptors.numpy())


def test_components_are_orthonormal_with_their_largest_entry_positive() -> None:
    components = tokenizer(16, 4, 3, 50).spec().arrays["components"]
    assert components.dtype == np.float32
    np.testing.assert_allclose(components @ components.T, np.eye(len(components)), atol=1e-5)
    assert (np.take_along_axis(components, np.abs(components).argmax(1)[:, None], 1) > 0).all()


@pytest.mark.parametrize(
    ("count", "size", "channels", "expected"),
    [(1, 8, 1, 1), (2, 8, 1, 1), (10, 8, 1, 9), (500, 4, 1, 16), (500, 64, 3, 64)],
)
def test_the_number_of_components_is_known_before_the_fit(count: int, size: int, channels: int, expected: int) -> None:
    assert component_count(pixels_settings(size, 1, channels), count) == expected
    pixels = tokenizer(size, 1, channels, count)
    assert pixels.descriptor_size == expected
    assert torch.isfinite(pixels.describe(torch.from_numpy(images(count, size, channels)))).all()


def test_the_record_rebuilds_the_tokenizer() -> None:
    first = tokenizer(16, 4, 3)
    again = build_tokenizer(first.spec(), CPU)
    given = torch.from_numpy(images(3, 16))
    assert torch.equal(first.encode(given).descriptors, again.encode(given).descriptors)
    assert again.latent_shape == first.latent_shape == pixels_shape(first.spec().settings)
    assert again.image_size == 16


def test_grey_latents_refuse_colour_and_a_decoder() -> None:
    pixels = tokenizer(8, 1, 1)
    with pytest.raises(UserError, match="--channels 3"):
        pixels.encode(torch.from_numpy(images(2, 8, 3)))
    with pytest.raises(UserError, match="--decoder"):
        build_tokenizer(pixels.spec(), CPU, decoder="somewhere")


def test_default_sizes() -> None:
    assert [default_patch_size(size) for size in (1, 8, 15, 16, 28, 64, 100, 128, 256, 512)] == [
        1,
        1,
        1,
        2,
        2,
        8,
        10,
        16,
        16,
        16,
    ]
    assert [default_image_size(side) for side in (1, 8, 28, 64, 97, 256, 4000)] == [1, 8, 28, 64, 96, 256, 256]
    for side in range(1, 300):
        size = default_image_size(side)
        assert size % default_patch_size(size) == 0
        assert size // default_patch_size(size) <= 32
        assert size > 0.9 * min(side, 256)
