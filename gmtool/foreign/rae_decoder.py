"""RAE's decoders as their authors store them, ``model.pt``: sizes and weights for diffusers' ``AutoencoderRAE``.

The weights have the names of a ViT-MAE's decoder. They tell every size but the number of attention heads, which is that
of the published widths.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from gmtool.errors import UserError

HEADS: Mapping[int, int] = {768: 12, 1024: 16, 1152: 16}
"""Attention heads by width: ViT-B, ViT-L and ViT-XL."""
POSITIONS = "decoder_pos_embed"
_ATTENTION = {
    "attention.attention.query.": "attention.to_q.",
    "attention.attention.key.": "attention.to_k.",
    "attention.attention.value.": "attention.to_v.",
    "attention.output.dense.": "attention.to_out.0.",
}


def decoder_sizes(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """The sizes that ``AutoencoderRAE`` is built of. Raises KeyError for a weight that is missing, or UserError."""
    width, channels = weights["decoder_embed.weight"].shape
    if width not in HEADS:
        raise UserError(
            f"--decoder: a width of {width} is none of RAE's, whose widths are {', '.join(map(str, HEADS))}"
        )
    layers = {name.split(".")[1] for name in weights if name.startswith("decoder_layers.")}
    return {
        "encoder_hidden_size": channels,
        "decoder_hidden_size": width,
        "decoder_num_hidden_layers": len(layers),
        "decoder_num_attention_heads": HEADS[width],
        "decoder_intermediate_size": len(weights["decoder_layers.0.intermediate.dense.weight"]),
        "patch_size": math.isqrt(len(weights["decoder_pred.weight"]) // 3),
    }


def decoder_grid(weights: Mapping[str, Tensor]) -> int:
    """Tokens on each axis of the decoder's own grid."""
    return math.isqrt(weights[POSITIONS].shape[1] - 1)


def decoder_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under diffusers' names; the position embedding, which diffusers computes anew, is left out."""
    named = {}
    for name, each in weights.items():
        if name != POSITIONS:
            for theirs, ours in _ATTENTION.items():
                name = name.replace(theirs, ours)
            named[name] = each
    return named
