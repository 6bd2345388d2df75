"""The commands that records tell: as they are typed, and with all that they were told."""

import shlex
from typing import Any

import pytest

from gmtool.artifacts.manifest import Manifest
from gmtool.stages.report.commands import command_of


def record(stage: str, config: dict[str, Any], **details: Any) -> Manifest:
    return Manifest("run", stage, "0", config, details=details)


def test_a_run_that_a_sweep_read_several_times_is_named_once() -> None:
    """With several checkpoints, averages or guides, the record has an input for the weights of each."""
    swept = record("sweep", {"steps": [1, 2], "ema": ["0.9", "0.99"], "guide": ["one", "two"]})
    inputs = {"run": ["my run", "my run", "other"], "guide": ["one", "two", "one"]}
    command = command_of(swept, "sweep", inputs)
    assert command.startswith("gmtool sweep 'my run' other sweep ")
    assert shlex.split(command).count("--guide") == 2 and "--guide one --guide two" in command
    assert "--steps 1 --steps 2" in command and "--ema 0.9 --ema 0.99" in command


def test_settings_are_typed_again() -> None:
    trained = record("train", {"qk_norm": True, "dropout": 0.0, "betas": [0.8, 0.9], "ema": [0.9, 0.99], "gmm": None})
    command = command_of(trained, "run", {"latents": ["my latents.h5"], "gmm": ["gmm.h5"]})
    words, *flags = command.split(" --")
    assert words == "gmtool train 'my latents.h5' run"
    assert sorted(flags) == ["betas 0.8 0.9", "dropout 0.0", "ema 0.9", "ema 0.99", "gmm gmm.h5", "qk-norm"]


def test_what_the_command_does_not_have_is_no_flag() -> None:
    assert command_of(record("train", {"schedule": "cosine", "seed": 1}), "run", {}) == "gmtool train run --seed 1"


@pytest.mark.parametrize("config", [{"objective": "gm-kl", "source": "gaussian", "steps": 0}, {"statistics": "None"}])
def test_an_import_whose_source_is_not_recorded_has_no_command(config: dict[str, Any]) -> None:
    assert command_of(record("import", config), "run", {"gmm": ["run/gmm.h5"]}) == ""


def test_an_import_is_told_its_source_and_what_was_typed() -> None:
    told = {"source": "owner/name", "gmm": "/data/my gmm.pkl", "condition": "mode", "statistics": None}
    imported = record("import", {"objective": "fm", "source": "gmm", "gmm": "run/gmm.h5"}, imported=told)
    command = command_of(imported, "run", {"gmm": ["run/gmm.h5"]})
    assert command == "gmtool import owner/name run --gmm '/data/my gmm.pkl' --condition mode"


def test_a_stage_of_another_version_has_no_command() -> None:
    assert command_of(record("paint", {"colour": "red"}), "run", {}) == ""
