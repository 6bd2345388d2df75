"""The diffusion transformer over the patch grid (DiT, arXiv 2212.09748), with a velocity head or a mixture head."""

from __future__ import annotations

from torch import Tensor, nn

from gmtool.mixture.gaussian_mixture import GaussianMixture
from gmtool.nn.architecture import Architecture, Conditions
from gmtool.nn.blocks import (
    Block,
    RotaryEmbedding,
    TimeEmbedding,
    label_embedding,
    linear,
    modulate,
    modulation,
    norm,
    patches,
    position_table,
)
from gmtool.nn.heads import head_of, output_layer
from gmtool.nn.network import Network
from gmtool.nn.spectrum import SpectrumMLP


class DiT(Network):
    """Patches plus their positions, blocks modulated by time and labels, a modulated norm, a head."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        width, grid = architecture.width, architecture.grid
        self.x_embedder = linear(architecture.inputs * architecture.patch**2, width)
        table = position_table(*grid, width, architecture.columns_first)
        self.register_buffer("pos_embed", table, persistent=False)
        self.t_embedder = TimeEmbedding(width)
        labels = architecture.classes or architecture.constant_label
        self.y_embedder = label_embedding(architecture.classes, width) if labels else None
        self.k_embedder = label_embedding(architecture.modes, width) if architecture.modes else None
        self.rope = RotaryEmbedding(grid, width // architecture.heads) if architecture.rope else None
        self.blocks = nn.ModuleList([Block(architecture, width, architecture.heads) for _ in range(architecture.depth)])
        self.norm_out = norm(architecture, width)
        self.adaLN_out = modulation(width, 2)
        self.head = head_of(architecture, output_layer(architecture, width))
        self.spectrum = SpectrumMLP(architecture.shape) if architecture.spectral else None

    def forward(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor | GaussianMixture:
        """See `Network.forward`."""
        embedding = self._with_labels(self.t_embedder(t), conditions)
        condition = embedding.unsqueeze(1)
        tokens = self.x_embedder(patches(self._with_context(x_t, conditions), self.architecture.patch)) + self.pos_embed
        rotation = None if self.rope is None else self.rope()
        tokens = self._through(self.blocks, tokens, condition, rotation)
        shift, scale = self.adaLN_out(condition).chunk(2, dim=-1)
        return self.head(modulate(self.norm_out(tokens), shift, scale), embedding)
