"""The learning rate of each step: its knots against closed forms, and schedules that earlier versions recorded."""

import math
from typing import Any

import pytest

from gmtool.errors import UserError
from gmtool.settings import make
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train.plan import recorded_settings
from gmtool.training.schedule import Schedule, place_knots
from gmtool.training.settings import ScheduleSettings


def schedule_of(steps: int, **settings: Any) -> Schedule:
    return ScheduleSettings(**settings).resolve(default=1e-3, steps=steps)


@pytest.mark.parametrize(
    ("settings", "middle", "late", "end"),
    [
        ({}, 0.4, 0.4, 0.4),
        ({"lr_knots": "100%:0"}, 0.2, 0.1, 0.0),
        ({"lr_knots": "100%:0", "lr_curve": "cosine"}, 0.2, 0.2 * (1 - math.sqrt(0.5)), 0.0),
    ],
    ids=["constant", "linear", "cosine"],
)
def test_after_the_warm_up_the_rate_follows_the_curve(
    settings: dict[str, str], middle: float, late: float, end: float
) -> None:
    schedule = schedule_of(110, lr=0.4, warmup=10, **settings)
    assert [schedule.at(step) for step in range(10)] == pytest.approx([0.04 * (n + 1) for n in range(10)])
    assert [schedule.at(step) for step in (10, 60, 85, 110)] == pytest.approx([0.4, middle, late, end], abs=1e-12)


def test_without_a_rate_it_is_the_default() -> None:
    assert schedule_of(9, warmup=0).at(5) == 1e-3


def test_a_warm_up_longer_than_the_run() -> None:
    schedule = schedule_of(10, lr=1.0, warmup=100, lr_knots="100%:0", lr_curve="cosine")
    assert [schedule.at(step) for step in (0, 4, 9)] == pytest.approx([0.01, 0.05, 0.1])
    assert schedule_of(10, lr=1.0, warmup=0, lr_knots="100%:0").at(0) == 1.0


@pytest.mark.parametrize("knots", ["5:0.4,9:0", "5:0.1,9:0"])
def test_a_knot_where_the_warm_up_ends(knots: str) -> None:
    schedule = schedule_of(10, lr=0.4, warmup=5, lr_knots=knots)
    after = place_knots(knots, 10)[0][1]
    assert [schedule.at(step) for step in (0, 4, 5, 7, 9)] == pytest.approx([0.08, 0.4, after, after / 2, 0])


def test_the_published_schedule_of_mm_fm() -> None:
    """4e-4 for 20 epochs of 1250 steps, 2e-4 to epoch 40, then along a line to 2e-5 at epoch 800."""
    schedule = schedule_of(1_000_000, lr=4e-4, lr_knots="25000:4e-4,25000:2e-4,50000:2e-4,1000000:2e-5", warmup=0)
    rates = {0: 4e-4, 24_999: 4e-4, 25_000: 2e-4, 50_000: 2e-4, 525_000: 1.1e-4, 1_000_000: 2e-5, 2_000_000: 2e-5}
    assert [schedule.at(step) for step in rates] == pytest.approx(list(rates.values()))


def test_knots_in_steps_do_not_know_the_last_one_and_shares_do() -> None:
    knots = "10:1,20:0.5"
    schedule = schedule_of(30, lr=1.0, lr_knots=knots, lr_curve="cosine", warmup=0)
    assert [schedule.at(step) for step in (10, 15, 20, 29)] == pytest.approx([1.0, 0.75, 0.5, 0.5])
    assert schedule_of(99, lr=1.0, lr_knots=knots, lr_curve="cosine", warmup=0).at(15) == schedule.at(15)
    assert not ScheduleSettings(lr_knots=knots).follows_the_steps
    assert ScheduleSettings(lr_knots="50%:0.1").follows_the_steps
    assert place_knots("12.5%:1, 100%:2e-3", 80) == ((10, 1.0), (80, 2e-3))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lr_curve": "cosine"}, "--lr-curve cosine has no effect without --lr-knots"),
        ({"lr_knots": ""}, "--lr-knots is STEP:RATE"),
        ({"lr_knots": "50"}, "--lr-knots is STEP:RATE"),
        ({"lr_knots": "-5:0.1"}, "--lr-knots is STEP:RATE"),
        ({"lr_knots": "5:-0.1"}, "--lr-knots is STEP:RATE"),
        ({"lr_knots": "5:1e999"}, "--lr-knots is STEP:RATE"),
        ({"lr_knots": "5:1e"}, "--lr-knots is STEP:RATE"),
        ({"lr_knots": "half:0.1"}, "--lr-knots is STEP:RATE"),
    ],
)
def test_settings_that_make_no_schedule(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        ScheduleSettings(**settings)


@pytest.mark.parametrize(
    ("knots", "steps"), [("9:0.1,5:0", 100), ("50%:0.1,40%:0", 100), ("60%:0.1,50:0", 100), ("9:0.1,5:0", 1)]
)
def test_knots_that_go_back(knots: str, steps: int) -> None:
    with pytest.raises(UserError, match="--lr-knots go from earlier steps to later ones"):
        schedule_of(steps, lr_knots=knots)


def earlier_rate(settings: dict[str, Any], step: int) -> float:
    """The learning rate of version 0.1's first runs, whose settings were schedule, fall, lr_end and lr_from."""
    rate, end = settings["lr"], settings["lr_end"]
    if settings["lr_from"] is not None and step >= settings["lr_from"][0]:
        rate = settings["lr_from"][1]
    rise = min(1.0, (step + 1) / settings["warmup"]) if settings["warmup"] else 1.0
    first, last = settings["fall"] or (settings["warmup"], settings["steps"])
    done = min(1.0, max(0, step - first) / max(1, last - first))
    left = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[settings["schedule"]]
    return rise * (end + (rate - end) * left)


CONSTANT = {"lr": 0.3, "warmup": 7, "steps": 60, "schedule": "constant", "fall": None, "lr_end": 0.0, "lr_from": None}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lr_from": [20, 0.1]},
        {"lr_from": [3, 0.1]},
        {"schedule": "linear"},
        {"schedule": "cosine", "lr_end": 0.05},
        {"schedule": "linear", "warmup": 0},
        {"schedule": "cosine", "warmup": 90},
        {"schedule": "linear", "fall": [10, 40], "lr_end": 0.02},
        {"schedule": "linear", "fall": [2, 40], "lr_end": 0.02},
        {"schedule": "cosine", "fall": [30, 50], "lr_from": [20, 0.1], "lr_end": 0.01},
        {"schedule": "cosine", "fall": [30, 50], "lr_from": [30, 0.1]},
        {"schedule": "cosine", "fall": [30, 50], "lr_from": [55, 0.1], "lr_end": 0.01},
        {"schedule": "linear", "fall": [10, 50], "lr_from": [20, 0.1], "lr_end": 0.01},
        {"schedule": "linear", "lr_from": [20, 0.1], "lr_end": 0.01},
        {"schedule": "linear", "lr_from": [20, 0.1], "warmup": 90},
    ],
)
def test_a_schedule_of_an_earlier_version_has_the_same_rates(changes: dict[str, Any]) -> None:
    old = CONSTANT | changes
    settings = recorded_settings(old)
    assert not settings.keys() & {"schedule", "fall", "lr_end", "lr_from"}
    config = make(TrainConfig, settings)
    assert config.schedule.follows_the_steps == (
        old["schedule"] != "constant" and old["fall"] is None and old["warmup"] < old["steps"]
    )
    schedule = config.schedule.resolve(1.0, config.loop.steps)
    for step in range(old["steps"]):
        assert schedule.at(step) == pytest.approx(earlier_rate(old, step), rel=1e-12, abs=1e-15), step


def test_a_jump_within_a_cosine_is_no_schedule_of_today() -> None:
    old = CONSTANT | {"schedule": "cosine", "fall": [10, 50], "lr_from": [20, 0.1]}
    with pytest.raises(UserError, match=r"--lr-from 20 0.1 within its --fall.*cannot be resumed"):
        recorded_settings(old)
