"""RAE's and MM-FM's DiTDH: the architecture, read off the shapes of the weights, and the weights under our names.

What the weights cannot tell is what their labels mean. MM-FM's network that is conditioned on the modes of a mixture
and the one that is not have the same weights, those of the labels unused in the second; so a checkpoint with labels and
a mixture is told apart by the one who imports it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gmtool.errors import UserError
from gmtool.flow.names import Condition
from gmtool.nn.ditdh import DiTDHArchitecture

LABELS = "y_embedder.embedding_table.weight"
WIDE_DEPTH = 2
"""Blocks of the head where it is as wide as the encoder, so that widths do not tell them apart; as published."""


@dataclass(frozen=True)
class Labels:
    """What the labels of a checkpoint are: its condition, and how many classes and modes it knows.

    constant: without a condition, the network adds one vector all the same.
    """

    condition: Condition
    classes: int = 0
    modes: int = 0
    constant: bool = False


def labels_of(weights: Mapping[str, Tensor], asked: Condition | None, modes: int) -> Labels:
    """What the labels are, as asked or else as there is one answer only. modes: of the mixture source, 0 without.

    Raises UserError, naming --condition, where the weights do not allow what is asked, or leave two answers.
    """
    rows = len(weights[LABELS]) if LABELS in weights else 0
    if asked is None and modes and rows > 1:
        raise UserError(
            f"this checkpoint has {rows} labels and comes with a mixture: say what it is conditioned on by --condition "
            "mode, class or none (MM-FM's unconditional networks keep labels that they do not use)"
        )
    condition = asked or ("class" if rows > 1 else "none")
    if condition == "none":
        return Labels("none", constant=rows == 1)
    if rows < 2:
        raise UserError(f"--condition {condition}: this checkpoint has no labels; leave it out")
    if condition == "class":
        return Labels("class", classes=rows - 1)
    if rows not in (modes, modes + 1):
        wanted = f"the mixture has {modes} modes" if modes else "give the mixture by --gmm"
        raise UserError(f"--condition mode: this checkpoint has {rows} labels; {wanted}")
    return Labels("mode", modes=modes)


def ditdh_architecture(weights: Mapping[str, Tensor], labels: Labels) -> DiTDHArchitecture:
    """The architecture that the shapes of a DiTDH's weights tell.

    Raises KeyError for a weight that is missing, UserError where they cannot tell it.
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


def ditdh_weights(weights: Mapping[str, Tensor], labels: Labels) -> dict[str, Tensor]:
    """The weights under our names: labels are those of classes or of modes, or are left out."""
    named = {name: each for name, each in weights.items() if name != LABELS}
    if LABELS not in weights:
        return named
    table = weights[LABELS]
    if labels.condition == "mode":
        # trained without hiding the mode, it may have no row for the hidden one; sampling does not ask for it
        spare = torch.zeros(labels.modes + 1 - len(table), table.shape[1], dtype=table.dtype)
        named["k_embedder.embedding_table.weight"] = torch.cat([table, spare])
    elif labels.condition == "class" or labels.constant:
        named[LABELS] = table
    return named


def _heads(weights: Mapping[str, Tensor], rope: str, block: str, width: int) -> int:
    """Attention heads, from the size of one, which its rotation or its norm tells."""
    for name, axis in ((f"{rope}.freqs_cos", 1), (f"{block}attn.q_norm.weight", 0)):
        if name in weights:
            return width // weights[name].shape[axis]
    raise UserError("neither a rotation nor a norm of queries tells how many attention heads this network has")
