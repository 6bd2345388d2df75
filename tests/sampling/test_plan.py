"""Which solver goes with which guidance, the ranges of the scales, and flags that would have no effect."""

from typing import Any

from dataclasses import replace

import pytest
from stepping import method_for

from gmtool.artifacts.method_record import MethodRecord
from gmtool.errors import UserError
from gmtool.sampling.plan import make_plan
from gmtool.sampling.settings import SamplingSettings, parse_interval
from gmtool.settings import make

VELOCITY = MethodRecord("fm", "gaussian", "independent", "class", False, 0.5, "logit-normal", 1.0, 0.1)
MIXTURE = replace(VELOCITY, objective="gm-kl")
MODES = replace(VELOCITY, source="gmm", coupling="mode", condition="none")
GUIDE = {"guidance": "auto", "guide": "weaker"}


def plan_of(method: Any, settings: dict[str, Any], spectral: int = 0) -> SamplePlan:
    return make_plan(SamplingSettings(**settings), method, spectral, seed=0)


@pytest.mark.parametrize(
    ("method", "settings", "expected"),
    [
        (VELOCITY, {"solver": "unipc"}, ("unipc", 2, 0.0)),
        (VELOCITY, {"solver": "ddpm-large"}, ("ddpm-large", 1, 0.0)),
        (MIXTURE, {"solver": "dpmpp-2m-sde"}, ("dpmpp-2m-sde", 2, 0.0)),
        (MIXTURE, {"guidance": "prob-weights"}, ("gm-ode", 2, 1.5)),
        (MIXTURE, {"guidance": "cfg", "solver": "unipc"}, ("unipc", 2, 1.5)),
        (MIXTURE, GUIDE, ("gm-ode", 2, 0.04)),
        (MIXTURE, {**GUIDE, "solver": "heun"}, ("heun", 2, 1.5)),
        (UNION, {"solver": "gm-sde", "guidance": "prob"}, ("gm-sde", 2, 0.04)),
        (VELOCITY, GUIDE, ("euler", 1, 1.5)),
        (VELOCITY, {**GUIDE, "guidance_scale": 3}, ("euler", 1, 3)),
        (MODES, {**GUIDE, "solver": "dpmpp-2m"}, ("dpmpp-2m", 2, 1.5)),
    ],
)
def test_what_is_left_open_is_filled_in(run, settings, expected):
    plan = make_plan(make(SamplingSettings, settings), run, spectral=0, seed=0)
    assert (plan.solver, plan.order, plan.scale) == expected


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (VELOCITY, {"guidance": "prob-weights"}, "--guidance prob-weights needs a solver of a mixture"),
        (VELOCITY, {"order": 1}, "--order belongs to gm-ode and gm-sde, not to --solver euler"),
        (MIXTURE, {"guidance": "prob-weights", "guidance_scale": 0.5}, "of prob-weights with gm-ode is at least 1"),
        (MIXTURE, {"guidance": "prob", "guidance_scale": 1.0}, r"of prob with gm-ode is in \[0, 1\), not 1"),
        (MIXTURE, {**GUIDE, "guidance_scale": 1.5}, r"of auto with gm-ode is in \[0, 1\)"),
        (MIXTURE, {**GUIDE, "guidance_scale": 0.5, "solver": "euler"}, "of auto with euler is at least 1"),
        (VELOCITY, {**GUIDE, "guidance_scale": 0.5}, "of auto with euler is at least 1"),
        (MIXTURE, {"guidance": "prob-weights", "guidance_scale": 0.5}, "of prob-weights with gm-ode is at least 1"),
        (MIXTURE, {"guidance": "prob", "guidance_scale": 1.0}, r"of prob with gm-ode is in \[0, 1\), not 1"),
        (VELOCITY, {"guidance": "cfg", "guidance_scale": 0.9}, "of cfg with euler is at least 1, not 0.9"),
        (MODES, {"solver": "ddpm-small"}, "--solver ddpm-small adds noise of a Gaussian source"),
        (MODES, {"solver": "dpmpp-2m-sde"}, "--source gmm: use a solver without noise"),
    ],
)
def test_what_the_run_cannot_do_is_refused(method, settings, message):
    with pytest.raises(UserError, match=message):
        make_plan(make(SamplingSettings, settings), run, spectral=0, seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance": "cfg", "guidance_scale": float("inf")}, "--guidance-scale must be a finite number"),
        ({"guidance": "cfg", "guidance_scale": float("nan")}, "--guidance-scale must be a finite number"),
        ({"orthogonal": 0.5}, "--orthogonal has no effect without --guidance"),
        ({"guidance": "cfg", "solver": "euler", "orthogonal": 0.5}, "--orthogonal has no effect on --guidance cfg"),
        ({"solver": "gm-sde", "substeps": 2}, "--substeps belongs to gm-ode, not to --solver gm-sde"),
        ({"guidance": "auto"}, "needs a weaker run: give its folder by --guide"),
        ({"guidance": "cfg", "guide": "weaker"}, "--guide belongs to --guidance auto"),
        ({"guidance": "prob-weights", "solver": "unipc"}, "use --solver gm-ode or gm-sde, not unipc"),
        ({"guidance": "cfg", "solver": "gm-ode"}, "use --solver euler or heun, not gm-ode"),
        ({"solver": "unipc", "order": 2}, "--order belongs to gm-ode and gm-sde, not to --solver unipc"),
        ({"guidance_interval": "0.2,0.8"}, "no effect without --guidance"),
        ({"guidance": "cfg", "guidance_interval": "0.2"}, "two times LOW,HIGH"),
        ({"guidance": "cfg", "guidance_interval": "low,high"}, "two times LOW,HIGH"),
        ({"guidance": "cfg", "guidance_interval": "0.8,0.2"}, "0 <= LOW <= HIGH <= 1"),
        ({"guidance": "cfg", "guidance_interval": "0,1.5"}, "0 <= LOW <= HIGH <= 1"),
        ({"guidance": "cfg", "guidance_interval": "nan,1"}, "0 <= LOW <= HIGH <= 1"),
        ({"protocol": "rae", "steps": 1}, "--protocol rae counts the points of a grid: use at least --steps 2"),
        ({"order": 3}, "--order must be at most 2"),
        ({"solver": "rk4"}, "--solver must be one of euler, heun"),
        ({"guidance": "twice"}, "--guidance must be one of none, cfg"),
    ],
)
def test_settings_that_do_not_belong_together_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        make(SamplingSettings, settings)


def test_interval():
    assert parse_interval(None) == (0, 1)
    assert parse_interval("0.25, 0.75") == (0.25, 0.75)
    plan = make_plan(make(SamplingSettings, {"guidance": "cfg", "guidance_interval": "0.1,0.6"}), VELOCITY, 0, 0)
    assert plan.interval == (0.1, 0.6)
