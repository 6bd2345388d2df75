"""gmtool encode as a user types it."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gmtool.artifacts.latents import open_latents
from gmtool.cli.app import main


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that holds only images/, where the command runs."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for index in range(12):
        path = tmp_path / f"images/{'ab'[index % 2]}/{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return tmp_path


def test_defaults(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", "images", "--tokenizer", "pixels"]) == 0
    shown = capsys.readouterr()
    assert "12 images, 2 classes" in shown.err
    assert "12 samples of 3 x 8 x 8" in shown.out
    assert "next: gmtool fit-gmm latents.h5" in shown.out
    with open_latents(folder / "latents.h5") as latents:
        assert len(latents) == 12
    assert main(["encode", "images", "--tokenizer", "pixels"]) == 0
    assert "nothing to do" in capsys.readouterr().err


def test_an_archive_with_settings(folder: Path) -> None:
    with zipfile.ZipFile("images.zip", "w") as archive:
        for path in (folder / "images").rglob("*.png"):
            archive.write(path, path.relative_to(folder))
    flags = ["--tokenizer", "pixels", "--image-size", "6", "--patch-size", "3", "--flip", "both", "--limit", "5"]
    assert main(["encode", "images.zip", "new/small.h5", *flags]) == 0
    with open_latents(folder / "new/small.h5") as latents:
        assert (len(latents), latents.shape, latents.classes) == (10, (27, 2, 2), ("a", "b"))


def test_a_dry_run_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", "images", "--tokenizer", "pixels", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "12 images, 2 classes" in shown
    assert "12 samples of 3 x 8 x 8" in shown
    assert [path.name for path in folder.iterdir()] == ["images"]


def test_skipped_images_are_listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("images/a/0.png").write_text("no image")
    assert main(["encode", "images", "--tokenizer", "pixels"]) == 2
    assert "a/0.png" in capsys.readouterr().err
    assert main(["encode", "images", "--tokenizer", "pixels", "--skip-bad"]) == 0
    shown = capsys.readouterr().out
    assert "skipped 1 image that" in shown
    assert "a/0.png: not an image" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing"], "missing does not exist"),
        (["empty"], "empty holds no images"),
        (["images", "--tokenizer", "pixels", "--batch-size", "0"], "--batch-size must be at least 1"),
        (["images", "--tokenizer", "pixels", "--patch-size", "3"], "--patch-size 3 does not divide"),
        (["images", "--tokenizer", "./no-model"], "--tokenizer ./no-model is no folder"),
        (["images", "--tokenizer", "pixels", "--device", "tpu"], "--device must be"),
        (["images", "images", "--tokenizer", "pixels"], "it is a folder; give a file name in it"),
        (["images", "--tokenizer", "pixels", "--flap", "both"], "--flap"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    (folder / "empty").mkdir()
    assert main(["encode", *arguments]) == 2
    shown = capsys.readouterr()
    assert words in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""
    assert sorted(path.name for path in folder.iterdir()) == ["empty", "images"]
