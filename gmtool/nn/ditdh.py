"""DiTDH, the diffusion transformer with a wide head of RAE (arXiv 2510.11690) and MM-FM; a velocity or a mixture.

A deep narrow transformer, the encoder, sees the noisy patches and turns them into a condition s for each token; a
shallow wide one, the head, sees the patches again and is modulated by s:

    c = silu(time + labels)    s = silu(time + encoder(patches + positions; c))    v = head(patches; project(s))

Weights have the names of the published checkpoints, which load as they are. The position and rotation tables and the
frequencies of the time embedding are kept with the weights: published ones are not the tables of a formula.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from gmtool.mixture.gaussian_mixture import GaussianMixture
from gmtool.nn.architecture import Architecture, Conditions
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
from gmtool.nn.heads import head_of, output_layer
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
        """Embed every patch."""
        return F.linear(patches(x, self.side), self.proj.weight.flatten(1), self.proj.bias)


class FinalLayer(nn.Module):
    """Tokens (B, N, D) and their conditions (B, N, D) -> the numbers that the head reads: norm, modulation, linear."""

    def __init__(self, architecture: Architecture, width: int) -> None:
        super().__init__()
        self.norm_final = norm(architecture, width)
        self.linear = output_layer(architecture, width)
        self.adaLN_modulation = modulation(width, 2)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Each token by itself."""
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(tokens), shift, scale))


class DiTDH(Network):
    """An encoder of narrow blocks and a head of wide ones, which follow them in one list."""

    pos_embed: Tensor

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        channels, patch, grid = architecture.inputs, architecture.patch, architecture.grid
        width, wide = architecture.width, architecture.wide_width
        self.x_embedder = PatchEmbedding(channels, wide, patch)
        self.s_embedder = PatchEmbedding(channels, width, patch)
        table = position_table(*grid, width, architecture.columns_first)
        self.register_buffer("pos_embed", table.unsqueeze(0))
        self.t_embedder = FourierTimeEmbedding(width)
        labels = architecture.classes or architecture.constant_label
        self.y_embedder = label_embedding(architecture.classes, width, "embedding_table") if labels else None
        self.k_embedder = label_embedding(architecture.modes, width, "embedding_table") if architecture.modes else None
        self.enc_feat_rope = RotaryEmbedding(grid, width // architecture.heads) if architecture.rope else None
        self.dec_feat_rope = RotaryEmbedding(grid, wide // architecture.wide_heads) if architecture.rope else None
        encoder = [Block(architecture, width, architecture.heads) for _ in range(architecture.depth)]
        head = [Block(architecture, wide, architecture.wide_heads) for _ in range(architecture.wide_depth)]
        self.blocks = nn.ModuleList([*encoder, *head])
        self.s_projector = nn.Linear(width, wide) if width != wide else nn.Identity()
        self.final_layer = FinalLayer(architecture, wide)
        self.head = head_of(architecture, nn.Identity())
        self.spectrum = SpectrumMLP(architecture.shape) if architecture.spectral else None

    def forward(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor | GaussianMixture:
        """See `Network.forward`."""
        time = self.t_embedder(t)
        embedding = self._with_labels(time, conditions)
        seen = self._with_context(x_t, conditions)
        s = self.encode(seen, time, embedding)
        return self.head(self.decode(seen, s), embedding)

    def encode(self, x_t: Tensor, time: Tensor, embedding: Tensor) -> Tensor:
        """The condition s (B, N, width) of each token.

        time, embedding: the embeddings (B, width) of time alone, and of time and labels.
        """
        tokens = self.s_embedder(x_t) + self.pos_embed
        condition = F.silu(embedding).unsqueeze(1)
        encoder = self.blocks[: self.architecture.depth]
        tokens = self._through(encoder, tokens, condition, _rotation(self.enc_feat_rope))
        return F.silu(time.unsqueeze(1) + tokens)

    def decode(self, x_t: Tensor, s: Tensor) -> Tensor:
        """The numbers (B, N, outputs) that the head reads, from the condition s (B, N, width) of each token."""
        condition = self.s_projector(s)
        # in float32 also under autocast, as the encoder's tokens are by their positions
        tokens = self.x_embedder(x_t).to(self.pos_embed.dtype)
        wide = self.blocks[self.architecture.depth :]
        tokens = self._through(wide, tokens, condition, _rotation(self.dec_feat_rope))
        return self.final_layer(tokens, condition)


def _rotation(rope: RotaryEmbedding | None) -> Rotation | None:
    return None if rope is None else rope()
