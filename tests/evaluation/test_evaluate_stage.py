"""Scores of samples whose quality is known: real digits, digits of one class, noise."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from gmtool.artifacts.latents import open_latents
from gmtool.errors import UserError
from gmtool.evaluation.report import Report, parse_report
from gmtool.progress import Progress
from gmtool.settings import changed, make
from gmtool.stages.evaluate.config import EvaluateConfig
from gmtool.stages.evaluate.run import evaluate, evaluate_all

TOKENIZER = make(EvaluateConfig, {"features": "tokenizer", "device": "cpu", "cache_size": 0.0})


class Notes(Progress):
    """Keeps what a user would see."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, message: str) -> None:
        self.lines.append(message)


def run(samples: Path, reference: Path | None = None, **settings) -> Report:
    return evaluate(samples, changed(TOKENIZER, {"reference": reference, **settings}), Progress())


def values(report: Report) -> dict[str, float]:
    return {figure.metric: figure.generated.value for figure in report.figures}


@pytest.mark.slow
def test_real_images_score_like_real_images(world):
    report = run(world / "samples", world / "held_out")
    frechet = report.figure("frechet_distance")
    assert 0.5 < frechet.generated.value / frechet.real.value < 2
    assert abs(report.figure("kernel_distance").generated.value) < 0.05
    for metric in ("precision", "recall"):
        assert report.figure(metric).generated.value > 0.75
    assert [figure.metric for figure in report.figures] == [
        "frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage", "mind",
        "magnitude", "saturated_share", "colour_saturation",
    ]  # fmt: skip
    for figure in report.figures[-3:]:
        assert figure.generated.value == pytest.approx(figure.real.value, abs=0.03)


@pytest.mark.slow
def test_bad_samples_score_badly(world, tmp_path, digits, make_samples):
    noise = np.random.default_rng(1).integers(0, 256, (100, 8, 8, 1), dtype=np.uint8).repeat(3, axis=-1)
    same = digits[800:801].repeat(100, axis=0)
    good, junk, collapsed = (
        values(run(make_samples(tmp_path / name, content, world / "latents.h5"), world / "held_out"))
        for name, content in (("good", digits[800:900]), ("junk", noise), ("collapsed", same))
    )
    assert junk["precision"] < 0.1 < 0.7 < good["precision"]
    assert collapsed["recall"] < 0.1 < 0.7 < good["recall"]
    assert min(junk["frechet_distance"], collapsed["frechet_distance"]) > 3 * good["frechet_distance"]
    assert min(junk["kernel_distance"], collapsed["kernel_distance"]) > 10 * abs(good["kernel_distance"])


def test_saturation_tells_washed_out_samples_from_glaring_ones(world, tmp_path, digits, make_samples):
    """Beside that of the real images, of which evenly spaced ones are read when there are many."""
    grey, glaring = np.full((50, 8, 8, 3), 128, np.uint8), np.where(digits[:50] > 100, 255, 0).astype(np.uint8)
    for name, content, expected in (("grey", grey, (1 / 255, 0)), ("glaring", glaring, (1, 1))):
        report = run(make_samples(tmp_path / name, content, world / "latents.h5"))
        for metric, value in zip(("magnitude", "saturated_share"), expected, strict=True):
            figure = report.figure(metric)
            assert figure.generated.value == pytest.approx(value) and figure.generated.images == 50
            assert 0.3 < figure.real.value < 0.9 and figure.real.images == 500


@pytest.mark.slow
def test_training_images_stand_in_when_the_reference_is_other(world):
    report = run(world / "samples", world / "held_out")
    for figure in report.figures[:4]:
        assert (figure.generated.images, figure.generated.reference_images) == (200, 300)
        assert (figure.real.images, figure.real.reference_images) == (200, 300)


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["latents.h5", "train", None])
def test_the_training_images_as_reference_are_split(world, reference):
    report = run(world / "samples", None if reference is None else world / reference)
    for figure in report.figures[:4]:
        assert (figure.generated.images, figure.generated.reference_images) == (200, 500)
        assert (figure.real.images, figure.real.reference_images) == (200, 300)


@pytest.mark.slow
def test_every_form_of_the_reference_gives_the_same_figures(world, tmp_path, digits):
    images = digits[500:800]
    np.savez(tmp_path / "images.npz", arr_0=images)
    archive = Path(shutil.make_archive(str(tmp_path / "images"), "zip", world / "held_out"))
    folder, npz, zipped = (
        run(world / "samples", path) for path in (world / "held_out", tmp_path / "images.npz", archive)
    )
    assert folder.figures == npz.figures == zipped.figures
    assert (npz.reference_kind, zipped.reference_kind) == ("npz of images", "images")
    # the same images decoded and described again, against the descriptors in the file
    stored, described = run(world / "samples", world / "latents.h5"), run(world / "samples", world / "train")
    np.testing.assert_allclose(list(values(stored).values()), list(values(described).values()), rtol=1e-3, atol=1e-4)


def test_statistics_as_reference_give_the_frechet_distance(world, tmp_path):
    with open_latents(world / "latents.h5") as latents:
        features = latents.descriptors(slice(None)).astype(np.float64)
    np.savez(tmp_path / "ref.npz", mu=features.mean(0), sigma=np.cov(features, rowvar=False))
    report = run(world / "samples", tmp_path / "ref.npz")
    figure, *alone = report.figures
    assert [entry.metric for entry in alone] == ["magnitude", "saturated_share", "colour_saturation"]
    assert alone[0].real is None
    assert (figure.metric, figure.real, figure.generated.reference_images) == ("frechet_distance", None, None)
    assert figure.generated.value == pytest.approx(values(run(world / "samples"))["frechet_distance"], rel=1e-5)


@pytest.mark.slow
def test_the_seed_decides_and_nothing_else_does(world):
    first, again = run(world / "samples"), run(world / "samples", batch_size=7)
    assert values(first) == pytest.approx(values(again), rel=1e-4)
    assert run(world / "samples") == first
    other = run(world / "samples", seed=1)
    assert other.figure("frechet_distance").generated == first.figure("frechet_distance").generated
    assert other.figure("frechet_distance").real != first.figure("frechet_distance").real


@pytest.mark.slow
def test_the_report_is_written_whole(world):
    report = run(world / "samples", world / "held_out")
    written = json.loads((world / "samples" / "metrics.json").read_text())
    assert written == json.loads(report.to_json())
    assert written["reference_fingerprint"] == report.reference_fingerprint != ""
    assert "pixels" in written["extractor"]
    assert not list((world / "samples").glob(".*"))


def test_samples_that_are_replaced_before_their_turn_are_not_scored(world, tmp_path, digits, make_samples):
    """Their report would be of the new images, under the name of the old ones."""
    first, second = (make_samples(tmp_path / name, digits[:40], world / "latents.h5") for name in ("a", "b"))
    replaced = Notes()

    def note(message: str) -> None:
        if message.endswith("(2 of 2)"):
            shutil.rmtree(second)
            make_samples(second, digits[40:80], world / "latents.h5")

    replaced.note = note
    with pytest.raises(UserError, match=r"b changed meanwhile: run the same command again"):
        evaluate_all([first, second], TOKENIZER, replaced)
    assert (first / "metrics.json").exists() and not (second / "metrics.json").exists()


@pytest.mark.slow
def test_copies_of_training_images_are_told(world, tmp_path, digits, make_samples):
    """Where the reference holds the training images; of others nothing can be said."""
    copies = make_samples(tmp_path / "copies", digits[:100], world / "latents.h5")
    assert run(copies).figure("memorisation").generated.value == 1
    fresh = run(world / "samples", world / "train").figure("memorisation")
    assert fresh.generated.value == pytest.approx(fresh.real.value, abs=0.15) and fresh.generated.value < 0.8
    assert run(copies, world / "held_out").figure("memorisation") is None


def test_small_sets_are_noted(world, tmp_path, digits, make_samples):
    progress = Notes()
    few = make_samples(tmp_path / "few", digits[800:805], world / "latents.h5")
    evaluate(few, TOKENIZER, progress)
    assert any("5 samples do not span" in line for line in progress.lines)
    assert not any("reference images do not span" in line for line in progress.lines)


def test_auto_falls_back_on_the_tokenizer_and_says_why(world):
    progress = Notes()
    report = evaluate(world / "samples", changed(TOKENIZER, {"features": "auto"}), progress)
    assert report.features == "tokenizer"
    assert any("the run's own tokenizer" in line and "could not be fetched" in line for line in progress.lines)


@pytest.mark.slow
def test_changed_training_latents_are_not_the_default_reference(world, tmp_path):
    samples = shutil.copytree(world / "samples", tmp_path / "samples")
    record = samples / "sampling.json"
    text = json.loads(record.read_text().replace('"fingerprint": "', '"fingerprint": "0'))
    record.write_text(json.dumps({name: value for name, value in text.items() if name != "checksum"}))
    with pytest.raises(UserError, match="not what the run was trained on any more"):
        run(samples)
    # another reference still works; its real images are then its own
    figure = run(samples, world / "held_out").figure("precision")
    assert (figure.real.images, figure.real.reference_images) == (150, 150)


@pytest.mark.parametrize("precision", ["matmul", "cudnn"])
@pytest.mark.slow
def test_no_figure_depends_on_rounded_factors(world, precision):
    """A GPU's convolutions round to TF32 unless they are told not to, and its figures then differ from a CPU's."""
    backend = {"matmul": torch.backends.cuda.matmul, "cudnn": torch.backends.cudnn}[precision]
    before, backend.allow_tf32 = backend.allow_tf32, True
    try:
        run(world / "samples", world / "held_out")
        assert backend.allow_tf32 is False
    finally:
        backend.allow_tf32 = before


def test_a_report_of_an_earlier_version_is_still_read():
    """As gmtool 0.1.0 wrote it."""
    text = """{
 "samples": "samples", "samples_fingerprint": "51", "features": "inception", "extractor": "Inception v3",
 "reference": "ref.npz", "reference_kind": "npz of mu and sigma", "reference_fingerprint": "aa", "seed": 0,
 "figures": [
  {"metric": "frechet_distance",
   "generated": {"value": 2.5, "spread": null, "images": 50000, "reference_images": null}, "real": null},
  {"metric": "magnitude", "generated": {"value": 0.4, "spread": null, "images": 9, "reference_images": null},
   "real": {"value": 0.5, "spread": null, "images": 8, "reference_images": null}}
 ],
 "gmtool": "0.1.0"
}"""
    report = parse_report(text)
    assert report.figure("frechet_distance").generated.value == 2.5 and report.figure("recall") is None
    assert report.figure("magnitude").real.images == 8
    assert parse_report(report.to_json()) == report
