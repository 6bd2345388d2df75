"""What every network over latents has in common: its architecture, labels, blocks and call."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gmtool.mixture.gaussian_mixture import GaussianMixture
from gmtool.nn.architecture import Architecture, Conditions
from gmtool.nn.blocks import Rotation
from gmtool.nn.spectrum import SpectrumMLP


class Network(nn.Module):
    """Latents x_t (B, C, H, W), times t (B,) in [0, 1] with 0 = data, and labels -> a prediction of the velocity.

    y_embedder, k_embedder: labels of classes and modes (B,) -> (B, width), None where the network takes none.
    checkpoint_activations: keep the input of each block alone for the gradient, and compute its inside again.
    """

    blocks: nn.ModuleList
    y_embedder: nn.Module | None
    k_embedder: nn.Module | None
    spectrum: SpectrumMLP | None

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.checkpoint_activations = False

    def forward(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor | GaussianMixture:
        """The velocity (B, C, H, W), or a mixture over it, in float32.

        Raises ValueError when a label, or the context, that the network was built for is missing.
        """
        raise NotImplementedError  # each network has its own

    def _with_labels(self, embedding: Tensor, conditions: Conditions) -> Tensor:
        """An embedding (B, width) plus those of the labels."""
        classes = conditions.classes
        if self.architecture.constant_label:
            classes = torch.zeros(len(embedding), dtype=torch.long, device=embedding.device)
        for name, table, labels in (
            ("classes", self.y_embedder, classes),
            ("modes", self.k_embedder, conditions.modes),
        ):
            if table is not None:
                if labels is None:
                    raise ValueError(f"this network is conditioned on {name}: give their labels")
                embedding = embedding + table(labels)
        return embedding

    def _with_context(self, x_t: Tensor, conditions: Conditions) -> Tensor:
        """x_t (B, C, H, W) beside its context, (B, C + context, H, W)."""
        if not self.architecture.context:
            return x_t
        if conditions.context is None:
            raise ValueError(f"this network sees {self.architecture.context} channels of context: give them")
        return torch.cat([x_t, conditions.context.to(x_t.dtype)], dim=1)

    def _through(
        self, blocks: Iterable[nn.Module], tokens: Tensor, condition: Tensor, rotation: Rotation | None
    ) -> Tensor:
        """Tokens (B, N, D) through blocks."""
        again = self.checkpoint_activations and torch.is_grad_enabled()
        for block in blocks:
            if again:
                tokens = checkpoint(block, tokens, condition, rotation, use_reentrant=False, preserve_rng_state=False)
            else:
                tokens = block(tokens, condition, rotation)
        return tokens
