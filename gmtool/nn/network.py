"""What every network over latents has in common: its architecture, its labels, its blocks, and how it is called."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gmtool.mixture.gaussian_mixture import GaussianMixture
from gmtool.nn.architecture import Architecture, Conditions
from gmtool.nn.blocks import Rotation
from gmtool.nn.spectrum import SpectrumMLP


class Network(nn.Module, ABC):
    """Latents x_t (B, C, H, W), times t (B,) in [0, 1] with 0 = data, and conditions -> a prediction of the velocity.

    blocks: where the work is; they are compiled, sharded and checkpointed one by one.
    y_embedder, k_embedder: labels of classes and of modes (B,) -> (B, width), None where it is built for none.
    spectrum: predicts the spectrum of the noise, None where the architecture learns none.
    checkpoint_activations: store the inputs of blocks only, and recompute their activations in the backward pass.
    """

    architecture: Architecture
    blocks: nn.ModuleList
    y_embedder: nn.Module | None
    k_embedder: nn.Module | None
    spectrum: SpectrumMLP | None

    def __init__(self, architecture: Architecture, checkpoint_activations: bool = False) -> None:
        super().__init__()
        self.architecture = architecture
        self.checkpoint_activations = checkpoint_activations

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor | GaussianMixture:
        """The velocity (B, C, H, W), or a mixture over it, in float32.

        Raises ValueError when a label, or the context, that the network was built for is missing.
        """

    def _with_labels(self, embedding: Tensor, conditions: Conditions) -> Tensor:
        """An embedding (B, width) plus those of the labels. Raises ValueError when one is missing."""
        for name, table, labels in (
            ("classes", self.y_embedder, conditions.classes),
            ("modes", self.k_embedder, conditions.modes),
        ):
            if table is not None:
                if labels is None:
                    raise ValueError(f"this network is conditioned on {name}: give their labels")
                embedding = embedding + table(labels)
        return embedding

    def _with_context(self, x_t: Tensor, conditions: Conditions) -> Tensor:
        """x_t (B, C, H, W) with its context as further channels, (B, C + context, H, W).

        Raises ValueError when the context is missing.
        """
        if not self.architecture.context:
            return x_t
        if conditions.context is None:
            raise ValueError(f"this network sees {self.architecture.context} channels of context: give them")
        return torch.cat([x_t, conditions.context.to(x_t.dtype)], dim=1)

    def _through(
        self, blocks: Iterable[nn.Module], tokens: Tensor, condition: Tensor, rotation: Rotation | None
    ) -> Tensor:
        """The tokens (B, N, D) that the last of ``blocks`` puts out, for ``tokens`` (B, N, D) into the first.

        condition: (B, N, D) or (B, 1, D), which modulates each block. rotation: of queries and keys, or None.
        """
        recomputed = self.checkpoint_activations and torch.is_grad_enabled()
        for block in blocks:
            if recomputed:
                tokens = checkpoint(block, tokens, condition, rotation, use_reentrant=False, preserve_rng_state=False)
            else:
                tokens = block(tokens, condition, rotation)
        return tokens
