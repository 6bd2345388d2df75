"""GMFlow's GM-DiT (arXiv 2504.05304) as a DiT of ours: what its folder's config and weights are in our terms.

It is a DiT with a mixture head, stored in the layout of diffusers and called with times 0 ... 1000; here as everywhere
t is in [0, 1]. Its two versions differ in how the head's weights are stored, not in what they compute.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gmtool.nn.dit import DiTArchitecture

LARGEST_COUNT, LARGEST_LOG_STD = 2**16, 20.0
"""Beyond any network of this kind: what exceeds them is damage."""

PREFIXES = {
    "pos_embed.proj.": "x_embedder.",
    "emb.timestep_embedder.linear_1.": "t_embedder.mlp.0.",
    "emb.timestep_embedder.linear_2.": "t_embedder.mlp.2.",
    "emb.class_embedder.embedding_table.": "y_embedder.table.",
    "proj_out_1.": "adaLN_out.1.",
    "proj_out_2.": "head.linear.",
    "gm_out.logstd_layers.": "head.log_std.",
    "proj_out_logstds.": "head.log_std.",
}
"""Names outside the blocks, and ours."""

IN_BLOCK = {
    "norm1.linear.": "adaLN_modulation.1.",
    "attn1.to_out.0.": "attn.proj.",
    "ff.net.0.proj.": "mlp.0.",
    "ff.net.2.": "mlp.2.",
}
"""Names inside ``transformer_blocks.i.``, and ours inside ``blocks.i.``."""


def gmdit_architecture(config: Mapping[str, Any]) -> DiTArchitecture:
    """The architecture that the ``config.json`` of a GM-DiT describes.

    Raises KeyError for a missing setting, ValueError or TypeError for one that is out of range or no number.
    """
    size, patch, heads = (_count(config, name) for name in ("sample_size", "patch_size", "num_attention_heads"))
    constant = config.get("constant_logstd")
    if size % patch:
        raise ValueError(f"sample_size {size} is no multiple of patch_size {patch}")
    if constant is not None and not abs(constant) < LARGEST_LOG_STD:
        raise ValueError(f"constant_logstd is {constant}")
    return DiTArchitecture(
        shape=(_count(config, "in_channels"), size, size),
        patch=patch,
        depth=_count(config, "num_layers"),
        width=heads * _count(config, "attention_head_dim"),
        heads=heads,
        classes=_count(config, "num_embeds_ada_norm"),
        components=_count(config, "num_gaussians"),
        constant_std=None if constant is None else math.exp(constant),
        log_std_width=_count(config, "logstd_inner_dim") if constant is None else 0,
        norm2_eps=1e-5,
        columns_first=True,
    )


def _count(config: Mapping[str, Any], name: str) -> int:
    """A setting that counts something. Raises ValueError where it is no number of use."""
    value = config[name]
    if type(value) is not int or not 0 < value < LARGEST_COUNT:
        raise ValueError(f"{name} must be a whole number from 1 to {LARGEST_COUNT - 1}")
    return value


def gmdit_weights(weights: Mapping[str, Tensor], architecture: DiTArchitecture) -> dict[str, Tensor]:
    """The weights of a GM-DiT under our names. Raises KeyError for a weight that is missing.

    Queries, keys and values become one matrix, as do the means and logits of the second version's head.
    """
    named: dict[str, Tensor] = {}
    rest = dict(weights)
    for kind in ("weight", "bias"):
        for index in range(architecture.depth):
            attention = f"transformer_blocks.{index}.attn1.to_"
            parts = [rest.pop(f"{attention}{name}.{kind}") for name in "qkv"]
            named[f"blocks.{index}.attn.qkv.{kind}"] = torch.cat(parts)
        if f"proj_out_means.{kind}" in rest:
            means, logits = rest.pop(f"proj_out_means.{kind}"), rest.pop(f"proj_out_logweights.{kind}")
            by_position = [part.unflatten(0, (architecture.patch**2, -1)) for part in (means, logits)]
            named[f"head.linear.{kind}"] = torch.cat(by_position, dim=1).flatten(0, 1)
    named |= {_our_name(name): tensor for name, tensor in rest.items()}
    named["x_embedder.weight"] = named["x_embedder.weight"].flatten(1)
    return named


def _our_name(name: str) -> str:
    """The name of a weight in our network; an unknown name stays as it is, for strict loading to refuse."""
    outer, block, inner = name.partition("transformer_blocks.")
    if not outer and block:
        index, _, inner = inner.partition(".")
        return f"blocks.{index}.{_renamed(inner, IN_BLOCK)}"
    return _renamed(name, PREFIXES)


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    for theirs, ours in prefixes.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name
