"""The cost of a run, estimated before it begins."""

from pathlib import Path

import pytest
import torch
from small import Small

from gmtool.artifacts.latents import open_latents
from gmtool.cli.app import main
from gmtool.console import print_forecast
from gmtool.errors import UserError
from gmtool.forecast import Forecast
from gmtool.nn.build import build_network
from gmtool.progress import Progress
from gmtool.settings import changed, make
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train.forecast import forecast
from gmtool.stages.train.plan import TrainPlan, facts_of, plan_training
from gmtool.stages.train.run import train
from gmtool.throughput import Speed, device_name, keep_speed
from gmtool.training.cost import StepCost, step_cost

QUICK = make(TrainConfig, {"steps": 30, "batch_size": 8, "keep": 1, "preview_every": 0, "device": "cpu"})


@pytest.fixture(autouse=True)
def no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def planned(small: Small, config: TrainConfig) -> tuple[TrainPlan, StepCost]:
    """The plan on these latents, without a mixture, and what a step costs."""
    with open_latents(small.latents("classes")) as latents:
        plan = plan_training(config, facts_of(latents, None), gpu=False)
    return plan, step_cost(plan.architecture, plan.method, torch.float32)


@pytest.mark.slow
def test_a_forecast_counts_the_run_and_writes_nothing(small: Small, tmp_path: Path) -> None:
    estimate = forecast(small.latents("classes"), tmp_path / "run", QUICK)
    work, (plan, cost) = dict(estimate.work), planned(small, QUICK)
    network = build_network(plan.architecture, 0)
    assert (work["--model"], work["--condition"]) == ("tiny", "class")
    assert work["parameters"] == f"{sum(parameter.numel() for parameter in network.parameters()):,}"
    assert (work["images per step (effective batch)"], work["images computed at once"], work["steps"]) == (
        "8",
        "8",
        "30",
    )
    assert work["epochs"] == "4 of 60 images"  # 30 steps of 8
    assert work["operations per step"].startswith(f"{8 * cost.flops / 1e12:,.4g} TFLOP ")
    assert estimate.memory == cost.memory(8, averages=1)
    assert [file.path for file in estimate.reads] == [small.latents("classes")]
    assert estimate.reads[0].bytes == small.latents("classes").stat().st_size
    assert estimate.seconds is None
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_files_that_are_foretold_are_those_that_come(small: Small, tmp_path: Path) -> None:
    config = changed(QUICK, {"steps": 2, "ema": (0.9, 0.99)})
    estimate = forecast(small.latents("classes"), tmp_path / "run", config)
    train(small.latents("classes"), tmp_path / "run", config, Progress())
    for written in estimate.writes:
        files = (
            [written.path] if written.path.is_file() else [file for file in written.path.rglob("*") if file.is_file()]
        )
        assert sum(file.stat().st_size for file in files) == pytest.approx(written.bytes, rel=0.02, abs=400)


@pytest.mark.slow
def test_the_fitted_mixture_is_read_where_it_is_used(small: Small, tmp_path: Path) -> None:
    config = changed(QUICK, {"objective": "gm-kl", "source": "gmm"})
    estimate = forecast(small.latents("classes"), tmp_path / "run", config)
    assert [file.path.name for file in estimate.reads] == ["latents.h5", "gmm.h5"]
    with pytest.raises(UserError, match="does not exist"):
        forecast(small.latents("classes"), tmp_path / "run", changed(config, {"gmm": tmp_path / "none.h5"}))


@pytest.mark.slow
def test_time_follows_from_the_measured_speed(small: Small, tmp_path: Path) -> None:
    keep_speed(Speed(device_name(torch.device("cpu")), "float32", matmul=1e11, train=5e10, network="B"))
    estimate = forecast(small.latents("classes"), tmp_path / "run", QUICK)
    _, cost = planned(small, QUICK)
    assert estimate.seconds == 30 * 8 * cost.flops / 5e10
    other = forecast(small.latents("classes"), tmp_path / "run", changed(QUICK, {"precision": "bfloat16"}))
    assert other.seconds is None


@pytest.mark.slow
def test_what_the_command_prints(small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", str(small.latents("classes")), str(tmp_path / "run"), "--preset", "quickstart", "--dry-run"]
    assert main([*arguments, "--steps", "7", "--ema", "0.9", "--ema", "0.99"]) == 0
    shown = capsys.readouterr().out
    for words in ("handwritten digits", "to expect", "0.9 0.99", "parameters", "GFLOP per image", "`gmtool bench`"):
        assert words in shown
    condition = next(line for line in shown.splitlines() if "--condition (auto)" in line)
    assert "class: the images come in 3 classes" in condition
    assert " 128 " in shown  # the effective batch, from the preset
    keep_speed(Speed(device_name(torch.device("cpu")), "float32", matmul=1e11, train=1e6, network="B"))
    assert main([*arguments, "--price-per-hour", "2"]) == 0
    assert "cost" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    assert main([*arguments[:-1], "--price-per-hour", "2"]) == 2
    assert "--price-per-hour has no effect without --dry-run" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "distill", "train-decoder images"])
def test_a_price_needs_a_dry_run(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--price-per-hour", "2"]) == 2
    assert "--price-per-hour has no effect without --dry-run" in capsys.readouterr().err


def test_the_cost_is_that_of_the_hours(capsys: pytest.CaptureFixture[str]) -> None:
    print_forecast(Forecast("a run", seconds=90 * 60), price=2)
    assert " 3.00 " in capsys.readouterr().out
