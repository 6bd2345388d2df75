"""Pieces of diffusion transformers: embeddings of patches, time, labels and position; modulated attention blocks."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def linear(inputs: int, outputs: int, std: float | None = None) -> nn.Linear:
    """A linear layer with zero bias: Xavier-uniform weights, or normal ones of the given ``std`` (0: zero weights)."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.bias)
    if std is None:
        nn.init.xavier_uniform_(layer.weight)
    else:
        nn.init.normal_(layer.weight, std=std)
    return layer


def patches(x: Tensor, side: int) -> Tensor:
    """Cut x (B, C, H, W) into squares, row by row: (B, H W / side^2, C side^2), channels outermost."""
    batch, channels, height, width = x.shape
    cut = x.reshape(batch, channels, height // side, side, width // side, side)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * side**2)


def positions(tokens: Tensor, side: int, grid: tuple[int, int]) -> Tensor:
    """Lay numbers of patches out by position: (B, N, side^2 D), channels innermost, as (B, H W, D), row by row."""
    if side == 1:
        return tokens
    cut = tokens.reshape(tokens.shape[0], *grid, side, side, -1)
    return cut.transpose(2, 3).reshape(tokens.shape[0], -1, cut.shape[-1])


class TimeEmbedding(nn.Module):
    """t (B,) in [0, 1] -> (B, width): cos and sin of the angles below, then a two-layer MLP.

        1000 t 10000^(-i / h),    i = 0 ... h - 1,    h = frequencies / 2

    Source: DiT, arXiv 2212.09748.
    """

    def __init__(self, width: int, frequencies: int = 256) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(linear(frequencies, width, std=0.02), nn.SiLU(), linear(width, width, std=0.02))

    def forward(self, t: Tensor) -> Tensor:
        """t (B,) -> (B, width)."""
        half = self.frequencies // 2
        rates = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
        angles = 1000 * t.float()[:, None] * rates[None]
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1))


class FourierTimeEmbedding(nn.Module):
    """t (B,) in [0, 1] -> (B, width): sin and cos of 2 pi t W, then a two-layer MLP.

    W (frequencies,) is drawn once from N(0, 1) and kept with the weights. Source: RAE, arXiv 2510.11690.
    """

    W: Tensor

    def __init__(self, width: int, frequencies: int = 256) -> None:
        super().__init__()
        self.register_buffer("W", torch.randn(frequencies))
        self.mlp = nn.Sequential(linear(2 * frequencies, width, std=0.02), nn.SiLU(), linear(width, width, std=0.02))

    def forward(self, t: Tensor) -> Tensor:
        """t (B,) -> (B, width)."""
        angles = t.to(self.W.dtype)[:, None] * self.W * 2 * math.pi
        return self.mlp(torch.cat([angles.sin(), angles.cos()], dim=1))


def label_embedding(count: int, width: int, name: str = "table") -> nn.Module:
    """Labels (B,) in 0 ... count -> (B, width); the label ``count`` is the null label of guidance.

    name: of the table among the weights.
    """
    table = nn.Embedding(count + 1, width)
    nn.init.normal_(table.weight, std=0.02)
    return nn.Sequential(OrderedDict([(name, table)]))


def position_table(height: int, width: int, channels: int, columns_first: bool = False) -> Tensor:
    """Fixed sin-cos position embedding (height * width, channels): half the channels by row, half by column.

    A half holds sin, then cos, of position 10000^(-i / q), i = 0 ... q - 1, q = channels / 4. ``channels`` must be
    divisible by 4. columns_first: whether the half by column is the first.
    Source: MAE, arXiv 2111.06377; DiT, arXiv 2212.09748.
    """
    rates = 1 / 10_000 ** (torch.arange(channels // 4, dtype=torch.float64) / (channels // 4))
    rows = torch.arange(height, dtype=torch.float64)[:, None] * rates
    columns = torch.arange(width, dtype=torch.float64)[:, None] * rates
    by_row = torch.cat([rows.sin(), rows.cos()], dim=1)[:, None].expand(height, width, -1)
    by_column = torch.cat([columns.sin(), columns.cos()], dim=1)[None].expand(height, width, -1)
    halves = [by_column, by_row] if columns_first else [by_row, by_column]
    return torch.cat(halves, dim=2).reshape(height * width, channels).float()


class Rotation(NamedTuple):
    """cos and sin (N, D) of the angles by which the pairs of a head's D channels are rotated, each of them twice."""

    cos: Tensor
    sin: Tensor

    def turn(self, x: Tensor) -> Tensor:
        """Rotate pairs of adjacent channels of x (B, heads, N, D): (a, b) -> (a cos - b sin, b cos + a sin)."""
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
        return x * self.cos + torch.stack([-second, first], dim=-1).flatten(-2) * self.sin


class RotaryEmbedding(nn.Module):
    """Rotary position embedding: half of a head's D channels by row, half by column (RoPE, arXiv 2104.09864).

    The angles are position / 10000^(2 i / (D / 2)) for pair i of a half. The tables are kept with the weights.
    grid: rows and columns of tokens. head_width: D, divisible by 4.
    """

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, grid: tuple[int, int], head_width: int) -> None:
        super().__init__()
        height, width = grid
        half = head_width // 2
        rates = 10_000 ** -(torch.arange(0, half, 2).float() / half)
        by_row = (torch.arange(height).float()[:, None] * rates).repeat_interleave(2, dim=1)
        by_column = (torch.arange(width).float()[:, None] * rates).repeat_interleave(2, dim=1)
        angles = torch.cat(
            [by_row[:, None].expand(-1, width, -1), by_column[None].expand(height, -1, -1)], dim=2
        ).flatten(0, 1)
        self.register_buffer("freqs_cos", angles.cos())
        self.register_buffer("freqs_sin", angles.sin())

    def forward(self) -> Rotation:
        """The rotation of all N positions of the grid, row by row."""
        return Rotation(self.freqs_cos, self.freqs_sin)


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean x^2 + 1e-6) times a learned scale, in the scale's precision whatever the autocast around it.

    Source: Zhang and Sennrich, arXiv 1910.07467.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., width) -> the same shape, of the scale's dtype."""
        return super().forward(x.to(self.weight.dtype))


def norm(width: int, rms: bool, eps: float = 1e-6) -> nn.Module:
    """The norm of a token (..., width) before a layer: RMSNorm, or LayerNorm without parameters and with ``eps``."""
    return RMSNorm(width) if rms else nn.LayerNorm(width, eps=eps, elementwise_affine=False)


def modulation(width: int, numbers: int) -> nn.Sequential:
    """A condition (..., width) -> (..., numbers * width): ``numbers`` shifts, scales and gates side by side.

    They are linear in silu(condition), and initially zero (adaLN-zero, arXiv 2212.09748, section 3.2).
    """
    return nn.Sequential(nn.SiLU(), linear(width, numbers * width, std=0))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (1 + scale) + shift. x (B, N, D); shift and scale (B, N, D), or (B, 1, D) for all tokens alike."""
    return x * (1 + scale) + shift


class Attention(nn.Module):
    """Multi-head self-attention, softmax(q k^T / sqrt(width / heads)) v in each head, by PyTorch's fused kernel.

    With qk_norm each head's queries and keys are normalised, by RMSNorm or LayerNorm, before they are rotated.
    Source: Vaswani et al., arXiv 1706.03762; QK-norm: Dehghani et al., arXiv 2302.05442.
    """

    def __init__(self, width: int, heads: int, qk_norm: bool = False, rms_norm: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = linear(width, 3 * width)
        normalise = (RMSNorm if rms_norm else nn.LayerNorm) if qk_norm else nn.Identity
        self.q_norm, self.k_norm = normalise(width // heads), normalise(width // heads)
        self.proj = linear(width, width)

    def forward(self, x: Tensor, rotation: Rotation | None = None) -> Tensor:
        """x (B, N, width) -> (B, N, width). rotation: of each head's queries and keys, none where it is None."""
        query, key, value = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = self.q_norm(query), self.k_norm(key)
        if rotation is not None:
            query, key = rotation.turn(query), rotation.turn(key)
        # norms and rotations leave the autocast's precision
        mixed = F.scaled_dot_product_attention(query.to(value.dtype), key.to(value.dtype), value)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """W3 (silu(W1 x) * (W2 x)) of each token x (arXiv 2002.05202). w12: W1 above W2, each of ``hidden`` rows."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w12 = linear(width, 2 * hidden)
        self.w3 = linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., width) -> (..., width)."""
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class Block(nn.Module):
    """A DiT block: attention and MLP, each modulated by the condition (adaLN-zero, arXiv 2212.09748, section 3.2).

        x <- x + gate f(norm(x) (1 + scale) + shift),    f = attention, then f = MLP

    rms_norm (else LayerNorm without parameters), swiglu (else GELU), qk_norm: what it is made of.
    norm2_eps: of the LayerNorm before the MLP.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        rms_norm: bool = False,
        swiglu: bool = False,
        qk_norm: bool = False,
        norm2_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        hidden = 4 * width
        self.norm1 = norm(width, rms_norm)
        self.attn = Attention(width, heads, qk_norm, rms_norm)
        self.norm2 = norm(width, rms_norm, norm2_eps)
        self.mlp: nn.Module = (
            SwiGLU(width, 2 * hidden // 3)  # as many weights as the MLP that it replaces
            if swiglu
            else nn.Sequential(linear(width, hidden), nn.GELU(approximate="tanh"), linear(hidden, width))
        )
        self.adaLN_modulation = modulation(width, 6)

    def forward(self, x: Tensor, condition: Tensor, rotation: Rotation | None = None) -> Tensor:
        """Tokens x (B, N, width) -> (B, N, width). condition: (B, N, width), or (B, 1, width) for all tokens alike.

        rotation: of queries and keys, none where it is None.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition).chunk(6, dim=-1)
        x = x + gate1 * self.attn(modulate(self.norm1(x), shift1, scale1), rotation)
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))
