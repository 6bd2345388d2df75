"""Another program's weights under our names: what the modules of its networks have in common.

Each such module gives ``*_architecture``, from whatever its files tell it by, and ``*_weights(weights, architecture)``,
the same weights under our names, for strict loading.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gmtool.nn.architecture import Architecture
from gmtool.nn.build import build_network


def check_weights(weights: Mapping[str, Tensor], architecture: Architecture) -> int:
    """Check weights against an architecture; return the network's number of parameters.

    Raises ValueError unless they have the names and shapes of the architecture's, and are finite.
    """
    with torch.device("meta"):
        network = build_network(architecture, seed=0)
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    if missing := sorted(set(expected) - set(weights)):
        raise ValueError(f"it lacks the weight {missing[0]} of its network")
    if unknown := sorted(set(weights) - set(expected)):
        raise ValueError(f"it has the weight {unknown[0]}, which this network of gmtool does not know")
    for name in sorted(expected):
        if weights[name].shape != expected[name]:
            shapes = [" x ".join(map(str, shape)) for shape in (weights[name].shape, expected[name])]
            raise ValueError(f"the weight {name} is of {shapes[0]}, and not of {shapes[1]}")
        if not torch.isfinite(weights[name]).all():
            raise ValueError(f"the weight {name} holds numbers that are not finite")
    return sum(parameter.numel() for parameter in network.parameters())
