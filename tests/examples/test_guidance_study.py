"""The study's interpolation at equal precision, and a run of it in miniature."""

import sys

import pytest
from user import load_example


@pytest.fixture(scope="module")
def study():
    load_example("digits")
    return load_example("guidance_study")


def curve(study, *points):
    """Points of (precision, recall), saturated as 1 - recall."""
    return {i: study.Point(precision, recall, 0.5, 1 - recall) for i, (precision, recall) in enumerate(points)}


def test_figures_at_a_precision_lie_on_the_line_between_two_scales(study):
    falling = curve(study, (0.6, 0.8), (0.8, 0.6), (0.9, 0.2), (0.7, 0.1))
    for precision, recall in ((0.6, 0.8), (0.7, 0.7), (0.8, 0.6), (0.85, 0.4), (0.9, 0.2)):
        interpolated = study.at_precision(falling, precision)
        assert (interpolated.precision, interpolated.recall, interpolated.saturated) == pytest.approx(
            (precision, recall, 1 - recall)
        )
    assert study.at_precision(falling, 0.95) is None and study.at_precision(falling, 0.5) is None


def test_a_stretch_of_one_precision_gives_its_first_point(study):
    assert study.at_precision(curve(study, (0.7, 0.5), (0.7, 0.4), (0.8, 0.3)), 0.7).recall == 0.5


def test_levels_are_those_that_all_curves_reach(study):
    low, high = curve(study, (0.5, 0.9), (0.8, 0.5)), curve(study, (0.6, 0.9), (0.9, 0.5))
    assert study.common_levels([low, high]) == pytest.approx([0.6, 2 / 3, 2.2 / 3, 0.8])
    # too large a scale brings precision below that without guidance
    fallen = curve(study, (0.6, 0.9), (0.8, 0.5), (0.4, 0.1))
    assert study.common_levels([low, fallen])[0] == pytest.approx(0.6)
    assert study.common_levels([low, curve(study, (0.85, 0.9), (0.9, 0.5))]) == []


@pytest.mark.slow
def test_the_study_in_miniature(study, tmp_path, monkeypatch, capsys):
    arguments = "--training-steps 2 --num 30 --steps 1 --seeds 1 --cfg 1,2 --prob 0.5 --device cpu"
    monkeypatch.setattr(sys, "argv", ["guidance_study.py", str(tmp_path), *arguments.split()])
    study.main()
    said = capsys.readouterr().out
    assert "by scale" in said and "precision" in said
    assert (tmp_path / "guidance.png").stat().st_size > 10_000
