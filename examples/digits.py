"""What studies on the embedded digits share: data, a training budget, and a score, each made once and kept.

The score is the Fréchet distance of samples to real digits that took no part in training, in the descriptor space of
the pixels tokenizer; the floor beside it is the same distance of as many real training digits. Copies of training
digits would reach the floor too, so the distance of samples to the nearest training digit is reported as well. Settings
are chosen on the part ``validation``, whose reference is cut out of the training digits; results are reported on the
part ``test``, which no choice depends on.

Everything is made by gmtool's own stages in one folder and reused from there by the next call: a study that was stopped
resumes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from gmtool.artifacts.files import written_aside
from gmtool.artifacts.latents import open_latents
from gmtool.artifacts.samples import open_samples
from gmtool.console import ConsoleProgress
from gmtool.data.digits import write_digits
from gmtool.evaluation.features import feature_statistics
from gmtool.evaluation.metrics.frechet_distance import frechet_distance
from gmtool.settings import as_flat, make, settings_of
from gmtool.stages.distill.config import DistillConfig
from gmtool.stages.distill.run import distill
from gmtool.stages.encode.config import EncodeConfig
from gmtool.stages.encode.run import encode_images
from gmtool.stages.fit_gmm.config import FitGmmConfig
from gmtool.stages.fit_gmm.run import fit_gmm
from gmtool.stages.sample.config import SampleConfig
from gmtool.stages.sample.run import sample
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train.run import train
from gmtool.tokenizers.build import build_tokenizer
from gmtool.tokenizers.settings import TokenizerSettings

Part = Literal["validation", "test"]
HELD_OUT = 397
"""Digits of the validation part's reference: as many as the test part has."""
SAMPLES = 700
"""Digits drawn for a score, and training digits for its floor."""


@dataclass(frozen=True)
class Digits:
    """The latents of the digits to train on, and the folder of those to compare with."""

    root: Path
    latents: Path
    reference: Path


@dataclass(frozen=True)
class Score:
    """Fréchet distances to the held-out digits, squared descriptor units: of the samples, and of training digits.

    newness: mean distance of the samples to the nearest training digit, in units of that of the held-out digits; 0 for
    copies, 1 for digits that are as new as those.
    """

    distance: float
    floor: float
    newness: float


def prepare(root: Path, part: Part) -> Digits:
    """The digits of one part, encoded in patches of 2 x 2 pixels: latents (4, 4, 4)."""
    folder = root / part
    training, held_out = write_digits(root / "images")
    if part == "validation":
        training, held_out = _cut(training, folder / "images")
    digits = Digits(folder, folder / "latents.h5", held_out)
    if not digits.latents.exists():
        settings = EncodeConfig(TokenizerSettings("pixels", patch_size=2), workers=0, device="cpu")
        encode_images(training, digits.latents, settings, ConsoleProgress())
    return digits


def _cut(training: Path, folder: Path) -> tuple[Path, Path]:
    """Copies of the training digits in two parts, the second of `HELD_OUT`, always the same ones."""
    images = sorted(training.glob("*/*.png"), key=lambda path: path.name)
    order = np.random.default_rng(1).permutation(len(images))
    for place, index in enumerate(order):
        image = images[index]
        part = folder / ("held-out" if place < HELD_OUT else "train") / image.parent.name
        part.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(image, part / image.name)
    return folder / "train", folder / "held-out"


def mixture(digits: Digits, modes: int, seed: int) -> Path:
    """A mixture of so many modes, fitted to the latents."""
    path = digits.root / f"gmm-{modes}-{seed}.h5"
    fit_gmm(digits.latents, path, FitGmmConfig(modes=modes, seed=seed, device="cpu"), ConsoleProgress())
    return path


def budget(steps: int, seed: int) -> TrainConfig:
    """The network and the training that the methods of a study have in common; `gmtool.settings.changed` the rest."""
    return make(
        TrainConfig,
        {
            "condition": "class",
            "model": "tiny",
            "steps": steps,
            "batch_size": 128,
            "lr_knots": "100%:0",
            "lr_curve": "cosine",
            "save_every": 500,
            "keep": 1,
            "preview_every": 0,
            "device": "cpu",
            "seed": seed,
        },
    )


def trained(digits: Digits, config: TrainConfig) -> Path:
    """The run of these settings, trained now unless it has been."""
    run = digits.root / "runs" / _key(config)
    train(digits.latents, run, config, ConsoleProgress())
    return run


def imitation(evaluations: int, steps: int, batch: int, gmm: Path | None, seed: int) -> DistillConfig:
    """The training of a student for so many network evaluations; gmm: its teacher's mixture."""
    return make(
        DistillConfig,
        {
            "evaluations": evaluations,
            "steps": steps,
            "batch_size": batch,
            "lr_knots": "100%:0",
            "lr_curve": "cosine",
            "save_every": 500,
            "keep": 1,
            "preview_every": 0,
            "gmm": gmm,
            "device": "cpu",
            "seed": seed,
        },
    )


def student(digits: Digits, teacher: Path, config: DistillConfig) -> Path:
    """The student of a run by these settings, trained now unless it has been."""
    folder = digits.root / "students" / f"{teacher.name}-{_key(config)}"
    distill(teacher, folder, config, ConsoleProgress())
    return folder


def score(digits: Digits, run: Path, config: SampleConfig) -> Score:
    """The score of a run under a sampler, drawn now unless it has been; the samples are not kept."""
    kept = digits.root / "scores" / f"{run.name}-{_key(config)}.json"
    if not kept.exists():
        folder = digits.root / "samples" / run.name
        sample(run, folder, config, ConsoleProgress())
        result = _score(digits, open_samples(folder).images())
        shutil.rmtree(folder)
        kept.parent.mkdir(exist_ok=True)
        with written_aside(kept) as part:
            part.write_text(json.dumps(asdict(result)))
    return Score(**json.loads(kept.read_text()))


def _score(digits: Digits, images: np.ndarray) -> Score:
    """The score of images uint8 (N, 8, 8, 3); the floor is that of N training digits, or of all when there are less."""
    with open_latents(digits.latents) as latents:
        tokenizer = build_tokenizer(latents.tokenizer, torch.device("cpu"))
        training = torch.from_numpy(latents.descriptors(slice(None)))
    paths = sorted(digits.reference.glob("*/*.png"))
    real = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    drawn, held_out = (
        tokenizer.describe(torch.from_numpy(pixels).permute(0, 3, 1, 2)).float() for pixels in (images, real)
    )
    few = training[np.random.default_rng(0).permutation(len(training))[: len(images)]]
    reference = feature_statistics(held_out)
    distance, floor = (frechet_distance(feature_statistics(features), reference) for features in (drawn, few))
    nearest, usual = (float(torch.cdist(features, training).amin(1).mean()) for features in (drawn, held_out))
    return Score(distance, floor, nearest / usual)


def _key(config: TrainConfig | DistillConfig | SampleConfig) -> str:
    """A name for settings, made of what is not at its default."""
    settings = settings_of(type(config))
    values = {name: value for name, value in as_flat(config).items() if value != settings[name].default}
    return hashlib.blake2b(str(values).encode(), digest_size=8).hexdigest()
