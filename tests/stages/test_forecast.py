"""What a run will take, told before it is begun."""

from pathlib import Path

import pytest
import torch
from small import Small

from gmtool.artifacts.latents import open_latents
from gmtool.cli.app import main
from gmtool.errors import UserError
from gmtool.nn.build import build_network
from gmtool.progress import Progress
from gmtool.settings import changed, make
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train.forecast import forecast
from gmtool.stages.train.plan import architecture_for
from gmtool.stages.train.run import train
from gmtool.throughput import Speed, device_name, keep_speed

QUICK = make(TrainConfig, {"steps": 30, "batch_size": 8, "keep": 1, "preview_every": 0, "device": "cpu"})


@pytest.fixture(autouse=True)
def no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_forecast_counts_the_run_and_writes_nothing(small: Small, tmp_path: Path) -> None:
    found = forecast(small.latents("classes"), tmp_path / "run", QUICK)
    with open_latents(small.latents("classes")) as latents:
        network = build_network(architecture_for(found.config, latents, None), 0)
    assert found.config.model == "tiny" and found.config.condition == "class"
    assert found.cost.parameters == sum(each.numel() for each in network.parameters())
    assert (found.images, found.batch, found.micro_batch) == (60, 8, 8)
    assert found.epochs == 30 * 8 / 60
    assert found.step_flops == 8 * found.cost.flops
    assert found.memory == found.cost.memory(8, averages=1)
    assert [each.path for each in found.reads] == [small.latents("classes")]
    assert found.reads[0].bytes == small.latents("classes").stat().st_size
    assert found.seconds is None
    assert not (tmp_path / "run").exists()


def test_the_files_that_are_foretold_are_those_that_come(small: Small, tmp_path: Path) -> None:
    config = changed(QUICK, {"steps": 2, "ema": (0.9, 0.99)})
    found = forecast(small.latents("classes"), tmp_path / "run", config)
    train(small.latents("classes"), tmp_path / "run", config, Progress())
    for each in found.writes:
        files = [each.path] if each.path.is_file() else [file for file in each.path.rglob("*") if file.is_file()]
        assert sum(file.stat().st_size for file in files) == pytest.approx(each.bytes, rel=0.02, abs=400)


def test_the_fitted_mixture_is_read_where_it_is_used(small: Small, tmp_path: Path) -> None:
    config = changed(QUICK, {"objective": "gm-kl", "source": "gmm"})
    found = forecast(small.latents("classes"), tmp_path / "run", config)
    assert [each.path.name for each in found.reads] == ["latents.h5", "gmm.h5"]
    with pytest.raises(UserError, match="does not exist"):
        forecast(small.latents("classes"), tmp_path / "run", changed(config, {"gmm": tmp_path / "none.h5"}))


def test_time_follows_from_the_measured_speed(small: Small, tmp_path: Path) -> None:
    keep_speed(Speed(device_name(torch.device("cpu")), "float32", matmul=1e11, train=5e10, network="B"))
    found = forecast(small.latents("classes"), tmp_path / "run", QUICK)
    assert found.seconds == 30 * 8 * found.cost.flops / 5e10
    other = forecast(small.latents("classes"), tmp_path / "run", changed(QUICK, {"precision": "bfloat16"}))
    assert other.seconds is None


def test_what_the_command_prints(small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", str(small.latents("classes")), str(tmp_path / "run"), "--preset", "quickstart", "--dry-run"]
    assert main([*arguments, "--steps", "7", "--ema", "0.9", "--ema", "0.99"]) == 0
    shown = capsys.readouterr().out
    for words in ("handwritten digits", "to expect", "0.9 0.99", "parameters", "GFLOP an image", "`gmtool bench`"):
        assert words in shown
    assert " 128 " in shown  # the effective batch, from the preset
    keep_speed(Speed(device_name(torch.device("cpu")), "float32", matmul=1e11, train=1e6, network="B"))
    assert main([*arguments, "--price-per-hour", "2"]) == 0
    assert "cost" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    assert main([*arguments[:-1], "--price-per-hour", "2"]) == 2
    assert "--price-per-hour belongs to --dry-run" in capsys.readouterr().err
