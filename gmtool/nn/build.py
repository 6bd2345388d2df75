"""From an architecture to a network."""

from __future__ import annotations

import torch

from gmtool.nn.architecture import Architecture
from gmtool.nn.dit import DiT
from gmtool.nn.ditdh import DiTDH
from gmtool.nn.network import Network


def build_network(architecture: Architecture, seed: int) -> Network:
    """A network with weights drawn from ``seed`` alone; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DiTDH(architecture) if architecture.kind == "ditdh" else DiT(architecture)
