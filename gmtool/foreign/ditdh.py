"""RAE's and MM-FM's DiTDH: the architecture, read off the shapes of the weights, and the weights under our names.

What the weights cannot tell is what their labels are: see `gmtool.foreign.labels`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from gmtool.errors import UserError
from gmtool.foreign.labels import LABELS, Labels
from gmtool.nn.ditdh import DiTDHArchitecture

WIDE_DEPTH = 2
"""Blocks of the head where it is as wide as the encoder, so that widths do not tell them apart; as published."""


def ditdh_architecture(weights: Mapping[str, Tensor], labels: Labels) -> DiTDHArchitecture:
    """The architecture of a DiTDH, inferred from the shapes of its weights.

    Raises KeyError for a weight that is missing, UserError where the number of attention heads cannot be inferred,
    ValueError for shapes of no DiTDH.
    """
    wide, channels, patch, _ = weights["x_embedder.proj.weight"].shape
    width = len(weights["s_embedder.proj.weight"])
    grid = math.isqrt(weights["pos_embed"].shape[1])
    first = "blocks.0."
    count = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    narrow = [index for index in range(count) if len(weights[f"blocks.{index}.attn.proj.weight"]) == width]
    depth = len(narrow) if width != wide else count - WIDE_DEPTH
    return DiTDHArchitecture(
        shape=(channels, grid * patch, grid * patch),
        depth=depth,
        width=width,
        heads=_heads(weights, "enc_feat_rope", first, width),
        classes=labels.classes,
        modes=labels.modes,
        patch=patch,
        wide_depth=count - depth,
        wide_width=wide,
        wide_heads=_heads(weights, "dec_feat_rope", f"blocks.{count - 1}.", wide),
        rms_norm=f"{first}norm1.weight" in weights,
        swiglu=f"{first}mlp.w12.weight" in weights,
        rope="enc_feat_rope.freqs_cos" in weights,
        qk_norm=f"{first}attn.q_norm.weight" in weights,
        constant_label=labels.constant,
    )


def ditdh_weights(weights: Mapping[str, Tensor], architecture: DiTDHArchitecture) -> dict[str, Tensor]:
    """The weights of a DiTDH under our names: its labels are those of classes or of modes, or are left out.

    Raises KeyError when the labels that the architecture has are missing.
    """
    named = {name: tensor for name, tensor in weights.items() if name != LABELS}
    if architecture.modes:
        # trained without hiding the mode, it may have no row for the hidden one; sampling does not ask for it
        table = weights[LABELS]
        spare = torch.zeros(architecture.modes + 1 - len(table), table.shape[1], dtype=table.dtype)
        named["k_embedder.embedding_table.weight"] = torch.cat([table, spare])
    elif architecture.classes or architecture.constant_label:
        named[LABELS] = weights[LABELS]
    return named


def _heads(weights: Mapping[str, Tensor], rope: str, block: str, width: int) -> int:
    """Attention heads, from the size of one, which its rotation or its norm tells."""
    for name, axis in ((f"{rope}.freqs_cos", 1), (f"{block}attn.q_norm.weight", 0)):
        if name in weights:
            return width // weights[name].shape[axis]
    raise UserError("neither a rotation nor a norm of queries tells how many attention heads this network has")
