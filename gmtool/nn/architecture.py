"""What defines a network: the frozen record that a run stores, the named sizes, and the labels of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class Size:
    """Depth, width and attention heads of a named network, and the learning rate that suits it.

    wide: depth, width and heads of the wide head of a DiTDH, None for a DiT.
    """

    depth: int
    width: int
    heads: int
    lr: float
    wide: tuple[int, int, int] | None = None


SIZES: Mapping[str, Size] = {
    "tiny": Size(4, 128, 4, 2e-3),
    "small": Size(6, 256, 4, 1e-3),
    "S": Size(12, 384, 6, 4e-4),
    "B": Size(12, 768, 12, 2e-4),
    "L": Size(24, 1024, 16, 2e-4),
    "XL": Size(28, 1152, 16, 2e-4),
    "DH-tiny": Size(4, 128, 4, 2e-3, wide=(1, 256, 4)),
    "DH-S": Size(12, 384, 6, 4e-4, wide=(2, 2048, 16)),
    "DH-B": Size(12, 768, 12, 2e-4, wide=(2, 2048, 16)),
    "DH-L": Size(24, 1024, 16, 2e-4, wide=(2, 2048, 16)),
    "DH-XL": Size(28, 1152, 16, 2e-4, wide=(2, 2048, 16)),
}
"""Named sizes: S, B, L and XL as published for DiT (arXiv 2212.09748) and DiTDH (RAE, arXiv 2510.11690: the same
backbones with a head of 2 blocks of width 2048); tiny ones and small for small images and a CPU."""


@dataclass(frozen=True)
class Architecture:
    """All that defines a network's shape; stored in a run so that its weights load anywhere.

    kind: dit (`gmtool.nn.dit`) or ditdh (`gmtool.nn.ditdh`).
    shape: (C, H, W) of the latents. patch: side of the square of positions that make a token; it divides H and W.
    depth, width, heads: of the transformer; wide_*: of the wide head of a ditdh, whose blocks follow.
    classes, modes: labels it is conditioned on, 0 for none. constant_label: it has neither, and adds one learnt vector
    in their place, as published unconditional networks do.
    components: K of the mixture head, 0 for a velocity head. constant_std: of its components over the velocity, None
    where it is learnt. log_std_width: of the layer that reads it, 0 for ``width``.
    context: channels beside x_t that the network sees at every position, 0 for none; see `Conditions`.
    spectral: axes that are transported to learn the spectrum of the noise, 0 for none.
    rms_norm (else LayerNorm without parameters), swiglu (else GELU), rope, qk_norm: what the blocks are made of.
    norm2_eps: of the LayerNorm before a block's MLP. columns_first: the first half of the position table tells columns.
    """

    shape: tuple[int, int, int]
    depth: int
    width: int
    heads: int
    classes: int = 0
    modes: int = 0
    components: int = 0
    constant_std: float | None = None
    spectral: int = 0
    kind: Literal["dit", "ditdh"] = "dit"
    patch: int = 1
    wide_depth: int = 0
    wide_width: int = 0
    wide_heads: int = 0
    rms_norm: bool = False
    swiglu: bool = False
    rope: bool = False
    qk_norm: bool = False
    constant_label: bool = False
    log_std_width: int = 0
    norm2_eps: float = 1e-6
    columns_first: bool = False
    context: int = 0

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self.shape[1] // self.patch, self.shape[2] // self.patch

    @property
    def inputs(self) -> int:
        """Channels at a position of what the network sees."""
        return self.shape[0] + self.context

    @property
    def outputs(self) -> int:
        """Numbers that the head reads a token: C a position, or K means of C and K logits."""
        return self.patch**2 * (self.components * (self.shape[0] + 1) or self.shape[0])

    def with_blocks(self, modern: bool) -> Architecture:
        """The same with blocks of RMSNorm, SwiGLU and RoPE, or of LayerNorm and GELU."""
        return replace(self, rms_norm=modern, swiglu=modern, rope=modern)


def named(name: str, shape: tuple[int, int, int]) -> Architecture:
    """The network of a name in `SIZES`, made of what was published, without conditions and with a velocity head."""
    size = SIZES[name]
    plain = Architecture(shape, size.depth, size.width, size.heads)
    if size.wide is None:
        return plain
    depth, width, heads = size.wide
    return replace(
        plain.with_blocks(modern=True),
        kind="ditdh",
        wide_depth=depth,
        wide_width=width,
        wide_heads=heads,
        columns_first=True,
    )


@dataclass(frozen=True)
class Conditions:
    """What the network is told of a batch, None for what it does not take.

    classes, modes: labels (B,) int64; the null label is their count. context (B, context, H, W): further channels of
    the input, such as the mean of the mode; zeros stand for none.
    """

    classes: Tensor | None = None
    modes: Tensor | None = None
    context: Tensor | None = None
