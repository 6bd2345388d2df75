"""What the machine is measured by, and what follows from it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from gmtool.cli.app import main
from gmtool.data.image_sets import find_images
from gmtool.nn import model_names
from gmtool.settings import changed, make
from gmtool.stages.bench import run as bench
from gmtool.stages.bench.inputs import SIDE, write_images
from gmtool.stages.presets import load_preset
from gmtool.stages.train.config import TrainConfig
from gmtool.throughput import device_name, known_speed
from gmtool.training.cost import StepCost

CPU = torch.device("cpu")
NOTHING: Any = (None, None, torch.float32)


def test_a_recipe_is_measured_from_images_to_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    arguments = ["bench", "--preset", "quickstart", "--images", "1000", "--seconds", "0", "--device", "cpu", "--json"]
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {each["stage"]: each for each in found["measurements"]}
    assert list(rows) == ["encode: decode", "encode: tokenizer", "fit-gmm: k-means", "fit-gmm: EM", "train", "sample"]
    preset = load_preset("quickstart")
    units = {
        "encode: decode": 1000,
        "encode: tokenizer": 1000,
        "fit-gmm: k-means": 1000 * preset.config("fit-gmm").kmeans_iterations,
        "fit-gmm: EM": 1000 * preset.config("fit-gmm").em_iterations,
        "train": preset.config("train").steps * preset.config("train").batch_size,
        "sample": preset.config("sample").num,
    }
    for stage, count in units.items():
        assert rows[stage]["seconds"] == pytest.approx(count / rows[stage]["rate"])
    kept = known_speed(device_name(CPU), "float32")
    assert kept is not None and kept.matmul == found["matmul"] and kept.train > 0
    # the speed that train --dry-run uses is the one of the table
    assert kept.train / rows["train"]["rate"] == pytest.approx(2.974e9, rel=1)
    assert list(tmp_path.iterdir()) == [tmp_path / "cache"]


@pytest.mark.parametrize(
    ("wanted", "operations", "taken"),
    [("B", 40, "B"), ("B", 39, "S"), ("B", 1, "tiny"), ("DH-L", 29, "DH-S"), ("DH-L", 1, "DH-tiny")],
)
def test_a_network_that_is_too_large_is_measured_by_a_smaller_one_of_its_kind(
    wanted: str, operations: float, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Costs of a datum: 10 for the smallest network, 10 more for each larger one."""
    names = [name for name in model_names() if name.startswith("DH") == wanted.startswith("DH")]

    def cost(config: TrainConfig, *_: object) -> StepCost:
        return StepCost(10 * (1 + names.index(config.model)), datum_bytes=1, fixed_bytes=0, parameters=1)

    monkeypatch.setattr(bench, "_cost", cost)
    config: Any = make(TrainConfig, {"model": wanted, "device": "cpu"})  # type: ignore[arg-type]
    found, its_cost = bench._affordable(config, *NOTHING, operations, cost(config))
    assert found == changed(config, {"model": taken}) and its_cost == cost(found)
    on_gpu = changed(config, {"device": "cuda"})
    assert bench._affordable(on_gpu, *NOTHING, 1, cost(config)) == (on_gpu, cost(config))


def test_the_images_are_photographs_in_size(tmp_path: Path) -> None:
    write_images(tmp_path, 4)
    found = find_images(tmp_path)
    assert len(found) == 4 and found.classes == ("a", "b")
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
        (["--images", "0"], "--images must be at least 1"),
    ],
)
def test_what_was_asked_wrongly(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and words in shown
