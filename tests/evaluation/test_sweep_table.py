"""The table of a sweep: what is written is read again, and what is damaged is one line."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from gmtool.artifacts.manifest import Manifest
from gmtool.errors import UserError
from gmtool.evaluation.report import Figure, Measurement
from gmtool.evaluation.sweep_table import Axis, Skipped, Sweep, SweepPoint, parse_sweep, read_sweep, setting_of


def point(seed: int = 0, **settings: object) -> SweepPoint:
    """A point whose distance is its seed plus its number of steps."""
    plan = {"solver": "gm-ode", "steps": settings["steps"], "guidance": "none", "scale": 0.0}
    if "guidance_scale" in settings:
        plan |= {"guidance": "prob", "scale": settings["guidance_scale"]}
    value = float(seed + settings["steps"])
    figures = (
        Figure("frechet_distance", Measurement(value, None, 10, 20), Measurement(0.5, None, 10, 10)),
        Figure("precision", Measurement(0.5, None, 10, 20), None),
    )
    key = f"{seed}-{settings}"
    return SweepPoint(key, "run", settings, plan, seed, 2, settings["steps"], 10, figures, f"gmtool sample {key}")


def table(*points: SweepPoint) -> Sweep:
    axes = (Axis("steps", (1, 2)), Axis("guidance_scale", (0.1,)))
    skipped = (Skipped(2, "--guidance-scale is too large"),)
    return Sweep(axes, points, skipped, "tokenizer", "pixels (64)", "held-out", "images", "abc")


POINTS = (point(0, steps=1), point(1, steps=1), point(0, steps=2, guidance_scale=0.1), point(1, steps=2))


def write(folder: Path, sweep: Sweep) -> Path:
    folder.mkdir()
    (folder / "sweep.json").write_text(Manifest("sweep", "sweep", "00", {}, details=sweep.to_details()).to_json())
    return folder


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    folder = write(tmp_path / "sweep", table(*POINTS))
    assert read_sweep(folder) == read_sweep(folder / "sweep.json") == table(*POINTS)
    assert parse_sweep(json.loads(json.dumps(table(*POINTS).to_details()))) == table(*POINTS)


def test_seeds_stand_together() -> None:
    sweep = table(*POINTS)
    assert [[member.seed for member in group] for group in sweep.groups] == [[0, 1], [0], [1]]
    assert sweep.metrics == ("frechet_distance", "precision")


def test_settings_of_a_point() -> None:
    assert [setting_of(candidate, "guidance_scale") for candidate in POINTS] == ["", "", 0.1, ""]
    assert [setting_of(candidate, "steps") for candidate in POINTS] == [1, 1, 2, 2]
    assert setting_of(POINTS[0], "solver") == "gm-ode"
    assert setting_of(POINTS[0], "ema") == ""


def test_the_csv_has_every_figure() -> None:
    sweep = table(*POINTS)
    rows = list(csv.DictReader(sweep.to_csv().splitlines()))
    assert [float(row["frechet_distance"]) for row in rows] == [1, 2, 2, 3]
    assert [(row["real_frechet_distance"], row["real_precision"]) for row in rows] == [("0.5", "")] * 4
    assert [row["steps"] for row in rows] == ["1", "1", "2", "2"]
    assert [row["command"] for row in rows] == [candidate.command for candidate in POINTS]


def test_what_is_wrong_with_a_file_is_one_line(tmp_path: Path) -> None:
    folder = write(tmp_path / "sweep", table(*POINTS))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty/sweep\.json does not exist: give a folder that `gmtool sweep` wrote"):
        read_sweep(tmp_path / "empty")
    text = (folder / "sweep.json").read_text()
    (folder / "sweep.json").write_text(text.replace('"seed": 1', '"seed": 2'))
    with pytest.raises(UserError, match="changed since gmtool wrote it"):
        read_sweep(folder)
    for details in ({}, {**table(*POINTS).to_details(), "points": [{}]}):
        (folder / "sweep.json").write_text(Manifest("sweep", "sweep", "00", {}, details=details).to_json())
        with pytest.raises(UserError, match=r"sweep\.json is damaged .*run gmtool sweep again"):
            read_sweep(folder)
    (folder / "sweep.json").write_text(Manifest("samples", "sample", "00", {}).to_json())
    with pytest.raises(UserError, match="is a folder of samples, not a sweep"):
        read_sweep(folder)


def test_axes() -> None:
    assert replace(table(), axes=()).axis("steps") is None
    assert table().axis("steps") == Axis("steps", (1, 2))
