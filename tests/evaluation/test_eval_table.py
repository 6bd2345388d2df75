"""The table of several sets of samples, where there is no terminal."""

import re

import pytest

from gmtool.evaluation.report import Figure, Measurement, Report
from gmtool.stages.evaluate.table import print_reports, rounded

SETS = 8


def report(number: int) -> Report:
    values = {"frechet_distance": (4.8071, None), "kernel_distance": (0.0006557, 0.00131), "precision": (0.03857, None)}
    values |= {"colour_saturation": (0.25678, None)}
    measured = {name: Measurement(value * (1 + number), spread, 100, 50) for name, (value, spread) in values.items()}
    figures = tuple(Figure(name, value, value, "inception") for name, value in measured.items())
    return Report(f"here/gmflow-{number}", "a" * 32, "inception", "Inception", "real", "images", "b" * 32, 0, figures)


def test_eight_sets_fit_beside_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    print_reports([report(number) for number in range(SETS)])
    shown = capsys.readouterr().out
    assert "…" not in shown
    words = re.sub(r"[│\s]+", " ", shown)
    for number in range(SETS):
        assert f"gmflow-{number}" in words and f" {4.8071 * (1 + number):.4g} " in words
    for label in ("FID ↓", "precision ↑", "saturation", "0.0007 ± "):
        assert label in words


@pytest.mark.parametrize(
    ("value", "spread", "shown"),
    [
        (0.0006557, 0.00131, "0.0007"),
        (-1.048, 0.59, "-1.05"),
        (3.278, 1.8, "3.3"),
        (25.3149, 0.0004, "25.31"),
        (2124.4, 31.0, "2124"),
        (0.5, float("inf"), "0.5"),
        (0.5, 0.0, "0.5"),
    ],
)
def test_digits_below_the_spread_are_left_out(value: float, spread: float, shown: str) -> None:
    assert rounded(value, spread) == shown
