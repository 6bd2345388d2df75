"""``sd-vae``: latents of Stable Diffusion's autoencoder, or of any AutoencoderKL of diffusers, as GMFlow uses them.

An image in {0 ... 255} becomes ``x / 127.5 - 1``. The encoder gives a Gaussian at each position of a grid, for Stable
Diffusion's 4 channels at an eighth of the image's side; the latent is ``(mean - shift) * scale`` with the scale and the
shift of the model's configuration (0.18215 and 0 for Stable Diffusion), so that its entries have about unit variance.
The mean is taken, where GMFlow draws once for each image: latents depend on no seed. Decoding inverts the scale.

The descriptor is the latent averaged over areas to at most 4 x 4: colours and layout, no further model. Modes that mean
something need the descriptor of an encoder in its place, see `gmtool.tokenizers.with_descriptor`.
Source: Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, arXiv 2112.10752.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.errors import UserError, install
from gmtool.runtime import to_device
from gmtool.tokenizers.base import Encoded, ImageSample, LatentSizes, Settled, TokenizerFamily, to_uint8
from gmtool.tokenizers.pretrained import (
    RECORDED,
    model_config,
    model_folder,
    model_record,
    reading_model,
    recorded_folder,
    recorded_model,
)
from gmtool.tokenizers.settings import TokenizerSettings

DEFAULT_MODEL = "stabilityai/sd-vae-ft-ema"
DEFAULT_IMAGE_SIZE = 256
POOLED = 4
"""Side of the area-averaged latent that the descriptor is."""
IMAGES_A_CALL = 16
"""Images that go through the network at once: at 256 px, the widest layer of Stable Diffusion's takes 2 GiB."""
_ROLE = "--tokenizer"


_NEEDS_DIFFUSERS = f"latents of an sd-vae need diffusers: {install('sd-vae')}"


def sd_vae_spec(model: str, image_size: int) -> TokenizerSpec:
    """The record of an AutoencoderKL, a folder or a hub id, for images of ``image_size`` pixels on each side.

    Raises UserError for a wrong model or size, MachineError when it cannot be fetched.
    """
    folder = model_folder(model, _ROLE)
    config = model_config(folder, _ROLE)
    if not FAMILY.recognises(config):
        raise UserError(f"{_ROLE} {folder} is a {config.get('_class_name', 'model of another kind')}, no AutoencoderKL")
    factor = _factor(config)
    if image_size % factor:
        raise UserError(f"--image-size {image_size}: this autoencoder takes multiples of {factor} pixels")
    return TokenizerSpec("sd-vae", {**model_record(model, _ROLE), "image_size": image_size})


def sd_vae_shape(spec: TokenizerSpec) -> tuple[int, int, int]:
    """(C, H, W) of the latents. Raises as `gmtool.tokenizers.pretrained.recorded_model` and `model_config` do."""
    config = model_config(recorded_model(spec.settings), RECORDED)
    grid = int(spec.settings["image_size"]) // _factor(config)
    return int(config.get("latent_channels", 4)), grid, grid


def pixels_a_position(model: str) -> int:
    """Pixels of the image per position of the latents, on each axis, for a model given by its folder or hub id.

    Raises as `gmtool.tokenizers.pretrained.model_folder` and `model_config` there do.
    """
    return _factor(model_config(model_folder(model, _ROLE), _ROLE))


def pooled_size(shape: tuple[int, int, int]) -> int:
    """D = C min(4, H)^2 of the descriptors of latents (C, H, W), H = W."""
    return shape[0] * min(POOLED, shape[1]) ** 2


class SdVae:
    """The tokenizer; see the module. Parameters stay float32; lower precision is autocast, in the encoder alone."""

    def __init__(self, spec: TokenizerSpec, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        """Raises UserError without diffusers, and when the model of ``spec`` is gone, damaged or has other weights;
        MachineError when it cannot be fetched.
        """
        self._spec = spec
        self._network = _load_network(recorded_folder(spec.settings)).to(device)
        config = self._network.config
        self._scale, self._shift = float(config.scaling_factor), float(config.shift_factor or 0.0)
        self._device, self._dtype = device, dtype

    @property
    def image_size(self) -> int:
        """See `Tokenizer.image_size`."""
        return int(self._spec.settings["image_size"])

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(latent channels, image_size / 8, image_size / 8) for Stable Diffusion."""
        return sd_vae_shape(self._spec)

    @property
    def descriptor_size(self) -> int:
        """See `pooled_size`."""
        return pooled_size(self.latent_shape)

    def spec(self) -> TokenizerSpec:
        """See `sd_vae_spec`."""
        return self._spec

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Encoded:
        """See `Tokenizer.encode`."""
        patches = _in_parts(self._encode, images)
        pooled = functional.adaptive_avg_pool2d(patches, min(POOLED, patches.shape[-1]))
        return Encoded(patches, pooled.flatten(1))

    def describe(self, images: Tensor) -> Tensor:
        """See `Tokenizer.describe`."""
        return self.encode(images).descriptors

    @torch.inference_mode()
    def decode(self, latents: Tensor, truncate: bool = False) -> Tensor:
        """See `Tokenizer.decode`."""
        return to_uint8(_in_parts(self._decode, latents), truncate)

    def _encode(self, images: Tensor) -> Tensor:
        signed = to_device(images, self._device).float() / 127.5 - 1
        with self._autocast():
            mean = self._network.encode(signed).latent_dist.mode()
        return (mean.float() - self._shift) * self._scale

    def _decode(self, latents: Tensor) -> Tensor:
        plain = latents.to(self._device, torch.float32) / self._scale + self._shift
        return (self._network.decode(plain).sample + 1) * 127.5

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32)


class SdVaeFamily(TokenizerFamily):
    """The `TokenizerFamily` of ``sd-vae``."""

    weights = True

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """See `TokenizerFamily.recognises`."""
        return bool(config.get("_class_name") == "AutoencoderKL")

    def default_sizes(self, image_size: int) -> LatentSizes:
        """See `TokenizerFamily.default_sizes`: 4 channels, a position for 8 x 8 pixels."""
        shape = (4, image_size // 8, image_size // 8)
        return LatentSizes(shape, pooled_size(shape))

    def settle(self, settings: TokenizerSettings, model: str | None, images: ImageSample) -> Settled:
        """See `TokenizerFamily.settle`."""
        return Settled(sd_vae_spec(model or DEFAULT_MODEL, settings.image_size or DEFAULT_IMAGE_SIZE))

    def sizes(self, spec: TokenizerSpec, images: int) -> LatentSizes:
        """See `TokenizerFamily.sizes`."""
        shape = sd_vae_shape(spec)
        return LatentSizes(shape, pooled_size(shape))

    def open(self, spec: TokenizerSpec, device: torch.device, dtype: torch.dtype, decoder: str | None) -> SdVae:
        """See `TokenizerFamily.open`."""
        return SdVae(spec, device, dtype)

    def save_random(self, folder: Path) -> None:
        """See `TokenizerFamily.save_random`: Stable Diffusion's autoencoder."""
        try:
            from diffusers import AutoencoderKL
        except ImportError as error:
            raise UserError(_NEEDS_DIFFUSERS) from error
        network: Any = AutoencoderKL(  # type: ignore[no-untyped-call]  # diffusers has no types
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            sample_size=256,
        )
        network.save_pretrained(folder)


FAMILY = SdVaeFamily()


def _in_parts(step: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """A step on a few images at a time, so that its memory does not grow with the batch."""
    return torch.cat([step(part) for part in batch.split(IMAGES_A_CALL)])


def _factor(config: dict[str, Any]) -> int:
    """Pixels a position stands for, on each axis: every level but the last halves the side."""
    return int(2 ** (len(config.get("block_out_channels", (0,))) - 1))


def _variant(folder: Path) -> str | None:
    """The variant of the weights, such as bf16, None where there are some without a name."""
    names = sorted(file.stem.partition(".")[2] for file in folder.glob("*.safetensors"))
    return names[0] or None


def _load_network(folder: Path) -> Any:
    """The autoencoder of a folder, float32."""
    try:
        from diffusers import AutoencoderKL
        from diffusers.utils import logging
    except ImportError as error:
        raise UserError(_NEEDS_DIFFUSERS) from error
    logging.set_verbosity_error()
    with reading_model(folder, RECORDED):
        network, report = AutoencoderKL.from_pretrained(  # type: ignore[no-untyped-call]  # diffusers has no types
            folder,
            use_safetensors=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
            torch_dtype=torch.float32,
            variant=_variant(folder),
        )
    if report["missing_keys"]:
        raise UserError(f"{RECORDED} {folder} lacks weights ({sorted(report['missing_keys'])[0]}, ...): save it again")
    return network.eval().requires_grad_(False)
