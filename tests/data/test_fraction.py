"""A part of the data: fixed, balanced, mirrored copies beside their images; and a run that learns from it alone."""

from pathlib import Path

import numpy as np
import pytest
from small import Small

from gmtool.artifacts.gmm import open_gmm
from gmtool.artifacts.latents import Provenance, open_latents, write_latents
from gmtool.artifacts.run import open_run
from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.data.fraction import part_of_data
from gmtool.data.latent_loader import latent_batches
from gmtool.errors import UserError
from gmtool.progress import Progress
from gmtool.settings import changed, make
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train.run import train
from gmtool.training.batches import mode_weights


def test_every_class_keeps_its_share_and_the_smallest_one_image(small: Small) -> None:
    with open_latents(small.latents("classes")) as latents:
        for fraction, counts in ((0.5, [15, 10, 5]), (0.1, [3, 2, 1]), (0.02, [1, 1, 1])):
            rows = part_of_data(latents, fraction, 0)
            assert np.bincount(latents.labels[rows]).tolist() == counts
            assert (np.diff(rows) > 0).all()
        assert part_of_data(latents, 1.0, 0).tolist() == list(range(60))


def test_parts_are_fixed_by_the_seed_and_nested(small: Small) -> None:
    with open_latents(small.latents("flat")) as latents:
        half, again, other = (part_of_data(latents, 0.5, seed).tolist() for seed in (0, 0, 1))
        assert half == again != other and len(half) == 30
        assert set(part_of_data(latents, 0.2, 0)) < set(half)


def test_an_image_and_its_mirrored_copy_stay_together(tmp_path: Path) -> None:
    write_latents(
        tmp_path / "latents.h5",
        patches=np.zeros((20, 1, 1, 1)),
        descriptors=np.zeros((20, 1), np.float32),
        labels=np.full(20, -1, np.int64),
        names=[f"{each // 2}.png" for each in range(20)],
        classes=[],
        tokenizer=TokenizerSpec("pixels", {}),
        provenance=Provenance("encode", {}),
        flipped=np.arange(20) % 2 == 1,
    )
    with open_latents(tmp_path / "latents.h5") as latents:
        rows = part_of_data(latents, 0.3, 0).reshape(3, 2)
    assert (rows[:, 0] + 1 == rows[:, 1]).all() and (rows[:, 0] % 2 == 0).all()


@pytest.mark.parametrize("workers", [None, 0])
def test_batches_hold_the_part_alone_and_all_of_it(small: Small, workers: int | None) -> None:
    with open_latents(small.latents("classes")) as latents:
        part = part_of_data(latents, 0.2, 3)
        found = list(latent_batches(latents, 4, 0, 0, 6, workers, part))
        rows = np.concatenate([each.rows for each in found])
        assert sorted(rows[:12]) == sorted(rows[12:]) == part.tolist()
        for each in found:
            np.testing.assert_array_equal(each.patches, latents.patches(each.rows))


def test_a_run_on_a_part_draws_the_modes_of_that_part(small: Small, tmp_path: Path) -> None:
    values = {"objective": "mm-fm", "fraction": 0.1, "steps": 1, "batch_size": 8, "preview_every": 0, "device": "cpu"}
    config = make(TrainConfig, {**values, "seed": 2})
    train(small.latents("classes"), tmp_path / "run", config, Progress())
    with open_latents(small.latents("classes")) as latents, open_gmm(small.gmm("classes")) as gmm:
        part = part_of_data(latents, 0.1, 2)
        expected = mode_weights(latents, gmm, False, part)[0]
        kept = gmm.kept(part)
        np.testing.assert_allclose(expected, kept.population(4) / len(part), rtol=1e-5)
    found = open_run(tmp_path / "run").statistics().mode_weights
    assert found is not None
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)
    with pytest.raises(UserError, match=r"was begun with --fraction 0\.1, not 0\.5"):
        train(small.latents("classes"), tmp_path / "run", changed(config, {"fraction": 0.5}), Progress())


def test_less_than_one_image_is_refused(small: Small, tmp_path: Path) -> None:
    config = make(TrainConfig, {"fraction": 0.01, "steps": 1, "device": "cpu"})
    with pytest.raises(UserError, match=r"--fraction 0.01 of the 60 images of .* is less than one: raise it"):
        train(small.latents("flat"), tmp_path / "run", config, Progress())
    assert not (tmp_path / "run").exists()
