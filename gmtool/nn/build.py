"""From settings, or from the record in a run, to an architecture; from an architecture to a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from typing import Any, get_type_hints

import torch

from gmtool.errors import UserError
from gmtool.nn import NETWORKS, kind_of
from gmtool.nn.architecture import Architecture
from gmtool.nn.network import Network
from gmtool.nn.settings import NetworkSettings
from gmtool.settings import expect_type


def build_network(architecture: Architecture, seed: int, *, checkpoint_activations: bool = False) -> Network:
    """A network with weights drawn from ``seed`` alone; the global random state is left as it was.

    checkpoint_activations: store the inputs of blocks only, and recompute their activations in the backward pass.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETWORKS[architecture.kind].network_class(architecture, checkpoint_activations)


def named(model: str, shape: tuple[int, int, int]) -> Architecture:
    """The architecture of a name of --model, as published, for latents of ``shape`` (C, H, W).

    It has no conditions, and a velocity head.
    Raises KeyError for an unknown name.
    """
    entry = NETWORKS[kind_of(model)]
    make: Callable[..., Architecture] = entry.architecture_class
    return make(shape, *entry.sizes[model].dimensions)


def architecture_for(
    settings: NetworkSettings,
    shape: tuple[int, int, int],
    *,
    classes: int = 0,
    modes: int = 0,
    context: int = 0,
    mixture: bool,
    gpu: bool,
) -> Architecture:
    """The architecture that the settings ask for, over latents of a shape (C, H, W).

    classes, modes, context: see `Architecture`. mixture: whether the objective predicts one. gpu: whether the network
    is trained on one. Raises UserError, naming the flag, for settings that do not go with these.
    """
    components = settings.components_of(mixture)
    if settings.spectral > shape[0]:
        raise UserError(f"--spectral {settings.spectral}: the latents have {shape[0]} channels: use at most as many")
    return replace(
        named(settings.model_on(gpu), shape).configured(settings),
        classes=classes,
        modes=modes,
        context=context,
        components=components,
        constant_std=settings.constant_std,
        spectral=settings.spectral,
    )


def architecture_to_json(architecture: Architecture) -> dict[str, Any]:
    """An architecture as a run's record holds it: its kind and its fields, as JSON values."""
    return {"kind": architecture.kind, **asdict(architecture)}


OF_OTHER_KINDS: Mapping[str, Any] = {
    "wide_depth": 0,
    "wide_width": 0,
    "wide_heads": 0,
    "constant_label": False,
    "log_std_width": 0,
    "norm2_eps": 1e-6,
}
"""Fields that older records hold for every kind of network, and their values for the kinds that do not have them."""


def architecture_from_json(values: Mapping[str, Any], whose: str = "the architecture") -> Architecture:
    """The architecture of a run's record, also of one from before each kind had fields of its own.

    Raises UserError, naming ``whose`` record it is, for one that is damaged or made by another version.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{whose} is damaged: it describes no network")
    kind, given = values.get("kind", "dit"), {name: value for name, value in values.items() if name != "kind"}
    if not isinstance(kind, str) or kind not in NETWORKS:
        raise UserError(f"{whose} has a network of the kind {kind!r}: it was written by another gmtool version")
    architecture_class = NETWORKS[kind].architecture_class
    hints, known = get_type_hints(architecture_class), {field.name for field in fields(architecture_class)}
    for name, value in dict(given).items():
        if name in known:
            expect_type(hints[name], value, f"{name} in {whose}")
        elif name in OF_OTHER_KINDS and value == OF_OTHER_KINDS[name]:
            del given[name]
        else:
            raise UserError(f"{whose} has a network with {name} = {value!r}: it was written by another gmtool version")
    make: Callable[..., Architecture] = architecture_class
    try:
        return make(**{name: tuple(value) if name == "shape" else value for name, value in given.items()})
    except (TypeError, ValueError) as error:
        raise UserError(f"{whose} is damaged, or was written by another gmtool version ({error})") from error
