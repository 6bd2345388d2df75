"""Which solver goes with which guidance, and the ranges of the scales."""

import pytest

from gmtool.errors import UserError
from gmtool.sampling.plan import make_plan
from gmtool.settings import make
from gmtool.stages.sample.config import SampleConfig, parse_interval
from gmtool.stages.train.config import TrainConfig

VELOCITY = make(TrainConfig, {"source": "gaussian", "condition": "class", "time_shift": 1.0})
MIXTURE = make(TrainConfig, {"objective": "gm-kl", "source": "gaussian", "condition": "class", "time_shift": 1.0})
MODES = make(
    TrainConfig, {"objective": "mm-fm", "source": "gmm", "coupling": "mode", "condition": "none", "time_shift": 1.0}
)
GUIDE = {"guidance": "auto", "guide": "weaker"}


@pytest.mark.parametrize(
    ("run", "settings", "expected"),
    [
        (VELOCITY, {"solver": "unipc"}, ("unipc", 2, 0.0)),
        (VELOCITY, {"solver": "ddpm-large"}, ("ddpm-large", 1, 0.0)),
        (MIXTURE, {"solver": "dpmpp-2m-sde"}, ("dpmpp-2m-sde", 2, 0.0)),
        (MIXTURE, {"guidance": "prob-weights"}, ("gm-ode", 2, 1.5)),
        (MIXTURE, {"guidance": "cfg", "solver": "unipc"}, ("unipc", 2, 1.5)),
        (MIXTURE, GUIDE, ("gm-ode", 2, 0.04)),
        (MIXTURE, {**GUIDE, "solver": "heun"}, ("heun", 2, 1.5)),
        (VELOCITY, GUIDE, ("euler", 1, 1.5)),
        (VELOCITY, {**GUIDE, "guidance_scale": 3}, ("euler", 1, 3)),
        (MODES, {**GUIDE, "solver": "dpmpp-2m"}, ("dpmpp-2m", 2, 1.5)),
    ],
)
def test_what_is_left_open_is_filled_in(run, settings, expected):
    plan = make_plan(make(SampleConfig, settings), run)
    assert (plan.solver, plan.order, plan.scale) == expected


@pytest.mark.parametrize(
    ("run", "settings", "message"),
    [
        (VELOCITY, {"guidance": "prob-weights"}, "--guidance prob-weights needs a mixture head"),
        (MIXTURE, {**GUIDE, "guidance_scale": 1.5}, r"of auto with gm-ode lies in \[0, 1\)"),
        (MIXTURE, {**GUIDE, "guidance_scale": 0.5, "solver": "euler"}, "of auto with euler is at least 1"),
        (VELOCITY, {**GUIDE, "guidance_scale": 0.5}, "of auto with euler is at least 1"),
        (MODES, {"solver": "ddpm-small"}, "--solver ddpm-small adds noise of a Gaussian source"),
        (MODES, {"solver": "dpmpp-2m-sde"}, "--source gmm: take a solver without noise"),
    ],
)
def test_what_the_run_cannot_do_is_refused(run, settings, message):
    with pytest.raises(UserError, match=message):
        make_plan(make(SampleConfig, settings), run)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance": "prob-weights", "guidance_scale": 0.5}, "of prob-weights is at least 1, not 0.5"),
        ({"guidance": "prob", "guidance_scale": 1.0}, r"of prob lies in \[0, 1\), not 1"),
        ({"guidance": "cfg", "guidance_scale": float("inf")}, "of cfg is at least 1"),
        ({"guidance": "cfg", "guidance_scale": float("nan")}, "of cfg is at least 1"),
        ({"guidance": "auto"}, "needs a weaker run: give its folder by --guide"),
        ({"guidance": "cfg", "guide": "weaker"}, "--guide belongs to --guidance auto"),
        ({"guidance": "prob-weights", "solver": "unipc"}, "take --solver gm-ode or gm-sde, not unipc"),
        ({"guidance": "cfg", "solver": "gm-ode"}, "--solver euler, not gm-ode"),
        ({"solver": "unipc", "order": 2}, "belong to gm-ode and gm-sde, not to --solver unipc"),
        ({"guidance_interval": "0.2,0.8"}, "no effect without --guidance"),
        ({"guidance": "cfg", "guidance_interval": "0.2"}, "two times LOW,HIGH"),
        ({"guidance": "cfg", "guidance_interval": "low,high"}, "two times LOW,HIGH"),
        ({"guidance": "cfg", "guidance_interval": "0.8,0.2"}, "0 <= LOW <= HIGH <= 1"),
        ({"guidance": "cfg", "guidance_interval": "0,1.5"}, "0 <= LOW <= HIGH <= 1"),
        ({"guidance": "cfg", "guidance_interval": "nan,1"}, "0 <= LOW <= HIGH <= 1"),
    ],
)
def test_settings_that_do_not_belong_together_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        make(SampleConfig, settings)


def test_interval():
    assert parse_interval(None) == (0, 1)
    assert parse_interval("0.25, 0.75") == (0.25, 0.75)
    plan = make_plan(make(SampleConfig, {"guidance": "cfg", "guidance_interval": "0.1,0.6"}), VELOCITY)
    assert plan.interval == (0.1, 0.6)
