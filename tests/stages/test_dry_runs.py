"""What the stages say before they do anything: bytes, memory and time, where they are known."""

from pathlib import Path

import pytest
import torch
from small import PIXELS, Small

from gmtool.artifacts.run import open_run
from gmtool.cli.app import main
from gmtool.console import print_forecast
from gmtool.evaluation.extractors import EXTRACTORS
from gmtool.evaluation.feature_plan import SPATIAL_SIZE, FeaturePlan
from gmtool.forecast import Choice, Forecast
from gmtool.progress import Progress
from gmtool.sampling.sampler import evaluations_of
from gmtool.settings import changed, make
from gmtool.stages.encode.plan import plan_encoding
from gmtool.stages.sample.config import SampleConfig
from gmtool.stages.sample.run import plan_samples, sample
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train.run import train
from gmtool.throughput import Speed, device_name, keep_speed
from gmtool.training.cost import evaluation_flops, step_cost

UNKNOWN = "unknown before it is measured"
TRAINING = {"steps": 1, "batch_size": 8, "preview_every": 0, "device": "cpu"}
MODES = {"objective": "gm-kl", "source": "gmm", "condition": "none"}
DRAWING = make(SampleConfig, {"num": 10, "steps": 3, "device": "cpu"})


@pytest.fixture(autouse=True)
def no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def runs(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of flow matching, and a union. Not to be written to."""
    root = tmp_path_factory.mktemp("runs")
    for name, settings in (("plain", {}), ("union", MODES)):
        train(small.latents("classes"), root / name, make(TrainConfig, {**TRAINING, **settings}), Progress())
    return root


def shown(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """The rows of the table on standard output, those with one cell in the second column."""
    lines = (line.strip("│ ").split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│"))
    return {row[0].strip(): row[-1].strip() for row in lines}


@pytest.mark.slow
def test_samples_take_what_is_checked_for_them(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The images count, too: of a tokenizer without a missing decoder."""
    job = plan_samples(runs / "plain", tmp_path / "samples", DRAWING)
    (written,) = job.forecast().writes
    assert written.bytes == 10 * (4 * 16 * 2 * 2 + 3 * 3 * 8 * 8)
    checked = []
    monkeypatch.setattr("gmtool.stages.sample.run.check_space", lambda path, needed, what: checked.append(needed))
    sample(runs / "plain", tmp_path / "samples", DRAWING, Progress())
    assert checked == [written.bytes]


@pytest.mark.slow
def test_latents_alone_take_less(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gmtool.stages.sample.run.missing_decoder", lambda spec, decoder: "give one")
    estimate = plan_samples(runs / "plain", tmp_path / "samples", DRAWING).forecast()
    assert estimate.writes[0].bytes == 10 * 4 * 16 * 2 * 2
    assert ("no images", "give one") in estimate.work


@pytest.mark.slow
def test_drawing_takes_memory_and_time(runs: Path, tmp_path: Path) -> None:
    job = plan_samples(runs / "union", tmp_path / "samples", DRAWING)
    parameters = open_run(runs / "union").manifest.details["parameters"]
    assert job.forecast().memory == pytest.approx(4 * parameters + 8 * 4 * 16 * 2 * 2, rel=0.02)
    assert job.forecast().seconds is None
    keep_speed(Speed(device_name(torch.device("cpu")), "float32", matmul=1e11, train=5e10, network="B"))
    once = evaluation_flops(job.drawing.run.architecture, torch.float32)
    assert job.forecast().seconds == 10 * evaluations_of(job.plan) * once / 5e10


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "union"])
def test_an_evaluation_is_a_third_of_a_step(runs: Path, name: str) -> None:
    run = open_run(runs / name)
    step = step_cost(run.architecture, run.method, torch.float32)
    assert evaluation_flops(run.architecture, torch.float32) == pytest.approx(step.flops / 3, rel=1e-3)


@pytest.mark.slow
def test_encoding_holds_a_batch(small: Small, tmp_path: Path) -> None:
    """Where a network encodes, what it takes comes on top."""
    for workers in (0, 3):
        config = changed(PIXELS, {"batch_size": 10, "workers": workers, "flip": "both"})
        plan = plan_encoding(small.classes / "images", tmp_path / "latents.h5", config)
        images, latents = 3 * 8 * 8 * 10 * (1 + 2 * workers), 2 * 10 * 4 * (64 + plan.layout.descriptor_size)
        assert plan.forecast().memory == images + latents and not plan.forecast().more_memory


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["encode", "{images}", "{new}.h5", "--tokenizer", "pixels"],
        ["reconstruct", "{images}", "{new}", "--tokenizer", "pixels"],
        ["fit-gmm", "{latents}", "{new}.h5", "--modes", "3"],
        ["train", "{latents}", "{new}"],
        ["sample", "{run}", "{new}"],
        ["sweep", "{run}", "{new}", "--num", "4", "--features", "tokenizer"],
        ["likelihood", "{latents}", "{run}"],
    ],
    ids=lambda command: command[0],
)
def test_every_dry_run_has_memory_and_time(
    small: Small, runs: Path, tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {"images": small.classes / "images", "latents": small.latents("classes"), "run": runs / "plain"}
    words = [word.format(**paths, new=tmp_path / "new") for word in command]
    assert main([*words, "--device", "cpu", "--dry-run"]) == 0
    rows = shown(capsys)
    assert rows["memory"].startswith("about ")
    assert rows["time"].startswith("about ") == (command[0] == "sweep") or rows["time"] == UNKNOWN


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, the working directory."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


IMAGENET = "2,562,334 samples of 768 x 16 x 16 in 1,000 classes: {} does not exist, so ImageNet's by the preset"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["encode"], {"IMAGES (assumed)": IMAGENET.format("images"), "writes": "latents.h5, 945.8 GiB"}),
        (["encode", "--flip", "none", "--limit", "1000"], {"writes": "latents.h5, 381.2 MiB"}),
        (
            ["fit-gmm"],
            {
                "LATENTS (assumed)": IMAGENET.format("latents.h5"),
                "reads": "latents.h5, 945.8 GiB",
                "images in the fit": "2,434,218 of 2,562,334 (1,281,167 mirrored copies)",
            },
        ),
        (["fit-gmm", "--fraction", "0.1", "--held-out", "0"], {"images held out": "0", "modes, and": "8,192, 8"}),
        (
            ["sample"],
            {
                "RUN (assumed)": IMAGENET.format("run"),
                "reads": "run, 3.2 GiB",
                "writes": "samples, 36.6 GiB",
                "network calls": "782 batches of 8",
            },
        ),
        (["sample", "--decoder", "some/decoder", "--num", "100"], {"writes": "samples, 131.2 MiB"}),
        (
            ["eval"],
            {
                "SAMPLES (assumed)": "50,000 images of the preset's: samples does not exist",
                "writes": "samples/metrics.json",
                "samples": "50,000 images of 256 x 256 px",
                "reference": "ImageNet's by the preset, 2,562,334 samples",
            },
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_preset_needs_no_input(
    empty: Path, command: list[str], expected: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """In an empty folder the stages say what they assume of the data, and leave nothing behind."""
    assert main([*command, "--preset", "union-imagenet256", "--device", "cpu", "--dry-run"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name, value in expected.items():
        assert f"{name} " in text and value in text
    assert list(empty.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "missing"),
    [("encode", "images"), ("fit-gmm", "latents.h5"), ("sample", "run"), ("eval", "samples")],
)
def test_without_a_preset_that_tells_the_latents_the_input_is_missing(
    empty: Path, command: str, missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags in (["--dry-run"], ["--dry-run", "--preset", "quickstart"], ["--preset", "union-imagenet256"]):
        assert main([command, *flags, "--device", "cpu"]) == 2
        assert f"{missing} does not exist" in capsys.readouterr().err


@pytest.mark.slow
def test_what_is_there_is_not_assumed(
    small: Small, runs: Path, empty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (
        ["encode", str(small.classes / "images"), "--tokenizer", "pixels"],
        ["fit-gmm", str(small.latents("classes")), "--modes", "4"],
        ["sample", str(runs / "union")],
    ):
        assert main([*command, "--preset", "union-imagenet256", "--device", "cpu", "--dry-run"]) == 0
        assert "assumed" not in capsys.readouterr().out


def test_what_no_estimate_exists_for_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    print_forecast(Forecast("something"))
    rows = shown(capsys)
    assert (rows["memory"], rows["time"]) == (UNKNOWN, UNKNOWN)
    print_forecast(Forecast("something", memory=2048, seconds=60, more_memory="the network", more_time="the decoder's"))
    rows = shown(capsys)
    assert rows["memory"] == "about 2.0 KiB, and the network: unknown before measured"
    assert rows["time"] == "about 1:00, and the decoder's: unknown before measured"


def test_the_memory_of_features_is_that_of_what_the_extractor_gives() -> None:
    """An extractor's logits and spatial features count by its row, whatever its name."""
    for row in EXTRACTORS:
        plan = FeaturePlan(Choice("--features", row.name, "asked"), 2048, (), None, None)
        numbers = 2048 + (SPATIAL_SIZE + row.logits if row.logits else 0)
        assert plan.memory(10, 20, subsets=False) == 4 * numbers * 50 + 64 * 2048**2
