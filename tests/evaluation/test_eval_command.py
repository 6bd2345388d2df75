"""`gmtool eval` as a user runs it: the table, the JSON, and one line for whatever is wrong."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
from user import held_by_another

from gmtool.artifacts.latents import open_latents
from gmtool.cli.app import main
from gmtool.evaluation.metrics import metrics_by_name
from gmtool.progress import Progress
from gmtool.settings import make
from gmtool.stages.evaluate.config import EvaluateConfig
from gmtool.stages.evaluate.plan import plan_evaluation
from gmtool.stages.evaluate.run import evaluate
from gmtool.stages.evaluate.table import rounded


def fails(capsys, arguments: list[object], code: int = 2) -> str:
    """The one line on standard error with which a command ends, without the notes before it."""
    assert main(["eval", *map(str, arguments)]) == code
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == "" and lines[-1].startswith("gmtool: error: ") and "internal error" not in lines[-1]
    assert not any(line.startswith("Traceback") for line in lines)
    return lines[-1]


@pytest.fixture
def samples(world, tmp_path) -> Path:
    """A copy of the world's samples that a test may break."""
    return shutil.copytree(world / "samples", tmp_path / "samples", ignore=shutil.ignore_patterns("metrics.json"))


@pytest.mark.slow
def test_the_table_and_the_json_show_the_same_figures(samples, capsys):
    assert main(["eval", str(samples), "--features", "tokenizer"]) == 0
    table = capsys.readouterr().out
    assert main(["eval", str(samples), "--features", "tokenizer", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((samples / "metrics.json").read_text())
    for figure in report["figures"]:
        for side in ("generated", "real"):
            assert rounded(figure[side]["value"], figure[side]["spread"]) in table
    for text in ("Fréchet distance", "precision", "200 / 500", "200 / 300", report["reference_fingerprint"][:8]):
        assert text in table


@pytest.mark.slow
def test_samples_that_are_in_use_are_one_line(samples, capsys):
    with held_by_another(samples) as other:
        assert f"samples is in use by process {other}" in fails(capsys, [samples, "--features", "tokenizer"])
    assert main(["eval", str(samples), "--features", "tokenizer"]) == 0
    assert not (samples.parent / ".samples.gmtool").exists()


def test_no_argument_means_samples_here_against_the_training_images(samples, capsys, monkeypatch):
    monkeypatch.chdir(samples.parent)
    assert main(["eval"]) == 0
    captured = capsys.readouterr()
    assert "samples against latents" in captured.out
    assert "features: the run's own tokenizer" in captured.err


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda path: shutil.rmtree(path), "gmtool sample"),
        (lambda path: (path / "sampling.json").unlink(), "gmtool sample"),
        (lambda path: (path / "samples.npz").unlink(), "no images"),
        (lambda path: (path / "samples.npz").write_bytes(b"PK" + bytes(100)), "damaged"),
        (lambda path: os.truncate(path / "samples.npz", 1000), "damaged"),
        (lambda path: (path / "latents.h5").unlink(), "gmtool sample again"),
        (lambda path: (path / "latents.h5").write_bytes(b"no latents"), "latents.h5"),
        (lambda path: np.savez(path / "samples.npz", arr_0=np.zeros((1, 8, 8, 3), np.uint8)), "--num"),
        (lambda path: (path / "sampling.json").write_text("{}"), "sampling.json"),
        (lambda path: np.savez(path / "samples.npz", arr_0=np.zeros((9, 8, 8, 3))), "damaged"),
        (lambda path: np.savez(path / "samples.npz", arr_0=np.zeros((9, 8, 7, 3), np.uint8)), "damaged"),
        (lambda path: np.savez(path / "samples.npz", arr_0=np.uint8(3)), "damaged"),
        (lambda path: np.savez(path / "samples.npz", images=np.zeros((9, 8, 8, 3), np.uint8)), "damaged"),
        (lambda path: np.savez(path / "samples.npz", arr_0=np.zeros((0, 8, 8, 3), np.uint8)), "--num"),
    ],
)
def test_broken_samples(break_it, message, samples, capsys):
    break_it(samples)
    assert message in fails(capsys, [samples, "--features", "tokenizer"])


def test_a_run_in_the_place_of_samples(world, samples, capsys):
    run = samples.parent / "run"
    run.mkdir()
    (run / "config.json").write_text((samples / "sampling.json").read_text().replace('"samples"', '"run"'))
    assert "gmtool sample" in fails(capsys, [run])


def write(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    (path / "notes.txt").write_text("no images here")
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path / "nowhere", "does not exist"),
        (lambda path: folder(path / "empty"), "no images"),
        (lambda path: write(path / "r.npz", wrong=np.zeros(3)), "neither images nor mu"),
        (
            lambda path: write(path / "r.npz", arr_0=np.full((9, 8, 8, 3), 256.0)),
            "none of [0, 1], [-1, 1] and [0, 255]",
        ),
        (lambda path: write(path / "r.npz", arr_0=np.array([{"a": 1}], dtype=object)), "no .npz of numbers"),
        (lambda path: write(path / "r.npz", arr_0=np.zeros((9, 16, 16, 3), np.uint8)), "16 x 16"),
        (lambda path: write(path / "r.npz", mu=np.zeros(5), sigma=np.zeros((4, 4))), "must be (D,)"),
        (lambda path: write(path / "r.npz", mu=np.zeros(2048), sigma=np.eye(2048)), "--features inception"),
        (lambda path: write(path / "r.npz", mu=np.full(64, np.nan), sigma=np.eye(64)), "finite"),
        (lambda path: write(path / "r.npz", mu=np.array(["a"]), sigma=np.eye(1)), "no .npz of numbers"),
        (lambda path: write(path / "r.npz", mu=np.zeros(3), sigma=np.eye(3)), "statistics of 3 numbers"),
        (lambda path: write(path / "r.npz", arr_0=np.zeros((0, 8, 8, 3), np.uint8)), "holds no image"),
        (lambda path: write(path / "r.npz", arr_0=np.zeros((9, 0, 0, 3), np.uint8)), "holds no image"),
        (lambda path: write(path / "r.npz", arr_0=np.zeros((9, 8, 4, 3), np.uint8)), "8 x 4"),
        (lambda path: write(path / "r.npz", mu=np.zeros(0), sigma=np.zeros((0, 0))), "must be (D,)"),
        (lambda path: write(path / "r.npz", mu=np.zeros(64), sigma=-np.eye(64)), "no covariance: it has a negative"),
        (lambda path: write(path / "r.npz", mu=np.zeros(64), sigma=np.tri(64)), "no covariance: it is not symmetric"),
        (lambda path: write(path / "r.npz", mu=np.zeros(64), sigma=np.full((64, 64), np.inf)), "finite"),
        (lambda path: write(path / "r.npz", mu=np.zeros(64, complex), sigma=np.eye(64)), "finite"),
        (lambda path: write(path / "r.npz", mu=np.zeros(64)), "neither images nor mu"),
    ],
)
def test_wrong_references(make, message, samples, tmp_path, capsys):
    line = fails(capsys, [samples, "--features", "tokenizer", "--reference", make(tmp_path)])
    assert (message in line and "reference" in line) or "images" in line
    assert not (samples / "metrics.json").exists()


def test_an_npz_cut_short(samples, tmp_path, capsys, digits):
    whole = write(tmp_path / "r.npz", arr_0=digits[:50]).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    assert "cut.npz" in fails(capsys, [samples, "--features", "tokenizer", "--reference", tmp_path / "cut.npz"])


def test_truncated_latents_as_reference(world, samples, tmp_path, capsys):
    content = (world / "latents.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(content[: len(content) // 2])
    assert "cut.h5" in fails(capsys, [samples, "--features", "tokenizer", "--reference", tmp_path / "cut.h5"])


def test_latents_of_another_tokenizer_as_reference(world, samples, tmp_path, capsys, make_latents):
    other = make_latents(world / "held_out", tmp_path / "other.h5")
    capsys.readouterr()
    line = fails(capsys, [samples, "--features", "tokenizer", "--reference", other])
    assert "another tokenizer" in line and "as --reference" in line


def test_a_colour_reference_for_grey_samples(samples, tmp_path, capsys):
    colours = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
    reference = write(tmp_path / "colours.npz", arr_0=colours)
    line = fails(capsys, [samples, "--features", "tokenizer", "--reference", reference])
    assert "colours.npz holds colour images" in line


def test_one_real_image(samples, tmp_path, capsys, digits):
    reference = write(tmp_path / "one.npz", arr_0=digits[:1])
    assert "1 image" in fails(capsys, [samples, "--features", "tokenizer", "--reference", reference])


def test_training_latents_that_are_gone(samples, capsys):
    record = samples / "sampling.json"
    text = json.loads(record.read_text().replace("latents.h5", "moved.h5"))
    record.write_text(json.dumps({name: value for name, value in text.items() if name != "checksum"}))
    assert "gone: give real images with --reference" in fails(capsys, [samples, "--features", "tokenizer"])


def test_a_broken_image_in_the_reference(world, samples, tmp_path, capsys):
    copy = shutil.copytree(world / "held_out", tmp_path / "held_out")
    (copy / "0000.png").write_text("not a picture")
    assert "0000.png" in fails(capsys, [samples, "--features", "tokenizer", "--reference", copy])


def test_inception_without_network(samples, capsys):
    line = fails(capsys, [samples, "--features", "inception"], code=1)
    assert "could not be fetched" in line and "--features tokenizer" in line


def test_a_weights_file_of_the_wrong_kind(samples, tmp_path, capsys):
    (tmp_path / "weights.pth").write_text("no weights")
    assert "weights.pth does not hold" in fails(capsys, [samples, "--inception-weights", tmp_path / "weights.pth"])
    assert "is not a file" in fails(capsys, [samples, "--inception-weights", tmp_path / "nowhere.pth"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_output(samples, capsys):
    samples.chmod(0o555)
    try:
        assert "read-only" in fails(capsys, [samples, "--features", "tokenizer"])
    finally:
        samples.chmod(0o755)


def test_a_full_disk_leaves_nothing(samples, capsys, monkeypatch):
    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert "disk is full" in fails(capsys, [samples, "--features", "tokenizer"], code=1)
    assert not list(samples.glob("metrics*"))


def test_wrong_values_of_options(samples, capsys):
    assert "--neighbours" in fails(capsys, [samples, "--neighbours", "0"])
    assert "--device" in fails(capsys, [samples, "--device", "abacus"])
    both = [samples, "--features", "tokenizer", "--inception-weights", "weights.pth"]
    assert "--inception-weights has no effect" in fails(capsys, both)
    assert "--featurs" in fails(capsys, [samples, "--featurs", "tokenizer"])


def without(packages: dict[str, str], folder: Path, arguments: list[object]) -> subprocess.CompletedProcess:
    """`gmtool eval` where importing some packages fails: what each of them does when it is imported."""
    for name, source in packages.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(source)
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{Path.cwd()}"}
    return subprocess.run(
        [sys.executable, "-m", "gmtool", "eval", *map(str, arguments)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


MISSING = "raise ModuleNotFoundError(name={0!r})"
WORSE = "raise RuntimeError('operator torchvision::nms does not exist')"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("packages", "message"),
    [
        ({"torch_fidelity": MISSING.format("torch_fidelity")}, "torch-fidelity is not installed"),
        ({"torchvision": MISSING.format("torchvision")}, "torchvision is not installed"),
        ({"torchvision": WORSE}, "does not match torch"),
    ],
    ids=["no torch-fidelity", "no torchvision", "another torchvision"],
)
def test_without_torch_fidelity_its_metrics_alone_are_missing(packages, message, samples, tmp_path):
    assert main(["eval", str(samples), "--features", "tokenizer"]) == 0
    whole = json.loads((samples / "metrics.json").read_text())["figures"]
    done = without(packages, tmp_path / "blocked", [samples, "--features", "tokenizer", "--json"])
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)["figures"]
    lost = {"kernel_distance"}
    assert [figure["metric"] for figure in figures] == [
        figure["metric"] for figure in whole if figure["metric"] not in lost
    ]
    for figure in figures:
        assert figure == next(other for other in whole if other["metric"] == figure["metric"])
    (note,) = (line for line in done.stderr.splitlines() if "left out" in line)
    assert message in note and "pip install --upgrade torch torchvision torch-fidelity" in note
    assert note.startswith("left out: kernel distance, because ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "source", "message"),
    [
        ("torch_fidelity", MISSING.format("torch_fidelity"), "torch-fidelity is not installed"),
        ("torchvision", WORSE, "nms does not exist"),
    ],
)
def test_inception_without_torch_fidelity(package, source, message, samples, tmp_path):
    done = without({package: source}, tmp_path / "blocked", [samples, "--features", "inception"])
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line.startswith("gmtool: error: ") and message in line and "pip install --upgrade torch" in line


def test_a_dry_run_says_what_would_be_done_and_does_nothing(world, samples, capsys):
    arguments = [samples, "--reference", world / "held_out", "--dry-run", "--trajectories", "0"]
    assert main(["eval", *map(str, arguments)]) == 0
    captured = capsys.readouterr()
    for text in (
        f"Would score {samples} against images {world / 'held_out'}",
        "200 images of 8 x 8 px", "300 images", "metrics.json", "--features (auto)", "would be downloaded", "FID",
    ):  # fmt: skip
        assert text in " ".join(captured.out.split())
    assert not (samples / "metrics.json").exists() and captured.err == ""


def test_a_dry_run_lists_the_metrics_that_are_then_computed(world, samples, tmp_path):
    with open_latents(world / "latents.h5") as latents:
        features = latents.descriptors(slice(None)).astype(np.float64)
    reference = write(tmp_path / "r.npz", mu=features.mean(0), sigma=np.cov(features, rowvar=False))
    for given in (None, reference):
        config = make(EvaluateConfig, {"features": "tokenizer", "reference": given})
        work = dict(plan_evaluation(samples, config, Progress(), fetch=False).forecast().work)
        figures = evaluate(samples, config, Progress()).figures
        assert work["metrics"] == ", ".join(metrics_by_name()[figure.metric].label for figure in figures)


def test_a_dry_run_refuses_what_the_run_would(samples, tmp_path, capsys):
    reference = write(tmp_path / "r.npz", mu=np.zeros(3), sigma=np.eye(3))
    assert "statistics of 3 numbers" in fails(
        capsys, [samples, "--features", "tokenizer", "--reference", reference, "--dry-run"]
    )
    assert "--json" in fails(capsys, [samples, "--features", "tokenizer", "--dry-run", "--json"])


class Images(torch.utils.data.Dataset):
    """Images (N, S, S, 3) in the form that torch-fidelity takes."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]


@pytest.mark.slow
def test_inception_figures_are_torch_fidelitys(world, tmp_path, capsys, digits, make_samples, inception_weights):
    """The whole path through torch-fidelity's own network, with random weights, against its own evaluation."""
    few = make_samples(tmp_path / "few", digits[800:808], world / "latents.h5")
    reference = write(tmp_path / "reference.npz", arr_0=digits[500:503])
    assert (
        main(["eval", str(few), "--inception-weights", str(inception_weights), "--reference", str(reference), "--json"])
        == 0
    )
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    figures = {figure["metric"]: figure for figure in report["figures"]}
    assert report["features"] == "inception" and "torch-fidelity" in report["extractor"]
    assert "compare with no published figure" in captured.err
    # three real images give no real-against-real pair, whose square roots of 2048 x 2048 matrices would take long
    assert all(figure["real"] is None for figure in report["figures"][:5])
    expected = torch_fidelity.calculate_metrics(
        input1=Images(digits[800:808]),
        input2=Images(digits[500:503]),
        feature_extractor="inception-v3-compat", feature_extractor_weights_path=str(inception_weights),
        isc=True, fid=True, kid=True, prc=True, prc_batch_size=100, prc_neighborhood=2,
        isc_splits=1, kid_subset_size=3, rng_seed=0,
        save_cpu_ram=True, cuda=False, cache=False, verbose=False,
    )  # fmt: skip
    for metric, theirs in {
        "frechet_distance": "frechet_inception_distance",
        "inception_score": "inception_score_mean",
        "kernel_distance": "kernel_inception_distance_mean",
        "precision": "precision",
        "recall": "recall",
    }.items():
        assert figures[metric]["generated"]["value"] == pytest.approx(expected[theirs], rel=1e-3, abs=1e-6), metric
