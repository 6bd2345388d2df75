"""A tokenizer from its record in a latents file, a run or samples."""

from __future__ import annotations

import torch

from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.errors import UserError
from gmtool.runtime import compute_dtype
from gmtool.settings import Precision
from gmtool.tokenizers.base import Tokenizer
from gmtool.tokenizers.dinov2 import Dinov2
from gmtool.tokenizers.pixels import Pixels
from gmtool.tokenizers.rae import load_decoder
from gmtool.tokenizers.sd_vae import SdVae
from gmtool.tokenizers.with_descriptor import WithDescriptor, describer_spec, undescribed


def build_tokenizer(
    spec: TokenizerSpec,
    device: torch.device,
    precision: Precision = "float32",
    decoder: str | None = None,
) -> Tokenizer:
    """The tokenizer that a latents file, a run or samples record.

    decoder: hub id or folder of an AutoencoderRAE, for ``decode`` of a DINOv2. Raises UserError when the model's
    weights are no longer those of the record, MachineError when they cannot be fetched.
    """
    if decoder is not None and spec.name != "dinov2":
        raise UserError(f"--decoder is for latents of a DINOv2; those of {spec.name} need none: leave it out")
    dtype = compute_dtype(precision, device)
    describer = describer_spec(spec)
    if describer is not None:
        alone = build_tokenizer(undescribed(spec), device, precision)
        return WithDescriptor(alone, Dinov2(describer, device, dtype))
    if spec.name == "pixels":
        mean, components = (torch.from_numpy(spec.arrays[name]).to(device) for name in ("mean", "components"))
        settings = spec.settings
        return Pixels(settings["image_size"], settings["patch_size"], settings["channels"], mean, components)
    if spec.name == "sd-vae":
        return SdVae(spec, device, dtype)
    if spec.name == "dinov2":
        trained = None if decoder is None else load_decoder(decoder, device)
        return Dinov2(spec, device, dtype, trained)
    raise UserError(f"the tokenizer {spec.name!r} of this file is unknown to this gmtool: upgrade gmtool")
