"""DINOv2 latents to images, by the decoder of diffusers' ``AutoencoderRAE``: a ViT on tokens, one patch a token."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gmtool.errors import UserError
from gmtool.foreign.rae_decoder import POSITIONS, decoder_grid, decoder_sizes, decoder_weights
from gmtool.foreign.torch_files import read_checkpoint
from gmtool.huggingface import local_or_hub_file
from gmtool.tokenizers.base import to_uint8
from gmtool.tokenizers.pretrained import model_folder

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of pixels in [0, 1], which DINOv2 takes and RAE's decoders give normalised by them."""
ENCODER_PATCH = 14
_ROLE = "--decoder"


@dataclass(frozen=True, eq=False)
class Decoder:
    """network: an ``AutoencoderRAE``, of which only the decoder and the image mean and std are used."""

    network: Any

    @torch.inference_mode()
    def decode(self, latents: Tensor, image_size: int, truncate: bool = False) -> Tensor:
        """Images uint8 (B, 3, S, S) of latents float32 (B, C, H, W), not normalised; see `Tokenizer.decode`."""
        levels = self.decode_float(latents) * 255
        if levels.shape[-1] != image_size:
            size = (image_size, image_size)
            levels = functional.interpolate(levels, size=size, mode="bicubic", align_corners=False, antialias=True)
        return to_uint8(levels, truncate)

    def decode_float(self, latents: Tensor) -> Tensor:
        """Images float32 (B, 3, S', S') nominally in [0, 1], not clamped; S' is the decoder's own size."""
        decoder = self.network.decoder
        expected = decoder.decoder_embed.in_features
        if latents.shape[1] != expected:
            raise UserError(
                f"{_ROLE} decodes latents of {expected} channels, not of {latents.shape[1]}: choose another"
            )
        patches = decoder(latents.flatten(2).transpose(1, 2)).logits
        return decoder.unpatchify(patches) * self.network.encoder_std + self.network.encoder_mean


def load_decoder(source: str, device: torch.device) -> Decoder:
    """The decoder of an ``AutoencoderRAE``, a folder or hub id, or of a ``.pt`` file of RAE or MM-FM.

    Raises UserError when it is something else.
    """
    try:
        from diffusers import AutoencoderRAE
        from diffusers.utils import logging
    except ImportError as error:
        raise UserError(f"{_ROLE} needs diffusers: pip install '.[rae]'") from error
    logging.set_verbosity_error()
    file = local_or_hub_file(source, _ROLE)
    try:
        if file.is_file():
            network = _from_checkpoint(file, AutoencoderRAE)
        else:
            folder = model_folder(source, _ROLE)
            network = AutoencoderRAE.from_pretrained(  # type: ignore[no-untyped-call]  # diffusers has no types
                folder, use_safetensors=True, low_cpu_mem_usage=False
            )
            _restore_positions(network, folder)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{_ROLE} {source} is not an AutoencoderRAE that can be loaded: {reason}") from error
    return Decoder(network.eval().requires_grad_(False).to(device))


def _from_checkpoint(file: Path, autoencoder: Any) -> Any:
    """An ``autoencoder`` without encoder, whose decoder has the weights of a checkpoint of RAE or MM-FM."""
    weights = read_checkpoint(file).ema
    network = autoencoder(
        **decoder_sizes(weights),
        encoder_num_hidden_layers=0,
        encoder_patch_size=ENCODER_PATCH,
        encoder_input_size=ENCODER_PATCH * decoder_grid(weights),
        encoder_norm_mean=list(IMAGENET_MEAN),
        encoder_norm_std=list(IMAGENET_STD),
    )
    network.decoder.load_state_dict(decoder_weights(weights))
    network.decoder.decoder_pos_embed.copy_(weights[POSITIONS])
    return network


def _restore_positions(network: Any, folder: Path) -> None:
    """Load the decoder's position embedding where the file has one: it was trained, but diffusers computes it anew."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            if f"decoder.{POSITIONS}" in weights.keys():  # noqa: SIM118  # it is no mapping
                network.decoder.decoder_pos_embed.copy_(weights.get_tensor(f"decoder.{POSITIONS}"))
