"""The record of a tokenizer, which latents files, runs and samples carry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class TokenizerSpec:
    """All that is needed to build a tokenizer again: stored in latents files, runs and samples.

    name: of its family, such as ``dinov2`` or ``pixels``. settings: its settings, as JSON values. arrays: its fitted
    state (the PCA of ``pixels``), float32.
    """

    name: str
    settings: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def layers(self) -> int:
        """Last blocks of an encoder whose tokens are summed to the latent; 1 where the record does not say."""
        return int(self.settings.get("layers", 1))
