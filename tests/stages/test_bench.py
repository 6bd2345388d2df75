"""What the machine is measured by, and what follows from it."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from gmtool.cli.app import main
from gmtool.data.image_sets import find_images
from gmtool.mixture import kmeans
from gmtool.progress import Progress
from gmtool.settings import make
from gmtool.stages.bench import run as bench_run
from gmtool.stages.bench.config import BenchConfig
from gmtool.stages.bench.inputs import SIDE, write_images
from gmtool.stages.bench.run import CPU_BATCH, affordable
from gmtool.stages.presets import load_preset
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train.plan import DataFacts, TrainPlan, plan_training
from gmtool.throughput import device_name, known_speed
from gmtool.training.cost import StepCost, step_cost

CPU = torch.device("cpu")


@pytest.mark.slow
def test_a_recipe_is_measured_from_images_to_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    arguments = ["bench", "--preset", "quickstart", "--num", "1000", "--seconds", "0", "--device", "cpu", "--json"]
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    rows = {measurement["stage"]: measurement for measurement in report["measurements"]}
    assert list(rows) == ["encode: decode", "encode: tokenizer", "fit-gmm: k-means", "fit-gmm: EM", "train", "sample"]
    preset = load_preset("quickstart")
    units = {
        "encode: decode": 1000,
        "encode: tokenizer": 1000,
        "fit-gmm: EM": 1000 * preset.config("fit-gmm").em.iterations,
        "train": preset.config("train").loop.steps * preset.config("train").loop.batch_size,
        "sample": preset.config("sample").selection.num,
    }
    for stage, count in units.items():
        assert rows[stage]["seconds"] == pytest.approx(count / rows[stage]["rate"])
    kept = known_speed(device_name(CPU), "float32")
    assert kept is not None and kept.matmul == report["matmul"] and kept.train > 0
    # the speed that train --dry-run uses is the one of the table
    assert kept.train / rows["train"]["rate"] == pytest.approx(2.974e9, rel=1)
    assert list(tmp_path.iterdir()) == [tmp_path / "cache"]


@pytest.mark.slow
def test_k_means_labels_the_images_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time is that of its iterations, in each of which all images are searched once, and of one search more."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    searches: list[str] = []

    def seconds_of(action: Callable[[], object], device: torch.device, at_least: float) -> float:
        before = len(searches)
        action()
        return float(max(1, len(searches) - before))

    for name in ("_faiss_iteration", "_torch_iteration", "label_points"):
        original = getattr(kmeans, name)
        counting = partial(_counting, original, searches)
        monkeypatch.setattr(kmeans, name, counting)
    monkeypatch.setattr(bench_run, "label_points", kmeans.label_points)
    monkeypatch.setattr(bench_run, "seconds_of", seconds_of)
    monkeypatch.setattr(bench_run, "_network", lambda run, matmul, precision: [])
    report = bench_run.bench(BenchConfig(preset="quickstart", num=1000, seconds=0, device="cpu"), Progress())
    (row,) = (row for row in report.measurements if row.stage == "fit-gmm: k-means")
    images, iterations = row.rate, load_preset("quickstart").config("fit-gmm").kmeans.iterations
    assert row.seconds == pytest.approx((iterations + 1) * 1000 / images)


def _counting(original: Callable[..., Any], searches: list[str], *arguments: Any, **named: Any) -> Any:
    searches.append(original.__name__)
    return original(*arguments, **named)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wanted", "limit", "affords", "measured"),
    [
        ("S", "operations", "S", "S"),
        ("S", "operations", "tiny", "tiny"),
        ("S", "memory", "tiny", "tiny"),
        ("DH-S", "operations", None, "DH-tiny"),
    ],
)
def test_a_network_that_is_too_large_is_measured_by_a_smaller_one_of_its_kind(
    wanted: str, limit: str, affords: str | None, measured: str
) -> None:
    """As large as the operations, and the memory, of a network that can be afforded; the smallest one in any case."""
    facts = DataFacts((4, 8, 8), 100, 1)

    def plan(model: str) -> TrainPlan:
        return plan_training(make(TrainConfig, {"model": model}), facts, gpu=False)

    def cost(model: str) -> StepCost:
        made = plan(model)
        return step_cost(made.architecture, made.method, torch.float32, checkpoint_activations=False)

    operations = memory = float("inf")
    if limit == "operations":
        operations = 0 if affords is None else cost(affords).flops
    else:
        memory = 0 if affords is None else cost(affords).memory(CPU_BATCH, 1)
    config = make(TrainConfig, {"model": wanted})
    settled, its_cost = affordable(config, facts, operations, lambda size: size <= memory)
    assert settled.model == measured and its_cost == cost(measured)


def test_the_images_are_photographs_in_size(tmp_path: Path) -> None:
    write_images(tmp_path, 4)
    images = find_images(tmp_path)
    assert len(images) == 4 and images.classes == ("a", "b")
    sizes = [file.stat().st_size for file in tmp_path.rglob("*.jpg")]
    assert all(50_000 < size < 250_000 for size in sizes), sizes
    assert Image.open(next(tmp_path.rglob("*.jpg"))).size == SIDE[::-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--preset", "quikstart"],
            "--preset quikstart is neither a preset nor a .toml file: did you mean quickstart?",
        ),
        (["--device", "cuda:9"], "--device cuda:9"),
        (["--num", "0"], "--num must be at least 1"),
    ],
)
def test_what_was_asked_wrongly(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and words in shown
