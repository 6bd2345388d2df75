"""Sampling as RAE and MM-FM do it, against their public implementation: grids, and whole Euler runs of a DiTDH."""

import golden
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from gmtool.flow.guidance.cfg import ClassifierFree
from gmtool.flow.guidance.interval import within
from gmtool.flow.model import VelocityModel
from gmtool.flow.solvers.base import integrate
from gmtool.flow.solvers.euler import Euler
from gmtool.flow.times import rae_grid
from gmtool.nn.architecture import Conditions
from gmtool.nn.ditdh import DiTDH, DiTDHArchitecture

VALUES = golden.arrays("transport")
SHIFT = 48**0.5
NULL = 10


@pytest.mark.parametrize("points", [2, 10, 50])
def test_the_grid(points: int) -> None:
    times = rae_grid(points - 1, SHIFT)
    torch.testing.assert_close(times.float(), VALUES[f"grid_n{points}_s6.9282"], **golden.TOLERANCE)
    assert times[-1] == pytest.approx(0.0069, abs=5e-5)


def test_the_grid_without_shift() -> None:
    torch.testing.assert_close(rae_grid(49).float(), VALUES["grid_n50_s1.0000"], **golden.TOLERANCE)


@pytest.mark.parametrize(
    ("name", "scale", "interval"),
    [("ode_final", 1.0, (0.0, 1.0)), ("ode_cfg_full", 1.8, (0.0, 1.0)), ("ode_cfg_interval", 1.8, (0.1, 0.8))],
)
@torch.no_grad()
def test_whole_runs(name: str, scale: float, interval: tuple[float, float]) -> None:
    network = DiTDH(
        DiTDHArchitecture((16, 4, 4), depth=3, width=32, heads=4, classes=10, wide_depth=2, wide_width=64, wide_heads=2)
    )
    network.load_state_dict(load_file(golden.DATA / "ditdh.safetensors"))

    def given(labels: Tensor) -> VelocityModel:
        return lambda x_t, t: network(x_t, t, Conditions(labels))

    plain = given(VALUES["y"])
    guided = ClassifierFree(scale)(plain, given(torch.full_like(VALUES["y"], NULL)))
    model = plain if scale == 1 else within(interval, guided, plain)
    end = integrate(Euler(), model, VALUES["ode_x_init"], rae_grid(9, SHIFT))
    torch.testing.assert_close(end, VALUES[name], **golden.TOLERANCE)
