"""Statistics of a mixture's modes: normalised, never narrower than the floor, the same from memory and from disk."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small import Small

from gmtool.artifacts.gmm import DescriptorMixture, KeptModes, open_gmm, write_gmm
from gmtool.artifacts.latents import open_latents
from gmtool.artifacts.manifest import Input
from gmtool.artifacts.run import LatentStatistics, latent_statistics
from gmtool.data.mode_statistics import FLOOR, ModeInputs, ModeTable, Place
from gmtool.flow.coordinates import Whitened
from gmtool.flow.coupling import Independent
from gmtool.flow.method import Method, fm, mm_fm, union
from gmtool.flow.source import ModeMixture
from gmtool.mixture.patch_moments import PatchMode

CPU = torch.device("cpu")
MIXTURE = ModeMixture(torch.full((3,), 1 / 3), torch.arange(3.0)[:, None], torch.ones(3, 1))


@pytest.mark.parametrize("place", [None, "device", "memory", "disk"])
def test_statistics_are_those_of_the_modes_in_normalised_coordinates(small: Small, place: Place | None) -> None:
    picked = torch.tensor([2, 0, 2, 3])
    with open_latents(small.latents("classes")) as latents, open_gmm(small.gmm("classes")) as gmm:
        statistics = latent_statistics(latents)
        looked_up = ModeTable(gmm, statistics, CPU, True, place).at(picked)
        mean, std = (torch.from_numpy(moment(picked.numpy())) for moment in (gmm.patch_mean, gmm.patch_std))
    torch.testing.assert_close(statistics.restore(looked_up.mean), mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(looked_up.std, (std / statistics.std).clamp(min=FLOOR))


def test_a_mode_without_width_gets_the_floor(tmp_path: Path) -> None:
    """In standard deviations of all data, so that whitening cannot blow such an entry up without bound."""
    shape = (1, 1, 2)
    write_gmm(
        tmp_path / "gmm.h5",
        descriptors=DescriptorMixture(np.ones(1), np.zeros((1, 1)), np.ones((1, 1))),
        kept=KeptModes(np.zeros((3, 1), np.int32), np.ones((3, 1), np.float32)),
        patches=[PatchMode(0, np.zeros(shape, np.float32), np.array([[[1e-7, 3.0]]], np.float32))],
        shape=shape,
        latents=Input("latents", "latents.h5", "0"),
        config={},
        details={},
    )
    statistics = LatentStatistics(torch.zeros(shape), torch.full(shape, 2.0))
    with open_gmm(tmp_path / "gmm.h5") as gmm:
        looked_up = ModeTable(gmm, statistics, CPU, whitened=True).at(torch.tensor([0]))
        drawn_from = ModeTable(gmm, statistics, CPU, whitened=False).at(torch.tensor([0]))
    torch.testing.assert_close(drawn_from.std, torch.tensor([[[[5e-8, 1.5]]]]))
    torch.testing.assert_close(looked_up.std, torch.tensor([[[[FLOOR, 1.5]]]]))
    x = torch.tensor([[[[0.3, -2.0]]]])
    torch.testing.assert_close(Whitened().leave(Whitened().enter(x, looked_up), looked_up), x)


@pytest.mark.gpu
@pytest.mark.parametrize("place", ["device", "memory", "disk"])
def test_statistics_are_the_same_on_a_gpu(small: Small, place: Place) -> None:
    picked = torch.tensor([2, 0, 2, 3])
    with open_latents(small.latents("classes")) as latents, open_gmm(small.gmm("classes")) as gmm:
        statistics = latent_statistics(latents)
        expected = ModeTable(gmm, statistics, CPU, whitened=True).at(picked)
        table = ModeTable(gmm, statistics.to(torch.device("cuda")), torch.device("cuda"), True, place)
        for modes in (picked, picked.cuda()):
            looked_up = table.at(modes)
            assert looked_up.mean.is_cuda and looked_up.std.is_cuda
            torch.testing.assert_close(looked_up.mean.cpu(), expected.mean)
            torch.testing.assert_close(looked_up.std.cpu(), expected.std)


@pytest.mark.parametrize(
    ("method", "source", "mean", "without_free"),
    [
        (mm_fm(), "own", "own", "own"),
        (mm_fm(coupling=Independent()), "free", "own", None),
        (union(), "own", "own", "own"),
        (fm(), None, "own", None),
    ],
    ids=["mm-fm", "independent", "union", "fm"],
)
def test_noise_comes_from_own_modes_or_from_those_drawn_apart(
    method: Method, source: str | None, mean: str, without_free: str | None
) -> None:
    modes = {"own": torch.tensor([0, 1]), "free": torch.tensor([2, 2])}
    inputs = ModeInputs(method, MIXTURE, mode_mean=True)
    assert inputs.apart is (source == "free")
    for free, expected in ((modes["free"], source), (None, without_free)):
        statistics, means = inputs.of(modes["own"], free)
        assert torch.equal(means[:, 0].long(), modes[mean])
        assert statistics is None if expected is None else torch.equal(statistics.mean[:, 0].long(), modes[expected])
    assert replace(inputs, mode_mean=False).of(modes["own"], modes["free"])[1] is None
    assert replace(inputs, table=None).of(modes["own"], modes["free"]) == (None, None)
