"""`gmtool eval` of what other tools made: folders, archives, .npz; several at once; where the reports go."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gmtool.artifacts.latents import open_latents
from gmtool.cli.app import main
from gmtool.distributed import World
from gmtool.errors import UserError
from gmtool.evaluation.array_reference import open_npz
from gmtool.evaluation.comparison import known_from_features, measured
from gmtool.evaluation.compression import compression_note
from gmtool.evaluation.extractors import Described, ExtractorSettings, extractor_row
from gmtool.evaluation.metric import Context
from gmtool.evaluation.metrics import METRICS, MetricSettings
from gmtool.evaluation.references import image_features, open_reference
from gmtool.progress import Progress
from gmtool.stages.evaluate.subjects import open_subject
from gmtool.stages.evaluate.table import best_of

CPU = torch.device("cpu")


def figures(text: str) -> dict[str, float]:
    return {figure["metric"]: figure["generated"]["value"] for figure in json.loads(text)["figures"]}


def run(*arguments: object) -> None:
    assert main(["eval", *map(str, arguments), "--features", "tokenizer"]) == 0


def fails(capsys, *arguments: object) -> str:
    assert main(["eval", *map(str, arguments)]) == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def others(world, tmp_path, digits) -> Path:
    """The world's samples as other tools would have written them."""
    images = digits[800:1000]
    shutil.copytree(world / "samples", tmp_path / "samples", ignore=shutil.ignore_patterns("metrics.json"))
    (tmp_path / "folder").mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "folder" / f"{index:04d}.png")
    shutil.make_archive(str(tmp_path / "zipped"), "zip", tmp_path / "folder")
    np.savez(tmp_path / "nchw.npz", samples=(images / 127.5 - 1).astype(np.float32).transpose(0, 3, 1, 2))
    return tmp_path


@pytest.mark.slow
def test_the_same_images_from_any_tool_have_the_same_figures(world, others, capsys):
    names = ("samples", "folder", "zipped.zip", "nchw.npz")
    before = sorted(path.name for path in others.iterdir())
    run(*(others / name for name in names), "--reference", world / "latents.h5")
    table = capsys.readouterr().out
    assert f"4 sets of samples in {others} against latents" in table
    reports = [others / "samples" / "metrics.json", *(others / f"{name}.metrics.json" for name in names[1:])]
    first, *rest = (figures(path.read_text()) for path in reports)
    first.pop("memorisation")  # only of samples is it known that the reference is what their run was trained on
    for batch in rest:
        assert batch == first
    assert sorted(path.name for path in others.iterdir()) == sorted([*before, *(path.name for path in reports[1:])])


@pytest.mark.slow
def test_one_file_for_all_reports(world, others, capsys):
    arguments = [others / "folder", others / "nchw.npz", "--reference", world / "latents.h5"]
    run(*arguments, "--output", others / "all.json", "--json")
    captured = capsys.readouterr()
    written = json.loads((others / "all.json").read_text())
    assert written == json.loads(captured.out) and [Path(line["samples"]).name for line in written] == [
        "folder",
        "nchw.npz",
    ]
    assert "samples is read as float32 NCHW in [-1, 1]" in captured.err
    assert not list(others.glob("*.metrics.json"))
    run(*arguments, "--output", others / "all.json")  # an earlier report is replaced


def test_nothing_of_the_users_is_replaced(world, others, capsys):
    (others / "folder.metrics.json").write_text('{"mine": 1}')
    line = fails(capsys, others / "folder", "--reference", world / "latents.h5")
    assert "folder.metrics.json exists" in line and "--output" in line
    (others / "notes.json").write_text("[]")
    line = fails(capsys, others / "nchw.npz", "--reference", world / "latents.h5", "--output", others / "notes.json")
    assert "notes.json exists" in line and (others / "notes.json").read_text() == "[]"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: [path / "nowhere"], "does not exist"),
        (lambda path: [path / "folder"], "give real images with --reference"),
        (lambda path: [path / "folder", path / "folder" / "." / ".." / "folder"], "is given twice"),
        (lambda path: [path / "samples" / "latents.h5"], "holds no images but numbers"),
        (lambda path: [path / "statistics.npz"], "give it as --reference"),
        (lambda path: [path / "nchw.npz", "--reference", path / "folder", "--features", "tokenizer"], "no latents"),
        (lambda path: [path / "folder", "--reference", path / "folder", "--trajectories", "5"], "remove the flag, or"),
        (lambda path: [path / "broken"], "none of its 1 images can be read"),
    ],
)
def test_what_cannot_be_scored_is_one_line(make, message, others, capsys):
    np.savez(others / "statistics.npz", mu=np.zeros(3), sigma=np.eye(3))
    (others / "broken").mkdir()
    (others / "broken" / "a.png").write_text("no picture")
    code = main(["eval", *map(str, make(others))])
    assert code in (1, 2)
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("gmtool: error: ") and message in line and "internal" not in line


def test_images_of_several_sizes_are_told(others):
    Image.new("RGB", (20, 12)).save(others / "folder" / "0000.png")
    (note,) = open_subject(others / "folder").notes
    assert "8 x 8, 20 x 12 px, which are resized and cropped to 8 x 8" in note


def test_a_damaged_npz_is_one_line(others, world, capsys):
    whole = (others / "nchw.npz").read_bytes()
    (others / "nchw.npz").write_bytes(whole[: len(whole) // 2])
    assert "nchw.npz is damaged" in fails(capsys, others / "nchw.npz", "--reference", world / "held_out")


def test_the_best_is_the_lowest_or_the_highest():
    assert best_of([2.0, 1.0, None, 1.0], "lower") == {1, 3}
    assert best_of([2.0, 1.0], "higher") == {0}
    assert best_of([2.0, 1.0], "") == best_of([2.0, None], "lower") == frozenset()


def test_the_only_array_may_have_any_name_and_several_are_refused(others):
    with pytest.raises(UserError, match="several arrays that could be images"):
        np.savez(others / "two.npz", a=np.zeros((2, 8, 8, 3), np.uint8), b=np.zeros((2, 8, 8, 3), np.uint8))
        open_subject(others / "two.npz")


def stored(folder: Path, images: np.ndarray, suffix: str, **options: object) -> Path:
    folder.mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index:04d}.{suffix}", **options)
    return folder


def test_jpegs_against_pngs_of_the_same_pictures_are_told(world, tmp_path, digits, capsys):
    images = digits[:30].repeat(2, axis=1).repeat(2, axis=2)
    png, jpeg = stored(tmp_path / "png", images, "png"), stored(tmp_path / "jpeg", images, "jpg", quality=60)
    big = stored(tmp_path / "big", images.repeat(2, axis=1).repeat(2, axis=2), "jpg", quality=60)
    for first, second, told in ((png, jpeg, True), (jpeg, png, True), (png, png, False), (jpeg, jpeg, False)):
        (note,) = [compression_note(open_subject(first).images, open_reference(second), 16)]
        assert (note is not None) == told
        if note is not None:
            assert f"{jpeg} holds JPEGs and {png} does not" in note
    # twice as large, they are resized, and little is left of the compression
    assert compression_note(open_subject(png).images, open_reference(big), 16) is None
    real = stored(tmp_path / "real", digits[:30], "jpg")
    assert main(["eval", str(world / "samples"), "--reference", str(real), "--features", "tokenizer"]) == 0
    assert f"{real} holds JPEGs and {world / 'samples'} does not" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((1, 8, 8, 3), np.uint8), "holds 1 image"),
        (np.full((4, 8, 8, 3), np.nan), "not a number"),
        (np.full((4, 8, 8, 3), -np.inf), "not a number"),
    ],
)
def test_one_image_and_nan_are_one_line(images, words, world, tmp_path, capsys):
    np.savez(tmp_path / "x.npz", images)
    assert words in fails(capsys, tmp_path / "x.npz", "--reference", world / "latents.h5", "--features", "tokenizer")


def test_constant_and_few_images_have_finite_figures(world, tmp_path, digits, capsys):
    """Covariances of rank 0 and 1, balls of radius 0, fewer images than features on either side."""
    np.savez(tmp_path / "constant.npz", np.full((9, 8, 8, 3), 128, np.uint8))
    np.savez(tmp_path / "two.npz", digits[:2])
    for first in ("constant.npz", "two.npz"):
        for second in ("constant.npz", "two.npz"):
            report = figures_by_world(world, tmp_path / first, tmp_path / second)
            assert {"frechet_distance", "kernel_distance", "precision", "coverage", "mind"} <= report.keys()
            assert all(np.isfinite(value) for value in report.values())
            same = first == second
            assert (report["frechet_distance"] < 1e-9) == same


def figures_by_world(world: Path, path: Path, reference: Path) -> dict[str, float]:
    """The figures of images against others, by the descriptor of the world's tokenizer."""
    with open_latents(world / "latents.h5") as latents:
        described = Described(latents.tokenizer, latents.descriptor_size)
    extractor = extractor_row("tokenizer").load().open_extractor(ExtractorSettings(), described, CPU, Progress())
    first, second = (
        image_features(open_npz(path_given, str(path_given)), extractor, 8, 4, World(), Progress(), "x")
        for path_given in (path, reference)
    )
    values = measured(METRICS, known_from_features(first, second), Context(MetricSettings(), 0, CPU))
    return {name: figure.value for name, figure in values.items()}
