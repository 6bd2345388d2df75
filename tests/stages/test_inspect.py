"""The inspect stage: what files are, and whether their inputs still match."""

import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import pytest
from small import MIXTURE, PIXELS, Small

from gmtool.artifacts.manifest import KINDS, Input, Manifest
from gmtool.artifacts.run import open_run
from gmtool.errors import UserError
from gmtool.progress import Progress
from gmtool.settings import make as settings_from
from gmtool.stages.encode.run import encode_images
from gmtool.stages.fit_gmm.run import fit_gmm
from gmtool.stages.inspect.run import ARTIFACTS, describe, verify
from gmtool.stages.sample.config import SampleConfig
from gmtool.stages.sample.run import sample
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train.run import train

TRAINING = settings_from(
    TrainConfig,
    {"steps": 2, "batch_size": 16, "preview_every": 0, "device": "cpu", "objective": "mm-fm", "save_every": 1},
)


@pytest.fixture(scope="module")
def finished(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything in it. Not to be written to."""
    root = tmp_path_factory.mktemp("finished") / "all"
    make(small, root)
    return root


def make(small: Small, root: Path) -> Path:
    shutil.copytree(small.classes / "images", root / "images")
    encode_images(root / "images", root / "latents.h5", PIXELS, Progress())
    fit_gmm(root / "latents.h5", root / "gmm.h5", MIXTURE, Progress())
    train(root / "latents.h5", root / "run", TRAINING, Progress())
    sample(
        root / "run", root / "samples", settings_from(SampleConfig, {"num": 4, "steps": 1, "device": "cpu"}), Progress()
    )
    return root


def states(path: Path) -> dict[str, str]:
    return {source.input.role: source.state for source in describe(path).inputs}


@pytest.mark.parametrize(
    ("name", "kind", "facts", "inputs"),
    [
        ("latents.h5", "latents", {"samples": "60", "classes": "3"}, {"images"}),
        ("gmm.h5", "gmm", {"modes": "4"}, {"latents"}),
        ("run", "run", {"checkpoints": "1, 2"}, {"latents", "gmm"}),
        ("samples", "samples", {}, {"run", "latents"}),
    ],
)
def test_what_things_are(finished: Path, name: str, kind: str, facts: dict[str, str], inputs: set[str]) -> None:
    description = describe(finished / name)
    assert description.manifest.kind == kind
    assert dict(description.facts) == facts
    assert states(finished / name) == dict.fromkeys(inputs, "matches")


def test_every_kind_has_a_row() -> None:
    assert ARTIFACTS.keys() == KINDS.keys()


@pytest.mark.parametrize(("model", "state"), [("facebook/some-model", "on the hub"), ("/not/there", "missing")])
def test_a_model_of_the_hub_is_not_missing(tmp_path: Path, model: str, state: str) -> None:
    """Nothing is fetched to look at an artifact."""
    record = tmp_path / "reconstruction.json"
    inputs = (Input("encoder", model, "0"), Input("decoder", model, "0"))
    record.write_text(Manifest("reconstruction", "reconstruct", "0", {}, inputs).to_json())
    assert states(record) == {"encoder": state, "decoder": state}


@pytest.mark.slow
def test_inputs_that_changed_or_went(small: Small, tmp_path: Path) -> None:
    root = make(small, tmp_path / "all")
    next((root / "images/a").iterdir()).unlink()
    assert states(root / "latents.h5") == {"images": "changed"}
    shutil.rmtree(root / "images")
    assert states(root / "latents.h5") == {"images": "missing"}
    fit_gmm(root / "latents.h5", root / "gmm.h5", replace(MIXTURE, modes=2), Progress())
    assert states(root / "run") == {"latents": "matches", "gmm": "changed"}
    shutil.copy(small.latents("flat"), root / "latents.h5")
    assert states(root / "gmm.h5") == {"latents": "changed"}
    (root / "latents.h5").write_text("damaged")
    assert states(root / "gmm.h5") == {"latents": "changed"}
    assert states(root / "samples") == {"run": "matches", "latents": "changed"}
    shutil.rmtree(root / "run/checkpoints/step-00000002")
    assert states(root / "samples")["run"] == "changed"


def test_what_is_nothing_of_gmtool(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("text")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    (tmp_path / "half.h5").write_bytes((finished / "latents.h5").read_bytes()[:3000])
    for name, words in (
        ("none", "does not exist"),
        (".", "is no run, samples or sweep"),
        ("text.h5", "not a whole HDF5 file"),
        ("other.h5", "was not written by gmtool"),
        ("half.h5", "not a whole HDF5 file"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            describe(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_statistics_have_no_older_version(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    (tmp_path / "run/statistics.safetensors").write_bytes(b"none")
    for reads in (verify, lambda path: open_run(path).tokenizer()):
        with pytest.raises(
            UserError, match=r": restore a copy of it, or run `gmtool train` again into another folder$"
        ):
            reads(tmp_path / "run")


def test_a_damaged_mixture_is_called_one(finished: Path, tmp_path: Path) -> None:
    shutil.copy(finished / "gmm.h5", tmp_path)
    with h5py.File(tmp_path / "gmm.h5", "r+") as file:
        del file["weights"]
    with pytest.raises(UserError, match=r"gmm.h5 is damaged .*: remove it, and make it again with `gmtool fit-gmm`"):
        describe(tmp_path / "gmm.h5")
