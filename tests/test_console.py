"""Progress and tables where there is no terminal."""

import pytest

from gmtool.console import ConsoleProgress, print_table


def test_a_line_tells_counts_rates_and_shares(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr("gmtool.console.PLAIN_INTERVAL", 0.0)
    seconds = iter(range(100))
    monkeypatch.setattr("gmtool.console.time.monotonic", lambda: float(next(seconds)))
    progress = ConsoleProgress()
    progress.begin("train", 30, "steps", 10)
    progress.advance(5, {"loss": 0.123456, "waiting": 0.0036, "of peak": 0.45})
    said = capsys.readouterr().err
    assert said.startswith("train: 15/30 steps, ") and said.endswith(" left\n")
    assert ", loss 0.1235, waiting 0.4%, of peak 45.0%, " in said


@pytest.mark.parametrize(("done", "shown"), [(30, "30/30"), (12, "12/30")])
def test_the_end_is_told_once_with_the_time_it_took(capsys, monkeypatch, done: int, shown: str) -> None:
    """Also of a task that ends early, as EM does when it converges: nothing of it is left."""
    monkeypatch.setattr("gmtool.console.PLAIN_INTERVAL", 0.0)
    progress = ConsoleProgress()
    progress.begin("EM", 30, "iterations")
    progress.advance(done)
    progress.end()
    lines = capsys.readouterr().err.splitlines()
    assert [line.endswith(", in 0:00") for line in lines].count(True) == 1
    assert lines[-1].startswith(f"EM: {shown} iterations, ") and lines[-1].endswith(", in 0:00")


def test_a_narrow_table_cuts_nothing_off(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"gmflow-{number}" for number in range(13)]
    print_table("scores", ("metric", *names), [("saturation", *(["0.0006557"] * 13))])
    shown = capsys.readouterr().out
    assert "…" not in shown
    cells = [line.strip("│").split("│")[1:] for line in shown.splitlines() if line.startswith("│")]
    assert {"".join(part).replace(" ", "") for part in zip(*cells, strict=True)} == {"0.0006557"}
