"""A small folder of experiments that the tests of the report share: two runs, their samples and scores, and a sweep."""

import shutil
from pathlib import Path

import pytest
from golden import DATA
from small import Small

from gmtool.artifacts.manifest import Input, Manifest
from gmtool.cli.app import execute
from gmtool.evaluation.extractors import ExtractorSettings
from gmtool.evaluation.report import Figure, Measurement
from gmtool.evaluation.sweep_table import Axis, Sweep, SweepPoint
from gmtool.progress import Progress
from gmtool.settings import make
from gmtool.stages.evaluate.config import EvaluateConfig
from gmtool.stages.evaluate.run import evaluate
from gmtool.stages.sample.config import SampleConfig
from gmtool.stages.sample.run import sample
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train.run import train

ENCODER = str(DATA / "rae_encoder")
CPU = ["--device", "cpu", "--batch-size", "4"]
IMAGES = ["--workers", "0", "--tokenizer", ENCODER, "--image-size", "32"]

STEPS = (1, 2)
SOURCES = {"gmflow": "gaussian", "union": "gmm"}


@pytest.fixture(scope="session")
def experiments(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be written to."""
    root = tmp_path_factory.mktemp("experiments") / "digits"
    shutil.copytree(small.classes, root)
    common = {"steps": 4, "batch_size": 16, "preview_every": 2, "objective": "gm-kl", "device": "cpu"}
    for name, source in SOURCES.items():
        training = make(TrainConfig, {**common, "source": source, "tensorboard": False})
        train(root / "latents.h5", root / name, training, Progress())
        for steps in STEPS:
            folder = root / f"{name}-{steps}"
            drawing = make(SampleConfig, {"num": 12, "steps": steps, "device": "cpu"})
            sample(root / name, folder, drawing, Progress())
            scoring = EvaluateConfig(root / "latents.h5", ExtractorSettings("tokenizer"), device="cpu")
            evaluate(folder, scoring, Progress())
    write_sweep(root / "sweep", root)
    return root


@pytest.fixture(scope="session")
def results(experiments: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The experiments with likelihoods of both runs, a trained decoder, and what two decoders reconstruct."""
    pytest.importorskip("diffusers")
    root = tmp_path_factory.mktemp("results") / "digits"
    shutil.copytree(experiments, root)
    for run in ("gmflow", "union"):
        output = ["--output", str(root / f"{run}-likelihood.json"), "--num", "4", "--times", "2", "--tolerance", "0.01"]
        assert execute(["likelihood", str(root / "latents.h5"), str(root / run), *output, *CPU]) == 0
    images = str(root / "images")
    training = ["--size", "tiny", "--upscale", "--steps", "2", "--perceptual", "none", "--adversarial", "none"]
    training += ["--validation", images, "--eval-every", "1", "--eval-num", "4", "--preview-every", "1"]
    assert execute(["train-decoder", images, str(root / "decoder"), *training, *IMAGES, *CPU]) == 0
    common = ["reconstruct", images, "--perceptual", "none", "--features", "tokenizer", "--limit", "8", *CPU]
    trained = [str(root / "by-decoder"), "--decoder", str(root / "decoder"), "--workers", "0"]
    assert execute([*common, *trained]) == 0
    pixels = ["--tokenizer", "pixels", "--image-size", "16", "--patch-size", "4", "--workers", "0"]
    assert execute([*common, str(root / "by-pixels"), *pixels]) == 0
    return root


def write_sweep(folder: Path, root: Path) -> None:
    """A sweep of both runs over two numbers of steps, a scale and two seeds."""
    points = []
    for run in SOURCES:
        for steps in (1, 4):
            for scale in (0.1, 0.3):
                for seed in (0, 1):
                    value = 1 / steps + scale + 0.01 * seed + (run == "gmflow")
                    figures = (
                        Figure("frechet_distance", Measurement(value, None, 9, 9), Measurement(0.2, None, 9, 9)),
                    )
                    plan = {"solver": "gm-ode", "steps": steps, "guidance": "prob", "scale": scale}
                    key = f"{run} {steps} {scale} {seed}"
                    settings = {"steps": steps, "guidance_scale": scale}
                    command = f"gmtool sample {run} --steps {steps}"
                    points.append(SweepPoint(key, run, settings, plan, seed, 4, 2 * steps, 9, figures, command))
    axes = (Axis("run", tuple(SOURCES)), Axis("steps", (1, 4)), Axis("guidance_scale", (0.1, 0.3)))
    sweep = Sweep(axes, tuple(points), (), "tokenizer", "pixels (64)", "held-out", "images", "abc")
    inputs = tuple(Input("run", str(root / run), "0" * 32) for run in SOURCES)
    folder.mkdir()
    manifest = Manifest("sweep", "sweep", "5" * 32, {}, inputs, details=sweep.to_details())
    (folder / "sweep.json").write_text(manifest.to_json())
