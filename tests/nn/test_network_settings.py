"""The network's settings, and the architectures that they ask for."""

import subprocess
import sys

import pytest

from gmtool.errors import UserError
from gmtool.nn.architecture import Architecture
from gmtool.nn.build import architecture_for
from gmtool.nn.dit import DiTArchitecture
from gmtool.nn.ditdh import DiTDHArchitecture
from gmtool.nn.settings import COMPONENTS, NetworkSettings

SHAPE = (16, 2, 4)


def architecture(mixture: bool = True, gpu: bool = False, **settings) -> Architecture:
    return architecture_for(NetworkSettings(**settings), SHAPE, mixture=mixture, gpu=gpu)


def test_what_is_not_given_depends_on_the_device_and_the_objective() -> None:
    small, large = architecture(mixture=False), architecture(gpu=True)
    assert small == DiTArchitecture(SHAPE, 4, 128, 4)
    assert large == DiTArchitecture(SHAPE, 12, 768, 12, components=COMPONENTS)
    settings = NetworkSettings()
    assert settings.resolved(mixture=False, gpu=False) == NetworkSettings("tiny")
    assert settings.resolved(mixture=True, gpu=True) == NetworkSettings("B", components=COMPONENTS)
    asked = NetworkSettings("DH-S", components=3, constant_std=0.1, spectral=2)
    assert asked.resolved(mixture=True, gpu=True) == asked


def test_flags_change_patches_blocks_and_head() -> None:
    made = architecture(model="tiny", patch_size=2, blocks="modern", qk_norm=True, components=3, constant_std=0.1)
    assert made == DiTArchitecture(
        SHAPE, 4, 128, 4, patch=2, rms_norm=True, swiglu=True, rope=True, qk_norm=True, components=3, constant_std=0.1
    )
    made = architecture(model="DH-tiny", blocks="classic", spectral=16)
    assert made == DiTDHArchitecture(
        SHAPE, 4, 128, 4, 1, 256, 4, rms_norm=False, swiglu=False, rope=False, components=COMPONENTS, spectral=16
    )


@pytest.mark.parametrize(
    ("settings", "mixture", "words"),
    [
        ({"model": "XXL"}, True, "--model must be one of tiny, small, S, .*, DH-XL, not 'XXL'"),
        ({"patch_size": 4}, True, "--patch-size 4 does not divide the latents' 2 x 4 positions"),
        ({"patch_size": 0}, True, "--patch-size must be at least 1"),
        ({"spectral": 17}, True, "--spectral 17: the latents have 16 channels"),
        ({"components": 8}, False, "--components has no effect, .*: remove the flag, or use --objective gm-kl"),
        ({"constant_std": 0.1}, False, "--constant-std has no effect, .*: remove the flag"),
        ({"spectral": 1}, False, "--spectral has no effect, .*: remove the flag"),
        ({"components": 0}, True, "--components must be at least 1"),
        ({"constant_std": 0.0}, True, "--constant-std must be at least"),
        ({"constant_std": float("inf")}, True, "--constant-std must be a finite number"),
    ],
)
def test_settings_that_make_no_network_name_the_flag(settings: dict, mixture: bool, words: str) -> None:
    with pytest.raises(UserError, match=words):
        architecture(mixture, **settings)


@pytest.mark.slow
def test_the_flags_need_no_torch() -> None:
    """The help of a command is made from the settings and the table of networks, which import nothing heavy."""
    code = "import sys, gmtool.nn.settings as s; s.model_names(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
