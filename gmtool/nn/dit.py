"""The diffusion transformer over the patch grid (DiT, arXiv 2212.09748), with a velocity head or a mixture head."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from torch import Tensor, nn

from gmtool.mixture.gaussian_mixture import GaussianMixture
from gmtool.nn.architecture import Conditions, TransformerArchitecture
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
from gmtool.nn.heads import make_head, output_layer
from gmtool.nn.network import Network
from gmtool.nn.spectrum import SpectrumMLP


@dataclass(frozen=True)
class DiTArchitecture(TransformerArchitecture):
    """A DiT; see `TransformerArchitecture`. Released GM-DiTs have other values of the following.

    log_std_width: of the hidden layer of the mixture head's log-std, 0 for ``width``.
    norm2_eps: of the LayerNorm before each block's MLP.
    """

    kind: ClassVar[str] = "dit"

    _: KW_ONLY
    log_std_width: int = 0
    norm2_eps: float = 1e-6


class DiT(Network):
    """Tokens of patches and their positions, blocks modulated by time and labels, a modulated norm, a head."""

    architecture: DiTArchitecture

    def __init__(self, architecture: DiTArchitecture, checkpoint_activations: bool = False) -> None:
        super().__init__(architecture, checkpoint_activations)
        width, grid, rms_norm = architecture.width, architecture.grid, architecture.rms_norm
        self.x_embedder = linear(architecture.inputs * architecture.patch**2, width)
        self.register_buffer("pos_embed", position_table(*grid, width, architecture.columns_first), persistent=False)
        self.t_embedder = TimeEmbedding(width)
        self.y_embedder = label_embedding(architecture.classes, width) if architecture.classes else None
        self.k_embedder = label_embedding(architecture.modes, width) if architecture.modes else None
        self.rope = RotaryEmbedding(grid, width // architecture.heads) if architecture.rope else None
        self.blocks = nn.ModuleList(
            Block(
                width,
                architecture.heads,
                rms_norm=rms_norm,
                swiglu=architecture.swiglu,
                qk_norm=architecture.qk_norm,
                norm2_eps=architecture.norm2_eps,
            )
            for _ in range(architecture.depth)
        )
        self.norm_out = norm(width, rms_norm)
        self.adaLN_out = modulation(width, 2)
        self.head = make_head(
            output_layer(
                width, architecture.channels, architecture.components, architecture.patch, architecture.velocities
            ),
            architecture.shape,
            architecture.components,
            width,
            patch=architecture.patch,
            constant_std=architecture.constant_std,
            log_std_width=architecture.log_std_width,
            velocities=architecture.velocities,
        )
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
