"""The network's settings on their way from the command line into a run and its samples."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small import Small

from gmtool.artifacts.latents import open_latents
from gmtool.artifacts.run import open_run
from gmtool.errors import UserError
from gmtool.nn import model_names
from gmtool.nn.architecture import Architecture
from gmtool.nn.compile import compile_network
from gmtool.progress import Progress
from gmtool.settings import changed, make, settings_of
from gmtool.stages.sample.config import SampleConfig
from gmtool.stages.sample.run import sample
from gmtool.stages.train import run as train_stage
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train.plan import facts_of, plan_training
from gmtool.stages.train.run import train

QUICK = make(TrainConfig, {"steps": 3, "batch_size": 8, "preview_every": 0, "device": "cpu", "warmup": 0})


def architecture(small: Small, config: TrainConfig) -> Architecture:
    with open_latents(small.latents("classes")) as latents:
        return plan_training(config, facts_of(latents, None), gpu=False).architecture


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "step-00000003" / "model.safetensors")


def test_every_name_can_be_asked_for() -> None:
    assert settings_of(TrainConfig)["model"].choices == model_names()


def test_a_name_is_a_published_network(small: Small) -> None:
    dit, ditdh = (architecture(small, changed(QUICK, {"model": name})) for name in ("XL", "DH-XL"))
    assert (dit.kind, dit.depth, dit.width, dit.heads) == ("dit", 28, 1152, 16)
    assert not (dit.rms_norm or dit.swiglu or dit.rope or dit.qk_norm)
    assert (ditdh.kind, ditdh.depth, ditdh.width, ditdh.heads) == ("ditdh", 28, 1152, 16)
    assert (ditdh.wide_depth, ditdh.wide_width, ditdh.wide_heads) == (2, 2048, 16)
    assert ditdh.rms_norm and ditdh.swiglu and ditdh.rope and not ditdh.qk_norm
    assert ditdh.classes == dit.classes == 3


@pytest.mark.parametrize("objective", ["fm", "gm-kl"])
def test_a_mixture_without_effect_is_refused(small: Small, objective: str) -> None:
    """Rather than trained without, which would be taken for MM-FM or the union."""
    with pytest.raises(UserError, match=f"--gmm mine.h5 has no effect on --objective {objective}.*add --source gmm"):
        architecture(small, changed(QUICK, {"objective": objective, "gmm": Path("mine.h5")}))


def test_flags_change_its_patches_and_blocks(small: Small) -> None:
    made = architecture(small, changed(QUICK, {"patch_size": 2, "blocks": "modern", "qk_norm": True}))
    assert (made.patch, made.rms_norm, made.swiglu, made.rope, made.qk_norm) == (2, True, True, True, True)
    made = architecture(small, changed(QUICK, {"model": "DH-S", "blocks": "classic"}))
    assert (made.patch, made.rms_norm, made.swiglu, made.rope, made.qk_norm) == (1, False, False, False, False)


def test_patches_that_do_not_fit(small: Small) -> None:
    with pytest.raises(UserError, match="--patch-size 3 does not divide the latents' 2 x 2 positions"):
        architecture(small, changed(QUICK, {"patch_size": 3}))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"model": "DH-tiny"},
        {"model": "DH-tiny", "objective": "gm-kl", "source": "gmm"},
        {"patch_size": 2, "blocks": "modern", "qk_norm": True, "objective": "gm-kl"},
    ],
    ids=["ditdh", "ditdh-union", "modern/2"],
)
def test_every_kind_of_network_trains_and_is_sampled(small: Small, tmp_path: Path, changes: dict) -> None:
    train(small.latents("classes"), tmp_path / "run", changed(QUICK, changes), Progress())
    sample(
        tmp_path / "run", tmp_path / "samples", make(SampleConfig, {"num": 4, "steps": 2, "device": "cpu"}), Progress()
    )
    with open_latents(tmp_path / "samples" / "latents.h5") as latents:
        assert torch.from_numpy(latents.patches(slice(None)).astype("float32")).isfinite().all()


@pytest.mark.slow
def test_compiling_and_checkpointing_change_a_run_by_rounding_alone(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run begun without them resumes with them."""
    monkeypatch.setattr(train_stage, "compile_network", partial(compile_network, backend="eager"))
    torch.compiler.reset()
    config = changed(QUICK, {"model": "DH-tiny", "objective": "gm-kl"})
    train(small.latents("classes"), tmp_path / "plain", config, Progress())
    train(small.latents("classes"), tmp_path / "frugal", changed(config, {"steps": 2}), Progress())
    frugal = changed(config, {"compile": True, "checkpoint_activations": True})
    assert train(small.latents("classes"), tmp_path / "frugal", frugal, Progress()).resumed_from == 2
    plain, other = weights(tmp_path / "plain"), weights(tmp_path / "frugal")
    assert plain.keys() == other.keys()
    for name, weight in plain.items():
        torch.testing.assert_close(other[name], weight, atol=1e-4, rtol=1e-4, msg=name)


def test_a_run_from_before_these_settings_opens_and_resumes(small: Small, tmp_path: Path) -> None:
    path = tmp_path / "run"
    train(small.latents("classes"), path, QUICK, Progress())
    record = json.loads((path / "config.json").read_text())
    for name in ("patch_size", "blocks", "qk_norm", "checkpoint_activations", "compile"):
        del record["config"][name]
    known = ("shape", "depth", "width", "heads", "classes", "modes", "components", "constant_std", "spectral")
    del record["checksum"]  # which came later, too
    details = record["details"]
    details["architecture"] = {name: details["architecture"][name] for name in known}
    (path / "config.json").write_text(json.dumps(record))
    assert open_run(path).architecture == architecture(small, QUICK)
    assert train(small.latents("classes"), path, changed(QUICK, {"steps": 4}), Progress()).resumed_from == 3


def test_a_run_with_settings_of_a_later_version_is_not_gone_on_with(small: Small, tmp_path: Path) -> None:
    train(small.latents("classes"), tmp_path / "run", changed(QUICK, {"steps": 1}), Progress())
    path = tmp_path / "run/config.json"
    record = json.loads(path.read_text())
    del record["checksum"]
    record["config"]["novelty"] = 1
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match="has the unknown setting 'novelty': it was written by another gmtool version"):
        train(small.latents("classes"), tmp_path / "run", QUICK, Progress())
