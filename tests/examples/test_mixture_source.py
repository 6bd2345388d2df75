"""The study's data and flows, and a run of it in miniature."""

import sys

import pytest
import torch
from user import load_example

from gmtool.evaluation.trajectory import trace
from gmtool.flow.path import per_sample
from gmtool.flow.times import full_grid
from gmtool.streams import generator


@pytest.fixture(scope="module")
def study():
    load_example("point_flows")
    return load_example("mixture_source")


@pytest.mark.parametrize("name", ["Compact", "Spread"])
def test_data_have_mean_0_and_variance_1(study, name):
    points = study.curved_modes(study.DISTANCES[name], 200_000, generator("test")).flatten(1)
    torch.testing.assert_close(points.mean(0), torch.zeros(10), atol=0.02, rtol=0)
    torch.testing.assert_close(points.var(0), torch.ones(10), atol=0.03, rtol=0)


def test_modes_are_far_apart_in_spread_and_overlap_in_compact(study):
    """The share of the variance that lies between the modes that EM finds."""

    def between(name):
        mixture, _ = study.fit(study.curved_modes(study.DISTANCES[name], 4000, generator("test")), 0)
        return float((mixture.weights[:, None] * mixture.means.flatten(1).square()).sum(0).mean())

    assert between("Spread") > 0.8 > 0.65 > between("Compact")


def test_a_union_moves_each_point_back_to_itself_where_its_data_are_the_mixture(study):
    """Data that are one Gaussian a mode: the best velocity in whitened y is y (2 t - 1) / (t^2 + (1 - t)^2)."""

    def perfect(y, t):
        time = per_sample(t, y)
        return y * (2 * time - 1) / (time.square() + (1 - time).square())

    mixture, _ = study.fit(study.curved_modes(2.0, 2000, generator("test")), 0)
    method, _ = study.FLOWS["mixture, mode, gm-kl (union)"]
    own = mixture.at(mixture.draw(50, generator("modes drawn")))
    start = study.draw(method, perfect, own, torch.randn(own.mean.shape, generator=generator("noise")), 0)
    path = trace(method.field(perfect, own), start, full_grid(400))
    torch.testing.assert_close(path.points[-1], start, atol=0.02, rtol=0)
    assert (path.points[200] - own.mean).norm() < 0.8 * (start - own.mean).norm()


@pytest.mark.slow
def test_the_study_in_miniature(study, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "EVALUATIONS", (1, 2))
    monkeypatch.setattr(study, "PATH_STEPS", 3)
    monkeypatch.setattr(study, "SUBSTEPS_IN_ALL", 4)
    monkeypatch.setattr(sys, "argv", ["mixture_source.py", str(tmp_path), "--quick", "--data", "Spread"])
    study.main()
    said = capsys.readouterr().out
    for title in ("Spread: paths", "Spread: W2^2", "Spread: squared sliced W2"):
        assert title in said
    assert said.count("mixture, mode, gm-kl (union)") == 5  # its paths; each distance by both orders
    assert (tmp_path / "spread.png").stat().st_size > 10_000
