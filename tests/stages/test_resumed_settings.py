"""What is said of a run that was begun with other settings: they are spelled as they are typed."""

from pathlib import Path
from typing import Any

import pytest

from gmtool.errors import UserError
from gmtool.settings import as_flat
from gmtool.stages.resumed_settings import expect_same_settings
from gmtool.stages.train.config import TrainConfig


@pytest.mark.parametrize(
    ("begun", "asked", "words"),
    [
        ({"qk_norm": True}, {}, "--qk-norm, not --no-qk-norm"),
        ({"ema": (0.999, 0.9999)}, {"ema": (0.5,)}, "--ema 0.999 --ema 0.9999, not --ema 0.5"),
        ({"ema_power": ()}, {"ema_power": (0.1,)}, "no --ema-power, not --ema-power 0.1"),
        ({"mode_mean": True}, {"mode_mean": None}, "--mode-mean, not without it"),
        ({"betas": (0.9, 0.95)}, {"betas": (0.9, 0.99)}, "--betas 0.9 0.95, not --betas 0.9 0.99"),
        ({"gmm": Path("my gmm.h5")}, {}, "--gmm 'my gmm.h5', not without it"),
        ({"seed": 0}, {"seed": 1}, "--seed 0, not --seed 1"),
    ],
)
def test_other_settings_are_spelled_as_they_are_typed(begun: dict[str, Any], asked: dict[str, Any], words: str) -> None:
    before, now = ({**as_flat(TrainConfig()), **values} for values in (begun, asked))
    with pytest.raises(UserError) as refusal:
        expect_same_settings(Path("run"), TrainConfig, before, now, ())
    assert str(refusal.value).startswith(f"run was begun with {words}: repeat these settings to resume")
