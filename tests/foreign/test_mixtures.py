"""MM-FM's mixtures: real pickles of scikit-learn's GaussianMixture, as its scripts write them."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

from gmtool.artifacts.run import LatentStatistics
from gmtool.errors import UserError
from gmtool.foreign.mixtures import patch_modes, read_mixture

SHAPE = (2, 3, 3)


def fitted(kind: str, components: int = 3) -> GaussianMixture:
    data = np.random.default_rng(0).normal(size=(60, 18)) + np.repeat([0, 5, 9], 20)[:, None]
    return GaussianMixture(components, covariance_type=kind, random_state=0).fit(data)


def save(path: Path, content: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("kind", ["spherical", "diag"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_fitted_mixture(tmp_path: Path, kind: str, protocol: int) -> None:
    model = fitted(kind)
    wrapped = {"model": model, "labels": np.zeros(60, int), "metrics": {"bic": np.float64(1), "converged": True}}
    for content in (model, wrapped):
        read = read_mixture(save(tmp_path / "gmm.pkl", content, protocol))
        np.testing.assert_allclose(read.weights, model.weights_)
        np.testing.assert_array_equal(read.means, model.means_)
        np.testing.assert_array_equal(read.variances, model.covariances_.reshape(3, -1))


@pytest.mark.parametrize("kind", ["spherical", "diag"])
def test_modes_come_back_in_the_latents_own_coordinates(tmp_path: Path, kind: str) -> None:
    model = fitted(kind)
    draw = torch.Generator().manual_seed(0)
    statistics = LatentStatistics(torch.randn(SHAPE, generator=draw), torch.rand(SHAPE, generator=draw) + 0.5)
    modes = list(patch_modes(read_mixture(save(tmp_path / "gmm.pkl", model)), statistics))
    assert [mode.mode for mode in modes] == [0, 1, 2]
    for mode in modes:
        normalised = statistics.normalise(torch.from_numpy(mode.mean)).flatten().numpy()
        np.testing.assert_allclose(normalised, model.means_[mode.mode], atol=1e-5, rtol=1e-5)
        std = (torch.from_numpy(mode.std) / statistics.std).flatten().numpy()
        np.testing.assert_allclose(std**2, np.broadcast_to(model.covariances_[mode.mode], (18,)), rtol=1e-5)
        assert mode.mean.dtype == mode.std.dtype == np.float32


def test_what_is_no_mixture_is_one_line(tmp_path: Path) -> None:
    spoilt = fitted("diag")
    spoilt.covariances_ = -spoilt.covariances_
    unfit = fitted("diag")
    unfit.weights_ = np.ones(4) / 4
    heavy = fitted("diag")
    heavy.weights_ = heavy.weights_ * 2
    cases = {
        "holds no GaussianMixture": {"means": np.zeros(3)},
        "without weights_, means_, covariances_": GaussianMixture(3),
        "full covariance": fitted("full"),
        "variances below 0": spoilt,
        "do not fit together": unfit,
        "sum to 2": heavy,
    }
    for words, content in cases.items():
        with pytest.raises(UserError, match=words) as caught:
            read_mixture(save(tmp_path / "gmm.pkl", content))
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="does not exist"):
        read_mixture(tmp_path / "missing.pkl")
