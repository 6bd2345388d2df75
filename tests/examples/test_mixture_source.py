"""The study's data and fields, and a run of it in miniature."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gmtool.flow.path import per_sample
from gmtool.streams import generator


@pytest.fixture(scope="module")
def study():
    path = Path(__file__).parents[2] / "examples" / "mixture_source.py"
    spec = importlib.util.spec_from_file_location("mixture_source", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["mixture_source"] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["Compact", "Spread"])
def test_data_have_mean_0_and_variance_1(study, name):
    points = study.draw_data(study.RADII[name], 200_000, generator("test")).flatten(1)
    torch.testing.assert_close(points.mean(0), torch.zeros(10), atol=0.02, rtol=0)
    torch.testing.assert_close(points.var(0), torch.ones(10), atol=0.03, rtol=0)


def test_modes_are_far_apart_in_spread_and_overlap_in_compact(study):
    """The share of the variance that lies between the modes that EM finds."""

    def between(name):
        points = study.draw_data(study.RADII[name], 4000, generator("test"))
        source = study.fit_source(points, 0)
        return float((source.weights[:, None] * source.means.flatten(1).square()).sum(0).mean())

    assert between("Spread") > 0.8 > 0.65 > between("Compact")


def test_a_union_moves_straight_along_its_modes_frame_when_its_network_is_perfect(study):
    """Data that are one Gaussian a mode: the best velocity in whitened y is y (2 t - 1) / (t^2 + (1 - t)^2)."""

    class Perfect(torch.nn.Module):
        def forward(self, y, t, modes):
            time = per_sample(t, y)
            return y * (2 * time - 1) / (time.square() + (1 - time).square())

    points = study.draw_data(2.0, 2000, generator("test"))
    source = study.fit_source(points, 0)
    flow = next(each for each in study.FLOWS if each.union)
    sampling = study.sampler(flow, Perfect(), source, 50, 0)
    path = study.trace(sampling.field(slice(50)), sampling.start, 400, 1.0)
    torch.testing.assert_close(path.points[-1], sampling.start, atol=0.02, rtol=0)  # from the mode to itself
    assert (path.points[200] - sampling.frame.mean).norm() < 0.8 * (path.points[0] - sampling.frame.mean).norm()


def test_the_study_in_miniature(study, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "EVALUATIONS", (1, 2))
    monkeypatch.setattr(study, "PATH_STEPS", 3)
    monkeypatch.setattr(study, "SUBSTEPS_IN_ALL", 4)
    monkeypatch.setattr(sys, "argv", ["mixture_source.py", str(tmp_path), "--quick", "--data", "Spread"])
    study.main()
    said = capsys.readouterr().out
    for title in ("Spread: paths", "Spread: W2^2", "Spread: squared sliced W2"):
        assert title in said
    assert said.count("mixture, mode, gm-kl (union)") == 3
    assert (tmp_path / "spread.png").stat().st_size > 10_000


def test_training_lowers_every_flows_loss(study):
    points = study.draw_data(2.0, 1000, generator("test"))
    source = study.fit_source(points, 0)

    def loss(flow, steps):
        setting = replace(study.QUICK, steps=steps, batch=128, rate=5e-3)
        network = study.train(flow, points, source, setting, 0)
        return study.training_loss(network, flow, points, source, 1.0, generator("loss")).mean().item()

    for flow in study.FLOWS:
        assert loss(flow, 60) < loss(flow, 2) - 0.004, flow.name
