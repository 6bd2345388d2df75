"""Autoguidance from end to end, and what may guide what."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gmtool.artifacts.latents import Provenance, open_latents, write_latents
from gmtool.artifacts.samples import open_samples
from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.errors import UserError
from gmtool.progress import Progress
from gmtool.settings import changed, make
from gmtool.stages.fit_gmm.config import FitGmmConfig
from gmtool.stages.fit_gmm.run import fit_gmm
from gmtool.stages.sample.config import SampleConfig
from gmtool.stages.sample.run import sample
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train.run import train

SHORT = make(
    TrainConfig,
    {"steps": 2, "batch_size": 4, "preview_every": 0, "device": "cpu", "precision": "float32"},
)
FEW = make(SampleConfig, {"num": 3, "steps": 3, "device": "cpu", "precision": "float32"})


def write(path: Path, seed: int) -> Path:
    draw = np.random.default_rng(seed)
    write_latents(
        path,
        patches=draw.standard_normal((12, 2, 2, 2)).astype(np.float16),
        descriptors=draw.standard_normal((12, 3)).astype(np.float32),
        labels=np.arange(12) % 2,
        names=[f"{index}.png" for index in range(12)],
        classes=["even", "odd"],
        tokenizer=TokenizerSpec("dinov2", {}),
        provenance=Provenance("encode", {}),
    )
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("runs")
    latents = write(folder / "latents.h5", 0)
    fit_gmm(latents, folder / "gmm.h5", make(FitGmmConfig, {"modes": 2, "device": "cpu"}), Progress())
    made = {
        "velocity": changed(SHORT, {"condition": "class"}),
        "mixture": changed(SHORT, {"objective": "gm-kl", "components": 2, "condition": "class", "seed": 1}),
        "plain": changed(SHORT, {"condition": "none", "seed": 2}),
        "moded": changed(SHORT, {"objective": "mm-fm"}),
        "half": changed(SHORT, {"condition": "class", "fraction": 0.5}),
    }
    for name, config in made.items():
        train(latents, folder / name, config, Progress())
    train(write(folder / "other.h5", 1), folder / "other", changed(SHORT, {"condition": "none"}), Progress())
    return SimpleNamespace(folder=folder, **{name: folder / name for name in (*made, "other")})


def drawn(run: Path, target: Path, **changes: object) -> np.ndarray:
    sample(run, target, changed(FEW, changes), Progress())
    with open_latents(target / "latents.h5") as latents:
        return latents.patches(slice(None)).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("weaker", ["velocity", "mixture", "plain"])
@pytest.mark.parametrize(
    ("strong", "solver", "scale"),
    [("velocity", "unipc", 2.0), ("mixture", "gm-ode", 0.5), ("mixture", "gm-sde", 0.5), ("mixture", "euler", 2.0)],
)
def test_any_run_of_the_same_latents_guides(runs, tmp_path, strong, solver, scale, weaker):
    """A velocity guides a mixture and the other way round, with classes or without; its own velocity does nothing."""
    run, guide = getattr(runs, strong), getattr(runs, weaker)
    guided = drawn(run, tmp_path / "guided", solver=solver, guidance="auto", guide=guide, guidance_scale=scale)
    alone = drawn(run, tmp_path / "alone", solver=solver)
    if strong == weaker and scale > 1:  # on a mixture the spread still shrinks by 1 - scale^2
        np.testing.assert_allclose(guided, alone, atol=5e-3)
    else:
        assert np.abs(guided - alone).max() > 1e-3


@pytest.mark.slow
def test_the_samples_name_the_weaker_run(runs, tmp_path):
    drawn(runs.velocity, tmp_path / "samples", guidance="auto", guide=runs.plain)
    record = open_samples(tmp_path / "samples").manifest
    assert [source.role for source in record.inputs] == ["run", "latents", "guide"]
    assert record.inputs[2].path == str(runs.plain)
    assert record.details["plan"]["guidance"] == "auto" and record.details["plan"]["scale"] == 1.5


@pytest.mark.parametrize(
    ("strong", "weaker", "message"),
    [
        ("velocity", "other", "other latents"),
        ("velocity", "half", r"another mean and std of the latents: .* \(--fraction, --seed\)"),
        ("half", "velocity", "another mean and std"),
        ("velocity", "moded", "another source"),
        ("plain", "velocity", "conditioned on classes"),
        ("velocity", "nowhere", "does not exist"),
    ],
)
def test_a_run_that_cannot_guide_is_refused(runs, tmp_path, strong, weaker, message):
    with pytest.raises(UserError, match=message):
        drawn(getattr(runs, strong), tmp_path / "samples", guidance="auto", guide=runs.folder / weaker)
    assert not (tmp_path / "samples").exists()
