"""Which solver goes with which guidance, the ranges of the scales, and flags that would have no effect."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from stepping import method_for

from gmtool.artifacts.method_record import StudentRecord
from gmtool.errors import UserError
from gmtool.flow.guidance import GUIDANCES
from gmtool.flow.solvers import SOLVERS
from gmtool.nn.dit import DiTArchitecture
from gmtool.sampling.plan import SamplePlan, default_solver, make_plan
from gmtool.sampling.sampler import evaluations_of
from gmtool.sampling.settings import PROTOCOLS, SamplingSettings, parse_interval

LATENTS = DiTArchitecture((2, 2, 2), 1, 16, 2, classes=3)
VELOCITY = method_for(LATENTS, {})
MIXTURE = method_for(LATENTS, {"objective": "gm-kl"})
MODES = method_for(LATENTS, {"objective": "mm-fm", "condition": "none"})
UNION = method_for(LATENTS, {"objective": "gm-kl", "source": "gmm"})
NAMES, GM = set(SOLVERS), {"gm-ode", "gm-sde"}
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
        (UNION, {"steps": 6}, ("gm-ode", 2, 0.0)),
        (UNION, {"steps": 7}, ("gm-ode", 1, 0.0)),
        (UNION, {"steps": 50, "solver": "gm-ode"}, ("gm-ode", 1, 0.0)),
        (UNION, {"steps": 50, "order": 2}, ("gm-ode", 2, 0.0)),
        (UNION, {"steps": 50, "solver": "gm-sde"}, ("gm-sde", 2, 0.0)),
        (MIXTURE, {"steps": 50}, ("gm-ode", 2, 0.0)),
        (VELOCITY, GUIDE, ("euler", 1, 1.5)),
        (VELOCITY, {**GUIDE, "guidance_scale": 3}, ("euler", 1, 3)),
        (MODES, {**GUIDE, "solver": "dpmpp-2m"}, ("dpmpp-2m", 2, 1.5)),
    ],
)
def test_what_is_left_open_is_filled_in(method, settings, expected):
    plan = plan_of(method, settings)
    assert (plan.solver, plan.order, plan.scale) == expected


@pytest.mark.parametrize(
    ("method", "settings", "solver", "why"),
    [
        (MIXTURE, {}, "gm-ode", "mixture"),
        (UNION, {"steps": 3}, "gm-ode", "mixture"),
        (UNION, {"steps": 2}, "gm-sde", "speckled"),
        (MIXTURE, {"steps": 1, "guidance": "prob"}, "gm-sde", "at most 2 evaluations"),
        (MIXTURE, {"steps": 1, "substeps": 8}, "gm-ode", "mixture"),
        (MIXTURE, {"steps": 6, "guidance": "cfg"}, "euler", "--guidance cfg acts on a velocity"),
        (MIXTURE, {"protocol": "rae", "steps": 2}, "euler", "--protocol rae"),
        (VELOCITY, {"steps": 1}, "euler", "fm learns a velocity"),
    ],
)
def test_the_default_solver_follows_the_run_and_the_evaluations(method, settings, solver, why):
    choice = default_solver(SamplingSettings(**settings), method)
    assert (choice.flag, choice.value) == ("--solver", solver) and why in choice.why
    assert plan_of(method, settings).solver == solver


def test_a_spectrum_is_drawn_by_gm_sde():
    assert plan_of(MIXTURE, {"steps": 8, "spectral": True}, spectral=1).solver == "gm-sde"


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (VELOCITY, {"guidance": "prob-weights"}, "--guidance prob-weights needs a mixture head"),
        (MIXTURE, {**GUIDE, "guidance_scale": 1.5}, r"of auto with gm-ode is in \[0, 1\), not 1.5"),
        (MIXTURE, {**GUIDE, "guidance_scale": 0.5, "solver": "euler"}, "of auto with euler is at least 1, not 0.5"),
        (VELOCITY, {**GUIDE, "guidance_scale": 0.5}, "of auto with euler is at least 1"),
        (MIXTURE, {"guidance": "prob-weights", "guidance_scale": 0.5}, "of prob-weights with gm-ode is at least 1"),
        (MIXTURE, {"guidance": "prob", "guidance_scale": 1.0}, r"of prob with gm-ode is in \[0, 1\), not 1"),
        (VELOCITY, {"guidance": "cfg", "guidance_scale": 0.9}, "of cfg with euler is at least 1, not 0.9"),
        (MODES, {"solver": "ddpm-small"}, "--solver ddpm-small adds noise of a Gaussian source"),
        (MODES, {"solver": "dpmpp-2m-sde"}, "--source gmm: use a solver without noise"),
        (UNION, {"spectral": True, "solver": "gm-sde"}, "--spectral needs the spectrum that train --spectral AXES"),
    ],
)
def test_what_the_run_cannot_do_is_refused(method, settings, message):
    with pytest.raises(UserError, match=message):
        plan_of(method, settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance": "cfg", "guidance_scale": float("inf")}, "--guidance-scale must be a finite number"),
        ({"guidance": "cfg", "guidance_scale": float("nan")}, "--guidance-scale must be a finite number"),
        ({"guidance": "auto"}, "needs a weaker run: give its folder by --guide"),
        ({"guidance": "cfg", "guide": "weaker"}, "--guide belongs to --guidance auto"),
        ({"guidance": "prob-weights", "solver": "unipc"}, "use --solver gm-ode or gm-sde, not unipc"),
        ({"guidance": "prob", "solver": "euler"}, "use --solver gm-ode or gm-sde, not euler"),
        ({"guidance": "cfg", "solver": "gm-ode"}, "--solver euler or heun, not gm-ode"),
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
        SamplingSettings(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(({"order": 2, "solver": name}, "--order belongs to gm-ode and gm-sde, not") for name in sorted(NAMES - GM)),
        *(
            ({"substeps": 2, "solver": name}, "--substeps belongs to gm-ode, not to")
            for name in sorted(NAMES - {"gm-ode", "policy"})
        ),
        *(
            ({"spectral": True, "solver": name}, "--spectral is how gm-sde draws")
            for name in sorted(NAMES - {"gm-sde"})
        ),
        ({"guidance_scale": 0.5}, "--guidance-scale has no effect without --guidance"),
        ({"orthogonal": 0.5}, "--orthogonal has no effect without --guidance"),
        ({"orthogonal": 0.5, "guidance": "cfg", "solver": "heun"}, "--orthogonal has no effect on --guidance cfg"),
        ({"orthogonal": 0.5, "guidance": "prob-weights", "solver": "gm-ode"}, "--orthogonal has no effect on"),
        ({"orthogonal": 0.5, **GUIDE, "solver": "euler"}, "--orthogonal has no effect on --guidance auto with euler"),
    ],
)
def test_flags_without_effect_are_refused_with_the_solver(settings, message):
    with pytest.raises(UserError, match=message):
        SamplingSettings(**settings)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (VELOCITY, {"order": 1}, "--order belongs to gm-ode and gm-sde, not to --solver euler"),
        (VELOCITY, {"substeps": 3}, "--substeps belongs to gm-ode, not to --solver euler"),
        (MIXTURE, {"spectral": True}, "--spectral"),
        (VELOCITY, {"guidance": "cfg", "orthogonal": 0.5}, "--orthogonal has no effect on --guidance cfg with euler"),
        (MIXTURE, {"guidance": "cfg", "order": 1}, "--order belongs to gm-ode and gm-sde, not to --solver euler"),
        (MIXTURE, {"protocol": "rae", "substeps": 3}, "--substeps belongs to gm-ode, not to --solver euler"),
        (VELOCITY, {**GUIDE, "orthogonal": 0.5}, "--orthogonal has no effect on --guidance auto with euler"),
    ],
)
def test_flags_without_effect_are_refused_with_the_run(method, settings, message):
    """Where the run decides which solver it is."""
    SamplingSettings(**settings)  # nothing is wrong with it yet
    with pytest.raises(UserError, match=message):
        plan_of(method, settings)


def test_orthogonal_where_it_has_an_effect():
    assert plan_of(MIXTURE, {"guidance": "prob", "orthogonal": 0.25}).orthogonal == 0.25
    assert plan_of(MIXTURE, {**GUIDE, "orthogonal": 0.25, "solver": "gm-sde"}).orthogonal == 0.25
    assert plan_of(MIXTURE, {"guidance": "prob"}).orthogonal == 1


STUDENT = replace(
    MIXTURE,
    student=StudentRecord(
        evaluations=3,
        policy="gm",
        last_segment=0.5,
        components=4,
        whitened=False,
        states=2,
        component_dropout=0.05,
        window=0,
        teacher_steps=0,
        data_free=False,
    ),
)


def test_a_student_is_drawn_with_its_own_evaluations_and_times():
    for steps in (None, 3):
        plan = plan_of(STUDENT, {"steps": steps})
        assert (plan.steps, plan.substeps, plan.temperature, plan.renewal) == (3, 128, 1.0, 0.0)
        torch.testing.assert_close(plan.grid(3), torch.tensor([1.0, 0.6, 0.2, 0.0], dtype=torch.float64))
        assert evaluations_of(plan) == 3
    plan = plan_of(STUDENT, {"substeps": 64, "temperature": 0.5, "renewal": 1.0})
    assert (plan.substeps, plan.temperature, plan.renewal) == (64, 0.5, 1.0)


def test_every_row_has_a_plan():
    """No solver or guidance of the tables is out of reach of the command."""
    for name, entry in SOLVERS.items():
        method = STUDENT if entry.on == "policy" else MIXTURE
        assert plan_of(method, {"solver": name}).entry is entry
    for name in GUIDANCES:
        assert plan_of(MIXTURE, {"guidance": name, "guide": "weaker" if name == "auto" else None}).guidance == name
    for name in PROTOCOLS:
        plan = plan_of(MIXTURE, {"protocol": name, "solver": "heun", "steps": 9})
        grid = plan.grid(plan.steps)
        assert grid[0] == 1 and (grid.diff() < 0).all()


def test_interval():
    assert parse_interval(None) == (0, 1)
    assert parse_interval("0.25, 0.75") == (0.25, 0.75)
    plan = plan_of(VELOCITY, {"guidance": "cfg", "guidance_interval": "0.1,0.6"})
    assert plan.interval == (0.1, 0.6)
