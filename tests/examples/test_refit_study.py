"""The mixtures that the study makes of others, and a run of it in miniature."""

import sys

import numpy as np
import pytest
import torch
from user import load_example

from gmtool.mixture.diagonal import DiagonalMixture
from gmtool.mixture.em import Blocks, SufficientStatistics, expected_moments, maximise


@pytest.fixture(scope="module")
def study():
    for name in ("point_flows", "mixture_source", "digits", "photographs"):
        load_example(name)
    return load_example("refit_study")


@pytest.fixture(scope="module")
def mixture():
    """Two modes of unequal width, far apart."""
    means = torch.tensor([[-30.0, 0.0], [30.0, 3.0]], dtype=torch.float64)
    variances = torch.tensor([[1.0, 0.25], [4.0, 1.0]], dtype=torch.float64)
    return DiagonalMixture(torch.tensor([0.3, 0.7], dtype=torch.float64), means, variances)


@pytest.fixture(scope="module")
def data(mixture):
    rng = np.random.default_rng(0)
    modes = rng.choice(2, 20_000, p=mixture.weights.numpy())
    noise = rng.standard_normal((20_000, 2))
    return (mixture.means.numpy()[modes] + mixture.variances.sqrt().numpy()[modes] * noise).astype(np.float32)


def close(mixture, expected, tolerance):
    for name in vars(expected):
        torch.testing.assert_close(getattr(mixture, name), getattr(expected, name), atol=tolerance, rtol=0)


def test_split_modes_share_what_their_parent_had(study, mixture):
    halves = study.split(mixture)
    assert len(halves.weights) == 4
    parents = [study.assigned(halves.means.float().numpy(), mixture)[0][:, 0].tolist().count(k) for k in range(2)]
    assert parents == [2, 2]
    torch.testing.assert_close((halves.weights[:, None] * halves.means).sum(0), mixture.weights @ mixture.means)


def test_residuals_of_normal_modes_change_nothing(study, mixture, data):
    """One mode of the whitened residuals is N(0, I)."""
    close(study.refined(data, mixture, 1, 0), mixture, 0.1)


def test_residuals_show_what_the_modes_lack(study, mixture, data):
    """Where each mode is two of one shape in its own axes, two modes of the residuals find both."""
    sides = np.random.default_rng(1).choice([-1.0, 1.0], len(data))[:, None].astype(np.float32)
    own = study.assigned(data, mixture)[0][:, 0]
    bent = data + 3 * sides * mixture.variances.sqrt()[own].float().numpy()
    rough = study.climbed(bent, mixture).mixture
    fine = study.refined(bent, rough, 2, 0)
    assert len(fine.weights) == 4
    assert study.of_data(bent, fine) > study.of_data(bent, rough) + 0.3


def test_a_block_with_step_1_is_an_iteration_of_em(study, mixture, data):
    start = DiagonalMixture(mixture.weights.flip(0), mixture.means + 1, 2 * mixture.variances)
    before = expected_moments(Blocks(data, len(data), torch.device("cpu")), mixture)
    whole = Blocks(data, len(data), torch.device("cpu"))
    plain = maximise(expected_moments(whole, start), start, study.EmSettings.variance_floor)
    close(study.stepwise(start, before, whole, lambda _number, _share: 1.0), plain, 1e-9)


def test_steps_by_share_sum_the_statistics_of_all(study, mixture, data):
    """One block of new data: an iteration of EM whose statistics of the old data are kept."""
    old, new = (Blocks(part, len(part), torch.device("cpu")) for part in (data[:15_000], data[15_000:] + 1))
    before, own = (expected_moments(part, mixture) for part in (old, new))
    both = SufficientStatistics(before.mass + own.mass, before.features + own.features, 20_000, 0.0)
    updated = study.stepwise(mixture, before, new, study.STEPS["its share"])
    close(updated, maximise(both, mixture, study.EmSettings.variance_floor), 1e-9)


def test_a_new_mode_takes_the_label_of_the_one_it_comes_from(study):
    labels = torch.arange(5.0)[:, None]
    study.inherit(labels, torch.tensor([1, 0, 1, 0]))
    assert labels[:, 0].tolist() == [1.0, 0.0, 1.0, 0.0, 4.0]


@pytest.mark.slow
def test_the_study_in_miniature(study, monkeypatch, capsys):
    monkeypatch.setattr(study, "EVALUATIONS", (1,))
    monkeypatch.setattr(sys, "argv", ["refit_study.py", "--quick", "--data", "Spread", "--seeds", "2"])
    study.main()
    said = capsys.readouterr().out
    assert said.count("half way x 2 of the residuals") == 2  # of both methods
    assert said.count("fitted anew") == said.count("its share") == 2  # photographs it has seen, and others
