"""What turns a run's latents into images."""

from __future__ import annotations

import torch

from gmtool.artifacts.run import RunFolder
from gmtool.tokenizers.base import Tokenizer
from gmtool.tokenizers.build import build_tokenizer, missing_decoder


def decoder_of(run: RunFolder, decoder: str | None, device: torch.device) -> tuple[Tokenizer | None, str | None]:
    """The tokenizer that turns the run's latents into images, or None and how to get one.

    decoder: hub id, folder or file, where an encoder's latents need one. Raises UserError and MachineError as
    `build_tokenizer` does.
    """
    spec = run.tokenizer()
    if (hint := missing_decoder(spec, decoder)) is not None:
        return None, hint
    return build_tokenizer(spec, device, decoder=decoder), None
