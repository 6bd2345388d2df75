"""DINO's ViTs as their authors store them, ``dino_deitsmall8_pretrain.pth``: sizes and weights for transformers.

The weights tell every size but the number of attention heads, which are of 64 channels in all published ViTs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

HEAD_CHANNELS = 64
_OUTSIDE = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_IN_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_PARTS = ("query", "key", "value")


@dataclass(frozen=True, eq=False)
class DinoWeights:
    """DINO's weights for transformers. sizes: arguments of ViTConfig. weights: by transformers' names."""

    sizes: Mapping[str, int]
    weights: Mapping[str, Tensor]


def dino_weights(tensors: Mapping[str, Tensor], heads: int | None = None) -> DinoWeights:
    """DINO's own weights under transformers' names. Raises KeyError or ValueError when they are something else.

    heads: number of attention heads; default: one per 64 channels.
    """
    width, channels, patch, _ = tensors["patch_embed.proj.weight"].shape
    grid = math.isqrt(tensors["pos_embed"].shape[1] - 1)
    depth = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
    weights: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name in _OUTSIDE:
            weights[_OUTSIDE[name]] = tensor
        elif name.startswith("blocks."):
            _, number, inner = name.split(".", 2)
            weights |= _of_block(f"encoder.layer.{number}.", inner, tensor)
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads or max(1, width // HEAD_CHANNELS),
        "intermediate_size": len(tensors["blocks.0.mlp.fc1.weight"]),
        "image_size": grid * patch,
        "patch_size": patch,
        "num_channels": channels,
    }
    return DinoWeights(sizes, weights)


def _of_block(prefix: str, inner: str, tensor: Tensor) -> dict[str, Tensor]:
    """A weight of a block; that of query, key and value becomes three."""
    module, _, kind = inner.rpartition(".")
    if module == "attn.qkv":
        parts = tensor.chunk(len(_PARTS))
        return {f"{prefix}attention.attention.{name}.{kind}": part for name, part in zip(_PARTS, parts, strict=True)}
    return {f"{prefix}{_IN_BLOCK[module]}.{kind}": tensor}
