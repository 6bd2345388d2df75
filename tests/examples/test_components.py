"""The ablation over K in miniature."""

import sys

import pytest
from user import load_example


@pytest.fixture(scope="module")
def ablation():
    load_example("digits")
    return load_example("components")


@pytest.mark.slow
def test_the_ablation_in_miniature(ablation, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ablation, "COMPONENTS", (1, 2))
    arguments = "--steps 2 --batch 16 --evaluations 1 --samples 30 --seeds 1"
    monkeypatch.setattr(sys, "argv", ["components.py", str(tmp_path), *arguments.split()])
    ablation.main()
    said = capsys.readouterr().out
    assert "K = 1" in said and "K = 2" in said and "gm-ode" in said and "gm-sde" in said
    assert (tmp_path / "components.png").stat().st_size > 10_000
    # K and nothing else tells the runs apart
    assert len(list(tmp_path.glob("test/runs/*/config.json"))) == 2


def test_the_spread_is_over_seeds(ablation):
    assert ablation.spread([3.0]) == 0 and ablation.spread([1.0, 3.0]) == pytest.approx(2**0.5)
