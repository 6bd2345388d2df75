import math

import pytest

from gmtool.errors import UserError
from gmtool.settings import changed, make
from gmtool.stages.train.config import TrainConfig
from gmtool.training.schedule import learning_rate


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_learning_rate(schedule: str) -> None:
    config = make(TrainConfig, {"lr": 0.4, "warmup": 10, "steps": 110, "schedule": schedule})
    assert [learning_rate(config, step) for step in range(10)] == pytest.approx([0.04 * (n + 1) for n in range(10)])
    middle, late = {"constant": (0.4, 0.4), "linear": (0.2, 0.1), "cosine": (0.2, 0.2 * (1 - math.sqrt(0.5)))}[schedule]
    assert learning_rate(config, 10) == pytest.approx(0.4)
    assert learning_rate(config, 60) == pytest.approx(middle)
    assert learning_rate(config, 85) == pytest.approx(late)
    assert learning_rate(config, 110) == pytest.approx(0.4 if schedule == "constant" else 0, abs=1e-12)


def test_a_warmup_longer_than_the_run() -> None:
    config = make(TrainConfig, {"lr": 1.0, "warmup": 100, "steps": 10, "schedule": "cosine"})
    assert [learning_rate(config, step) for step in (0, 4, 9)] == pytest.approx([0.01, 0.05, 0.1])
    assert learning_rate(changed(config, {"warmup": 0}), 0) == 1.0


def test_the_published_schedule_of_mm_fm() -> None:
    """4e-4 for 20 epochs of 1250 steps, 2e-4 to epoch 40, then along a line to 2e-5 at epoch 800."""
    config = make(
        TrainConfig,
        {
            "lr": 4e-4,
            "lr_from": (25_000, 2e-4),
            "schedule": "linear",
            "fall": (50_000, 1_000_000),
            "lr_end": 2e-5,
            "warmup": 0,
        },
    )
    rates = {0: 4e-4, 24_999: 4e-4, 25_000: 2e-4, 50_000: 2e-4, 525_000: 1.1e-4, 1_000_000: 2e-5, 2_000_000: 2e-5}
    assert [learning_rate(config, step) for step in rates] == pytest.approx(list(rates.values()))


def test_a_span_of_its_own_does_not_know_the_last_step() -> None:
    config = make(
        TrainConfig, {"lr": 1.0, "schedule": "cosine", "fall": (10, 20), "lr_end": 0.5, "warmup": 0, "steps": 30}
    )
    assert [learning_rate(config, step) for step in (10, 15, 20, 29)] == pytest.approx([1.0, 0.75, 0.5, 0.5])
    assert learning_rate(changed(config, {"steps": 99}), 15) == learning_rate(config, 15)
    assert not config.falls_to_the_end
    assert changed(config, {"fall": None}).falls_to_the_end


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"fall": (5, 9)}, "--fall has no effect with --schedule constant"),
        ({"lr_end": 0.1}, "--lr-end has no effect with --schedule constant"),
        ({"schedule": "linear", "fall": (9, 9)}, "--fall goes from"),
        ({"schedule": "linear", "fall": (-1, 9)}, "--fall must be at least 0"),
        ({"lr_from": (5, -1.0)}, "--lr-from must be at least 0"),
    ],
)
def test_settings_that_make_no_schedule(settings: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make(TrainConfig, settings)
