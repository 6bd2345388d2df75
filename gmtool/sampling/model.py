"""A trained network, taken from its file and made ready to be asked."""

from __future__ import annotations

from pathlib import Path

import torch

from gmtool.nn.architecture import Architecture
from gmtool.nn.build import build_network
from gmtool.nn.compile import compile_network
from gmtool.nn.network import Network
from gmtool.stages.sample.config import SampleConfig
from gmtool.training.checkpoint import load_weights


def load_network(architecture: Architecture, weights: Path, config: SampleConfig, device: torch.device) -> Network:
    """The network with the weights of a file. Raises UserError when they are of another network."""
    network = build_network(architecture, seed=0)
    load_weights(network, weights)
    if config.compile:
        compile_network(network)
    return network.to(device).eval()
