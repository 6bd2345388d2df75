"""``dinov2``: patch tokens of a DINOv2 as latents, its [CLS] token as descriptor, as RAE and MM-FM use them.

An image of size S in [0, 1] is resized (bicubic, no antialias, not clamped) so that the network's patches cut it into
S // 16 by S // 16 tokens, whatever the patch size: with patch 14, 256 becomes 224 and 16 x 16 tokens. It is normalised
by the mean and std of the network's preprocessor. The last LayerNorm has no affine part; [CLS] and register tokens are
dropped from the patches (Zheng et al., Diffusion Transformers with Representation Autoencoders, 2025). Position
embeddings are interpolated by the network itself. Decoding is `gmtool.tokenizers.rae`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.errors import UserError
from gmtool.tokenizers.base import Encoded, ImageSample, LatentSizes, Settled, TokenizerFamily
from gmtool.tokenizers.pretrained import model_folder, model_record, one_line, recorded_folder
from gmtool.tokenizers.rae import IMAGENET_MEAN, IMAGENET_STD, Decoder, load_decoder
from gmtool.tokenizers.settings import TokenizerSettings

DEFAULT_MODEL = "facebook/dinov2-with-registers-base"
DEFAULT_IMAGE_SIZE = 256
MODEL_TYPES = ("dinov2", "dinov2_with_registers")
"""What a model's configuration calls a DINOv2."""
TOKEN_PIXELS = 16
"""Image pixels a token stands for, on each axis."""
_ROLE = "--tokenizer"


def dinov2_spec(model: str, image_size: int, role: str = _ROLE) -> TokenizerSpec:
    """The record of a DINOv2, a folder or a hub id, for images of a size.

    role: what the model serves as, for messages. Raises UserError for a wrong model or size, MachineError when it
    cannot be fetched.
    """
    if image_size < TOKEN_PIXELS:
        raise UserError(f"--image-size must be at least {TOKEN_PIXELS} with a DINOv2, not {image_size}")
    load_config(model_folder(model, role), role)
    return TokenizerSpec("dinov2", {**model_record(model, role), "image_size": image_size})


class Dinov2:
    """The tokenizer; see the module. Parameters stay float32; lower precision is autocast."""

    def __init__(
        self,
        spec: TokenizerSpec,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        decoder: Decoder | None = None,
    ) -> None:
        """Raises UserError when the model of ``spec`` is gone or has other weights, MachineError without network."""
        self._spec = spec
        folder = recorded_folder(spec.settings, _ROLE)
        self._network: Any = _load_network(folder).to(device)
        self._mean, self._std = (torch.tensor(each, device=device).view(3, 1, 1) for each in _normalisation(folder))
        self._device, self._dtype, self._decoder = device, dtype, decoder

    @property
    def image_size(self) -> int:
        """See `Tokenizer.image_size`."""
        return int(self._spec.settings["image_size"])

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(hidden size, image_size // 16, image_size // 16)."""
        return dinov2_shape(self.descriptor_size, self.image_size)

    @property
    def descriptor_size(self) -> int:
        """The network's hidden size."""
        return int(self._network.config.hidden_size)

    def spec(self) -> TokenizerSpec:
        """See `dinov2_spec`."""
        return self._spec

    def encode(self, images: Tensor) -> Encoded:
        """See `Tokenizer.encode`."""
        return self.encode_normalised(self.normalise(images.to(self._device).float() / 255))

    def describe(self, images: Tensor) -> Tensor:
        """See `Tokenizer.describe`."""
        return self.encode(images).descriptors

    def decode(self, latents: Tensor, truncate: bool = False) -> Tensor:
        """See `Tokenizer.decode`."""
        if self._decoder is None:
            raise UserError(FAMILY.decoder_hint)
        return self._decoder.decode(latents.to(self._device, torch.float32), self.image_size, truncate)

    def normalise(self, images: Tensor) -> Tensor:
        """Images float32 (B, 3, S, S) in [0, 1], resized and normalised as the network takes them."""
        size = self.latent_shape[1] * int(self._network.config.patch_size)
        if images.shape[-2:] != (size, size):
            images = functional.interpolate(images, size=(size, size), mode="bicubic", align_corners=False)
        return (images - self._mean) / self._std

    @torch.inference_mode()
    def encode_normalised(self, pixels: Tensor) -> Encoded:
        """Latents and descriptors of normalised images float32 (B, 3, h, w), sides multiples of the patch size."""
        with self._autocast():
            tokens = self._network(pixels).last_hidden_state.float()
        extra = 1 + int(getattr(self._network.config, "num_register_tokens", 0))
        height, width = (side // int(self._network.config.patch_size) for side in pixels.shape[-2:])
        return Encoded(tokens[:, extra:].transpose(1, 2).unflatten(2, (height, width)).contiguous(), tokens[:, 0])

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32)


class Dinov2Family(TokenizerFamily):
    """The `TokenizerFamily` of ``dinov2``."""

    decoder_hint = (
        "latents of a DINOv2 become images by a trained decoder: pip install '.[rae]', and give --decoder the hub id "
        "or folder of an AutoencoderRAE"
    )
    content = weights = True

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """See `TokenizerFamily.recognises`."""
        return config.get("model_type") in MODEL_TYPES

    def default_shape(self, image_size: int) -> tuple[int, int, int]:
        """See `TokenizerFamily.default_shape`: of DEFAULT_MODEL, whose hidden size is 768."""
        return 768, image_size // TOKEN_PIXELS, image_size // TOKEN_PIXELS

    def settle(self, settings: TokenizerSettings, model: str | None, images: ImageSample) -> Settled:
        """See `TokenizerFamily.settle`."""
        return Settled(dinov2_spec(model or DEFAULT_MODEL, settings.image_size or DEFAULT_IMAGE_SIZE))

    def sizes(self, spec: TokenizerSpec, images: int) -> LatentSizes:
        """See `TokenizerFamily.sizes`."""
        hidden_size = dinov2_hidden_size(spec)
        return LatentSizes(dinov2_shape(hidden_size, spec.settings["image_size"]), hidden_size)

    def open(self, spec: TokenizerSpec, device: torch.device, dtype: torch.dtype, decoder: str | None) -> Dinov2:
        """See `TokenizerFamily.open`."""
        return Dinov2(spec, device, dtype, None if decoder is None else load_decoder(decoder, device))

    def save_random(self, folder: Path) -> None:
        """See `TokenizerFamily.save_random`: a DINOv2-B with registers."""
        from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

        Dinov2WithRegistersModel(Dinov2WithRegistersConfig(image_size=518)).save_pretrained(folder)


FAMILY = Dinov2Family()


def dinov2_shape(hidden_size: int, image_size: int) -> tuple[int, int, int]:
    """(C, H, W) of the latents: one token for 16 x 16 pixels of the image."""
    grid = image_size // TOKEN_PIXELS
    return hidden_size, grid, grid


def dinov2_hidden_size(spec: TokenizerSpec) -> int:
    """C and D of the latents."""
    return int(load_config(model_folder(spec.settings["model"], _ROLE)).hidden_size)


def load_config(folder: Path, role: str = _ROLE) -> Any:
    """The configuration of the DINOv2 in a folder. Raises UserError when it is another kind of model."""
    from transformers import AutoConfig

    with one_line(folder, role):
        config = AutoConfig.from_pretrained(folder)
    if config.model_type not in MODEL_TYPES:
        raise UserError(f"{role} {folder} is a {config.model_type}, not a DINOv2 (with or without registers)")
    return config


def _load_network(folder: Path) -> nn.Module:
    """The DINOv2 of a folder, float32, its last LayerNorm without affine part."""
    import transformers

    hub_logging: Any = transformers.utils.logging
    hub_logging.set_verbosity_error()
    hub_logging.disable_progress_bar()
    config = load_config(folder)
    with one_line(folder, _ROLE):
        network, report = transformers.AutoModel.from_pretrained(
            folder, config=config, use_safetensors=True, output_loading_info=True
        )
    if report["missing_keys"]:
        raise UserError(f"{_ROLE} {folder} lacks weights ({sorted(report['missing_keys'])[0]}, ...): save it again")
    network.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps, elementwise_affine=False)
    return network.float().eval().requires_grad_(False)  # whatever type the file has, and a version's default is


def _normalisation(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of pixels in [0, 1] that the network was trained with; ImageNet's where the folder has none."""
    file = folder / "preprocessor_config.json"
    try:
        settings = json.loads(file.read_text()) if file.is_file() else {}
        mean = tuple(map(float, settings.get("image_mean", IMAGENET_MEAN)))
        return mean, tuple(map(float, settings.get("image_std", IMAGENET_STD)))
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{_ROLE} {file} is damaged ({error}): fetch the model again") from error
