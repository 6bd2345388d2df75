"""Every network over latents by its kind: where it is, and the names of its sizes.

A new network is a file with an architecture (`gmtool.nn.architecture.Architecture`) and a network
(`gmtool.nn.network.Network`), and a row here. Nothing heavy is imported: the flags are made from this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gmtool.nn.architecture import Architecture
    from gmtool.nn.network import Network


@dataclass(frozen=True)
class Size:
    """A named size of a network. dimensions: its architecture's arguments after the shape. lr: its learning rate."""

    dimensions: tuple[int, ...]
    lr: float


@dataclass(frozen=True)
class NetworkEntry:
    """A row. architecture, network: ``module:class``, or the class itself. sizes: by their names in --model."""

    architecture: str | type[Architecture]
    network: str | type[Network]
    sizes: Mapping[str, Size]

    @property
    def architecture_class(self) -> type[Architecture]:
        """The class of its architectures."""
        return _loaded(self.architecture)

    @property
    def network_class(self) -> type[Network]:
        """The class of its networks."""
        return _loaded(self.network)


def _loaded(where: str | type) -> Any:
    if isinstance(where, type):
        return where
    module, name = where.split(":")
    return getattr(import_module(module), name)


NETWORKS: dict[str, NetworkEntry] = {
    "dit": NetworkEntry(
        "gmtool.nn.dit:DiTArchitecture",
        "gmtool.nn.dit:DiT",
        {  # depth, width, heads: S to XL as published (DiT, arXiv 2212.09748), the others for small images and a CPU
            "tiny": Size((4, 128, 4), 2e-3),
            "small": Size((6, 256, 4), 1e-3),
            "S": Size((12, 384, 6), 4e-4),
            "B": Size((12, 768, 12), 2e-4),
            "L": Size((24, 1024, 16), 2e-4),
            "XL": Size((28, 1152, 16), 2e-4),
        },
    ),
    "ditdh": NetworkEntry(
        "gmtool.nn.ditdh:DiTDHArchitecture",
        "gmtool.nn.ditdh:DiTDH",
        {  # the same, then depth, width, heads of the wide head: S to XL as published (RAE, arXiv 2510.11690)
            "DH-tiny": Size((4, 128, 4, 1, 256, 4), 2e-3),
            "DH-S": Size((12, 384, 6, 2, 2048, 16), 4e-4),
            "DH-B": Size((12, 768, 12, 2, 2048, 16), 2e-4),
            "DH-L": Size((24, 1024, 16, 2, 2048, 16), 2e-4),
            "DH-XL": Size((28, 1152, 16, 2, 2048, 16), 2e-4),
        },
    ),
}


def model_names() -> tuple[str, ...]:
    """The names of all sizes of all networks: what --model may be."""
    return tuple(name for entry in NETWORKS.values() for name in entry.sizes)


def kind_of(model: str) -> str:
    """The kind of network that a name of --model is a size of. Raises KeyError for an unknown name."""
    for kind, entry in NETWORKS.items():
        if model in entry.sizes:
            return kind
    raise KeyError(model)


def default_lr(model: str) -> float:
    """The learning rate that suits the network of a name. Raises KeyError for an unknown name."""
    return NETWORKS[kind_of(model)].sizes[model].lr
