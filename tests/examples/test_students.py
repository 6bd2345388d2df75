"""The study of students in miniature, stopped and resumed."""

import json
import sys

import pytest
from user import load_example


@pytest.fixture(scope="module")
def study():
    for name in ("point_flows", "mixture_source", "digits", "digits_study"):
        load_example(name)
    return load_example("students")


def run(study, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["students.py", *map(str, arguments)])
    study.main()


@pytest.mark.slow
def test_points_in_miniature(study, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "EVALUATIONS", (1, 2))
    given = ("points", tmp_path, "--quick", "--data", "Spread", "--seeds", 0, 1, "--students", 1)
    run(study, monkeypatch, *given, "--teachers", "flow matching", "union")
    said = capsys.readouterr().out
    assert "Spread: squared sliced W2" in said and "student of union" in said
    assert (tmp_path / "spread.png").stat().st_size > 10_000
    scores = json.loads((tmp_path / "Spread-100-0-3-3.json").read_text())
    rows = {"flow matching", "student of flow matching", "union", "student of union"}
    assert set(scores) == {"data", "training points"} | rows
    assert all(0 < value < 10 for row in scores.values() for value in row.values())
    for seed in range(2):  # what is there is read
        known = {**scores, "union": {"1": 7.0, "2": 7.0}, "student of union": {"1": 7.0}}
        (tmp_path / f"Spread-100-{seed}-3-3.json").write_text(json.dumps(known))
    run(study, monkeypatch, *given, "--teachers", "union")
    assert capsys.readouterr().out.count("7.00000") == 3


@pytest.mark.slow
def test_digits_in_miniature(study, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "EVALUATIONS", (1,))
    monkeypatch.setattr(study, "MODES_OF_DIGITS", 4)
    union = study.digits_study.Method("union", "gm-kl", 4)
    monkeypatch.setattr(study, "DIGITS", {"union": union})
    run(study, monkeypatch, "digits", tmp_path, "--quick", "--seeds", 0, "--teachers", "union")
    said = capsys.readouterr().out
    assert "Fréchet distance to held-out" in said and "student of union" in said
    assert (tmp_path / "digits.png").stat().st_size > 10_000
