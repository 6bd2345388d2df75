"""The study on photographs in miniature, and its crops."""

import json
import sys

import numpy as np
import pytest
from PIL import Image
from user import load_example


@pytest.fixture(scope="module")
def photographs():
    load_example("digits")
    return load_example("photographs")


@pytest.fixture
def study(photographs, monkeypatch):
    ramp = np.add.outer(np.arange(256), np.arange(300)) % 251
    pictures = {name: Image.fromarray(np.stack([ramp] * 3, 2).astype(np.uint8)) for name in ("first", "second")}
    monkeypatch.setattr(photographs, "photographs", lambda: pictures)
    return load_example("pictures_study")


@pytest.mark.parametrize("width", [256, 300, 384])
def test_no_held_out_pixel_is_trained_on(photographs, width):
    picture = Image.new("RGB", (width, 256))
    seen = {part: np.zeros((256, width), dtype=bool) for part in ("train", "held-out")}
    for part, covered in seen.items():
        every = list(photographs.corners(part, picture))
        assert len(set(every)) == len(every) >= photographs.COUNTS[part]
        for x, y in every:
            covered[y : y + 32, x : x + 32] = True
        assert covered.any(0).sum() == sum(len(band) for band in bands(part, width))
    assert not (seen["train"] & seen["held-out"]).any()


def bands(part, width):
    """The columns of each band of a part that is wide enough for a crop."""
    first, last = {"train": (0, 96), "held-out": (96, 144)}[part]
    columns = [range(start + first, min(start + last, width)) for start in range(0, width, 144)]
    return [band for band in columns if len(band) >= 32]


def test_photographs_are_in_colour(photographs):
    pictures = photographs.photographs()
    assert len(pictures) in (3, 11) and list(pictures) == sorted(pictures)
    assert all(picture.mode == "RGB" and min(picture.size) >= 256 for picture in pictures.values())


@pytest.mark.slow
def test_the_study_in_miniature(study, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "METHODS", {"flow matching": ("fm", 0), "union": ("gm-kl", 4)})
    monkeypatch.setattr(study, "SOLVERS", {"fm": {"euler": (1, 50)}, "gm-kl": {"gm-ode 2": (1,)}})
    arguments = "--seeds 0 --budgets 2 --batch 8 --samples 33 --most 1 --students 1"
    monkeypatch.setattr(sys, "argv", ["pictures_study.py", str(tmp_path), *arguments.split()])
    study.main()
    report = json.loads((tmp_path / "results.json").read_text())
    assert [(entry["draw"]["method"], entry["draw"]["solver"], entry["draw"]["evaluations"]) for entry in report] == [
        ("flow matching", "euler", 1),
        ("union", "gm-ode 2", 1),
        ("union", "student", 1),
    ]
    assert all(entry["distance"] > 0 and 0 <= entry["recall"] <= 1 for entry in report)
    assert "| union, gm-ode 2 |" in (tmp_path / "results.md").read_text()
    assert "| union, student |" in (tmp_path / "results.md").read_text()
    assert Image.open(tmp_path / "grid-2.png").height == 3 * 64
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("scores/*.json")}
    study.main()  # what has been made is read
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("scores/*.json")} == made


def test_cells_have_mean_and_deviation(study):
    assert study.cell([]) == "" and study.cell([2.0]) == "2" and study.cell([1.0, 3.0]) == "2 ±1.4"
