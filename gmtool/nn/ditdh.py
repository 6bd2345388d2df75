"""DiTDH, the diffusion transformer with a wide head of RAE (arXiv 2510.11690) and MM-FM; a velocity or a mixture.

A deep narrow transformer, the encoder, sees the noisy patches and turns them into a condition s for each token; a
shallow wide one, the head, sees the patches again and is modulated by s:

    c = silu(time + labels)    s = silu(time + encoder(patches + positions; c))    v = head(patches; project(s))

Weights have the names of the published checkpoints, which load as they are. The position and rotation tables and the
frequencies of the time embedding are kept with the weights: published ones are not the tables of a formula.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmtool.mixture.gaussian_mixture import GaussianMixture
from gmtool.nn.architecture import Conditions, TransformerArchitecture, expect
from gmtool.nn.blocks import (
    Block,
    FourierTimeEmbedding,
    RotaryEmbedding,
    Rotation,
    label_embedding,
    modulate,
    modulation,
    norm,
    patches,
    position_table,
)
from gmtool.nn.heads import make_head, output_layer
from gmtool.nn.network import Network
from gmtool.nn.spectrum import SpectrumMLP


class PatchEmbedding(nn.Module):
    """x (B, C, H, W) -> tokens (B, N, D): a linear layer on each patch, its weight kept as that of a convolution."""

    def __init__(self, channels: int, width: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.proj = nn.Conv2d(channels, width, side, stride=side)
        nn.init.xavier_uniform_(self.proj.weight.flatten(1).detach())
        assert self.proj.bias is not None
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, H W / side^2, D)."""
        return F.linear(patches(x, self.side), self.proj.weight.flatten(1), self.proj.bias)


class FinalLayer(nn.Module):
    """The last layer of the wide head, W (norm(token) (1 + scale) + shift), shift and scale linear in silu(condition).

    linear: W, tokens (B, N, width) -> the numbers (B, N, D) that a head needs.
    """

    def __init__(self, width: int, rms_norm: bool, linear: nn.Linear) -> None:
        super().__init__()
        self.norm_final = norm(width, rms_norm)
        self.linear = linear
        self.adaLN_modulation = modulation(width, 2)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Tokens and their conditions, both (B, N, width) -> (B, N, D)."""
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(tokens), shift, scale))


@dataclass(frozen=True)
class DiTDHArchitecture(TransformerArchitecture):
    """A DiTDH; see `TransformerArchitecture`, whose blocks are those of the encoder. Defaults are as published.

    wide_depth, wide_width, wide_heads: number of blocks, channels of a token and attention heads of the wide head.
    constant_label: without labels it adds one learned vector in their place, as published unconditional networks do.
    """

    kind: ClassVar[str] = "ditdh"

    wide_depth: int
    wide_width: int
    wide_heads: int
    _: KW_ONLY
    rms_norm: bool = True
    swiglu: bool = True
    rope: bool = True
    columns_first: bool = True
    constant_label: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError for numbers that make no network."""
        super().__post_init__()
        self.expect_blocks(self.wide_depth, self.wide_width, self.wide_heads)
        expect(not (self.constant_label and self.classes), "both classes and a constant label")


class DiTDH(Network):
    """An encoder of narrow blocks and a head of wide ones, which follow them in one list."""

    architecture: DiTDHArchitecture
    pos_embed: Tensor

    def __init__(self, architecture: DiTDHArchitecture, checkpoint_activations: bool = False) -> None:
        super().__init__(architecture, checkpoint_activations)
        channels, patch, grid = architecture.inputs, architecture.patch, architecture.grid
        width, wide, rms_norm = architecture.width, architecture.wide_width, architecture.rms_norm
        self.x_embedder = PatchEmbedding(channels, wide, patch)
        self.s_embedder = PatchEmbedding(channels, width, patch)
        self.register_buffer("pos_embed", position_table(*grid, width, architecture.columns_first).unsqueeze(0))
        self.t_embedder = FourierTimeEmbedding(width)
        labels = architecture.classes or architecture.constant_label
        self.y_embedder = label_embedding(architecture.classes, width, "embedding_table") if labels else None
        self.k_embedder = label_embedding(architecture.modes, width, "embedding_table") if architecture.modes else None
        self.enc_feat_rope = RotaryEmbedding(grid, width // architecture.heads) if architecture.rope else None
        self.dec_feat_rope = RotaryEmbedding(grid, wide // architecture.wide_heads) if architecture.rope else None
        block = partial(Block, rms_norm=rms_norm, swiglu=architecture.swiglu, qk_norm=architecture.qk_norm)
        encoder = [block(width, architecture.heads) for _ in range(architecture.depth)]
        head = [block(wide, architecture.wide_heads) for _ in range(architecture.wide_depth)]
        self.blocks = nn.ModuleList([*encoder, *head])
        self.s_projector = nn.Linear(width, wide) if width != wide else nn.Identity()
        last = output_layer(wide, architecture.channels, architecture.components, patch, architecture.velocities)
        self.final_layer = FinalLayer(wide, rms_norm, last)
        self.head = make_head(
            nn.Identity(),
            architecture.shape,
            architecture.components,
            width,
            patch=patch,
            constant_std=architecture.constant_std,
            velocities=architecture.velocities,
        )
        self.spectrum = SpectrumMLP(architecture.shape) if architecture.spectral else None

    def forward(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor | GaussianMixture:
        """See `Network.forward`."""
        if self.architecture.constant_label:
            conditions = replace(conditions, classes=torch.zeros(len(t), dtype=torch.long, device=t.device))
        time = self.t_embedder(t)
        embedding = self._with_labels(time, conditions)
        x_t = self._with_context(x_t, conditions)
        s = self.encode(x_t, time, embedding)
        return self.head(self.decode(x_t, s), embedding)

    def encode(self, x_t: Tensor, time: Tensor, embedding: Tensor) -> Tensor:
        """The condition s (B, N, width) of each token, for x_t and its context (B, C + context, H, W).

        time, embedding: the embeddings (B, width) of time alone, and of time and labels.
        """
        tokens = self.s_embedder(x_t) + self.pos_embed
        condition = F.silu(embedding).unsqueeze(1)
        encoder = self.blocks[: self.architecture.depth]
        tokens = self._through(encoder, tokens, condition, _rotation(self.enc_feat_rope))
        return F.silu(time.unsqueeze(1) + tokens)

    def decode(self, x_t: Tensor, s: Tensor) -> Tensor:
        """The numbers (B, N, D) that `make_head` needs, from the tokens' conditions s (B, N, width).

        x_t: with its context, (B, C + context, H, W).
        """
        condition = self.s_projector(s)
        # in float32 also under autocast, as the encoder's tokens are by their positions
        tokens = self.x_embedder(x_t).to(self.pos_embed.dtype)
        wide = self.blocks[self.architecture.depth :]
        tokens = self._through(wide, tokens, condition, _rotation(self.dec_feat_rope))
        return self.final_layer(tokens, condition)


def _rotation(rope: RotaryEmbedding | None) -> Rotation | None:
    return None if rope is None else rope()
