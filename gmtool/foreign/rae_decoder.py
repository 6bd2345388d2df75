"""RAE's decoders as their authors store them, ``model.pt``: sizes and weights for diffusers' ``AutoencoderRAE``.

The weights have the names of a ViT-MAE's decoder. They tell every size but the number of attention heads, which is that
of the published widths.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from gmtool.errors import UserError
from gmtool.foreign.reading import reading
from gmtool.foreign.torch_files import read_checkpoint

HEADS: Mapping[int, int] = {768: 12, 1024: 16, 1152: 16}
"""Attention heads by width: ViT-B, ViT-L and ViT-XL."""
POSITIONS = "decoder_pos_embed"
_ATTENTION = {
    "attention.attention.query.": "attention.to_q.",
    "attention.attention.key.": "attention.to_k.",
    "attention.attention.value.": "attention.to_v.",
    "attention.output.dense.": "attention.to_out.0.",
}


@dataclass(frozen=True, eq=False)
class RaeDecoder:
    """A decoder of RAE for diffusers.

    sizes: arguments of ``AutoencoderRAE``. grid: tokens on each axis. weights: by diffusers' names.
    positions: the position embedding (1, N + 1, D), which diffusers computes anew and so is not among the weights.
    """

    sizes: Mapping[str, int]
    grid: int
    weights: Mapping[str, Tensor]
    positions: Tensor


def read_decoder(path: Path, flag: str = "--decoder") -> RaeDecoder:
    """The decoder in a checkpoint, which was given by ``flag``.

    Raises UserError when the file is missing or damaged, or holds something else.
    """
    weights = read_checkpoint(path).ema
    with reading(path, "a decoder of RAE or MM-FM"):
        positions = weights[POSITIONS]
        return RaeDecoder(_sizes(weights, flag), math.isqrt(positions.shape[1] - 1), _renamed(weights), positions)


def _sizes(weights: Mapping[str, Tensor], flag: str) -> dict[str, int]:
    width, channels = weights["decoder_embed.weight"].shape
    if width not in HEADS:
        raise UserError(f"{flag}: a width of {width} is none of RAE's, whose widths are {', '.join(map(str, HEADS))}")
    layers = {name.split(".")[1] for name in weights if name.startswith("decoder_layers.")}
    return {
        "encoder_hidden_size": channels,
        "decoder_hidden_size": width,
        "decoder_num_hidden_layers": len(layers),
        "decoder_num_attention_heads": HEADS[width],
        "decoder_intermediate_size": len(weights["decoder_layers.0.intermediate.dense.weight"]),
        "patch_size": math.isqrt(len(weights["decoder_pred.weight"]) // 3),
    }


def _renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named = {}
    for name, tensor in weights.items():
        if name != POSITIONS:
            for theirs, ours in _ATTENTION.items():
                name = name.replace(theirs, ours)
            named[name] = tensor
    return named
