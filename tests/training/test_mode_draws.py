"""Modes of images that are encoded on the fly: drawn from the posterior of each one's descriptor, mirrored or not."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2, norm
from small import Small

from gmtool.artifacts.gmm import DescriptorMixture, GmmFile, KeptModes, open_gmm, write_gmm
from gmtool.artifacts.latents import LatentsFile, open_latents
from gmtool.artifacts.manifest import Input
from gmtool.data.image_loader import ImageSource, open_images
from gmtool.data.latent_loader import LatentBatch
from gmtool.distributed import ALONE
from gmtool.errors import UserError
from gmtool.mixture.patch_moments import PatchMode
from gmtool.settings import make
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train.inputs import open_data, open_inputs
from gmtool.stages.train.plan import facts_of, plan_training
from gmtool.stages.train.run import make_stepper, new_state
from gmtool.streams import generator
from gmtool.tokenizers.build import build_tokenizer
from gmtool.training.batches import fresh_assignments, mode_draws, stored_assignments
from gmtool.training.checkpoint import Position

CPU = torch.device("cpu")
MODES = 4


@pytest.fixture
def latents(small: Small) -> Iterator[LatentsFile]:
    with open_latents(small.latents("classes")) as file:
        yield file


def broad_mixture(latents: LatentsFile, folder: Path, top_k: int = MODES) -> Path:
    """A mixture whose modes overlap: wide Gaussians about four of the digits, far from the origin."""
    descriptors = latents.descriptors(slice(None))
    means = descriptors[[0, 20, 40, 55]].astype(np.float64)
    wide = np.tile(40 * descriptors.var(0) + 0.1, (MODES, 1)) * np.array([[1.0], [1.01], [0.99], [1.0]])
    kept = KeptModes(np.zeros((60, top_k), np.int32), np.eye(1, top_k, dtype=np.float32).repeat(60, 0))
    shape = latents.shape
    write_gmm(
        folder / "broad.h5",
        descriptors=DescriptorMixture(np.array([0.4, 0.3, 0.2, 0.1]), means, wide),
        kept=kept,
        patches=[PatchMode(mode, np.zeros(shape, np.float32), np.ones(shape, np.float32)) for mode in range(MODES)],
        shape=shape,
        latents=Input("latents", str(latents.path), latents.manifest.fingerprint),
        config={},
        details={},
    )
    return folder / "broad.h5"


def bayes(descriptors: np.ndarray, gmm: GmmFile) -> np.ndarray:
    """p(k | x), written out: (N, K)."""
    densities = [
        np.log(weight) + norm.logpdf(descriptors, mean, np.sqrt(var)).sum(1)
        for weight, mean, var in zip(gmm.cls_weights, gmm.cls_mean, gmm.cls_var, strict=True)
    ]
    joint = np.exp(np.stack(densities, 1) - np.max(densities, axis=0)[:, None])
    return joint / joint.sum(1, keepdims=True)


@pytest.mark.slow
def test_drawn_modes_have_the_posterior_of_each_image_and_of_its_mirror_image(
    small: Small, latents: LatentsFile, tmp_path: Path
) -> None:
    """Chi-square over all images, both ways round: each cell's count against draws times Bayes' rule."""
    source = open_images(small.classes / "images", latents, build_tokenizer(latents.tokenizer, CPU), flip=True)
    with open_gmm(broad_mixture(latents, tmp_path)) as gmm:
        draws = mode_draws(fresh_assignments(gmm, CPU), gmm)
        seen: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}
        for step, batch in enumerate(source.batches(60, 0, 0, 200, 0)):
            assert batch.descriptors is not None
            own, _ = draws.draw(batch, generator(0, "modes", step))
            for descriptor, mode in zip(batch.descriptors.numpy(), own.tolist(), strict=True):
                counts = seen.setdefault(descriptor.tobytes(), (descriptor, np.zeros(MODES)))[1]
                counts[mode] += 1
        expected = bayes(np.stack([value[0] for value in seen.values()]), gmm)
    counts = np.stack([value[1] for value in seen.values()])
    assert 100 < len(seen) <= 120  # a few digits are their own mirror images
    assert (expected.max(1) < 0.95).mean() > 0.5  # else there is nothing to draw
    expected = expected * counts.sum(1, keepdims=True)
    statistic, freedom = ((counts - expected) ** 2 / expected).sum(), len(seen) * (MODES - 1)
    assert chi2.ppf(1e-4, freedom) < statistic < chi2.ppf(1 - 1e-4, freedom)


def test_hard_assignment_draws_the_best_mode(latents: LatentsFile, tmp_path: Path) -> None:
    with open_gmm(broad_mixture(latents, tmp_path, top_k=1)) as gmm:
        descriptors = latents.descriptors(slice(None))
        batch = LatentBatch(np.arange(60), slice(None), torch.zeros(60), torch.from_numpy(descriptors))
        own, _ = mode_draws(fresh_assignments(gmm, CPU), gmm).draw(batch, generator(0))
        np.testing.assert_array_equal(own, bayes(descriptors, gmm).argmax(1))


def test_stored_and_fresh_assignments_are_one(small: Small, latents: LatentsFile) -> None:
    """Of a mixture that fit-gmm made: the modes that it kept are those of the descriptors, with equal probabilities."""
    rows = np.arange(60)[::-1].copy()
    batch = LatentBatch(rows, slice(10, 50), torch.zeros(40), torch.from_numpy(latents.descriptors(rows[10:50])))
    with open_gmm(small.gmm("classes")) as gmm:
        stored, fresh = stored_assignments(gmm).of(batch), fresh_assignments(gmm, CPU).of(batch)
    torch.testing.assert_close(fresh[1], stored[1], atol=1e-5, rtol=1e-4)
    assert torch.equal(fresh[0][stored[1] > 1e-3], stored[0][stored[1] > 1e-3])


@pytest.mark.parametrize(
    "settings",
    [
        {"objective": "mm-fm", "focal": 2.0},
        {"objective": "gm-kl", "source": "gmm", "condition": "none"},
        {"source": "gmm", "coupling": "independent", "condition": "mode"},
    ],
    ids=["mm-fm", "union", "mode condition"],
)
def test_a_step_on_images_is_one_on_their_latents(
    small: Small, latents: LatentsFile, settings: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given the same numbers, that is the latents as the file rounds them; the modes come from the descriptors."""
    encoded = ImageSource.batches

    def rounded(self: ImageSource, *arguments: Any) -> Iterator[LatentBatch]:
        for batch in encoded(self, *arguments):
            assert batch.descriptors is not None
            yield replace(batch, patches=torch.from_numpy(latents.patches(batch.rows)))

    monkeypatch.setattr(ImageSource, "batches", rounded)
    base = {**settings, "batch_size": 12, "steps": 2, "device": "cpu", "workers": 0, "model": "tiny"}
    losses = {}
    for name, images in (("stored", None), ("fresh", small.classes / "images")):
        config = make(TrainConfig, {**base, "images": images})
        with open_gmm(small.gmm("classes")) as gmm:
            inputs = open_inputs(plan_training(config, facts_of(latents, gmm), gpu=False), latents, gmm, ALONE)
            _, stepper = make_stepper(inputs, new_state(inputs))
            batches = open_data(inputs).batches(Position())
            losses[name] = [float(stepper.take(batch, step, 0).loss) for step, batch in enumerate(batches)]
    assert len(losses["fresh"]) == 2
    assert losses["fresh"] == pytest.approx(losses["stored"], rel=1e-6)


@pytest.mark.parametrize("change", [{"cls_weights": np.zeros(MODES)}, {"cls_mean": np.zeros((MODES, 0))}], ids=str)
def test_a_mixture_over_patches_alone_is_refused(
    latents: LatentsFile, tmp_path: Path, change: dict[str, np.ndarray]
) -> None:
    with open_gmm(broad_mixture(latents, tmp_path)) as gmm:
        vars(gmm).update(change)
        with pytest.raises(UserError, match="holds no mixture over descriptors: import its run again with --cls-gmm"):
            fresh_assignments(gmm, CPU)
