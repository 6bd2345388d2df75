"""A run with a spectrum network: trained beside the mixture, sampled by gm-sde, refused where there is none."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small import Small

from gmtool.artifacts.latents import open_latents
from gmtool.artifacts.run import open_run
from gmtool.errors import UserError
from gmtool.forecast import Choice
from gmtool.progress import Progress
from gmtool.settings import changed, make
from gmtool.stages.sample.config import SampleConfig
from gmtool.stages.sample.run import sample
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train.plan import facts_of, plan_training
from gmtool.stages.train.run import train

TRAINING = make(
    TrainConfig,
    {
        "objective": "gm-kl",
        "spectral": 2,
        "steps": 3,
        "batch_size": 8,
        "preview_every": 0,
        "device": "cpu",
        "warmup": 0,
        "ema": (0.0,),
    },
)
SAMPLING = make(SampleConfig, {"num": 6, "steps": 2, "solver": "gm-sde", "device": "cpu"})


@pytest.fixture(scope="module", params=["gaussian", "gmm"])
def run(small: Small, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spectral") / "run"
    train(small.latents("classes"), path, changed(TRAINING, {"source": request.param}), Progress())
    return path


def latents(path: Path) -> torch.Tensor:
    with open_latents(path / "latents.h5") as file:
        return torch.from_numpy(file.patches(slice(None)).astype("float32"))


def test_the_spectrum_is_learned_stored_and_changes_the_samples(run: Path, tmp_path: Path):
    weights = load_file(run / "checkpoints" / "step-00000003" / "ema.safetensors")
    assert weights["spectrum.mlp.4.weight"].any() or weights["spectrum.mlp.4.bias"].any()
    sample(run, tmp_path / "spectral", changed(SAMPLING, {"spectral": True}), Progress())
    sample(run, tmp_path / "white", SAMPLING, Progress())
    spectral, white = latents(tmp_path / "spectral"), latents(tmp_path / "white")
    assert torch.isfinite(spectral).all() and spectral.shape == white.shape
    assert not torch.equal(spectral, white)


def test_spectral_samples_do_not_depend_on_the_batch(run: Path, tmp_path: Path):
    for size in (6, 4):
        sample(run, tmp_path / str(size), changed(SAMPLING, {"spectral": True, "batch_size": size}), Progress())
    torch.testing.assert_close(latents(tmp_path / "6"), latents(tmp_path / "4"), atol=5e-3, rtol=1e-2)


def test_the_mixture_learns_as_without_the_spectrum(small: Small, tmp_path: Path):
    """The spectrum's loss reaches no other weight: but for the clipping, which is off here, nothing changes."""
    seen = []
    for spectral in (0, 2):
        config = changed(TRAINING, {"spectral": spectral, "steps": 1, "clip": 0.0})
        train(small.latents("classes"), tmp_path / str(spectral), config, Progress())
        seen.append(load_file(tmp_path / str(spectral) / "checkpoints" / "step-00000001" / "model.safetensors"))
    plain, both = seen
    for name, weight in plain.items():
        assert torch.equal(weight, both[name]), name
    assert set(both) > set(plain)


def test_the_weight_of_its_loss_is_gmflows_ratio_unless_given(small: Small):
    """GMFlow's loss of the flow is 2 C times ours, and that of its spectrum is ours."""
    for changes, weight in (({}, 1 / 32), ({"spectral_weight": 0.5}, 0.5), ({"spectral": 0}, None)):
        with open_latents(small.latents("classes")) as file:
            plan = plan_training(changed(TRAINING, changes), facts_of(file, None), gpu=False)
        assert plan.settings["spectral_weight"] == weight
        assert plan.method.spectral_weight == (weight or 1)
        told = [choice for choice in plan.choices if choice.flag == "--spectral-weight"]
        expected = Choice("--spectral-weight", "0.03125", "GMFlow's ratio for 16 channels")
        assert told == ([] if changes else [expected])


def test_a_run_without_a_recorded_weight_resumes_with_1(small: Small, run: Path, tmp_path: Path):
    old = shutil.copytree(run, tmp_path / "run")
    record = json.loads((old / "config.json").read_text())
    del record["checksum"]
    del record["config"]["spectral_weight"]
    for unknown in ({}, {"spectral_weight": None}):
        (old / "config.json").write_text(json.dumps({**record, "config": {**record["config"], **unknown}}))
        assert open_run(old).method.spectral_weight == 1
    config = changed(TRAINING, {"source": record["config"]["source"]})
    with pytest.raises(UserError, match=r"was begun with --spectral-weight 1.*, not --spectral-weight 0\.03125"):
        train(small.latents("classes"), old, config, Progress())
    resumed = train(small.latents("classes"), old, changed(config, {"spectral_weight": 1.0}), Progress())
    assert resumed.resumed_from == 3


def test_what_does_not_go_together_is_refused(small: Small, run: Path, tmp_path: Path):
    with pytest.raises(UserError, match="--spectral has no effect, as this objective predicts no mixture"):
        make(TrainConfig, {"spectral": 1})
    with pytest.raises(UserError, match="--spectral is how gm-sde draws, not --solver gm-ode"):
        make(SampleConfig, {"spectral": True, "solver": "gm-ode"})
    with pytest.raises(UserError, match="--spectral 99: the latents have 16 channels"):
        train(small.latents("classes"), tmp_path / "many", changed(TRAINING, {"spectral": 99}), Progress())
    train(small.latents("classes"), tmp_path / "plain", changed(TRAINING, {"spectral": 0, "steps": 1}), Progress())
    assert open_run(tmp_path / "plain").architecture.spectral == 0
    with pytest.raises(UserError, match="this run has none"):
        sample(tmp_path / "plain", tmp_path / "samples", changed(SAMPLING, {"spectral": True}), Progress())
