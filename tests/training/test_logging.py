"""TensorBoard and Weights & Biases: they hold what was logged, also after a run resumed."""

import math
import sys
import time
from pathlib import Path

import pytest

from gmtool.artifacts.manifest import Manifest
from gmtool.artifacts.method_record import MethodRecord
from gmtool.artifacts.run import RunFolder
from gmtool.errors import UserError
from gmtool.nn.dit import DiTArchitecture
from gmtool.training.logging import MetricsFile, TensorBoard, WeightsAndBiases, loggers_for
from gmtool.training.settings import LoggingSettings

METHOD = MethodRecord("fm", "gaussian", "independent", "none", False, 0.5, "logit-normal", 1.0, 0.1)


def run_in(folder: Path) -> RunFolder:
    manifest = Manifest(kind="run", stage="train", fingerprint="0123456789abcdef0123", config={"steps": 3}, inputs=())
    return RunFolder(folder, manifest, METHOD, DiTArchitecture((1, 1, 1), 1, 4, 1), (), ("0.9995",))


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: {event.step: event.value for event in events.Scalars(name)} for name in events.Tags()["scalars"]}


def test_tensorboard_holds_the_figures_under_their_groups(tmp_path: Path) -> None:
    logger = TensorBoard(run_in(tmp_path))
    logger.begin(0)
    logger.write([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5, "lr": 0.25}])
    logger.write([{"step": 2, "images/s": 64.0}], "machine")
    logger.write([{"step": 2, "frechet_distance": 8.0}], "samples")
    logger.close()
    assert scalars(tmp_path / "tensorboard") == {
        "train/loss": {1: 2.0, 2: 1.5},
        "train/lr": {2: 0.25},
        "machine/images/s": {2: 64.0},
        "samples/frechet_distance": {2: 8.0},
    }


def test_tensorboard_drops_what_comes_again(tmp_path: Path) -> None:
    for begin, values in ((0, {1: 4.0, 2: 3.0, 3: 9.0}), (2, {3: 2.0, 4: 1.0})):
        logger = TensorBoard(run_in(tmp_path))
        logger.begin(begin)
        logger.write([{"step": step, "loss": value} for step, value in values.items()])
        logger.close()
    assert scalars(tmp_path / "tensorboard")["train/loss"] == {1: 4.0, 2: 3.0, 3: 2.0, 4: 1.0}


@pytest.mark.slow
def test_weights_and_biases_keeps_an_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    logger = WeightsAndBiases(run_in(tmp_path), "project")
    logger.begin(0)
    logger.begin(0)  # a run that goes back to a checkpoint begins again
    logger.write([{"step": 1, "loss": 2.0}])
    logger.write([{"step": 1, "images/s": 64.0}], "machine")
    logger.close()
    (record,) = tmp_path.glob("wandb/offline-run-*/run-0123456789abcdef.wandb")
    until = time.monotonic() + 60  # its own process writes the file, in its own time
    while b"machine/images/s" not in record.read_bytes() and time.monotonic() < until:
        time.sleep(0.1)
    held = record.read_bytes()
    assert b"train/loss" in held and b"machine/images/s" in held and b"project" in held


def test_how_fast_it_went_stands_in_a_file_of_its_own(tmp_path: Path) -> None:
    for logger in (
        MetricsFile(tmp_path / "metrics.jsonl"),
        MetricsFile(tmp_path / "throughput.jsonl", ["machine"]),
    ):
        logger.begin(0)
        logger.write([{"step": 1, "loss": 2.0}])
        logger.write([{"step": 1, "images/s": 64.0}], "machine")
        logger.write([{"step": 1, "frechet_distance": 8.0}], "samples")
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 2
    assert "images/s" not in (tmp_path / "metrics.jsonl").read_text()
    assert (tmp_path / "throughput.jsonl").read_text() == '{"step": 1, "images/s": 64.0}\n'


def test_what_is_not_installed_is_said_where_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = LoggingSettings(tensorboard=True, wandb="project")
    asked.check_installed()
    for name in ("tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)  # as good as not installed
    LoggingSettings().check_installed()
    with pytest.raises(UserError, match=r"--tensorboard needs TensorBoard: run pip install '\.\[log\]'"):
        asked.check_installed()
    with pytest.raises(UserError, match=r"--wandb needs Weights & Biases: run pip install '\.\[wandb\]'"):
        LoggingSettings(wandb="project").check_installed()
    assert [type(logger) for logger in loggers_for(LoggingSettings(), run_in(tmp_path))] == [MetricsFile, MetricsFile]


@pytest.mark.parametrize(("asked", "installed"), [(None, True), (True, True), (False, False)])
def test_tensorboard_is_written_where_it_is_installed(tmp_path: Path, asked: bool | None, installed: bool) -> None:
    loggers = loggers_for(LoggingSettings(tensorboard=asked), run_in(tmp_path))
    assert (TensorBoard in map(type, loggers)) == installed


def test_a_figure_that_is_not_a_number_is_kept(tmp_path: Path) -> None:
    logger = TensorBoard(run_in(tmp_path))
    logger.begin(0)
    logger.write([{"step": 1, "loss": math.inf}])
    logger.close()
    assert scalars(tmp_path / "tensorboard")["train/loss"] == {1: math.inf}
