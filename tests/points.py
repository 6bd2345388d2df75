"""Points that tests of metrics share."""

import numpy as np
import torch


def normal(count: int, dim: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(shift, scale, (count, dim))).float()
