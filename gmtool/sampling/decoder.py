"""What turns a run's latents into images."""

from __future__ import annotations

import torch

from gmtool.artifacts.run import RunFolder
from gmtool.tokenizers.base import Tokenizer
from gmtool.tokenizers.build import build_tokenizer


def decoder_of(run: RunFolder, decoder: str | None, device: torch.device) -> tuple[Tokenizer | None, str | None]:
    """The tokenizer that turns the run's latents into images, or None and how to get one."""
    spec = run.tokenizer()
    if spec.name == "dinov2" and decoder is None:
        return None, (
            "latents of dinov2 need a decoder for pictures: run pip install '.[rae]' in the clone of gmtool, and give "
            "--decoder, the hub id or folder of an AutoencoderRAE"
        )
    return build_tokenizer(spec, device, decoder=decoder), None
