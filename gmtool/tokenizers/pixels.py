"""``pixels``: patches of pixels as latents. No weights, exactly invertible; the descriptor is a PCA.

With patch size p, an image x in {0 ... 255} of size S becomes ``x / 127.5 - 1`` in [-1, 1], rearranged from
(c, S, S) to (c p^2, S / p, S / p). Neighbouring levels are 2 / 255 apart, float16 numbers in [-1, 1] at most 2^-11, so
all 256 levels survive the latents file. The descriptor, which stands in for DINOv2's [CLS] token, projects the image,
averaged over areas to at most 16 x 16 pixels, on the first principal components of a sample of the images; components
are not whitened, so that distances are those of the small images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.errors import UserError
from gmtool.forecast import Choice
from gmtool.runtime import to_device
from gmtool.tokenizers.base import Encoded, ImageSample, LatentSizes, Settled, TokenizerFamily, is_grey, to_uint8
from gmtool.tokenizers.settings import TokenizerSettings

FIT_IMAGES = 4096
"""Images, spread evenly, that the PCA is fitted to, at most."""
GREY_IMAGES = 256
"""Images, spread evenly, that decide whether all are grey."""
SMALL = 16
"""Side of the area-averaged image that the descriptor is made of."""
COMPONENTS = 64
"""Principal components at most."""


@dataclass(frozen=True, eq=False)
class Pixels:
    """The tokenizer; see the module.

    image_size, patch_size: sides in pixels. mean (F,), components (D, F) float32: the PCA of images averaged to at most
    16 x 16 pixels, F = channels * min(16, image_size)^2.
    """

    image_size: int
    patch_size: int
    channels: int
    mean: Tensor
    components: Tensor

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels * patch_size^2, image_size / patch_size, image_size / patch_size)."""
        return pixels_shape(pixels_settings(self.image_size, self.patch_size, self.channels))

    @property
    def descriptor_size(self) -> int:
        """The number of principal components."""
        return len(self.components)

    def spec(self) -> TokenizerSpec:
        """The settings, and the PCA."""
        arrays = {"mean": self.mean.cpu().numpy(), "components": self.components.cpu().numpy()}
        return TokenizerSpec("pixels", pixels_settings(self.image_size, self.patch_size, self.channels), arrays)

    def encode(self, images: Tensor) -> Encoded:
        """See `Tokenizer.encode`. Raises UserError when ``channels`` is 1 and an image is not grey."""
        signed = _signed(images, self.channels, self.mean.device)
        return Encoded(functional.pixel_unshuffle(signed, self.patch_size), self._project(signed))

    def describe(self, images: Tensor) -> Tensor:
        """See `Tokenizer.describe`. Raises UserError as `encode` does."""
        return self._project(_signed(images, self.channels, self.mean.device))

    def decode(self, latents: Tensor, truncate: bool = False) -> Tensor:
        """See `Tokenizer.decode`."""
        signed = functional.pixel_shuffle(latents.to(self.mean.device, torch.float32), self.patch_size)
        return to_uint8((signed + 1) * 127.5, truncate).expand(-1, 3, -1, -1)

    def _project(self, signed: Tensor) -> Tensor:
        return (_small(signed) - self.mean) @ self.components.T


class PixelsFamily(TokenizerFamily):
    """The `TokenizerFamily` of ``pixels``."""

    exact = True

    def settle(self, settings: TokenizerSettings, model: str | None, images: ImageSample) -> Settled:
        """See `TokenizerFamily.settle`: sizes by the first image, grey or RGB by a few hundred."""
        choices = []
        size = settings.image_size
        if size is None:
            side = min(images.first_size())
            size = default_image_size(side) if settings.patch_size is None else min(side, 256)
            choices.append(Choice("--image-size", str(size), f"the first image's short side is {side} pixels"))
        patch = settings.patch_size or default_patch_size(size)
        if settings.patch_size is None:
            choices.append(Choice("--patch-size", str(patch), "an eighth of the image size, at most 16"))
        if size % patch:
            raise UserError(
                f"--patch-size {patch} does not divide the image size {size}: choose a divisor, or --image-size"
            )
        if settings.channels == 2:
            raise UserError("--channels must be 1 (grey) or 3 (RGB), not 2")
        channels = settings.channels
        if channels is None:
            colour = any(not is_grey(batch).all() for batch in images.batches(size, GREY_IMAGES))
            channels = 3 if colour else 1
            choices.append(Choice("--channels", str(channels), "there are colour images" if colour else "all are grey"))
        return Settled(TokenizerSpec("pixels", pixels_settings(size, patch, channels)), tuple(choices))

    def sizes(self, spec: TokenizerSpec, images: int) -> LatentSizes:
        """See `TokenizerFamily.sizes`."""
        fitted = spec.arrays.get("components")
        count = component_count(spec.settings, images) if fitted is None else len(fitted)
        return LatentSizes(pixels_shape(spec.settings), count)

    def fit(self, spec: TokenizerSpec, images: ImageSample) -> TokenizerSpec:
        """See `TokenizerFamily.fit`: the PCA of at most 4096 images."""
        size, channels = spec.settings["image_size"], spec.settings["channels"]
        batches = images.batches(size, FIT_IMAGES, grey=channels == 1)
        return fit_pixels(spec.settings, np.concatenate([small_images(batch, channels) for batch in batches]))

    def open(self, spec: TokenizerSpec, device: torch.device, dtype: torch.dtype, decoder: str | None) -> Pixels:
        """See `TokenizerFamily.open`; it always computes in float32."""
        mean, components = (torch.from_numpy(spec.arrays[name]).to(device) for name in ("mean", "components"))
        settings = spec.settings
        return Pixels(settings["image_size"], settings["patch_size"], settings["channels"], mean, components)

    def takes_grey(self, spec: TokenizerSpec) -> bool:
        """See `TokenizerFamily.takes_grey`."""
        return bool(spec.settings["channels"] == 1)


FAMILY = PixelsFamily()


def pixels_settings(image_size: int, patch_size: int, channels: int) -> dict[str, int]:
    """The settings of a `TokenizerSpec` of pixels."""
    return {"image_size": image_size, "patch_size": patch_size, "channels": channels}


def pixels_shape(settings: Mapping[str, int]) -> tuple[int, int, int]:
    """(C, H, W) of the latents."""
    grid = settings["image_size"] // settings["patch_size"]
    return settings["channels"] * settings["patch_size"] ** 2, grid, grid


def component_count(settings: Mapping[str, int], images: int) -> int:
    """The number D of principal components of ``images`` images: min(64, max(images - 1, 1), F); see `Pixels`."""
    return min(COMPONENTS, max(images - 1, 1), settings["channels"] * min(SMALL, settings["image_size"]) ** 2)


def small_images(images: np.ndarray, channels: int) -> np.ndarray:
    """What the PCA is fitted to: images uint8 (B, 3, S, S) as float32 (B, F) in [-1, 1]; see `Pixels`.

    Raises UserError when ``channels`` is 1 and an image is not grey.
    """
    return _small(_signed(torch.from_numpy(images), channels, torch.device("cpu"))).numpy()


def fit_pixels(settings: Mapping[str, int], small: np.ndarray) -> TokenizerSpec:
    """The record of the tokenizer whose PCA is fitted to small images (n, F), n >= 1, as `small_images` makes them.

    The sign of a component, which is arbitrary, is the one that makes its entry of largest magnitude positive.
    """
    from sklearn.decomposition import PCA

    data = small.astype(np.float64)
    if len(data) == 1:  # one image has no direction of variation: any unit vector does
        components = np.eye(1, data.shape[1])
    else:
        components = PCA(component_count(settings, len(data)), svd_solver="full").fit(data).components_
    largest = np.take_along_axis(components, np.abs(components).argmax(axis=1)[:, None], axis=1)
    return TokenizerSpec(
        "pixels",
        settings,
        {
            "mean": data.mean(axis=0).astype(np.float32),
            "components": (components * np.sign(largest)).astype(np.float32),
        },
    )


def default_patch_size(image_size: int) -> int:
    """The largest divisor of ``image_size`` up to an eighth of it, at most 16, at least 1; both in pixels."""
    return max(size for size in range(1, max(1, min(16, image_size // 8)) + 1) if image_size % size == 0)


def default_image_size(short_side: int) -> int:
    """The largest size, in pixels, up to ``short_side`` and 256, that default patches cut into at most 32 x 32.

    A prime number, for instance, has patches of one pixel: 97 becomes 96.
    """
    size = min(short_side, 256)
    while size // default_patch_size(size) > 32:
        size -= 1
    return size


def _signed(images: Tensor, channels: int, device: torch.device) -> Tensor:
    """Images uint8 (B, 3, S, S) as float32 (B, channels, S, S) in [-1, 1] on a device."""
    if channels == 1 and not is_grey(images).all():  # where they come from: a GPU would be waited for
        raise UserError("a colour image came to a tokenizer of grey ones: encode with --channels 3")
    return to_device(images[:, :channels], device).float() / 127.5 - 1


def _small(signed: Tensor) -> Tensor:
    """Images (B, c, S, S) averaged over areas to at most 16 x 16, flat: (B, F)."""
    return functional.adaptive_avg_pool2d(signed, min(SMALL, signed.shape[-1])).flatten(1)
