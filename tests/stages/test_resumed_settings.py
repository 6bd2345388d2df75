"""What is said of a run that was begun with other settings: they are spelled as they are typed."""

from pathlib import Path
from typing import Any

import pytest

from gmtool.errors import UserError
from gmtool.settings import as_flat
from gmtool.stages.resumed_settings import expect_same_settings
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train_decoder.config import TrainDecoderConfig


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


def test_what_an_earlier_version_did_not_know_is_as_it_is_by_default() -> None:
    """Of every command that resumes."""
    for config_class, name, other in ((TrainConfig, "focal", 2.0), (TrainDecoderConfig, "noise_tau", 0.3)):
        now = as_flat(config_class())
        before = {known: value for known, value in now.items() if known != name}
        expect_same_settings(Path("run"), config_class, before, now, ())
        with pytest.raises(UserError, match=r"was begun with --.* 0.* not --"):
            expect_same_settings(Path("run"), config_class, before, now | {name: other}, ())
