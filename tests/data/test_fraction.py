"""A part of the data: fixed, balanced, mirrored copies beside their images; a mixture and a run that know it alone."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from small import Small

from gmtool.artifacts.gmm import open_gmm
from gmtool.artifacts.latents import Provenance, open_latents, write_latents
from gmtool.artifacts.run import STATISTICS, latent_statistics, open_run
from gmtool.artifacts.safetensors_io import write_tensors
from gmtool.artifacts.samples import open_samples
from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.cli.app import main
from gmtool.data.fraction import part_of_data
from gmtool.data.latent_loader import latent_batches
from gmtool.errors import UserError
from gmtool.evaluation.references import (
    ImagesReference,
    LatentsReference,
    open_reference,
    open_training_latents,
    trained_among,
    trained_rows,
)
from gmtool.progress import Progress
from gmtool.settings import changed, make
from gmtool.stages.distill.config import DistillConfig
from gmtool.stages.distill.run import distill
from gmtool.stages.evaluate.config import EvaluateConfig
from gmtool.stages.evaluate.run import evaluate
from gmtool.stages.fit_gmm.config import FitGmmConfig
from gmtool.stages.fit_gmm.run import fit_gmm
from gmtool.stages.likelihood.config import LikelihoodConfig
from gmtool.stages.likelihood.run import likelihood
from gmtool.stages.sample.config import SampleConfig
from gmtool.stages.sample.run import sample
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
        names=[f"{index // 2}.png" for index in range(20)],
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
        drawn = list(latent_batches(latents, 4, 0, 0, 6, workers, part))
        rows = np.concatenate([batch.rows for batch in drawn])
        assert sorted(rows[:12]) == sorted(rows[12:]) == part.tolist()
        for batch in drawn:
            np.testing.assert_array_equal(batch.patches, latents.patches(batch.rows))


def part_mixture(fraction: float, seed: int = 0, modes: int = 4) -> FitGmmConfig:
    return make(
        FitGmmConfig, {"modes": modes, "em_iterations": 10, "fraction": fraction, "seed": seed, "device": "cpu"}
    )


@pytest.mark.slow
def test_a_mixture_of_a_part_is_that_of_a_file_with_nothing_else(small: Small, tmp_path: Path) -> None:
    """Also its held-out images, empty modes and shrinkage, which look at the statistics of all that there is."""
    with open_latents(small.latents("classes")) as latents:
        part = part_of_data(latents, 0.5, 3)
        write_latents(
            tmp_path / "alone.h5",
            patches=latents.patches(part),
            descriptors=latents.descriptors(part),
            labels=latents.labels[part],
            names=[latents.names()[row] for row in part],
            classes=latents.classes,
            tokenizer=latents.tokenizer,
            provenance=Provenance("encode", {}),
        )
    config = part_mixture(0.5, 3)
    fit_gmm(small.latents("classes"), tmp_path / "part.h5", config, Progress())
    fit_gmm(tmp_path / "alone.h5", tmp_path / "alone-gmm.h5", changed(config, {"fraction": 1.0}), Progress())
    with open_gmm(tmp_path / "part.h5") as gmm, open_gmm(tmp_path / "alone-gmm.h5") as expected:
        for name in ("weights", "population", "cls_weights", "cls_mean", "cls_var"):
            np.testing.assert_allclose(getattr(gmm, name), getattr(expected, name), rtol=1e-6, atol=1e-9)
        modes = np.arange(4)
        np.testing.assert_allclose(gmm.patch_mean(modes), expected.patch_mean(modes), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(gmm.patch_std(modes), expected.patch_std(modes), rtol=1e-5)
        kept, alone = gmm.kept(slice(None)), expected.kept(slice(None))
        np.testing.assert_array_equal(kept.modes[part], alone.modes)
        np.testing.assert_allclose(kept.probabilities[part], alone.probabilities, rtol=1e-5)
        others = np.setdiff1d(np.arange(60), part)
        assert len(others) == 30 and not kept.probabilities[others].any()
        assert gmm.manifest.details["data"] == 30


@pytest.mark.slow
def test_a_run_on_a_part_has_the_statistics_of_that_part(small: Small, tmp_path: Path) -> None:
    values = {"fraction": 0.2, "seed": 5, "steps": 1, "batch_size": 8, "preview_every": 0, "device": "cpu"}
    train(small.latents("classes"), tmp_path / "run", make(TrainConfig, values), Progress())
    with open_latents(small.latents("classes")) as latents:
        patches = latents.patches(part_of_data(latents, 0.2, 5)).astype(np.float64)
    statistics = open_run(tmp_path / "run").statistics()
    np.testing.assert_allclose(statistics.mean, patches.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(statistics.std, np.sqrt(patches.var(0) + 1e-5), rtol=1e-5)


def test_a_run_that_was_begun_keeps_its_statistics(small: Small, tmp_path: Path) -> None:
    """As one of an earlier version must, whose statistics are those of all."""
    values = {"fraction": 0.2, "steps": 1, "batch_size": 8, "preview_every": 0, "device": "cpu", "tensorboard": False}
    config = make(TrainConfig, values)
    train(small.latents("classes"), tmp_path / "run", config, Progress())
    with open_latents(small.latents("classes")) as latents:
        of_all = latent_statistics(latents)
    write_tensors(tmp_path / "run" / STATISTICS, {"mean": of_all.mean, "std": of_all.std})
    before = (tmp_path / "run" / STATISTICS).read_bytes()
    batches = []

    class Seen(Progress):
        def note(self, message: str) -> None:
            batches.append(message)

        def begin(self, task: str, total: int, unit: str, done: int = 0) -> None:
            batches.append(task)

    train(small.latents("classes"), tmp_path / "run", changed(config, {"steps": 2}), Seen())
    assert (tmp_path / "run" / STATISTICS).read_bytes() == before
    assert "train" in batches and "mean and variance of the part" not in batches


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fitted", "trained", "words"),
    [
        (
            (1.0, 0),
            (0.5, 0),
            r"was fitted with --fraction 1, and this run trains with --fraction 0\.5 --seed 0: fit another mixture",
        ),
        (
            (0.5, 0),
            (0.5, 1),
            r"fitted with --fraction 0\.5 --seed 0, and this run trains with --fraction 0\.5 --seed 1",
        ),
        ((0.5, 0), (0.2, 0), r"OTHER\.h5 --fraction 0\.2 --seed 0`, with its other settings"),
        ((0.5, 0), (1.0, 0), r"OTHER\.h5 --fraction 1`, .* or train with --fraction 0\.5 --seed 0$"),
        ((1.0, 0), (1.0, 4), None),
        ((0.5, 2), (0.5, 2), None),
    ],
)
def test_a_mixture_that_knows_other_images_is_refused(
    small: Small,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    fitted: tuple[float, int],
    trained: tuple[float, int],
    words: str | None,
) -> None:
    latents, gmm = small.latents("classes"), tmp_path / "gmm.h5"
    fit_gmm(latents, gmm, part_mixture(*fitted, modes=2), Progress())
    settings = ["--objective", "mm-fm", "--fraction", str(trained[0]), "--seed", str(trained[1]), "--steps", "1"]
    arguments = ["train", str(latents), str(tmp_path / "run"), "--gmm", str(gmm), "--device", "cpu", *settings]
    if words is None:
        assert main([*arguments, "--preview-every", "0", "--batch-size", "8"]) == 0
        return
    for more in ([], ["--dry-run"]):
        assert main([*arguments, *more]) == 2
        error = capsys.readouterr().err
        assert re.search(words, error) and error.count("\n") == 1
    assert not (tmp_path / "run").exists()
    arguments.remove("--gmm")
    arguments.remove(str(gmm))
    assert main([*arguments, "--objective", "fm", "--preview-every", "0", "--batch-size", "8"]) == 0  # it needs none


@pytest.mark.slow
def test_a_run_on_a_part_draws_the_modes_of_that_part(small: Small, tmp_path: Path) -> None:
    values = {"objective": "mm-fm", "fraction": 0.1, "steps": 1, "batch_size": 8, "preview_every": 0, "device": "cpu"}
    fit_gmm(small.latents("classes"), tmp_path / "gmm.h5", part_mixture(0.1, 2), Progress())
    config = make(TrainConfig, {**values, "seed": 2, "gmm": tmp_path / "gmm.h5"})
    train(small.latents("classes"), tmp_path / "run", config, Progress())
    with open_latents(small.latents("classes")) as latents, open_gmm(tmp_path / "gmm.h5") as gmm:
        part = part_of_data(latents, 0.1, 2)
        expected = mode_weights(latents, gmm, False, part)[0]
        kept = gmm.kept(part)
        np.testing.assert_allclose(expected, kept.population(4) / len(part), rtol=1e-5)
    weights = open_run(tmp_path / "run").statistics().mode_weights
    assert weights is not None
    np.testing.assert_allclose(weights[0], expected, rtol=1e-6)
    with pytest.raises(UserError, match=r"was begun with --fraction 0\.1, not --fraction 0\.5"):
        train(small.latents("classes"), tmp_path / "run", changed(config, {"fraction": 0.5}), Progress())


def test_less_than_one_image_is_refused(small: Small, tmp_path: Path) -> None:
    config = make(TrainConfig, {"fraction": 0.01, "steps": 1, "device": "cpu"})
    with pytest.raises(UserError, match=r"--fraction 0.01 of the 60 images of .* is less than one: raise it"):
        train(small.latents("classes"), tmp_path / "run", config, Progress())
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_what_a_run_was_trained_on_is_that_part_of_its_images_alone(small: Small, tmp_path: Path) -> None:
    """For whatever compares with training images: scores of samples, memorisation and likelihoods."""
    values = {"fraction": 0.5, "seed": 3, "steps": 1, "batch_size": 8, "preview_every": 0, "device": "cpu"}
    train(small.latents("classes"), tmp_path / "run", make(TrainConfig, values), Progress())
    sample(tmp_path / "run", tmp_path / "samples", make(SampleConfig, {"num": 8, "device": "cpu"}), Progress())
    with open_latents(small.latents("classes")) as latents:
        part, names = part_of_data(latents, 0.5, 3), latents.names()
        images, reference = open_reference(small.classes / "images"), LatentsReference(latents.path, latents)
        assert isinstance(images, ImagesReference)
        for made in (open_run(tmp_path / "run"), open_samples(tmp_path / "samples")):
            assert trained_rows(made, latents).tolist() == trained_among(reference, made).tolist() == part.tolist()
            assert set(3 * trained_among(reference.thinned(3), made)) == {row for row in part if row % 3 == 0}
            named = [images.images.names[row] for row in trained_among(images, made)]
            assert sorted(named) == sorted(names[row] for row in part)
            assert not len(trained_among(open_reference(small.latents("flat")), made))
    config = make(EvaluateConfig, {"features": "tokenizer", "device": "cpu", "cache_size": 0.0})
    figure = evaluate(tmp_path / "samples", config, Progress()).figure("memorisation")
    assert figure is not None and figure.real is not None
    assert [(one.images, one.reference_images) for one in (figure.generated, figure.real)] == [(8, 30), (8, 30)]


@pytest.mark.slow
def test_a_student_without_data_was_trained_on_what_its_teacher_was(small: Small, tmp_path: Path) -> None:
    values = {"steps": 1, "batch_size": 8, "preview_every": 0, "device": "cpu"}
    config = make(TrainConfig, {**values, "fraction": 0.5, "seed": 3})
    train(small.latents("classes"), tmp_path / "run", config, Progress())
    taught = make(DistillConfig, {**values, "data_free": True, "seed": 4, "teacher_steps": 2, "components": 2})
    distill(tmp_path / "run", tmp_path / "student", taught, Progress())
    sample(tmp_path / "student", tmp_path / "samples", make(SampleConfig, {"num": 8, "device": "cpu"}), Progress())
    with open_latents(small.latents("classes")) as latents:
        part, reference = part_of_data(latents, 0.5, 3), LatentsReference(latents.path, latents)
        for made in (open_run(tmp_path / "student"), open_samples(tmp_path / "samples")):
            assert trained_rows(made, latents).tolist() == trained_among(reference, made).tolist() == part.tolist()
    scoring = make(EvaluateConfig, {"features": "tokenizer", "device": "cpu"})
    figure = evaluate(tmp_path / "samples", scoring, Progress()).figure("memorisation")
    assert figure is not None and figure.generated.reference_images == 30
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(UserError, match=r"the teacher of .*student, .*run, is gone: give real images with --reference"):
        open_training_latents(open_samples(tmp_path / "samples"))


@pytest.mark.slow
def test_a_likelihood_tells_how_many_images_were_trained_on(small: Small, tmp_path: Path) -> None:
    values = {"fraction": 0.5, "seed": 3, "steps": 1, "batch_size": 8, "preview_every": 0, "device": "cpu"}
    train(small.latents("classes"), tmp_path / "run", make(TrainConfig, values), Progress())
    heard: list[str] = []

    class Noted(Progress):
        def note(self, message: str) -> None:
            heard.append(message)

    config = make(LikelihoodConfig, {"num": 20, "device": "cpu", "tolerance": 0.1})
    likelihood(small.latents("classes"), tmp_path / "run", config, Noted(), tmp_path / "likelihood.json")
    with open_latents(small.latents("classes")) as latents:
        count = len([row for row in part_of_data(latents, 0.5, 3) if row % 3 == 0])
    assert 0 < count < 20 and heard[0].startswith(f"{count} of these 20 of {small.latents('classes')} are what")
