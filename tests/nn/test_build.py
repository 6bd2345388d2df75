"""From names and records to architectures and networks; what a new kind of network has to bring."""

import json
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from gmtool.errors import UserError
from gmtool.nn import NETWORKS, NetworkEntry, Size, default_lr, kind_of, model_names
from gmtool.nn.architecture import Architecture, Conditions
from gmtool.nn.build import architecture_for, architecture_from_json, architecture_to_json, build_network, named
from gmtool.nn.dit import DiT, DiTArchitecture
from gmtool.nn.ditdh import DiTDH, DiTDHArchitecture
from gmtool.nn.network import Network
from gmtool.nn.settings import NetworkSettings

SHAPE = (4, 4, 4)
BEFORE = {
    "shape": [4, 4, 4], "depth": 4, "width": 128, "heads": 4, "classes": 5, "modes": 3, "components": 2,
    "constant_std": 0.5, "spectral": 1, "kind": "dit", "patch": 2, "wide_depth": 0, "wide_width": 0, "wide_heads": 0,
    "rms_norm": False, "swiglu": False, "rope": False, "qk_norm": True, "constant_label": False, "log_std_width": 16,
    "norm2_eps": 1e-05, "columns_first": True, "context": 4,
}  # fmt: skip
"""A record from when all kinds had the same fields."""
BEFORE_DH = BEFORE | {
    "kind": "ditdh", "classes": 0, "constant_label": True, "wide_depth": 1, "wide_width": 256, "wide_heads": 4,
    "rms_norm": True, "swiglu": True, "rope": False, "log_std_width": 0, "norm2_eps": 1e-06, "columns_first": False,
}  # fmt: skip
BOTH = {"classes": 5, "modes": 3, "components": 2, "constant_std": 0.5, "spectral": 1, "context": 4}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (
            BEFORE,
            DiTArchitecture(
                SHAPE, 4, 128, 4, patch=2, qk_norm=True, columns_first=True, log_std_width=16, norm2_eps=1e-5, **BOTH
            ),
        ),
        (
            BEFORE_DH,
            DiTDHArchitecture(
                SHAPE, 4, 128, 4, 1, 256, 4, patch=2, qk_norm=True, rope=False, columns_first=False,
                constant_label=True, **BOTH | {"classes": 0},
            ),
        ),
        (
            {"shape": [4, 4, 4], "depth": 4, "width": 128, "heads": 4, "classes": 0},
            DiTArchitecture(SHAPE, 4, 128, 4),
        ),
    ],
    ids=["dit", "ditdh", "before kinds"],
)  # fmt: skip
def test_records_of_earlier_versions(record: dict, expected: Architecture) -> None:
    assert architecture_from_json(record) == expected


@pytest.mark.parametrize("model", model_names())
def test_a_record_is_the_architecture_again(model: str) -> None:
    settings = NetworkSettings(model, patch_size=2, blocks="modern", qk_norm=True, components=3, constant_std=0.2)
    architecture = architecture_for(settings, SHAPE, classes=2, modes=3, context=4, mixture=True, gpu=False)
    assert architecture_from_json(json.loads(json.dumps(architecture_to_json(architecture)))) == architecture


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"novelty": 2}, "novelty = 2: it was written by another gmtool version"),
        ({"wide_depth": 2}, "wide_depth = 2: it was written by another gmtool version"),
        ({"kind": "unet"}, "kind 'unet': it was written by another gmtool version"),
        ({"kind": ["dit"]}, "written by another gmtool version"),
        ({"shape": 4}, "shape in run/config.json must be a list of 3 numbers, not 4"),
        ({"shape": [4, 0, 4]}, "damaged.*latents of shape"),
        ({"depth": "4"}, "depth in run/config.json must be a whole number, not '4'"),
        ({"heads": 0}, "damaged.*0 heads of 128 numbers"),
        ({"heads": 3}, "damaged.*3 heads of 128 numbers"),
        ({"width": -128}, "damaged.*4 heads of -128 numbers"),
        ({"patch": 3}, "damaged.*patches of 3"),
        ({"patch": 0}, "damaged.*patches of 0"),
        ({"rope": 1}, "rope in run/config.json must be true or false"),
        ({"components": -1}, "damaged.*components = -1"),
        ({"constant_std": -0.1}, "damaged.*constant_std = -0.1"),
        ({"constant_std": float("inf")}, "damaged.*constant_std = inf"),
        ({"spectral": 5}, "damaged.*spectral = 5 for 4 channels"),
    ],
)
def test_records_that_describe_no_network(changes: dict, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        architecture_from_json(BEFORE | changes, "run/config.json")
    assert "\n" not in str(caught.value) and "run/config.json" in str(caught.value)


@pytest.mark.parametrize("record", [None, [], "dit", {}, {"kind": "ditdh", "shape": [4, 4, 4]}])
def test_records_that_are_cut_short(record: object) -> None:
    with pytest.raises(UserError, match=r"run/config\.json is damaged"):
        architecture_from_json(record, "run/config.json")  # type: ignore[arg-type]


def test_a_name_is_a_size_of_one_kind() -> None:
    names = model_names()
    assert len(names) == len(set(names)) == sum(len(entry.sizes) for entry in NETWORKS.values())
    assert isinstance(build_network(named("tiny", SHAPE), 0), DiT)
    assert isinstance(build_network(named("DH-tiny", SHAPE), 0), DiTDH)
    assert (default_lr("tiny"), default_lr("XL"), default_lr("DH-S")) == (2e-3, 2e-4, 4e-4)
    with pytest.raises(KeyError):
        kind_of("XXL")


def test_published_blocks() -> None:
    """LayerNorm, GELU and a table of positions for DiT; RMSNorm, SwiGLU and RoPE besides for DiTDH."""
    dit, ditdh = named("XL", SHAPE), named("DH-XL", SHAPE)
    assert isinstance(dit, DiTArchitecture) and isinstance(ditdh, DiTDHArchitecture)
    assert (dit.depth, dit.width, dit.heads) == (ditdh.depth, ditdh.width, ditdh.heads) == (28, 1152, 16)
    assert (ditdh.wide_depth, ditdh.wide_width, ditdh.wide_heads) == (2, 2048, 16)
    assert not (dit.rms_norm or dit.swiglu or dit.rope or dit.qk_norm)
    assert ditdh.rms_norm and ditdh.swiglu and ditdh.rope and not ditdh.qk_norm


@dataclass(frozen=True)
class PositionwiseArchitecture(Architecture):
    """An architecture of another family: no tokens, no patches."""

    kind: ClassVar[str] = "positionwise"

    hidden: int


class Positionwise(Network):
    """The same MLP at each position, whatever the time."""

    def __init__(self, architecture: PositionwiseArchitecture, checkpoint_activations: bool = False) -> None:
        super().__init__(architecture, checkpoint_activations)
        self.y_embedder = self.k_embedder = self.spectrum = None
        self.blocks = nn.ModuleList([nn.Conv2d(architecture.inputs, architecture.hidden, 1)])
        self.last = nn.Conv2d(architecture.hidden, architecture.channels, 1)

    def forward(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        return self.last(self.blocks[0](self._with_context(x_t, conditions)).relu())


def test_a_new_network_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    row = NetworkEntry(PositionwiseArchitecture, Positionwise, {"P-8": Size((8,), lr=1e-2)})
    monkeypatch.setitem(NETWORKS, "positionwise", row)
    settings = NetworkSettings("P-8")
    architecture = architecture_for(settings, SHAPE, context=2, mixture=False, gpu=True)
    assert architecture == PositionwiseArchitecture(SHAPE, 8, context=2)
    assert architecture_from_json(json.loads(json.dumps(architecture_to_json(architecture)))) == architecture
    network = build_network(architecture, 0, checkpoint_activations=True)
    assert isinstance(network, Positionwise) and network.checkpoint_activations
    assert network(torch.ones(1, *SHAPE), torch.ones(1), Conditions(context=torch.ones(1, 2, 4, 4))).shape == (
        1,
        *SHAPE,
    )
    assert default_lr("P-8") == 1e-2
    for changes in ({"patch_size": 2}, {"blocks": "modern"}, {"qk_norm": True}):
        (name,) = changes
        with pytest.raises(UserError, match=f"--{name.replace('_', '-')} has no effect on .* positionwise"):
            architecture_for(NetworkSettings("P-8", **changes), SHAPE, mixture=False, gpu=True)
