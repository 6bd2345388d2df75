"""Progress where standard error is no terminal."""

import pytest

from gmtool.console import ConsoleProgress


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
